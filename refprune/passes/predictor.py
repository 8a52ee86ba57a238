"""Inference: a network with fixed weights, statistics and gates as the shortest list of calls (SPEC N1-N4).

`rewrite` turns the operations of a network into a `Program`, in which everything constant has been worked out:

    closed section  ρ(s(x))               its path is gone
    affine          y = (W∗x)·1 + b       starts a fused map  relu?((W∗x)·scale + shift), scale and shift per output channel
    … batch-norm    in eval mode          scale ← f·scale, shift ← f·(shift − mean) + bias with f = gain/√(variance + eps)
    … gate          ξ or u                scale ← ξ·scale, shift ← ξ·shift; behind a ReLU because ξ·relu(z) = relu(ξ·z), ξ ≥ 0
    … ReLU                                becomes the map's own

and whatever cannot join the map before it stays the call that it was. For finite values the rewrite is exact but for
rounding: f, and products of several factors, are rounded once, to the dtype of the weights, where the plain pass rounds
after every layer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..arrays import Array
from ..backend import Backend, Fused
from ..spec.calls import Operation, Operations, SectionOperations, network_operations
from ..spec.network import Network
from .tape import check_arrays, check_input, checked_gates

AFFINE = ("dense", "conv2d")


class Affine(NamedTuple):
    """relu?((W∗x)·scale + shift), W∗x being `function`, "dense" or "conv2d"; scale and shift (C,), None: 1 and 0."""

    function: str
    options: Mapping[str, Any]
    weight: Array
    scale: Array | None
    shift: Array | None
    relu: bool = False


class Plain(NamedTuple):
    """function(x, *arrays, **options), as in a pass of `passes.tape.forward`."""

    function: str
    options: Mapping[str, Any]
    arrays: tuple[Array, ...]


class Sum(NamedTuple):
    """An open section without its ρ: the sum of two programs of the same x, the path's on `channels` of it (None: all)."""

    shortcut: Program
    path: Program
    channels: tuple[int, ...] | None


Program = tuple[Affine | Plain | Sum, ...]


@dataclass(frozen=True)
class _Rewrite:
    """What is constant."""

    params: Mapping[str, Array]
    statistics: Mapping[str, Array]
    gates: Array

    def chain(self, operations: Operations) -> Program:
        program: list[Affine | Plain | Sum] = []
        for operation in self.executed(operations):
            if isinstance(operation, SectionOperations):
                channels = operation.layer.channels
                program.append(Sum(self.chain(operation.shortcut), self.chain(operation.path), channels))
            elif operation.function in AFFINE:
                weight, *bias = self.arrays(operation)
                program.append(Affine(operation.function, operation.options, weight, None, bias[0] if bias else None))
            elif operation.function != "identity":
                arrays = self.arrays(operation)
                joined = _joined(program[-1], operation, arrays) if program and isinstance(program[-1], Affine) else None
                if joined is None:
                    program.append(Plain(operation.function, operation.options, arrays))
                else:
                    program[-1] = joined
        return tuple(program)

    def executed(self, operations: Operations) -> Iterator[Operation | SectionOperations]:
        """The chain with ρ as an element behind its section, and closed sections dissolved."""
        for operation in operations:
            if not isinstance(operation, SectionOperations):
                yield operation
                continue
            if operation.is_closed(self.gates):
                yield from operation.shortcut
            else:
                yield operation
            yield from operation.post

    def arrays(self, operation: Operation) -> tuple[Array, ...]:
        gate = () if operation.gate is None else (self.gates[operation.gate],)
        return (
            *(self.params[name] for name in operation.parameters),
            *(self.statistics[name] for name in operation.statistics),
            *gate,
        )


def _joined(affine: Affine, operation: Operation, arrays: tuple[Array, ...]) -> Affine | None:
    """`affine` followed by `operation` as one map; None where no such map is the same function."""
    if operation.function == "leaky_relu" and operation.options["slope"] == 0.0:
        return affine._replace(relu=True)
    if operation.function == "gate" and (not affine.relu or (arrays[0] >= 0.0).all()):
        return _scaled(affine, np.broadcast_to(arrays[0], affine.weight.shape[:1]))
    if operation.function == "batch_norm_eval" and not affine.relu:
        gain, bias, mean, variance = (a.astype(np.result_type(a, np.float64)) for a in arrays)
        shift = 0.0 if affine.shift is None else affine.shift
        factor = gain / np.sqrt(variance + operation.options["eps"])
        return _scaled(affine, factor)._replace(shift=factor * (shift - mean) + bias)
    return None


def _scaled(affine: Affine, factor: Array) -> Affine:
    scale = factor if affine.scale is None else affine.scale * factor
    return affine._replace(scale=scale, shift=None if affine.shift is None else affine.shift * factor)


