"""The end of a run as a text table and as one self-contained HTML file (extra `experiments`)."""

from __future__ import annotations

import bisect
import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..output.figures import figure, svg
from ..output.files import write_atomically
from ..output.tables import html_table, page


def rows(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The table at the end of a run: quantity, then one column a training run; shares are of the first one's network."""
    runs = summary["runs"]
    whole = next(iter(runs.values()))

    def share(run: Mapping[str, Any], key: str) -> str:
        return f"{run[key]:,} ({run[key] / whole[key + '_at_start']:.0%})"

    def training(run: Mapping[str, Any]) -> str:
        per_step = whole["training_macs_unpruned"] / whole["steps"]
        return f"{run['training_macs']:.2e} ({run['training_macs'] / (per_step * run['steps']):.0%})"

    def by_rule(run: Mapping[str, Any], rule: str) -> int:
        return sum(decision["rule"] == rule for decision in run["decisions"])

    estimated = any(by_rule(run, "first_order") for run in runs.values())

    def units(run: Mapping[str, Any]) -> str:
        return f"{sum(run['units'].values()):,} of {sum(whole['units_at_start'].values()):,}"

    def row(title: str, value: Any) -> tuple[str, ...]:
        return title, *(value(run) for run in runs.values())

    return [
        ("", *runs),
        row("test accuracy", lambda r: f"{100 * r['test_accuracy']:.2f} %"),
        row("test loss (nats)", lambda r: f"{r['test_loss']:.4f}"),
        row("J on the training images", lambda r: f"{r['objective']:.4f}"),
        row("sections kept", lambda r: f"{r['sections']} of {whole['sections_at_start']}"),
        *([row("units kept", units)] if whole["units_at_start"] else []),
        row("parameters", lambda r: share(r, "parameters")),
        row("MACs per image", lambda r: share(r, "macs_per_image")),
        row("training MACs", training),
        row("wall-clock", lambda r: f"{r['seconds']:.1f} s"),
        row("of it the first step (compiling)", lambda r: f"{r['first_step_seconds']:.1f} s"),
        row("gates decided by comparison", lambda r: str(by_rule(r, "compared"))),
        *([row("gates decided by first order", lambda r: str(by_rule(r, "first_order")))] if estimated else []),
        row("θ rounded by at most", lambda r: f"{r['rounded']:.3f}"),
        row("masked ≡ compact: error/tolerance", _equivalence),
    ]


def holds(summary: Mapping[str, Any]) -> bool:
    """Was every compact network the masked one, as far as it was compared?"""
    return all((run["masked_compact_error"] or 0.0) <= 1.0 for run in summary["runs"].values())


def _equivalence(run: Mapping[str, Any]) -> str:
    error = run["masked_compact_error"]
    if error is None:
        return "not comparable" if run["removals"] else "nothing removed"
    return f"{error:.2g} {'(holds)' if error <= 1.0 else '(VIOLATED)'}"


def decision_lines(summary: Mapping[str, Any]) -> list[str]:
    """One line for every gate that training left undecided (O9), one a group for those decided by first order."""
    lines = [
        f"{name}: gate {d['gate']}[{d['unit']}] stood at θ = {d['theta']:.3f}; "
        + f"training loss + cost of size: on {d['objective_on']:.4f}, off "
        + ("not possible (the layer's last unit)" if d["objective_off"] is None else f"{d['objective_off']:.4f}")
        + (": kept" if d["on"] else ": removed")
        for name, run in summary["runs"].items()
        for d in run["decisions"]
        if d["rule"] == "compared"
    ]
    for name, run in summary["runs"].items():
        groups: dict[str, list[bool]] = {}
        for d in run["decisions"]:
            if d["rule"] == "first_order":
                groups.setdefault(d["gate"], []).append(d["on"])
        lines += [
            f"{name}: {len(kept)} units of {gate} were undecided; by the first-order change of the training loss "
            f"against their share of the cost {sum(kept)} are kept"
            for gate, kept in groups.items()
        ]
    return lines


def nothing_left_lines(summary: Mapping[str, Any]) -> list[str]:
    """One line for every network that has been pruned to nothing."""
    return [
        f"{name}: none of {run['sections_at_start']} sections is left, only the layers outside of them"
        for name, run in summary["runs"].items()
        if run["sections_at_start"] and not run["sections"]
    ]


def layer_rows(run: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A training run's network layer by layer: what is left of the MACs of one image and of the parameters."""

    def of(row: Mapping[str, int], key: str) -> str:
        start = row[f"{key}_at_start"]
        return f"{row[key]:,} of {start:,} ({row[key] / start:.0%})" if start else "–"

    cells = ((name, of(row, "macs"), of(row, "parameters")) for name, row in run["layers"].items())
    return [("layer", "MACs per image", "parameters"), *cells]


def write_html(directory: Path, summary: Mapping[str, Any]) -> Path | None:
    """report.html in the run directory: table, θ over time, accuracy and MACs. None where matplotlib is missing."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    metrics = {name: read_metrics(directory / name / "metrics.jsonl") for name in summary["runs"]}
    pictures = [_theta_picture(next(iter(metrics.values()))), _accuracy_picture(metrics), _macs_picture(metrics)]
    path = directory / "report.html"
    write_atomically(path, _page(summary, pictures).encode())
    return path


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise InputError(f"{path}: not JSON lines ({error}); the report cannot be made") from error


def _theta_picture(metrics: Sequence[Mapping[str, Any]]) -> str:
    """θ of every gate over the steps; a cross where a gate is removed."""
    drawing, axes = figure("θ over time", "step", "θ (layer gates; mean of unit gates)")
    draw_theta(axes, metrics)
    if 0 < len(axes.lines) <= 48:
        axes.legend(fontsize=6, ncols=2, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return svg(drawing)


def draw_theta(axes: Any, metrics: Sequence[Mapping[str, Any]]) -> None:
    """One curve a gate from the lines of metrics.jsonl; a cross where it is removed."""
    from matplotlib import colormaps

    steps = [line for line in metrics if line["event"] == "step"]
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in steps:
        for name, value in line["theta"].items():
            curves.setdefault(name, []).append((line["step"], value))
    colours = colormaps["tab20" if len(curves) > 10 else "tab10"]
    for i, (name, points) in enumerate(curves.items()):
        colour = colours(i % colours.N)
        axes.plot(*zip(*points, strict=True), lw=1.2, label=name, color=colour)
        removed = [line["step"] for line in metrics if line["event"] == "removal" and name in line["removed"]]
        before = [bisect.bisect_right(points, (step, math.inf)) - 1 for step in removed]
        axes.plot(removed, [points[max(i, 0)][1] for i in before], "x", color=colour)
    axes.set_ylim(-0.05, 1.05)


def _scored(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The lines with a test score: after every epoch, and after the end."""
    return [line for line in lines if line["event"] in ("epoch", "end")]


def _accuracy_picture(metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    drawing, axes = figure("Test accuracy", "training MACs spent", "test accuracy")
    for name, lines in metrics.items():
        scored = _scored(lines)
        axes.plot([e["macs"] for e in scored], [e["test_accuracy"] for e in scored], "o-", ms=3, label=name)
    axes.legend()
    return svg(drawing)


def _macs_picture(metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    drawing, axes = figure("Cost of the network", "step", "MACs per image")
    for name, lines in metrics.items():
        scored = _scored(lines)
        axes.plot([e["step"] for e in scored], [e["macs_per_image"] for e in scored], "o-", ms=3, label=name)
    axes.set_ylim(bottom=0)
    axes.legend()
    return svg(drawing)


def _page(summary: Mapping[str, Any], pictures: Sequence[str]) -> str:
    title = f"{summary['name']}, data {summary['data']}, seed {summary['seed']}"
    body = "".join(f"<p>{html.escape(line)}</p>" for line in nothing_left_lines(summary))
    notes = "".join(f"<li>{html.escape(line)}</li>" for line in decision_lines(summary))
    body += f"<h2>Gates that were undecided</h2><ul>{notes}</ul>" if notes else ""
    first, run = next(iter(summary["runs"].items()))
    layers = f"<h2>What is left of every layer ({html.escape(first)})</h2>{html_table(layer_rows(run))}"
    return page(title, rows(summary), body + "".join(pictures) + layers)
