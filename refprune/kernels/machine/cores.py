"""How many cores this process may use: fewer than the machine has in a container, under a scheduler or `taskset`."""

from __future__ import annotations

import math
import os
from pathlib import Path

#: Where Linux shows the control groups.
CGROUPS = Path("/sys/fs/cgroup")


def allowed() -> int:
    """Cores of the affinity mask, or as many as the control group's share of processor time fills, whichever is less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(math.ceil(quota) for quota in _quotas())]))


def _quotas() -> list[float]:
    """Cores' worth of time that the process's control groups grant, of those that limit it: version 2, then version 1."""
    found = []
    for folder in _own_groups():
        try:
            limit, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        except (OSError, ValueError):
            continue
        if limit != "max":
            found.append(int(limit) / int(period))
    for folder in (CGROUPS / "cpu", CGROUPS / "cpu,cpuacct"):
        try:
            limit, period = ((folder / f"cpu.cfs_{name}_us").read_text(encoding="ascii") for name in ("quota", "period"))
        except OSError:
            continue
        if int(limit) > 0:
            found.append(int(limit) / int(period))
    return found


def _own_groups() -> list[Path]:
    """The folders of this process's control group and of those around it."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    own = next((line.partition("::")[2] for line in lines if line.startswith("0::")), "/")
    group = CGROUPS / own.strip("/")
    return [group, *(parent for parent in group.parents if parent.is_relative_to(CGROUPS))]
