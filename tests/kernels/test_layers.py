"""The numba backend against the oracle in float64, within what rounding can explain (SPEC E1); no tolerance is typed.

`_limit(dtype, m, size)` is γₘ·size + m·(smallest normal), where `size` is the same operation on absolute values and m counts
the roundings on the longest way from an input to an output. A sum that the kernels carry in double precision costs no
rounding per term in float32 (`_terms`). exp and log are taken to be good to two units in the last place.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import subprocess
import sys
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refprune.arrays import Array, Saved
from refprune.backend import FUNCTIONS, FUSED, ORACLE, WITHOUT_VJP, load_backend
from refprune.errors import InputError
from refprune.oracle import crop_flip, layers, momentum
from refprune.spec import zoo
from refprune.training import config
from refprune.training.state import initial_state
from refprune.training.step import train_step

DTYPES = (np.float32, np.float64)
FAST = load_backend("numba", threads=1)
MANY = int(os.environ.get("KERNEL_EXAMPLES", "30"))  # of each property; tests/test_runtime.py sets it for slow ways to run
EXAMPLES = settings(max_examples=MANY, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from(DTYPES)
few, some = st.integers(1, 3), st.integers(1, 9)
pads = st.tuples(st.tuples(st.integers(0, 2), st.integers(0, 2)), st.tuples(st.integers(0, 2), st.integers(0, 2)))


# --------------------------------------------------------------------------------------------------------------------
# Comparing


def _limit(dtype: Any, m: float, size: Array) -> Array:
    """E1: γₘ·size + m·(smallest normal)."""
    u = float(np.finfo(dtype).eps) / 2
    assert m * u < 0.5
    return m * u / (1 - m * u) * size + m * float(np.finfo(dtype).tiny)


def _terms(dtype: Any, n: int) -> float:
    """Roundings of a sum of n terms that is carried in double precision, in units of the dtype's own."""
    return n if dtype == np.float64 else 1 + n * 2.0**-29


def _complaints(dtype: Any, results: dict[str, tuple[Array, Array, float, Array]]) -> list[str]:
    """What is wrong with results {name: (got, want, m, size)}: type, shape, or the entry furthest beyond its limit."""
    found = []
    for name, (got, want, m, size) in results.items():
        if got.dtype != dtype or got.shape != want.shape or not got.flags.c_contiguous:
            found.append(f"{name}: {got.dtype} {got.shape} {got.strides}, expected {np.dtype(dtype)} {want.shape}")
        elif got.size:
            with np.errstate(invalid="ignore"):
                excess = np.nan_to_num(np.abs(got.astype(np.float64) - want) / _limit(dtype, m, size), nan=np.inf)
            at = np.unravel_index(excess.argmax(), excess.shape)
            if excess[at] > 1:
                at_text = tuple(int(i) for i in at)
                found.append(f"{name}{at_text}: got {got[at]!r}, oracle {want[at]!r}: {excess[at]:.3g} × its limit (m = {m:g})")
    return found


def _check(dtype: Any, results: dict[str, tuple[Array, Array, float, Array]]) -> None:
    found = _complaints(dtype, results)
    assert not found, "\n".join(found)


class _Inputs:
    """Random arrays that float32 can hold, in random memory layouts; remembers them to see that nobody changes them."""

    def __init__(self, seed: int, dtype: Any) -> None:
        self.random, self.dtype = np.random.default_rng(seed), dtype
        self._made: list[tuple[Array, Array]] = []

    def array(self, *shape: int, positive: bool = False, integers: bool = False) -> Array:
        values = self.random.integers(-2, 3, shape) if integers else self.random.standard_normal(shape)
        values = (np.abs(values) + 0.125 if positive else values).astype(np.float32).astype(self.dtype)
        layout = self.random.integers(4)
        if layout == 0 and shape:
            made = np.asfortranarray(values)
        elif layout == 1 and shape:
            made = np.full((*shape[:-1], 2 * shape[-1]), np.nan, self.dtype)[..., ::2]
            made[...] = values
        elif layout == 2 and shape:
            made = np.ascontiguousarray(values[::-1])[::-1]
        else:
            made = values
        made.setflags(write=bool(self.random.integers(2)))
        self._made.append((made, values.copy()))
        return made

    def assert_unchanged(self) -> None:
        for now, then in self._made:
            np.testing.assert_array_equal(now, then)


def _double(*arrays: Array) -> list[Array]:
    return [a.astype(np.float64) for a in arrays]


def _absolute(*arrays: Array) -> list[Array]:
    return [np.abs(a.astype(np.float64)) for a in arrays]


