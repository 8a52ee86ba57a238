"""What a network costs: parameters, multiply-accumulates, FLOPs, per layer and in all, expected over gates (SPEC C1, C6, N6).

Every array is a sum over pairs (input channel, output channel), and a pair is alive if all gates on it are 1. Counted once
each, that makes a `Term` of C1 (*form derived here*): cost of a pair · Σθ of its rows · Σθ of its columns · θ of its section.
The two sums belong to different groups of gates (specs refuse gates around grouped convolutions, and the width of a residual
stream is not gated), so that every term is a product of different gates: multi-affine in θ, exact for independent gates, and an
exact integer where every gate is 0 or 1: the realised cost.

What is kept apart: *parameters* (weights, biases, batch-norm gains and biases; not gates, not running statistics); *MACs* of
convolutions and dense layers, for one input; *FLOPs* of inference: 2·MACs, one addition a bias and output value, a scaling and
a shift a value that batch-norm normalises. `parts` says which of "weight", "bias" and "norm" count.

A section of which one layer has lost all its units still adds a constant and still costs what its other layers cost: that is
what `gates.surgery.prune(…, empty="keep_constant")` leaves. `empty="close"` closes it: every term of the section is then times
1 − Π(1−θ_j) over each of the section's groups that is not among the term's own gates. Still multi-affine, still exact.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..arrays import Array, Shape
from ..errors import InputError
from .layers import BatchNorm, Layer, Section
from .network import Network

QUANTITIES = ("parameters", "macs", "flops")
PARTS = ("weight", "bias", "norm")


class Cost(NamedTuple):
    """Cost of one layer: its spec, shapes without the batch axis, parameters, MACs for one input."""

    layer: Layer
    input_shape: Shape
    output_shape: Shape
    parameters: int
    macs: int


def per_layer(network: Network) -> list[Cost]:
    """One row a layer in data-flow order; a section's own row holds nothing, its parts follow."""
    return [
        Cost(
            layer,
            shape,
            layer.output_shape(shape),
            sum(math.prod(size) for size in layer.parameter_shapes(shape).values()),
            layer.macs(shape),
        )
        for layer, shape in network.placed()
    ]


def parameters(network: Network, *, parts: Collection[str] = PARTS) -> int:
    """Number of trainable numbers, all gates on (N6).

    parts: the parts of layers that count, of "weight", "bias" and "norm"; default: all.

    >>> from refprune import zoo
    >>> from refprune.spec import cost
    >>> cost.parameters(zoo.build("lenet-5", {})), cost.parameters(zoo.build("lenet-5", {}), parts=("weight",))
    (431080, 430500)
    """
    return int(cost_model(network).weights("parameters", parts) @ cost_model(network).pairs)


def macs(network: Network) -> int:
    """Multiply-accumulates of one inference, all gates on; dense layers and convolutions count (N6).

    >>> from refprune import zoo
    >>> from refprune.spec import cost
    >>> cost.macs(zoo.build("lenet-5", {}))
    2293000
    """
    return sum(cost.macs for cost in per_layer(network))


def flops(network: Network, *, parts: Collection[str] = PARTS) -> int:
    """Floating-point operations of one inference, all gates on; 2·MACs with parts ("weight",)."""
    return int(cost_model(network).weights("flops", parts) @ cost_model(network).pairs)


def training_macs(network: Network) -> int:
    """Multiply-accumulates of one training step for one example, all gates on: forward, weight and input gradients.

    The first trainable layer needs no gradient with respect to its input, unless it lies in a section.
    """
    if network.first_trainable == len(network.layers):
        return macs(network)
    first = network.layers[network.first_trainable]
    return 3 * macs(network) - first.macs(network.input_shapes[first.name])


# --------------------------------------------------------------------------------------------------------------------
# Expected over the gates (C1)


class Term(NamedTuple):
    """One array of one layer: what a pair of it costs, and the gates on it.

    rows, columns: the unit gates of its output and input channels, as slices of the gate vector; None: no gates.
    section: index of the layer gate that kills it, or None.
    closers: the other groups of unit gates in its section, of which each that is empty closes the section.
    """

    layer: str
    part: str
    parameters: int
    macs: int
    flops: int
    rows: slice | None = None
    columns: slice | None = None
    section: int | None = None
    closers: tuple[slice, ...] = ()


