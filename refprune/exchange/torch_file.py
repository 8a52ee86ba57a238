"""PyTorch: a state dict with a Python file that builds its module and needs nothing but PyTorch."""

from __future__ import annotations

import io
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..adapters.pytorch.model import ATTRIBUTES
from ..arrays import Array, Pair
from ..errors import InputError
from ..output.files import write_atomically
from ..spec.layers import (
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
)
from ..spec.network import Network
from .trained import Trained

HEAD = '''"""Built by refprune: `module = build(); module.load_state_dict(torch.load({weights!r}, weights_only=True))`.

x: float32, N×{shape}, {inputs}. `module.eval()` before predicting.
"""

import torch
from torch import nn


class GlobalMean(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


class Subsample(nn.Module):
    def __init__(self, stride, before, after):
        super().__init__()
        self.stride, self.around = stride, (0, 0, 0, 0, before, after)

    def forward(self, x):
        return nn.functional.pad(x[:, :, :: self.stride[0], :: self.stride[1]], self.around)


class Residual(nn.Module):
    def __init__(self, path, shortcut, post, channels=None):
        super().__init__()
        self.path, self.shortcut, self.post = path, shortcut, post
        self.channels = channels

    def forward(self, x):
        h, y = self.shortcut(x), self.path(x)
        if self.channels is not None:
            index = torch.tensor(self.channels, dtype=torch.long, device=x.device)
            return self.post(h.index_add(1, index, y))
        return self.post(h + y)


def build():
    return '''


def _source(network: Network, layers: tuple[Layer, ...], indent: str) -> str:
    """A chain as an nn.Sequential, one module a layer, so that a layer's place in the chain is its key."""
    inner = indent + "    "
    lines = [f"{inner}{_module(network, layer, inner)},\n" for layer in layers]
    return f"nn.Sequential(\n{''.join(lines)}{indent})" if lines else "nn.Sequential()"


def _module(network: Network, layer: Layer, indent: str) -> str:
    shape = network.input_shapes[layer.name]
    match layer:
        case Dense():
            return f"nn.Linear({shape[0]}, {layer.units}, bias={layer.bias})"
        case Conv():
            padding, pad = _padding(layer.padding, 0.0)
            made = f"nn.Conv2d({shape[0]}, {layer.channels}, {layer.kernel}, {layer.stride}, {padding}, "
            return pad(made + f"{layer.dilation}, {layer.groups}, bias={layer.bias})")
        case BatchNorm():
            kind = "BatchNorm2d" if len(shape) == 3 else "BatchNorm1d"
            momentum = layer.momentum if layer.momentum_of == "batch" else 1.0 - layer.momentum
            return f"nn.{kind}({shape[0]}, {layer.eps}, {momentum})"
        case Activation():
            return {
                "identity": "nn.Identity()",
                "relu": "nn.ReLU()",
                "leaky_relu": f"nn.LeakyReLU({layer.slope})",
                "tanh": "nn.Tanh()",
                "sigmoid": "nn.Sigmoid()",
                "gelu": "nn.GELU()",
                "gelu_tanh": "nn.GELU(approximate='tanh')",
            }[layer.kind]
        case MaxPool():
            padding, pad = _padding(layer.padding, -np.inf, layer.kernel)
            return pad(f"nn.MaxPool2d({layer.kernel}, {layer.stride}, {padding})")
        case AveragePool():
            padding, pad = _padding(layer.padding, 0.0, layer.kernel)
            if padding == (0, 0) and np.any(layer.padding) and not layer.count_padding:
                raise InputError(f"{layer.name}: PyTorch has no average pool with padding {layer.padding} that does not count")
            return pad(f"nn.AvgPool2d({layer.kernel}, {layer.stride}, {padding}, count_include_pad={layer.count_padding})")
        case GlobalAveragePool():
            return "GlobalMean()"
        case Flatten():
            return "nn.Flatten()"
        case SubsamplePad():
            return f"Subsample({layer.stride}, {layer.before}, {layer.after})"
        case Section():
            path, shortcut = (_source(network, chain, indent) for chain in (layer.path, layer.shortcut))
            post = "nn.ReLU()" if layer.post == "relu" else "nn.Identity()"
            channels = "" if layer.channels is None else f", {list(layer.channels)}"
            return f"Residual({path}, {shortcut}, {post}{channels})"
    raise InputError(f"{layer.name}: {type(layer).__name__} has no counterpart in PyTorch here")


