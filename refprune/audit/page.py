"""The audit's report: one self-contained HTML file, formulas in MathML, pictures in SVG."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any

from ..output.figures import svg
from .catalogue import Claim, Context, location
from .mathml import mathml
from .run import Result, holds, one_line

STYLE = """body{font:15px/1.45 sans-serif;max-width:62em;margin:2em auto;padding:0 1em}
h2{border-bottom:1px solid #999;margin-top:2em}
table{border-collapse:collapse;width:100%}td,th{padding:.2em .6em;text-align:left;vertical-align:top}td.n{text-align:right}
tr:nth-child(even){background:#f4f4f4}.red{background:#fbd5d5!important}p.red{padding:.4em}.no{font-weight:bold;margin-right:.6em}svg{max-width:100%;
height:auto}code{font-size:90%}math{margin:.6em 0;font-size:115%}.source{color:#555}"""


def page(results: Sequence[Result], context: Context) -> str:
    """HTML of all claims in `results`, like a paper's appendix."""
    claims = list(dict.fromkeys(r.claim.number for r in results))
    by_claim = {number: [r for r in results if r.claim.number == number] for number in claims}
    red = [number for number in claims if not all(r.holds for r in by_claim[number])]
    verdict = "all hold" if holds(results) else f"{len(red)} do not hold: {', '.join(red)}"
    head = f"<h1>refprune audit</h1><p>{len(claims)} claims, {len(results)} witnesses, seed {context.seed}, backend "
    head += f"{html.escape(context.backend.name)}: <b>{verdict}</b>.</p>"
    head += "<p>A deviation must not exceed its bound. |z|: Monte Carlo; all scores of a witness together exceed their bound "
    head += "by chance with probability 1e-6; what else depends on the seed says how often beside it. A count must be 0.</p>"
    index = "".join(f'<tr{_red(by_claim[n])}><td><a href="#{n}">{n}</a></td><td>{_verdict(by_claim[n])}</td></tr>' for n in red)
    sections = "".join(_section(rows[0].claim, rows, context) for rows in by_claim.values())
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>refprune audit</title><style>{STYLE}</style>"
        f"{head}{f'<table>{index}</table>' if red else ''}{sections}</html>\n"
    )


def _section(claim: Claim, rows: Sequence[Result], context: Context) -> str:
    body = "".join(
        f"<tr{_red([r])}><td>{html.escape(r.method)}{_detail(r)}</td><td class=n>{_deviation(r)}</td>"
        f"<td class=n>{_bound(r)}</td><td>{_verdict([r])}</td></tr>"
        for r in rows
    )
    code = ", ".join(f"<code>{html.escape(c.replace(':', '.'))}</code> ({location(c)})" for c in claim.code)
    pictures = "".join(_picture(draw, context) for draw in claim.pictures)
    return (
        f'<h2 id="{claim.number}"><span class=no>{claim.number}</span>{html.escape(claim.statement)}</h2>'
        f"{mathml(claim.formula)}"
        f"<p class=source>{html.escape(claim.source)}. Code: {code}.</p>"
        f"<table><tr><th>witness</th><th>deviation</th><th>bound</th><th>verdict</th></tr>{body}</table>{pictures}"
    )


def _red(rows: Sequence[Result]) -> str:
    return "" if all(r.holds for r in rows) else " class=red"


def _verdict(rows: Sequence[Result]) -> str:
    return "holds" if all(r.holds for r in rows) else "FAILS"


def _detail(r: Result) -> str:
    text = r.error if r.finding is None else r.finding.detail
    return f" <small>({html.escape(text)})</small>" if text else ""


def _deviation(r: Result) -> str:
    if r.finding is None:
        return "error"
    return f"{'|z| ' if r.finding.kind == 'z' else ''}{r.finding.deviation:.3g}"


def _bound(r: Result) -> str:
    return "" if r.finding is None else f"{r.finding.bound:.3g}"


def _picture(draw: Callable[[Context], Any], context: Context) -> str:
    """The picture, or, where the code under audit lets it not be drawn, the error in its place."""
    try:
        return svg(draw(context))
    except Exception as error:  # whatever the code under audit does
        return f"<p class=red>No picture: {html.escape(one_line(error))}</p>"