def terms(network: Network) -> tuple[Term, ...]:
    """All terms in data-flow order; pairs of a layer without gates are all counted in one."""
    slices = network.gate_slices
    rows: dict[str, slice] = {}
    columns: dict[str, slice] = {}
    for gate, links in network.unit_links.items():
        rows |= dict.fromkeys((links.producer, *links.norms), slices[gate])
        if links.consumer is not None:
            columns[links.consumer] = slices[gate]
    inside = [(section, part) for section in network.layers if isinstance(section, Section) for part in section.path]
    sections = {part.name: slices[section.name].start for section, part in inside if section.gate}
    groups = {part.name: [slices[p.name] for p in section.path if p.name in slices] for section, part in inside}
    found = []
    for layer, shape in network.placed():
        values = math.prod(layer.output_shape(shape))
        for key, size in layer.parameter_shapes(shape).items():
            part = "norm" if isinstance(layer, BatchNorm) else key
            count = layer.macs(shape) if part == "weight" else 0
            operations = 2 * count if part == "weight" else values
            on_rows = rows.get(layer.name)
            on_columns = columns.get(layer.name) if part == "weight" else None
            amounts = math.prod(size), count, operations
            pairs = _length(on_rows) * _length(on_columns)
            parameters, macs, flops = (amount // pairs for amount in amounts)
            section = sections.get(layer.name)
            closers = tuple(group for group in groups.get(layer.name, ()) if group not in (on_rows, on_columns))
            found.append(Term(layer.name, part, parameters, macs, flops, on_rows, on_columns, section, closers))
    return tuple(found)


def _length(where: slice | None) -> int:
    """Gates in a group; 1 for no gates, and for a layer without units, which costs nothing."""
    return 1 if where is None else max(where.stop - where.start, 1)


@dataclass(frozen=True)
class CostModel:
    """The terms of a network as arrays, T of them over G gates, U groups of unit gates.

    rows, columns: (T,) the number of the unit gates' group that stands there, U for none. sections: (T,) the layer gate's
    index, G for none. groups: (G,) each gate's group, U for layer gates. pairs: (T,) how many pairs there are. closers: (T, U)
    the groups that close the term's section where they are empty; none with empty="keep_constant".
    """

    terms: tuple[Term, ...]
    unit_groups: int
    rows: Array
    columns: Array
    sections: Array
    groups: Array
    pairs: Array
    closers: Array

    @property
    def is_layer(self) -> Array:
        """(G,) which gates are layer gates."""
        is_layer: Array = self.groups == self.unit_groups
        return is_layer

    def weights(self, quantity: str, parts: Collection[str] = PARTS) -> Array:
        """(T,) what a pair of each term costs, 0 for terms that do not count. InputError for an unknown name."""
        for what, given, allowed in (("quantity", (quantity,), QUANTITIES), ("parts", parts, PARTS)):
            for value in given:
                if value not in allowed:
                    raise InputError(f"{what}: {value!r} is not known; allowed are {', '.join(allowed)}")
        return np.array([getattr(term, quantity) if term.part in parts else 0 for term in self.terms], dtype=np.float64)

    def alive(self, theta: Array) -> Array:
        """(T,) expected pairs alive, Σθ_rows · Σθ_columns · θ_section and what keeps the section from being closed for lack of
        units; an exact integer where θ is 0 or 1. θ: (G,)."""
        rows, columns, sections = self._factors(theta)
        kept, _ = self._kept(theta)
        alive: Array = rows * columns * sections * kept.prod(axis=1)
        return alive

    def gradient(self, theta: Array, weights: Array) -> Array:
        """(G,) ∂(weights·alive)/∂θ: each unit gate has its group's, and what its group closes; each layer gate its own."""
        rows, columns, sections = self._factors(theta)
        kept, slopes = self._kept(theta)
        open_ = weights * kept.prod(axis=1)
        of_groups = np.zeros(self.unit_groups + 1, rows.dtype)
        np.add.at(of_groups, self.rows, open_ * columns * sections)
        np.add.at(of_groups, self.columns, open_ * rows * sections)
        of_sections = np.zeros(theta.size + 1, rows.dtype)
        np.add.at(of_sections, self.sections, open_ * rows * columns)
        closed = np.append(((weights * rows * columns * sections)[:, None] * self.closers * _others(kept)).sum(axis=0), 0.0)
        gradient: Array = np.where(self.is_layer, of_sections[:-1], of_groups[self.groups] + closed[self.groups] * slopes)
        return gradient

    def _kept(self, theta: Array) -> tuple[Array, Array]:
        """(T, U) 1 − Π(1−θ) of each group that closes a term, 1 elsewhere; (G,) the slope of that of a gate's own group."""
        some, slopes = np.ones(self.unit_groups, np.result_type(theta, np.float64)), np.zeros_like(theta)
        for group in np.flatnonzero(self.closers.any(axis=0)):
            members = self.groups == group
            off = 1.0 - theta[members]
            some[group], slopes[members] = 1.0 - off.prod(), _others(off)
        return np.where(self.closers, some, 1.0), slopes

    def _factors(self, theta: Array) -> tuple[Array, Array, Array]:
        if theta.shape != self.groups.shape:
            raise InputError(f"theta: the network has {self.groups.size} gates, got an array of shape {theta.shape}")
        sums = np.zeros(self.unit_groups + 1, np.result_type(theta, np.float64))
        np.add.at(sums, self.groups, theta)
        sums[-1] = 1.0
        gates = np.append(theta, 1.0)
        return sums[self.rows], sums[self.columns], gates[self.sections]


def _others(factors: Array) -> Array:
    """Along the last axis, the product of all factors but one's own; no division, so that zeros are no trouble."""
    ones = np.ones_like(factors[..., :1])
    before = np.concatenate([ones, np.cumprod(factors, axis=-1)[..., :-1]], axis=-1)
    behind = np.concatenate([ones, np.cumprod(factors[..., ::-1], axis=-1)[..., :-1]], axis=-1)[..., ::-1]
    return np.asarray(before * behind)


@functools.lru_cache(maxsize=8)
def cost_model(network: Network, empty: str = "keep_constant") -> CostModel:
    """The cost model of a network; made once for a network.

    empty: what becomes of a section of which a layer has lost all its units, "keep_constant" or "close". InputError for
    anything else.
    """
    if empty not in ("keep_constant", "close"):
        raise InputError(f"empty: {empty!r} is not known; allowed are 'keep_constant', 'close'")
    found = terms(network)
    units = [group for group in network.gate_groups if group.kind == "unit"]
    number = {(group.start, group.stop): i for i, group in enumerate(units)}
    groups = np.full(network.gate_count, len(units))
    for i, group in enumerate(units):
        groups[group.slice] = i

    def index(wheres: Iterable[slice | None]) -> Array:
        return np.array([len(units) if where is None else number[where.start, where.stop] for where in wheres], dtype=np.intp)

    sections = [network.gate_count if term.section is None else term.section for term in found]
    closers = np.zeros((len(found), len(units)), dtype=bool)
    for i, term in enumerate(found if empty == "close" else ()):
        closers[i, [number[group.start, group.stop] for group in term.closers]] = True
    return CostModel(
        found,
        len(units),
        index(term.rows for term in found),
        index(term.columns for term in found),
        np.array(sections, dtype=np.intp),
        groups,
        np.array([_length(term.rows) * _length(term.columns) for term in found], dtype=np.float64),
        closers,
    )


def expected(
    network: Network, theta: Array, quantity: str = "macs", *, parts: Collection[str] = PARTS, empty: str = "keep_constant"
) -> Any:
    """E[cost] for independent gates Ξ ~ Bern(θ), θ (G,); the realised cost, exactly, where every θ is 0 or 1 (C1, C6).

    empty: as for `gates.surgery.prune`, of which it gives the cost.
    """
    model = cost_model(network, empty)
    return model.weights(quantity, parts) @ model.alive(theta)


def expected_gradient(
    network: Network, theta: Array, quantity: str = "macs", *, parts: Collection[str] = PARTS, empty: str = "keep_constant"
) -> Array:
    """(G,) ∂E[cost]/∂θ (C1)."""
    model = cost_model(network, empty)
    return model.gradient(theta, model.weights(quantity, parts))


def expected_per_layer(network: Network, theta: Array) -> dict[str, tuple[float, float, float]]:
    """Layer name → expected (parameters, MACs, FLOPs) at θ, layers that cost something; the columns sum to `expected`."""
    model = cost_model(network)
    alive = model.alive(theta)
    table: dict[str, tuple[float, float, float]] = {}
    for term, pairs in zip(model.terms, alive, strict=True):
        before = table.get(term.layer, (0.0, 0.0, 0.0))
        table[term.layer] = (
            before[0] + term.parameters * float(pairs),
            before[1] + term.macs * float(pairs),
            before[2] + term.flops * float(pairs),
        )
    return table
