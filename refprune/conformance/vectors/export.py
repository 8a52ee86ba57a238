"""Test vectors: examples with their right answers as files, for implementations in languages that cannot be called.

Three kinds: "valid" holds right values; "acceptable" too, under another convention than PyTorch's; "invalid" holds what a
known mistake gives, with which an implementation must not agree.

`check` derives every vector again by two witnesses. The oracle's values must be the stored ones to float64's rounding (of an
invalid one: with the mistake planted). PyTorch must lie within the stored tolerance, or the compiled backend for
conventions that PyTorch lacks. Both must disagree with the invalid ones.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...adapters.implementation import PYTORCH, Implementation
from ...arrays import Arrays
from ...backend import Backend, load_backend
from ...gates.estimators import ESTIMATORS
from ...mistakes.catalogue import KNOWN
from ...mistakes.planting import planted
from ...rounding.noise import widened
from ...rounding.tolerance import UNIT
from ..asking.calls import Caller, InProcess
from ..asking.methods import Arguments, Description, Method, in_precision
from ..judging.diagnosis import Evidence, explains
from ..judging.verdicts import Expectation, compare, judge, representable
from ..levels import METHODS
from . import files
from .backend import BackendImplementation
from .extremes import Extreme, extremes
from .files import Flags, Vector, conventions_of, right

#: Of every method so many drawn examples are tried with every mistake, beside the extremes.
TRIED = 6

#: Drawn examples have at most so many numbers in their results: the files are to be small.
LARGEST = 220

#: A stored tolerance may differ from the one derived again by this factor: it is measured with random noise.
SPREAD = 2.0


# --------------------------------------------------------------------------------------------------------------- exporting


def draw(method: Method, count: int, seed: int) -> list[Arguments]:
    """Examples of one method, PyTorch's conventions, the same for the same seed and version of Hypothesis."""
    import hypothesis

    found: list[Arguments] = []
    described = Description("vectors", "float64", PYTORCH, Implementation.estimator, True, ())
    settings = hypothesis.settings(
        max_examples=4 * count + 4,
        database=None,
        deadline=None,
        phases=(hypothesis.Phase.generate,),
        suppress_health_check=list(hypothesis.HealthCheck),
        verbosity=hypothesis.Verbosity.quiet,
    )

    def keep(arguments: Arguments) -> None:
        found.append(arguments)

    hypothesis.seed(seed)(settings(hypothesis.given(method.draw(described))(keep)))()
    return found[::-1]  # the first are the simplest


class _Question(NamedTuple):
    """Arguments in the vectors' precision with what is right; no entry of it lies at a kink."""

    method: Method
    arguments: Arguments
    expected: Expectation
    aim: str
    bug_class: str


def _questions(method: Method, precision: str, seed: int, given: Sequence[Extreme], count: int) -> Iterator[_Question]:
    """`count` drawn ones, then the method's extremes."""
    drawn = (Extreme(method.name, f"an example of {method.name} like any other", "any", a) for a in draw(method, count, seed))
    kept = 0
    for _, aim, bug_class, arguments in (*drawn, *(e for e in given if e.method == method.name)):
        if bug_class == "any" and kept == count:
            continue
        asked = in_precision(arguments, precision)
        with np.errstate(all="ignore"):
            expected = method.expect(widened(asked), UNIT[precision])
        small = sum(value.size for value in expected.values.values()) <= LARGEST
        if expected.ambiguous == 0 and (small or bug_class != "any"):
            kept += bug_class == "any"
            yield _Question(method, asked, expected, aim, bug_class)


def export(
    directory: Path,
    *,
    methods: Sequence[Method] = tuple(METHODS.values()),
    per_method: int = 1,
    precision: str = "float64",
    seed: int = 0,
    container: str = "npz",
) -> dict[str, int]:
    """Write vectors of the methods: so many drawn ones of each, its extremes, and one for every known mistake that shows.

    They stand in `directory` in a folder a level. The directory must be new or hold vectors only; those that it holds are
    replaced. Returns how many there are of each kind.
    """
    directory.mkdir(parents=True, exist_ok=True)
    old = files.files_of(directory)
    given = list(extremes())
    asked = {m.name: list(_questions(m, precision, seed, given, max(per_method, TRIED))) for m in methods}
    counts: dict[str, int] = dict.fromkeys(files.RESULTS, 0)
    numbers: dict[tuple[str, str], int] = {}
    found = [*_right(asked, precision, per_method), *_wrong(asked, precision)]
    for path in old:
        path.unlink()
    for folder in {path.parent for path in old} - {directory}:
        folder.rmdir()
    for vector in found:
        key = (vector.method.name, vector.result)
        numbers[key] = numbers.get(key, -1) + 1
        folder = directory / vector.method.level
        folder.mkdir(exist_ok=True)
        files.write(folder, vector._replace(name=f"{key[0]}-{key[1]}-{numbers[key]}"), container)
        counts[vector.result] += 1
    files.write_beside(directory)
    return counts


