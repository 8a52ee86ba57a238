"""A `spec.Network` as a torch.nn.Module, written as a user of PyTorch would: nn layers, in-place ReLU, residual addition.

`build` makes the module, `load` gives it refprune's arrays, `arrays` and `gradients` read them back under refprune's names.
All gates are 1, or, with `gated`, what `set_gates` says. Conventions that PyTorch's layers do not have (ties "last", a
subgradient at 0, a biased running variance, padding that counts on one side only) are refused, not imitated.

`TorchImplementation` is what `refprune verify` judges, and what an implementation of one's own may start from.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError
from ..implementation import PYTORCH, Conventions
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
from ..spec import Network, from_json
from .torch_functions import TorchFunctions, branch, per_channel, squared_error

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


class Gate(nn.Module):
    """Multiplies by a layer gate, a number, or by one gate for every unit; `set_gates` puts them in."""

    def __init__(self) -> None:
        super().__init__()
        self.value = torch.ones(())

    def forward(self, x: Tensor) -> Tensor:
        return x * per_channel(self.value, x.ndim)


class Residual(nn.Module):
    """x ↦ ρ(shortcut(x) + path(x)); with `channels`, the path adds to those only.

    gate: the layer gate inside the path, if there is one. A closed section leaves its running statistics as they are.
    """

    def __init__(self, path: nn.Module, shortcut: nn.Module, section: Section, gate: Gate | None = None) -> None:
        super().__init__()
        self.path, self.shortcut, self.gate = path, shortcut, gate
        self.norms = [m for m in path.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
        self.post = nn.ReLU(inplace=True) if section.post == "relu" else nn.Identity()
        self.in_place = isinstance(section.path[-1], OVERWRITABLE)
        self.channels: Tensor | None
        self.register_buffer("channels", None if section.channels is None else torch.tensor(section.channels, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        closed = self.gate is not None and float(self.gate.value.detach()) == 0.0
        with _frozen(self.norms if closed else []):
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


@contextlib.contextmanager
def _frozen(norms: Sequence[nn.BatchNorm1d | nn.BatchNorm2d]) -> Iterator[None]:
    """Batch statistics are used, running ones are not moved."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    yield
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


class Module(nn.Module):
    """The network as a module: x ↦ logits. `parts`, `posts`, `gates`: modules of layers, of sections' ρ, of gates, by name."""

    def __init__(self, network: Network, gated: bool = False) -> None:
        super().__init__()
        self.network, self.gated = network, gated
        self.parts: dict[str, nn.Module] = {}
        self.posts: dict[str, nn.Module] = {}
        self.gates: dict[str, Gate] = {}
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
            residual = self._residual(layer)
            self.posts[f"{layer.name}.post"] = residual.post
            return [residual]
        if isinstance(layer, UnitGate) and self.gated:
            self.gates[layer.name] = Gate()
            return [self.gates[layer.name]]
        padding, around = _padding(layer)
        module = _module(layer, self.network.input_shapes[layer.name], padding, in_place=isinstance(before, OVERWRITABLE))
        self.parts[layer.name] = module
        return [*around, module]

    def _residual(self, section: Section) -> Residual:
        shortcut = self._chain(section.shortcut)
        if not (self.gated and section.gate):
            return Residual(self._chain(section.path), shortcut, section)
        gate = self.gates[section.name] = Gate()
        before, behind = section.path[: section.gate_index()], section.path[section.gate_index() :]
        return Residual(nn.Sequential(self._chain(before), gate, self._chain(behind)), shortcut, section, gate)


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


def build(network: Network, *, gated: bool = False) -> Module:
    """The module of `network` with weights of PyTorch's own. InputError for a convention that PyTorch's layers lack."""
    return Module(network, gated)


