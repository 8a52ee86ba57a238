"""Every known mistake, planted in refprune, and the audit run on it: `python -m validation.mutants [NAME …] [--json FILE]`.

A mutant is killed if exactly the claims that it declares go red among those it could concern: the declared ones and all that
cite the code it replaces. Exit code 0 if none survives. Without mistakes the audit must be green: run `refprune audit` first.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from refprune import audit
from refprune.audit.claims import Claim, Context, catalogue, neighbours
from refprune.conformance.mistakes import MISTAKES, Mistake, planted
from refprune.errors import InputError


@dataclass(frozen=True)
class Outcome:
    """missed: declared claims that stayed green; extra: others that went red."""

    mistake: Mistake
    tried: tuple[str, ...]
    missed: tuple[str, ...]
    extra: tuple[str, ...]
    seconds: float

    @property
    def killed(self) -> bool:
        return not self.missed and not self.extra


def concerned(mistake: Mistake) -> list[Claim]:
    """The declared claims, and those that cite the replaced code."""
    cited = {claim.number for claim in neighbours([mistake.target])}
    return [claim for claim in catalogue() if claim.number in cited or claim.number in mistake.claims]


def try_out(mistake: Mistake, seed: int = 0) -> Outcome:
    """The audit of all concerned claims with the mistake planted."""
    start, claims = time.monotonic(), concerned(mistake)
    with planted(mistake) as backend:
        results = audit.run(claims, Context(seed, backend), stop=True)
    red = {r.claim.number for r in results if not r.holds}
    missed = tuple(number for number in mistake.claims if number not in red)
    extra = tuple(c.number for c in claims if c.number in red and c.number not in mistake.claims)
    return Outcome(mistake, tuple(c.number for c in claims), missed, extra, time.monotonic() - start)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m validation.mutants", description="The audit against planted mistakes.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="parts of the mistakes' names, or claims (default: all)")
    parser.add_argument("--json", metavar="FILE", help="write what was found")
    options = parser.parse_args(arguments)
    try:
        audit.require("sympy", "mpmath")
    except InputError as error:
        print(f"mutants: {error}", file=sys.stderr)
        return 2
    chosen = [m for m in MISTAKES if not options.names or any(n in m.name or n in m.claims for n in options.names)]
    started, outcomes = time.monotonic(), []
    for mistake in chosen:
        outcomes.append(try_out(mistake))
        o = outcomes[-1]
        words = (
            "killed" if o.killed else f"SURVIVES: green {', '.join(o.missed) or '–'}; red beside {', '.join(o.extra) or '–'}"
        )
        print(f"{mistake.target:38} {mistake.name:58} {', '.join(mistake.claims):24} {o.seconds:5.1f} s  {words}", flush=True)
    killed = sum(o.killed for o in outcomes)
    covered = {number for m in chosen for number in m.claims}
    bare = [c.number for c in catalogue() if c.number not in covered]
    print(f"\n{killed} of {len(outcomes)} mutants killed, {time.monotonic() - started:.0f} s; ", end="")
    print("every claim has one" if not bare else f"without a mutant: {', '.join(bare)}")
    if options.json:
        rows = [
            {
                "name": o.mistake.name,
                "target": o.mistake.target,
                "claims": o.mistake.claims,
                "killed": o.killed,
                "missed": o.missed,
                "extra": o.extra,
                "tried": o.tried,
            }
            for o in outcomes
        ]
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1, ensure_ascii=False)
    return 0 if killed == len(outcomes) and (options.names or not bare) else 1


if __name__ == "__main__":
    sys.exit(main())
