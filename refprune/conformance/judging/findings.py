"""What has been found of an implementation: its findings, and all that is known of one method."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from ...arrays import Arrays
from ...mistakes.planting import Mistake
from ..asking.calls import Reply
from ..asking.methods import Arguments
from .verdicts import Comparison

#: Findings that are mentioned, but make nothing wrong.
HARMLESS = ("prints",)

#: Findings about many random results together: no single answer is right or wrong.
RANDOM = ("biased", "range", "dependent draws", "variance")


class Finding(NamedTuple):
    """Something that an implementation should not do.

    kind: "deviates", or "raises", "results", "shape", "dtype", "not finite", "names", "changes its input", "not repeatable",
        "prints", "hangs" (once is enough), "dies", "undecided"; of random results one of RANDOM.
    arguments: the smallest example.
    answer: what it gave.
    comparisons: of all tensors, in data-flow order.
    mistakes: the known ones that it looks like.
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


@dataclass
class Outcome:
    """What is known of one method.

    stored: how many of the examples that were not declined are vectors. standing: how many examples are the same in every run;
    sizes: the largest of theirs, place by place. random: is it judged by its mean? ratio: the largest error/tolerance of
    answers that conform, of random ones the largest evidence against them over what it takes; tensors: what was compared → how
    often; blind: how often of these nothing could be told of it; wanted: what could have been; remarks: what the report says
    besides.
    """

    method: str
    level: str
    provided: bool
    examples: int = 0
    declined: int = 0
    stored: int = 0
    standing: int = 0
    sizes: tuple[int, ...] = ()
    random: bool = False
    kinks: int = 0
    undecided: int = 0
    ratio: float = 0.0
    tensors: Counter[str] = field(default_factory=Counter)
    blind: Counter[str] = field(default_factory=Counter)
    wanted: set[str] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        """ "not provided", "not asked", "declined" (every call), "conforms", "undecided" (too many) or "DEVIATES"."""
        if not self.provided:
            return "not provided"
        kinds = {f.kind for f in self.findings}
        if kinds - {*HARMLESS, "undecided"}:
            return "DEVIATES"
        if "undecided" in kinds:
            return "undecided"
        if self.examples == 0:
            return "not asked"
        return "conforms" if self.examples > self.declined else "declined"

    @property
    def largest(self) -> float:
        """The largest error/tolerance of all answers, of those that deviate too."""
        return max([self.ratio, *(c.ratio for f in self.findings for c in f.comparisons)])

    @property
    def withheld(self) -> list[str]:
        """Results that it has never given, and that therefore have not been judged; "layers" are for locating only."""
        return sorted(self.wanted - set(self.tensors) - {"layers"})

    def note(self, kind: str, message: str, arguments: Arguments, answer: Arrays) -> None:
        """A finding, once of each kind."""
        if all(f.kind != kind for f in self.findings):
            self.findings.append(Finding(self.method, kind, message, arguments, answer))

    def manners(self, reply: Reply, arguments: Arguments) -> None:
        """What is wrong with a reply whatever its numbers are."""
        if reply.restarted:
            self.note("hangs", reply.restarted, arguments, reply.answer)
        if reply.printed:
            self.note("prints", f"wrote {reply.printed[:60]!r} to the standard output", arguments, reply.answer)
        if reply.changed:
            self.note("changes its input", f"changed {', '.join(reply.changed)}", arguments, reply.answer)
        if reply.repeatable is False:
            self.note("not repeatable", "a second call with the same arguments gave other bits", arguments, reply.answer)
