"""What is timed: training and inference of the zoo's networks, gated networks, single convolutions, CKA.

A case prepares a `Work`: sides that do the same work, refprune's first, and a check that they do.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..arrays import Array
from ..backend import ORACLE, Backend, load_backend
from ..data import dataset, sets
from ..errors import DataError
from ..formulas import cka, priors
from ..kernels.machine.cores import allowed
from ..passes.batch_loss import BatchLoss
from ..passes.predictor import Predictor
from ..spec import zoo
from ..spec.cost import macs, training_macs
from ..streams import Streams
from ..training import config
from ..training.removal import remove_gates
from ..training.state import State, initial_state, ungated
from ..training.step import train_step
from . import agreement
from .agreement import Agreement
from .timing import Side

#: Network → images in a training step.
TRAINING_BATCH = {"lenet-300-100": 128, "lenet-5": 128, "resnet-20": 128, "vgg-16": 64}
INFERENCE_BATCHES = (1, 256)
GATED, GATED_BATCH = "resnet-20", 128

#: VGG-16's 3×3 convolutions: channels in and out, height and width.
CONVOLUTIONS = (
    *((3, 64, 32), (64, 64, 32), (64, 128, 16), (128, 128, 16), (128, 256, 8)),
    *((256, 256, 8), (256, 512, 4), (512, 512, 4), (512, 512, 2)),
)
CONVOLUTION_BATCH = 64
CKA_SAMPLES, CKA_FEATURES = 10_000, 4096
PRIOR_OPERATIONS = 16  # roundings from a weight to its log-density and score
PRIOR, PRIOR_WEIGHTS = priors.SpikeSlab(pi=0.3, precision=1.0, spike=1e-3), 10_000_000

#: The side that does nothing but multiply-adds in registers.
PEAK = "peak"

#: Steps so small that thousands of them on one batch change nothing that is timed; and such that a check sees them.
TIMED_RATE, CHECKED_RATE, MOMENTUM = 1e-5, 0.01, 0.9


@dataclass(frozen=True)
class Setting:
    """What all cases share. torch: compare with PyTorch. dtype: of the networks and convolutions (CKA is float64)."""

    threads: int = field(default_factory=allowed)
    dtype: str = "float32"
    torch: bool = False
    seed: int = 0
    data_directory: str | None = None

    @functools.cached_property
    def backend(self) -> Backend:
        return load_backend("numba", threads=self.threads)

    @property
    def streams(self) -> Streams:
        return Streams(self.seed)


@dataclass
class Work:
    """Sides that do the same, refprune's first; a check that they do; what the result tells about the case.

    flops: floating-point operations of one call (a multiply-add is two), for networks of convolutions and dense layers only.
    bytes: that a call must read and write at least. peak_flops: of one call of the side PEAK, if there is one. compiled: makes
    a further side, "torch compiled". against: what the other sides are. subtracted: a side whose time is taken off refprune's.
    memory: the batch on which a training step's memory is measured. share: of the time that a case may take.
    """

    sides: dict[str, Side]
    check: Callable[[], Agreement] | None = None
    compiled: Callable[[], Side] | None = None
    details: dict[str, Any] = field(default_factory=dict)
    flops: float = 0.0
    bytes: float = 0.0
    peak_flops: float = 0.0
    against: str = "torch"
    subtracted: str = "refprune, weights alone"
    memory: tuple[Array, Array] | None = None
    share: float = 1.0


@dataclass(frozen=True)
class Case:
    """name: what the command line calls it; task: what is timed of it."""

    name: str
    task: str
    prepare: Callable[[Setting], Work]


# --------------------------------------------------------------------------------------------------------------------
# Data and networks


@functools.lru_cache(maxsize=4)
def _dataset(name: str, directory: str | None) -> dataset.Dataset:
    return sets.load(name, directory)


def images(setting: Setting, shape: tuple[int, ...], count: int) -> tuple[Array, Array, str]:
    """(standardised images count×shape, labels, where they come from): real ones where the data are found."""
    real, stand_in = ("mnist", "synthetic-digits") if shape == (1, 28, 28) else ("cifar10", None)
    try:
        found = _dataset(real, setting.data_directory)
    except DataError:
        if stand_in is None:
            labels = (10 * setting.streams.uniform("labels", 0, (count,))).astype(np.int64)
            return setting.streams.normal("images", 0, (count, *shape)).astype(setting.dtype), labels, "random images"
        found = _dataset(stand_in, None)
    x = found.train_images[:count].astype(np.float64)
    x = (x - x.mean(axis=(0, 2, 3), keepdims=True)) / x.std(axis=(0, 2, 3), keepdims=True)
    return np.ascontiguousarray(x.astype(setting.dtype)), found.train_labels[:count], found.name


def _rules(setting: Setting, batch: int, learning_rate: float) -> config.Config:
    """Plain SGD with momentum; θ stays where it is."""
    return config.Config(
        seed=setting.seed,
        gates=config.Gates(warmup_epochs=math.inf),
        optimiser=config.Optimiser(learning_rate=learning_rate, momentum=MOMENTUM),
        training=config.Training(batch_size=batch, dtype=setting.dtype, section_scale=1.0),
    )


def network_state(setting: Setting, name: str) -> State:
    """The zoo's network without gates, as training begins."""
    return initial_state(_rules(setting, 1, TIMED_RATE), ungated(zoo.build(name, {})))


