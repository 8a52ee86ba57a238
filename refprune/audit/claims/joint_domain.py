"""D8: gates of a section and its units together. Witnesses: Euler steps, networks with proved κ, formulas in loops, sympy."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...arrays import Array
from ...gates import dynamics, joint_domain, rules
from ...gates.joint_domain import Bias, Columns
from ...gates.rules import Evidence, Rule
from ...passes.batch_loss import BatchLoss
from ...spec.layers import Activation, Dense, Section, UnitGate
from ...spec.network import Network
from ..catalogue import OURS, Claim, Context, Finding, exact, worst
from ..witnesses.examples import params_of
from ..witnesses.flows import all_gates, probability

D8 = Claim(
    "D8",
    "Layer and unit gates together form a cooperative system; a box that nothing leaves holds for any speeds of θ.",
    "λ w̄_j ≥ κ_j θ̄_j θ̄, λ_b w̄_b ≥ κ_b θ̄, κ_j θ̄ w̄_j < β, ∑_j κ_j θ̄_j w̄_j + κ_b w̄_b < β ⇒ θ, θ_j → 0",
    OURS,
    (
        "gates.joint_domain:ceiling",
        "gates.joint_domain:unit_box",
        "gates.joint_domain:section_box",
        "gates.joint_domain:in_joint_domain",
    ),
)


def _box(
    w: Sequence[float], theta: Sequence[float], kappa: Sequence[float], decay: float, layer: float, beta: float
) -> list[float]:
    """θ̄_j of every column, in a loop: θ_j where κ_j θ̄ max(w_j, κ_j θ_j θ̄/λ) < β, else 1."""
    tops = []
    for w_j, t, k in zip(w, theta, kappa, strict=True):
        driven = k * t * layer
        highest = max(w_j, driven / decay if decay else math.inf if driven else 0.0)
        tops.append(t if k * layer * highest < beta or layer == 0.0 else 1.0)
    return tops


def _load(w: Sequence[float], tops: Sequence[float], kappa: Sequence[float], decay: float, layer: float) -> float:
    """Σ κ_j θ̄_j max(w_j, κ_j θ̄_j θ̄/λ)."""
    total = 0.0
    for w_j, t, k in zip(w, tops, kappa, strict=True):
        driven = k * t * layer
        total += k * t * max(w_j, driven / decay if decay else math.inf if driven else 0.0) if t else 0.0
    return total


def _random_section(rng: np.random.Generator) -> tuple[Columns, Bias, float, float]:
    """Columns, bias, θ and β, of which about half lie in the box."""
    n = int(rng.integers(1, 5))
    decay, kappa = float(10.0 ** rng.uniform(-0.5, 0.5)), 10.0 ** rng.uniform(-0.7, 0.3, n)
    columns = Columns(rng.uniform(0.0, 0.6, n), rng.uniform(0.0, 0.8, n), kappa, decay)
    bias = Bias(float(rng.uniform(0.0, 0.3)), float(rng.uniform(0.1, 0.5)), decay)
    return columns, bias, float(rng.uniform(0.0, 0.6)), float(rng.uniform(0.2, 1.2))


@D8.witness("Euler steps of the cooperative system at its bounds: from the box all named gates reach 0 in time, none leaves it")
def systems_in_the_box_collapse(context: Context) -> Finding:
    """Every θ has a speed of its own, which changes with time; steps h ≤ ½/λ keep the box as the flow does."""
    rng, wrong, inside, beyond = context.rng("D8 steps"), 0, 0, 0
    while inside < 25:
        columns, bias, theta, beta = _random_section(rng)
        found, units = joint_domain.section_box(columns, bias, theta, beta=0.97 * beta)
        if not found:
            continue
        inside += 1
        w, t, k, decay = columns.w.copy(), columns.theta.copy(), columns.kappa, columns.decay
        whole = math.sqrt(float((w**2).sum()) + bias.w**2)
        slope = math.sqrt(float((k**2).sum()) + bias.kappa**2)
        beyond += not dynamics.in_domain(whole, theta, kappa=slope, beta=beta, decay=decay, ratio=1.0)
        tops = np.where(units, t, 1.0)
        walls = np.maximum(w, k * tops * theta / decay) * (1 + 1e-12)
        speeds, b, layer = rng.uniform(0.3, 3.0, len(w) + 1), bias.w, theta
        until = 1.0 / (0.3 * 0.5 * 0.03 * beta)
        h = 0.5 / max(decay, 3.0)
        for step in range(math.ceil(until / h)):
            pace = speeds * (1.0 + 0.5 * math.sin(step))
            dw, db = k * t * layer - decay * w, bias.kappa * layer - decay * b
            dt = pace[1:] * (k * layer * w - beta)
            dl = pace[0] * (float((k * t) @ w) + bias.kappa * b - beta)
            w, b = w + h * dw, b + h * db
            t, layer = np.clip(t + h * dt, 0.0, 1.0), min(1.0, max(0.0, layer + h * dl))
            wrong += bool((w > walls).any()) + bool((t[units] > columns.theta[units]).any()) + (layer > theta)
            if layer == 0.0 and not t[units].any():
                break
        wrong += layer != 0.0 or bool(t[units].any())
    return exact(wrong if beyond else math.inf, f"25 systems in the box, {beyond} of them outside H for the section alone")


def _units_network(context: Context, number: int) -> tuple[BatchLoss, float, tuple[str, ...]]:
    """One section with two tanh units and a fixed head; its loss with columns of norm 1, κ of a column and of the bias.

    A unit's activation is at most 1 and a row of softmax minus one-hot has norm at most √2, so that κ = √2 ‖U‖₂.
    """
    section = Section((Dense(2), Activation("tanh"), UnitGate(), Dense(3)), name="s")
    network = Network((2,), (Dense(3, name="stem"), Activation("tanh"), section, Dense(3, name="head")))
    params = {n: context.normal(f"D8 {number} {n}", *shape) for n, shape in network.parameter_shapes.items()}
    params["head.weight"] *= 0.3
    params["s.dense2.weight"] /= np.linalg.norm(params["s.dense2.weight"], axis=0)
    params["s.dense2.bias"] /= np.linalg.norm(params["s.dense2.bias"])
    x = context.normal(f"D8 {number} x", 5, 2)
    loss = BatchLoss(network, context.backend, params, x, np.array([0, 1, 2, 1, 0]))
    kappa = math.sqrt(2.0) * float(np.linalg.norm(params["head.weight"], 2))
    return loss, kappa, tuple(name for name in params if not name.startswith("head"))


def _bounds_along(loss: BatchLoss, theta: Array, kappa: float) -> float:
    """The largest of the left sides over the right sides of D8's bounds, by enumeration: 1 at most."""
    columns, bias = loss.params["s.dense2.weight"], loss.params["s.dense2.bias"]
    layer, units = theta[0], theta[1:]
    mean_w, mean_b = np.zeros(columns.shape), np.zeros(bias.shape)
    values: dict[tuple[float, ...], float] = {}
    for gates in all_gates(3):
        found = loss.evaluate(gates)
        p, slopes = probability(gates, theta), loss.gradients(found).params
        mean_w, mean_b = mean_w + p * slopes["s.dense2.weight"], mean_b + p * slopes["s.dense2.bias"]
        values[tuple(gates)] = float(found.loss)
    w, b = np.linalg.norm(columns, axis=0), float(np.linalg.norm(bias))
    pairs = [(float(np.linalg.norm(mean_w[:, j])), kappa * units[j] * layer) for j in (0, 1)]
    pairs.append((float(np.linalg.norm(mean_b)), kappa * layer))
    for g, bound in ((0, kappa * float(units @ w) + kappa * b), (1, kappa * layer * w[0]), (2, kappa * layer * w[1])):
        change = 0.0
        for gates in all_gates(3):
            others = np.delete(np.arange(3), g)
            p = probability(gates[others], theta[others])
            change += (1.0 if gates[g] else -1.0) * p * values[tuple(gates)]
        pairs.append((abs(change), bound))
    return max(float(left / right) if right else float(left > 1e-15) for left, right in pairs)


