"""The audit's report: one HTML file, formulas in MathML, pictures in SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..output import figures
from ..output import page as html
from .catalogue import Claim, Context, location
from .mathml import mathml
from .run import Result, holds, one_line

#: Above the claims: how to read their tables.
READING = (
    "A claim is a numbered statement of the specification. A witness proves it in one way: by symbols, exactly, by "
    "enumeration, by quadrature, with 50 digits or by simulation.",
    "A witness holds if its deviation is at most its bound. The bound is 0 for counts of violations, and comes from rounding "
    "for errors.",
    "|z| is the distance of a simulated mean in standard errors. By chance all of a witness's scores together exceed their "
    "bound with probability 1e-6. What else depends on the seed says how often beside it.",
)


def page(results: Sequence[Result], context: Context) -> str:
    """HTML of all claims in `results`, like a paper's appendix; those that do not hold come first."""
    claims = list(dict.fromkeys(r.claim.number for r in results))
    by_claim = {number: [r for r in results if r.claim.number == number] for number in claims}
    red = [number for number in claims if not all(r.holds for r in by_claim[number])]
    fine = [number for number in claims if number not in red]
    verdict = (
        f"All {len(claims)} claims hold, by {len(results)} witnesses."
        if holds(results)
        else f"{len(red)} of {len(claims)} claims do not hold: {', '.join(red)}."
    )
    numbers = [
        (str(len(fine)), "claims hold"),
        (str(len(red)), "claims do not hold"),
        (str(len(results)), "witnesses"),
        (f"{sum(r.seconds for r in results):.0f} s", "of computing"),
        (str(context.seed), f"seed; backend {context.backend.name}"),
    ]
    body = [
        *(_section(by_claim[number][0].claim, by_claim[number], context) for number in red),
        html.section("How to read it", html.notes(READING)),
        html.section("Claims that hold", _index([by_claim[number][0].claim for number in fine])),
        *(_section(by_claim[number][0].claim, by_claim[number], context) for number in fine),
    ]
    judgement: html.Judgement = "good" if holds(results) else "bad"
    return html.page("refprune audit", verdict, judgement, "".join(body), numbers=numbers, made_by="refprune audit")


def _index(claims: Sequence[Claim]) -> str:
    lines = (f'<li><a href="#{c.number}">{c.number}</a> {html.text(c.statement)}</li>' for c in claims)
    return f"<ul class=index>{''.join(lines)}</ul>" if claims else ""


def _section(claim: Claim, rows: Sequence[Result], context: Context) -> str:
    table = [("witness", "deviation", "bound", "verdict"), *((r.method, _deviation(r), _bound(r), _verdict(r)) for r in rows)]
    code = ", ".join(f"<code>{html.text(c.replace(':', '.'))}</code> ({html.text(location(c))})" for c in claim.code)
    return html.section(
        f"{claim.number}: {claim.statement}",
        f"<div class=formula>{mathml(claim.formula)}</div>",
        f"<p class=source>Source: {html.text(claim.source)}. Code: {code}.</p>",
        html.table(
            table,
            f"Witnesses of {claim.number}",
            stacked=True,
            explained={r.method: detail for r in rows if (detail := _detail(r))},
            judged=lambda row: "plain" if row[-1] == "holds" else "bad",
        ),
        html.pictures(*(_picture(draw, context) for draw in claim.pictures)),
        anchor=claim.number,
        finding=not all(r.holds for r in rows),
    )


def _verdict(r: Result) -> str:
    return "holds" if r.holds else "FAILS"


def _detail(r: Result) -> str:
    return r.error if r.finding is None else r.finding.detail


def _deviation(r: Result) -> str:
    if r.finding is None:
        return "error"
    return f"{'|z| ' if r.finding.kind == 'z' else ''}{r.finding.deviation:.3g}"


def _bound(r: Result) -> str:
    return "" if r.finding is None else f"{r.finding.bound:.3g}"


def _picture(draw: Callable[[Context], Any], context: Context) -> str:
    """The picture, or, where the code under audit lets it not be drawn, the error in its place."""
    try:
        drawing = draw(context)
        return html.picture(figures.svg(drawing), drawing.axes[0].get_title())
    except Exception as error:  # whatever the code under audit does
        return html.paragraph(f"No picture: {one_line(error)}")
