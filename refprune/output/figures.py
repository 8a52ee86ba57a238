"""Figures by matplotlib (extra `experiments`): drawn, put into a page, written to a file.

A figure is drawn so narrow that its letters can be read on a telephone. In a page its colours are CSS variables of
`page_style.COLOURS`, so that it is legible on a light page and on a dark one; a file has a white background.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from . import install

HINT = f"report.html needs matplotlib:  {install.command('experiments')}"

#: Width in inches at which the letters below have 11 px on a telephone of 400 px.
NARROW = 3.8

#: Size of letters in points.
LETTERS = 8.5

#: matplotlib's settings for every figure.
RC: dict[Any, Any] = dict.fromkeys(
    ("font.size", "axes.titlesize", "axes.labelsize", "xtick.labelsize", "ytick.labelsize", "legend.fontsize"), LETTERS
) | {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "refprune",
}

#: Colours of matplotlib's cycle: the first is "c0" in a page, and so on.
CYCLE = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf")

#: Colour as matplotlib writes it → as it stands in a page.
_IN_PAGE = {f": {colour}": f": var(--c{i})" for i, colour in enumerate(CYCLE)} | {
    ": #000000": ": currentColor",
    ": #ffffff": ": var(--paper)",
    ": #b0b0b0": ": var(--line)",
    ": #cccccc": ": var(--line)",
    ": #808080": ": var(--soft)",
    ": #cfe3f7": ": var(--card)",
}


def check_picture(path: Path) -> None:
    """InputError if there is no matplotlib, or the name does not end in .png or .svg: before anything is computed."""
    require_matplotlib()
    if path.suffix.lower() not in (".png", ".svg"):
        raise InputError(f"{path}: the name of a picture ends in .png or .svg")


def save_picture(path: Path, drawing: Any) -> None:
    """Write a figure; the ending says how (.png, .svg)."""
    import matplotlib

    check_picture(path)
    try:
        with matplotlib.rc_context(RC):
            drawing.savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None, dpi=150)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error})") from error


def require_matplotlib() -> None:
    """InputError with the command that installs it.

    Figures are drawn without a backend. MPLBACKEND, as a notebook sets it, may name one that is missing here: it is not asked.
    """
    given = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError(HINT.replace("report.html needs", "pictures need")) from error
    finally:
        if given is not None:
            os.environ["MPLBACKEND"] = given


def panels(rows: int, columns: int, size: tuple[float, float], **how: Any) -> tuple[Any, list[Any]]:
    """A matplotlib figure, its size in inches, and its axes row by row; how: for `Figure.subplots`."""
    require_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(RC):
        drawing = Figure(figsize=size, layout="constrained")
        found = list(drawing.subplots(rows, columns, squeeze=False, **how).flat)
    for axes in found:
        axes.grid(color="#b0b0b0", lw=0.5, alpha=0.6)
    return drawing, found


def figure(title: str, x: str, y: str, size: tuple[float, float] = (NARROW, 2.7)) -> tuple[Any, Any]:
    """A matplotlib figure, its size in inches, with one pair of axes."""
    import matplotlib

    drawing, (axes,) = panels(1, 1, size)
    with matplotlib.rc_context(RC):
        axes.set(title=title, xlabel=x, ylabel=y)
    return drawing, axes


def count_axis(axis: Any) -> None:
    """Large counts on an axis as 20 k, 5 M, 1.5 G."""
    from matplotlib.ticker import EngFormatter

    axis.set_major_formatter(EngFormatter())


def log_axis(axis: Any) -> None:
    """Powers of ten on a logarithmic axis in one size of letters: 10⁻³, 1, 10⁵."""
    from matplotlib.ticker import FuncFormatter

    raised = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

    def written(value: float, _: int | None) -> str:
        power = round(math.log10(value))
        return f"{value:g}" if 0 <= power <= 3 else f"10{str(power).translate(raised)}"

    axis.set_major_formatter(FuncFormatter(written))


def label_lines(axes: Any) -> None:
    """Write the name of every labelled line beside its last point, in its colour, in place of a legend.

    Names that would overlap are moved apart; that of a line which ends before the right edge stands above its end. To be called
    when everything is drawn and the limits are set.
    """
    handles, labels = axes.get_legend_handles_labels()
    labels = short_names(labels)
    lines = [getattr(handle, "lines", [handle])[0] for handle in handles]
    axes.autoscale_view()
    to_axes = axes.transAxes.inverted()
    ends = [_last_seen(to_axes.transform(line.get_transform().transform(line.get_xydata()))) for line in lines]
    at_edge = [i for i, (x, _) in enumerate(ends) if x > 0.9]
    height = 72.0 * axes.figure.get_size_inches()[1] * axes.get_position().height  # in points, about
    row = 1.25 * LETTERS / height
    heights = dict(zip(at_edge, spread([ends[i][1] for i in at_edge], row), strict=True))
    for i, (line, label) in enumerate(zip(lines, labels, strict=True)):
        x, y = ends[i]
        style = {"color": line.get_color(), "fontsize": LETTERS, "transform": axes.transAxes}
        if i in heights:
            axes.text(1.02, heights[i], label, va="center", **style)
        else:
            axes.text(x, y + 0.03, label, va="bottom", ha="center", **style)


def short_names(names: Sequence[str], longest: int = 24) -> list[str]:
    """The names, the middle of a longer one left out; numbered where two would then be the same."""
    head, tail = longest // 2 - 2, longest - longest // 2 + 1
    short = [name if len(name) <= longest else f"{name[:head]}…{name[-tail:]}" for name in names]
    return short if len(set(short)) == len(set(names)) else [f"{i + 1}: {name}" for i, name in enumerate(short)]


def _last_seen(points: Any) -> tuple[float, float]:
    """The last of the points (n, 2), in units of the axes, that lies inside them; else the last one, moved to their edge."""
    inside = [point for point in points if (point >= -0.001).all() and (point <= 1.001).all()]
    x, y = inside[-1] if inside else points[-1].clip(0.0, 1.0)
    return float(x), float(y)


def spread(heights: Sequence[float], least: float) -> list[float]:
    """The heights, moved apart as little as needed until any two are at least so far from each other; their order stays."""
    merged: list[tuple[list[int], float]] = []  # neighbours that touch, and the middle of their heights
    for i, height in sorted(enumerate(heights), key=lambda one: one[1]):
        merged.append(([i], height))
        while len(merged) > 1 and merged[-1][1] - merged[-2][1] < least * (len(merged[-1][0]) + len(merged[-2][0])) / 2:
            (above, high), (below, low) = merged.pop(), merged.pop()
            merged.append((below + above, (low * len(below) + high * len(above)) / (len(below) + len(above))))
    found = list(heights)
    for members, centre in merged:
        for k, i in enumerate(members):
            found[i] = centre + least * (k - (len(members) - 1) / 2)
    return found


def svg(drawing: Any) -> str:
    """The figure as an <svg> element for a page; the title of a single pair of axes is left out, it stands above the figure."""
    titled = [axes for axes in drawing.axes if axes.get_title()]
    title = titled[0].get_title() if len(titled) == 1 else ""
    if title:
        titled[0].set_title("")
    text = _rendered(drawing, transparent=True)
    if title:
        titled[0].set_title(title)
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r"font: (?:(?:bold|italic|normal|oblique|\d+) )*([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    for written, shown in _IN_PAGE.items():
        text = text.replace(written, shown)
    return _with_own_ids(text)


def svg_file(drawing: Any) -> bytes:
    """The figure as the content of an .svg file."""
    return _rendered(drawing, transparent=False).encode()


def _rendered(drawing: Any, *, transparent: bool) -> str:
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context(RC):
        drawing.savefig(buffer, format="svg", metadata={"Date": None}, transparent=transparent)
    return buffer.getvalue()


def _with_own_ids(text: str) -> str:
    """Ids that nothing refers to go, the others get a prefix of their own: a page may hold several pictures."""
    prefix = hashlib.sha256(text.encode()).hexdigest()[:8]
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda m: f' id="{prefix}-{m[1]}"' if m[1] in used else "", text)
    return re.sub(r'(href="|url\()#', rf"\1#{prefix}-", text)
