"""Pictures of similarities and of robustness (extra `experiments`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..arrays import Array
from ..output import figures
from .robustness import Row


def similarity_matrix(names: Sequence[str], values: Array, title: str) -> Any:
    """CKA of all pairs of layers as colours; white where there is none."""
    drawing, axes = figures.figure(title, "", "", (7.2, 6.4))
    drawing.colorbar(axes.imshow(values, vmin=0.0, vmax=1.0, cmap="magma"), ax=axes)
    step = max(len(names) // 40, 1)
    ticks = range(0, len(names), step)
    axes.set_xticks(ticks, names[::step], rotation=90, fontsize=6.5)
    axes.set_yticks(ticks, names[::step], fontsize=6.5)
    axes.grid(visible=False)
    return drawing


def robustness_picture(results: Mapping[str, Sequence[Row]]) -> Any:
    """Accuracy against ε, and the mean over corruptions against severity; a line a network."""
    drawing, (left, right) = figures.panels(1, 2, (9.6, 3.6), sharey=True)
    left.set(title="FGSM", xlabel="255 ε", ylabel="accuracy, %")
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
    figures.label_lines(right)
    return drawing
