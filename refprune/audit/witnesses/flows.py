"""Witnesses of the dynamics (SPEC D): small networks whose Lipschitz bound is proved, and other ways to the same numbers.

In `Sections` κ of the last section is proved: its hidden tanh units are at most 1 whatever the layers before it do, the head
stays fixed, and a row of softmax minus one-hot has norm at most √2.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ...arrays import Array
from ...backend import ORACLE, Backend
from ...gates import dynamics
from ...gates.dynamics import Comparison, Field, Flow
from ...passes.batch_loss import BatchLoss
from ...spec.layers import Activation, Dense, Section
from ...spec.network import Network
from ...streams import Streams


@dataclass(frozen=True)
class Sections:
    """A residual network of `gates` sections on a stream of 3 with a fixed head; numbers from the seed.

    The gate that is looked at is the last section's; its block is W = (weight, bias) of the section's second layer.
    """

    seed: int
    gates: int = 2
    hidden: int = 2
    examples: int = 6
    backend: Backend = ORACLE

    @cached_property
    def network(self) -> Network:
        path = (Dense(self.hidden), Activation("tanh"), Dense(3))
        sections = [Section(path, name=f"s{i}") for i in range(self.gates)]
        return Network((2,), (Dense(3, name="stem"), Activation("tanh"), *sections, Dense(3, name="head")))

    @property
    def block(self) -> tuple[str, ...]:
        return tuple(f"s{self.gates - 1}.dense2.{part}" for part in ("weight", "bias"))

    @cached_property
    def moving(self) -> tuple[str, ...]:
        """Everything learns but the head."""
        return tuple(name for name in self.network.parameter_shapes if not name.startswith("head"))

    @cached_property
    def unit(self) -> BatchLoss:
        """The batch's loss with ‖W‖ = 1."""
        streams, network = Streams(self.seed), self.network
        params = {name: streams.normal(name, 0, shape) for name, shape in network.parameter_shapes.items()}
        size = np.linalg.norm(dynamics.pack(params, self.block))
        params |= {name: params[name] / size for name in self.block}
        x = streams.normal("x", 0, (self.examples, 2))
        labels = (streams.uniform("labels", 0, (self.examples,)) * 3).astype(np.int64)
        return BatchLoss(network, self.backend, params, x, labels)

    @property
    def kappa(self) -> float:
        """√2 ‖U‖₂ √(hidden + 1): the proved bound on ‖∂c/∂W‖ over everything else, U the head's matrix."""
        head = Streams(self.seed).normal("head.weight", 0, (3, 3))
        return float(np.sqrt(2.0 * (self.hidden + 1)) * np.linalg.norm(head, 2))

    def field(self, c: Comparison) -> Field:
        return dynamics.network_field(self.unit, self.moving, beta=c.beta, decay=c.decay, ratio=c.ratio)

    def start(self, w: float, theta: float) -> tuple[Array, Array]:
        """(weights, θ) with ‖W‖ = w and θ of the last section as given, the other gates at ½."""
        gates = np.full(self.gates, 0.5)
        gates[-1] = theta
        params = dict(self.unit.params)
        params |= {name: w * params[name] for name in self.block}
        return dynamics.pack(params, self.moving), gates

    def flow(self, c: Comparison, w: float, theta: float, until: float, steps: int = 10) -> Flow:
        """The network's own flow, coarser than the default."""
        weights, gates = self.start(w, theta)
        return dynamics.projected_flow(self.field(c), weights, gates, until, rtol=1e-6, atol=1e-9, least_steps=steps)

    def at(self, weights: Array) -> BatchLoss:
        """The loss at a point of a flow."""
        return dataclasses.replace(self.unit, params=dynamics.unpack(weights, self.moving, self.unit.params))

    def part(self, weights: Array) -> Array:
        """The entries of the vector that belong to W."""
        return dynamics.pack(self.at(weights).params, self.block)

    def norm(self, weights: Array) -> float:
        """‖W‖ at a point of a flow."""
        return float(np.linalg.norm(self.part(weights)))


