"""C1 to C3: what a network costs, expected over its gates. Witnesses: pairs in loops, enumeration, surgery, rationals."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np

from ...errors import SpecError
from ...gates.theta_penalty import Penalty, Reference, reference, share
from ...spec import cost, zoo
from ...spec.layers import Conv, Dense, GlobalAveragePool, Layer, Section, UnitGate
from ...spec.network import Network
from ...training.coefficients import pressed
from ...training.config import Config, Objective
from ..catalogue import CA, Claim, Context, Finding, close, exact, worst
from ..witnesses.counting import (
    QUANTITIES,
    balanced,
    by_arrays,
    chain_network,
    eighths,
    is_layer,
    left,
    sections_network,
    table,
)
from ..witnesses.examples import SAME, vertices_of

C1 = Claim(
    "C1",
    "The expected cost is a sum over pairs of channels in which every distinct gate stands once; exact for independent gates.",
    "E[cost] = ∑_k c_k · mean θ_{in} · mean θ_{out} · θ_l · ∏_{u∌k} (1 − ∏_{j∈u} (1 − θ_j)), ξ^2 = ξ",
    CA,
    (
        "spec.cost:cost_model",
        "spec.cost:CostModel.weights",
        "spec.cost:CostModel.alive",
        "spec.cost:CostModel.gradient",
        "spec.cost:expected",
        "spec.cost:expected_gradient",
        "spec.unit_links:ungrouped_name",
    ),
)
C2 = Claim(
    "C2",
    "R weighs the shares of computation and of parameters that are left of the network with which training began.",
    "R(θ) = α \\frac{E[MACs]}{MACs_0} + (1−α) \\frac{E[params]}{params_0}",
    CA,
    (
        "gates.theta_penalty:reference",
        "gates.theta_penalty:share",
        "gates.theta_penalty:Penalty._weights",
        "gates.theta_penalty:Penalty.value",
        "spec.cost:macs",
        "spec.cost:parameters",
    ),
)
C3 = Claim(
    "C3",
    "The balance goes from units alone over the true expected complexity to layers alone.",
    "R_ρ = (1−|2ρ−1|) R(θ_l, θ_u) + max(0, 2ρ−1) R(θ_l, 1) + max(0, 1−2ρ) R(1, θ_u)",
    CA,
    (
        "gates.theta_penalty:Penalty._views",
        "gates.theta_penalty:Penalty.value",
        "gates.theta_penalty:Penalty.gradient",
        "training.coefficients:pressed",
    ),
)

#: What becomes of a section of which a layer has lost all its units.
EMPTY = ("keep_constant", "close")

#: Of products and sums of positive numbers over at most 40 terms, each rounded once.
ROUNDINGS = 64


@C1.witness("surgery: the arrays of the pruned network, at every gate vector, to the last integer")
def costs_of_pruned_arrays(context: Context) -> Finding:
    wrong = seen = 0
    for network, empty in itertools.product((chain_network(), sections_network()), EMPTY):
        for gates in vertices_of(network.gate_count):
            smaller = left(network, gates, empty)
            if smaller is not None:
                found = tuple(cost.expected(network, gates, quantity, empty=empty) for quantity in ("parameters", "macs"))
                wrong, seen = wrong + int(found != by_arrays(smaller)), seen + 1
    return exact(wrong, f"{seen} gate vectors, emptied sections closed and kept")


@C1.witness("enumeration: every pair of channels in a loop, mean over all gate vectors, to the last bit (θ in eighths)")
def expected_costs_by_enumeration(context: Context) -> Finding:
    wrong = 0
    for network, empty in itertools.product((chain_network(), sections_network()), EMPTY):
        theta = eighths(context, "C1", network.gate_count)
        every = table(network, context, empty=empty)
        wrong += sum(cost.expected(network, theta, q, empty=empty) != every.mean(q, theta) for q in QUANTITIES)
        for part in ("weight", "bias", "norm"):
            counted = table(network, context, (part,), empty=empty)
            for quantity in QUANTITIES:
                found = cost.expected(network, theta, quantity, parts=(part,), empty=empty)
                wrong += found != counted.mean(quantity, theta)
    return exact(wrong)


@C1.witness("gradient: differences of conditional means by enumeration (to the last bit), and the complex step")
def gradient_by_enumeration_and_complex_step(context: Context) -> Finding:
    wrong, findings = 0, []
    for network, empty in itertools.product((chain_network(), sections_network()), EMPTY):
        theta, every = eighths(context, "C1 slopes", network.gate_count), table(network, context, empty=empty)
        for quantity in QUANTITIES:
            found = cost.expected_gradient(network, theta, quantity, empty=empty)
            wrong += int((found != every.slopes(quantity, theta)).any())
            moved = [theta + 1e-200j * e for e in np.eye(theta.size)]
            step = [cost.expected(network, at, quantity, empty=empty).imag / 1e-200 for at in moved]
            findings.append(close(found, step, step, ROUNDINGS))
    return worst(exact(wrong), *findings)


def _mean(cost: Callable[[tuple[int, ...]], Fraction], theta: list[Fraction]) -> Fraction:
    """E[cost(ξ)] over all gate vectors, in rationals."""
    total = Fraction(0)
    for gates in itertools.product((0, 1), repeat=len(theta)):
        chance = Fraction(1)
        for g, t in zip(gates, theta, strict=True):
            chance *= t if g else 1 - t
        total += chance * cost(gates)
    return total


@C1.witness("rationals: groups on one or both sides, depthwise, grouped, two layer gates; what no product fits is refused")
def grouped_convolutions_in_rationals(context: Context) -> Finding:
    """SPEC's forms, by enumeration of six gates. Specs admit those alone in which every pair has different gates."""
    theta = [Fraction(int(k), 8) for k in 8 * eighths(context, "C1 forms", 6)]
    a, b, n = theta[:3], theta[3:], 3
    mean_a, mean_b = sum(a) / n, sum(b) / n
    first, second = range(3), range(3, 6)

    def over(pairs: Sequence[tuple[int, ...]]) -> Fraction:
        """The mean share of these pairs that is alive, each gate on a pair counted once."""
        return _mean(lambda gates: Fraction(sum(all(gates[g] for g in pair) for pair in pairs), len(pairs)), theta)

    both = [(i, j) for i in first for j in first]
    wrong = int(over([(i, j) for i in first for j in second]) != mean_a * mean_b)
    wrong += over(both) != mean_a**2 + sum((t * (1 - t) for t in a), Fraction(0)) / n**2
    wrong += over([(i, i) for i in first]) != mean_a
    wrong += over([(i, 3, 3) for i in first]) != mean_a * theta[3]
    wrong += over([(i, 3, 4) for i in first]) != mean_a * theta[3] * theta[4]
    grouped = [[(0, 3), (1, 3)], [(2, 4), (5, 4)]]
    each = [((theta[i] + theta[k]) / 2) * theta[o] for (i, o), (k, _) in grouped]
    wrong += over([pair for group in grouped for pair in group]) != sum(each) / 2
    gate, one, depthwise = UnitGate(), Conv(4, (1, 1)), Conv(4, (3, 3), padding=SAME, groups=4)
    for layers in ((one, gate, depthwise), (depthwise, gate, one), (one, gate, Section((one,))), (one, gate, gate, one)):
        wrong += not _refused(layers) or _refused(tuple(layer for layer in layers if layer is not gate))
    return exact(wrong)


