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
    seeds = [0]                             instead of the sweep's
    group = "other estimators"              variants of one group share a colour and a frontier (default: the name)

Every run is a process of its own, with as many threads as it is given from its start on, and has a run directory below the
sweep's. `run` skips what is finished, resumes what was interrupted, repeats what failed; one failed run stops nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from . import experiment
from .errors import InputError
from .output.files import write_atomically
from .training import config
from .training.config import Config

KEYS = ("name", "experiment", "seeds", "set", "grid", "variants")
VARIANT_KEYS = ("name", "seeds", "group")
#: Bytes of a folder's name, and how those do not end: the sweep's own files do.
LONGEST_FOLDER, RESERVED = 200, (".json", ".html", ".svg", ".part")


class Setting(NamedTuple):
    """label: what differs from the other settings. group: those shown together. values: keys of the experiment. configs: one a
    seed."""

    label: str
    group: str
    values: dict[str, Any]
    seeds: tuple[int, ...]
    configs: tuple[Config, ...]


@dataclass(frozen=True)
class Sweep:
    """A sweep as its file says it, every setting checked."""

    name: str
    experiment: str
    settings: tuple[Setting, ...]


@dataclass(frozen=True)
class Job:
    """One run, picklable: the experiment as TOML, its directory, where the data are, its threads."""

    label: str
    seed: int
    directory: str
    configuration: str
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
    name, source = values.get("name", path.stem), values.get("experiment")
    if not isinstance(source, str) or not isinstance(name, str):
        raise InputError(f"{path}: name and experiment must be strings, got {name!r} and {source!r}")
    of_all = _seeds(values, [0], str(path))
    if source.endswith(".toml"):
        source = str(path.parent / source)
    base = _flat(values.get("set", {}), f"{path}: set")
    settings: list[Setting] = []
    for label, variant, changes in _combinations(values, path):
        chosen, seeds = base | changes, _seeds(variant, of_all, f"{path}: {label}")
        try:
            configs = tuple(config.load(source, values=chosen | {"seed": seed}) for seed in seeds)
        except InputError as error:
            raise InputError(f"{path}: {label}: {error}") from error
        settings.append(Setting(label, variant.get("group", variant.get("name", "")), chosen, tuple(seeds), configs))
    folders = [_folder(setting.label).casefold() for setting in settings]
    for folder, setting in zip(folders, settings, strict=True):
        if len(folder.encode()) > LONGEST_FOLDER:
            raise InputError(f"{path}: {setting.label[:40]!r}… is too long for a folder's name; name variants instead")
        if folders.count(folder) > 1 or not re.search(r"\w", folder) or folder.endswith(RESERVED):
            raise InputError(f"{path}: {setting.label!r} is no name of its own for a setting (its folder would be {folder!r})")
    return Sweep(name, source, tuple(settings))


def _seeds(table: Mapping[str, Any], default: list[int], where: str) -> list[int]:
    seeds = table.get("seeds", default)
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds) or len(set(seeds)) < len(seeds):
        raise InputError(f"{where}: seeds must be a list of different integers, got {seeds!r}")
    return seeds


def _combinations(values: Mapping[str, Any], path: Path) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(label, the variant's own keys, changes) of every variant with every combination of the grid."""
    grid = _flat(values.get("grid", {}), f"{path}: grid")
    for key, choices in grid.items():
        if not isinstance(choices, list) or not choices:
            raise InputError(f"{path}: grid.{key} must be a list of values, got {choices!r}")
        if any(one == other for one, other in itertools.combinations(choices, 2)):
            raise InputError(f"{path}: grid.{key} has a value twice, got {choices!r}")
    entries = values.get("variants", [{}])
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path}: variants must be tables, got {entries!r}")
    variants: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for entry in entries:
        if not isinstance(entry, dict) or (entry and not isinstance(entry.get("name"), str)):
            raise InputError(f"{path}: each of the variants needs a name, got {entry!r}")
        if not isinstance(entry.get("group", ""), str):
            raise InputError(f"{path}: {entry['name']}: group must be a string, got {entry['group']!r}")
        own = {key: value for key, value in entry.items() if key in VARIANT_KEYS}
        variants.append((own, _flat({k: v for k, v in entry.items() if k not in own}, f"{path}: variants")))
    _check_keys(path, _flat(values.get("set", {}), f"{path}: set"), grid, [changes for _, changes in variants])
    last = [key.rpartition(".")[2] for key in grid]
    titles = {key: short if last.count(short) == 1 else key for key, short in zip(grid, last, strict=True)}
    found = []
    for (own, changes), choice in itertools.product(variants, itertools.product(*grid.values())):
        at = dict(zip(grid, choice, strict=True))
        words = [own.get("name", ""), *(f"{titles[key]} {_short(value)}" for key, value in at.items())]
        found.append((", ".join(filter(None, words)) or "as it is", own, changes | at))
    return found


