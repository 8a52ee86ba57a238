"""Pictures of pruning runs, similarities and robustness (extra `experiments`), and the page of a pruning run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import iterative_report
from .arrays import Array
from .errors import InputError
from .output.figures import figure, require_matplotlib, svg
from .output.files import write_atomically
from .output.tables import html_table, page
from .robustness import Row

# --------------------------------------------------------------------------------------------------------------------
# Pruning by criterion


def pruning_page(directory: Path, run: Mapping[str, Any]) -> Path | None:
    """report.html of a pruning run: what was pruned and how, its table, accuracy against MACs, scores over rounds.

    run: its summary.json. None where matplotlib is missing.
    """
    try:
        require_matplotlib()
    except InputError:
        return None
    criterion = run["plan"]["criterion"]
    drawings = [accuracy_against_macs({criterion: run})]
    scored = [record for record in run["rounds"] if record.get("scores")]
    drawings += [scores_over_rounds(scored)] if scored else []
    facts = [("setting", "value"), ("stopped", run["stopped"]), ("result", run["result"])]
    facts += iterative_report.facts(dict(run)).items()
    body = "".join(map(svg, drawings)) + html_table(facts)
    path = directory / "report.html"
    write_atomically(path, page(f"pruning by {criterion}", iterative_report.rounds(dict(run)), body).encode())
    return path


def accuracy_against_macs(summaries: Mapping[str, Mapping[str, Any]]) -> Any:
    """A line a run: accuracy after fine-tuning against the share of MACs that is left; thin: before fine-tuning."""
    drawing, axes = figure("Accuracy against computation", "MACs per image, share of the start", "accuracy (%)")
    for name, summary in summaries.items():
        rounds = summary["rounds"]
        share = [record["macs_per_image"] / rounds[0]["macs_per_image"] for record in rounds]
        (line,) = axes.plot(share, [100 * record["test_accuracy"] for record in rounds], "o-", ms=3, label=name)
        before = [100 * record["accuracy_before_finetuning"] for record in rounds[1:]]
        axes.plot(share[1:], before, ":", lw=0.8, color=line.get_color())
    axes.invert_xaxis()
    axes.legend()
    return drawing


def scores_over_rounds(rounds: Sequence[Mapping[str, Any]]) -> Any:
    """Rows: the sections; columns: rounds; colour: the score in its round; a cross where a section goes."""
    drawing, axes = figure("Scores", "round", "")
    names = list(rounds[0]["scores"])
    values = np.array([[record["scores"].get(name, np.nan) for record in rounds] for name in names])
    drawing.set_size_inches(7.2, 1.5 + 0.2 * len(names))
    drawing.colorbar(axes.imshow(values, aspect="auto", cmap="viridis"), ax=axes)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_xticks(range(len(rounds)), [str(record["round"]) for record in rounds], fontsize=7)
    axes.plot(range(len(rounds)), [names.index(record["removed"]) for record in rounds], "rx")
    axes.grid(visible=False)
    return drawing


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


def robustness(results: Mapping[str, Sequence[Row]]) -> Any:
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
