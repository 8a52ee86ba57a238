"""Arguments at the ends of their domains, of size one, at kinks and under other conventions: what drawing seldom meets.

Each is written down, so that it stays the same whatever Hypothesis draws. `vectors` makes vectors of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ...adapters.implementation import EVERY
from ...spec.json_form import to_json
from ...spec.layers import Activation, AveragePool, BatchNorm, Conv, Dense, Flatten, Layer, MaxPool, Section, UnitGate
from ...spec.network import Loss, Network
from ..asking.methods import Arguments
from ..levels.layers import arguments_of
from ..levels.networks import batch_of
from ..strategies import layers, networks


class Extreme(NamedTuple):
    """aim: in words; bug_class: one of `vector_files.BUG_CLASSES`."""

    method: str
    aim: str
    bug_class: str
    arguments: Arguments


def _array(*numbers: Any) -> Any:
    return np.array(numbers, dtype=np.float64)


def extremes() -> Iterator[Extreme]:
    """All of them."""
    yield from _scalars()
    yield from _layers()
    yield from _conventions()
    yield from _networks()
    yield from _theta()
    yield from _pruning()
    yield from _similarity()


# --------------------------------------------------------------------------------------------------------------- scalars


def _scalars() -> Iterator[Extreme]:
    ends, strengths = _array(0.0, 1.0, 0.0, 1.0, 0.5), _array(-3.0, -3.0, 2000.0, -2000.0, 0.0)
    yield Extreme(
        "pi_star", "π* keeps 0 and 1 whatever γ is, and θ at γ = 1", "boundary", {"theta": ends, "log_gamma": strengths}
    )
    yield Extreme("penalty", "θ at 0 and 1, γ = 1, |log γ| large", "boundary", {"theta": ends, "log_gamma": strengths})
    sides = {"theta": _array(0.0, 1.0, 0.0, 1.0, 0.5), "pi": _array(0.0, 1.0, 1.0, 0.0, 1.0)}
    yield Extreme("kl", "0 log 0 = 0; what is impossible under π costs +∞", "boundary", sides)
    density = {"pi": _array(0.0, 1.0, 0.0, 1.0, 0.5), "log_gamma": _array(-3.0, -3.0, 300.0, -300.0, 0.0)}
    yield Extreme("hyper_prior", "π at 0 and 1, γ = 1, |log γ| large", "boundary", density)
    steps = {"theta": _array(0.0, 1.0, 0.25, 0.75, 0.0, 1.0), "gradient": _array(0.25, -1.0, 2.0, -2.0, -0.75, 0.5)}
    aim = "the step ends on 0 and on 1, stays there, and leaves both"
    yield Extreme("theta_step", aim, "boundary", {**steps, "beta": 0.125, "learning_rate": 0.5})


# ---------------------------------------------------------------------------------------------------------------- layers


def _layer(op: str, aim: str, bug_class: str, *arrays: Any, constants: tuple[Any, ...] = (), **options: Any) -> Extreme:
    """A layer's call with a cotangent that belongs to it."""
    given = tuple(np.array(a, dtype=np.float64) for a in arrays)
    case = layers.Case(op, given, options, tuple(np.array(c) for c in constants), smooth=False)
    return Extreme(op, aim, bug_class, arguments_of(case, EVERY))


NO_PADDING = ((0, 0), (0, 0))


