"""Layers that touch every number once. Same contracts as in `layers`; images are seen as N×C×P, dense data as N×C×1."""

from __future__ import annotations

import functools
from math import prod
from typing import NamedTuple

import numpy as np

from ...arrays import Array, Pair, Saved
from ...oracle import layers
from ..machine.kernel import ELEMENT_GRAIN, FLOATS, index, int8, kernel, reader, ready, real64, same_float, share, writer
from ..machine.workspace import Workspace

BLOCK = 512  # columns whose sums over the batch are carried at once


def planes(x: Array) -> tuple[int, int, int]:
    """The shape N×C×P under which kernels see x."""
    return x.shape[0], x.shape[1], prod(x.shape[2:])


# --------------------------------------------------------------------------------------------------------------------
# Leaky ReLU


class _Slopes(NamedTuple):
    negative: float
    at_zero: float
    positive: float = 1.0


@kernel(lambda f: (reader(f, 1), f, f, f, writer(f, 1), writer(int8, 1)))
def _leaky_relu(
    part: int, parts: int, x: Array, negative: float, at_zero: float, positive: float, y: Array, sign: Array
) -> None:
    low, high = part * len(x) // parts, (part + 1) * len(x) // parts
    x, y, sign = x[low:high], y[low:high], sign[low:high]  # an index that starts at 0 is one LLVM can vectorise
    zero = y.dtype.type(0.0)
    for i in range(len(x)):
        v = x[i]
        factor = positive if v > 0 else (negative if v < 0 else at_zero)
        y[i] = zero if v < 0 and negative == 0 else v * factor  # relu(−∞) = 0, but −∞·0 is not
        sign[i] = 1 if v > 0 else (-1 if v < 0 else 0)


@kernel(lambda f: (reader(f, 1), f, f, f, reader(int8, 1), writer(f, 1)))
def _leaky_relu_vjp(
    part: int, parts: int, dy: Array, negative: float, at_zero: float, positive: float, sign: Array, dx: Array
) -> None:
    low, high = part * len(dy) // parts, (part + 1) * len(dy) // parts
    dy, sign, dx = dy[low:high], sign[low:high], dx[low:high]
    for i in range(len(dy)):
        factor = positive if sign[i] > 0 else (negative if sign[i] < 0 else at_zero)
        dx[i] = dy[i] * factor


@functools.lru_cache(maxsize=64)
def _slopes(slope: float, at_zero: float) -> _Slopes:
    return _Slopes(slope, slope + at_zero * (1.0 - slope))


def leaky_relu(
    workspace: Workspace, x: Array, *, slope: float, at_zero: float, branch: Array | None = None
) -> tuple[Array, Saved]:
    """Same contract as `oracle.layers.leaky_relu`."""
    if x.dtype not in FLOATS:
        return layers.leaky_relu(x, slope=slope, at_zero=at_zero, branch=branch)
    slopes = _slopes(slope, at_zero)
    if branch is not None:  # rare: only when two backends are compared
        y, saved = layers.leaky_relu(x, slope=slope, at_zero=at_zero, branch=branch)
        return y, Saved(slopes, saved.branch)
    y, sign = workspace.empty(x.shape, x.dtype), workspace.empty(x.shape, np.int8)
    parts = share(workspace.threads, x.size, ELEMENT_GRAIN)
    _leaky_relu[x.dtype](parts, _line(x), *slopes, y.reshape(-1), sign.reshape(-1))
    return y, Saved(slopes, sign)


def leaky_relu_vjp(workspace: Workspace, saved: Saved, dy: Array) -> tuple[Array]:
    """Same contract as `oracle.layers.leaky_relu_vjp`."""
    slopes, branch = saved.values, saved.branch
    if not isinstance(slopes, _Slopes) or branch is None:
        return layers.leaky_relu_vjp(saved, dy)
    if dy.dtype not in FLOATS or dy.shape != branch.shape:
        factor = np.choose(branch + 1, slopes).astype(dy.real.dtype)
        return layers.leaky_relu_vjp(Saved((factor,)), dy)
    dx = workspace.empty(dy.shape, dy.dtype)
    sign = branch if branch.dtype == np.int8 else branch.astype(np.int8)
    parts = share(workspace.threads, dy.size, ELEMENT_GRAIN)
    _leaky_relu_vjp[dy.dtype](parts, _line(dy), *slopes, _line(sign), dx.reshape(-1))
    return (dx,)


def _line(x: Array) -> Array:
    """All entries in one row."""
    return ready(x).reshape(-1)


# --------------------------------------------------------------------------------------------------------------------
# Gates


