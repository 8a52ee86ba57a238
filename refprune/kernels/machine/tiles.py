"""The two inner loops of all products, written as LLVM vector code: the *outer* tile and the *dot* tile.

    outer: c[i, ·] = Σ_k a[i, k]·b[k, ·]                    dot: c[i, j] = Σ_l a[i, l]·b[j, l]

               VECTORS × LANES columns                               l runs along the lanes
             ┌────────┬────────┐ b[k, ·]                             b[0] b[1] … b[COLUMNS−1]
             │ vector │ vector │ two loads                            │    │         │   one load each
             └───┬────┴───┬────┘                                   ┌──┴────┴─────────┴──┐
    a[0,k] ──┬───┼────────┼───┐                            a[0] ───┤ one accumulator    │
    a[1,k] ──┤   │  fma   │   │ ROWS × VECTORS             a[1] ───┤ of LANES partial   │
      ⋮      │   │        │   │ accumulators stay           ⋮      │ sums per entry     │
    a[7,k] ──┴───┴────────┴───┘ in registers               a[3] ───┤ fma                │
     one broadcast each                                            └────────────────────┘  the lanes are added at the end

An outer tile broadcasts one number of a against vectors of b; a dot tile multiplies vectors by vectors and needs both operands
contiguous along the inner index. Where operand rows begin is read from tables of offsets, so that a convolution's taps can be
read in place from the padded image. Lanes, rows and columns are chosen from the host's features so that all accumulators fit
the registers. An entry is one chain of fused multiply-adds in ascending k (outer), or one such chain per lane, the lanes then
added pairwise (dot): the same bits however the work is divided.

With NUMBA_DISABLE_JIT=1 the same functions are plain loops.
"""

from __future__ import annotations

import itertools
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from ...arrays import Array
from .vectors import HOST, Emitter, Operand, integer, vector_code

ROWS, VECTORS = HOST.rows, HOST.vectors
DOT_ROWS, DOT_COLUMNS = HOST.dot_rows, HOST.dot_columns


def _lanes(array: Array) -> int:
    return HOST.vector_bytes // array.itemsize


# --------------------------------------------------------------------------------------------------------------------
# outer


def _plain_outer(
    rows: int, a: Array, a0: int, a_row: int, a_step: int, b: Array, b0: int, taps: Array, t0: int, b_vector: int,
    depth: int, c: Array, c0: int, c_row: int, first: bool,
) -> None:  # fmt: skip
    a, b, c, lanes = a.reshape(-1), b.reshape(-1), c.reshape(-1), _lanes(c)
    for i, j in itertools.product(range(rows), range(VECTORS)):
        sums = c[c0 + i * c_row + j * lanes :][:lanes]
        if first:
            sums[:] = 0
        for k in range(depth):
            sums += a[a0 + i * a_row + k * a_step] * b[b0 + taps[t0 + k] + j * b_vector :][:lanes]


@vector_code(_plain_outer)
def outer(
    e: Emitter, rows: Any, a: Operand, a0: Any, a_row: Any, a_step: Any, b: Operand, b0: Any, taps: Operand, t0: Any,
    b_vector: Any, depth: Any, c: Operand, c0: Any, c_row: Any, first: Any,
) -> None:  # fmt: skip
    """c[i, j] (+)= Σ_k a[i, k]·b[k, j] for i < rows ≤ ROWS and all columns of a tile; = if first.

    a[i, k] is number a0 + i·a_row + k·a_step of a; the vectors of b for one k start at b0 + taps[t0 + k] and lie b_vector
    apart; row i of c starts at c0 + i·c_row.
    """
    a_step = e.hidden(a_step)
    done = e.builder.append_basic_block("outer.done")
    switch = e.builder.switch(rows, done)
    for count in range(1, ROWS + 1):
        case = e.builder.append_basic_block(f"outer.{count}")
        switch.add_case(integer(count), case)
        e.builder.position_at_end(case)
        _outer_rows(e, count, a, a0, a_row, a_step, b, b0, taps, t0, b_vector, depth, c, c0, c_row, first)
        e.builder.branch(done)
    e.builder.position_at_end(done)


def _outer_rows(
    e: Emitter, rows: int, a: Operand, a0: Any, a_row: Any, a_step: Any, b: Operand, b0: Any, taps: Operand, t0: Any,
    b_vector: Any, depth: Any, c: Operand, c0: Any, c_row: Any, first: Any,
) -> None:  # fmt: skip
    """The tile with this many rows."""
    builder, sums = e.builder, e.accumulators(rows, VECTORS)
    out = {(i, j): c.at(c0, builder.mul(c_row, integer(i)), integer(j * e.lanes)) for i, j in sums}
    with builder.if_else(first) as (then, otherwise):
        with then:
            for variable in sums.values():
                builder.store(e.zero, variable)
        with otherwise:
            for place, variable in sums.items():
                builder.store(e.load(out[place]), variable)
    with cgutils.for_range(builder, depth) as loop:
        tap = builder.load(taps.at(t0, loop.index))
        vectors = [e.load(b.at(b0, tap, builder.mul(b_vector, integer(j)))) for j in range(VECTORS)]
        start = builder.add(a0, builder.mul(a_step, loop.index))
        for i in range(rows):
            number = e.spread(builder.load(a.at(start, builder.mul(a_row, integer(i)))))
            for j in range(VECTORS):
                e.fma(number, vectors[j], sums[i, j])
    for place, variable in sums.items():
        e.store(builder.load(variable), out[place])


# --------------------------------------------------------------------------------------------------------------------
# dot


