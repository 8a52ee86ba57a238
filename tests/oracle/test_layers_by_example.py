"""Layers by example: kinks, extreme values, special cases in which one formula is another."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from layer_checks import KINKED, STEP, forward, gradients
from tolerance import FORWARD, SIDES, VJP, assert_close, assert_identical, unit_roundoff

from refprune.backend import ORACLE
from refprune.conformance.strategies.layers import OPS, Case

# Kinks, by example --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("at_zero", "slope", "factor"), [(0, 0, 0), (0.5, 0, 0.5), (1, 0, 1), (0.5, 0.2, 0.6), (0, 0.2, 0.2)])
def test_subgradient_at_zero(at_zero, slope, factor):
    x, dy = np.array([[-2.0, -0.0, 0.0, 3.0]]), np.array([[5.0, 7.0, 11.0, 13.0]])
    y, saved = ORACLE.leaky_relu(x, slope=slope, at_zero=at_zero)
    assert y.tolist() == [[-2.0 * slope, 0.0, 0.0, 3.0]]
    assert saved.branch.tolist() == [[-1, 0, 0, 1]]
    assert saved.branch.dtype == np.int8
    bound = 4 * 2.0**-53 * np.abs(dy)
    assert_close("leaky_relu_vjp", ORACLE.leaky_relu_vjp(saved, dy)[0], dy * [slope, factor, factor, 1.0], bound)


@pytest.mark.parametrize(("ties", "chosen"), [("first", [1, 0]), ("last", [2, 3])])
def test_ties_of_max_pool(ties, chosen):
    """Two 2×2 windows: [1 4; 4 0] and [7 7; 7 7]."""
    x = np.array([[[[1.0, 4.0, 7.0, 7.0], [4.0, 0.0, 7.0, 7.0]]]])
    y, saved = ORACLE.max_pool(x, kernel=(2, 2), stride=(2, 2), padding=((0, 0), (0, 0)), ties=ties)
    assert y.tolist() == [[[[4.0, 7.0]]]]
    assert saved.branch.tolist() == [[[chosen]]]
    assert saved.branch.dtype == np.intp
    (dx,) = ORACLE.max_pool_vjp(saved, np.array([[[[3.0, 5.0]]]]))
    want = np.zeros((2, 4))
    for column, (number, d) in zip((0, 2), zip(chosen, (3.0, 5.0), strict=True), strict=True):
        want[number // 2, column + number % 2] = d
    assert dx.tolist() == [[want.tolist()]]


def test_padding_never_wins_a_max_pool():
    x = np.full((1, 1, 2, 2), -5.0)
    options = {"kernel": (2, 2), "stride": (1, 1), "padding": ((1, 1), (1, 1)), "ties": "first"}
    y, saved = ORACLE.max_pool(x, **options)
    assert y.tolist() == [[[[-5.0] * 3] * 3]]
    assert ORACLE.max_pool_vjp(saved, np.ones_like(y))[0].sum() == 9


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
def test_max_pool_chooses_by_the_real_part(dtype):
    x = np.array([[[[1.0, 2.0]]]]).astype(dtype) + (1j * np.array([9.0, -9.0]) if dtype == np.complex128 else 0.0)
    _, saved = ORACLE.max_pool(x, kernel=(1, 2), stride=(1, 1), padding=((0, 0), (0, 0)), ties="first")
    assert saved.branch.item() == 1


# Extreme values: warnings are errors under this pytest configuration ------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128])
@pytest.mark.parametrize("op", ["tanh", "sigmoid", "gelu", "gelu_tanh"])
def test_saturated_activations(op, dtype):
    big = {"gelu_tanh": 100.0}.get(op, 1000.0)
    x = np.array([[-big, -40.0, 0.0, 40.0, big]]).astype(dtype)
    if dtype == np.complex128:
        x = x + 1j * STEP
    y, saved = getattr(ORACLE, op)(x)
    (dx,) = getattr(ORACLE, f"{op}_vjp")(saved, np.ones_like(y))
    assert np.isfinite(y).all()
    assert np.isfinite(dx).all()
    ends = {"tanh": (-1.0, 1.0), "sigmoid": (0.0, 1.0), "gelu": (0.0, big), "gelu_tanh": (0.0, big)}[op]
    assert (float(y[0, 0].real), float(y[0, -1].real)) == ends
    assert dx[0, 0].real == 0.0
    assert dx[0, -1].real == (1.0 if "gelu" in op else 0.0)
    if dtype == np.complex128:
        assert_identical(f"{op}: complex step at the ends", (y.imag / STEP)[:, [0, -1]], dx.real[:, [0, -1]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128])
def test_cross_entropy_of_huge_logits(dtype):
    logits = np.array([[1000.0, -1000.0, 0.0], [-1000.0, 1000.0, 1000.0]]).astype(dtype)
    if dtype == np.complex128:
        logits = logits + 1j * STEP * np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    loss, saved = ORACLE.cross_entropy(logits, np.array([1, 0]), reduction="sum")
    (d,) = ORACLE.cross_entropy_vjp(saved, np.asarray(1.0, dtype))
    assert_close("loss", np.float64(loss.real), 4000.0 + np.log(2.0), 4 * unit_roundoff(dtype) * 4000.0)
    # exp(−log 2) carries the rounding of 1000 − 1000 − log 2, absolute, and of exp
    want = np.array([[1.0, -1.0, 0.0], [-1.0, 0.5, 0.5]])
    assert_close("gradient", np.asarray(d.real, np.float64), want, 8 * unit_roundoff(dtype))
    if dtype == np.complex128:
        assert_close("complex step", np.float64(loss.imag / STEP), 1.5, 8 * unit_roundoff(dtype))


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1, 1)])
def test_batch_norm_refuses_a_single_value_per_channel(shape):
    with pytest.raises(ValueError, match="more than one value per channel"):
        ORACLE.batch_norm(np.ones(shape), np.ones(3), np.zeros(3), eps=1e-5)


def test_batch_norm_statistics_are_the_mean_and_the_biased_variance():
    x = np.array([[1.0, 5.0], [3.0, 5.0], [8.0, 5.0]])
    _, saved = ORACLE.batch_norm(x, np.ones(2), np.zeros(2), eps=1e-5)
    mean, variance, count = saved.statistics
    assert mean.tolist() == [4.0, 5.0]
    assert count == 3
    assert_close("variance", variance, np.array([26.0 / 3.0, 0.0]), 4 * 2.0**-53 * 26.0 / 3.0)


@pytest.mark.parametrize("op", [op for op in OPS if op != "batch_norm"])
def test_only_train_mode_batch_norm_has_statistics(op):
    x = np.ones((2, 2, 2, 2)) if op in ("conv2d", "max_pool", "average_pool") else np.ones((2, 2))
    if op in ("global_average_pool", "flatten", "subsample_pad"):
        x = np.ones((2, 2, 2, 2))
    extra = {
        "dense": (np.ones((3, 2)),),
        "conv2d": (np.ones((1, 2, 1, 1)),),
        "batch_norm_eval": (np.ones(2),) * 4,
        "add": (x,),
        "gate": (np.ones(2),),
        "cross_entropy": (np.array([0, 1]),),
        "mean_squared_error": (x,),
    }.get(op, ())
    pool = {"kernel": (2, 2), "stride": (2, 2), "padding": ((0, 0), (0, 0))}
    options = {
        "batch_norm_eval": {"eps": 1e-5},
        "leaky_relu": {"slope": 0.0, "at_zero": 0.0},
        "max_pool": {**pool, "ties": "first"},
        "average_pool": {**pool, "count_padding": True},
        "subsample_pad": {"stride": (2, 2), "before": 0, "after": 1},
        "add": {"channels": None},
        "cross_entropy": {"reduction": "mean"},
        "mean_squared_error": {"reduction": "mean"},
        "weight_decay": {"strength": 0.1},
    }.get(op, {})
    _, saved = getattr(ORACLE, op)(x, *extra, **options)
    assert saved.statistics is None
    assert (saved.branch is not None) == (op in KINKED)


# Special cases in which one formula is another ------------------------------------------------------------------------------


@pytest.fixture
def rng():
    return np.random.default_rng(20240607)


U = 2.0**-53


def test_pointwise_convolution_is_dense_on_pixels(rng):
    x, w, b = rng.normal(size=(2, 5, 3, 4)), rng.normal(size=(6, 5)), rng.normal(size=6)
    y, _ = ORACLE.conv2d(x, w[:, :, None, None], b)
    pixels = np.moveaxis(x, 1, -1).reshape(-1, 5)
    want = np.moveaxis(ORACLE.dense(pixels, w, b)[0].reshape(2, 3, 4, 6), -1, 1)
    case = Case("conv2d", (x, w[:, :, None, None], b), OPTIONS)
    assert_close("1×1 convolution", y, want, SIDES * FORWARD["conv2d"](case, U).error)


OPTIONS = {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1), "groups": 1}


def test_convolution_over_the_whole_image_is_dense_on_the_flattened_image(rng):
    x, w = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(6, 3, 4, 5))
    y, _ = ORACLE.conv2d(x, w)
    want = ORACLE.dense(ORACLE.flatten(x)[0], w.reshape(6, -1))[0][:, :, None, None]
    assert_close("full convolution", y, want, SIDES * FORWARD["conv2d"](Case("conv2d", (x, w), OPTIONS), U).error)


def test_grouped_convolution_is_a_convolution_with_zeros_elsewhere(rng):
    x, w = rng.normal(size=(2, 4, 5, 4)), rng.normal(size=(6, 2, 3, 2))
    full = np.zeros((6, 4, 3, 2))
    full[:3, :2], full[3:, 2:] = w[:3], w[3:]
    case = Case("conv2d", (x, w), {**OPTIONS, "groups": 2})
    bound = SIDES * FORWARD["conv2d"](case, U).error
    assert_close("groups", forward(ORACLE, case)[0], ORACLE.conv2d(x, full)[0], SIDES * bound)  # twice the terms


def test_dilation_is_a_kernel_with_holes(rng):
    x, w = rng.normal(size=(1, 2, 7, 6)), rng.normal(size=(3, 2, 3, 2))
    holes = np.zeros((3, 2, 5, 3))
    holes[:, :, ::2, ::2] = w
    case = Case("conv2d", (x, w), {**OPTIONS, "dilation": (2, 2)})
    bound = 15 / 6 * SIDES * FORWARD["conv2d"](case, U).error  # 15 taps instead of 6
    assert_close("dilation", forward(ORACLE, case)[0], ORACLE.conv2d(x, holes)[0], bound)


def test_average_pool_with_stride_kernel_is_the_mean_of_blocks(rng):
    x = rng.normal(size=(2, 3, 6, 8))
    options = {"kernel": (3, 2), "stride": (3, 2), "padding": ((0, 0), (0, 0)), "count_padding": True}
    y, _ = ORACLE.average_pool(x, **options)
    want = x.reshape(2, 3, 2, 3, 4, 2).mean(axis=(3, 5))
    bound = SIDES * FORWARD["average_pool"](Case("average_pool", (x,), options), U).error
    assert_close("average pool", y, want, bound)


@pytest.mark.parametrize("count_padding", [True, False])
def test_average_pool_with_pytorchs_own_padding(rng, count_padding):
    x = rng.normal(size=(2, 3, 6, 5))
    options = {"kernel": (3, 2), "stride": (2, 1), "padding": ((1, 1), (1, 1)), "count_padding": count_padding}
    want = F.avg_pool2d(torch.from_numpy(x), (3, 2), (2, 1), 1, count_include_pad=count_padding).numpy()
    bound = SIDES * FORWARD["average_pool"](Case("average_pool", (x,), options), U).error
    assert_close("average pool", ORACLE.average_pool(x, **options)[0], want, bound)


def test_average_pool_over_the_image_is_global(rng):
    x = rng.normal(size=(2, 3, 4, 5))
    options = {"kernel": (4, 5), "stride": (1, 1), "padding": ((0, 0), (0, 0)), "count_padding": False}
    bound = SIDES * FORWARD["global_average_pool"](Case("global_average_pool", (x,), {}), U).error
    assert_close("global", ORACLE.global_average_pool(x)[0], ORACLE.average_pool(x, **options)[0][:, :, 0, 0], bound)


def test_leaky_relu_without_a_slope_is_max_with_zero_and_with_slope_one_the_identity(rng):
    x = rng.normal(size=(4, 5))
    assert_identical("ReLU", ORACLE.leaky_relu(x, slope=0.0, at_zero=0.0)[0], np.maximum(x, 0.0))
    assert_identical("identity", ORACLE.leaky_relu(x, slope=1.0, at_zero=0.0)[0], x)


def test_cross_entropy_of_two_classes_is_the_logistic_loss(rng):
    logits, labels = rng.normal(size=(7, 2)), rng.integers(0, 2, 7)
    case = Case("cross_entropy", (logits,), {"reduction": "sum"}, (labels,))
    margins = (logits[:, 1] - logits[:, 0]) * (2 * labels - 1)
    want = np.asarray(np.log1p(np.exp(-margins)).sum())
    assert_close("logistic loss", forward(ORACLE, case)[0], want, SIDES * FORWARD["cross_entropy"](case, U).error)


def test_cross_entropy_of_equal_logits_is_the_logarithm_of_the_number_of_classes():
    case = Case("cross_entropy", (np.full((3, 10), 2.5),), {"reduction": "mean"}, (np.array([0, 4, 9]),))
    y, _ = forward(ORACLE, case)
    assert_close("log 10", y, np.asarray(np.log(10.0)), SIDES * FORWARD["cross_entropy"](case, U).error)


def test_cross_entropy_gradient_of_a_shift_vanishes(rng):
    """Adding a constant to a row changes nothing: the gradient's rows sum to 0."""
    case = Case("cross_entropy", (rng.normal(size=(5, 4)),), {"reduction": "mean"}, (rng.integers(0, 4, 5),))
    _, dy, (d,) = gradients(ORACLE, case)
    bound = VJP["cross_entropy"](case, dy, U)[0].error.sum(axis=1) + 4 * U * np.abs(d).sum(axis=1)
    assert_close("row sums", d.sum(axis=1), np.zeros(5), bound)


