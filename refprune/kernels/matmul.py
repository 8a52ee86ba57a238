"""Matrix products and the dense layer. Same contract as `layers.dense`.

Every entry of a product is one chain of fused multiply-adds over the inner index, in ascending order, from 0; so it does
not depend on blocking or threads. The chain is cut into QUADs: packed rows hold 4×4 blocks of A (block, row, step), a
packed strip holds up to STRIP columns of B, and `multiply` adds four rows times the strip to a 4×STRIP tile.
"""

from __future__ import annotations

import numpy as np

from .. import layers
from ..layers import Array, Saved
from .compiled import ELEMENT_GRAIN, PRODUCT_GRAIN, flag, fma, inner, kernel, reader, ready, same_float, share, writer
from .workspace import Workspace

QUAD = 4  # rows of a tile, and steps of the inner index that are taken at once
STRIP = 256  # columns of a packed strip
DEPTH = 256  # steps of the inner index that are packed at once: a strip stays in the second-level cache
LANES = 8  # widths are rounded up to this


@inner
def multiply(rows: Array, start: int, strip: Array, tile: Array, quads: int, width: int) -> None:
    """tile[4, :width] += A B for the packed 4×(4·quads) block of A at rows[start:] and the packed strip of B."""
    for quad in range(quads):
        r = start + quad * 16
        a00, a01, a02, a03 = rows[r], rows[r + 1], rows[r + 2], rows[r + 3]
        a10, a11, a12, a13 = rows[r + 4], rows[r + 5], rows[r + 6], rows[r + 7]
        a20, a21, a22, a23 = rows[r + 8], rows[r + 9], rows[r + 10], rows[r + 11]
        a30, a31, a32, a33 = rows[r + 12], rows[r + 13], rows[r + 14], rows[r + 15]
        s = quad * QUAD * STRIP
        for j in range(width):
            b0, b1, b2, b3 = strip[s + j], strip[s + STRIP + j], strip[s + 2 * STRIP + j], strip[s + 3 * STRIP + j]
            tile[j] = fma(a03, b3, fma(a02, b2, fma(a01, b1, fma(a00, b0, tile[j]))))
            tile[STRIP + j] = fma(a13, b3, fma(a12, b2, fma(a11, b1, fma(a10, b0, tile[STRIP + j]))))
            tile[2 * STRIP + j] = fma(a23, b3, fma(a22, b2, fma(a21, b1, fma(a20, b0, tile[2 * STRIP + j]))))
            tile[3 * STRIP + j] = fma(a33, b3, fma(a32, b2, fma(a31, b1, fma(a30, b0, tile[3 * STRIP + j]))))


@inner
def padded(width: int) -> int:
    """The width that `multiply` is asked for; a strip's columns up to there must hold finite numbers."""
    return (width + LANES - 1) // LANES * LANES


