"""D9: the domain of attraction under `taylor`. Witnesses: Euler's identity, networks with a proved κ, a counterexample."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...arrays import Array
from ...errors import InputError
from ...gates import closing_weights, dynamics, estimators
from ...gates.dynamics import Field
from ...passes.batch_loss import BatchLoss
from ...spec.layers import Activation, BatchNorm, Conv, Dense, Flatten, GlobalAveragePool, Layer, MaxPool, Section, UnitGate
from ...spec.network import Network
from ...training import config
from ...training.state import initial_state
from ..catalogue import EPS, OURS, Claim, Context, Finding, exact, worst
from ..witnesses.examples import params_of
from ..witnesses.flows import Sections, all_gates, probability, random_comparison, random_point

D9 = Claim(
    "D9",
    "The domain holds for taylor's drift where the loss depends on gate and block through ξW alone, and not elsewhere.",
    "c = f(ξ W) ⇒ |∂c/∂ξ| ≤ κ w",
    OURS,
    ("gates.closing_weights:unscaled_layer", "gates.closing_weights:scales", "training.state:initial_state"),
)

SAME = ((1, 1), (1, 1))


def _networks() -> list[tuple[Network, list[bool]]]:
    """Networks with layer and unit gates, and for each group of gates whether c depends on ξW alone."""

    def images(*path: Layer, place: str = "path") -> Network:
        section = Section((Conv(3, (3, 3), padding=SAME), *path), gate_place=place)
        return Network((3, 4, 4), (section, GlobalAveragePool(), Dense(2)))

    def vectors(*path: Layer) -> Network:
        return Network((3,), (Section((Dense(4), *path, Dense(3))), Dense(2)))

    relu, leaky, tanh = Activation("relu"), Activation("leaky_relu"), Activation("tanh")
    gelu, pool = Activation("gelu"), MaxPool((3, 3), (1, 1), SAME)
    plain = Network((1, 4, 4), (Conv(2, (3, 3)), tanh, UnitGate(), MaxPool((2, 2), (2, 2)), Flatten(), Dense(2)))
    late = Network((3,), (Dense(4), UnitGate(), tanh, Dense(2)))
    return [
        (images(relu), [True]),
        (images(BatchNorm(), leaky, pool), [True]),
        (images(BatchNorm(), tanh), [False]),
        (images(gelu), [False]),
        (images(BatchNorm(), tanh, place="preactivation"), [True]),
        (images(BatchNorm(), relu, UnitGate()), [True, True]),
        (images(tanh, UnitGate()), [False, False]),
        (vectors(tanh, UnitGate()), [True, True]),
        (vectors(UnitGate(), tanh), [True, False]),
        (plain, [True]),
        (late, [False]),
    ]


def _loss(network: Network, context: Context) -> BatchLoss:
    x = context.normal("D9 x", 5, *network.input_shape)
    return BatchLoss(network, context.backend, params_of(network, context), x, np.array([0, 1, 1, 0, 1]))


def _euler(loss: BatchLoss, gates: Array) -> Array:
    """(G,) |ξ ∂c/∂ξ − ⟨W, ∂c/∂W⟩| over ‖W‖ ‖∂c/∂W‖: 0 where c depends on ξW alone, by Euler's theorem."""
    found = loss.gradients(loss.evaluate(gates, run_closed=True))
    product, size = np.zeros(gates.size), np.zeros(gates.size)
    for group, block in zip(loss.network.gate_groups, closing_weights.blocks(loss.network), strict=True):
        for name in block.names:
            slope, w = block.split(found.params[name]), block.split(loss.params[name])
            product[group.slice] += (slope * w).sum(axis=(0, 2))
            size[group.slice] += np.sqrt((slope**2).sum(axis=(0, 2)) * (w**2).sum(axis=(0, 2)))
    return np.asarray(np.abs(gates * found.gates - product) / size)


