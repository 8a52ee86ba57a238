"""D6, D7: the rules that remove gates, and units. Witnesses: blocks set to 0, Gauss–Legendre, H written out, flows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...arrays import Array
from ...gates import closing_weights, rules
from ...gates.rules import Evidence
from ...passes.batch_loss import BatchLoss
from ...spec.layers import Activation, BatchNorm, Conv, Dense, GlobalAveragePool, Section, UnitGate
from ...spec.network import Network
from ...training.coefficients import rule_of
from ...training.config import from_dict
from ..catalogue import EPS, OURS, Claim, Context, Finding, close, exact, worst
from ..witnesses.flows import judge

D6 = Claim(
    "D6",
    "The rule `attraction` removes gates in H; with a running maximum for κ it is safe as far as that estimate is.",
    "(w, θ) ∈ H",
    OURS,
    ("gates.rules:rule_keep", "gates.rules:attracted", "gates.rules:observe", "gates.dynamics:in_domain"),
)
D7 = Claim(
    "D7",
    "The same for a unit, with its outgoing column as W: where it is 0, the gate does not matter.",
    "W_{:,j} = 0 ⇒ c(u_j = 1) = c(u_j = 0)",
    OURS,
    ("gates.closing_weights:blocks", "gates.closing_weights:closing_block", "gates.closing_weights:block_norms"),
)


def _mixed(context: Context) -> tuple[BatchLoss, Array]:
    """Layer and unit gates, batch-norm at a path's end, units that end a path, images and vectors; all gates on."""
    same, tanh = ((1, 1), (1, 1)), Activation("tanh")
    first = Section((Conv(4, (3, 3), padding=same), BatchNorm(), tanh, UnitGate(), Conv(2, (3, 3), padding=same), BatchNorm()))
    second = Section((Dense(3), tanh, UnitGate(), Dense(2), tanh, UnitGate()))
    network = Network((2, 4, 4), (first, GlobalAveragePool(), second, Dense(3), tanh, UnitGate(), Dense(2)))
    params = {name: context.normal(f"d/{name}", *shape) for name, shape in network.parameter_shapes.items()}
    loss = BatchLoss(network, context.backend, params, context.normal("d/x", 5, 2, 4, 4), np.array([0, 1, 1, 0, 1]))
    return loss, np.ones(network.gate_count)


def gates_that_matter(context: Context, kind: str) -> Finding:
    """Gates whose value changes the output although their block is 0; the norms of the blocks counted by zeroing too."""
    loss, gates = _mixed(context)
    wrong = count = 0
    for group, block in zip(loss.network.gate_groups, closing_weights.blocks(loss.network), strict=True):
        for j in range(block.gates if group.kind == kind else 0):
            params, squares = dict(loss.params), 0.0
            for name in block.names:
                array = loss.params[name].copy()
                block.split(array)[:, j] = 0.0
                squares += math.fsum(float(v) ** 2 for v in (loss.params[name] - array).ravel())
                params[name] = array
            off = gates.copy()
            off[group.start + j] = 0.0
            closed = dataclasses.replace(loss, params=params)
            one, other = (closed.evaluate(value).tape.output for value in (gates, off))
            norm = closing_weights.block_norms(loss.network, loss.params)[group.start + j]
            wrong += not np.array_equal(one, other) or abs(norm - math.sqrt(squares)) > 64 * EPS * norm
            wrong += not np.any(loss.evaluate(off).tape.output != loss.evaluate(gates).tape.output)
            count += 1
    return exact(wrong if count else math.inf, f"{count} gates of a network with everything")


@D7.witness("columns at 0 and not at 0: a unit's gate matters only where its column is not 0")
def unit_gate_matters_only_where_its_column_is_not_zero(context: Context) -> Finding:
    return gates_that_matter(context, "unit")


