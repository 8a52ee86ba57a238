"""Gaussian scale mixture priors of weights: density, score, responsibility, sampling (SPEC P1, P2).

A prior is p(w) = ∫ N(w; 0, s I) p(s) ds over a block w of d entries. `SpikeSlab` and `StudentT` are priors *of a block*: w has
shape (…, d), its log-density (…). A prior per weight is that of blocks of one entry: give w[..., None]. `Laplace` and
`Horseshoe` are priors *per weight*: the log-density has the shape of w. The score ∂ log p/∂w always has the shape of w.

`scale(u)` is the quantile function of the mixing distribution p(s), so that √scale(u)·z with z standard normal is a sample: all
randomness is an argument (O8). Results have the dtype of w where that is float32, else float64.

The first prior is that of Guenter & Sideris (arXiv 2406.04549); the other three are textbook members of the class.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import exp1, expit, gammaincinv, logit

from ..errors import InputError
from .gamma_ratio import log_gamma_ratio
from .scalar import Float, finite, log, log1m, not_negative, numbers, positive, probability, single, where

Array = NDArray[Any]

TINY, LARGE = 1e-20, 0.5  # z below which e^z E₁(z) is −γ − log z, and from which on its continued fraction is used
SMALLEST = 1.0 / np.finfo(np.float64).max.item()  # of the spike's variances
TERMS = 192  # of it, for float64 at z = LARGE
NEAR, FAR = 1e-17, 1e290  # of ‖w‖²/(νσ²): log(1 + u) is u below, log u above


class Density(NamedTuple):
    """log p(w) and ∂ log p/∂w, shapes as the module says, and the sum of the log-densities."""

    log_density: Array
    score: Array
    total: float


def _density(log_density: Array, score: Array, dtype: Any = None) -> Density:
    """In `dtype`, where one is given."""
    if dtype is not None:
        with np.errstate(over="ignore"):
            log_density, score = log_density.astype(dtype), score.astype(dtype)
    return Density(log_density, score, float(np.sum(log_density, dtype=np.float64)))


def representable(dtype: Any, *constants: float) -> bool:
    """Is every constant 0 or a normal number of this dtype? Else what is made of it has too few digits, or none."""
    smallest, largest = np.finfo(dtype).tiny.item(), np.finfo(dtype).max.item()
    return all(c == 0.0 or smallest <= abs(c) <= largest for c in constants)


def _weights(w: ArrayLike) -> Array:
    """w as float32 or float64. InputError where an entry is not finite."""
    x = numbers("w", w, "finite numbers are allowed")
    if x.dtype != np.float32:
        x = np.asarray(x, dtype=np.float64)
    if not np.isfinite(x).all():
        place = tuple(map(int, np.argwhere(~np.isfinite(x))[0]))
        raise InputError(f"w{list(place) if place else ''}: got {x[place]}; finite numbers are allowed")
    return x


def _entries(x: Array) -> int:
    """d of blocks. InputError unless the last axis holds the entries of a block."""
    if x.ndim == 0 or x.shape[-1] == 0:
        raise InputError(f"w: shape {x.shape} has no blocks; its last axis must hold the entries of a block, at least one")
    return int(x.shape[-1])


def _to_power_of_two(x: Float) -> tuple[Float, NDArray[np.intp]]:
    """(y, k) with x = 2ᵏ y, one k for each block, and the largest |y| in [½, 1); zeros stay."""
    _, k = np.frexp(np.abs(x).max(axis=-1))
    return np.ldexp(x, -k[..., None]), k.astype(np.intp)


def _degrees(name: str, value: ArrayLike) -> Float:
    return where(name, value, lambda x: (x >= 1e-300) & (x <= 1e300), "numbers from 1e-300 to 1e300 are allowed")


def _variance(name: str, width: float) -> float:
    """width², the variance of a sample. InputError where it is no normal number."""
    if not 1e-153 <= width <= 1e153:
        raise InputError(f"{name}: got {width}; for samples, whose variance is its square, 1e-153 to 1e153 are allowed")
    return width * width


def _block(w: ArrayLike) -> tuple[Array, Array]:
    """(w, ‖w‖² of each block). InputError unless the last axis holds the entries of a block."""
    x = _weights(w)
    _entries(x)
    with np.errstate(over="ignore"):
        return x, (x[..., 0] * x[..., 0] if x.shape[-1] == 1 else np.square(x).sum(axis=-1))


def _needs_double(x: Array, square: Array, *constants: float) -> bool:
    """Can float32 not hold what a block's density is made of?"""
    return x.dtype == np.float32 and not (representable(x.dtype, *constants) and np.isfinite(square).all())


