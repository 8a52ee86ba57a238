"""Small networks with gates under the flow of D1: slopes, inequalities, the comparison system as a bound (SPEC D1, D2, D4, D6).

Each claim is a function `check_…` of what it claims about, so that a wrong one can be handed to it.
"""

import dataclasses
import math

import numpy as np
import pytest
from checkers import fails
from tolerance import gamma

from refprune.audit.witnesses.flows import Sections, all_gates, judge, probability, random_point, sides_of_d1
from refprune.gates.dynamics import Comparison, projected_flow
from refprune.gates.theta_penalty import Penalty, reference
from refprune.rounding.tolerance import UNIT

U = UNIT["float64"]


def comparison_of(case, rng, kappa=None):
    """Constants for a network: κ as proved unless given, λβ < κ² at most, and a pull of the size of its slopes."""
    kappa = case.kappa if kappa is None else kappa
    beta, decay, ratio = 10.0 ** rng.uniform((-1.5, -1.0, -1.0), (0.0, 0.5, 1.0))
    return Comparison(kappa, float(beta), float(min(decay, 0.9 * kappa**2 / beta)), float(ratio))


@pytest.mark.parametrize("seed", range(3))
def test_slopes_are_below_the_proved_bound(seed):
    """D1 along a flow: |c(ξ=1) − c(ξ=0)| ≤ κw for every Ξ of the others, ‖E ∂c/∂W‖ ≤ θκ. The bound is within a factor 40."""
    case, rng = Sections(seed), np.random.default_rng(seed)
    c = comparison_of(case, rng)
    largest = 0.0
    flow = case.flow(c, 0.5, 0.6, 1.0)
    for weights, theta in zip(flow.weights, flow.theta, strict=True):
        w, (difference, slope) = case.norm(weights), sides_of_d1(case, weights, theta)
        assert difference <= c.kappa * w
        assert slope <= theta[-1] * c.kappa
        largest = max(largest, difference / w)
    assert largest > c.kappa / 40.0


def check_d2(case, field, c, flow):
    """ẇ ≤ −λw + κθ and θ̇ ≤ r(κw − β), with the constants of c, at every point of a flow of the field."""
    __tracebackhide__ = True
    for weights, theta in zip(flow.weights, flow.theta, strict=True):
        dw, dtheta = field(weights, theta)
        w = case.norm(weights)
        here, speed = case.part(weights), case.part(dw)
        rounding = gamma(here.size + 4, U) * np.linalg.norm(speed)
        assert here @ speed / w <= -c.decay * w + c.kappa * theta[-1] + rounding
        assert dtheta[-1] <= c.ratio * (c.kappa * w - c.beta)


@pytest.mark.parametrize("seed", range(3))
def test_the_inequalities_along_a_flow(seed):
    case, rng = Sections(10 + seed), np.random.default_rng(seed)
    c = comparison_of(case, rng)
    flow = case.flow(c, 0.3, 0.4, 1.0)
    check_d2(case, case.field(c), c, flow)
    small = dataclasses.replace(c, kappa=0.02 * c.kappa)
    assert fails(check_d2, case, case.field(c), small, flow) is not None  # planted: κ too small
    pulled = dataclasses.replace(c, beta=2.0 * c.kappa)  # so strongly that θ stays at 0
    closed = case.flow(pulled, 0.3, 0.0, 0.1)
    check_d2(case, case.field(pulled), pulled, closed)
    faster = dataclasses.replace(pulled, decay=1.1 * c.decay)
    assert fails(check_d2, case, case.field(pulled), faster, closed) is not None  # planted: λ too large


