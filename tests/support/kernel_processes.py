"""Python in a process of its own, for tests of what stands under the kernels."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "tests" / "kernels"


def python(code, *, path=ROOT, flags=("-W", "error"), **variables):
    """Start `code` in a fresh interpreter; see `answer`."""
    environment = {
        **os.environ,
        **variables,
        "PYTHONPATH": os.pathsep.join([str(path), str(ROOT / "tests" / "support"), str(KERNELS)]),
    }
    where = {"cwd": path, "env": environment}  # the folder that Python looks in first
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, *flags, "-c", code], text=True, **where, **pipes)


def answer(process):
    """What it printed, as JSON; its standard error must be empty."""
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    return json.loads(out)