def _uniform(u: ArrayLike) -> Float:
    return where("uniform", u, lambda x: (x > 0.0) & (x < 1.0), "numbers strictly between 0 and 1 are allowed")


def _check(prior: Any, **rules: Callable[[str, ArrayLike], Float]) -> None:
    for name, rule in rules.items():
        single(name, getattr(prior, name), rule)


# --------------------------------------------------------------------------------------------------------------------
# Of a block


@dataclass(frozen=True)
class SpikeSlab:
    """(1−π) N(0, s₀ I) + π N(0, λ⁻¹ I): Bernoulli scale (P1, P2). Of a block.

    pi: π in [0, 1]; precision: λ > 0 of the slab; spike: s₀ with 0 ≤ s₀ < 1/λ. s₀ = 0 has responsibilities and samples, but
    no density.
    """

    pi: float
    precision: float
    spike: float

    def __post_init__(self) -> None:
        _check(self, pi=probability, precision=positive, spike=not_negative)
        if not self.spike < 1.0 / self.precision:
            raise InputError(f"spike: got {self.spike}; numbers from 0 to below the slab's variance 1/precision are allowed")
        if 0.0 < self.spike < SMALLEST:
            raise InputError(
                f"spike: got {self.spike}; 0 and numbers from {SMALLEST:.3g}, of which 1/spike is finite, are allowed"
            )

    def log_odds(self, d: int) -> tuple[float, float]:
        """(a, b) with logit r = a + b‖w‖²: a = logit π + ½ d log(λ s₀), b = ½(1/s₀ − λ) (P2). s₀ > 0."""
        logarithms = math.log(self.precision) + math.log(self.spike)
        return float(logit(self.pi)) + 0.5 * d * logarithms, 0.5 * (1.0 / self.spike - self.precision)

    def log_constants(self, d: int) -> tuple[float, float]:
        """Log-densities at w = 0 of spike and slab, log(1−π) − ½ d log(2π s₀) and log π + ½ d log(λ/2π). s₀ > 0."""
        spike = float(log1m(np.asarray(self.pi))) - 0.5 * d * math.log(2.0 * math.pi * self.spike)
        return spike, float(log(np.asarray(self.pi))) + 0.5 * d * math.log(self.precision / (2.0 * math.pi))

    def responsibility(self, w: ArrayLike) -> Array:
        """r, the probability that w comes from the slab (P2), shape (…); for s₀ = 0 its limit: 1 if w ≠ 0, else 0."""
        x, square = _block(w)
        if self.pi in (0.0, 1.0):
            return np.asarray(np.full_like(square, self.pi))
        if self.spike == 0.0:
            return np.asarray(np.any(x != 0.0, axis=-1), dtype=x.dtype)
        a, b = self.log_odds(x.shape[-1])
        if _needs_double(x, square, b):
            return self.responsibility(x.astype(np.float64)).astype(np.float32)
        with np.errstate(over="ignore"):
            return np.asarray(expit(a + b * square))

    def density(self, w: ArrayLike) -> Density:
        """log p(w) and its score −w((1−r)/s₀ + rλ). InputError for s₀ = 0."""
        if self.spike == 0.0:
            raise InputError("spike: got 0; a density needs a spike of positive variance")
        x, square = _block(w)
        (spike, slab), (a, b) = self.log_constants(x.shape[-1]), self.log_odds(x.shape[-1])
        if _needs_double(x, square, b, self.spike, 1.0 / self.spike, self.precision):
            return _density(*self.density(x.astype(np.float64))[:2], x.dtype)
        with np.errstate(over="ignore"):
            log_p = np.logaddexp(spike - square / (2.0 * self.spike), slab - 0.5 * self.precision * square)
            odds = np.full_like(square, a) if self.pi in (0.0, 1.0) else a + b * square
        pull = expit(-odds) / self.spike + expit(odds) * self.precision
        return _density(np.asarray(log_p), -x * pull[..., None])

    def scale(self, uniform: ArrayLike) -> Float:
        """s₀ for u < 1−π, else 1/λ."""
        return np.where(_uniform(uniform) < 1.0 - self.pi, self.spike, 1.0 / self.precision)


