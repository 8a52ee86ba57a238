"""The flattening hyper-prior p(π|γ) on a Bernoulli parameter π, and what it leaves of the KL term (SPEC F; *derived here*).

    p(π|γ) = (γ−1)/log γ · 1/(π + γ(1−π)),      min over π of KL(θ‖π) − log p(π|γ)  =  −θ log γ + c(γ)

It is given by L = log γ, any finite number (−Nβ is often in the thousands), never by γ. π and θ may be 0 and 1. Every function
takes arrays of one shape, or scalars among them, and raises InputError, naming the argument and the value, for a number outside
[0, 1], for an L that is not finite, and for shapes that do not meet.

*Numerics* (F6). Everything is written for L ≤ 0 and reflected, p(π|γ) = p(1−π|1/γ), so that only e^{−|L|} occurs and no
summand of size |L| cancels another. Where e^{−|L|} is subnormal, both terms of the denominator are scaled by a power of 2.
Against 50 digits: π*, densities and slopes within 4 ulp, logarithms within 4 ulp of the largest summand.

`profile` and `hyper_prior` give what a training step needs of whole arrays, with the sum, and are functions of a Backend.
"""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from .scalar import (
    Float,
    bernoulli_kl_from_logs,
    finite,
    log,
    log1m,
    log1pexp,
    logit,
    not_negative,
    probability,
    same_shape,
    single,
)

SUBNORMAL = 600.0  # |L| from which e^{−|L|} is taken as the product of two roots, one of them scaled by 2^SHIFT
SHIFT = 400

Shift = NDArray[np.int32]


# --------------------------------------------------------------------------------------------------------------------
# The density


def log_normaliser(log_gamma: ArrayLike) -> Float:
    """log((γ−1)/log γ), the constant that makes ∫₀¹ p dπ = 1 (F1)."""
    l = finite("log_gamma", log_gamma)  # noqa: E741
    return np.asarray(np.maximum(l, 0.0) + log_decay(np.abs(l)))


def log_decay(a: Float) -> Float:
    """log((1 − e^{−a})/a) for a ≥ 0; for small a as −a/2 + log(sinh(a/2)/(a/2))."""
    half = np.minimum(a, 1.0) / 2.0
    square = half * half
    excess = np.zeros_like(a)
    for k in range(8, 0, -1):  # sinh(h)/h − 1 by its series, to float64 for h ≤ ½
        excess = square / (2 * k * (2 * k + 1)) * (1.0 + excess)
    large = np.maximum(a, 1.0)
    return np.asarray(np.where(a < 1.0, np.log1p(excess) - half, np.log(-np.expm1(-large) / large)))


def log_density(pi: ArrayLike, log_gamma: ArrayLike) -> Float:
    """log p(π|γ) (F1)."""
    p, l = probability("pi", pi), finite("log_gamma", log_gamma)  # noqa: E741
    same_shape(pi=p, log_gamma=l)
    a, up = np.abs(l), l > 0.0
    log_near, log_far = np.where(up, log1m(p), log(p)), np.where(up, log(p), log1m(p))  # of π' and 1 − π'
    removed = -np.expm1(-a) * np.where(up, p, 1.0 - p)  # π' + e^{−a}(1−π') = 1 − removed
    denominator = np.where(removed <= 0.5, np.log1p(-np.minimum(removed, 0.5)), np.logaddexp(log_near, log_far - a))
    return np.asarray(log_decay(a) - denominator)


def density(pi: ArrayLike, log_gamma: ArrayLike) -> Float:
    """p(π|γ) (F1); +∞ where it overflows."""
    value, shift = _over_denominator(pi, log_gamma)
    a = np.abs(np.asarray(log_gamma, dtype=np.float64))
    mantissa, exponent = np.frexp(np.where(a > 0.0, a, 1.0))
    with np.errstate(over="ignore"):
        return np.asarray(np.where(a > 0.0, np.ldexp(value / mantissa, shift - exponent), 1.0))


