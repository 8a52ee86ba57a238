"""What a sweep's runs say over seeds, as tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError
from ..output import tables
from ..output.texts import read_json
from .sweep_results import QUANTITIES

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


def read_results(directory: Path) -> dict[str, Any]:
    """sweep.json. InputError where it is missing, no JSON, or lacks what `refprune sweep` writes."""
    path = directory / "sweep.json"
    try:
        page: dict[str, Any] = read_json(path)
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
    page = read_results(directory)
    failed = [f"failed: {f['label']}, seed {f['seed']}: {f['problem']}" for f in page["failed"]]
    return "\n".join([tables.text_table(rows(page)), "", tables.text_table(size_rows(page)), *failed])


def something_pruned(page: Mapping[str, Any]) -> bool:
    return any("pruned" in result["runs"] for result in page["results"])
