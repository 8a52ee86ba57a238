"""`python -m validation.mistakes.pytorch [NAME …] [--table FILE]`: every known mistake made in PyTorch, and `verify` on it.

Exit code 0 if all are found, at least 90 % named, and nothing is found in the correct implementations of which wrong ones are
made here.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from refprune.conformance import campaign
from refprune.output.files import write_atomically

from .catalogue import PLANTED, SHRINKING, Found, try_out
from .in_pruning import Compacting
from .in_training import ESTIMATING
from .not_asked import NOT_ASKED
from .planting import Planted

LEAST_NAMED = 0.9


def table(outcomes: Sequence[Found], seconds: float) -> str:
    """All outcomes in Markdown, then what is not asked."""
    found, named = sum(o.found for o in outcomes), sum(o.named for o in outcomes)
    lines = [
        "# Known mistakes made in the PyTorch implementation",
        "",
        "Written by `python -m validation.mistakes.pytorch --table FILE`. Each row is the correct PyTorch implementation with",
        "one thing wrong in its own code (`validation/mistakes/pytorch/`), judged by `refprune verify`; *named* means that the",
        "known mistake of that name, planted in refprune, gives the same numbers.",
        "",
        f"{found} of {len(outcomes)} found, {named} named, {seconds:.0f} s of one core.",
        "",
        "| method | mistake | first tensor that differs | verdict | seconds |",
        "|---|---|---|---|---|",
        *(
            f"| `{o.planted.method}` | {_cell(o.planted.name)} | {_cell(o.first)} | {_cell(o.verdict)} | {o.seconds:.1f} |"
            for o in outcomes
        ),
        "",
        f"## Not to be made in an implementation: {len(NOT_ASKED)}",
        "",
        "| mistake | why |",
        "|---|---|",
        *(f"| {_cell(name)} | {_cell(why)} |" for name, why in NOT_ASKED.items()),
        "",
    ]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m validation.mistakes.pytorch", description="Known mistakes made in PyTorch.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="parts of the mistakes' names, or methods (default: all)")
    parser.add_argument("--table", metavar="FILE", type=Path, help="write the table, in Markdown")
    options = parser.parse_args(arguments)
    campaign.SHRINKING = SHRINKING
    chosen = [p for p in PLANTED if not options.names or any(a in p.name or a == p.method for a in options.names)]
    started, outcomes = time.process_time(), []
    right = [Planted("", "theta_estimate", kind) for kind in ESTIMATING] + [Planted("", "compact", Compacting)]
    wronged = [p.mine.__name__ for p in right if not options.names and try_out(p).found]
    for planted in chosen:
        outcomes.append(try_out(planted))
        o = outcomes[-1]
        print(f"{planted.method:20} {planted.name:58} {o.first:26} {o.seconds:5.1f} s  {o.verdict}", flush=True)
    seconds = time.process_time() - started
    found, named = sum(o.found for o in outcomes), sum(o.named for o in outcomes)
    print(f"\n{found} of {len(outcomes)} found, {named} named, {seconds:.0f} s of one core")
    if wronged:
        print(f"found in correct implementations: {', '.join(wronged)}")
    if options.table:
        write_atomically(options.table, table(outcomes, seconds).encode())
    return 0 if found == len(outcomes) and named >= LEAST_NAMED * len(outcomes) and not wronged else 1


if __name__ == "__main__":
    sys.exit(main())