# --------------------------------------------------------------------------------------------------------------------
# Affine maps


def _dense_results(backend: Any, inputs: _Inputs, n: int, m: int, k: int, bias: bool) -> dict[str, Any]:
    x, w, b, dy = inputs.array(n, m), inputs.array(k, m), inputs.array(k) if bias else None, inputs.array(n, k)
    y, saved = backend.dense(x, w, b)
    want, exact = layers.dense(*_double(x, w), None if b is None else _double(b)[0])
    size, sizes = layers.dense(*_absolute(x, w), None if b is None else _absolute(b)[0])
    results = {"y": (y, want, m + 1, size)}
    gradients = zip(layers.dense_vjp(exact, *_double(dy)), layers.dense_vjp(sizes, *_absolute(dy)), strict=True)
    for name, terms, got, (wanted, bound) in zip(
        ("dx", "dw", "db"), (k, n, n), backend.dense_vjp(saved, dy), gradients, strict=True
    ):
        results[name] = (got, wanted, max(terms, 1), bound)
    without = backend.dense_vjp(saved, dy, input_gradient=False)
    assert without[0] is None
    assert all(np.array_equal(a, b) for a, b in zip(without[1:], backend.dense_vjp(saved, dy)[1:], strict=True))
    return results


@EXAMPLES
@given(seeds, dtypes, st.integers(1, 20), st.integers(0, 40), st.integers(0, 40), st.booleans())
def test_dense(seed: int, dtype: Any, n: int, m: int, k: int, bias: bool) -> None:
    inputs = _Inputs(seed, dtype)
    _check(dtype, _dense_results(FAST, inputs, n, m, k, bias))
    inputs.assert_unchanged()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "m", "k"), [(1, 1, 1), (1, 300, 10), (128, 64, 64), (33, 257, 131), (260, 5, 129), (0, 3, 2)])
def test_dense_at_the_edges_of_blocks(dtype: Any, n: int, m: int, k: int) -> None:
    _check(dtype, _dense_results(FAST, _Inputs(0, dtype), n, m, k, True))


def _conv_results(
    backend: Any,
    inputs: _Inputs,
    n: int,
    channels: int,
    outputs: int,
    size: tuple[int, int],
    kernel: tuple[int, int],
    bias: bool,
    **how: Any,
) -> dict[str, Any]:
    groups = how["groups"]
    x, w = inputs.array(n, channels * groups, *size), inputs.array(outputs * groups, channels, *kernel)
    b = inputs.array(outputs * groups) if bias else None
    y, saved = backend.conv2d(x, w, b, **how)
    want, exact = layers.conv2d(*_double(x, w), None if b is None else _double(b)[0], **how)
    bound, bounds = layers.conv2d(*_absolute(x, w), None if b is None else _absolute(b)[0], **how)
    dy = inputs.array(*want.shape)
    area, pixels = kernel[0] * kernel[1], n * want.shape[2] * want.shape[3]
    results = {"y": (y, want, channels * area + 1, bound)}
    terms = {"dx": outputs * area, "dw": pixels, "db": pixels}
    got = backend.conv2d_vjp(saved, dy)
    wanted, sizes = layers.conv2d_vjp(exact, *_double(dy)), layers.conv2d_vjp(bounds, *_absolute(dy))
    for name, one, two, three in zip(terms, got, wanted, sizes, strict=True):
        results[name] = (one, two, max(terms[name], 1), three)
    without = backend.conv2d_vjp(saved, dy, input_gradient=False)
    assert without[0] is None
    assert all(np.array_equal(a, b) for a, b in zip(without[1:], got[1:], strict=True))
    return results


@settings(EXAMPLES, max_examples=2 * MANY)
@given(st.data(), seeds, dtypes, few, st.integers(0, 4), st.integers(0, 6), few, st.tuples(few, few), st.booleans())
def test_conv2d(
    data: Any, seed: int, dtype: Any, n: int, channels: int, outputs: int, groups: int, kernel: Any, bias: bool
) -> None:
    stride, dilation, padding = data.draw(st.tuples(few, few)), data.draw(st.tuples(few, few)), data.draw(pads)
    least = [max(1, (k - 1) * e + 1 - sum(p)) for k, e, p in zip(kernel, dilation, padding, strict=True)]
    size = (data.draw(st.integers(least[0], least[0] + 7)), data.draw(st.integers(least[1], least[1] + 7)))
    inputs = _Inputs(seed, dtype)
    how = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    _check(dtype, _conv_results(FAST, inputs, n, channels, outputs, size, kernel, bias, **how))
    inputs.assert_unchanged()


