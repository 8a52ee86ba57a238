"""CKA from mini-batches and of all pairs, its cost, and planted mistakes (SPEC K4)."""

import itertools
import math
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from exact_cka import (
    ESTIMATORS,
    HSICS,
    U,
    assert_hsics,
    assert_value,
    error_bound,
    exact_hsics,
    normal,
)
from tolerance import gamma

from refprune.errors import InputError
from refprune.formulas import hsic_sums as module
from refprune.formulas.cka import MiniBatches, Similarity, cka, cka_matrix, numpy_product

FALSE_ALARM = 5.0  # |z| of a normal mean: 6e-7

# Mini-batches (K4) ------------------------------------------------------------------------------------------------------


def streamed(pairs):
    stream = MiniBatches()
    for x, y in pairs:
        stream.add(x, y)
    return stream.result()


def assert_all_batches_are_everything(estimate, seed=0, n=7, b=5):
    """The mean of a U-statistic over all C(n, b) batches is that of the n samples."""
    rng = np.random.default_rng(seed)
    x, y = (rng.integers(-9, 10, (n, p)).astype(float) for p in (3, 2))
    batches = [(x[list(rows)], y[list(rows)]) for rows in itertools.combinations(range(n), b)]
    got, exact, bounds = estimate(batches), exact_hsics(x, y, "unbiased"), []
    for pick in (lambda u, v: (u, v), lambda u, v: (u, u), lambda u, v: (v, v)):
        pairs = [pick(u, v) for u, v in batches]
        size = sum(abs(float(exact_hsics(*pair, "unbiased")[0])) for pair in pairs)
        errors = sum(error_bound(*pair, "unbiased") for pair in pairs)
        bounds.append((errors + gamma(len(batches) + 1, U) * (size + errors)) / len(batches))
    assert_value(got, exact, bounds)


@pytest.mark.parametrize(("n", "b"), [(7, 5), (7, 4), (6, 6)])
def test_ratio_of_means_over_all_batches_is_the_value_of_all_samples(n, b):
    assert_all_batches_are_everything(streamed, n=n, b=b)


def test_one_batch_is_the_whole_and_order_does_not_matter():
    x, y = normal(0, 20, 3), normal(1, 20, 5)
    assert streamed([(x, y)]) == cka(x, y, estimator="unbiased")
    batches = [(x[:9], y[:9]), (x[9:], y[9:])]
    assert streamed(batches) == streamed(batches[::-1])
    parts = [cka(*batch, estimator="unbiased") for batch in batches]
    means = {name: (getattr(parts[0], name) + getattr(parts[1], name)) / 2 for name in HSICS}
    got = streamed(batches)
    assert {name: getattr(got, name) for name in HSICS} == means
    assert got.value == means["hsic_xy"] / (math.sqrt(means["hsic_xx"]) * math.sqrt(means["hsic_yy"]))


def batch_z(hsics, full):
    """z-scores of the three means over random batches."""
    h = np.array(hsics)
    return np.abs(h.mean(axis=0) - full) / (h.std(axis=0, ddof=1) / math.sqrt(len(h)))


def test_batches_have_the_expectation_of_all_samples():
    """Random batches of 60 samples: |z| ≤ 5 (two false alarms in 10⁶ seeds). Biased HSICs of the same batches are far off."""
    rng, batches, size = np.random.default_rng(11), 1500, 8
    x = rng.standard_normal((60, 4))
    y = np.tanh(x @ rng.standard_normal((4, 6))) + 0.5 * rng.standard_normal((60, 6))
    chosen = [rng.choice(60, size, replace=False) for _ in range(batches)]
    for estimator, within in (("unbiased", True), ("biased", False)):
        records = [cka(x[c], y[c], estimator=estimator) for c in chosen]
        whole = cka(x, y, estimator=estimator)
        z = batch_z([[getattr(r, name) for name in HSICS] for r in records], [getattr(whole, name) for name in HSICS])
        assert (z.max() <= FALSE_ALARM) == within, (estimator, z)


def test_streamed_matrix_and_bad_batches():
    arrays = [normal(i, 12, p) for i, p in enumerate((3, 1, 20))]
    stream = MiniBatches()
    stream.add(*arrays)
    whole = cka_matrix(arrays, estimator="unbiased")
    for name in ("values", "hsic", "status"):
        assert np.array_equal(getattr(stream.matrix(), name), getattr(whole, name))
    with pytest.raises(InputError, match=r"features: must have the widths of the batches before, \[3, 1, 20\], got \[3, 1\]"):
        stream.add(*arrays[:2])
    with pytest.raises(InputError, match="features: must be two, x and y, got 3"):
        stream.result()
    assert np.array_equal(stream.matrix().hsic, whole.hsic)
    stream.add(*(a[:3] for a in arrays))
    assert (stream.matrix().status == "too few samples").all()
    with pytest.raises(InputError, match="batches: at least one"):
        MiniBatches().result()


