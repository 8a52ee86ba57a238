"""Running a network: parameters, forward → tape, backward to weights, inputs and all gates (SPEC N1-N4, G1).

Data flows one way: spec → parameters → tape → gradients. Parameters and running statistics are plain dicts
name → array; nothing here changes its arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ..arrays import Array, Arrays, Saved, Shape
from ..backend import Backend, Vjp
from ..errors import InputError
from ..spec.calls import LayerGate, Operation, Operations, SectionOperations, network_operations
from ..spec.layers import Layer
from ..spec.network import Network

Observer = Callable[[str, Array], None]


# --------------------------------------------------------------------------------------------------------------------
# The tape


class Step(NamedTuple):
    """One executed operation: what its function saved, its multiply-accumulates for the batch.

    For a section, `saved` is its addition's; its shortcut, its path (None if it was closed and skipped) and ρ are steps too.
    """

    operation: Operation | SectionOperations
    saved: Saved | None
    macs: int = 0
    shortcut: tuple[Step, ...] = ()
    path: tuple[Step, ...] | None = None
    post: tuple[Step, ...] = ()

    @property
    def layer(self) -> Layer:
        return self.operation.layer


@dataclass(frozen=True)
class Tape:
    """What a forward pass did: everything backward needs, and what may be looked at afterwards.

    inputs: position → input of each chain element that holds gates, from where a flip of them goes on (O5). macs counts the
    multiply-accumulates of the whole batch. steps is empty once a backward pass has consumed it.
    """

    network: Network
    backend: Backend
    params: Mapping[str, Array]
    gates: Array
    train: bool
    start: int
    steps: list[Step]
    inputs: Mapping[int, Array]
    output: Array
    macs: int

    def walk(self) -> Iterator[Step]:
        """Every executed step in data-flow order, sections after their parts."""
        for step in self.steps:
            yield from step.shortcut
            yield from step.path or ()
            yield from step.post
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
            open_path = () if top.path is None or self.is_closed(top) else top.path
            for step in (top, *top.shortcut, *open_path):
                if step.saved is not None and step.saved.statistics is not None:
                    found[step.layer.name] = step.saved.statistics
        return found

    def is_closed(self, step: Step) -> bool:
        """Is it the step of a gated section with ξ = 0?"""
        return isinstance(step.operation, SectionOperations) and step.operation.is_closed(self.gates)


@dataclass
class _Forward:
    """State of one forward pass."""

    backend: Backend
    params: Mapping[str, Array]
    gates: Array
    statistics: Mapping[str, Array]
    branches: Mapping[str, Array]
    run_closed: bool
    observe: Observer | None
    macs: int = 0

    def chain(self, operations: Operations, x: Array) -> tuple[Array, tuple[Step, ...]]:
        steps = []
        for operation in operations:
            x, step = self.element(operation, x)
            steps.append(step)
        return x, tuple(steps)

    def element(self, operation: Operation | SectionOperations, x: Array) -> tuple[Array, Step]:
        y, step = self.section(operation, x) if isinstance(operation, SectionOperations) else self.plain(operation, x)
        if self.observe is not None:
            self.observe(operation.layer.name, y)
        self.macs += step.macs
        return y, step

    def section(self, section: SectionOperations, x: Array) -> tuple[Array, Step]:
        """ρ(s(x) + ξ·path(x)); a path behind ξ = 0 is computed only if `run_closed` asks for its gate's derivative."""
        h, shortcut = self.chain(section.shortcut, x)
        path, saved = None, None
        if self.run_closed or not section.is_closed(self.gates):
            r, path = self.chain(section.path, x)
            h, saved = self.backend.add(h, r, channels=section.layer.channels)
        h, post = self.chain(section.post, h)
        return h, Step(section, saved, 0, shortcut, path, post)

    def plain(self, operation: Operation, x: Array) -> tuple[Array, Step]:
        layer, name, options, parameters, statistics, gate, macs = operation
        if name == "identity":
            return x, Step(operation, Saved(()))
        if layer.name in self.branches:
            options = {**options, "branch": self.branches[layer.name]}
        arrays = [self.params[key] for key in parameters] + [self.statistics[key] for key in statistics]
        if gate is not None:
            g = self.gates[gate]
            arrays.append(g if np.iscomplexobj(g) else g.astype(x.dtype))
        try:
            y, saved = getattr(self.backend, name)(x, *arrays, **options)
        except InputError as error:
            raise InputError(f"{layer.name}: {error}") from error
        return y, Step(operation, saved, len(x) * macs)


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
    """Run the network on a batch and keep what `backward` needs (N1, G1).

    network: the spec.
    backend: whose functions compute.
    params: name → array, as in `network.parameter_shapes`.
    x: N×input_shape; with `start`, the input of that chain element.
    gates: (G,) in the order of `network.gate_groups`; 0 and 1 in training, any value for ξ = θ. None: all ones.
    statistics: name → running mean or variance of each batch-norm; read in eval mode.
    train: whether batch-norms use the batch (True) or the running statistics (False).
    branches: layer name → branch to take instead of the layer's own: the sign of a ReLU's input, the choice of a max pool.
    run_closed: whether paths behind ξ = 0 are computed too, for the derivative with respect to ξ.
    start: the first chain element that is run; those before it are skipped (O5).
    observe: called with (layer name, output) in the order of data flow.

    Returns a `Tape`: `tape.output` is N×K, `tape.macs` the multiply-accumulates of the batch.
    InputError names the array whose shape does not fit the network.

    >>> import numpy as np
    >>> from refprune import ORACLE, Activation, Dense, Network, Section, forward
    >>> network = Network((2,), (Section((Dense(2, bias=False), Activation("relu"))),))
    >>> params = {"section1.dense1.weight": np.array([[1.0, 1.0], [0.0, -1.0]])}
    >>> x = np.array([[1.0, 2.0]])
    >>> forward(network, ORACLE, params, x).output.tolist()
    [[4.0, 2.0]]
    >>> forward(network, ORACLE, params, x, np.array([0.0])).output.tolist()
    [[1.0, 2.0]]
    """
    expected = network.input_shapes[network.layers[start].name] if start < len(network.layers) else network.output_shape
    check_input(expected, x)
    gates = checked_gates(network, gates)
    check_arrays("params", network.parameter_shapes, params)
    if not train:
        check_arrays("statistics", network.statistics_shapes, statistics or {})
    run = _Forward(backend, params, gates, statistics or {}, branches or {}, run_closed=run_closed, observe=observe)
    operations = network_operations(network, train=train)
    steps, inputs = [], {}
    for position in range(start, len(operations)):
        if position in network.gate_positions:
            inputs[position] = x
        x, step = run.element(operations[position], x)
        steps.append(step)
    return Tape(network, backend, params, gates, train, start, steps, inputs, x, run.macs)


