"""Asking an implementation many questions, judging what it answers, and making the smallest example of what is wrong."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..arrays import Arrays
from ..errors import InputError
from ..rounding.noise import widened
from ..rounding.tolerance import UNIT
from .asking import standing
from .asking.calls import Caller, Reply
from .asking.methods import Arguments, Method, Question, dtype_of, in_precision
from .judging import sequential
from .judging.diagnosis import Evidence, named
from .judging.findings import Finding, Outcome
from .judging.verdicts import Expectation, Verdict, form, judge
from .levels import LEVELS, METHODS, SAMPLED
from .vectors.files import Vector

#: Of each method, so many first calls are made twice.
REPEATED = 5

#: So many wrong answers have to be explained by a mistake that is named.
EVIDENCE = 6

#: Seconds that may be spent on making an example smaller.
SHRINKING = 20.0

#: Share of a method's examples that may be left undecided.
MOST_UNDECIDED = 0.05


class _Wrong(Exception):
    """An example that fails, for Hypothesis to shrink."""


def chosen(levels: Sequence[str], among: Mapping[str, Method] = METHODS | SAMPLED) -> list[Method]:
    """The methods of the levels, or with these names; all for none. InputError for an unknown one."""
    for name in levels:
        if name not in LEVELS and name not in among:
            raise InputError(f"level: {name!r} is not known; allowed are {', '.join(LEVELS)}, or a method's name")
    return [m for m in among.values() if not levels or m.level in levels or m.name in levels]


def run(
    caller: Caller,
    methods: Sequence[Method],
    examples: int,
    seed: int,
    say: Callable[[Outcome], None] = lambda outcome: None,
    *,
    stored: Sequence[Vector] = (),
) -> list[Outcome]:
    """Judge every method; `say` hears of each as soon as it is done.

    examples: drawn in all, shared out among what is provided; what is standing for a method is asked besides, unless it is 0.
    stored: vectors that are asked first. Where one of them fails nothing is drawn; examples may be 0, then nothing is at all.
    """
    shares = sum(m.share for m in methods if m.name in caller.description.provided)
    outcomes = []
    for method in methods:
        outcome = Outcome(method.name, method.level, method.name in caller.description.provided)
        if outcome.provided:
            started = time.monotonic()
            count = max(1, round(examples * method.share / shares)) if examples > 0 else 0
            outcome.random = _is_random(caller, method)
            if outcome.random:
                if count:
                    sequential.judge(caller, method, outcome, count, seed)
            else:
                inquiry = _Judge(caller, method, outcome)
                inquiry.vectors([v for v in stored if v.method is method and v.asks(caller.description)])
                if count and outcome.verdict != "DEVIATES":
                    inquiry.campaign(count, seed)
                    inquiry.always(seed)
                    inquiry.conclude()
            outcome.seconds = time.monotonic() - started
        outcomes.append(outcome)
        say(outcome)
    return outcomes


def _is_random(caller: Caller, method: Method) -> bool:
    """Does it draw random numbers of its own? An estimate from given ones may, where nothing is promised to be repeatable."""
    return method.name in SAMPLED or (method.name == "theta_estimate" and not caller.description.deterministic)


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
        self.counting = True
        self.since = 0.0

    def vectors(self, stored: Sequence[Vector]) -> None:
        """Ask every one of them; the smallest that fails becomes the finding, which names all that fail alike."""
        names: list[str] = []
        for vector in stored:
            arguments = in_precision(vector.arguments, self.precision)
            failure = self.asked(arguments, functools.partial(vector.expectation, arguments, self.precision))
            if failure is not None and (not self.failures or failure.kind == self.failures[0].kind):
                self.failures.append(failure)
                names.append(vector.name)
        self.outcome.stored = self.outcome.examples - self.outcome.declined
        if self.failures:
            found = self.finding()
            where = f"in {len(names)} of {len(stored)} vectors: {', '.join(names)}"
            self.outcome.findings.append(found._replace(message=f"{found.message}, {where}".removeprefix(", ")))

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
        judged = self.outcome.examples - self.outcome.declined
        if self.outcome.undecided > max(1.0, MOST_UNDECIDED * judged):
            message = f"rounding or kinks leave nothing to be judged in {self.outcome.undecided} of {judged} examples"
            self.outcome.note("undecided", message, {}, {})

    def always(self, seed: int) -> None:
        """Ask what is asked in every run, unless something drawn has failed; the first that fails is made smaller."""
        if self.failures or self.stopped:
            return
        first: Question | None = None
        asked: list[tuple[int, ...]] = []
        before = self.outcome.examples
        for question in standing.questions(self.method, dataclasses.replace(self.caller.description, seed=seed)):
            if self.stopped or len(self.failures) > EVIDENCE:
                break
            failed = self.fails(question, question.sizes)
            asked.append(question.sizes)
            first = question if failed and first is None else first
            self.counting = not self.failures
        self.outcome.standing = self.outcome.examples - before
        self.outcome.sizes = tuple(map(max, itertools.zip_longest(*asked, fillvalue=0)))
        if first is not None:
            standing.smaller(first, functools.partial(self.fails, first), time.monotonic() + SHRINKING)

    def fails(self, question: Question, sizes: tuple[int, ...]) -> bool:
        """Ask with these sizes; a failure like the first is kept."""
        arguments = in_precision(question.make(sizes), self.precision)
        failure = self.asked(arguments, lambda: self.method.expect(widened(arguments), self.unit))
        if failure is None or (self.failures and failure.kind != self.failures[0].kind):
            return False
        self.failures.append(failure)
        return True

    def conclude(self) -> None:
        """The finding, if anything failed."""
        if self.failures:
            self.outcome.findings.append(self.finding())

    def example(self, arguments: Arguments) -> None:
        """One drawn example, or a smaller one of the first that failed; raises _Wrong if it fails."""
        if self.failures and time.monotonic() - self.since > SHRINKING:
            return
        arguments = in_precision(arguments, self.precision)
        self.counting = not self.failures
        failure = self.asked(arguments, lambda: self.method.expect(widened(arguments), self.unit))
        if failure is not None and (not self.failures or failure.kind == self.failures[0].kind):
            self.since = self.since or time.monotonic()
            self.failures.append(failure)
            raise _Wrong

    def asked(self, arguments: Arguments, expect: Callable[[], Expectation]) -> _Failure | None:
        """Ask once; what is wrong with the answer, if anything.

        After a hang, in a process that was then ended, or a death nothing is asked any more: each would cost as long again.
        """
        if self.stopped:
            return None
        o = self.outcome
        twice = self.caller.description.deterministic and self.counting and o.examples < REPEATED
        reply = self.caller.call(self.method, arguments, twice=twice)
        if self.counting:
            o.examples += 1
            o.declined += reply.kind == "declined"
        o.manners(reply, arguments)
        if reply.kind in ("hangs", "dies"):
            o.note(reply.kind, reply.message, arguments, {})
        self.stopped = bool(reply.restarted) or reply.kind in ("hangs", "dies")
        if reply.kind in ("declined", "hangs", "dies"):
            return None
        failure = self.failure(reply, arguments, expect)
        if failure is not None and not twice and not self.failures and self.caller.description.deterministic:
            o.manners(self.caller.call(self.method, arguments, twice=True), arguments)  # it may be wrong by chance alone
        if any(f.kind == "not repeatable" for f in o.findings):
            self.stopped = True  # numbers that another call would not give are not judged
            return None
        return failure

    def failure(self, reply: Reply, arguments: Arguments, expect: Callable[[], Expectation]) -> _Failure | None:
        """What is wrong with the answer, if anything."""
        if reply.kind in ("raises", "results"):
            return self.failed(reply.kind, reply.message, arguments, {}, Expectation({}, {}))
        with np.errstate(all="ignore"):
            expected = expect()
        complaint = form(reply.answer, expected, dtype_of(self.precision))
        if complaint is not None and complaint[0] != "not finite":
            return self.failed(*complaint, arguments, reply.answer, expected)
        verdict = judge(expected, reply.answer, self.unit)
        if complaint is not None and verdict.kind != "undecided":
            return self.failed(*complaint, arguments, reply.answer, expected)
        if self.counting:
            self.outcome.kinks += verdict.kind == "kink"
            self.outcome.undecided += verdict.kind == "undecided"
            self.outcome.tensors.update(c.name.partition("/")[0] for c in verdict.comparisons)
            self.outcome.blind.update(c.name.partition("/")[0] for c in verdict.comparisons if c.blind)
            self.outcome.wanted |= {name.partition("/")[0] for name in expected.values}
        if verdict.kind != "deviates":
            if self.counting and verdict.kind == "conforms":
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
