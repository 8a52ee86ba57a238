"""Networks by name, and the experiments that come with refprune."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ..arrays import Padding
from ..errors import InputError
from .layers import (
    Activation,
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
from .network import Network


def _same(kernel: int) -> Padding:
    """Padding that keeps the size, for an odd kernel and stride 1."""
    return (kernel // 2, kernel // 2), (kernel // 2, kernel // 2)


def _conv_pool(channels: int, *, padded: bool) -> tuple[Layer, ...]:
    padding = _same(5) if padded else ((0, 0), (0, 0))
    return Conv(channels, (5, 5), padding=padding), Activation("relu"), MaxPool((2, 2), (2, 2))


def _gate(units: bool) -> tuple[Layer, ...]:
    return (UnitGate(),) if units else ()


def _check_size(*, width: int, sections: int = 0) -> None:
    for name, number, least in (("sections", sections, 0), ("width", width, 1)):
        if number < least:
            raise InputError(f"network.{name}: must be at least {least}, got {number}")


def lenet_300_100() -> Network:
    """LeNet-300-100 for 28×28 images: 266,610 parameters, 266,200 MACs (N6)."""
    hidden = (Dense(300), Activation("relu"), Dense(100), Activation("relu"))
    return Network((1, 28, 28), (Flatten(), *hidden, Dense(10)))


def lenet5(units: bool = False) -> Network:
    """LeNet-5 with 20-50-500-10 units: 431,080 parameters, 2,293,000 MACs (N6). units: whether hidden units have gates."""
    gate = _gate(units)
    convolutions = (*_conv_pool(20, padded=False), *gate, *_conv_pool(50, padded=False), *gate)
    return Network((1, 28, 28), (*convolutions, Flatten(), Dense(500), Activation("relu"), *gate, Dense(10)))


def residual_mlp(sections: int = 12, width: int = 64, gate_place: str = "path") -> Network:
    """Deep fully connected residual LeNet: h ← h + ξ·relu(W h + b), the single-matrix section of N2, `sections` times.

    gate_place "preactivation" writes N2's h + relu(ξ·(W h + b)), which is the same for ξ ∈ {0, 1}.
    """
    _check_size(width=width, sections=sections)
    section = Section((Dense(width), Activation("relu")), gate_place=gate_place)
    stem: tuple[Layer, ...] = (Flatten(), Dense(width), Activation("relu"))
    return Network((1, 28, 28), (*stem, *[section] * sections, Dense(10)))


def residual_mlp_bn(sections: int = 12, width: int = 64, units: bool = False) -> Network:
    """Deep fully connected network of N1's basic blocks (K = 2): h ← relu(h + ξ·BN(dense(u ⊙ relu(BN(dense(h)))))).

    The dense layers before a batch-norm have no bias. units: whether the units inside the blocks have gates u.
    """
    _check_size(width=width, sections=sections)
    layer: tuple[Layer, ...] = (Dense(width, bias=False), BatchNorm())
    section = Section((*layer, Activation("relu"), *_gate(units), *layer), post="relu")
    return Network((1, 28, 28), (Flatten(), *layer, Activation("relu"), *[section] * sections, Dense(10)))


def residual_lenet(sections: int = 12, width: int = 8, gate_place: str = "path") -> Network:
    """Deep convolutional residual LeNet: LeNet's two convolution-pool stages, each followed by half of the sections.

    A section is h ← h + ξ·relu(conv3×3(h)) (N2); stages of `width` channels at 14×14 and 2·width at 7×7.
    """
    _check_size(width=width, sections=sections)
    if sections % 2:
        raise InputError(f"network.sections: must be even, half of them for each stage; got {sections}")

    def stage(channels: int) -> tuple[Layer, ...]:
        section = Section((Conv(channels, (3, 3), padding=_same(3)), Activation("relu")), gate_place=gate_place)
        return (*_conv_pool(channels, padded=True), *[section] * (sections // 2))

    head: tuple[Layer, ...] = (Flatten(), Dense(128), Activation("relu"), Dense(10))
    return Network((1, 28, 28), (*stage(width), *stage(2 * width), *head))


def _conv_norm(channels: int, kernel: int, stride: int = 1) -> tuple[Layer, ...]:
    """A convolution without bias and its batch-norm; output size ⌈input/stride⌉."""
    return Conv(channels, (kernel, kernel), (stride, stride), _same(kernel), bias=False), BatchNorm()


def vgg16(width: int = 64, units: bool = False) -> Network:
    """VGG-16 for CIFAR: 13 convolutions with batch-norm, 5 pools, one dense layer: 14,724,042 parameters, 313,201,664 MACs.

    width: channels of the first convolutions; they double after each of the first three pools. units: whether the filters
    have gates, 4,224 of them.
    """
    _check_size(width=width)
    layers: list[Layer] = []
    for convolutions, factor in _VGG_STAGES:
        layers += (*_conv_norm(factor * width, 3), Activation("relu"), *_gate(units)) * convolutions
        layers.append(MaxPool((2, 2), (2, 2)))
    return Network((3, 32, 32), (*layers, Flatten(), Dense(10)))


#: (convolutions, how many times the first width) of VGG-16's five stages.
_VGG_STAGES = ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))


def vgg16_residual(width: int = 64, shortcut: str = "A", gates: bool = True, units: bool = True) -> Network:
    """VGG-16 for CIFAR with a residual path around each of the 13 convolutions, N1 with K = 1.

    h ← s(h) + ξ·u⊙relu(norm(conv(h))). Where the width changes s is option "A" (zero channels around: half of them, rounded
    down, before) or "B" (1×1 convolution and batch-norm), else the identity. gates: layer gates ξ; units: gates u of the
    filters: a closed one is a missing summand, the stream keeps its width. What the sections of a stage add is never negative
    and sums up, so a batch-norm stands before the dense layer; without it the network learns far worse
    (`docs/ledger/cifar10.md`). Training therefore takes batches of two images or more.
    """
    _check_size(width=width)
    _check_shortcut(shortcut)
    if shortcut == "A" and width < 3:
        raise InputError(f"network.width: option A pads the image's 3 channels, so must be at least 3, got {width}")
    layers: list[Layer] = []
    before = 3
    for convolutions, factor in _VGG_STAGES:
        for _ in range(convolutions):
            after = factor * width
            around: tuple[Layer, ...] = ()
            if after != before:
                new = after - before
                around = (SubsamplePad((1, 1), new // 2, new - new // 2),) if shortcut == "A" else _conv_norm(after, 1)
            path = (*_conv_norm(after, 3), Activation("relu"), *_gate(units))
            layers.append(Section(path, around, gate=gates))
            before = after
        layers.append(MaxPool((2, 2), (2, 2)))
    return Network((3, 32, 32), (*layers, BatchNorm(), Flatten(), Dense(10)))


def _check_shortcut(shortcut: str) -> None:
    if shortcut not in ("A", "B"):
        raise InputError(f"network.shortcut: {shortcut!r} is not known; allowed are 'A', 'B'")


def resnet_cifar(depth: int, width: int = 16, shortcut: str = "A", gates: bool = False, units: bool = False) -> Network:
    """ResNet for CIFAR (He et al. 2016, section 4.2): a convolution, three stages of (depth − 2)/6 basic blocks, a dense layer.

    Stages have `width` channels at 32×32, 2·width at 16×16, 4·width at 8×8; a block is h ← relu(s(h) + ξ·path(h)). The first
    block of the second and third stage halves the image, with shortcut "A" (every second pixel, zero channels around: half of
    them, rounded down, before) or "B" (1×1 convolution and batch-norm). gates: whether the blocks have layer gates ξ; units:
    whether the filters of their first convolutions have unit gates.
    """
    _check_size(width=width)
    if depth < 8 or (depth - 2) % 6:
        raise InputError(f"depth: must be 6·n + 2 for n blocks in each stage, got {depth}")
    _check_shortcut(shortcut)

    def block(channels: int, *, first: bool) -> Section:
        changes = first and channels > width
        path = (*_conv_norm(channels, 3, 2 if changes else 1), Activation("relu"), *_gate(units), *_conv_norm(channels, 3))
        new = channels // 2
        option_a: tuple[Layer, ...] = (SubsamplePad((2, 2), new // 2, new - new // 2),)
        option_b = _conv_norm(channels, 1, 2)
        around = () if not changes else option_a if shortcut == "A" else option_b
        return Section(path, around, gate=gates, post="relu")

    stages = (block(f * width, first=i == 0) for f in (1, 2, 4) for i in range((depth - 2) // 6))
    stem = (*_conv_norm(width, 3), Activation("relu"))
    return Network((3, 32, 32), (*stem, *stages, GlobalAveragePool(), Dense(10)))


def resnet_cifar_keras(blocks: tuple[int, ...] = (9, 9, 9), width: int = 16, gates: bool = False) -> Network:
    """ResNet for CIFAR with the conventions of Keras' example, in which the networks of the CKA pruning paper were trained.

    blocks: in each stage; the default is a ResNet-56. Every convolution has a bias; batch-norm eps 1e-3, momentum 0.99 of the
    running average, whose variance is unbiased (TensorFlow's fused kernel); "same" padding at stride 2 adds nothing before and
    one row and column after the image; the shortcut of a stage's first block is a 1×1 convolution without batch-norm; inputs
    are pixels/255 minus the mean training image. Layers are named as in those files: "stage1.block0.conv2.bn".
    """
    _check_size(width=width)
    if not blocks or min(blocks) < 1:
        raise InputError(f"network.blocks: every stage needs at least one block, got {list(blocks)}")

    def norm(name: str) -> BatchNorm:
        return BatchNorm(eps=1e-3, momentum=0.99, momentum_of="running", name=f"{name}.bn")

    def block(stage: int, number: int) -> Section:
        name, channels = f"stage{stage}.block{number}", width * 2**stage
        halves = stage > 0 and number == 0
        first = Conv(
            channels,
            (3, 3),
            (2, 2) if halves else (1, 1),
            ((0, 1), (0, 1)) if halves else _same(3),
            name=f"{name}.conv1",
        )
        second = Conv(channels, (3, 3), padding=_same(3), name=f"{name}.conv2")
        path = (first, norm(first.name), Activation("relu"), second, norm(second.name))
        around = (Conv(channels, (1, 1), (2, 2), name=f"{name}.shortcut"),) if halves else ()
        return Section(path, around, gate=gates, post="relu", name=name)

    stem = (Conv(width, (3, 3), padding=_same(3), name="stem"), norm("stem"), Activation("relu"))
    sections = (block(stage, number) for stage, count in enumerate(blocks) for number in range(count))
    layers = (*stem, *sections, GlobalAveragePool(), Dense(10, name="head"))
    return Network((3, 32, 32), layers, scaling="pixel_mean")


#: Blocks in the four stages of a ResNet in ImageNet shape, and whether they are bottlenecks.
_IMAGENET = {18: ((2, 2, 2, 2), False), 34: ((3, 4, 6, 3), False), 50: ((3, 4, 6, 3), True)}


def resnet_imagenet(
    depth: int,
    width: int = 64,
    classes: int = 1000,
    size: int = 224,
    stride_in: str = "3x3",
    gates: bool = False,
    units: bool = False,
) -> Network:
    """ResNet-18/34/50 in ImageNet shape (He et al. 2016): 7×7/2 stem, 3×3/2 max pool, four stages, option-B shortcuts.

    ResNet-50 at size 224: 25,557,032 parameters; 4,089,184,256 MACs with the stride of a bottleneck in its 3×3 convolution,
    3,857,973,248 with stride_in "1x1", in the first 1×1 (N6). gates, units: layer gates of the blocks, gates of their inner
    filters.
    """
    _check_size(width=width)
    if classes < 1 or size < 1:
        raise InputError(f"network.classes, network.size: must be at least 1, got {classes}, {size}")
    if stride_in not in ("3x3", "1x1"):
        raise InputError(f"network.stride_in: {stride_in!r} is not known; allowed are '3x3', '1x1'")
    blocks, bottleneck = _IMAGENET[depth]
    if stride_in == "1x1" and not bottleneck:
        raise InputError(f"network.stride_in: '1x1' is for bottlenecks, which resnet-{depth} has not; allowed is '3x3'")
    layers: list[Layer] = [Conv(width, (7, 7), (2, 2), _same(7), bias=False), BatchNorm(), Activation("relu")]
    layers.append(MaxPool((3, 3), (2, 2), _same(3)))
    before = width
    for stage, count in enumerate(blocks):
        inner = width * 2**stage
        after = 4 * inner if bottleneck else inner
        for block in range(count):
            stride = 2 if stage > 0 and block == 0 else 1
            first, second = (1, stride) if stride_in == "3x3" else (stride, 1)
            unit = (Activation("relu"), *_gate(units))
            path = (
                (*_conv_norm(inner, 1, first), *unit, *_conv_norm(inner, 3, second), *unit, *_conv_norm(after, 1))
                if bottleneck
                else (*_conv_norm(inner, 3, stride), *unit, *_conv_norm(after, 3))
            )
            around = () if (stride, before) == (1, after) else _conv_norm(after, 1, stride)
            layers.append(Section(path, around, gate=gates, post="relu"))
            before = after
    return Network((3, size, size), (*layers, GlobalAveragePool(), Dense(classes)))


NETWORKS: dict[str, Callable[..., Network]] = {
    "lenet-300-100": lenet_300_100,
    "lenet-5": lenet5,
    "residual-mlp": residual_mlp,
    "residual-mlp-bn": residual_mlp_bn,
    "residual-lenet": residual_lenet,
    "vgg-16": vgg16,
    "vgg-16-residual": vgg16_residual,
    "resnet-cifar-keras": resnet_cifar_keras,
}
NETWORKS |= {f"resnet-{depth}": functools.partial(resnet_cifar, depth) for depth in (20, 32, 44, 56, 110)}
NETWORKS |= {f"resnet-{depth}": functools.partial(resnet_imagenet, depth) for depth in _IMAGENET}


#: The largest option that is a whole number; the widest networks in use have some ten thousand units a layer.
LARGEST = 1 << 17


def build(name: str, options: Mapping[str, Any]) -> Network:
    """The network called `name` (a key of `NETWORKS`).

    name: as in `refprune zoo`, "lenet-5" or "resnet-20".
    options: arguments of the function behind the name; `refprune zoo --keys` lists them.

    InputError for an unknown name or option, and for a value of the wrong type; it lists what is allowed.

    >>> from refprune import zoo
    >>> network = zoo.build("resnet-20", {"gates": True, "units": True})
    >>> network.input_shape, network.gate_count
    ((3, 32, 32), 345)
    """
    if name not in NETWORKS:
        raise InputError(f"network: {name!r} is not known; allowed are {', '.join(NETWORKS)}")
    known = inspect.signature(NETWORKS[name]).parameters
    for key, value in options.items():
        if key not in known:
            raise InputError(f"network.{key}: {name} has no such option; allowed are {', '.join(known) or 'none'}")
        default = known[key].default
        wanted = list if isinstance(default, tuple) else type(default)  # TOML and JSON have lists
        if type(value) is not wanted or (wanted is list and not all(type(entry) is type(default[0]) for entry in value)):
            raise InputError(f"network.{key}: expected {wanted.__name__}, got {value!r}")
        for number in value if wanted is list else [value]:
            if isinstance(number, int) and abs(number) > LARGEST:
                raise InputError(f"network.{key}: {str(number)[:20]} is beyond {LARGEST:,}, the largest that is allowed")
    return NETWORKS[name](**{key: tuple(value) if type(value) is list else value for key, value in options.items()})
