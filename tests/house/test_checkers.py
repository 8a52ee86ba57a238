"""Tests of the tests: planted mistakes must be found by the checkers, from cases that the strategies draw by themselves."""

import dataclasses

import numpy as np
import pytest
import tolerance
from checkers import fails
from hypothesis import Phase, find, settings
from layer_checks import COMPLEX_STEP_LIMIT, check_complex_step, check_contract, check_dtype, check_everything
from tolerance import assert_close, assert_identical

from refprune import arrays
from refprune.backend import ORACLE
from refprune.conformance.strategies import layers as strategies
from refprune.oracle import layers

QUICK = settings(max_examples=100, derandomize=True, database=None, deadline=None, phases=[Phase.generate])


# Planted mistakes: (function of the backend, its wrong version) -----------------------------------------------------------


def altered(f, change):
    """f with its result y put through `change`."""

    def wrong(*arguments, **options):
        y, saved = f(*arguments, **options)
        return change(y, *arguments), saved

    return wrong


def optioned(f, **changes):
    """f with options changed by functions of their value: convention mix-ups."""

    def wrong(*arguments, **options):
        return f(*arguments, **{k: changes[k](v) if k in changes else v for k, v in options.items()})

    return wrong


def regraded(f_vjp, *changes):
    """f_vjp with its gradients put through `changes` (None: kept), each a function of (gradient, saved, dy)."""

    def wrong(saved, dy):
        grads = f_vjp(saved, dy)
        pairs = zip(grads, changes + (None,) * (len(grads) - len(changes)), strict=True)
        return tuple(g if change is None else change(g, saved, dy) for g, change in pairs)

    return wrong


def _flipped_kernel(x, w, *b, **options):
    return layers.conv2d(x, w[:, :, ::-1, ::-1], *b, **options)


def _flipped_kernel_vjp(saved, dy):
    dx, dw, db = layers.conv2d_vjp(saved, dy)
    return dx, dw[:, :, ::-1, ::-1], db


def _transposed_weight_vjp(saved, dy):
    x, w = saved.values
    return (dy @ w.T if w.shape[0] == w.shape[1] else dy @ w), dy.T @ x, dy.sum(axis=0)


def _swapped_paddings(padding):
    return tuple((after, before) for before, after in padding)


def _one_sided(padding):
    (top, bottom), (left, right) = padding
    return (top + 1, bottom - 1) if bottom else (top, bottom), (left, right)


def _batch_norm_vjp_without(mean, variance):
    def wrong(saved, dy):
        normal, inverse, gain = saved.values
        _, dgain, dbias = layers.batch_norm_vjp(saved, dy)
        count, ndim = dy.size // dy.shape[1], dy.ndim
        inner = dy - (0 if mean else arrays.per_channel(dbias / count, ndim))
        inner = inner - (0 if variance else normal * arrays.per_channel(dgain / count, ndim))
        return inner * arrays.per_channel(gain * inverse, ndim), dgain, dbias

    return wrong


