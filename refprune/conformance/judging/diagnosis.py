"""Which known mistake does a wrong answer look like? The one whose numbers the candidate gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ...arrays import Array, Arrays
from ...mistakes.catalogue import KNOWN
from ...mistakes.planting import Mistake, planted
from ...rounding.noise import widened
from ..asking.methods import Arguments, Method
from .verdicts import Expectation, compare

#: A mutant's numbers may be off by so many roundings of an entry; of the largest entry where 0 is right, without a tolerance.
ROUNDINGS = 8.0


class Evidence(NamedTuple):
    """One wrong answer: what was asked (in the candidate's precision), what came, what is right."""

    arguments: Arguments
    answer: Arrays
    expected: Expectation


def named(method: Method, evidence: Sequence[Evidence], unit: float) -> list[Mistake]:
    """The known mistakes that explain every wrong answer, all tensors of it."""
    return [mistake for mistake in KNOWN if evidence and explains(mistake, method, evidence, unit)]


def explains(mistake: Mistake, method: Method, evidence: Sequence[Evidence], unit: float) -> bool:
    """Does a mistake have the numbers of every one of these answers?"""
    with planted(mistake) as backend:
        for arguments, answer, expected in evidence:
            try:
                with np.errstate(all="ignore"):
                    values = method.values(widened(arguments), backend)
            except Exception:
                return False  # a mutant that cannot answer at all explains nothing
            if not _matches(answer, values, expected, unit):
                return False
    return True


def _matches(answer: Mapping[str, Array], values: Mapping[str, Array], expected: Expectation, unit: float) -> bool:
    """Does every tensor have the mutant's numbers, and is the mutant wrong in one of them?"""
    wrong = False
    for name, right in expected.values.items():
        if name not in answer:
            continue
        if name not in values or values[name].shape != right.shape:
            return False
        allowed, mutant = expected.tolerance[name], values[name]
        both_nan = np.isnan(mutant) & np.isnan(answer[name])
        got, theirs = (np.where(both_nan, 0.0, a) for a in (answer[name], mutant))
        size = np.abs(theirs) if right.any() else np.full(theirs.shape, np.max(np.abs(theirs), initial=0.0))
        room = np.max(allowed, initial=0.0) * _growth(mutant, right) + ROUNDINGS * unit * size  # entries may have moved
        if not compare(name, got, theirs, room, unit=unit).holds:
            return False
        wrong = wrong or not compare(name, mutant, right, allowed, unit=unit).holds
    return wrong


def _growth(mutant: Array, right: Array) -> float:
    """A mutant whose numbers are larger rounds more: by the ratio of the largest, at least 1."""
    sizes = [float(np.max(np.abs(a[np.isfinite(a)]), initial=0.0)) for a in (mutant, right)]
    return max(1.0, sizes[0] / sizes[1]) if sizes[1] > 0.0 else 1.0
