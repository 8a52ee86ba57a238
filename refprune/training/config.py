"""Experiments as TOML: the schema with its defaults, resolution, and `--set a.b=…`.

Every field below is a key of the file; the tables are the classes. Unknown keys are refused with the nearest known one.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..backend import NAMES
from ..errors import InputError
from ..gates.estimators import ESTIMATORS
from ..spec import zoo
from . import presets

SCHEDULES = ("constant", "cosine", "one_cycle", "warmup_stable_decay")


@dataclass(frozen=True)
class Data:
    """name: the set, or "folder:PATH@SIZE" for images in PATH/train/CLASS and PATH/val/CLASS, cut to SIZE×SIZE; a relative PATH
    is below the folder of the data sets. train_limit: only the first so many training images (0: all).

    holdout: so many training images, the last ones, are not trained on but take the place of the test images: to choose a
    recipe without looking at the test set (0: none).

    augmentation: what is done to the images of every training step, "none" or "crop_flip": a random crop of the image, padded
    with `padding` zeros (the mean) on all sides, and a left-right flip with probability ½. Evaluation sees them unchanged.
    """

    name: str = "synthetic-digits"
    train_limit: int = 0
    holdout: int = 0
    augmentation: str = "none"
    padding: int = 4


@dataclass(frozen=True)
class Objective:
    """J = C + ½λ‖W‖² + Σ β θ + ν R_ρ(θ) (O1, C4).

    per "sample": beta is β, weight_decay is λ of O1 and nu is ν; "data_set": beta is −log γ and weight_decay
    the λ of P4, and these two and nu are divided by the number N of training images. decay: which arrays λ acts on, "all"
    (PyTorch) or "weights".
    nu ≥ 0: accuracy (0) against the size of the network, R being the share of it that is expected to be left. alpha in
    [0, 1]: what size means, parameters (0) against MACs (1). balance ρ in [0, 1]: unit gates (0) against layer gates (1);
    ½ is the true expected size. At 0 and 1, without beta, the gates that nothing presses on are fixed to 1.
    """

    beta: float = 0.0
    nu: float = 0.0
    alpha: float = 0.5
    balance: float = 0.5
    weight_decay: float = 0.0
    per: str = "sample"
    decay: str = "all"


@dataclass(frozen=True)
class Gates:
    """θ: where it starts, how it moves, when a gate is removed.

    initial: θ₀. learning_rate: η_θ, times the schedule's factor. unit_learning_rate: with u > 0 a unit gate has
    η_θ = u·n, n being the units that its group has left, so that groups of any size move alike: one of n units costs about an
    n-th of the layer. removal_every: steps between two looks for gates to remove. estimator: one of O5; gate_samples: K of
    reinforce. paired_epochs: from so many epochs before decide_epoch, or else before training.epochs, on the estimator is
    `paired`, one partial pass a gate that is left: the bias of `taylor` can hold a θ in between, where the loss falls steeply
    at ξ = 0 and rises at ξ = 1.
    warmup_epochs: epochs at the start during which θ stays at θ₀. threshold τ: a gate with θ ≤ τ is removed for good, one with
    θ ≥ 1−τ where all gates are decided is fixed to 1. τ = ½ leaves none undecided; `taylor` has no bias there if c is quadratic
    in the gate (validation/SPEC.md, O5), and the summary says how far θ was rounded. floor δ: θ is projected to
    [δ, 1−δ] (needed by reinforce, arm, disarm; δ ≤ τ).
    undecided: what is done with a gate in between where all are decided: "compare" its two vertices on training data (O9), or
    "continue" training, to at most max_epochs. compare_at_most: if more gates than this are undecided, their unit gates are
    decided all at once by the rule "first_order" (`training.decide.decide`). decide_epoch: at the end of so many epochs all
    gates are decided as they would be at the end, and the rest of training.epochs trains what is left without them (0: at the
    end). magnitude: the baseline without θ (which stays at 1, as initial must be): at the end of magnitude_epoch epochs this
    share of every group's units goes, those of smallest ℓ1 norm, and what is left is fine-tuned
    (`gates.magnitude.keep_largest`). empty: a section that has lost all units of a layer is closed ("close") or keeps its
    constant ("keep_constant"). rule: when a gate is removed (D6): "threshold" (θ ≤ τ), "attraction" (θ and its weights are in
    the domain of attraction of 0) or "both". The latter two estimate κ by kappa_factor times the largest slope in the weights
    that was seen since θ moves, after kappa_warmup steps that had one; they need weight decay, or weights near 0, to ever
    fire. For β they take objective.beta, which with objective.nu > 0 is a lower bound of what presses on a gate (C5,
    validation/SPEC.md). evaluation: the gates at which the test score of an epoch is taken while θ is interior (O9): "mode"
    (on if θ ≥ ½), "mean" (ξ = θ) or "sampled".
    protect: names of gate groups, as in ["section3"], whose gates are fixed to 1 from the start.
    """

    initial: float = 0.5
    learning_rate: float = 0.05
    unit_learning_rate: float = 0.0
    removal_every: int = 1
    estimator: str = "taylor"
    gate_samples: int = 1
    paired_epochs: float = 0.0
    warmup_epochs: float = 0.0
    threshold: float = 0.0
    floor: float = 0.0
    undecided: str = "compare"
    compare_at_most: int = 32
    max_epochs: int = 0
    decide_epoch: int = 0
    magnitude: float = 0.0
    magnitude_epoch: int = 1
    empty: str = "close"
    evaluation: str = "mode"
    protect: tuple[str, ...] = ()
    rule: str = "threshold"
    kappa_factor: float = 2.0
    kappa_warmup: int = 100


@dataclass(frozen=True)
class Optimiser:
    """Momentum SGD as in PyTorch: v ← m v + g, w ← w − η v. The schedule's factor multiplies η and η_θ alike (O6).

    "constant"; "cosine": falls to 0 over the epochs; "one_cycle": rises over the first 30 %, then falls as cosine;
    "warmup_stable_decay": rises over the first 10 %, stays, falls linearly over the last 20 %.
    """

    learning_rate: float = 0.01
    momentum: float = 0.9
    schedule: str = "constant"


@dataclass(frozen=True)
class Training:
    """epochs of floor(N/batch_size) steps; the rest of each shuffle is left out, so that all batches have one size.

    section_scale: factor on He's initial weights inside section paths. threads 0: all cores. log_every: steps between
    metric lines. checkpoint_every: steps between checkpoints beside those after every epoch (0: none).
    """

    epochs: int = 10
    batch_size: int = 64
    section_scale: float = 0.3
    backend: str = "numba"
    dtype: str = "float32"
    threads: int = 0
    log_every: int = 20
    checkpoint_every: int = 0


@dataclass(frozen=True)
class Config:
    """One experiment. unpruned: also train the same network without gates for the same epochs, to compare; from_scratch: also
    train the network that pruning has left, without gates, from new weights for the same epochs.

    network: {"name": one of the zoo, then its options}.
    """

    name: str = "experiment"
    seed: int = 0
    unpruned: bool = True
    from_scratch: bool = False
    network: dict[str, Any] = field(default_factory=lambda: {"name": "residual-mlp"})
    data: Data = field(default_factory=Data)
    objective: Objective = field(default_factory=Objective)
    gates: Gates = field(default_factory=Gates)
    optimiser: Optimiser = field(default_factory=Optimiser)
    training: Training = field(default_factory=Training)


TABLES: dict[str, type[Any]] = {
    "data": Data,
    "objective": Objective,
    "gates": Gates,
    "optimiser": Optimiser,
    "training": Training,
}


def load(source: str, overrides: Sequence[str] = (), values: Mapping[str, Any] | None = None) -> Config:
    """The experiment in the file `source` (ends in .toml) or of that name.

    Changed by `values` (plain data by dotted key) and then by `overrides` ("a.b=value", the value in TOML or a string).
    """
    if source.endswith(".toml"):
        try:
            text = Path(source).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{source}: cannot be read ({error})") from error
    elif Path(source).is_file():
        raise InputError(f"{source}: the file of an experiment must end in .toml")
    else:
        text = presets.experiment_text(source)
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{source}: not valid TOML: {error}") from error
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
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
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
    """A checked Config from plain data. InputError names the key, its value and what is allowed."""
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
            hint = f"; did you mean {prefix}{near[0]}?" if near else ""
            raise InputError(f"{where}: unknown key {prefix}{key}{hint} (known: {', '.join(fields)})")
        default = fields[key].default
        if default is dataclasses.MISSING:
            continue
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if isinstance(default, tuple) and isinstance(value, list) and all(isinstance(entry, str) for entry in value):
            value = tuple(value)
        if type(value) is not type(default):
            raise InputError(f"{where}: {prefix}{key} must be of type {type(default).__name__}, got {value!r}")
        checked[key] = value
    return checked


def _check_values(config: Config, where: str) -> None:
    gates, training, objective, optimiser = config.gates, config.training, config.objective, config.optimiser
    choices = {
        "data.augmentation": (config.data.augmentation, ("none", "crop_flip")),
        "objective.per": (objective.per, ("sample", "data_set")),
        "objective.decay": (objective.decay, ("all", "weights")),
        "gates.estimator": (gates.estimator, tuple(ESTIMATORS)),
        "gates.undecided": (gates.undecided, ("compare", "continue")),
        "gates.empty": (gates.empty, ("close", "keep_constant")),
        "gates.rule": (gates.rule, ("threshold", "attraction", "both")),
        "gates.evaluation": (gates.evaluation, ("mode", "mean", "sampled")),
        "optimiser.schedule": (optimiser.schedule, SCHEDULES),
        "training.backend": (training.backend, NAMES),
        "training.dtype": (training.dtype, ("float32", "float64")),
    }
    for key, (value, allowed) in choices.items():
        if value not in allowed:
            raise InputError(f"{where}: {key} = {value!r} is not known; allowed are {', '.join(allowed)}")
    ranges = {
        "seed": (config.seed, 0, math.inf),
        "data.train_limit": (config.data.train_limit, 0, math.inf),
        "data.holdout": (config.data.holdout, 0, math.inf),
        "data.padding": (config.data.padding, 0, math.inf),
        "objective.beta": (objective.beta, 0.0, math.inf),
        "objective.weight_decay": (objective.weight_decay, 0.0, math.inf),
        "objective.nu": (objective.nu, 0.0, math.inf),
        "objective.alpha": (objective.alpha, 0.0, 1.0),
        "objective.balance": (objective.balance, 0.0, 1.0),
        "gates.initial": (gates.initial, 0.0, 1.0),
        "gates.learning_rate": (gates.learning_rate, 0.0, math.inf),
        "gates.unit_learning_rate": (gates.unit_learning_rate, 0.0, math.inf),
        "gates.removal_every": (gates.removal_every, 1, math.inf),
        "gates.compare_at_most": (gates.compare_at_most, 0, math.inf),
        "gates.magnitude": (gates.magnitude, 0.0, 1.0),
        "gates.magnitude_epoch": (gates.magnitude_epoch, 1, math.inf),
        "gates.gate_samples": (gates.gate_samples, 1, math.inf),
        "gates.paired_epochs": (gates.paired_epochs, 0.0, math.inf),
        "gates.warmup_epochs": (gates.warmup_epochs, 0.0, math.inf),
        "gates.threshold": (gates.threshold, 0.0, 0.5),
        "gates.floor": (gates.floor, 0.0, 0.5),
        "gates.max_epochs": (gates.max_epochs, 0, math.inf),
        "gates.decide_epoch": (gates.decide_epoch, 0, math.inf),
        "gates.kappa_factor": (gates.kappa_factor, 1.0, math.inf),
        "gates.kappa_warmup": (gates.kappa_warmup, 1, math.inf),
        "optimiser.learning_rate": (optimiser.learning_rate, 0.0, math.inf),
        "optimiser.momentum": (optimiser.momentum, 0.0, 1.0),
        "training.epochs": (training.epochs, 1, math.inf),
        "training.batch_size": (training.batch_size, 1, math.inf),
        "training.section_scale": (training.section_scale, 0.0, math.inf),
        "training.threads": (training.threads, 0, math.inf),
        "training.log_every": (training.log_every, 1, math.inf),
        "training.checkpoint_every": (training.checkpoint_every, 0, math.inf),
    }
    for key, (number, low, high) in ranges.items():
        if not low <= number <= high or math.isinf(number):
            raise InputError(f"{where}: {key} = {number} must lie in [{low}, {high}{')' if math.isinf(high) else ']'}")
    if ESTIMATORS[gates.estimator].needs_interior and gates.floor == 0.0:
        raise InputError(f"{where}: gates.estimator {gates.estimator!r} does not exist at θ = 0 and 1: set gates.floor > 0")
    if gates.magnitude > 0.0 and (gates.initial < 1.0 or gates.floor > 0.0 or gates.magnitude_epoch >= training.epochs):
        raise InputError(
            f"{where}: gates.magnitude needs gates.initial = 1, gates.floor = 0 and gates.magnitude_epoch < training.epochs"
        )
    if gates.floor > gates.threshold:
        raise InputError(f"{where}: gates.floor {gates.floor} exceeds gates.threshold {gates.threshold}: no gate would go")
    early, epochs = gates.decide_epoch, training.epochs
    if early >= epochs:
        raise InputError(
            f"{where}: gates.decide_epoch {early} must be less than training.epochs {epochs}; 0 decides at the end"
        )
    if early and (gates.magnitude > 0.0 or gates.undecided == "continue"):
        other = "gates.magnitude > 0" if gates.magnitude > 0.0 else "gates.undecided 'continue'"
        raise InputError(f"{where}: gates.decide_epoch {early} cannot be combined with {other}")
    if gates.warmup_epochs >= (early or epochs):
        limit = f"gates.decide_epoch {early}" if early else f"training.epochs {epochs}"
        raise InputError(f"{where}: gates.warmup_epochs {gates.warmup_epochs} must be less than {limit}, or θ never moves")
    if optimiser.momentum == 1.0:
        raise InputError(f"{where}: optimiser.momentum must be less than 1, or no step is ever forgotten")
    if min(max(gates.initial, gates.floor), 1.0 - gates.floor) <= gates.threshold:
        raise InputError(f"{where}: gates.initial {gates.initial} must exceed gates.threshold {gates.threshold}")
    if gates.rule != "threshold" and objective.beta == 0.0:
        raise InputError(
            f"{where}: gates.rule {gates.rule!r} needs a lower bound of what presses on a gate: "
            "objective.beta, which must be > 0, also beside objective.nu (D6, C5)"
        )
    if gates.rule != "threshold" and gates.unit_learning_rate > 0.0:
        raise InputError(
            f"{where}: gates.rule {gates.rule!r} needs a speed of θ that stays; with gates.unit_learning_rate > 0 it falls "
            "as units go (D4)"
        )
    if gates.rule != "threshold" and 0.0 in (gates.learning_rate, optimiser.learning_rate):
        raise InputError(f"{where}: gates.rule {gates.rule!r} compares the speeds of θ and W: both learning rates must be > 0")
    if gates.gate_samples > 1 and not ESTIMATORS[gates.estimator].many_samples:
        raise InputError(
            f"{where}: gates.gate_samples = {gates.gate_samples} is for reinforce; {gates.estimator} takes one sample"
        )
    if gates.undecided == "continue" and gates.max_epochs < training.epochs:
        raise InputError(f"{where}: gates.max_epochs {gates.max_epochs} must be ≥ training.epochs {training.epochs}")
    if gates.undecided == "continue" and optimiser.schedule != "constant":
        raise InputError(f"{where}: gates.undecided 'continue' needs a constant schedule; {optimiser.schedule} ends at 0")
    zoo.build(config.network["name"], {k: v for k, v in config.network.items() if k != "name"})
