"""Many runs of one experiment: over settings and seeds, on any `concurrent.futures` executor, restartable.

A sweep is a TOML file:

    experiment = "mnist-resmlp"             a known experiment or a .toml file beside this one
    seeds = [0, 1, 2, 3, 4]

    [set]                                   keys of the experiment, the same for all runs
    training.epochs = 10

    [grid]                                  every combination of these
    training.section_scale = [0.15, 0.3, 0.6]
    network.sections = [6, 12, 24]

    [[variants]]                            and each of these by its name, if there are any
    name = "paired"
    gates.estimator = "paired"

Every run is a process of its own, with as many threads as it is given from its start on, and has a run directory below the
sweep's. `run` skips what is finished, resumes what was interrupted, repeats what failed; one failed run stops nothing.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from . import config, experiment
from .config import Config
from .errors import InputError
from .files import write_atomically

KEYS = ("name", "experiment", "seeds", "set", "grid", "variants")


class Setting(NamedTuple):
    """label: what differs from the other settings. values: keys of the experiment. configs: one a seed."""

    label: str
    values: dict[str, Any]
    configs: tuple[Config, ...]


@dataclass(frozen=True)
class Sweep:
    """A sweep as its file says it, every setting checked."""

    name: str
    experiment: str
    seeds: tuple[int, ...]
    settings: tuple[Setting, ...]


@dataclass(frozen=True)
class Job:
    """One run, picklable: the experiment as TOML, its directory, where the data are, its threads."""

    label: str
    seed: int
    directory: str
    settings: str
    data_directory: str | None
    threads: int


class Outcome(NamedTuple):
    """What became of a job: its summary, or why there is none."""

    job: Job
    summary: dict[str, Any] | None
    problem: str = ""


# --------------------------------------------------------------------------------------------------------------------
# The file


def load(path: Path) -> Sweep:
    """The sweep in a TOML file. InputError names the key that is wrong; every run's configuration is checked."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    unknown = sorted(set(values) - set(KEYS))
    if unknown:
        raise InputError(f"{path}: unknown key {unknown[0]} (known: {', '.join(KEYS)})")
    name, source, seeds = values.get("name", path.stem), values.get("experiment"), values.get("seeds", [0])
    if not isinstance(source, str) or not isinstance(name, str):
        raise InputError(f"{path}: name and experiment must be strings, got {name!r} and {source!r}")
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds) or len(set(seeds)) < len(seeds):
        raise InputError(f"{path}: seeds must be a list of different integers, got {seeds!r}")
    if source.endswith(".toml"):
        source = str(path.parent / source)
    base = _flat(values.get("set", {}), f"{path}: set")
    settings = []
    for label, changes in _combinations(values, path):
        chosen = base | changes
        try:
            configs = tuple(config.load(source, values=chosen | {"seed": seed}) for seed in seeds)
        except InputError as error:
            raise InputError(f"{path}: {label}: {error}") from error
        settings.append(Setting(label, chosen, configs))
    if len({setting.label for setting in settings}) < len(settings):
        raise InputError(f"{path}: two variants have the same name")
    return Sweep(name, source, tuple(seeds), tuple(settings))


def _combinations(values: Mapping[str, Any], path: Path) -> list[tuple[str, dict[str, Any]]]:
    """(label, changes) of every variant with every combination of the grid."""
    grid = _flat(values.get("grid", {}), f"{path}: grid")
    for key, choices in grid.items():
        if not isinstance(choices, list) or not choices:
            raise InputError(f"{path}: grid.{key} must be a list of values, got {choices!r}")
    variants: list[tuple[str, dict[str, Any]]] = []
    for entry in values.get("variants", [{}]):
        if not isinstance(entry, dict) or (entry and not isinstance(entry.get("name"), str)):
            raise InputError(f"{path}: each of the variants needs a name, got {entry!r}")
        variants.append((entry.get("name", ""), _flat({k: v for k, v in entry.items() if k != "name"}, f"{path}: variants")))
    found = []
    for (name, changes), choice in itertools.product(variants, itertools.product(*grid.values())):
        at = dict(zip(grid, choice, strict=True))
        words = [name, *(f"{key.rpartition('.')[2]} {_short(value)}" for key, value in at.items())]
        found.append((", ".join(filter(None, words)) or "as it is", changes | at))
    return found


def _short(value: Any) -> str:
    return ("+".join(map(str, value)) or "none") if isinstance(value, list) else str(value)


def _flat(table: Any, where: str, prefix: str = "") -> dict[str, Any]:
    """{"a.b": value} of nested tables."""
    if not isinstance(table, Mapping):
        raise InputError(f"{where} must be a table, got {table!r}")
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, where, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


# --------------------------------------------------------------------------------------------------------------------
# Running


def jobs(sweep: Sweep, directory: Path, *, data_directory: str | None = None, threads: int = 1) -> list[Job]:
    """Every run of the sweep, all settings of the first seed before the second, so that a stopped sweep shows all settings."""
    found = []
    for i, seed in enumerate(sweep.seeds):
        for setting in sweep.settings:
            folder = run_directory(directory, setting.label, seed)
            text = config.to_toml(setting.configs[i])
            found.append(Job(setting.label, seed, str(folder.absolute()), text, data_directory, threads))
    return found


def run_directory(directory: Path, label: str, seed: int) -> Path:
    """Where in the sweep's directory the run of a setting stands."""
    return directory / re.sub(r"[^\w.+-]+", "-", label) / f"seed-{seed}"