PLAIN: dict[str, Any] = {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1), "groups": 1}
SAME: dict[str, Any] = {**PLAIN, "padding": ((1, 1), (1, 1))}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("n", "channels", "outputs", "size", "kernel", "how"),
    [
        (5, 1, 20, (28, 28), (5, 5), PLAIN),
        (3, 20, 50, (12, 12), (5, 5), PLAIN),
        (9, 32, 32, (7, 7), (3, 3), SAME),
        (2, 3, 5, (3, 150), (3, 3), SAME),  # a row wider than a strip
        (1, 30, 6, (4, 5), (3, 3), {**SAME, "stride": (2, 2)}),  # more taps than are packed at once
        (1, 2, 300, (3, 3), (1, 1), PLAIN),  # more outputs than are packed at once
        (40, 4, 4, (2, 2), (1, 1), PLAIN),  # more images than chunks
    ],
)
def test_conv2d_at_the_edges_of_blocks(
    dtype: Any, n: int, channels: int, outputs: int, size: Any, kernel: Any, how: dict[str, Any]
) -> None:
    _check(dtype, _conv_results(FAST, _Inputs(1, dtype), n, channels, outputs, size, kernel, True, **how))


# --------------------------------------------------------------------------------------------------------------------
# Batch normalisation


@EXAMPLES
@given(seeds, dtypes, st.booleans(), st.sampled_from([(), (1, 1), (3, 2), (5, 7)]), st.integers(0, 600), st.integers(2, 7))
def test_batch_norm(seed: int, dtype: Any, train: bool, pixels: tuple[int, ...], channels: int, n: int) -> None:
    channels = channels if not pixels else channels % 40
    inputs, eps = _Inputs(seed, dtype), 2.0**-10
    x, dy = inputs.array(n, channels, *pixels), inputs.array(n, channels, *pixels)
    gain, bias = inputs.array(channels), inputs.array(channels)
    axes = (0, *range(2, x.ndim))

    def column(v: Array) -> Array:
        return v.reshape((-1,) + (1,) * len(pixels))

    if train:
        y, saved = FAST.batch_norm(x, gain, bias, eps=eps)
        want, exact = layers.batch_norm(*_double(x, gain, bias), eps=eps)
        assert exact.statistics is not None
        mean, variance, _ = exact.statistics
        got, wanted = FAST.batch_norm_vjp(saved, dy), layers.batch_norm_vjp(exact, *_double(dy))
    else:
        mean, variance = inputs.array(channels), inputs.array(channels, positive=True)
        y, saved = FAST.batch_norm_eval(x, gain, bias, mean, variance, eps=eps)
        mean, variance = _double(mean, variance)
        want, exact = layers.batch_norm_eval(*_double(x, gain, bias), mean, variance, eps=eps)
        got, wanted = FAST.batch_norm_eval_vjp(saved, dy), layers.batch_norm_eval_vjp(exact, *_double(dy))
    count = n * math.prod(pixels)
    # sizes: of x − μ, of the variance, and of the normalised input, whose root passes on half the variance's error
    ax, ady, again, abias = _absolute(x, dy, gain, bias)
    away = ax + column(np.abs(mean)) + (column(ax.mean(axis=axes)) if train else 0.0)
    spread = (away * away).mean(axis=axes)
    amplified = 1.0 + (spread / (variance + eps) if train else 0.0)
    normal = away * column(amplified / np.sqrt(variance + eps))
    scale = column(again / np.sqrt(variance + eps))
    m = 2 * _terms(dtype, count)
    weighted = (ady * normal).sum(axis=axes)
    dx = ady + column(ady.mean(axis=axes)) + normal * column(weighted / count) if train else ady
    _check(
        dtype,
        {
            "y": (y, want, m + 8, normal * column(again) + column(abias)),
            "dx": (got[0], wanted[0], 2 * m + 16, scale * column(amplified) * dx if train else scale * dx),
            "dgain": (got[1], wanted[1], 2 * m + 10, weighted),
            "dbias": (got[2], wanted[2], m, ady.sum(axis=axes)),
        },
    )
    if train:
        assert saved.statistics is not None
        _check(
            dtype,
            {
                "mean": (saved.statistics[0], mean, m + 2, ax.mean(axis=axes)),
                "variance": (saved.statistics[1], variance, m + 4, spread),
            },
        )
    inputs.assert_unchanged()


def test_batch_norm_of_a_single_value_is_refused() -> None:
    with pytest.raises(ValueError, match="more than one value"):
        FAST.batch_norm(np.ones((1, 3)), np.ones(3), np.ones(3), eps=1e-5)


# --------------------------------------------------------------------------------------------------------------------
# Elementwise layers


