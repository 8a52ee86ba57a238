"""Input of `refprune.formulas.cka`: layouts and number types, degenerate features and their statuses, bad input (SPEC K)."""

import math

import numpy as np
import pytest
from exact_cka import ESTIMATORS, assert_hsics, features, normal
from hypothesis import given
from hypothesis import strategies as st

from refprune.conformance.strategies.layers import layouts, relayout, seeds
from refprune.errors import InputError
from refprune.formulas.cka import MiniBatches, cka, cka_matrix, hsic, median_distance


@given(pair=features(widths=3), first=layouts, second=layouts)
def test_layouts_do_not_matter_and_nothing_is_written(pair, first, second):
    x, y = (relayout(a, layout) for a, layout in zip(pair, (first, second), strict=True))
    before = x.copy(), y.copy()
    for estimator in ESTIMATORS:
        assert_hsics(cka(x, y, estimator=estimator), *pair, estimator)
    assert np.array_equal(x, before[0])
    assert np.array_equal(y, before[1])


def test_other_numbers():
    x = [[True, False], [False, False], [True, True], [False, True], [True, True]]
    y = np.array([[1], [5], [-2], [7], [7]], dtype=np.int64)
    wide = np.array(x, dtype=float), y.astype(float)
    for estimator in ESTIMATORS:
        got = cka(x, y, estimator=estimator)
        assert_hsics(got, *wide, estimator)
        half = cka(wide[0].astype(np.float16), wide[1].astype(np.float16), estimator=estimator)
        assert half == got


def test_float32_is_widened_before_anything_is_computed():
    x, y = (normal(i, 40, 3).astype(np.float32) + np.float32(1000.0) for i in range(2))
    assert cka(x, y, estimator="unbiased") == cka(x.astype(float), y.astype(float), estimator="unbiased")


