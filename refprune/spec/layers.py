"""Layers and sections as data: frozen specs with shape inference and named conventions (SPEC N1, N2, G). No arrays here.

Conventions on which frameworks disagree are named fields, with PyTorch's choice as default.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_origin, get_type_hints

from ..arrays import Padding, Pair, Shape
from ..errors import SpecError

ACTIVATIONS = ("identity", "relu", "leaky_relu", "tanh", "sigmoid", "gelu", "gelu_tanh")


def choose(what: str, value: object, allowed: Sequence[object]) -> None:
    if value not in allowed:
        raise SpecError(f"{what}: {value!r} is not known; allowed are {', '.join(map(repr, allowed))}")


def _is(value: object, hint: Any) -> bool:
    """Is `value` of the type that a field declares? Integers count as floats, booleans not as integers."""
    if isinstance(hint, types.UnionType):
        return any(_is(value, option) for option in get_args(hint))
    if get_origin(hint) is tuple:
        inner = get_args(hint)
        if not isinstance(value, tuple):
            return False
        each = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        return len(value) == len(each) and all(_is(v, h) for v, h in zip(value, each, strict=True))
    if hint in (int, float):
        return isinstance(value, int if hint is int else (int, float)) and not isinstance(value, bool)
    return isinstance(value, hint)


def _image(layer: Layer, shape: Shape) -> Shape:
    if len(shape) != 3:
        raise SpecError(f"{layer.name}: needs images of shape (channels, height, width), got {shape}")
    return shape


def _window_output(layer: Layer, shape: Shape, kernel: Pair, stride: Pair, padding: Padding, dilation: Pair) -> Pair:
    """Floor((size + padding − extent)/stride) + 1 for height and width."""
    if min(kernel + stride + dilation) < 1 or min(padding[0] + padding[1]) < 0:
        given = f"kernel {kernel}, stride {stride}, dilation {dilation}, padding {padding}"
        raise SpecError(f"{layer.name}: {given}: padding must be ≥ 0, all else ≥ 1")
    sizes = []
    for axis, (size, k, s, p, d) in enumerate(zip(shape[1:], kernel, stride, padding, dilation, strict=True)):
        extent = (k - 1) * d + 1
        if size + sum(p) < extent:
            side = ("height", "width")[axis]
            raise SpecError(f"{layer.name}: kernel extent {extent} exceeds the padded {side} {size + sum(p)} of {shape}")
        sizes.append((size + sum(p) - extent) // s + 1)
    return sizes[0], sizes[1]


@dataclass(frozen=True)
class Layer:
    """Base of all layer specs. `name` is filled in by the network when empty."""

    name: str = dataclasses.field(default="", kw_only=True)

    def __post_init__(self) -> None:
        for field, hint in self._types().items():
            value = getattr(self, field)
            if not _is(value, hint):
                expected = hint.__name__ if isinstance(hint, type) and not get_args(hint) else hint
                raise SpecError(f"{self.name or type(self).__name__}: {field} must be of type {expected}, got {value!r}")

    @classmethod
    @functools.cache
    def _types(cls) -> dict[str, Any]:
        """The types of the fields, evaluated once a class: that takes longer than all else in building a network."""
        return get_type_hints(cls)

    def output_shape(self, shape: Shape) -> Shape:
        """Shape of the output (without the batch axis) for an input of `shape`; SpecError names layer and shapes."""
        return shape

    def parameter_shapes(self, shape: Shape) -> dict[str, Shape]:
        """Trainable arrays and their shapes, for an input of `shape`."""
        return {}

    def parameter_keys(self) -> tuple[str, ...]:
        """Names of the trainable arrays, in the order in which the layer's function takes them."""
        return ()

    def macs(self, shape: Shape) -> int:
        """Multiply-accumulate operations for one input of `shape`: convolutions and dense layers only (N6)."""
        return 0

    def keeps_zero(self) -> bool:
        """Does a channel that is zero everywhere stay zero?"""
        return self.keeps_sign()

    def keeps_sign(self) -> bool:
        """Does a nonnegative input always give a nonnegative output?"""
        return False


