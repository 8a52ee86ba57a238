"""The commands that are disturbed: how each begins, how it goes on, and what must be the same in the end."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

#: Keys that make a run of a second.
TINY = [
    *("network.sections=2", "network.width=8", "data.train_limit=100", "training.epochs=1", "training.batch_size=50"),
    *("training.backend=oracle", "training.checkpoint_every=1", "unpruned=false", "gates.warmup_epochs=0.5"),
]
SET = [part for key in TINY for part in ("--set", key)]

ADAPTER = """
import refprune

class Mine(refprune.Implementation):
    def penalty_slope(self, theta, log_gamma):
        return -log_gamma

    def gate(self, x, g, dy):
        g = g.reshape(-1, *[1] * (x.ndim - 2))
        return x * g, dy, None
"""


class Command(NamedTuple):
    """begin: arguments of a first try. again: those after a fault, given the folder where it ran. files: written before.

    result: what must not depend on any fault.
    code: of a try that nothing disturbs.
    """

    begin: list[str]
    again: Callable[[Path], list[str]]
    result: Callable[[Path], object]
    files: Mapping[str, str] = MappingProxyType({})
    code: int = 0


def _arrays(folder: Path) -> object:
    """SHA-256 of the arrays of every checkpoint, why it stopped, and which networks there are."""
    headers = {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("*/checkpoint.json"))}
    digests = {}
    for name, header in headers.items():
        digests[name] = hashlib.sha256((folder / name / header["arrays"]).read_bytes()).hexdigest()
    summary = json.loads((folder / "summary.json").read_text())
    return digests, summary.get("stopped"), sorted(summary.get("runs", {}))


def commands(trained: Path) -> dict[str, Command]:
    """trained: a finished run, of which `prune` takes the network."""
    run = ["run", "quickstart", *SET, "--out", "r"]
    source = ["--data", "synthetic-digits", "--backend", "oracle", "--score-images", "100", "--criterion", "l1"]
    prune = ["prune", str(trained), *source, "--set", "training.batch_size=100", "--set", "data.train_limit=100", "--out", "p"]
    verify = ["verify", "mine.py:Mine", "--examples", "20", "--json", "v.json", "--junit", "v.xml", "--failures", "f"]
    sweep = ["sweep", "s.toml", "--out", "s", "--jobs", "1"]
    lines = "".join(f'"{key.partition("=")[0]}" = {_toml(key.partition("=")[2])}\n' for key in TINY)
    return {
        "run": Command(
            run,
            lambda d: ["run", "--resume", "r"] if (d / "r" / "config.toml").exists() else run,
            lambda d: _arrays(d / "r"),
        ),
        "prune": Command(
            prune,
            lambda d: ["prune", "--resume", "p"] if (d / "p" / "round-00" / "checkpoint.json").exists() else prune,
            lambda d: _arrays(d / "p"),
        ),
        "verify": Command(verify, lambda d: verify, _verdicts, {"mine.py": ADAPTER}, 1),
        "sweep": Command(
            sweep,
            lambda d: sweep,
            lambda d: sorted(_arrays(p.parent) for p in (d / "s").glob("*/*/summary.json")),  # type: ignore[type-var]
            {"s.toml": f'experiment = "quickstart"\nseeds = [0]\n[set]\n{lines}'},
        ),
    }


def _toml(value: str) -> str:
    return value if value[0].isdigit() or value in ("true", "false") else json.dumps(value)


def _verdicts(folder: Path) -> object:
    found = json.loads((folder / "v.json").read_text())
    scripts = {path.name: path.read_text() for path in sorted((folder / "f").glob("*.py"))}
    return [(m["method"], m["verdict"]) for m in found["methods"]], (folder / "v.xml").stat().st_size > 0, sorted(scripts)
