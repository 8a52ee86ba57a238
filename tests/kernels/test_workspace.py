"""Memory of the numba backend: recycled, never while somebody refers to it; and kernels stay inside theirs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from refprune.backend import load_backend
from refprune.kernels.machine import workspace
from refprune.kernels.machine.workspace import KEEP, SMALL, Workspace
from refprune.oracle import layers

SIZE = 2 * SMALL


def test_an_array_that_nobody_refers_to_serves_again():
    space = Workspace(1)
    address = space.empty((SIZE,), np.uint8).ctypes.data
    assert space.empty((SIZE // 4,), np.float32).ctypes.data == address
    assert space.held == SIZE


def test_an_array_that_somebody_refers_to_is_left_alone():
    space = Workspace(1)
    view = space.empty((SIZE // 8, 2), np.float32)[3:5].T
    view[...] = 7
    others = [space.empty((SIZE // 4,), np.float32) for _ in range(3)]
    for other in others:
        other[:] = 0
    assert (view == 7).all()
    assert space.held == 4 * SIZE


def test_a_buffer_that_nobody_asks_for_is_given_back():
    space = Workspace(1)
    space.empty((100 * SIZE,), np.uint8)
    for _ in range(3 * KEEP):
        space.empty((SIZE,), np.uint8)
    assert space.held == SIZE


def test_arrays_start_at_a_cache_line():
    space = Workspace(1)
    arrays = [space.empty((SIZE + i,), np.uint8) for i in range(5)]
    assert all(a.ctypes.data % workspace.ALIGNMENT == 0 for a in arrays)


@pytest.mark.parametrize(
    ("implementation", "lock", "exact"), [("CPython", True, True), ("CPython", False, False), ("PyPy", True, False)]
)
def test_reference_counts_are_trusted_in_cpython_with_its_lock_alone(monkeypatch, implementation, lock, exact):
    monkeypatch.setattr(workspace.platform, "python_implementation", lambda: implementation)
    monkeypatch.setattr(workspace.sys, "_is_gil_enabled", lambda: lock, raising=False)
    assert workspace._counts_references() is exact


def test_where_reference_counts_tell_nothing_no_array_shares_memory(monkeypatch):
    monkeypatch.setattr(workspace, "COUNTS_REFERENCES", False)
    space = Workspace(1)
    arrays = [space.empty((SIZE // 4,), np.float32) for _ in range(3)]
    for i, array in enumerate(arrays):
        array[:] = i
    assert [array[0] for array in arrays] == [0, 1, 2]
    assert all(array.base is None for array in arrays)  # NumPy's own
    assert space.held == 0


def test_training_allocates_nothing_in_the_steady_state():
    """The same step again asks for no new buffer."""
    backend = load_backend("numba", threads=1)
    space = backend.conv2d.args[0]
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((8, 16, 16, 16)), rng.standard_normal((16, 16, 3, 3))

    def step():
        y, saved = backend.conv2d(x, w, None, stride=(1, 1), padding=((1, 1), (1, 1)), dilation=(1, 1), groups=1)
        return backend.conv2d_vjp(saved, y)

    step()
    held = space.held
    for _ in range(5):
        step()
    assert space.held == held


@pytest.mark.skipif(sys.platform == "win32", reason="needs mmap and mprotect")
def test_kernels_stay_inside_their_memory():
    script = Path(__file__).parents[1] / "support" / "guard_pages.py"
    done = subprocess.run([sys.executable, script, "60", "0"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("wrong", [{"padding": ((-1, 0), (0, 0))}, {"stride": (0, 1)}, {"dilation": (0, 1)}])
def test_what_no_spec_allows_is_left_to_the_oracle(wrong):
    x, w = np.ones((1, 1, 6, 6)), np.ones((1, 1, 3, 3))
    options = {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1), "groups": 1} | wrong

    def outcome(function):
        try:
            return function(x, w, None, **options)[0]
        except Exception as error:
            return type(error)

    ours, oracle = outcome(load_backend("numba", threads=1).conv2d), outcome(layers.conv2d)
    assert (ours is oracle) if isinstance(oracle, type) else np.array_equal(ours, oracle)
