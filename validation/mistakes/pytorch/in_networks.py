"""Mistakes in whole networks: where gates stand, what flows through them, sections, running statistics."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refprune.adapters.pytorch.functions import per_channel
from refprune.adapters.pytorch.model import Gate, Module, Residual
from refprune.mistakes.whole_networks import gates_first
from refprune.spec.layers import Activation, BatchNorm, Conv, Dense, MaxPool, Section, SubsamplePad

from .in_layers import eps_outside, last_maximum, one_at_zero, summed_to
from .planting import Planted, autograd, with_modules

# --------------------------------------------------------------------------------------------------------------------
# Gates


def gates(**parts: Any) -> Any:
    """Networks with another kind of gate."""
    return with_modules(made_gate=lambda self: type("Mine", (Gate,), parts)())


class Twice(Gate):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(super().forward(x))
        return y


def straight_through(self: Gate, x: Tensor) -> Tensor:
    """Backward as if there were no gate."""
    return x + (x * per_channel(self.value, x.ndim) - x).detach()


def detached(self: Gate, x: Tensor) -> Tensor:
    return x * per_channel(self.value.detach(), x.ndim)


LEAKING = autograd(lambda x, g: x * per_channel(g, x.ndim), lambda dy, x, g: (dy, summed_to(dy * x, g)))


def last_affine(self: Module, section: Section) -> int:
    return max(i for i, layer in enumerate(section.path) if isinstance(layer, (Dense, Conv)))


def before_norm(self: Module, section: Section) -> int:
    at = last_affine(self, section) + 1
    ends = at < len(section.path) and isinstance(section.path[at], BatchNorm)
    return at if ends else section.gate_index()


def before_batch_norm(self: Module, layers: Any) -> nn.Sequential:
    return Module.chain(self, gates_first(tuple(layers)))


GATES = (
    Planted("gate forgotten, forward and backward", "network", gates(forward=lambda self, x: x)),
    Planted("no gradient for the gate", "network", gates(forward=detached)),
    Planted("straight-through gate: dx = dy, no gradient for the gate", "network", gates(forward=straight_through)),
    Planted("gate's dx = dy, in closed sections too", "network", gates(forward=lambda self, x: LEAKING(x, self.value))),
    Planted("gate applied twice", "network", with_modules(made_gate=lambda self: Twice())),
    Planted("gate always behind the path", "network", with_modules(gate_index=lambda self, section: len(section.path))),
    Planted("layer gate before the last affine map", "network", with_modules(gate_index=last_affine)),
    Planted("layer gate before the last batch-norm", "network", with_modules(gate_index=before_norm)),
    Planted("unit gates before batch-norm and activation", "network", with_modules(chain=before_batch_norm)),
)


# --------------------------------------------------------------------------------------------------------------------
# Sections


def residual(**parts: Any) -> Any:
    """Networks with sections of another kind; `begun(self)` may change one that has been made."""
    begun = parts.pop("begun", lambda self: None)
    kind = type("Mine", (Residual,), parts)

    def made(self: Module, *given: Any) -> Residual:
        section: Residual = kind(*given)
        begun(section)
        return section

    return with_modules(made_residual=made)


def is_closed(section: Residual) -> bool:
    return section.gate is not None and float(section.gate.value.detach()) == 0.0


def path_alone(self: Residual, x: Tensor) -> Tensor:
    """The shortcut, which says what shape there is, gives zeros."""
    shape = self.shortcut(x).detach()
    channels = torch.arange(shape.shape[1]) if self.channels is None else self.channels
    out: Tensor = self.post(torch.zeros_like(shape).index_add(1, channels, self.path(x)))
    return out


def skipping(self: Residual, x: Tensor) -> Tensor:
    """A closed section is not run at all."""
    out: Tensor = self.post(self.shortcut(x).clone()) if is_closed(self) else Residual.forward(self, x)
    return out


def no_post(section: Residual) -> None:
    section.post = nn.Identity()


def unfrozen(section: Residual) -> None:
    section.norms = []


SECTIONS = (
    Planted("section without its shortcut, forward and backward", "network", residual(forward=path_alone)),
    Planted("closed sections skipped: no gradient for their gates", "network", residual(forward=skipping)),
    Planted("no ρ behind the addition", "network", residual(begun=no_post)),
    Planted("closed sections move their running statistics", "network", residual(begun=unfrozen)),
)


# --------------------------------------------------------------------------------------------------------------------
# Layers inside networks


class Norm(nn.BatchNorm2d):
    """Batch-norm of N×C and N×C×H×W by hand; what mistakes change are its methods."""

    def _check_input_dim(self, x: Tensor) -> None:
        """Both shapes."""

    def normalised(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)

    def moved(self, old: Tensor, new: Tensor) -> Tensor:
        return (1.0 - self.momentum) * old + self.momentum * new

    def variance(self, x: Tensor) -> Tensor:
        return x.var((0, *range(2, x.ndim)))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        y = self.normalised(x)
        with torch.no_grad():
            if self.momentum > 0.0:  # 0 in a closed section
                self.running_mean.copy_(self.moved(self.running_mean, x.mean((0, *range(2, x.ndim)))))
                self.running_var.copy_(self.moved(self.running_var, self.variance(x)))
        return y


def layers(kind: type, make: Any) -> Any:
    """Networks whose layers of a kind are made by make(layer, shape), or as they should be where it gives None."""

    def layer(self: Module, spec: Any, shape: Any, padding: Any, *, in_place: bool) -> nn.Module:
        own = make(spec, shape) if isinstance(spec, kind) else None
        return Module.layer(self, spec, shape, padding, in_place=in_place) if own is None else own

    return layer


def norms(**parts: Any) -> Any:
    kind = type("Mine", (Norm,), parts)
    return with_modules(layer=layers(BatchNorm, lambda spec, shape: kind(shape[0], spec.eps, spec.momentum)))


class Function(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.function(x)
        return y


def rectifier(spec: Activation, shape: Any) -> nn.Module | None:
    if spec.kind not in ("relu", "leaky_relu"):
        return None
    slope = spec.slope if spec.kind == "leaky_relu" else 0.0
    return Function(lambda x: one_at_zero(x, slope))


def own_post(self: Module, path: nn.Module, shortcut: nn.Module, section: Section, gate: Gate | None) -> Residual:
    made = Residual(path, shortcut, section, gate)
    if section.post == "relu":
        made.post = Function(lambda x: one_at_zero(x, 0.0))
    return made


def pool_of(spec: MaxPool, shape: Any) -> nn.Module | None:
    """Padding that PyTorch's own pool cannot do stands before it and is left there."""
    (top, bottom), (left, right) = spec.padding
    inside = (top, left) == (bottom, right) and 2 * top <= spec.kernel[0] and 2 * left <= spec.kernel[1]
    padding = spec.padding if inside else ((0, 0), (0, 0))
    return Function(lambda x: last_maximum(x, spec.kernel, spec.stride, padding))


