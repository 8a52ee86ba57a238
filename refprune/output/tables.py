"""Tables as text."""

from __future__ import annotations

from collections.abc import Sequence


def text_table(table: Sequence[Sequence[str]]) -> str:
    """Left-aligned titles, right-aligned columns."""
    first, *others = (max(map(len, column)) for column in zip(*table, strict=True))
    lines = [
        "  ".join([title.ljust(first), *(cell.rjust(width) for cell, width in zip(cells, others, strict=True))])
        for title, *cells in table
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