@inner
def clear_beyond(strip: Array, depth: int, width: int) -> None:
    """Zeros in the rest of a strip that `multiply` will read: columns up to the lanes, steps up to the quad."""
    for k in range(depth):
        for j in range(width, padded(width)):
            strip[k * STRIP + j] = 0
    for k in range(depth, (depth + QUAD - 1) // QUAD * QUAD):
        for j in range(padded(width)):
            strip[k * STRIP + j] = 0


@inner
def pack_strip(b: Array, transposed: bool, k0: int, depth: int, j0: int, width: int, strip: Array) -> None:
    """Packs B[k0:k0+depth, j0:j0+width], where B is b or its transpose."""
    if transposed:
        for block in range(0, depth, 16):
            steps = min(16, depth - block)
            for j in range(width):
                for k in range(block, block + steps):
                    strip[k * STRIP + j] = b[j0 + j, k0 + k]
    else:
        for k in range(depth):
            row, packed = b[k0 + k, j0 : j0 + width], strip[k * STRIP : k * STRIP + width]
            for j in range(width):
                packed[j] = row[j]
    clear_beyond(strip, depth, width)


@inner
def pack_rows(a: Array, transposed: bool, i0: int, i1: int, k0: int, depth: int, rows: Array, start: int) -> None:
    """Packs A[i0:min(i0+4, i1), k0:k0+depth], where A is a or its transpose; zeros fill the missing rows and steps."""
    count = min(QUAD, i1 - i0)
    quads = (depth + QUAD - 1) // QUAD
    if count < QUAD or depth < quads * QUAD:
        for r in range(start, start + quads * 16):
            rows[r] = 0
    if transposed:
        for k in range(depth):
            r = start + (k // QUAD) * 16 + k % QUAD
            for i in range(count):
                rows[r + i * QUAD] = a[k0 + k, i0 + i]
    else:
        for i in range(count):
            for quad in range(depth // QUAD):
                r = start + quad * 16 + i * QUAD
                for k in range(QUAD):
                    rows[r + k] = a[i0 + i, k0 + quad * QUAD + k]
            for k in range(depth // QUAD * QUAD, depth):
                rows[start + (k // QUAD) * 16 + i * QUAD + k % QUAD] = a[i0 + i, k0 + k]


@inner
def product(a: Array, a_transposed: bool, b: Array, b_transposed: bool, bias: Array, c: Array, part: int, parts: int) -> None:
    """This part's share of c = A B + bias; bias has one entry per column of c, or none at all."""
    low, high, left, right = 0, c.shape[0], 0, c.shape[1]
    if right >= 64 * parts:  # share the columns, so that no strip is packed twice
        lanes = (right + LANES - 1) // LANES
        left, right = part * lanes // parts * LANES, min(right, (part + 1) * lanes // parts * LANES)
    else:
        quads = (high + QUAD - 1) // QUAD
        low, high = part * quads // parts * QUAD, min(high, (part + 1) * quads // parts * QUAD)
    depth = a.shape[0] if a_transposed else a.shape[1]
    most = (min(depth, DEPTH) + QUAD - 1) // QUAD * QUAD
    strip = np.empty(most * STRIP, c.dtype)
    rows = np.empty(most * QUAD, c.dtype)
    tile = np.empty(QUAD * STRIP, c.dtype)
    for j0 in range(left, right, STRIP):
        width = min(STRIP, right - j0)
        for k0 in range(0, max(depth, 1), DEPTH):
            steps = min(DEPTH, depth - k0)
            pack_strip(b, b_transposed, k0, steps, j0, width, strip)
            for i0 in range(low, high, QUAD):
                pack_rows(a, a_transposed, i0, high, k0, steps, rows, 0)
                load_tile(c, i0, high, j0, width, k0 == 0, tile)
                multiply(rows, 0, strip, tile, (steps + QUAD - 1) // QUAD, padded(width))
                store_tile(c, i0, high, j0, width, tile)
        if bias.size:
            for i in range(low, high):
                for j in range(j0, j0 + width):
                    c[i, j] += bias[j]


@inner
def load_tile(c: Array, i0: int, i1: int, j0: int, width: int, first: bool, tile: Array) -> None:
    """tile = 0 at the first block of steps, then what the blocks before left in c."""
    tile[:] = 0
    if not first:
        for i in range(min(QUAD, i1 - i0)):
            row, mine = c[i0 + i, j0 : j0 + width], tile[i * STRIP : i * STRIP + width]
            for j in range(width):
                mine[j] = row[j]


@inner
def store_tile(c: Array, i0: int, i1: int, j0: int, width: int, tile: Array) -> None:
    """The tile's rows that exist go to c."""
    for i in range(min(QUAD, i1 - i0)):
        row, mine = c[i0 + i, j0 : j0 + width], tile[i * STRIP : i * STRIP + width]
        for j in range(width):
            row[j] = mine[j]


@kernel(lambda f: (reader(f, 2), flag, reader(f, 2), flag, reader(f, 1), writer(f, 2)))
def _product(part: int, parts: int, a: Array, a_transposed: bool, b: Array, b_transposed: bool, bias: Array, c: Array) -> None:
    product(a, a_transposed, b, b_transposed, bias, c, part, parts)


@kernel(lambda f: (reader(f, 2), writer(f, 1)))
def _column_sums(part: int, parts: int, a: Array, sums: Array) -> None:
    left, right = part * len(sums) // parts, (part + 1) * len(sums) // parts
    sums[left:right] = 0
    mine = sums[left:right]
    for n in range(a.shape[0]):
        row = a[n, left:right]
        for j in range(len(mine)):
            mine[j] += row[j]


def dense(workspace: Workspace, x: Array, w: Array, b: Array | None = None) -> tuple[Array, Saved]:
    """Same contract as `layers.dense`."""
    matching = x.ndim == 2 and w.ndim == 2 and x.shape[1] == w.shape[1] and (b is None or b.shape == (w.shape[0],))
    if not (matching and same_float(x, w, b)):
        return layers.dense(x, w, b)
    y = np.empty((x.shape[0], w.shape[0]), x.dtype)
    parts = share(workspace.threads, y.size * x.shape[1], PRODUCT_GRAIN)
    bias = np.empty(0, x.dtype) if b is None else ready(b)
    _product[x.dtype](parts, ready(x), False, ready(w), True, bias, y)
    return y, Saved((x, w))


def dense_vjp(
    workspace: Workspace, saved: Saved, dy: Array, *, input_gradient: bool = True
) -> tuple[Array | None, Array, Array]:
    """Same contract as `layers.dense_vjp`."""
    x, w = saved.values
    if dy.shape != (x.shape[0], w.shape[0]) or x.ndim != 2 or not same_float(x, w, dy):
        return layers.dense_vjp(saved, dy, input_gradient=input_gradient)
    dtype, none = x.dtype, np.empty(0, x.dtype)
    x, w, dy = ready(x), ready(w), ready(dy)
    dx = np.empty(x.shape, dtype) if input_gradient else None
    dw, db = np.empty(w.shape, dtype), np.empty(w.shape[0], dtype)
    parts = share(workspace.threads, dy.size * x.shape[1], PRODUCT_GRAIN)
    if dx is not None:
        _product[dtype](parts, dy, False, w, False, none, dx)
    _product[dtype](parts, dy, True, x, False, none, dw)
    _column_sums[dtype](share(workspace.threads, dy.size, ELEMENT_GRAIN), dy, db)
    return dx, dw, db
