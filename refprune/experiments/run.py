"""One experiment from a configuration to a run directory: train, prune, finish, compare, summarise; resume where it stopped.

A run directory holds config.toml, environment.json, summary.json and a folder for each training run ("pruned", "unpruned",
"from-scratch") with metrics.jsonl and its checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..output.files import check_unused, locked, write_atomically, write_new
from ..output.progress import Progress
from ..spec import cost as network_cost
from ..training import checkpoint
from ..training.config import Config, load, to_toml
from ..training.images import epoch_steps
from ..training.loop import train
from ..training.state import State
from . import environment as environments
from .journal import Journal, Log
from .setup import Setup, TrainingRun, set_up
from .sizes import Summary, count_sections, count_units, layers_left, macs_spent

#: Added to the seed where the network that is left is trained from scratch, so that it does not begin with the same weights.
SCRATCH_SEED = 1_000_000


def run(
    config: Config,
    directory: Path,
    *,
    data_directory: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Run the experiment in a new or empty `directory`; returns what summary.json holds.

    threads: instead of training.threads.
    """
    check_unused(directory)
    setup = set_up(config, data_directory, threads)
    write_new(directory / "config.toml", to_toml(config).encode())
    progress = progress or Progress()
    progress.line(f"run directory: {directory}")
    with locked(directory / "config.toml"):
        environments.write(directory / "environment.json", setup.environment)
        return _train_all(setup, directory, progress)


def resume(
    directory: Path, *, data_directory: str | None = None, threads: int | None = None, progress: Progress | None = None
) -> Summary:
    """Go on with the run in `directory` from its last checkpoints, to the same bits as without the interruption.

    threads: instead of the run's own number, on which the bits do not depend.
    """
    file = directory / "config.toml"
    if not file.is_file():
        raise InputError(f"{directory}: no run to resume here ({file.name} is missing)")
    if not file.stat().st_size:
        raise InputError(f"{file}: is empty; the run ended before it began, and another folder begins it again")
    setup = set_up(load(str(file)), data_directory, threads)
    progress = progress or Progress()
    progress.line(f"run directory: {directory}")
    with locked(file):
        if any(directory.glob("*/" + checkpoint.NAME)):
            environments.compare(directory / "environment.json", setup.environment, progress)
        else:  # ended before its first step
            environments.write(directory / "environment.json", setup.environment)
        return _train_all(setup, directory, progress)


def _train_all(setup: Setup, directory: Path, progress: Progress) -> Summary:
    """The training runs one after the other; those to compare with get the epochs that the pruned one took."""
    runs: Summary = {}
    config, gates, epochs = setup.config, setup.whole.gate_count, setup.config.training.epochs
    for name, network in setup.networks.items():
        runs[name] = _train(TrainingRun(name, setup, network, gates, epochs, directory / name), progress)
        epochs = runs[name]["epochs"]
    if config.from_scratch and "pruned" in runs:
        name, left = "from-scratch", checkpoint.load(directory / "pruned").state.network
        again = dataclasses.replace(setup, config=dataclasses.replace(config, seed=config.seed + SCRATCH_SEED))
        gates = runs["pruned"]["gates_on"]
        runs[name] = _train(TrainingRun(name, again, left, gates, epochs, directory / name), progress)
    summary = {"name": config.name, "seed": config.seed, "data": setup.data, "runs": runs}
    write_atomically(directory / "summary.json", json.dumps(summary, indent=1).encode())
    return summary


def _train(run: TrainingRun, progress: Progress) -> Summary:
    """Train one network to the end, from its start or its checkpoint; returns the training run's part of the summary."""
    setup = run.setup
    journal, state = Journal.open(run, progress)
    progress.start(run.name, run.epochs * epoch_steps(setup.images, setup.config), state.step)
    try:
        for event in train(state, setup.config, setup.images, setup.backend, until=run.epochs):
            journal.note(event)
            state = event.state
    finally:
        progress.finish()
    return _summary(run, state, journal.log)


def _summary(run: TrainingRun, state: State, log: Log) -> Summary:
    assert log.final is not None  # the last event, or the checkpoint of a finished run
    setup, start, left = run.setup, run.network, state.network
    errors = [row["masked_compact_error"] for row in log.removals if row["masked_compact_error"] is not None]
    spent = macs_spent(state, start, setup.config.training.batch_size)
    return {
        **dataclasses.asdict(log.final),
        "sections": count_sections(left),
        "sections_at_start": count_sections(start),
        "units": count_units(setup.whole, left),
        "units_at_start": count_units(setup.whole, start),
        "parameters": network_cost.parameters(left),
        "parameters_at_start": network_cost.parameters(start),
        "macs_per_image": network_cost.macs(left),
        "macs_per_image_at_start": network_cost.macs(start),
        "layers": layers_left(start, left),
        "training_macs": spent["macs"],
        "training_macs_unpruned": spent["macs_unpruned"],
        "steps": state.step,
        "epochs": state.step // epoch_steps(setup.images, setup.config),
        "seconds": log.seconds,
        "first_step_seconds": log.first_step_seconds,
        "removals": log.removals,
        "decisions": log.decisions,
        "rounded": log.rounded,
        "masked_compact_error": float(np.max(errors)) if errors else None,
    }
