"""A function compiled for one signature, or its machine code read from disk.

Each is reported to the logger "refprune.kernels". A record's attribute `event` tells what it reports: "compiling" (with
`problem`: why the machine code cannot be kept, or None), "compiled", "loaded", "unusable".

Machine code may depend on the source of this package, on the target processor and on Numba's settings, and on nothing else:
that is the key under which it is kept. One function inlines others, from any file of the package, so the digest is of all.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
from numba.core import config

from ... import __version__
from . import numba_internals
from .cache import Store

log = logging.getLogger("refprune.kernels")

#: Numba's settings that change no machine code.
HARMLESS = re.compile(r"THREAD|CUDA|CACHE|COLOR|PROFILER|WARN")


def _sources() -> str:
    """SHA-256 of the source files of `refprune.kernels`; empty where there are none."""
    kernels = Path(__file__).parents[1]
    files = sorted(kernels.rglob("*.py"))
    texts = [(file.relative_to(kernels).as_posix(), hashlib.sha256(file.read_bytes()).hexdigest()) for file in files]
    return hashlib.sha256(repr(texts).encode()).hexdigest() if texts else ""


SOURCES = _sources()  # now, while the modules themselves are read
compiling = threading.RLock()


def _after_fork() -> None:
    """The thread that held the lock does not live on in a child."""
    global compiling
    compiling = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def store() -> Store:
    """Where machine code of this process is kept."""
    settings = {
        name: str(value)
        for name, value in vars(config).items()
        if name.isupper() and isinstance(value, str | int | float | None) and not HARMLESS.search(name)
    }
    versions = (__version__, numba.__version__, llvmlite.__version__, np.__version__, sys.version)
    return _store(repr((versions, SOURCES, numba_internals.target(), sorted(settings.items()))))


_store = functools.cache(Store)


def build(function: Callable[..., Any], signature: tuple[Any, ...]) -> Any:
    """The dispatcher of `function`, compiled for `signature` (types of the arguments) and for nothing else."""
    run: Any = numba.njit(nogil=True, error_model="numpy")(function)
    if function.__module__.startswith("refprune.kernels.") and SOURCES and not numba_internals.missing():
        numba_internals.use_cache(run, _Disk(function, signature))
    with compiling:
        run.compile(signature)
    run.disable_compile()
    return run


class _Disk(numba_internals.NullCache):  # type: ignore[misc]
    """What a dispatcher asks before it compiles, and tells what it has compiled."""

    def __init__(self, function: Callable[..., Any], signature: tuple[Any, ...]) -> None:
        self._title = f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}"
        described = repr((function.__code__.co_firstlineno, signature))
        self._name = re.sub(r"[^\w.]", "", self._title) + "-" + hashlib.sha256(described.encode()).hexdigest()[:16]

    def load_overload(self, signature: Any, context: Any) -> Any:
        self._began = time.perf_counter()
        context.refresh()  # defines what machine code calls
        content = store().read(self._name)
        if content is not None:
            try:
                result = numba_internals.from_bytes(context, content)
            except Exception as error:  # whatever is wrong with it, it is not used
                log.debug("%s cannot be used: %s", self._name, error, extra={"event": "unusable"})
            else:
                took = 1e3 * (time.perf_counter() - self._began)
                log.debug("loaded %s in %.0f ms", self._title, took, extra={"event": "loaded"})
                return result
        log.info("compiling %s", self._title, extra={"event": "compiling", "problem": store().problem})
        return None

    def save_overload(self, signature: Any, result: Any) -> None:
        content = numba_internals.to_bytes(result)
        if _sources() == SOURCES and content is not None:
            store().write(self._name, content)
        took = time.perf_counter() - self._began
        log.info("compiled %s in %.2f s", self._title, took, extra={"event": "compiled"})


def distinct(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, renamed if it encloses values, so that no other function of its source line has its name.

    Machine code is found by names. Within a process Numba numbers them; code from the disk brings numbers of other processes.
    """
    if function.__closure__ and not numba_internals.missing():
        function.__qualname__ += "_" + hashlib.sha256(repr(_enclosed(function)).encode()).hexdigest()[:16]
    return function


def _enclosed(value: Any) -> Any:
    """An enclosed value in a form that has the same text in every process."""
    if isinstance(value, bool | int | float | str | None | np.dtype | numba.types.Type):
        return value
    if isinstance(value, tuple):
        return [_enclosed(item) for item in value]
    function = numba_internals.python_function(value)
    if not hasattr(function, "__code__"):
        raise TypeError(f"kernels: a kernel encloses {value!r}, which has no name on disk")
    cells = [_enclosed(cell.cell_contents) for cell in function.__closure__ or ()]
    return [function.__qualname__, function.__code__.co_firstlineno, cells]