def log_density_slope(pi: ArrayLike, log_gamma: ArrayLike) -> Float:
    """∂ log p(π|γ)/∂π = (γ−1)/(π + γ(1−π)), which is log γ · p(π|γ); ±∞ where it overflows."""
    value, shift = _over_denominator(pi, log_gamma)
    with np.errstate(over="ignore"):
        return np.asarray(np.sign(np.asarray(log_gamma, dtype=np.float64)) * np.ldexp(value, shift))


def _over_denominator(pi: ArrayLike, log_gamma: ArrayLike) -> tuple[Float, Shift]:
    """(x, k) with x·2ᵏ = (1 − e^{−a})/(π' + e^{−a}(1−π')), a = |L|, π' = π for L ≤ 0 and 1 − π for L > 0."""
    p, l = probability("pi", pi), finite("log_gamma", log_gamma)  # noqa: E741
    same_shape(pi=p, log_gamma=l)
    a, up = np.abs(l), l > 0.0
    near, far = np.where(up, 1.0 - p, p), np.where(up, p, 1.0 - p)
    decay, shift = _scaled_exponential(a)
    with np.errstate(divide="ignore"):
        return np.asarray(-np.expm1(-a) / (np.ldexp(near, shift) + decay * far)), shift


def _scaled_exponential(a: Float) -> tuple[Float, Shift]:
    """(e^{−a}·2^shift, shift) for a ≥ 0, with all digits also where e^{−a} itself is subnormal."""
    deep = a > SUBNORMAL
    shift = np.where(deep, SHIFT, 0).astype(np.int32)
    root = np.exp(-np.where(deep, a, 0.0) / 2.0)
    return np.asarray(np.where(deep, np.ldexp(root, shift) * root, np.exp(-np.where(deep, 0.0, a)))), shift


# --------------------------------------------------------------------------------------------------------------------
# Its minimiser, and the profiled KL


def pi_star(theta: ArrayLike, log_gamma: ArrayLike) -> Float:
    """argmin over π of KL(θ‖π) − log p(π|γ) = γθ/(1 + (γ−1)θ) (F2); 0 at θ = 0 and 1 at θ = 1."""
    t, l = probability("theta", theta), finite("log_gamma", log_gamma)  # noqa: E741
    same_shape(theta=t, log_gamma=l)
    decay, shift = _scaled_exponential(np.abs(l))
    up = l > 0.0
    on, off = np.where(up, np.ldexp(t, shift), decay * t), np.where(up, decay * (1.0 - t), np.ldexp(1.0 - t, shift))
    return np.asarray(np.where((t == 0.0) | (t == 1.0), t, on / np.where(on + off > 0.0, on + off, 1.0)))


def log_pi_star(theta: ArrayLike, log_gamma: ArrayLike) -> tuple[Float, Float]:
    """(log π*, log(1−π*)) from logit π* = logit θ + log γ (F2, F6): finite for θ in (0, 1), whatever γ."""
    t, l = probability("theta", theta), finite("log_gamma", log_gamma)  # noqa: E741
    same_shape(theta=t, log_gamma=l)
    at = logit(t) + l
    return -log1pexp(-at), -log1pexp(at)


def penalty_constant(log_gamma: ArrayLike) -> Float:
    """c(γ) = log γ − log((γ−1)/log γ) of F3: what θ = 0 costs, −log p(0|γ)."""
    l = finite("log_gamma", log_gamma)  # noqa: E741
    return np.asarray(np.minimum(l, 0.0) - log_decay(np.abs(l)))


def penalty(theta: ArrayLike, log_gamma: ArrayLike) -> Float:
    """min over π of KL(θ‖π) − log p(π|γ) = −θ log γ + c(γ) (F3), per gate and data set; linear in θ."""
    t, l = probability("theta", theta), finite("log_gamma", log_gamma)  # noqa: E741
    same_shape(theta=t, log_gamma=l)
    return np.asarray(penalty_constant(l) - t * l)