class Training:
    """refprune's side: steps on one batch, gates fixed by θ ∈ {0, 1}."""

    def __init__(self, setting: Setting, state: State, x: Array, labels: Array, learning_rate: float = TIMED_RATE) -> None:
        self.state, self.x, self.labels, self.backend = state, x, labels, setting.backend
        self.rules = _rules(setting, len(labels), learning_rate)

    def step(self) -> None:
        self.state, _ = train_step(self.state, self.x, self.labels, self.rules, self.backend, training_images=len(self.labels))


def predictor(setting: Setting, state: State) -> Predictor:
    """refprune's side of inference: x → logits."""
    return Predictor(state.network, setting.backend, state.params, state.statistics)


# --------------------------------------------------------------------------------------------------------------------
# Networks


def training(name: str, setting: Setting) -> Work:
    """One step of a zoo network: forward, backward, SGD with momentum."""
    state = network_state(setting, name)
    network = state.network
    x, labels, source = images(setting, network.input_shape, TRAINING_BATCH[name])
    work = Work({"refprune": Training(setting, state, x, labels).step}, memory=(x, labels))
    work.details = {"batch": len(x), "data": source}
    work.flops = 2.0 * len(x) * training_macs(network)
    if setting.torch:
        from . import torch_side

        make = functools.partial(torch_side.Training, network, state.params, state.statistics, x, labels, momentum=MOMENTUM)
        for layout in torch_side.layouts(network):
            work.sides[f"torch {layout}"] = make(layout=layout, learning_rate=TIMED_RATE).step
        work.compiled = lambda: make(compiled=True, learning_rate=TIMED_RATE).step
        work.check = lambda: _check_training(setting, state, x, labels, make)
    return work


def _check_training(setting: Setting, state: State, x: Array, labels: Array, make: Callable[..., Any]) -> Agreement:
    """What one step changes, the momenta after two; for small networks also the gradients of a few images, entry by entry.

    The two steps are the timed ones, so small that the second gradient is taken at the same place: where the weights have moved
    apart by what rounding and kinks do to one gradient, the second would differ by much more.
    """
    from . import torch_side

    network = state.network
    mine, theirs = Training(setting, state, x, labels, CHECKED_RATE), make(learning_rate=CHECKED_RATE)
    mine.step()
    theirs.step()
    start = state.params | state.statistics
    ends = mine.state.params | mine.state.statistics, theirs.arrays()
    moved = [{name: end[name].astype(np.float64) - start[name] for name in start} for end in ends]
    found = [agreement.displacements(network, len(x), moved[0], moved[1], setting.dtype)]
    mine, theirs = Training(setting, state, x, labels), make(learning_rate=TIMED_RATE)
    for _ in range(2):
        mine.step()
        theirs.step()
    found.append(agreement.displacements(network, len(x), mine.state.velocity, theirs.velocity(), setting.dtype))
    loss = BatchLoss(network, setting.backend, state.params, x, labels, state.statistics)
    gradients = functools.partial(torch_side.gradients, network, state.params, state.statistics)
    detailed = agreement.entrywise(loss, gradients, setting.dtype)
    return agreement.worst(found if detailed is None else [*found, detailed])


