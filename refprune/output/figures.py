"""Figures by matplotlib (extra `experiments`): drawn, put into a page, written to a file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from ..errors import InputError

HINT = "report.html needs matplotlib:  pip install -e '.[experiments]'"


def check_picture(path: Path) -> None:
    """InputError if there is no matplotlib, or the name does not end in .png or .svg: before anything is computed."""
    require_matplotlib()
    if path.suffix not in (".png", ".svg"):
        raise InputError(f"{path}: the name of a picture ends in .png or .svg")


def save_picture(path: Path, drawing: Any) -> None:
    """Write a figure; the ending says how (.png, .svg)."""
    check_picture(path)
    try:
        drawing.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=150)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error})") from error


def require_matplotlib() -> None:
    """InputError with the command that installs it."""
    try:
        import matplotlib
    except ImportError as error:
        raise InputError(HINT.replace("report.html needs", "pictures need")) from error
    matplotlib.use("Agg")


def figure(title: str, x: str, y: str, size: tuple[float, float] = (7.2, 3.6)) -> tuple[Any, Any]:
    """A matplotlib figure, its size in inches, with one pair of axes."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=size, layout="constrained")
    axes = drawing.subplots()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    return drawing, axes


def small_figure(title: str, x: str, y: str) -> tuple[Any, Any]:
    """As `figure`, a little smaller: for pages with many of them."""
    return figure(title, x, y, size=(6.4, 3.4))


def svg(drawing: Any) -> str:
    """The figure as an <svg> element."""
    buffer = io.StringIO()
    drawing.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
