"""Correlation of images with weights: the forward convolution and its gradient with respect to the input.

y[n, o, p, q] = Σ_k w[o, k]·image[n, taps[k] + p·(row step) + q·(column step)], where `image` is the padded input and taps[k] is
where the operand of k = (channel, i, j) starts in it. The weights are read in place and broadcast; the image is the vector
operand. Output pixels are taken in *strips* as wide as an outer tile, in one of two ways (`plan` chooses the cheaper one):

* direct: strips read the padded image of one example in place. Either whole rows of the output make up strips, or the strips
  run over the padded image from its first to its last pixel and what falls into the padding is thrown away (stride 1 only).
* packed: the patches of a strip's pixels, whatever images they belong to, are copied to strip[k, pixel] first. For any stride;
  and for small images with many channels, where the copy is small beside the products.

The results pass through one epilogue: y·scale + shift, and ReLU, on the way out.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from ...arrays import Array, Pair
from ..machine.kernel import PRODUCT_GRAIN, fma, index, inner, kernel, reader, share, writer
from ..machine.tiles import ROWS, VECTORS, copy, finish, move2, move4, move8, move16, outer
from ..machine.vectors import HOST
from ..machine.workspace import Workspace

STRIPS = 8  # strips in a panel
DEPTH = 320  # about so many k at once, so that what a strip reads stays in the first-level cache, a panel in the second
PACK_COST = {16: 6, 8: 12, 4: 20, 2: 28, 1: 40}  # clock cycles for a strip and one k, by length of the pieces copied


class Window(NamedTuple):
    """A correlation's geometry, in pixels of the padded image.

    rows, columns: offsets of the taps; padded: size of the padded image; start: where the image lies in it; step: between
    output pixels; out: size of the output; target: size of the array that the output goes to, place: where its first pixel
    goes, spread: distance of its pixels there.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    padded: Pair
    start: Pair
    step: Pair
    out: Pair
    target: Pair
    place: Pair = (0, 0)
    spread: Pair = (1, 1)


# Places in `Plan.numbers`.
GROUPS = 0
HIGH, WIDE = 1, 2  # height and row length of the padded image
TOP, LEFT = 3, 4  # where the image starts in it
STEP_DOWN, STEP_ACROSS = 5, 6  # strides
OUT_HIGH, OUT_WIDE = 7, 8  # of the output
GEOMETRY = 9  # so many are the same for the weights' gradient
RUN = 9  # pixels that lie one behind the other in the target
FIRST = 10  # its first pixel there
ROW_DISTANCE, PIXEL_DISTANCE = 11, 12  # of the runs, and of the pixels of one
PITCH = 13  # positions from one run of the strips to the next
VECTOR_STEP = 14  # distance of a strip's vectors
PIECE = 15  # length of a piece in `pack`


class Plan(NamedTuple):
    """What the kernels read. numbers: one integer for each of the places GROUPS … PIECE."""

    direct: bool
    strips: int
    taps: Array
    bases: Array
    numbers: Array


def width(dtype: np.dtype[np.generic]) -> int:
    """Columns of an outer tile."""
    return HOST.vector_bytes // dtype.itemsize * VECTORS