def _batch_norm(normalise):
    """Batch-norm with its own (centred, variance, n, eps) → normalised; saved stays right, so only the forward is wrong."""

    def wrong(x, gain, bias, *, eps):
        _, saved = layers.batch_norm(x, gain, bias, eps=eps)
        mean, variance = (arrays.per_channel(s, x.ndim) for s in saved.statistics[:2])
        normal = normalise(x - mean, variance, x.size // x.shape[1], eps)
        return normal * arrays.per_channel(gain, x.ndim) + arrays.per_channel(bias, x.ndim), saved

    return wrong


def _relu_mask_at_zero_vjp(saved, dy):
    """The mask x ≥ 0, whatever at_zero says."""
    return (dy * np.where(saved.branch == 0, 1.0, saved.values[0]),)


def _max_pool_zero_padding(x, *, kernel, stride, padding, **options):
    y, saved = layers.max_pool(x, kernel=kernel, stride=stride, padding=padding, **options)
    padded = layers._windows(layers.pad(x, padding), kernel, stride)
    return padded.real.max(axis=(4, 5)) if not np.iscomplexobj(x) else y, saved


def _max_pool_shared_ties_vjp(saved, dy):
    """Every tap of the window receives a share."""
    shape, kernel, stride, padding = saved.values
    dpadded = layers.pad(np.zeros(shape, dtype=dy.dtype), padding)
    for _, _, (rows, columns) in layers._taps(kernel, stride, (1, 1), dy.shape[2:]):
        dpadded[:, :, rows, columns] += dy / (kernel[0] * kernel[1])
    return (layers._unpad(dpadded, padding),)


def _max_pool_overwriting_vjp(saved, dy):
    """Overlapping windows overwrite each other instead of adding up."""
    shape, kernel, stride, padding = saved.values
    dpadded = layers.pad(np.zeros(shape, dtype=dy.dtype), padding)
    for i, j, (rows, columns) in layers._taps(kernel, stride, (1, 1), dy.shape[2:]):
        here = saved.branch == i * kernel[1] + j
        dpadded[:, :, rows, columns] = np.where(here, dy, dpadded[:, :, rows, columns])
    return (layers._unpad(dpadded, padding),)


def _ignores_branch(f):
    def wrong(*arguments, branch=None, **options):
        return f(*arguments, **options)

    return wrong


def _channels_misplaced(x, *, stride, before, after):
    return layers.subsample_pad(x, stride=stride, before=after, after=before)


def _without_normaliser(logits, labels, *, reduction):
    _, saved = layers.cross_entropy(logits, labels, reduction=reduction)
    losses = -(logits - logits.real.max(axis=1, keepdims=True))[np.arange(len(labels)), labels]
    return np.asarray(losses.mean() if reduction == "mean" else losses.sum()), saved


def _in_place(x):
    if x.flags.writeable:
        x *= 1.0 + 2.0**-50
    return layers.tanh(x)


def _imprecise_sigmoid(x):
    """Wrong by a thousand roundings: found, because bounds are computed."""
    y, saved = layers.sigmoid(x)
    return y * (1.0 + 1e-13), saved


MUTANTS = {
    "dense: weight transposed in dx": {"dense_vjp": _transposed_weight_vjp},
    "dense: bias gradient averaged": {"dense_vjp": regraded(layers.dense_vjp, None, None, lambda g, saved, dy: g / len(dy))},
    "dense: missing bias": {"dense": lambda x, w, b=None: layers.dense(x, w)},
    "conv2d: flipped kernel": {"conv2d": _flipped_kernel, "conv2d_vjp": _flipped_kernel_vjp},
    "conv2d: flipped kernel in dw": {"conv2d_vjp": _flipped_kernel_vjp},
    "conv2d: padding sides swapped": {"conv2d": optioned(layers.conv2d, padding=_swapped_paddings)},
    "conv2d: padding off by one side": {"conv2d": optioned(layers.conv2d, padding=_one_sided)},
    "conv2d: strides swapped": {"conv2d": optioned(layers.conv2d, stride=lambda s: s[::-1])},
    "conv2d: db from one image": {
        "conv2d_vjp": regraded(layers.conv2d_vjp, None, None, lambda g, saved, dy: dy[0].sum(axis=(1, 2)))
    },
    "conv2d: dw from one image": {
        "conv2d_vjp": regraded(
            layers.conv2d_vjp,
            None,
            lambda g, s, dy: layers.conv2d_vjp(s._replace(values=(s.values[0][:1], *s.values[1:])), dy[:1])[1],
        )
    },
    "batch_norm: vjp without the variance path": {"batch_norm_vjp": _batch_norm_vjp_without(False, True)},
    "batch_norm: vjp without the mean path": {"batch_norm_vjp": _batch_norm_vjp_without(True, False)},
    "batch_norm: eps outside the root": {"batch_norm": _batch_norm(lambda c, v, n, eps: c / (np.sqrt(v) + eps))},
    "batch_norm: unbiased variance": {"batch_norm": _batch_norm(lambda c, v, n, eps: c / np.sqrt(v * n / (n - 1) + eps))},
    "batch_norm: no eps": {"batch_norm": _batch_norm(lambda c, v, n, eps: c / np.sqrt(np.maximum(v.real, 1e-300)))},
    "batch_norm_eval: gradient of train mode": {"batch_norm_eval_vjp": layers.batch_norm_vjp},
    "batch_norm_eval: batch statistics": {
        "batch_norm_eval": lambda x, g, b, m, v, *, eps: layers.batch_norm_eval(
            x, g, b, x.mean(axis=(0, *range(2, x.ndim))), v, eps=eps
        )
    },
    "leaky_relu: mask ≥ 0": {"leaky_relu_vjp": _relu_mask_at_zero_vjp},
    "leaky_relu: at_zero without the slope": {
        "leaky_relu": lambda x, *, slope, at_zero, branch=None: layers.leaky_relu(
            x, slope=slope, at_zero=max(at_zero - slope, 0.0), branch=branch
        )
    },
    "leaky_relu: no slope": {"leaky_relu": optioned(layers.leaky_relu, slope=lambda s: 0.0)},
    "leaky_relu: branch ignored": {"leaky_relu": _ignores_branch(layers.leaky_relu)},
    "tanh: vjp 1 − y": {"tanh_vjp": lambda saved, dy: (dy * (1.0 - saved.values[0]),)},
    "tanh: input changed": {"tanh": _in_place},
    "sigmoid: 1e-13 off": {"sigmoid": _imprecise_sigmoid},
    "sigmoid: vjp without 1 − y": {"sigmoid_vjp": lambda saved, dy: (dy * saved.values[0],)},
    "gelu: tanh for erf": {"gelu": layers.gelu_tanh, "gelu_vjp": layers.gelu_tanh_vjp},
    "gelu: density without 1/√(2π)": {
        "gelu_vjp": lambda s, dy: (dy * (s.values[1] + s.values[0] * np.exp(-0.5 * s.values[0] ** 2)),)
    },
    "gelu_tanh: erf for tanh": {"gelu_tanh": layers.gelu, "gelu_tanh_vjp": layers.gelu_vjp},
    "max_pool: ties the other way": {"max_pool": optioned(layers.max_pool, ties={"first": "last", "last": "first"}.get)},
    "max_pool: zero padding": {"max_pool": _max_pool_zero_padding},
    "max_pool: gradient shared": {"max_pool_vjp": _max_pool_shared_ties_vjp},
    "max_pool: overlaps overwrite": {"max_pool_vjp": _max_pool_overwriting_vjp},
    "max_pool: branch ignored": {"max_pool": _ignores_branch(layers.max_pool)},
    "average_pool: the other divisor": {"average_pool": optioned(layers.average_pool, count_padding=lambda c: not c)},
    "average_pool: sum": {"average_pool": altered(layers.average_pool, lambda y, x: y * 2.0)},
    "global_average_pool: vjp not divided": {
        "global_average_pool_vjp": regraded(layers.global_average_pool_vjp, lambda g, saved, dy: g * (g.shape[2] * g.shape[3]))
    },
    "flatten: channels innermost": {"flatten": altered(layers.flatten, lambda y, x: np.moveaxis(x, 1, -1).reshape(y.shape))},
    "subsample_pad: option-A channels misplaced": {"subsample_pad": _channels_misplaced},
    "subsample_pad: vjp to the neighbours": {
        "subsample_pad_vjp": regraded(layers.subsample_pad_vjp, lambda g, saved, dy: np.roll(g, 1, axis=-1))
    },
    "add: channels in sorted order": {"add": optioned(layers.add, channels=lambda c: None if c is None else tuple(sorted(c)))},
    "add: no gradient for the path": {"add_vjp": regraded(layers.add_vjp, None, lambda g, saved, dy: np.zeros_like(g))},
    "gate: gradient missing": {"gate_vjp": regraded(layers.gate_vjp, None, lambda g, saved, dy: np.zeros_like(g))},
    "gate: dx not gated": {"gate_vjp": regraded(layers.gate_vjp, lambda g, saved, dy: np.array(dy))},
    "cross_entropy: no softmax normaliser": {"cross_entropy": _without_normaliser},
    "cross_entropy: 1/N missing in the vjp": {
        "cross_entropy_vjp": regraded(layers.cross_entropy_vjp, lambda g, saved, dy: g * len(g))
    },
    "cross_entropy: vjp without the label": {
        "cross_entropy_vjp": lambda saved, dy: (np.exp(saved.values[0]) * dy / len(saved.values[0]),)
    },
    "cross_entropy: dy ignored": {"cross_entropy_vjp": lambda saved, dy: layers.cross_entropy_vjp(saved, np.ones_like(dy))},
    "mean_squared_error: factor 2 missing": {
        "mean_squared_error_vjp": regraded(layers.mean_squared_error_vjp, lambda g, saved, dy: g / 2.0)
    },
    "mean_squared_error: batch mean for mean": {
        "mean_squared_error": optioned(layers.mean_squared_error, reduction=lambda r: "batch_mean" if r == "mean" else r)
    },
    "weight_decay: ½ missing": {"weight_decay": altered(layers.weight_decay, lambda y, w: 2.0 * y)},
    "weight_decay: factor 2 in the vjp": {"weight_decay_vjp": regraded(layers.weight_decay_vjp, lambda g, saved, dy: 2.0 * g)},
}


def _no_dilation(x, w, *b, dilation, padding, **options):
    """The dilation ignored; the image cropped so that the shapes agree and only the values can tell."""
    crop = [(k - 1) * (d - 1) for k, d in zip(w.shape[2:], dilation, strict=True)]
    padded = layers.pad(x, padding)[:, :, : -crop[0] or None, : -crop[1] or None]
    y, _ = layers.conv2d(padded, w, *b, dilation=(1, 1), **options)
    return y, layers.conv2d(x, w, *b, dilation=dilation, padding=padding, **options)[1]


MUTANTS["conv2d: dilation ignored"] = {"conv2d": _no_dilation}


def _groups_interleaved(x, w, *b, groups, **options):
    order = np.arange(x.shape[1]).reshape(-1, groups).T.ravel()
    y, _ = layers.conv2d(x[:, order], w, *b, groups=groups, **options)
    return y, layers.conv2d(x, w, *b, groups=groups, **options)[1]


MUTANTS["conv2d: groups interleaved"] = {"conv2d": _groups_interleaved}


@pytest.mark.parametrize("mistake", MUTANTS)
def test_a_planted_mistake_is_found(mistake):
    """Among 100 drawn cases one fails for the mutant; the oracle passes the same case."""
    op = mistake.split(":")[0]
    mutant = dataclasses.replace(ORACLE, name=mistake, **MUTANTS[mistake])
    case = find(strategies.all_cases(op), lambda c: fails(check_everything, mutant, c) is not None, settings=QUICK)
    assert fails(check_everything, ORACLE, case) is None


def test_every_operation_has_a_planted_mistake():
    assert {mistake.split(":")[0] for mistake in MUTANTS} == set(strategies.OPS)


@pytest.mark.parametrize("op", ["batch_norm", "cross_entropy", "leaky_relu"])
def test_a_change_of_dtype_is_found(op):
    mutant = dataclasses.replace(ORACLE, **{op: altered(getattr(layers, op), lambda y, *_: np.asarray(y, np.float64))})
    find(strategies.cases(op), lambda c: fails(check_dtype, mutant, c, np.float32) is not None, settings=QUICK)


def test_a_changed_input_is_found():
    mutant = dataclasses.replace(ORACLE, tanh=_in_place)
    case = find(strategies.cases("tanh"), lambda c: True, settings=QUICK)
    assert "an input was changed" in str(fails(check_contract, mutant, case, "C"))


def test_a_cotangent_that_is_changed_is_found():
    def wrong(saved, dy):
        if dy.flags.writeable:
            dy *= 2.0
        return layers.tanh_vjp(saved, dy)

    mutant = dataclasses.replace(ORACLE, tanh_vjp=wrong)
    case = find(strategies.cases("tanh"), lambda c: True, settings=QUICK)
    assert fails(check_contract, mutant, case, "C") is not None


@pytest.mark.parametrize("op", ["dense", "conv2d", "batch_norm", "gelu", "cross_entropy", "average_pool"])
def test_sensitivity_of_the_complex_step(op):
    """A gradient that is wrong by 1e-11, relatively, in every entry is found somewhere; one by the limit's 1e-3 is not."""

    def scaled(by):
        f_vjp = getattr(layers, f"{op}_vjp")
        return dataclasses.replace(ORACLE, **{f"{op}_vjp": lambda saved, dy: tuple(g * (1.0 + by) for g in f_vjp(saved, dy))})

    found = find(strategies.cases(op), lambda c: fails(check_complex_step, scaled(1e-11), c) is not None, settings=QUICK)
    assert fails(check_complex_step, scaled(1e-3 * COMPLEX_STEP_LIMIT), found) is None


def test_ones_as_a_cotangent_would_not_see_the_variance_path():
    """Why every cotangent is random: with ones, the right and the wrong gradient of batch-norm are both 0."""
    rng = np.random.default_rng(0)
    _, saved = layers.batch_norm(rng.normal(size=(64, 3)), rng.normal(size=3), rng.normal(size=3), eps=1e-5)
    wrong = _batch_norm_vjp_without(False, True)
    ones, other = np.ones((64, 3)), rng.normal(size=(64, 3))
    blind = np.abs(wrong(saved, ones)[0] - layers.batch_norm_vjp(saved, ones)[0]).max()
    seen = np.abs(wrong(saved, other)[0] - layers.batch_norm_vjp(saved, other)[0]).max()
    assert blind < 64 * 2.0**-52 < 0.01 < seen


# The assertion itself -----------------------------------------------------------------------------------------------------


ONE = np.ones(3)


@pytest.mark.parametrize(
    ("got", "bound", "words"),
    [
        (np.array([1.0, np.nan, 1.0]), 1e9, r"worst at \(1,\)"),
        (np.array([1.0, 1.0, 1.5]), 0.25, r"worst at \(2,\).*ratio 2"),
        (np.array([1.0, np.inf, 1.0]), 1e9, r"worst at \(1,\)"),
        (ONE, np.nan, "entries are off"),
        (ONE.astype(np.float32), 1.0, "dtype"),
        (ONE[:2], 1.0, "shape"),
        (ONE[None], 1.0, "shape"),
        (np.nextafter(ONE, 2.0), 0.0, "ratio inf"),
    ],
)
def test_assert_close_refuses(got, bound, words):
    if np.isnan(bound):
        got = got + 0.5
    with pytest.raises(AssertionError, match=words) as caught:
        assert_close("name of the operation", got, ONE, bound, case="some case")
    assert "name of the operation" in str(caught.value)
    assert "case: 'some case'" in str(caught.value)


def test_assert_close_refuses_nan_on_both_sides():
    with pytest.raises(AssertionError, match="nan"):
        assert_close("x", np.array([np.nan]), np.array([np.nan]), np.inf)


def test_assert_close_accepts():
    assert_close("x", ONE, ONE, 0.0)
    assert_close("x", np.array([np.inf, -0.0]), np.array([np.inf, 0.0]), 0.0)
    assert_close("x", ONE + 0.25, ONE, 0.25)
    assert_close("x", np.zeros((0, 3)), np.zeros((0, 3)), 0.0)
    assert_identical("x", ONE * 1j, ONE * 1j)


# The bounds: wide enough by derivation (test_layers), and not much too wide -------------------------------------------------


@pytest.mark.parametrize("op", strategies.OPS)
def test_bounds_grow_with_the_unit_roundoff_and_stay_small(op):
    """Float64 bounds are below 1e-9 of the scale on smooth cases: no bound can hide a wrong formula."""
    case = find(strategies.cases(op), lambda c: c.arrays[0].size > 3, settings=QUICK)
    y = tolerance.FORWARD[op](case, 2.0**-53)
    coarse = tolerance.FORWARD[op](case, 2.0**-24)
    dy = case.normal(1, y.value.shape)
    for narrow, wide in zip(
        (y, *tolerance.VJP[op](case, dy, 2.0**-53)), (coarse, *tolerance.VJP[op](case, dy, 2.0**-24)), strict=True
    ):
        assert (narrow.error <= wide.error).all()
        assert (narrow.error <= 1e-9 * narrow.scale.max() + 1e-300).all()
        assert (narrow.scale >= np.abs(narrow.value) * (1 - 2.0**-40)).all()


def test_gamma_bound_is_above_the_true_error_of_a_sum():
    """In float32 against float64: the bound holds, and the error is not so small that the bound says nothing."""
    rng = np.random.default_rng(1)
    case = strategies.Case("dense", (rng.normal(size=(40, 60)), rng.normal(size=(50, 60))), {}).astype(np.float32)
    got = (case.arrays[0] @ case.arrays[1].T).astype(np.float64)
    want = case.arrays[0].astype(np.float64) @ case.arrays[1].T.astype(np.float64)
    bound = tolerance.FORWARD["dense"](case, 2.0**-24).error
    worst = np.max(np.abs(got - want) / bound)
    assert 1e-3 < worst < 1.0
