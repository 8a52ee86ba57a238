"""What is right for a computation with kinks: values, tolerances by noise with frozen branches, the other branches (E2, E3)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from ...arrays import Array, Arrays
from ...backend import ORACLE, Backend
from ...rounding.tolerance import LAYER_FACTOR, noise_tolerance, smallest_normal
from ...rounding.watching import KinkInput
from .verdicts import Expectation

#: All choices of so many ambiguous branches are tried; more make a case undecided.
MOST_AMBIGUOUS = 6


class Traced(NamedTuple):
    """One run of a computation.

    tensors: its results by name, in data-flow order; `judge` compares them in this order.
    branches: a branch's name → the branch that was taken: the sign of each input of a ReLU, the place of each maximum.
    inputs: the same names → what the function with that branch was called with.
    roundings: a result's name → the size of what is rounded outside of the functions of a Backend, as in a running average.
    """

    tensors: Arrays
    branches: Arrays
    inputs: dict[str, KinkInput]
    roundings: Mapping[str, Array]


Run = Callable[[Backend, Mapping[str, Array]], Traced]


class Choice(NamedTuple):
    """Another branch that is as right as the one taken: entry `place` of the array `name` may be `value`."""

    name: str
    place: tuple[int, ...]
    value: int


Entries = frozenset[tuple[str, tuple[int, ...]]]


def expectation(
    run: Run, unit: float, branches: Mapping[str, Array] | None = None, chosen_before: Entries = frozenset()
) -> Expectation:
    """What a computation must give (E2, E3).

    run: the computation with a backend, on given branches.
    unit: unit roundoff of the implementation that is judged.
    branches: a branch's name → the branch to take. All others are the oracle's own.
    chosen_before: branch entries of which no other value is tried. They are needed because taking another branch may bring
        the input of a later ReLU from exactly 0 to within its tolerance of 0, so that more entries become ambiguous.
    """
    given = branches or {}
    base = run(ORACLE, given)
    inputs = {f"into {name}": x for name, (x, _) in base.inputs.items()}

    def perturbed(backend: Backend) -> Arrays:
        traced = run(backend, base.branches)
        return traced.tensors | {f"into {name}": x for name, (x, _) in traced.inputs.items()}

    tolerance = noise_tolerance(perturbed, base.tensors | inputs, unit=unit)
    tolerance |= {name: tolerance[name] + LAYER_FACTOR * unit * size for name, size in base.roundings.items()}
    kinks, found = _kinks(base, tolerance, smallest_normal(unit))
    choices = [choice for choice in found if choice[:2] not in chosen_before]
    tried = chosen_before | {choice[:2] for choice in choices}

    def alternatives() -> Iterator[Expectation]:
        if len(choices) > MOST_AMBIGUOUS:
            return
        for count in range(1, len(choices) + 1):
            for chosen in itertools.combinations(choices, count):
                taken = {name: base.branches[name].copy() for name, _, _ in chosen}
                for name, place, value in chosen:
                    taken[name][place] = value
                other = expectation(run, unit, {**given, **taken}, tried)
                yield other
                yield from other.alternatives()

    def on_branches(shown: Mapping[str, Array]) -> Expectation:
        return expectation(run, unit, {**given, **shown})

    return Expectation(base.tensors, tolerance, {}, base.branches, kinks, len(choices), alternatives, on_branches)


Kinks = dict[str, Mapping[int, Array]]


def _kinks(base: Traced, tolerance: Mapping[str, Array], tiny: float) -> tuple[Kinks, list[Choice]]:
    """The distance of every value of every branch entry from being right, in tolerances, and all other choices within one.

    What no noise reaches (behind a closed gate, a dead unit) is exact on both sides: its tie is judged by the convention.
    """
    kinks: Kinks = {}
    choices: list[Choice] = []
    for name, taken in base.branches.items():
        (x, options), allowed = base.inputs[name], tolerance[f"into {name}"]
        allowed = np.where(allowed > 2.0 * tiny, allowed, 0.0)
        if "slope" in options:
            distance = _in_tolerances(np.abs(x), allowed)
            kinks[name] = dict.fromkeys((-1, 0, 1), distance)
            near = np.argwhere((distance <= 1.0) & (allowed > 0.0))
            choices += [Choice(name, tuple(map(int, i)), -1 if x[tuple(i)] > 0.0 else 1) for i in near]
            continue
        kernel = options["kernel"]
        taps = range(kernel[0] * kernel[1])
        values = [_tap(x, tap, taken, options) for tap in taps]
        noises = [_tap(allowed, tap, taken, options) for tap in taps]
        largest, noise = (ORACLE.max_pool(a, branch=taken, **options)[0] for a in (x, allowed))
        gaps: dict[int, Array] = {}
        for tap in taps:
            with np.errstate(invalid="ignore"):
                gap = _in_tolerances(largest - values[tap], noise + np.maximum(noises[tap], 0.0))
            gap = np.where((taken == tap) | ~np.isfinite(values[tap]) | (noise + noises[tap] <= 0.0), np.inf, gap)
            gaps[tap] = gap
            choices += [Choice(name, tuple(map(int, i)), tap) for i in np.argwhere(gap <= 1.0)]
        kinks[name] = gaps
    return kinks, choices


def _in_tolerances(distance: Array, allowed: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(distance == 0.0, np.where(allowed > 0.0, 0.0, np.inf), distance / allowed))


def _tap(x: Array, tap: int, taken: Array, options: Mapping[str, Any]) -> Array:
    """Entry `tap` of every window of a pool."""
    values: Array = ORACLE.max_pool(x, branch=np.full(taken.shape, tap), **options)[0]
    return values