def row_length(window: Window) -> int:
    """Numbers in a row of the padded image: every (column step)-th pixel lies together, so that each tap reads a run."""
    return -(-window.padded[1] // window.step[1]) * window.step[1]


def tap_offsets(channels: int, window: Window) -> Array:
    """Where the operand of each k = (channel, i, j) starts in the padded image."""
    wide, step = row_length(window), window.step[1]
    planes = np.arange(channels)[:, None, None] * (window.padded[0] * wide)
    columns = np.array([j % step * (wide // step) + j // step for j in window.columns], np.intp)
    offsets: Array = planes + np.array(window.rows, np.intp)[:, None] * wide + columns
    return offsets.ravel().astype(np.intp)


def piece_length(window: Window) -> int:
    """Length of the pieces in which `pack` copies a row of patches: all rows consist of whole pieces."""
    return next(p for p in (16, 8, 4, 2, 1) if window.out[1] % p == 0)


def geometry(groups: int, window: Window) -> list[int]:
    """What stands at the places GROUPS … OUT_WIDE."""
    return [groups, window.padded[0], row_length(window), *window.start, *window.step, *window.out]


@functools.lru_cache(maxsize=256)
def plan(channels: int, outputs: int, groups: int, window: Window, dtype: np.dtype[np.generic]) -> Plan:
    """The cheaper way for this shape: lanes thrown away (direct) against clock cycles spent on copying (packed)."""
    across, lanes = width(dtype), HOST.vector_bytes // dtype.itemsize
    wide, (ho, wo), down = row_length(window), window.out, window.step[0]
    pixels = ho * wo
    whole_rows = wo % across == 0 or (wo == lanes and VECTORS == 2 and ho % 2 == 0)
    positions = pixels if whole_rows else (ho - 1) * wide + wo
    strips = -(-positions // across)
    taps = tap_offsets(channels, window)
    piece = piece_length(window)
    waste = strips * across / pixels
    direct = (whole_rows or window.step == (1, 1)) and waste <= 1 + PACK_COST[piece] / max(outputs, 1)
    contiguous = window.spread == (1, 1) and window.target == window.out
    run = pixels if contiguous and (whole_rows or not direct) else wo
    pitch = run if whole_rows else wide
    vector_step = down * wide if whole_rows and wo == lanes else lanes
    starts = np.arange(strips) * across
    bases = starts // wo * down * wide + starts % wo if whole_rows else starts
    first = window.place[0] * window.target[1] + window.place[1]
    numbers = geometry(groups, window)
    numbers += [run, first, window.spread[0] * window.target[1], window.spread[1], pitch, vector_step, piece]
    return Plan(direct, strips, taps, bases.astype(np.intp), np.array(numbers, np.intp))


@inner
def read_rows(
    x: Array, n: int, c0: int, c1: int, first: int, last: int,
    image: Array, at: int, plane: int, wide: int, top: int, left: int, step: int,
) -> None:  # fmt: skip
    """Copies rows first … last−1 of channels c0 … c1−1 of image n into padded planes from `at` on, whose border is 0 already.

    Every step-th pixel lies together: pixel v is at (v mod step)·(wide/step) + v div step.
    """
    part = wide // step
    for c in range(c0, c1):
        for h in range(first, last):
            source = ((n * x.shape[1] + c) * x.shape[2] + h) * x.shape[3]
            start = at + (c - c0) * plane + (top + h) * wide
            if step == 1:
                copy(image, start + left, x, source, x.shape[3])
            else:
                row = x[n, c, h]
                for residue in range(step):
                    v0 = (residue - left) % step
                    to = start + residue * part + (v0 + left) // step
                    mine = image[to : to + (x.shape[3] - v0 + step - 1) // step]
                    for i in range(len(mine)):
                        mine[i] = row[v0 + i * step]


@inner
def _write(
    tile: Array, at: int, count: int, y: Array, n: int, o: int, start: int, step: int, scale: Array, shift: Array, floor: float
) -> None:
    """y[n, o, start + step·i] = max(floor, tile[at + i]·scale + shift)."""
    factor = scale[o] if scale.size else y.dtype.type(1)
    add = shift[o] if shift.size else y.dtype.type(0)
    if step == 1:
        finish(y, (n * y.shape[1] + o) * y.shape[2] + start, tile, at, count, factor, add, floor)
    else:
        row = y[n, o]
        for i in range(count):
            v = fma(tile[at + i], factor, add)
            row[start + step * i] = floor if v < floor else v


@kernel(
    lambda f: (
        *(reader(f, 4), reader(f, 2), reader(f, 1), reader(f, 1), f, writer(f, 3)),
        *(reader(index, 1), reader(index, 1), reader(index, 1), index, writer(f, 2)),
    )
)
def _direct(
    part: int, parts: int, x: Array, w: Array, scale: Array, shift: Array, floor: float, y: Array,
    taps: Array, bases: Array, numbers: Array, chunks: int, scratch: Array,
) -> None:  # fmt: skip
    groups, high, wide, top, left = numbers[GROUPS], numbers[HIGH], numbers[WIDE], numbers[TOP], numbers[LEFT]
    run, first, row, step = numbers[RUN], numbers[FIRST], numbers[ROW_DISTANCE], numbers[PIXEL_DISTANCE]
    pitch, vector_step, across_step = numbers[PITCH], numbers[VECTOR_STEP], numbers[STEP_ACROSS]
    rows = numbers[OUT_HIGH] * numbers[OUT_WIDE] // run
    inputs, outputs, depth, strips = x.shape[1] // groups, w.shape[0] // groups, w.shape[1], len(bases)
    across = HOST.vector_bytes // y.itemsize * VECTORS
    tiles = (outputs + ROWS - 1) // ROWS
    size = inputs * high * wide + 2 * across
    image, out = scratch[part, :size], scratch[part, size:]
    image[:] = 0
    tasks, seen = x.shape[0] * groups * chunks, -1
    for task in range(part * tasks // parts, (part + 1) * tasks // parts):
        n, g, chunk = task // chunks // groups, task // chunks % groups, task % chunks
        if task // chunks != seen:
            seen = task // chunks
            read_rows(x, n, g * inputs, (g + 1) * inputs, 0, x.shape[2], image, 0, high * wide, wide, top, left, across_step)
        s0, s1 = chunk * strips // chunks, (chunk + 1) * strips // chunks
        length = (s1 - s0) * across
        for k0 in range(0, max(depth, 1), DEPTH):
            steps = min(DEPTH, depth - k0)
            for s in range(s0, s1):
                for t in range(tiles):
                    o0, o1 = t * outputs // tiles, (t + 1) * outputs // tiles
                    start, to = (g * outputs + o0) * depth + k0, o0 * length + (s - s0) * across
                    outer(o1 - o0, w, start, depth, 1, image, bases[s], taps, k0, vector_step, steps, out, to, length, k0 == 0)
        low = s0 * across
        for o in range(outputs):
            for p in range(low // pitch, min(rows, (low + length - 1) // pitch + 1)):
                q0, q1 = max(0, low - p * pitch), min(run, low + length - p * pitch)
                at = o * length + p * pitch + q0 - low
                _write(out, at, q1 - q0, y, n, g * outputs + o, first + p * row + q0 * step, step, scale, shift, floor)


@inner
def mark_pieces(pixel0: int, count: int, numbers: Array, plane: int, piece: int, marks: Array) -> None:
    """marks[i] = where the i-th piece of these pixels starts among padded images that are `plane` numbers apart."""
    wide, sh, ho, wo = numbers[WIDE], numbers[STEP_DOWN], numbers[OUT_HIGH], numbers[OUT_WIDE]
    origin = pixel0 // (ho * wo)
    for i in range(len(marks)):
        pixel = pixel0 + min(i * piece, count - piece)  # beyond the last: it again, so that nothing outside is read
        n, rest = pixel // (ho * wo), pixel % (ho * wo)
        marks[i] = (n - origin) * plane + rest // wo * sh * wide + rest % wo


@inner
def read_panel(
    x: Array, pixel0: int, count: int, c0: int, c1: int, last_tap: int, plane: int, numbers: Array, image: Array
) -> None:
    """The padded images, `plane` numbers apart, that these pixels' patches read; `last_tap`: row offset of the last tap."""
    high, wide, top, left = numbers[HIGH], numbers[WIDE], numbers[TOP], numbers[LEFT]
    sh, sw, ho, wo = numbers[STEP_DOWN], numbers[STEP_ACROSS], numbers[OUT_HIGH], numbers[OUT_WIDE]
    pixels = ho * wo
    n0, n1 = pixel0 // pixels, (pixel0 + count - 1) // pixels
    for n in range(n0, n1 + 1):
        p0 = max(0, pixel0 - n * pixels) // wo
        p1 = min(pixels - 1, pixel0 + count - 1 - n * pixels) // wo
        first, last = max(0, p0 * sh - top), min(x.shape[2], p1 * sh - top + last_tap + 1)
        read_rows(x, n, c0, c1, first, last, image, (n - n0) * plane, high * wide, wide, top, left, sw)


@inner
def pack(image: Array, tap: int, marks: Array, first: int, pieces: int, piece: int, packed: Array, to: int) -> None:
    """Copies these pieces, seen from a tap, one behind the other."""
    if piece == 16:
        for i in range(pieces):
            move16(packed, to + i * 16, image, marks[first + i] + tap)
    elif piece == 8:
        for i in range(pieces):
            move8(packed, to + i * 8, image, marks[first + i] + tap)
    elif piece == 4:
        for i in range(pieces):
            move4(packed, to + i * 4, image, marks[first + i] + tap)
    elif piece == 2:
        for i in range(pieces):
            move2(packed, to + i * 2, image, marks[first + i] + tap)
    else:
        for i in range(pieces):
            packed[to + i] = image[marks[first + i] + tap]


@kernel(
    lambda f: (
        *(reader(f, 4), reader(f, 2), reader(f, 1), reader(f, 1), f, writer(f, 3)),
        *(reader(index, 1), reader(index, 1), reader(index, 1), index, index, writer(f, 2), writer(index, 2)),
    )
)
def _packed(
    part: int, parts: int, x: Array, w: Array, scale: Array, shift: Array, floor: float, y: Array,
    taps: Array, lines: Array, numbers: Array, at_once: int, pieces_of_output: int, scratch: Array, all_marks: Array,
) -> None:  # fmt: skip
    groups, high, wide, ho, wo = numbers[GROUPS], numbers[HIGH], numbers[WIDE], numbers[OUT_HIGH], numbers[OUT_WIDE]
    run, first, row, step, piece = numbers[RUN], numbers[FIRST], numbers[ROW_DISTANCE], numbers[PIXEL_DISTANCE], numbers[PIECE]
    inputs, outputs, depth = x.shape[1] // groups, w.shape[0] // groups, w.shape[1]
    area = depth // max(inputs, 1)
    lanes = HOST.vector_bytes // y.itemsize
    across, panel = lanes * VECTORS, lanes * VECTORS * STRIPS
    pixels, marks = ho * wo, all_marks[part, : panel // piece]
    panels = (x.shape[0] * pixels + panel - 1) // panel
    plane = at_once * high * wide
    patches = at_once * area * across
    share_of_output = (outputs + pieces_of_output - 1) // pieces_of_output
    strip = scratch[part, :patches]
    out = scratch[part, patches : patches + share_of_output * panel]
    image = scratch[part, patches + share_of_output * panel :]
    image[:] = 0
    for task in range(
        part * groups * panels * pieces_of_output // parts, (part + 1) * groups * panels * pieces_of_output // parts
    ):
        which, slice_of_output = task // pieces_of_output, task % pieces_of_output
        g, pixel0 = which // panels, which % panels * panel
        count = min(panel, x.shape[0] * pixels - pixel0)
        low, high_end = slice_of_output * outputs // pieces_of_output, (slice_of_output + 1) * outputs // pieces_of_output
        mine = high_end - low
        tiles = (mine + ROWS - 1) // ROWS
        used = (count + across - 1) // across
        mark_pieces(pixel0, count, numbers, plane, piece, marks)
        for c0 in range(0, max(inputs, 1), at_once):
            c1 = min(inputs, c0 + at_once)
            k0, steps = c0 * area, (c1 - c0) * area
            if steps > 0:
                last_tap = taps[area - 1] // wide
                read_panel(x, pixel0, count, g * inputs + c0, g * inputs + c1, last_tap, plane, numbers, image)
            for s in range(used):
                for k in range(steps):
                    pack(image, taps[k], marks, s * across // piece, across // piece, piece, strip, k * across)
                for t in range(tiles):
                    o0, o1 = t * mine // tiles, (t + 1) * mine // tiles
                    start, place = (g * outputs + low + o0) * depth + k0, o0 * panel + s * across
                    outer(o1 - o0, w, start, depth, 1, strip, 0, lines, 0, lanes, steps, out, place, panel, c0 == 0)
        for o in range(mine):
            at = 0
            while at < count:
                n, rest = (pixel0 + at) // pixels, (pixel0 + at) % pixels
                p, q = rest // run, rest % run
                length = min(run - q, count - at)
                to = first + p * row + q * step
                _write(out, o * panel + at, length, y, n, g * outputs + low + o, to, step, scale, shift, floor)
                at += length


@functools.lru_cache(maxsize=64)
def packed_lines(steps: int, across: int) -> Array:
    """Where each k starts in a strip."""
    return np.arange(steps, dtype=np.intp) * across


def correlate(
    workspace: Workspace, x: Array, w: Array, scale: Array, shift: Array, relu: bool, y: Array, groups: int, window: Window
) -> None:
    """Fills y (or its part, for a window with a spread); x, y N×C×H×W; w outputs×k; scale and shift per output or empty."""
    n, channels = x.shape[0], x.shape[1] // groups
    outputs, dtype = w.shape[0] // groups, y.dtype
    if not y.size:
        return
    chosen = plan(channels, outputs, groups, window, dtype)
    across, (ho, wo), high, wide = width(dtype), window.out, window.padded[0], row_length(window)
    parts = share(workspace.threads, n * ho * wo * w.size, PRODUCT_GRAIN)
    floor = dtype.type(0 if relu else -np.inf)
    flat = y.reshape(n, y.shape[1], -1)
    if chosen.direct:
        chunks = min(chosen.strips, max(1, -(-2 * parts // (n * groups)))) if parts > 1 else 1
        longest = -(-chosen.strips // chunks) * across
        scratch = workspace.empty((parts, channels * high * wide + 2 * across + outputs * longest), dtype)
        _direct[dtype](parts, x, w, scale, shift, floor, flat, chosen.taps, chosen.bases, chosen.numbers, chunks, scratch)
        return
    panel, area = across * STRIPS, len(window.rows) * len(window.columns)
    at_once = -(-channels // max(1, -(-channels * area // DEPTH))) or 1
    panels = -(-n * ho * wo // panel) * groups
    slices = min(max(1, outputs // ROWS), max(1, -(-2 * parts // panels))) if parts > 1 and panels < 4 * parts else 1
    images = min(n, (panel - 1) // (ho * wo) + 2)
    size = at_once * area * across + -(-outputs // slices) * panel + images * at_once * high * wide
    scratch, marks = workspace.empty((parts, size), dtype), workspace.empty((parts, panel), np.intp)
    lines = packed_lines(at_once * area, across)
    _packed[dtype](parts, x, w, scale, shift, floor, flat, chosen.taps, lines, chosen.numbers, at_once, slices, scratch, marks)