@dataclass(frozen=True)
class Dense(Layer):
    """Dense layer y = x Wᵀ + b on vectors (G1).

    units: number of outputs; W is units × inputs.
    bias: whether b is there, (units,).

    SpecError if the input is no vector; put `Flatten()` before it.

    >>> from refprune import Dense
    >>> Dense(3).output_shape((5,)), Dense(3).parameter_shapes((5,))
    ((3,), {'weight': (3, 5), 'bias': (3,)})
    """

    units: int
    bias: bool = True

    def output_shape(self, shape: Shape) -> Shape:
        if len(shape) != 1:
            raise SpecError(f"{self.name}: dense layers need vectors, got shape {shape}; put Flatten() before it")
        if self.units < 0:
            raise SpecError(f"{self.name}: units must be ≥ 0, got {self.units}")
        return (self.units,)

    def parameter_shapes(self, shape: Shape) -> dict[str, Shape]:
        return {"weight": (self.units, shape[0])} | ({"bias": (self.units,)} if self.bias else {})

    def parameter_keys(self) -> tuple[str, ...]:
        return ("weight", "bias") if self.bias else ("weight",)

    def macs(self, shape: Shape) -> int:
        return self.units * shape[0]


@dataclass(frozen=True)
class Conv(Layer):
    """Two-dimensional convolution of images, a cross-correlation as in all frameworks, by filters W (G1).

    channels: number of filters; W is channels × (input channels / groups) × kernel.
    kernel: height and width of a filter.
    stride: pixels from one output to the next, downwards and to the right.
    padding: zeros around the image, ((top, bottom), (left, right)).
    dilation: pixels from one weight of a filter to the next.
    groups: parts into which input and output channels are divided; a part sees its own inputs only.
    bias: whether a bias, (channels,), is added.

    SpecError if the input is no image (channels, height, width), is smaller than the filter, or has channels that
    groups do not divide.

    >>> from refprune import Conv
    >>> layer = Conv(8, (3, 3), stride=(2, 2), padding=((1, 1), (1, 1)), bias=False)
    >>> layer.output_shape((3, 32, 32)), layer.parameter_shapes((3, 32, 32)), layer.macs((3, 32, 32))
    ((8, 16, 16), {'weight': (8, 3, 3, 3)}, 55296)
    """

    channels: int
    kernel: Pair
    stride: Pair = (1, 1)
    padding: Padding = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)
    groups: int = 1
    bias: bool = True

    def output_shape(self, shape: Shape) -> Shape:
        channels = _image(self, shape)[0]
        if self.channels < 0:
            raise SpecError(f"{self.name}: channels must be ≥ 0, got {self.channels}")
        if self.groups < 1 or channels % self.groups or self.channels % self.groups:
            raise SpecError(f"{self.name}: groups {self.groups} must divide {channels} inputs and {self.channels} outputs")
        return self.channels, *_window_output(self, shape, self.kernel, self.stride, self.padding, self.dilation)

    def parameter_shapes(self, shape: Shape) -> dict[str, Shape]:
        weight = (self.channels, shape[0] // self.groups, *self.kernel)
        return {"weight": weight} | ({"bias": (self.channels,)} if self.bias else {})

    def parameter_keys(self) -> tuple[str, ...]:
        return ("weight", "bias") if self.bias else ("weight",)

    def macs(self, shape: Shape) -> int:
        return math.prod(self.output_shape(shape)) * (shape[0] // self.groups) * math.prod(self.kernel)


@dataclass(frozen=True)
class BatchNorm(Layer):
    """Batch normalisation y = gain·(x − mean)/√(variance + eps) + bias of every channel (G1; Ioffe & Szegedy 2015).

    Training takes mean and biased variance of the batch; evaluation takes the running statistics.

    eps: added to the variance, ≥ 0.
    momentum: weight in the running average, in [0, 1].
    momentum_of: whose weight that is: "batch", the new batch's (PyTorch), or "running", the old average's (TensorFlow).
    running_variance: which variance of the batch enters the average, "unbiased" (PyTorch) or "biased".

    >>> from refprune import BatchNorm
    >>> BatchNorm().parameter_shapes((16, 8, 8))
    {'gain': (16,), 'bias': (16,)}
    """

    eps: float = 1e-5
    momentum: float = 0.1
    momentum_of: str = "batch"
    running_variance: str = "unbiased"

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("momentum_of", self.momentum_of, ("batch", "running"))
        choose("running_variance", self.running_variance, ("unbiased", "biased"))
        if not 0.0 <= self.eps < math.inf or not 0.0 <= self.momentum <= 1.0:
            raise SpecError(f"{self.name}: eps {self.eps} must be ≥ 0, momentum {self.momentum} in [0, 1]")

    def parameter_shapes(self, shape: Shape) -> dict[str, Shape]:
        return {"gain": shape[:1], "bias": shape[:1]}

    def parameter_keys(self) -> tuple[str, ...]:
        return ("gain", "bias")


@dataclass(frozen=True)
class Activation(Layer):
    """A function of every entry: "identity", "relu", "leaky_relu", "tanh", "sigmoid", "gelu" or "gelu_tanh" (G1).

    kind: which of them.
    slope: of leaky_relu for negative inputs.
    at_zero: in [0, 1]; the derivative of (leaky) ReLU at exactly 0 is slope + at_zero·(1 − slope). PyTorch's is 0.

    >>> from refprune import Activation
    >>> Activation("tanh").output_shape((16, 8, 8))
    (16, 8, 8)
    >>> Activation("swish")
    Traceback (most recent call last):
    refprune.errors.SpecError: kind: 'swish' is not known; allowed are 'identity', 'relu', ...
    """

    kind: str = "relu"
    slope: float = 0.01
    at_zero: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("kind", self.kind, ACTIVATIONS)
        if not 0.0 <= self.at_zero <= 1.0:
            raise SpecError(f"at_zero: must lie in [0, 1], got {self.at_zero}")

    def keeps_zero(self) -> bool:
        return self.kind != "sigmoid"


@dataclass(frozen=True)
class Pool(Layer):
    kernel: Pair
    stride: Pair
    padding: Padding = ((0, 0), (0, 0))

    def output_shape(self, shape: Shape) -> Shape:
        channels = _image(self, shape)[0]
        if max(self.padding[0]) >= self.kernel[0] or max(self.padding[1]) >= self.kernel[1]:
            raise SpecError(f"{self.name}: padding {self.padding} must be smaller than the kernel {self.kernel}")
        return channels, *_window_output(self, shape, self.kernel, self.stride, self.padding, (1, 1))

    def keeps_sign(self) -> bool:
        return True


@dataclass(frozen=True)
class MaxPool(Pool):
    """Maximum of every window of an image, channel by channel; padding never wins (G1).

    kernel: height and width of the window.
    stride: pixels from one window to the next.
    padding: pixels around the image, ((top, bottom), (left, right)), fewer than the kernel has.
    ties: which of equal maxima gets the gradient, the "first" in row-major order (PyTorch) or the "last".

    >>> from refprune import MaxPool
    >>> MaxPool((2, 2), (2, 2)).output_shape((16, 28, 28))
    (16, 14, 14)
    """

    ties: str = "first"

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("ties", self.ties, ("first", "last"))


@dataclass(frozen=True)
class AveragePool(Pool):
    """Mean of every window of an image, channel by channel (G1).

    kernel: height and width of the window.
    stride: pixels from one window to the next.
    padding: zeros around the image, ((top, bottom), (left, right)), fewer than the kernel has.
    count_padding: whether the divisor counts padded zeros (PyTorch) or only pixels (TensorFlow).

    >>> from refprune import AveragePool
    >>> AveragePool((3, 3), (2, 2)).output_shape((16, 15, 15))
    (16, 7, 7)
    """

    count_padding: bool = True


@dataclass(frozen=True)
class GlobalAveragePool(Layer):
    """Mean over all pixels of a channel: (C, H, W) → (C,) (G1).

    >>> from refprune import GlobalAveragePool
    >>> GlobalAveragePool().output_shape((64, 8, 8))
    (64,)
    """

    def output_shape(self, shape: Shape) -> Shape:
        return _image(self, shape)[:1]

    def keeps_sign(self) -> bool:
        return True


@dataclass(frozen=True)
class Flatten(Layer):
    """An image as a vector, channel after channel, row after row: (C, H, W) → (C·H·W,).

    >>> from refprune import Flatten
    >>> Flatten().output_shape((50, 4, 4))
    (800,)
    """

    def output_shape(self, shape: Shape) -> Shape:
        channels, height, width = _image(self, shape)
        return (channels * height * width,)

    def keeps_sign(self) -> bool:
        return True


@dataclass(frozen=True)
class SubsamplePad(Layer):
    """ResNet's shortcut without parameters, "option A": every stride-th pixel, and channels of zeros (N1; He et al. 2016).

    stride: pixels from one that is kept to the next, downwards and to the right.
    before: channels of zeros in front of the old ones.
    after: channels of zeros behind them.

    >>> from refprune import SubsamplePad
    >>> SubsamplePad((2, 2), before=8, after=8).output_shape((16, 32, 32))
    (32, 16, 16)
    """

    stride: Pair = (1, 1)
    before: int = 0
    after: int = 0

    def output_shape(self, shape: Shape) -> Shape:
        channels = _image(self, shape)[0] + self.before + self.after
        if min(self.stride) < 1 or min(self.before, self.after) < 0:
            given = f"stride {self.stride}, before {self.before}, after {self.after}"
            raise SpecError(f"{self.name}: {given}: stride must be ≥ 1, the others ≥ 0")
        return channels, -(-shape[1] // self.stride[0]), -(-shape[2] // self.stride[1])

    def keeps_sign(self) -> bool:
        return True


@dataclass(frozen=True)
class UnitGate(Layer):
    """Gates u, one for each unit or filter of the affine layer before: y = u ⊙ x, u (C,) (N4).

    It stands behind batch-norm and activation of that layer. A unit with u = 0 can be removed with its weights.

    >>> from refprune import Activation, Dense, Network, UnitGate
    >>> network = Network((5,), (Dense(4), Activation("relu"), UnitGate(), Dense(3)))
    >>> network.gate_count, [group.kind for group in network.gate_groups]
    (4, ['unit'])
    """

    def keeps_sign(self) -> bool:
        return True


@dataclass(frozen=True)
class Section(Layer):
    """A residual section h ↦ ρ(s(h) + ξ·path(h)) with a layer gate ξ, the unit of layer pruning (N1).

    path: the layers of the path, with at least one dense or convolutional layer, without sections.
    shortcut: s; () is the identity, (SubsamplePad,) option A, (Conv,) or (Conv, BatchNorm) option B; (Dense,)
        is option B for vectors.
    gate: whether the section has a gate ξ; without one ξ is 1.
    gate_place: "path" multiplies the end of the path. "preactivation" multiplies before the activation a that ends the path:
        s(h) + a(ξ·z), with a(0) = 0 (N2).
    post: ρ, "identity" or "relu".
    channels: the channels of the stream to which the path adds, in this order; None: all of them.

    SpecError if path and shortcut end with different shapes, or a part is not allowed.

    >>> from refprune import Activation, Dense, Network, Section
    >>> section = Section((Dense(8), Activation("relu")))
    >>> network = Network((8,), (section, section, Dense(3)))
    >>> [group.name for group in network.gate_groups]
    ['section1', 'section2']
    """

    path: tuple[Layer, ...]
    shortcut: tuple[Layer, ...] = ()
    gate: bool = True
    gate_place: str = "path"
    post: str = "identity"
    channels: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("gate_place", self.gate_place, ("path", "preactivation"))
        choose("post", self.post, ("identity", "relu"))

    def gate_index(self) -> int:
        """Position in the path before which the layer gate multiplies; len(path) for "path"."""
        if self.gate_place == "path":
            return len(self.path)
        return max(i for i, layer in enumerate(self.path) if isinstance(layer, Activation))

    def output_shape(self, shape: Shape) -> Shape:
        _check_section(self)
        stream = chain_shape(self.shortcut, shape)
        path = chain_shape(self.path, shape)
        width = stream[0] if self.channels is None else len(self.channels)
        if path != (width, *stream[1:]):
            raise SpecError(f"{self.name}: the path ends with shape {path}, the shortcut with {stream}; they cannot be added")
        if self.channels is not None and sorted(set(self.channels) & set(range(stream[0]))) != sorted(self.channels):
            raise SpecError(f"{self.name}: channels {self.channels} must be different channels of the stream {stream}")
        return stream


def _check_section(section: Section) -> None:
    affine = [layer for layer in section.path if isinstance(layer, (Dense, Conv))]
    if not affine:
        raise SpecError(f"{section.name}: a gate on nothing: the path holds no dense or convolution layer")
    kinds = tuple(type(layer) for layer in section.shortcut)
    if kinds not in {(), (SubsamplePad,), (Conv,), (Conv, BatchNorm), (Dense,), (Dense, BatchNorm)}:
        names = ", ".join(kind.__name__ for kind in kinds)
        raise SpecError(f"{section.name}: shortcut ({names}) is neither identity, option A nor option B")
    if section.gate_place == "preactivation":
        ends = [layer for layer in section.path if not isinstance(layer, UnitGate)]
        last = ends[-1]
        if not (isinstance(last, Activation) and last.keeps_zero()):
            raise SpecError(f"{section.name}: gate_place 'preactivation' needs a path that ends with an activation a(0) = 0")
    if any(isinstance(layer, Section) for layer in section.path):
        raise SpecError(f"{section.name}: sections cannot be nested")


def chain_shape(layers: Sequence[Layer], shape: Shape) -> Shape:
    """Shape behind a chain of layers."""
    for layer in layers:
        shape = layer.output_shape(shape)
    return shape
