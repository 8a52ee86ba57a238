"""How rarely the sequential test of random estimates raises a false alarm, how soon it sees a bias.

`python -m validation.checks.false_alarms`

Estimates are simulated from a table of the losses of one of the networks on which `theta_sample` is judged. False alarms: whole
judgements of a right estimator, all tests of one network together, at rates large enough to be counted. Power: draws until a
bias of so many standard deviations in one gate is found at the rate that `refprune verify` uses, looked at every 64 draws, and
2·log(T·J/α)/δ² with T tests and J shares: what the best share would need if it were allowed. Shares end at ½, which costs
most where the range is many standard deviations wide and the bias is large.
"""

from __future__ import annotations

import sys

import numpy as np

from refprune.adapters.implementation import PYTORCH
from refprune.backend import ORACLE
from refprune.conformance.asking.methods import Description
from refprune.conformance.judging import sampling
from refprune.conformance.judging.betting import SHARES, log_odds
from refprune.conformance.judging.sequential import DRAWS, FALSE_ALARM, Series
from refprune.conformance.levels.networks import loss_of
from refprune.conformance.levels.sampled import cases
from refprune.rounding.tolerance import UNIT

RUNS, CALLS = 400, 8


def estimates(table: sampling.Table, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Reinforce from two samples each, its leave-one-out baseline being the other's loss."""
    on = rng.random((draws, 2, table.theta.size)) < table.theta
    rows = on @ (1 << np.arange(table.theta.size))
    c, score = table.losses[rows], table.scores()[rows]
    return np.asarray(0.5 * (c[:, :1] - c[:, 1:]) * (score[:, 0] - score[:, 1]))


def main() -> int:
    described = Description("simulated", "float64", PYTORCH, "reinforce", True, (), 2)
    arguments = cases(described, 0)[1]
    loss, theta = loss_of(arguments, ORACLE), arguments["theta"]
    table, known = sampling.table(loss, theta), sampling.facts(loss, theta, "reinforce", 2, UNIT["float64"])
    strongest = []
    for run in range(RUNS):
        series, rng = Series(known, DRAWS), np.random.default_rng([1, run])
        for _ in range(CALLS):
            series.add(estimates(table, DRAWS, rng))
        strongest.append(series.evidence)
    print(f"{RUNS} judgements of {CALLS * DRAWS} draws, {series.tests} tests each; false alarms")
    for alpha in (0.5, 0.2, 0.05):
        alarms = sum(evidence >= log_odds(alpha, series.tests) for evidence in strongest)
        print(f"  promised at most {100.0 * alpha:4.1f} %: {100.0 * alarms / RUNS:4.1f} %")
    odds = log_odds(FALSE_ALARM, 3 * series.tests)
    print("draws until a bias is found, median of 20, and 2 (log odds + log shares)/δ²")
    for bias in (1.0, 0.5, 0.2, 0.1):
        needed = []
        for run in range(20):
            series, rng = Series(known, 64), np.random.default_rng([2, run])
            while series.evidence < odds:
                moved = estimates(table, 64, rng)
                moved[:, 0] += bias * np.sqrt(known.variance[0])
                series.add(np.clip(moved, known.low, known.high))
            needed.append(len(series.x))
        predicted = 2.0 * (odds + np.log(SHARES.size)) / bias**2
        print(f"  {bias:4.1f} standard deviations: {np.median(needed):7.0f}, {predicted:7.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
