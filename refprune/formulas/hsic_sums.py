"""How similar two sets of features of the same samples are: HSIC and CKA, biased and unbiased, whole or in batches (SPEC K).

Features are n×p, a sample a row; K and L are kernel matrices n×n of two such arrays. With A and B, which are K and L *centred*,

    CKA = HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)),     HSIC = Σ A_ij B_ij / (n−1)² (biased),  / n(n−3) (unbiased, diagonals 0).

*Centring.* Both HSICs of X and of X + 1cᵀ are the same, exactly, for every c and both kernels. An RBF kernel sees differences
only; in the linear one the shift adds a_i + a_j to K_ij, which both ways of centring K remove (`centred_kernel`, *derived
here*). So columns may be centred first, and are. For rounding: the entries of XXᵀ are rounded in proportion to squared means,
and what centring leaves of them is in proportion to variances; if a mean is 10⁴ standard deviations, 8 digits are lost. For
cost: with Xᵀ1 = 0, row i of K sums to 0, and to −k_i without the diagonal, k_i = ‖x_i‖², so that *in feature space*

    biased    (n−1)² HSIC  =  ‖XᵀY‖²
    unbiased  n(n−3) HSIC  =  ‖XᵀY‖² − n/(n−2) Σ k_i l_i + (Σ k_i)(Σ l_i)/((n−1)(n−2))     (*derived here*).

The mean is subtracted twice, the second one being that of what the first left: the rounding that stays is in proportion to the
deviations, not to the mean. Features whose largest entry lies beyond 2^±100 are first scaled by a power of two, so that no
product overflows or vanishes; CKA does not change (K3), and HSICs are scaled back at the end. Everything is float64, whatever
the dtype of the features.

Sources: Kornblith et al. 2019 (CKA), Song et al. 2012 (unbiased HSIC), Nguyen et al. 2021 (mini-batches).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any, Literal, NamedTuple, cast, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError

Array = NDArray[Any]
Float = NDArray[np.float64]
Estimator = Literal["biased", "unbiased"]
Kernel = Literal["linear", "rbf"]
Side = Literal["cheaper", "features", "samples"]
Sigma = float | Sequence[float] | None
Status = Literal["ok", "too few samples", "no variation", "zero bandwidth", "not finite", "self-HSIC within rounding"]

#: (A, B) → AᵀB for float64 A k×a and B k×b, C- or Fortran-contiguous. Where the result is symmetric, A *is* B.
Product = Callable[[Float, Float], Float]

#: Fewest samples for which an estimator is defined.
FEWEST: dict[Estimator, int] = {"biased": 2, "unbiased": 4}

#: Numbers in a block of centred features, which then stays in a cache; more where the product itself is larger.
BLOCK = 2**16

#: Features of which every entry is below 2^USUAL and some entry above 2^−USUAL are not scaled.
USUAL = 100

_UNIT = 2.0**-53


def numpy_product(a: Float, b: Float) -> Float:
    """AᵀB; NumPy computes half of it when A is B."""
    return np.asarray(a.T @ b)


# --------------------------------------------------------------------------------------------------------------------
# Results


@dataclass(frozen=True)
class Similarity:
    """CKA of two feature arrays, or the reason why there is none (K7).

    value: None unless status is "ok". In [−1, 1], biased in [0, 1], up to rounding; unbiased, independent features scatter
    around 0 and a negative value is none of the degenerate cases.
    status, the first that applies to either array: "too few samples" n < 4 unbiased, n < 2 biased, in any batch; "no variation"
    ‖X − mean‖ ≤ u‖X‖ (Frobenius) with u of the features' dtype, constant as far as storage can tell; "zero bandwidth" half of
    the distances are 0, so that their median is no σ; "not finite" a NaN, an infinity or an overflow; "self-HSIC within
    rounding" not above `_floor` (the unbiased one is 0 also where all samples but one are equal, or all are orthogonal).
    hsic_xy, hsic_xx, hsic_yy: the HSICs, of mini-batches their means.
    """

    value: float | None
    status: Status
    hsic_xy: float
    hsic_xx: float
    hsic_yy: float


@dataclass(frozen=True, eq=False)
class Similarities:
    """CKA of all pairs of m feature arrays: values (NaN exactly where status is not "ok"), status and hsic, each m×m."""

    values: Float
    status: NDArray[np.str_]
    hsic: Float

    def pair(self, i: int, j: int) -> Similarity:
        """Arrays i (as x) and j (as y)."""
        status = cast(Status, str(self.status[i, j]))
        value = float(self.values[i, j]) if status == "ok" else None
        return Similarity(value, status, float(self.hsic[i, j]), float(self.hsic[i, i]), float(self.hsic[j, j]))


class Sums(NamedTuple):
    """Sums over batches (one, if all samples are at hand): of HSIC (m×m), and of what statuses are made of (m each).

    All of them are those of features times 2^−exponents (m); only kernels that scale with their features have exponents.

    floor: rounding bound of the self-HSIC; variation: ‖X − mean‖²; storage: u²‖X‖²; few, flat: batches with too few samples,
    with bandwidth 0.
    """

    hsic: Float
    floor: Float
    variation: Float
    storage: Float
    few: Float
    flat: Float
    exponents: NDArray[np.intp]

    def plus(self, other: Sums) -> Sums:
        """The sums over the batches of both, at the larger exponents."""
        common = np.maximum(self.exponents, other.exponents)
        one, two = self._at(common), other._at(common)
        return Sums(
            one.hsic + two.hsic,
            one.floor + two.floor,
            one.variation + two.variation,
            one.storage + two.storage,
            one.few + two.few,
            one.flat + two.flat,
            common,
        )

    def _at(self, exponents: NDArray[np.intp]) -> Sums:
        change = self.exponents - exponents
        return self._replace(
            hsic=np.ldexp(self.hsic, 2 * (change[:, None] + change)),
            floor=np.ldexp(self.floor, 4 * change),
            variation=np.ldexp(self.variation, 2 * change),
            storage=np.ldexp(self.storage, 2 * change),
            exponents=exponents,
        )


def similarities(sums: Sums, batches: int) -> Similarities:
    hsic = sums.hsic / batches
    own = np.diagonal(hsic)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        values = hsic / np.outer(np.sqrt(own), np.sqrt(own))
    status = np.where(np.isfinite(values), "ok", "not finite").astype("<U32")
    tests: list[tuple[Status, Array]] = [  # the last one that applies is the first by rank
        ("self-HSIC within rounding", own <= sums.floor / batches),
        ("not finite", ~np.isfinite(own)),
        ("zero bandwidth", sums.flat > 0),
        ("no variation", sums.variation <= sums.storage),
        ("too few samples", sums.few > 0),
    ]
    for name, found in tests:
        status[found[:, None] | found] = name
    values[status != "ok"] = np.nan
    with np.errstate(over="ignore", under="ignore"):
        return Similarities(values, status, np.ldexp(hsic, 2 * (sums.exponents[:, None] + sums.exponents)))


# --------------------------------------------------------------------------------------------------------------------
# Features, centred


class Features(NamedTuple):
    """x n×p, the two means to subtract (p), squares k_i = ‖x_i‖² of the centred rows (n), their sum, storage u²‖X‖².

    All but x itself are those of x 2^−exponent.
    """

    x: Array
    first: Float
    second: Float
    squares: Float
    variation: float
    storage: float
    exponent: int

    def block(self, rows: slice = slice(None), columns: slice = slice(None)) -> Float:
        """Scaled and centred, float64."""
        x = self.x[rows, columns]
        if self.exponent:
            x = np.ldexp(np.asarray(x, dtype=np.float64), -self.exponent)
        return np.asarray((x - self.first[columns]) - self.second[columns], dtype=np.float64)


def _slices(count: int, step: int) -> list[slice]:
    return [slice(start, start + step) for start in range(0, count, step)]


def centre(x: Array) -> Features:
    (n, p), zero = x.shape, np.zeros(x.shape[1])
    unit = float(np.finfo(x.dtype).eps) / 2.0 if x.dtype.kind == "f" else _UNIT
    rows = _slices(n, max(BLOCK // p, 1))
    f = Features(x, zero, zero, zero, 0.0, 0.0, exponent_of(x))
    f = f._replace(first=sum((f.block(r).sum(axis=0) for r in rows), zero) / n)
    f = f._replace(second=sum((f.block(r).sum(axis=0) for r in rows), zero) / n)
    squares = np.concatenate([np.vecdot(block, block) for block in map(f.block, rows)])
    variation = float(squares.sum())
    storage = unit**2 * (variation + n * float(np.square(f.first + f.second).sum()))
    return f._replace(squares=squares, variation=variation, storage=storage)


def exponent_of(x: Array) -> int:
    """0, or where the largest |entry| lies beyond 2^±USUAL the power of two just above it."""
    largest = max(float(np.max(x)), -float(np.min(x)), 0.0) if x.size else 0.0
    exponent = math.frexp(largest)[1]
    return exponent if 0.0 < largest < math.inf and abs(exponent) > USUAL else 0


def _cross(x: Features, y: Features, product: Product) -> Float:
    """XᵀY, p×q, by blocks of rows."""
    narrow, wide = sorted((x.x.shape[1], y.x.shape[1]))
    total = np.zeros((x.x.shape[1], y.x.shape[1]))
    for rows in _slices(len(x.x), max(BLOCK // wide, narrow)):
        block = x.block(rows)
        total += product(block, block if y is x else y.block(rows))
    return total


def gram_matrix(x: Features, product: Product) -> Float:
    """XXᵀ, n×n, by blocks of columns."""
    n, p = x.x.shape
    total = np.zeros((n, n))
    for columns in _slices(p, max(BLOCK // n, n)):
        block = x.block(columns=columns).T
        total += product(block, block)
    return total


def squared_distances_of(gram: Float) -> Float:
    squares = np.diagonal(gram)
    return np.maximum(squares[:, None] + squares - 2.0 * gram, 0.0)


def median_of_distances(squared_distances: Float) -> float:
    return float(np.median(np.sqrt(squared_distances[np.triu_indices(len(squared_distances), 1)])))


# --------------------------------------------------------------------------------------------------------------------
# HSIC


def divisor(n: int, estimator: Estimator) -> int:
    return (n - 1) ** 2 if estimator == "biased" else n * (n - 3)


def centred_kernel(k: Float, estimator: Estimator) -> Float:
    """HKH with H = 1 − 11ᵀ/n (biased). Unbiased: off the diagonal K_ij − r_i/(n−2) − r_j/(n−2) + Σr/((n−1)(n−2)), on it 0.

    r_i are row sums without the diagonal. The sum of A_ij B_ij is K1's expression in three terms (*derived here*), but nothing
    cancels in it; it shows that HSIC(K, K) ≥ 0 and |CKA| ≤ 1. Adding a_i + a_j to K_ij adds (n−2)a_i + Σa to r_i and
    2(n−1)Σa to Σr, thus nothing to A: the unbiased HSIC, too, is invariant to centring.
    """
    n = len(k)
    if estimator == "biased":
        rows = k.mean(axis=1)
        return np.asarray(k - rows[:, None] - rows + rows.mean())
    a = k.copy()
    np.fill_diagonal(a, 0.0)
    rows = a.sum(axis=1) / (n - 2)
    a -= rows[:, None] + rows - rows.sum() / (n - 1)
    np.fill_diagonal(a, 0.0)
    return a


def _in_feature_space(x: Features, y: Features, estimator: Estimator, product: Product) -> float:
    """Linear HSIC by the formulas at the top of the module; nothing is n×n."""
    n, cross = len(x.x), _cross(x, y, product)
    total = float(np.vecdot(cross, cross).sum())
    if estimator == "unbiased":
        total -= n / (n - 2) * float(np.vecdot(x.squares, y.squares))
        total += x.variation * y.variation / ((n - 1) * (n - 2))
    return total / divisor(n, estimator)


def _gamma(m: int) -> float:
    return m * _UNIT / (1.0 - m * _UNIT)


def _floor(x: Features, estimator: Estimator, sigma: float | None) -> float:
    """What rounding can make of a self-HSIC that is 0 (E1, *derived here*): u = 2⁻⁵³, γ_m = mu/(1−mu), T = ‖X − mean‖².

    Linear, unbiased: the three terms are, by Cauchy-Schwarz, at most T², 2T² and T²/6: sums over n and p, in any order, of
    products of four entries. Their errors, and that of a mean which is off by γ_n times the mean deviation, are below γ_m T² in
    all, m = 10(n+p) + 40. Linear, biased: 0, for ‖XᵀX‖² ≥ T²/p and nothing cancels; "no variation" is the test there.
    RBF: with k = max ‖x_i‖² the squared distances err by 4γ_{p+8} k, entries of K by 2γ_{p+8} k/σ² + 8u, those of A by 4 times
    the sum of that and γ_{n+4}; the HSIC of A = 0 is then a sum of n² squares of such errors.
    """
    (n, p), floor = x.x.shape, 0.0
    if sigma is not None:
        largest = float(x.squares.max())
        error = 4.0 * n * (2.0 * _gamma(p + 8) * largest / (sigma * sigma or math.nan) + _gamma(n + 12))
        floor = error * error
    elif estimator == "unbiased":
        floor = _gamma(10 * (n + p) + 40) * x.variation * x.variation
    return floor / divisor(n, estimator)


class Options(NamedTuple):
    estimator: Estimator
    kernel: Kernel
    sigma: Sigma
    side: Side
    product: Product

    def checked(self) -> Options:
        for name, allowed in (("estimator", Estimator), ("kernel", Kernel), ("side", Side)):
            one_of(name, getattr(self, name), get_args(allowed))
        if self.kernel == "linear" and self.sigma is not None:
            raise InputError(f"sigma: belongs to the kernel 'rbf', got {self.sigma!r} with 'linear'")
        if self.kernel == "rbf" and self.side == "features":
            raise InputError("side: the kernel 'rbf' has 'samples' only (or 'cheaper'), got 'features'")
        if self.sigma is not None and not all(0.0 < sigma < math.inf for sigma in np.atleast_1d(self.sigma)):
            raise InputError(f"sigma: must be positive and finite, got {self.sigma!r}")
        return self

    def sigmas(self, m: int) -> list[float | None]:
        """One for each of m arrays."""
        if self.sigma is None:
            return [None] * m
        if np.size(self.sigma) not in (1, m):
            raise InputError(f"sigma: must be one number, or one for each of the {m} arrays, got {np.size(self.sigma)}")
        return [float(sigma) for sigma in np.broadcast_to(self.sigma, m)]

    def in_features(self, n: int, widths: Sequence[int]) -> bool:
        """K2's rule for any number of arrays: n Σ_{i≤j} p_i p_j against n² Σ p_i."""
        if self.kernel == "rbf" or self.side != "cheaper":
            return self.side == "features"
        return sum(p * q for i, p in enumerate(widths) for q in widths[i:]) <= n * sum(widths)


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{name}: allowed are {', '.join(map(repr, allowed))}, got {value!r}")