@D7.witness("Gauss–Legendre: opening a unit changes c by ∫ ⟨∂c/∂W(tW), W⟩ dt, so by at most the largest slope times w")
def opening_a_unit_by_quadrature(context: Context) -> Finding:
    """The bound of a deviation is what 16 nodes do better than 12, and the rounding of the sum."""
    loss, gates = _mixed(context)
    norms, findings = closing_weights.block_norms(loss.network, loss.params), []
    for group, block in zip(loss.network.gate_groups, closing_weights.blocks(loss.network), strict=True):
        for j in range(block.gates if group.kind == "unit" else 0):
            g = group.start + j
            integrals, largest = [], 0.0
            for nodes in (12, 16):
                t, weights = np.polynomial.legendre.leggauss(nodes)
                products = []
                for share in 0.5 * (1.0 + t):
                    params = dict(loss.params)
                    for name in block.names:
                        params[name] = loss.params[name].copy()
                        block.split(params[name])[:, j] *= share
                    moved = dataclasses.replace(loss, params=params)
                    found = moved.gradients(moved.evaluate(gates)).params
                    parts = [(block.split(found[n])[:, j], block.split(loss.params[n])[:, j]) for n in block.names]
                    products.append(math.fsum(float((slope * w).sum()) for slope, w in parts))
                    largest = max(largest, math.sqrt(math.fsum(float((slope**2).sum()) for slope, _ in parts)))
                integrals.append(float(0.5 * weights @ products))
            off = gates.copy()
            off[g] = 0.0
            change = float(loss.evaluate(gates).loss - loss.evaluate(off).loss)
            bound = largest * float(norms[g])
            rounding = 256 * EPS * (1.0 + bound)
            findings.append(Finding(abs(integrals[1] - change), abs(integrals[1] - integrals[0]) + rounding))
            findings.append(Finding(abs(change), bound, detail="|Δc| and κ w"))
    return worst(*findings)


def _norms_written_out(arrays: Mapping[str, Array]) -> list[float]:
    """‖W‖ of the gates of `_mixed`, one after the other."""

    def norm(*parts: Array) -> float:
        return math.sqrt(math.fsum(float(v) ** 2 for part in parts for v in np.ravel(part)))

    one, two, last = (arrays[f"{name}.weight"] for name in ("section1.conv2", "section2.dense2", "dense2"))
    bias = arrays["section2.dense2.bias"]
    whole = norm(arrays["section1.batchnorm2.gain"], arrays["section1.batchnorm2.bias"])
    columns = [[norm(array[:, j]) for j in range(array.shape[1])] for array in (one, two, last)]
    return [whole, *columns[0], norm(two, bias), *columns[1], *(norm(two[i], bias[i]) for i in range(2)), *columns[2]]


def _boxed(norms: list[float], bias: float, theta: Array, kappa: float, *, known: Array) -> list[bool]:
    """D8 written out for `_mixed`, β = 0.4, λ = 0.3, all slopes κ, that of the bias κ/2: gate 5 closes columns 6 to 8."""

    def top(w: float, t: float, layer: float) -> float:
        """θ̄ of a unit below θ̄ = layer: its own θ, or 1."""
        return t if kappa * layer * max(w, kappa * t * layer / 0.3) < 0.4 else 1.0

    found = [False] * theta.size
    for gate, units, columns in ((0, range(1, 5), range(0)), (5, range(6, 11), range(6, 9))):
        layer = float(theta[gate])
        inside = kappa * max(norms[gate], kappa * layer / 0.3) < 0.4
        if columns:
            tops = [top(norms[j], float(theta[j]), layer) for j in columns]
            load = sum(kappa * t * max(norms[j], kappa * t * layer / 0.3) for j, t in zip(columns, tops, strict=True))
            inside = inside or load + 0.5 * kappa * max(bias, 0.5 * kappa * layer / 0.3) < 0.4
        found[gate] = bool(known[gate] and inside)
        for j in units if found[gate] else ():
            found[j] = top(norms[j], float(theta[j]), layer) < 1.0
    return found


