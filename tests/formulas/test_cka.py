"""CKA against its definition, what it sees and does not see, mini-batches and all pairs (SPEC K1-K4), with planted mistakes."""

import itertools
import math
from fractions import Fraction
from unittest import mock

import naive
import numpy as np
import pytest
from exact_cka import (
    ESTIMATORS,
    HSICS,
    NAIVE,
    U,
    assert_hsics,
    assert_value,
    centred_kernel,
    divisor,
    error_bound,
    exact_hsics,
    features,
    fractions,
    kernel,
    normal,
    trace,
)
from hypothesis import given
from hypothesis import strategies as st
from tolerance import SIDES, gamma

from refprune.conformance.strategies.layers import seeds
from refprune.formulas import hsic_sums as module
from refprune.formulas.cka import cka, hsic, median_distance

FALSE_ALARM = 5.0  # |z| of a normal mean: 6e-7

# Against the definition -------------------------------------------------------------------------------------------------


def clearly_varies(x, estimator):
    """Twice as much as storage in its dtype explains, with a self-HSIC four times the bound on rounding."""
    stored = (float(np.finfo(x.dtype).eps) / 2 * np.linalg.norm(x.astype(float))) ** 2
    return trace(x) > 2 * stored and float(exact_hsics(x, x, estimator)[0]) > 4 * error_bound(x, x, estimator)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("side", ["features", "samples", "cheaper"])
@given(pair=features(), block=st.sampled_from((1, 5, 2**16)))
def test_both_sides_are_the_definition(estimator, side, pair, block):
    with mock.patch.object(module, "BLOCK", block):
        got = cka(*pair, estimator=estimator, side=side)
    assert_hsics(got, *pair, estimator)
    if all(clearly_varies(a, estimator) for a in pair):
        assert got.status == "ok"


@pytest.mark.parametrize("n", [2, 3])
@given(data=st.data())
def test_biased_with_two_and_three_samples(n, data):
    pair = data.draw(features(least=n, most=n))
    for side in ("features", "samples"):
        assert_hsics(cka(*pair, estimator="biased", side=side), *pair, "biased")


def integer_kernel(rng, n):
    k = rng.integers(-9, 10, (n, n))
    return k + k.T


@pytest.mark.parametrize("estimator", ESTIMATORS)
@given(n=st.integers(4, 7), seed=seeds)
def test_hsic_of_any_symmetric_kernels(estimator, n, seed):
    """Indefinite ones, with diagonals that have nothing to do with the rest: the bound of the sample side, T = ‖K‖."""
    rng = np.random.default_rng(seed)
    k, l = integer_kernel(rng, n), integer_kernel(rng, n)  # noqa: E741
    want = NAIVE[estimator](fractions(k), fractions(l))
    size = float(np.linalg.norm(k) * np.linalg.norm(l)) / divisor(n, estimator)
    assert abs(hsic(k, l, estimator=estimator) - float(want)) <= gamma(n * n + 14 * n + 70, U) * size


@given(n=st.integers(4, 6), seed=seeds)
def test_the_witness_is_the_mean_over_all_quadruples(n, seed):
    rng = np.random.default_rng(seed)
    k, l = (fractions(integer_kernel(rng, n)) for _ in range(2))  # noqa: E741
    assert naive.hsic_unbiased(k, l) == naive.hsic_u_statistic(k, l)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@given(pair=features(widths=3), seed=seeds)
def test_centring_changes_nothing(estimator, pair, seed):
    """In exact arithmetic: column means subtracted, and any a_i + a_j added to the kernel (off the diagonal, if unbiased)."""
    x, y = pair
    n, f = len(x), NAIVE[estimator]
    k, l = kernel(x), kernel(y)  # noqa: E741
    assert f(centred_kernel(x), l) == f(k, l) == f(centred_kernel(x), centred_kernel(y))
    a = [Fraction(int(v)) for v in np.random.default_rng(seed).integers(-9, 10, n)]
    d = [v if estimator == "unbiased" else 0 for v in a]
    moved = [[k[i][j] + a[i] + a[j] + (d[i] if i == j else 0) for j in range(n)] for i in range(n)]
    assert f(moved, l) == f(k, l)


def rbf_bounds(x, y, sigmas, exact, estimator):
    """For the three HSICs. Entries of A err by e = 4(2γ_{p+8} k/σ² + γ_{n+12}) (`formulas.hsic_sums._floor`), twice if σ is
    computed, and A by a = n e; HSIC then by ‖A‖b + ‖B‖a + ab, and by γ of n² in the sum. ‖A‖² is the self-HSIC times its
    divisor.
    """
    n, errors = len(x), []
    for array, sigma in zip((x, y), sigmas, strict=True):
        largest = float(np.square(array - array.mean(axis=0)).sum(axis=1).max())
        errors.append(2 * n * 4 * (2 * gamma(array.shape[1] + 8, U) * largest / sigma**2 + gamma(n + 12, U)))
    sizes = [math.sqrt(max(own, 0.0) * divisor(n, estimator)) for own in exact[1:]]
    bounds = []
    for i, j in ((0, 1), (0, 0), (1, 1)):
        error = sizes[i] * errors[j] + sizes[j] * errors[i] + errors[i] * errors[j] + gamma(n * n, U) * sizes[i] * sizes[j]
        bounds.append(SIDES * error / divisor(n, estimator))
    return bounds