def checked_features(features: Sequence[ArrayLike], *names: str) -> list[Array]:
    """Arrays n×p_i, p_i ≥ 1, of numbers that float64 holds, n the same for all. Without names: features[i]."""
    arrays = [np.asarray(x) for x in features]
    if not arrays:
        raise InputError("features: at least one array is needed, got none")
    names = names or tuple(f"features[{i}]" for i in range(len(arrays)))
    for name, x in zip(names, arrays, strict=True):
        if x.ndim != 2 or x.shape[1] == 0:
            raise InputError(f"{name}: must be samples × features with at least one feature, got shape {x.shape}")
        if not np.can_cast(x.dtype, np.float64):
            raise InputError(f"{name}: must be real numbers that float64 holds, got dtype {x.dtype}")
        if len(x) != len(arrays[0]):
            raise InputError(f"{name}: must have the samples of {names[0]}, {len(arrays[0])} rows, got {len(x)}")
    return arrays


def rbf_kernel(gram: Float, sigma: float | None) -> tuple[Float, float]:
    """(K, σ) from XXᵀ; NaNs where the median is 0."""
    squared = squared_distances_of(gram)
    sigma = median_of_distances(squared) if sigma is None else sigma
    return np.exp(squared / (-2.0 * sigma * sigma or math.nan)), sigma


