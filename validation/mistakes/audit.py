"""Every known mistake, planted in refprune, and the audit run on it: `python -m validation.mistakes.audit [NAME …] [--json
FILE]`.

A mutant is killed if all claims that it declares go red and none else does, among the claims that are run: the declared ones
and all that cite the function it replaces. Nothing is said of claims that only come across that function on their way;
`--all-claims` runs these too (the whole audit for every mutant: hours) and lists them, which kills no mutant and lets none
survive. Red is what a witness found wrong. A witness that raises an error has found nothing: a claim that shows errors alone
counts as red only if the mistake says so (`Mistake.raises`).

Exit code 0 if none survives. Without mistakes the audit must be green: run `refprune audit` first.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from refprune.audit import run
from refprune.audit.catalogue import Claim, Context, catalogue, neighbours
from refprune.errors import InputError
from refprune.mistakes.catalogue import MISTAKES
from refprune.mistakes.planting import Mistake, planted


@dataclass(frozen=True)
class Outcome:
    """missed: declared claims that stayed green; raised: such as showed an error only, undeclared; extra: others that went red.

    beyond: those red that neither are declared nor cite the replaced code; they are run on demand only.
    """

    mistake: Mistake
    tried: tuple[str, ...]
    missed: tuple[str, ...]
    raised: tuple[str, ...]
    extra: tuple[str, ...]
    beyond: tuple[str, ...]
    seconds: float

    @property
    def killed(self) -> bool:
        return not (self.missed or self.raised or self.extra)


def concerned(mistake: Mistake) -> list[Claim]:
    """The declared claims, and those that cite the replaced code."""
    cited = {claim.number for claim in neighbours([mistake.target])}
    return [claim for claim in catalogue() if claim.number in cited or claim.number in mistake.claims]


def try_out(mistake: Mistake, seed: int = 0, *, all_claims: bool = False) -> Outcome:
    """The audit of all concerned claims, or of all there are, with the mistake planted."""
    start, near = time.monotonic(), {claim.number for claim in concerned(mistake)}
    claims = [claim for claim in catalogue() if all_claims or claim.number in near]
    with planted(mistake) as backend:
        results = run.run_audit(claims, Context(seed, backend), stop=True)
    wrong = {r.claim.number for r in results if r.found_wrong}
    red = wrong | {r.claim.number for r in results if not r.holds}
    undeclared = [c.number for c in claims if c.number in red and c.number not in mistake.claims]
    return Outcome(
        mistake,
        tuple(claim.number for claim in claims),
        missed=tuple(n for n in mistake.claims if n not in red),
        raised=tuple(n for n in mistake.claims if n in red - wrong and n not in mistake.raises),
        extra=tuple(n for n in undeclared if n in near),
        beyond=tuple(n for n in undeclared if n not in near),
        seconds=time.monotonic() - start,
    )


def verdict(o: Outcome) -> str:
    lists = {"green": o.missed, "error only": o.raised, "red beside": o.extra, "red further away": o.beyond}
    details = "; ".join(f"{name} {', '.join(numbers)}" for name, numbers in lists.items() if numbers)
    return ("killed" if o.killed else "SURVIVES") + (f": {details}" if details else "")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m validation.mistakes.audit", description="The audit against planted mistakes.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="parts of the mistakes' names, or claims (default: all)")
    parser.add_argument("--json", metavar="FILE", help="write what was found")
    parser.add_argument("--all-claims", action="store_true", help="run every claim on every mutant")
    options = parser.parse_args(arguments)
    try:
        run.require("sympy", "mpmath")
    except InputError as error:
        print(f"mutants: {error}", file=sys.stderr)
        return 2
    chosen = [m for m in MISTAKES if not options.names or any(n in m.name or n in m.claims for n in options.names)]
    started, outcomes = time.monotonic(), []
    for mistake in chosen:
        outcomes.append(try_out(mistake, all_claims=options.all_claims))
        o = outcomes[-1]
        line = f"{mistake.target:38} {mistake.name:58} {', '.join(mistake.claims):24} {o.seconds:5.1f} s  {verdict(o)}"
        print(line, flush=True)
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
                "raised": o.raised,
                "extra": o.extra,
                "beyond": o.beyond,
                "tried": o.tried,
            }
            for o in outcomes
        ]
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1, ensure_ascii=False)
    return 0 if killed == len(outcomes) and (options.names or not bare) else 1


if __name__ == "__main__":
    sys.exit(main())
