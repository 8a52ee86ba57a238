"""A sweep's results: mean and spread over seeds as a table, and pictures (extra `experiments`) in one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..output import figures, page
from ..output.files import encoded, write_atomically
from .sweep_pictures import UNPRUNED, explanation, pictures, theta_pictures
from .sweep_tables import Point, points, read_results, rows, size_rows, spread

#: Below the table of all settings: what its columns say.
COLUMNS = (
    "Values are means over the seeds ± one standard deviation.",
    "J: loss on the training images, plus weight decay, plus the cost of the gates that are on.",
    "MACs, %: of one image, against the network at the start. Training MACs, %: all passes, against the training of the "
    "unpruned network for as many steps.",
    "Undecided: gates, of all seeds together, whose θ was between the thresholds at the end, so that both values were tried. "
    "θ rounded by: the largest distance of any other θ from the 0 or 1 that it became.",
    "Seconds contain the compiling and depend on what else ran on the machine.",
)


def write_html(directory: Path) -> Path | None:
    """report.html and its pictures as .svg files beside it. None where matplotlib is missing."""
    try:
        figures.require_matplotlib()
    except InputError:
        return None
    results = read_results(directory)
    drawn = pictures(results, directory)
    for name, drawing in drawn.items():
        write_atomically(directory / f"{name}.svg", figures.svg_file(drawing))
    path = directory / "report.html"
    write_atomically(path, encoded(_page(results, drawn, theta_pictures(results, directory))))
    return path


def verdict(results: Mapping[str, Any]) -> str:
    """The sweep in one sentence: how many runs, what accuracy at what size."""
    failed, done = len(results["failed"]), sum(len(result["seeds"]) for result in results["results"])
    runs = f"{failed} of {failed + done} runs failed" if failed else f"All {done} runs ended"
    found = points(results)
    pruned = [point for point in found if point.network == "pruned"]
    unpruned = [point for point in found if point.network in UNPRUNED]
    said = []
    if pruned:
        accuracy, macs = _range([p.accuracy for p in pruned], 2), _range([100 * p.mean("macs_share") for p in pruned], 0)
        said.append(f"pruned networks reach {accuracy} % test accuracy with {macs} % of the MACs")
    if unpruned:
        said.append(f"unpruned ones {'reach ' if not pruned else ''}{_range([p.accuracy for p in unpruned], 2)} %")
    return f"{'; '.join([runs, ', '.join(said)]) if said else runs}."


def _range(values: Sequence[float], digits: int) -> str:
    """ "97.10 to 97.35", one number where both are written alike."""
    low, high = (f"{value:.{digits}f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _numbers(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(value, what it is): the most accurate pruned setting, the smallest, the best without pruning."""
    found = points(results)
    pruned = [point for point in found if point.network == "pruned"]
    unpruned = [point for point in found if point.network in UNPRUNED]

    def told(point: Point, what: str) -> tuple[str, str]:
        macs = f" with {100 * point.mean('macs_share'):.0f} % of the MACs" if point.network == "pruned" else ""
        return f"{spread(point.values['test_accuracy'], 2, 100.0)} %", f"{what}{macs}: {point.label}"

    shown = []
    if pruned:
        best, least = max(pruned, key=lambda p: p.accuracy), min(pruned, key=lambda p: p.mean("macs_per_image"))
        both = best is least
        shown.append(told(best, "most accurate pruned, and smallest," if both else "most accurate pruned,"))
        shown += [] if both else [told(least, "smallest pruned,")]
    if unpruned:
        shown.append(told(max(unpruned, key=lambda p: p.accuracy), "most accurate without pruning"))
    return shown


def _page(results: Mapping[str, Any], drawn: Mapping[str, Any], thetas: Mapping[str, Any]) -> str:
    failed = [f"{f['label']}, seed {f['seed']}: {f['problem']}" for f in results["failed"]]
    table, sizes = rows(results), size_rows(results)
    shown = [
        page.picture(figures.svg(drawing), *explanation(name, results)) for name, drawing in drawn.items() if name != "theta"
    ]
    curves = [page.picture(figures.svg(drawing), label) for label, drawing in thetas.items()]
    body = [
        page.section("Runs that failed", page.notes(failed), finding=True),
        page.section(
            "Settings", page.table(table, "A row for each setting and training run", stacked=True), page.notes(COLUMNS)
        ),
        page.section(
            "Accuracy against size",
            page.table(
                sizes, "A setting is on the frontier if no other is at least as accurate at the same size or less", stacked=True
            ),
        ),
        page.section("Pictures", page.pictures(*shown)),
        page.section("θ over time", page.paragraph(explanation("theta", results)[1]), page.pictures(*curves)) if curves else "",
    ]
    judgement: page.Judgement = "bad" if failed else "good"
    title = f"Sweep {results['name']}: {results['experiment']}"
    return page.page(title, verdict(results), judgement, "".join(body), numbers=_numbers(results), made_by="refprune sweep")
