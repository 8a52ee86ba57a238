"""`refprune run`: train and prune one experiment."""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..output.files import as_folder
from .options import file_name, interruptible, whole

if TYPE_CHECKING:
    from ..output.progress import Progress


def add(commands: Any) -> None:
    """Add the parser to argparse's `commands`."""
    run = commands.add_parser("run", help="train and prune; without arguments the quick start")
    run.add_argument("experiment", nargs="?", help="a known name (see `refprune zoo`; default quickstart) or a .toml file")
    run.add_argument(
        "--data",
        metavar="NAME",
        help="data set instead of the experiment's, same as --set data.name=NAME: "
        "see `refprune data list`, or folder:PATH@SIZE for images in PATH/train/CLASS and PATH/val/CLASS",
    )
    run.add_argument("--data-dir", metavar="DIR", help="folder with the data sets (default: $REFPRUNE_DATA, then datasets/)")
    run.add_argument("--threads", metavar="N", type=whole, help="threads to use (default: all cores); the results are the same")
    run.add_argument("--set", metavar="A.B=VALUE", action="append", default=[], help="change one key of the experiment")
    run.add_argument("--out", metavar="DIR", type=file_name, help="run directory (default: runs/NAME-TIME)")
    run.add_argument("--resume", metavar="DIR", type=file_name, help="go on with the run in DIR")
    run.set_defaults(command=_run)


class _CompilingNote:
    """Says once, at the first kernel that is compiled, that kernels are compiled."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._shown = False

    def hear(self, record: logging.LogRecord) -> None:
        if getattr(record, "event", None) != "compiling" or self._shown:
            return
        problem = getattr(record, "problem", None)
        self._progress.note(f"compiling kernels ({f'they cannot be kept: {problem}' if problem else 'once'})…")
        self._shown = True


def _run(options: argparse.Namespace) -> int:
    from ..experiments import report, run, warmup
    from ..output import figures, tables
    from ..output.progress import Progress
    from ..training import config

    progress = Progress()
    note = _CompilingNote(progress)
    how: dict[str, Any] = {"data_directory": options.data_dir, "progress": progress}
    with warmup.listening(note.hear):
        if options.resume is not None:
            if options.set or options.data is not None or options.out or options.experiment is not None:
                raise InputError(
                    "--resume: goes on with the run as it was; only --data-dir and --threads may be given beside it"
                )
            directory = options.resume
            with interruptible(directory / "config.toml", f"refprune run --resume {directory}"):
                summary = run.resume(directory, threads=options.threads, **how)
        else:
            overrides = options.set + ([] if options.data is None else [f"data.name={json.dumps(options.data)}"])
            overrides += [] if options.threads is None else [f"training.threads={options.threads}"]
            settings = config.load("quickstart" if options.experiment is None else options.experiment, overrides)
            name = as_folder(settings.name) or "run"
            directory = options.out or Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
            with interruptible(directory / "config.toml", f"refprune run --resume {directory}"):
                summary = run.run(settings, directory, **how)
    print("\n" + tables.text_table(report.rows(summary)))
    for line in (*report.nothing_left_lines(summary), *report.decision_lines(summary)):
        print(line)
    page = report.write_html(directory, summary)
    print(f"\nreport: {page}" if page else f"\n{figures.HINT}")
    return 0 if report.holds(summary) else 1
