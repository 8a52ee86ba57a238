"""Mistakes in the formulas of prior, hyper-prior and θ's step, in pruning rules, HSIC and CKA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refprune.adapters.pytorch.functions import gram, hsic
from refprune.adapters.pytorch.implementation import TorchImplementation

from .planting import Planted, asked, changed, result, tensor, with_parts

Base = TorchImplementation


# --------------------------------------------------------------------------------------------------------------------
# Priors


def of_kind(kind: str, **changes: Callable[[Any], Any]) -> Any:
    """Results changed for one kind of prior."""

    def of(change: Callable[[Any], Any]) -> Any:
        return lambda value, a: change(value) if a["kind"] == kind else value

    return result(**{name: of(change) for name, change in changes.items()})


def one_degree_more(right: Any, a: dict[str, Any]) -> Any:
    p = dict(a["parameters"])
    if a["kind"] == "student_t":
        p["degrees"] += 1.0
    return right(**{**a, "parameters": p})


def off_by_dimension(value: Any, a: dict[str, Any]) -> Any:
    return value + (a["w"].shape[-1] - 1) if a["kind"] == "spike_slab" else value


def of_one_entry(self: Base, w: Any, pi: float, precision: float, spike: float) -> Tensor:
    x = self.tensor(w)
    odds = float(np.log(pi / (1.0 - pi)) + 0.5 * np.log(precision * spike))
    return torch.sigmoid(odds + 0.5 * x.square().sum(-1) * (1.0 / spike - precision))


PRIORS = (
    changed("score with the wrong sign", "prior", of_kind("spike_slab", score=torch.neg)),
    changed("Student-t with one degree of freedom more", "prior", one_degree_more),
    changed("Laplace score without 1/b", "prior", of_kind("laplace", score=torch.sign)),
    changed("horseshoe off by log 2", "prior", of_kind("horseshoe", log_density=lambda v: v + float(np.log(2.0)))),
    changed("log-constants of a block off by d − 1", "prior", result(log_density=off_by_dimension)),
    Planted("log-odds of a block as if d = 1", "responsibility", with_parts(responsibility=of_one_entry)),
    changed("responsibility of the spike", "responsibility", result(responsibility=lambda v, a: 1.0 - v)),
)


# --------------------------------------------------------------------------------------------------------------------
# The flattening hyper-prior


def kl_at_pi_star(self: Base, theta: Any, log_gamma: Any) -> Tensor:
    """KL(θ‖π*), from the logarithms of π*."""
    t, l = self.tensor(theta), self.tensor(log_gamma)  # noqa: E741
    at = torch.logit(t) + l
    on = torch.xlogy(t, t) + torch.nn.functional.softplus(-at, threshold=40.0) * t
    off = torch.xlogy(1.0 - t, 1.0 - t) + torch.nn.functional.softplus(at, threshold=40.0) * (1.0 - t)
    return torch.where(t == 0.0, 0.0 * l, torch.where(t == 1.0, 0.0 * l, on + off))


def half_kl(self: Base, theta: Any, pi: Any) -> Tensor:
    t, p = self.tensor(theta), self.tensor(pi)
    return torch.xlogy(t, t) - torch.xlogy(t, p)


def through_gamma(self: Base, theta: Any, log_gamma: Any) -> Tensor:
    t, gamma = self.tensor(theta), self.tensor(log_gamma).exp()
    return gamma * t / (1.0 + (gamma - 1.0) * t)


def without_its_share(self: Base, theta: Any, log_gamma: Any) -> Tensor:
    """γθ/(1 + γθ)."""
    return torch.sigmoid(torch.log(self.tensor(theta)) + self.tensor(log_gamma))


def density_through_gamma(right: Any, a: dict[str, Any]) -> Any:
    p, l = tensor(a["pi"]), tensor(a["log_gamma"])  # noqa: E741
    plain = torch.log(torch.expm1(l) / l) - torch.log1p(torch.expm1(l) * (1.0 - p))
    return {"log_density": torch.where(l == 0.0, 0.0, plain)}


def beyond_forty(change: Callable[[Any], Any]) -> Any:
    return lambda v, a: torch.where(tensor(np.abs(a["log_gamma"]) > 40.0), change(v), v)


def off(v: Tensor) -> Tensor:
    return v * (1.0 + 1e-10)


def step_of_normaliser(self: Base, log_gamma: Tensor) -> Tensor:
    return Base.log_normaliser(self, log_gamma) + (log_gamma.abs() > 40.0) * 1.0


def without_normaliser(self: Base, log_gamma: Tensor) -> Tensor:
    return torch.zeros_like(log_gamma)


def of_inverse(self: Base, log_gamma: Tensor) -> Tensor:
    return Base.log_normaliser(self, -log_gamma)


def constant_off(self: Base, theta: Any, log_gamma: Any) -> Tensor:
    t, l = self.tensor(theta), self.tensor(log_gamma)  # noqa: E741
    constant = l - self.log_normaliser(l)
    return torch.where(l.abs() > 40.0, off(constant), constant) - t * l


FLATTENING = (
    changed("1/N dropped in β", "beta", result(beta=lambda v, a: v * a["samples"])),
    changed("sign of β", "beta", result(beta=lambda v, a: -v)),
    changed("KL the other way round", "kl", lambda f, a: f(theta=a["pi"], pi=a["theta"])),
    Planted("KL without its second half", "kl", with_parts(kl=half_kl)),
    Planted("log-density without its normaliser", "hyper_prior", with_parts(log_normaliser=without_normaliser)),
    Planted("normaliser of 1/γ in log-density and penalty", "hyper_prior", with_parts(log_normaliser=of_inverse)),
    Planted("normaliser of 1/γ in log-density and penalty", "penalty", with_parts(log_normaliser=of_inverse)),
    changed("slope of log p with the wrong sign", "hyper_prior", result(slope=lambda v, a: -v)),
    changed("log-density of 1−π", "hyper_prior", lambda f, a: {"log_density": f(a["pi"] * -1.0 + 1.0, a["log_gamma"])[0]}),
    changed("log-density through γ", "hyper_prior", density_through_gamma),
    Planted("normaliser off by 1 beyond |log γ| = 40", "hyper_prior", with_parts(log_normaliser=step_of_normaliser)),
    Planted("normaliser off by 1 beyond |log γ| = 40", "penalty", with_parts(log_normaliser=step_of_normaliser)),
    changed("slope of log p doubled beyond |log γ| = 40", "hyper_prior", result(slope=beyond_forty(lambda v: 2.0 * v))),
    changed("log-density off by 1e-10 beyond |log γ| = 40", "hyper_prior", result(log_density=beyond_forty(off))),
    changed("penalty off by 1e-10 beyond |log γ| = 40", "penalty", result(penalty=beyond_forty(off))),
    Planted("c(γ) off by 1e-10 beyond |log γ| = 40", "penalty", with_parts(penalty=constant_off)),
    changed("sign of log γ in π*", "pi_star", asked(log_gamma=np.negative)),
    Planted("π* = γθ/(1 + γθ)", "pi_star", with_parts(pi_star=without_its_share)),
    Planted("π* through γ", "pi_star", with_parts(pi_star=through_gamma)),
    changed("sign of log γ in the penalty", "penalty", asked(log_gamma=np.negative)),
    changed("log γ to the base 10", "penalty", asked(log_gamma=lambda g: g / np.log(10.0))),
    changed("penalty without its constant", "penalty", lambda f, a: -tensor(a["theta"]) * tensor(a["log_gamma"])),
    changed("penalty's slope twice", "penalty", result(penalty=lambda v, a: v - tensor(a["theta"]) * tensor(a["log_gamma"]))),
    changed("prior's KL at π = θ", "penalty", lambda f, a: -Base().hyper_prior(a["theta"], a["log_gamma"])[0]),
    Planted("KL at fixed π instead of the profiled penalty", "penalty", with_parts(penalty=kl_at_pi_star)),
    Planted("c(γ) without the normaliser", "penalty", with_parts(log_normaliser=without_normaliser)),
    changed("slope of the penalty with the wrong sign", "penalty_slope", result(penalty_slope=lambda v, a: -v)),
    changed("γ−1 for log γ in the slope", "penalty_slope", lambda f, a: -torch.expm1(tensor(a["log_gamma"]).clamp(max=700.0))),
)


# --------------------------------------------------------------------------------------------------------------------
# Steps and decisions


def step_of(change: Callable[..., Any]) -> type[Base]:
    """θ ← change(θ, ĝ, β, η)."""

    def theta_step(self: Base, theta: Any, gradient: Any, beta: float, learning_rate: float) -> Any:
        return change(self.tensor(theta), self.tensor(gradient), beta, learning_rate)

    def step_theta(self: Base, theta: Tensor, gradient: Tensor, beta: float, learning_rate: float) -> Any:
        return change(theta, gradient, beta, learning_rate)

    return with_parts(theta_step=theta_step, step_theta=step_theta)


UNPROJECTED = step_of(lambda t, g, beta, rate: t - rate * (g + beta))
CLIMBING = step_of(lambda t, g, beta, rate: (t + rate * (g + beta)).clamp(0.0, 1.0))
UNPRESSED = step_of(lambda t, g, beta, rate: (t - rate * g).clamp(0.0, 1.0))
PROJECTED_BEFORE = step_of(lambda t, g, beta, rate: t.clamp(0.0, 1.0) - rate * (g + beta))


def domain(saddle: float = 1.0, slope: Callable[..., Any] | None = None, sign: float = 1.0) -> type[Base]:
    """H with another saddle, slope or side."""

    def attracted(self: Base, w: Any, theta: Any, kappa: Any, beta: float, decay: float, ratio: float) -> Tensor:
        size, on, k = self.tensor(w), self.tensor(theta), self.tensor(kappa)
        right = 0.5 * (decay + (decay**2 + 4.0 * ratio * k**2).sqrt())
        steep = right if slope is None else slope(decay, ratio, k)
        return ratio * k * (size - beta / k) + sign * steep * (on - saddle * decay * beta / k**2) < 0.0

    return with_parts(attracted=attracted)


DECISIONS = (
    Planted("projection forgotten", "theta_step", UNPROJECTED),
    Planted("projection forgotten", "training_steps", UNPROJECTED),
    Planted("θ climbs", "theta_step", CLIMBING),
    Planted("θ climbs", "training_steps", CLIMBING),
    Planted("β left out of θ's step", "theta_step", UNPRESSED),
    Planted("β left out of θ's step", "training_steps", UNPRESSED),
    Planted("θ projected before its step", "training_steps", PROJECTED_BEFORE),
    changed("θ < τ instead of θ ≤ τ", "pruning_decision", lambda f, a: tensor(a["theta"]) >= a["threshold"]),
    changed("gates that go given for those that stay", "pruning_decision", result(keep=lambda v, a: ~v)),
    changed("κ too small", "attracted", asked(kappa=lambda kappa: 0.7 * kappa)),
    changed("r left out", "attracted", asked(ratio=lambda ratio: 1.0)),
    Planted("sign of θ − θ*", "attracted", domain(sign=-1.0)),
    Planted("domain around a saddle at half of λ", "attracted", domain(saddle=0.5)),
    Planted("domain with the eigenvalues of λ = 0", "attracted", domain(slope=lambda decay, r, k: decay + r**0.5 * k)),
)


# --------------------------------------------------------------------------------------------------------------------
# Similarity


def linear(x: Any) -> Tensor:
    return tensor(x) @ tensor(x).T


def ratio_of_sums(k: Tensor, l: Tensor) -> Tensor:  # noqa: E741
    return (k * l).sum() / ((k * k).sum() * (l * l).sum()).sqrt()


def one_sided(right: Any, a: dict[str, Any]) -> Tensor:
    """The mean of every column subtracted from Gram matrices of features as they come."""
    return ratio_of_sums(*(k - k.mean(0) for k in (linear(a["x"]), linear(a["y"]))))


def with_diagonals(right: Any, a: dict[str, Any]) -> Any:
    """The biased estimate, with the unbiased one's divisor."""
    if a["estimator"] == "biased":
        return right(**a)
    k, l = (gram(tensor(a[name])) for name in ("x", "y"))  # noqa: E741
    return (k * l).sum() / (len(k) * (len(k) - 3))


