"""Figures of the report, all of one look (extra `audit`)."""

from __future__ import annotations

from typing import Any


def make(title: str, x: str, y: str) -> tuple[Any, Any]:
    """(figure, axes) of matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    return figure, axes