@EXAMPLES
@given(
    seeds,
    dtypes,
    st.booleans(),
    st.sampled_from([0.0, 0.25, 0.1]),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.lists(some, max_size=4),
)
def test_leaky_relu(seed: int, dtype: Any, zeros: bool, slope: float, at_zero: float, shape: list[int]) -> None:
    inputs = _Inputs(seed, dtype)
    x, dy = inputs.array(*shape, integers=zeros), inputs.array(*shape)
    y, saved = FAST.leaky_relu(x, slope=slope, at_zero=at_zero)
    want, exact = layers.leaky_relu(*_double(x), slope=slope, at_zero=at_zero)
    assert saved.branch.dtype == exact.branch.dtype == np.int8
    np.testing.assert_array_equal(saved.branch, exact.branch)
    (dx,), (wanted,) = FAST.leaky_relu_vjp(saved, dy), layers.leaky_relu_vjp(exact, *_double(dy))
    _check(dtype, {"y": (y, want, 2, np.abs(want)), "dx": (dx, wanted, 2, np.abs(wanted))})
    other = inputs.random.integers(-1, 2, shape).astype(np.int8)
    y, saved = FAST.leaky_relu(x, slope=slope, at_zero=at_zero, branch=other)
    want, exact = layers.leaky_relu(*_double(x), slope=slope, at_zero=at_zero, branch=other)
    np.testing.assert_array_equal(saved.branch, other)
    (dx,), (wanted,) = FAST.leaky_relu_vjp(saved, dy), layers.leaky_relu_vjp(exact, *_double(dy))
    _check(dtype, {"forced y": (y, want, 2, np.abs(want)), "forced dx": (dx, wanted, 2, np.abs(wanted))})
    inputs.assert_unchanged()


@EXAMPLES
@given(seeds, dtypes, st.booleans(), some, st.integers(0, 5), st.sampled_from([(), (1, 1), (3, 2), (11, 13)]))
def test_gate(seed: int, dtype: Any, whole: bool, n: int, channels: int, pixels: tuple[int, ...]) -> None:
    inputs = _Inputs(seed, dtype)
    x, dy = inputs.array(n, channels, *pixels), inputs.array(n, channels, *pixels)
    g = inputs.array() if whole else inputs.array(channels)
    y, saved = FAST.gate(x, g)
    want, exact = layers.gate(*_double(x, g))
    got, wanted = FAST.gate_vjp(saved, dy), layers.gate_vjp(exact, *_double(dy))
    sizes = layers.gate_vjp(Saved(tuple(_absolute(x, g))), *_absolute(dy))
    m = _terms(dtype, x.size) + 1
    wanted_dg = np.asarray(wanted[1])
    _check(
        dtype,
        {
            "y": (y, want, 1, np.abs(want)),
            "dx": (got[0], wanted[0], 1, sizes[0]),
            "dg": (got[1], wanted_dg, m, np.asarray(sizes[1])),
        },
    )
    inputs.assert_unchanged()


@EXAMPLES
@given(st.data(), seeds, dtypes, some, st.integers(0, 6), st.sampled_from([(), (1, 1), (3, 2)]))
def test_add(data: Any, seed: int, dtype: Any, n: int, channels: int, pixels: tuple[int, ...]) -> None:
    inputs = _Inputs(seed, dtype)
    chosen = None
    if data.draw(st.booleans()):
        chosen = tuple(c for c in range(channels) if inputs.random.integers(2))
    shortcut, dy = inputs.array(n, channels, *pixels), inputs.array(n, channels, *pixels)
    path = inputs.array(n, channels if chosen is None else len(chosen), *pixels)
    y, saved = FAST.add(shortcut, path, channels=chosen)
    want, exact = layers.add(*_double(shortcut, path), channels=chosen)
    _check(dtype, {"y": (y, want, 1, np.abs(want))})
    for got, wanted in zip(FAST.add_vjp(saved, dy), layers.add_vjp(exact, dy), strict=True):
        np.testing.assert_array_equal(got, wanted)
    inputs.assert_unchanged()


@EXAMPLES
@given(seeds, dtypes, few, st.integers(0, 4), st.tuples(some, some), st.tuples(few, few), st.tuples(few, few))
def test_subsample_pad(seed: int, dtype: Any, n: int, channels: int, size: Any, stride: Any, around: Any) -> None:
    inputs = _Inputs(seed, dtype)
    x = inputs.array(n, channels, *size)
    y, saved = FAST.subsample_pad(x, stride=stride, before=around[0] - 1, after=around[1] - 1)
    want, exact = layers.subsample_pad(x, stride=stride, before=around[0] - 1, after=around[1] - 1)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, want)
    dy = inputs.array(*want.shape)
    np.testing.assert_array_equal(FAST.subsample_pad_vjp(saved, dy)[0], layers.subsample_pad_vjp(exact, dy)[0])
    inputs.assert_unchanged()