def _right(asked: Mapping[str, Sequence[_Question]], precision: str, per_method: int) -> Iterator[Vector]:
    for questions in asked.values():
        drawn = [q for q in questions if q.bug_class == "any"][:per_method]
        for q in (*drawn, *(q for q in questions if q.bug_class != "any")):
            yield right("", q.method, q.arguments, precision, q.aim, q.bug_class, q.expected)


def _wrong(asked: Mapping[str, Sequence[_Question]], precision: str) -> Iterator[Vector]:
    """For every known mistake the smallest question of the first method in which it shows, whatever the rounding."""
    unit = UNIT[precision]
    by_size = [q for questions in asked.values() for q in sorted(questions, key=_size)]
    for mistake in KNOWN:
        with planted(mistake) as backend:
            answers = ((q, _shown(q, _attempt(q, backend), unit)) for q in by_size)
            found = next(((q, shown) for q, shown in answers if shown), None)
        if found is not None:
            q, shown = found
            convention = conventions_of(q.method, q.arguments)
            aim = f"an implementation must not have this mistake: {mistake.name}"
            flags = Flags(aim, _bug_class(q.method, shown), mistake.name, convention, 0)
            tolerance = {name: q.expected.tolerance[name] for name in shown}
            yield Vector("", q.method, precision, "invalid", q.arguments, shown, tolerance, flags)


def _size(question: _Question) -> int:
    """Roughly the bytes in which it is stored: of numbers, and of arrays."""
    return sum(8 * a.size + 200 for a in question.expected.values.values())


def _attempt(question: _Question, mutant: Backend) -> Arrays:
    """What a mutant answers; nothing if it cannot answer at all."""
    try:
        with np.errstate(all="ignore"):
            return question.method.values(widened(question.arguments), mutant)
    except Exception:
        return {}


def _shown(q: _Question, values: Arrays, unit: float) -> Arrays:
    """The results in which the mutant is wrong by more than two tolerances: no right answer is within one of it."""
    found: Arrays = {}
    for name, wanted in q.expected.values.items():
        got = values.get(name)
        if got is None or got.shape != wanted.shape or got.dtype.kind not in "fb" or np.isnan(got).any():
            continue
        if not compare(name, got, wanted, 2.0 * q.expected.tolerance[name], unit=unit).holds:
            found[name] = got
    return found


def _bug_class(method: Method, wrong: Sequence[str] | Arrays) -> str:
    """In what a mistake is wrong: a decision, the training step, gradients only, or values."""
    if method.level == "pruning":
        return "decision"
    if method.name in ("training_steps", "theta_step"):
        return "update"
    gradients = {
        "layers": all(name.startswith("d") for name in wrong),
        "network": all(name.partition("/")[0] in ("params", "gates", "input") for name in wrong),
        "theta": "value" not in wrong,
        "complexity": set(wrong) == {"beta"},
        "scalars": set(wrong) <= {"slope", "score", "penalty_slope"},
    }
    return "gradient" if gradients.get(method.level, False) else "value"


# ---------------------------------------------------------------------------------------------------------------- checking


class Checked(NamedTuple):
    """One vector and what two witnesses say: "holds", "declined", or what is wrong. witness: who the second was."""

    path: Path
    name: str
    result: str
    oracle: str
    second: str
    witness: str

    @property
    def holds(self) -> bool:
        return self.oracle == "holds" and self.second in ("holds", "declined")


#: A second witness: its name, and how it is made, on use.
Witness = tuple[str, Callable[[], Caller]]


@functools.cache
def _pytorch(estimator: str) -> Caller:
    from .torch_witness import Witness

    return InProcess(Witness(estimator))


