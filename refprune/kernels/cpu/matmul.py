"""Matrix products and the dense layer. Same contracts as in `layers`.

* `product`: C = A B with any strides, by outer tiles. B is packed to strips[strip, k, column], zeros beyond its last column;
  A is read in place, or packed to rows[tile, k, row] where its numbers lie too far apart for that.
* `_dense`: x wᵀ by dot tiles, both operands in place: for long rows, or few examples.

An entry's order of summation depends on neither blocking nor threads: ascending k in one chain of fused multiply-adds
(outer), or by lanes (dot). It does depend on the number of examples, which chooses between the two.
"""

from __future__ import annotations

import functools

import numpy as np

from ...arrays import Array, Saved
from ...formulas.cka import numpy_product
from ...oracle import fused, layers
from ..machine.kernel import (
    ELEMENT_GRAIN,
    PRODUCT_GRAIN,
    flag,
    fma,
    index,
    inner,
    kernel,
    reader,
    ready,
    same_float,
    share,
    writer,
)
from ..machine.tiles import DOT_COLUMNS, DOT_ROWS, ROWS, VECTORS, copy, dot, outer
from ..machine.vectors import HOST
from ..machine.workspace import Workspace

DEPTH = 256  # steps of the inner index that are packed at once
BLOCK = 768  # columns of B, and rows of A, that are packed at once
FAR = 1 << 17  # A is packed if a block of it spans more numbers than this
LONG = 1024  # rows that are longer than this are multiplied by dot tiles, and so are products of few examples
FEW = 4


@inner
def _pack_strip(
    b: Array, row: int, step: int, k0: int, depth: int, j0: int, columns: int, across: int, strips: Array, to: int
) -> None:
    """strips[to:][k, j] = B(k0 + k, j0 + j), where B(k, j) is number k·row + j·step of b."""
    for k in range(depth):
        start, at = (k0 + k) * row + j0 * step, to + k * across
        mine = strips[at : at + across]
        if columns < across:
            mine[:] = 0
        if step == 1:
            copy(strips, at, b, start, columns)
        else:
            for j in range(columns):
                mine[j] = b[start + j * step]


@inner
def _pack_rows(a: Array, row: int, step: int, i0: int, count: int, k0: int, depth: int, rows: Array, to: int) -> None:
    """rows[to:][k, i] = A(i0 + i, k0 + k), ROWS numbers from one k to the next."""
    for k in range(depth):
        start, at = i0 * row + (k0 + k) * step, to + k * ROWS
        if row == 1:
            copy(rows, at, a, start, count)
        else:
            for i in range(count):
                rows[at + i] = a[start + i * row]


@kernel(
    lambda f: (
        *(reader(f, 1), index, index, index, reader(f, 1), index, index, index, index, flag, reader(index, 1)),
        *(writer(f, 2), writer(f, 2)),
    )
)
def _product(
    part: int, parts: int, a: Array, a_row: int, a_step: int, m: int, b: Array, b_row: int, b_step: int, n: int, depth: int,
    symmetric: bool, lines: Array, scratch: Array, c: Array,
) -> None:  # fmt: skip
    """C(i, j) = Σ_k a[i·a_row + k·a_step]·b[k·b_row + j·b_step]; if symmetric, only tiles that reach the diagonal or above."""
    lanes = HOST.vector_bytes // c.itemsize
    across = lanes * VECTORS
    far = a_step * min(depth, DEPTH) > FAR
    at_once = BLOCK // across
    strips = scratch[part, : at_once * DEPTH * across]
    rows = scratch[part, at_once * DEPTH * across : at_once * DEPTH * across + BLOCK * DEPTH]
    edge = scratch[part, at_once * DEPTH * across + BLOCK * DEPTH :]
    count = (n + across - 1) // across
    origin, stride = part * count // parts, 1
    mine = (part + 1) * count // parts - origin
    if symmetric:  # the strips to the right are longer
        origin, stride, mine = part, parts, (count - part + parts - 1) // parts
    for s0 in range(0, mine, at_once):
        s1 = min(mine, s0 + at_once)
        for k0 in range(0, max(depth, 1), DEPTH):
            steps = min(DEPTH, depth - k0)
            for s in range(s0, s1):
                j0 = (origin + s * stride) * across
                _pack_strip(b, b_row, b_step, k0, steps, j0, min(across, n - j0), across, strips, (s - s0) * DEPTH * across)
            for m0 in range(0, m, BLOCK):
                m1 = min(m, m0 + BLOCK)
                tiles = (m1 - m0 + ROWS - 1) // ROWS
                if far:
                    for t in range(tiles):
                        i0, i1 = m0 + t * (m1 - m0) // tiles, m0 + (t + 1) * (m1 - m0) // tiles
                        _pack_rows(a, a_row, a_step, i0, i1 - i0, k0, steps, rows, t * ROWS * DEPTH)
                for s in range(s0, s1):
                    j0, at = (origin + s * stride) * across, (s - s0) * DEPTH * across
                    columns = min(across, n - j0)
                    for t in range(tiles):
                        i0, i1 = m0 + t * (m1 - m0) // tiles, m0 + (t + 1) * (m1 - m0) // tiles
                        if symmetric and i0 >= j0 + across:
                            continue
                        if far:
                            x, x0, x_row, x_step = rows, t * ROWS * DEPTH, 1, ROWS
                        else:
                            x, x0, x_row, x_step = a, i0 * a_row + k0 * a_step, a_row, a_step
                        if columns == across:
                            outer(i1 - i0, x, x0, x_row, x_step, strips, at, lines, 0, lanes, steps, c, i0 * n + j0, n, k0 == 0)
                        else:
                            for i in range(i1 - i0):
                                copy(edge, i * across, c, (i0 + i) * n + j0, columns)
                            outer(i1 - i0, x, x0, x_row, x_step, strips, at, lines, 0, lanes, steps, edge, 0, across, k0 == 0)
                            for i in range(i1 - i0):
                                copy(c, (i0 + i) * n + j0, edge, i * across, columns)


