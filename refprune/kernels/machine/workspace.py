"""The memory and the threads of one numba backend: no allocation in the steady state of training.

Arrays are cut from buffers that the workspace keeps. A buffer serves again as soon as nothing outside refers to it, which
Python's reference count tells; so an array that somebody keeps is never overwritten, and nobody has to give anything back.
That count is exact in CPython with its global lock alone. Under any other interpreter every array is NumPy's own allocation.
"""

from __future__ import annotations

import math
import os
import platform
import sys
import threading
import weakref
from typing import Any

import numpy as np

from ...arrays import Array

ALIGNMENT = 64  # bytes: a cache line
SMALL = 1 << 14  # bytes up to which NumPy's own allocation costs less than the search here
KEEP = 512  # requests after which a buffer that nobody used is given back to the system
NOBODY = 2  # references to a buffer that is free: the workspace's own, and getrefcount's argument


def _counts_references() -> bool:
    """Whether `sys.getrefcount` tells how many others hold an object: in CPython, unless it runs without its global lock."""
    has_lock = getattr(sys, "_is_gil_enabled", lambda: True)  # of Python 3.13 and later
    return platform.python_implementation() == "CPython" and bool(has_lock())


COUNTS_REFERENCES = _counts_references()


class _Buffer:
    """Bytes that begin with a cache line at `start`, and the number of the last request that they served."""

    def __init__(self, size: int) -> None:
        self.bytes = np.empty(size + ALIGNMENT, np.uint8)
        self.start = -self.bytes.ctypes.data % ALIGNMENT
        self.used = 0


_all: weakref.WeakSet[Workspace] = weakref.WeakSet()


def _after_fork() -> None:
    """The thread that held a lock does not live on in a child."""
    for workspace in _all:
        workspace._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Workspace:
    """Buffers by size, and how many threads a kernel may use. May be shared by several Python threads."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._buffers: dict[int, list[_Buffer]] = {}  # by size in bytes
        self._requests = 0
        self._lock = threading.Lock()
        _all.add(self)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Like np.empty, C-contiguous; larger arrays start at a cache line."""
        dtype = np.dtype(dtype)
        size = math.prod(shape) * dtype.itemsize
        if size <= SMALL or not COUNTS_REFERENCES:
            return np.empty(shape, dtype)
        with self._lock:
            self._requests += 1
            if self._requests % KEEP == 0:
                self._drop_old()
            waiting = self._buffers.setdefault(size, [])
            for buffer in waiting:
                if sys.getrefcount(buffer.bytes) == NOBODY:
                    break
            else:
                buffer = _Buffer(size)
                waiting.append(buffer)
            buffer.used = self._requests
            array: Array = buffer.bytes[buffer.start : buffer.start + size].view(dtype).reshape(shape)
            return array

    def _drop_old(self) -> None:
        for size, buffers in list(self._buffers.items()):
            kept = [b for b in buffers if sys.getrefcount(b.bytes) > NOBODY or b.used > self._requests - KEEP]
            if kept:
                self._buffers[size] = kept
            else:
                del self._buffers[size]

    @property
    def held(self) -> int:
        """Bytes of all buffers, in use or waiting."""
        with self._lock:
            return sum(size * len(buffers) for size, buffers in self._buffers.items())