# --------------------------------------------------------------------------------------------------------------------
# Pooling


@st.composite
def pools(draw: Any) -> tuple[tuple[int, int], dict[str, Any]]:
    """Image size and pooling conventions; padding below the kernel, so that every window has a real pixel."""
    kernel, stride = draw(st.tuples(few, few)), draw(st.tuples(few, few))
    padding = tuple(tuple(draw(st.integers(0, k - 1)) for _ in range(2)) for k in kernel)
    size = tuple(draw(st.integers(k, k + 6)) for k in kernel)
    return size, {"kernel": kernel, "stride": stride, "padding": padding}


@EXAMPLES
@given(seeds, dtypes, st.booleans(), few, st.integers(1, 4), pools(), st.sampled_from(["first", "last"]))
def test_max_pool(seed: int, dtype: Any, equal: bool, n: int, channels: int, pool: Any, ties: str) -> None:
    inputs, (size, how) = _Inputs(seed, dtype), pool
    x = inputs.array(n, channels, *size, integers=equal)
    y, saved = FAST.max_pool(x, ties=ties, **how)
    want, exact = layers.max_pool(x, ties=ties, **how)
    assert y.dtype == dtype
    assert saved.branch.dtype == np.uint8
    np.testing.assert_array_equal(saved.branch, exact.branch)
    np.testing.assert_array_equal(y, want)
    dy, terms = inputs.array(*want.shape), how["kernel"][0] * how["kernel"][1]
    other = inputs.random.integers(0, terms, want.shape)
    forced, saved_forced = FAST.max_pool(x, ties=ties, branch=other, **how)
    np.testing.assert_array_equal(forced, layers.max_pool(x, ties=ties, branch=other, **how)[0])
    for name, record in (("own", saved), ("forced", saved_forced)):
        (wanted,), (bound,) = layers.max_pool_vjp(record, *_double(dy)), layers.max_pool_vjp(record, *_absolute(dy))
        _check(dtype, {f"{name} dx": (FAST.max_pool_vjp(record, dy)[0], wanted, terms, bound)})
    inputs.assert_unchanged()


def test_max_pool_without_channels() -> None:
    how: dict[str, Any] = {"kernel": (2, 2), "stride": (2, 2), "padding": ((0, 0), (0, 0)), "ties": "first"}
    y, saved = FAST.max_pool(np.ones((2, 0, 4, 4)), **how)
    assert y.shape == (2, 0, 2, 2)
    assert FAST.max_pool_vjp(saved, y)[0].shape == (2, 0, 4, 4)


@pytest.mark.parametrize("ties", ["first", "last"])
def test_max_pool_of_values_that_are_not_finite(ties: str) -> None:
    values = np.array([np.nan, -np.inf, -np.inf, 1.0, np.inf, 1.0])
    x = np.random.default_rng(0).choice(values, (8, 4, 9, 9)).astype(np.float32)
    x[0] = -np.inf
    how: dict[str, Any] = {"kernel": (2, 3), "stride": (2, 2), "padding": ((1, 1), (2, 1)), "ties": ties}
    (y, saved), (want, exact) = FAST.max_pool(x, **how), layers.max_pool(x, **how)
    np.testing.assert_array_equal(saved.branch, exact.branch)
    np.testing.assert_array_equal(y, want)


@EXAMPLES
@given(seeds, dtypes, few, st.integers(0, 4), pools(), st.booleans())
def test_average_pool(seed: int, dtype: Any, n: int, channels: int, pool: Any, count_padding: bool) -> None:
    inputs, (size, how) = _Inputs(seed, dtype), pool
    x = inputs.array(n, channels, *size)
    y, saved = FAST.average_pool(x, count_padding=count_padding, **how)
    want, exact = layers.average_pool(*_double(x), count_padding=count_padding, **how)
    bound, _ = layers.average_pool(*_absolute(x), count_padding=count_padding, **how)
    dy, terms = inputs.array(*want.shape), how["kernel"][0] * how["kernel"][1]
    (wanted,), (size_dx,) = layers.average_pool_vjp(exact, *_double(dy)), layers.average_pool_vjp(exact, *_absolute(dy))
    results = {
        "y": (y, want, terms + 1, bound),
        "dx": (FAST.average_pool_vjp(saved, dy)[0], wanted, terms + 1, size_dx),
    }
    _check(dtype, results)
    inputs.assert_unchanged()


