"""Asking an implementation many questions, judging what it answers, and making the smallest example of what is wrong."""

from __future__ import annotations

import dataclasses
import pickle
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError
from ..network import Arrays
from ..rounding import UNIT
from .calls import Caller, Reply
from .diagnosis import Evidence, named
from .levels import LEVELS, METHODS
from .methods import Arguments, Method, dtype_of, in_precision, widened
from .planting import Mistake
from .verdicts import Comparison, Expectation, Verdict, judge

#: Of each method, so many first calls are made twice.
REPEATED = 5

#: So many wrong answers have to be explained by a mistake that is named.
EVIDENCE = 6

#: Seconds that may be spent on making an example smaller.
SHRINKING = 20.0

#: Share of a method's examples that may be left undecided.
MOST_UNDECIDED = 0.05

#: Findings that are mentioned, but make nothing wrong.
HARMLESS = ("prints",)


class Finding(NamedTuple):
    """Something that an implementation should not do.

    kind: "deviates", or "raises", "shape", "dtype", "not finite", "names", "changes its input", "not repeatable", "prints",
    "hangs", "dies", "undecided". arguments: the smallest example; comparisons: of all tensors, in data-flow order; answer: what
    it gave; mistakes: the known ones that it looks like.
    """

    method: str
    kind: str
    message: str
    arguments: Arguments
    answer: Arrays
    comparisons: tuple[Comparison, ...] = ()
    mistakes: tuple[Mistake, ...] = ()

    @property
    def first(self) -> Comparison | None:
        """The first tensor along the data flow that differs."""
        return next((c for c in self.comparisons if not c.holds), None)


@dataclasses.dataclass
class Outcome:
    """What is known of one method. ratio: the largest error/tolerance of answers that conform.

    tensors: what was compared → how often; blind: how often of these nothing could be told of it.
    """

    method: str
    level: str
    provided: bool
    examples: int = 0
    declined: int = 0
    kinks: int = 0
    undecided: int = 0
    ratio: float = 0.0
    tensors: Counter[str] = dataclasses.field(default_factory=Counter)
    blind: Counter[str] = dataclasses.field(default_factory=Counter)
    findings: list[Finding] = dataclasses.field(default_factory=list)
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        """ "not provided", "declined" (every call), "conforms", "undecided" (too many examples) or "DEVIATES"."""
        if not self.provided:
            return "not provided"
        kinds = {f.kind for f in self.findings}
        if kinds - {*HARMLESS, "undecided"}:
            return "DEVIATES"
        if "undecided" in kinds:
            return "undecided"
        return "conforms" if self.examples > self.declined else "declined"


class _Wrong(Exception):
    """An example that fails, for Hypothesis to shrink."""


def chosen(levels: Sequence[str]) -> list[Method]:
    """The methods of the levels, or with these names; all for none. InputError for an unknown one."""
    for name in levels:
        if name not in LEVELS and name not in METHODS:
            raise InputError(f"level: {name!r} is not known; allowed are {', '.join(LEVELS)}, or a method's name")
    return [m for m in METHODS.values() if not levels or m.level in levels or m.name in levels]


