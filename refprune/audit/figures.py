"""Figures of the report, all of one look (extra `audit`)."""

from __future__ import annotations

from typing import Any

from ..output import figures


def make(title: str, x: str, y: str) -> tuple[Any, Any]:
    """(figure, axes) of matplotlib, a little smaller than those of runs."""
    return figures.figure(title, x, y, size=(6.4, 3.4))