def _layers() -> Iterator[Extreme]:
    yield _layer("dense", "one example, one input, one unit", "size", [[1.5]], [[-0.75]], [0.25])
    pixel: Arguments = {"stride": (1, 1), "padding": NO_PADDING, "dilation": (1, 1), "groups": 1}
    yield _layer("conv2d", "one pixel, one filter", "size", [[[[2.0]]]], [[[[-0.5]]]], [1.0], **pixel)
    border = pixel | {"padding": ((2, 1), (0, 2)), "stride": (3, 2)}
    image = np.arange(1.0, 10.0).reshape(1, 1, 3, 3)
    aim = "another padding on every side, a stride that leaves pixels out"
    yield _layer("conv2d", aim, "boundary", image, np.arange(-4.0, 5.0).reshape(1, 1, 3, 3), [0.5], **border)
    yield _layer("batch_norm", "two examples, the fewest that have a variance", "size", [[1.0], [4.0]], [2.0], [-1.0], eps=1e-5)
    constant = [[3.0, 1.0], [3.0, 2.0], [3.0, 4.0]]
    yield _layer("batch_norm", "a unit without variance", "boundary", constant, [2.0, 1.0], [0.5, 0.0], eps=1e-3)
    statistics = ([0.5], [0.25])
    aim = "a batch of one"
    yield _layer("batch_norm_eval", aim, "size", [[1.0]], [2.0], [-1.0], constants=statistics, eps=1e-5)
    zeros = [[0.0, 1.0, -1.0, 0.0], [-0.0, 2.0, -0.0, -3.0]]
    for slope in (0.0, 0.25):
        yield _layer("leaky_relu", f"inputs exactly 0, slope {slope}", "tie", zeros, slope=slope, at_zero=0.0)
    window = {"kernel": (2, 2), "stride": (1, 1), "padding": ((1, 0), (0, 1))}
    equal = np.ones((1, 1, 3, 3))
    yield _layer("max_pool", "all entries equal: the first gets the gradient", "tie", equal, **window, ties="first")
    yield _layer("max_pool", "negative entries beside padding, which never wins", "boundary", -equal, **window, ties="first")
    one = {"kernel": (1, 1), "stride": (1, 1), "padding": NO_PADDING}
    yield _layer("max_pool", "windows of one pixel", "size", [[[[-2.0]]]], **one, ties="first")
    corner = {"kernel": (2, 2), "stride": (2, 2), "padding": ((1, 0), (1, 0))}
    yield _layer("average_pool", "one pixel among padding that counts", "size", [[[[8.0]]]], **corner, count_padding=True)
    yield _layer("global_average_pool", "one pixel", "size", [[[[3.0]], [[-1.0]]]])
    yield _layer("flatten", "one example of one pixel", "size", [[[[3.0]], [[-1.0]]]])
    large = [[-800.0, -40.0, 0.0, 40.0, 800.0]]
    for op in ("tanh", "sigmoid", "gelu", "gelu_tanh"):
        yield _layer(op, "inputs so large that a plain exponential overflows", "boundary", large)
    yield _layer("subsample_pad", "a stride beyond the image", "boundary", image, stride=(5, 4), before=1, after=2)
    yield _layer("add", "one channel of two", "size", [[1.0, 2.0]], [[0.5]], channels=(1,))
    yield _layer("gate", "a closed layer gate has a gradient", "boundary", [[1.0, -2.0]], 0.0)
    yield _layer("gate", "a closed unit among one open one", "boundary", [[1.0, -2.0], [3.0, 4.0]], [0.0, 1.0])
    for reduction in ("mean", "sum"):
        aim = f"logits so large that a plain exponential overflows, {reduction}"
        logits = [[1000.0, -1000.0, 0.0], [-1000.0, 999.0, 1000.0]]
        yield _layer("cross_entropy", aim, "boundary", logits, constants=([0, 1],), reduction=reduction)
    yield _layer("cross_entropy", "one example, one class: the loss is 0", "size", [[5.0]], constants=([0],), reduction="mean")
    for reduction in ("mean", "batch_mean", "sum"):
        aim = f"one example of one number, {reduction}"
        yield _layer("mean_squared_error", aim, "size", [[2.0]], constants=([[0.5]],), reduction=reduction)
    yield _layer("weight_decay", "one weight, and it is 0", "size", [[0.0]], strength=0.25)


def _conventions() -> Iterator[Extreme]:
    """Other choices than PyTorch's."""
    zeros = [[0.0, 1.0, -1.0, 0.0]]
    for at_zero in (0.5, 1.0):
        yield _layer("leaky_relu", f"derivative {at_zero} at 0", "convention", zeros, slope=0.0, at_zero=at_zero)
    window = {"kernel": (2, 2), "stride": (1, 1), "padding": ((1, 0), (0, 1))}
    equal = np.ones((1, 1, 3, 3))
    yield _layer("max_pool", "all entries equal: the last gets the gradient", "convention", equal, **window, ties="last")
    aim = "the divisor does not count padding"
    yield _layer("average_pool", aim, "convention", 4.0 * equal, **window, count_padding=False)


