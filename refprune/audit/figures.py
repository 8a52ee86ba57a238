"""Figures of the report, all of one look (extra `audit`)."""

from __future__ import annotations

from typing import Any

from .. import report


def make(title: str, x: str, y: str) -> tuple[Any, Any]:
    """(figure, axes) of matplotlib, a little smaller than those of runs."""
    return report.figure(title, x, y, size=(6.4, 3.4))