def check_input(expected: Shape, x: Array) -> None:
    """InputError unless x is a batch of inputs of the expected shape."""
    if x.shape[1:] != expected or len(x) == 0:
        raise InputError(f"x: the network expects inputs of shape (N ≥ 1, {', '.join(map(str, expected))}), got {x.shape}")


def checked_gates(network: Network, gates: Array | None) -> Array:
    """The gate vector, ones for None. InputError for another shape."""
    gates = np.ones(network.gate_count) if gates is None else np.asarray(gates)
    if gates.shape != (network.gate_count,):
        raise InputError(f"gates: the network has {network.gate_count} gates, got an array of shape {gates.shape}")
    return gates


def check_arrays(what: str, shapes: Mapping[str, Shape], arrays: Mapping[str, Array]) -> None:
    """InputError unless `arrays` holds an array of the right shape under every name."""
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
            dy = self.element(step, dy)
        return dy

    def element(self, step: Step, dy: Array, *, want_input: bool = True) -> Array:
        if self.observe is not None:
            self.observe(step.layer.name, dy)
        if isinstance(step.operation, SectionOperations):
            return self.section(step, dy)
        return self.plain(step.operation, step, dy, want_input)

    def section(self, step: Step, dy: Array) -> Array:
        dy = self.chain(step.post, dy)
        if step.saved is None or step.path is None:
            return self.chain(step.shortcut, dy)
        backend = self.tape.backend
        dshortcut, dpath = backend.add_vjp(step.saved, dy)
        if self.tape.is_closed(step):
            self.closed_path(step.path, dpath)
            return self.chain(step.shortcut, dshortcut)
        dx = self.chain(step.path, dpath)
        both, _ = backend.add(self.chain(step.shortcut, dshortcut), dx, channels=None)
        return both

    def closed_path(self, path: tuple[Step, ...], dy: Array) -> None:
        """Behind ξ = 0 nothing flows further (N3): only ξ's own derivative is wanted."""
        for step in reversed(path):
            dy = self.element(step, dy)
            if isinstance(step.layer, LayerGate):
                return

    def plain(self, operation: Operation, step: Step, dy: Array, want_input: bool) -> Array:
        name = operation.function
        if name == "identity":
            return dy
        vjp: Vjp = getattr(self.tape.backend, f"{name}_vjp")
        options = {"input_gradient": want_input} if name in ("dense", "conv2d") else {}
        dx, *others = vjp(step.saved, dy, **options)
        self.macs += 2 * step.macs if want_input else step.macs
        if operation.gate is not None:
            self.gates[operation.gate] = others[0]
        for key, gradient in zip(operation.parameters, others, strict=False):
            self.params[key] = gradient
        input_gradient: Array = dx
        return input_gradient


