"""Convolution by products with packed patches. Same contract as `layers.conv2d`.

No patch matrix is ever written: per image and group, a strip of patches is packed straight from the padded image and
multiplied (see `matmul`). `taps[k]` is where the operand of k = (channel, i, j) starts in the padded image.

* forward: weights × patches, columns are output pixels.
* with respect to x: weightsᵀ × dy; the tile's rows are added to the padded image where the taps read them.
* with respect to w: dy × patches, columns are taps, summed over pixels and over a fixed number of chunks of images.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from .. import layers
from ..layers import Array, Padding, Pair, Saved
from .compiled import PRODUCT_GRAIN, index, inner, kernel, reader, ready, same_float, share, writer
from .matmul import DEPTH, QUAD, STRIP, clear_beyond, load_tile, multiply, pack_rows, pack_strip, padded, store_tile
from .workspace import Workspace

TASKS = 32  # into about so many independent sums the gradient of the weights is divided


class _Geometry(NamedTuple):
    """What the kernels read of a convolution's shape."""

    taps: Array  # one offset per (channel of a group, i, j)
    numbers: Array  # groups, height and width of the padded image, top, left, output height and width, stride
    out: Pair


@functools.lru_cache(maxsize=1024)
def _geometry(
    shape: tuple[int, ...], kernel: tuple[int, ...], stride: Pair, padding: Padding, dilation: Pair, groups: int
) -> _Geometry:
    (top, bottom), (left, right) = padding
    high, wide = shape[2] + top + bottom, shape[3] + left + right
    ho = (high - (kernel[2] - 1) * dilation[0] - 1) // stride[0] + 1
    wo = (wide - (kernel[3] - 1) * dilation[1] - 1) // stride[1] + 1
    c, i, j = np.indices(kernel[1:])
    taps = ((c * high + i * dilation[0]) * wide + j * dilation[1]).ravel().astype(np.intp)
    numbers = np.array([groups, high, wide, top, left, ho, wo, *stride], dtype=np.intp)
    return _Geometry(taps, numbers, (ho, wo))


@inner
def _read_image(x: Array, n: int, c0: int, channels: int, numbers: Array, image: Array) -> None:
    """Copies channels c0 … of image n into the padded one, whose border is 0 already."""
    high, wide, top, left = numbers[1], numbers[2], numbers[3], numbers[4]
    for c in range(channels):
        for h in range(x.shape[2]):
            start = (c * high + top + h) * wide + left
            for v in range(x.shape[3]):
                image[start + v] = x[n, c0 + c, h, v]


