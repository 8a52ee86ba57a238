"""Every key of an experiment with default, allowed values and meaning: as text, and as the page docs/config.md."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import textwrap
from collections.abc import Iterator
from typing import Any

from ..spec import zoo
from .config import FORMER_KEYS, keys
from .config_keys import TABLES, Config

INTRODUCTION = """\
# Configuration

An experiment is a TOML file. Every key has a default, so that a file holds only what differs.

```
refprune zoo --keys                  this page as text
refprune zoo quickstart              the file of a preset, to start from
refprune run my.toml                 runs your file
refprune run quickstart --set objective.beta=0.002 --set gates.estimator=paired
```

`--set` takes the dotted name of a key. A wrong key, type or value is refused with what is allowed.
"""


def text() -> str:
    """Every key as text: `key = default  allowed`, and its meaning in the lines below."""
    lines = []
    for table, entries in _tables():
        lines += textwrap.wrap(inspect.getdoc(Config if not table else TABLES[table]) or "", 100)
        lines.append("")
        for name, default, field in entries:
            lines.append(f"{name} = {_toml(default)}  {_allowed(field)}".rstrip())
            lines += textwrap.wrap(field.metadata["meaning"], 92, initial_indent="    ", subsequent_indent="    ")
        lines.append("")
    return "\n".join([*lines, "Options of networks (network.NAME):", "", *(f"{n}: {o or 'none'}" for n, o in _networks()), ""])


def markdown() -> str:
    """The page docs/config.md."""
    lines = [INTRODUCTION]
    for table, entries in _tables():
        lines += [f"## {f'[{table}]' if table else 'At the top of the file'}", ""]
        lines += [inspect.getdoc(TABLES[table] if table else Config) or "", ""]
        lines += ["| key | default | allowed | meaning |", "|---|---|---|---|"]
        for name, default, field in entries:
            lines.append(f"| `{name}` | `{_toml(default)}` | {_allowed(field)} | {field.metadata['meaning']} |")
        lines.append("")
    lines += ["## [network]", "", "`network.name` is one of the following; the other keys of the table are its options.", ""]
    lines += ["| network | options with their defaults |", "|---|---|"]
    lines += [f"| `{name}` | {f'`{options}`' if options else 'none'} |" for name, options in _networks()]
    lines += ["", "## Former names", "", "A file with one of these keys is refused with a hint at the new name.", ""]
    lines += ["| former | now |", "|---|---|", *(f"| `{old}` | `{new}` |" for old, new in FORMER_KEYS.items())]
    return "\n".join([*lines, ""])


Entry = tuple[str, Any, dataclasses.Field[Any]]


def _tables() -> Iterator[tuple[str, list[Entry]]]:
    """(table, its keys); the table of the keys at the top is ""."""
    entries = list(keys(Config()))
    for table in ("", *TABLES):
        yield table, [entry for entry in entries if entry[0].rpartition(".")[0] == table]


def _allowed(field: dataclasses.Field[Any]) -> str:
    """The allowed values in words: the choices, the interval, or the type."""
    if field.metadata["choices"]:
        return ", ".join(field.metadata["choices"])
    interval = field.metadata["interval"]
    if interval is not None:
        kind = "integer" if isinstance(field.default, int) else "number"
        if math.isinf(interval.high):
            return f"{kind} ≥ {interval.low:g}"
        return f"{kind} in [{interval.low:g}, {interval.high:g}{']' if interval.closed else ')'}"
    return {str: "text", bool: "true, false", tuple: "list of names"}[type(field.default)]


def _networks() -> Iterator[tuple[str, str]]:
    """(name of a network, its options with their defaults)."""
    for name, build in zoo.NETWORKS.items():
        options = inspect.signature(build).parameters.values()
        yield name, ", ".join(f"{option.name} = {_toml(option.default)}" for option in options)


def _toml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
