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
sweep's. `run_sweep` skips what is finished or kept as rows, resumes what was interrupted, repeats what failed; one failed run
stops nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from ..errors import InputError
from .sweep_file import Job, Sweep, jobs
from .sweep_results import Outcome, finished_summary, write_results
from .sweep_rows import add_rows, read_rows, runs_kept


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


def run_sweep(
    sweep: Sweep,
    directory: Path,
    *,
    executor: Executor | None = None,
    workers: int = 1,
    threads: int = 1,
    data_directory: str | None = None,
    kept: Path | None = None,
    keep_as: str | None = None,
    say: Callable[[str], None] = print,
) -> list[Outcome]:
    """Do what is left of the sweep in `directory` and return every run's outcome; sweep.json is renewed after every run.

    executor: where `execute` is called, which starts a process; default: `workers` threads here. A worker of a process pool
    that dies takes the pool, and with it all runs that have not ended, which the next call repeats. threads: of each run.
    kept: the file of rows; a run with rows there and none in `directory` counts as done. keep_as: a name of this machine, under
    which runs that have ended in `directory` get rows in `kept`.
    InputError if a directory holds a run of another configuration, or for a row that is damaged.
    """
    todo = jobs(sweep, directory, data_directory=data_directory, threads=threads)
    outcomes = _done(todo, kept)
    done = sum(outcome is not None for outcome in outcomes.values())
    say(f"{sweep.name}: {len(todo)} runs, {done} of them done; in {directory}")
    if kept is not None and kept.exists():
        say(f"{sum(o is not None and o.summary is None for o in outcomes.values())} of {len(todo)} kept as rows in {kept}")

    def keep(ended: Sequence[Outcome]) -> None:
        if kept is not None and keep_as is not None:
            add_rows(kept, ended, keep_as, [(s.label, seed) for s in sweep.settings for seed in s.seeds])

    keep([outcome for outcome in outcomes.values() if outcome is not None])
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
            write_results(sweep, directory, [found for found in outcomes.values() if found is not None])
            keep([outcome])
    except BaseException:
        for future in futures:
            future.cancel()
        children.end()
        raise
    finally:
        if executor is None:
            pool.shutdown(cancel_futures=True)
    ended = [outcome for outcome in outcomes.values() if outcome is not None]
    write_results(sweep, directory, ended)
    return ended


def _done(todo: Sequence[Job], kept: Path | None) -> dict[Job, Outcome | None]:
    """What there is of each job: in its folder, else among the rows that are kept."""
    rows = [] if kept is None else read_rows(kept)
    outcomes: dict[Job, Outcome | None] = {}
    for job in todo:
        summary = finished_summary(job)
        runs = runs_kept(kept, rows, job.label, job.config) if kept is not None and summary is None and rows else None
        outcomes[job] = None if summary is None and runs is None else Outcome(job, summary, kept=runs)
    return outcomes


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
    if outcome.runs is None:
        return head + f"failed: {outcome.problem}"
    return head + "; ".join(
        f"{name} {100 * q['test_accuracy']:.2f} % with {100 * q['macs_share']:.1f} % of the MACs and "
        f"{100 * q['parameters_share']:.1f} % of the parameters, {q['seconds']:.0f} s"
        for name, q in outcome.runs.items()
    )


THREAD_VARIABLES = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def execute(job: Job, children: Children | None = None) -> Outcome:
    """Run, or resume, one job in a process of its own, which ends when this one does. Its output is added to seed-N.log."""
    folder = Path(job.directory)
    folder.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(job.threads)) | {"PYTHONIOENCODING": "utf-8"}
    here = str(Path(__file__).parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (here, environment.get("PYTHONPATH"))))
    log = folder.with_name(f"{folder.name}.log")
    with open(log, "ab") as output:
        before = output.tell()
        process = (children or Children()).start(
            [sys.executable, "-P", "-m", "refprune.experiments.sweep_process"],
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
    summary = finished_summary(job) if process.returncode == 0 else None
    if summary is not None:
        return Outcome(job, summary)
    said = log.read_bytes()[before:].decode("utf-8", errors="replace")
    lines = said.strip().splitlines() or ["no message"]
    code = process.returncode
    how = f"ended by signal {-code}" if code < 0 else f"exit code {code}" if code else "ended without summary.json"
    return Outcome(job, None, f"{how}: {lines[-1]}")
