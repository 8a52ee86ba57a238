"""`refprune sweep`: many runs over settings and seeds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..output.files import as_folder
from .options import file_name, interruptible, whole


def add(commands: Any) -> None:
    """Add the parser to argparse's `commands`."""
    sweep = commands.add_parser(
        "sweep",
        help="many runs over settings and seeds; what is done already is not done again",
        description="A run counts as done if its folder below --out holds its summary, or if FILE.csv beside FILE.toml holds "
        "rows with the SHA-256 of its configuration. A row is a training run's accuracy, size and cost, without curves. --keep "
        "adds rows to FILE.csv; without it nothing is written there.",
    )
    sweep.add_argument("file", metavar="FILE.toml", type=file_name)
    sweep.add_argument("--out", metavar="DIR", type=file_name, help="folder of the runs (default: runs/sweep-NAME)")
    sweep.add_argument("--jobs", metavar="N", type=whole, help="runs at a time (default: cores / --threads)")
    sweep.add_argument("--threads", metavar="N", type=whole, default=1, help="threads of each run (default: 1)")
    sweep.add_argument("--data-dir", metavar="DIR")
    sweep.add_argument(
        "--scheduler",
        metavar="tcp://HOST:PORT",
        help="run on the workers of this Dask scheduler; they share the folder (--out)",
    )
    sweep.add_argument(
        "--keep", metavar="MACHINE", help="add the finished runs to FILE.csv, as made on the machine of this name"
    )
    sweep.set_defaults(command=_sweep)


def _sweep(options: argparse.Namespace) -> int:
    from ..experiments import cluster, sweep, sweep_file, sweep_report, sweep_rows, sweep_tables
    from ..kernels.machine import cores
    from ..output import figures

    for name in ("jobs", "threads"):
        number = getattr(options, name)
        if number is not None and number < 1:
            raise InputError(f"--{name}: must be at least 1, got {number}")
    if options.jobs and options.scheduler:
        raise InputError("--jobs: with --scheduler the workers' threads say how many runs there are at a time")
    if options.keep is not None and not options.keep.strip():
        raise InputError("--keep: must be the name of a machine, got an empty one")
    plan = sweep_file.load_sweep(options.file)
    directory = options.out or Path("runs") / f"sweep-{as_folder(plan.name)}"
    how: dict[str, Any] = {"threads": options.threads, "data_directory": options.data_dir}
    how |= {"kept": sweep_rows.rows_file(options.file), "keep_as": options.keep}
    with interruptible(directory / "sweep.json", f"refprune sweep {options.file} --out {directory}"):
        if options.scheduler:
            with cluster.executor(options.scheduler, plan, directory, data_directory=options.data_dir) as executor:
                outcomes = sweep.run_sweep(plan, directory, executor=executor, **how)
        else:
            workers = options.jobs or max(1, cores.allowed() // options.threads)
            outcomes = sweep.run_sweep(plan, directory, workers=workers, **how)
    print("\n" + sweep_tables.text(directory))
    page = sweep_report.write_html(directory)
    print(f"\nreport: {page}" if page else f"\n{figures.HINT}")
    failed = [outcome for outcome in outcomes if outcome.runs is None]
    return 1 if failed else 0
