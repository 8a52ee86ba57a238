"""What every layer of a backend must pass, as functions that raise."""

import dataclasses

import naive
import numpy as np
import torch
import torch.nn.functional as F
from tolerance import FORWARD, SIDES, VJP, assert_close, assert_identical, assert_same_kind, unit_roundoff

from refprune.backend import ORACLE
from refprune.conformance.strategies import layers as strategies

KINKED = ("leaky_relu", "max_pool")
SELECTIONS = ("flatten", "subsample_pad", "add", "max_pool", "leaky_relu")  # at most one operation per entry
COMPLEX_STEP_LIMIT = 1e-12  # the acceptance criterion (G2)
STEP = 1e-100
FADDEEVA = 1e-13  # erf of complex numbers (scipy.special): its authors' statement of the relative accuracy
COTANGENT, DIRECTION, SECOND = 1, 100, 200  # purposes of the random numbers of a case


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