VARIED = normal(99, 6, 2)
OUTLIER = np.eye(6)[:, :1]  # all samples but one are equal
ORTHOGONAL = np.diag([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
STORED = np.where(np.arange(6)[:, None] % 2, np.float32(1000.0), np.nextafter(np.float32(1000.0), np.float32(2000.0)))
DEGENERATE = {
    "n = 0": (VARIED[:0], {}, ("too few samples", "too few samples")),
    "n = 1": (VARIED[:1], {}, ("too few samples", "too few samples")),
    "n = 3": (VARIED[:3], {}, ("ok", "too few samples")),
    "n = 3, rbf": (VARIED[:3], {"kernel": "rbf"}, ("ok", "too few samples")),
    "n = 4": (VARIED[:4], {}, ("ok", "ok")),
    "zero": (np.zeros((6, 2)), {}, ("no variation",) * 2),
    "constant": (np.full((6, 2), 0.1), {}, ("no variation",) * 2),
    "constant, few": (np.full((3, 2), 0.1), {}, ("no variation", "too few samples")),
    "constant, rbf": (np.full((6, 2), 0.1), {"kernel": "rbf"}, ("no variation",) * 2),
    "constant, rbf, sigma": (np.full((6, 2), 0.1), {"kernel": "rbf", "sigma": 1.0}, ("no variation",) * 2),
    "constant as float32": (STORED, {}, ("no variation",) * 2),
    "not constant as float64": (STORED.astype(float), {}, ("ok", "ok")),
    "tiny": (1e-200 * VARIED, {}, ("ok", "ok")),
    "nan": (np.where(OUTLIER, np.nan, VARIED), {}, ("not finite",) * 2),
    "nan, rbf": (np.where(OUTLIER, np.nan, VARIED), {"kernel": "rbf"}, ("not finite",) * 2),
    "inf": (np.where(OUTLIER, np.inf, VARIED), {}, ("not finite",) * 2),
    "inf, rbf, sigma": (np.where(OUTLIER, -np.inf, VARIED), {"kernel": "rbf", "sigma": 1.0}, ("not finite",) * 2),
    "huge": (1e100 * VARIED, {}, ("ok", "ok")),
    "sums beyond all numbers": (np.full((6, 1), 1.7e308) * np.sign(VARIED[:, :1]), {}, ("ok", "ok")),
    "outlier": (OUTLIER, {}, ("ok", "self-HSIC within rounding")),
    "outlier far away": (OUTLIER * 3.0 + 0.1, {}, ("ok", "self-HSIC within rounding")),
    "orthogonal": (ORTHOGONAL, {}, ("ok", "self-HSIC within rounding")),
    "outlier, rbf": (OUTLIER, {"kernel": "rbf"}, ("zero bandwidth",) * 2),
    "all far apart": (VARIED, {"kernel": "rbf", "sigma": 1e-6}, ("ok", "self-HSIC within rounding")),
    "almost the same to the kernel": (VARIED, {"kernel": "rbf", "sigma": 1e5}, ("ok", "ok")),
    "rounding to the kernel": (VARIED, {"kernel": "rbf", "sigma": 3e7}, ("self-HSIC within rounding",) * 2),
    "all the same to the kernel": (VARIED, {"kernel": "rbf", "sigma": 1e12}, ("self-HSIC within rounding",) * 2),
}


@pytest.mark.parametrize("side", ["features", "samples"])
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_input_has_a_status(name, side):
    x, options, want = DEGENERATE[name]
    other = normal(7, len(x), 3)
    options = options if "kernel" in options else {"side": side}
    sigma = options.get("sigma")
    swapped = options if sigma is None else {**options, "sigma": (1.0, sigma)}
    options = options if sigma is None else {**options, "sigma": (sigma, 1.0)}
    for estimator, status in zip(ESTIMATORS, want, strict=True):
        got = cka(x, other, estimator=estimator, **options)
        assert got.status == status
        assert (got.value is None) == (status != "ok")
        assert got.value is None or math.isfinite(got.value)
        assert cka(other, x, estimator=estimator, **swapped).status == status
    if "kernel" not in options or sigma is not None:
        stream = MiniBatches(**options)
        stream.add(x, other)
        assert stream.result().status == want[1]


@pytest.mark.parametrize(("size", "status"), [(1e-2, "ok"), (1e-3, "ok"), (1e-4, "self-HSIC within rounding")])
def test_the_rounding_bound_is_not_far_too_wide(size, status):
    """Beside an outlier, features of the given size: their self-HSIC is size⁴, the rounding of T² some 10⁻¹⁴ of it."""
    x, y = np.hstack([OUTLIER, size * VARIED]), normal(7, 6, 3)
    for side in ("features", "samples"):
        got = cka(x, y, estimator="unbiased", side=side)
        assert got.status == status
        assert_hsics(got, x, y, "unbiased")


@given(n=st.integers(4, 40), scale=st.sampled_from((1e-3, 1.0, 1e4)), shift=st.sampled_from((0.0, 0.1, 1e3)), seed=seeds)
def test_a_self_hsic_that_is_zero_is_never_a_value(n, scale, shift, seed):
    """The rounding bound from above: samples on different axes. The shift is rounded, so all samples are made alike there."""
    lengths = scale * np.exp(np.random.default_rng(seed).standard_normal(n))
    x = np.diag(lengths) if shift == 0.0 else np.eye(n) * scale + shift
    for side in ("features", "samples"):
        assert cka(x, normal(seed, n, 2), estimator="unbiased", side=side).status == "self-HSIC within rounding"


@pytest.mark.parametrize(("n", "p"), [(4, 1), (5, 2000), (300, 3), (64, 64), (2000, 2)])
def test_ordinary_features_are_not_taken_for_rounding(n, p):
    """The rounding bound, from below."""
    for shift in (0.0, 1e4):
        x, y = normal(0, n, p) + shift, normal(1, n, 2)
        assert cka(x, y, estimator="unbiased").status == "ok"
        assert cka(x, y, estimator="unbiased", kernel="rbf").status == "ok"


X = np.zeros((6, 2))
BAD = {
    "x: must be samples × features": lambda: cka(np.zeros(6), X, estimator="biased"),
    r"y: must be samples × features with at least one feature, got shape \(6, 0\)": lambda: cka(
        X, X[:, :0], estimator="biased"
    ),
    r"features\[1\]: must be samples × features": lambda: cka_matrix([X, X[None]], estimator="biased"),
    "y: must have the samples of x, 6 rows, got 5": lambda: cka(X, X[:5], estimator="biased"),
    r"features\[2\]: must have the samples of features\[0\], 6 rows": lambda: cka_matrix([X, X, X[:5]], estimator="biased"),
    "x: must be real numbers that float64 holds, got dtype complex128": lambda: cka(X + 0j, X, estimator="biased"),
    "y: must be real numbers that float64 holds, got dtype <U1": lambda: cka(X, [["a"]] * 6, estimator="biased"),
    "features: at least one array is needed, got none": lambda: cka_matrix([], estimator="biased"),
    "features: at least one array": lambda: MiniBatches().add(),
    "x: must have at least": lambda: median_distance(X[:1]),
    "x: must have at least 2 rows and be finite, got 6 rows, 12 not finite": lambda: median_distance(X * np.nan),
    "estimator: allowed are 'biased', 'unbiased', got 'debiased'": lambda: cka(X, X, estimator="debiased"),
    "kernel: allowed are 'linear', 'rbf', got 'cosine'": lambda: cka(X, X, estimator="biased", kernel="cosine"),
    "side: allowed are": lambda: cka(X, X, estimator="biased", side="left"),
    "side: the kernel 'rbf'": lambda: cka(X, X, estimator="biased", kernel="rbf", side="features"),
    "sigma: belongs to the kernel 'rbf', got 1.0": lambda: cka(X, X, estimator="biased", sigma=1.0),
    "sigma: must be positive and finite, got 0.0": lambda: cka(X, X, estimator="biased", kernel="rbf", sigma=0.0),
    r"sigma: must be positive and finite, got \(1.0, nan\)": lambda: cka(
        X, X, estimator="biased", kernel="rbf", sigma=(1.0, math.nan)
    ),
    "sigma: must be one number, or one for each of the 2 arrays, got 3": lambda: cka(
        X, X, estimator="biased", kernel="rbf", sigma=(1.0, 2.0, 3.0)
    ),
    "sigma: must be given for mini-batches": lambda: MiniBatches(kernel="rbf"),
    r"k: must be square and finite, got shape \(6, 2\)": lambda: hsic(X, X, estimator="biased"),
    r"l: must be square and finite, got shape \(2, 2\), 4 not finite": lambda: hsic(
        np.eye(2), np.full((2, 2), np.inf), estimator="biased"
    ),
    r"k: must have at least 4 rows \(unbiased\), got 3": lambda: hsic(np.eye(3), np.eye(3), estimator="unbiased"),
    "l: must have the samples of k, 4 rows, got 5": lambda: hsic(np.eye(4), np.eye(5), estimator="unbiased"),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message):
    with pytest.raises(InputError, match=message):
        BAD[message]()


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("power", [-530, -120, 120, 530])
def test_the_size_of_features_changes_no_bit(estimator, power):
    """1e±160: fourth powers of the entries overflow and vanish; HSIC does so itself, CKA does not."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((12, 5)), rng.standard_normal((12, 3))
    big = np.ldexp(x, power)
    for side in ("features", "samples"):
        near, far = (cka(a, y, estimator=estimator, side=side) for a in (x, big))
        assert (far.status, far.value) == ("ok", near.value)
        with np.errstate(over="ignore", under="ignore"):
            assert far.hsic_xy == np.ldexp(near.hsic_xy, 2 * power)
            assert far.hsic_xx == np.ldexp(near.hsic_xx, 4 * power)
    near, far = (cka(a, y, estimator=estimator, kernel="rbf") for a in (x, big))
    assert far == near
    sigmas = median_distance(x), median_distance(big)
    assert sigmas[1] == np.ldexp(sigmas[0], power)
    given = cka(big, y, estimator=estimator, kernel="rbf", sigma=[sigmas[1], 1.5])
    assert given == cka(x, y, estimator=estimator, kernel="rbf", sigma=[sigmas[0], 1.5])


def test_batches_of_different_sizes_meet_at_one_scale():
    """The means of HSIC over batches are those of the features as they are, whatever each batch was scaled by."""
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((2, 10, 4)), rng.standard_normal((2, 10, 3))
    for power in (-95, 95):
        plain, scaled = MiniBatches(), MiniBatches()
        for i, extra in enumerate((0, 30)):  # 30 more bits put the second batch beyond the usual size
            sign = np.sign(power)
            plain.add(np.ldexp(x[i], sign * extra), y[i])
            scaled.add(np.ldexp(x[i], power + sign * extra), y[i])
        assert scaled.result().value == plain.result().value
        assert scaled.result().hsic_xy == np.ldexp(plain.result().hsic_xy, 2 * power)
