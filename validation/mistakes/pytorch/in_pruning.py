"""Mistakes in cutting a network to what is left of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refprune.adapters.pytorch.implementation import TorchImplementation
from refprune.adapters.pytorch.model import build, load, set_gates
from refprune.spec.json_form import from_json
from refprune.spec.layers import Activation, BatchNorm, Conv, Dense, Layer, Section, SubsamplePad, UnitGate
from refprune.spec.network import Network

from .planting import Planted, with_parts

Base = TorchImplementation
Index = dict[str, Any]


class Compacting(Base):
    """A smaller configuration, the module built anew from it, and what is left of every array loaded into it."""

    def compact(self, spec: Any, params: Any, statistics: Any, keep: Any, x: Any, train: bool) -> dict[str, Any]:
        network = from_json(spec)
        smaller, rows, columns = self.smaller(network, np.asarray(keep))
        arrays = {name: self.cut(name, array, rows, columns) for name, array in {**params, **statistics}.items()}
        left = {name: arrays[name] for name in smaller.parameter_shapes}
        module = load(build(smaller), left, {name: arrays[name] for name in smaller.statistics_shapes}).train(train)
        with torch.no_grad():
            output = module(self.tensor(x))
        return {"output": output, "parameters": sum(p.numel() for p in module.parameters()), "params": left}

    def smaller(self, network: Network, keep: Any) -> tuple[Network, Index, Index]:
        """The configuration of what is left, and which rows and columns stay of each layer's arrays."""
        on = {group.name: np.flatnonzero(keep[group.slice]) for group in network.gate_groups}
        rows: Index = {}
        columns: Index = {}
        layers: list[Layer] = []
        self.walk(network, network.layers, on, rows, columns)
        for layer in network.layers:
            if not isinstance(layer, Section):
                layers += [] if isinstance(layer, UnitGate) else [layer]
            elif all(len(on[name]) for name in (layer.name, *(part.name for part in layer.path)) if name in on):
                last = self.walk(network, layer.path, on, rows, columns)
                path = tuple(part for part in layer.path if not isinstance(part, UnitGate))
                channels = layer.channels
                if last is not None:
                    stream = range(len(keep[network.gate_slices[last]])) if channels is None else channels
                    channels = tuple(int(stream[i]) for i in on[last])
                layers.append(dataclasses.replace(layer, path=path, gate=False, channels=channels))
            else:
                layers += self.removed(network, layer)
        return Network(network.input_shape, tuple(_resized(layer, rows) for layer in layers), network.loss), rows, columns

    def walk(self, network: Network, chain: Any, on: Index, rows: Index, columns: Index) -> str | None:
        """Notes which rows and columns stay in one chain; the name of the gates that stand at its end, unread."""
        made: list[str] = []
        unread: UnitGate | None = None
        for layer in chain:
            if isinstance(layer, (Dense, Conv)):
                if unread is not None:
                    count = network.gate_slices[unread.name].stop - network.gate_slices[unread.name].start
                    width = layer.parameter_shapes(network.input_shapes[layer.name])["weight"][1]
                    block = width // count
                    columns[layer.name] = (on[unread.name][:, None] * block + np.arange(block)).reshape(-1)
                made, unread = [layer.name], None
            elif isinstance(layer, BatchNorm):
                made.append(layer.name)
            elif isinstance(layer, UnitGate):
                rows |= dict.fromkeys(made, on[layer.name])
                unread = layer
        return None if unread is None else unread.name

    def removed(self, network: Network, section: Section) -> list[Layer]:
        """What is left of a section that goes: its shortcut and ρ."""
        return [*section.shortcut, *([Activation("relu", name=f"{section.name}.post")] if section.post == "relu" else [])]

    def cut(self, name: str, array: Any, rows: Index, columns: Index) -> Any:
        layer = name.rpartition(".")[0]
        array = array[rows[layer]] if layer in rows else array
        return array[:, columns[layer]] if name.endswith(".weight") and layer in columns else array


def _resized(layer: Layer, rows: Index) -> Layer:
    if isinstance(layer, Section):
        path, shortcut = (tuple(_resized(part, rows) for part in chain) for chain in (layer.path, layer.shortcut))
        return dataclasses.replace(layer, path=path, shortcut=shortcut)
    if layer.name in rows and isinstance(layer, Dense):
        return dataclasses.replace(layer, units=len(rows[layer.name]))
    if layer.name in rows and isinstance(layer, Conv):
        return dataclasses.replace(layer, channels=len(rows[layer.name]))
    return layer


# --------------------------------------------------------------------------------------------------------------------


def first_columns(self: Compacting, name: str, array: Any, rows: Index, columns: Index) -> Any:
    return Compacting.cut(self, name, array, rows, {layer: np.arange(len(index)) for layer, index in columns.items()})


def first_entries(self: Compacting, name: str, array: Any, rows: Index, columns: Index) -> Any:
    """Of batch-norms, in whose arrays nothing says which unit is which."""
    right = Compacting.cut(self, name, array, rows, columns)
    return array[: len(right)] if name.endswith((".gain", ".mean", ".variance")) else right


def everything(self: Compacting, network: Network, keep: Any) -> Any:
    return Compacting.smaller(self, network, np.ones_like(keep))


def uncompared(self: Compacting, **a: Any) -> dict[str, Any]:
    """Does not show its parameters."""
    return {name: value for name, value in Compacting.compact(self, **a).items() if name != "params"}


def without_rectifier(self: Compacting, network: Network, section: Section) -> list[Layer]:
    return [*section.shortcut]


def with_option_a(self: Compacting, network: Network, section: Section) -> list[Layer]:
    """1×1 convolutions of the shortcut become strided pixels, with zero channels where they are missing."""

    def other(layer: Layer) -> Layer:
        more = layer.channels - network.input_shapes[layer.name][0] if isinstance(layer, Conv) else -1
        return SubsamplePad(layer.stride, 0, more, name=layer.name) if isinstance(layer, Conv) and more >= 0 else layer

    return [other(layer) for layer in Compacting.removed(self, network, section)]


def masked(self: Base, spec: Any, params: Any, statistics: Any, keep: Any, x: Any, train: bool) -> dict[str, Tensor]:
    """Gates as masks: a section without units goes on adding its constant."""
    with torch.no_grad():
        module = set_gates(self.module(spec, params, statistics, train=train), self.tensor(np.asarray(keep) * 1.0))
        return {"output": module(self.tensor(x))}


IN_PRUNING: tuple[Planted, ...] = (
    Planted("pruned columns taken from the end", "compact", with_parts(Compacting, cut=first_columns)),
    Planted("batch-norms of pruned units cut at their end", "compact", with_parts(Compacting, cut=first_entries)),
    Planted("what is removed is fixed to 1", "compact", with_parts(Compacting, smaller=everything, compact=uncompared)),
    Planted("no ρ behind a removed section", "compact", with_parts(Compacting, removed=without_rectifier)),
    Planted("option B of a removed section made option A", "compact", with_parts(Compacting, removed=with_option_a)),
    Planted("an emptied section's constant kept", "compact", with_parts(compact=masked)),
)