@D8.witness("networks with proved κ: all bounds along flows by enumeration; from the box, outside H, θ and all θ_j end at 0")
def networks_in_the_box_collapse(context: Context) -> Finding:
    share, wrong, number, runs = 0.0, 0, 0, 0
    while runs < 4:
        loss, kappa, moving = _units_network(context, number)
        rng, number = context.rng(f"D8 network {number}"), number + 1
        beta, decay, ratio = (float(v) for v in rng.uniform((0.3, 0.4, 0.5), (0.8, 1.0, 3.0)))
        theta, w, b = rng.uniform(0.05, 0.9, 3), rng.uniform(0.0, 0.9, 2), float(rng.uniform(0.0, 0.2))
        columns = Columns(w, theta[1:], np.full(2, kappa), decay)
        found, units = joint_domain.section_box(columns, Bias(b, kappa, decay), float(theta[0]), beta=0.95 * beta)
        norm = math.sqrt(float(w @ w) + b * b)
        alone = dynamics.in_domain(norm, theta[0], kappa=math.sqrt(3.0) * kappa, beta=beta, decay=decay, ratio=ratio)
        if not found or not units.all() or alone:
            continue
        runs += 1
        params = dict(loss.params)
        params |= {"s.dense2.weight": w * params["s.dense2.weight"], "s.dense2.bias": b * params["s.dense2.bias"]}
        field = dynamics.network_field(loss, moving, beta=beta, decay=decay, ratio=ratio)
        until = 1.0 / (ratio * 0.05 * beta)
        start = dynamics.pack(params, moving)
        flow = dynamics.projected_flow(field, start, theta, min(until, 12.0 / ratio), rtol=1e-6, atol=1e-9, least_steps=10)
        wrong += bool(flow.theta[-1].any()) or bool((np.diff(flow.theta, axis=0) > 1e-9).any())
        for i in range(0, len(flow.time), max(1, len(flow.time) // 4)):
            at = dataclasses.replace(loss, params=dynamics.unpack(flow.weights[i], moving, params))
            share = max(share, _bounds_along(at, flow.theta[i], kappa))
    return worst(exact(wrong, f"4 networks of {number} tried"), Finding(share, 1.0, detail="largest left side over right side"))


def _rule_in_loops(
    w: Array, theta: Array, kappa: Array, bias: tuple[float, float, float], beta: float, decay: float
) -> tuple[bool, list[bool]]:
    """The box of D8 for one section: gate 0 is the layer's with its whole block, the others are the columns.

    bias: its norm, the slope in it and its decay.
    """
    bias_w, bias_kappa, bias_decay = bias
    layer, units = float(theta[0]), slice(1, None)
    own = np.minimum(kappa[units], kappa[0]).tolist()
    whole_decay = min(decay, bias_decay)
    driven = kappa[0] * layer
    reach = max(float(w[0]), driven / whole_decay if whole_decay else math.inf if driven else 0.0)
    tops = _box(w[units].tolist(), theta[units].tolist(), own, decay, layer, beta)
    load = _load(w[units].tolist(), tops, own, decay, layer)
    pushed = bias_kappa * layer
    beside = max(bias_w, pushed / bias_decay if bias_decay else math.inf if pushed else 0.0)
    inside = bool(kappa[0] * reach < beta or load + bias_kappa * beside < beta)
    found = []
    for j in range(1, len(w)):
        tried = (1.0, layer) if inside else (1.0,)
        boxes = [_box([w[j]], [theta[j]], [kappa[j]], decay, top, beta) == [theta[j]] for top in tried if theta[j] < 1.0]
        found.append(any(boxes))
    return inside, found


@D8.witness("the rule on random states of a section against loops over its gates; how many more it finds than H alone")
def rule_against_loops(context: Context) -> Finding:
    section = Section((Dense(3), Activation("tanh"), UnitGate(), Dense(2)))
    network = Network((2,), (section, Dense(2)))
    unit, rng = params_of(network, context), context.rng("D8 rule")
    wrong, alone, together = 0, np.zeros(2, dtype=int), np.zeros(2, dtype=int)
    for i in range(250):
        params = unit | {f"section1.dense2.{part}": rng.uniform(0.0, 0.5) * unit[f"section1.dense2.{part}"] for part in PARTS}
        theta, slopes, of_bias = (
            rng.uniform(0.0, (0.3, 0.9, 0.9, 0.9)),
            rng.uniform(0.05, 1.2, 4),
            float(rng.uniform(0.02, 0.3)),
        )
        slopes[0] = math.sqrt(float((slopes[1:] ** 2).sum()) + of_bias**2)
        decayed, steady = ("all", "weights")[i % 2], i % 3 > 0
        rule = Rule("attraction", 0.0, 1.5, 1, beta=0.5, decay=0.4, decayed=decayed, ratio=2.0, steady_units=steady)
        evidence = Evidence(slopes, np.ones(4, dtype=np.intp), np.array([of_bias, 0.0, 0.0, 0.0]))
        found = rules.attracted(network, params, theta, evidence, rule)
        w, b = params["section1.dense2.weight"], params["section1.dense2.bias"]
        norms = np.array([math.sqrt(float((w**2).sum() + (b**2).sum())), *np.sqrt((w**2).sum(axis=0))])
        bias_decay = 0.4 if decayed == "all" else 0.0
        own = np.array([bias_decay, 0.4, 0.4, 0.4])
        within = dynamics.in_domain(norms, theta, kappa=1.5 * slopes, beta=0.5, decay=own, ratio=2.0)
        within &= np.array([True, steady, steady, steady])
        bias = float(np.linalg.norm(b)), 1.5 * of_bias, bias_decay
        layer, units = _rule_in_loops(norms, theta, 1.5 * slopes, bias, 0.5, 0.4)
        wrong += int((found != (within | np.array([layer, *units]))).sum())
        if steady:
            alone += [int(within[0]), int(within[1:].sum())]
            together += [int(found[0]), int(found[1:].sum())]
    more = f"layers: {alone[0]} by H alone, {together[0]} with the box; units: {alone[1]} and {together[1]}"
    return exact(wrong if (together > alone).all() else math.inf, more)


PARTS = ("weight", "bias")


@D8.witness("sympy: every right-hand side grows with every other variable, so that the system is cooperative")
def cooperative_by_symbols(context: Context) -> Finding:
    import sympy

    names = "w1 w2 w_b t1 t2 t kappa1 kappa2 kappa_b lambda beta r r1 r2"
    w1, w2, wb, t1, t2, t, k1, k2, kb, decay, beta, r, r1, r2 = sympy.symbols(names, nonnegative=True)
    variables = [w1, w2, wb, t1, t2, t]
    sides: list[Any] = [-decay * w1 + k1 * t1 * t, -decay * w2 + k2 * t2 * t, -decay * wb + kb * t]
    sides += [r1 * (k1 * t * w1 - beta), r2 * (k2 * t * w2 - beta), r * (k1 * t1 * w1 + k2 * t2 * w2 + kb * wb - beta)]
    jacobian = sympy.Matrix(sides).jacobian(variables)
    off = [jacobian[i, j] for i in range(6) for j in range(6) if i != j]
    return exact(sum(entry.is_nonnegative is not True for entry in off), f"{len(off)} derivatives")