# -------------------------------------------------------------------------------------------------------------- networks


def _chain(*parts: Layer, shape: tuple[int, ...] = (2,), units: int = 2, loss: str = "cross_entropy") -> Network:
    return Network(shape, (*parts, Dense(units)), Loss(loss, "mean"))


def _gated(*norms: BatchNorm, activation: str = "relu", at_zero: float = 0.0) -> Network:
    """A section with one unit."""
    path: tuple[Layer, ...] = (Dense(1), *norms, Activation(activation, at_zero=at_zero), Dense(2))
    return _chain(Section(path, post="identity"))


def _network(aim: str, bug_class: str, network: Network, batch: int = 1, *, train: bool = True, **changed: Any) -> Extreme:
    case = networks.Case(network, batch, seed=1, train=train)
    arguments = batch_of(case) | {"gates": np.ones(network.gate_count), "train": train}
    return Extreme("network", aim, bug_class, arguments | changed)


def _networks() -> Iterator[Extreme]:
    path = (Dense(1), Activation("tanh"), Dense(1))
    single = _chain(Section(path, post="identity"), shape=(1,), units=1, loss="mean_squared_error")
    for value in (0.0, 1.0):
        yield _network(f"one example, one input, one unit, gate {value:g}", "size", single, gates=_array(value))
    still = np.zeros((1, 2))
    quiet = _gated()
    biases = {name: 0.0 * array for name, array in networks.Case(quiet, 1, 1, True).params.items() if name.endswith(".bias")}
    params = networks.Case(quiet, 1, 1, True).params | biases
    yield _network("every input of a ReLU is exactly 0", "tie", quiet, x=still, params=params)
    yield _network("a closed gate has a gradient", "boundary", quiet, gates=_array(0.0))
    yield _network("every gate closed, batch statistics", "boundary", _gated(BatchNorm()), 3, gates=_array(0.0))
    flat, around = np.full((1, 1, 4, 4), 0.5), ((1, 0), (0, 1))
    pools: tuple[tuple[str, str, MaxPool | AveragePool], ...] = (
        ("all pixels equal under a max pool: the first", "tie", MaxPool((2, 2), (2, 2))),
        ("all pixels equal under a max pool: the last", "convention", MaxPool((2, 2), (2, 2), ties="last")),
        ("an average pool that does not count padding", "convention", AveragePool((2, 2), (2, 2), around, count_padding=False)),
    )
    for aim, bug_class, pool in pools:
        yield _network(aim, bug_class, _chain(pool, Flatten(), shape=(1, 4, 4)), x=flat)
    for at_zero in (0.5, 1.0):
        aim = f"every input of a ReLU is exactly 0, where its derivative is {at_zero}"
        yield _network(aim, "convention", _gated(at_zero=at_zero), x=still, params=params)
    for norm in (BatchNorm(running_variance="biased"), BatchNorm(momentum_of="running")):
        aim = f"running statistics after a batch: {norm.running_variance} variance, momentum of the {norm.momentum_of}"
        yield _network(aim, "convention", _gated(norm), 3)
    units = _chain(Conv(2, (3, 3), padding=((1, 1), (1, 1))), Activation("tanh"), UnitGate(), Flatten(), shape=(1, 2, 2))
    yield _network("all filters of a layer closed", "boundary", units, gates=_array(0.0, 0.0))


# ----------------------------------------------------------------------------------------------------------------- theta


def _two_gates() -> Network:
    section = Section((Dense(1), Activation("tanh"), Dense(2)), post="identity")
    return _chain(section, section)


