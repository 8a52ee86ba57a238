"""`refprune warmup`: compile ahead of a run."""

from __future__ import annotations

import argparse
import logging
import time
from typing import Any


def add(commands: Any) -> None:
    """Add the parser to argparse's `commands`."""
    warmup = commands.add_parser("warmup", help="compile now what a run would compile at its start, and keep it on disk")
    warmup.add_argument("names", nargs="*", metavar="NAME", help="experiment, network or .toml file (default: quickstart)")
    warmup.add_argument("--threads", metavar="N", type=int, help="as for `run`")
    warmup.add_argument("--clear", action="store_true", help="remove what earlier runs have compiled, of every version")
    warmup.set_defaults(command=_warmup)


def _warmup(options: argparse.Namespace) -> int:
    from ..experiments import warmup
    from ..kernels.machine import cache

    if options.clear:
        print(f"removed {cache.clear() / 1e6:.1f} MB from {cache.location()}")
        if not options.names:
            return 0
    all_settings = {name: warmup.named_config(name) for name in options.names or ["quickstart"]}
    heard: list[logging.LogRecord] = []

    def hear(record: logging.LogRecord) -> None:
        heard.append(record)
        if record.msg.startswith("compiled"):
            print(record.getMessage(), flush=True)

    for name, settings in all_settings.items():
        heard.clear()
        started = time.monotonic()
        with warmup.listening(hear, logging.DEBUG):
            warmup.warm_up(settings, options.threads)
        compiled, loaded = (sum(r.msg.startswith(word) for r in heard) for word in ("compiled", "loaded"))
        print(f"{name}: {compiled} kernels compiled, {loaded} loaded, {time.monotonic() - started:.1f} s")
    from ..kernels.machine import jit

    problem = jit.store().problem
    print(f"machine code: {cache.location()}" + (f" (not kept: {problem})" if problem else ""))
    return 1 if problem else 0