def set_gates(module: Module, gates: Tensor) -> Module:
    """The same module with the gates (G,) in the order of the network's: 0 and 1, or any numbers; differentiable."""
    for group in module.network.gates:
        value = gates[group.slice]
        module.gates[group.name].value = value[0] if group.kind == "layer" else value
    return module


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
    """A copy; what NumPy lacks, bfloat16, as float32."""
    tensor = tensor.detach()
    return np.array((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy(), order="C")


# --------------------------------------------------------------------------------------------------------------------
# As an implementation to be verified


CONVENTIONS: Conventions = {**PYTORCH, "estimator": ("taylor", "paired")}


class TorchImplementation(TorchFunctions):
    """Gated training in PyTorch; replace what is yours and verify it: `class Mine(TorchImplementation)`."""

    conventions = CONVENTIONS
    samples = 2

    def module(self, spec: Mapping[str, Any], params: Arrays, statistics: Arrays, *, train: bool) -> Module:
        """The gated module of a spec with these numbers. Declines conventions that PyTorch lacks."""
        try:
            module = build(from_json(spec), gated=True)
        except InputError as error:
            raise NotImplementedError(str(error)) from error
        load(module, params, statistics).to(getattr(torch, self.precision)).train(train)
        return module

    def loss(self, module: Module, output: Tensor, target: Array) -> Tensor:
        kind, reduction = module.network.loss.kind, module.network.loss.reduction
        wanted = self.tensor(target)
        if kind == "cross_entropy":
            return nn.functional.cross_entropy(output, wanted, reduction=reduction)
        return squared_error(output, wanted, reduction)

    def network(
        self, spec: Any, params: Arrays, statistics: Arrays, x: Array, target: Array, gates: Array, train: bool
    ) -> dict[str, Any]:
        module = self.module(spec, params, statistics, train=train)
        layers: dict[str, Tensor] = {}
        branches: dict[str, Tensor] = {}
        for name, part in module.parts.items():
            part.register_forward_hook(lambda m, i, y, name=name: layers.__setitem__(name, y.detach().clone()))
        for name, part in {**module.parts, **module.posts}.items():
            if isinstance(part, (nn.ReLU, nn.LeakyReLU, nn.MaxPool2d)):
                part.register_forward_pre_hook(lambda m, i, name=name: branches.__setitem__(name, branch(m, i[0])))
        xi, inputs = (self.tensor(a).requires_grad_() for a in (gates, x))
        output = set_gates(module, xi)(inputs)
        loss = self.loss(module, output, target)
        loss.backward()
        found = {"output": output, "loss": loss, "params": of_parameters(module, gradient), "layers": layers}
        found |= {"gates": gradient(xi), "input": inputs.grad, "branches": branches}
        return found | ({"statistics": running(module)} if train else {})

    def theta_gradient(
        self, spec: Any, params: Arrays, statistics: Arrays, x: Array, target: Array, theta: Array, train: bool
    ) -> dict[str, Any]:
        """The mean over all gate vectors, differentiated by autograd."""
        module = self.module(spec, params, statistics, train=train)
        on = self.tensor(theta).requires_grad_()
        total = torch.zeros((), dtype=on.dtype)
        for bits in itertools.product((0.0, 1.0), repeat=len(theta)):
            gates = torch.tensor(bits, dtype=on.dtype)
            probability = torch.where(gates == 1.0, on, 1.0 - on).prod()
            total = total + probability * self.loss(module, set_gates(module, gates)(self.tensor(x)), target)
        total.backward()
        return {"value": total, "theta": gradient(on), "params": of_parameters(module, gradient)}

    def estimates(self, module: Module, x: Array, target: Array, theta: Tensor, uniform: Tensor) -> Tensor:
        """Reinforce with a leave-one-out baseline from K samples. uniform (…, K, G) → (…, G)."""
        samples = (uniform < theta).to(theta.dtype)
        distinct, which = torch.unique(samples.flatten(0, -2), dim=0, return_inverse=True)
        with torch.no_grad():
            c = torch.stack([self.loss(module, set_gates(module, xi)(self.tensor(x)), target) for xi in distinct])
        c = c[which].reshape(samples.shape[:-1])
        k = c.shape[-1]
        baseline = (c.sum(-1, keepdim=True) - c) / (k - 1) if k > 1 else torch.zeros_like(c)
        return ((c - baseline)[..., None] * (samples - theta) / (theta * (1.0 - theta))).mean(-2)

    def theta_estimate(
        self,
        spec: Any,
        params: Arrays,
        statistics: Arrays,
        x: Array,
        target: Array,
        theta: Array,
        uniform: Array,
        train: bool,
    ) -> Tensor:
        module = self.module(spec, params, statistics, train=train)
        return self.estimates(module, x, target, self.tensor(theta), self.tensor(uniform))

    def theta_sample(
        self,
        spec: Any,
        params: Arrays,
        statistics: Arrays,
        x: Array,
        target: Array,
        theta: Array,
        train: bool,
        draws: int,
        seed: int,
    ) -> Tensor:
        """All draws at once, from a generator of PyTorch's."""
        module = self.module(spec, params, statistics, train=train)
        generator = torch.Generator().manual_seed(seed)
        uniform = torch.rand((draws, self.samples, len(theta)), generator=generator, dtype=torch.float64)
        return self.estimates(module, x, target, self.tensor(theta), uniform)

    def flips(self, module: Module, x: Array, target: Array, gates: Tensor) -> Tensor:
        """c with each gate on minus c with it off, the others as they are (O5, paired); running statistics stay."""
        inputs, norms = self.tensor(x), [m for m in module.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
        losses = torch.zeros((len(gates), 2), dtype=gates.dtype)
        with torch.no_grad(), _frozen(norms):
            for g, on in itertools.product(range(len(gates)), (0, 1)):
                flipped = gates.clone()
                flipped[g] = float(on)
                losses[g, on] = self.loss(module, set_gates(module, flipped)(inputs), target)
        return losses[:, 1] - losses[:, 0]

    def training_steps(
        self,
        spec: Any,
        params: Arrays,
        statistics: Arrays,
        theta: Array,
        x: Array,
        target: Array,
        gates: Array,
        learning_rate: float,
        momentum: float,
        weight_decay: float,
        theta_learning_rate: float,
        beta: float,
        estimator: str,
    ) -> dict[str, Any]:
        module = self.module(spec, params, statistics, train=True)
        sgd = torch.optim.SGD(module.parameters(), learning_rate, momentum, weight_decay=weight_decay)
        t, losses = self.tensor(theta), []
        for images, labels, xi in zip(x, target, gates, strict=True):
            on = self.tensor(xi).requires_grad_()
            sgd.zero_grad()
            loss = self.loss(module, set_gates(module, on)(self.tensor(images)), labels)
            loss.backward()
            ascent = gradient(on) if estimator == "taylor" else self.flips(module, images, labels, on.detach())
            sgd.step()
            t = (t - theta_learning_rate * (ascent + beta)).clamp(0.0, 1.0)
            losses.append(loss.detach())
        velocity = of_parameters(module, lambda p: sgd.state[p]["momentum_buffer"]) if momentum > 0.0 else {}
        found = {"params": of_parameters(module, lambda p: p), "velocity": velocity, "statistics": running(module)}
        return found | {"theta": t, "loss": torch.stack(losses)}

    def compact(self, spec: Any, params: Arrays, statistics: Arrays, keep: Array, x: Array, train: bool) -> dict[str, Any]:
        """The modules cut and left out, and what is left run."""
        from .torch_surgery import compact

        smaller, left = compact(self.module(spec, params, statistics, train=train), self.tensor(keep))
        with torch.no_grad():
            output = smaller(self.tensor(x))
        return {"output": output, "parameters": sum(p.numel() for p in smaller.parameters()), "params": left}

    def complexity(self, spec: Any, theta: Array, nu: float, alpha: float, balance: float) -> dict[str, Any]:
        """Counted at the modules; the gradient by autograd."""
        from .torch_surgery import expected, multiplications, pressure

        network = from_json(spec)
        try:
            module = build(network, gated=True).eval()
        except InputError as error:
            raise NotImplementedError(str(error)) from error
        pixels = multiplications(module, network.input_shape)
        on = self.tensor(theta).requires_grad_()
        parameters, macs = expected(module, on, pixels)
        penalty = nu * pressure(module, on, alpha, balance, pixels)
        penalty.backward()
        counts = {
            "parameters": sum(p.numel() for p in module.parameters()),
            "macs": sum(part.weight.numel() * n for part, n in pixels.items()),
        }
        return counts | {
            "expected_parameters": parameters,
            "expected_macs": macs,
            "penalty": penalty,
            "beta": gradient(on),
        }


def gradient(leaf: Tensor) -> Tensor:
    """What the backward pass left at a leaf; zeros where nothing flowed."""
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def running(module: Module) -> Arrays:
    """Copies of the running statistics, under refprune's names."""
    return {name: _array(_tensor(module, name)) for name in module.network.statistics_shapes}
