"""The domain of attraction and the bound on the time until pruning (SPEC D4, D5, D6)."""

import dataclasses
import math

import numpy as np
import pytest
from checkers import fails

from refprune.audit.witnesses.flows import outcome, random_comparison, random_point
from refprune.gates.dynamics import Comparison, in_domain, projected_flow

# The domain of attraction: D4, D5 -------------------------------------------------------------------------------------------


def check_domain(contains, count=120, seed=4):
    """contains(c, w, θ) ⇔ the trajectory ends at θ = 0 with w ≤ w*."""
    __tracebackhide__ = True
    rng = np.random.default_rng(seed)
    inside = 0
    for i in range(count):
        c = random_comparison(rng, decay=i % 6 > 0)
        w, theta = random_point(rng, c)
        pruned = outcome(c, w, theta)[1]
        assert pruned == bool(contains(c, w, theta)), (c, w, theta)
        inside += pruned
    assert count / 5 < inside < 4 * count / 5


def test_the_domain_of_attraction_is_the_half_plane():
    check_domain(Comparison.contains)


def as_if(**changes):
    """H of a system with other constants."""
    return lambda c, w, theta: dataclasses.replace(c, **{k: f(getattr(c, k)) for k, f in changes.items()}).contains(w, theta)


def _opposite_sign(c, w, theta):
    (w0, theta0), (plus, _) = c.saddle, c.eigenvalues
    return c.ratio * c.kappa * (w - w0) - (c.decay + plus) * (theta - theta0) < 0.0


def _without_decay(c, w, theta):
    """μ₊ in the place of λ + μ₊."""
    (w0, theta0), (plus, _) = c.saddle, c.eigenvalues
    return c.ratio * c.kappa * (w - w0) + plus * (theta - theta0) < 0.0


WRONG_DOMAINS = {
    "κ too small": as_if(kappa=lambda kappa: 0.7 * kappa),
    "κ too large": as_if(kappa=lambda kappa: 1.4 * kappa),
    "β too large": as_if(beta=lambda beta: 1.5 * beta),
    "r left out": as_if(ratio=lambda ratio: 1.0),
    "sign": _opposite_sign,
    "the other eigenvector": _without_decay,
    "the box alone": lambda c, w, theta: w < c.saddle[0] and theta < c.saddle[1],
    "w alone": lambda c, w, theta: w < c.saddle[0],
}


@pytest.mark.parametrize("name", WRONG_DOMAINS)
def test_planted_mistakes_in_the_domain_are_found(name):
    assert fails(check_domain, WRONG_DOMAINS[name]) is not None


def test_with_the_ratio_left_out_many_escape():
    """At r = 0.1, of random points in the half-plane of r = 1. How many depends on the systems: 56 % of these."""
    rng, escaped, count = np.random.default_rng(5), 0, 150
    for _ in range(count):
        c = dataclasses.replace(random_comparison(rng), ratio=0.1)
        wrong = dataclasses.replace(c, ratio=1.0)
        w, theta = random_point(rng, wrong, inside=True)
        escaped += not outcome(c, w, theta)[1]
    assert escaped / count > 0.25


def test_the_box_lies_in_the_domain_and_its_corner_on_the_edge():
    """D5; the corner is the saddle."""
    rng = np.random.default_rng(6)
    for _ in range(200):
        c = random_comparison(rng)
        w, theta = c.saddle
        assert c.contains(rng.uniform(size=50) * w * (1 - 1e-9), rng.uniform(size=50) * theta * (1 - 1e-9)).all()
        assert not c.contains(w * (1 + 1e-9), theta)
        assert not c.contains(w, theta * (1 + 1e-9))


