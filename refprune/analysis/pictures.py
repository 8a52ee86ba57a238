"""Pictures of pruning runs, similarities and robustness (extra `experiments`), and the page of a pruning run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..arrays import Array
from ..output.figures import figure
from .robustness import Row


def similarity_matrix(names: Sequence[str], values: Array, title: str) -> Any:
    """CKA of all pairs of layers as colours; white where there is none."""
    drawing, axes = figure(title, "", "")
    drawing.set_size_inches(7.2, 6.4)
    drawing.colorbar(axes.imshow(values, vmin=0.0, vmax=1.0, cmap="magma"), ax=axes)
    step = max(len(names) // 40, 1)
    ticks = range(0, len(names), step)
    axes.set_xticks(ticks, names[::step], rotation=90, fontsize=6)
    axes.set_yticks(ticks, names[::step], fontsize=6)
    axes.grid(visible=False)
    return drawing


def robustness_picture(results: Mapping[str, Sequence[Row]]) -> Any:
    """Accuracy against ε, and the mean over corruptions against severity; a line a network."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(9.6, 3.6), layout="constrained")
    left, right = drawing.subplots(1, 2, sharey=True)
    left.set(title="FGSM", xlabel="255 ε", ylabel="accuracy (%)")
    right.set(title="corruptions, mean", xlabel="severity")
    for name, rows in results.items():
        clean = (0.0, 100 * rows[0].accuracy)
        attacks = [(255 * row.strength, 100 * row.accuracy) for row in rows if row.what == "fgsm"]
        severe: dict[float, list[float]] = {}
        for row in rows:
            if row.what not in ("clean", "fgsm"):
                severe.setdefault(row.strength, []).append(100 * row.accuracy)
        means = [(severity, float(np.mean(found))) for severity, found in severe.items()]
        for axes, points in ((left, attacks), (right, means)):
            axes.plot(*zip(clean, *points, strict=True), "o-", ms=3, label=name)
            axes.grid(alpha=0.3)
    left.legend()
    return drawing
