"""Mistakes in the expectation over gates, in estimators of ∂C/∂θ and in the steps of weights and gates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from refprune.adapters.pytorch.implementation import TorchImplementation, gradient
from refprune.adapters.pytorch.model import Module, set_gates
from refprune.spec.json_form import from_json
from refprune.spec.layers import Section

from .in_networks import norms, residual, skipping, unfrozen
from .planting import Planted, changed, result, with_parts

Base = TorchImplementation

# --------------------------------------------------------------------------------------------------------------------
# The expectation and its gradients


def equally_likely(self: Base, theta: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for gates, _ in Base.gate_vectors(self, theta):
        yield gates, torch.full((), 0.5 ** len(theta), dtype=theta.dtype)


def at_the_mean(self: Base, theta: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass, θ standing in the place of the gates."""
    yield theta, torch.ones((), dtype=theta.dtype)


def giving(base: type[Base], *names: str) -> type[Base]:
    """The implementation, which gives these alone."""

    def theta_gradient(self: Base, *a: Any, **k: Any) -> Any:
        return {n: v for n, v in base.theta_gradient(self, *a, **k).items() if n in names}

    return with_parts(base, theta_gradient=theta_gradient)


def of_log_theta(right: Any, a: dict[str, Any]) -> Any:
    """θ = e^φ, and ∂C/∂φ is taken for ∂C/∂θ."""
    return right(**a) | {"theta": right(**a)["theta"] * right.__self__.tensor(a["theta"])}


def mean_slope(right: Any, a: dict[str, Any]) -> Any:
    """∂c/∂ξ from the backward pass, as with a straight-through estimator, in expectation."""
    mine, total = right.__self__, 0.0
    for gates, probability in mine.gate_vectors(mine.tensor(a["theta"])):
        given = {name: value for name, value in a.items() if name != "theta"}
        total = total + probability * mine.network(**given, gates=gates.numpy())["gates"]
    return right(**a) | {"theta": total}


def uniform_weights(right: Any, a: dict[str, Any]) -> Any:
    """∂C/∂W averaged over gate vectors that are drawn with probability ½."""
    return right(**a) | {"params": right(**{**a, "theta": 0.0 * a["theta"] + 0.5})["params"]}


def conditional_weights(right: Any, a: dict[str, Any]) -> Any:
    """A section's weights are averaged over the passes in which it is on."""
    found, network = right(**a), from_json(a["spec"])
    for section in network.layers:
        if isinstance(section, Section) and section.gate:
            on = a["theta"].copy()
            on[network.gate_slices[section.name]] = 1.0
            names = {part.name for part in section.path}
            of_section = right(**{**a, "theta": on})["params"]
            found["params"] |= {n: g for n, g in of_section.items() if n.rpartition(".")[0] in names}
    return found


EXPECTATION = (
    Planted(
        "gate vectors equally likely", "theta_gradient", giving(with_parts(gate_vectors=equally_likely), "value", "params")
    ),
    Planted(
        "loss at the mean gates instead of the mean loss",
        "theta_gradient",
        giving(with_parts(gate_vectors=at_the_mean), "value"),
    ),
    Planted("value and gradients at the mean gates", "theta_gradient", with_parts(gate_vectors=at_the_mean)),
    changed("∂C/∂θ times θ", "theta_gradient", of_log_theta),
    changed("sign of ∂C/∂θ", "theta_gradient", result(theta=lambda g, a: -g)),
    changed("E[∂c/∂ξ] taken for ∂C/∂θ", "theta_gradient", mean_slope),
    changed("∂C/∂W of equally likely gates", "theta_gradient", uniform_weights),
    changed("θ forgotten in ∂C/∂W", "theta_gradient", conditional_weights),
)


# --------------------------------------------------------------------------------------------------------------------
# Estimators


class Estimating(Base):
    """Estimators that look at single passes."""

    def cost(self, module: Module, x: Any, target: Any, gates: Tensor) -> Tensor:
        with torch.no_grad():
            return self.loss(module, set_gates(module, gates)(self.tensor(x)), target)


class Paired(Estimating):
    estimator = "paired"

    def sign(self, gate: Tensor) -> Tensor:
        return 2.0 * gate - 1.0

    def estimates(self, module: Module, x: Any, target: Any, theta: Tensor, uniform: Tensor) -> Tensor:
        gates = (uniform[0] < theta).to(theta.dtype)
        base = self.cost(module, x, target, gates)
        found = []
        for g in range(len(theta)):
            flipped = gates.clone()
            flipped[g] = 1.0 - gates[g]
            found.append(self.sign(gates[g]) * (base - self.cost(module, x, target, flipped)))
        return torch.stack(found)


class Antithetic(Estimating):
    def estimates(self, module: Module, x: Any, target: Any, theta: Tensor, uniform: Tensor) -> Tensor:
        v = uniform[0]
        b, other = (v < theta).to(theta.dtype), (v > 1.0 - theta).to(theta.dtype)
        difference = self.cost(module, x, target, b) - self.cost(module, x, target, other)
        return self.scaled(difference, b - other, v, theta)

    def scaled(self, difference: Tensor, between: Tensor, v: Tensor, theta: Tensor) -> Tensor:
        raise NotImplementedError