def test_batch_norm_eval_with_the_batch_statistics_is_batch_norm(rng):
    x, gain, bias = rng.normal(size=(6, 3, 2, 2)), rng.normal(size=3), rng.normal(size=3)
    case = Case("batch_norm", (x, gain, bias), {"eps": 1e-3})
    y, saved = forward(ORACLE, case)
    want, _ = ORACLE.batch_norm_eval(x, gain, bias, *saved.statistics[:2], eps=1e-3)
    assert_close("eval = train", y, want, SIDES * FORWARD["batch_norm"](case, U).error)


def test_batch_norm_gradient_is_orthogonal_to_constants_and_without_eps_to_the_input(rng):
    """Without eps, y does not change when a channel is shifted or stretched."""
    case = Case("batch_norm", (rng.normal(size=(8, 3)), rng.normal(size=3), rng.normal(size=3)), {"eps": 0.0})
    _, dy, (dx, _, _) = gradients(ORACLE, case)
    bound = VJP["batch_norm"](case, dy, U)[0].error
    x = case.arrays[0]
    shift, stretch = (np.sum(bound * np.abs(v) + 8 * U * np.abs(dx * v), axis=0) for v in (np.ones_like(x), x))
    assert_close("shift", dx.sum(axis=0), np.zeros(3), shift)
    assert_close("stretch", (dx * x).sum(axis=0), np.zeros(3), stretch)