def run(
    sweep: Sweep,
    directory: Path,
    *,
    executor: Executor | None = None,
    workers: int = 1,
    threads: int = 1,
    data_directory: str | None = None,
    say: Callable[[str], None] = print,
) -> list[Outcome]:
    """Do what is left of the sweep in `directory`, write its sweep.json, and return every run's outcome.

    executor: where `execute` is called, which starts a process; default: `workers` threads here. threads: of each run.
    InputError if a directory holds a run of another configuration.
    """
    todo = jobs(sweep, directory, data_directory=data_directory, threads=threads)
    finished = {job.directory: summary for job in todo if (summary := _finished(job)) is not None}
    outcomes = [Outcome(job, finished[job.directory]) for job in todo if job.directory in finished]
    say(f"{sweep.name}: {len(todo)} runs, {len(outcomes)} of them done; in {directory}")
    pool = executor or ThreadPoolExecutor(workers)
    try:
        futures: dict[Future[Outcome], Job] = {pool.submit(execute, job): job for job in todo if job.directory not in finished}
        for future in as_completed(futures):
            try:
                outcome = future.result()
            except Exception as error:  # the executor itself failed: a worker died, the cluster went away
                outcome = Outcome(futures[future], None, f"{type(error).__name__}: {error}")
            outcomes.append(outcome)
            say(f"[{len(outcomes)}/{len(todo)}] {_line(outcome)}")
    finally:
        if executor is None:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(_running):
                process.terminate()
    order = {job.directory: i for i, job in enumerate(todo)}
    outcomes.sort(key=lambda outcome: order[outcome.job.directory])
    _write(sweep, directory, outcomes)
    return outcomes


def _line(outcome: Outcome) -> str:
    head = f"{outcome.job.label}, seed {outcome.job.seed}: "
    if outcome.summary is None:
        return head + f"failed: {outcome.problem}"
    runs = outcome.summary["runs"].items()
    return head + "; ".join(
        f"{name} {100 * r['test_accuracy']:.2f} % with {r['sections']} of {r['sections_at_start']}, {r['seconds']:.0f} s"
        for name, r in runs
    )


def _finished(job: Job) -> dict[str, Any] | None:
    """The summary of a run that has been done."""
    folder = Path(job.directory)
    there = folder / "config.toml"
    if there.exists() and there.read_text(encoding="utf-8") not in (job.settings, ""):
        raise InputError(f"{folder}: holds a run of another configuration; give the sweep another folder (--out)")
    try:
        summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return summary


#: Processes of this process's jobs, so that an interrupted sweep can end them.
_running: set[subprocess.Popen[str]] = set()

THREAD_VARIABLES = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def execute(job: Job) -> Outcome:
    """Run, or resume, one job in a process of its own; its output goes to log.txt beside the run directory."""
    folder = Path(job.directory)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if (folder / "config.toml").exists() and not (folder / "config.toml").read_text(encoding="utf-8"):
        (folder / "config.toml").unlink()  # ended between making the folder and writing into it
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(job.threads)) | {"PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", "refprune.sweep"]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        env=environment,
    )
    _running.add(process)
    try:
        output, _ = process.communicate(json.dumps(job.__dict__))
    finally:
        _running.discard(process)
    folder.with_name(f"{folder.name}.log").write_text(output, encoding="utf-8")
    if process.returncode:
        lines = output.strip().splitlines() or ["no message"]
        return Outcome(job, None, f"exit code {process.returncode}: {lines[-1]}")
    return Outcome(job, _finished(job))


def _main(job: Job) -> int:
    """In the job's own process."""
    folder = Path(job.directory)
    try:
        if (folder / "config.toml").exists():
            experiment.resume(folder, data_directory=job.data_directory)
        else:
            settings = config.from_dict(tomllib.loads(job.settings))
            experiment.run(settings, folder, data_directory=job.data_directory)
    except InputError as error:
        print(f"refprune: {error}", flush=True)
        return 2
    return 0


# --------------------------------------------------------------------------------------------------------------------
# Results

#: What a table over seeds shows of each training run.
QUANTITIES = (
    *("test_accuracy", "test_loss", "train_loss", "objective", "sections", "sections_at_start", "parameters", "macs_per_image"),
    *("training_macs_share", "macs_share", "seconds", "undecided", "steps"),
)


def quantities(run: Mapping[str, Any]) -> dict[str, float]:
    """The QUANTITIES of one training run's part of a summary; training_macs_share is of the unpruned network's steps."""
    derived = {
        "training_macs_share": run["training_macs"] / run["training_macs_unpruned"],
        "macs_share": run["macs_per_image"] / run["macs_per_image_at_start"],
        "undecided": len(run["decisions"]),
    }
    return {key: float(derived[key] if key in derived else run[key]) for key in QUANTITIES}


def _write(sweep: Sweep, directory: Path, outcomes: Sequence[Outcome]) -> None:
    """sweep.json: for every setting its seeds and, for each training run, every quantity as a list over them."""
    results = []
    for setting in sweep.settings:
        mine = [o for o in outcomes if o.job.label == setting.label and o.summary is not None]
        names = list(dict.fromkeys(name for o in mine if o.summary for name in o.summary["runs"]))
        runs: dict[str, dict[str, list[float]]] = {name: {key: [] for key in QUANTITIES} for name in names}
        for outcome in mine:
            for name, found in (outcome.summary or {})["runs"].items():
                for key, value in quantities(found).items():
                    runs[name][key].append(value)
        results.append({"label": setting.label, "set": setting.values, "seeds": [o.job.seed for o in mine], "runs": runs})
    failed = [{"label": o.job.label, "seed": o.job.seed, "problem": o.problem} for o in outcomes if o.summary is None]
    page = {"name": sweep.name, "experiment": sweep.experiment, "results": results, "failed": failed}
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / "sweep.json", json.dumps(page, indent=1).encode())


if __name__ == "__main__":
    sys.exit(_main(Job(**json.loads(sys.stdin.read()))))
