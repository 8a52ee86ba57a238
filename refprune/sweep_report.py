"""A sweep's results: mean and spread over seeds as a table, and pictures (extra `experiments`) in one HTML file."""

from __future__ import annotations

import html
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import report
from .errors import InputError
from .files import write_atomically
from .sweep import run_directory

Values = Mapping[str, Sequence[float]]


def spread(values: Sequence[float], digits: int, scale: float = 1.0) -> str:
    """Mean ± standard deviation (with n − 1), the mean alone for one value."""
    mean = f"{scale * statistics.fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {scale * statistics.stdev(values):.{digits}f}"


#: Title → how the values of one training run, by quantity, are written.
COLUMNS: dict[str, Callable[[Values], str]] = {
    "test accuracy, %": lambda v: spread(v["test_accuracy"], 2, 100.0),
    "J": lambda v: spread(v["objective"], 4),
    "sections": lambda v: f"{spread(v['sections'], 1)} of {v['sections_at_start'][0]:.0f}",
    "MACs, %": lambda v: spread(v["macs_share"], 0, 100.0),
    "training MACs, %": lambda v: spread(v["training_macs_share"], 0, 100.0),
    "undecided": lambda v: f"{sum(v['undecided']):.0f}",
    "seconds": lambda v: spread(v["seconds"], 0),
}


def read(directory: Path) -> dict[str, Any]:
    """sweep.json. InputError where it is missing or no JSON."""
    path = directory / "sweep.json"
    try:
        page: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); `refprune sweep` writes it") from error
    return page


def rows(page: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The table: one row a setting and training run. "undecided" counts over all seeds; seconds contain the compiling."""
    table: list[tuple[str, ...]] = [("setting", "network", "seeds", *COLUMNS)]
    for result in page["results"]:
        for name, values in result["runs"].items():
            cells = (column(values) for column in COLUMNS.values())
            table.append((result["label"], name, str(len(values["seconds"])), *cells))
    return table


def text(directory: Path) -> str:
    """The table for a terminal, and what failed."""
    page = read(directory)
    failed = [f"failed: {f['label']}, seed {f['seed']}: {f['problem']}" for f in page["failed"]]
    return "\n".join([report.text_table(rows(page)), *failed])


# --------------------------------------------------------------------------------------------------------------------
# Pictures


def accuracy_picture(page: Mapping[str, Any]) -> Any:
    """Test accuracy against MACs: every run a point, settings by colour, training runs by marker."""
    from matplotlib import colormaps

    drawing, axes = report.figure("Accuracy and cost, every run a point", "MACs per image", "test accuracy, %")
    markers = dict(zip(("pruned", "unpruned", "from-scratch", "trained"), "os^D", strict=True))
    colours = colormaps["tab20" if len(page["results"]) > 10 else "tab10"]
    for i, result in enumerate(page["results"]):
        for name, values in result["runs"].items():
            accuracy = [100.0 * a for a in values["test_accuracy"]]
            style = {"color": colours(i % colours.N), "label": f"{result['label']}, {name}", "alpha": 0.7, "ms": 5}
            axes.plot(values["macs_per_image"], accuracy, markers[name], **style)
    if len(axes.lines) <= 24:
        axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return drawing


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
    drawing, axes = report.figure("Time of each removal, all seeds", "epoch", "")
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
    return {
        "accuracy": accuracy_picture(page),
        "theta": theta_picture(page, directory),
        "removals": removal_picture(page, directory),
    }


def write_html(directory: Path) -> Path | None:
    """report.html and its pictures as .svg files beside it. None where matplotlib is missing."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    page = read(directory)
    drawn = {name: report.svg(figure) for name, figure in pictures(page, directory).items()}
    for name, content in drawn.items():
        write_atomically(directory / f"{name}.svg", content.encode())
    failed = [f"failed: {f['label']}, seed {f['seed']}: {f['problem']}" for f in page["failed"]]
    notes = f"<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in failed)}</ul>" if failed else ""
    content = report.page(f"{page['name']}, from {page['experiment']}", rows(page), notes + "".join(drawn.values()))
    path = directory / "report.html"
    write_atomically(path, content.encode())
    return path