@EXAMPLES
@given(seeds, dtypes, few, st.integers(0, 4), st.tuples(some, some))
def test_global_average_pool(seed: int, dtype: Any, n: int, channels: int, size: tuple[int, int]) -> None:
    inputs = _Inputs(seed, dtype)
    x, dy = inputs.array(n, channels, *size), inputs.array(n, channels)
    y, saved = FAST.global_average_pool(x)
    want, exact = layers.global_average_pool(*_double(x))
    (dx,), (wanted,) = FAST.global_average_pool_vjp(saved, dy), layers.global_average_pool_vjp(exact, *_double(dy))
    m = _terms(dtype, size[0] * size[1]) + 1
    bound = layers.global_average_pool(*_absolute(x))[0]
    _check(dtype, {"y": (y, want, m, bound), "dx": (dx, wanted, 1, np.abs(wanted))})
    inputs.assert_unchanged()


# --------------------------------------------------------------------------------------------------------------------
# Cross-entropy


@EXAMPLES
@given(
    seeds,
    dtypes,
    st.integers(1, 20),
    st.integers(1, 12),
    st.sampled_from(["mean", "sum"]),
    st.sampled_from([1.0, 30.0]),
)
def test_cross_entropy(seed: int, dtype: Any, n: int, k: int, reduction: str, stretch: float) -> None:
    inputs = _Inputs(seed, dtype)
    logits = np.asarray(inputs.array(n, k) * dtype(stretch))
    labels = inputs.random.integers(0, k, n).astype(np.int32)
    dy = inputs.array()
    loss, saved = FAST.cross_entropy(logits, labels, reduction=reduction)
    want, exact = layers.cross_entropy(*_double(logits), labels, reduction=reduction)
    (d,), (wanted,) = FAST.cross_entropy_vjp(saved, dy), layers.cross_entropy_vjp(exact, *_double(dy))
    # a row's size: its shifted logits (an error there moves the exponentials by as much), the logarithm, and 1 for Σ exp
    shifted = _double(logits)[0] - logits.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(shifted).sum(axis=1))
    row = np.abs(shifted).max(axis=1) + log_sum + 1.0
    m, share = k + 8, 1 / n if reduction == "mean" else 1.0
    p = np.exp(shifted - log_sum[:, None])
    onehot = np.arange(k) == labels[:, None]
    size = (p * (1.0 + row[:, None]) + onehot) * (abs(float(dy)) * share)
    loss_m = m + _terms(dtype, n)
    _check(dtype, {"loss": (loss, want, loss_m, np.asarray(row.sum() * share)), "d": (d, wanted, m + 4, size)})
    inputs.assert_unchanged()


def test_cross_entropy_refuses_a_label_beyond_the_logits_and_keeps_nan_visible() -> None:
    with pytest.raises(IndexError):
        FAST.cross_entropy(np.ones((2, 3), np.float32), np.array([0, 3]), reduction="mean")
    logits = np.array([[1.0, np.nan, 2.0]], np.float32)
    assert np.isnan(FAST.cross_entropy(logits, np.array([0]), reduction="mean")[0])


# --------------------------------------------------------------------------------------------------------------------
# Training


@EXAMPLES
@given(seeds, dtypes, st.lists(st.integers(0, 9), max_size=4), st.sampled_from([0.0, 0.9]), st.sampled_from([0.0, 0.1]))
def test_momentum_step_has_the_bits_of_the_oracle(
    seed: int, dtype: Any, shape: list[int], momentum: float, decay: float
) -> None:
    inputs = _Inputs(seed, dtype)
    arrays, how = [inputs.array(*shape) for _ in range(3)], {"learning_rate": 0.3, "momentum": momentum, "decay": decay}
    for got, want in zip(FAST.momentum_step(*arrays, **how), ORACLE.momentum_step(*arrays, **how), strict=True):
        assert got.dtype == want.dtype == dtype
        np.testing.assert_array_equal(got, want)
    inputs.assert_unchanged()


@EXAMPLES
@given(seeds, dtypes, few, st.integers(0, 4), st.tuples(some, some), st.integers(0, 11))
def test_crop_flip(seed: int, dtype: Any, n: int, channels: int, size: Any, padding: int) -> None:
    inputs = _Inputs(seed, dtype)
    x, crops = inputs.array(n, channels, *size), crop_flip.draw_crops(seed, 0, n, padding)
    got = FAST.crop_flip(x, crops, padding=padding)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, ORACLE.crop_flip(x, crops, padding=padding))
    inputs.assert_unchanged()


