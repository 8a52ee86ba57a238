"""Networks whose counts are known."""

import inspect

from refprune.spec import zoo
from refprune.spec.layers import (
    Activation,
    AveragePool,
    BatchNorm,
    Conv,
    Dense,
    Flatten,
    GlobalAveragePool,
    MaxPool,
    Section,
    SubsamplePad,
    UnitGate,
)
from refprune.spec.network import Network

SAME = ((1, 1), (1, 1))
KNOWN = {"lenet-300-100": (266_610, 266_200), "lenet-5": (431_080, 2_293_000)}


def small_options(name):
    """Options that make a zoo network small enough for many passes."""
    sections = {"residual-mlp": {"sections": 3, "width": 5}, "residual-lenet": {"sections": 4, "width": 2}}
    known = inspect.signature(zoo.NETWORKS[name]).parameters
    return sections.get(name, {key: value for key, value in {"width": 3, "size": 33}.items() if key in known})


def option_a_and_b():
    """Both shape-changing shortcuts, a stride, groups, unit gates and batch-norm."""
    a = Section((Conv(4, (3, 3), (2, 2), SAME), BatchNorm(), Activation()), shortcut=(SubsamplePad((2, 2), 1, 1),), post="relu")
    body = (Conv(6, (1, 1), bias=False), BatchNorm(), Activation(), UnitGate(), Conv(6, (3, 3), (2, 2), SAME))
    b = Section(body, shortcut=(Conv(6, (1, 1), (2, 2)), BatchNorm()))
    return Network((2, 8, 8), (a, b, Conv(4, (1, 1), groups=2), GlobalAveragePool(), Dense(3)))


#: Network → (parameters, MACs of one input), counted by hand.
BY_HAND = {
    "dense": (Network((3,), (Dense(4), Activation(), Dense(2, bias=False))), 3 * 4 + 4 + 4 * 2, 3 * 4 + 4 * 2),
    "convolution": (
        Network((2, 6, 5), (Conv(3, (3, 2), (2, 1), ((1, 0), (0, 1))), MaxPool((2, 2), (1, 1)), Flatten(), Dense(2))),
        3 * 2 * 6 + 3 + (2 * 4 * 3) * 2 + 2,
        (3 * 3 * 5) * 2 * 6 + (2 * 4 * 3) * 2,
    ),
    "dilation": (
        Network((1, 7, 7), (Conv(2, (3, 3), dilation=(2, 3)), AveragePool((1, 1), (1, 1)), Flatten(), Dense(1))),
        2 * 9 + 2 + 2 * 3 * 1 + 1,
        2 * (3 * 1) * 9 + 6,
    ),
    "sections": (
        option_a_and_b(),
        (4 * 2 * 9 + 4 + 8) + (6 * 4 + 12 + 6 * 6 * 9 + 6) + (6 * 4 + 6 + 12) + (4 * 3 + 4) + (3 * 4 + 3),
        16 * 4 * 18 + (16 * 6 * 4 + 4 * 6 * 54) + 4 * 6 * 4 + 4 * 4 * 3 + 12,
    ),
    "section of dense layers": (
        Network((3,), (Section((Dense(5), Activation(), Dense(4)), shortcut=(Dense(4),)), Dense(2))),
        (3 * 5 + 5 + 5 * 4 + 4) + (3 * 4 + 4) + 4 * 2 + 2,
        3 * 5 + 5 * 4 + 3 * 4 + 4 * 2,
    ),
    "nothing to train": (Network((2, 3, 3), (MaxPool((3, 3), (1, 1)), Flatten())), 0, 0),
}


def networks():
    made = {name: zoo.build(name, small_options(name)) for name in zoo.NETWORKS}
    return made | {name: network for name, (network, *_) in BY_HAND.items()}


SAME = ((1, 1), (1, 1))


def vgg_chain():
    """Neighbours share their groups: conv – gate – conv – gate – pool – flatten – dense – gate – dense."""
    convolution = (Conv(3, (3, 3), padding=SAME, bias=False), BatchNorm(), Activation(), UnitGate())
    tail = (MaxPool((2, 2), (2, 2)), Flatten(), Dense(4), Activation(), UnitGate(), Dense(3))
    return Network((2, 4, 4), (*convolution, *convolution, *tail))


def residual_sums():
    """Sections with layer gates: inner units, three maps in a row, missing summands of the stream (K = 1), an option-B way."""
    basic = (Conv(3, (3, 3), padding=SAME), BatchNorm(), Activation(), UnitGate(), Conv(4, (3, 3), padding=SAME), BatchNorm())
    bottleneck = (
        Conv(2, (1, 1)),
        Activation(),
        UnitGate(),
        Conv(2, (3, 3), padding=SAME),
        BatchNorm(),
        Activation(),
        UnitGate(),
    )
    single = (Conv(5, (3, 3), (2, 2), SAME), BatchNorm(), Activation(), UnitGate())
    sections = (
        Section(basic, post="relu"),
        Section((*bottleneck, Conv(4, (1, 1)))),
        Section(single, shortcut=(Conv(5, (1, 1), (2, 2)), BatchNorm())),
    )
    return Network((4, 4, 4), (*sections, GlobalAveragePool(), Dense(2)))


GATED = {"vgg chain": vgg_chain(), "residual sums": residual_sums()}