@functools.cache
def _compiled() -> Caller:
    return InProcess(BackendImplementation(load_backend("numba", threads=1), "float64"))


#: PyTorch for every estimator of O5 (that of `theta_estimate` first), and the compiled backend for conventions that it lacks.
WITNESSES: tuple[Witness, ...] = (
    *(
        ("PyTorch", functools.partial(_pytorch, estimator))
        for estimator in sorted(ESTIMATORS, key=Implementation.estimator.__ne__)
    ),
    ("the compiled backend", _compiled),
)


def check(directory: Path, witnesses: Sequence[Witness] = WITNESSES) -> Iterator[Checked]:
    """Each vector, derived again by the oracle and by the first other witness that does not decline it, in float64."""
    for path in files.vector_paths(directory):
        vector = files.read_vector(path)
        oracle = _by_oracle(vector)
        second, witness = "declined", ""
        for name, make in witnesses:
            second, witness = _by_other(vector, make()), name
            if second != "declined":
                break
        yield Checked(path, vector.name, vector.result, oracle, second, witness)


def _by_oracle(vector: Vector) -> str:
    method, unit = vector.method, UNIT[vector.precision]
    wide = widened(vector.arguments)
    with np.errstate(all="ignore"):
        here, there = method.expect(wide, UNIT["float64"]), method.expect(wide, unit)
    unlike = [n for n, a in vector.values.items() if n not in here.values or here.values[n].shape != a.shape]
    if unlike:
        return f"has no {unlike[0]} of shape {vector.values[unlike[0]].shape}"
    loose = [n for n, a in vector.tolerance.items() if not _about(a, np.broadcast_to(there.tolerance[n], a.shape))]
    if loose:
        return f"another tolerance of {loose[0]}"
    if vector.result == "invalid":
        return _mistaken(vector, here, wide)
    values = {name: representable(value, unit) for name, value in here.values.items()}
    comparisons = [compare(n, a, values[n], here.tolerance[n], unit=UNIT["float64"]) for n, a in vector.values.items()]
    wrong = [c.name for c in comparisons if not c.holds]
    if not wrong and conventions_of(method, vector.arguments) != vector.flags.convention:
        return "another convention"
    return f"deviates in {wrong[0]}" if wrong else "holds"


def _about(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(((a <= SPREAD * b) & (b <= SPREAD * a)).all())


def _mistaken(vector: Vector, expected: Expectation, wide: Arguments) -> str:
    """Are these the mistake's numbers, and none of them right?"""
    right_ones = _agreeing(vector, expected.values)
    if right_ones:
        return f"agrees in {right_ones[0]}"
    mistake = next((m for m in KNOWN if m.name == vector.flags.mistake), None)
    if mistake is None:
        return "no known mistake has this name"
    evidence = Evidence(wide, vector.values, expected)
    return "holds" if explains(mistake, vector.method, [evidence], UNIT["float64"]) else "the mistake has other numbers"


def _agreeing(vector: Vector, answer: Arrays) -> list[str]:
    """The results in which an answer agrees with the stored values."""
    return [
        name
        for name, want in vector.values.items()
        if name in answer
        and answer[name].shape == want.shape
        and compare(name, answer[name], want, vector.tolerance[name], unit=UNIT[vector.precision]).holds
    ]


def _by_other(vector: Vector, caller: Caller) -> str:
    if vector.method.name not in caller.description.provided:
        return "declined"
    hidden = vector.arguments.get("_estimator", caller.description.estimator)
    if hidden != caller.description.estimator:
        return "declined"
    reply = caller.call(vector.method, in_precision(vector.arguments, "float64"), twice=False)
    shared = [name for name in vector.values if name in reply.answer]
    if reply.kind == "declined" or (reply.kind == "answer" and not shared):
        return "declined"
    if reply.kind != "answer":
        return f"{reply.kind}: {reply.message}"
    if vector.result == "invalid":
        agreeing = _agreeing(vector, reply.answer)
        return f"agrees in {agreeing[0]}" if agreeing else "holds"
    unlike = [name for name in shared if reply.answer[name].shape != vector.values[name].shape]
    if unlike:
        return f"another shape of {unlike[0]}"
    found = judge(vector.expectation(vector.arguments, vector.precision), reply.answer, UNIT[vector.precision])
    return "holds" if found.kind in ("conforms", "kink") else f"{found.kind} in {found.first.name if found.first else ''}"
