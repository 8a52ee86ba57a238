"""Batch normalisation. Contracts as in `refprune.oracle.layers`.

Sums over the batch are carried in double precision. Each channel's sums are the work of one part, so that the number of
threads has no influence on their order.

Batch normalisation takes a block of neighbouring channels through all its passes before the next, so that x comes from memory
once and then from the second-level cache. The pixels of a block's channels are its columns, and what belongs to a channel is
spread over its columns: the inner loops are as long for dense data as for images.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...arrays import Array, Saved
from ...oracle import layers
from ..machine.kernel import ELEMENT_GRAIN, flag, inner, kernel, reader, ready, same_float, share, writer
from ..machine.workspace import Workspace
from .elementwise import BLOCK

# --------------------------------------------------------------------------------------------------------------------
# Batch normalisation


class _Normalised(NamedTuple):
    """What the VJP needs; the normalised input is (x − mean)·inverse."""

    x: Array
    mean: Array
    inverse: Array
    gain: Array


@inner
def _channels_at_once(pixels: int) -> int:
    return max(1, BLOCK // max(pixels, 1))


@inner
def _fold(columns: Array, channels: int, pixels: int, sums: Array) -> None:
    """sums[c] = the sum of channel c's columns, in order."""
    for c in range(channels):
        total = 0.0
        for p in range(c * pixels, (c + 1) * pixels):
            total += columns[p]
        sums[c] = total


@inner
def _spread(values: Array, first: int, channels: int, pixels: int, columns: Array) -> None:
    """Every column of a block gets the value of its channel."""
    for c in range(channels):
        columns[c * pixels : (c + 1) * pixels] = values[first + c]


@inner
def _sum_rows(x: Array, low: int, high: int, columns: Array) -> None:
    """columns[j] = Σ_n x[n, low + j]."""
    columns[:] = 0
    fours = len(x) // 4 * 4
    for n in range(0, fours, 4):
        a, b, c, d = x[n, low:high], x[n + 1, low:high], x[n + 2, low:high], x[n + 3, low:high]
        for j in range(high - low):
            columns[j] += (np.float64(a[j]) + np.float64(b[j])) + (np.float64(c[j]) + np.float64(d[j]))
    for n in range(fours, len(x)):
        a = x[n, low:high]
        for j in range(high - low):
            columns[j] += np.float64(a[j])


@inner
def _sum_squares(x: Array, centre: Array, low: int, high: int, columns: Array) -> None:
    """columns[j] = Σ_n (x[n, low + j] − centre[j])²."""
    columns[:] = 0
    fours = len(x) // 4 * 4
    for n in range(0, fours, 4):
        a, b, c, d = x[n, low:high], x[n + 1, low:high], x[n + 2, low:high], x[n + 3, low:high]
        for j in range(high - low):
            m = centre[j]
            p, q, r, s = np.float64(a[j] - m), np.float64(b[j] - m), np.float64(c[j] - m), np.float64(d[j] - m)
            columns[j] += (p * p + q * q) + (r * r + s * s)
    for n in range(fours, len(x)):
        a = x[n, low:high]
        for j in range(high - low):
            p = np.float64(a[j] - centre[j])
            columns[j] += p * p


@inner
def _sum_gradients(x: Array, centre: Array, dy: Array, low: int, high: int, plain: Array, weighted: Array) -> None:
    """plain[j] = Σ_n dy[n, low + j] and weighted[j] = Σ_n (x[n, low + j] − centre[j])·dy[n, low + j]."""
    plain[:] = 0
    weighted[:] = 0
    twos = len(x) // 2 * 2
    for n in range(0, twos, 2):
        a, b, da, db = x[n, low:high], x[n + 1, low:high], dy[n, low:high], dy[n + 1, low:high]
        for j in range(high - low):
            d, e = np.float64(da[j]), np.float64(db[j])
            plain[j] += d + e
            weighted[j] += np.float64(a[j] - centre[j]) * d + np.float64(b[j] - centre[j]) * e
    for n in range(twos, len(x)):
        a, da = x[n, low:high], dy[n, low:high]
        for j in range(high - low):
            d = np.float64(da[j])
            plain[j] += d
            weighted[j] += np.float64(a[j] - centre[j]) * d


@inner
def _normalise_rows(x: Array, spread: Array, low: int, high: int, y: Array) -> None:
    """y = (x − mean)·inverse·gain + bias on a block's columns; the rows of `spread` are these four."""
    mean, inverse, gain, bias = spread[0], spread[1], spread[2], spread[3]
    for n in range(len(x)):
        row, out = x[n, low:high], y[n, low:high]
        for j in range(high - low):
            out[j] = (row[j] - mean[j]) * inverse[j] * gain[j] + bias[j]


