"""How similar two sets of features of the same samples are: HSIC and CKA, biased and unbiased, whole or in batches (SPEC K).

Features are n×p, a sample a row; K and L are kernel matrices n×n of two such arrays. With A and B, which are K and L *centred*,

    CKA = HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)),     HSIC = Σ A_ij B_ij / (n−1)² (biased),  / n(n−3) (unbiased, diagonals 0).

*Centring.* Both HSICs of X and of X + 1cᵀ are the same, exactly, for every c and both kernels. An RBF kernel sees differences
only; in the linear one the shift adds a_i + a_j to K_ij, which both ways of centring K remove (`_centred_kernel`, *derived
here*). So columns may be centred first, and are. For rounding: the entries of XXᵀ are rounded in proportion to squared means,
and what centring leaves of them is in proportion to variances; if a mean is 10⁴ standard deviations, 8 digits are lost. For
cost: with Xᵀ1 = 0, row i of K sums to 0, and to −k_i without the diagonal, k_i = ‖x_i‖², so that *in feature space*

    biased    (n−1)² HSIC  =  ‖XᵀY‖²
    unbiased  n(n−3) HSIC  =  ‖XᵀY‖² − n/(n−2) Σ k_i l_i + (Σ k_i)(Σ l_i)/((n−1)(n−2))     (*derived here*).

The mean is subtracted twice, the second one being that of what the first left: the rounding that stays is in proportion to the
deviations, not to the mean. Everything is float64, whatever the dtype of the features.

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


class _Sums(NamedTuple):
    """Sums over batches (one, if all samples are at hand): of HSIC (m×m), and of what statuses are made of (m each).

    floor: rounding bound of the self-HSIC; variation: ‖X − mean‖²; storage: u²‖X‖²; few, flat: batches with too few samples,
    with bandwidth 0.
    """

    hsic: Float
    floor: Float
    variation: Float
    storage: Float
    few: Float
    flat: Float


def _similarities(sums: _Sums, batches: int) -> Similarities:
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
    return Similarities(values, status, hsic)


# --------------------------------------------------------------------------------------------------------------------
# Features, centred


class _Features(NamedTuple):
    """x n×p, the two means to subtract (p), squares k_i = ‖x_i‖² of the centred rows (n), their sum, storage u²‖X‖²."""

    x: Array
    first: Float
    second: Float
    squares: Float
    variation: float
    storage: float

    def block(self, rows: slice = slice(None), columns: slice = slice(None)) -> Float:
        """Centred, float64."""
        return np.asarray((self.x[rows, columns] - self.first[columns]) - self.second[columns], dtype=np.float64)


def _slices(count: int, step: int) -> list[slice]:
    return [slice(start, start + step) for start in range(0, count, step)]


def _centred(x: Array) -> _Features:
    (n, p), zero = x.shape, np.zeros(x.shape[1])
    unit = float(np.finfo(x.dtype).eps) / 2.0 if x.dtype.kind == "f" else _UNIT
    rows = _slices(n, max(BLOCK // p, 1))
    f = _Features(x, zero, zero, zero, 0.0, 0.0)
    f = f._replace(first=sum((f.block(r).sum(axis=0) for r in rows), zero) / n)
    f = f._replace(second=sum((f.block(r).sum(axis=0) for r in rows), zero) / n)
    squares = np.concatenate([np.vecdot(block, block) for block in map(f.block, rows)])
    variation = float(squares.sum())
    storage = unit**2 * (variation + n * float(np.square(f.first + f.second).sum()))
    return f._replace(squares=squares, variation=variation, storage=storage)


def _cross(x: _Features, y: _Features, product: Product) -> Float:
    """XᵀY, p×q, by blocks of rows."""
    narrow, wide = sorted((x.x.shape[1], y.x.shape[1]))
    total = np.zeros((x.x.shape[1], y.x.shape[1]))
    for rows in _slices(len(x.x), max(BLOCK // wide, narrow)):
        block = x.block(rows)
        total += product(block, block if y is x else y.block(rows))
    return total


def _gram(x: _Features, product: Product) -> Float:
    """XXᵀ, n×n, by blocks of columns."""
    n, p = x.x.shape
    total = np.zeros((n, n))
    for columns in _slices(p, max(BLOCK // n, n)):
        block = x.block(columns=columns).T
        total += product(block, block)
    return total


def _squared_distances(gram: Float) -> Float:
    squares = np.diagonal(gram)
    return np.maximum(squares[:, None] + squares - 2.0 * gram, 0.0)


def median_of_distances(squared_distances: Float) -> float:
    return float(np.median(np.sqrt(squared_distances[np.triu_indices(len(squared_distances), 1)])))


# --------------------------------------------------------------------------------------------------------------------
# HSIC


def _divisor(n: int, estimator: Estimator) -> int:
    return (n - 1) ** 2 if estimator == "biased" else n * (n - 3)


def _centred_kernel(k: Float, estimator: Estimator) -> Float:
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


def _in_feature_space(x: _Features, y: _Features, estimator: Estimator, product: Product) -> float:
    """Linear HSIC by the formulas at the top of the module; nothing is n×n."""
    n, cross = len(x.x), _cross(x, y, product)
    total = float(np.vecdot(cross, cross).sum())
    if estimator == "unbiased":
        total -= n / (n - 2) * float(np.vecdot(x.squares, y.squares))
        total += x.variation * y.variation / ((n - 1) * (n - 2))
    return total / _divisor(n, estimator)


def _gamma(m: int) -> float:
    return m * _UNIT / (1.0 - m * _UNIT)


def _floor(x: _Features, estimator: Estimator, sigma: float | None) -> float:
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
    return floor / _divisor(n, estimator)


class _Options(NamedTuple):
    estimator: Estimator
    kernel: Kernel
    sigma: Sigma
    side: Side
    product: Product

    def checked(self) -> _Options:
        for name, allowed in (("estimator", Estimator), ("kernel", Kernel), ("side", Side)):
            _one_of(name, getattr(self, name), get_args(allowed))
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


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{name}: allowed are {', '.join(map(repr, allowed))}, got {value!r}")


def _checked(features: Sequence[ArrayLike], *names: str) -> list[Array]:
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
    squared = _squared_distances(gram)
    sigma = median_of_distances(squared) if sigma is None else sigma
    return np.exp(squared / (-2.0 * sigma * sigma or math.nan)), sigma


def _sums(arrays: list[Array], options: _Options) -> _Sums:
    """One batch. Each self-HSIC is computed once."""
    (n, m), (estimator, kernel, _, _, product) = (len(arrays[0]), len(arrays)), options
    sigmas, hsic, zero, flat = options.sigmas(m), np.full((m, m), np.nan), np.zeros(m), np.zeros(m)
    if n < FEWEST[estimator]:
        return _Sums(hsic, zero, zero, zero, np.ones(m), flat)
    in_features, centred = options.in_features(n, [x.shape[1] for x in arrays]), []
    with np.errstate(over="ignore", invalid="ignore"):
        features = [_centred(x) for x in arrays]
        for i, x in enumerate(features if not in_features else []):
            k = _gram(x, product)
            if kernel == "rbf":
                k, sigmas[i] = rbf_kernel(k, sigmas[i])
                flat[i] = sigmas[i] == 0.0
            centred.append(_centred_kernel(k, estimator))
        for i, j in combinations_with_replacement(range(m), 2):
            if in_features:
                value = _in_feature_space(features[i], features[j], estimator, product)
            else:
                value = float(np.vdot(centred[i], centred[j])) / _divisor(n, estimator)
            hsic[i, j] = hsic[j, i] = value
        floor = np.array([_floor(x, estimator, sigma) for x, sigma in zip(features, sigmas, strict=True)])
    variation, storage = (np.array([getattr(x, name) for x in features]) for name in ("variation", "storage"))
    return _Sums(hsic, floor, variation, storage, zero, flat)


# --------------------------------------------------------------------------------------------------------------------
# CKA


def median_distance(x: ArrayLike, *, product: Product = numpy_product) -> float:
    """Median Euclidean distance between different rows of x, n×p: K2's σ, for instance of a part of the data. n×n memory.

    InputError if n < 2 or x is not finite.
    """
    (a,) = _checked([x], "x")
    if len(a) < 2 or not np.isfinite(a).all():
        raise InputError(f"x: must have at least 2 rows and be finite, got {len(a)} rows, {(~np.isfinite(a)).sum()} not finite")
    return median_of_distances(_squared_distances(_gram(_centred(a), product)))


def hsic(k: ArrayLike, l: ArrayLike, *, estimator: Estimator) -> float:  # noqa: E741
    """HSIC of two symmetric kernel matrices n×n (K1): tr(KHLH)/(n−1)², or the unbiased estimator of Song et al. 2012.

    The unbiased one ignores the diagonals, and may be negative if K ≠ L. InputError: not square, not finite, different n,
    n < 2 (biased), n < 4 (unbiased). Rounding is that of the kernels: centre the features first.
    """
    _one_of("estimator", estimator, get_args(Estimator))
    arrays = _checked([k, l], "k", "l")
    for name, a in zip(("k", "l"), arrays, strict=True):
        if a.shape[0] != a.shape[1] or not np.isfinite(a).all():
            raise InputError(f"{name}: must be square and finite, got shape {a.shape}, {(~np.isfinite(a)).sum()} not finite")
        if len(a) < FEWEST[estimator]:
            raise InputError(f"{name}: must have at least {FEWEST[estimator]} rows ({estimator}), got {len(a)}")
    a, b = (_centred_kernel(np.asarray(a, dtype=np.float64), estimator) for a in arrays)
    return float(np.vdot(a, b)) / _divisor(len(a), estimator)


def cka_matrix(
    features: Sequence[ArrayLike],
    *,
    estimator: Estimator,
    kernel: Kernel = "linear",
    sigma: Sigma = None,
    side: Side = "cheaper",
    product: Product = numpy_product,
) -> Similarities:
    """CKA of all pairs of m arrays n×p_i of the same n samples (K2; Kornblith et al. 2019).

    Invariant to shifts, isotropic scaling and orthogonal maps of any of them, not to other invertible maps (K3). Biased, it
    tends to 1 for independent features as p/n grows (K5).
    kernel: "linear", or "rbf" exp(−d²/2σ²), sigma one number, or one for each array, or None: the median distance of each.
    side: "features" costs n Σ_{i≤j} p_i p_j and memory p_i p_j, "samples" n² Σ p_i and memory m n² ("rbf" always).
    product: all products of matrices go through it. Degenerate input gives a status (K7). InputError: shapes, dtypes,
    different n, unknown options, sigma not positive.
    """
    options = _Options(estimator, kernel, sigma, side, product).checked()
    return _similarities(_sums(_checked(features), options), 1)


def cka(
    x: ArrayLike,
    y: ArrayLike,
    *,
    estimator: Estimator,
    kernel: Kernel = "linear",
    sigma: Sigma = None,
    side: Side = "cheaper",
    product: Product = numpy_product,
) -> Similarity:
    """Similarity of two sets of features of the same n samples: CKA = HSIC(K, L)/√(HSIC(K, K) HSIC(L, L)) (K2).

    K and L are the kernel matrices of x and y. Columns are centred first, which changes no value.

    x: n×p.
    y: n×q.
    estimator: of HSIC, "biased" (n ≥ 2) or "unbiased" (n ≥ 4).
    kernel: "linear" (x xᵀ) or "rbf".
    sigma: bandwidth of the kernel "rbf", one number or one for each array; None: the median distance between samples.
    side: where the work is done, in "features" (p×q products), in "samples" (n×n products) or in the "cheaper" of both.
    product: (A, B) → AᵀB, as a backend's `cross_product`.

    Returns a `Similarity`; its value is None if CKA does not exist, and its status says why (K7).
    InputError for arrays that are no n×p features of equally many samples.

    Source: Kornblith et al. 2019, arXiv 1905.00414.

    >>> import numpy as np
    >>> from refprune import cka
    >>> x = np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 1.0], [3.0, 3.0]])
    >>> round(cka(x, 2 * x + 5, estimator="biased").value, 6)
    1.0
    >>> round(cka(x, x[:, :1], estimator="biased").value, 6)
    0.87761
    >>> cka(x, np.ones((4, 1)), estimator="biased").status
    'no variation'
    """
    options = _Options(estimator, kernel, sigma, side, product).checked()
    return _similarities(_sums(_checked([x, y], "x", "y"), options), 1).pair(0, 1)


class MiniBatches:
    """CKA from mini-batches: the ratio of the means over batches of *unbiased* HSIC (K4; Nguyen et al. 2021).

    The unbiased HSIC of a random batch has the expectation of that of all samples, whatever its size: its mean over all batches
    of b out of n samples is that of the n samples (a U-statistic). Neither holds for the biased HSIC, nor for a mean of CKAs,
    which is not offered. Every batch counts the same. One of fewer than 4 samples makes the status "too few samples": leave it
    out or merge it. kernel "rbf" needs sigma, one for all batches (`median_distance`); options as for `cka_matrix`.
    """

    def __init__(
        self, *, kernel: Kernel = "linear", sigma: Sigma = None, side: Side = "cheaper", product: Product = numpy_product
    ) -> None:
        self._options = _Options("unbiased", kernel, sigma, side, product).checked()
        if kernel == "rbf" and sigma is None:
            raise InputError("sigma: must be given for mini-batches, one for all of them (median_distance), got None")
        self._batches, self._widths = 0, [0]
        self._total: _Sums | None = None

    def add(self, *features: ArrayLike) -> None:
        """One batch: x and y, or more arrays, b×p_i, the p_i as in every batch. After an InputError nothing has been added."""
        arrays = _checked(features, *(("x", "y") if len(features) == 2 else ()))
        widths = [x.shape[1] for x in arrays]
        if self._total is not None and widths != self._widths:
            raise InputError(f"features: must have the widths of the batches before, {self._widths}, got {widths}")
        sums = _sums(arrays, self._options)
        if self._total is not None:
            sums = _Sums(*(a + b for a, b in zip(self._total, sums, strict=True)))
        self._batches, self._widths, self._total = self._batches + 1, widths, sums

    def matrix(self) -> Similarities:
        """CKA of all pairs of arrays, from the batches so far. InputError if there are none."""
        if self._total is None:
            raise InputError("batches: at least one must have been added, got none")
        return _similarities(self._total, self._batches)

    def result(self) -> Similarity:
        """CKA of x and y, from the batches so far. InputError if there are none, or not two arrays in each."""
        if self._total is not None and len(self._widths) != 2:
            raise InputError(f"features: must be two, x and y, got {len(self._widths)}; use matrix")
        return self.matrix().pair(0, 1)
