"""One run of a sweep, in a process of its own."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

from ..errors import InputError
from . import run as experiment
from .sweep_file import Job


def main(job: Job) -> int:
    """In the job's own process."""
    folder = Path(job.directory)
    try:
        if (folder / "config.toml").exists():
            experiment.resume(folder, data_directory=job.data_directory, threads=job.threads)
        else:
            experiment.run(job.config, folder, data_directory=job.data_directory, threads=job.threads)
    except InputError as error:
        print(f"refprune: {error}", flush=True)
        return 2
    return 0


def _end_with_parent() -> None:
    """Whatever ends the process that holds the other end of standard input ends this one."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    asked = Job(**json.loads(sys.stdin.readline()))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(main(asked))
