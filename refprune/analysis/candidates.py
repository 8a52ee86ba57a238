"""Which sections of a trained network may go, and the network without them (SPEC K6)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from ..arrays import Array
from ..errors import InputError
from ..gates.magnitude import filter_norms, smallest
from ..gates.surgery import Cut, prune
from ..spec.cost import macs
from ..spec.layers import Conv, Dense, Section, UnitGate
from ..spec.network import Network

#: Sections that stay in every stage (K6).
STAY = 2


def stages(network: Network) -> list[list[Section]]:
    """The sections in groups: a new one begins where a section's output has another shape than that of the section before."""
    groups: list[list[Section]] = []
    before = None
    for section in (layer for layer in network.layers if isinstance(layer, Section)):
        shape = section.output_shape(network.input_shapes[section.name])
        if shape != before:
            groups.append([])
        groups[-1].append(section)
        before = shape
    return groups


def candidates(network: Network) -> list[str]:
    """Sections that may go next: not the first of a stage, identity shortcut, and more than `STAY` sections in the stage."""
    return [s.name for stage in stages(network) if len(stage) > STAY for s in stage[1:] if not s.shortcut]


def without(network: Network, names: list[str]) -> Cut:
    """The network without those sections, as a cut that also cuts its arrays."""
    gated = with_layer_gates(network, names)
    keep = np.array(
        [group.name not in names for group in gated.gate_groups for _ in range(group.stop - group.start)], dtype=bool
    )
    return prune(gated, keep)


def fewest_macs(network: Network) -> int:
    """Multiply-accumulates of the smallest network that removals can reach: every stage without its dearest candidates."""

    def cost(section: Section) -> int:
        shape, total = network.input_shapes[section.name], 0
        for layer in section.path:
            total, shape = total + layer.macs(shape), layer.output_shape(shape)
        return total

    gone: list[str] = []
    for stage in stages(network):
        dearest = sorted((s for s in stage[1:] if not s.shortcut), key=cost, reverse=True)
        gone += [section.name for section in dearest[: max(len(stage) - STAY, 0)]]
    return macs(without(network, gone).network)


def with_layer_gates(network: Network, names: list[str]) -> Network:
    """The network with layer gates on those sections."""
    layers = (dataclasses.replace(e, gate=True) if isinstance(e, Section) and e.name in names else e for e in network.layers)
    return dataclasses.replace(network, layers=tuple(layers))


def check_candidates(network: Network) -> None:
    """InputError if no section may go."""
    if not candidates(network):
        raise InputError("network: no section can be removed (K6: the first of a stage stays, and two in every stage)")


def thinned(network: Network, params: Mapping[str, Array], share: float) -> Cut:
    """Without that share of the filters of every section's first convolution: those of the smallest ℓ1 norm (K6).

    Rounded down, but at least one; the last filter stays. Only paths of at least two convolutions or dense layers have filters
    to lose: those of the last one are summands of the stream.
    """
    layers = tuple(_unit_gated(layer) if isinstance(layer, Section) else layer for layer in network.layers)
    gated = dataclasses.replace(network, layers=layers)
    norms, keep = filter_norms(gated, params), np.ones(gated.gate_count, dtype=bool)
    for group in gated.gate_groups:
        if group.kind == "unit" and group.name.endswith(THINNING):
            n = group.stop - group.start
            keep[group.start + smallest(norms[group.slice], min(max(int(share * n), 1), n - 1))] = False
    return prune(gated, keep, fix=keep)


THINNING = ".thinning"


def _unit_gated(section: Section) -> Section:
    """The section with a unit gate before its second affine layer, if there is one and no unit gate yet."""
    affine = [i for i, layer in enumerate(section.path) if isinstance(layer, (Conv, Dense))]
    if len(affine) < 2 or any(isinstance(layer, UnitGate) for layer in section.path):
        return section
    gate = UnitGate(name=f"{section.name}{THINNING}")
    return dataclasses.replace(section, path=(*section.path[: affine[1]], gate, *section.path[affine[1] :]))
