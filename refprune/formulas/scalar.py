"""Functions of single numbers whose ends are exact: logarithms of probabilities, the Bernoulli divergence (SPEC P5).

All work in float64; logarithms of 0 are −∞, and what is multiplied by a probability 0 counts as 0 (0 log 0 = 0).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import xlogy

from ..errors import InputError

Float = NDArray[np.float64]


def numbers(name: str, value: ArrayLike, rule: str) -> NDArray[Any]:
    """`value` as an array of real numbers. InputError names the argument and says what is allowed."""
    try:
        x = np.asarray(value)
        if x.dtype.kind == "O":  # fractions, Python's large integers
            x = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{name}: {value!r} is no array of numbers; {rule}") from error
    if x.dtype.kind not in "biuf":
        kind = "complex" if x.dtype.kind == "c" else "no array of numbers"
        raise InputError(f"{name}: {value!r} is {kind}; {rule}")
    return x


def finite(name: str, value: ArrayLike) -> Float:
    """`value` as float64. InputError names the argument and the first entry that is NaN or infinite."""
    return where(name, value, np.isfinite, "finite numbers are allowed")


def probability(name: str, value: ArrayLike) -> Float:
    """`value` as float64. InputError names the argument and the first entry outside [0, 1]."""
    return where(name, value, lambda p: (p >= 0.0) & (p <= 1.0), "numbers from 0 to 1 are allowed")


def positive(name: str, value: ArrayLike) -> Float:
    """`value` as float64. InputError names the argument and the first entry that is not finite and above 0."""
    return where(name, value, lambda x: (x > 0.0) & np.isfinite(x), "finite numbers above 0 are allowed")


def not_negative(name: str, value: ArrayLike) -> Float:
    """`value` as float64. InputError names the argument and the first entry that is not finite and at least 0."""
    return where(name, value, lambda x: (x >= 0.0) & np.isfinite(x), "finite numbers from 0 are allowed")


def where(name: str, value: ArrayLike, allowed: Callable[[Float], Any], rule: str) -> Float:
    """`value` as float64. InputError names the argument and the first entry that is not `allowed`, and states the rule."""
    x = np.asarray(numbers(name, value, rule), dtype=np.float64)
    bad = np.argwhere(~allowed(x))
    if len(bad):
        place = tuple(map(int, bad[0]))
        at = f"[{', '.join(map(str, place))}]" if place else ""
        raise InputError(f"{name}{at}: got {float(x[place])}; {rule}")
    return x


def single(name: str, value: ArrayLike, rule: Callable[[str, ArrayLike], Float] = finite) -> float:
    """One number that keeps the rule, one of those above. InputError for an array and for what breaks the rule."""
    x = rule(name, value)
    if x.ndim:
        raise InputError(f"{name}: got an array of shape {x.shape}; one number is allowed")
    return float(x)


def same_shape(**arrays: Float) -> tuple[int, ...]:
    """The shape that all arrays have, scalars aside. InputError names the first two that differ."""
    shape, first = (), ""
    for name, x in arrays.items():
        if x.ndim and not first:
            shape, first = x.shape, name
        elif x.ndim and x.shape != shape:
            raise InputError(f"{name}: shape {x.shape} does not meet {first}'s {shape}; the same shape or a scalar is allowed")
    return shape


def log(p: Float) -> Float:
    """log p with log 0 = −∞, without a warning."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(p))


def log1m(p: Float) -> Float:
    """log(1 − p) with log 0 = −∞, without a warning."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.log1p(-p))


def logit(p: Float) -> Float:
    """log p − log(1 − p); −∞ at 0 and +∞ at 1."""
    return log(p) - log1m(p)


def log1pexp(x: Float) -> Float:
    """log(1 + eˣ) for any x, infinities too."""
    return np.asarray(np.logaddexp(0.0, x))


def bernoulli_kl(theta: ArrayLike, pi: ArrayLike) -> Float:
    """KL(Bern(θ) ‖ Bern(π)) (P5), the shape of θ and π: +∞ iff (π = 0 and θ > 0) or (π = 1 and θ < 1).

    InputError for a number outside [0, 1] or shapes that do not meet.
    """
    t, p = probability("theta", theta), probability("pi", pi)
    same_shape(theta=t, pi=p)
    return bernoulli_kl_from_logs(t, log(p), log1m(p))


def bernoulli_kl_from_logs(theta: Float, log_pi: Float, log_not_pi: Float) -> Float:
    """The same from log π and log(1 − π), for a π that float64 cannot tell from 0 or 1 (F6)."""
    on = xlogy(theta, theta) - _product(theta, log_pi)
    off = _product(1.0 - theta, log1m(theta)) - _product(1.0 - theta, log_not_pi)
    return np.asarray(on + off)


def _product(p: Float, log_q: Float) -> Float:
    """p log q with 0·(−∞) = 0."""
    return np.asarray(np.where(p > 0.0, p * np.where(p > 0.0, log_q, 0.0), 0.0))