def backward(
    tape: Tape, dy: Array, *, input_gradient: bool = False, consume: bool = False, observe: Observer | None = None
) -> Gradients:
    """The vector-Jacobian product of a pass: from ∂c/∂output to the gradients of parameters, gates and input (G1, O3).

    tape: of `forward`.
    dy: ∂c/∂`tape.output`, N×K.
    input_gradient: whether the gradient of the network's input is wanted; it costs one more product in the first layer.
    consume: whether steps are taken off the tape on the way back, so that their memory is free at once.
    observe: called with (layer name, gradient of its output) in reverse order of data flow.

    Returns `Gradients`: params (name → array, zeros where nothing flowed), gates (G,), input (like x, or None), macs.
    InputError if another backward pass has consumed the tape.

    >>> import numpy as np
    >>> from refprune import ORACLE, Activation, Dense, Network, Section, backward, forward
    >>> network = Network((2,), (Section((Dense(2, bias=False), Activation("relu"))),))
    >>> params = {"section1.dense1.weight": np.array([[1.0, 1.0], [0.0, -1.0]])}
    >>> tape = forward(network, ORACLE, params, np.array([[1.0, 2.0]]))
    >>> gradients = backward(tape, np.ones((1, 2)))
    >>> gradients.gates.tolist(), gradients.params["section1.dense1.weight"].tolist()
    ([3.0], [[1.0, 2.0], [0.0, 0.0]])
    """
    if len(tape.steps) != len(tape.network.layers) - tape.start:
        raise InputError("tape: a backward pass has consumed it; evaluate again")
    dtype = dy.dtype
    run = _Backward(tape, {}, np.zeros(tape.gates.shape, dtype=np.result_type(dtype, tape.gates.dtype)), observe)
    first = 0 if input_gradient else max(tape.network.first_trainable - tape.start, 0)
    steps = tape.steps if consume else list(tape.steps)
    while len(steps) > first:
        dy = run.element(steps.pop(), dy, want_input=len(steps) > first or input_gradient)
    steps.clear()
    reached = run.params
    params = {name: reached[name] if name in reached else np.zeros(p.shape, dtype) for name, p in tape.params.items()}
    return Gradients(params, run.gates, dy if input_gradient else None, run.macs)