class Arm(Antithetic):
    estimator = "arm"

    def scaled(self, difference: Tensor, between: Tensor, v: Tensor, theta: Tensor) -> Tensor:
        return -difference * (v - 0.5) / (theta * (1.0 - theta))


class Disarm(Antithetic):
    estimator = "disarm"

    def scaled(self, difference: Tensor, between: Tensor, v: Tensor, theta: Tensor) -> Tensor:
        return 0.5 * difference * between / torch.minimum(theta, 1.0 - theta)


class Taylor(Base):
    estimator = "taylor"

    def estimates(self, module: Module, x: Any, target: Any, theta: Tensor, uniform: Tensor) -> Tensor:
        gates = (uniform[0] < theta).to(theta.dtype).requires_grad_()
        self.loss(module, set_gates(module, gates)(self.tensor(x)), target).backward()
        return gradient(gates)


#: Right ones, of which the wrong ones below are made.
ESTIMATING: tuple[type[Base], ...] = (Paired, Arm, Disarm, Taylor)


#: Baselines of reinforce, of the losses (K,) of K > 1 samples; the first is right.
BASELINES: dict[str, Callable[[Tensor], Tensor]] = {
    "others": lambda c: (c.sum() - c) / (len(c) - 1),
    "own": lambda c: c.mean() + 0.0 * c,
    "added": lambda c: (c - c.sum()) / (len(c) - 1),
    "none": torch.zeros_like,
}


def reinforced(
    score: Callable[[Tensor, Tensor], Tensor], baseline: str = "others", flip: bool = False, shared: bool = False
) -> type[Base]:
    """Reinforce with another score or baseline; flip: on with probability 1 − θ; shared: one uniform number for all gates."""

    def estimates(self: Base, module: Module, x: Any, target: Any, theta: Tensor, uniform: Tensor) -> Tensor:
        on = 1.0 - theta if flip else theta
        samples = ((uniform[..., :1].expand(uniform.shape) if shared else uniform) < on).to(theta.dtype)
        with torch.no_grad():
            c = torch.stack([self.loss(module, set_gates(module, xi)(self.tensor(x)), target) for xi in samples])
        less = BASELINES[baseline](c) if len(c) > 1 else torch.zeros_like(c)
        return ((c - less)[:, None] * score(samples, theta)).mean(0)

    return with_parts(estimates=estimates)


def score(samples: Tensor, theta: Tensor) -> Tensor:
    return (samples - theta) / (theta * (1.0 - theta))


def times_theta(self: Base, *a: Any) -> Tensor:
    return Taylor.estimates(self, *a) * a[3]


ESTIMATORS = (
    Planted("gates on with probability 1−θ", "theta_estimate", reinforced(score, flip=True)),
    Planted("reinforce without its denominator", "theta_estimate", reinforced(lambda samples, theta: samples - theta)),
    Planted("reinforce with its own sample in the baseline", "theta_estimate", reinforced(score, baseline="own")),
    Planted("baseline added, not subtracted", "theta_estimate", reinforced(score, baseline="added")),
    Planted("no baseline", "theta_estimate", reinforced(score, baseline="none")),
    Planted("one uniform number for all gates", "theta_estimate", reinforced(score, shared=True)),
    Planted("straight-through taken for an unbiased estimator", "theta_estimate", with_parts(estimates=Taylor.estimates)),
    Planted(
        "paired with the sign of a closed gate forgotten",
        "theta_estimate",
        with_parts(Paired, sign=lambda self, gate: torch.ones_like(gate)),
    ),
    Planted(
        "arm without the chain rule to θ",
        "theta_estimate",
        with_parts(Arm, scaled=lambda self, difference, between, v, theta: -difference * (v - 0.5)),
    ),
    Planted(
        "disarm without its half",
        "theta_estimate",
        with_parts(Disarm, scaled=lambda self, d, between, v, theta: d * between / torch.minimum(theta, 1.0 - theta)),
    ),
    Planted("taylor weighted by θ", "theta_estimate", with_parts(Taylor, estimates=times_theta)),
)


# --------------------------------------------------------------------------------------------------------------------
# Steps


class Rule(torch.optim.Optimizer):
    """rule(w, v, g, η, m, λ) → (w, v), for every parameter."""

    def __init__(self, module: Module, rule: Callable[..., Any], rate: float, momentum: float, decay: float) -> None:
        super().__init__(module.parameters(), {})
        self.rule, self.options = rule, (rate, momentum, decay)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for p in self.param_groups[0]["params"]:
            v = self.state[p].get("momentum_buffer", torch.zeros_like(p))
            w, self.state[p]["momentum_buffer"] = self.rule(p, v, p.grad, *self.options)
            p.copy_(w)


def stepping(rule: Callable[..., Any]) -> type[Base]:
    """Training whose weights move by the rule."""
    return with_parts(optimiser=lambda self, module, *options: Rule(module, rule, *options))