@D9.witness("Euler's theorem: ξ ∂c/∂ξ = ⟨W, ∂c/∂W⟩ exactly behind the blocks that are named, at any ξ, and nowhere else")
def eulers_identity(context: Context) -> Finding:
    error, wrong = 0.0, 0
    for network, scaled in _networks():
        loss = _loss(network, context)
        for group, expected in zip(network.gate_groups, scaled, strict=True):
            wrong += (closing_weights.unscaled_layer(network, group) is None) != expected
        for gates in (np.ones(network.gate_count), 0.3 + 0.5 * context.uniform("D9 ξ", network.gate_count)):
            off = _euler(loss, gates)
            for group, expected in zip(network.gate_groups, scaled, strict=True):
                there = float(off[group.slice].max())
                error = max(error, there if expected else 0.0)
                wrong += not expected and there < 1e-6
    return worst(exact(wrong), Finding(error / EPS, 256.0, detail="in eps of ‖W‖ ‖∂c/∂W‖"))


def _drift(loss: BatchLoss, theta: Array) -> Array:
    """E ∂c/∂ξ over the gates, by enumeration: what taylor follows in the mean."""
    mean = np.zeros(theta.size)
    for gates in all_gates(theta.size):
        base = loss.evaluate(gates, run_closed=True)
        sampled = estimators.Sampled(loss, base, loss.gradients(base).gates, theta, np.zeros((1, theta.size)))
        mean += probability(gates, theta) * estimators.taylor(sampled).gradient
    return mean


