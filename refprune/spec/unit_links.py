"""Which arrays a unit gate reaches: the affine map that makes the unit and the one that reads it (SPEC N4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..arrays import Shape
from ..errors import SpecError
from .layers import Activation, BatchNorm, Conv, Dense, Flatten, Layer, Pool, Section, SubsamplePad, UnitGate


@dataclass(frozen=True)
class UnitLinks:
    """What goes when a unit goes.

    producer: affine layer that loses a row; norms: batch-norms that lose an entry; consumer: affine layer that loses
    columns, `block` of them for each unit (behind a flatten: H·W), or None where the units end a section's path and
    become missing summands of the stream.
    """

    producer: str
    norms: tuple[str, ...]
    consumer: str | None
    block: int


def unit_links(chain: Sequence[Layer], shapes: Sequence[Shape], index: int, *, in_section: bool) -> UnitLinks:
    """Links of the unit gate at `index` of a chain whose elements have the input `shapes`.

    SpecError where the gate stands on nothing, gates the stream, or a pruned unit would leak through what follows.
    """
    name = chain[index].name
    producer, norms = _producer(chain, index)
    block = 1
    for layer, shape in zip(chain[index + 1 :], shapes[index + 1 :], strict=True):
        if isinstance(layer, (Dense, Conv)):
            return UnitLinks(producer, norms, ungrouped_name(layer, name), block)
        if isinstance(layer, Flatten):
            block = shape[1] * shape[2]
        if isinstance(layer, Section):
            raise SpecError(f"{name}: gates the input of section {layer.name}; the width of a residual stream is not pruned")
        if isinstance(layer, UnitGate):
            raise SpecError(f"{name}: the same units have a second gate, {layer.name}")
        if isinstance(layer, SubsamplePad) and layer.before + layer.after:
            raise SpecError(f"{name}: {layer.name} pads channels behind the gate; units in front of it cannot be pruned")
        if not layer.keeps_zero():
            raise SpecError(f"{name}: a pruned unit would leak through {layer.name} ({type(layer).__name__}) behind the gate")
    if not in_section:
        raise SpecError(f"{name}: gates the network's output; no layer reads these units")
    return UnitLinks(producer, norms, None, block)


def _producer(chain: Sequence[Layer], index: int) -> tuple[str, tuple[str, ...]]:
    name = chain[index].name
    norms: list[str] = []
    for layer in reversed(chain[:index]):
        if isinstance(layer, (Dense, Conv)):
            return ungrouped_name(layer, name), tuple(norms)
        if isinstance(layer, BatchNorm):
            norms.append(layer.name)
        elif not isinstance(layer, (Activation, Pool)):
            raise SpecError(f"{name}: a gate on nothing: {layer.name} ({type(layer).__name__}) stands before it, no affine map")
    raise SpecError(f"{name}: a gate on nothing: no dense or convolution layer makes these units")


def ungrouped_name(layer: Dense | Conv, gate: str) -> str:
    if isinstance(layer, Conv) and layer.groups != 1:
        raise SpecError(f"{gate}: {layer.name} has {layer.groups} groups; units of grouped convolutions cannot be gated")
    return layer.name
