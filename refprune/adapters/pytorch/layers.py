"""Layers of a spec as PyTorch's own modules. Conventions that PyTorch's layers do not have are refused, not imitated."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...arrays import Shape
from ...errors import InputError
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
    SubsamplePad,
    UnitGate,
)

#: Layers whose result nobody needs for the backward pass: an activation behind them may work in place.
OVERWRITABLE = (Conv, Dense, BatchNorm, GlobalAveragePool, AveragePool)


class GlobalMean(nn.Module):
    """N×C×H×W → N×C."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class Subsample(nn.Module):
    """Option-A shortcut: every stride-th pixel, zero channels before and after."""

    def __init__(self, layer: SubsamplePad) -> None:
        super().__init__()
        self.stride, self.around = layer.stride, (0, 0, 0, 0, layer.before, layer.after)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pad(x[:, :, :: self.stride[0], :: self.stride[1]], self.around)


def padding_of(layer: Layer) -> tuple[tuple[int, int], list[nn.Module]]:
    """The layer's own padding if it is symmetric, else (0, 0) and a module that pads before it."""
    if not isinstance(layer, (Conv, MaxPool, AveragePool)):
        return (0, 0), []
    (top, bottom), (left, right) = layer.padding
    too_wide = not isinstance(layer, Conv) and (2 * top > layer.kernel[0] or 2 * left > layer.kernel[1])
    if (top, left) == (bottom, right) and not too_wide:  # PyTorch's pools pad by at most half of the kernel
        return (top, left), []
    if isinstance(layer, AveragePool) and not layer.count_padding:
        raise InputError(f"{layer.name}: PyTorch has no average pool with padding {layer.padding} that does not count")
    return (0, 0), [nn.ConstantPad2d((left, right, top, bottom), -torch.inf if isinstance(layer, MaxPool) else 0.0)]


def module_of(layer: Layer, shape: Shape, padding: tuple[int, int], *, in_place: bool) -> nn.Module:
    match layer:
        case Dense():
            return nn.Linear(shape[0], layer.units, layer.bias)
        case Conv():
            options = {"dilation": layer.dilation, "groups": layer.groups, "bias": layer.bias}
            return nn.Conv2d(shape[0], layer.channels, layer.kernel, layer.stride, padding, **options)
        case BatchNorm():
            if layer.running_variance != "unbiased":
                raise InputError(f"{layer.name}: PyTorch's batch-norm has no running_variance {layer.running_variance!r}")
            momentum = layer.momentum if layer.momentum_of == "batch" else 1.0 - layer.momentum
            norm = nn.BatchNorm2d if len(shape) == 3 else nn.BatchNorm1d
            return norm(shape[0], layer.eps, momentum)
        case Activation():
            return _activation(layer, in_place)
        case MaxPool():
            if layer.ties != "first":
                raise InputError(f"{layer.name}: PyTorch's max pool takes the first of ties, not the {layer.ties}")
            return nn.MaxPool2d(layer.kernel, layer.stride, padding)
        case AveragePool():
            return nn.AvgPool2d(layer.kernel, layer.stride, padding, count_include_pad=layer.count_padding)
        case GlobalAveragePool():
            return GlobalMean()
        case Flatten():
            return nn.Flatten()
        case SubsamplePad():
            return Subsample(layer)
        case UnitGate():
            return nn.Identity()
    raise InputError(f"{layer.name}: {type(layer).__name__} has no counterpart in PyTorch here")


def _activation(layer: Activation, in_place: bool) -> nn.Module:
    if layer.at_zero != 0.0:
        raise InputError(f"{layer.name}: PyTorch's subgradient at 0 is that of the left side, at_zero is {layer.at_zero}")
    modules: dict[str, nn.Module] = {
        "identity": nn.Identity(),
        "relu": nn.ReLU(inplace=in_place),
        "leaky_relu": nn.LeakyReLU(layer.slope, inplace=in_place and layer.slope > 0),
        "tanh": nn.Tanh(),
        "sigmoid": nn.Sigmoid(),
        "gelu": nn.GELU(),
        "gelu_tanh": nn.GELU(approximate="tanh"),
    }
    return modules[layer.kind]
