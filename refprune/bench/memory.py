"""Peak memory of a training step, in a process of its own (`memory_process`).

Two figures in MB. "with_first": the peak of everything from before the first step on, compilers included, less the resident
memory before it. "step": after a first step with two images, which compiles, the peak of three steps less the resident memory
before them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import Array
from ..errors import InputError


def resident() -> float:
    """Resident memory now, MB."""
    return _status("VmRSS")


def peak() -> float:
    """The largest resident memory since the process began or `forget_peak`, MB."""
    return _status("VmHWM")


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _status(key: str) -> float:
    """A figure that the kernel keeps for this process alone: getrusage's peak would begin with that of the parent."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in text.splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


def measure(
    side: str, name: str, x: Array, labels: Array, *, threads: int, dtype: str, layout: str = "contiguous"
) -> dict[str, float]:
    """Both figures for side "refprune" or "torch" (in that memory layout) training the zoo's network `name` on this batch.

    InputError where /proc does not tell.
    """
    if not Path("/proc/self/clear_refs").exists():
        raise InputError("peak memory: only Linux tells it")
    with tempfile.TemporaryDirectory() as folder:
        batch = Path(folder) / "batch.npz"
        np.savez(batch, x=x, labels=labels)
        job = {"side": side, "name": name, "threads": threads, "dtype": dtype, "layout": layout, "batch": str(batch)}
        command = [sys.executable, "-m", "refprune.bench.memory_process", json.dumps(job)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(
            f"peak memory: the measuring process failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
        )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _stepper(job: dict[str, Any]) -> Callable[[Array, Array], Callable[[], object]]:
    """(x, labels) → a function that does one training step."""
    from .cases import Setting, Training, network_state

    setting = Setting(threads=job["threads"], dtype=job["dtype"], torch=job["side"] == "torch")
    state = network_state(setting, job["name"])
    if not setting.torch:
        return lambda x, labels: Training(setting, state, x, labels).step
    from . import torch_side

    torch_side.prepare(setting.threads)
    start = state.params, state.statistics
    options = {"learning_rate": 1e-5, "momentum": 0.9, "layout": job["layout"]}
    return lambda x, labels: torch_side.Training(state.network, *start, x, labels, **options).step


def measure_here(job: dict[str, Any]) -> dict[str, float]:
    """Both figures of a job, in this process, which must have done nothing before."""
    with np.load(job["batch"]) as arrays:
        x, labels = arrays["x"], arrays["labels"]
    stepper = _stepper(job)
    step, first = stepper(x, labels), stepper(x[:2], labels[:2])
    forget_peak()
    at_start = resident()
    first()
    highest = peak()
    forget_peak()
    before = resident()
    for _ in range(3):
        step()
    return {"step": peak() - before, "with_first": max(highest, peak()) - at_start}
