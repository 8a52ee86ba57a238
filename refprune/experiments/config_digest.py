"""The digest of an experiment's configuration, by which a kept result is known to be a planned run's."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from typing import Any

from ..spec import zoo
from ..training import config
from ..training.config import Config

#: Keys that change no result: a name, what is written and when, and threads, which no bit depends on.
WITHOUT_EFFECT = ("name", "training.threads", "training.log_every", "training.checkpoint_every")


def config_digest(experiment: Config) -> str:
    """SHA-256 of what the results of this experiment depend on: the canonical JSON of its keys that are not at their default.

    The network's name is always among them, the keys in WITHOUT_EFFECT never. A key that is new in refprune, with a default
    that leaves everything as it was, changes no digest.
    """
    values, defaults = config.to_dict(experiment), config.to_dict(Config())
    parameters = inspect.signature(zoo.NETWORKS[experiment.network["name"]]).parameters
    told = _differing(values, defaults | {"network": {key: option.default for key, option in parameters.items()}})
    text = json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _differing(values: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The entries of `values` that are not those of `defaults`, tuples as lists; tables without such entries are left out."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            table = _differing(value, defaults[key], f"{prefix}{key}.")
            found |= {key: table} if table else {}
        elif f"{prefix}{key}" not in WITHOUT_EFFECT and (key not in defaults or _plain(value) != _plain(defaults[key])):
            found[key] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