def test_gates_at_one_and_zero(rng):
    x = rng.normal(size=(2, 3, 4, 4))
    for shape in ((), (3,)):
        assert_identical("gate 1", ORACLE.gate(x, np.ones(shape))[0], x)
        assert_identical("gate 0", ORACLE.gate(x, np.zeros(shape))[0], np.zeros_like(x))


def test_scalar_gate_gradient_is_the_sum_of_the_unit_gates_gradients(rng):
    x, dy = rng.normal(size=(2, 3, 4, 4)), rng.normal(size=(2, 3, 4, 4))
    _, scalar = ORACLE.gate_vjp(ORACLE.gate(x, np.asarray(0.5))[1], dy)
    _, units = ORACLE.gate_vjp(ORACLE.gate(x, np.full(3, 0.5))[1], dy)
    assert_close("dg", np.asarray(scalar), np.asarray(units.sum()), SIDES * 96 * U * np.sum(np.abs(x * dy)))


def test_missing_summands_are_zero_summands(rng):
    shortcut, path = rng.normal(size=(2, 4, 3, 3)), rng.normal(size=(2, 2, 3, 3))
    full = np.zeros_like(shortcut)
    full[:, [3, 0]] = path
    assert_identical("add", ORACLE.add(shortcut, path, channels=(3, 0))[0], ORACLE.add(shortcut, full, channels=None)[0])
