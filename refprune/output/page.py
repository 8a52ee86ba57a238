"""The page of every report: one HTML file in one look, light and dark, for a telephone and for paper.

`page` puts a verdict and its numbers above sections; `table`, `picture`, `notes` and `paragraph` make what sections hold. All
texts are escaped here; what is called `body` or `parts` is HTML that these functions have made.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from .page_style import STYLE

#: "good": nothing is wrong; "bad": something is; "open": nothing could be said; "plain": a result that is neither.
Judgement = Literal["good", "bad", "open", "plain"]

_SIGNS = {"good": "✓", "bad": "✗", "open": "?", "plain": ""}
_NUMBER = re.compile(r"[-−+±|<>~]?\d|[-−+]?(nan|inf|∞)\b|\|z\|")


def page(
    title: str,
    verdict: str,
    judgement: Judgement,
    body: str,
    *,
    numbers: Sequence[tuple[str, str]] = (),
    made_by: str = "",
) -> str:
    """The whole file.

    verdict: one sentence, with the numbers that matter.
    numbers: (value, what it is) of those numbers, shown large.
    made_by: the command, for the line at the end.
    """
    sign = f"<span class=sign aria-hidden=true>{_SIGNS[judgement]}</span> " if _SIGNS[judgement] else ""
    shown = "".join(f"<div><dd>{text(value)}</dd><dt>{text(what)}</dt></div>" for value, what in numbers)
    end = f"<footer>Written by <code>{text(made_by)}</code>.</footer>" if made_by else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<header>\n<h1>{text(title)}</h1>\n<p class="verdict {judgement}">{sign}{text(verdict)}</p>\n'
        f"{f'<dl class=numbers>{shown}</dl>' if shown else ''}\n</header>\n{body}\n{end}</main>\n</body>\n</html>\n"
    )


def text(words: str) -> str:
    """Plain text as HTML."""
    return html.escape(words)


def sentence(words: str) -> str:
    """Plain text as HTML; what stands between backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", text(words))


def section(heading: str, *parts: str, anchor: str = "", finding: bool = False) -> str:
    """A heading and what stands below it; nothing where all parts are empty. finding: drawn as something that is wrong."""
    content = "\n".join(filter(None, parts))
    if not content:
        return ""
    place = f' id="{text(anchor)}"' if anchor else ""
    kind = " class=finding" if finding else ""
    return f"<section{place}{kind}>\n<h2>{text(heading)}</h2>\n{content}\n</section>\n"


def paragraph(words: str) -> str:
    return f"<p>{sentence(words)}</p>" if words else ""


def notes(lines: Sequence[str]) -> str:
    """Sentences as a list; nothing for none."""
    return f"<ul>{''.join(f'<li>{sentence(line)}</li>' for line in lines)}</ul>" if lines else ""


def table(
    rows: Sequence[Sequence[str]],
    caption: str,
    *,
    stacked: bool = False,
    explained: Mapping[str, str] | None = None,
    judged: Callable[[Sequence[str]], Judgement] = lambda row: "plain",
) -> str:
    """A <table>; its first row heads it, the first cell of every other row heads that row.

    A column in which nothing stands is left out.
    stacked: for many columns; on a telephone every row becomes a card, one cell a line. Else the first column stands still and
    the others move beneath it.
    explained: title of a row → a sentence that stands below it.
    judged: row → whether it is marked as good, bad or open.
    """
    head, *lines = _without_empty(rows)
    numeric = [_is_numeric([line[i] for line in lines]) for i in range(len(head))]
    kinds = [" class=n" if number else "" for number in numeric]
    titles = "".join(
        f'<th scope="col" role=columnheader{kind}>{text(cell)}</th>' if cell else "<td></td>"
        for cell, kind in zip(head, kinds, strict=True)
    )
    found = []
    for line in lines:
        first, *others = line
        cells = "".join(
            f'<td role=cell{kind} data-label="{text(title)}">{text(cell)}</td>'
            for cell, title, kind in zip(others, head[1:], kinds[1:], strict=True)
        )
        judgement = judged(line)
        mark = "" if judgement == "plain" else f" class={judgement}"
        found.append(f'<tr role=row{mark}><th scope="row" role=rowheader>{text(first)}</th>{cells}</tr>')
        if first in (explained or {}):
            says = f"<span>{sentence((explained or {})[first])}</span>"
            found.append(f'<tr role=row class=note><td role=cell colspan="{len(head)}">{says}</td></tr>')
    body = "\n".join(found)
    return (
        f'<div class="table{" stacked" if stacked else ""}" role=region tabindex="0" aria-label="{text(caption)}">'
        f"<table role=table><caption><span>{text(caption)}</span></caption>\n"
        f"<thead role=rowgroup><tr role=row>{titles}</tr></thead>\n<tbody role=rowgroup>\n{body}\n</tbody></table></div>\n"
    )


def _without_empty(rows: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    there = [i == 0 or len(rows) == 1 or any(row[i] not in ("", "–") for row in rows[1:]) for i in range(len(rows[0]))]
    return [[cell for cell, keep in zip(row, there, strict=True) if keep] for row in rows]


def _is_numeric(cells: Sequence[str]) -> bool:
    """Are most cells that say something numbers?"""
    said = [cell for cell in cells if cell not in ("", "–")]
    return bool(said) and 2 * sum(bool(_NUMBER.match(cell)) for cell in said) > len(said)


def picture(svg: str, title: str, explanation: str = "", *, wide: bool = False) -> str:
    """A <figure> with its title and a sentence that says what is seen. wide: over all columns of `pictures`."""
    name = f"{title}. {explanation}".strip()
    drawing = svg.replace("<svg", f'<svg role="img" aria-label="{text(name)}"', 1)
    more = f" <span>{text(explanation)}</span>" if explanation else ""
    kind = " class=wide" if wide else ""
    return f"<figure{kind}><figcaption><b>{text(title)}.</b>{more}</figcaption>{drawing}</figure>"


def pictures(*drawn: str) -> str:
    """Figures side by side as far as there is room."""
    return f"<div class=pictures>{''.join(drawn)}</div>" if any(drawn) else ""
