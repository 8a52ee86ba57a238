"""`refprune audit`: prove the formulas again."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from .options import file_name, whole


def add(commands: Any) -> None:
    """Add the parser to argparse's `commands`."""
    audit = commands.add_parser("audit", help="prove the formulas again, claim by claim; exit code 1 if one does not hold")
    audit.add_argument("--only", metavar="F,O2", help="letters or numbers of claims (default: all)")
    audit.add_argument(
        "--report", metavar="FILE", type=file_name, help="write a self-contained HTML report with formulas and pictures"
    )
    audit.add_argument("--json", metavar="FILE", type=file_name, help="write every deviation and bound")
    audit.add_argument("--seed", metavar="N", type=whole, default=0, help="of all random witnesses")
    audit.set_defaults(command=_audit)


def _audit(options: argparse.Namespace) -> int:
    from ..audit import run as auditing
    from ..audit.catalogue import Context, select
    from ..output import files

    claims = select(options.only)
    auditing.require("sympy", "mpmath", *(["matplotlib"] if options.report else []))
    files.check_targets(report=options.report, json=options.json)
    context, started = Context(options.seed), time.monotonic()
    print(auditing.row(None) + "\n" + "-" * auditing.LINE)
    results = auditing.run_audit(claims, context, lambda result: print(auditing.row(result), flush=True))
    failed = [r for r in results if not r.holds]
    red = dict.fromkeys(r.claim.number for r in failed)
    verdict = "all hold" if auditing.holds(results) else f"NOT: {', '.join(red)}"
    if failed:
        print("\n" + "\n".join(("What does not hold:", *map(auditing.row, failed))))
    print(f"\n{len(claims)} claims, {len(results)} witnesses, {time.monotonic() - started:.1f} s: {verdict}")
    if options.json:
        files.write_atomically(
            options.json, json.dumps(auditing.as_json(results, context), indent=1, ensure_ascii=False).encode()
        )
    if options.report:
        from ..audit.page import page

        files.write_atomically(options.report, files.encoded(page(results, context)))
        print(f"report: {options.report}")
    return 0 if auditing.holds(results) else 1
