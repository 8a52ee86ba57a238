"""Removing gates for good: a smaller spec and the same arrays without the removed parts (SPEC N3, N4, O7).

Parameters, their gradients, optimiser state, running statistics, θ and everything kept per gate are cut by one `Cut`, which
knows for every array which rows and columns stay.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..arrays import Array, Arrays
from ..errors import InputError
from ..spec.layers import Activation, Conv, Dense, Layer, Section, UnitGate
from ..spec.network import Network

Index = dict[str, Array]


@dataclass(frozen=True)
class Cut:
    """The result of a removal.

    network: the smaller spec. gates: index of the old gate vector's entries that are left, (G_new,).
    closed_for_emptiness: sections whose units had all gone and whose ξ was therefore set to 0, which drops the constant that
    their path still added (N4): the caller reports them.
    """

    network: Network
    gates: Array
    rows: Index
    columns: Index
    closed_for_emptiness: tuple[str, ...]

    def arrays(self, old: Mapping[str, Array]) -> Arrays:
        """Parameters, or anything keyed and shaped like them (gradients, momenta, running statistics), cut to size."""
        kept = {}
        for name in (*self.network.parameter_shapes, *self.network.statistics_shapes):
            if name not in old:
                continue
            array, layer = old[name], name.rpartition(".")[0]
            if layer in self.rows:
                array = array[self.rows[layer]]
            if name.endswith(".weight") and layer in self.columns:
                array = array[:, self.columns[layer]]
            kept[name] = np.ascontiguousarray(array)
        return kept


def prune(network: Network, keep: Array, *, fix: Array | None = None, empty: str = "close") -> Cut:
    """The network without some of its gates; it computes the same as the network with these gates at 0 (N3, N4).

    A section that is removed becomes its shortcut and ρ. It vanishes if its shortcut is the identity, and so does ρ if the
    section's input is known to be nonnegative. A unit that is removed takes along its row of weights, its batch-norm
    entries, and its columns in the next layer.

    network: the spec.
    keep: (G,); False where a gate is removed.
    fix: (G,); True where a gate is fixed to 1, after which it is no gate any more. Unit gates of a layer are fixed all
        together, once each that is left is in `fix`. None: none.
    empty: what becomes of a section if one of its layers loses all units: "close" removes the section; "keep_constant" keeps
        the layers without units, which still add a constant.

    Returns a `Cut`: the smaller network, and `cut.arrays(old)`, which cuts parameters, momenta or statistics to size.
    InputError if a plain layer would lose all its units.

    >>> import numpy as np
    >>> from refprune import Activation, Dense, Network, Section, prune
    >>> section = Section((Dense(4), Activation("relu")))
    >>> network = Network((4,), (section, section, Dense(3)))
    >>> cut = prune(network, np.array([True, False]))
    >>> [layer.name for layer in cut.network.layers], cut.gates.tolist()
    (['section1', 'dense1'], [0])
    """
    keep = np.asarray(keep, dtype=bool)
    fix = np.zeros(keep.shape, dtype=bool) if fix is None else np.asarray(fix, dtype=bool)
    for name, array in (("keep", keep), ("fix", fix)):
        if array.shape != (network.gate_count,):
            raise InputError(f"{name}: the network has {network.gate_count} gates, got an array of shape {array.shape}")
    if empty not in ("close", "keep_constant"):
        raise InputError(f"empty: {empty!r} is not known; allowed are 'close', 'keep_constant'")

    removed, emptied = _removed_sections(network, keep, close=empty == "close")
    rows, columns, channels = _unit_indices(network, keep, removed)
    layers: list[Layer] = []
    for layer in network.layers:
        layers += _rebuild(network, layer, removed, keep, fix, channels, nonnegative_input=_is_nonnegative(layers))
    sizes = {name: len(index) for name, index in rows.items()}
    smaller = dataclasses.replace(network, layers=tuple(_resize(layer, sizes) for layer in layers))

    left = {group.name for group in smaller.gate_groups}
    positions = [np.arange(g.start, g.stop)[keep[g.slice]] for g in network.gate_groups if g.name in left]
    gates = np.concatenate(positions) if positions else np.zeros(0, dtype=np.intp)
    return Cut(smaller, gates, rows, columns, emptied)


def _removed_sections(network: Network, keep: Array, *, close: bool) -> tuple[set[str], tuple[str, ...]]:
    """Names of all sections that go, and of those among them whose constant goes too, one layer having no units left."""
    removed = {g.name for g in network.gate_groups if g.kind == "layer" and not keep[g.slice].any()}
    emptied = []
    for group in network.gate_groups:
        holder = network.layers[group.position]
        if group.kind == "layer" or keep[group.slice].any() or holder.name in removed:
            continue
        if not isinstance(holder, Section):
            raise InputError(f"keep: removing all units of {group.name} leaves the layers behind it without input")
        if close:
            removed.add(holder.name)
            if network.unit_links[group.name].consumer is not None:
                emptied.append(holder.name)
    return removed, tuple(emptied)


def _unit_indices(network: Network, keep: Array, removed: set[str]) -> tuple[Index, Index, Index]:
    """Rows and columns that stay, per layer name, and the stream's channels that stay, per section name."""
    rows: Index = {}
    columns: Index = {}
    channels: Index = {}
    for group in network.gate_groups:
        holder = network.layers[group.position]
        if group.kind == "layer" or holder.name in removed or keep[group.slice].all():
            continue
        links, index = network.unit_links[group.name], np.flatnonzero(keep[group.slice])
        for name in (links.producer, *links.norms):
            rows[name] = index
        if links.consumer is not None:
            columns[links.consumer] = (index[:, None] * links.block + np.arange(links.block)).reshape(-1)
        elif isinstance(holder, Section):
            old = np.arange(keep[group.slice].size) if holder.channels is None else np.asarray(holder.channels)
            channels[holder.name] = old[index]
    return rows, columns, channels


