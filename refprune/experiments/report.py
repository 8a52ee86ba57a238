"""The end of a run as a text table and as one self-contained HTML file (extra `experiments`)."""

from __future__ import annotations

import bisect
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..output import figures, page
from ..output.files import encoded, write_atomically


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
        row("training objective J", lambda r: f"{r['objective']:.4f}"),
        row("sections kept", lambda r: f"{r['sections']} of {whole['sections_at_start']}"),
        *([row("units kept", units)] if whole["units_at_start"] else []),
        row("parameters", lambda r: share(r, "parameters")),
        row("MACs per image", lambda r: share(r, "macs_per_image")),
        row("MACs of training", training),
        row("wall-clock time", lambda r: f"{r['seconds']:.1f} s"),
        row("time of the first step (compiling)", lambda r: f"{r['first_step_seconds']:.1f} s"),
        row("undecided gates, both values tried", lambda r: str(by_rule(r, "compared"))),
        *([row("undecided gates, by first order", lambda r: str(by_rule(r, "first_order")))] if estimated else []),
        row("largest rounding of θ", lambda r: f"{r['rounded']:.3f}"),
        row("removal error/tolerance", _equivalence),
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
    """report.html in the run directory: verdict, table, θ over time, accuracy and MACs. None where matplotlib is missing."""
    try:
        figures.require_matplotlib()
    except InputError:
        return None
    metrics = {name: read_metrics(directory / name / "metrics.jsonl") for name in summary["runs"]}
    path = directory / "report.html"
    write_atomically(path, encoded(_page(summary, metrics)))
    return path


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise InputError(f"{path}: not JSON lines ({error}); the report cannot be made") from error


# --------------------------------------------------------------------------------------------------------------------
# Sentences of the page

#: Title of a row of `rows` → what the row says, for somebody who reads it for the first time.
EXPLAINED = {
    "training objective J": "Loss on the training images, plus weight decay, plus the cost of the gates that are on.",
    "MACs of training": "All passes count: forward, backward, the extra passes for the gradient of θ, and the final "
    "comparison of undecided gates. 100 % is the training of the unpruned network for as many steps.",
    "time of the first step (compiling)": "Part of the wall-clock time: kernels are compiled once, then kept on disk.",
    "undecided gates, both values tried": "At the end every gate is set to 0 or 1. The θ of these gates was still in "
    "between, so both values were tried on the training images and the better one was taken.",
    "undecided gates, by first order": "Undecided gates of units, too many to try both values of each: the first-order "
    "change of the training loss was compared with the unit's share of the cost.",
    "largest rounding of θ": "The other gates took the value that their θ was near to; no θ was farther from its value than "
    "this.",
    "removal error/tolerance": "At every removal the network with closed gates and the smaller network are asked for the "
    "same outputs. Up to 1 their difference is rounding; above 1 the run fails.",
}


def verdict(summary: Mapping[str, Any]) -> str:
    """The run in one sentence."""
    name, run = next(iter(summary["runs"].items()))
    accuracy = f"{100 * run['test_accuracy']:.2f} %"
    if name != "pruned":
        return f"Trained without pruning: the test accuracy is {accuracy}."
    kept = [f"{run['sections']} of {run['sections_at_start']} sections"] if run["sections_at_start"] else []
    if run["units_at_start"]:
        kept.append(f"{sum(run['units'].values()):,} of {sum(run['units_at_start'].values()):,} units")
    kept.append(f"{run['macs_per_image'] / run['macs_per_image_at_start']:.0%} of the MACs".replace("%", " %"))
    other = summary["runs"].get("unpruned")
    against = "" if other is None else f", against {100 * other['test_accuracy']:.2f} % without pruning"
    sentence = f"Pruning kept {', '.join(kept[:-1])} and {kept[-1]}; the test accuracy is {accuracy}{against}."
    return sentence if holds(summary) else f"A removal changed what the network computes. {sentence}"


