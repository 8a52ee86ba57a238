"""Where and with what a benchmark ran: everything that its figures depend on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from typing import Any

from ..experiments.environment import processor
from ..kernels.machine import cores
from .cases import Setting

PACKAGES = ("refprune", "numpy", "numba", "llvmlite", "scipy", "torch")


def describe(setting: Setting) -> dict[str, Any]:
    """Processor, cores, versions, load before the run, settings."""
    return {
        "cpu": processor(),
        "cores": cores.allowed(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "threads": setting.threads,
        "dtype": setting.dtype,
        "seed": setting.seed,
        "load_before": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def limits(setting: Setting) -> dict[str, float]:
    """The measured peak of fused multiply-adds, with one thread and with all, and of memory: GFLOP/s and GB/s."""
    from ..kernels.machine import peak

    return {
        "peak_gflops_1_thread": peak.fma_gflops(1, setting.dtype),
        "peak_gflops": peak.fma_gflops(setting.threads, setting.dtype),
        "memory_gbytes": peak.memory_gbytes(setting.threads),
        "vector_bits": peak.vector_bits(),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
