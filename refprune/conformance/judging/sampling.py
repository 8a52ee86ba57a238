"""What is known of an estimator of ∂C/∂θ that draws its own random numbers: mean, variance and range, by enumeration (O1–O5).

All that any estimator of O5 can give is made of the 2^G losses c(Ξ) and gate gradients ∂c/∂ξ of a small network, which the
oracle tabulates. With P(Ξ) the probabilities, s = (ξ − θ)/(θ(1 − θ)) the score, m = min(θ, 1 − θ), per gate (*derived here*):

    taylor      mean Σ P ∂c/∂ξ, which is not ∂C/∂θ
    all others  mean ∂C/∂θ = Σ P c s
    paired      variance that of c(ξ_g=1) − c(ξ_g=0) over the other gates
    reinforce   K = 1: Σ P c² s² − mean². K > 1, leave-one-out baseline: the estimate is the U-statistic of the kernel
                h(k, j) = ½(c_k − c_j)(s_k − s_j), whose variance is (4(K−2) ζ₁ + 2 ζ₂)/(K(K−1)) (Hoeffding 1948),
                ζ₁ = Var E[h | k], ζ₂ = Var h
    arm, disarm v falls below m, above 1 − m, or between: 3^G cells, in which arm's (v − ½)² has a mean by integration

`expected` computes the mean in another way, from the estimator's own code at the middle of every cell on which its gates are
constant: reinforce, arm and disarm are affine in v there.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from ...arrays import Array
from ...backend import Backend
from ...gates import estimators
from ...passes.batch_loss import BatchLoss, Evaluation
from ...rounding.tolerance import LAYER_FACTOR
from .traced import Traced, expectation


class Table(NamedTuple):
    """Every gate vector of a network: gates (2^G, G), probabilities (2^G,), losses (2^G,), slopes ∂c/∂ξ (2^G, G).

    Vector number Σ ξ_g 2^g stands in that row.
    """

    theta: Array
    gates: Array
    probabilities: Array
    losses: Array
    slopes: Array

    def flipped(self, gate: int, value: int) -> Array:
        """(2^G,) the losses with one gate set to a value."""
        rows = np.arange(len(self.losses))
        return np.asarray(self.losses[rows & ~(1 << gate) | (value << gate)])

    def differences(self) -> Array:
        """(2^G, G) c(ξ_g = 1) − c(ξ_g = 0), the other gates as in the row."""
        return np.stack([self.flipped(g, 1) - self.flipped(g, 0) for g in range(self.theta.size)], axis=1)

    def scores(self) -> Array:
        """(2^G, G) ∂ log P/∂θ."""
        scores: Array = (self.gates - self.theta) / (self.theta * (1.0 - self.theta))
        return scores

    def mean(self, values: Array) -> Array:
        """(G,) of (2^G, G)."""
        mean: Array = self.probabilities @ values
        return mean

    def gradient(self) -> Array:
        """(G,) ∂C/∂θ."""
        return self.mean(self.losses[:, None] * self.scores())


class Facts(NamedTuple):
    """What the estimates (draws, G) of an estimator must be like.

    mean, variance: (G,). low, high: (G,) no estimate lies outside. rounding: (G,) how far an estimate may be off for the
    precision's sake. gradient: (G,) ∂C/∂θ. rivals: estimator's name → (passes of one estimate, its variance (G,)).
    """

    mean: Array
    variance: Array
    low: Array
    high: Array
    rounding: Array
    gradient: Array
    rivals: dict[str, tuple[int, Array]]


def table(loss: BatchLoss, theta: Array) -> Table:
    """The `Table` of a network's losses and gate gradients, by 2^G forward and backward passes. θ (G,) in (0, 1)."""
    rows, losses, slopes = [], [], []
    for gates, probability in estimators.enumerate_gates(theta):
        evaluation = loss.evaluate(gates, run_closed=True)
        rows.append((gates, probability))
        losses.append(float(evaluation.loss))
        slopes.append(loss.gradients(evaluation).gates)
    gates_of, probabilities = (np.array(column) for column in zip(*rows, strict=True))
    return Table(theta, gates_of, probabilities, np.array(losses), np.array(slopes))


def facts(loss: BatchLoss, theta: Array, kind: str, samples: int, unit: float) -> Facts:
    """Of the estimator `kind` of O5, an estimate being made of `samples` gate vectors (arm, disarm: pairs)."""

    def run(backend: Backend, branches: object) -> Traced:
        t = table(BatchLoss(loss.network, backend, loss.params, loss.x, loss.target, loss.statistics, loss.train), theta)
        return Traced({"losses": t.losses, "slopes": t.slopes}, {}, {}, {})

    noise = expectation(run, unit).tolerance
    t = table(loss, theta)
    gradient, rarer = t.gradient(), np.minimum(theta, 1.0 - theta)
    largest = float(np.abs(t.losses).max())
    rounding = (2.0 * noise["losses"].max() + LAYER_FACTOR * unit * largest) / rarer  # two losses cancel, divided by m at most
    if kind == "taylor":
        rounding = noise["slopes"].max(axis=0)
    mean = t.mean(t.slopes) if kind == "taylor" else gradient
    low, high = _range(t, kind)
    rivals = {name: (passes(name, theta.size, 1), variance(t, name, 1)) for name in ("taylor", "paired", "disarm", "arm")}
    rivals |= {f"reinforce, K = {k}": (k, variance(t, "reinforce", k)) for k in (1, 2, 4)}
    return Facts(mean, variance(t, kind, samples), low, high, rounding, gradient, rivals)