def _check_keys(path: Path, base: Mapping[str, Any], grid: Mapping[str, Any], variants: Sequence[Mapping[str, Any]]) -> None:
    """Nothing is set twice, and the seed by `seeds` alone."""
    for changes in variants:
        twice = sorted((set(base) & set(grid)) | (set(changes) & (set(base) | set(grid))))
        if twice:
            raise InputError(f"{path}: {twice[0]} is set in more than one of set, grid and variants")
    if any("seed" in keys for keys in (base, grid, *variants)):
        raise InputError(f"{path}: seed is set by seeds = [...]")


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
    data = None if data_directory is None else str(Path(data_directory).absolute())
    found = []
    rounds = itertools.zip_longest(*(zip(s.seeds, s.configs, strict=True) for s in sweep.settings))
    for setting, run in ((s, run) for one in rounds for s, run in zip(sweep.settings, one, strict=True) if run):
        seed, settings = run
        folder = run_directory(directory, setting.label, seed).absolute()
        found.append(Job(setting.label, seed, str(folder), config.to_toml(settings), data, threads))
    return found


def run_directory(directory: Path, label: str, seed: int) -> Path:
    """Where in the sweep's directory the run of a setting stands."""
    return directory / _folder(label) / f"seed-{seed}"


def _folder(label: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", label)


class Children:
    """The processes of one sweep in this process; after `end` none is left and none begins."""

    def __init__(self) -> None:
        self.lock, self.ended = threading.Lock(), False
        self.processes: set[subprocess.Popen[bytes]] = set()

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        with self.lock:
            if self.ended:
                raise InputError("the sweep was stopped")
            process = subprocess.Popen(command, **options)
            self.processes.add(process)
        return process

    def end(self) -> None:
        with self.lock:
            self.ended = True
            for process in self.processes:
                process.terminate()


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
    """Do what is left of the sweep in `directory` and return every run's outcome; sweep.json is renewed after every run.

    executor: where `execute` is called, which starts a process; default: `workers` threads here. A worker of a process pool
    that dies takes the pool, and with it all runs that have not ended, which the next call repeats. threads: of each run.
    InputError if a directory holds a run of another configuration.
    """
    todo = jobs(sweep, directory, data_directory=data_directory, threads=threads)
    outcomes = {job: None if (summary := _finished(job)) is None else Outcome(job, summary) for job in todo}
    done = sum(outcome is not None for outcome in outcomes.values())
    say(f"{sweep.name}: {len(todo)} runs, {done} of them done; in {directory}")
    children = Children()
    pool = executor or ThreadPoolExecutor(workers)
    call: Callable[[Job], Outcome] = execute if executor else functools.partial(execute, children=children)
    futures: dict[Future[Outcome], Job] = {}
    try:
        for job in (job for job, outcome in outcomes.items() if outcome is None):
            futures[_submitted(pool, call, job)] = job
        for future in as_completed(futures):
            outcome = _outcome(future, futures[future])
            outcomes[outcome.job] = outcome
            done += 1
            say(f"[{done}/{len(todo)}] {_line(outcome)}")
            _write(sweep, directory, [found for found in outcomes.values() if found is not None])
    except BaseException:
        for future in futures:
            future.cancel()
        children.end()
        raise
    finally:
        if executor is None:
            pool.shutdown(cancel_futures=True)
    ended = [outcome for outcome in outcomes.values() if outcome is not None]
    _write(sweep, directory, ended)
    return ended


def _submitted(pool: Executor, call: Callable[[Job], Outcome], job: Job) -> Future[Outcome]:
    """The job's future; one that holds the error if the executor takes no more jobs."""
    try:
        return pool.submit(call, job)
    except Exception as error:  # whatever an executor may raise: the runs that it has taken go on
        future: Future[Outcome] = Future()
        future.set_exception(error)
        return future


def _outcome(future: Future[Outcome], job: Job) -> Outcome:
    """What the executor has made of the job: also if it has lost it."""
    try:
        return future.result()
    except Exception as error:  # whatever an executor may hand on; CancelledError has no text of its own
        return Outcome(job, None, f"{type(error).__name__}: {error or 'the executor gave the run up'}")


def _line(outcome: Outcome) -> str:
    """What is said when a run has ended."""
    head = f"{outcome.job.label}, seed {outcome.job.seed}: "
    if outcome.summary is None:
        return head + f"failed: {outcome.problem}"
    runs = outcome.summary["runs"]
    found = {name: quantities(run, next(iter(runs.values()))) for name, run in runs.items()}
    return head + "; ".join(
        f"{name} {100 * q['test_accuracy']:.2f} % with {100 * q['macs_share']:.1f} % of the MACs and "
        f"{100 * q['parameters_share']:.1f} % of the parameters, {q['seconds']:.0f} s"
        for name, q in found.items()
    )


def _finished(job: Job) -> dict[str, Any] | None:
    """The summary of a run that has been done. InputError for a folder that holds a run of another configuration."""
    folder = Path(job.directory)
    there = folder / "config.toml"
    if there.exists() and there.stat().st_size > 0:
        try:
            known = config.load(str(there))
        except InputError:
            return None  # the run itself will say so, and fail alone
        if known != config.from_dict(tomllib.loads(job.configuration)):
            raise InputError(f"{folder}: holds a run of another configuration; give the sweep another folder (--out)")
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
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


THREAD_VARIABLES = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def execute(job: Job, children: Children | None = None) -> Outcome:
    """Run, or resume, one job in a process of its own, which ends when this one does. Its output is added to seed-N.log."""
    folder = Path(job.directory)
    folder.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(job.threads)) | {"PYTHONIOENCODING": "utf-8"}
    here = str(Path(__file__).parents[1])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (here, environment.get("PYTHONPATH"))))
    log = folder.with_name(f"{folder.name}.log")
    with open(log, "ab") as output:
        before = output.tell()
        process = (children or Children()).start(
            [sys.executable, "-P", "-m", "refprune.sweep"],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        with contextlib.suppress(BrokenPipeError), process:  # closing its input may find it gone, too
            assert process.stdin is not None
            process.stdin.write(json.dumps(dataclasses.asdict(job)).encode() + b"\n")
            process.stdin.flush()
            process.wait()
    summary = _finished(job) if process.returncode == 0 else None
    if summary is not None:
        return Outcome(job, summary)
    said = log.read_bytes()[before:].decode("utf-8", errors="replace")
    lines = said.strip().splitlines() or ["no message"]
    code = process.returncode
    how = f"ended by signal {-code}" if code < 0 else f"exit code {code}" if code else "ended without summary.json"
    return Outcome(job, None, f"{how}: {lines[-1]}")


def _main(job: Job) -> int:
    """In the job's own process."""
    folder = Path(job.directory)
    try:
        if (folder / "config.toml").exists() and (folder / "config.toml").stat().st_size:
            experiment.resume(folder, data_directory=job.data_directory, threads=job.threads)
        else:
            for name in ("config.toml", "config.toml.part", "environment.json", "environment.json.part"):
                (folder / name).unlink(missing_ok=True)  # of a run that ended while it made its folder
            settings = config.from_dict(tomllib.loads(job.configuration))
            experiment.run(settings, folder, data_directory=job.data_directory, threads=job.threads)
    except InputError as error:
        print(f"refprune: {error}", flush=True)
        return 2
    return 0


def _end_with_parent() -> None:
    """Whatever ends the process that holds the other end of standard input ends this one."""
    sys.stdin.read()
    os._exit(1)


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


def _write(sweep: Sweep, directory: Path, outcomes: Sequence[Outcome]) -> None:
    """sweep.json: for every setting its seeds and, for each training run, every quantity as a list over them."""
    results = []
    for setting in sweep.settings:
        mine = [o for o in outcomes if o.job.label == setting.label and o.summary is not None]
        names = list(dict.fromkeys(name for o in mine if o.summary for name in o.summary["runs"]))
        runs: dict[str, dict[str, list[float]]] = {name: {key: [] for key in QUANTITIES} for name in names}
        for outcome in mine:
            found = (outcome.summary or {})["runs"]
            whole = next(iter(found.values()))
            for name, part in found.items():
                for key, value in quantities(part, whole).items():
                    runs[name][key].append(value)
        told = {"label": setting.label, "group": setting.group, "set": setting.values, "seeds": [o.job.seed for o in mine]}
        results.append(told | {"runs": runs})
    failed = [{"label": o.job.label, "seed": o.job.seed, "problem": o.problem} for o in outcomes if o.summary is None]
    page = {"name": sweep.name, "experiment": sweep.experiment, "results": results, "failed": failed}
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / "sweep.json", json.dumps(page, indent=1).encode())


if __name__ == "__main__":
    asked = Job(**json.loads(sys.stdin.readline()))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(_main(asked))
