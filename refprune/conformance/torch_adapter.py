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

from ..arrays import Array, Arrays, Shape
from ..errors import InputError
from ..implementation import PYTORCH, Conventions
from ..spec.json_form import from_json
from ..spec.layers import Layer, Section, UnitGate
from ..spec.network import Network
from .torch_costs import TorchCosts
from .torch_functions import branch, per_channel, squared_error
from .torch_layers import OVERWRITABLE, module_of, padding_of

#: refprune's name of a parameter or statistic → PyTorch's attribute.
ATTRIBUTES = {"weight": "weight", "bias": "bias", "gain": "weight", "mean": "running_mean", "variance": "running_var"}


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
    """The network as a module: x ↦ logits. `parts`: refprune's layer name → the layer's module; `posts`: section's → ρ's;
    `gates`: gate group's → its.

    To try parts of one's own: override `layer`, `made_gate` or `made_residual`.
    """

    def __init__(self, network: Network, gated: bool = False) -> None:
        super().__init__()
        self.network, self.gated = network, gated
        self.parts: dict[str, nn.Module] = {}
        self.posts: dict[str, nn.Module] = {}
        self.gates: dict[str, Gate] = {}
        self.body = self.chain(network.layers)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y

    def chain(self, layers: Sequence[Layer]) -> nn.Sequential:
        modules: list[nn.Module] = []
        before: Layer | None = None
        for layer in layers:
            modules += self._modules_of(layer, before)
            before = layer
        return nn.Sequential(*modules)

    def layer(self, layer: Layer, shape: Shape, padding: tuple[int, int], *, in_place: bool) -> nn.Module:
        """The module of a layer that is neither a section nor a gate; padding: its own, both sides alike."""
        return module_of(layer, shape, padding, in_place=in_place)

    def made_gate(self) -> Gate:
        return Gate()

    def made_residual(self, path: nn.Module, shortcut: nn.Module, section: Section, gate: Gate | None) -> Residual:
        return Residual(path, shortcut, section, gate)

    def gate_index(self, section: Section) -> int:
        """Before which element of the path the layer gate multiplies; len(path): behind it."""
        return section.gate_index()

    def _modules_of(self, layer: Layer, before: Layer | None) -> list[nn.Module]:
        if isinstance(layer, Section):
            residual = self._residual(layer)
            self.posts[f"{layer.name}.post"] = residual.post
            return [residual]
        if isinstance(layer, UnitGate) and self.gated:
            self.gates[layer.name] = self.made_gate()
            return [self.gates[layer.name]]
        padding, around = padding_of(layer)
        shape = self.network.input_shapes[layer.name]
        module = self.layer(layer, shape, padding, in_place=isinstance(before, OVERWRITABLE))
        self.parts[layer.name] = module
        return [*around, module]

    def _residual(self, section: Section) -> Residual:
        shortcut = self.chain(section.shortcut)
        if not (self.gated and section.gate):
            return self.made_residual(self.chain(section.path), shortcut, section, None)
        gate, at = self.made_gate(), self.gate_index(section)
        self.gates[section.name] = gate
        path = nn.Sequential(self.chain(section.path[:at]), gate, self.chain(section.path[at:]))
        return self.made_residual(path, shortcut, section, gate)


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


class TorchImplementation(TorchCosts):
    """Gated training in PyTorch; replace what is yours and verify it: `class Mine(TorchImplementation)`."""

    conventions = CONVENTIONS
    samples = 2

    #: What networks are made of; a subclass of `Module` with parts of one's own.
    module_type: type[Module] = Module

    def module(self, spec: Mapping[str, Any], params: Arrays, statistics: Arrays, *, train: bool) -> Module:
        """The gated module of a spec with these numbers. Declines conventions that PyTorch lacks."""
        try:
            module = self.module_type(from_json(spec), gated=True)
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
        for gates, probability in self.gate_vectors(on):
            total = total + probability * self.loss(module, set_gates(module, gates)(self.tensor(x)), target)
        total.backward()
        return {"value": total, "theta": gradient(on), "params": of_parameters(module, gradient)}

    def gate_vectors(self, theta: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """All 2^G gate vectors with their probabilities."""
        for bits in itertools.product((0.0, 1.0), repeat=len(theta)):
            gates = torch.tensor(bits, dtype=theta.dtype)
            yield gates, torch.where(gates == 1.0, theta, 1.0 - theta).prod()

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
        sgd = self.optimiser(module, learning_rate, momentum, weight_decay)
        t, losses = self.tensor(theta), []
        for images, labels, xi in zip(x, target, gates, strict=True):
            t, loss = self.step(module, sgd, t, xi, images, labels, theta_learning_rate, beta, estimator)
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

    def optimiser(self, module: Module, learning_rate: float, momentum: float, weight_decay: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(module.parameters(), learning_rate, momentum, weight_decay=weight_decay)

    def step(
        self,
        module: Module,
        sgd: torch.optim.Optimizer,
        theta: Tensor,
        gates: Array,
        x: Array,
        target: Array,
        theta_learning_rate: float,
        beta: float,
        estimator: str,
    ) -> tuple[Tensor, Tensor]:
        """One step of weights and gates on one batch: (θ, loss)."""
        xi = self.tensor(gates).requires_grad_()
        sgd.zero_grad()
        loss = self.loss(module, set_gates(module, xi)(self.tensor(x)), target)
        loss.backward()
        slope = gradient(xi) if estimator == "taylor" else self.flips(module, x, target, xi.detach())
        sgd.step()
        return self.step_theta(theta, slope, beta, theta_learning_rate), loss

    def step_theta(self, theta: Tensor, gradient: Tensor, beta: float, learning_rate: float) -> Tensor:
        return (theta - learning_rate * (gradient + beta)).clamp(0.0, 1.0)

    def layer_macs(self, network: Network) -> dict[str, int]:
        """Multiply-accumulates counted while the module runs."""
        try:
            module = build(network, gated=True).eval()
        except InputError as error:
            raise NotImplementedError(str(error)) from error
        macs: dict[str, int] = {}
        for name, part in module.parts.items():
            if isinstance(part, (nn.Linear, nn.Conv2d)):
                part.register_forward_hook(lambda m, i, y, name=name: macs.update({name: self.macs_of(m, i[0], y)}))
        module(torch.zeros((1, *network.input_shape)))
        return macs

    def macs_of(self, layer: nn.Module, x: Tensor, y: Tensor) -> int:
        """Of one convolution or dense layer that made y of one example x."""
        count: int = layer.weight.numel() * y.shape[2:].numel()
        return count


def gradient(leaf: Tensor) -> Tensor:
    """What the backward pass left at a leaf; zeros where nothing flowed."""
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def running(module: Module) -> Arrays:
    """Copies of the running statistics, under refprune's names."""
    return {name: _array(_tensor(module, name)) for name in module.network.statistics_shapes}