def passes(kind: str, gates: int, samples: int) -> int:
    """Forward passes, whole or in part, of one estimate."""
    of_one: dict[str, int] = {"exact": int(2**gates), "paired": 1 + gates, "arm": 2, "disarm": 2}
    return samples * of_one.get(kind, 1)


def variance(t: Table, kind: str, samples: int) -> Array:
    """(G,) variance of one estimate made of so many independent gate vectors (or pairs)."""
    if kind == "exact":
        return np.zeros(t.theta.size)
    if kind == "reinforce" and samples > 1:
        c, s = t.losses, t.scores()
        h = 0.5 * (c[:, None] - c)[:, :, None] * (s[:, None] - s)
        given = np.einsum("j,kjg->kg", t.probabilities, h)
        both = np.einsum("k,j,kjg->g", t.probabilities, t.probabilities, h**2)
        first, second = t.mean(given**2) - t.gradient() ** 2, both - t.gradient() ** 2
        return np.asarray((4.0 * (samples - 2) * first + 2.0 * second) / (samples * (samples - 1)))
    if kind in ("arm", "disarm"):
        return np.asarray(_antithetic_square(t, kind) - t.gradient() ** 2) / samples
    values = {"taylor": t.slopes, "paired": t.differences(), "reinforce": t.losses[:, None] * t.scores()}[kind]
    return np.asarray(t.mean(values**2) - t.mean(values) ** 2) / samples


def _antithetic_square(t: Table, kind: str) -> Array:
    """(G,) mean square of arm or disarm over the 3^G cells of v."""
    theta, rarer = t.theta, np.minimum(t.theta, 1.0 - t.theta)
    middle = 1.0 - 2.0 * rarer
    likely = (theta > 0.5) * 1
    shares = np.stack([rarer, middle, rarer])
    # mean of (v − ½)² inside each cell: ∫ (v − ½)² dv over the cell, divided by its length
    outer = ((rarer - 0.5) ** 3 + 0.125) / (3.0 * rarer)
    inner = (0.5 - rarer) ** 2 / 3.0
    total = np.zeros(theta.size)
    for cells in itertools.product((0, 1, 2), repeat=theta.size):
        where = np.array(cells)
        b = np.where(where == 1, likely, (where == 0) * 1)
        anti = np.where(where == 1, likely, (where == 2) * 1)
        powers = 1 << np.arange(theta.size)
        difference = t.losses[b @ powers] - t.losses[anti @ powers]
        if kind == "disarm":
            squares = (0.5 * difference * (b - anti) / rarer) ** 2
        else:
            squares = difference**2 * np.where(where == 1, inner, outer) / (theta * (1.0 - theta)) ** 2
        total += np.prod(shares[where, np.arange(theta.size)]) * squares
    return total


def _range(t: Table, kind: str) -> tuple[Array, Array]:
    """(G,), (G,): every estimate lies between these, whatever its baseline, if that is 0 or between losses."""
    if kind == "exact":
        return t.gradient(), t.gradient()
    if kind in ("taylor", "paired"):
        values = t.slopes if kind == "taylor" else t.differences()
        return values.min(axis=0), values.max(axis=0)
    spread = float(np.ptp(t.losses))
    rarer = np.minimum(t.theta, 1.0 - t.theta)
    largest = max(spread, float(np.abs(t.losses).max()))
    size = {
        "reinforce": largest / rarer,
        "arm": 0.5 * spread / (t.theta * (1.0 - t.theta)),
        "disarm": 0.5 * spread / rarer,
    }[kind]
    return -size, size


def expected(loss: BatchLoss, theta: Array, kind: str, samples: int = 1) -> Array:
    """The mean (G,) of one estimate, computed with the code of `gates.estimators`.

    Space of uniform numbers v is cut at all θ and 1 − θ in every coordinate, into (2G+1)^G cells. In a cell the gates are
    constant, and the estimate at its middle is its mean. The cuts at the other gates' θ show a mistake that compares a gate
    with another gate's number. All estimators but arm and disarm use v to sample the gates and for nothing else: they are
    evaluated once for every gate vector. Reinforce with a baseline is evaluated for every pair of gate vectors; its mean for
    more samples is the same.
    """
    borders = np.unique(np.concatenate([[0.0, 1.0], theta, 1.0 - theta]))
    middles, lengths = 0.5 * (borders[1:] + borders[:-1]), np.diff(borders)
    cells: dict[bytes, tuple[float, Array]] = {}
    for cell in itertools.product(range(middles.size), repeat=theta.size):
        where = list(cell)
        v, weight = middles[where], float(np.prod(lengths[where]))
        key = v.tobytes() if kind in ("arm", "disarm") else estimators.sample(theta, v[None]).tobytes()
        cells[key] = (weight + cells.get(key, (0.0, v))[0], v)
    bases: dict[bytes, tuple[Evaluation, Array]] = {}
    total = np.zeros(theta.size)
    for rows in itertools.product(cells.values(), repeat=2 if kind == "reinforce" and samples > 1 else 1):
        uniform = np.stack([v for _, v in rows])
        gates = estimators.sample(theta, uniform[0])
        if gates.tobytes() not in bases:
            base = loss.evaluate(gates, run_closed=True)
            bases[gates.tobytes()] = base, loss.gradients(base).gates
        found = estimators.ESTIMATORS[kind].function(estimators.Sampled(loss, *bases[gates.tobytes()], theta, uniform))
        total += np.prod([weight for weight, _ in rows]) * found.gradient
    return total