def _rebuild(
    network: Network,
    layer: Layer,
    removed: set[str],
    keep: Array,
    fix: Array,
    channels: Index,
    *,
    nonnegative_input: bool,
) -> list[Layer]:
    """What `layer` becomes: itself without decided gates; for a removed section its shortcut and ρ, where they do anything."""
    if not isinstance(layer, Section):
        return [] if isinstance(layer, UnitGate) and _ungated(network, layer, keep, fix) else [layer]
    if layer.name in removed:
        nonnegative = nonnegative_input if not layer.shortcut else _is_nonnegative(layer.shortcut, nonnegative_input)
        post = [] if layer.post == "identity" or nonnegative else [Activation("relu", name=f"{layer.name}.post")]
        return [*layer.shortcut, *post]
    path = tuple(part for part in layer.path if not (isinstance(part, UnitGate) and _ungated(network, part, keep, fix)))
    gated = layer.gate and not fix[network.gate_slices[layer.name]].any()
    kept = tuple(int(c) for c in channels[layer.name]) if layer.name in channels else layer.channels
    return [dataclasses.replace(layer, path=path, gate=gated, channels=kept)]


def _ungated(network: Network, gate: UnitGate, keep: Array, fix: Array) -> bool:
    """Are all the gates that are left fixed to 1?"""
    where = network.gate_slices[gate.name]
    return bool(fix[where][keep[where]].all())


def _is_nonnegative(layers: Sequence[Layer], before: bool = False) -> bool:
    """Is the output of this chain known to be ≥ 0, so that another ReLU changes nothing? `before`: whether its input is.

    At exactly 0 the two ReLUs' subgradients multiply; they agree with the first's alone if that is 0.
    """
    for layer in reversed(layers):
        if isinstance(layer, Activation) and layer.kind != "identity":
            return layer.kind == "sigmoid" or (layer.kind == "relu" and layer.at_zero == 0.0)
        if isinstance(layer, Section):
            return layer.post == "relu"
        if not layer.keeps_sign():
            return False
    return before


def _resize(layer: Layer, sizes: Mapping[str, int]) -> Layer:
    """The same layer with the number of units that are left."""
    if isinstance(layer, Section):
        path, shortcut = (tuple(_resize(part, sizes) for part in chain) for chain in (layer.path, layer.shortcut))
        return dataclasses.replace(layer, path=path, shortcut=shortcut)
    if layer.name in sizes and isinstance(layer, Dense):
        return dataclasses.replace(layer, units=sizes[layer.name])
    if layer.name in sizes and isinstance(layer, Conv):
        return dataclasses.replace(layer, channels=sizes[layer.name])
    return layer


def spare_plain_layers(network: Network, keep: Array, theta: Array) -> Array:
    """`keep` (G,), but a plain layer never loses all its units: the one with the largest θ stays."""
    keep = keep.copy()
    for group in network.gate_groups:
        plain_layer = isinstance(network.layers[group.position], UnitGate)
        if plain_layer and not keep[group.slice].any():
            keep[group.start + int(theta[group.slice].argmax())] = True
    return keep
