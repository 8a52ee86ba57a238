"""Pooling. Same contracts as in `layers`; every plane (image, channel) is the work of one part."""

from __future__ import annotations

import functools

import numpy as np
from numba import types

from ...arrays import Array, Padding, Pair, Saved
from ...oracle import layers
from ..machine.kernel import ELEMENT_GRAIN, flag, index, inner, kernel, reader, ready, same_float, share, writer
from ..machine.workspace import Workspace

MOST = 256  # pixels of a window that a branch of type uint8 can tell apart
uint8 = types.uint8


@functools.lru_cache(maxsize=1024)
def _window(kernel: Pair, stride: Pair, padding: Padding) -> Array:
    """What the kernels read of a window: height, width, strides, top and left padding."""
    return np.array([*kernel, *stride, padding[0][0], padding[1][0]], dtype=np.intp)


def _out(shape: tuple[int, ...], kernel: Pair, stride: Pair, padding: Padding) -> Pair:
    (top, bottom), (left, right) = padding
    return (shape[2] + top + bottom - kernel[0]) // stride[0] + 1, (shape[3] + left + right - kernel[1]) // stride[1] + 1


def _fits(x: Array, kernel: Pair, stride: Pair, padding: Padding) -> bool:
    return x.ndim == 4 and same_float(x) and min(*kernel, *stride, *_out(x.shape, kernel, stride, padding)) > 0


def _planes(x: Array) -> Array:
    return ready(x).reshape(x.shape[0] * x.shape[1], *x.shape[2:])


@inner
def _inside(first: int, step: int, count: int, size: int) -> tuple[int, int]:
    """The outputs 0 ≤ p < count for which the pixel first + p·step is inside an image of this size."""
    low = 0 if first >= 0 else (-first + step - 1) // step
    high = 0 if first >= size else (size - 1 - first) // step + 1
    return min(low, count), max(min(low, count), min(high, count))


@inner
def _better(v: float, best: float) -> bool:
    """Whether v replaces the best so far: it is larger, or the first NaN. Without a branch, so that it can be vectorised."""
    return (not v <= best) & (best == best)


@inner
def _windows(x: Array, p: int, window: Array, last: bool, best: Array, chosen: Array) -> None:
    """The largest of each window in row p, and its number; among equals the first, or the last: the first from behind."""
    kh, kw, sh, sw, top, left = window
    low_i, high_i = max(0, top - p * sh), min(kh, x.shape[0] + top - p * sh)
    for q in range(len(best)):
        low_j, high_j = max(0, left - q * sw), min(kw, x.shape[1] + left - q * sw)
        largest, number = best.dtype.type(-np.inf), best.dtype.type(kh * kw - 1 if last else 0)
        for a in range(low_i, high_i):
            i = low_i + high_i - 1 - a if last else a
            for b in range(low_j, high_j):
                j = low_j + high_j - 1 - b if last else b
                v = x[p * sh + i - top, q * sw + j - left]
                better = _better(v, largest)
                largest, number = v if better else largest, best.dtype.type(i * kw + j) if better else number
        best[q], chosen[q] = largest, number


@inner
def _quarters(upper: Array, lower: Array, best: Array, chosen: Array) -> None:
    """The first largest of each of the 2×2 windows side by side, and its number."""
    number = chosen.dtype.type
    zero, one, two, three = number(0), number(1), number(2), number(3)
    for q in range(len(best)):
        a, b, c, d = upper[2 * q], upper[2 * q + 1], lower[2 * q], lower[2 * q + 1]
        right, below = _better(b, a), _better(d, c)
        first, second = b if right else a, d if below else c
        down = _better(second, first)
        best[q] = second if down else first
        chosen[q] = (three if below else two) if down else (one if right else zero)


