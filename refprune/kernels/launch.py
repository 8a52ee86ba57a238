"""The parts of a kernel on Numba's threads, or, where these cannot be had, one after the other. The bits are the same.

One launch at a time has the threads; whoever comes meanwhile from another Python thread works alone. So does a forked child
of a process in which Numba's threads were running: they do not live on in it, and some threading layers end it if it tries.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from typing import Any

import numba
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.ufunc import parallel

from . import jit

_turn = threading.Lock()
_orphan = False  # this process is a child without its parent's threads
_team = 1  # threads woken by a launch: as many as any launch needed so far, because a team that changes is made anew


def _after_fork() -> None:
    global _turn, _orphan
    _turn, _orphan = threading.Lock(), _orphan or parallel._is_initialized


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Launcher:
    """Launches of one compiled part, whose arguments after (part, parts) have these types."""

    def __init__(self, run: Any, kinds: tuple[Any, ...]) -> None:
        self._run, self._kinds = run, kinds
        self._launch: Any = None  # made when first needed: a small network never needs it
        self._pool: tuple[int, ...] = ()

    def __call__(self, parts: int, args: tuple[Any, ...]) -> bool:
        """Run all parts on Numba's threads; False, and nothing done, if these cannot be had now."""
        global _team
        if _orphan or not _turn.acquire(blocking=False):
            return False
        try:
            if self._launch is None:
                self._prepare()
            _team = max(_team, min(parts, vars(numba.config)["NUMBA_NUM_THREADS"]))
            if self._launch(self._pool, _team, parts, args):
                raise MemoryError("in a thread of a kernel")  # nothing else can go wrong in one
        finally:
            _turn.release()
        return True

    def _prepare(self) -> None:
        numba.get_num_threads()  # starts the threads
        addresses = [binding.address_of_symbol(name) for name in ("numba_parallel_for", "get_num_threads", "set_num_threads")]
        (part,) = self._run.overloads.values()
        self._pool = (*addresses, part.library.get_pointer_to_function(part.fndesc.llvm_func_name))
        self._launch = _launch_of(self._kinds)


def _spread(typing_context: Any, pool: Any, team: Any, parts: Any, arguments: Any) -> Any:
    """How many parts failed (0 or 1 for some), after all were run with these arguments.

    Numba's parallel_for takes a ufunc's inner loop: f(bases, counts, steps, data), to be run for the items base ….
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pool, team, parts, arguments = args
        word, address = context.get_value_type(types.intp), cgutils.voidptr_t
        parallel_for, get_threads, set_threads, part = cgutils.unpack_tuple(builder, pool)

        def variable(value: Any) -> Any:
            return cgutils.alloca_once_value(builder, value)

        def call(function: Any, result: Any, *values: Any) -> Any:
            kind = ir.FunctionType(result, [value.type for value in values])
            return builder.call(builder.inttoptr(function, kind.as_pointer()), values)

        failed = variable(word(0))
        data = variable(cgutils.make_anonymous_struct(builder, [part, parts, failed, arguments]))
        loop = _loop(context, builder.module, signature.args[3].types, data.type)
        pointers = (loop, variable(address(None)), variable(parts), variable(word(1)), data)
        before = call(get_threads, ir.IntType(32))
        call(
            *(parallel_for, ir.VoidType()),
            *[builder.bitcast(pointer, address) for pointer in pointers],
            *(word(0), word(1), team),
        )
        call(set_threads, ir.VoidType(), before)  # which parallel_for has changed for the calling thread
        return builder.load(failed)

    return types.intp(pool, team, parts, arguments), emit


def _loop(context: Any, module: Any, kinds: tuple[Any, ...], data: Any) -> Any:
    """The inner loop, as LLVM code: calls the part for each number from the address base on."""
    word, words = context.get_value_type(types.intp), context.get_value_type(types.intp).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t.as_pointer(), words, words, cgutils.voidptr_t])
    loop = ir.Function(module, kind, name="parts")
    loop.linkage = "internal"
    builder = ir.IRBuilder(loop.append_basic_block())
    bases, counts, _, pointer = loop.args
    address, parts, failed, arguments = cgutils.unpack_tuple(builder, builder.load(builder.bitcast(pointer, data)))
    first = builder.ptrtoint(builder.load(bases), word)
    kinds = (types.intp, types.intp, *kinds)
    part = builder.inttoptr(address, context.call_conv.get_function_type(types.none, kinds).as_pointer())
    values = cgutils.unpack_tuple(builder, arguments)
    with cgutils.for_range(builder, builder.load(counts)) as each:
        numbers = (builder.add(first, each.index), parts)
        status, _ = context.call_conv.call_function(builder, part, types.none, kinds, (*numbers, *values))
        with builder.if_then(status.is_error):
            builder.store_atomic(word(1), failed, "monotonic", word.width // 8)
    builder.ret_void()
    return loop


_spread_intrinsic: Callable[..., int] = intrinsic(_spread)


def _launch(pool: Any, team: int, parts: int, arguments: Any) -> int:
    return _spread_intrinsic(pool, team, parts, arguments)


@functools.cache
def _launch_of(kinds: tuple[Any, ...]) -> Any:
    return jit.build(_launch, (types.UniTuple(types.intp, 4), types.intp, types.intp, types.Tuple.from_types(kinds)))
