"""Rounding: how close is close enough (SPEC E1-E4).

E1 bounds one inner product for certain; E2's tolerance is measured: a *noisy* backend (`refprune.rounding.noise`) adds to every
result Gaussian noise of the size of its rounding error, the oracle runs a few times with it, branches frozen, and the spread
of each tensor times a factor is its tolerance. Rounding noise is linear in u to first order, so noise is injected at
u = `INJECTED`, far above float64's own rounding and far below what bends a network, and the spread is scaled to the unit
asked for.

Calibration, max error/tolerance at the factors below. Networks (2,600 random ones, dense and convolutional, 1 to 24 sections,
train and eval; a kink is compared on the candidate's branches): NumPy 0.39, sequential sums 0.35, PyTorch 0.35, Numba 0.39 in
float32, PyTorch 0.28 in float64 (300). No false alarm in these 10,700 cases: a rate below 3e-4 at 95 %, as E4 asks, if the four
backends' cases count as independent. `python tests/support/calibration.py {oracle,sequential,torch,numba} float32 40000 42600`.
Functions: 7,650 calls of NumPy, sequential and PyTorch float32: at most 3.3 sizes, 0.41.
Sensitivity, float32: an entry of a dense result is found if it is off by 7e-7 (n = 8), 2e-6 (64), 6e-6 (512), 7e-5 (65,536)
of the tensor's RMS (median; E1 alone: 1e-6, 2e-5, 4e-4, 0.6). Weight gradients of 12 convolutions: 1e-5 finds 87 % of the
entries, 5e-5 all; with batch-norm, 5e-5 finds 96 %, 2e-4 99.7 %.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..arrays import Array, Arrays
from ..backend import ORACLE, Backend
from ..errors import InputError
from ..passes.batch_loss import BatchLoss, Evaluation
from .noise import MODELS, TERMS, Call, combined, noisy, widened
from .watching import KinkInput, watching

#: Unit roundoff u of each precision.
UNIT: dict[str, float] = {"float32": 2.0**-24, "float64": 2.0**-53, "bfloat16": 2.0**-8}

#: Unit at which noise is injected; spreads are scaled from it.
INJECTED = 2.0**-30

#: From this unit on products of two roundings count too: noise is injected at the unit itself as well.
COARSE = 2.0**-12

#: Tolerance of a network: this many times the smoothed spread.
NETWORK_FACTOR = 12.0

#: Tolerance of one function: this many times the size of its noise.
LAYER_FACTOR = 8.0

#: Smoothing: the runs' own variance counts as `runs` observations, the separable fit and the tensor's mean as these many.
FIT_RUNS, MEAN_RUNS = 4.0, 1.0


def smallest_normal(unit: float) -> float:
    """The smallest normal number of the precision with unit roundoff `unit`."""
    if unit not in UNIT.values():
        raise InputError(f"unit: {unit!r} is not known; allowed are {', '.join(f'{u!r} ({k})' for k, u in UNIT.items())}")
    return float(np.finfo(np.float64 if unit == UNIT["float64"] else np.float32).smallest_normal)  # bfloat16's is float32's


def inner_product_bound(n: int, magnitude: Array | float, unit: float, *, roundings: int = 0) -> Array:
    """E1: no direct sum of n products, in any order, is further from the exact one than γ_m·magnitude + n·smallest normal.

    magnitude: |x|ᵀ|y|; γ_m = mu/(1 − mu), m = n + roundings (1 for a bias or a division, 2 for rounded inputs). From
    mu = 1 on (256 terms in bfloat16) nothing is certain: +inf.
    """
    m = n + roundings
    if m * unit >= 1.0:
        return np.full(np.shape(magnitude), np.inf)
    return np.asarray(m * unit / (1.0 - m * unit) * np.asarray(magnitude) + n * smallest_normal(unit))


@dataclass(frozen=True)
class Tolerance:
    """How far a correct implementation may be from the oracle, entry by entry; shapes as those of the tensors.

    kinks: layer name → that of the *input* of each ReLU and max pool, by which E3 tells a kink from an error.
    """

    loss: Array
    output: Array
    params: Arrays
    gates: Array
    input: Array
    kinks: Arrays


def _tensors(
    loss: BatchLoss, gates: Array, branches: Mapping[str, Array] | None, run_closed: bool
) -> tuple[Arrays, Evaluation]:
    """Every tensor that is judged, by name, from one evaluation with the branches given."""
    seen: list[KinkInput] = []
    watched = dataclasses.replace(loss, backend=watching(loss.backend, seen))
    evaluation = watched.evaluate(gates, run_closed=run_closed, branches=branches)
    gradients = loss.gradients(evaluation, input_gradient=True)
    assert gradients.input is not None
    tape = evaluation.tape
    tensors = {"loss": evaluation.loss, "output": tape.output, "gates": gradients.gates, "input": gradients.input}
    tensors |= {f"params {name}": g for name, g in gradients.params.items()}
    return tensors | {f"kinks {name}": kink.x for name, kink in zip(tape.branches, seen, strict=True)}, evaluation


def _smoothed(variance: Array, reached: Array, runs: int) -> Array:
    """Per-entry standard deviation from few runs.

    An entry's own variance over `runs` runs scatters by √(2/runs). It is averaged with FIT_RUNS runs' worth of the separable
    fit row·column/mean (a weight gradient is a sum of outer products) and MEAN_RUNS of the tensor's mean. Entries that no
    noise reached (behind a closed gate, a dead unit) keep 0.
    """
    if not reached.any():
        return np.zeros_like(variance)
    mean = variance[reached].mean()
    table = variance.reshape(len(variance), -1) if variance.ndim else variance.reshape(1, 1)
    fit = np.outer(table.mean(axis=1), table.mean(axis=0)).reshape(variance.shape) / max(table.mean(), 1e-300)
    estimate = (runs * variance + FIT_RUNS * fit + MEAN_RUNS * mean) / (runs + FIT_RUNS + MEAN_RUNS)
    return np.asarray(np.sqrt(np.where(reached, estimate, 0.0)))


def noise_tolerance(
    run: Callable[[Backend], Arrays],
    base: Mapping[str, Array],
    *,
    unit: float,
    runs: int = 8,
    factor: float = NETWORK_FACTOR,
    seed: int = 0,
) -> Arrays:
    """E2 for whatever a backend computes: name → tolerance of each of `base`'s tensors, what the oracle's `run` gives.

    run(noisy backend) gives the same tensors; it must take the branches that the oracle took. In a unit of COARSE or more
    rounding is not linear (behind two batch-norms of two examples a gradient of 1e-11 errs by 1e-6 in bfloat16, where linear
    noise says 1e-7): the larger spread of both injections counts there (*derived here*).
    """
    found = _spread(run, base, INJECTED, runs, seed)
    spread = {name: s * (unit / INJECTED) for name, s in found.items()}
    if unit >= COARSE:
        found = _spread(run, base, unit, runs, seed)
        spread = {name: np.maximum(s, found[name]) for name, s in spread.items()}
    return {name: factor * s + smallest_normal(unit) for name, s in spread.items()}


def _spread(run: Callable[[Backend], Arrays], base: Mapping[str, Array], unit: float, runs: int, seed: int) -> Arrays:
    """Smoothed standard deviation of every tensor under noise of this unit."""
    squares = {name: np.zeros_like(t) for name, t in base.items()}
    reached = {name: np.zeros(t.shape, dtype=bool) for name, t in base.items()}
    for k in range(runs):
        for name, t in run(noisy(ORACLE, unit=unit, rng=np.random.default_rng([seed, k]))).items():
            squares[name] += np.square(t - base[name])
            reached[name] |= t != base[name]
    return {name: _smoothed(s / runs, reached[name], runs) for name, s in squares.items()}


def network_tolerance(
    loss: BatchLoss,
    gates: Array,
    *,
    unit: float,
    runs: int = 8,
    factor: float = NETWORK_FACTOR,
    seed: int = 0,
    run_closed: bool = False,
    branches: Mapping[str, Array] | None = None,
) -> Tolerance:
    """How far loss, output and gradients of a correct implementation may be from the oracle's, entry by entry (E2).

    The oracle runs `runs` times with simulated rounding errors, branches frozen; the tolerance of a tensor is `factor` times
    the spread of its entries. Weights and inputs count as exact, so that they must be numbers that the precision holds.

    loss: network, arrays and batch; its backend does not matter.
    gates: (G,).
    unit: unit roundoff of the implementation, `UNIT["float32"]` for instance.
    runs: how many noisy runs are made.
    factor: how many times the spread is allowed.
    seed: of the noise.
    run_closed: whether paths behind ξ = 0 are computed, as in `forward`.
    branches: the branches to freeze; None: the oracle's own (E3).

    Returns a `Tolerance` with the shapes of the tensors.

    >>> import numpy as np
    >>> from refprune import ORACLE, UNIT, BatchLoss, Dense, Network, network_tolerance
    >>> loss = BatchLoss(Network((2,), (Dense(2),)), ORACLE,
    ...     {"dense1.weight": np.eye(2), "dense1.bias": np.zeros(2)}, np.array([[1.0, 0.0]]), np.array([0]))
    >>> tolerance = network_tolerance(loss, np.ones(0), unit=UNIT["float32"])
    >>> bool(1e-8 < tolerance.loss < 1e-5), tolerance.params["dense1.weight"].shape
    (True, (2, 2))
    """
    wide: dict[str, Any] = {
        "params": {name: np.asarray(p, dtype=np.float64) for name, p in loss.params.items()},
        "statistics": {name: np.asarray(s, dtype=np.float64) for name, s in (loss.statistics or {}).items()},
        "x": np.asarray(loss.x, dtype=np.float64),
        "target": loss.target if loss.target.dtype.kind in "iu" else np.asarray(loss.target, dtype=np.float64),
    }
    exact = dataclasses.replace(loss, backend=ORACLE, **wide)
    gates = np.asarray(gates, dtype=np.float64)
    base, evaluation = _tensors(exact, gates, branches, run_closed)
    frozen = evaluation.tape.branches

    def perturbed(backend: Backend) -> Arrays:
        return _tensors(dataclasses.replace(exact, backend=backend), gates, frozen, run_closed)[0]

    found = noise_tolerance(perturbed, base, unit=unit, runs=runs, factor=factor, seed=seed)
    params, kinks = ({n: found[f"{kind} {n}"] for n in names} for kind, names in (("params", exact.params), ("kinks", frozen)))
    return Tolerance(found["loss"], found["output"], params, found["gates"], found["input"], kinks)


def output_tolerance(loss: BatchLoss, gates: Array, *, unit: float, runs: int = 8, seed: int = 0) -> Array:
    """The entry `output` of `network_tolerance`, from forward passes alone: a tenth of the time and of the memory."""
    exact = dataclasses.replace(loss, backend=ORACLE)
    base = exact.evaluate(gates).tape

    def perturbed(backend: Backend) -> Arrays:
        evaluation = dataclasses.replace(exact, backend=backend).evaluate(gates, branches=base.branches)
        return {"output": evaluation.tape.output}

    return noise_tolerance(perturbed, {"output": base.output}, unit=unit, runs=runs, seed=seed)["output"]


class LayerTolerance(NamedTuple):
    """For one result of a function: within `noise` a correct implementation stays (E2); beyond `certain` it is wrong (E1).

    certain is +inf where the result is no direct sum of products; noise never exceeds it.
    """

    noise: Array
    certain: Array


def layer_tolerance(
    function: str, *args: Any, unit: float, factor: float = LAYER_FACTOR, **options: Any
) -> tuple[LayerTolerance | None, ...]:
    """E2 and E1 for the oracle's `function` on these arguments (a VJP: its Saved and dy), one per result.

    Floats are widened to float64 and count as exact. None for a result that is None (an input gradient not asked for).
    """
    tiny = smallest_normal(unit)
    args, options = widened(args), widened(options)
    returned = getattr(ORACLE, function)(*args, **options)
    vjp = function.endswith("_vjp")
    call = Call(getattr(ORACLE, function), args, options, returned if vjp else returned[:1], args[0] if vjp else returned[1])
    infinite = [None if r is None else np.full(r.shape, np.inf) for r in call.results]
    certain: Sequence[Array | None] = infinite
    if function in TERMS:
        sums = zip(TERMS[function](call), call.on(np.abs), strict=True)
        certain = [None if m is None else inner_product_bound(n, m, unit, roundings=1) for n, m in sums]
    found: list[LayerTolerance | None] = []
    for result, parts, bound in zip(call.results, MODELS[function](call), certain, strict=True):
        if bound is None:
            found.append(None)
            continue
        size = np.broadcast_to(combined(0.0, *(weight * scale for weight, scale in parts)), result.shape)
        found.append(LayerTolerance(np.minimum(factor * unit * size + tiny, bound), bound))
    return tuple(found)
