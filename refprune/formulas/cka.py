"""CKA of features, whole or in mini-batches, and HSIC of kernel matrices (SPEC K); what they are made of is in `hsic_sums`.

Sources: Kornblith et al. 2019 (CKA), Song et al. 2012 (unbiased HSIC), Nguyen et al. 2021 (mini-batches).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

import numpy as np
from numpy.typing import ArrayLike

from ..errors import InputError
from .hsic_sums import (
    FEWEST,
    Estimator,
    Kernel,
    Options,
    Product,
    Side,
    Sigma,
    Similarities,
    Similarity,
    Sums,
    centre,
    centred_kernel,
    checked_features,
    divisor,
    gram_matrix,
    median_of_distances,
    numpy_product,
    one_of,
    similarities,
    squared_distances_of,
    sums_of,
)

__all__ = [
    "FEWEST",
    "Estimator",
    "Kernel",
    "MiniBatches",
    "Product",
    "Sigma",
    "Similarities",
    "Similarity",
    "cka",
    "cka_matrix",
    "hsic",
    "median_distance",
    "numpy_product",
]


def median_distance(x: ArrayLike, *, product: Product = numpy_product) -> float:
    """Median Euclidean distance between different rows of x, n×p: K2's σ, for instance of a part of the data. n×n memory.

    InputError if n < 2 or x is not finite.
    """
    (a,) = checked_features([x], "x")
    if len(a) < 2 or not np.isfinite(a).all():
        raise InputError(f"x: must have at least 2 rows and be finite, got {len(a)} rows, {(~np.isfinite(a)).sum()} not finite")
    centred = centre(a)
    return math.ldexp(median_of_distances(squared_distances_of(gram_matrix(centred, product))), centred.exponent)


def hsic(k: ArrayLike, l: ArrayLike, *, estimator: Estimator) -> float:  # noqa: E741
    """HSIC of two symmetric kernel matrices n×n (K1): tr(KHLH)/(n−1)², or the unbiased estimator of Song et al. 2012.

    The unbiased one ignores the diagonals, and may be negative if K ≠ L. InputError: not square, not finite, different n,
    n < 2 (biased), n < 4 (unbiased). Rounding is that of the kernels: centre the features first.
    """
    one_of("estimator", estimator, get_args(Estimator))
    arrays = checked_features([k, l], "k", "l")
    for name, a in zip(("k", "l"), arrays, strict=True):
        if a.shape[0] != a.shape[1] or not np.isfinite(a).all():
            raise InputError(f"{name}: must be square and finite, got shape {a.shape}, {(~np.isfinite(a)).sum()} not finite")
        if len(a) < FEWEST[estimator]:
            raise InputError(f"{name}: must have at least {FEWEST[estimator]} rows ({estimator}), got {len(a)}")
    a, b = (centred_kernel(np.asarray(a, dtype=np.float64), estimator) for a in arrays)
    return float(np.vdot(a, b)) / divisor(len(a), estimator)


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
    options = Options(estimator, kernel, sigma, side, product).checked()
    return similarities(sums_of(checked_features(features), options), 1)


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
    options = Options(estimator, kernel, sigma, side, product).checked()
    return similarities(sums_of(checked_features([x, y], "x", "y"), options), 1).pair(0, 1)


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
        self._options = Options("unbiased", kernel, sigma, side, product).checked()
        if kernel == "rbf" and sigma is None:
            raise InputError("sigma: must be given for mini-batches, one for all of them (median_distance), got None")
        self._batches, self._widths = 0, [0]
        self._total: Sums | None = None

    def add(self, *features: ArrayLike) -> None:
        """One batch: x and y, or more arrays, b×p_i, the p_i as in every batch. After an InputError nothing has been added."""
        arrays = checked_features(features, *(("x", "y") if len(features) == 2 else ()))
        widths = [x.shape[1] for x in arrays]
        if self._total is not None and widths != self._widths:
            raise InputError(f"features: must have the widths of the batches before, {self._widths}, got {widths}")
        sums = sums_of(arrays, self._options)
        if self._total is not None:
            sums = self._total.plus(sums)
        self._batches, self._widths, self._total = self._batches + 1, widths, sums

    def matrix(self) -> Similarities:
        """CKA of all pairs of arrays, from the batches so far. InputError if there are none."""
        if self._total is None:
            raise InputError("batches: at least one must have been added, got none")
        return similarities(self._total, self._batches)

    def result(self) -> Similarity:
        """CKA of x and y, from the batches so far. InputError if there are none, or not two arrays in each."""
        if self._total is not None and len(self._widths) != 2:
            raise InputError(f"features: must be two, x and y, got {len(self._widths)}; use matrix")
        return self.matrix().pair(0, 1)
