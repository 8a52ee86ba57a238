"""How a kernel is compiled, spread over threads, and kept to the same bits whatever the number of threads.

A kernel is written as the work of one *part*: `f(part, parts, ...)`, a serial loop over its share of independent outputs.
`@kernel(signature)` makes of it a table dtype → `f(parts, ...)`, compiled on the first look-up and never cached on disk.

* With parts = 1 the function runs in the calling thread and wakes no other; else the parts are spread over Numba's threads.
  Nothing sets Numba's thread count: a backend with fewer threads merely makes fewer parts, so backends with different
  `threads` live side by side and nobody else's setting changes.
* Every number is computed by exactly one part, in an order that does not depend on `parts`. No flag allows LLVM to
  reassociate or to fuse; where a multiplication and an addition shall be one operation, the code says `fma`.
* Inputs are declared read-only and C-contiguous, so that a writable and a read-only array run the same machine code.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..layers import Array

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))

#: Work below which a part is not worth a thread: multiply-adds of a product, elements of anything else (about 20 µs).
PRODUCT_GRAIN, ELEMENT_GRAIN = 1 << 19, 1 << 15

HAS_FMA = platform.machine() not in ("x86_64", "AMD64") or bool(binding.get_host_cpu_features().get("fma"))


def _fma(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """a·b + c, rounded once (twice on a processor without the instruction)."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        get: Any = cgutils.get_or_insert_function
        if not HAS_FMA:
            return builder.fadd(builder.fmul(args[0], args[1]), args[2])
        kind = args[0].type
        name = f"llvm.fma.{'f32' if kind == ir.FloatType() else 'f64'}"
        return builder.call(get(builder.module, ir.FunctionType(kind, [kind] * 3), name), args)

    return a(a, b, c), emit


fma: Any = intrinsic(_fma)


def _call(typing_context: Any, address: Any, arguments: Any) -> Any:
    """Calls the compiled part at this address."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds = signature.args[1].types
        pointer = context.call_conv.get_function_type(types.none, kinds).as_pointer()
        values = [builder.extract_value(args[1], i) for i in range(len(kinds))]
        function = builder.inttoptr(args[0], pointer)
        context.call_conv.call_function(builder, function, types.none, kinds, values)
        return context.get_dummy_value()

    return types.void(address, arguments), emit


index, flag, int8, real64 = types.intp, types.boolean, types.int8, types.float64


def reader(item: Any, ndim: int) -> Any:
    """Type of an array that a kernel only reads."""
    return types.Array(item, ndim, "C", readonly=True)


def writer(item: Any, ndim: int) -> Any:
    """Type of an array that a kernel fills."""
    return types.Array(item, ndim, "C")


def inner(function: Callable[..., Any]) -> Any:
    """Compiles a function that kernels call."""
    return numba.njit(nogil=True, error_model="numpy")(function)


class Kernel(dict[Any, Callable[..., None]]):
    """dtype → compiled `f(parts, ...)`; see the module's docstring."""

    def __init__(self, part: Callable[..., None], signature: Callable[[Any], tuple[Any, ...]]) -> None:
        super().__init__()
        self.part, self.signature = part, signature

    def __missing__(self, dtype: Any) -> Callable[..., None]:
        kinds = self.signature(numba.from_dtype(dtype))
        run = numba.njit(types.void(index, index, *kinds), nogil=True, error_model="numpy")(self.part)
        launch: list[Any] = []  # compiled when first needed: a small network never needs it

        def f(parts: int, *args: Any) -> None:
            if parts == 1:
                run(0, 1, *args)
            else:
                if not launch:
                    launch.append(_launcher(run, kinds))
                launch[0](parts, *args)

        self[dtype] = f
        return f


def _launcher(run: Any, kinds: tuple[Any, ...]) -> Callable[..., None]:
    """f(parts, ...) that lets Numba's threads call the machine code of `run`, without compiling it once more."""
    (compiled,) = run.overloads.values()
    address = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
    names = "".join(f"a{i}, " for i in range(len(kinds)))
    source = f"def launch(address, parts, {names}):\n"
    source += f"    for part in prange(parts):\n        call(address, (part, parts, {names}))"
    scope: dict[str, Any] = {"call": intrinsic(_call), "prange": numba.prange}
    exec(source, scope)  # because Numba cannot hand *args to a parallel loop
    launch = numba.njit(types.void(index, index, *kinds), nogil=True, parallel=True)(scope["launch"])
    return functools.partial(launch, address)


def kernel(signature: Callable[[Any], tuple[Any, ...]]) -> Callable[[Callable[..., None]], Kernel]:
    """Decorator of a part; `signature` gives the types of its arguments after (part, parts) for a floating type."""
    return lambda part: Kernel(part, signature)


def share(threads: int, work: int, grain: int) -> int:
    """The number of parts for this much work."""
    return max(1, min(threads, work // grain))


def ready(x: Array) -> Array:
    """x itself, or a copy of it where a kernel could not read it in place."""
    if type(x) is np.ndarray and x.flags.c_contiguous and x.flags.aligned:
        return x
    return np.array(x, order="C")


def same_float(*arrays: Array | None) -> bool:
    """Whether all arrays (None aside) are of one floating type that the kernels are made for."""
    dtypes = [a.dtype for a in arrays if a is not None]
    return dtypes[0] in FLOATS and all(dtype == dtypes[0] for dtype in dtypes)