def _scaled(sigma: float | None, exponent: int) -> float | None:
    """The bandwidth for features times 2^−exponent; as near to 0 or ∞ as float64 comes."""
    if sigma is None or not exponent:
        return sigma
    with np.errstate(over="ignore", under="ignore"):
        return float(np.clip(np.ldexp(sigma, -exponent), np.finfo(np.float64).tiny, np.finfo(np.float64).max))


def sums_of(arrays: list[Array], options: Options) -> Sums:
    """One batch. Each self-HSIC is computed once."""
    (n, m), (estimator, kernel, _, _, product) = (len(arrays[0]), len(arrays)), options
    sigmas, hsic, zero, flat = options.sigmas(m), np.full((m, m), np.nan), np.zeros(m), np.zeros(m)
    if n < FEWEST[estimator]:
        return Sums(hsic, zero, zero, zero, np.ones(m), flat, np.zeros(m, dtype=np.intp))
    in_features, centred = options.in_features(n, [x.shape[1] for x in arrays]), []
    with np.errstate(over="ignore", invalid="ignore"):
        features = [centre(x) for x in arrays]
        exponents = np.array([x.exponent for x in features], dtype=np.intp)
        for i, x in enumerate(features if not in_features else []):
            k = gram_matrix(x, product)
            if kernel == "rbf":
                k, sigmas[i] = rbf_kernel(k, _scaled(sigmas[i], x.exponent))
                flat[i] = sigmas[i] == 0.0
            centred.append(centred_kernel(k, estimator))
        for i, j in combinations_with_replacement(range(m), 2):
            if in_features:
                value = _in_feature_space(features[i], features[j], estimator, product)
            else:
                value = float(np.vdot(centred[i], centred[j])) / divisor(n, estimator)
            hsic[i, j] = hsic[j, i] = value
        floor = np.array([_floor(x, estimator, sigma) for x, sigma in zip(features, sigmas, strict=True)])
    variation, storage = (np.array([getattr(x, name) for x in features]) for name in ("variation", "storage"))
    return Sums(hsic, floor, variation, storage, zero, flat, exponents if kernel == "linear" else np.zeros(m, dtype=np.intp))
