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

Without LLVM (NUMBA_DISABLE_JIT) the same two functions are plain loops.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numba
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .compiled import HAS_FMA


class Host(NamedTuple):
    """What the tiles need to know of the processor: bytes of a vector register, and the shapes of the tiles."""

    vector_bytes: int
    rows: int
    columns: int
    dot_rows: int
    dot_columns: int


def host() -> Host:
    """From LLVM's features of the processor that Numba compiles for (NUMBA_CPU_NAME, NUMBA_CPU_FEATURES)."""
    config: Any = numba.config
    named, features = config.CPU_NAME, config.CPU_FEATURES
    if named is None or named == "host":
        found = {name for name, there in binding.get_host_cpu_features().items() if there}
    else:
        found = {"avx", "avx2"} if named in ("haswell", "broadwell", "znver2", "znver3") else set()
    found |= {f[1:] for f in (features or "").split(",") if f.startswith("+")}
    found -= {f[1:] for f in (features or "").split(",") if f.startswith("-")}
    if "avx512f" in found:
        return Host(64, rows=12, columns=2, dot_rows=4, dot_columns=6)
    if "avx2" in found:
        return Host(32, rows=6, columns=2, dot_rows=3, dot_columns=3)
    if "neon" in found:
        return Host(16, rows=8, columns=2, dot_rows=4, dot_columns=5)
    return Host(16, rows=4, columns=2, dot_rows=3, dot_columns=3)


HOST = host()
ROWS, VECTORS = HOST.rows, HOST.columns
DOT_ROWS, DOT_COLUMNS = HOST.dot_rows, HOST.dot_columns


class _Emitter:
    """LLVM instructions on vectors of one floating type."""

    def __init__(self, context: Any, builder: Any, item: Any) -> None:
        self.context, self.builder = context, builder
        self.scalar = context.get_value_type(item)
        self.bytes = item.bitwidth // 8
        self.lanes = HOST.vector_bytes // self.bytes
        self.vector = ir.VectorType(self.scalar, self.lanes)
        self.zero = ir.Constant(self.vector, [0.0] * self.lanes)
        self.suffix = f"v{self.lanes}f{item.bitwidth}"

    def declare(self, name: str, result: Any, arguments: list[Any]) -> Any:
        get: Any = cgutils.get_or_insert_function
        return get(self.builder.module, ir.FunctionType(result, arguments), name)

    def accumulators(self, rows: int, columns: int) -> dict[tuple[int, int], Any]:
        """Variables that LLVM keeps in registers."""
        return {
            place: cgutils.alloca_once(self.builder, self.vector) for place in itertools.product(range(rows), range(columns))
        }

    def load(self, address: Any) -> Any:
        value = self.builder.load(self.builder.bitcast(address, self.vector.as_pointer()))
        value.align = self.bytes
        return value

    def store(self, value: Any, address: Any) -> None:
        self.builder.store(value, self.builder.bitcast(address, self.vector.as_pointer())).align = self.bytes

    def first(self, count: Any) -> Any:
        """The mask of the first `count` lanes."""
        places = ir.Constant(ir.VectorType(ir.IntType(64), self.lanes), list(range(self.lanes)))
        return self.builder.icmp_signed("<", places, self.spread(count))

    def load_masked(self, address: Any, mask: Any) -> Any:
        """Zeros in the other lanes, whose memory is not touched."""
        pointer = self.vector.as_pointer()
        arguments = [pointer, ir.IntType(32), mask.type, self.vector]
        function = self.declare(f"llvm.masked.load.{self.suffix}.p0", self.vector, arguments)
        at = self.builder.bitcast(address, pointer)
        return self.builder.call(function, [at, ir.Constant(ir.IntType(32), self.bytes), mask, self.zero])

    def store_masked(self, value: Any, address: Any, mask: Any) -> None:
        pointer = self.vector.as_pointer()
        arguments = [self.vector, pointer, ir.IntType(32), mask.type]
        function = self.declare(f"llvm.masked.store.{self.suffix}.p0", ir.VoidType(), arguments)
        at = self.builder.bitcast(address, pointer)
        self.builder.call(function, [value, at, ir.Constant(ir.IntType(32), self.bytes), mask])

    def runs(self, count: Any, whole: Any, part: Any) -> None:
        """Emits whole(position) for every full vector of `count` numbers, part(position, mask) for what is left."""
        lanes = _integer(self.lanes)
        end = self.builder.mul(self.builder.sdiv(count, lanes), lanes)
        with cgutils.for_range_slice(self.builder, _integer(0), end, lanes) as (at, _):
            whole(at)
        rest = self.builder.sub(count, end)
        with self.builder.if_then(self.builder.icmp_signed(">", rest, _integer(0))):
            part(end, self.first(rest))

    def spread(self, value: Any) -> Any:
        """A vector with `value` in every lane."""
        kind = ir.VectorType(value.type, self.lanes)
        undefined, first = ir.Constant(kind, ir.Undefined), ir.Constant(ir.IntType(32), 0)
        one = self.builder.insert_element(undefined, value, first)
        places = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(one, undefined, places)

    def fused(self, a: Any, b: Any, c: Any) -> Any:
        """a·b + c, rounded once where the processor can."""
        if not HAS_FMA:
            return self.builder.fadd(c, self.builder.fmul(a, b))
        return self.builder.call(self.declare(f"llvm.fma.{self.suffix}", self.vector, [self.vector] * 3), [a, b, c])

    def fma(self, a: Any, b: Any, variable: Any) -> None:
        """variable += a·b."""
        self.builder.store(self.fused(a, b, self.builder.load(variable)), variable)

    def lane_sums(self, vectors: list[Any]) -> list[Any]:
        """The sums of the lanes of each vector, `lanes` sums to a vector; neighbours are added until one is left."""
        vectors = vectors + [self.zero] * (-len(vectors) % self.lanes)
        index = ir.VectorType(ir.IntType(32), self.lanes)
        even, odd = (ir.Constant(index, list(range(first, 2 * self.lanes, 2))) for first in (0, 1))
        shuffle = self.builder.shuffle_vector
        for _ in range(self.lanes.bit_length() - 1):
            pairs = zip(vectors[::2], vectors[1::2], strict=True)
            vectors = [self.builder.fadd(shuffle(left, right, even), shuffle(left, right, odd)) for left, right in pairs]
        return vectors


