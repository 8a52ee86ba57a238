"""Networks by name, and the experiments that come with refprune."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

from .errors import InputError
from .layers import Padding
from .layerspec import Activation, Conv, Dense, Flatten, Layer, MaxPool, Section
from .spec import Network


def _same(kernel: int) -> Padding:
    """Padding that keeps the size, for an odd kernel and stride 1."""
    return (kernel // 2, kernel // 2), (kernel // 2, kernel // 2)


def _conv_pool(channels: int, *, padded: bool) -> tuple[Layer, ...]:
    padding = _same(5) if padded else ((0, 0), (0, 0))
    return Conv(channels, (5, 5), padding=padding), Activation("relu"), MaxPool((2, 2), (2, 2))


def _check_size(sections: int, width: int) -> None:
    for name, number, least in (("sections", sections, 0), ("width", width, 1)):
        if number < least:
            raise InputError(f"network.{name}: must be at least {least}, got {number}")


def lenet_300_100() -> Network:
    """LeNet-300-100 for 28×28 images: 266,610 parameters, 266,200 MACs (N6)."""
    hidden = (Dense(300), Activation("relu"), Dense(100), Activation("relu"))
    return Network((1, 28, 28), (Flatten(), *hidden, Dense(10)))


def lenet5() -> Network:
    """LeNet-5 with 20-50-500-10 units: 431,080 parameters, 2,293,000 MACs (N6)."""
    convolutions = (*_conv_pool(20, padded=False), *_conv_pool(50, padded=False))
    return Network((1, 28, 28), (*convolutions, Flatten(), Dense(500), Activation("relu"), Dense(10)))


def residual_mlp(sections: int = 12, width: int = 64, gate_place: str = "path") -> Network:
    """Deep fully connected residual LeNet: h ← h + ξ·relu(W h + b), the single-matrix section of N2, `sections` times.

    gate_place "preactivation" writes N2's h + relu(ξ·(W h + b)), which is the same for ξ ∈ {0, 1}.
    """
    _check_size(sections, width)
    section = Section((Dense(width), Activation("relu")), gate_place=gate_place)
    stem: tuple[Layer, ...] = (Flatten(), Dense(width), Activation("relu"))
    return Network((1, 28, 28), (*stem, *[section] * sections, Dense(10)))


def residual_lenet(sections: int = 12, width: int = 8, gate_place: str = "path") -> Network:
    """Deep convolutional residual LeNet: LeNet's two convolution-pool stages, each followed by half of the sections.

    A section is h ← h + ξ·relu(conv3×3(h)) (N2); stages of `width` channels at 14×14 and 2·width at 7×7.
    """
    _check_size(sections, width)
    if sections % 2:
        raise InputError(f"network.sections: must be even, half of them for each stage; got {sections}")

    def stage(channels: int) -> tuple[Layer, ...]:
        section = Section((Conv(channels, (3, 3), padding=_same(3)), Activation("relu")), gate_place=gate_place)
        return (*_conv_pool(channels, padded=True), *[section] * (sections // 2))

    head: tuple[Layer, ...] = (Flatten(), Dense(128), Activation("relu"), Dense(10))
    return Network((1, 28, 28), (*stage(width), *stage(2 * width), *head))


NETWORKS: dict[str, Callable[..., Network]] = {
    "lenet-300-100": lenet_300_100,
    "lenet-5": lenet5,
    "residual-mlp": residual_mlp,
    "residual-lenet": residual_lenet,
}


def build(name: str, options: Mapping[str, Any]) -> Network:
    """The network called `name` with its options (the function's arguments). InputError names what is unknown."""
    if name not in NETWORKS:
        raise InputError(f"network: {name!r} is not known; allowed are {', '.join(NETWORKS)}")
    known = inspect.signature(NETWORKS[name]).parameters
    for key, value in options.items():
        if key not in known:
            raise InputError(f"network.{key}: {name} has no such option; allowed are {', '.join(known) or 'none'}")
        if type(value) is not type(known[key].default):
            expected = type(known[key].default).__name__
            raise InputError(f"network.{key}: expected {expected}, got {value!r}")
    return NETWORKS[name](**options)


def experiments() -> list[str]:
    """Names of the experiments that `refprune run NAME` knows."""
    folder = resources.files("refprune").joinpath("experiments")
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def experiment_text(name: str) -> str:
    """The TOML text of a named experiment. InputError lists the known ones."""
    if name not in experiments():
        near = difflib.get_close_matches(name, experiments(), n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise InputError(f"experiment: {name!r} is neither a file nor a known name{hint}; known are {', '.join(experiments())}")
    return resources.files("refprune").joinpath("experiments", f"{name}.toml").read_text(encoding="utf-8")
