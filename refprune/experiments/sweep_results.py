"""What became of the runs of a sweep, and its sweep.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError
from ..output.files import write_atomically
from ..output.texts import read_json
from ..training import config
from .sweep_file import Job, Setting, Sweep


class Outcome(NamedTuple):
    """What became of a job: its summary, or the QUANTITIES of its training runs as they are kept, or why there is neither.

    kept: by network, as `sweep_rows` reads them.
    """

    job: Job
    summary: dict[str, Any] | None
    problem: str = ""
    kept: Mapping[str, Mapping[str, float]] | None = None

    @property
    def runs(self) -> dict[str, Mapping[str, float]] | None:
        """The QUANTITIES of every training run by network; None if the run has failed."""
        if self.summary is None:
            return None if self.kept is None else dict(self.kept)
        parts = self.summary["runs"]
        return {name: quantities(part, next(iter(parts.values()))) for name, part in parts.items()}


def finished_summary(job: Job) -> dict[str, Any] | None:
    """The summary of a run that has been done. InputError for a folder that holds a run of another configuration."""
    folder = Path(job.directory)
    there = folder / "config.toml"
    if there.exists() and there.stat().st_size > 0:
        try:
            known = config.load(str(there))
        except InputError:
            return None  # the run itself will say so, and fail alone
        if known != job.config:
            raise InputError(f"{folder}: holds a run of another configuration; give the sweep another folder (--out)")
    try:
        summary = read_json(folder / "summary.json")
    except (OSError, ValueError):
        return None
    return summary if _is_whole(summary) else None


def _is_whole(summary: Any) -> bool:
    """Has it all that tables are made of? If not, it is damaged or old and is made again from the run's checkpoint."""
    try:
        runs = summary["runs"]
        tables = [quantities(run, next(iter(runs.values()))) for run in runs.values()]
    except (TypeError, KeyError, AttributeError, ValueError, ZeroDivisionError):
        return False
    return bool(tables)


# --------------------------------------------------------------------------------------------------------------------
# Results

#: What a table over seeds shows of each training run.
QUANTITIES = (
    *("test_accuracy", "test_loss", "train_loss", "objective", "parameters", "macs_per_image"),
    *("sections", "sections_at_start", "units", "units_at_start"),
    *("training_macs_share", "macs_share", "parameters_share", "seconds", "undecided", "rounded", "steps"),
)


def quantities(run: Mapping[str, Any], whole: Mapping[str, Any]) -> dict[str, float]:
    """The QUANTITIES of one training run's part of a summary; shares are of the network that `whole` began with."""
    training = whole["training_macs_unpruned"] / whole["steps"] * run["steps"]
    derived = {
        "training_macs_share": run["training_macs"] / training,
        "macs_share": run["macs_per_image"] / whole["macs_per_image_at_start"],
        "parameters_share": run["parameters"] / whole["parameters_at_start"],
        "sections_at_start": whole["sections_at_start"],
        "units": sum(run["units"].values()),
        "units_at_start": sum(whole["units_at_start"].values()),
        "undecided": len(run["decisions"]),
    }
    return {key: float(derived[key] if key in derived else run[key]) for key in QUANTITIES}


def setting_result(setting: Setting, ended: Mapping[int, Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """One of the "results" of sweep.json. ended: seed → network → QUANTITIES.

    Its "runs" hold, for each network, every quantity as a list over the seeds that trained this network.
    """
    names = dict.fromkeys(name for found in ended.values() for name in found)
    runs = {name: {key: [f[name][key] for f in ended.values() if name in f] for key in QUANTITIES} for name in names}
    return {"label": setting.label, "group": setting.group, "set": setting.values, "seeds": list(ended), "runs": runs}


def write_results(sweep: Sweep, directory: Path, outcomes: Sequence[Outcome]) -> None:
    """sweep.json: the results of every setting, and what failed."""
    results = []
    for setting in sweep.settings:
        ended = {o.job.seed: o.runs for o in outcomes if o.job.label == setting.label and o.runs is not None}
        results.append(setting_result(setting, ended))
    failed = [{"label": o.job.label, "seed": o.job.seed, "problem": o.problem} for o in outcomes if o.runs is None]
    page = {"name": sweep.name, "experiment": sweep.experiment, "results": results, "failed": failed}
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / "sweep.json", json.dumps(page, indent=1).encode())
