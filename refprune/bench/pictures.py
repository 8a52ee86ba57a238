"""The results as pictures (matplotlib): ratios as bars, convolutions under the roofline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..output import figures

Result = dict[str, Any]


def bars(path: Path, results: Sequence[Result], title: str) -> None:
    """Write `bars_figure`."""
    figures.save_picture(path, bars_figure(results, title))


def bars_figure(results: Sequence[Result], title: str) -> Any:
    """One horizontal bar a case, its name above it: how many times as fast refprune is, with quartiles; a mark at 1."""
    found = [r for r in results if r["ratio"] is not None]
    drawing, axes = figures.figure(title, "time of the other / time of refprune", "", (figures.NARROW, 1.0 + 0.42 * len(found)))
    ratios = np.array([r["ratio"] for r in found])
    ends = np.abs(np.array([r["ratio_quartiles"] for r in found]).reshape(-1, 2).T - ratios)
    colours = [figures.CYCLE[0] if ratio >= 1 else figures.CYCLE[1] for ratio in ratios]
    rows = np.arange(len(found))
    axes.barh(rows, ratios, height=0.4, xerr=ends, color=colours, error_kw={"lw": 0.8, "ecolor": "black"})
    for row, r in zip(rows, found, strict=True):
        axes.text(0.0, row - 0.26, f" {r['label']}: {r['ratio']:.2f}", va="bottom", fontsize=figures.LETTERS)
    axes.vlines(np.ones(len(found)), rows - 0.24, rows + 0.24, color="black", lw=1.2)
    axes.set_ylim(len(found) - 0.5, -0.8)
    axes.set_xlim(left=0.0)
    axes.set_yticks([])
    axes.grid(visible=False, axis="y")
    return drawing


def roofline(path: Path, results: Sequence[Result], limits: Mapping[str, float], title: str) -> None:
    """Write `roofline_figure`. InputError where no convolution was timed."""
    if not any(r.get("intensity") for r in results):
        raise InputError(f"{path}: the roofline shows convolutions; run the case conv")
    figures.save_picture(path, roofline_figure(results, limits, title))


def roofline_figure(results: Sequence[Result], limits: Mapping[str, float], title: str) -> Any:
    """GFLOP/s of every convolution against its arithmetic intensity, under the measured peak and memory bandwidth."""
    found = [r for r in results if r.get("intensity")]
    drawing, axes = figures.figure(title, "floating-point operations a byte", "GFLOP/s", (figures.NARROW, 4.2))
    intensity = np.geomspace(0.5, 2.0 * max(r["intensity"] for r in found), 200)
    roof = np.minimum(limits["peak_gflops"], limits["memory_gbytes"] * intensity)
    label = f"{limits['peak_gflops']:.0f} GFLOP/s, {limits['memory_gbytes']:.0f} GB/s"
    axes.loglog(intensity, roof, "k-", lw=1.2, label=label)
    for marker, task in zip("o^s", dict.fromkeys(r["task"] for r in found), strict=False):
        points = [r for r in found if r["task"] == task]
        for key, colour in (("gflops", figures.CYCLE[0]), ("torch_gflops", figures.CYCLE[1])):
            if points[0].get(key):
                heights = [r[key] for r in points]
                name = f"{'refprune' if key == 'gflops' else 'PyTorch'} {task}"
                axes.plot([r["intensity"] for r in points], heights, marker, color=colour, ms=5, label=name)
    for axis in (axes.xaxis, axes.yaxis):
        figures.log_axis(axis)
    drawing.legend(loc="outside lower center", ncols=2, fontsize=figures.LETTERS, frameon=False)
    return drawing