def all_gates(count: int) -> list[Array]:
    return [np.array(gates, dtype=np.float64) for gates in itertools.product((0.0, 1.0), repeat=count)]


def probability(gates: Array, theta: Array) -> float:
    return float(np.prod(np.where(gates == 1.0, theta, 1.0 - theta)))


def sides_of_d1(case: Sections, weights: Array, theta: Array) -> tuple[float, float]:
    """The two left-hand sides of D1 at a point of a flow: the largest |c(ξ=1) − c(ξ=0)| over Ξ, and ‖E ∂c/∂W‖."""
    loss, mean, largest = case.at(weights), np.zeros(()), 0.0
    for gates in all_gates(case.gates):
        evaluation = loss.evaluate(gates)
        mean = mean + probability(gates, theta) * dynamics.pack(loss.gradients(evaluation).params, case.block)
        if gates[-1] == 1.0:
            off = loss.evaluate(np.concatenate([gates[:-1], [0.0]]))
            largest = max(largest, abs(float(evaluation.loss) - float(off.loss)))
    return largest, float(np.linalg.norm(mean))


# --------------------------------------------------------------------------------------------------------------------
# Other ways to the same numbers


def euler(field: Field, weights: Array, theta: Array, until: float, steps: int) -> tuple[Array, Array]:
    """Projected Euler as O6 writes it: every step clips θ. The points (steps + 1, n) and (steps + 1, G)."""
    h = until / steps
    w, t = [weights], [theta]
    for _ in range(steps):
        dw, dt = field(w[-1], t[-1])
        w.append(w[-1] + h * dw)
        t.append(np.clip(t[-1] + h * dt, 0.0, 1.0))
    return np.array(w), np.array(t)


def linear_solution(c: Comparison, w: float, theta: float, times: Array) -> Array:
    """The comparison system without projection by the matrix exponential: rows (w, θ)."""
    from scipy.linalg import expm

    matrix = np.array([[-c.decay, c.kappa], [c.ratio * c.kappa, 0.0]])
    saddle = np.array([c.beta / c.kappa, c.decay * c.beta / c.kappa**2])
    return np.array([saddle + expm(matrix * t) @ (np.array([w, theta]) - saddle) for t in times])


def random_comparison(rng: np.random.Generator, *, decay: bool = True, strong: bool = False) -> Comparison:
    """λβ < κ², over two decades each; `decay` False: λ = 0; `strong`: 1.1 κ² ≤ λβ ≤ 20 κ² instead."""
    while True:
        kappa, beta, ratio = 10.0 ** rng.uniform((-1, -2, -1.5), (1, 0.5, 1.5))
        rate = 10.0 ** rng.uniform(-2, 1) if decay else 0.0
        if 1.1 <= rate * beta / kappa**2 <= 20.0 if strong else rate * beta < 0.95 * kappa**2:
            return Comparison(float(kappa), float(beta), rate, float(ratio))


def random_point(rng: np.random.Generator, c: Comparison, *, inside: bool = False) -> tuple[float, float]:
    """(w, θ) of which about half lie in H, or all."""
    (w0, theta0), (positive, _) = c.saddle, c.eigenvalues
    slope = c.decay + positive
    top = theta0 + c.ratio * c.kappa * w0 / slope  # the edge at w = 0
    theta = rng.uniform(0.0, min(1.0, top if inside else 1.2 * top))
    edge = w0 - slope * (theta - theta0) / (c.ratio * c.kappa)
    return rng.uniform(0.0, edge if inside else 2.0 * edge if edge > 0.0 else c.radius), theta


def outcome(c: Comparison, w: float, theta: float) -> tuple[Flow, bool]:
    """The comparison system's flow, until the bound on its time or 40 e-foldings; does it end at θ = 0 with w ≤ w*?"""
    bound, unit = float(c.time_bound(w, theta)), 1.0 / c.eigenvalues[0]
    until = 1.01 * bound + 1e-6 * unit if np.isfinite(bound) else 40.0 * unit
    flow = dynamics.projected_flow(c.velocity, np.array([w]), np.array([theta]), until)
    return flow, flow.zero_since(0) is not None and bool(flow.weights[-1, 0] <= c.saddle[0])


