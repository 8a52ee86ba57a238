"""C(W, θ), its gradients and their estimators (SPEC O1-O5).

Algebra is checked without rounding: a `Table` plays the network, its losses are small integers and θ is made of eighths, so
that float64 is exact. Unbiasedness for up to 3 gates is an exact integral over the uniforms (the integrand is piecewise
linear); on real networks it is a z-score.
"""

import dataclasses
import itertools
import math
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from estimator_cases import U, moved
from hypothesis import given
from hypothesis import strategies as st
from tolerance import assert_close, gamma

from refprune.errors import InputError
from refprune.gates.estimators import (
    ESTIMATORS,
    Estimate,
    Sampled,
    enumerate_gates,
    exact_expectation,
    exact_theta_gradient,
    sample,
)
from refprune.passes.batch_loss import Evaluation
from refprune.spec.network import GateGroup

UNBIASED = ("exact", "paired", "reinforce", "arm", "disarm")


@dataclasses.dataclass(frozen=True)
class Table:
    """A BatchLoss whose c(Ξ) is looked up: gate g is bit g of the index; every pass costs 1."""

    c: tuple[int, ...]

    @property
    def size(self):
        return len(self.c).bit_length() - 1

    @property
    def network(self):
        return SimpleNamespace(gate_groups=tuple(GateGroup(f"g{g}", "layer", g, g + 1, g) for g in range(self.size)))

    def evaluate(self, gates, *, after=None, position=0, run_closed=False):
        value = self.c[int(gates @ 2 ** np.arange(self.size))]
        return Evaluation(np.asarray(float(value)), SimpleNamespace(gates=gates, macs=1), None)


def tables(least=1, most=4):
    values = st.integers(-1000, 1000)
    return st.integers(least, most).flatmap(lambda g: st.tuples(*[values] * 2**g)).map(Table)


def thetas(size, low=0, high=8):
    return st.tuples(*[st.integers(low, high)] * size).map(lambda e: np.array(e) / 8.0)


@st.composite
def tables_and_thetas(draw, low=0, high=8, **sizes):
    table = draw(tables(**sizes))
    return table, draw(thetas(table.size, low, high))


def expectation(table, theta):
    """C(θ) from its definition, in fractions."""
    total = Fraction(0)
    for bits in itertools.product((0, 1), repeat=table.size):
        p = math.prod((Fraction(t) if b else 1 - Fraction(t)) for b, t in zip(bits, theta.tolist(), strict=True))
        total += p * table.c[sum(b << g for g, b in enumerate(bits))]
    return total


def slope(table, theta, g):
    """E[c | ξ_g = 1] − E[c | ξ_g = 0]."""
    return expectation(table, moved(theta, g, 1.0)) - expectation(table, moved(theta, g, 0.0))


# Enumeration ------------------------------------------------------------------------------------------------------------


@given(tables_and_thetas())
def test_expectation_and_gradient_are_their_definitions(drawn):
    """O1, O2, exactly, at θ ∈ {0, 1} too: catches a lost branch, a wrong probability, a conditional on the wrong gate."""
    table, theta = drawn
    assert exact_expectation(table, theta) == float(expectation(table, theta))
    assert exact_theta_gradient(table, theta).tolist() == [float(slope(table, theta, g)) for g in range(table.size)]
    assert sum(p for _, p in enumerate_gates(theta)) == 1.0


@given(tables_and_thetas(), st.sampled_from((-0.125, 0.0625, 0.5)))
def test_c_is_multi_affine(drawn, h):
    """O2: C = θ_g E[c|1] + (1−θ_g) E[c|0], and any finite difference of C is ∂C/∂θ_g exactly (even outside the cube)."""
    table, theta = drawn
    gradient = exact_theta_gradient(table, theta)
    for g in range(table.size):
        on, off = (exact_expectation(table, moved(theta, g, end)) for end in (1.0, 0.0))
        assert exact_expectation(table, theta) == theta[g] * on + (1.0 - theta[g]) * off
        difference = expectation(table, moved(theta, g, theta[g] + h)) - expectation(table, theta)
        assert gradient[g] == float(difference / Fraction(h))


@given(tables_and_thetas(low=1, high=7), st.integers(-8, 8))
def test_no_interior_point_beats_the_vertices(drawn, beta):
    """O4 for J = C + βΣθ: the best vertex is ≤ J everywhere, and J is the mean over the corners of any box around θ."""
    table, theta = drawn

    def j(point):
        return exact_expectation(table, point) + beta * point.sum()

    vertices = [np.array(v, dtype=float) for v in itertools.product((0, 1), repeat=table.size)]
    assert min(map(j, vertices)) <= j(theta)
    corners = [theta + 0.125 * (2.0 * v - 1.0) for v in vertices]
    assert sum(map(j, corners)) / len(corners) == j(theta)


def test_an_interior_minimum_is_constant_on_its_face():
    """O4's other half: c = ξ₁ alone is minimal on the whole face ξ₁ = 0."""
    table = Table((0, 1, 0, 1))
    assert exact_theta_gradient(table, np.array([0.0, 0.5])).tolist() == [1.0, 0.0]


def test_enumeration_is_bounded():
    with pytest.raises(InputError, match="theta: enumeration takes at most 20 gates, got 21"):
        next(enumerate_gates(np.full(21, 0.5)))


def test_samples_at_the_ends():
    """θ = 0 is never on, θ = 1 always, for v ∈ [0, 1): catches ≤ for <."""
    v = np.array([[0.0, 0.0, 0.5], [0.5, 1.0 - 2.0**-53, 0.25]])
    assert sample(np.array([0.0, 1.0, 0.5]), v).tolist() == [[0.0, 1.0, 0.0], [0.0, 1.0, 1.0]]