@dataclass(frozen=True)
class StudentT:
    """Inverse-gamma scale: Γ((ν+d)/2)/(Γ(ν/2)(νπσ²)^{d/2}) (1 + ‖w‖²/(νσ²))^{−(ν+d)/2} (P1). Of a block.

    degrees: ν from 1e-300 to 1e300; width: σ > 0. s ~ InvGamma(ν/2, νσ²/2).
    """

    degrees: float
    width: float

    def __post_init__(self) -> None:
        _check(self, degrees=_degrees, width=positive)

    def log_constant(self, d: int) -> float:
        """log p(0) = logΓ((ν+d)/2) − logΓ(ν/2) − ½d log(ν/2) − ½d log 2π − d log σ; the first three are one summand."""
        ratio = log_gamma_ratio(0.5 * self.degrees, 0.5 * d)
        return math.fsum([ratio, -0.5 * d * math.log(2.0 * math.pi), -d * math.log(self.width)])

    def density(self, w: ArrayLike) -> Density:
        """log p(w) and its score −(ν+d) w/(νσ² + ‖w‖²); in double precision, also where ‖w‖² or σ² overflows."""
        x = _weights(w)
        d, n = _entries(x), self.degrees
        y, shift = _to_power_of_two(np.asarray(x, dtype=np.float64))
        mantissa, exponent = math.frexp(self.width)
        with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
            square = np.square(y).sum(axis=-1) / (mantissa * mantissa)  # q 4^{−k}, q = ‖w‖²/σ²
            q = np.ldexp(square, 2 * (shift - exponent))
            u = q / n
            far = log(square) + 2.0 * math.log(2.0) * (shift - exponent) - math.log(n)
            near = 0.5 * (1.0 + d / n) * q if n >= 1.0 else 0.5 * (n + d) * u
            middle = 0.5 * (n + d) * np.log1p(np.where(u > FAR, 0.0, u))
            fall = np.where(u > FAR, 0.5 * (n + d) * far, np.where(u < NEAR, near, middle))
            inside = np.ldexp(
                (1.0 + d / n) / (1.0 + u)[..., None] * y / (mantissa * mantissa), (shift - 2 * exponent)[..., None]
            )
            outside = np.ldexp(
                (n + d) / (1.0 + 1.0 / u)[..., None] * y / (square * mantissa * mantissa)[..., None], -shift[..., None]
            )
        return _density(self.log_constant(d) - fall, -np.where((u < 1.0)[..., None], inside, outside), x.dtype)

    def scale(self, uniform: ArrayLike) -> Float:
        """νσ²/2 over the quantile of a Gamma(ν/2) variable. InputError where σ² is no normal number."""
        half = 0.5 * self.degrees
        return np.asarray(_variance("width", self.width) * (half / gammaincinv(half, 1.0 - _uniform(uniform))))


# --------------------------------------------------------------------------------------------------------------------
# Per weight


@dataclass(frozen=True)
class Laplace:
    """Exponential scale with mean 2b²: e^{−|w|/b}/(2b) (P1). Per weight. width: b > 0."""

    width: float

    def __post_init__(self) -> None:
        _check(self, width=positive)

    def density(self, w: ArrayLike) -> Density:
        """log p(w) and its score −sign(w)/b, 0 at the kink w = 0."""
        x = _weights(w)
        if x.dtype == np.float32 and not representable(x.dtype, self.width, 1.0 / self.width):
            return _density(*self.density(x.astype(np.float64))[:2], x.dtype)
        return _density(-np.abs(x) / self.width - (math.log(2.0) + math.log(self.width)), np.asarray(-np.sign(x) / self.width))

    def scale(self, uniform: ArrayLike) -> Float:
        """−2b² log(1−u)."""
        return np.asarray(-2.0 * _variance("width", self.width) * np.log1p(-_uniform(uniform)))