def penalty_slope(log_gamma: ArrayLike) -> Float:
    """∂penalty/∂θ = −log γ (F3), per gate and data set: above 0, so that θ falls, for γ < 1."""
    return np.asarray(-finite("log_gamma", log_gamma))


def kl_at_pi_star(theta: ArrayLike, log_gamma: ArrayLike) -> Float:
    """KL(θ‖π*(θ)), finite for every θ and γ: from the logarithms of π* (F6)."""
    log_pi, log_not_pi = log_pi_star(theta, log_gamma)
    return bernoulli_kl_from_logs(probability("theta", theta), log_pi, log_not_pi)


# --------------------------------------------------------------------------------------------------------------------
# Whole arrays: the oracles of `Backend.flattening_profile` and `Backend.flattening_density`


class Profile(NamedTuple):
    """π* and the profiled penalty of every gate, and the penalty's sum."""

    pi_star: Float
    penalty: Float
    total: float


class HyperPrior(NamedTuple):
    """log p(π|γ) and its derivative for every gate, and the sum of the logarithms."""

    log_density: Float
    slope: Float
    total: float


def flattening_profile(theta: Float, log_gamma: ArrayLike) -> Profile:
    """π*(θ) (F2) and −θ log γ + c(γ) (F3) for θ of any shape; log γ a scalar or of that shape."""
    t, g = _of_one_shape("theta", theta, log_gamma)
    cost = penalty(t, g)
    return Profile(pi_star(t, g), cost, float(cost.sum()))


def flattening_density(pi: Float, log_gamma: ArrayLike) -> HyperPrior:
    """log p(π|γ) and its derivative (F1) for π of any shape; log γ a scalar or of that shape."""
    p, g = _of_one_shape("pi", pi, log_gamma)
    value = log_density(p, g)
    return HyperPrior(value, log_density_slope(p, g), float(value.sum()))


def _of_one_shape(name: str, first: ArrayLike, log_gamma: ArrayLike) -> tuple[Float, Float]:
    """InputError where log γ is larger than what it belongs to, too."""
    x, l = probability(name, first), finite("log_gamma", log_gamma)  # noqa: E741
    if l.ndim and not x.ndim:
        raise InputError(f"log_gamma: shape {l.shape} does not meet {name}'s {x.shape}; the same shape or a scalar is allowed")
    return x, l


# --------------------------------------------------------------------------------------------------------------------
# Per data set and per sample (O1)


def beta_from_log_gamma(log_gamma: float, samples: int) -> float:
    """Penalty per sample and gate, β = −log γ / N, from log γ of a data set of N samples (F3, O1)."""
    return -single("log_gamma", log_gamma) / _counted(samples)


def log_gamma_from_beta(beta: float, samples: int) -> float:
    """log γ = −N β: the hyper-prior's parameter that pulls as strongly as β per sample. InputError where it overflows."""
    return -_times("beta", single("beta", beta), samples)


def decay_from_precision(precision: float, samples: int) -> float:
    """λ of the per-sample objective (O1) from the slab's precision λ ≥ 0 of P4, that for the whole data set: divided by N."""
    return single("precision", precision, not_negative) / _counted(samples)


def precision_from_decay(decay: float, samples: int) -> float:
    """The slab's precision that decays weights as strongly as λ ≥ 0 per sample: λ N. InputError where it overflows."""
    return _times("decay", single("decay", decay, not_negative), samples)


def _times(name: str, value: float, samples: int) -> float:
    product = value * _counted(samples)
    if not math.isfinite(product):
        raise InputError(
            f"{name}: got {value}, which overflows when multiplied by {samples} samples; smaller numbers are allowed"
        )
    return product


def _counted(samples: Any) -> int:
    if not isinstance(samples, Integral) or samples < 1:
        raise InputError(f"samples: must be an integer of at least 1, got {samples}")
    return int(samples)
