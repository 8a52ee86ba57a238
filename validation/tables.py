"""The ledger's tables of the studies: `python -m validation.tables [NAME …]` prints them as Markdown.

Each is made from the rows in validation/studies/NAME.csv, in the order of validation/studies/NAME.toml.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from refprune.experiments import sweep_file, sweep_results, sweep_rows
from refprune.experiments.sweep_tables import Values, kept, spread

STUDIES = Path(__file__).parent / "studies"

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
    """The studies of which rows are kept."""
    return sorted(path.stem for path in STUDIES.glob("*.csv"))


def table(name: str) -> list[str]:
    """Lines of Markdown: one a setting and training run, in the study's order; means ± standard deviations over seeds."""
    study = sweep_file.load_sweep(STUDIES / f"{name}.toml")
    path = STUDIES / f"{name}.csv"
    rows = sweep_rows.read_rows(path)
    head = ["setting", "seeds", *COLUMNS]
    lines = [_line(head), _line(["---"] * len(head))]
    for setting in study.settings:
        kept_runs = {e.seed: sweep_rows.runs_kept(path, rows, setting.label, e) for e in setting.configs}
        result = sweep_results.setting_result(setting, {seed: runs for seed, runs in kept_runs.items() if runs is not None})
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
