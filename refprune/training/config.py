"""Experiments as TOML: reading with `--set a.b=…`, checking, writing.

The keys with their defaults and meanings are in `config_keys`. Unknown keys are refused with the nearest known one.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import json
import math
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..gates.estimators import ESTIMATORS
from ..output.texts import parse_toml, read_text
from . import presets
from .config_keys import SCHEDULES, TABLES, Config, Data, Gates, Interval, Objective, Optimiser, Training

__all__ = [
    "SCHEDULES",
    "TABLES",
    "Config",
    "Data",
    "Gates",
    "Objective",
    "Optimiser",
    "Training",
    "from_dict",
    "load",
    "overridden",
    "to_dict",
    "to_toml",
]

#: Keys of former versions, which files still have, with today's names.
#: A whole number of a file is smaller.
LARGEST = 1 << 63

FORMER_KEYS = {
    "objective.penalty": "objective.beta",
    "objective.scaling": "objective.per",
    "gates.samples": "gates.gate_samples",
}


def load(source: str, overrides: Sequence[str] = (), values: Mapping[str, Any] | None = None) -> Config:
    """The experiment that `source` names, read and checked.

    source: a file that ends in .toml, or a name of `refprune zoo`.
    overrides: "a.b=value" each, the value in TOML or a string; the last word.
    values: plain data by dotted key, which replaces the file's.

    InputError names the key, what was found and what is allowed.

    >>> from refprune.training import config
    >>> experiment = config.load("quickstart", ["objective.beta=0.002"])
    >>> experiment.objective.beta, experiment.training.epochs
    (0.002, 15)
    """
    if source.endswith(".toml"):
        text = read_text(Path(source))
    elif os.path.isfile(source):
        raise InputError(f"{source}: the file of an experiment must end in .toml")
    else:
        text = presets.experiment_text(source)
    found = parse_toml(text, source)
    found.setdefault("name", Path(source).stem)
    for path, value in (values or {}).items():
        _assign(found, path, value, f"{source}: {path}")
    return from_dict(overridden(found, overrides), where=source)


def overridden(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`values`, changed in place by `a.b=value` overrides."""
    for override in overrides:
        _assign(values, *_parse(override), f"--set {override}")
    return values