def padded_behind(spec: SubsamplePad, shape: Any) -> nn.Module:
    around = (0, 0, 0, 0, spec.after, spec.before)
    return Function(lambda x: F.pad(x[:, :, :: spec.stride[0], :: spec.stride[1]], around))


def evaluating(self: nn.Module, mode: bool = True) -> nn.Module:
    return nn.BatchNorm2d.train(self, False)


PARTS = (
    Planted(
        "biased variance in the running average",
        "network",
        norms(variance=lambda self, x: x.var((0, *range(2, x.ndim)), unbiased=False)),
    ),
    Planted(
        "running statistics with 1 − momentum",
        "network",
        norms(moved=lambda self, old, new: self.momentum * old + (1.0 - self.momentum) * new),
    ),
    Planted("running statistics not updated", "network", norms(moved=lambda self, old, new: old)),
    Planted("running statistics used in training", "network", norms(train=evaluating)),
    Planted("running statistics used in training", "training_steps", norms(train=evaluating)),
    Planted(
        "batch-norm: eps outside the root",
        "network",
        norms(normalised=lambda self, x: eps_outside(x, self.weight, self.bias, self.eps)),
    ),
    Planted(
        "subgradient 1 at 0 whatever is declared",
        "network",
        with_modules(layer=layers(Activation, rectifier), made_residual=own_post),
    ),
    Planted("last of equal maxima", "network", with_modules(layer=layers(MaxPool, pool_of))),
    Planted("option A: zero channels at the other end", "network", with_modules(layer=layers(SubsamplePad, padded_behind))),
)

IN_NETWORKS: tuple[Planted, ...] = (*GATES, *SECTIONS, *PARTS)
