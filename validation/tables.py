"""The ledger's tables of the results that are kept: `python -m validation.tables [NAME …]` prints them as Markdown."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from refprune.experiments import sweep_tables
from refprune.experiments.sweep_tables import Values, kept, spread

HERE = Path(__file__).parent
RESULTS = HERE / "results"

COLUMNS = {
    "test accuracy, %": lambda v: spread(v["test_accuracy"], 2, 100.0),
    "MACs, %": lambda v: spread(v["macs_share"], 1, 100.0),
    "parameters, %": lambda v: spread(v["parameters_share"], 1, 100.0),
    "sections": lambda v: kept(v, "sections"),
    "units": lambda v: kept(v, "units"),
    "undecided": lambda v: f"{sum(v['undecided']):.0f}",
    "θ rounded by": lambda v: f"{max(v['rounded']):.3f}",
    "training MACs, %": lambda v: spread(v["training_macs_share"], 0, 100.0),
    "seconds": lambda v: spread(v["seconds"], 0),
}


def names() -> list[str]:
    """The sweeps of which results are kept."""
    return sorted(path.parent.name for path in RESULTS.glob("*/sweep.json"))


def table(name: str) -> list[str]:
    """Lines of Markdown: one a setting and training run, in the sweep's order; means ± standard deviations over seeds."""
    head = ["setting", "seeds", *COLUMNS]
    page = sweep_tables.read_results(RESULTS / name)
    lines = [_line(head), _line(["---"] * len(head))]
    for result in page["results"]:
        seeds = ", ".join(map(str, result["seeds"]))
        for network, values in result["runs"].items():
            title = result["label"] if len(result["runs"]) == 1 else f"{result['label']}, {network}"
            lines.append(_line([title, seeds, *_cells(values)]))
    return lines


def _cells(values: Values) -> list[str]:
    return [column(values) for column in COLUMNS.values()]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    for chosen in sys.argv[1:] or names():
        print(f"`{chosen}`\n", *table(chosen), sep="\n", end="\n\n")