# Unbiasedness by exact integration --------------------------------------------------------------------------------------


def integral(function, table, theta, samples):
    """(E over v of the estimate, Σ of the absolute values): midpoint rule on the cells where 1[v<θ] and 1[v>1−θ] are fixed.

    Inside a cell every estimate is linear in v, so the midpoint is exact.
    """
    cells = []
    for t in theta.tolist() * samples:
        edges = sorted({0.0, t, 1.0 - t, 1.0})
        cells.append([((a + b) / 2.0, b - a) for a, b in itertools.pairwise(edges)])
    total, size, count = np.zeros(table.size), np.zeros(table.size), 0
    for cell in itertools.product(*cells):
        v = np.array([mid for mid, _ in cell]).reshape(samples, table.size)
        weight = math.prod(width for _, width in cell)
        base = table.evaluate(sample(theta, v[0]))
        estimate = function(Sampled(table, base, np.zeros(table.size), theta, v)).gradient
        total, size, count = total + weight * estimate, size + weight * np.abs(estimate), count + 1
    return total, size, count


def check_unbiased(function, table, theta, samples=1):
    """The integral is ∂C/∂θ up to the rounding of its sum (some 20 operations a term)."""
    got, size, count = integral(function, table, theta, samples)
    want = np.array([float(slope(table, theta, g)) for g in range(table.size)])
    assert_close("E[estimate]", got, want, gamma(count + 20, U) * (size + np.abs(want)), table=table, theta=theta)


@given(tables_and_thetas(most=3))
@pytest.mark.parametrize("name", ["exact", "paired"])
def test_estimators_for_all_theta_are_unbiased(name, drawn):
    """θ ∈ {0, 1} included (O5)."""
    check_unbiased(ESTIMATORS[name].function, *drawn)


@given(tables_and_thetas(low=1, high=7, most=3))
@pytest.mark.parametrize("name", ["reinforce", "arm", "disarm"])
def test_estimators_for_interior_theta_are_unbiased(name, drawn):
    check_unbiased(ESTIMATORS[name].function, *drawn)


@given(tables_and_thetas(low=1, high=7, most=2))
def test_reinforce_with_leave_one_out_is_unbiased(drawn):
    """K = 2; a baseline that saw its own sample would be biased (planted below)."""
    check_unbiased(ESTIMATORS["reinforce"].function, *drawn, samples=2)


def test_reinforce_with_three_samples_is_unbiased():
    check_unbiased(ESTIMATORS["reinforce"].function, Table((3, -5, 8, 1)), np.array([0.25, 0.625]), samples=3)


def _wrong_sign(name):
    def estimator(sampled):
        return Estimate(-ESTIMATORS[name].function(sampled).gradient, 0)

    return estimator


def _without_variance(name):
    def estimator(sampled):
        theta = sampled.theta
        return Estimate(ESTIMATORS[name].function(sampled).gradient * theta * (1.0 - theta), 0)

    return estimator


def _own_baseline(sampled):
    loss, _, _, theta, v = sampled
    samples = sample(theta, v)
    c = np.array([float(loss.evaluate(s).loss) for s in samples])
    score = (samples - theta) / (theta * (1.0 - theta))
    return Estimate(((c - c.mean())[:, None] * score).mean(axis=0), 0)


def _arm(sampled, *, anti):
    loss, base, _, theta, v = sampled
    c = float(loss.evaluate(anti(theta, v[0]).astype(float)).loss) - float(base.loss)
    return Estimate(c * (v[0] - 0.5) / (theta * (1.0 - theta)), 0)


def _disarm_by_the_larger_side(sampled):
    estimate, theta = ESTIMATORS["disarm"].function(sampled).gradient, sampled.theta
    return Estimate(estimate * np.minimum(theta, 1.0 - theta) / np.maximum(theta, 1.0 - theta), 0)


def _always_on_minus_sampled(sampled):
    loss, base, _, theta, _ = sampled
    differences = [float(loss.evaluate(moved(base.tape.gates, g, 1.0)).loss) - float(base.loss) for g in range(theta.size)]
    return Estimate(np.array(differences), 0)


ESTIMATOR_MISTAKES = {
    **{f"{name}: sign": (_wrong_sign(name), 1) for name in UNBIASED},
    **{f"{name}: no 1/(θ(1−θ))": (_without_variance(name), 1) for name in ("reinforce", "arm", "disarm")},
    "reinforce: baseline includes its own sample": (_own_baseline, 2),
    "arm: v instead of 1−v": (lambda s: _arm(s, anti=lambda t, v: v < t), 1),
    "arm: 1[v > θ]": (lambda s: _arm(s, anti=lambda t, v: v > t), 1),
    "arm: the sample against itself at 1−θ": (lambda s: _arm(s, anti=lambda t, v: v < 1.0 - t), 1),
    "disarm: max for min": (_disarm_by_the_larger_side, 1),
    "paired: on minus sampled": (_always_on_minus_sampled, 1),
}
EXAMPLE = Table((3, -5, 8, 1)), np.array([0.25, 0.625])


@pytest.mark.parametrize("mistake", ESTIMATOR_MISTAKES)
def test_planted_mistakes_are_caught(mistake):
    """Tests the test; the same integral with the right formula passes (above)."""
    function, samples = ESTIMATOR_MISTAKES[mistake]
    with pytest.raises(AssertionError):
        check_unbiased(function, *EXAMPLE, samples=samples)


def test_the_right_antithetic_passes():
    """The planted `_arm` is wrong only where it says so."""
    check_unbiased(lambda s: _arm(s, anti=lambda t, v: v > 1.0 - t), *EXAMPLE)
