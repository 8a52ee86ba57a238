"""LLVM vector instructions for kernels: loads, stores, fused multiply-adds, sums of lanes; and what the registers hold."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils

from .kernel import FEATURES, HAS_FMA, native


class Host(NamedTuple):
    """Bytes of a vector register, and the shapes of the tiles (see `microkernel`) whose accumulators fit the registers."""

    vector_bytes: int
    rows: int
    vectors: int
    dot_rows: int
    dot_columns: int


def host() -> Host:
    """For the processor that Numba compiles for: this machine's, or what NUMBA_CPU_NAME and NUMBA_CPU_FEATURES say."""
    if "avx512f" in FEATURES:
        return Host(64, rows=12, vectors=2, dot_rows=8, dot_columns=3)
    if "avx2" in FEATURES:
        return Host(32, rows=6, vectors=2, dot_rows=4, dot_columns=3)
    if "neon" in FEATURES:
        return Host(16, rows=8, vectors=2, dot_rows=4, dot_columns=5)
    return Host(16, rows=4, vectors=2, dot_rows=3, dot_columns=3)


HOST = host()


class Emitter:
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

    def hidden(self, value: Any) -> Any:
        """The same integer, of which LLVM knows nothing: told that a step is 1, it loads pairs of numbers and takes them apart
        again, at half the speed."""
        return self.builder.asm(ir.FunctionType(value.type, [value.type]), "", "=r,0", [value], side_effect=False)

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

    def runs(self, count: Any, whole: Callable[[Any], None], part: Callable[[Any, Any], None]) -> None:
        """Emits whole(position) for every full vector of `count` numbers, part(position, mask) for what is left."""
        lanes = integer(self.lanes)
        end = self.builder.mul(self.builder.sdiv(count, lanes), lanes)
        with cgutils.for_range_slice(self.builder, integer(0), end, lanes) as (at, _):
            whole(at)
        rest = self.builder.sub(count, end)
        with self.builder.if_then(self.builder.icmp_signed(">", rest, integer(0))):
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


def integer(value: int) -> Any:
    return ir.Constant(ir.IntType(64), value)


class Operand:
    """An array that vector code reads or fills."""

    def __init__(self, emitter: Emitter, kind: Any, value: Any) -> None:
        self._builder = emitter.builder
        self._data = emitter.context.make_array(kind)(emitter.context, emitter.builder, value).data

    def at(self, *offsets: Any) -> Any:
        """Address of the number at Σ offsets, counted in the order of memory."""
        total = offsets[0]
        for offset in offsets[1:]:
            total = self._builder.add(total, offset)
        return self._builder.gep(self._data, [total])


def vector_code(stand_in: Callable[..., None]) -> Callable[[Callable[..., None]], Any]:
    """Decorator of `emit(emitter, *arguments)`: makes it a function that kernels call, returning nothing.

    Arrays arrive as Operands, numbers as LLVM values; the emitter works in the dtype of the first floating array.
    """

    def decorate(emit: Callable[..., None]) -> Any:
        def typing(typing_context: Any, *kinds: Any) -> Any:
            def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
                arrays = (kind for kind in kinds if isinstance(kind, types.Array))
                e = Emitter(context, builder, next(kind.dtype for kind in arrays if isinstance(kind.dtype, types.Float)))
                pairs = zip(kinds, args, strict=True)
                emit(e, *(Operand(e, kind, value) if isinstance(kind, types.Array) else value for kind, value in pairs))
                return context.get_dummy_value()

            return types.void(*kinds), code

        # Numba reads from the signature how many arguments the function takes, and `*kinds` does not tell.
        of_emit = inspect.signature(emit)
        names = ["typing_context", *list(of_emit.parameters)[1:]]
        positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
        vars(typing)["__signature__"] = inspect.Signature([inspect.Parameter(name, positional) for name in names])
        return native(stand_in)(typing)

    return decorate