def settled(c: Comparison, w: float) -> float:
    """A time by which θ = 0 from (w, θ) with any θ, where λβ > κ².

    While w ≤ κ/λ + (w₀ − κ/λ) e^{−λt} exceeds the mean of κ/λ and w*, nothing is asked of θ; after that it falls at least
    at the speed ½ r (β − κ²/λ).
    """
    limit = c.kappa / c.decay
    half = 0.5 * (c.beta / c.kappa - limit)
    return max(0.0, float(np.log(w / half))) / c.decay + 1.0 / (c.ratio * c.kappa * half)


# --------------------------------------------------------------------------------------------------------------------
# How far H and the estimate of κ reach


def slopes_on(case: Sections, flow: Flow) -> Array:
    """Largest ‖∂c/∂W‖ over all Ξ with the gate on, at every point of a flow: what a running estimate of κ sees."""
    found, on = [], [gates for gates in all_gates(case.gates) if gates[-1] == 1.0]
    for weights in flow.weights:
        loss = case.at(weights)
        norms = [np.linalg.norm(dynamics.pack(loss.gradients(loss.evaluate(gates)).params, case.block)) for gates in on]
        found.append(float(max(norms)))
    return np.array(found)


@dataclass
class Judged:
    """Counts over a sweep: flows that end with θ = 0 (off), 1 (on) or are under way at the end.

    By factor on what is seen of the slopes: off flows whose start lies in H (covered), off flows in which the rule of D6 fires,
    on flows in which it does (wrong).
    """

    factors: tuple[float, ...]
    off: int = 0
    on: int = 0
    under_way: int = 0

    def __post_init__(self) -> None:
        self.covered, self.fired, self.wrong = ([0] * len(self.factors) for _ in range(3))


def judge(seeds: Iterable[int], factors: tuple[float, ...], *, backend: Backend = ORACLE, until: float = 30.0) -> Judged:
    """A sweep over random networks, ratios r = 10^U(−1, 1) and starts w = U(0, ½), θ = U(0, 1): one flow a seed.

    λ = 10^U(−1, 0), β = 10^U(−2, −½), about the size of the slopes of c in ξ: a good part of the flows ends with the gate on.
    The rule looks at the start and at every step of the solver, with the largest slope of the flow so far; a start is covered
    if it lies in H with the largest slope of the whole flow.
    """
    total = Judged(factors)
    for seed in seeds:
        case, rng = Sections(1000 + seed, gates=1 + seed % 2, backend=backend), np.random.default_rng(seed)
        beta, decay, ratio = (float(10.0**x) for x in rng.uniform((-2.0, -1.0, -1.0), (-0.5, 0.0, 1.0)))
        flow = case.flow(Comparison(case.kappa, beta, decay, ratio), rng.uniform(0.0, 0.5), rng.uniform(), until, steps=20)
        end = float(flow.theta[-1, -1])
        total.off, total.on = total.off + (end == 0.0), total.on + (end == 1.0)
        total.under_way += 0.0 < end < 1.0
        slopes = slopes_on(case, flow)
        norms = np.array([case.norm(weights) for weights in flow.weights])
        for i, factor in enumerate(factors):
            so_far, rate = factor * np.maximum.accumulate(slopes), np.asarray(decay)
            theta = flow.theta[:, -1]
            fires = bool(dynamics.in_domain(norms, theta, kappa=so_far, beta=beta, decay=rate, ratio=ratio).any())
            start = dynamics.in_domain(norms[:1], theta[:1], kappa=so_far[-1:], beta=beta, decay=rate, ratio=ratio)
            total.covered[i] += end == 0.0 and bool(start[0])
            total.fired[i] += end == 0.0 and fires
            total.wrong[i] += end == 1.0 and fires
    return total