@pytest.mark.parametrize("estimator", ESTIMATORS)
@given(n=st.integers(4, 7), p=st.integers(1, 5), q=st.integers(1, 5), seed=seeds, given_sigma=st.booleans())
def test_rbf(estimator, n, p, q, seed, given_sigma):
    x, y = normal(seed, n, p), normal([seed, 1], n, q) + 1.0
    rows = [a.tolist() for a in (x, y)]
    sigmas = (0.7, 1.9) if given_sigma else tuple(map(naive.median_distance, rows))
    got = cka(x, y, estimator=estimator, kernel="rbf", sigma=sigmas if given_sigma else None)
    k, l = (fractions(naive.rbf_kernel(a, s)) for a, s in zip(rows, sigmas, strict=True))  # noqa: E741
    exact = [float(NAIVE[estimator](*pair)) for pair in ((k, l), (k, k), (l, l))]
    bounds = rbf_bounds(x, y, sigmas, exact, estimator)
    for name, want, bound in zip(HSICS, exact, bounds, strict=True):
        assert abs(getattr(got, name) - want) <= bound, name
    assert_value(got, exact, bounds)


@pytest.mark.parametrize("n", [2, 3, 4, 6])
def test_median_distance(n):
    x = normal(n, n, 3)
    want = naive.median_distance(x.tolist())
    # Squared distances err by 4γ_11 k, their roots by half of that over the distance; the mean of two in the middle once more.
    distances = [math.dist(a, b) for a, b in itertools.combinations(x.tolist(), 2)]
    bound = SIDES * 4 * gamma(11, U) * trace(x) / min(distances) + 4 * U * want
    assert abs(median_distance(x) - want) <= bound


@pytest.mark.parametrize("seed", range(5))
def test_almost_equal_samples_have_a_distance(seed):
    """Squared distances far below their rounding, ½ of them negative before they are clipped, would be NaNs in the median."""
    x = np.repeat(normal(seed, 2, 3), 4, axis=0) + 1e-10 * normal([seed, 1], 8, 3)
    far = math.dist(x[0], x[-1])
    assert abs(median_distance(x) - far) <= 1e-9  # 16 of the 28 pairs lie in different groups
    assert cka(x, normal(seed, 8, 2), estimator="biased", kernel="rbf").status == "ok"


# What CKA does and does not see (K3) --------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ESTIMATORS)
@given(n=st.integers(5, 8), blocks=st.integers(1, 3), c=st.sampled_from((-3, 1, 7)), shift=st.integers(-50, 50), seed=seeds)
def test_one_for_a_rotated_scaled_and_shifted_copy(estimator, n, blocks, c, shift, seed):
    """Integers and Q made of (3 −4; 4 3)/5, so that Y = 5cXQ + shift is exact."""
    x = np.random.default_rng(seed).integers(-9, 10, (n, 2 * blocks)).astype(float)
    q = np.kron(np.eye(blocks), [[3.0, -4.0], [4.0, 3.0]])[:, np.random.default_rng(seed).permutation(2 * blocks)]
    y = c * (x @ q) + shift
    exact = exact_hsics(x, y, estimator)
    assert exact[0] ** 2 == exact[1] * exact[2]
    bounds = [error_bound(a, b, estimator) for a, b in ((x, y), (x, x), (y, y))]
    if min(float(exact[1]) / bounds[1], float(exact[2]) / bounds[2]) > 4.0:
        for side in ("features", "samples"):
            got = cka(x, y, estimator=estimator, side=side)
            assert got.status == "ok"
            assert_value(got, exact, bounds)


def test_a_general_invertible_map_changes_it():
    x = normal(0, 30, 3)
    y = x * np.array([1.0, 1.0, 10.0])
    for estimator in ESTIMATORS:
        assert_hsics(got := cka(x, y, estimator=estimator), x, y, estimator)
        assert got.value < 0.8


def test_rbf_sees_no_shift_rotation_or_scale():
    x = np.random.default_rng(0).integers(-9, 10, (12, 2)).astype(float)
    y = 2.0 * x @ np.array([[3.0, -4.0], [4.0, 3.0]]) + 100.0  # exact; so is σ, ten times that of x
    for estimator in ESTIMATORS:
        got = cka(x, y, estimator=estimator, kernel="rbf")
        sigma = median_distance(x)
        same = (got.hsic_xx,) * 3
        assert_value(got, same, [2 * b for b in rbf_bounds(x, y, (sigma, 10 * sigma), same, estimator)])
        assert cka(x, y, estimator=estimator, kernel="rbf", sigma=sigma).value < 0.9


def test_independent_features():
    """K5: biased CKA is 0.94 at p = 512, n = 32; the unbiased one scatters around 0 (|z| ≤ 5: a false alarm in 10⁶)."""
    rng, repeats = np.random.default_rng(5), 40
    found = {estimator: [] for estimator in ESTIMATORS}
    for _ in range(repeats):
        x, y = rng.standard_normal((2, 32, 512))
        for estimator, values in found.items():
            values.append(cka(x, y, estimator=estimator).value)
    standard_error = {e: np.std(v, ddof=1) / math.sqrt(repeats) for e, v in found.items()}
    assert round(np.mean(found["biased"]), 2) == 0.94
    assert standard_error["biased"] < 0.001
    assert abs(np.mean(found["unbiased"])) <= FALSE_ALARM * standard_error["unbiased"]
    assert standard_error["unbiased"] < 0.02
    assert min(found["unbiased"]) < 0.0  # a negative one is a value
