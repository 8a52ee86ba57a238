"""A `spec.network.Network` as a PyTorch function, written with torch.nn.functional: nothing of refprune but the spec's fields.

`run` is differentiable in parameters, gates and input; gates are read one after another, in data-flow order (N1, N2).
"""

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F

from refprune.spec import layers as spec
from refprune.spec.layers import Activation, AveragePool, BatchNorm, Conv, Dense, Flatten, MaxPool, Section, UnitGate
from refprune.spec.network import Network

torch.set_num_threads(1)


@dataclasses.dataclass
class _Run:
    params: dict
    gates: torch.Tensor
    statistics: dict
    train: bool
    batch: dict = dataclasses.field(default_factory=dict)
    used: int = 0
    macs: int = 0  # of one example

    def take(self, n):
        """The next n gates."""
        self.used += n
        return self.gates[self.used - n : self.used]

    def chain(self, layers, x):
        for layer in layers:
            x = getattr(self, type(layer).__name__.lower())(layer, x)
        return x

    def parameter(self, layer, key):
        return self.params[f"{layer.name}.{key}"]

    def affine(self, layer):
        return self.parameter(layer, "weight"), self.parameter(layer, "bias") if layer.bias else None

    def dense(self, layer, x):
        weight, bias = self.affine(layer)
        self.macs += weight.numel()
        return F.linear(x, weight, bias)

    def conv(self, layer, x):
        weight, bias = self.affine(layer)
        y = F.conv2d(_padded(layer, x), weight, bias, stride=layer.stride, dilation=layer.dilation, groups=layer.groups)
        self.macs += y.shape[2] * y.shape[3] * weight.numel()
        return y

    def batchnorm(self, layer, x):
        gain, bias = (self.parameter(layer, key) for key in ("gain", "bias"))
        if not self.train:
            mean, variance = (self.statistics[f"{layer.name}.{key}"] for key in ("mean", "variance"))
            return F.batch_norm(x, mean, variance, gain, bias, training=False, eps=layer.eps)
        values = x.detach().transpose(0, 1).flatten(1)
        self.batch[layer.name] = values.mean(1), values.var(1, unbiased=False), values.shape[1]
        return F.batch_norm(x, None, None, gain, bias, training=True, eps=layer.eps)

    def activation(self, layer, x):
        if layer.kind in ("relu", "leaky_relu"):
            slope = layer.slope if layer.kind == "leaky_relu" else 0.0
            if layer.at_zero == 0.0:
                return F.leaky_relu(x, slope)
            factors = torch.tensor([slope, slope + layer.at_zero * (1.0 - slope), 1.0], dtype=x.dtype)
            return x * factors[torch.sign(x.detach()).long() + 1]
        return {
            "identity": lambda x: x,
            "tanh": torch.tanh,
            "sigmoid": torch.sigmoid,
            "gelu": F.gelu,
            "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
        }[layer.kind](x)

    def maxpool(self, layer, x):
        x = _padded(layer, x, -torch.inf)
        if layer.ties == "first":
            return F.max_pool2d(x, layer.kernel, layer.stride)
        windows = x.unfold(2, layer.kernel[0], layer.stride[0]).unfold(3, layer.kernel[1], layer.stride[1])
        windows = windows.flatten(-2).flip(-1)
        return windows.gather(-1, windows.detach().max(-1, keepdim=True).indices)[..., 0]

    def averagepool(self, layer, x):
        sums = F.avg_pool2d(_padded(layer, x), layer.kernel, layer.stride, divisor_override=1)
        real = _padded(layer, torch.ones_like(x), float(layer.count_padding))
        return sums / F.avg_pool2d(real, layer.kernel, layer.stride, divisor_override=1)

    def globalaveragepool(self, layer, x):
        return F.adaptive_avg_pool2d(x, 1)[:, :, 0, 0]

    def flatten(self, layer, x):
        return torch.flatten(x, 1)

    def subsamplepad(self, layer, x):
        return F.pad(x[:, :, :: layer.stride[0], :: layer.stride[1]], (0, 0, 0, 0, layer.before, layer.after))

    def unitgate(self, layer, x):
        return x * self.take(x.shape[1]).reshape(1, -1, *[1] * (x.ndim - 2))

    def section(self, layer, x):
        gate = self.take(1)[0] if layer.gate else None
        shortcut = self.chain(layer.shortcut, x)
        last = 0  # N2: the layer gate multiplies what the path's last activation reads
        for i, part in enumerate(layer.path):
            if isinstance(part, spec.Activation):
                last = i
        y = x
        for i, part in enumerate(layer.path):
            if gate is not None and layer.gate_place == "preactivation" and i == last:
                y = gate * y
            y = self.chain((part,), y)
        if gate is not None and layer.gate_place == "path":
            y = gate * y
        h = shortcut + y if layer.channels is None else shortcut.index_add(1, torch.tensor(layer.channels, dtype=torch.long), y)
        return F.relu(h) if layer.post == "relu" else h


