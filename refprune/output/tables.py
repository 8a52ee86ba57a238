"""Tables as text and as HTML, and the page around them."""

from __future__ import annotations

import html
from collections.abc import Sequence


def text_table(table: Sequence[Sequence[str]]) -> str:
    """Left-aligned titles, right-aligned columns."""
    first, *others = (max(map(len, column)) for column in zip(*table, strict=True))
    lines = [
        "  ".join([title.ljust(first), *(cell.rjust(width) for cell, width in zip(cells, others, strict=True))])
        for title, *cells in table
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def page(title: str, table: Sequence[Sequence[str]], body: str) -> str:
    """A self-contained HTML page: the title, the table (its first row heads it), then `body`, which is HTML."""
    title = html.escape(title)
    style = "body{font:15px sans-serif;max-width:60em;margin:2em auto}td,th{padding:.2em .8em;text-align:right}"
    style += "td:first-child{text-align:left}tr:nth-child(even){background:#f4f4f4}svg{max-width:100%;height:auto}"
    style += "pre{white-space:pre-wrap}"
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{style}</style><h1>{title}</h1>"
        f"{html_table(table)}{body}</html>\n"
    )


def html_table(table: Sequence[Sequence[str]]) -> str:
    """A <table>; the first row heads it."""
    head, *lines = table
    cells = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in lines)
    return f"<table><tr>{''.join(f'<th>{html.escape(cell)}</th>' for cell in head)}</tr>{cells}</table>"
