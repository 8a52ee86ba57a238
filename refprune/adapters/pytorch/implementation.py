"""A `spec.network.Network` as a torch.nn.Module, written as a user of PyTorch would: nn layers, in-place ReLU, residual
addition.

`build` makes the module, `load` gives it refprune's arrays, `arrays` and `gradients` read them back under refprune's names.
All gates are 1, or, with `gated`, what `set_gates` says. Conventions that PyTorch's layers do not have (ties "last", a
subgradient at 0, a biased running variance, padding that counts on one side only) are refused, not imitated.

`TorchImplementation` is what `refprune verify` judges, and what an implementation of one's own may start from.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...arrays import Array, Arrays
from ...errors import InputError
from ...spec.json_form import from_json
from ...spec.network import Network
from ..implementation import PYTORCH, Conventions, Rates
from .costs import TorchCosts
from .functions import branch, squared_error
from .model import Module, build, by_parameter, frozen, load, running_statistics, set_gates
from .surgery import compact

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
        found = {"output": output, "loss": loss, "params": by_parameter(module, gradient), "layers": layers}
        found |= {"gates": gradient(xi), "input": inputs.grad, "branches": branches}
        return found | ({"statistics": running_statistics(module)} if train else {})

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
        return {"value": total, "theta": gradient(on), "params": by_parameter(module, gradient)}

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
        with torch.no_grad(), frozen(norms):
            for g, on in itertools.product(range(len(gates)), (0, 1)):
                flipped = gates.clone()
                flipped[g] = float(on)
                losses[g, on] = self.loss(module, set_gates(module, flipped)(inputs), target)
        return losses[:, 1] - losses[:, 0]

    def training_steps(
        self,
        *,
        spec: Any,
        params: Arrays,
        statistics: Arrays,
        theta: Array,
        x: Array,
        target: Array,
        gates: Array,
        estimator: str,
        **rates: float,
    ) -> dict[str, Any]:
        module = self.module(spec, params, statistics, train=True)
        learning_rate, momentum, weight_decay, theta_learning_rate, beta = Rates(**rates)
        sgd = self.optimiser(module, learning_rate, momentum, weight_decay)
        t, losses = self.tensor(theta), []
        for images, labels, xi in zip(x, target, gates, strict=True):
            t, loss = self.step(module, sgd, t, xi, images, labels, theta_learning_rate, beta, estimator)
            losses.append(loss.detach())
        velocity = by_parameter(module, lambda p: sgd.state[p]["momentum_buffer"]) if momentum > 0.0 else {}
        found = {"params": by_parameter(module, lambda p: p), "velocity": velocity, "statistics": running_statistics(module)}
        return found | {"theta": t, "loss": torch.stack(losses)}

    def compact(self, spec: Any, params: Arrays, statistics: Arrays, keep: Array, x: Array, train: bool) -> dict[str, Any]:
        """The modules cut and left out, and what is left run."""
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
