"""Every layer of a backend and its VJP: against PyTorch, loops, the complex step, and its own contract.

`check_*(backend, case, ...)` raise AssertionError; test_tests.py shows that they catch planted mistakes. A case is drawn
from refprune.conformance.strategies, a tolerance is computed in tolerance.py, and every cotangent is random: never ones.
"""

import dataclasses

import naive
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tolerance import FORWARD, SIDES, VJP, assert_close, assert_identical, assert_same_kind, unit_roundoff

from refprune.backend import FUNCTIONS, ORACLE
from refprune.conformance.strategies import layers as strategies
from refprune.conformance.strategies.layers import OPS, Case

torch.set_num_threads(1)

KINKED = ("leaky_relu", "max_pool")
SELECTIONS = ("flatten", "subsample_pad", "add", "max_pool", "leaky_relu")  # at most one operation per entry
COMPLEX_STEP_LIMIT = 1e-12  # the acceptance criterion (G2)
STEP = 1e-100
FADDEEVA = 1e-13  # erf of complex numbers (scipy.special): its authors' statement of the relative accuracy
COTANGENT, DIRECTION, SECOND = 1, 100, 200  # purposes of the random numbers of a case

# Calling ----------------------------------------------------------------------------------------------------------------


def forward(backend, case, arrays=None, **changed):
    """(y, saved) of the backend."""
    arrays = case.arrays if arrays is None else arrays
    return getattr(backend, case.op)(*arrays, *case.constants, **{**case.options, **changed})


def vjp(backend, case, saved, dy):
    """The gradients of the case's arrays (a missing bias: its gradient is dropped)."""
    return getattr(backend, f"{case.op}_vjp")(saved, dy)[: len(case.arrays)]


def cotangent(case, y, purpose=COTANGENT):
    return case.normal(purpose, np.shape(y), np.asarray(y).dtype)


def gradients(backend, case, purpose=COTANGENT):
    """(y, dy, gradients)."""
    y, saved = forward(backend, case)
    dy = cotangent(case, y, purpose)
    return y, dy, vjp(backend, case, saved, dy)


# PyTorch ----------------------------------------------------------------------------------------------------------------


def _sides(padding):
    (top, bottom), (left, right) = padding
    return left, right, top, bottom


def _torch_conv2d(x, w, b=None, *, stride, padding, dilation, groups):
    return F.conv2d(F.pad(x, _sides(padding)), w, b, stride=stride, dilation=dilation, groups=groups)


def _torch_max_pool(x, *, kernel, stride, padding, ties):
    x = F.pad(x, _sides(padding), value=-torch.inf)
    if ties == "first":
        return F.max_pool2d(x, kernel, stride)
    windows = x.unfold(2, kernel[0], stride[0]).unfold(3, kernel[1], stride[1]).flatten(-2).flip(-1)
    return windows.gather(-1, windows.max(dim=-1, keepdim=True).indices)[..., 0]


def _torch_average_pool(x, *, kernel, stride, padding, count_padding):
    ones = F.pad(torch.ones_like(x), _sides(padding), value=float(count_padding))
    total, count = (F.avg_pool2d(a, kernel, stride, divisor_override=1) for a in (F.pad(x, _sides(padding)), ones))
    return total / count


def _torch_subsample_pad(x, *, stride, before, after):
    return F.pad(x[:, :, :: stride[0], :: stride[1]], (0, 0, 0, 0, before, after))


def _torch_add(shortcut, path, *, channels):
    return shortcut + path if channels is None else shortcut.index_add(1, torch.tensor(channels), path)


def _torch_mean_squared_error(prediction, target, *, reduction):
    if reduction == "batch_mean":
        return F.mse_loss(prediction, target, reduction="sum") / len(prediction)
    return F.mse_loss(prediction, target, reduction=reduction)


#: op -> the function in PyTorch, with the oracle's arguments.
TORCH = {
    "dense": F.linear,
    "conv2d": _torch_conv2d,
    "batch_norm": lambda x, g, b, *, eps: F.batch_norm(x, None, None, g, b, training=True, eps=eps),
    "batch_norm_eval": lambda x, g, b, m, v, *, eps: F.batch_norm(x, m, v, g, b, training=False, eps=eps),
    "leaky_relu": lambda x, *, slope, at_zero: F.leaky_relu(x, slope),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "max_pool": _torch_max_pool,
    "average_pool": _torch_average_pool,
    "global_average_pool": lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1),
    "flatten": lambda x: torch.flatten(x, 1),
    "subsample_pad": _torch_subsample_pad,
    "add": _torch_add,
    "gate": lambda x, g: x * g.reshape(1, -1, *[1] * (x.ndim - 2)) if g.ndim else x * g,
    "cross_entropy": lambda z, labels, *, reduction: F.cross_entropy(z, labels, reduction=reduction),
    "mean_squared_error": _torch_mean_squared_error,
    "weight_decay": lambda w, *, strength: 0.5 * strength * w.square().sum(),
}