def numbers(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(value, what it is) of what a reader looks for first."""
    name, run = next(iter(summary["runs"].items()))
    found = [(f"{100 * run['test_accuracy']:.2f} %", "test accuracy")]
    if name == "pruned":
        shares = {
            "of the MACs per image": run["macs_per_image"] / run["macs_per_image_at_start"],
            "of the parameters": run["parameters"] / run["parameters_at_start"],
            "of the MACs of unpruned training": run["training_macs"] / run["training_macs_unpruned"],
        }
        found += [(f"{100 * share:.0f} %", what) for what, share in shares.items()]
    return [*found, (f"{run['seconds']:.1f} s", "wall-clock time")]


def _page(summary: Mapping[str, Any], metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    broken = {name: run["masked_compact_error"] for name, run in summary["runs"].items() if not holds({"runs": {name: run}})}
    wrong = [
        f"{name}: the outputs before and after a removal differ by {error:.3g} times what rounding explains; up to 1 is "
        f"allowed."
        for name, error in broken.items()
    ]
    compared, counted = _tried(summary), [line for line in decision_lines(summary) if "were undecided" in line]
    first, run = next(iter(summary["runs"].items()))
    steps = metrics[first]
    names = {name for line in steps if line["event"] == "step" for name in line["theta"]}
    drawn = [
        page.picture(
            figures.svg(theta_picture(steps)),
            "θ over time",
            "A line for each gate, the mean for a group of unit gates; a cross where a gate was removed.",
        )
        if names
        else "",
        page.picture(
            figures.svg(lives_picture(steps)),
            "When gates were removed",
            "A row for each gate or group of unit gates; a cross for every removal.",
        )
        if 0 < len(names) <= NAMED
        else "",
        page.picture(
            figures.svg(_accuracy_picture(metrics)),
            "Test accuracy",
            "After every epoch, against the MACs that the training had taken.",
        ),
        page.picture(figures.svg(_macs_picture(metrics)), "Cost of the network", "MACs of one image after every epoch."),
    ]
    body = [
        page.section("A removal was not exact", page.notes(wrong), finding=True),
        page.section("Nothing is left to prune", page.notes(nothing_left_lines(summary))),
        page.section(
            "Result",
            page.table(rows(summary), "Each training run; shares are of the network at the start", explained=EXPLAINED),
            page.paragraph("One seed: how much such results vary by chance, `refprune sweep` shows."),
        ),
        page.section(
            "Gates that were undecided at the end",
            page.table(compared, "Both values tried on the training images; the smaller J was taken") if compared else "",
            page.notes(counted),
        ),
        page.section("How it went", page.pictures(*drawn)),
        page.section(
            "What is left of every layer", page.table(layer_rows(run), f"Layers of the network “{first}”, in their order")
        ),
    ]
    title = f"{summary['name']}: {summary['data']}, seed {summary['seed']}"
    judgement: page.Judgement = "good" if holds(summary) else "bad"
    return page.page(title, verdict(summary), judgement, "".join(body), numbers=numbers(summary), made_by="refprune run")


def _tried(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row for every gate of which both values were tried (O9); empty where there was none."""
    found = [
        (
            f"{d['gate']}[{d['unit']}]",
            name,
            f"{d['theta']:.3f}",
            f"{d['objective_on']:.4f}",
            "the layer’s last unit" if d["objective_off"] is None else f"{d['objective_off']:.4f}",
            "kept" if d["on"] else "removed",
        )
        for name, run in summary["runs"].items()
        for d in run["decisions"]
        if d["rule"] == "compared"
    ]
    return [("gate", "training run", "θ", "J if on", "J if off", "decision"), *found] if found else []


# --------------------------------------------------------------------------------------------------------------------
# Pictures


#: So many gates have a row of their own in the picture of their lives, and names in that of θ.
NAMED = 48


def theta_picture(metrics: Sequence[Mapping[str, Any]]) -> Any:
    """θ of every gate over the steps, a cross where a gate is removed; names for those that are there at the end."""
    drawing, axes = figures.figure("θ over time", "step", "θ")
    draw_theta(axes, metrics)
    named = [line for line in axes.lines if not line.get_label().startswith("_")]
    last = max((line.get_xdata()[-1] for line in named), default=0)
    for line in named:
        if line.get_xdata()[-1] < last:
            line.set_label("_")
    if sum(line.get_label() != "_" for line in named) <= 12:
        figures.label_lines(axes)
    return drawing


def lives_picture(metrics: Sequence[Mapping[str, Any]]) -> Any:
    """A row a gate, in the order of the network: a line for as long as it is there, a mark for every removal."""
    names = list(dict.fromkeys(name for line in metrics if line["event"] == "step" for name in line["theta"]))
    drawing, axes = figures.figure("When gates were removed", "step", "", (figures.NARROW, 0.9 + 0.17 * len(names)))
    for row, name in enumerate(names):
        steps = [line["step"] for line in metrics if line["event"] == "step" and name in line["theta"]]
        removed = [line["step"] for line in metrics if line["event"] == "removal" and name in line["removed"]]
        axes.plot([0, max([*steps, *removed])], [row, row], lw=3.0, alpha=0.5, color=figures.CYCLE[0], solid_capstyle="butt")
        axes.plot(removed, [row] * len(removed), "x", ms=5, color=figures.CYCLE[3])
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.grid(visible=False, axis="y")
    return drawing


def draw_theta(axes: Any, metrics: Sequence[Mapping[str, Any]]) -> None:
    """One curve a gate from the lines of metrics.jsonl; a cross where it is removed."""
    steps = [line for line in metrics if line["event"] == "step"]
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in steps:
        for name, value in line["theta"].items():
            curves.setdefault(name, []).append((line["step"], value))
    for i, (name, points) in enumerate(curves.items()):
        colour = figures.CYCLE[i % len(figures.CYCLE)]
        axes.plot(*zip(*points, strict=True), lw=1.2, label=name, color=colour)
        removed = [line["step"] for line in metrics if line["event"] == "removal" and name in line["removed"]]
        before = [bisect.bisect_right(points, (step, math.inf)) - 1 for step in removed]
        axes.plot(removed, [points[max(i, 0)][1] for i in before], "x", ms=4, color=colour)
    axes.set_ylim(-0.05, 1.05)


def _scored(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The lines with a test score: after every epoch, and after the end."""
    return [line for line in lines if line["event"] in ("epoch", "end")]


def _accuracy_picture(metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> Any:
    drawing, axes = figures.figure("Test accuracy", "MACs of training", "test accuracy, %")
    for name, lines in metrics.items():
        scored = _scored(lines)
        axes.plot([e["macs"] for e in scored], [100 * e["test_accuracy"] for e in scored], "o-", ms=3, lw=1.2, label=name)
    figures.count_axis(axes.xaxis)
    figures.label_lines(axes)
    return drawing


def _macs_picture(metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> Any:
    drawing, axes = figures.figure("Cost of the network", "step", "MACs per image")
    for name, lines in metrics.items():
        scored = _scored(lines)
        axes.plot([e["step"] for e in scored], [e["macs_per_image"] for e in scored], "o-", ms=3, lw=1.2, label=name)
    axes.set_ylim(bottom=0)
    figures.count_axis(axes.yaxis)
    figures.label_lines(axes)
    return drawing