def running_mean(w: Tensor, v: Tensor, g: Tensor, rate: float, m: float, decay: float) -> Any:
    v = m * v + (1.0 - m) * (g + decay * w)
    return w - rate * v, v


def plain(w: Tensor, v: Tensor, g: Tensor, rate: float, m: float, decay: float) -> Any:
    v = g + decay * w
    return w - rate * v, v


def decoupled(w: Tensor, v: Tensor, g: Tensor, rate: float, m: float, decay: float) -> Any:
    v = m * v + g
    return w * (1.0 - rate * decay) - rate * v, v


def rate_inside(w: Tensor, v: Tensor, g: Tensor, rate: float, m: float, decay: float) -> Any:
    v = m * v + rate * (g + decay * w)
    return w - v, v


def sgd(**changes: Callable[[dict[str, Any]], Any]) -> type[Base]:
    """torch.optim.SGD with other options."""

    def optimiser(self: Base, module: Module, rate: float, momentum: float, decay: float) -> torch.optim.Optimizer:
        options = {"momentum": momentum, "weight_decay": decay}
        return torch.optim.SGD(module.parameters(), rate, **options | {n: change(options) for n, change in changes.items()})

    return with_parts(optimiser=optimiser)


def groups(self: Base, module: Module, rate: float, momentum: float, decay: float) -> torch.optim.Optimizer:
    """Parameter groups as in many recipes: only matrices and kernels decay."""
    matrices = [p for p in module.parameters() if p.ndim > 1]
    vectors = [p for p in module.parameters() if p.ndim <= 1]
    chosen = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.SGD([group for group in chosen if group["params"]], rate, momentum)


class Sparse(torch.optim.SGD):
    """Parameters with nothing but zeros for a gradient are left alone."""

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if not p.grad.any():
                    p.grad = None
                self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
        super().step()


def sparse(self: Base, module: Module, rate: float, momentum: float, decay: float) -> torch.optim.Optimizer:
    return Sparse(module.parameters(), rate, momentum, weight_decay=decay)


def weights_first(self: Base, module: Module, sgd: Any, theta: Tensor, gates: Any, x: Any, target: Any, *rates: float) -> Any:
    """A second pass, behind the weights' step, moves θ."""
    _, loss = Base.step(self, module, sgd, theta, gates, x, target, *rates)
    frozen = [m for m in module.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    momenta = [m.momentum for m in frozen]
    for m in frozen:
        m.momentum = 0.0
    xi = self.tensor(gates).requires_grad_()
    self.loss(module, set_gates(module, xi)(self.tensor(x)), target).backward()
    for m, momentum in zip(frozen, momenta, strict=True):
        m.momentum = momentum
    return self.step_theta(theta, gradient(xi), rates[1], rates[0]), loss


def summed(self: Base, theta: Tensor, slope: Tensor, beta: float, rate: float) -> Tensor:
    """θ's gradient is that of the sum over the batch, of which `step` has noted the size."""
    return Base.step_theta(self, theta, self.batch * slope, beta, rate)


def noting(self: Base, module: Module, sgd: Any, theta: Tensor, gates: Any, x: Any, *others: Any) -> Any:
    self.batch = len(x)
    return Base.step(self, module, sgd, theta, gates, x, *others)


STEPS = (
    Planted("Nesterov momentum", "training_steps", sgd(nesterov=lambda o: o["momentum"] > 0.0)),
    Planted("momentum with PyTorch's dampening", "training_steps", sgd(dampening=lambda o: o["momentum"])),
    Planted("no weight decay", "training_steps", sgd(weight_decay=lambda o: 0.0)),
    Planted("weight decay twice", "training_steps", sgd(weight_decay=lambda o: 2.0 * o["weight_decay"])),
    Planted("no momentum", "training_steps", stepping(plain)),
    Planted("momentum with dampening", "training_steps", stepping(running_mean)),
    Planted("decoupled weight decay", "training_steps", stepping(decoupled)),
    Planted("learning rate inside the velocity", "training_steps", stepping(rate_inside)),
    Planted("biases and batch-norms do not decay", "training_steps", with_parts(optimiser=groups)),
    Planted("what has no gradient neither decays nor moves", "training_steps", with_parts(optimiser=sparse)),
    Planted("θ's gradient summed over the batch", "training_steps", with_parts(step=noting, step_theta=summed)),
    Planted("θ's gradient after the weights have moved", "training_steps", with_parts(step=weights_first)),
    Planted("closed sections skipped: no gradient for their gates", "training_steps", residual(forward=skipping)),
    Planted("closed sections move their running statistics", "training_steps", residual(begun=unfrozen)),
    Planted(
        "biased variance in the running average",
        "training_steps",
        norms(variance=lambda self, x: x.var((0, *range(2, x.ndim)), unbiased=False)),
    ),
)

IN_TRAINING: tuple[Planted, ...] = (*EXPECTATION, *ESTIMATORS, *STEPS)
