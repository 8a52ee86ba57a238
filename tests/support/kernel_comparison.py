"""The numba backend's results beside the oracle's in float64, within what rounding can explain (SPEC E1)."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from refprune.arrays import Array
from refprune.backend import load_backend
from refprune.oracle import layers

DTYPES = (np.float32, np.float64)
FAST = load_backend("numba", threads=1)
MANY = int(
    os.environ.get("KERNEL_EXAMPLES", "30")
)  # of each property; tests/kernels/test_threads.py sets it for slow ways to run
EXAMPLES = settings(max_examples=MANY, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from(DTYPES)
few, some = st.integers(1, 3), st.integers(1, 9)


# --------------------------------------------------------------------------------------------------------------------
# Comparing


def limit(dtype: Any, m: float, size: Array) -> Array:
    """E1: γₘ·size + m·(smallest normal)."""
    u = float(np.finfo(dtype).eps) / 2
    assert m * u < 0.5
    return m * u / (1 - m * u) * size + m * float(np.finfo(dtype).tiny)


def term_roundings(dtype: Any, n: int) -> float:
    """Roundings of a sum of n terms that is carried in double precision, in units of the dtype's own."""
    return n if dtype == np.float64 else 1 + n * 2.0**-29


def complaints(dtype: Any, results: dict[str, tuple[Array, Array, float, Array]]) -> list[str]:
    """What is wrong with results {name: (got, want, m, size)}: type, shape, or the entry furthest beyond its limit."""
    found = []
    for name, (got, want, m, size) in results.items():
        if got.dtype != dtype or got.shape != want.shape or not got.flags.c_contiguous:
            found.append(f"{name}: {got.dtype} {got.shape} {got.strides}, expected {np.dtype(dtype)} {want.shape}")
        elif got.size:
            with np.errstate(invalid="ignore"):
                excess = np.nan_to_num(np.abs(got.astype(np.float64) - want) / limit(dtype, m, size), nan=np.inf)
            at = np.unravel_index(excess.argmax(), excess.shape)
            if excess[at] > 1:
                at_text = tuple(int(i) for i in at)
                found.append(f"{name}{at_text}: got {got[at]!r}, oracle {want[at]!r}: {excess[at]:.3g} × its limit (m = {m:g})")
    return found


def check(dtype: Any, results: dict[str, tuple[Array, Array, float, Array]]) -> None:
    found = complaints(dtype, results)
    assert not found, "\n".join(found)


class Inputs:
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


def double(*arrays: Array) -> list[Array]:
    return [a.astype(np.float64) for a in arrays]


def absolute(*arrays: Array) -> list[Array]:
    return [np.abs(a.astype(np.float64)) for a in arrays]


def conv_results(
    backend: Any,
    inputs: Inputs,
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
    want, exact = layers.conv2d(*double(x, w), None if b is None else double(b)[0], **how)
    bound, bounds = layers.conv2d(*absolute(x, w), None if b is None else absolute(b)[0], **how)
    dy = inputs.array(*want.shape)
    area, pixels = kernel[0] * kernel[1], n * want.shape[2] * want.shape[3]
    results = {"y": (y, want, channels * area + 1, bound)}
    terms = {"dx": outputs * area, "dw": pixels, "db": pixels}
    got = backend.conv2d_vjp(saved, dy)
    wanted, sizes = layers.conv2d_vjp(exact, *double(dy)), layers.conv2d_vjp(bounds, *absolute(dy))
    for name, one, two, three in zip(terms, got, wanted, sizes, strict=True):
        results[name] = (one, two, max(terms[name], 1), three)
    without = backend.conv2d_vjp(saved, dy, input_gradient=False)
    assert without[0] is None
    assert all(np.array_equal(a, b) for a, b in zip(without[1:], got[1:], strict=True))
    return results


PLAIN: dict[str, Any] = {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1), "groups": 1}
SAME: dict[str, Any] = {**PLAIN, "padding": ((1, 1), (1, 1))}