def run(
    caller: Caller,
    methods: Sequence[Method],
    examples: int,
    seed: int,
    say: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Judge every method; `say` hears of each as soon as it is done. examples: in all, shared out among what is provided."""
    shares = sum(m.share for m in methods if m.name in caller.description.provided)
    outcomes = []
    for method in methods:
        outcome = Outcome(method.name, method.level, method.name in caller.description.provided)
        if outcome.provided:
            started = time.monotonic()
            _Judge(caller, method, outcome).campaign(max(1, round(examples * method.share / shares)), seed)
            outcome.seconds = time.monotonic() - started
        outcomes.append(outcome)
        say(outcome)
    return outcomes


class _Failure(NamedTuple):
    kind: str
    message: str
    evidence: Evidence
    verdict: Verdict | None
    size: int


class _Judge:
    """One method of one implementation."""

    def __init__(self, caller: Caller, method: Method, outcome: Outcome) -> None:
        self.caller, self.method, self.outcome = caller, method, outcome
        self.precision = caller.description.precision
        self.unit = UNIT[self.precision]
        self.failures: list[_Failure] = []
        self.stopped = False
        self.since = 0.0

    def campaign(self, examples: int, seed: int) -> None:
        """Draw, ask, judge; after the first failure only smaller versions of it, for a while; then name it."""
        import hypothesis

        settings = hypothesis.settings(
            max_examples=examples,
            deadline=None,
            database=None,
            report_multiple_bugs=False,
            print_blob=False,
            phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
            suppress_health_check=list(hypothesis.HealthCheck),
            verbosity=hypothesis.Verbosity.quiet,
        )
        described = self.caller.description
        if described.structures is not None:
            count = max(1, round(described.structures * self.method.share))
            described = dataclasses.replace(described, structures=count, seed=seed)
        drawn = hypothesis.given(self.method.draw(described))(self.example)
        try:
            hypothesis.seed(seed)(settings(drawn))()
        except (_Wrong, hypothesis.errors.HypothesisException, BaseExceptionGroup):
            if not self.failures:
                raise
        if self.failures:
            self.outcome.findings.append(self.finding())
        judged = self.outcome.examples - self.outcome.declined
        if self.outcome.undecided > max(1.0, MOST_UNDECIDED * judged):
            message = f"rounding or kinks leave nothing to be judged in {self.outcome.undecided} of {judged} examples"
            self.note("undecided", message, {}, {})

    def example(self, arguments: Arguments) -> None:
        """One example; raises _Wrong if it fails."""
        if self.stopped or (self.failures and time.monotonic() - self.since > SHRINKING):
            return
        arguments = in_precision(arguments, self.precision)
        o = self.outcome
        twice = self.caller.description.deterministic and not self.failures and o.examples < REPEATED
        reply = self.caller.call(self.method, arguments, twice=twice)
        if not self.failures:
            o.examples += 1
            o.declined += reply.kind == "declined"
        if reply.kind == "declined":
            return
        if reply.kind in ("hangs", "dies"):
            self.note(reply.kind, reply.message, arguments, {})
            self.stopped = True
            return
        self.manners(reply, arguments)
        failure = self.failure(reply, arguments)
        if failure is not None and (not self.failures or failure.kind == self.failures[0].kind):
            self.since = self.since or time.monotonic()
            self.failures.append(failure)
            raise _Wrong

    def manners(self, reply: Reply, arguments: Arguments) -> None:
        """What is wrong whatever the numbers are."""
        if reply.printed:
            self.note("prints", f"wrote {reply.printed[:60]!r} to the standard output", arguments, reply.answer)
        if reply.changed:
            self.note("changes its input", f"changed {', '.join(reply.changed)}", arguments, reply.answer)
        if reply.repeatable is False:
            self.note("not repeatable", "a second call with the same arguments gave other bits", arguments, reply.answer)

    def note(self, kind: str, message: str, arguments: Arguments, answer: Arrays) -> None:
        """A finding, once of each kind."""
        if all(f.kind != kind for f in self.outcome.findings):
            self.outcome.findings.append(Finding(self.method.name, kind, message, arguments, answer))

    def failure(self, reply: Reply, arguments: Arguments) -> _Failure | None:
        """What is wrong with the answer, if anything."""
        if reply.kind == "raises":
            return self.failed(reply.kind, reply.message, arguments, {}, Expectation({}, {}))
        with np.errstate(all="ignore"):
            expected = self.method.expect(widened(arguments), self.unit)
        complaint = _form(reply.answer, expected, dtype_of(self.precision))
        if complaint is not None and complaint[0] != "not finite":
            return self.failed(*complaint, arguments, reply.answer, expected)
        verdict = judge(expected, reply.answer, self.unit)
        if complaint is not None and verdict.kind != "undecided":
            return self.failed(*complaint, arguments, reply.answer, expected)
        if not self.failures:
            self.outcome.kinks += verdict.kind == "kink"
            self.outcome.undecided += verdict.kind == "undecided"
            self.outcome.tensors.update(c.name.partition("/")[0] for c in verdict.comparisons)
            self.outcome.blind.update(c.name.partition("/")[0] for c in verdict.comparisons if c.blind)
        if verdict.kind != "deviates":
            if not self.failures and verdict.kind == "conforms":
                self.outcome.ratio = max(self.outcome.ratio, verdict.ratio)
            return None
        return self.failed("deviates", "", arguments, reply.answer, expected, verdict)

    def failed(
        self,
        kind: str,
        message: str,
        arguments: Arguments,
        answer: Arrays,
        expected: Expectation,
        verdict: Verdict | None = None,
    ) -> _Failure:
        return _Failure(kind, message, Evidence(arguments, answer, expected), verdict, len(pickle.dumps(arguments)))

    def finding(self) -> Finding:
        """The smallest failing example, with the mistakes that explain it and others like it."""
        smallest = min(self.failures, key=lambda f: f.size)
        spread = self.failures[:: max(1, len(self.failures) // EVIDENCE)][:EVIDENCE]
        evidence = [f.evidence for f in (smallest, *spread)]
        mistakes = tuple(named(self.method, evidence, self.unit)) if smallest.kind in ("deviates", "not finite") else ()
        arguments, answer, _ = smallest.evidence
        comparisons = smallest.verdict.comparisons if smallest.verdict else ()
        return Finding(self.method.name, smallest.kind, smallest.message, arguments, answer, comparisons, mistakes)


def _form(answer: Arrays, expected: Expectation, dtype: str) -> tuple[str, str] | None:
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


def _finite_where(got: Any, want: Any) -> bool:
    """Is `got` finite where `want` fits into its precision?"""
    largest = np.finfo(got.dtype).max / 2.0 if got.dtype.kind == "f" else np.inf
    return bool(np.isfinite(got[np.abs(want) < largest]).all())
