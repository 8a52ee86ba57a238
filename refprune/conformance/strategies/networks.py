"""Hypothesis strategies for whole networks, valid by construction: the structure is drawn, the numbers come from a seed.

`cases()` yields a network with parameters, statistics, a batch, a target and gates. Tiny sizes: a case runs in milliseconds.
Random weights and biases keep entries off the kinks, but for structural zeros (closed gates, dead units), where all sides
take the declared subgradient.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ...adapters.implementation import EVERY, Conventions
from ...arrays import Array, Arrays, Pair, Shape
from ...backend import ORACLE
from ...passes.batch_loss import BatchLoss
from ...spec.layers import (
    ACTIVATIONS,
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
from ...spec.network import Loss, Network
from ...streams import Streams

GATES = ("random", "zeros", "ones", "fractional")


@dataclasses.dataclass(frozen=True)
class Case:
    """A network with everything to run it; all numbers follow from the seed."""

    network: Network
    batch: int
    seed: int
    train: bool
    gate_kind: str = "random"

    def reseeded(self, seed: int) -> Case:
        """The same network with other numbers."""
        return dataclasses.replace(self, seed=seed)

    def normal(self, purpose: str, shape: Shape) -> Array:
        return Streams(self.seed).normal(purpose, 0, shape)

    def uniform(self, purpose: str, shape: Shape) -> Array:
        return Streams(self.seed).uniform(purpose, 0, shape)

    @property
    def params(self) -> Arrays:
        """Weights N(0, 2/fan-in), biases N(0, ¼), gains in [½, 3/2]."""
        arrays = {}
        for name, shape in self.network.parameter_shapes.items():
            if name.endswith(".gain"):
                arrays[name] = 0.5 + self.uniform(name, shape)
            else:
                fan_in = np.prod(shape[1:]) if name.endswith(".weight") else 8.0
                arrays[name] = self.normal(name, shape) * (2.0 / max(fan_in, 1.0)) ** 0.5
        return arrays

    @property
    def statistics(self) -> Arrays:
        shapes = self.network.statistics_shapes
        return {
            name: 0.5 + self.uniform(name, shape) if name.endswith(".variance") else 0.3 * self.normal(name, shape)
            for name, shape in shapes.items()
        }

    @property
    def x(self) -> Array:
        return self.normal("x", (self.batch, *self.network.input_shape))

    @property
    def target(self) -> Array:
        (outputs,) = self.network.output_shape
        if self.network.loss.kind == "cross_entropy":
            return (self.uniform("target", (self.batch,)) * outputs).astype(np.int64)
        return self.normal("target", (self.batch, outputs))

    @property
    def gates(self) -> Array:
        u = self.uniform("gates", (self.network.gate_count,))
        return {"random": (u < 0.6) * 1.0, "zeros": 0.0 * u, "ones": 0.0 * u + 1.0, "fractional": u}[self.gate_kind]

    @property
    def loss(self) -> BatchLoss:
        return BatchLoss(self.network, ORACLE, self.params, self.x, self.target, self.statistics, self.train)


# Structure ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Style:
    """What a whole network has."""

    norm: bool
    unit_gates: bool
    activations: tuple[str, ...]
    conventions: Conventions

    def choice(self, draw: st.DrawFn, convention: str) -> Any:
        """One of the values that the convention may have; its first most often."""
        allowed = self.conventions[convention]
        return draw(st.sampled_from((allowed[0], *allowed)))


def _activation(draw: st.DrawFn, style: Style, *, keeps_zero: bool = False) -> Activation:
    kind = draw(st.sampled_from(style.activations))
    if keeps_zero and kind == "sigmoid":
        kind = "tanh"
    return Activation(kind, slope=draw(st.sampled_from((0.01, 0.3))), at_zero=style.choice(draw, "at_zero"))


def _norm(draw: st.DrawFn, style: Style) -> tuple[BatchNorm, ...]:
    if not style.norm or draw(st.integers(0, 3)) == 0:
        return ()
    of, variance = style.choice(draw, "momentum_of"), style.choice(draw, "running_variance")
    return (BatchNorm(draw(st.sampled_from((1e-5, 1e-2))), draw(st.sampled_from((0.1, 0.3))), of, variance),)


def _pool(draw: st.DrawFn, style: Style, *, same_size: bool = False) -> MaxPool | AveragePool:
    """A pool of images with at least 2×2 pixels, or one that keeps the size."""
    kernel = (3, 3) if same_size else (2, draw(st.integers(1, 2)))
    stride = (1, 1) if same_size else (2, draw(st.integers(1, 2)))
    side = (1, 1) if same_size else (0, draw(st.integers(0, 1)))
    padding = (side, side) if same_size else (side, (0, 0))
    if draw(st.booleans()):
        return MaxPool(kernel, stride, padding, ties=style.choice(draw, "ties"))
    return AveragePool(kernel, stride, padding, count_padding=style.choice(draw, "count_padding"))


def _unit(draw: st.DrawFn, style: Style, affine: Layer, *, gated: bool, pool: tuple[Layer, ...] = ()) -> tuple[Layer, ...]:
    """affine, [norm], activation, [gate], [pool]; the gate may stand before the activation or behind the pool too (N4)."""
    norm = _norm(draw, style)
    place = draw(st.sampled_from(("after", "after", "before", "last"))) if gated else "none"
    activation = _activation(draw, style, keeps_zero=place == "before")
    gate = (UnitGate(),)
    order = {
        "none": (activation, *pool),
        "after": (activation, *gate, *pool),
        "before": (*gate, activation, *pool),
        "last": (activation, *pool, *gate),
    }
    return (affine, *norm, *order[place])


def _affine(
    draw: st.DrawFn, image: bool, width: int, *, stride: Pair = (1, 1), kernel: int | None = None, groups: int = 1
) -> Dense | Conv:
    """A filter keeps the image's size but for the stride; one of four is odd: not square, dilated, padded on one side."""
    bias = draw(st.booleans())
    if not image:
        return Dense(width, bias)
    if kernel is None and draw(st.integers(0, 3)) == 3:
        sides = [_odd_side(draw, free=False) for _ in range(2)]
        kernels, dilations, padding = zip(*sides, strict=True)
        return Conv(width, kernels, stride, padding, dilations, groups, bias)
    k = draw(st.sampled_from((1, 3))) if kernel is None else kernel
    side = (k // 2, k // 2)
    return Conv(width, (k, k), stride, (side, side), groups=groups, bias=bias)


def _plain(draw: st.DrawFn, image: bool, width: int, groups: int) -> Dense | Conv:
    """A layer outside of sections, whose filters may make the image larger, a 1×1 filter by its bias alone."""
    if not image or draw(st.integers(0, 3)) < 3:
        return _affine(draw, image, width, groups=groups)
    kernels, dilations, padding = zip(*[_odd_side(draw, free=True) for _ in range(2)], strict=True)
    return Conv(width, kernels, padding=padding, dilation=dilations, groups=groups, bias=draw(st.booleans()))


def _odd_side(draw: st.DrawFn, *, free: bool) -> tuple[int, int, Pair]:
    """(kernel, dilation, padding) along one side of an image of at least one pixel, which keeps its length unless free."""
    kernel, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    whole = (kernel - 1) * dilation
    before = draw(st.integers(0, whole))
    return kernel, dilation, (before + free * draw(st.integers(0, 1)), whole - before + free * draw(st.integers(0, 1)))


def _shortcut(draw: st.DrawFn, style: Style, image: bool, width: int, new_width: int, stride: Pair) -> tuple[Layer, ...]:
    """Identity where nothing changes its shape, else option A (images only, not narrower) or B."""
    kinds = ["B"]
    if (width, (1, 1)) == (new_width, stride):
        kinds.append("identity")
    if image and new_width >= width:
        kinds.append("A")
    kind = draw(st.sampled_from(kinds))
    if kind == "identity":
        return ()
    if kind == "A":
        before = draw(st.integers(0, new_width - width))
        return (SubsamplePad(stride, before, new_width - width - before),)
    affine = _affine(draw, image, new_width, stride=stride, kernel=1)
    return (affine, *_norm(draw, style))


def _section(draw: st.DrawFn, style: Style, image: bool, shape: Sequence[int]) -> tuple[Section, int, Pair]:
    """(section, the stream's new width, its stride)."""
    width = shape[0]
    changes = draw(st.booleans())
    new_width = draw(st.integers(1, 4)) if changes else width
    stride = (2, draw(st.integers(1, 2))) if changes and image and min(shape[1:]) > 2 and draw(st.booleans()) else (1, 1)
    shortcut = _shortcut(draw, style, image, width, new_width, stride)
    depth = draw(st.integers(1, 3))
    path = list((*_norm(draw, style), _activation(draw, style)) if draw(st.integers(0, 4)) == 0 else ())
    for k in range(depth - 1):
        affine = _affine(draw, image, draw(st.integers(1, 4)), stride=stride if k == 0 else (1, 1))
        pool = (_pool(draw, style, same_size=True),) if image and draw(st.integers(0, 4)) == 0 else ()
        path += _unit(draw, style, affine, gated=style.unit_gates and draw(st.booleans()), pool=pool)
    channels = tuple(draw(st.permutations(range(new_width)))) if draw(st.integers(0, 4)) == 0 else None
    channels = channels and channels[: draw(st.integers(1, new_width))]
    path += (_affine(draw, image, len(channels or range(new_width)), stride=stride if depth == 1 else (1, 1)),)
    path += _norm(draw, style)
    place = draw(st.sampled_from(("path", "path", "preactivation")))
    if place == "preactivation" or draw(st.integers(0, 2)) == 0:
        path += (_activation(draw, style, keeps_zero=True),)
    if style.unit_gates and draw(st.integers(0, 2)) == 0:
        path += (UnitGate(),)
    post, gate = draw(st.sampled_from(("relu", "identity"))), draw(st.integers(0, 4)) > 0
    return Section(tuple(path), shortcut, gate, place, post, channels), new_width, stride


def _blocks(draw: st.DrawFn, style: Style, image: bool, start: Shape, limit: int, least: int = 0) -> tuple[list[Layer], Shape]:
    """`least` to `limit` plain layers and sections; only what no section follows at once may have unit gates."""
    kinds = draw(st.lists(st.sampled_from(("plain", "section", "section")), min_size=least, max_size=limit))
    layers: list[Layer] = []
    shape = list(start)
    for kind, follower in zip(kinds, [*kinds[1:], "plain"], strict=False):
        if kind == "section":
            section, shape[0], stride = _section(draw, style, image, shape)
            layers.append(section)
            shape[1:] = [-(-size // s) for size, s in zip(shape[1:], stride, strict=False)]
            continue
        gated = style.unit_gates and follower == "plain" and draw(st.booleans())
        after_gate = any(isinstance(layer, UnitGate) for layer in layers[-3:])
        groups = 2 if image and not gated and not after_gate and shape[0] % 2 == 0 and draw(st.booleans()) else 1
        width = draw(st.sampled_from((2, 4))) if groups == 2 else draw(st.integers(1, 4))
        affine = _plain(draw, image, width, groups)
        shape = list(affine.output_shape(tuple(shape)))
        pool = (_pool(draw, style),) if image and min(shape[1:]) >= 4 and draw(st.booleans()) else ()
        layers += _unit(draw, style, affine, gated=gated, pool=pool)
        shape = list(pool[0].output_shape(tuple(shape))) if pool else shape
    return layers, tuple(shape)


losses = st.sampled_from(
    [Loss("cross_entropy", r) for r in ("mean", "sum")] + [Loss("mean_squared_error", r) for r in ("mean", "batch_mean", "sum")]
)


@st.composite
def networks(
    draw: st.DrawFn,
    *,
    norm: bool | None = None,
    unit_gates: bool | None = None,
    image: bool | None = None,
    activations: Sequence[str] = ACTIVATIONS,
    limit: int = 3,
    conventions: Conventions = EVERY,
) -> Network:
    """Dense and convolutional chains of plain layers and sections, with a dense head."""
    flags = [draw(st.booleans()) if flag is None else flag for flag in (norm, unit_gates, image)]
    style = Style(bool(flags[0]), bool(flags[1]), tuple(activations), conventions)
    layers: list[Layer] = []
    shape: Shape = (draw(st.integers(1, 5)),)
    input_shape = shape
    if flags[2]:
        input_shape = (draw(st.integers(1, 3)), draw(st.integers(4, 6)), draw(st.integers(4, 6)))
        layers, shape = _blocks(draw, style, True, input_shape, limit, 1)
        layers.append(draw(st.sampled_from((Flatten(), GlobalAveragePool()))))
        shape = (int(np.prod(shape)) if isinstance(layers[-1], Flatten) else shape[0],)
    gate_open = bool(layers) and _ends_gated(layers)
    more, _ = _blocks(draw, style, False, shape, *((1, 0) if flags[2] else (limit, 1)))
    if gate_open and more and isinstance(more[0], Section):
        more = []
    layers += more
    layers.append(Dense(draw(st.integers(2, 4)), draw(st.booleans())))
    return Network(input_shape, tuple(layers), draw(losses))


def _ends_gated(layers: Sequence[Layer]) -> bool:
    """Do the last layer's units have gates that no affine layer has read yet?"""
    for layer in reversed(layers):
        if isinstance(layer, UnitGate):
            return True
        if isinstance(layer, (Dense, Conv, Section)):
            return False
    return False


@st.composite
def cases(
    draw: st.DrawFn,
    /,
    *,
    gates: Sequence[str] = ("random", "random", "zeros", "ones"),
    train: bool | None = None,
    **structure: Any,
) -> Case:
    """A network with a batch (1 only where no train-mode batch-norm forbids it), a mode, gates and a seed."""
    network = draw(networks(**structure))
    mode = draw(st.booleans()) if train is None else train
    least = 2 if mode and network.statistics_shapes else 1
    seed = draw(st.integers(0, 2**32 - 1))
    return Case(network, draw(st.integers(least, 5)), seed, mode, draw(st.sampled_from(gates)))


def gated_cases(least: int = 1, **options: Any) -> st.SearchStrategy[Case]:
    """Cases with at least that many gates: an ungated section or a missing one is replaced, nothing is filtered away."""
    return cases(**options).map(lambda case: _with_gates(case, least))


def _with_gates(case: Case, least: int) -> Case:
    """A gated section is put before the head until there are enough gates."""
    network = case.network
    while network.gate_count < least:
        head = network.layers[-1]
        (width,) = network.input_shapes[head.name]
        number = sum(isinstance(layer, Section) for layer in network.layers) + 1
        path = (Dense(2), Activation("tanh"), Dense(width))
        section = Section(path, post="identity", name=f"extra{number}")
        layers = (*network.layers[:-1], section, head)
        if _ends_gated(network.layers[:-1]):  # a plain layer keeps the gate off the stream
            layers = (*network.layers[:-1], Dense(width, name=f"reader{number}"), section, head)
        network = Network(network.input_shape, layers, network.loss)
    return dataclasses.replace(case, network=network)