def torch_gradients(case, dy):
    """(y, gradients) by torch.autograd in float64, for a given cotangent."""
    arrays = [torch.tensor(a.tolist(), dtype=torch.float64).reshape(a.shape).requires_grad_() for a in case.arrays]
    constants = [torch.from_numpy(np.array(c)) for c in case.constants]
    y = TORCH[case.op](*arrays, *constants, **case.options)
    grads = torch.autograd.grad(y, arrays, torch.tensor(np.array(dy)))
    return y.detach().numpy(), tuple(g.numpy() for g in grads)


def naive_gradients(case, dy):
    """(y, gradients) by the loops of naive.py."""
    inputs = (*case.arrays, *case.constants)
    gradient = getattr(naive, f"{case.op}_gradient")(dy, *inputs, **case.options)
    return getattr(naive, case.op)(*inputs, **case.options), gradient[: len(case.arrays)]


WITNESSES = {"torch": torch_gradients, "naive": naive_gradients}

# Checkers ---------------------------------------------------------------------------------------------------------------


def check_witness(backend, case, witness):
    """y and every gradient agree with an independent implementation, float64."""
    y, dy, got = gradients(backend, case)
    want_y, want = WITNESSES[witness](case, dy)
    u = unit_roundoff(np.float64)
    assert_close(f"{case.op} / {witness}", y, want_y, SIDES * FORWARD[case.op](case, u).error, case=case)
    for k, (mine, theirs, bound) in enumerate(zip(got, want, VJP[case.op](case, dy, u), strict=False)):
        assert_close(f"{case.op}_vjp[{k}] / {witness}", mine, theirs, SIDES * bound.error, case=case)


def check_complex_step(backend, case):
    """⟨dy, J v⟩ by the complex step = ⟨Jᵀdy, v⟩ by the VJP, for each array argument and a random v; the largest error.

    Relative to the sum of the absolute products that the VJP adds up, so that cancellation is accounted for.
    """
    y, dy, grads = gradients(backend, case)
    scales = VJP[case.op](case, dy, unit_roundoff(np.float64))
    tracked = FORWARD[case.op](case, unit_roundoff(np.float64))
    real_bound = SIDES * tracked.error + (FADDEEVA * tracked.scale if case.op == "gelu" else 0.0)
    largest = 0.0
    for k, (a, g, scale) in enumerate(zip(case.arrays, grads, scales, strict=False)):
        v = case.normal(DIRECTION + k, a.shape)
        stepped, _ = forward(backend, case, [*case.arrays[:k], a + 1j * STEP * v, *case.arrays[k + 1 :]])
        assert_close(f"{case.op}, real part", np.asarray(stepped.real), y, real_bound, case=case)
        direct, through_vjp = np.sum(dy * (stepped.imag / STEP)), np.sum(g * v)
        total = np.sum(scale.scale * np.abs(v))
        limit = COMPLEX_STEP_LIMIT * total
        assert_close(f"{case.op}_vjp[{k}], complex step", np.float64(through_vjp), direct, limit, case=case)
        largest = max(largest, abs(direct - through_vjp) / total if total else 0.0)
    return largest


def check_linear(backend, case):
    """Jᵀ(a·dy₁ + b·dy₂) = a·Jᵀdy₁ + b·Jᵀdy₂, within the bound of the three products and the two combinations."""
    y, saved = forward(backend, case)
    a, b = 0.75, -2.5  # exact in every precision
    one, two = cotangent(case, y), cotangent(case, y, SECOND)
    mixed = np.asarray(a * one + b * two)
    u = unit_roundoff(y.dtype)
    left, first, second = (vjp(backend, case, saved, dy) for dy in (mixed, one, two))
    bounds = [VJP[case.op](case, dy, u) for dy in (mixed, one, two)]
    for k, (whole, p, q) in enumerate(zip(left, first, second, strict=True)):
        # rounding of dy itself: 3u(|a dy₁| + |b dy₂|), carried by the VJP on absolute values
        scale = abs(a) * bounds[1][k].scale + abs(b) * bounds[2][k].scale
        error = bounds[0][k].error + abs(a) * bounds[1][k].error + abs(b) * bounds[2][k].error + 6 * u * scale
        want = np.asarray(a * p + b * q)
        assert_close(f"{case.op}_vjp[{k}], linearity", np.asarray(whole), want, error, case=case)


