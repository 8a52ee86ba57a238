"""The tests of a series of random estimates, one at a time: each sees its own fault and is quiet about the others."""

import numpy as np
import pytest

import refprune
from refprune.conformance.asking.calls import InProcess, describe
from refprune.conformance.judging import sequential
from refprune.conformance.judging.betting import log_odds
from refprune.conformance.judging.findings import Outcome
from refprune.conformance.judging.sampling import Facts
from refprune.conformance.judging.sequential import FALSE_ALARM, Series
from refprune.conformance.levels import SAMPLED
from refprune.conformance.levels.sampled import cases

DRAWS, CALLS = 512, 40


def series(x, *, variance=1.0, rounding=0.0, draws=DRAWS):
    """Of estimates whose declared mean is 0 and whose range is [−4, 4]."""
    one = np.ones(1)
    found = Series(Facts(0.0 * one, variance * one, -4.0 * one, 4.0 * one, rounding * one, one, {}), draws)
    for part in np.split(x[:, None], CALLS):
        found.add(part)
    return found


def signs(seed=0):
    return np.where(np.random.default_rng(seed).random(DRAWS * CALLS) < 0.5, -1.0, 1.0)


def enough(found):
    return log_odds(FALSE_ALARM, found.tests)


def test_fair_signs_raise_nothing():
    for seed in range(5):
        found = series(signs(seed))
        assert found.evidence < enough(found)


def test_a_variance_that_is_too_large_is_seen_and_a_smaller_one_is_not():
    found = series(signs(), variance=0.5)
    assert found.evidence >= enough(found)
    found = series(signs(), variance=2.0)
    assert found.evidence < enough(found)


@pytest.mark.parametrize("lag", [1, 2, DRAWS])
def test_a_draw_that_depends_on_an_earlier_one_is_seen_at_its_lag(lag):
    """x_i = −x_{i−lag}: the mean is 0, the variance 1, and no other lag but its multiples tells anything."""
    x = signs()
    for i in range(lag, len(x)):
        x[i] = -x[i - lag]
    found = series(x)
    assert found.evidence >= enough(found)
    correlation, at = found.correlation()
    assert correlation >= sequential.CLEAR
    assert at == lag


def test_rounding_moves_the_mean_by_so_much_and_no_more():
    """A constant estimate beside the mean: granted up to the rounding, seen beyond twice of it."""
    granted = series(np.full(DRAWS * CALLS, 0.1), variance=0.01, rounding=0.1)
    assert granted.evidence < enough(granted)
    assert granted.bias() == pytest.approx(0.0, abs=1e-9)
    beyond = series(np.full(DRAWS * CALLS, 0.3), variance=1.0, rounding=0.1)
    assert beyond.evidence >= enough(beyond)
    assert beyond.bias() == pytest.approx((0.3 - 0.1) / 0.1)


def test_estimates_outside_their_range_are_outside_but_for_rounding():
    found = series(signs(), rounding=0.5)
    assert found.outside(np.array([[4.4], [-4.4], [4.6], [-4.6], [np.nan]])).ravel().tolist() == [
        False,
        False,
        True,
        True,
        True,
    ]


class Declined(refprune.Implementation):
    """An estimator of its own, which declines every call."""

    estimator = "reinforce"

    def theta_sample(self, **arguments):
        raise NotImplementedError


def test_the_false_alarm_is_shared_by_all_tests_of_all_networks(monkeypatch):
    """Two directions, three lags in two directions and the variance for every gate of every network."""
    described, asked = describe(Declined()), []
    monkeypatch.setattr(sequential, "log_odds", lambda rate, tests: asked.append((rate, tests)) or log_odds(rate, tests))
    sequential.judge(InProcess(Declined()), SAMPLED["theta_sample"], Outcome("theta_sample", "theta", True), 1, 0)
    gates = sum(case["theta"].size for case in cases(described, 0))
    assert asked[0] == (FALSE_ALARM, gates * (2 + 2 * 3 + 1))
