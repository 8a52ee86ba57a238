"""Running claims: each witness of each, what it found, as rows, table and JSON.

Extra `audit`: sympy and mpmath, and matplotlib for the report's pictures.
"""

from __future__ import annotations

import importlib.util
import textwrap
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..errors import InputError
from ..output import install
from .catalogue import Claim, Context, Finding, location


class Result(NamedTuple):
    """What one witness found; finding is None where it raised an error, which then stands in `error`."""

    claim: Claim
    method: str
    finding: Finding | None
    error: str
    seconds: float

    @property
    def holds(self) -> bool:
        return self.finding is not None and self.finding.holds

    @property
    def found_wrong(self) -> bool:
        """Red by what was found, not by an error."""
        return self.finding is not None and not self.finding.holds


def require(*packages: str) -> None:
    """InputError, one sentence, for the first package that is not installed: an audit without its witnesses is none."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise InputError(f"audit: {package} is not installed:  {install.command('audit')}")


def run_audit(
    claims: Sequence[Claim], context: Context, say: Callable[[Result], None] = lambda result: None, *, stop: bool = False
) -> list[Result]:
    """Every witness of every claim, in order; `say` hears of each as soon as it is there. A witness that raises is red.

    stop: a claim is left as soon as a witness finds it wrong; one that raises has found nothing, and the next has its turn.
    """
    results: list[Result] = []
    for claim in claims:
        for method, witness in claim.witnesses:
            if stop and results and results[-1].claim is claim and results[-1].found_wrong:
                break
            start, finding, text = time.perf_counter(), None, ""
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    finding = witness(context)
            except Exception as error:  # whatever the code under audit does
                text = one_line(error)
            results.append(Result(claim, method, finding, text, time.perf_counter() - start))
            say(results[-1])
    return results


def one_line(error: Exception) -> str:
    """Kind and first line of an error."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"


def holds(results: Sequence[Result]) -> bool:
    """Is every claim proved, by at least one witness and by all of them?"""
    return bool(results) and all(r.holds for r in results)


WIDTHS = (2, 47, 9, 8, 5)  # of the columns; with two spaces between them a line fits into 79 characters
LINE = sum(WIDTHS) + 2 * (len(WIDTHS) - 1)
HEAD = ("", "witness", "deviation", "bound", "")


def row(result: Result | None) -> str:
    """The lines of the table that are printed while the audit runs; None: its head. Why it is so is below a red row."""
    if result is None:
        return _lines(HEAD, "")
    number, f = result.claim.number, result.finding
    if f is None:
        return _lines((number, result.method, "", "", "ERROR"), result.error)
    deviation = f"|z| {f.deviation:.2f}" if f.kind == "z" else f"{f.deviation:.3g}"
    return _lines((number, result.method, deviation, f"{f.bound:.3g}", _verdict(result)), "" if f.holds else f.detail)


def _lines(cells: tuple[str, ...], why: str) -> str:
    """The cells, the second wrapped, the last three at the right of its first line; `why` indented below."""
    first, second, *others = cells
    wrapped = textwrap.wrap(second, WIDTHS[1]) or [""]
    numbers = "  ".join(cell.rjust(width) for cell, width in zip(others, WIDTHS[2:], strict=True))
    margin = " " * (WIDTHS[0] + 2)
    lines = [f"{first.ljust(WIDTHS[0])}  {wrapped[0].ljust(WIDTHS[1])}  {numbers}".rstrip()]
    lines += [margin + line for line in wrapped[1:]]
    lines += textwrap.wrap(why, LINE, initial_indent=f"{margin}! ", subsequent_indent=f"{margin}  ")
    return "\n".join(lines)


def table(results: Sequence[Result]) -> list[str]:
    return [row(None), *map(row, results)]


def _verdict(result: Result) -> str:
    return "holds" if result.holds else "FAILS"


def as_json(results: Sequence[Result], context: Context) -> dict[str, Any]:
    """Everything that was found, for --json."""
    claims: dict[str, dict[str, Any]] = {}
    for r in results:
        c = r.claim
        entry = claims.setdefault(
            c.number,
            {"statement": c.statement, "source": c.source, "code": {code: location(code) for code in c.code}, "witnesses": []},
        )
        found = {"method": r.method, "holds": r.holds, "seconds": round(r.seconds, 4)}
        if r.finding is None:
            found["error"] = r.error
        else:
            f = r.finding
            found |= {"kind": f.kind, "deviation": f"{f.deviation:.6g}", "bound": f"{f.bound:.6g}", "detail": f.detail}
        entry["witnesses"].append(found)
    for entry in claims.values():
        entry["holds"] = all(w["holds"] for w in entry["witnesses"])
    return {"seed": context.seed, "backend": context.backend.name, "holds": holds(results), "claims": claims}