def _integer(value: int) -> Any:
    return ir.Constant(ir.IntType(64), value)


def _hidden(builder: Any, value: Any) -> Any:
    """The same integer, of which LLVM knows nothing: told that the step is 1, it loads pairs of numbers and takes them apart
    again, at half the speed."""
    kind = ir.FunctionType(value.type, [value.type])
    return builder.asm(kind, "", "=r,0", [value], side_effect=False)


def _address(context: Any, builder: Any, array: Any, value: Any, *offsets: Any) -> Any:
    """Where array[Σ offsets] lies."""
    data = context.make_array(array)(context, builder, value).data
    total = offsets[0]
    for offset in offsets[1:]:
        total = builder.add(total, offset)
    return builder.gep(data, [total])


def _outer(
    typing_context: Any, rows: Any, a: Any, a0: Any, a_row: Any, a_step: Any, b: Any, b0: Any, taps: Any, t0: Any,
    b_vector: Any, depth: Any, c: Any, c0: Any, c_row: Any, first: Any,
) -> Any:  # fmt: skip
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = dict(zip(NAMES, signature.args, strict=True))
        value = dict(zip(NAMES, args, strict=True))
        value["a_step"] = _hidden(builder, value["a_step"])
        e = _Emitter(context, builder, kind["c"].dtype)
        done = builder.append_basic_block("outer.done")
        switch = builder.switch(value["rows"], done)
        for count in range(1, ROWS + 1):
            case = builder.append_basic_block(f"outer.{count}")
            switch.add_case(_integer(count), case)
            builder.position_at_end(case)
            _outer_rows(e, count, kind, value)
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    NAMES = ("rows", "a", "a0", "a_row", "a_step", "b", "b0", "taps", "t0", "b_vector", "depth", "c", "c0", "c_row", "first")
    return types.void(rows, a, a0, a_row, a_step, b, b0, taps, t0, b_vector, depth, c, c0, c_row, first), emit


def _outer_rows(e: _Emitter, rows: int, kind: dict[str, Any], value: dict[str, Any]) -> None:
    """The tile with this many rows."""
    b, context = e.builder, e.context
    places = list(itertools.product(range(rows), range(VECTORS)))
    sums = e.accumulators(rows, VECTORS)

    def out(i: int, j: int) -> Any:
        start = b.add(value["c0"], b.mul(value["c_row"], _integer(i)))
        return _address(context, b, kind["c"], value["c"], start, _integer(j * e.lanes))

    with b.if_else(value["first"]) as (then, otherwise):
        with then:
            for place in places:
                b.store(e.zero, sums[place])
        with otherwise:
            for place in places:
                b.store(e.load(out(*place)), sums[place])
    with cgutils.for_range(b, value["depth"]) as loop:
        tap = b.load(_address(context, b, kind["taps"], value["taps"], value["t0"], loop.index))
        vectors = []
        for j in range(VECTORS):
            shift = b.mul(value["b_vector"], _integer(j))
            vectors.append(e.load(_address(context, b, kind["b"], value["b"], value["b0"], tap, shift)))
        start = b.add(value["a0"], b.mul(value["a_step"], loop.index))
        for i in range(rows):
            address = _address(context, b, kind["a"], value["a"], start, b.mul(value["a_row"], _integer(i)))
            number = e.spread(b.load(address))
            for j in range(VECTORS):
                e.fma(number, vectors[j], sums[i, j])
    for place in places:
        e.store(b.load(sums[place]), out(*place))


outer: Any = intrinsic(_outer)


