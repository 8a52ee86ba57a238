"""Timing by turns: every side runs once a round, so that a busy or throttled machine slows all of them alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from ..arrays import Array

Side = Callable[[], object]
Clock = Callable[[], float]

FEWEST_ROUNDS, MOST_ROUNDS = 5, 51
SHORT = 0.01  # seconds: a side that is faster runs several times in a round, and once untimed before
LONG = 1.0  # seconds: of sides that are slower FEWEST_LONG rounds suffice
FEWEST_LONG = 3
REST = 0.005  # seconds between sides, until the threads of the one before, which look out for more work, have gone to sleep


class Quartiles(NamedTuple):
    """25 %, 50 % and 75 % of a sample."""

    low: float
    median: float
    high: float


def quartiles(values: Array) -> Quartiles:
    return Quartiles(*(float(q) for q in np.quantile(values, (0.25, 0.5, 0.75))))


def interleave(
    sides: Mapping[str, Side], *, seconds: float, repeats: int | None = None, clock: Clock = time.perf_counter
) -> dict[str, Array]:
    """Seconds that one call of each side takes, (rounds,) each; entry i of all sides is from the same round.

    Warm-up: two or three calls of each side; the first may compile, the last tells how long a call takes. repeats: number of
    rounds; without it as many as fit into `seconds`, within FEWEST_ROUNDS (FEWEST_LONG with a side slower than LONG) …
    MOST_ROUNDS. In a round, a side that takes less than SHORT runs once untimed, to wake its threads, and then as often as fits
    into SHORT.
    """
    calls, fewest = {}, FEWEST_ROUNDS
    for name, side in sides.items():
        call = _timed(side, 1, clock)
        if call < LONG or _timed(side, 1, clock) < LONG:
            call = _timed(side, 1, clock)
        else:
            fewest = FEWEST_LONG
        calls[name] = max(1, math.ceil(SHORT / max(call, 1e-7)))
    begin = clock()
    taken: dict[str, list[float]] = {name: [] for name in sides}
    rounds = 0
    while rounds < (repeats or fewest) or (not repeats and rounds < MOST_ROUNDS and clock() - begin < seconds):
        rounds += 1
        for name, side in sides.items():
            time.sleep(REST)
            if calls[name] > 1:
                side()
            taken[name].append(_timed(side, calls[name], clock))
    return {name: np.array(values) for name, values in taken.items()}


def _timed(side: Side, calls: int, clock: Clock) -> float:
    start = clock()
    for _ in range(calls):
        side()
    return (clock() - start) / calls
