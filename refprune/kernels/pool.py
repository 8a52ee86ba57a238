"""Pooling. Same contracts as in `layers`; every plane (image, channel) is the work of one part."""

from __future__ import annotations

import functools

import numpy as np

from .. import layers
from ..layers import Array, Padding, Pair, Saved
from .compiled import ELEMENT_GRAIN, flag, index, inner, kernel, reader, ready, same_float, share, writer
from .workspace import Workspace


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
def _better(v: float, best: float, last: bool) -> bool:
    """Whether a later v replaces the best so far. NaN wins; −∞ never, so that all-padding windows keep their first."""
    return v > best or (v != v and (last or best == best)) or (last and v == best and v > -np.inf)


@kernel(lambda f: (reader(f, 3), reader(index, 1), flag, writer(f, 3), writer(index, 3)))
def _max_pool(part: int, parts: int, x: Array, window: Array, last: bool, y: Array, taken: Array) -> None:
    kh, kw, sh, sw, top, left = window
    ho, wo = y.shape[1], y.shape[2]
    for plane in range(part * len(x) // parts, (part + 1) * len(x) // parts):
        for p in range(ho):
            for q in range(wo):
                y[plane, p, q] = -np.inf
                taken[plane, p, q] = kh * kw - 1 if last else 0
            for i in range(kh):
                h = p * sh + i - top
                if 0 <= h < x.shape[1]:
                    for j in range(kw):
                        low, high = _inside(j - left, sw, wo, x.shape[2])
                        for q in range(low, high):
                            v = x[plane, h, q * sw + j - left]
                            better = _better(v, y[plane, p, q], last)
                            y[plane, p, q] = v if better else y[plane, p, q]
                            taken[plane, p, q] = i * kw + j if better else taken[plane, p, q]


@kernel(lambda f: (reader(f, 3), reader(index, 3), reader(index, 1), writer(f, 3)))
def _max_pool_vjp(part: int, parts: int, dy: Array, taken: Array, window: Array, dx: Array) -> None:
    kw, sh, sw, top, left = window[1], window[2], window[3], window[4], window[5]
    for plane in range(part * len(dx) // parts, (part + 1) * len(dx) // parts):
        dx[plane] = 0
        for p in range(dy.shape[1]):
            for q in range(dy.shape[2]):
                i = taken[plane, p, q] // kw
                h, v = p * sh + i - top, q * sw + taken[plane, p, q] - i * kw - left
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
    lanes = np.empty(8)
    for row in range(part * len(x) // parts, (part + 1) * len(x) // parts):
        lanes[:] = 0
        for p in range(0, x.shape[1] - 7, 8):
            for lane in range(8):
                lanes[lane] += x[row, p + lane]
        total = 0.0
        for lane in range(8):
            total += lanes[lane]
        for p in range(x.shape[1] // 8 * 8, x.shape[1]):
            total += x[row, p]
        y[row] = total / x.shape[1]


@kernel(lambda f: (reader(f, 1), f, writer(f, 2)))
def _spread(part: int, parts: int, dy: Array, count: float, dx: Array) -> None:
    for row in range(part * len(dx) // parts, (part + 1) * len(dx) // parts):
        dx[row] = dy[row] / count


def max_pool(
    workspace: Workspace, x: Array, *, kernel: Pair, stride: Pair, padding: Padding, ties: str, branch: Array | None = None
) -> tuple[Array, Saved]:
    """Same contract as `layers.max_pool`; a forced branch is taken by the oracle's own code."""
    if branch is not None or not _fits(x, kernel, stride, padding):
        return layers.max_pool(x, kernel=kernel, stride=stride, padding=padding, ties=ties, branch=branch)
    out = _out(x.shape, kernel, stride, padding)
    y, taken = np.empty((x.shape[0] * x.shape[1], *out), x.dtype), np.empty((x.shape[0] * x.shape[1], *out), np.intp)
    parts = share(workspace.threads, y.size * kernel[0] * kernel[1], ELEMENT_GRAIN)
    _max_pool[x.dtype](parts, _planes(x), _window(kernel, stride, padding), ties != "first", y, taken)
    shape = (*x.shape[:2], *out)
    return y.reshape(shape), Saved((x.shape, kernel, stride, padding), taken.reshape(shape))


def max_pool_vjp(workspace: Workspace, saved: Saved, dy: Array) -> tuple[Array]:
    """Same contract as `layers.max_pool_vjp`."""
    shape, kernel, stride, padding = saved.values
    taken = np.asarray(saved.branch, dtype=np.intp)
    if not (same_float(dy) and dy.shape == (*shape[:2], *_out(shape, kernel, stride, padding)) == taken.shape):
        return layers.max_pool_vjp(saved, dy)
    dx = np.empty(shape, dy.dtype)
    parts = share(workspace.threads, dy.size * kernel[0] * kernel[1], ELEMENT_GRAIN)
    _max_pool_vjp[dy.dtype](parts, _planes(dy), _planes(taken), _window(kernel, stride, padding), _planes(dx))
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
    """Same contract as `layers.average_pool`."""
    if not _fits(x, kernel, stride, padding):
        return layers.average_pool(x, kernel=kernel, stride=stride, padding=padding, count_padding=count_padding)
    out = _out(x.shape, kernel, stride, padding)
    count = _count(x.shape[2:], kernel, stride, padding, out, count_padding, x.dtype.name)
    y = np.empty((x.shape[0] * x.shape[1], *out), x.dtype)
    parts = share(workspace.threads, y.size * kernel[0] * kernel[1], ELEMENT_GRAIN)
    _average_pool[x.dtype](parts, _planes(x), count[0, 0], _window(kernel, stride, padding), y)
    return y.reshape(*x.shape[:2], *out), Saved((x.shape, count, kernel, stride, padding))


def average_pool_vjp(workspace: Workspace, saved: Saved, dy: Array) -> tuple[Array]:
    """Same contract as `layers.average_pool_vjp`."""
    shape, count, kernel, stride, padding = saved.values
    if not (same_float(dy, count) and dy.shape == (*shape[:2], *count.shape[2:])):
        return layers.average_pool_vjp(saved, dy)
    dx = np.empty(shape, dy.dtype)
    parts = share(workspace.threads, dy.size * kernel[0] * kernel[1], ELEMENT_GRAIN)
    window = _window(kernel, stride, padding)
    _average_pool_vjp[dy.dtype](parts, _planes(dy), ready(count)[0, 0], window, _planes(dx))
    return (dx,)


def global_average_pool(workspace: Workspace, x: Array) -> tuple[Array, Saved]:
    """Same contract as `layers.global_average_pool`."""
    if not (x.ndim == 4 and x.shape[2] * x.shape[3] > 0 and same_float(x)):
        return layers.global_average_pool(x)
    y = np.empty(x.shape[:2], x.dtype)
    flat = ready(x).reshape(y.size, x.shape[2] * x.shape[3])
    _row_means[x.dtype](share(workspace.threads, x.size, ELEMENT_GRAIN), flat, y.reshape(y.size))
    return y, Saved((x.shape,))


def global_average_pool_vjp(workspace: Workspace, saved: Saved, dy: Array) -> tuple[Array]:
    """Same contract as `layers.global_average_pool_vjp`."""
    (shape,) = saved.values
    if not (len(shape) == 4 and dy.shape == shape[:2] and shape[2] * shape[3] > 0 and same_float(dy)):
        return layers.global_average_pool_vjp(saved, dy)
    dx, pixels = np.empty(shape, dy.dtype), shape[2] * shape[3]
    parts = share(workspace.threads, dx.size, ELEMENT_GRAIN)
    _spread[dy.dtype](parts, ready(dy).reshape(dy.size), dy.dtype.type(pixels), dx.reshape(dy.size, pixels))
    return (dx,)
