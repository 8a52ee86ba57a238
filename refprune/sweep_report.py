"""A sweep's results: mean and spread over seeds as a table, and pictures (extra `experiments`) in one HTML file."""

from __future__ import annotations

import html
import itertools
import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from . import report
from .errors import InputError
from .output import figures, tables
from .output.files import write_atomically
from .sweep import QUANTITIES, run_directory

Values = Mapping[str, Sequence[float]]


def deviation(values: Sequence[float]) -> float:
    """Standard deviation with n − 1; 0 for one value, which shows none."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def spread(values: Sequence[float], digits: int, scale: float = 1.0) -> str:
    """Mean ± standard deviation (with n − 1), the mean alone for one value."""
    mean = f"{scale * statistics.fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {scale * statistics.stdev(values):.{digits}f}"


def kept(values: Values, what: str) -> str:
    """How many "sections" or "units" are left of how many; a dash where there were none."""
    start = values[f"{what}_at_start"][0]
    return f"{spread(values[what], 1)} of {start:.0f}" if start else "–"


#: Title → how the values of one training run, by quantity, are written.
COLUMNS: dict[str, Callable[[Values], str]] = {
    "test accuracy, %": lambda v: spread(v["test_accuracy"], 2, 100.0),
    "J": lambda v: spread(v["objective"], 4),
    "sections": lambda v: kept(v, "sections"),
    "units": lambda v: kept(v, "units"),
    "MACs, %": lambda v: spread(v["macs_share"], 0, 100.0),
    "training MACs, %": lambda v: spread(v["training_macs_share"], 0, 100.0),
    "undecided": lambda v: f"{sum(v['undecided']):.0f}",
    "θ rounded by": lambda v: f"{max(v['rounded']):.3f}",
    "seconds": lambda v: spread(v["seconds"], 0),
}


#: Quantity of size → how its axis is called; its share of the start is the quantity in SHARES.
COSTS = {"macs_per_image": "MACs per image", "parameters": "parameters"}
SHARES = {"macs_per_image": "macs_share", "parameters": "parameters_share"}
#: The training runs in which nothing is pruned.
UNPRUNED = ("unpruned", "trained")
MARKERS = {"pruned": "o", "unpruned": "s", "from-scratch": "^", "trained": "D"}


def read(directory: Path) -> dict[str, Any]:
    """sweep.json. InputError where it is missing, no JSON, or lacks what `refprune sweep` writes."""
    path = directory / "sweep.json"
    try:
        page: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        runs = [values for result in page["results"] for values in result["runs"].values()]
        lacking = [quantity for quantity in QUANTITIES if not all(values[quantity] for values in runs)]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: cannot be read ({error!r}); `refprune sweep` writes it") from error
    if lacking:
        raise InputError(f"{path}: has no values of {lacking[0]}; `refprune sweep` writes them")
    return page


def rows(page: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The table: one row a setting and training run; seconds contain the compiling.

    "undecided" counts over all seeds, "θ rounded by" is the largest of any seed.
    """
    table: list[tuple[str, ...]] = [("setting", "network", "seeds", *COLUMNS)]
    for result in page["results"]:
        for name, values in result["runs"].items():
            cells = (column(values) for column in COLUMNS.values())
            table.append((result["label"], name, str(len(values["seconds"])), *cells))
    return table


class Point(NamedTuple):
    """One training run of a setting: its quantities over seeds."""

    label: str
    group: str
    network: str
    values: Values

    def mean(self, quantity: str) -> float:
        return statistics.fmean(self.values[quantity])

    def deviation(self, quantity: str) -> float:
        return deviation(self.values[quantity])

    @property
    def accuracy(self) -> float:
        """Mean test accuracy in percent."""
        return 100.0 * self.mean("test_accuracy")


def points(page: Mapping[str, Any]) -> list[Point]:
    """Every training run of every setting that has ended for one seed at least."""
    return [Point(r["label"], r["group"], name, values) for r in page["results"] for name, values in r["runs"].items()]


def frontier(where: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (cost, accuracy) points to which no other is preferred, by rising cost (Pareto).

    Preferred is what costs no more and is no less accurate, and differs; of equal points the first is taken.
    """
    best, found = -math.inf, []
    for i in sorted(range(len(where)), key=lambda i: (where[i][0], -where[i][1])):
        if where[i][1] > best:
            best = where[i][1]
            found.append(i)
    return found


def size_rows(page: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Accuracy against size: one row a setting and training run; the last column says in which costs it is on the frontier."""
    table: list[tuple[str, ...]] = [("setting", "group", "network", "test accuracy, %", *COSTS.values(), "on the frontier of")]
    found = points(page)
    on = {cost: frontier([(point.mean(cost), point.accuracy) for point in found]) for cost in COSTS}
    for i, point in enumerate(found):
        sizes = (f"{spread(point.values[c], 0)} ({spread(point.values[SHARES[c]], 1, 100.0)} %)" for c in COSTS)
        names = ", ".join(COSTS[cost] for cost in COSTS if i in on[cost])
        table.append((point.label, point.group, point.network, spread(point.values["test_accuracy"], 2, 100.0), *sizes, names))
    return table


def text(directory: Path) -> str:
    """The tables for a terminal, and what failed."""
    page = read(directory)
    failed = [f"failed: {f['label']}, seed {f['seed']}: {f['problem']}" for f in page["failed"]]
    return "\n".join([tables.text_table(rows(page)), "", tables.text_table(size_rows(page)), *failed])


# --------------------------------------------------------------------------------------------------------------------
# Pictures


def accuracy_picture(page: Mapping[str, Any]) -> Any:
    """Test accuracy against MACs and against parameters, a panel each: what pruning gains and what it costs.

    A marker a setting and training run: the mean over seeds, with bars of a standard deviation; small dots are the runs.
    Colours are groups, each with its frontier as a line; grey: the frontier of all; dashed: the best network that was not
    pruned. The upper axis is the share of the network at the start, where all settings start with one size.
    """
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(10.4, 4.2), layout="constrained")
    panels = drawing.subplots(1, 2, sharey=True)
    found = points(page)
    colours = _colours(dict.fromkeys(point.group for point in found))
    for axes, cost in zip(panels, COSTS, strict=True):
        axes.set(xlabel=COSTS[cost], ylabel="test accuracy, %")
        axes.grid(alpha=0.3)
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
        drawing.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=7)
    return drawing