# --------------------------------------------------------------------------------------------------------------------
# Threads, fallbacks, and the test of the test


def _bits(backend: Any, names: tuple[str, ...] = ()) -> dict[str, str]:
    """A digest of each function's results, all work being shared between threads however little it is."""
    inputs = _Inputs(7, np.float32)
    found = {}

    def run(name: str, vjp: str, *args: Any, **how: Any) -> None:
        if names and name not in names:
            return
        with contextlib.ExitStack() as patches:
            for module in [m for n, m in sys.modules.items() if n.startswith("refprune.kernels.") and hasattr(m, "share")]:
                patches.enter_context(mock.patch.object(module, "share", lambda threads, work, grain: threads))
            y, saved = getattr(backend, name)(*args, **how)
            dy = np.random.default_rng(3).standard_normal(y.shape).astype(np.float32)
            results = [y, *getattr(backend, vjp)(saved, dy), *(saved.statistics or ())[:2]]
        found[name] = hashlib.sha256(b"".join(np.ascontiguousarray(r).tobytes() for r in results)).hexdigest()

    x, image = inputs.array(150, 131), inputs.array(21, 9, 27, 28)
    channel = [inputs.array(9) for _ in range(3)]
    pool: dict[str, Any] = {"kernel": (3, 3), "stride": (2, 1), "padding": ((1, 1), (1, 0))}
    run("dense", "dense_vjp", x, inputs.array(137, 131), inputs.array(137))
    run("conv2d", "conv2d_vjp", image, inputs.array(10, 9, 3, 3), inputs.array(10), padding=((1, 1), (1, 1)))
    run("gate", "gate_vjp", image, channel[0])
    if not names:
        run("batch_norm", "batch_norm_vjp", image, *channel[:2], eps=1e-5)
        run("leaky_relu", "leaky_relu_vjp", image, slope=0.1, at_zero=0.0)
        run("add", "add_vjp", image, inputs.array(*image.shape), channels=None)
        run("subsample_pad", "subsample_pad_vjp", image, stride=(1, 2), before=3, after=3)
        run("max_pool", "max_pool_vjp", image, ties="last", **pool)
        run("average_pool", "average_pool_vjp", image, count_padding=False, **pool)
        run("global_average_pool", "global_average_pool_vjp", image)
        run("cross_entropy", "cross_entropy_vjp", inputs.array(900, 11), np.arange(900) % 11, reduction="mean")
        w, v, g = (inputs.array(300, 401) for _ in range(3))
        step = backend.momentum_step(w, v, g, learning_rate=0.1, momentum=0.9, decay=0.01)
        crops = crop_flip.draw_crops(0, 0, len(image), 4)
        for name, results in {"step": step, "crop_flip": (backend.crop_flip(image, crops, padding=4),)}.items():
            found[name] = hashlib.sha256(b"".join(r.tobytes() for r in results)).hexdigest()
    return found


def test_the_bits_do_not_depend_on_threads() -> None:
    every = load_backend("numba")  # all cores; with a single one this compares a run with itself
    assert _bits(every) == _bits(FAST)


def test_the_bits_do_not_depend_on_numbas_own_thread_count() -> None:
    """Fresh processes with NUMBA_NUM_THREADS = 1 and 2; both must agree with this one."""
    names = ("dense", "conv2d")
    code = f"import json, test_kernels as t; print(json.dumps(t._bits(t.load_backend('numba'), {names!r})))"
    here = os.path.dirname(os.path.abspath(__file__))
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code],
            env={
                **os.environ,
                "NUMBA_NUM_THREADS": str(n),
                "PYTHONPATH": os.pathsep.join([here, os.path.dirname(here)]),
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in (1, 2)
    ]
    answers = [json.loads(process.communicate(timeout=120)[0]) for process in started]
    assert answers[0] == answers[1] == _bits(FAST, names)


@pytest.mark.parametrize("threads", [0, -1, 10**6, 1.5, True])
def test_threads_out_of_range_are_refused(threads: Any) -> None:
    with pytest.raises(InputError, match=r"threads: .* allowed are the integers 1 to"):
        load_backend("numba", threads=threads)


def test_importing_the_package_does_not_import_numba() -> None:
    code = "import sys, refprune, refprune.backend, refprune.kernels; sys.exit('numba' in sys.modules)"
    path = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": path})