@functools.lru_cache(maxsize=4)
def _lines(across: int) -> Array:
    return np.arange(DEPTH, dtype=np.intp) * across


def product(workspace: Workspace, a: Array, a_transposed: bool, b: Array, b_transposed: bool) -> Array:
    """A B, where A is a or its transpose and B is b or its transpose: 2-dimensional, one floating type."""
    symmetric = a is b and a_transposed != b_transposed
    a = ready(a)
    b = a if symmetric else ready(b)
    m, depth = a.shape[::-1] if a_transposed else a.shape
    n = b.shape[0] if b_transposed else b.shape[1]
    a_row, a_step = (1, m) if a_transposed else (depth, 1)
    b_row, b_step = (1, depth) if b_transposed else (n, 1)
    c = workspace.empty((m, n), a.dtype)
    if not c.size:
        return c
    across = HOST.vector_bytes // a.dtype.itemsize * VECTORS
    parts = min(share(workspace.threads, m * n * depth, PRODUCT_GRAIN), -(-n // across))
    scratch = workspace.empty((parts, (BLOCK // across) * DEPTH * across + BLOCK * DEPTH + ROWS * across), a.dtype)
    _product[a.dtype](
        parts, a.reshape(-1), a_row, a_step, m, b.reshape(-1), b_row, b_step, n, depth, symmetric, _lines(across), scratch, c
    )
    if symmetric:
        _mirror[a.dtype](1, c)
    return c


@kernel(lambda f: (writer(f, 2),))
def _mirror(part: int, parts: int, c: Array) -> None:
    """Copies what lies above the diagonal below it, block by block."""
    for i0 in range(0, len(c), 64):
        for j0 in range(0, i0 + 1, 64):
            for i in range(i0, min(len(c), i0 + 64)):
                for j in range(j0, min(i, j0 + 64)):
                    c[i, j] = c[j, i]


def cross_product(workspace: Workspace, a: Array, b: Array) -> Array:
    """Same contract as `formulas.cka.numpy_product`: aᵀ b; where a is b, half of the work."""
    if not (a.ndim == 2 and b.ndim == 2 and len(a) == len(b) and same_float(a, b)):
        return numpy_product(a, b)
    x = a.T if a.flags.f_contiguous else a
    y = x if b is a else (b.T if b.flags.f_contiguous else b)
    return product(workspace, x, x is a, y, y is not b if b is not a else x is not a)


@kernel(
    lambda f: (
        *(reader(f, 2), reader(f, 2), flag, reader(f, 1), reader(f, 1), f),
        *(reader(index, 1), reader(index, 1), writer(f, 2), writer(f, 2)),
    )
)
def _dense(
    part: int, parts: int, a: Array, b: Array, turned: bool, scale: Array, shift: Array, floor: float,
    a_at: Array, b_at: Array, tiles: Array, y: Array,
) -> None:  # fmt: skip
    """y = max(floor, (a bᵀ)·scale + shift), a examples and b weights; if turned, y = the same of b aᵀ, and a the weights."""
    tile, none, one = tiles[part], y.dtype.type(0), y.dtype.type(1)
    rows, columns = (len(a) + DOT_ROWS - 1) // DOT_ROWS, (len(b) + DOT_COLUMNS - 1) // DOT_COLUMNS
    left, right, low, high = 0, columns, 0, rows  # the weights are shared
    if turned:
        low, high = part * rows // parts, (part + 1) * rows // parts
    else:
        left, right = part * columns // parts, (part + 1) * columns // parts
    for row in range(low, high):
        for column in range(left, right):
            i0, j0 = row * DOT_ROWS, column * DOT_COLUMNS
            dot(a, 0, a_at, i0, b, 0, b_at, j0, 1, 0, 0, a.shape[1], tile, 0, True)
            for i in range(i0, min(len(a), i0 + DOT_ROWS)):
                for j in range(j0, min(len(b), j0 + DOT_COLUMNS)):
                    n, unit = (j, i) if turned else (i, j)
                    v = tile[(i - i0) * DOT_COLUMNS + j - j0]
                    v = fma(v, scale[unit] if scale.size else one, shift[unit] if shift.size else none)
                    y[n, unit] = floor if v < floor else v


@kernel(lambda f: (reader(f, 1), reader(f, 1), f, writer(f, 2)))
def _epilogue(part: int, parts: int, scale: Array, shift: Array, floor: float, y: Array) -> None:
    """y = max(floor, y·scale + shift), by columns."""
    none, one = y.dtype.type(0), y.dtype.type(1)
    for i in range(part * len(y) // parts, (part + 1) * len(y) // parts):
        row = y[i]
        for j in range(len(row)):
            v = fma(row[j], scale[j] if scale.size else one, shift[j] if shift.size else none)
            row[j] = floor if v < floor else v


@functools.lru_cache(maxsize=1024)
def row_starts(rows: int, distance: int, tile: int) -> Array:
    """Where each row starts, the last one repeated to fill up the last tile."""
    return np.minimum(np.arange(-(-rows // tile) * tile, dtype=np.intp), rows - 1) * distance


NOTHING = {np.dtype(kind): np.empty(0, kind) for kind in ("float32", "float64")}


@kernel(lambda f: (reader(f, 2), writer(f, 1)))
def _column_sums(part: int, parts: int, a: Array, sums: Array) -> None:
    left, right = part * len(sums) // parts, (part + 1) * len(sums) // parts
    sums[left:right] = 0
    mine = sums[left:right]
    for n in range(a.shape[0]):
        row = a[n, left:right]
        for j in range(len(mine)):
            mine[j] += row[j]


def _fits(x: Array, w: Array, *vectors: Array | None) -> bool:
    matching = x.ndim == 2 and w.ndim == 2 and x.shape[1] == w.shape[1]
    return matching and all(v is None or v.shape == w.shape[:1] for v in vectors) and same_float(x, w, *vectors)


def dense_fused(workspace: Workspace, x: Array, w: Array, scale: Array | None, shift: Array | None, *, relu: bool) -> Array:
    """Same contract as `oracle.fused.dense_fused`."""
    if not _fits(x, w, scale, shift):
        return fused.dense_fused(x, w, scale, shift, relu=relu)
    dtype, none = x.dtype, NOTHING[x.dtype]
    s, t = (none if v is None else ready(v) for v in (scale, shift))
    floor = dtype.type(0 if relu else -np.inf)
    if len(x) > FEW and x.shape[1] <= LONG:
        y = product(workspace, x, False, w, True)
        if s.size or t.size or relu:
            _epilogue[dtype](share(workspace.threads, y.size, ELEMENT_GRAIN), s, t, floor, y)
        return y
    y = workspace.empty((x.shape[0], w.shape[0]), dtype)
    if not y.size:
        return y
    parts = share(workspace.threads, y.size * x.shape[1], PRODUCT_GRAIN)
    lanes = HOST.vector_bytes // dtype.itemsize
    tiles = np.empty((parts, DOT_ROWS * DOT_COLUMNS + lanes), dtype)
    turned = len(x) < DOT_ROWS  # the longer side of the tile is for the weights
    first, second = (ready(w), ready(x)) if turned else (ready(x), ready(w))
    first_at, second_at = row_starts(len(first), x.shape[1], DOT_ROWS), row_starts(len(second), x.shape[1], DOT_COLUMNS)
    _dense[dtype](parts, first, second, turned, s, t, floor, first_at, second_at, tiles, y)
    return y


def dense(workspace: Workspace, x: Array, w: Array, b: Array | None = None) -> tuple[Array, Saved]:
    """Same contract as `oracle.layers.dense`."""
    if not _fits(x, w, b):
        return layers.dense(x, w, b)
    return dense_fused(workspace, x, w, None, b, relu=False), Saved((x, w))


def dense_vjp(
    workspace: Workspace, saved: Saved, dy: Array, *, input_gradient: bool = True
) -> tuple[Array | None, Array, Array]:
    """Same contract as `oracle.layers.dense_vjp`."""
    x, w = saved.values
    if dy.shape != (x.shape[0], w.shape[0]) or x.ndim != 2 or not same_float(x, w, dy):
        return layers.dense_vjp(saved, dy, input_gradient=input_gradient)
    dy, db = ready(dy), np.empty(w.shape[0], x.dtype)
    dx = product(workspace, dy, False, w, False) if input_gradient else None
    dw = product(workspace, dy, True, x, False)
    _column_sums[x.dtype](share(workspace.threads, dy.size, ELEMENT_GRAIN), dy, db)
    return dx, dw, db