def _colours(groups: Iterable[str]) -> dict[str, Any]:
    from matplotlib import colormaps

    names = list(groups)
    colours = colormaps["tab20" if len(names) > 10 else "tab10"]
    return {name: colours(i % colours.N) for i, name in enumerate(names)}


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
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, PercentFormatter

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
        shown.append((upper.xaxis, PercentFormatter(1.0)))
    for axis, formatter in shown:
        axis.set_major_formatter(formatter)
        if wide:
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_minor_formatter(NullFormatter())


def knob(page: Mapping[str, Any]) -> str | None:
    """The key whose numbers tell the settings apart, if it is one, all other keys are the same, and something was pruned."""
    if not _something_pruned(page):
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
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(8.4, 3.4), layout="constrained")
    accuracy, left = drawing.subplots(1, 2)
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
        axes.grid(alpha=0.3)
    if found and 0 < 8 * found[0][0] < found[-1][0]:
        accuracy.set_xscale("log")
        left.set_xscale("log")
    left.set_ylim(bottom=0)
    left.legend(fontsize=8)
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
    """θ of all gates over the steps: one panel a setting, its first seed."""
    from matplotlib.figure import Figure

    shown = [(r["label"], _metrics(directory, r["label"], r["seeds"][0])) for r in page["results"] if r["seeds"]]
    columns = min(3, max(1, len(shown)))
    lines = max(1, -(-len(shown) // columns))
    drawing = Figure(figsize=(3.4 * columns, 2.3 * lines), layout="constrained")
    panels = list(drawing.subplots(lines, columns, squeeze=False).flat)
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    for axes, (label, metrics) in zip(panels, shown, strict=False):
        report.draw_theta(axes, metrics)
        axes.set_title(label, fontsize=7)
        axes.set(xlabel="step", ylabel="θ")
        axes.grid(alpha=0.3)
    return drawing


def removal_picture(page: Mapping[str, Any], directory: Path) -> Any:
    """When gates were removed, in epochs: one line a setting, one mark a removal, all seeds together."""
    drawing, axes = figures.figure("Time of each removal, all seeds", "epoch", "")
    labels = [result["label"] for result in page["results"]]
    drawing.set_size_inches(7.2, 1.2 + 0.35 * len(labels))
    for i, result in enumerate(page["results"]):
        for seed in result["seeds"]:
            metrics = _metrics(directory, result["label"], seed)
            epochs = [line for line in metrics if line["event"] == "epoch"]
            per_epoch = epochs[0]["step"] if epochs else 1
            times = [line["step"] / per_epoch for line in metrics if line["event"] == "removal" for _ in line["removed"]]
            axes.plot(times, [i] * len(times), "|", ms=12, alpha=0.5, color="C0")
    axes.set_yticks(range(len(labels)), labels, fontsize=7)
    axes.set_xlim(left=0)
    return drawing


def _metrics(directory: Path, label: str, seed: int) -> list[dict[str, Any]]:
    path = run_directory(directory, label, seed) / "pruned" / "metrics.jsonl"
    return report.read_metrics(path) if path.exists() else []


def pictures(page: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """File name → figure."""
    drawn = {"accuracy": accuracy_picture(page)}
    if _something_pruned(page):
        drawn |= {"theta": theta_picture(page, directory), "removals": removal_picture(page, directory)}
    key = knob(page)
    return drawn if key is None else {"knob": knob_picture(page, key)} | drawn


def _something_pruned(page: Mapping[str, Any]) -> bool:
    return any("pruned" in result["runs"] for result in page["results"])


def write_html(directory: Path) -> Path | None:
    """report.html and its pictures as .svg files beside it. None where matplotlib is missing."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    page = read(directory)
    drawn = {name: figures.svg(figure) for name, figure in pictures(page, directory).items()}
    for name, content in drawn.items():
        write_atomically(directory / f"{name}.svg", content.encode())
    failed = [f"failed: {f['label']}, seed {f['seed']}: {f['problem']}" for f in page["failed"]]
    notes = f"<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in failed)}</ul>" if failed else ""
    body = f"<h2>Accuracy against size</h2>{tables.html_table(size_rows(page))}{notes}{''.join(drawn.values())}"
    content = tables.page(f"{page['name']}, from {page['experiment']}", rows(page), body)
    path = directory / "report.html"
    write_atomically(path, content.encode())
    return path