def test_other_dtypes_and_shapes_that_do_not_meet_are_left_to_the_oracle() -> None:
    x, w = np.ones((2, 3)), np.ones((4, 3), np.float32)
    y, saved = FAST.dense(x, w)
    assert y.dtype == np.float64
    np.testing.assert_array_equal(FAST.dense_vjp(saved, np.ones((2, 4)))[1], layers.dense_vjp(saved, np.ones((2, 4)))[1])
    complex_y, complex_saved = FAST.leaky_relu(x + 1e-30j, slope=0.5, at_zero=0.0)
    assert complex_y.dtype == np.complex128
    np.testing.assert_array_equal(FAST.leaky_relu_vjp(complex_saved, 2 * x)[0], 2 * x)
    with pytest.raises(ValueError, match="mismatch"):
        FAST.dense(x, np.ones((4, 2)))
    with pytest.raises(ValueError, match=r"shape|larger"):
        FAST.conv2d(np.ones((1, 1, 2, 2)), np.ones((1, 1, 3, 3)))
    # forward in the kernel, a cotangent of another dtype
    image, channel = np.random.default_rng(0).standard_normal((3, 2, 4, 4)).astype(np.float32), np.ones(2, np.float32)
    _, own = FAST.batch_norm(image, channel, channel, eps=1e-5)
    _, oracle = layers.batch_norm(image, channel, channel, eps=1e-5)
    dy = np.random.default_rng(1).standard_normal(image.shape)
    for got, want in zip(FAST.batch_norm_vjp(own, dy), layers.batch_norm_vjp(oracle, dy), strict=True):
        assert got.dtype == want.dtype
        assert np.all(np.abs(got - want) <= _limit(np.float32, 40, np.abs(want) + 4 * np.abs(dy).sum()))


def test_every_kernel_replaces_a_function_of_the_backend() -> None:
    from refprune import kernels

    replaced = kernels.functions(1)
    assert set(WITHOUT_VJP) <= set(replaced) <= {*FUNCTIONS, *WITHOUT_VJP, *FUSED}
    forward = {name for name in replaced if not name.endswith("_vjp")} - {*WITHOUT_VJP, *FUSED}
    assert {f"{name}_vjp" for name in forward} <= set(replaced)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["y", "dx", "dw", "db"])
def test_a_planted_mistake_is_found(dtype: Any, name: str) -> None:
    """One entry wrong by a thousandth of its size is found; so is a wrong dtype; and the unspoilt results pass."""
    results = _conv_results(FAST, _Inputs(5, dtype), 2, 3, 4, (6, 5), (3, 3), True, **SAME)
    assert not _complaints(dtype, results)
    got, want, m, size = results[name]
    at = np.unravel_index(np.argmax(np.abs(want)), want.shape)
    wrong = got.copy()
    wrong[at] *= dtype(1.001)
    (complaint,) = _complaints(dtype, {name: (wrong, want, m, size)})
    assert complaint.startswith(f"{name}{tuple(int(i) for i in at)}")
    wrong[at] = np.nan
    assert _complaints(dtype, {name: (wrong, want, m, size)})
    assert _complaints(dtype, {name: (got.astype(np.float16), want, m, size)})


@pytest.mark.parametrize("name", ["residual-mlp", "residual-lenet", "lenet-300-100", "lenet-5"])
def test_training_never_falls_back_to_the_oracle(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dtype or shape that a kernel does not take would go to NumPy and only be slow: in training there is none."""
    options = {"sections": 2, "width": 4} if name.startswith("residual") else {}
    network = zoo.build(name, options)
    rules = config.from_dict({"training": {"batch_size": 8}, "objective": {"weight_decay": 1e-4}})
    state = initial_state(rules, network)
    backend = load_backend("numba")
    left_to_numpy = {"flatten", "flatten_vjp"}
    for function in set(FUNCTIONS) - left_to_numpy:
        monkeypatch.setattr(layers, function, lambda *a, function=function, **k: pytest.fail(f"fell back to {function}"))
    monkeypatch.setattr(momentum, "momentum_step", lambda *a, **k: pytest.fail("fell back to momentum_step"))
    x = np.random.default_rng(0).random((8, *network.input_shape), dtype=np.float32)
    following, _ = train_step(state, x, np.arange(8) % 10, rules, backend, training_images=8)
    assert all(p.dtype == np.float32 for p in following.params.values())


@pytest.mark.parametrize("backend", [ORACLE, "numba"], ids=["oracle", "numba"])
def test_relu_of_infinity(backend: Any) -> None:
    """relu(−∞) = 0, not −∞·0; NaN stays NaN."""
    engine = load_backend(backend) if isinstance(backend, str) else backend
    y, _ = engine.leaky_relu(np.array([-np.inf, -1.0, 0.0, np.inf, np.nan]), slope=0.0, at_zero=0.0)
    np.testing.assert_array_equal(y, [0.0, 0.0, 0.0, np.inf, np.nan])