def _parse(override: str) -> tuple[str, Any]:
    """(key, value) of "a.b=value"; the value is TOML, or else taken as a string."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise InputError(f"--set {override}: expected key=value, as in gates.estimator=paired")
    if "\n" in text.strip():
        raise InputError(f"--set {override!r}: has several lines; one key is changed by each --set")
    try:
        value = parse_toml(f"value = {text}", f"--set {override}")["value"]
    except InputError as error:
        if not isinstance(error.__cause__, tomllib.TOMLDecodeError):
            raise
        value = text
    return path.strip(), value


def _assign(values: dict[str, Any], path: str, value: Any, where: str) -> None:
    *tables, key = path.split(".")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise InputError(f"{where}: {table} is not a table")
    values[key] = value


def from_dict(values: Mapping[str, Any], where: str = "config") -> Config:
    """A checked experiment from plain data.

    values: tables and keys as in the file.
    where: what messages begin with.

    InputError names the key, what was found and what is allowed.

    >>> from refprune.training import config
    >>> config.from_dict({"gates": {"initial": 0.75}}).gates.initial
    0.75
    >>> config.from_dict({"gates": {"tresold": 0.1}})
    Traceback (most recent call last):
    refprune.errors.InputError: config: unknown key gates.tresold; did you mean gates.threshold? (known: initial, ...
    """
    top = _checked(Config, values, where, "")
    for name, kind in TABLES.items():
        table = values.get(name, {})
        if not isinstance(table, Mapping):
            raise InputError(f"{where}: {name} must be a table, got {table!r}")
        top[name] = kind(**_checked(kind, table, where, f"{name}."))
    network = values.get("network", {"name": "residual-mlp"})
    if not isinstance(network, Mapping) or not isinstance(network.get("name"), str):
        raise InputError(f"{where}: network must be a table with a name, got {network!r}")
    config = Config(**{**top, "network": dict(network)})
    _check_values(config, where)
    return config


def to_toml(config: Config) -> str:
    """The resolved experiment as a TOML file that `load` reads back to the same Config."""

    def lines(table: Mapping[str, Any]) -> list[str]:
        values = {key: json.dumps(value, ensure_ascii=False) for key, value in table.items()}
        return [f"{key} = {value}".replace("\x7f", "\\u007f") for key, value in values.items()]  # TOML escapes DEL, JSON not

    values = to_dict(config)
    top = lines({key: value for key, value in values.items() if not isinstance(value, dict)})
    tables = [["", f"[{key}]", *lines(value)] for key, value in values.items() if isinstance(value, dict)]
    return "\n".join([*top, *(line for table in tables for line in table), ""])


def to_dict(config: Config) -> dict[str, Any]:
    """Plain data; `from_dict` is its inverse."""
    return dataclasses.asdict(config)


def _checked(kind: type[Any], values: Mapping[str, Any], where: str, prefix: str) -> dict[str, Any]:
    """The plain fields of `kind` out of `values`, types checked and integers taken where floats are expected."""
    fields = {f.name: f for f in dataclasses.fields(kind)}
    checked = {}
    for key, value in values.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            meant = FORMER_KEYS.get(f"{prefix}{key}") or (f"{prefix}{near[0]}" if near else None)
            hint = f"; did you mean {meant}?" if meant else ""
            raise InputError(f"{where}: unknown key {prefix}{key}{hint} (known: {', '.join(fields)})")
        default = fields[key].default
        if default is dataclasses.MISSING:
            continue
        if isinstance(value, int) and abs(value) >= LARGEST:
            raise InputError(f"{where}: {prefix}{key} has {len(str(abs(value)))} digits; less than {LARGEST:.2g} is allowed")
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if isinstance(default, tuple) and isinstance(value, list) and all(isinstance(entry, str) for entry in value):
            value = tuple(value)
        if type(value) is not type(default):
            raise InputError(f"{where}: {prefix}{key} must be of type {type(default).__name__}, got {value!r}")
        checked[key] = value
    return checked


def _check_values(config: Config, where: str) -> None:
    """Every key by itself, then the keys that depend on one another, then the network's options."""
    for name, value, field in keys(config):
        choices, interval = field.metadata["choices"], field.metadata["interval"]
        if choices and value not in choices:
            raise InputError(f"{where}: {name} = {value!r} is not known; allowed are {', '.join(choices)}")
        if interval is not None and value not in interval:
            raise InputError(f"{where}: {_outside(name, value, interval)}")
    complaint = next(itertools.chain(_theta(config), _decision(config), _rule(config)), None)
    if complaint is not None:
        raise InputError(f"{where}: {complaint}")
    config.build_network()


def keys(config: Config) -> Iterator[tuple[str, Any, dataclasses.Field[Any]]]:
    """(dotted key, value, field) of every key but `network`, in the order of the file."""
    for prefix, table in [("", config), *((f"{name}.", getattr(config, name)) for name in TABLES)]:
        for field in dataclasses.fields(table):
            if field.metadata:
                yield f"{prefix}{field.name}", getattr(table, field.name), field


def _outside(name: str, value: float, interval: Interval) -> str:
    if value == interval.high and not math.isinf(value):
        return f"{name} must be less than {interval.high:g}, got {value}"
    return f"{name} = {value} must lie in {interval}"


def _theta(config: Config) -> Iterator[str]:
    """What is wrong with the start and the estimator of θ."""
    gates = config.gates
    kind = ESTIMATORS[gates.estimator]
    if kind.needs_interior and gates.floor == 0.0:
        yield f"gates.estimator {gates.estimator!r} does not exist at θ = 0 and 1: set gates.floor > 0"
    if gates.floor > gates.threshold:
        yield f"gates.floor {gates.floor} exceeds gates.threshold {gates.threshold}: no gate would go"
    if min(max(gates.initial, gates.floor), 1.0 - gates.floor) <= gates.threshold:
        yield f"gates.initial {gates.initial} must exceed gates.threshold {gates.threshold}"
    if gates.gate_samples > 1 and not kind.many_samples:
        yield f"gates.gate_samples = {gates.gate_samples} is for reinforce; {gates.estimator} takes one sample"


def _decision(config: Config) -> Iterator[str]:
    """What is wrong with the epochs at which gates are decided."""
    gates, early, epochs = config.gates, config.gates.decide_epoch, config.training.epochs
    continues = gates.undecided == "continue"
    if gates.magnitude > 0.0 and (gates.initial < 1.0 or gates.floor > 0.0 or gates.magnitude_epoch >= epochs):
        yield "gates.magnitude needs gates.initial = 1, gates.floor = 0 and gates.magnitude_epoch < training.epochs"
    if early >= epochs:
        yield f"gates.decide_epoch {early} must be less than training.epochs {epochs}; 0 decides at the end"
    if early and (gates.magnitude > 0.0 or continues):
        other = "gates.magnitude > 0" if gates.magnitude > 0.0 else "gates.undecided 'continue'"
        yield f"gates.decide_epoch {early} cannot be combined with {other}"
    if gates.warmup_epochs >= (early or epochs):
        limit = f"gates.decide_epoch {early}" if early else f"training.epochs {epochs}"
        yield f"gates.warmup_epochs {gates.warmup_epochs} must be less than {limit}, or θ never moves"
    if continues and gates.max_epochs < epochs:
        yield f"gates.max_epochs {gates.max_epochs} must be ≥ training.epochs {epochs}"
    if continues and config.optimiser.schedule not in ("constant", "robbins_monro"):
        schedule = config.optimiser.schedule
        yield f"gates.undecided 'continue' needs a schedule that is constant or robbins_monro; {schedule} ends at 0"


def _rule(config: Config) -> Iterator[str]:
    """What a removal rule other than the threshold lacks."""
    gates = config.gates
    if gates.rule == "threshold":
        return
    if config.objective.beta == 0.0:
        yield (
            f"gates.rule {gates.rule!r} needs a lower bound of the price of a gate: "
            "objective.beta, which must be > 0, also beside objective.nu (D6, C5)"
        )
    if 0.0 in (gates.learning_rate, config.optimiser.learning_rate):
        yield f"gates.rule {gates.rule!r} compares the speeds of θ and W: both learning rates must be > 0"