def check_contract(backend, case, layout):
    """Inputs in any layout stay as they are and give the same; the VJP can be called twice and leaves dy alone."""
    laid = case.relaid(layout)
    case = case.relaid("C")  # the caller's arrays are not risked
    original = case.relaid("C")
    want_y, dy, want = gradients(backend, case)
    y, saved = forward(backend, laid)
    dy = strategies.relayout(dy, layout)
    before = dy.copy()
    got, again = vjp(backend, laid, saved, dy), vjp(backend, laid, saved, dy)
    assert_identical(f"{case.op}: dy was changed", dy, before, case=case)
    for after, before in zip((*laid.arrays, *laid.constants), (*original.arrays, *original.constants), strict=True):
        assert_identical(f"{case.op}: an input was changed", after, before, case=case)
    u = 0.0 if case.op in SELECTIONS else unit_roundoff(np.float64)
    bound = SIDES * FORWARD[case.op](case, u).error if u else 0.0
    assert_close(f"{case.op}, {layout}", y, want_y, bound, case=case)
    bounds = [SIDES * b.error for b in VJP[case.op](case, dy, u)] if u else [0.0] * len(got)
    for k, (first, second, reference, bound) in enumerate(zip(got, again, want, bounds, strict=False)):
        assert_close(f"{case.op}_vjp[{k}], {layout}", np.asarray(first), np.asarray(reference), bound, case=case)
        assert_identical(f"{case.op}_vjp[{k}], called again", np.asarray(second), np.asarray(first), case=case)


def check_dtype(backend, case, dtype):
    """Shapes and dtype are those of the inputs; float32 results lie within the bound of float64 ones."""
    cast = case.astype(dtype)
    y, dy, grads = gradients(backend, cast)
    reference = cast.astype(np.float64) if dtype == np.float32 else case
    exact_y, saved = forward(ORACLE, reference)
    wide = np.asarray(dy).real.astype(np.float64)
    exact = vjp(ORACLE, reference, saved, wide)
    assert_same_kind(case.op, y, np.asarray(exact_y).astype(dtype), case=case)
    for k, (g, a) in enumerate(zip(grads, cast.arrays, strict=True)):
        assert_same_kind(f"{case.op}_vjp[{k}]", g, a, case=case)
    if dtype == np.float32:
        u = unit_roundoff(dtype)
        bound = FORWARD[case.op](reference, u).error
        assert_close(f"{case.op}, float32", y.astype(np.float64), exact_y, SIDES * bound, case=case)
        for k, (g, want, bound) in enumerate(zip(grads, exact, VJP[case.op](reference, wide, u), strict=False)):
            assert_close(
                f"{case.op}_vjp[{k}], float32",
                np.asarray(g, dtype=np.float64),
                np.asarray(want),
                SIDES * bound.error,
                case=case,
            )


def check_branch(backend, case):
    """The branch is returned as declared; another input's branch is honoured, by the forward and by the VJP."""
    (x,) = case.arrays
    y, saved = forward(backend, case)
    options = {} if case.op == "leaky_relu" else case.options
    want = getattr(naive, f"{case.op}_branch")(x, **options)
    assert_identical(f"{case.op}, branch", saved.branch, want, case=case)
    own, _ = forward(backend, case, branch=saved.branch)
    assert_identical(f"{case.op}, its own branch given back", own, y, case=case)
    elsewhere = np.random.default_rng(case.seed).permutation(x.ravel()).reshape(x.shape)[::-1]
    other = getattr(naive, f"{case.op}_branch")(elsewhere, **options)
    frozen = dataclasses.replace(case, options={**case.options, "branch": other}, smooth=False)
    check_witness(backend, frozen, "naive")
    check_complex_step(backend, frozen)
    _, saved = forward(backend, frozen)
    assert_identical(f"{case.op}, branch given", saved.branch, other, case=case)


def check_everything(backend, case):
    """All checks that a float64 case can be put to."""
    check_witness(backend, case, "naive")
    if agrees_with_torch(case):
        check_witness(backend, case, "torch")
    if case.smooth:
        check_complex_step(backend, case)
    check_linear(backend, case)
    check_contract(backend, case, strategies.LAYOUTS[case.seed % len(strategies.LAYOUTS)])
    if case.op in KINKED:
        check_branch(backend, case)