@D6.witness("the rule on a network's gates against H and the box of D8, written out; `both` removes what both rules would")
def rule_against_the_domain_of_each_gate(context: Context) -> Finding:
    loss, gates = _mixed(context)
    rng, wrong, went = context.rng("d/rule"), 0, [0, 0]
    tables: dict[str, Any] = {
        "gates": {"learning_rate": 0.02, "kappa_factor": 1.5, "kappa_warmup": 3, "threshold": 0.1},
        "optimiser": {"learning_rate": 0.01, "momentum": 0.8},
        "objective": {"beta": 0.4, "weight_decay": 0.3},
    }
    network = loss.network
    for i in range(80):
        config = from_dict({**tables, "gates": {**tables["gates"], "rule": ("attraction", "both")[i % 2]}})
        scale, slope, theta = rng.uniform(0.0, 0.3), rng.uniform(0.1, 1.0), rng.uniform(0.0, 0.3, gates.size)
        params = {name: scale * array for name, array in loss.params.items()}
        seen = rng.integers(1, 6, gates.size)
        evidence = Evidence(np.full(gates.size, slope), seen, np.full(gates.size, 0.5 * slope))
        keep = rules.rule_keep(network, params, theta, evidence, rule_of(config, 1))
        kappa, ratio, norms = 1.5 * slope, 0.02 * (1.0 - 0.8) / 0.01, _norms_written_out(params)
        mu = 0.5 * (-0.3 + math.sqrt(0.3**2 + 4.0 * ratio * kappa**2))
        bias = float(np.linalg.norm(params["section2.dense2.bias"]))
        joint = _boxed(norms, bias, theta, kappa, known=seen >= 3)
        for g in range(gates.size - 3):  # the last three are a plain layer's, of which one always stays
            phi = ratio * kappa * (norms[g] - 0.4 / kappa) + (0.3 + mu) * (theta[g] - 0.3 * 0.4 / kappa**2)
            outside = phi >= 0.0 and not joint[g]
            wrong += keep[g] != (seen[g] < 3 or outside or (i % 2 == 1 and theta[g] > 0.1))
            went[i % 2] += not keep[g]
    return exact(wrong if min(went) else math.inf, f"{went[0]} gates went by attraction, {went[1]} by both")


@D6.witness("the evidence on κ: the largest slope of every step so far, and the steps in which the gate was open")
def evidence_on_kappa(context: Context) -> Finding:
    loss, gates = _mixed(context)
    rng = context.rng("d/evidence")
    evidence = Evidence(np.zeros(gates.size), np.zeros(gates.size, dtype=np.intp), np.zeros(gates.size))
    largest, times, of_bias = [0.0] * gates.size, [0] * gates.size, 0.0
    for _ in range(6):
        sampled = (rng.uniform(size=gates.size) < 0.7).astype(np.float64)
        sampled[[0, 5, 9, 11]] = 1.0  # so that no gate is cut off: sections, a unit of what ends them and of the last layer
        found = loss.gradients(loss.evaluate(sampled)).params
        evidence = rules.observe(loss.network, found, evidence)
        of_bias = max(of_bias, math.sqrt(math.fsum(float(v) ** 2 for v in found["section2.dense2.bias"])))
        for g, norm in enumerate(_norms_written_out(found)):
            largest[g], times[g] = max(largest[g], norm), times[g] + (sampled[g] == 1.0)
    counted = exact(
        int((evidence.seen != np.array(times)).sum()) + int(max(times) == min(times)),
        f"{min(times)} to {max(times)} of 6 steps",
    )
    biases = [of_bias * (g == 5) for g in range(gates.size)]  # gate 5 is the second section's, whose block has a bias
    return worst(counted, close(evidence.slope, largest, largest, 64), close(evidence.bias_slope, biases, biases, 64))


@D6.witness("flows of networks with the running maximum for κ: the rule fires where θ ends at 0, and nowhere else")
def rule_fires_where_theta_ends_at_zero(context: Context) -> Finding:
    found = judge(range(12 * context.seed, 12 * context.seed + 12), (1.0,), backend=context.backend)
    counts = f"{found.off} flows end at 0, {found.on} at 1, {found.under_way} are under way"
    return exact(found.wrong[0] + found.off - found.fired[0], f"{counts}; {found.covered[0]} start in H")