@kernel(lambda f: (reader(f, 2), reader(f, 1), reader(f, 1), f, writer(f, 2), writer(f, 2)))
def _batch_norm(part: int, parts: int, x: Array, gain: Array, bias: Array, eps: float, moments: Array, y: Array) -> None:
    """The rows of `moments`: mean, biased variance and 1/√(variance + eps) of each channel; x and y N×(C·P)."""
    mean, variance, inverse = moments[0], moments[1], moments[2]
    pixels, count = x.shape[1] // len(mean), len(x) * (x.shape[1] // len(mean))
    at_once = _channels_at_once(pixels)
    blocks = (len(mean) + at_once - 1) // at_once
    sums, columns, spread = np.empty(at_once), np.empty(at_once * pixels), np.empty((4, at_once * pixels), x.dtype)
    for block in range(part * blocks // parts, (part + 1) * blocks // parts):
        first = block * at_once
        channels = min(len(mean), first + at_once) - first
        low, high = first * pixels, (first + channels) * pixels
        _sum_rows(x, low, high, columns)
        _fold(columns, channels, pixels, sums)
        for c in range(channels):
            mean[first + c] = sums[c] / count
        _spread(mean, first, channels, pixels, spread[0])
        _sum_squares(x, spread[0], low, high, columns)
        _fold(columns, channels, pixels, sums)
        for c in range(channels):
            variance[first + c] = sums[c] / count
            inverse[first + c] = 1.0 / np.sqrt(variance[first + c] + eps)
        _spread(inverse, first, channels, pixels, spread[1])
        _spread(gain, first, channels, pixels, spread[2])
        _spread(bias, first, channels, pixels, spread[3])
        _normalise_rows(x, spread, low, high, y)


@kernel(lambda f: (reader(f, 2), reader(f, 1), reader(f, 1), reader(f, 1), reader(f, 1), writer(f, 2)))
def _normalise(part: int, parts: int, x: Array, mean: Array, inverse: Array, gain: Array, bias: Array, y: Array) -> None:
    pixels = x.shape[1] // max(len(mean), 1)
    at_once = _channels_at_once(pixels)
    blocks = (len(mean) + at_once - 1) // at_once
    spread = np.empty((4, at_once * pixels), x.dtype)
    for block in range(part * blocks // parts, (part + 1) * blocks // parts):
        first = block * at_once
        channels = min(len(mean), first + at_once) - first
        _spread(mean, first, channels, pixels, spread[0])
        _spread(inverse, first, channels, pixels, spread[1])
        _spread(gain, first, channels, pixels, spread[2])
        _spread(bias, first, channels, pixels, spread[3])
        _normalise_rows(x, spread, first * pixels, (first + channels) * pixels, y)


@kernel(lambda f: (reader(f, 2), reader(f, 1), reader(f, 1), reader(f, 1), reader(f, 2), flag, writer(f, 2), writer(f, 2)))
def _batch_norm_vjp(
    part: int,
    parts: int,
    x: Array,
    mean: Array,
    inverse: Array,
    gain: Array,
    dy: Array,
    train: bool,
    sums: Array,
    dx: Array,
) -> None:
    """The rows of `sums`: dgain = Σ n·dy and dbias = Σ dy, with n the normalised input; x, dy and dx N×(C·P).

    dx = gain·inverse·(dy − mean dy − n·mean(n·dy)), or without the means unless `train`.
    """
    pixels = x.shape[1] // max(len(mean), 1)
    at_once = _channels_at_once(pixels)
    blocks = (len(mean) + at_once - 1) // at_once
    plain, weighted, spread = np.empty(at_once * pixels), np.empty(at_once * pixels), np.empty((4, at_once * pixels), x.dtype)
    totals, factors = np.empty((2, at_once)), np.empty((3, at_once), x.dtype)
    centre, shift, stretch, scale = spread[0], spread[1], spread[2], spread[3]
    count = len(x) * pixels
    for block in range(part * blocks // parts, (part + 1) * blocks // parts):
        first = block * at_once
        channels = min(len(mean), first + at_once) - first
        low, high = first * pixels, (first + channels) * pixels
        _spread(mean, first, channels, pixels, centre)
        _sum_gradients(x, centre, dy, low, high, plain, weighted)
        _fold(weighted, channels, pixels, totals[0])
        _fold(plain, channels, pixels, totals[1])
        for c in range(channels):
            i = inverse[first + c]
            sums[0, first + c] = totals[0, c] * i
            sums[1, first + c] = totals[1, c]
            factors[0, c] = totals[1, c] / count
            factors[1, c] = totals[0, c] / count * i * i
            factors[2, c] = gain[first + c] * i
        _spread(factors[0], 0, channels, pixels, shift)
        _spread(factors[1], 0, channels, pixels, stretch)
        _spread(factors[2], 0, channels, pixels, scale)
        for n in range(len(x)):
            row, d, out = x[n, low:high], dy[n, low:high], dx[n, low:high]
            if train:
                for j in range(high - low):
                    out[j] = (d[j] - shift[j] - (row[j] - centre[j]) * stretch[j]) * scale[j]
            else:
                for j in range(high - low):
                    out[j] = d[j] * scale[j]


def batch_norm(workspace: Workspace, x: Array, gain: Array, bias: Array, *, eps: float) -> tuple[Array, Saved]:
    """Same contract as `oracle.layers.batch_norm`."""
    if not _norm_fits(x, gain, bias) or x.size <= x.shape[1]:
        return layers.batch_norm(x, gain, bias, eps=eps)
    y, moments = workspace.empty(x.shape, x.dtype), np.empty((3, len(gain)), x.dtype)
    x, gain, shape = ready(x), ready(gain), (len(x), x.size // len(x))
    parts = share(workspace.threads, x.size, ELEMENT_GRAIN)
    _batch_norm[x.dtype](parts, x.reshape(shape), gain, ready(bias), eps, moments, y.reshape(shape))
    mean, variance, inverse = moments
    return y, Saved(_Normalised(x, mean, inverse, gain), statistics=(mean, variance, x.size // len(gain)))


def batch_norm_vjp(workspace: Workspace, saved: Saved, dy: Array) -> tuple[Array, Array, Array]:
    """Same contract as `oracle.layers.batch_norm_vjp`."""
    if not isinstance(saved.values, _Normalised):
        return layers.batch_norm_vjp(saved, dy)
    if not _cotangent_fits(saved.values, dy):
        return layers.batch_norm_vjp(_oracle_saved(saved.values), dy)
    return _vjp(workspace, saved.values, dy, True)


def batch_norm_eval(
    workspace: Workspace, x: Array, gain: Array, bias: Array, mean: Array, variance: Array, *, eps: float
) -> tuple[Array, Saved]:
    """Same contract as `oracle.layers.batch_norm_eval`."""
    if not _norm_fits(x, gain, bias, mean, variance):
        return layers.batch_norm_eval(x, gain, bias, mean, variance, eps=eps)
    inverse = 1.0 / np.sqrt(variance + x.dtype.type(eps))
    y = workspace.empty(x.shape, x.dtype)
    x, mean, gain, shape = ready(x), ready(mean), ready(gain), (len(x), x.size // max(len(x), 1))
    parts = share(workspace.threads, x.size, ELEMENT_GRAIN)
    _normalise[x.dtype](parts, x.reshape(shape), mean, inverse, gain, ready(bias), y.reshape(shape))
    return y, Saved(_Normalised(x, mean, inverse, gain))


def batch_norm_eval_vjp(workspace: Workspace, saved: Saved, dy: Array) -> tuple[Array, Array, Array]:
    """Same contract as `oracle.layers.batch_norm_eval_vjp`."""
    if not isinstance(saved.values, _Normalised):
        return layers.batch_norm_eval_vjp(saved, dy)
    if not _cotangent_fits(saved.values, dy):
        return layers.batch_norm_eval_vjp(_oracle_saved(saved.values), dy)
    return _vjp(workspace, saved.values, dy, False)


def _vjp(workspace: Workspace, values: _Normalised, dy: Array, train: bool) -> tuple[Array, Array, Array]:
    x, mean, inverse, gain = values
    dx, sums, shape = workspace.empty(x.shape, x.dtype), np.empty((2, len(mean)), x.dtype), (len(x), x.size // max(len(x), 1))
    parts, flat_dy = share(workspace.threads, x.size, ELEMENT_GRAIN), ready(dy).reshape(shape)
    _batch_norm_vjp[x.dtype](parts, x.reshape(shape), mean, inverse, gain, flat_dy, train, sums, dx.reshape(shape))
    return dx, sums[0], sums[1]


def _norm_fits(x: Array, *vectors: Array) -> bool:
    return x.ndim >= 2 and all(v.shape == (x.shape[1],) for v in vectors) and same_float(x, *vectors)


def _cotangent_fits(values: _Normalised, dy: Array) -> bool:
    return dy.shape == values.x.shape and same_float(values.x, dy)


def _oracle_saved(values: _Normalised) -> Saved:
    """What the oracle's VJP expects, for a cotangent that the kernels do not take."""
    x, mean, inverse, gain = values
    column = (-1,) + (1,) * (x.ndim - 2)
    return Saved(((x - mean.reshape(column)) * inverse.reshape(column), inverse, gain))