def agrees_with_torch(case):
    """PyTorch has one convention at kinks: relu'(0) = slope, and the first of equal maxima."""
    return case.smooth or (case.options.get("at_zero", 0.0) == 0.0 and case.options.get("ties", "first") == "first")


# The properties ---------------------------------------------------------------------------------------------------------


def test_every_function_is_covered():
    """A function added to the backend needs a strategy, a loop, a witness in PyTorch and a bound."""
    pairs = tuple(name for op in OPS for name in (op, f"{op}_vjp"))
    assert pairs == FUNCTIONS
    assert set(TORCH) == set(FORWARD) == set(VJP) == set(OPS)
    assert all(hasattr(naive, op) and hasattr(naive, f"{op}_gradient") for op in OPS)


@pytest.mark.parametrize("op", OPS)
@given(data=st.data())
def test_against_loops(op, data):
    check_witness(ORACLE, data.draw(strategies.all_cases(op), label="case"), "naive")


@pytest.mark.parametrize("op", OPS)
@given(data=st.data())
def test_against_torch(op, data):
    case = data.draw(strategies.all_cases(op), label="case")
    if not agrees_with_torch(case):
        case = dataclasses.replace(case, options={**case.options, **TORCH_CONVENTIONS[op]})
    check_witness(ORACLE, case, "torch")


TORCH_CONVENTIONS = {"leaky_relu": {"at_zero": 0.0}, "max_pool": {"ties": "first"}}


@pytest.mark.parametrize("op", OPS)
@given(data=st.data())
def test_complex_step(op, data):
    check_complex_step(ORACLE, data.draw(strategies.cases(op), label="case"))


@pytest.mark.parametrize("op", OPS)
@given(data=st.data())
def test_vjp_is_linear_in_the_cotangent(op, data):
    check_linear(ORACLE, data.draw(strategies.all_cases(op), label="case"))


@pytest.mark.parametrize("op", OPS)
@given(data=st.data())
def test_contract_in_every_layout(op, data):
    case = data.draw(strategies.all_cases(op), label="case")
    check_contract(ORACLE, case, data.draw(strategies.layouts, label="layout"))


@pytest.mark.parametrize("op", OPS)
@given(data=st.data())
def test_dtype_is_kept(op, data):
    case = data.draw(strategies.cases(op), label="case")
    check_dtype(ORACLE, case, data.draw(st.sampled_from((np.float32, np.float64, np.complex128)), label="dtype"))


@pytest.mark.parametrize("op", KINKED)
@given(data=st.data())
def test_branches(op, data):
    check_branch(ORACLE, data.draw(strategies.all_cases(op), label="case"))


@pytest.mark.parametrize("op", ["dense", "conv2d", "average_pool", "add", "gate"])
@given(data=st.data())
def test_sums_of_small_integers_are_exact(op, data):
    """No rounding happens (but one division), so no tolerance is needed."""
    case = data.draw(strategies.integer_cases(op), label="case")
    y, saved = forward(ORACLE, case)
    dy = np.asarray(np.random.default_rng(case.seed).integers(-3, 4, y.shape).astype(float))
    want, want_grads = naive_gradients(case, dy)
    assert_identical(op, y, want, case=case)
    for got, reference in zip(vjp(ORACLE, case, saved, dy), want_grads, strict=True):
        if op != "average_pool":  # its backward adds up quotients
            assert_identical(f"{op}_vjp", np.asarray(got), reference, case=case)


# Step halving: the error of a central difference falls with the square of the step ---------------------------------------


@pytest.mark.parametrize("op", ["batch_norm", "tanh", "sigmoid", "gelu", "gelu_tanh", "cross_entropy"])
@pytest.mark.parametrize("seed", range(3))
def test_central_differences_converge_with_order_two(op, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(4, 3))
    arrays = (x, rng.normal(size=3), rng.normal(size=3)) if op == "batch_norm" else (x,)
    constants = (rng.integers(0, 3, 4),) if op == "cross_entropy" else ()
    options = {"batch_norm": {"eps": 0.1}, "cross_entropy": {"reduction": "mean"}}.get(op, {})
    case = Case(op, arrays, options, constants, seed)
    _, dy, grads = gradients(ORACLE, case)
    v = case.normal(DIRECTION, x.shape)
    analytic = np.sum(grads[0] * v)

    def error(h):
        up, down = (forward(ORACLE, case, [x + s * h * v, *arrays[1:]])[0] for s in (1.0, -1.0))
        return np.sum(dy * (up - down)) / (2.0 * h) - analytic

    order = np.log2(error(2.0**-6) / error(2.0**-7))
    assert round(float(order), 1) == 2.0, order


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
