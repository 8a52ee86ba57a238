"""HSIC in exact arithmetic (SPEC K): loops on Fractions of the same features, the witness of the tests of CKA, with bounds.

`error_bound`: with T = ‖X − mean‖² and S that of Y, HSIC is a sum of products of kernel entries, and Σ|K_ij||L_ij| ≤ TS
(Cauchy-Schwarz). In feature space the three terms are at most TS, 2TS and TS/6, and no path from an entry to the result has
more than 10(n+p+q) + 40 roundings, weighted so (`hsic_sums._floor`). In sample space an entry of K takes p + 4, its row's
mean, column's mean and mean 7n + 30 more, likewise for L, and the sum n²: in all below 16n + 10(p+q) + 70 + n². Underflow is
left out; values are of the size 1.
"""

import math
from fractions import Fraction

import naive
import numpy as np
from hypothesis import strategies as st
from tolerance import gamma

from refprune.conformance.strategies.layers import layouts, relayout, seeds

U = 2.0**-53
ESTIMATORS = ("biased", "unbiased")
HSICS = ("hsic_xy", "hsic_xx", "hsic_yy")
NAIVE = {"biased": naive.hsic_biased, "unbiased": naive.hsic_unbiased}


def fractions(x):
    return [[Fraction(float(v)) for v in row] for row in x]


def kernel(x):
    return naive.linear_kernel(fractions(x))


def centred_kernel(x):
    rows = fractions(x)
    means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    return naive.linear_kernel([[v - m for v, m in zip(row, means, strict=True)] for row in rows])


def trace(x):
    """‖X − mean‖²."""
    k = centred_kernel(x)
    return float(sum(k[i][i] for i in range(len(k))))


def divisor(n, estimator):
    return (n - 1) ** 2 if estimator == "biased" else n * (n - 3)


def exact_hsics(x, y, estimator):
    k, l, f = kernel(x), kernel(y), NAIVE[estimator]  # noqa: E741
    return f(k, l), f(k, k), f(l, l)


def error_bound(x, y, estimator):
    n, m = len(x), 16 * len(x) + 10 * (x.shape[1] + y.shape[1]) + 70 + len(x) ** 2
    return gamma(m, U) * trace(x) * trace(y) / divisor(n, estimator)


def assert_hsics(got, x, y, estimator):
    """The three HSICs of `got` are those of the definition, and so is the value."""
    __tracebackhide__ = True
    exact = exact_hsics(x, y, estimator)
    bounds = [error_bound(a, b, estimator) for a, b in ((x, y), (x, x), (y, y))]
    for name, want, bound in zip(HSICS, exact, bounds, strict=True):
        error = abs(float(Fraction(getattr(got, name)) - want))
        assert error <= bound, f"{name}: got {getattr(got, name)!r}, wanted {float(want)!r}, error/bound {error / bound:.3g}"
    assert_value(got, exact, bounds)


def assert_value(got, exact, bounds):
    """The ratio: relative errors e, f of the self-HSICs below ½ change it by less than e + f; five operations round."""
    __tracebackhide__ = True
    if got.status != "ok":
        return
    (xy, xx, yy), (e_xy, e_xx, e_yy) = map(float, exact), bounds
    want = xy / math.sqrt(xx * yy)
    bound = 2 * e_xy / math.sqrt(xx * yy) + abs(want) * (e_xx / xx + e_yy / yy + 10 * U)
    assert max(e_xx / xx, e_yy / yy) < 0.5, "the case is out of the test's contract"
    assert abs(got.value - want) <= bound, f"value: got {got.value!r}, wanted {want!r}, bound {bound:.3g}"


@st.composite
def features(draw, least=4, most=7, widths=6):
    """(x, y), n×p and n×q, correlated, off zero by up to 10⁶ deviations, float64 or float32, of any layout."""
    n, p, q = draw(st.integers(least, most)), draw(st.integers(1, widths)), draw(st.integers(1, widths))
    rng = np.random.default_rng(draw(seeds))
    x, y = rng.standard_normal((n, p)), rng.standard_normal((n, q))
    y = y + draw(st.sampled_from((0.0, 1.0, 30.0))) * (x @ rng.standard_normal((p, q)))
    shift, dtype = draw(st.sampled_from((0.0, -3.0, 1e6))), draw(st.sampled_from((np.float64, np.float32)))
    return [relayout((a + shift).astype(dtype), draw(layouts)) for a in (x, y)]


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)
