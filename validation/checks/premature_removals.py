"""Was a removal premature? `python -m validation.checks.premature_removals DIR`.

DIR is that of `refprune sweep validation/studies/mnist-resmlp-protected.toml` or another sweep like it: every section in turn
has its gate fixed to 1.
For every section that the run without protection removed during training, by the epoch since θ moves: J at the end of that run
(training loss in eval mode, ½λ‖W‖², β a section that is on), minus J of the run with the same seed in which this section was
protected. The removal was premature if that is above 0. Two runs differ by chance too: where a section was kept anyway, its
protection changes nothing but the course of training, and the root mean square of those differences is the noise. "Clearly"
counts gains of more than twice the noise.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any, NamedTuple

from refprune.errors import InputError
from refprune.experiments import sweep_tables
from refprune.experiments.report import read_metrics
from refprune.experiments.sweep_file import run_directory
from refprune.output.tables import text_table
from refprune.training import config

FREE = "protect none"


class Gain(NamedTuple):
    """What protecting one section gained in J. epoch: in which it was removed, since θ moves, from 1; None: it was kept."""

    seed: int
    section: str
    epoch: int | None
    gain: float


def gains(directory: Path) -> list[Gain]:
    """Of every section and seed, without sections that went by the comparison at the end. InputError for other sweeps."""
    page = sweep_tables.read_results(directory)
    results = {result["label"]: result for result in page["results"]}
    if FREE not in results:
        raise InputError(f"{directory}: has no setting {FREE!r}; expected a sweep like mnist-resmlp-protected")
    found = []
    for seed in results[FREE]["seeds"]:
        free = run_directory(directory, FREE, seed)
        ends = removal_epochs(free)
        base = _run(free)["objective"]
        for label in results:
            section = label.removeprefix("protect ")
            compared = section in ends and ends[section] is None
            if label == FREE or compared or seed not in results[label]["seeds"]:
                continue
            protected = _run(run_directory(directory, label, seed))
            found.append(Gain(seed, section, ends.get(section), base - protected["objective"]))
    return found


def removal_epochs(run: Path) -> dict[str, int | None]:
    """Section → epoch since θ moves in which its gate was removed, None for the decision of all gates."""
    gates = config.load(str(run / "config.toml")).gates
    metrics = read_metrics(run / "pruned" / "metrics.jsonl")
    first = next(line for line in metrics if line["event"] == "epoch")
    last = max(line["step"] for line in metrics if line["event"] == "epoch")
    per_epoch = first["step"] / first["epoch"]
    decided = gates.decide_epoch * per_epoch or last
    found: dict[str, int | None] = {}
    for line in metrics:
        if line["event"] == "removal":
            epoch = math.ceil(line["step"] / per_epoch - gates.warmup_epochs)
            found |= dict.fromkeys(line["removed"], epoch if line["step"] < decided else None)
    return found


def _run(directory: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((directory / "summary.json").read_text(encoding="utf-8"))["runs"]["pruned"]
    return summary


def table(found: list[Gain]) -> list[tuple[str, ...]]:
    """One row an epoch of removal, one for all of them, one for the sections that were kept: the noise."""
    kept = [g.gain for g in found if g.epoch is None]
    noise = math.sqrt(statistics.fmean(g * g for g in kept)) if kept else math.nan
    removed = [g for g in found if g.epoch is not None]
    rows = [("epoch of θ", "sections", "premature", "clearly", "J gained by protection: median", "largest")]
    epochs = range(1, max((g.epoch for g in removed if g.epoch is not None), default=0) + 1)
    for name, mine in [(str(e), [g.gain for g in removed if g.epoch == e]) for e in epochs] + [
        ("all", [g.gain for g in removed]),
        ("kept", kept),
    ]:
        counts = map(str, (len(mine), sum(g > 0 for g in mine), sum(g > 2 * noise for g in mine)))
        ends = (f"{statistics.median(mine):+.4f}", f"{max(mine):+.4f}") if mine else ("–", "–")
        rows.append((name, *counts, *ends))
    rows.append(("noise", "", "", "", f"{noise:.4f}", ""))
    return rows


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m validation.checks.premature_removals")
    parser.add_argument("directory", type=Path, metavar="DIR")
    try:
        print(text_table(table(gains(parser.parse_args(arguments).directory))))
    except InputError as error:
        print(f"validation.checks.premature_removals: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