def _plain_dot(
    a: Array, a0: int, a_at: Array, i0: int, b: Array, b0: int, b_at: Array, j0: int, blocks: int, a_block: int, b_block: int,
    length: int, c: Array, c0: int, first: bool,
) -> None:  # fmt: skip
    a, b, c = a.reshape(-1), b.reshape(-1), c.reshape(-1)
    for i, j in itertools.product(range(DOT_ROWS), range(DOT_COLUMNS)):
        place, total = c0 + i * DOT_COLUMNS + j, c.dtype.type(0)
        for block in range(blocks):
            x = a[a0 + a_at[i0 + i] + block * a_block :][:length]
            total += (x * b[b0 + b_at[j0 + j] + block * b_block :][:length]).sum()
        c[place] = total if first else c[place] + total


@vector_code(_plain_dot)
def dot(
    e: Emitter, a: Operand, a0: Any, a_at: Operand, i0: Any, b: Operand, b0: Any, b_at: Operand, j0: Any,
    blocks: Any, a_block: Any, b_block: Any, length: Any, c: Operand, c0: Any, first: Any,
) -> None:  # fmt: skip
    """c[i, j] (+)= Σ_l a[i, l]·b[j, l] for the whole tile, c its DOT_ROWS·DOT_COLUMNS entries from c0 on; = if first.

    Row i of a starts at a0 + a_at[i0 + i], row j of b at b0 + b_at[j0 + j]. l runs over `blocks` pieces of `length` numbers,
    a_block and b_block apart. The rest of c's last vector is overwritten.
    """
    builder, sums = e.builder, e.accumulators(DOT_ROWS, DOT_COLUMNS)
    for variable in sums.values():
        builder.store(e.zero, variable)
    rows = [a.at(a0, builder.load(a_at.at(i0, integer(i)))) for i in range(DOT_ROWS)]
    columns = [b.at(b0, builder.load(b_at.at(j0, integer(j)))) for j in range(DOT_COLUMNS)]
    with cgutils.for_range(builder, blocks) as block:
        shifts = builder.mul(block.index, a_block), builder.mul(block.index, b_block)

        def step(at: Any, load: Any) -> None:
            a_shift, b_shift = (builder.add(shift, at) for shift in shifts)
            vectors = [load(builder.gep(pointer, [b_shift])) for pointer in columns]
            for i, pointer in enumerate(rows):
                mine = load(builder.gep(pointer, [a_shift]))
                for j in range(DOT_COLUMNS):
                    e.fma(mine, vectors[j], sums[i, j])

        e.runs(length, lambda at: step(at, e.load), lambda at, mask: step(at, lambda address: e.load_masked(address, mask)))
    for n, total in enumerate(e.lane_sums([builder.load(variable) for variable in sums.values()])):
        address = c.at(c0, integer(n * e.lanes))
        old = builder.select(first, e.zero, e.load(address))
        e.store(builder.fadd(old, total), address)


# --------------------------------------------------------------------------------------------------------------------
# Copies, and the way out


def _plain_copy(to: Array, t0: int, source: Array, s0: int, count: int) -> None:
    to.reshape(-1)[t0 : t0 + count] = source.reshape(-1)[s0 : s0 + count]


@vector_code(_plain_copy)
def copy(e: Emitter, to: Operand, t0: Any, source: Operand, s0: Any, count: Any) -> None:
    """to[t0 + i] = source[s0 + i] for i < count."""
    into, out_of, builder = to.at(t0), source.at(s0), e.builder

    def part(at: Any, mask: Any) -> None:
        e.store_masked(e.load_masked(builder.gep(out_of, [at]), mask), builder.gep(into, [at]), mask)

    e.runs(count, lambda at: e.store(e.load(builder.gep(out_of, [at])), builder.gep(into, [at])), part)


def _mover(count: int) -> Any:
    """to[t0 + i] = source[s0 + i] for i < count, a power of two known here: one load and one store."""

    def plain(to: Array, t0: int, source: Array, s0: int) -> None:
        _plain_copy(to, t0, source, s0, count)

    @vector_code(plain)
    def move(e: Emitter, to: Operand, t0: Any, source: Operand, s0: Any) -> None:
        pointer = ir.VectorType(e.scalar, count).as_pointer()
        value = e.builder.load(e.builder.bitcast(source.at(s0), pointer))
        value.align = e.bytes
        e.builder.store(value, e.builder.bitcast(to.at(t0), pointer)).align = e.bytes

    return move


move16, move8, move4, move2 = _mover(16), _mover(8), _mover(4), _mover(2)


def _plain_finish(
    to: Array, t0: int, source: Array, s0: int, count: int, factor: float, add: float, floor: float
) -> None:  # fmt: skip
    values = source.reshape(-1)[s0 : s0 + count] * factor + add
    values[values < floor] = floor
    to.reshape(-1)[t0 : t0 + count] = values


@vector_code(_plain_finish)
def finish(
    e: Emitter, to: Operand, t0: Any, source: Operand, s0: Any, count: Any, factor: Any, add: Any, floor: Any
) -> None:  # fmt: skip
    """to[t0 + i] = max(floor, source[s0 + i]·factor + add) for i < count; NaN stays NaN."""
    into, out_of, builder = to.at(t0), source.at(s0), e.builder
    scale, shift, least = (e.spread(v) for v in (factor, add, floor))

    def result(value: Any) -> Any:
        y = e.fused(value, scale, shift)
        return builder.select(builder.fcmp_ordered("<", y, least), least, y)

    def part(at: Any, mask: Any) -> None:
        e.store_masked(result(e.load_masked(builder.gep(out_of, [at]), mask)), builder.gep(into, [at]), mask)

    e.runs(count, lambda at: e.store(result(e.load(builder.gep(out_of, [at]))), builder.gep(into, [at])), part)