def inference(name: str, batch: int, setting: Setting) -> Work:
    """Logits of one batch in eval mode."""
    state = network_state(setting, name)
    network = state.network
    x, _, source = images(setting, network.input_shape, batch)
    predict = predictor(setting, state)
    work = Work({"refprune": lambda: predict(x)}, details={"batch": batch, "data": source})
    work.flops = 2.0 * batch * macs(network)
    if setting.torch:
        from . import torch_side

        make = functools.partial(torch_side.Inference, network, state.params, state.statistics, x)
        for layout in torch_side.layouts(network):
            work.sides[f"torch {layout}"] = make(layout=layout)
        work.compiled = lambda: make(compiled=True)
        work.check = lambda: agreement.outputs(network, predict(x), make()(), setting.dtype)
    return work


def gated(closed: str, setting: Setting) -> Work:
    """A gated network with every second section closed against the whole one, which is the other side.

    closed: "pruned", the sections have been removed; "sampled", their gates are 0 in the step.
    """
    network = zoo.build(GATED, {"gates": True})
    whole = initial_state(_rules(setting, 1, TIMED_RATE), network)
    keep = np.arange(network.gate_count) % 2 == 0
    whole = dataclasses.replace(whole, theta=np.ones(network.gate_count))
    half = dataclasses.replace(whole, theta=keep.astype(np.float64))
    pruned, _, _ = remove_gates(whole, keep, config.Config())
    x, labels, source = images(setting, network.input_shape, GATED_BATCH)
    sides: dict[str, Side] = {
        "refprune": Training(setting, pruned if closed == "pruned" else half, x, labels).step,
        "full network": Training(setting, whole, x, labels).step,
    }
    share = training_macs(network) / training_macs(pruned.network)
    open_sections = f"{int(keep.sum())} of {keep.size}"
    details = {"batch": len(x), "data": source, "network": GATED, "sections": open_sections, "ratio_of_macs": share}

    def check() -> Agreement:
        """The masked step and the step of the pruned network."""
        ends = []
        for state in (half, pruned):
            side = Training(setting, state, x, labels, CHECKED_RATE)
            side.step()
            ends.append({n: side.state.params[n].astype(np.float64) - pruned.params[n] for n in pruned.params})
        return agreement.displacements(pruned.network, len(x), ends[0], ends[1], setting.dtype)

    return Work(sides, check, details=details, flops=2.0 * len(x) * training_macs(pruned.network), against="full network")


# --------------------------------------------------------------------------------------------------------------------
# Single convolutions


def convolution(shape: tuple[int, int, int], task: str, setting: Setting) -> Work:
    """One 3×3 convolution, stride 1, padding 1: "forward", "backward-data" or "backward-weights".

    refprune's VJP gives both gradients, or those of the weights alone: the time of "backward-data" is that of both less that of
    the weights', which is a side too. The processor's peak runs beside them as a further side.
    """
    from ..kernels.machine import peak

    inputs, outputs, size = shape
    streams, n = setting.streams, CONVOLUTION_BATCH
    x = streams.normal("x", 0, (n, inputs, size, size)).astype(setting.dtype)
    w = streams.normal("w", 0, (outputs, inputs, 3, 3)).astype(setting.dtype)
    dy = streams.normal("dy", 0, (n, outputs, size, size)).astype(setting.dtype)
    same = ((1, 1), (1, 1))
    conv = functools.partial(setting.backend.conv2d, x, w, None, stride=(1, 1), padding=same, dilation=(1, 1), groups=1)
    _, saved = conv()
    vjp = functools.partial(setting.backend.conv2d_vjp, saved, dy)

    def weights_alone() -> Array:
        gradient: Array = vjp(input_gradient=False)[1]
        return gradient

    mine: dict[str, Callable[[], Array]] = {
        "forward": lambda: conv()[0],
        "backward-data": lambda: vjp()[0],
        "backward-weights": weights_alone,
    }
    work = Work({"refprune": mine[task]}, details={"batch": n, "channels": [inputs, outputs], "size": size}, share=0.3)
    work.flops = 2.0 * n * size**2 * 9 * inputs * outputs
    work.bytes = float(x.nbytes + w.nbytes + dy.nbytes)
    if task == "backward-data":
        work.sides[work.subtracted] = weights_alone
    if setting.torch:
        from . import torch_side

        theirs = {layout: torch_side.convolution(x, w, dy, layout, task) for layout in torch_side.LAYOUTS}
        work.sides |= {f"torch {layout}": side for layout, side in theirs.items()}
        products = {"forward": inputs * 9, "backward-data": outputs * 9, "backward-weights": n * size**2}[task]
        bound = agreement.sums(products, setting.dtype)
        method = "relative L2 distance, bound from rounding"
        work.check = lambda: agreement.in_norm({task: mine[task]()}, {task: theirs["contiguous"]()}, bound, method)
    work.sides[PEAK], work.peak_flops = peak.burst(setting.threads, setting.dtype)
    return work