def by_kernel(kernel: Callable[[Tensor], Tensor]) -> Any:
    """CKA with another RBF kernel."""

    def wrong(right: Any, a: dict[str, Any]) -> Any:
        if a["kernel"] == "linear":
            return right(**a)
        k, l = (kernel(tensor(a[name])) for name in ("x", "y"))  # noqa: E741
        return hsic(k, l, a["estimator"]) / (hsic(k, k, a["estimator"]) * hsic(l, l, a["estimator"])).sqrt()

    return wrong


def distances(x: Tensor) -> Tensor:
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")


def without_half(x: Tensor) -> Tensor:
    d = distances(x)
    sigma = d[tuple(torch.triu_indices(len(x), len(x), 1))].quantile(0.5)
    return torch.exp(-d.square() / sigma.square())


def of_all_distances(x: Tensor) -> Tensor:
    d = distances(x)
    return torch.exp(-d.square() / (2.0 * d.flatten().quantile(0.5).square()))


def of_batches(value: Callable[[list[tuple[Tensor, Tensor]]], Tensor]) -> Any:
    return lambda right, a: value([(gram(tensor(x)), gram(tensor(y))) for x, y in zip(a["x"], a["y"], strict=True)])


def mean_of_ratios(estimator: str) -> Callable[[list[tuple[Tensor, Tensor]]], Tensor]:
    def ratio(k: Tensor, m: Tensor) -> Tensor:
        return hsic(k, m, estimator) / (hsic(k, k, estimator) * hsic(m, m, estimator)).sqrt()

    return lambda batches: torch.stack([ratio(*pair) for pair in batches]).mean()


