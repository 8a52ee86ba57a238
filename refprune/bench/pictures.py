"""The results as pictures (matplotlib): ratios as bars, convolutions under the roofline."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..output.files import write_atomically

Result = dict[str, Any]
FORMATS = (".png", ".svg")


def check(path: Path) -> None:
    """InputError, before any work is done, if a picture could not be written there."""
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"{path}: pictures end in {' or '.join(FORMATS)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError("pictures need matplotlib:  pip install -e '.[experiments]'") from error


def bars(path: Path, results: Sequence[Result], title: str) -> None:
    """One horizontal bar a case: how many times as fast refprune is, with quartiles; a line at 1."""
    from matplotlib.figure import Figure

    found = [r for r in results if r["ratio"] is not None]
    figure = Figure(figsize=(7.5, 1.4 + 0.28 * len(found)), layout="constrained")
    axes = figure.subplots()
    ratios = np.array([r["ratio"] for r in found])
    spread = np.abs(np.array([r["ratio_quartiles"] for r in found]).reshape(-1, 2).T - ratios)
    colours = ["tab:blue" if ratio >= 1 else "tab:orange" for ratio in ratios]
    axes.barh([r["label"] for r in found], ratios, xerr=spread, color=colours, error_kw={"lw": 0.8})
    axes.axvline(1.0, color="black", lw=0.8)
    axes.invert_yaxis()
    axes.tick_params(labelsize=8)
    axes.set(title=title, xlabel="time of the other / time of refprune (median, quartiles)")
    _write(path, figure)


def roofline(path: Path, results: Sequence[Result], limits: dict[str, float], title: str) -> None:
    """GFLOP/s of every convolution against its arithmetic intensity, under the measured peak and memory bandwidth."""
    from matplotlib.figure import Figure

    found = [r for r in results if r.get("intensity")]
    if not found:
        raise InputError(f"{path}: the roofline shows convolutions; run the case conv")
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.subplots()
    intensity = np.geomspace(0.5, 2.0 * max(r["intensity"] for r in found), 200)
    roof = np.minimum(limits["peak_gflops"], limits["memory_gbytes"] * intensity)
    axes.loglog(intensity, roof, "k-", lw=1.2, label=f"{limits['peak_gflops']:.0f} GFLOP/s, {limits['memory_gbytes']:.0f} GB/s")
    for marker, task in zip("o^s", dict.fromkeys(r["task"] for r in found), strict=False):
        points = [r for r in found if r["task"] == task]
        for key, colour in (("gflops", "tab:blue"), ("torch_gflops", "tab:orange")):
            if points[0].get(key):
                heights = [r[key] for r in points]
                name = f"{'refprune' if key == 'gflops' else 'PyTorch'} {task}"
                axes.plot([r["intensity"] for r in points], heights, marker, color=colour, ms=5, label=name)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    axes.set(title=title, xlabel="floating-point operations a byte", ylabel="GFLOP/s")
    _write(path, figure)


def _write(path: Path, figure: Any) -> None:
    buffer = io.BytesIO()
    kind = path.suffix.lower().removeprefix(".")
    figure.savefig(buffer, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    write_atomically(path, buffer.getvalue())