@kernel(lambda f: (reader(f, 3), reader(index, 1), flag, writer(f, 3), writer(uint8, 2)))
def _max_pool(part: int, parts: int, x: Array, window: Array, last: bool, y: Array, taken: Array) -> None:
    """y planes×Ho×Wo; taken planes×(Ho·Wo). A window's choice is held as a float, in vectors as wide as those of its value."""
    kh, kw, sh, sw, top, left = window
    ho, wo = y.shape[1], y.shape[2]
    chosen = np.empty((ho, wo), y.dtype)
    numbers = chosen.reshape(ho * wo)
    halving = kh == kw == sh == sw == 2 and top == left == 0 and x.shape[1] >= 2 * ho and x.shape[2] >= 2 * wo and not last
    for plane in range(part * len(x) // parts, (part + 1) * len(x) // parts):
        if halving:
            for p in range(ho):
                _quarters(x[plane, 2 * p], x[plane, 2 * p + 1], y[plane, p], chosen[p])
        else:
            for p in range(ho):
                _windows(x[plane], p, window, last, y[plane, p], chosen[p])
        mine = taken[plane]
        for k in range(len(numbers)):
            mine[k] = np.uint8(numbers[k])


@kernel(lambda f: (reader(f, 3), reader(uint8, 3), reader(index, 1), writer(f, 3)))
def _max_pool_vjp(part: int, parts: int, dy: Array, taken: Array, window: Array, dx: Array) -> None:
    kh, kw, sh, sw, top, left = window
    rows, columns = np.empty(kh * kw, np.intp), np.empty(kh * kw, np.intp)
    for k in range(kh * kw):
        rows[k], columns[k] = k // kw - top, k % kw - left
    for plane in range(part * len(dx) // parts, (part + 1) * len(dx) // parts):
        dx[plane] = 0
        for p in range(dy.shape[1]):
            for q in range(dy.shape[2]):
                k = taken[plane, p, q]
                h, v = p * sh + rows[k], q * sw + columns[k]
                if 0 <= h < dx.shape[1] and 0 <= v < dx.shape[2]:
                    dx[plane, h, v] += dy[plane, p, q]


@kernel(lambda f: (reader(f, 3), reader(f, 2), reader(index, 1), writer(f, 3)))
def _average_pool(part: int, parts: int, x: Array, count: Array, window: Array, y: Array) -> None:
    kh, kw, sh, sw, top, left = window
    for plane in range(part * len(x) // parts, (part + 1) * len(x) // parts):
        y[plane] = 0
        for p in range(y.shape[1]):
            for h in range(max(0, p * sh - top), min(x.shape[1], p * sh - top + kh)):
                for j in range(kw):
                    low, high = _inside(j - left, sw, y.shape[2], x.shape[2])
                    for q in range(low, high):
                        y[plane, p, q] += x[plane, h, q * sw + j - left]
            for q in range(y.shape[2]):
                y[plane, p, q] /= count[p, q]


@kernel(lambda f: (reader(f, 3), reader(f, 2), reader(index, 1), writer(f, 3)))
def _average_pool_vjp(part: int, parts: int, dy: Array, count: Array, window: Array, dx: Array) -> None:
    kh, kw, sh, sw, top, left = window
    for plane in range(part * len(dx) // parts, (part + 1) * len(dx) // parts):
        dx[plane] = 0
        for p in range(dy.shape[1]):
            for h in range(max(0, p * sh - top), min(dx.shape[1], p * sh - top + kh)):
                for j in range(kw):
                    low, high = _inside(j - left, sw, dy.shape[2], dx.shape[2])
                    for q in range(low, high):
                        dx[plane, h, q * sw + j - left] += dy[plane, p, q] / count[p, q]


@kernel(lambda f: (reader(f, 2), writer(f, 1)))
def _row_means(part: int, parts: int, x: Array, y: Array) -> None:
    for row in range(part * len(x) // parts, (part + 1) * len(x) // parts):
        pixels = x[row]
        a = b = c = d = 0.0
        fours = len(pixels) // 4 * 4
        for p in range(0, fours, 4):
            a += pixels[p]
            b += pixels[p + 1]
            c += pixels[p + 2]
            d += pixels[p + 3]
        total = (a + b) + (c + d)
        for p in range(fours, len(pixels)):
            total += pixels[p]
        y[row] = total / x.shape[1]


@kernel(lambda f: (reader(f, 1), f, writer(f, 2)))
def _spread(part: int, parts: int, dy: Array, count: float, dx: Array) -> None:
    for row in range(part * len(dx) // parts, (part + 1) * len(dx) // parts):
        dx[row] = dy[row] / count


def max_pool(
    workspace: Workspace, x: Array, *, kernel: Pair, stride: Pair, padding: Padding, ties: str, branch: Array | None = None
) -> tuple[Array, Saved]:
    """Same contract as `oracle.layers.max_pool`; the branch is uint8. A forced branch or a large window is left to the
    oracle."""
    if branch is not None or not _fits(x, kernel, stride, padding) or kernel[0] * kernel[1] > MOST:
        return layers.max_pool(x, kernel=kernel, stride=stride, padding=padding, ties=ties, branch=branch)
    ho, wo = _out(x.shape, kernel, stride, padding)
    n, c = x.shape[:2]
    y, taken = workspace.empty((n, c, ho, wo), x.dtype), workspace.empty((n, c, ho, wo), np.uint8)
    parts = share(workspace.threads, x.size, ELEMENT_GRAIN)
    flat = y.reshape(n * c, ho, wo), taken.reshape(n * c, ho * wo)
    _max_pool[x.dtype](parts, _planes(x), _window(kernel, stride, padding), ties != "first", *flat)
    return y, Saved((x.shape, kernel, stride, padding), taken)


def max_pool_vjp(workspace: Workspace, saved: Saved, dy: Array) -> tuple[Array]:
    """Same contract as `oracle.layers.max_pool_vjp`."""
    shape, kernel, stride, padding = saved.values
    taken = np.asarray(saved.branch)
    fits = dy.ndim == 4 and same_float(dy) and kernel[0] * kernel[1] <= MOST
    if not (fits and dy.shape == (*shape[:2], *_out(shape, kernel, stride, padding)) == taken.shape):
        return layers.max_pool_vjp(saved, dy)
    dx = workspace.empty(shape, dy.dtype)
    parts = share(workspace.threads, dx.size, ELEMENT_GRAIN)
    numbers = _planes(taken if taken.dtype == np.uint8 else taken.astype(np.uint8))
    _max_pool_vjp[dy.dtype](parts, _planes(dy), numbers, _window(kernel, stride, padding), _planes(dx))
    return (dx,)


@functools.lru_cache(maxsize=1024)
def _count(size: Pair, kernel: Pair, stride: Pair, padding: Padding, out: Pair, count_padding: bool, dtype: str) -> Array:
    """The divisor of each window, 1×1×Ho×Wo."""
    if count_padding:
        return np.full((1, 1, *out), kernel[0] * kernel[1], dtype)
    real = []
    for axis in (0, 1):
        start = np.arange(out[axis]) * stride[axis] - padding[axis][0]
        real.append(np.minimum(start + kernel[axis], size[axis]) - np.maximum(start, 0))
    count: Array = np.outer(*(np.maximum(r, 0) for r in real)).astype(dtype)
    return count[None, None]


def average_pool(
    workspace: Workspace, x: Array, *, kernel: Pair, stride: Pair, padding: Padding, count_padding: bool
) -> tuple[Array, Saved]:
    """Same contract as `oracle.layers.average_pool`."""
    if not _fits(x, kernel, stride, padding):
        return layers.average_pool(x, kernel=kernel, stride=stride, padding=padding, count_padding=count_padding)
    out = _out(x.shape, kernel, stride, padding)
    count = _count(x.shape[2:], kernel, stride, padding, out, count_padding, x.dtype.name)
    y = workspace.empty((*x.shape[:2], *out), x.dtype)
    parts = share(workspace.threads, x.size, ELEMENT_GRAIN)
    _average_pool[x.dtype](parts, _planes(x), count[0, 0], _window(kernel, stride, padding), _planes(y))
    return y, Saved((x.shape, count, kernel, stride, padding))


def average_pool_vjp(workspace: Workspace, saved: Saved, dy: Array) -> tuple[Array]:
    """Same contract as `oracle.layers.average_pool_vjp`."""
    shape, count, kernel, stride, padding = saved.values
    if not (same_float(dy, count) and dy.shape == (*shape[:2], *count.shape[2:])):
        return layers.average_pool_vjp(saved, dy)
    dx = workspace.empty(shape, dy.dtype)
    parts = share(workspace.threads, dx.size, ELEMENT_GRAIN)
    window = _window(kernel, stride, padding)
    _average_pool_vjp[dy.dtype](parts, _planes(dy), ready(count)[0, 0], window, _planes(dx))
    return (dx,)


def global_average_pool(workspace: Workspace, x: Array) -> tuple[Array, Saved]:
    """Same contract as `oracle.layers.global_average_pool`."""
    if not (x.ndim == 4 and x.shape[2] * x.shape[3] > 0 and same_float(x)):
        return layers.global_average_pool(x)
    y = np.empty(x.shape[:2], x.dtype)
    flat = ready(x).reshape(y.size, x.shape[2] * x.shape[3])
    _row_means[x.dtype](share(workspace.threads, x.size, ELEMENT_GRAIN), flat, y.reshape(y.size))
    return y, Saved((x.shape,))


def global_average_pool_vjp(workspace: Workspace, saved: Saved, dy: Array) -> tuple[Array]:
    """Same contract as `oracle.layers.global_average_pool_vjp`."""
    (shape,) = saved.values
    if not (len(shape) == 4 and dy.shape == shape[:2] and shape[2] * shape[3] > 0 and same_float(dy)):
        return layers.global_average_pool_vjp(saved, dy)
    dx, pixels = workspace.empty(shape, dy.dtype), shape[2] * shape[3]
    parts = share(workspace.threads, dx.size, ELEMENT_GRAIN)
    _spread[dy.dtype](parts, ready(dy).reshape(dy.size), dy.dtype.type(pixels), dx.reshape(dy.size, pixels))
    return (dx,)