def _padding(padding: Any, value: float, kernel: Pair | None = None) -> tuple[Pair, Callable[[str], str]]:
    """PyTorch's own padding where it is symmetric (and at most half of a pool's kernel), else a module that pads before."""
    (top, bottom), (left, right) = padding
    fits = kernel is None or (2 * top <= kernel[0] and 2 * left <= kernel[1])
    if (top, left) == (bottom, right) and fits:
        return (top, left), lambda made: made
    pads = f"nn.ConstantPad2d({(left, right, top, bottom)}, float('{value}'))"
    return (0, 0), lambda made: f"nn.Sequential({pads}, {made})"


def _keys(network: Network, layers: tuple[Layer, ...], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(refprune's name, key of the state dict) of every parameter and statistic."""
    for i, layer in enumerate(layers):
        if isinstance(layer, Section):
            yield from _keys(network, layer.path, f"{prefix}{i}.path.")
            yield from _keys(network, layer.shortcut, f"{prefix}{i}.shortcut.")
            continue
        padded = isinstance(layer, Conv) and any(before != after for before, after in layer.padding)
        keys = (*layer.parameter_keys(), *(("mean", "variance") if isinstance(layer, BatchNorm) else ()))
        for key in keys:
            yield f"{layer.name}.{key}", f"{prefix}{i}.{'1.' if padded else ''}{ATTRIBUTES[key]}"


def _inputs(network: Network) -> str:
    """What the module's docstring says of its inputs; a mean image is too long for it."""
    numbers = network.inputs
    if numbers is None:
        return "standardised as in training"
    if len(numbers.shift) != len(numbers.scale):
        return f"(pixel − the mean training image)·{numbers.scale[0]:.9g}, pixels 0 … 255"
    shift, scale = (", ".join(f"{n:.9g}" for n in listed) for listed in (numbers.shift, numbers.scale))
    return f"(pixel − shift)·scale of pixels 0 … 255, by channel: shift {shift}; scale {scale}"


def write(path: Path, trained: Trained) -> Path:
    """The state dict at `path` and beside it a .py whose `build()` makes the module; returns the .py's path.

    It predicts what the network predicts; trained further, it follows PyTorch's conventions (running variance, slope at kinks).
    InputError for layers that PyTorch lacks, and where the .py is there and not one that this function wrote.
    """
    network, arrays = trained.network, trained.params | trained.statistics
    source = path.with_suffix(".py")
    if source == path:
        raise InputError(f"--torch {path}: the state dict needs another ending than .py, .pt for example")
    if source.exists() and not source.read_text(encoding="utf-8", errors="replace").startswith(HEAD[:20]):
        raise InputError(f"--torch {path}: {source} is there and not from here; the module is written to that name")
    text = HEAD.format(weights=path.name, shape="×".join(map(str, network.input_shape)), inputs=_inputs(network))
    write_atomically(source, (text + _source(network, network.layers, "    ") + "\n").encode())
    state = {key: torch.from_numpy(np.array(arrays[name])) for name, key in _keys(network, network.layers)}
    means = [key for key in state if key.endswith("running_mean")]
    state |= {key.replace("running_mean", "num_batches_tracked"): torch.tensor(0) for key in means}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue())
    return source


def outputs(path: Path, x: Array) -> Array:
    """Logits of the written module, built by running the .py, in eval mode."""
    module: Any = runpy.run_path(str(path.with_suffix(".py")))["build"]()
    module.load_state_dict(torch.load(path, weights_only=True))
    with torch.inference_mode():
        return np.asarray(module.eval()(torch.from_numpy(x)).numpy())