# --------------------------------------------------------------------------------------------------------------------
# CKA


def similarity(estimator: cka.Estimator, setting: Setting) -> Work:
    """Linear CKA of two arrays of features, float64; the second is made of the first and as much that is new."""
    product = setting.backend.cross_product
    streams, shape = setting.streams, (CKA_SAMPLES, CKA_FEATURES)
    x = np.maximum(streams.normal("features", 0, shape), 0.0)
    y = np.maximum(np.roll(x, 1, axis=1) - streams.normal("features", 1, shape), 0.0)
    work = Work(
        {"refprune": lambda: cka.cka(x, y, estimator=estimator, product=product).value},
        details={"samples": shape[0], "features": shape[1]},
    )
    if setting.torch:
        from . import torch_side

        def value(result: float | None) -> Array:
            return np.array(math.nan if result is None else result)

        bound = agreement.sums(math.prod(shape), "float64")
        method = "relative difference, bound from rounding"
        work.sides["torch contiguous"] = lambda: torch_side.linear_cka(x, y, estimator)
        work.check = lambda: agreement.in_norm(
            {"CKA": value(cka.cka(x, y, estimator=estimator, product=product).value)},
            {"CKA": value(torch_side.linear_cka(x, y, estimator))},
            bound,
            method,
        )
    return work


# --------------------------------------------------------------------------------------------------------------------
# Priors


def prior(against: str, setting: Setting) -> Work:
    """Log-density and score of a spike-and-slab prior of single weights, beside the same formulas in "numpy" or "torch"."""
    w = 0.1 * setting.streams.normal("weights", 0, (PRIOR_WEIGHTS, 1)).astype(setting.dtype)
    function = setting.backend.prior_density
    work = Work({"refprune": lambda: function(w, PRIOR)}, details={"weights": len(w)}, against=against)
    if against == "torch" and not setting.torch:
        return work
    if against == "torch":
        from . import torch_side

        theirs = torch_side.spike_slab(w, PRIOR)
    else:

        def theirs() -> tuple[Array, Array]:
            return ORACLE.prior_density(w, PRIOR)[:2]

    bound = agreement.sums(PRIOR_OPERATIONS, setting.dtype)

    def check() -> Agreement:
        found, other = function(w, PRIOR), theirs()
        mine, reference = {"log p": found[0], "score": found[1]}, {"log p": other[0], "score": other[1]}
        return agreement.in_norm(mine, reference, bound, "relative L2 distance, bound from rounding")

    work.sides[f"{against} contiguous"], work.check = theirs, check
    return work


def _all() -> list[Case]:
    cases = []
    for name in TRAINING_BATCH:
        cases.append(Case(name, "train", functools.partial(training, name)))
        cases += [Case(name, "infer", functools.partial(inference, name, batch)) for batch in INFERENCE_BATCHES]
    cases += [Case("gates", f"half {closed}", functools.partial(gated, closed)) for closed in ("pruned", "sampled")]
    cases += [Case("cka", estimator, functools.partial(similarity, estimator)) for estimator in ("biased", "unbiased")]
    cases += [Case("prior", f"beside {against}", functools.partial(prior, against)) for against in ("numpy", "torch")]
    tasks = ("forward", "backward-data", "backward-weights")
    return cases + [Case("conv", task, functools.partial(convolution, shape, task)) for shape in CONVOLUTIONS for task in tasks]


CASES = _all()

#: What the command line knows.
NAMES = tuple(dict.fromkeys(case.name for case in CASES))
