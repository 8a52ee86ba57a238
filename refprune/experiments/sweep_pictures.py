"""Pictures of a sweep: accuracy against size, one knob, θ and removals over time."""

from __future__ import annotations

import itertools
import statistics
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..output import figures
from . import report
from .sweep_file import run_directory
from .sweep_tables import COSTS, SHARES, Point, Values, deviation, frontier, points, something_pruned

#: The training runs in which nothing is pruned.
UNPRUNED = ("unpruned", "trained")
MARKERS = {"pruned": "o", "unpruned": "s", "from-scratch": "^", "trained": "D"}


# --------------------------------------------------------------------------------------------------------------------
# Pictures


def accuracy_picture(page: Mapping[str, Any]) -> Any:
    """Test accuracy against MACs and against parameters, a panel each: what pruning gains and what it costs.

    A marker a setting and training run: the mean over seeds, with bars of a standard deviation; small dots are the runs.
    Colours are groups, each with its frontier as a line; grey: the frontier of all; dashed: the best network that was not
    pruned. The upper axis is the share of the network at the start, where all settings start with one size.
    """
    drawing, panels = figures.panels(2, 1, (figures.NARROW, 6.4), sharey=True)
    found = points(page)
    colours = _colours(dict.fromkeys(point.group for point in found))
    for axes, cost in zip(panels, COSTS, strict=True):
        axes.set(xlabel=COSTS[cost], ylabel="test accuracy, %")
        _steps(axes, [(point.mean(cost), point.accuracy) for point in found], lw=5, alpha=0.25, color="grey", label="frontier")
        for group, colour in colours.items():
            mine = [point for point in found if point.group == group]
            _steps(axes, [(point.mean(cost), point.accuracy) for point in mine], lw=0.8, color=colour)
            for name in dict.fromkeys(point.network for point in mine):
                label = ", ".join(filter(None, (group, name)))
                _markers(axes, [point for point in mine if point.network == name], cost, color=colour, label=label)
        whole = [point.accuracy for point in found if point.network in UNPRUNED]
        if whole:
            axes.axhline(max(whole), ls="--", lw=1.0, color="black", label="best without pruning")
        _size_axis(axes, cost, found)
    if len(panels[0].get_legend_handles_labels()[0]) <= 24:
        drawing.legend(
            *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=figures.LETTERS, frameon=False
        )
    return drawing


def _colours(groups: Iterable[str]) -> dict[str, str]:
    return {name: figures.CYCLE[i % len(figures.CYCLE)] for i, name in enumerate(groups)}


def _steps(axes: Any, where: Sequence[tuple[float, float]], **style: Any) -> None:
    """The frontier of (cost, accuracy) points as a line: what is reached at this cost or less."""
    axes.plot(*zip(*(where[i] for i in frontier(where)), strict=True), drawstyle="steps-post", zorder=1, **style)


def _markers(axes: Any, mine: Sequence[Point], cost: str, *, color: Any, label: str) -> None:
    for point in mine:
        accuracies = [100.0 * a for a in point.values["test_accuracy"]]
        axes.plot(point.values[cost], accuracies, ".", ms=3, alpha=0.5, color=color)
    bars = {"xerr": [point.deviation(cost) for point in mine], "yerr": [100.0 * p.deviation("test_accuracy") for p in mine]}
    style = {"ls": "none", "marker": MARKERS[mine[0].network], "ms": 5, "elinewidth": 0.8, "capsize": 2}
    axes.errorbar([p.mean(cost) for p in mine], [p.accuracy for p in mine], **bars, **style, color=color, label=label)


def _size_axis(axes: Any, cost: str, found: Sequence[Point]) -> None:
    """Absolute numbers below, shares above; logarithmic where sizes span more than a factor of 4."""
    from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

    if not found:
        return
    sizes = [point.mean(cost) for point in found]
    starts = {round(point.values[cost][0] / point.values[SHARES[cost]][0]) for point in found}
    wide = max(sizes) > 4 * min(sizes)
    shown: list[tuple[Any, Any]] = [(axes.xaxis, EngFormatter())]
    if wide:
        axes.set_xscale("log")
    if len(starts) == 1:
        start = starts.pop()
        upper = axes.secondary_xaxis("top", functions=(lambda size: size / start, lambda share: share * start))
        upper.tick_params(labelsize=figures.LETTERS)
        shown.append((upper.xaxis, PercentFormatter(1.0, symbol=" %")))
    for axis, formatter in shown:
        axis.set_major_formatter(formatter)
        axis.set_major_locator(MaxNLocator(4))
        if wide:
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_minor_formatter(NullFormatter())


def knob(page: Mapping[str, Any]) -> str | None:
    """The key whose numbers tell the settings apart, if it is one, all other keys are the same, and something was pruned."""
    if not something_pruned(page):
        return None
    tables = [result["set"] for result in page["results"]]
    differing = {key for table in tables for key in table if any(other.get(key) != table[key] for other in tables)}
    if len(differing) != 1:
        return None
    (key,) = differing
    return key if all(type(table.get(key)) in (int, float) for table in tables) else None


#: Quantity → how its line is called in the picture of one knob.
LEFT = {"macs_share": "MACs per image", "parameters_share": "parameters", "sections_share": "sections", "units_share": "units"}


