"""Whole networks that are the same in every run: more than eight examples, three channels, odd kernels, gates at every place.

`DENSE`, `IMAGES` and `LOUD` are recipes; `case(recipe, sizes, …)` makes a case of one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ...adapters.implementation import Conventions
from ...arrays import Array
from ...spec.layers import (
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
from .networks import Case
from .sized_layers import SAME, Sizes

RELU, TANH = Activation("relu"), Activation("tanh")


class Recipe(NamedTuple):
    """layers(*sizes but the batch): what stands before the head. sizes: batch, inputs (channels of an image), widths.

    image: height and width, None for vectors; train: the mode.
    """

    layers: Callable[..., tuple[Layer, ...]]
    sizes: Sizes
    image: tuple[int, int] | None = None
    train: bool = False
    loss: Loss = Loss("cross_entropy", "mean")

    @property
    def least(self) -> Sizes:
        return (2 if self.train else 1, *[1] * (len(self.sizes) - 1))


def case(recipe: Recipe, sizes: Sizes, seed: int, conventions: Conventions) -> Case:
    """The recipe's network with these sizes under the first of each convention."""
    batch, inputs, *_ = sizes
    shape = (inputs,) if recipe.image is None else (inputs, *recipe.image)
    layers = tuple(_declared(layer, conventions) for layer in recipe.layers(*sizes[1:]))
    return Case(Network(shape, (*layers, Dense(3)), recipe.loss), batch, seed, recipe.train)


def _declared(layer: Layer, conventions: Conventions) -> Layer:
    """The layer, and those that it holds, as the conventions want it."""
    if isinstance(layer, Section):
        path, shortcut = (tuple(_declared(part, conventions) for part in chain) for chain in (layer.path, layer.shortcut))
        return dataclasses.replace(layer, path=path, shortcut=shortcut)
    declared: dict[str, Any] = {name: conventions[name][0] for name in vars(layer) if name in conventions}
    return dataclasses.replace(layer, **declared)


# Vectors -----------------------------------------------------------------------------------------------------------------


def _units(n: int, a: int, b: int) -> tuple[Layer, ...]:
    return (Dense(a), BatchNorm(), TANH, UnitGate(), Dense(b, False), RELU, UnitGate(), Dense(4), Activation("gelu"))


def _sections(n: int, a: int) -> tuple[Layer, ...]:
    inner = (Dense(a), Activation("sigmoid"), UnitGate(), Dense(n), BatchNorm())
    before = Section((Dense(n), TANH), gate_place="preactivation")
    return (Section((Dense(a), RELU, Dense(n)), post="relu"), before, Section(inner, gate=False), Section((Dense(n),)))


def _narrowing(n: int, a: int) -> tuple[Layer, ...]:
    return (Section((Dense(a), TANH, UnitGate(), Dense(2)), (Dense(2), BatchNorm())), Dense(a), RELU, UnitGate())


DENSE: tuple[Recipe, ...] = (
    Recipe(_units, (9, 5, 9, 17), train=True),
    Recipe(_units, (17, 33, 17, 9)),
    Recipe(_units, (3, 300, 65, 129), loss=Loss("mean_squared_error", "mean")),
    Recipe(_sections, (9, 9, 5), train=True, loss=Loss("cross_entropy", "sum")),
    Recipe(_sections, (33, 17, 9), loss=Loss("mean_squared_error", "batch_mean")),
    Recipe(_narrowing, (17, 7, 9), train=True, loss=Loss("mean_squared_error", "sum")),
    Recipe(lambda n: (), (2, 1100)),
)

# Images ------------------------------------------------------------------------------------------------------------------


def _flattened(c: int, a: int) -> tuple[Layer, ...]:
    return (Conv(a, (3, 3), padding=SAME), RELU, UnitGate(), Flatten(), Dense(5), TANH, UnitGate())


def _pooled(c: int, a: int) -> tuple[Layer, ...]:
    return (Conv(a, (3, 3), padding=SAME), BatchNorm(), RELU, UnitGate(), MaxPool((2, 2), (2, 2)), Flatten())


def _behind_the_pool(c: int, a: int) -> tuple[Layer, ...]:
    pool = AveragePool((3, 2), (2, 1), ((1, 0), (0, 1)))
    return (Conv(a, (3, 3), padding=SAME, bias=False), TANH, pool, UnitGate(), Conv(3, (3, 3)), TANH, UnitGate(), Flatten())


