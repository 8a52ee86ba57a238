"""The numba backend against the oracle in float64, within what rounding can explain (SPEC E1); no tolerance is typed.

`limit(dtype, m, size)` is γₘ·size + m·(smallest normal), where `size` is the same operation on absolute values and m counts
the roundings on the longest way from an input to an output. A sum that the kernels carry in double precision costs no
rounding per term in float32 (`term_roundings`). exp and log are taken to be good to two units in the last place.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_comparison import (
    DTYPES,
    EXAMPLES,
    FAST,
    MANY,
    PLAIN,
    SAME,
    Inputs,
    absolute,
    check,
    conv_results,
    double,
    dtypes,
    few,
    seeds,
    some,
    term_roundings,
)

from refprune.arrays import Array, Saved
from refprune.oracle import layers

pads = st.tuples(st.tuples(st.integers(0, 2), st.integers(0, 2)), st.tuples(st.integers(0, 2), st.integers(0, 2)))


# --------------------------------------------------------------------------------------------------------------------
# Affine maps


def _dense_results(backend: Any, inputs: Inputs, n: int, m: int, k: int, bias: bool) -> dict[str, Any]:
    x, w, b, dy = inputs.array(n, m), inputs.array(k, m), inputs.array(k) if bias else None, inputs.array(n, k)
    y, saved = backend.dense(x, w, b)
    want, exact = layers.dense(*double(x, w), None if b is None else double(b)[0])
    size, sizes = layers.dense(*absolute(x, w), None if b is None else absolute(b)[0])
    results = {"y": (y, want, m + 1, size)}
    gradients = zip(layers.dense_vjp(exact, *double(dy)), layers.dense_vjp(sizes, *absolute(dy)), strict=True)
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
    inputs = Inputs(seed, dtype)
    check(dtype, _dense_results(FAST, inputs, n, m, k, bias))
    inputs.assert_unchanged()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("n", "m", "k"),
    [(1, 1, 1), (1, 300, 10), (128, 64, 64), (33, 257, 131), (260, 5, 129), (3, 1025, 5), (20, 1187, 18), (0, 3, 2)],
)
def test_dense_at_the_edges_of_blocks(dtype: Any, n: int, m: int, k: int) -> None:
    check(dtype, _dense_results(FAST, Inputs(0, dtype), n, m, k, True))


@settings(EXAMPLES, max_examples=2 * MANY)
@given(st.data(), seeds, dtypes, few, st.integers(0, 4), st.integers(0, 6), few, st.tuples(few, few), st.booleans())
def test_conv2d(
    data: Any, seed: int, dtype: Any, n: int, channels: int, outputs: int, groups: int, kernel: Any, bias: bool
) -> None:
    stride, dilation, padding = data.draw(st.tuples(few, few)), data.draw(st.tuples(few, few)), data.draw(pads)
    least = [max(1, (k - 1) * e + 1 - sum(p)) for k, e, p in zip(kernel, dilation, padding, strict=True)]
    size = (data.draw(st.integers(least[0], least[0] + 7)), data.draw(st.integers(least[1], least[1] + 7)))
    inputs = Inputs(seed, dtype)
    how = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    check(dtype, conv_results(FAST, inputs, n, channels, outputs, size, kernel, bias, **how))
    inputs.assert_unchanged()


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
    check(dtype, conv_results(FAST, Inputs(1, dtype), n, channels, outputs, size, kernel, True, **how))


# --------------------------------------------------------------------------------------------------------------------
# Batch normalisation


@EXAMPLES
@given(
    seeds,
    dtypes,
    st.booleans(),
    st.sampled_from([(), (1, 1), (3, 2), (5, 7), (23, 29)]),
    st.integers(0, 600),
    st.integers(2, 7),
)
def test_batch_norm(seed: int, dtype: Any, train: bool, pixels: tuple[int, ...], channels: int, n: int) -> None:
    channels = channels if not pixels else channels % 40
    inputs, eps = Inputs(seed, dtype), 2.0**-10
    x, dy = inputs.array(n, channels, *pixels), inputs.array(n, channels, *pixels)
    gain, bias = inputs.array(channels), inputs.array(channels)
    axes = (0, *range(2, x.ndim))

    def column(v: Array) -> Array:
        return v.reshape((-1,) + (1,) * len(pixels))

    if train:
        y, saved = FAST.batch_norm(x, gain, bias, eps=eps)
        want, exact = layers.batch_norm(*double(x, gain, bias), eps=eps)
        assert exact.statistics is not None
        mean, variance, _ = exact.statistics
        got, wanted = FAST.batch_norm_vjp(saved, dy), layers.batch_norm_vjp(exact, *double(dy))
    else:
        mean, variance = inputs.array(channels), inputs.array(channels, positive=True)
        y, saved = FAST.batch_norm_eval(x, gain, bias, mean, variance, eps=eps)
        mean, variance = double(mean, variance)
        want, exact = layers.batch_norm_eval(*double(x, gain, bias), mean, variance, eps=eps)
        got, wanted = FAST.batch_norm_eval_vjp(saved, dy), layers.batch_norm_eval_vjp(exact, *double(dy))
    count = n * math.prod(pixels)
    # sizes: of x − μ, of the variance, and of the normalised input, whose root passes on half the variance's error
    ax, ady, again, abias = absolute(x, dy, gain, bias)
    away = ax + column(np.abs(mean)) + (column(ax.mean(axis=axes)) if train else 0.0)
    spread = (away * away).mean(axis=axes)
    amplified = 1.0 + (spread / (variance + eps) if train else 0.0)
    normal = away * column(amplified / np.sqrt(variance + eps))
    scale = column(again / np.sqrt(variance + eps))
    m = 2 * term_roundings(dtype, count)
    weighted = (ady * normal).sum(axis=axes)
    dx = ady + column(ady.mean(axis=axes)) + normal * column(weighted / count) if train else ady
    check(
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
        check(
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
    inputs = Inputs(seed, dtype)
    x, dy = inputs.array(*shape, integers=zeros), inputs.array(*shape)
    y, saved = FAST.leaky_relu(x, slope=slope, at_zero=at_zero)
    want, exact = layers.leaky_relu(*double(x), slope=slope, at_zero=at_zero)
    assert saved.branch.dtype == exact.branch.dtype == np.int8
    np.testing.assert_array_equal(saved.branch, exact.branch)
    (dx,), (wanted,) = FAST.leaky_relu_vjp(saved, dy), layers.leaky_relu_vjp(exact, *double(dy))
    check(dtype, {"y": (y, want, 2, np.abs(want)), "dx": (dx, wanted, 2, np.abs(wanted))})
    other = inputs.random.integers(-1, 2, shape).astype(np.int8)
    y, saved = FAST.leaky_relu(x, slope=slope, at_zero=at_zero, branch=other)
    want, exact = layers.leaky_relu(*double(x), slope=slope, at_zero=at_zero, branch=other)
    np.testing.assert_array_equal(saved.branch, other)
    (dx,), (wanted,) = FAST.leaky_relu_vjp(saved, dy), layers.leaky_relu_vjp(exact, *double(dy))
    check(dtype, {"forced y": (y, want, 2, np.abs(want)), "forced dx": (dx, wanted, 2, np.abs(wanted))})
    inputs.assert_unchanged()


@EXAMPLES
@given(seeds, dtypes, st.booleans(), some, st.integers(0, 5), st.sampled_from([(), (1, 1), (3, 2), (11, 13)]))
def test_gate(seed: int, dtype: Any, whole: bool, n: int, channels: int, pixels: tuple[int, ...]) -> None:
    inputs = Inputs(seed, dtype)
    x, dy = inputs.array(n, channels, *pixels), inputs.array(n, channels, *pixels)
    g = inputs.array() if whole else inputs.array(channels)
    y, saved = FAST.gate(x, g)
    want, exact = layers.gate(*double(x, g))
    got, wanted = FAST.gate_vjp(saved, dy), layers.gate_vjp(exact, *double(dy))
    sizes = layers.gate_vjp(Saved(tuple(absolute(x, g))), *absolute(dy))
    m = term_roundings(dtype, x.size) + 1
    wanted_dg = np.asarray(wanted[1])
    check(
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
    inputs = Inputs(seed, dtype)
    chosen = None
    if data.draw(st.booleans()):
        chosen = tuple(c for c in range(channels) if inputs.random.integers(2))
    shortcut, dy = inputs.array(n, channels, *pixels), inputs.array(n, channels, *pixels)
    path = inputs.array(n, channels if chosen is None else len(chosen), *pixels)
    y, saved = FAST.add(shortcut, path, channels=chosen)
    want, exact = layers.add(*double(shortcut, path), channels=chosen)
    check(dtype, {"y": (y, want, 1, np.abs(want))})
    for got, wanted in zip(FAST.add_vjp(saved, dy), layers.add_vjp(exact, dy), strict=True):
        np.testing.assert_array_equal(got, wanted)
    inputs.assert_unchanged()


@EXAMPLES
@given(seeds, dtypes, few, st.integers(0, 4), st.tuples(some, some), st.tuples(few, few), st.tuples(few, few))
def test_subsample_pad(seed: int, dtype: Any, n: int, channels: int, size: Any, stride: Any, around: Any) -> None:
    inputs = Inputs(seed, dtype)
    x = inputs.array(n, channels, *size)
    y, saved = FAST.subsample_pad(x, stride=stride, before=around[0] - 1, after=around[1] - 1)
    want, exact = layers.subsample_pad(x, stride=stride, before=around[0] - 1, after=around[1] - 1)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, want)
    dy = inputs.array(*want.shape)
    np.testing.assert_array_equal(FAST.subsample_pad_vjp(saved, dy)[0], layers.subsample_pad_vjp(exact, dy)[0])
    inputs.assert_unchanged()