def test_streamed_rbf_has_one_sigma():
    x, y = normal(0, 16, 3), normal(1, 16, 2)
    stream = MiniBatches(kernel="rbf", sigma=(1.0, 2.0))
    parts = []
    for rows in (slice(8), slice(8, None)):
        stream.add(x[rows], y[rows])
        parts.append(cka(x[rows], y[rows], estimator="unbiased", kernel="rbf", sigma=(1.0, 2.0)).hsic_xy)
    assert stream.result().hsic_xy == sum(parts) / 2


# All pairs, products, cost --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("side", ["features", "samples"])
def test_matrix_is_all_pairs(estimator, side):
    arrays = [normal(0, 9, 3), normal(1, 9, 1).astype(np.float32), np.ones((9, 2)), normal(0, 9, 3) @ normal(2, 3, 4)]
    matrix = cka_matrix(arrays, estimator=estimator, side=side)
    for i, j in itertools.combinations(range(4), 2):
        assert matrix.pair(i, j) == cka(arrays[i], arrays[j], estimator=estimator, side=side)
    assert np.array_equal(matrix.hsic, matrix.hsic.T)
    assert np.array_equal(matrix.values, matrix.values.T, equal_nan=True)
    assert np.array_equal(np.isnan(matrix.values), matrix.status != "ok")
    assert np.array_equal(matrix.status == "no variation", np.array([[2 in (i, j) for j in range(4)] for i in range(4)]))
    kept = np.ix_([0, 1, 3], [0, 1, 3])
    assert np.abs(np.diagonal(matrix.values[kept]) - 1.0).max() <= 4 * U  # two roots, a product, a quotient


class Recorder:
    """A product that remembers its shapes, and whether it was told that both factors are the same."""

    def __init__(self):
        self.calls = []

    def __call__(self, a, b):
        assert a.dtype == b.dtype == np.float64
        assert all(m.flags.c_contiguous or m.flags.f_contiguous for m in (a, b))
        self.calls.append((a.shape, b.shape, a is b))
        return numpy_product(a, b)


def test_products_go_through_the_argument_and_say_when_they_are_symmetric():
    x, y = normal(0, 10, 3), normal(1, 10, 4).astype(np.float32)
    product = Recorder()
    cka_matrix([x, y], estimator="unbiased", side="features", product=product)
    assert product.calls == [((10, 3), (10, 3), True), ((10, 3), (10, 4), False), ((10, 4), (10, 4), True)]
    for options in ({"side": "samples"}, {"kernel": "rbf"}):
        product = Recorder()
        cka(x, y, estimator="biased", product=product, **options)
        assert product.calls == [((3, 10), (3, 10), True), ((4, 10), (4, 10), True)]
    product = Recorder()
    MiniBatches(product=product).add(x, y, x)
    assert len(product.calls) == 6  # one for each pair: every self-HSIC once