@dataclass(frozen=True)
class Horseshoe:
    """Half-Cauchy standard deviation of width τ: e^z E₁(z)/(τ√(2π³)), z = w²/(2τ²) (P1). Per weight. width: τ > 0."""

    width: float

    def __post_init__(self) -> None:
        _check(self, width=positive)

    def density(self, w: ArrayLike) -> Density:
        """log p(w), +∞ at w = 0, and its score −(2/w) U(1, 0, z)/U(1, 1, z), given as 0 at w = 0, its limits being ±∞."""
        given = _weights(w)
        x = np.asarray(given, dtype=np.float64)
        ratio = np.abs(x) / self.width
        log_u, quotient = _tricomi(ratio, log(np.abs(x)) - math.log(self.width))
        with np.errstate(over="ignore"):
            size = 2.0 * quotient / np.where(x != 0.0, x, 1.0)
        log_p = log_u - math.log(self.width) - 0.5 * math.log(2.0 * math.pi**3)
        return _density(np.asarray(log_p), np.where(x != 0.0, -size, 0.0), given.dtype)

    def scale(self, uniform: ArrayLike) -> Float:
        """τ² tan²(πu/2)."""
        return np.asarray(_variance("width", self.width) * np.square(np.tan(0.5 * math.pi * _uniform(uniform))))


def _tricomi(ratio: Float, log_ratio: Float) -> tuple[Float, Float]:
    """(log U(1, 1, z), U(1, 0, z)/U(1, 1, z)) with z = ratio²/2 and U Tricomi's function; U(1, 1, z) = e^z E₁(z).

    Since U(1, 0, z) = 1 − z U(1, 1, z), the quotient q is 1/U(1, 1, z) − z. That cancels for larger z, where Stieltjes'
    continued fraction serves, 1/U(1, 1, z) = z + q with q = 1 − 1/(z+3 − 4/(z+5 − 9/(z+7 − …))). (SciPy's hyperu would be the
    direct way; it is off by up to 1e-11 around z = 25.)
    """
    with np.errstate(over="ignore"):
        z = 0.5 * np.square(ratio)
    log_z = 2.0 * log_ratio - math.log(2.0)
    tiny, small = z < TINY, z < LARGE
    inside = np.where(tiny | ~small, 1.0, z)
    near = np.where(tiny, -np.euler_gamma - np.where(tiny, log_z, -1.0), np.exp(inside) * exp1(inside))
    outside = np.where(small, LARGE, z)
    denominator = outside + (2.0 * TERMS + 1.0)
    for k in range(TERMS, 1, -1):
        denominator = outside + (2.0 * k - 1.0) - (k * k) / denominator
    tail = 1.0 - 1.0 / denominator
    quotient = np.where(small, 1.0 / near - np.where(small, z, 0.0), tail)
    return np.asarray(np.where(small, np.log(near), -log_z - np.log1p(tail / outside))), np.asarray(quotient)


Prior = SpikeSlab | StudentT | Laplace | Horseshoe


def sample(prior: Prior, uniform: ArrayLike, normal: ArrayLike) -> Float:
    """Weights from standard normals and the uniform numbers that make their scales: √s·z, shape of `normal`.

    uniform: strictly in (0, 1), one a block (shape of `normal` without its last axis) for SpikeSlab and StudentT, else one a
    weight.
    """
    z, scale = finite("normal", normal), prior.scale(uniform)
    per_block = isinstance(prior, SpikeSlab | StudentT)
    wanted = z.shape[:-1] if per_block else z.shape
    if scale.shape != wanted or (per_block and not z.ndim):
        raise InputError(f"uniform: shape {scale.shape} does not meet normal's {z.shape}; {wanted} is allowed")
    root = np.sqrt(scale)
    return np.asarray((root[..., None] if per_block else root) * z)


def prior_density(w: ArrayLike, prior: Prior) -> Density:
    """`prior.density(w)`: the oracle of `Backend.prior_density`."""
    return prior.density(w)
