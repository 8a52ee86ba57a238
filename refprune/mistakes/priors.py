"""Mistakes in priors and in the flattening hyper-prior (P, F)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import expit, gammaln

from ..formulas import hyper_prior
from .planting import Function, Mistake, field_of, instead, result


def _naive_pi_star(theta: Any, log_gamma: Any) -> Any:
    with np.errstate(all="ignore"):
        gamma = np.exp(np.asarray(log_gamma, dtype=float))
        return gamma * np.asarray(theta) / (1 + (gamma - 1) * np.asarray(theta))


def _unshared_pi_star(theta: Any, log_gamma: Any) -> Any:
    with np.errstate(divide="ignore"):
        return expit(np.log(np.asarray(theta, dtype=float)) + np.asarray(log_gamma, dtype=float))


def _naive_log_density(pi: Any, log_gamma: Any) -> Any:
    with np.errstate(all="ignore"):
        l, p = np.asarray(log_gamma, dtype=float), np.asarray(pi, dtype=float)  # noqa: E741
        plain = np.log(np.expm1(l) / np.where(l == 0, 1, l)) - np.log1p(np.expm1(l) * (1 - p))
        return np.where(l == 0, 0.0, plain)


def _kl_through_pi_star(theta: Any, log_gamma: Any) -> Any:
    from ..formulas import scalar

    return scalar.bernoulli_kl(theta, hyper_prior.pi_star(theta, log_gamma))


def _beyond_forty(change: Function) -> Callable[[Function], Function]:
    """The result put through `change` where |log γ|, the last argument, is above 40: far beyond e^{−|log γ|} = 1e-16."""

    def wrong(f: Function) -> Function:
        def g(*a: Any) -> Any:
            right = f(*a)
            return np.where(np.abs(np.asarray(a[-1], dtype=float)) > 40.0, change(right), right)

        return g

    return wrong


def _one_degree_more(f: Function) -> Function:
    return lambda self, w: f(dataclasses.replace(self, degrees=self.degrees + 1.0), w)


def _dimension_forgotten(f: Function) -> Function:
    return lambda self, d: f(self, 1)


def _off_by_dimension(f: Function) -> Function:
    return lambda self, d: tuple(c + (d - 1) for c in f(self, d))


PRIORS = (
    Mistake("score with the wrong sign", "formulas.priors:SpikeSlab.density", field_of("score", np.negative), ("P1",)),
    Mistake("Student-t with one degree of freedom more", "formulas.priors:StudentT.density", _one_degree_more, ("P1",)),
    Mistake(
        "logarithms of Γ subtracted",
        "formulas.gamma_ratio:log_gamma_ratio",
        instead(lambda a, h: float(gammaln(a + h) - gammaln(a) - h * np.log(a))),
        ("P1",),
    ),
    Mistake("Laplace scale with mean b² instead of 2b²", "formulas.priors:Laplace.scale", result(lambda s: s / 2), ("P1",)),
    Mistake("Laplace score without 1/b", "formulas.priors:Laplace.density", field_of("score", np.sign), ("P1",)),
    Mistake(
        "horseshoe off by log 2", "formulas.priors:Horseshoe.density", field_of("log_density", lambda x: x + np.log(2)), ("P1",)
    ),
    Mistake(
        "half-Cauchy standard deviation taken for the variance", "formulas.priors:Horseshoe.scale", result(np.sqrt), ("P1",)
    ),
    Mistake("gamma scale instead of inverse gamma", "formulas.priors:StudentT.scale", result(lambda s: 1 / s), ("P1",)),
    Mistake(
        "samples with the scale for its root",
        "formulas.priors:sample",
        lambda f: lambda p, u, z: np.square(f(p, u, z)) * np.sign(z),
        ("P1", "P2"),
    ),
    Mistake(
        "spike and slab swapped in samples",
        "formulas.priors:SpikeSlab.scale",
        instead(lambda self, u: np.where(np.asarray(u) < self.pi, self.spike, 1 / self.precision)),
        ("P1", "P2"),
    ),
    Mistake("log-odds of a block as if d = 1", "formulas.priors:SpikeSlab.log_odds", _dimension_forgotten, ("P1", "P2")),
    Mistake("log-constants of a block off by d − 1", "formulas.priors:SpikeSlab.log_constants", _off_by_dimension, ("P1",)),
    Mistake("responsibility of the spike", "formulas.priors:SpikeSlab.responsibility", result(lambda r: 1 - r), ("P2",)),
    Mistake("gates on with probability 1−θ", "gates.estimators:sample", lambda f: lambda t, v: f(1 - t, v), ("P3", "O1")),
    Mistake(
        "gate vectors equally likely",
        "gates.estimators:enumerate_gates",
        lambda f: lambda t: ((g, 0.5**t.size) for g, _ in f(t)),
        ("P3", "O1", "O2", "O3", "O4"),
    ),
    Mistake(
        "weight decay of the data set not divided by N",
        "formulas.hyper_prior:decay_from_precision",
        instead(lambda p, n: p),
        ("P4",),
    ),
    Mistake("1/N dropped in β", "formulas.hyper_prior:beta_from_log_gamma", instead(lambda g, n: -g), ("P4", "O1")),
    Mistake("sign of β", "formulas.hyper_prior:beta_from_log_gamma", result(lambda b: -b), ("P4", "O1")),
    Mistake(
        "KL the other way round",
        "formulas.scalar:bernoulli_kl",
        lambda f: lambda t, p: f(*np.broadcast_arrays(p, t)),
        ("P5", "F4"),
    ),
    Mistake(
        "KL without its second half",
        "formulas.scalar:bernoulli_kl_from_logs",
        instead(lambda t, a, b: np.where(t > 0, t * (np.log(np.where(t > 0, t, 1)) - np.where(t > 0, a, 0)), 0.0)),
        ("P5", "F3", "F4", "F5"),
    ),
    Mistake(
        "log-density without its normaliser",
        "formulas.hyper_prior:log_density",
        lambda f: lambda p, g: f(p, g) - hyper_prior.log_normaliser(g),
        ("F1", "F4", "F6"),
    ),
    Mistake(
        "density without its normaliser",
        "formulas.hyper_prior:density",
        lambda f: lambda p, g: f(p, g) * np.exp(-np.clip(g, -700, 700)),
        ("F1", "F6"),
    ),
    Mistake("normaliser of 1/γ", "formulas.hyper_prior:log_normaliser", lambda f: lambda g: f(-np.asarray(g)), ("F1", "F6")),
    Mistake("slope of log p with the wrong sign", "formulas.hyper_prior:log_density_slope", result(np.negative), ("F1", "F6")),
    Mistake(
        "log-density of 1−π",
        "formulas.hyper_prior:log_density",
        lambda f: lambda p, g: f(1 - np.asarray(p), g),
        ("F1", "F4", "F6"),
    ),
    Mistake("sign of log γ in π*", "formulas.hyper_prior:pi_star", lambda f: lambda t, g: f(t, -np.asarray(g)), ("F2", "F6")),
    Mistake(
        "sign of log γ in log π*",
        "formulas.hyper_prior:log_pi_star",
        lambda f: lambda t, g: f(t, -np.asarray(g)),
        ("F2", "F3", "F6"),
    ),
    Mistake("log π* and log(1−π*) swapped", "formulas.hyper_prior:log_pi_star", result(lambda r: r[::-1]), ("F2", "F3", "F6")),
    Mistake(
        "π* = γθ/(1 + γθ)",
        "formulas.hyper_prior:pi_star",
        instead(_unshared_pi_star),
        ("F2", "F5", "F6"),
    ),
    Mistake(
        "sign of log γ in the penalty",
        "formulas.hyper_prior:penalty",
        lambda f: lambda t, g: f(t, -np.asarray(g)),
        ("F3", "F6"),
    ),
    Mistake(
        "KL at fixed π instead of the profiled penalty",
        "formulas.hyper_prior:penalty",
        instead(lambda t, g: np.where(np.asarray(g) == 0, 0.0, hyper_prior.kl_at_pi_star(t, g))),
        ("F3", "F6"),
    ),
    Mistake(
        "c(γ) without the normaliser",
        "formulas.hyper_prior:penalty_constant",
        instead(lambda g: np.asarray(g, dtype=float)),
        ("F3", "P4", "F6"),
    ),
    Mistake("slope of the penalty with the wrong sign", "formulas.hyper_prior:penalty_slope", result(np.negative), ("F3",)),
    Mistake("KL through π* itself", "formulas.hyper_prior:kl_at_pi_star", instead(_kl_through_pi_star), ("F3", "F6")),
    Mistake("log-density through γ", "formulas.hyper_prior:log_density", instead(_naive_log_density), ("F1", "F6")),
    Mistake(
        "normaliser off by 1 beyond |log γ| = 40", "formulas.hyper_prior:log_decay", _beyond_forty(lambda x: x + 1), ("F6",)
    ),
    Mistake(
        "slope of log p doubled beyond |log γ| = 40",
        "formulas.hyper_prior:log_density_slope",
        _beyond_forty(lambda x: 2 * x),
        ("F6",),
    ),
    Mistake(
        "log-density off by 1e-10 beyond |log γ| = 40",
        "formulas.hyper_prior:log_density",
        _beyond_forty(lambda x: x * (1 + 1e-10)),
        ("F6",),
    ),
    Mistake(
        "penalty off by 1e-10 beyond |log γ| = 40",
        "formulas.hyper_prior:penalty",
        _beyond_forty(lambda x: x * (1 + 1e-10)),
        ("F6",),
    ),
    Mistake(
        "KL of F3 off by 1e-10 beyond |log γ| = 40",
        "formulas.hyper_prior:kl_at_pi_star",
        _beyond_forty(lambda x: x * (1 + 1e-10)),
        ("F6",),
    ),
    Mistake(
        "c(γ) off by 1e-10 beyond |log γ| = 40",
        "formulas.hyper_prior:penalty_constant",
        _beyond_forty(lambda x: x * (1 + 1e-10)),
        ("F6",),
    ),
    Mistake("π* through γ", "formulas.hyper_prior:pi_star", instead(_naive_pi_star), ("F2", "F6")),
)