def _refused(layers: tuple[Layer, ...]) -> bool:
    try:
        network = Network((4, 4, 4), (*layers, GlobalAveragePool(), Dense(2)))
        cost.expected(network, np.ones(network.gate_count))
    except SpecError:
        return True
    return False


# --------------------------------------------------------------------------------------------------------------------
# C2


@C2.witness("enumeration: the mean of both shares over all gate vectors, α from parameters alone to MACs alone")
def shares_by_enumeration(context: Context) -> Finding:
    findings = []
    for network in (chain_network(), sections_network()):
        theta, every = eighths(context, "C2", network.gate_count), table(network, context)
        whole = {q: every.costs[q][-1] for q in QUANTITIES}  # the last vertex has all gates on
        for alpha in (0.0, 0.3, 1.0):
            macs, parameters = (every.mean(q, theta) / whole[q] for q in ("macs", "parameters"))
            found = Penalty(network, reference(network), nu=1.0, alpha=alpha).value(theta)
            findings.append(close(found, alpha * macs + (1.0 - alpha) * parameters, 1.0, ROUNDINGS))
    return worst(*findings)


@C2.witness("surgery: shares counted on the arrays that are left; 100 % stays the network at the start")
def shares_of_pruned_arrays(context: Context) -> Finding:
    findings, wrong = [], 0
    for network in (chain_network(), sections_network()):
        ones, start = np.ones(network.gate_count), by_arrays(network)
        whole = reference(network)
        wrong += (whole.parameters, whole.macs) != start
        findings.append(close(Penalty(network, whole, nu=1.0).value(ones), 1.0, 1.0, ROUNDINGS))
        for gates in vertices_of(network.gate_count)[::13]:
            smaller = left(network, gates)
            if smaller is None:
                continue
            parameters, macs = (now / before for now, before in zip(by_arrays(smaller), start, strict=True))
            want = 0.3 * macs + 0.7 * parameters
            masked = Penalty(network, whole, nu=1.0, alpha=0.3).value(gates)
            compact = Penalty(smaller, whole, nu=1.0, alpha=0.3).value(np.ones(smaller.gate_count))
            ends = [compact] if smaller.gate_count else []
            findings += [close(found, want, 1.0, ROUNDINGS) for found in (masked, share(smaller, whole, 0.3), *ends)]
    return worst(exact(wrong), *findings)


