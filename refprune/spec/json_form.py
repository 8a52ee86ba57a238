"""Networks as JSON-able data, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..errors import SpecError
from .layers import (
    Activation,
    AveragePool,
    BatchNorm,
    Conv,
    Dense,
    Flatten,
    GlobalAveragePool,
    Layer,
    MaxPool,
    Section,
    SubsamplePad,
    UnitGate,
)
from .network import Inputs, Loss, Network

# --------------------------------------------------------------------------------------------------------------------
# JSON

KINDS: dict[str, type[Layer]] = {
    kind.__name__: kind
    for kind in (Dense, Conv, BatchNorm, Activation, MaxPool, AveragePool, GlobalAveragePool, Flatten, SubsamplePad)
} | {"UnitGate": UnitGate, "Section": Section}


def to_json(network: Network) -> dict[str, Any]:
    """The network as data that `json.dumps` takes; `from_json` is its exact inverse.

    >>> from refprune import Dense, Network
    >>> from refprune.spec import json_form
    >>> network = Network((4,), (Dense(3),))
    >>> json_form.to_json(network)["layers"]
    [{'type': 'Dense', 'name': 'dense1', 'units': 3, 'bias': True}]
    >>> json_form.from_json(json_form.to_json(network)) == network
    True
    """

    def plain(value: object) -> Any:
        if isinstance(value, (Layer, Loss, Inputs)):
            fields = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
            return {"type": type(value).__name__} | fields
        return [plain(v) for v in value] if isinstance(value, tuple) else value

    fields = {f.name: plain(getattr(network, f.name)) for f in dataclasses.fields(network)}
    if network.inputs is None:
        del fields["inputs"]
    return {"format": "refprune-network-1"} | fields


def from_json(data: Mapping[str, Any]) -> Network:
    """The network that `to_json` wrote. SpecError names an unknown type or field, or a wrong format."""

    def tuples(value: object) -> Any:
        if isinstance(value, Mapping):
            return build(value)
        return tuple(tuples(v) for v in value) if isinstance(value, list) else value

    def build(fields: Mapping[str, Any]) -> Layer | Loss | Inputs:
        """The layer, the loss or the inputs that one JSON object describes."""
        others: dict[str, type[Any]] = {"Loss": Loss, "Inputs": Inputs}
        kind: type[Any] | None = {**KINDS, **others}.get(fields.get("type", ""))
        if kind is None:
            raise SpecError(f"type: {fields.get('type')!r} is not known; allowed are {', '.join((*KINDS, *others))}")
        try:
            made: Layer | Loss | Inputs = kind(**{key: tuples(value) for key, value in fields.items() if key != "type"})
            return made
        except TypeError as error:
            raise SpecError(f"{fields.get('name') or fields['type']}: {error}") from error

    if not isinstance(data, Mapping) or data.get("format") != "refprune-network-1":
        found = data.get("format") if isinstance(data, Mapping) else data
        raise SpecError(f"format: expected an object with format 'refprune-network-1', got {found!r}")
    try:
        return Network(**{key: tuples(value) for key, value in data.items() if key != "format"})
    except TypeError as error:
        raise SpecError(f"network: {error}") from error
