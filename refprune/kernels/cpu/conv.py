"""Convolution in its three directions, and fused with what follows it in eval mode. Same contracts as in `layers`.

The forward pass and the gradient with respect to x are both correlations (`correlate`): the latter of dy with the flipped
weights, one for each residue of the pixel's place modulo the stride. The gradient with respect to w is in `weights`.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from ...arrays import Array, Padding, Pair, Saved
from ...oracle import fused, layers
from ..machine.kernel import ELEMENT_GRAIN, index, kernel, reader, ready, same_float, share, writer
from ..machine.workspace import Workspace
from .correlate import Window, correlate
from .matmul import NOTHING
from .weight_gradient import channel_sums, weight_gradient


class _Phase(NamedTuple):
    """The pixels of x with one residue modulo the stride: which taps of the kernel reach them, and the correlation."""

    taps: Array
    window: Window


@functools.lru_cache(maxsize=256)
def _forward_window(size: Pair, kernel: Pair, stride: Pair, padding: Padding, dilation: Pair) -> Window:
    (top, bottom), (left, right) = padding
    high, wide = size[0] + top + bottom, size[1] + left + right
    ho = (high - (kernel[0] - 1) * dilation[0] - 1) // stride[0] + 1
    wo = (wide - (kernel[1] - 1) * dilation[1] - 1) // stride[1] + 1
    rows = tuple(i * dilation[0] for i in range(kernel[0]))
    columns = tuple(j * dilation[1] for j in range(kernel[1]))
    return Window(rows, columns, (high, wide), (top, left), stride, (ho, wo), (ho, wo))


class _Axis(NamedTuple):
    """One residue along one axis: kernel taps that reach it, where they read the padded dy, number of pixels."""

    taps: tuple[int, ...]
    offsets: tuple[int, ...]
    pixels: int


def _residues(size: int, out: int, kernel: int, stride: int, before: int, dilation: int) -> tuple[list[_Axis], int, int]:
    """x[s·t + r] gets dy[t + (r + before − i·dilation)/s] from every tap i for which that is whole; the padding of dy."""
    found = []
    for r in range(min(stride, size)):
        taps = [i for i in range(kernel) if (r + before - i * dilation) % stride == 0]
        shifts = [(r + before - i * dilation) // stride for i in taps]
        found.append((taps, shifts, (size - r + stride - 1) // stride))
    front = max([0, *(-min(shifts) for _, shifts, _ in found if shifts)])
    ends = [pixels + max(shifts) for _, shifts, pixels in found if shifts]
    axes = [_Axis(tuple(taps[::-1]), tuple(front + s for s in shifts[::-1]), pixels) for taps, shifts, pixels in found]
    return axes, front, front + max([out, *ends])


@functools.lru_cache(maxsize=256)
def _phases(size: Pair, kernel: Pair, stride: Pair, padding: Padding, dilation: Pair, out: Pair) -> tuple[_Phase, ...]:
    rows, top, high = _residues(size[0], out[0], kernel[0], stride[0], padding[0][0], dilation[0])
    columns, left, wide = _residues(size[1], out[1], kernel[1], stride[1], padding[1][0], dilation[1])
    phases = []
    for r, row in enumerate(rows):
        for q, column in enumerate(columns):
            taps = np.array([i * kernel[1] + j for i in row.taps for j in column.taps], np.intp)
            window = Window(
                row.offsets,
                column.offsets,
                (high, wide),
                (top, left),
                (1, 1),
                (row.pixels, column.pixels),
                size,
                (r, q),
                stride,
            )
            phases.append(_Phase(taps, window))
    return tuple(phases)


@kernel(lambda f: (reader(f, 4), reader(index, 1), writer(f, 4)))
def _flip(part: int, parts: int, w: Array, taps: Array, flipped: Array) -> None:
    """flipped[g, c, o, t] = w[g, o, c, taps[t]]."""
    groups, inputs, outputs = flipped.shape[0], flipped.shape[1], flipped.shape[2]
    for row in range(part * groups * inputs // parts, (part + 1) * groups * inputs // parts):
        g, c = row // inputs, row % inputs
        for o in range(outputs):
            for t in range(len(taps)):
                flipped[g, c, o, t] = w[g * outputs + o, c, 0, taps[t]]


def _regular(stride: Pair, padding: Padding, dilation: Pair) -> bool:
    """Whether these are what a layer spec allows, in tuples."""
    pairs = (stride, padding, dilation, *padding)
    regular = all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs)
    return regular and min(*stride, *dilation) >= 1 and min(*padding[0], *padding[1]) >= 0


def _fits(x: Array, w: Array, groups: int, *vectors: Array | None) -> bool:
    return (
        groups > 0
        and x.ndim == 4
        and w.ndim == 4
        and x.shape[1] == w.shape[1] * groups
        and w.shape[0] % groups == 0
        and min(w.shape[2:]) > 0
        and all(v is None or v.shape == w.shape[:1] for v in vectors)
        and same_float(x, w, *vectors)
    )


def conv2d(
    workspace: Workspace,
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    stride: Pair = (1, 1),
    padding: Padding = ((0, 0), (0, 0)),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> tuple[Array, Saved]:
    """Same contract as `oracle.layers.conv2d`."""
    if _fits(x, w, groups, b) and _regular(stride, padding, dilation):
        window = _forward_window(x.shape[2:], w.shape[2:], stride, padding, dilation)
        if min(window.out) > 0:
            y = _forward(workspace, x, w, None, b, False, groups, window)
            return y, Saved((x, w, stride, padding, dilation, groups))
    return layers.conv2d(x, w, b, stride=stride, padding=padding, dilation=dilation, groups=groups)


def conv2d_fused(
    workspace: Workspace,
    x: Array,
    w: Array,
    scale: Array | None,
    shift: Array | None,
    *,
    stride: Pair = (1, 1),
    padding: Padding = ((0, 0), (0, 0)),
    dilation: Pair = (1, 1),
    groups: int = 1,
    relu: bool,
) -> Array:
    """Same contract as `oracle.fused.conv2d_fused`."""
    if _fits(x, w, groups, scale, shift) and _regular(stride, padding, dilation):
        window = _forward_window(x.shape[2:], w.shape[2:], stride, padding, dilation)
        if min(window.out) > 0:
            return _forward(workspace, x, w, scale, shift, relu, groups, window)
    return fused.conv2d_fused(x, w, scale, shift, stride=stride, padding=padding, dilation=dilation, groups=groups, relu=relu)


def _forward(
    workspace: Workspace, x: Array, w: Array, scale: Array | None, shift: Array | None, relu: bool, groups: int, window: Window
) -> Array:
    y = workspace.empty((x.shape[0], w.shape[0], *window.out), x.dtype)
    none = NOTHING[x.dtype]
    flat = ready(w).reshape(w.shape[0], -1) if w.size else np.zeros((w.shape[0], 0), x.dtype)
    s, t = (none if v is None else ready(v) for v in (scale, shift))
    correlate(workspace, ready(x), flat, s, t, relu, y, groups, window)
    return y


def conv2d_vjp(
    workspace: Workspace, saved: Saved, dy: Array, *, input_gradient: bool = True
) -> tuple[Array | None, Array, Array]:
    """Same contract as `oracle.layers.conv2d_vjp`."""
    x, w, stride, padding, dilation, groups = saved.values
    fits = _fits(x, w, groups, None) and same_float(x, dy) and _regular(stride, padding, dilation)
    window = _forward_window(x.shape[2:], w.shape[2:], stride, padding, dilation) if fits else None
    if window is None or dy.shape != (x.shape[0], w.shape[0], *window.out):
        return layers.conv2d_vjp(saved, dy, input_gradient=input_gradient)
    x, w, dy = ready(x), ready(w), ready(dy)
    dx = _input_gradient(workspace, x.shape, w, dy, stride, padding, dilation, groups) if input_gradient else None
    dw = weight_gradient(workspace, x, dy, groups, window)
    db = channel_sums(workspace, dy.reshape(dy.shape[0], dy.shape[1], window.out[0] * window.out[1]))
    return dx, dw.reshape(w.shape), db


def _input_gradient(
    workspace: Workspace,
    shape: tuple[int, ...],
    w: Array,
    dy: Array,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> Array:
    dx = workspace.empty(shape, dy.dtype)
    none, inputs, outputs = NOTHING[dy.dtype], w.shape[1], w.shape[0] // groups
    flat = w.reshape(w.shape[0], inputs, 1, w.shape[2] * w.shape[3])
    parts = share(workspace.threads, w.size, ELEMENT_GRAIN)
    for taps, window in _phases(shape[2:], w.shape[2:], stride, padding, dilation, dy.shape[2:]):
        flipped = workspace.empty((groups, inputs, outputs, len(taps)), dy.dtype)
        _flip[dy.dtype](parts, flat, taps, flipped)
        turned = flipped.reshape(shape[1], outputs * len(taps))
        correlate(workspace, dy, turned, none, none, False, dx, groups, window)
    return dx