def knob_picture(page: Mapping[str, Any], key: str) -> Any:
    """What one knob does: test accuracy, and what is left of MACs, parameters, sections and units, against the key's value.

    Lines go through the means over seeds of the networks that were pruned, bars are standard deviations, dots the runs. Where a
    setting has no gates on units, or no sections, these lines have no point.
    """
    drawing, (accuracy, left) = figures.panels(2, 1, (figures.NARROW, 5.0))
    found = sorted(
        ((result["set"][key], values) for result in page["results"] for values in _pruned_runs(result)), key=lambda one: one[0]
    )
    _knob_line(accuracy, found, "test_accuracy", color="C0", label="test accuracy")
    for i, (quantity, label) in enumerate(LEFT.items()):
        having = [one for one in found if quantity in one[1]]
        if having:
            _knob_line(left, having, quantity, color=f"C{i + 1}", label=label)
    for axes, title in ((accuracy, "test accuracy, %"), (left, "left, %")):
        axes.set(xlabel=key, ylabel=title)
    if found and 0 < 8 * found[0][0] < found[-1][0]:
        accuracy.set_xscale("log")
        left.set_xscale("log")
    left.set_ylim(bottom=0)
    figures.label_lines(left)
    return drawing


def _pruned_runs(result: Mapping[str, Any]) -> list[dict[str, Sequence[float]]]:
    """The values of a setting's pruned network, if it has one, with the shares of its sections and units where it had any."""
    runs = [dict(values) for name, values in result["runs"].items() if name == "pruned"]
    for values, what in itertools.product(runs, ("sections", "units")):
        if all(start > 0 for start in values[f"{what}_at_start"]):
            pairs = zip(values[what], values[f"{what}_at_start"], strict=True)
            values[f"{what}_share"] = [now / start for now, start in pairs]
    return runs


def _knob_line(axes: Any, found: Sequence[tuple[float, Values]], quantity: str, *, color: str, label: str) -> None:
    for value, values in found:
        axes.plot([value] * len(values[quantity]), [100.0 * v for v in values[quantity]], ".", ms=3, alpha=0.5, color=color)
    means = [100.0 * statistics.fmean(values[quantity]) for _, values in found]
    bars = [100.0 * deviation(values[quantity]) for _, values in found]
    axes.errorbar([value for value, _ in found], means, bars, marker="o", ms=4, lw=1.0, capsize=2, color=color, label=label)


def theta_picture(page: Mapping[str, Any], directory: Path) -> Any:
    """θ of all gates over the steps: one panel a setting, the first seed that has run in this folder."""
    shown = [(label, next(iter(runs.values()))) for label, runs in _metrics(page, directory).items()]
    columns = min(2, max(1, len(shown)))
    lines = max(1, -(-len(shown) // columns))
    drawing, panels = figures.panels(lines, columns, (figures.NARROW * columns, 2.4 * lines))
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    for axes, (label, metrics) in zip(panels, shown, strict=False):
        report.draw_theta(axes, metrics)
        axes.set_title(label, fontsize=figures.LETTERS)
        axes.set(xlabel="step", ylabel="θ")
    return drawing


#: Of so many settings the page shows θ.
SETTINGS = 12


def theta_pictures(page: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """Label → θ of all gates over the steps, with the first seed run in this folder; of the first SETTINGS settings."""
    runs = list(_metrics(page, directory).items())[:SETTINGS]
    return {label: report.theta_picture(next(iter(seeds.values()))) for label, seeds in runs}


def removal_picture(page: Mapping[str, Any], directory: Path) -> Any:
    """When gates were removed, in epochs: one line a setting, one mark a removal, all seeds that have run in this folder."""
    shown = _metrics(page, directory)
    drawing, axes = figures.figure("Time of each removal, all seeds", "epoch", "", (figures.NARROW, 1.0 + 0.3 * len(shown)))
    for i, runs in enumerate(shown.values()):
        for metrics in runs.values():
            epochs = [line for line in metrics if line["event"] == "epoch"]
            per_epoch = epochs[0]["step"] if epochs else 1
            times = [line["step"] / per_epoch for line in metrics if line["event"] == "removal" for _ in line["removed"]]
            axes.plot(times, [i] * len(times), "|", ms=12, alpha=0.5, color="C0")
    axes.set_yticks(range(len(shown)), [textwrap.fill(label, 24) for label in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(left=0)
    return drawing


def _metrics(page: Mapping[str, Any], directory: Path) -> dict[str, dict[int, list[dict[str, Any]]]]:
    """Label → seed → metrics of the pruned network, of the runs in this folder: those kept as rows have none."""
    found: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for result in page["results"]:
        for seed in result["seeds"]:
            path = run_directory(directory, result["label"], seed) / "pruned" / "metrics.jsonl"
            if path.exists():
                found.setdefault(result["label"], {})[seed] = report.read_metrics(path)
    return found


def pictures(page: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """File name → figure."""
    drawn = {"accuracy": accuracy_picture(page)}
    if _metrics(page, directory):
        drawn |= {"theta": theta_picture(page, directory), "removals": removal_picture(page, directory)}
    key = knob(page)
    return drawn if key is None else {"knob": knob_picture(page, key)} | drawn


def explanation(name: str, page: Mapping[str, Any]) -> tuple[str, str]:
    """Title of the picture of this file name, and what is seen in it."""
    told = {
        "knob": (
            f"What {knob(page)} does",
            "Test accuracy, and what is left of the network, against its value: means over seeds, bars of one standard "
            "deviation, a dot for each run.",
        ),
        "accuracy": (
            "Accuracy against size",
            "A marker for each setting and training run: the mean over seeds, bars of one standard deviation; small dots are "
            "runs. The frontier is what is reached at this size or less.",
        ),
        "theta": (
            "θ over time",
            "The first seed of each setting; a line for each gate, the mean for a group of unit gates, a cross where a gate "
            "was removed.",
        ),
        "removals": ("When gates were removed", "A row for each setting, a mark for each removal, all seeds together."),
    }
    return told[name]
