"""`refprune warmup`: compile ahead of a run."""

from __future__ import annotations

import argparse
import logging
import time
from collections import Counter
from typing import Any

from .options import whole


def add(commands: Any) -> None:
    """Add the parser to argparse's `commands`."""
    warmup = commands.add_parser("warmup", help="compile now what a run would compile at its start, and keep it on disk")
    warmup.add_argument("names", nargs="*", metavar="NAME", help="experiment, network or .toml file (default: quickstart)")
    warmup.add_argument("--threads", metavar="N", type=whole, help="as for `run`")
    warmup.add_argument("--clear", action="store_true", help="remove what earlier runs have compiled, of every version")
    warmup.set_defaults(command=_warmup)


class _KernelCount:
    """Counts the records of the kernels' logger by their event, and prints what is compiled."""

    def __init__(self) -> None:
        self.events: Counter[str] = Counter()

    def hear(self, record: logging.LogRecord) -> None:
        event = getattr(record, "event", "")
        self.events[event] += 1
        if event == "compiled":
            print(record.getMessage(), flush=True)


def _warmup(options: argparse.Namespace) -> int:
    from ..experiments import warmup
    from ..kernels.machine import cache

    if options.clear:
        print(f"removed {cache.clear() / 1e6:.1f} MB from {cache.location()}")
        if not options.names:
            return 0
    all_settings = {name: warmup.named_config(name) for name in options.names or ["quickstart"]}
    for name, settings in all_settings.items():
        kernels = _KernelCount()
        started = time.monotonic()
        with warmup.listening(kernels.hear, logging.DEBUG):
            warmup.warm_up(settings, options.threads)
        took = time.monotonic() - started
        print(f"{name}: {kernels.events['compiled']} kernels compiled, {kernels.events['loaded']} loaded, {took:.1f} s")
    from ..kernels.machine import jit

    problem = jit.store().problem
    print(f"machine code: {cache.location()}" + (f" (not kept: {problem})" if problem else ""))
    return 1 if problem else 0