def test_trajectories_in_the_domain_stay_in_the_ball():
    """w < w_c, which the edge of H attains at θ = 0; after t₁, w(t) = w(t₁) e^{−λ(t−t₁)}."""
    rng = np.random.default_rng(7)
    for _ in range(40):
        c = random_comparison(rng)
        assert c.contains(c.radius * (1 - 1e-9), 0.0)
        assert not c.contains(c.radius * (1 + 1e-9), 0.0)
        w, theta = random_point(rng, c, inside=True)
        flow, _ = outcome(c, w, theta)
        assert flow.weights.max() < c.radius
        since = flow.zero_since(0)
        after = flow.time >= since
        start = flow.weights[after][0, 0]
        want = start * np.exp(-c.decay * (flow.time[after] - since))
        assert np.abs(flow.weights[after, 0] - want).max() <= 1e-8 * start + 1e-11  # ten times rtol and atol


def check_time_bound(bound):
    """θ is 0 for good at that time, and the bound is no larger than three times the truth where that is not short."""
    __tracebackhide__ = True
    rng, tight = np.random.default_rng(8), []
    for i in range(120):
        c = random_comparison(rng, decay=i % 6 > 0)
        w, theta = random_point(rng, c)
        if not c.contains(w, theta):
            assert bound(c, w, theta) == math.inf
            continue
        since = outcome(c, w, theta)[0].zero_since(0)
        limit = float(bound(c, w, theta))
        assert since is not None
        assert since <= limit * (1 + 1e-6), (c, w, theta)
        if since > 0.0:
            tight.append(since / limit)
    assert len(tight) > 30
    assert min(tight) > 1.0 / 3.0


def test_the_time_until_pruning_is_bounded():
    check_time_bound(Comparison.time_bound)


def test_planted_mistakes_in_the_time_bound_are_found():
    def without_the_stable_part(c, w, theta):
        (w0, theta0), (plus, minus) = c.saddle, c.eigenvalues
        distance = -(c.ratio * c.kappa * (w - w0) - minus * (theta - theta0))
        return math.log(max((plus - minus) * theta0 / distance, 1.0)) / plus if distance > 0 else math.inf

    def in_steps_of_theta(c, w, theta):
        return c.time_bound(w, theta) * c.ratio

    for wrong in (without_the_stable_part, in_steps_of_theta):
        assert fails(check_time_bound, wrong) is not None


def check_floor(domain):
    """With θ in [δ, 1−δ], as s ∈ [0, 1] with θ = δ + (1−2δ)s: from H s ends at 0 for good, or H counts as empty."""
    __tracebackhide__ = True
    rng, judged = np.random.default_rng(9), [0, 0]
    for _ in range(60):
        c = random_comparison(rng)
        floor = float(rng.uniform(0.2, 2.0) * min(c.saddle[1], 0.2))
        w, theta = random_point(rng, c, inside=True)
        theta = min(max(theta, floor), 1.0 - floor)
        if not c.contains(w, theta):
            continue
        safe = bool(domain(c, w, theta, floor))

        def shrunk(w, s, c=c, floor=floor):
            dw, dtheta = c.velocity(w, floor + (1.0 - 2.0 * floor) * s)
            return dw, dtheta / (1.0 - 2.0 * floor)

        start = np.clip(np.array([(theta - floor) / (1.0 - 2.0 * floor)]), 0.0, 1.0)
        flow = projected_flow(shrunk, np.array([w]), start, 40.0 / c.eigenvalues[0] + 40.0 / c.decay)
        assert safe == (flow.zero_since(0) is not None), (c, w, theta, floor)
        judged[safe] += 1
    assert min(judged) > 5


def _floored(c, w, theta, floor):
    kappa, decay = np.asarray(c.kappa), np.asarray(c.decay)
    return in_domain(np.asarray(w), np.asarray(theta), kappa=kappa, beta=c.beta, decay=decay, ratio=c.ratio, floor=floor)


def test_a_floor_under_theta():
    check_floor(_floored)
    assert fails(check_floor, lambda c, w, theta, floor: c.contains(w, theta)) is not None


def test_without_a_pull_nothing_is_safe():
    assert not in_domain(np.zeros(2), np.zeros(2), kappa=np.ones(2), beta=0.0, decay=np.ones(2), ratio=1.0).any()