@D9.witness("networks with a proved κ: |∂c/∂ξ| ≤ κw, and from H the flow along taylor's drift has θ = 0 within the bound")
def networks_under_taylor(context: Context) -> Finding:
    share, wrong = 0.0, 0
    for number in range(5):
        case, rng = Sections(1000 * context.seed + 500 + number, backend=context.backend), context.rng(f"D9 {number}")
        beta, decay, ratio = (float(10.0**x) for x in rng.uniform((-1.5, -1.0, -1.0), (0.0, 0.5, 1.0)))
        c = dynamics.Comparison(case.kappa, beta, min(decay, 0.9 * case.kappa**2 / beta), ratio)
        exactly = case.field(c)

        def field(weights: Array, theta: Array, case: Sections = case, c: Any = c, exactly: Field = exactly) -> Any:
            return exactly(weights, theta)[0], -c.ratio * (_drift(case.at(weights), theta) + c.beta)

        w, theta = random_point(rng, c, inside=True)
        weights, gates = case.start(w, theta)
        until = float(c.time_bound(w, theta)) * (1 + 1e-6) + 1e-6
        flow = dynamics.projected_flow(field, weights, gates, until, rtol=1e-6, atol=1e-9, least_steps=10)
        wrong += flow.zero_since(case.gates - 1) is None
        for at in flow.weights[:: max(1, len(flow.weights) // 3)]:
            loss = case.at(at)
            for vertex in all_gates(case.gates):
                slope = loss.gradients(loss.evaluate(vertex, run_closed=True)).gates[-1]
                share = max(share, abs(float(slope)) / (case.kappa * case.norm(at)))
    return worst(exact(wrong, "5 networks"), Finding(share, 1.0, detail="largest |∂c/∂ξ| over κw"))


#: The counterexample: h = 1 + ξ tanh W, a ReLU that opens just before tanh 3, and a loss that falls behind it.
THRESHOLD, STEEPNESS, BETA, RATIO = 0.95, 0.6, 0.12, 30.0


def _saturated(w: float, context: Context) -> BatchLoss:
    """c(ξ, W) = log(1 + exp(−m·relu(ξ tanh W − 0.95))) as a network: m = 0.6 steep, one example."""
    section = Section((Dense(1, bias=False), Activation("tanh")), name="path")
    network = Network((1,), (section, Dense(1, name="late"), Activation("relu"), Dense(2, bias=False, name="head")))
    params = {
        "path.dense1.weight": np.array([[w]]),
        "late.weight": np.ones((1, 1)),
        "late.bias": np.array([-1.0 - THRESHOLD]),
        "head.weight": np.array([[STEEPNESS], [0.0]]),
    }
    return BatchLoss(network, context.backend, params, np.ones((1, 1)), np.array([0]))


def _saturated_fields() -> tuple[Field, Field, float]:
    """The flows by formula, W and θ under taylor's mean and under ∂C/∂θ, and κ = sup |∂c/∂W|, on a fine grid."""

    def f(y: Any) -> Any:
        return np.log1p(np.exp(-STEEPNESS * np.maximum(y - THRESHOLD, 0.0)))

    def slope(y: Any) -> Any:
        return np.where(y > THRESHOLD, -STEEPNESS / (1.0 + np.exp(STEEPNESS * (y - THRESHOLD))), 0.0)

    def field(taylor: bool) -> Field:
        def velocity(w: Array, theta: Array) -> tuple[Array, Array]:
            y = np.tanh(w)
            drift = theta * slope(y) * y if taylor else f(y) - f(0.0)
            return -theta * slope(y) * (1.0 - y * y), -RATIO * (drift + BETA)

        return velocity

    grid = np.linspace(0.0, 12.0, 1_000_001)
    kappa = float(np.abs(slope(np.tanh(grid)) / np.cosh(grid) ** 2).max())
    return field(taylor=True), field(taylor=False), kappa


@D9.witness("counterexample: Dense(1) → tanh, W = 3, θ = 0.8 in H: taylor's drift leads to 1, the unbiased one to 0; refused")
def taylor_leaves_the_domain_behind_tanh(context: Context) -> Finding:
    biased, unbiased, kappa = _saturated_fields()
    start, theta = np.array([3.0]), np.array([0.8])
    inside = bool(dynamics.in_domain(3.0, 0.8, kappa=kappa, beta=BETA, decay=0.0, ratio=RATIO))
    wrong = int(not inside) + int(dynamics.projected_flow(biased, start, theta, 10.0).theta[-1, 0] != 1.0)
    wrong += int(dynamics.projected_flow(unbiased, start, theta, 10.0).theta[-1, 0] != 0.0)
    loss = _saturated(3.0, context)
    drift, want = -RATIO * (_drift(loss, theta)[0] + BETA), biased(start, theta)[1][0]
    exactly = -RATIO * (estimators.exact_theta_gradient(loss, theta)[0] + BETA)
    error = max(abs(drift - want), abs(exactly - unbiased(start, theta)[1][0])) / RATIO
    for estimator, refused in (("taylor", True), ("paired", False)):
        gates = {"rule": "attraction", "estimator": estimator}
        rules = config.from_dict({"gates": gates, "objective": {"beta": BETA}})
        try:
            initial_state(rules, loss.network)
            wrong += refused
        except InputError:
            wrong += not refused
    return worst(exact(wrong, f"κ = {kappa:.4f}"), Finding(error / EPS, 64.0, detail="in eps of the loss"))


@D9.witness("the comparison system bounds any drift between −κw − β and κw − β: random drifts from H end at θ = 0")
def any_drift_within_the_bound(context: Context) -> Finding:
    """The drift is −κw·s(t) with |s| ≤ 1, W follows at most κθ: a system of its own, in Euler steps of 1e-3 of its time."""
    rng, wrong = context.rng("D9 drift"), 0
    for _ in range(6):
        c = random_comparison(rng)
        w, theta = random_point(rng, c, inside=True)
        until = float(c.time_bound(w, theta))
        h, phase, speed = until / 2000, rng.uniform(0.0, 6.0), rng.uniform(1.0, 20.0) / max(until, 1e-12)
        for step in range(2200):
            s = math.cos(phase + speed * h * step)
            change = h * (c.kappa * theta * s - c.decay * w), h * c.ratio * (c.kappa * w * s - c.beta)
            w, theta = max(0.0, w + change[0]), min(1.0, max(0.0, theta + change[1]))
        wrong += theta != 0.0
    return exact(wrong)