def _odd(c: int, a: int) -> tuple[Layer, ...]:
    wide = Conv(a, (3, 2), padding=((2, 0), (0, 3)), dilation=(1, 2))
    tall = Conv(a, (2, 3), (2, 1), ((0, 1), (2, 0)), (2, 1), bias=False)
    return (wide, BatchNorm(), TANH, UnitGate(), tall, RELU, UnitGate(), GlobalAveragePool())


def _dilated(c: int, a: int) -> tuple[Layer, ...]:
    path = (
        Conv(a, (3, 3), padding=((2, 2), (2, 2)), dilation=(2, 2)),
        TANH,
        UnitGate(),
        Conv(c, (2, 3), padding=((1, 0), (1, 1))),
    )
    return (Section(path, post="relu"), Conv(3, (3, 1), padding=((2, 0), (0, 0))), RELU, Flatten())


def _points(c: int, a: int) -> tuple[Layer, ...]:
    """1×1 filters whose padding shows their bias."""
    return (Conv(a, (1, 1), padding=((1, 0), (0, 2))), TANH, UnitGate(), Conv(2, (1, 1)), Activation("gelu_tanh"), Flatten())


def _channels(c: int, a: int) -> tuple[Layer, ...]:
    """A path on some of the stream's channels, out of order."""
    some = Section((Conv(a, (3, 3), padding=SAME), RELU, UnitGate(), Conv(2, (1, 1))), channels=(3, 1))
    widened = Section((Conv(4, (3, 3), (2, 2), SAME), BatchNorm()), (SubsamplePad((2, 2), 1, 3 - c),), post="relu")
    return (widened, some, Section((Conv(3, (1, 1)), TANH), channels=(2, 0, 3), gate_place="preactivation"), Flatten())


def _projected(c: int, a: int) -> tuple[Layer, ...]:
    path = (
        BatchNorm(),
        RELU,
        Conv(a, (3, 3), (2, 2), SAME, bias=False),
        BatchNorm(),
        RELU,
        UnitGate(),
        Conv(a, (3, 3), padding=SAME),
    )
    return (
        Section(path, (Conv(a, (1, 1), (2, 2)), BatchNorm())),
        Conv(2 * a, (3, 3), groups=a, padding=SAME),
        GlobalAveragePool(),
    )


IMAGES: tuple[Recipe, ...] = (
    Recipe(_flattened, (9, 3, 4), (4, 5)),
    Recipe(_flattened, (2, 1, 17), (3, 3), True),
    Recipe(_pooled, (9, 3, 5), (6, 6), True),
    Recipe(_behind_the_pool, (2, 3, 4), (7, 6)),
    Recipe(_odd, (3, 3, 4), (6, 7), True),
    Recipe(_odd, (9, 2, 3), (5, 5)),
    Recipe(_dilated, (2, 3, 4), (6, 5)),
    Recipe(_points, (3, 3, 4), (3, 4), True),
    Recipe(_projected, (2, 3, 9), (7, 8), True),
    Recipe(_projected, (9, 3, 2), (5, 4)),
)

#: Not to be made smaller: the channels have numbers.
FIXED: tuple[Recipe, ...] = (Recipe(_channels, (3, 3, 4), (5, 6)), Recipe(_channels, (9, 3, 2), (4, 4), True))

#: Layers whose inputs are so large that a plain exponential overflows, in float32 too.
LOUD: tuple[Recipe, ...] = tuple(
    Recipe(lambda n, a, kind=kind: (Dense(a), Activation(kind)), (5, 3, 8)) for kind in ("sigmoid", "tanh", "gelu", "gelu_tanh")
)


def removals(network: Network) -> list[Array]:
    """Masks (G,) of what stays: all, every second unit, the first alone, the last alone, all but one; no section, some."""
    layer = np.zeros(network.gate_count, dtype=bool)
    patterns: list[list[Array]] = [[], [], [], [], []]
    for group in network.gate_groups:
        size = group.stop - group.start
        layer[group.slice] = group.kind != "unit"
        at = np.arange(size)
        several = size > 1
        for kept, pattern in zip(
            (at >= 0, at % 2 == 0, at == 0, at == size - 1, (at != size // 2) | (not several)), patterns, strict=True
        ):
            pattern.append(kept)
    masks = [np.concatenate(pattern) for pattern in patterns if pattern]
    if layer.any():
        masks += [~layer, masks[1] & (~layer | (np.cumsum(layer) % 2 == 0))]
    return [mask for k, mask in enumerate(masks) if not any(np.array_equal(mask, m) for m in masks[:k])]
