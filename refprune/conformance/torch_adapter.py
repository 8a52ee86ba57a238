"""A `spec.Network` as a torch.nn.Module, written as a user of PyTorch would: nn layers, in-place ReLU, residual addition.

`build` makes the module, `load` gives it refprune's arrays, `arrays` and `gradients` read them back under refprune's names.
All gates are 1. Conventions that PyTorch's layers do not have (ties "last", a subgradient at 0, a biased running variance,
padding that counts on one side only) are refused, not imitated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError
from ..layers import Array
from ..layerspec import (
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
    Shape,
    SubsamplePad,
    UnitGate,
)
from ..network import Arrays
from ..spec import Network

#: refprune's name of a parameter or statistic → PyTorch's attribute.
ATTRIBUTES = {"weight": "weight", "bias": "bias", "gain": "weight", "mean": "running_mean", "variance": "running_var"}

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


class Residual(nn.Module):
    """x ↦ ρ(shortcut(x) + path(x)); with `channels`, the path adds to those only."""

    def __init__(self, path: nn.Module, shortcut: nn.Module, section: Section) -> None:
        super().__init__()
        self.path, self.shortcut = path, shortcut
        self.post = nn.ReLU(inplace=True) if section.post == "relu" else nn.Identity()
        self.in_place = isinstance(section.path[-1], OVERWRITABLE)
        self.channels: Tensor | None
        self.register_buffer("channels", None if section.channels is None else torch.tensor(section.channels, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.path(x)
        h: Tensor = self.shortcut(x)
        if self.channels is not None:
            y = h.index_add(1, self.channels, y)
        elif self.in_place:
            y += h
        else:
            y = y + h
        out: Tensor = self.post(y)
        return out


class Module(nn.Module):
    """The network as a module: x ↦ logits. `parts`: refprune's layer name → the layer's module."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.parts: dict[str, nn.Module] = {}
        self.body = self._chain(network.layers)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y

    def _chain(self, layers: tuple[Layer, ...]) -> nn.Sequential:
        modules: list[nn.Module] = []
        before: Layer | None = None
        for layer in layers:
            modules += self._modules_of(layer, before)
            before = layer
        return nn.Sequential(*modules)

    def _modules_of(self, layer: Layer, before: Layer | None) -> list[nn.Module]:
        if isinstance(layer, Section):
            return [Residual(self._chain(layer.path), self._chain(layer.shortcut), layer)]
        padding, around = _padding(layer)
        module = _module(layer, self.network.input_shapes[layer.name], padding, in_place=isinstance(before, OVERWRITABLE))
        self.parts[layer.name] = module
        return [*around, module]


def _padding(layer: Layer) -> tuple[tuple[int, int], list[nn.Module]]:
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


def _module(layer: Layer, shape: Shape, padding: tuple[int, int], *, in_place: bool) -> nn.Module:
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


def build(network: Network) -> Module:
    """The module of `network` with weights of PyTorch's own. InputError for a convention that PyTorch's layers lack."""
    return Module(network)


def load(module: Module, params: Mapping[str, Array], statistics: Mapping[str, Array] | None = None) -> Module:
    """The same module with refprune's parameters and running statistics, in their precision; arrays are copied."""
    dtypes = {p.dtype for p in params.values()}
    if dtypes:
        (dtype,) = dtypes
        module.to(torch.from_numpy(np.zeros(0, dtype)).dtype)
    with torch.no_grad():
        for name, array in (dict(params) | dict(statistics or {})).items():
            _tensor(module, name).copy_(torch.from_numpy(np.array(array)))
    return module


def arrays(module: Module) -> Arrays:
    """Copies of all parameters and running statistics under refprune's names."""
    return of_parameters(module, lambda p: p) | {
        name: _array(_tensor(module, name)) for name in module.network.statistics_shapes
    }


def gradients(module: Module) -> Arrays:
    """Copies of the gradients that the last backward pass left at the parameters, under refprune's names."""
    return of_parameters(module, lambda p: p.grad)


def of_parameters(module: Module, get: Callable[[Tensor], Tensor]) -> Arrays:
    """A copy of what `get` finds for each parameter (its gradient, an optimiser's state), under refprune's names."""
    return {name: _array(get(_tensor(module, name))) for name in module.network.parameter_shapes}


def _tensor(module: Module, name: str) -> Tensor:
    layer, _, key = name.rpartition(".")
    tensor: Tensor = getattr(module.parts[layer], ATTRIBUTES[key])
    return tensor


def _array(tensor: Tensor) -> Array:
    return np.array(tensor.detach().numpy(), order="C")