def ratio_of_biased(batches: list[tuple[Tensor, Tensor]]) -> Tensor:
    kl, kk, ll = (sum(hsic(b[i], b[j], "biased") for b in batches) for i, j in ((0, 1), (0, 0), (1, 1)))
    return kl / (kk * ll).sqrt()


SIMILARITY = (
    changed("biased HSIC over n²", "hsic", lambda f, a: f(**a) * ((len(a["x"]) - 1) / len(a["x"])) ** 2),
    changed("unbiased HSIC with its diagonals", "hsic", with_diagonals),
    changed(
        "biased HSIC not divided", "hsic", lambda f, a: f(**a) * ((len(a["x"]) - 1) ** 2 if a["estimator"] == "biased" else 1)
    ),
    changed("HSIC's root for HSIC", "hsic", result(hsic=lambda v, a: v.sign() * v.abs().sqrt())),
    changed("CKA without the root", "cka", result(cka=lambda v, a: v**2)),
    changed("features not centred", "cka", lambda f, a: ratio_of_sums(linear(a["x"]), linear(a["y"]))),
    changed("Gram matrices centred on one side", "cka", one_sided),
    changed("biased CKA called unbiased", "cka", asked(estimator=lambda e: "biased")),
    changed("RBF kernel without its ½", "cka", by_kernel(without_half)),
    changed("σ the median of all distances, the zeros too", "cka", by_kernel(of_all_distances)),
    changed("mini-batches: CKA of the last batch alone", "minibatch_cka", asked(x=lambda x: x[-1:], y=lambda y: y[-1:])),
    changed("CKA averaged over batches", "minibatch_cka", of_batches(mean_of_ratios("unbiased"))),
    changed("mean of the batches' biased CKA", "minibatch_cka", of_batches(mean_of_ratios("biased"))),
    changed("mini-batches of biased HSIC", "minibatch_cka", of_batches(ratio_of_biased)),
)

IN_FORMULAS: tuple[Planted, ...] = (*PRIORS, *FLATTENING, *DECISIONS, *SIMILARITY)