def rewrite(
    network: Network,
    params: Mapping[str, Array],
    statistics: Mapping[str, Array],
    gates: Array,
    elements: slice = slice(None),
) -> Program:
    """The network, or those `elements` of its chain, in eval mode as a program; all arrays must fit it."""
    return _Rewrite(params, statistics, gates).chain(network_operations(network, train=False)[elements])


# --------------------------------------------------------------------------------------------------------------------
# Running a program


def composed(backend: Backend, function: str) -> Fused:
    """The fused form of `function` made of the backend's own "dense" or "conv2d", "batch_norm_eval" and "leaky_relu"."""
    affine = getattr(backend, function)

    def fused(x: Array, w: Array, scale: Array | None, shift: Array | None, *, relu: bool, **conventions: Any) -> Array:
        if scale is None:
            y, _ = affine(x, w, shift, **conventions)
        else:
            y, _ = affine(x, w, **conventions)
            zero, one = np.zeros(len(scale), y.dtype), np.ones(len(scale), y.dtype)
            y, _ = backend.batch_norm_eval(y, scale, zero if shift is None else shift, zero, one, eps=0.0)
        result: Array = backend.leaky_relu(y, slope=0.0, at_zero=0.0)[0] if relu else y
        return result

    return fused


Run = Callable[[Array], Array]


def _bound(program: Program, backend: Backend) -> Run:
    """The program as one function of x, every argument but x bound."""
    calls = tuple(_call(item, backend) for item in program)

    def run(x: Array) -> Array:
        for call in calls:
            x = call(x)
        return x

    return run


def _call(item: Affine | Plain | Sum, backend: Backend) -> Run:
    if isinstance(item, Affine):
        fused = getattr(backend, f"{item.function}_fused") or composed(backend, item.function)
        w = np.ascontiguousarray(item.weight)
        scale, shift = (None if v is None else np.ascontiguousarray(v, w.dtype) for v in (item.scale, item.shift))
        return functools.partial(fused, w=w, scale=scale, shift=shift, relu=item.relu, **item.options)
    if isinstance(item, Sum):
        return _sum(_bound(item.shortcut, backend), _bound(item.path, backend), backend, item.channels)
    if item.function == "gate":
        return _gate(backend, *item.arrays)
    return _plain(functools.partial(getattr(backend, item.function), **item.options), item.arrays)


def _sum(shortcut: Run, path: Run, backend: Backend, channels: tuple[int, ...] | None) -> Run:
    def run(x: Array) -> Array:
        y, _ = backend.add(shortcut(x), path(x), channels=channels)
        return y

    return run


def _gate(backend: Backend, g: Array) -> Run:
    def run(x: Array) -> Array:
        y, _ = backend.gate(x, g.astype(x.dtype))
        return y

    return run


def _plain(function: Callable[..., tuple[Array, Any]], arrays: tuple[Array, ...]) -> Run:
    def run(x: Array) -> Array:
        y, _ = function(x, *arrays)
        return y

    return run


class Predictor:
    """x ↦ logits of a network in eval mode, by as few calls as possible (N1–N4).

    The result is that of `forward(network, backend, params, x, gates, statistics=statistics).output` up to rounding.
    Constants are worked out once, so that the arrays must not change while the predictor is in use. It keeps no state between
    calls: several threads may use it.

    network: the spec.
    backend: whose functions compute.
    params: name → array.
    statistics: name → running mean or variance of each batch-norm.
    gates: (G,), any values; None: all ones.
    start, stop: only chain elements start … stop−1 are run, from the input of the first to the output of the last.

    InputError names the array whose shape does not fit the network.

    >>> import numpy as np
    >>> from refprune import ORACLE, Dense, Network, Predictor
    >>> network = Network((2,), (Dense(2),))
    >>> params = {"dense1.weight": np.array([[1.0, 2.0], [3.0, 4.0]]), "dense1.bias": np.array([0.5, 0.0])}
    >>> Predictor(network, ORACLE, params)(np.array([[1.0, 1.0]])).tolist()
    [[3.5, 7.0]]
    """

    def __init__(
        self,
        network: Network,
        backend: Backend,
        params: Mapping[str, Array],
        statistics: Mapping[str, Array] | None = None,
        gates: Array | None = None,
        *,
        start: int = 0,
        stop: int | None = None,
    ) -> None:
        gates, statistics = checked_gates(network, gates), statistics or {}
        check_arrays("params", network.parameter_shapes, params)
        check_arrays("statistics", network.statistics_shapes, statistics)
        self.network = network
        inside = 0 <= start < len(network.layers)
        self.input_shape = network.input_shapes[network.layers[start].name] if inside else network.output_shape
        self.program = rewrite(network, params, statistics, gates, slice(start, stop))
        self._run = _bound(self.program, backend)

    def __call__(self, x: Array) -> Array:
        """x: N×input_shape, N ≥ 1 → logits N×K, or what the last element gives."""
        check_input(self.input_shape, x)
        return self._run(x)
