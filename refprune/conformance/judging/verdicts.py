"""Is an answer right? Every tensor against its own tolerance, entry by entry (SPEC E1–E4); kinks are judged on both branches.

Where a tolerance is as large as what it belongs to, an answer of zeros would pass: such a tensor tells nothing, it is *blind*.
An example whose tensors are all blind is undecided, whatever the answer was: in a coarse precision there are many.

An `Expectation` holds the right values, in data-flow order, with their tolerances; `judge` compares an answer with it. The
first tensor in that order that differs is where the difference begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ...arrays import Array, Arrays
from ...rounding.tolerance import UNIT, smallest_normal

#: So many worst entries of a tensor are kept.
WORST = 5


@dataclass(frozen=True)
class Expectation:
    """The right answer to one question, and how far a right answer may be from it.

    values: a result's name → the right array. The names are in data-flow order: `judge` reports the first that differs.
    tolerance: the same names → the largest error of a correct implementation, entry by entry (E2).
    certain: for some of these names the bound beyond which an entry is certainly wrong (E1).
    branches: a branch's name → the branch that the oracle took: the sign of each input of a ReLU, the place of each maximum.
    kinks: a branch's name → value of a branch → the distance, in tolerances, from the inputs for which that value is right.
        `kinks["branches/relu1"][-1]` is the distance of every input of that ReLU from zero; where it is at most 1, an answer
        on either side of zero is accepted.
    ambiguous: the number of branch entries that may as well have another value than the oracle's.
    alternatives: makes the expectations on all other choices of these entries; none if there are too many of them.
    on_branches: makes the expectation on branches that an answer has shown. Branches behind them are the oracle's own.
    """

    values: Arrays
    tolerance: Arrays
    certain: Arrays = field(default_factory=dict)
    branches: Arrays = field(default_factory=dict)
    kinks: Mapping[str, Mapping[int, Array]] = field(default_factory=dict)
    ambiguous: int = 0
    alternatives: Callable[[], Iterator[Expectation]] = lambda: iter(())
    on_branches: Callable[[Mapping[str, Array]], Expectation] | None = None


#: From so many tolerances on the tolerance is no more than the smallest number, and exactly 0 is wanted.
EXACT = 1e30


class Entry(NamedTuple):
    """One entry of a tensor: both values, and their distance in four measures."""

    place: tuple[int, ...]
    got: float
    want: float
    absolute: float
    relative: float
    ulps: float
    ratio: float

    def text(self) -> str:
        where = f"[{', '.join(map(str, self.place))}]" if self.place else ""
        measures = f"abs {self.absolute:.3g}, rel {self.relative:.3g}, {self.ulps:.3g} ulp, {self.ratio:.3g} tolerances"
        measures = measures if self.ratio < EXACT else f"abs {self.absolute:.3g}"
        return f"{where or '()'}: got {self.got:.9g}, wanted {self.want:.9g} ({measures})"


class Comparison(NamedTuple):
    """One tensor: the largest error/tolerance, how many entries are off, the worst of them, and whether E1 rules one out.

    blind: zeros would pass where they are wrong.
    """

    name: str
    shape: tuple[int, ...]
    ratio: float
    off: int
    certain: bool
    worst: tuple[Entry, ...]
    blind: bool = False

    @property
    def holds(self) -> bool:
        return self.off == 0


class Verdict(NamedTuple):
    """kind: "conforms", "kink" (on another branch than the oracle's), "undecided" (too many kinks, or blind), or "deviates".

    comparisons: all tensors that both sides have, in data-flow order.
    """

    kind: str
    comparisons: tuple[Comparison, ...]

    @property
    def first(self) -> Comparison | None:
        """The first tensor along the data flow that differs."""
        return next((c for c in self.comparisons if not c.holds), None)

    @property
    def ratio(self) -> float:
        return max((c.ratio for c in self.comparisons), default=0.0)


def representable(want: Array, unit: float) -> Array:
    """`want` with an infinity for what exceeds the largest number of a precision of this roundoff."""
    largest = float(np.finfo(np.float64 if unit == UNIT["float64"] else np.float32).max)
    return np.where(np.abs(want) > largest, np.copysign(np.inf, want), want) if want.dtype.kind == "f" else want


def compare(name: str, got: Array, want: Array, tolerance: Array, *, unit: float, certain: Array | None = None) -> Comparison:
    """|got − want| ≤ tolerance everywhere? Equal infinities are equal; NaN where a number is wanted is off.

    What exceeds the largest number of the precision is wanted as an infinity.

    ulp: the spacing 2u·2^⌊log₂|want|⌋ of numbers of precision `unit` at the wanted value.
    """
    got, want = np.asarray(got, dtype=np.float64), np.asarray(want, dtype=np.float64)
    want = representable(want, unit)
    tolerance = np.broadcast_to(tolerance, want.shape)
    with np.errstate(all="ignore"):
        error = np.where(got == want, 0.0, np.abs(got - want))
        ratio = np.where(error == 0.0, 0.0, np.where(np.isnan(error), np.inf, error / tolerance))
    off = ~(ratio <= 1.0)
    entries = []
    for flat in np.argsort(-ratio, axis=None, kind="stable")[:WORST] if off.any() else ():
        index = np.unravel_index(flat, want.shape)
        if not off[index]:
            break
        w, e = float(want[index]), float(error[index])
        with np.errstate(all="ignore"):
            size = np.abs(np.float64(w))
            relative = float(np.float64(e) / size)
            ulps = float(np.float64(e) / (2.0 * unit * np.exp2(np.floor(np.log2(size)))))
        place = tuple(int(i) for i in index)
        entries.append(Entry(place, float(got[index]), w, e, relative, ulps, float(ratio[index])))
    beyond = certain is not None and bool((error > certain).any())
    blind = _blind(want, tolerance, unit)
    return Comparison(name, want.shape, float(ratio.max(initial=0.0)), int(off.sum()), beyond, tuple(entries), blind)


def _blind(want: Array, tolerance: Array, unit: float) -> bool:
    """Would zeros pass, where they are wrong? What is below the smallest normal number or the oracle's own rounding is 0."""
    size, zero = np.abs(want), np.maximum(smallest_normal(unit), tolerance * (UNIT["float64"] / unit))
    return bool((size > zero).any() and (size <= tolerance).all())


def _compared(expected: Expectation, answer: Mapping[str, Array], unit: float) -> tuple[Comparison, ...]:
    return tuple(
        compare(name, answer[name], want, expected.tolerance[name], unit=unit, certain=expected.certain.get(name))
        for name, want in expected.values.items()
        if name in answer
    )


def _first_difference(expected: Expectation, answer: Mapping[str, Array]) -> str | None:
    """The first branch array along the data flow that is not the oracle's."""
    return next((n for n, want in expected.branches.items() if n in answer and (answer[n] != want).any()), None)


def _near(kinks: Mapping[int, Array], got: Array) -> Array:
    """Where the branch values that came are as right as the oracle's: no further than 1 tolerance from being so."""
    near = np.zeros(got.shape, dtype=bool)
    for value, distance in kinks.items():
        near |= (got == value) & (distance <= 1.0)
    return near


def judge(expected: Expectation, answer: Mapping[str, Array], unit: float) -> Verdict:
    """The verdict on an answer that has the right names and shapes. unit: roundoff of its precision.

    Branches that the answer shows are taken, one array after the other along the data flow, if they differ from the oracle's at
    kinks only (E3): what lies behind a kink is judged on the branch taken there. Where the answer does not show its branches
    and something is off, all choices of the ambiguous ones are tried; too many make the case undecided.
    """
    name = _first_difference(expected, answer)
    wrong: tuple[Comparison, ...] = ()
    if name is not None:
        near, want = _near(expected.kinks[name], answer[name]), expected.branches[name]
        if near[answer[name] != want].all() and expected.on_branches is not None:
            verdict = judge(expected.on_branches({name: answer[name]}), answer, unit)
            return verdict._replace(kind="kink" if verdict.kind == "conforms" else verdict.kind)
        wrong = (compare(name, np.where(near, want, answer[name]), want, np.zeros(want.shape), unit=unit),)
    comparisons = (*wrong, *_compared(expected, answer, unit))
    if comparisons and all(c.blind for c in comparisons):
        return Verdict("undecided", comparisons)
    if all(c.holds for c in comparisons):
        return Verdict("conforms", comparisons)
    shown = bool(expected.branches) and answer.keys() >= expected.branches.keys()
    if wrong or shown or not expected.ambiguous:
        return Verdict("deviates", comparisons)
    tried = False
    for other in expected.alternatives():
        tried = True
        found = _compared(other, answer, unit)
        if all(c.holds for c in found):
            return Verdict("kink", found)
    return Verdict("deviates" if tried else "undecided", comparisons)


def form(answer: Arrays, expected: Expectation, dtype: str) -> tuple[str, str] | None:
    """(kind, message) for an answer that cannot be compared: unknown names, shape, dtype, NaN; branches are integers."""
    known = {**expected.values, **expected.branches}
    if not set(answer) & set(known):
        return "names", f"holds none of {', '.join(list(known)[:8])}"
    for name, got in answer.items():
        if name not in known:
            return "names", f"{name} is none of {', '.join(list(known)[:8])} …"
        want = known[name]
        if got.shape != want.shape:
            return "shape", f"{name} has shape {got.shape}, wanted {want.shape}"
        numeric = want.dtype.kind == "f"
        if numeric and want.ndim and got.dtype != dtype:
            return "dtype", f"{name} is {got.dtype}, wanted {dtype}"
        if numeric and not _finite_where(got, want):
            return (
                "not finite",
                f"{name} has {int((~np.isfinite(got)).sum())} entries that are not finite, where numbers are wanted",
            )
    return None


def _finite_where(got: Array, want: Array) -> bool:
    """Is `got` finite where `want` fits into its precision?"""
    largest = np.finfo(got.dtype).max / 2.0 if got.dtype.kind == "f" else np.inf
    return bool(np.isfinite(got[np.abs(want) < largest]).all())
