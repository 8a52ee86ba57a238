"""Was a removal premature? `python -m validation.premature DIR`.

DIR is that of `refprune sweep validation/sweeps/mnist-resmlp-protected.toml`.
For every section that a run removed, by the epoch since θ moves: J at the end of the run (training loss in eval mode, ½λ‖W‖²,
β a section that is on) against J of the run with the same seed in which the gate of that section was fixed to 1. The removal
was premature if the second is lower. Two runs differ by chance too: `noise` is the standard deviation of J between runs of the
same setting with other seeds, and "clearly" counts differences of more than two of it.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any, NamedTuple

from refprune.report import read_metrics, text_table
from refprune.sweep import run_directory

FREE = "protect none"


class Removal(NamedTuple):
    """epoch: since θ moves, from 1. gain: J of the run minus J of the run in which the section was protected."""

    seed: int
    section: str
    epoch: int
    gain: float


def removals(directory: Path) -> list[Removal]:
    """Every removal during training, over all seeds of the sweep."""
    page = json.loads((directory / "sweep.json").read_text(encoding="utf-8"))
    seeds = next(result["seeds"] for result in page["results"] if result["label"] == FREE)
    found = []
    for seed in seeds:
        metrics = read_metrics(run_directory(directory, FREE, seed) / "pruned" / "metrics.jsonl")
        per_epoch = next(line["step"] for line in metrics if line["event"] == "epoch")
        thetas = [line for line in metrics if line["event"] == "step"]
        moved = next(line["step"] for line in thetas if line["theta"] != thetas[0]["theta"])
        base = _objective(directory, FREE, seed)
        for line in metrics:
            if line["event"] == "removal":
                epoch = (line["step"] - 1) // per_epoch - moved // per_epoch + 1
                gains = {name: base - _objective(directory, f"protect {name}", seed) for name in line["removed"]}
                found += [Removal(seed, name, epoch, gain) for name, gain in gains.items()]
    return found


def noise(directory: Path) -> float:
    """Standard deviation of J over the seeds of the runs without protection."""
    page = json.loads((directory / "sweep.json").read_text(encoding="utf-8"))
    values = next(result["runs"]["pruned"]["objective"] for result in page["results"] if result["label"] == FREE)
    return statistics.stdev(values)


def _objective(directory: Path, label: str, seed: int) -> float:
    summary: dict[str, Any] = json.loads((run_directory(directory, label, seed) / "summary.json").read_text(encoding="utf-8"))
    return float(summary["runs"]["pruned"]["objective"])


def _main(directory: Path) -> None:
    found, chance = removals(directory), noise(directory)
    table = [("epoch of θ", "removed", "premature", "clearly", "J gained by protecting: median", "largest")]
    last = max(r.epoch for r in found)
    for name, mine in [(str(e), [r for r in found if r.epoch == e]) for e in range(1, last + 1)] + [("all", found)]:
        gains = [r.gain for r in mine]
        counts = (len(gains), sum(g > 0 for g in gains), sum(g > 2 * chance for g in gains))
        ends = (f"{statistics.median(gains):+.4f}", f"{max(gains):+.4f}") if gains else ("–", "–")
        table.append((name, *map(str, counts), *ends))
    print(text_table(table))
    print(f"\nstandard deviation of J between seeds: {chance:.4f}")


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