def _theta() -> Iterator[Extreme]:
    case = networks.Case(_two_gates(), 1, seed=2, train=False)
    batch = batch_of(case) | {"train": False}
    for theta in ((0.0, 1.0), (1.0, 1.0), (0.0, 0.0), (0.5, 1.0)):
        aim = f"exact gradients at θ = ({theta[0]:g}, {theta[1]:g})"
        yield Extreme("theta_gradient", aim, "boundary", batch | {"theta": _array(*theta)})
    drawn = {"theta": _array(0.25, 0.625), "uniform": _array((0.125, 0.75), (0.875, 0.25))}
    for estimator in ("paired", "taylor", "arm", "disarm", "exact"):
        aim = f"the estimate {estimator} made of given numbers"
        yield Extreme("theta_estimate", aim, "convention", batch | drawn | {"_estimator": estimator})
    network = _gated(activation="tanh")
    case = networks.Case(network, 1, seed=3, train=True)
    rates = {"learning_rate": 0.0625, "momentum": 0.875, "weight_decay": 0.125, "theta_learning_rate": 1.0, "beta": 0.25}
    for start, estimator in ((0.0, "taylor"), (1.0, "taylor"), (0.5, "paired")):
        steps = batch_of(case) | {"theta": _array(start), "x": case.normal("inputs", (2, 1, 2)), "target": np.array([[0], [1]])}
        aim = f"two steps of one example from θ = {start:g} by {estimator}"
        arguments = steps | {"gates": _array((1.0,), (0.0,)), **rates, "estimator": estimator}
        yield Extreme("training_steps", aim, "boundary" if estimator == "taylor" else "convention", arguments)


def _pruning() -> Iterator[Extreme]:
    for threshold in (0.0, 0.5):
        arguments = {"theta": _array(0.0, threshold, threshold + 2.0**-20, 1.0), "threshold": threshold}
        yield Extreme("pruning_decision", "θ exactly at the threshold goes", "boundary", arguments)
    origin = {"w": _array(0.0, 1.0), "theta": _array(0.0, 1.0), "kappa": _array(1.0, 2.0)}
    aim = "the origin lies in the domain, a kept gate does not"
    yield Extreme("attracted", aim, "boundary", origin | {"beta": 0.5, "decay": 0.125, "ratio": 1.0})
    units = Network((2,), (Dense(3), Activation("tanh"), UnitGate(), Dense(2)), Loss("cross_entropy", "mean"))
    removals = (
        ("no section is left", "boundary", _two_gates(), (False, False)),
        ("every section is left", "boundary", _two_gates(), (True, True)),
        ("one unit of three is left, in the middle", "size", units, (False, True, False)),
    )
    for aim, bug_class, network, keep in removals:
        batch = batch_of(networks.Case(network, 1, seed=2, train=False))
        del batch["target"]
        yield Extreme("compact", aim, bug_class, batch | {"keep": np.array(keep), "train": False})
    for end in (0.0, 1.0):
        rates = {"nu": 1.0, "alpha": 0.5, "balance": 0.5}
        arguments = {"spec": to_json(_two_gates()), "theta": np.full(2, end), **rates}
        yield Extreme("complexity", f"every θ at {end:g}", "boundary", arguments)


def _similarity() -> Iterator[Extreme]:
    x, y = _array((1.0,), (2.0,), (4.0,), (8.0,), (3.0,)), _array((1.0,), (-1.0,), (2.0,), (0.0,), (5.0,))
    fewest = {"x": x[:4], "y": y[:4], "estimator": "unbiased"}
    yield Extreme("hsic", "four examples, the fewest of the unbiased estimator", "size", fewest)
    constant = {"x": np.ones((4, 1)), "y": y[:4], "estimator": "biased"}
    yield Extreme("hsic", "one feature that is constant", "boundary", constant)
    linear = {"x": x, "y": y, "kernel": "linear"}
    for estimator in ("biased", "unbiased"):
        yield Extreme("cka", f"one feature, {estimator}", "size", linear | {"estimator": estimator})
    scaled = linear | {"y": -2.0 * x, "estimator": "unbiased"}
    yield Extreme("cka", "a representation beside itself scaled: 1", "boundary", scaled)
    yield Extreme("minibatch_cka", "one batch", "size", {"x": x[None], "y": y[None]})