def _dot(
    typing_context: Any, a: Any, a0: Any, a_at: Any, i0: Any, b: Any, b0: Any, b_at: Any, j0: Any,
    blocks: Any, a_block: Any, b_block: Any, length: Any, c: Any, c0: Any, first: Any,
) -> Any:  # fmt: skip
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = dict(zip(NAMES, signature.args, strict=True))
        value = dict(zip(NAMES, args, strict=True))
        e = _Emitter(context, builder, kind["c"].dtype)
        sums = e.accumulators(DOT_ROWS, DOT_COLUMNS)
        for variable in sums.values():
            builder.store(e.zero, variable)

        def starts(operand: str, first: str, count: int) -> list[Any]:
            """Where the operand's rows begin."""
            found = []
            for n in range(count):
                at = _address(context, builder, kind[f"{operand}_at"], value[f"{operand}_at"], value[first], _integer(n))
                found.append(_address(context, builder, kind[operand], value[operand], value[f"{operand}0"], builder.load(at)))
            return found

        rows, columns = starts("a", "i0", DOT_ROWS), starts("b", "j0", DOT_COLUMNS)

        def multiply(a_shift: Any, b_shift: Any, load: Any) -> None:
            vectors = [load(builder.gep(pointer, [b_shift])) for pointer in columns]
            for i, pointer in enumerate(rows):
                mine = load(builder.gep(pointer, [a_shift]))
                for j in range(DOT_COLUMNS):
                    e.fma(mine, vectors[j], sums[i, j])

        with cgutils.for_range(builder, value["blocks"]) as block:
            shifts = builder.mul(block.index, value["a_block"]), builder.mul(block.index, value["b_block"])

            def step(at: Any, load: Any) -> None:
                multiply(builder.add(shifts[0], at), builder.add(shifts[1], at), load)

            e.runs(
                value["length"],
                lambda at: step(at, e.load),
                lambda at, mask: step(at, lambda address: e.load_masked(address, mask)),
            )
        for n, total in enumerate(e.lane_sums([builder.load(sums[place]) for place in sums])):
            address = _address(context, builder, kind["c"], value["c"], value["c0"], _integer(n * e.lanes))
            old = builder.select(value["first"], e.zero, e.load(address))
            e.store(builder.fadd(old, total), address)
        return context.get_dummy_value()

    NAMES = ("a", "a0", "a_at", "i0", "b", "b0", "b_at", "j0", "blocks", "a_block", "b_block", "length", "c", "c0", "first")
    return types.void(a, a0, a_at, i0, b, b0, b_at, j0, blocks, a_block, b_block, length, c, c0, first), emit


dot: Any = intrinsic(_dot)


def _copy(typing_context: Any, to: Any, t0: Any, source: Any, s0: Any, count: Any) -> Any:
    """to[t0 + i] = source[s0 + i] for i < count."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = _Emitter(context, builder, to.dtype)
        into = _address(context, builder, signature.args[0], args[0], args[1])
        out_of = _address(context, builder, signature.args[2], args[2], args[3])

        def whole(at: Any) -> None:
            e.store(e.load(builder.gep(out_of, [at])), builder.gep(into, [at]))

        def part(at: Any, mask: Any) -> None:
            e.store_masked(e.load_masked(builder.gep(out_of, [at]), mask), builder.gep(into, [at]), mask)

        e.runs(args[4], whole, part)
        return context.get_dummy_value()

    return types.void(to, t0, source, s0, count), emit


copy: Any = intrinsic(_copy)


def _mover(count: int) -> Any:
    def move(typing_context: Any, to: Any, t0: Any, source: Any, s0: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pointer = ir.VectorType(context.get_value_type(to.dtype), count).as_pointer()
            value = builder.load(builder.bitcast(_address(context, builder, signature.args[2], args[2], args[3]), pointer))
            value.align = to.dtype.bitwidth // 8
            into = builder.bitcast(_address(context, builder, signature.args[0], args[0], args[1]), pointer)
            builder.store(value, into).align = to.dtype.bitwidth // 8
            return context.get_dummy_value()

        return types.void(to, t0, source, s0), emit

    return intrinsic(move)


#: to[t0 + i] = source[s0 + i] for i < 16, 8, 4, 2
move16, move8, move4, move2 = _mover(16), _mover(8), _mover(4), _mover(2)


def _finish(
    typing_context: Any, to: Any, t0: Any, source: Any, s0: Any, count: Any, factor: Any, add: Any, floor: Any
) -> Any:  # fmt: skip
    """to[t0 + i] = max(floor, source[s0 + i]·factor + add) for i < count; NaN stays NaN."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = _Emitter(context, builder, to.dtype)
        into = _address(context, builder, signature.args[0], args[0], args[1])
        out_of = _address(context, builder, signature.args[2], args[2], args[3])
        scale, shift, least = (e.spread(v) for v in args[5:8])

        def result(value: Any) -> Any:
            y = e.fused(value, scale, shift)
            return builder.select(builder.fcmp_ordered("<", y, least), least, y)

        def whole(at: Any) -> None:
            e.store(result(e.load(builder.gep(out_of, [at]))), builder.gep(into, [at]))

        def part(at: Any, mask: Any) -> None:
            e.store_masked(result(e.load_masked(builder.gep(out_of, [at]), mask)), builder.gep(into, [at]), mask)

        e.runs(args[4], whole, part)
        return context.get_dummy_value()

    return types.void(to, t0, source, s0, count, factor, add, floor), emit


finish: Any = intrinsic(_finish)