@inner
def _panels(numbers: Array) -> int:
    """The output pixels come in panels of at most STRIP: whole rows of the image, or pieces of one."""
    ho, wo = int(numbers[5]), int(numbers[6])
    if wo > STRIP:
        return ho * ((wo + STRIP - 1) // STRIP)
    rows = STRIP // wo
    return (ho + rows - 1) // rows


@inner
def _panel(panel: int, numbers: Array) -> tuple[int, int, int, int]:
    """First and last row, first and last column of a panel."""
    ho, wo = int(numbers[5]), int(numbers[6])
    if wo > STRIP:
        pieces = (wo + STRIP - 1) // STRIP
        p, q = panel // pieces, panel % pieces * STRIP
        return p, p + 1, q, min(wo, q + STRIP)
    rows = STRIP // wo
    return panel * rows, min(ho, (panel + 1) * rows), 0, wo


@inner
def _pack_pixels(
    image: Array, taps: Array, k0: int, steps: int, p0: int, p1: int, q0: int, q1: int, numbers: Array, strip: Array
) -> None:
    """strip[k, pixel] = what tap k0 + k reads for each output pixel of the panel."""
    wide, sh, sw = numbers[2], numbers[7], numbers[8]
    for k in range(steps):
        to = k * STRIP
        for p in range(p0, p1):
            start = taps[k0 + k] + p * sh * wide + q0 * sw
            if sw == 1:
                run, packed = image[start : start + q1 - q0], strip[to : to + q1 - q0]
                for q in range(q1 - q0):
                    packed[q] = run[q]
            else:
                for q in range(q1 - q0):
                    strip[to + q] = image[start + q * sw]
            to += q1 - q0
    clear_beyond(strip, steps, (p1 - p0) * (q1 - q0))


@kernel(lambda f: (reader(f, 4), reader(f, 2), reader(f, 1), writer(f, 3), reader(index, 1), reader(index, 1)))
def _forward(part: int, parts: int, x: Array, w: Array, b: Array, y: Array, taps: Array, numbers: Array) -> None:
    groups, depth, wo = numbers[0], w.shape[1], numbers[6]
    inputs, outputs, panels = x.shape[1] // groups, w.shape[0] // groups, _panels(numbers)
    quads, blocks = (depth + QUAD - 1) // QUAD, (outputs + QUAD - 1) // QUAD
    rows = np.empty(groups * blocks * quads * 16, y.dtype)
    for g in range(groups):
        for block in range(blocks):
            start = (g * blocks + block) * quads * 16
            pack_rows(w, False, g * outputs + block * QUAD, (g + 1) * outputs, 0, depth, rows, start)
    image = np.zeros(inputs * numbers[1] * numbers[2], y.dtype)
    strip, tile = np.empty(DEPTH * STRIP, y.dtype), np.empty(QUAD * STRIP, y.dtype)
    tasks, seen = x.shape[0] * groups * panels, -1
    for task in range(part * tasks // parts, (part + 1) * tasks // parts):
        n, g = task // panels // groups, task // panels % groups
        if task // panels != seen:
            seen = task // panels
            _read_image(x, n, g * inputs, inputs, numbers, image)
        p0, p1, q0, q1 = _panel(task % panels, numbers)
        first, width = p0 * wo + q0, (p1 - p0) * (q1 - q0)
        for k0 in range(0, max(depth, 1), DEPTH):
            steps = min(DEPTH, depth - k0)
            _pack_pixels(image, taps, k0, steps, p0, p1, q0, q1, numbers, strip)
            for block in range(blocks):
                start = ((g * blocks + block) * quads + k0 // QUAD) * 16
                o0, o1 = g * outputs + block * QUAD, (g + 1) * outputs
                load_tile(y[n], o0, o1, first, width, k0 == 0, tile)
                multiply(rows, start, strip, tile, (steps + QUAD - 1) // QUAD, padded(width))
                if b.size and k0 + DEPTH >= depth:
                    for i in range(min(QUAD, o1 - o0)):
                        bias = b[o0 + i]
                        for j in range(i * STRIP, i * STRIP + width):
                            tile[j] += bias
                store_tile(y[n], o0, o1, first, width, tile)


@inner
def _scatter(tile: Array, taps: Array, k0: int, p0: int, p1: int, q0: int, q1: int, numbers: Array, image: Array) -> None:
    """Adds the tile's rows, one per tap, to the pixels that the taps read."""
    wide, sh, sw = numbers[2], numbers[7], numbers[8]
    for i in range(min(QUAD, taps.shape[0] - k0)):
        at = i * STRIP
        for p in range(p0, p1):
            start = taps[k0 + i] + p * sh * wide + q0 * sw
            if sw == 1:
                run, mine = image[start : start + q1 - q0], tile[at : at + q1 - q0]
                for q in range(q1 - q0):
                    run[q] += mine[q]
            else:
                for q in range(q1 - q0):
                    image[start + q * sw] += tile[at + q]
            at += q1 - q0


@kernel(lambda f: (reader(f, 3), reader(f, 2), writer(f, 4), reader(index, 1), reader(index, 1)))
def _vjp_data(part: int, parts: int, dy: Array, w: Array, dx: Array, taps: Array, numbers: Array) -> None:
    groups, high, wide, top, left = numbers[0], numbers[1], numbers[2], numbers[3], numbers[4]
    inputs, outputs, panels = dx.shape[1] // groups, w.shape[0] // groups, _panels(numbers)
    depth, wo = taps.shape[0], numbers[6]
    quads, blocks = (outputs + QUAD - 1) // QUAD, (depth + QUAD - 1) // QUAD
    rows = np.empty(groups * blocks * quads * 16, dx.dtype)
    for g in range(groups):
        for block in range(blocks):
            start = (g * blocks + block) * quads * 16
            pack_rows(w[g * outputs : (g + 1) * outputs], True, block * QUAD, depth, 0, outputs, rows, start)
    image = np.empty(inputs * high * wide, dx.dtype)
    strip, tile = np.empty(DEPTH * STRIP, dx.dtype), np.empty(QUAD * STRIP, dx.dtype)
    tasks = dx.shape[0] * groups
    for task in range(part * tasks // parts, (part + 1) * tasks // parts):
        n, g = task // groups, task % groups
        image[:] = 0
        for panel in range(panels):
            p0, p1, q0, q1 = _panel(panel, numbers)
            first, width = p0 * wo + q0, (p1 - p0) * (q1 - q0)
            for k0 in range(0, outputs, DEPTH):
                steps = min(DEPTH, outputs - k0)
                pack_strip(dy[n], False, g * outputs + k0, steps, first, width, strip)
                for block in range(blocks):
                    start = ((g * blocks + block) * quads + k0 // QUAD) * 16
                    tile[:] = 0
                    multiply(rows, start, strip, tile, (steps + QUAD - 1) // QUAD, padded(width))
                    _scatter(tile, taps, block * QUAD, p0, p1, q0, q1, numbers, image)
        for c in range(inputs):
            for h in range(dx.shape[2]):
                start = (c * high + top + h) * wide + left
                for v in range(dx.shape[3]):
                    dx[n, g * inputs + c, h, v] = image[start + v]


@inner
def _pack_taps(image: Array, taps: Array, pixel0: int, pixel1: int, numbers: Array, strip: Array, row: int) -> None:
    """strip[row + pixel, k] = what each of the taps reads for an output pixel."""
    wide, wo, sh, sw = numbers[2], numbers[6], numbers[7], numbers[8]
    for pixel in range(pixel0, pixel1):
        start = pixel // wo * sh * wide + pixel % wo * sw
        to = (row + pixel - pixel0) * STRIP
        packed, run = strip[to : to + taps.shape[0]], image[start:]
        for k in range(taps.shape[0]):
            packed[k] = run[taps[k]]


@inner
def _pack_dy(dy: Array, n0: int, n1: int, o0: int, o1: int, pixel0: int, pixel1: int, rows: Array) -> None:
    """Packs four channels of dy; the steps are the pixels of these images, one image after the other."""
    rows[:] = 0
    for i in range(min(QUAD, o1 - o0)):
        k = 0
        for n in range(n0, n1):
            for pixel in range(pixel0, pixel1):
                rows[(k // QUAD) * 16 + i * QUAD + k % QUAD] = dy[n, o0 + i, pixel]
                k += 1


@kernel(lambda f: (reader(f, 4), reader(f, 3), writer(f, 3), writer(f, 1), reader(index, 1), reader(index, 1)))
def _vjp_weights(part: int, parts: int, x: Array, dy: Array, sums: Array, db: Array, taps: Array, numbers: Array) -> None:
    """sums[s] = the part of dw that comes from the s-th chunk of images."""
    groups, chunks, depth, pixels = numbers[0], sums.shape[0], taps.shape[0], dy.shape[2]
    inputs, outputs, plane = x.shape[1] // groups, dy.shape[1] // groups, numbers[1] * numbers[2]
    panels, area = (depth + STRIP - 1) // STRIP, depth // max(inputs, 1)
    image = np.zeros(inputs * plane, dy.dtype)
    strip, rows = np.empty(DEPTH * STRIP, dy.dtype), np.empty(DEPTH * QUAD, dy.dtype)
    tile = np.empty(QUAD * STRIP, dy.dtype)
    images, piece = max(1, DEPTH // pixels), min(pixels, DEPTH)
    tasks = groups * panels * chunks
    for task in range(part * tasks // parts, (part + 1) * tasks // parts):
        s, panel, g = task % chunks, task // chunks % panels, task // chunks // panels
        k0, k1 = panel * depth // panels, (panel + 1) * depth // panels
        c0, c1 = k0 // area, (k1 + area - 1) // area
        low, high = s * x.shape[0] // chunks, (s + 1) * x.shape[0] // chunks
        sums[s, g * outputs : (g + 1) * outputs, k0:k1] = 0
        for n0 in range(low, high, images):
            n1 = min(n0 + images, high)
            for pixel0 in range(0, pixels, piece):
                pixel1, steps = min(pixel0 + piece, pixels), 0
                for n in range(n0, n1):
                    _read_image(x, n, g * inputs + c0, c1 - c0, numbers, image[c0 * plane :])
                    _pack_taps(image, taps[k0:k1], pixel0, pixel1, numbers, strip, steps)
                    steps += pixel1 - pixel0
                clear_beyond(strip, steps, k1 - k0)
                for o0 in range(g * outputs, (g + 1) * outputs, QUAD):
                    o1 = min(o0 + QUAD, (g + 1) * outputs)
                    _pack_dy(dy, n0, n1, o0, o1, pixel0, pixel1, rows)
                    load_tile(sums[s], o0, o1, k0, k1 - k0, False, tile)
                    multiply(rows, 0, strip, tile, (steps + QUAD - 1) // QUAD, padded(k1 - k0))
                    store_tile(sums[s], o0, o1, k0, k1 - k0, tile)
    total = np.empty(pixels, np.float64)
    for o in range(part * len(db) // parts, (part + 1) * len(db) // parts):
        total[:] = 0
        for n in range(dy.shape[0]):
            for j in range(pixels):
                total[j] += dy[n, o, j]
        whole = 0.0
        for j in range(pixels):
            whole += total[j]
        db[o] = whole


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
    """Same contract as `layers.conv2d`."""
    matching = (
        x.ndim == 4
        and w.ndim == 4
        and x.shape[1] == w.shape[1] * groups
        and w.shape[0] % groups == 0
        and (b is None or b.shape == (w.shape[0],))
    )
    if not (matching and same_float(x, w, b)):
        return layers.conv2d(x, w, b, stride=stride, padding=padding, dilation=dilation, groups=groups)
    geometry = _geometry(x.shape, w.shape, stride, padding, dilation, groups)
    if min(geometry.out) < 1 or min(w.shape[2:]) < 1:
        return layers.conv2d(x, w, b, stride=stride, padding=padding, dilation=dilation, groups=groups)
    pixels = geometry.out[0] * geometry.out[1]
    y = np.empty((x.shape[0], w.shape[0], pixels), x.dtype)
    parts = share(workspace.threads, y.size * len(geometry.taps), PRODUCT_GRAIN)
    bias = np.empty(0, x.dtype) if b is None else ready(b)
    _forward[x.dtype](parts, ready(x), _flat(w, geometry), bias, y, geometry.taps, geometry.numbers)
    return y.reshape(*y.shape[:2], *geometry.out), Saved((x, w, stride, padding, dilation, groups))


def conv2d_vjp(
    workspace: Workspace, saved: Saved, dy: Array, *, input_gradient: bool = True
) -> tuple[Array | None, Array, Array]:
    """Same contract as `layers.conv2d_vjp`."""
    x, w, stride, padding, dilation, groups = saved.values
    if not (x.ndim == 4 and same_float(x, w, dy)):
        return layers.conv2d_vjp(saved, dy, input_gradient=input_gradient)
    geometry = _geometry(x.shape, w.shape, stride, padding, dilation, groups)
    if dy.shape != (x.shape[0], w.shape[0], *geometry.out):
        return layers.conv2d_vjp(saved, dy, input_gradient=input_gradient)
    taps, numbers, depth = geometry.taps, geometry.numbers, len(geometry.taps)
    parts = share(workspace.threads, dy.size * depth, PRODUCT_GRAIN)
    dy, x = ready(dy).reshape(*dy.shape[:2], geometry.out[0] * geometry.out[1]), ready(x)
    dx = np.empty(x.shape, x.dtype) if input_gradient else None
    if dx is not None:
        _vjp_data[x.dtype](parts, dy, _flat(w, geometry), dx, taps, numbers)
    panels = -(-depth // STRIP)
    chunks = max(1, min(x.shape[0], TASKS // max(1, groups * panels)))
    sums, db = np.empty((chunks, w.shape[0], depth), x.dtype), np.empty(w.shape[0], x.dtype)
    _vjp_weights[x.dtype](parts, x, dy, sums, db, taps, numbers)
    dw = sums[0] if chunks == 1 else np.add.reduce(sums, axis=0)
    return dx, dw.reshape(w.shape), db


def _flat(w: Array, geometry: _Geometry) -> Array:
    return ready(w).reshape(w.shape[0], len(geometry.taps))