@kernel(lambda f: (reader(f, 3), reader(f, 1), writer(f, 3)))
def _gate(part: int, parts: int, x: Array, g: Array, y: Array) -> None:
    """y[n, c] = g[c]·x[n, c]."""
    channels, pixels = x.shape[1], x.shape[2]
    for n in range(part * len(x) // parts, (part + 1) * len(x) // parts):
        if pixels == 1:
            row, out = x[n].reshape(channels), y[n].reshape(channels)
            for c in range(channels):
                out[c] = row[c] * g[c]
        else:
            for c in range(channels):
                factor, row, out = g[c], x[n, c], y[n, c]
                for p in range(pixels):
                    out[p] = row[p] * factor


@kernel(lambda f: (reader(f, 2), reader(f, 2), reader(f, 1), index, writer(real64, 1), writer(f, 2)))
def _gate_vjp(part: int, parts: int, x: Array, dy: Array, g: Array, pixels: int, sums: Array, dx: Array) -> None:
    """sums[j] = Σ_n x[n, j]·dy[n, j], in double precision and in the order of n; dx = g ⊙ dy, `pixels` columns to a gate."""
    blocks = (len(sums) + BLOCK - 1) // BLOCK
    factor = np.empty(BLOCK, dx.dtype)
    for block in range(part * blocks // parts, (part + 1) * blocks // parts):
        low, high = block * BLOCK, min(len(sums), (block + 1) * BLOCK)
        mine = sums[low:high]
        mine[:] = 0
        for j in range(len(mine)):
            factor[j] = g[(low + j) // pixels]
        for n in range(len(x)):
            x_row, dy_row, dx_row = x[n, low:high], dy[n, low:high], dx[n, low:high]
            for j in range(len(mine)):
                mine[j] += np.float64(x_row[j]) * np.float64(dy_row[j])
                dx_row[j] = dy_row[j] * factor[j]


def _gate_fits(x: Array, g: Array) -> bool:
    return x.ndim >= 2 and (g.ndim == 0 or g.shape == (x.shape[1],)) and x.dtype in FLOATS and g.dtype == x.dtype


def gate(workspace: Workspace, x: Array, g: Array) -> tuple[Array, Saved]:
    """Same contract as `oracle.layers.gate`."""
    if not _gate_fits(x, g):
        return layers.gate(x, g)
    y = workspace.empty(x.shape, x.dtype)
    n, c, pixels = planes(x)
    shape = (n, c, pixels) if g.ndim else (n, 1, c * pixels)
    _gate[x.dtype](share(workspace.threads, x.size, ELEMENT_GRAIN), ready(x).reshape(shape), _line(g), y.reshape(shape))
    return y, Saved((x, g))


def gate_vjp(workspace: Workspace, saved: Saved, dy: Array) -> tuple[Array, Array]:
    """Same contract as `oracle.layers.gate_vjp`."""
    x, g = saved.values
    if not (_gate_fits(x, g) and dy.dtype == x.dtype and dy.shape == x.shape):
        return layers.gate_vjp(saved, dy)
    n, c, pixels = planes(x)
    dx, sums, flat = workspace.empty(x.shape, x.dtype), np.empty(c * pixels), (n, c * pixels)
    parts = share(workspace.threads, x.size, ELEMENT_GRAIN)
    columns = pixels if g.ndim else c * pixels
    _gate_vjp[x.dtype](parts, ready(x).reshape(flat), ready(dy).reshape(flat), _line(g), columns, sums, dx.reshape(flat))
    dg = sums.reshape(c, pixels).sum(axis=1) if g.ndim else sums.sum()
    return dx, np.asarray(dg, dtype=x.dtype)


# --------------------------------------------------------------------------------------------------------------------
# Residual sections


@kernel(lambda f: (reader(f, 1), reader(f, 1), writer(f, 1)))
def _add(part: int, parts: int, a: Array, b: Array, y: Array) -> None:
    low, high = part * len(y) // parts, (part + 1) * len(y) // parts
    a, b, y = a[low:high], b[low:high], y[low:high]
    for i in range(len(y)):
        y[i] = a[i] + b[i]


@kernel(lambda f: (reader(f, 3), reader(f, 3), reader(index, 1), writer(f, 3)))
def _add_channels(part: int, parts: int, shortcut: Array, path: Array, places: Array, y: Array) -> None:
    """y = shortcut, and the path's channel places[c], if that is not −1, is added to channel c."""
    pixels = y.shape[2]
    for n in range(part * len(y) // parts, (part + 1) * len(y) // parts):
        for c in range(y.shape[1]):
            k = places[c]
            if pixels == 1:
                y[n, c, 0] = shortcut[n, c, 0] if k < 0 else shortcut[n, c, 0] + path[n, k, 0]
            elif k < 0:
                for p in range(pixels):
                    y[n, c, p] = shortcut[n, c, p]
            else:
                for p in range(pixels):
                    y[n, c, p] = shortcut[n, c, p] + path[n, k, p]


class _Placed(NamedTuple):
    """chosen: the channels of the path. places: which of them each of all channels is, −1 for none."""

    chosen: Array
    places: Array


@functools.lru_cache(maxsize=1024)
def _placed(channels: tuple[int, ...], count: int) -> _Placed | None:
    """None unless `channels` are different numbers below `count`."""
    if len(set(channels)) < len(channels) or not all(0 <= c < count for c in channels):
        return None
    chosen, places = np.array(channels, dtype=np.intp), np.full(count, -1, np.intp)
    places[chosen] = np.arange(len(chosen))
    return _Placed(chosen, places)


def add(workspace: Workspace, shortcut: Array, path: Array, *, channels: tuple[int, ...] | None) -> tuple[Array, Saved]:
    """Same contract as `oracle.layers.add`."""
    if shortcut.dtype not in FLOATS or path.dtype != shortcut.dtype:
        return layers.add(shortcut, path, channels=channels)
    parts = share(workspace.threads, shortcut.size, ELEMENT_GRAIN)
    if channels is None:
        if path.shape != shortcut.shape:
            return layers.add(shortcut, path, channels=None)
        y = workspace.empty(shortcut.shape, shortcut.dtype)
        _add[y.dtype](parts, _line(shortcut), _line(path), y.reshape(-1))
        return y, Saved((None,))
    placed = _placed(channels, shortcut.shape[1]) if shortcut.ndim >= 2 else None
    if placed is None or path.shape != (shortcut.shape[0], len(channels), *shortcut.shape[2:]):
        return layers.add(shortcut, path, channels=channels)
    y, (n, c, pixels) = workspace.empty(shortcut.shape, shortcut.dtype), planes(shortcut)
    path, shortcut = ready(path).reshape(n, len(channels), pixels), ready(shortcut).reshape(n, c, pixels)
    _add_channels[y.dtype](parts, shortcut, path, placed.places, y.reshape(n, c, pixels))
    return y, Saved((placed.chosen,))


def add_vjp(workspace: Workspace, saved: Saved, dy: Array) -> tuple[Array, Array]:
    """Same contract as `oracle.layers.add_vjp`."""
    (chosen,) = saved.values
    return dy, dy if chosen is None else np.take(dy, chosen, axis=1)


@kernel(lambda f: (reader(f, 4), index, index, index, writer(f, 4)))
def _subsample_pad(part: int, parts: int, x: Array, sh: int, sw: int, before: int, y: Array) -> None:
    channels, rows, columns = x.shape[1], y.shape[2], y.shape[3]
    for n in range(part * len(y) // parts, (part + 1) * len(y) // parts):
        y[n, :before] = 0
        y[n, before + channels :] = 0
        for c in range(channels):
            for p in range(rows):
                if sw == 2:  # a known stride is what LLVM vectorises
                    for q in range(columns):
                        y[n, before + c, p, q] = x[n, c, p * sh, 2 * q]
                else:
                    for q in range(columns):
                        y[n, before + c, p, q] = x[n, c, p * sh, q * sw]


@kernel(lambda f: (reader(f, 4), index, index, index, writer(f, 4)))
def _subsample_pad_vjp(part: int, parts: int, dy: Array, sh: int, sw: int, before: int, dx: Array) -> None:
    for n in range(part * len(dx) // parts, (part + 1) * len(dx) // parts):
        dx[n] = 0
        for c in range(dx.shape[1]):
            for p in range(dy.shape[2]):
                for q in range(dy.shape[3]):
                    dx[n, c, p * sh, q * sw] = dy[n, before + c, p, q]


def _subsampled(shape: tuple[int, ...], stride: Pair) -> tuple[int, int]:
    return -(-shape[2] // stride[0]), -(-shape[3] // stride[1])


def subsample_pad(workspace: Workspace, x: Array, *, stride: Pair, before: int, after: int) -> tuple[Array, Saved]:
    """Same contract as `oracle.layers.subsample_pad`."""
    if not (x.ndim == 4 and min(stride) > 0 and min(before, after) >= 0 and same_float(x)):
        return layers.subsample_pad(x, stride=stride, before=before, after=after)
    y = workspace.empty((x.shape[0], before + x.shape[1] + after, *_subsampled(x.shape, stride)), x.dtype)
    _subsample_pad[x.dtype](share(workspace.threads, y.size, ELEMENT_GRAIN), ready(x), *stride, before, y)
    return y, Saved((x.shape, stride, before))


def subsample_pad_vjp(workspace: Workspace, saved: Saved, dy: Array) -> tuple[Array]:
    """Same contract as `oracle.layers.subsample_pad_vjp`."""
    shape, stride, before = saved.values
    matching = len(shape) == 4 and dy.ndim == 4 and dy.shape[1] >= before + shape[1]
    if not (matching and dy.shape[::3] == (shape[0], _subsampled(shape, stride)[1]) and same_float(dy)):
        return layers.subsample_pad_vjp(saved, dy)
    if dy.shape[2] != _subsampled(shape, stride)[0]:
        return layers.subsample_pad_vjp(saved, dy)
    dx = workspace.empty(shape, dy.dtype)
    _subsample_pad_vjp[dy.dtype](share(workspace.threads, dx.size, ELEMENT_GRAIN), ready(dy), *stride, before, dx)
    return (dx,)
