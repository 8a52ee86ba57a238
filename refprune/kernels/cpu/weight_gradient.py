"""The gradient of a convolution with respect to its weights: dw[o, k] = Σ_(n, p, q) dy[n, o, p, q]·image[n, taps[k] + (p, q)].

Both operands are contiguous along the pixels, so this is the dot tile's work. As in `correlate`, whichever is cheaper:

* direct: the pixels run over the padded image; dy is spread to the same pitch, with zeros where the padding is (stride 1).
* packed: patches of PANEL pixels are copied to rows[k, pixel], one k behind the other; dy to columns[o, pixel].

Direct, the images are divided into a fixed number of shares, whose sums are added in a fixed order; packed, the channels are.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from ...arrays import Array
from ..machine.kernel import ELEMENT_GRAIN, PRODUCT_GRAIN, index, inner, kernel, reader, share, writer
from ..machine.tiles import DOT_COLUMNS, DOT_ROWS, dot
from ..machine.vectors import HOST
from ..machine.workspace import Workspace
from .correlate import (
    GEOMETRY,
    GROUPS,
    HIGH,
    LEFT,
    OUT_HIGH,
    OUT_WIDE,
    PACK_COST,
    TOP,
    WIDE,
    Window,
    geometry,
    mark_pieces,
    pack,
    piece_length,
    read_panel,
    read_rows,
    row_length,
    tap_offsets,
)
from .matmul import row_starts

TASKS = 16  # shares of the images at most
SUMS = 1 << 20  # numbers that all tasks' sums may take
PANEL = 512  # pixels packed at once
LONG = 1024  # direct: about so many pixels, of several images where they are small, are summed by one call of the tile
PATCHES = 1 << 17  # packed: numbers in a block of patches


# Places in `_Plan.numbers` behind the geometry.
PIECE = GEOMETRY  # length of a piece in `pack`
TAPS = GEOMETRY + 1  # number of taps


class _Plan(NamedTuple):
    """What the kernels read. numbers: those of `correlate.geometry`, and one for each of the places PIECE and TAPS."""

    direct: bool
    length: int
    taps: Array
    numbers: Array


@functools.lru_cache(maxsize=256)
def _plan(channels: int, outputs: int, groups: int, window: Window, lanes: int) -> _Plan:
    wide, (ho, wo) = row_length(window), window.out
    length, piece, taps = (ho - 1) * wide + wo, piece_length(window), tap_offsets(channels, window)
    waste = -(-length // lanes) * lanes / (ho * wo)
    direct = window.step == (1, 1) and waste <= 1 + PACK_COST[piece] / max(outputs, 1)
    numbers = np.array([*geometry(groups, window), piece, len(taps)], np.intp)
    return _Plan(direct, length, taps, numbers)


@inner
def _multiply(
    dy: Array, dy0: int, dy_at: Array, patches: Array, patches_at: Array, blocks: int, dy_block: int, block: int, length: int,
    outputs: int, steps: int, first: bool, tiles: Array,
) -> None:  # fmt: skip
    """tiles (+)= Σ dy[o]·patches[k] for all o < outputs and k < steps, one tile behind the other."""
    size, across = _tile_size(tiles.itemsize), (steps + DOT_COLUMNS - 1) // DOT_COLUMNS
    for o in range((outputs + DOT_ROWS - 1) // DOT_ROWS):
        for k in range(across):
            at = (o * across + k) * size
            i, j = o * DOT_ROWS, k * DOT_COLUMNS
            dot(dy, dy0, dy_at, i, patches, 0, patches_at, j, blocks, dy_block, block, length, tiles, at, first)


@inner
def _untile(tiles: Array, outputs: int, steps: int, sums: Array, first_output: int, first_tap: int) -> None:
    """sums[first_output + o, first_tap + k] = what `_multiply` left."""
    size, at = _tile_size(tiles.itemsize), 0
    for o0 in range(0, outputs, DOT_ROWS):
        for k0 in range(0, steps, DOT_COLUMNS):
            for o in range(o0, min(outputs, o0 + DOT_ROWS)):
                for k in range(k0, min(steps, k0 + DOT_COLUMNS)):
                    sums[first_output + o, first_tap + k] = tiles[at + (o - o0) * DOT_COLUMNS + k - k0]
            at += size


@inner
def _tile_size(itemsize: int) -> int:
    """Numbers that a dot tile leaves: its entries, filled up to whole vectors."""
    lanes = HOST.vector_bytes // itemsize
    return (DOT_ROWS * DOT_COLUMNS + lanes - 1) // lanes * lanes


@kernel(
    lambda f: (
        *(reader(f, 4), reader(f, 4), writer(f, 3), reader(index, 1), reader(index, 1), reader(index, 1)),
        *(index, index, index, writer(f, 2)),
    )
)
def _direct(
    part: int, parts: int, x: Array, dy: Array, tiles: Array, taps_at: Array, dy_at: Array, numbers: Array,
    length: int, at_once: int, dy_row: int, scratch: Array,
) -> None:  # fmt: skip
    """tiles[s, g] = dw of group g over the s-th share of the images, one tile behind the other.

    dy_row: numbers from one channel of the spread dy to the next.
    """
    groups, high, wide, top, left = numbers[GROUPS], numbers[HIGH], numbers[WIDE], numbers[TOP], numbers[LEFT]
    inputs, outputs, shares = x.shape[1] // groups, dy.shape[1] // groups, tiles.shape[0]
    steps = numbers[TAPS]
    plane, dy_plane = inputs * high * wide, outputs * dy_row
    spread, image = scratch[part, : at_once * dy_plane], scratch[part, at_once * dy_plane :]
    scratch[part] = 0
    for task in range(part * groups * shares // parts, (part + 1) * groups * shares // parts):
        g, s = task // shares, task % shares
        low, end = s * x.shape[0] // shares, (s + 1) * x.shape[0] // shares
        for n0 in range(low, end, at_once):
            count = min(at_once, end - n0)
            for n in range(count):
                c0, o0 = g * inputs, g * outputs
                read_rows(x, n0 + n, c0, c0 + inputs, 0, x.shape[2], image, n * plane, high * wide, wide, top, left, 1)
                read_rows(dy, n0 + n, o0, o0 + outputs, 0, dy.shape[2], spread, n * dy_plane, dy_row, wide, 0, 0, 1)
            _multiply(
                spread, 0, dy_at, image, taps_at, count, dy_plane, plane, length, outputs, steps, n0 == low, tiles[s, g]
            )  # fmt: skip


@kernel(lambda f: (reader(f, 2), writer(f, 2)))
def _gather_tiles(part: int, parts: int, tiles: Array, dw: Array) -> None:
    """dw from the tiles of each group."""
    outputs = len(dw) // len(tiles)
    for g in range(part * len(tiles) // parts, (part + 1) * len(tiles) // parts):
        _untile(tiles[g], outputs, dw.shape[1], dw, g * outputs, 0)


@kernel(lambda f: (reader(f, 3), writer(f, 2)))
def _columns(part: int, parts: int, dy: Array, columns: Array) -> None:
    """columns[o] = channel o of all images, one behind the other."""
    pixels = dy.shape[2]
    for o in range(part * len(columns) // parts, (part + 1) * len(columns) // parts):
        for n in range(dy.shape[0]):
            row, mine = dy[n, o], columns[o, n * pixels : (n + 1) * pixels]
            for p in range(pixels):
                mine[p] = row[p]


@kernel(
    lambda f: (
        *(reader(f, 4), reader(f, 2), writer(f, 2), reader(index, 1), reader(index, 1), reader(index, 1), reader(index, 1)),
        *(index, writer(f, 2), writer(f, 2), writer(index, 2)),
    )
)
def _packed(
    part: int, parts: int, x: Array, columns: Array, dw: Array, taps: Array, rows_at: Array, columns_at: Array, numbers: Array,
    at_once: int, scratch: Array, tiles: Array, all_marks: Array,
) -> None:  # fmt: skip
    groups, high, wide, piece = numbers[GROUPS], numbers[HIGH], numbers[WIDE], numbers[PIECE]
    ho, wo = numbers[OUT_HIGH], numbers[OUT_WIDE]
    inputs, outputs, steps = x.shape[1] // groups, len(columns) // groups, dw.shape[1]
    area, total, marks = steps // inputs, x.shape[0] * ho * wo, all_marks[part, : PANEL // piece]
    plane, blocks = at_once * high * wide, (inputs + at_once - 1) // at_once
    rows, image = scratch[part, : at_once * area * PANEL], scratch[part, at_once * area * PANEL :]
    image[:] = 0
    for task in range(part * groups * blocks // parts, (part + 1) * groups * blocks // parts):
        g, c0 = task // blocks, task % blocks * at_once
        c1 = min(inputs, c0 + at_once)
        for pixel0 in range(0, total, PANEL):
            count = min(PANEL, total - pixel0)
            mark_pieces(pixel0, count, numbers, plane, piece, marks)
            read_panel(x, pixel0, count, g * inputs + c0, g * inputs + c1, taps[area - 1] // wide, plane, numbers, image)
            for k in range((c1 - c0) * area):
                pack(image, taps[k], marks, 0, (count + piece - 1) // piece, piece, rows, k * PANEL)
            first = g * outputs * total + pixel0
            mine = (c1 - c0) * area
            _multiply(columns, first, columns_at, rows, rows_at, 1, 0, 0, count, outputs, mine, pixel0 == 0, tiles[part])
        _untile(tiles[part], outputs, (c1 - c0) * area, dw, g * outputs, c0 * area)


@kernel(lambda f: (reader(f, 3), writer(f, 1)))
def _channel_sums(part: int, parts: int, dy: Array, sums: Array) -> None:
    """sums[o] = Σ dy[:, o], carried in double precision, eight lanes at a time."""
    lanes = np.empty(8)
    for o in range(part * len(sums) // parts, (part + 1) * len(sums) // parts):
        lanes[:] = 0
        total = 0.0
        for n in range(dy.shape[0]):
            row = dy[n, o]
            for p in range(0, len(row) - 7, 8):
                for lane in range(8):
                    lanes[lane] += row[p + lane]
            for p in range(len(row) // 8 * 8, len(row)):
                total += row[p]
        for lane in range(8):
            total += lanes[lane]
        sums[o] = total


def channel_sums(workspace: Workspace, dy: Array) -> Array:
    """Σ over images and pixels of dy N×C×P."""
    sums = np.empty(dy.shape[1], dy.dtype)
    _channel_sums[dy.dtype](share(workspace.threads, dy.size, ELEMENT_GRAIN), dy, sums)
    return sums


def weight_gradient(workspace: Workspace, x: Array, dy: Array, groups: int, window: Window) -> Array:
    """dw outputs×k of the correlation `window`, for x N×C×H×W and dy N×outputs×Ho×Wo."""
    n, channels, outputs = x.shape[0], x.shape[1] // groups, dy.shape[1] // groups
    dtype, (ho, wo), high, wide = x.dtype, window.out, window.padded[0], row_length(window)
    lanes = HOST.vector_bytes // dtype.itemsize
    chosen = _plan(channels, outputs, groups, window, lanes)
    steps = len(chosen.taps)
    if not dy.size or not steps:
        return np.zeros((dy.shape[1], steps), dtype)
    parts = share(workspace.threads, dy.size * steps, PRODUCT_GRAIN)
    dw = workspace.empty((dy.shape[1], steps), dtype)
    tile = _tile_size(dtype.itemsize)
    rows = -(-outputs // DOT_ROWS)
    if chosen.direct:
        shares = max(1, min(n, TASKS // groups, SUMS // (dy.shape[1] * steps)))
        at_once = max(1, min(-(-n // shares), LONG // chosen.length))
        dy_row = -(-ho * wide // lanes) * lanes
        size = at_once * (channels * high * wide + outputs * dy_row)
        dy_at, taps_at = row_starts(outputs, dy_row, DOT_ROWS), _filled(chosen.taps)
        scratch = workspace.empty((parts, -(-size // lanes) * lanes), dtype)
        tiles = workspace.empty((shares, groups, rows * -(-steps // DOT_COLUMNS) * tile), dtype)
        _direct[dtype](parts, x, dy, tiles, taps_at, dy_at, chosen.numbers, chosen.length, at_once, dy_row, scratch)
        with np.errstate(all="ignore"):  # what a tile has beyond dw is any memory, inf and NaN too; nobody reads it
            total = np.add.reduce(tiles, axis=0) if shares > 1 else tiles[0]
        _gather_tiles[dtype](1, total, dw)
        return dw
    area = steps // channels
    at_once = max(1, min(PATCHES // (area * PANEL), -(-channels // 8)))
    columns = workspace.empty((dy.shape[1], n * ho * wo), dtype)
    _columns[dtype](share(workspace.threads, dy.size, ELEMENT_GRAIN), dy.reshape(n, dy.shape[1], ho * wo), columns)
    images = min(n, (PANEL - 1) // (ho * wo) + 2)
    scratch = workspace.empty((parts, at_once * (area * PANEL + images * high * wide)), dtype)
    tiles = workspace.empty((parts, rows * -(-at_once * area // DOT_COLUMNS) * tile), dtype)
    rows_at, columns_at = row_starts(at_once * area, PANEL, DOT_COLUMNS), row_starts(outputs, n * ho * wo, DOT_ROWS)
    marks = workspace.empty((parts, PANEL), np.intp)
    _packed[dtype](parts, x, columns, dw, chosen.taps, rows_at, columns_at, chosen.numbers, at_once, scratch, tiles, marks)
    return dw


def _filled(taps: Array) -> Array:
    """The last tap repeated to fill up the last tile."""
    return np.concatenate([taps, np.repeat(taps[-1:], -len(taps) % DOT_COLUMNS)])
