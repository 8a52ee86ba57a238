"""Is the mean of random numbers what it should be? A test by betting, which may be looked at after every number.

Let x₁, x₂, … be numbers ≥ a, and H: E[x_i | x₁ … x_{i−1}] ≤ m for every i, with m > a. A gambler begins with capital 1 and
stakes a share c of what he has on every x_i being large; the stake comes back multiplied by r_i = (x_i − a)/(m − a):

    K_n = Π_{i ≤ n} (1 − c + c r_i).

Under H every factor is ≥ 0 and has conditional mean ≤ 1: K is a nonnegative supermartingale that starts at 1, and so is the
mean of several of them with different shares. By Ville's inequality

    P( K_n ≥ 1/α for some n ) ≤ α,

for any distribution, however skewed or dependent, any number of looks, and any rule for when to stop: nothing is asymptotic.
That the mean is ≥ m is tested by the mirror image; that it is m whatever came before, by a gambler who looks at what came
before and then bets on one of the two. What is needed is a bound a, for without one a mean cannot be tested at all (Bahadur &
Savage 1956). A share c gains most where the mean is m + c·Var/(m − a) or so, at a rate of half the squared bias over the
variance, as in Wald's test; eight shares, each half of the one before, lie near the best for biases over two decades and cost
log 8 of evidence.

K_n falls as m grows (each factor is 1 − c + c (x_i − a)/(m − a)), so that the m which are not rejected at level α make an
interval, found by bisection: a confidence interval for the mean that holds for all n at once.

Sources: Ville 1939; Shafer, "Testing by betting", 2021; Waudby-Smith & Ramdas, "Estimating means of bounded random variables by
betting", 2024. The mixture of constant shares and the bets on what came before are *derived here*.
"""

from __future__ import annotations

import math

import numpy as np

from ...arrays import Array

#: Shares of the capital that gamblers stake.
SHARES = 2.0 ** -np.arange(1.0, 9.0)

#: Halvings of an interval until its end is known: to a part in 10⁹ of the range.
BISECTIONS = 30


class Gamblers:
    """T gamblers, each with his capital divided equally among the SHARES.

    evidence: (T,) the largest log K_n so far; log(1/α) of it rejects at level α.
    """

    def __init__(self, tests: int) -> None:
        self._log_capital = np.zeros((tests, SHARES.size))
        self.evidence = np.zeros(tests)

    def play(self, returns: Array) -> None:
        """returns: (n, T) what a stake of 1 comes back as, r_i ≥ 0, in the order of the numbers."""
        growth = np.log1p(SHARES * (returns[:, :, None] - 1.0))
        history = self._log_capital + np.cumsum(growth, axis=0)
        if len(history):
            self._log_capital = history[-1]
            self.evidence = np.maximum(self.evidence, _log_mean(history).max(axis=0))


def _log_mean(logs: Array) -> Array:
    """log of the mean of exp over the last axis."""
    top = logs.max(axis=-1, keepdims=True)
    mean: Array = top[..., 0] + np.log(np.exp(logs - top).mean(axis=-1))
    return mean


def lower_bound(x: Array, least: float, log_odds: float) -> float:
    """The smallest m that numbers x (n,) ≥ least do not reject as too small at level exp(−log_odds): E[x] is above it.

    `least` itself where nothing is rejected.
    """
    values, counts = np.unique(x, return_counts=True)
    below, above = least, float(x.mean())
    for _ in range(BISECTIONS):
        m = 0.5 * (below + above)
        if not m > least:
            break
        capital = counts @ np.log1p(SHARES * ((values[:, None] - least) / (m - least) - 1.0))
        below, above = (m, above) if _log_mean(capital) >= log_odds else (below, m)
    return below


def interval(x: Array, least: float, most: float, log_odds: float) -> tuple[float, float]:
    """Confidence interval for the mean of numbers x (n,) in [least, most], wrong with probability ≤ 2·exp(−log_odds)."""
    return lower_bound(x, least, log_odds), -lower_bound(-x, -most, log_odds)


def log_odds(false_alarm: float, tests: int) -> float:
    """The evidence that each of so many tests must reach, so that all together they raise a false alarm that rarely."""
    return math.log(tests / false_alarm)
