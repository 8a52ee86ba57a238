"""Costs counted without `refprune.spec.cost`: pair by pair in loops, on the arrays of a real pass, with all gate vectors.

A pair is one input and one output channel of a weight, one output channel of a bias, or one channel of a batch-norm; it is
alive if all gates on it are 1 (SPEC C1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ...arrays import Array
from ...gates.surgery import prune
from ...spec.layers import Activation, BatchNorm, Conv, Dense, Flatten, GlobalAveragePool, Layer, MaxPool, Section, UnitGate
from ...spec.network import Network
from ..catalogue import Context
from .examples import SAME, loss_of, probabilities, vertices_of

QUANTITIES = ("parameters", "macs", "flops")


class Pair(NamedTuple):
    """part: "weight", "bias" or "norm". gates: the distinct gates on it. groups: the units of its section, layer by layer."""

    part: str
    gates: frozenset[int]
    parameters: int
    macs: int
    flops: int
    groups: tuple[frozenset[int], ...] = ()


def chain_network() -> Network:
    """No sections: neighbouring layers share their unit gates, one of them through a pool and a flatten. 7 gates."""
    relu = Activation("relu")
    images = (
        Conv(2, (3, 3), padding=SAME, bias=False),
        BatchNorm(),
        relu,
        UnitGate(),
        Conv(3, (2, 2), (1, 2)),
        relu,
        UnitGate(),
    )
    return Network((2, 5, 4), (*images, MaxPool((2, 2), (2, 1)), Flatten(), Dense(2), Activation("tanh"), UnitGate(), Dense(2)))


def sections_network() -> Network:
    """A bottleneck with layer and unit gates; units as missing summands beside an option-B shortcut; an empty head. 8 gates."""
    relu = Activation("relu")
    bottleneck = (Conv(2, (1, 1)), relu, UnitGate(), Conv(2, (3, 3), padding=SAME), BatchNorm(), relu, UnitGate())
    single = Section(
        (Conv(2, (3, 3), (2, 2), SAME), BatchNorm(), relu, UnitGate()), shortcut=(Conv(2, (1, 1), (2, 2)), BatchNorm())
    )
    first = Section((*bottleneck, Conv(3, (1, 1)), BatchNorm()), post="relu")
    return Network((1, 4, 4), (Conv(3, (3, 3), padding=SAME), relu, first, single, GlobalAveragePool(), Dense(2)))


def pairs(network: Network, context: Context) -> list[Pair]:
    """Every pair of the network; sizes are those of the parameters and outputs of a pass with all gates on."""
    loss, outputs = loss_of(network, context), dict[str, Array]()
    loss.evaluate(np.ones(network.gate_count), observe=lambda name, y: outputs.update({name: y}))
    found: list[Pair] = []

    def walk(layers: Sequence[Layer], reads: list[frozenset[int]], on: frozenset[int]) -> list[frozenset[int]]:
        """reads: the gates on every channel of the input; on: those of the section around."""
        for i, layer in enumerate(layers):
            if isinstance(layer, Section):
                own = frozenset({network.gate_slices[layer.name].start} if layer.gate else ())
                before = len(found)
                walk(layer.path, reads, own)
                units = [network.gate_slices[part.name] for part in layer.path if isinstance(part, UnitGate)]
                groups = tuple(frozenset(range(where.start, where.stop)) for where in units)
                found[before:] = [pair._replace(groups=groups) for pair in found[before:]]
                walk(layer.shortcut, reads, frozenset())
                reads = [frozenset()] * outputs[layer.name].shape[1]
            elif isinstance(layer, Flatten):
                reads = [gates for gates in reads for _ in range(outputs[layer.name].shape[1] // len(reads))]
            elif isinstance(layer, (Dense, Conv, BatchNorm)):
                y = outputs[layer.name]
                places, writes = y[0, 0].size, _gates_ahead(network, layers[i + 1 :], y.shape[1])
                if isinstance(layer, BatchNorm):
                    found.extend(Pair("norm", on | gates, 2, 0, 2 * places) for gates in writes)
                    continue
                for j, row in enumerate(loss.params[f"{layer.name}.weight"]):
                    for k, entries in enumerate(row):
                        n = entries.size
                        found.append(Pair("weight", on | writes[j] | reads[k], n, n * places, 2 * n * places))
                    if layer.bias:
                        found.append(Pair("bias", on | writes[j], 1, 0, places))
                reads = writes
        return reads

    walk(network.layers, [frozenset()] * network.input_shape[0], frozenset())
    return found


def _gates_ahead(network: Network, behind: Sequence[Layer], channels: int) -> list[frozenset[int]]:
    """The unit gates that the outputs of a layer meet before the next affine map or section."""
    for layer in behind:
        if isinstance(layer, UnitGate):
            start = network.gate_slices[layer.name].start
            return [frozenset({start + j}) for j in range(channels)]
        if isinstance(layer, (Dense, Conv, Section)):
            break
    return [frozenset()] * channels


class Table(NamedTuple):
    """Every gate vector, (V, G), with what is alive there: quantity → (V,) integers as floats."""

    vertices: Array
    costs: dict[str, Array]

    def mean(self, quantity: str, theta: Array) -> float:
        """E[cost] by enumeration; exact for θ in eighths, of which all products and sums have fewer than 53 bits."""
        return float(probabilities(self.vertices, theta) @ self.costs[quantity])

    def slopes(self, quantity: str, theta: Array) -> Array:
        """(G,) E[cost | ξ_g = 1] − E[cost | ξ_g = 0] by enumeration; as exact."""
        axes = np.eye(theta.size)
        return np.array([self.mean(quantity, theta + (1 - theta) * e) - self.mean(quantity, theta - theta * e) for e in axes])


def table(
    network: Network, context: Context, parts: Sequence[str] = ("weight", "bias", "norm"), *, empty: str = "keep_constant"
) -> Table:
    """Costs at every gate vector, of pairs of these parts; empty="close": sections with a layer without units cost nothing."""
    chosen = [pair for pair in pairs(network, context) if pair.part in parts]
    vertices = vertices_of(network.gate_count)

    def is_alive(v: Array, pair: Pair) -> bool:
        open_ = empty != "close" or all(any(v[g] == 1.0 for g in group) for group in pair.groups)
        return open_ and all(v[g] == 1.0 for g in pair.gates)

    alive = np.array([[is_alive(v, pair) for pair in chosen] for v in vertices], dtype=np.float64)
    return Table(
        vertices, {name: alive @ np.array([getattr(p, name) for p in chosen], dtype=np.float64) for name in QUANTITIES}
    )


def balanced(every: Table, is_layer: Array, theta: Array, *, alpha: float, rho: float) -> float:
    """R_ρ of C3 as it stands, each of its three R by enumeration."""

    def r(at: Array) -> float:
        macs, parameters = (every.mean(q, at) / float(every.costs[q][-1]) for q in ("macs", "parameters"))  # last: all on
        return alpha * macs + (1.0 - alpha) * parameters

    layers, units = r(np.where(is_layer, theta, 1.0)), r(np.where(is_layer, 1.0, theta))
    both = 1.0 - abs(2.0 * rho - 1.0)
    return both * r(theta) + max(0.0, 2.0 * rho - 1.0) * layers + max(0.0, 1.0 - 2.0 * rho) * units


def balanced_at_vertices(every: Table, is_layer: Array, *, alpha: float, rho: float) -> Array:
    """(V,) R_ρ of C3 where every gate is 0 or 1: a summand that looks past some gates reads the row where these are 1."""
    macs, parameters = (every.costs[q] / every.costs[q][-1] for q in ("macs", "parameters"))
    r, powers = alpha * macs + (1.0 - alpha) * parameters, 2 ** np.arange(is_layer.size)[::-1]
    layers, units = (r[(np.where(seen, every.vertices, 1.0) @ powers).astype(int)] for seen in (is_layer, ~is_layer))
    balanced: Array = (1 - abs(2 * rho - 1)) * r + max(0.0, 2 * rho - 1) * layers + max(0.0, 1 - 2 * rho) * units
    return balanced


def is_layer(network: Network) -> Array:
    """(G,) which gates are layer gates."""
    return np.array([group.kind == "layer" for group in network.gate_groups for _ in range(group.stop - group.start)])


def eighths(context: Context, purpose: str, count: int) -> Array:
    """θ inside (0, 1) whose products are exact in float64."""
    return (1.0 + np.floor(7.0 * context.uniform(purpose, count))) / 8.0


def left(network: Network, gates: Array, empty: str = "keep_constant") -> Network | None:
    """The network that surgery leaves at a gate vector; None where a plain layer has no units left."""
    for group in network.gate_groups:
        if isinstance(network.layers[group.position], UnitGate) and not gates[group.slice].any():
            return None
    return prune(network, gates == 1.0, empty=empty).network


def by_arrays(network: Network) -> tuple[int, int]:
    """(parameters, MACs) of a network without gates from the shapes of its arrays: entries of a weight, output places."""
    parameters, macs = sum(int(np.prod(shape)) for shape in network.parameter_shapes.values()), 0
    for layer, shape in network.placed():
        if isinstance(layer, (Dense, Conv)):
            places = int(np.prod(layer.output_shape(shape)[1:]))
            macs += int(np.prod(network.parameter_shapes[f"{layer.name}.weight"])) * places
    return parameters, macs