@pytest.mark.parametrize("seed", range(3))
def test_the_comparison_system_bounds_a_network(seed):
    """(‖W‖, θ) of the network's flow never exceeds the comparison's flow from the same start (D2), in H and outside."""
    case, rng = Sections(20 + seed), np.random.default_rng(seed)
    c = comparison_of(case, rng)
    for w, theta in ((0.5 * c.radius, 0.5 * min(c.saddle[1], 1.0)), (2.0 * c.radius, 0.7)):
        flow, above = case.flow(c, w, theta, 1.0), np.array([w, theta])
        for i in range(1, len(flow.time)):
            span = float(flow.time[i] - flow.time[i - 1])
            bound = projected_flow(c.velocity, above[:1], above[1:], span)
            above = np.array([bound.weights[-1, 0], bound.theta[-1, 0]])
            assert case.norm(flow.weights[i]) <= above[0]
            assert flow.theta[i, -1] <= above[1]


def check_networks_are_pruned(domain, count=12):
    """Sweep of random networks and ratios r: what starts in H has θ = 0 at the time bound, with w ≤ w* (D4)."""
    __tracebackhide__ = True
    rng = np.random.default_rng(11)
    for seed in range(count):
        case = Sections(100 + seed, gates=1 + seed % 2)
        c = comparison_of(case, rng)
        believed = domain(c)
        w, theta = random_point(rng, believed, inside=True)
        flow = case.flow(c, w, theta, float(believed.time_bound(w, theta)) * (1 + 1e-6) + 1e-6)
        assert flow.zero_since(case.gates - 1) is not None, (seed, c, w, theta)
        assert case.norm(flow.weights[-1]) <= believed.saddle[0]


@dataclasses.dataclass(frozen=True)
class Sized(Sections):
    """Under C4: ν R of the network pulls beside β; ν < 0 has the wrong sign."""

    nu: float = 0.0

    def field(self, c):
        plain, penalty = super().field(c), Penalty(self.network, reference(self.network), nu=abs(self.nu))

        def field(weights, theta):
            dw, dtheta = plain(weights, theta)
            return dw, dtheta - math.copysign(c.ratio, self.nu) * penalty.gradient(theta)

        return field


def check_pruned_under_size(nu, count=4):
    """What starts in H for β = objective.beta ends at θ = 0 with ν R beside it, and D2 holds along the way (D6 under C4)."""
    __tracebackhide__ = True
    rng = np.random.default_rng(13)
    for seed in range(count):
        case = Sized(200 + seed, nu=nu)
        c = comparison_of(case, rng)
        w, theta = random_point(rng, c, inside=True)
        flow = case.flow(c, w, theta, float(c.time_bound(w, theta)) * (1 + 1e-6) + 1e-6)
        check_d2(case, case.field(c), c, flow)
        assert flow.zero_since(case.gates - 1) is not None, (seed, c)


@pytest.mark.parametrize("nu", [0.3, 5.0])
def test_the_floor_of_the_pull_is_enough_where_size_pulls_too(nu):
    check_pruned_under_size(nu)


def test_a_size_that_pulls_gates_up_breaks_it():
    """Planted: the sign of ν."""
    assert fails(check_pruned_under_size, -5.0) is not None


def test_networks_that_start_in_the_domain_are_pruned():
    check_networks_are_pruned(lambda c: c)


def test_a_bound_that_is_too_small_lets_networks_escape():
    """Planted: κ a tenth of the proved bound."""
    assert fails(check_networks_are_pruned, lambda c: dataclasses.replace(c, kappa=0.1 * c.kappa)) is not None


def test_the_rule_with_an_estimated_bound():
    """D6 along flows: with the running maximum it fires where a flow ends at 0 and nowhere else; with a tenth of it not so."""
    found = judge(range(9), (0.1, 1.0))
    assert found.off >= 2
    assert found.on >= 2
    assert found.fired == [found.off, found.off]
    assert found.wrong[1] == 0
    assert found.wrong[0] > 0


def test_probabilities_of_the_witness_sum_to_one():
    theta = np.array([0.2, 0.9, 0.0])
    assert abs(sum(probability(g, theta) for g in all_gates(3)) - 1.0) <= gamma(12, U)
