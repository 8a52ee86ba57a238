"""Running a network: parameters, forward → tape, backward to weights, inputs and all gates (SPEC N1-N4, G1).

Data flows one way: spec → parameters → tape → gradients. Parameters and running statistics are plain dicts
name → array; nothing here changes its arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from .backend import Backend, Vjp
from .errors import InputError
from .layers import Array, Saved
from .layerspec import (
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
from .spec import Network
from .streams import Streams

Arrays = dict[str, Array]
Observer = Callable[[str, Array], None]


def initialise(network: Network, streams: Streams, *, section_scale: float = 1.0, dtype: str = "float64") -> Arrays:
    """Weights N(0, 2/fan-in) (He), biases 0, batch-norm gains 1; `section_scale` multiplies the weights inside section paths.

    Each array has its own stream "init/<name>", so that a layer's first weights do not depend on the other layers.
    """
    in_paths = {f"{part.name}.weight" for e in network.layers if isinstance(e, Section) for part in e.path}
    params: Arrays = {}
    for name, shape in network.parameter_shapes.items():
        if name.endswith(".weight"):
            scale = (2.0 / max(int(np.prod(shape[1:])), 1)) ** 0.5 * (section_scale if name in in_paths else 1.0)
            params[name] = (scale * streams.normal(f"init/{name}", 0, shape)).astype(dtype)
        else:
            params[name] = np.full(shape, 1.0 if name.endswith(".gain") else 0.0, dtype=dtype)
    return params


def initial_statistics(network: Network, *, dtype: str = "float64") -> Arrays:
    """Running means 0 and variances 1."""
    return {
        name: np.full(shape, 1.0 if name.endswith(".variance") else 0.0, dtype=dtype)
        for name, shape in network.statistics_shapes.items()
    }


# --------------------------------------------------------------------------------------------------------------------
# The tape


@dataclass(frozen=True)
class LayerGate(Layer):
    """The gate ξ of the section called `section`, as an element of its path."""

    section: str


def gate_group(gate: Layer) -> str:
    """Name under which the gate vector holds the gates of a LayerGate or UnitGate."""
    return gate.section if isinstance(gate, LayerGate) else gate.name


class Step(NamedTuple):
    """One executed layer: the backend function that ran, what it saved, its multiply-accumulates for the batch.

    For a section (function "add"): its shortcut, its path (None if it was closed and skipped), its addition and ρ.
    """

    layer: Layer
    function: str
    saved: Saved | None
    macs: int = 0
    shortcut: tuple[Step, ...] = ()
    path: tuple[Step, ...] | None = None
    post: Step | None = None


#: Layer type → the backend function that runs it, and the fields of the layer that are its conventions.
OPERATIONS: dict[type[Layer], tuple[str, tuple[str, ...]]] = {
    Dense: ("dense", ()),
    Conv: ("conv2d", ("stride", "padding", "dilation", "groups")),
    MaxPool: ("max_pool", ("kernel", "stride", "padding", "ties")),
    AveragePool: ("average_pool", ("kernel", "stride", "padding", "count_padding")),
    GlobalAveragePool: ("global_average_pool", ()),
    Flatten: ("flatten", ()),
    SubsamplePad: ("subsample_pad", ("stride", "before", "after")),
    UnitGate: ("gate", ()),
    LayerGate: ("gate", ()),
}


def operation(layer: Layer, *, train: bool) -> tuple[str, dict[str, Any]]:
    """The backend function that runs `layer`, and its conventions as keyword arguments."""
    if isinstance(layer, BatchNorm):
        return "batch_norm" if train else "batch_norm_eval", {"eps": layer.eps}
    if isinstance(layer, Activation):
        if layer.kind in ("relu", "leaky_relu"):
            return "leaky_relu", {"slope": layer.slope if layer.kind == "leaky_relu" else 0.0, "at_zero": layer.at_zero}
        return layer.kind, {}
    name, fields = OPERATIONS[type(layer)]
    return name, {field: getattr(layer, field) for field in fields}


@dataclass(frozen=True)
class Tape:
    """What a forward pass did: everything backward needs, and what may be looked at afterwards.

    inputs[i] is the input of chain element start + i; macs counts the multiply-accumulates of the whole batch.
    """

    network: Network
    backend: Backend
    params: Mapping[str, Array]
    gates: Array
    train: bool
    start: int
    steps: tuple[Step, ...]
    inputs: tuple[Array, ...]
    output: Array
    macs: int

    def walk(self) -> Iterator[Step]:
        """Every executed step in data-flow order, sections after their parts."""
        for step in self.steps:
            yield from step.shortcut
            yield from step.path or ()
            if step.post is not None:
                yield step.post
            yield step

    @cached_property
    def branches(self) -> Arrays:
        """Layer name → branch taken (sign of a ReLU's input, choice of a max pool): the branch signature (G3)."""
        return {step.layer.name: s.branch for step in self.walk() if (s := step.saved) is not None and s.branch is not None}

    @cached_property
    def batch_statistics(self) -> dict[str, tuple[Array, Array, int]]:
        """Batch-norm name → (mean, biased variance, values per channel) of this batch, without closed sections (N4)."""
        found = {}
        for top in self.steps:
            open_path = () if top.path is None or self.gate_is_closed(top.layer) else top.path
            for step in (top, *top.shortcut, *open_path):
                if step.saved is not None and step.saved.statistics is not None:
                    found[step.layer.name] = step.saved.statistics
        return found

    def gate_is_closed(self, layer: Layer) -> bool:
        """Is `layer` a gated section with ξ = 0?"""
        where = self.network.gate_slices.get(layer.name)
        return isinstance(layer, Section) and where is not None and self.gates[where][0] == 0


@dataclass
class _Forward:
    """State of one forward pass."""

    network: Network
    backend: Backend
    params: Mapping[str, Array]
    gates: Array
    statistics: Mapping[str, Array]
    train: bool
    branches: Mapping[str, Array]
    run_closed: bool
    observe: Observer | None
    macs: int = 0

    def chain(self, layers: tuple[Layer, ...], x: Array) -> tuple[Array, tuple[Step, ...]]:
        steps = []
        for layer in layers:
            x, step = self.layer(layer, x)
            steps.append(step)
        return x, tuple(steps)

    def layer(self, layer: Layer, x: Array) -> tuple[Array, Step]:
        y, step = self.section(layer, x) if isinstance(layer, Section) else self.plain(layer, x)
        if self.observe is not None:
            self.observe(layer.name, y)
        self.macs += step.macs
        return y, step

    def section(self, section: Section, x: Array) -> tuple[Array, Step]:
        """ρ(s(x) + ξ·path(x)); a path behind ξ = 0 is computed only if `run_closed` asks for its gate's derivative."""
        h, shortcut = self.chain(section.shortcut, x)
        path, saved = None, None
        if not section.gate or self.run_closed or self.gates[self.network.gate_slices[section.name]][0] != 0:
            r, path = self.chain(gated_path(section), x)
            h, saved = self.backend.add(h, r, channels=section.channels)
        post = None
        if section.post == "relu":
            h, post = self.layer(Activation("relu", name=f"{section.name}.post"), h)
        return h, Step(section, "add", saved, 0, shortcut, path, post)

    def plain(self, layer: Layer, x: Array) -> tuple[Array, Step]:
        function, options = operation(layer, train=self.train)
        if function == "identity":
            return x, Step(layer, function, Saved(()))
        if function in ("leaky_relu", "max_pool"):
            options["branch"] = self.branches.get(layer.name)
        try:
            y, saved = getattr(self.backend, function)(x, *self.operands(layer, function, x), **options)
        except InputError as error:
            raise InputError(f"{layer.name}: {error}") from error
        return y, Step(layer, function, saved, len(x) * layer.macs(x.shape[1:]))

    def operands(self, layer: Layer, function: str, x: Array) -> list[Array]:
        """The arrays that the function takes beside x: weights, running statistics, or the gate."""
        if function == "gate":
            g = self.gates[self.network.gate_slices[gate_group(layer)]]
            g = g if np.iscomplexobj(g) else g.astype(x.dtype)
            return [g if isinstance(layer, UnitGate) else g.reshape(())]
        arrays = [self.params[f"{layer.name}.{key}"] for key in layer.parameter_keys()]
        if function == "batch_norm_eval":
            arrays += [self.statistics[f"{layer.name}.mean"], self.statistics[f"{layer.name}.variance"]]
        return arrays


def gated_path(section: Section) -> tuple[Layer, ...]:
    """The section's path with its layer gate as an element, where `gate_place` puts it."""
    if not section.gate:
        return section.path
    at = section.gate_index()
    return (*section.path[:at], LayerGate(section.name, name=f"{section.name}.gate"), *section.path[at:])


def forward(
    network: Network,
    backend: Backend,
    params: Mapping[str, Array],
    x: Array,
    gates: Array | None = None,
    *,
    statistics: Mapping[str, Array] | None = None,
    train: bool = False,
    branches: Mapping[str, Array] | None = None,
    run_closed: bool = False,
    start: int = 0,
    observe: Observer | None = None,
) -> Tape:
    """Run the network, or its chain elements start, start+1, … on their input x (shared prefix, O5).

    x: N×input_shape. gates: (G,) in the order of `network.gates`, None for all ones; 0 and 1 in training, any value for the
    mean evaluation. statistics: running means and variances, read in eval mode. branches: layer name → branch to take
    instead of its own. run_closed: compute paths behind ξ = 0 too, for the derivative with respect to ξ.
    observe: called with (layer name, output) in data-flow order. InputError where shapes do not fit the network.
    """
    gates = np.ones(network.gate_count) if gates is None else np.asarray(gates)
    expected = network.input_shapes[network.layers[start].name] if start < len(network.layers) else network.output_shape
    if tuple(x.shape[1:]) != expected or len(x) == 0:
        raise InputError(f"x: the network expects inputs of shape (N ≥ 1, {', '.join(map(str, expected))}), got {x.shape}")
    if gates.shape != (network.gate_count,):
        raise InputError(f"gates: the network has {network.gate_count} gates, got an array of shape {gates.shape}")
    _check_arrays("params", network.parameter_shapes, params)
    if not train:
        _check_arrays("statistics", network.statistics_shapes, statistics or {})
    run = _Forward(
        network, backend, params, gates, statistics or {}, train, branches or {}, run_closed=run_closed, observe=observe
    )
    steps, inputs = [], []
    for layer in network.layers[start:]:
        inputs.append(x)
        x, step = run.layer(layer, x)
        steps.append(step)
    return Tape(network, backend, params, gates, train, start, tuple(steps), tuple(inputs), x, run.macs)


def _check_arrays(what: str, shapes: Mapping[str, tuple[int, ...]], arrays: Mapping[str, Array]) -> None:
    for name, shape in shapes.items():
        if name not in arrays or arrays[name].shape != shape:
            found = f"one of shape {arrays[name].shape}" if name in arrays else "none"
            raise InputError(f"{what}: the network needs an array {name} of shape {shape}, got {found}")


# --------------------------------------------------------------------------------------------------------------------
# Backward


class Gradients(NamedTuple):
    """params: name → gradient (zeros where nothing flowed); gates: (G,); input: like x, or None; macs of the pass."""

    params: Arrays
    gates: Array
    input: Array | None
    macs: int


@dataclass
class _Backward:
    """State of one backward pass."""

    tape: Tape
    params: Arrays
    gates: Array
    observe: Observer | None
    macs: int = 0

    def chain(self, steps: tuple[Step, ...], dy: Array) -> Array:
        for step in reversed(steps):
            dy = self.layer(step, dy)
        return dy

    def layer(self, step: Step, dy: Array, *, want_input: bool = True) -> Array:
        if self.observe is not None:
            self.observe(step.layer.name, dy)
        if isinstance(step.layer, Section):
            return self.section(step, dy)
        return self.plain(step, dy, want_input)

    def section(self, step: Step, dy: Array) -> Array:
        if step.post is not None:
            dy = self.layer(step.post, dy)
        if step.saved is None or step.path is None:
            return self.chain(step.shortcut, dy)
        dshortcut, dpath = self.tape.backend.add_vjp(step.saved, dy)
        closed = self.tape.gate_is_closed(step.layer)
        dx = None if closed else self.chain(step.path, dpath)
        if closed:
            self.closed_path(step.path, dpath)
        dshortcut = self.chain(step.shortcut, dshortcut)
        return dshortcut if dx is None else dshortcut + dx

    def closed_path(self, path: tuple[Step, ...], dy: Array) -> None:
        """Behind ξ = 0 nothing flows further (N3): only ξ's own derivative is wanted."""
        for step in reversed(path):
            dy = self.layer(step, dy)
            if isinstance(step.layer, LayerGate):
                return

    def plain(self, step: Step, dy: Array, want_input: bool) -> Array:
        if step.function == "identity":
            return dy
        backend, name = self.tape.backend, step.layer.name
        affine = step.function in ("dense", "conv2d")
        options = {"input_gradient": want_input} if affine else {}
        vjp: Vjp = getattr(backend, f"{step.function}_vjp")
        dx, *others = vjp(step.saved, dy, **options)
        self.macs += 2 * step.macs if want_input else step.macs
        if step.function == "gate":
            self.gates[self.tape.network.gate_slices[gate_group(step.layer)]] = others[0]
        for key, gradient in zip(step.layer.parameter_keys(), others, strict=False):
            self.params[f"{name}.{key}"] = gradient
        input_gradient: Array = dx
        return input_gradient


def backward(tape: Tape, dy: Array, *, input_gradient: bool = False, observe: Observer | None = None) -> Gradients:
    """The vector-Jacobian product of the whole pass: dy is the gradient with respect to `tape.output`.

    input_gradient: whether the gradient with respect to the network's input is wanted (it costs the first layer's product).
    observe: called with (layer name, gradient with respect to its output) in reverse data-flow order.
    """
    dtype = np.result_type(dy.dtype, tape.gates.dtype)
    params = {name: np.zeros(p.shape, dtype=dy.dtype) for name, p in tape.params.items()}
    run = _Backward(tape, params, np.zeros(tape.gates.shape, dtype=dtype), observe)
    first = 0 if input_gradient else tape.network.first_trainable - tape.start
    for i, step in reversed(list(enumerate(tape.steps))[max(first, 0) :]):
        dy = run.layer(step, dy, want_input=i > first or input_gradient)
    return Gradients(run.params, run.gates, dy if input_gradient else None, run.macs)