@pytest.mark.parametrize(
    ("n", "widths"), [(10, (3, 4)), (5, (3, 4)), (6, (40, 1)), (100, (30, 40)), (9, (9,)), (9, (4, 4, 4, 4))]
)
def test_the_cheaper_side_is_taken(n, widths):
    """K2's counts; with both side's at a tie, features."""
    product = Recorder()
    cka_matrix([normal(i, n, p) for i, p in enumerate(widths)], estimator="biased", product=product)
    in_features = n * sum(p * q for p, q in itertools.combinations_with_replacement(widths, 2)) <= n * n * sum(widths)
    assert (product.calls[0][0][0] == n and product.calls[0][0][1] == widths[0]) == in_features
    assert len(product.calls) == (len(widths) * (len(widths) + 1) // 2 if in_features else len(widths))


def test_many_samples_need_no_n_by_n_memory():
    """20,000×16 float32: an n×n matrix would be 3.2 GB. What is needed is a few blocks and some vectors of n."""
    x, y = (normal(i, 20_000, 16).astype(np.float32) for i in range(2))
    tracemalloc.start()
    value = cka(x, y, estimator="unbiased").value
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert abs(value) < 0.01
    assert peak < 8 * 8 * module.BLOCK + 10 * 8 * len(x)


# Would these tests notice? ------------------------------------------------------------------------------------------------


def record(f):
    """A Similarity-like record from f(x, y) → HSIC."""

    def made(x, y):
        xy, xx, yy = f(x, y), f(x, x), f(y, y)
        return Similarity(xy / math.sqrt(xx) / math.sqrt(yy), "ok", xy, xx, yy)

    return made


def three_terms(x, y, *, diagonal=False, a=1, b=2, chain=2.0, c=0, d=3):
    """Song et al.'s estimator with places to go wrong."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    k, l, n = x @ x.T, y @ y.T, len(x)  # noqa: E741
    if not diagonal:
        np.fill_diagonal(k, 0.0)
        np.fill_diagonal(l, 0.0)
    total = np.sum(k * l) + k.sum() * l.sum() / ((n - a) * (n - b)) - chain / (n - b) * (k.sum(axis=0) @ l.sum(axis=0))
    return total / ((n - c) * (n - d))


def biased(x, y, *, centre=(True, True), axis=0, off=1):
    x, y = (a - a.mean(axis=axis, keepdims=True) if c else a for a, c in zip((x, y), centre, strict=True))
    return np.square(x.T @ y).sum() / (len(x) - off) ** 2


def once_centred(x, y):
    """The feature-space formula after one subtraction only."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    k, l, n = np.square(x).sum(axis=1), np.square(y).sum(axis=1), len(x)  # noqa: E741
    return (np.square(x.T @ y).sum() - n / (n - 2) * k @ l + k.sum() * l.sum() / ((n - 1) * (n - 2))) / (n * (n - 3))


def in_float32(x, y):
    return float(biased(x.astype(np.float32), y.astype(np.float32)))


PLANTED = {
    "uncentred": ("biased", lambda x, y: biased(x, y, centre=(False, False))),
    "rows centred": ("biased", lambda x, y: biased(x, y, axis=1)),
    "divided by n²": ("biased", lambda x, y: biased(x, y, off=0)),
    "float32": ("biased", in_float32),
    "unbiased called biased": ("biased", three_terms),
    "biased called unbiased": ("unbiased", biased),
    "diagonals kept": ("unbiased", lambda x, y: three_terms(x, y, diagonal=True)),
    "n−1 for n−2": ("unbiased", lambda x, y: three_terms(x, y, b=1)),
    "n for n−1": ("unbiased", lambda x, y: three_terms(x, y, a=0)),
    "1 for 2": ("unbiased", lambda x, y: three_terms(x, y, chain=1.0)),
    "n(n−2)": ("unbiased", lambda x, y: three_terms(x, y, d=2)),
    "(n−1)(n−3)": ("unbiased", lambda x, y: three_terms(x, y, c=1)),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_mistakes_in_hsic_are_found(name):
    estimator, wrong = PLANTED[name]
    x, y = normal(3, 9, 3) + 1.0, normal(4, 9, 2) - 2.0
    assert_hsics(record({"biased": biased, "unbiased": three_terms}[estimator])(x, y), x, y, estimator)
    with pytest.raises(AssertionError, match="hsic_xy"):
        assert_hsics(record(wrong)(x, y), x, y, estimator)


def test_planted_single_centring_is_found():
    """With means 10⁶ deviations off zero, which `features` draws, the second subtraction counts at some of five seeds."""
    found = 0
    for seed in range(5):
        x, y = normal([3, seed], 7, 3) + 1e6, normal([4, seed], 7, 2) + 1e6
        assert_hsics(cka(x, y, estimator="unbiased", side="features"), x, y, "unbiased")
        try:
            assert_hsics(record(once_centred)(x, y), x, y, "unbiased")
        except AssertionError:
            found += 1
    assert found


def test_planted_products_are_found():
    x, y = normal(3, 9, 3), normal(4, 9, 2)
    wrong = {
        "float32": lambda a, b: (a.astype(np.float32).T @ b.astype(np.float32)).astype(float),
        "half of it": lambda a, b: np.triu(a.T @ b) if a is b else a.T @ b,
        "the last row left out": lambda a, b: a[:-1].T @ b[:-1],
    }
    for product, side in itertools.product(wrong.values(), ("features", "samples")):
        got = cka(x, y, estimator="biased", side=side, product=product)
        with pytest.raises(AssertionError):
            assert_hsics(got, x, y, "biased")


def averaged(pairs):
    """The mean of the batches' CKAs."""
    return SimpleNamespace(status="ok", value=float(np.mean([cka(x, y, estimator="unbiased").value for x, y in pairs])))


def biased_ratio(pairs):
    """The ratio of means, of biased HSICs."""
    sums = [sum(getattr(cka(x, y, estimator="biased"), name) for x, y in pairs) for name in HSICS]
    return SimpleNamespace(status="ok", value=sums[0] / math.sqrt(sums[1] * sums[2]))


def last_batch(pairs):
    return cka(*pairs[-1], estimator="unbiased")


@pytest.mark.parametrize("wrong", [averaged, biased_ratio, last_batch])
def test_planted_mini_batch_mistakes_are_found(wrong):
    with pytest.raises(AssertionError, match="value: got"):
        assert_all_batches_are_everything(wrong)