@C2.witness("LeNet-5 with gated units: its polynomials in the three widths, all units of a layer at one θ")
def lenet5_by_its_polynomials(context: Context) -> Finding:
    network, findings = zoo.lenet5(units=True), []
    sizes = [group.stop - group.start for group in network.gate_groups]
    for alpha, levels in ((0.0, (0.5, 0.25, 0.125)), (0.6, (0.75, 1.0, 0.5)), (1.0, (0.25, 0.5, 1.0))):
        a, b, c = (n * t for n, t in zip(sizes, levels, strict=True))
        macs = 576 * 25 * a + 64 * 25 * a * b + 16 * b * c + 10 * c
        parameters = 26 * a + (25 * a + 1) * b + (16 * b + 1) * c + 10 * c + 10
        want = alpha * macs / 2_293_000 + (1.0 - alpha) * parameters / 431_080
        theta = np.repeat(levels, sizes)
        found = Penalty(network, Reference(2_293_000, 431_080), nu=1.0, alpha=alpha).value(theta)
        findings.append(close(found, want, 1.0, ROUNDINGS))
    return worst(*findings)


# --------------------------------------------------------------------------------------------------------------------
# C3

BALANCES = (0.0, 0.25, 0.5, 0.75, 1.0)


@C3.witness("the three summands by enumeration of the gates that each of them sees")
def summands_by_enumeration(context: Context) -> Finding:
    network, findings, values = sections_network(), [], []
    theta, every = eighths(context, "C3", network.gate_count), table(network, context)
    for rho in BALANCES:
        want = balanced(every, is_layer(network), theta, alpha=0.4, rho=rho)
        penalty = Penalty(network, reference(network), nu=1.0, alpha=0.4, balance=rho)
        findings.append(close(penalty.value(theta), want, 1.0, ROUNDINGS))
        values.append(round(want, 6))
    return worst(exact(len(BALANCES) - len(set(values))), *findings)


@C3.witness("ρ = 1 is blind to units and ρ = 0 to layers, at 30 pairs of θ; the true complexity sees every gate")
def balance_at_its_ends(context: Context) -> Finding:
    network, wrong = sections_network(), 0
    layer = is_layer(network)
    for i in range(30):
        one, other = context.uniform(f"C3 {i}", 2, network.gate_count)
        for rho, seen in ((1.0, layer), (0.0, ~layer), (0.5, np.ones_like(layer))):
            penalty = Penalty(network, reference(network), nu=1.0, balance=rho)
            mixed = np.where(seen, one, other)
            wrong += penalty.value(one) != penalty.value(mixed)
            slope = penalty.gradient(one)
            wrong += int((slope[~seen] != 0.0).any()) + int((slope[seen] <= 0.0).any())
            wrong += int((penalty.gradient(mixed) != slope).any())
    return exact(wrong)


@C3.witness("training fixes the gates on which nothing presses to 1, and no other; all costs stay")
def gates_without_pressure_are_fixed(context: Context) -> Finding:
    network, wrong = sections_network(), 0
    for rho, kinds in ((0.0, {"unit"}), (0.25, {"layer", "unit"}), (0.5, {"layer", "unit"}), (1.0, {"layer"})):
        for objective, gated in (
            (Objective(nu=0.1, balance=rho), kinds),
            (Objective(nu=0.1, balance=rho, beta=0.1), {"layer", "unit"}),
        ):
            trained = pressed(network, dataclasses.replace(Config(), objective=objective))
            wrong += {g.kind for g in trained.gate_groups} != gated
            wrong += by_arrays(trained) != by_arrays(network)
    return exact(wrong)
