"""Layers that sum over the batch: batch normalisation and cross-entropy. Same contracts as in `layers`.

Sums over the batch are carried in double precision. Each channel's sums are the work of one part, so that the number of
threads has no influence on their order.
"""

from __future__ import annotations

from math import exp, log
from typing import NamedTuple

import numpy as np

from .. import layers
from ..layers import Array, Saved
from .compiled import ELEMENT_GRAIN, index, inner, kernel, reader, ready, real64, same_float, share, writer
from .elementwise import BLOCK, planes, scaled
from .workspace import Workspace

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


@kernel(lambda f: (reader(f, 2), writer(f, 1), writer(f, 1)))
def _moments(part: int, parts: int, x: Array, mean: Array, variance: Array) -> None:
    """Mean and biased variance of each channel; x N×(C·P)."""
    pixels = x.shape[1] // max(len(mean), 1)
    at_once = _channels_at_once(pixels)
    blocks = (len(mean) + at_once - 1) // at_once
    columns, sums, centre = np.empty(at_once * pixels), np.empty(at_once), np.empty(at_once * pixels)
    count = len(x) * pixels
    for block in range(part * blocks // parts, (part + 1) * blocks // parts):
        c0 = block * at_once
        channels = min(len(mean), c0 + at_once) - c0
        start, width = c0 * pixels, channels * pixels
        columns[:] = 0
        for n in range(len(x)):
            row = x[n, start : start + width]
            for j in range(width):
                columns[j] += row[j]
        _fold(columns, channels, pixels, sums)
        for c in range(channels):
            mean[c0 + c] = sums[c] / count
            centre[c * pixels : (c + 1) * pixels] = sums[c] / count
        columns[:] = 0
        for n in range(len(x)):
            row = x[n, start : start + width]
            for j in range(width):
                away = row[j] - centre[j]
                columns[j] += away * away
        _fold(columns, channels, pixels, sums)
        for c in range(channels):
            variance[c0 + c] = sums[c] / count


@kernel(lambda f: (reader(f, 3), reader(f, 1), reader(f, 1), reader(f, 1), reader(f, 1), writer(f, 3)))
def _normalise(part: int, parts: int, x: Array, mean: Array, inverse: Array, gain: Array, bias: Array, y: Array) -> None:
    """y = (x − mean)·inverse·gain + bias."""
    channels, pixels = x.shape[1], x.shape[2]
    for n in range(part * len(x) // parts, (part + 1) * len(x) // parts):
        if pixels == 1:
            for c in range(channels):
                y[n, c, 0] = (x[n, c, 0] - mean[c]) * inverse[c] * gain[c] + bias[c]
        else:
            for c in range(channels):
                m, i, g, b = mean[c], inverse[c], gain[c], bias[c]
                for p in range(pixels):
                    y[n, c, p] = (x[n, c, p] - m) * i * g + b


@kernel(lambda f: (reader(f, 2), reader(f, 1), reader(f, 1), reader(f, 2), writer(f, 1), writer(f, 1)))
def _gain_bias_vjp(part: int, parts: int, x: Array, mean: Array, inverse: Array, dy: Array, dgain: Array, dbias: Array) -> None:
    """dgain = Σ n·dy and dbias = Σ dy, with n the normalised input; x and dy N×(C·P)."""
    pixels = x.shape[1] // max(len(mean), 1)
    at_once = _channels_at_once(pixels)
    blocks = (len(mean) + at_once - 1) // at_once
    plain, weighted, sums = np.empty(at_once * pixels), np.empty(at_once * pixels), np.empty(at_once)
    centre = np.empty(at_once * pixels, x.dtype)
    for block in range(part * blocks // parts, (part + 1) * blocks // parts):
        c0 = block * at_once
        channels = min(len(mean), c0 + at_once) - c0
        start, width = c0 * pixels, channels * pixels
        for c in range(channels):
            centre[c * pixels : (c + 1) * pixels] = mean[c0 + c]
        plain[:] = 0
        weighted[:] = 0
        for n in range(len(x)):
            x_row, dy_row = x[n, start : start + width], dy[n, start : start + width]
            for j in range(width):
                d = np.float64(dy_row[j])
                plain[j] += d
                weighted[j] += np.float64(x_row[j] - centre[j]) * d
        _fold(plain, channels, pixels, sums)
        for c in range(channels):
            dbias[c0 + c] = sums[c]
        _fold(weighted, channels, pixels, sums)
        for c in range(channels):
            dgain[c0 + c] = sums[c] * inverse[c0 + c]


@kernel(
    lambda f: (
        reader(f, 3),
        reader(f, 1),
        reader(f, 1),
        reader(f, 1),
        reader(f, 3),
        reader(f, 1),
        reader(f, 1),
        writer(f, 3),
    )
)
def _batch_norm_vjp(
    part: int,
    parts: int,
    x: Array,
    mean: Array,
    inverse: Array,
    scale: Array,
    dy: Array,
    mean_ndy: Array,
    mean_dy: Array,
    dx: Array,
) -> None:
    """dx = scale·(dy − mean_dy − n·mean_ndy), with n the normalised input."""
    channels, pixels = x.shape[1], x.shape[2]
    for n in range(part * len(x) // parts, (part + 1) * len(x) // parts):
        if pixels == 1:
            for c in range(channels):
                normal = (x[n, c, 0] - mean[c]) * inverse[c]
                dx[n, c, 0] = (dy[n, c, 0] - mean_dy[c] - normal * mean_ndy[c]) * scale[c]
        else:
            for c in range(channels):
                m, i, s, a, b = mean[c], inverse[c], scale[c], mean_dy[c], mean_ndy[c]
                for p in range(pixels):
                    dx[n, c, p] = (dy[n, c, p] - a - (x[n, c, p] - m) * i * b) * s


def batch_norm(workspace: Workspace, x: Array, gain: Array, bias: Array, *, eps: float) -> tuple[Array, Saved]:
    """Same contract as `layers.batch_norm`."""
    if not _norm_fits(x, gain, bias) or x.size <= x.shape[1]:
        return layers.batch_norm(x, gain, bias, eps=eps)
    n, c, pixels = planes(x)
    mean, variance = np.empty(c, x.dtype), np.empty(c, x.dtype)
    _moments[x.dtype](share(workspace.threads, x.size, ELEMENT_GRAIN), ready(x).reshape(n, c * pixels), mean, variance)
    y, saved = batch_norm_eval(workspace, x, gain, bias, mean, variance, eps=eps)
    return y, saved._replace(statistics=(mean, variance, n * pixels))


def batch_norm_vjp(workspace: Workspace, saved: Saved, dy: Array) -> tuple[Array, Array, Array]:
    """Same contract as `layers.batch_norm_vjp`."""
    if not isinstance(saved.values, _Normalised):
        return layers.batch_norm_vjp(saved, dy)
    if not _cotangent_fits(saved.values, dy):
        return layers.batch_norm_vjp(_oracle_saved(saved.values), dy)
    x, mean, inverse, gain = saved.values
    dgain, dbias = _gain_bias(workspace, saved.values, dy)
    shape, dx, count = planes(x), np.empty(x.shape, x.dtype), x.dtype.type(max(x.size // max(x.shape[1], 1), 1))
    _batch_norm_vjp[x.dtype](
        share(workspace.threads, x.size, ELEMENT_GRAIN),
        ready(x).reshape(shape),
        mean,
        inverse,
        gain * inverse,
        ready(dy).reshape(shape),
        dgain / count,
        dbias / count,
        dx.reshape(shape),
    )
    return dx, dgain, dbias


def batch_norm_eval(
    workspace: Workspace, x: Array, gain: Array, bias: Array, mean: Array, variance: Array, *, eps: float
) -> tuple[Array, Saved]:
    """Same contract as `layers.batch_norm_eval`."""
    if not _norm_fits(x, gain, bias, mean, variance):
        return layers.batch_norm_eval(x, gain, bias, mean, variance, eps=eps)
    inverse = 1.0 / np.sqrt(variance + x.dtype.type(eps))
    shape, y = planes(x), np.empty(x.shape, x.dtype)
    mean, gain = ready(mean), ready(gain)
    _normalise[x.dtype](
        share(workspace.threads, x.size, ELEMENT_GRAIN),
        ready(x).reshape(shape),
        mean,
        inverse,
        gain,
        ready(bias),
        y.reshape(shape),
    )
    return y, Saved(_Normalised(x, mean, inverse, gain))


def batch_norm_eval_vjp(workspace: Workspace, saved: Saved, dy: Array) -> tuple[Array, Array, Array]:
    """Same contract as `layers.batch_norm_eval_vjp`."""
    if not isinstance(saved.values, _Normalised):
        return layers.batch_norm_eval_vjp(saved, dy)
    if not _cotangent_fits(saved.values, dy):
        return layers.batch_norm_eval_vjp(_oracle_saved(saved.values), dy)
    _, _, inverse, gain = saved.values
    dgain, dbias = _gain_bias(workspace, saved.values, dy)
    return scaled(workspace, dy, gain * inverse), dgain, dbias


def _norm_fits(x: Array, *vectors: Array) -> bool:
    return x.ndim >= 2 and all(v.shape == (x.shape[1],) for v in vectors) and same_float(x, *vectors)


def _cotangent_fits(values: _Normalised, dy: Array) -> bool:
    return dy.shape == values.x.shape and same_float(values.x, dy)


def _oracle_saved(values: _Normalised) -> Saved:
    """What the oracle's VJP expects, for a cotangent that the kernels do not take."""
    x, mean, inverse, gain = values
    column = (-1,) + (1,) * (x.ndim - 2)
    return Saved(((x - mean.reshape(column)) * inverse.reshape(column), inverse, gain))


def _gain_bias(workspace: Workspace, values: _Normalised, dy: Array) -> tuple[Array, Array]:
    x, mean, inverse, _ = values
    n, c, pixels = planes(x)
    dgain, dbias = np.empty(c, x.dtype), np.empty(c, x.dtype)
    flat, dflat = ready(x).reshape(n, c * pixels), ready(dy).reshape(n, c * pixels)
    parts = share(workspace.threads, x.size, ELEMENT_GRAIN)
    _gain_bias_vjp[x.dtype](parts, flat, mean, inverse, dflat, dgain, dbias)
    return dgain, dbias


# --------------------------------------------------------------------------------------------------------------------
# Cross-entropy


@kernel(lambda f: (reader(f, 2), reader(index, 1), writer(f, 2), writer(real64, 1)))
def _log_softmax(part: int, parts: int, logits: Array, labels: Array, out: Array, losses: Array) -> None:
    """out = log softmax(logits) and each row's loss; a NaN makes its row NaN."""
    for n in range(part * len(labels) // parts, (part + 1) * len(labels) // parts):
        top = logits[n, 0]
        for k in range(logits.shape[1]):
            v = logits[n, k]
            if v > top or v != v:
                top = v
        total = top * 0
        for k in range(logits.shape[1]):
            out[n, k] = logits[n, k] - top
            total += exp(out[n, k])
        log_sum = log(total)
        losses[n] = log_sum - out[n, labels[n]]
        for k in range(logits.shape[1]):
            out[n, k] -= log_sum


@kernel(lambda f: (reader(f, 2), reader(index, 1), f, writer(f, 2)))
def _cross_entropy_vjp(part: int, parts: int, log_softmax: Array, labels: Array, scale: float, d: Array) -> None:
    for n in range(part * len(labels) // parts, (part + 1) * len(labels) // parts):
        for k in range(d.shape[1]):
            p = exp(log_softmax[n, k])
            d[n, k] = (p - 1 if k == labels[n] else p) * scale


def cross_entropy(workspace: Workspace, logits: Array, labels: Array, *, reduction: str) -> tuple[Array, Saved]:
    """Same contract as `layers.cross_entropy`."""
    indices = np.asarray(labels)
    matching = logits.ndim == 2 and logits.size > 0 and indices.shape == logits.shape[:1] and indices.dtype.kind in "iu"
    if not (matching and same_float(logits) and indices.min() >= 0 and indices.max() < logits.shape[1]):
        return layers.cross_entropy(logits, labels, reduction=reduction)
    out, losses = np.empty(logits.shape, logits.dtype), np.empty(len(logits))
    parts = share(workspace.threads, logits.size, ELEMENT_GRAIN // 8)
    chosen = ready(indices.astype(np.intp, copy=False))
    _log_softmax[logits.dtype](parts, ready(logits), chosen, out, losses)
    loss = losses.mean() if reduction == "mean" else losses.sum()
    return np.asarray(loss, dtype=logits.dtype), Saved((out, chosen, reduction))


def cross_entropy_vjp(workspace: Workspace, saved: Saved, dy: Array) -> tuple[Array]:
    """Same contract as `layers.cross_entropy_vjp`."""
    log_softmax, labels, reduction = saved.values
    if not (log_softmax.size and np.ndim(dy) == 0 and same_float(log_softmax, np.asarray(dy))):
        return layers.cross_entropy_vjp(saved, dy)
    d = np.empty(log_softmax.shape, log_softmax.dtype)
    scale = dy / len(labels) if reduction == "mean" else dy
    parts = share(workspace.threads, d.size, ELEMENT_GRAIN // 8)
    chosen = ready(np.asarray(labels, dtype=np.intp))
    _cross_entropy_vjp[d.dtype](parts, ready(log_softmax), chosen, d.dtype.type(scale), d)
    return (d,)