def _padded(layer, x, value=0.0):
    (top, bottom), (left, right) = layer.padding
    return F.pad(x, (left, right, top, bottom), value=value)


def run(network, params, gates, x, *, statistics=None, train):
    """(output, {batch-norm: (mean, biased variance, values per channel)}, MACs of one example); tensors in and out."""
    state = _Run(params, gates, statistics or {}, train)
    output = state.chain(network.layers, x)
    assert state.used == len(gates), f"{state.used} of {len(gates)} gates were read"
    return output, state.batch, state.macs


def loss(network, output, target):
    kind, reduction = network.loss.kind, network.loss.reduction
    if kind == "cross_entropy":
        return F.cross_entropy(output, target, reduction=reduction)
    if reduction == "batch_mean":
        return F.mse_loss(output, target, reduction="sum") / len(output)
    return F.mse_loss(output, target, reduction=reduction)


def tensors(arrays, grad=False):
    """name → array as name → tensor."""
    return {name: torch.tensor(np.asarray(a), requires_grad=grad) for name, a in arrays.items()}


def evaluate(network, params, gates, x, target, *, statistics=None, train, cotangent=None):
    """({"loss", "output", "gates", "input" and every parameter: value or gradient}, batch statistics, MACs of one example).

    The gradients are those of the loss, or of ⟨output, cotangent⟩.
    """
    weights = tensors(params, grad=True)
    xi, inputs = (torch.tensor(np.asarray(a), requires_grad=True) for a in (gates, x))
    output, batch, macs = run(network, weights, xi, inputs, statistics=tensors(statistics or {}), train=train)
    value = loss(network, output, torch.tensor(target))
    root = value if cotangent is None else (output * torch.tensor(cotangent)).sum()
    leaves = weights | {"gates": xi, "input": inputs}
    grads = torch.autograd.grad(root, list(leaves.values()), allow_unused=True)
    named = {
        name: np.zeros(leaf.shape) if grad is None else grad.numpy()
        for (name, leaf), grad in zip(leaves.items(), grads, strict=True)
    }
    moments = {name: (m.numpy(), v.numpy(), n) for name, (m, v, n) in batch.items()}
    return named | {"loss": value.detach().numpy(), "output": output.detach().numpy()}, moments, macs


def odd_network():
    """What the zoo lacks: padding on one side, dilation, groups, other activations, unit gates, a path on some channels."""
    a = Section((Activation("tanh"), Conv(2, (3, 3), padding=((1, 1), (1, 1)))), channels=(3, 1))
    b = Section((Conv(4, (3, 3), padding=((1, 1), (1, 1)), groups=2), Activation("gelu")), post="relu")
    stem = (Conv(4, (3, 2), (2, 1), ((2, 0), (0, 1)), (1, 2)), Activation("leaky_relu"), BatchNorm(momentum_of="running"))
    pools = (MaxPool((2, 2), (2, 2), ((1, 0), (0, 0))), AveragePool((2, 2), (1, 1), ((1, 1), (1, 1)), count_padding=False))
    head = (Flatten(), Dense(6, bias=False), BatchNorm(eps=1e-3), Activation("sigmoid"), UnitGate(), Dense(4))
    return Network((2, 13, 11), (*stem, a, *pools, b, AveragePool((2, 2), (2, 2)), *head))
