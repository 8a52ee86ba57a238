"""How a kernel is compiled, spread over threads, and kept to the same bits whatever the number of threads.

A kernel is written as the work of one *part*: `f(part, parts, ...)`, a serial loop over its share of independent outputs.
`@kernel(signature)` makes of it a table dtype → `f(parts, ...)`, compiled, or loaded from disk, on the first look-up.

* With parts = 1 the function runs in the calling thread and wakes no other; else `launch` spreads the parts. A backend with
  fewer threads merely makes fewer parts, so backends with different `threads` live side by side.
* Every number is computed by exactly one part, in an order that does not depend on `parts`. No flag allows LLVM to
  reassociate or to fuse; where a multiplication and an addition shall be one operation, the code says `fma`.
* Inputs are declared read-only and C-contiguous, so that a writable and a read-only array run the same machine code.
* With NUMBA_DISABLE_JIT=1 everything is plain Python on NumPy's scalars: slow, and open to a debugger.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.numpy_support import as_dtype

from ...arrays import Array
from . import jit, numba_internals
from .threads import Launcher

PLAIN = bool(vars(numba.config)["DISABLE_JIT"])  # nothing is compiled
FLOATS = (np.dtype(np.float32), np.dtype(np.float64))

#: Work below which a part is not worth a thread, which takes 20 to 60 µs to wake: multiply-adds of a product, elements of
#: anything else.
PRODUCT_GRAIN, ELEMENT_GRAIN = 1 << 18, 1 << 15


#: Features of the processor that Numba compiles for, as LLVM names them.
FEATURES = frozenset(f[1:] for f in numba_internals.target()[2].split(",") if f.startswith("+"))
HAS_FMA = platform.machine() not in ("x86_64", "AMD64") or "fma" in FEATURES


def native(stand_in: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Decorator of an intrinsic's typing function; `stand_in` computes the same where nothing is compiled."""
    return lambda typing: stand_in if PLAIN else intrinsic(typing)


def fma_in_python(a: Any, b: Any, c: Any) -> Any:
    dtype, plain = type(a), a * b + c
    if not np.isfinite([a, b, c]).all():
        return plain
    exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    if not exact:
        return plain  # with its sign
    try:
        near = np.float64(float(exact))
    except OverflowError:
        return dtype(np.inf if exact > 0 else -np.inf)
    error = exact - Fraction(float(near))
    if dtype is np.float32 and error and not near.view(np.int64) & 1:
        near = np.nextafter(near, np.inf if error > 0 else -np.inf)  # to odd: only the rounding that follows shows
    return dtype(near)


@native(fma_in_python)
def fma(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """a·b + c, rounded once (twice on a processor without the instruction)."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if not HAS_FMA:
            return builder.fadd(builder.fmul(args[0], args[1]), args[2])
        kind = args[0].type
        name = f"llvm.fma.{'f32' if kind == ir.FloatType() else 'f64'}"
        return builder.call(cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), name), args)

    return a(a, b, c), emit


index, flag, int8, real64 = types.intp, types.boolean, types.int8, types.float64


def reader(item: Any, ndim: int) -> Any:
    """Type of an array that a kernel only reads."""
    return types.Array(item, ndim, "C", readonly=True)


def writer(item: Any, ndim: int) -> Any:
    """Type of an array that a kernel fills."""
    return types.Array(item, ndim, "C")


def inner(function: Callable[..., Any]) -> Any:
    """Compiles a function that kernels call."""
    return numba.njit(nogil=True, error_model="numpy")(jit.distinct(function))


class Kernel(dict[Any, Callable[..., None]]):
    """dtype → compiled `f(parts, ...)`; see the module's docstring."""

    def __init__(self, part: Callable[..., None], signature: Callable[[Any], tuple[Any, ...]]) -> None:
        super().__init__()
        self.part, self.signature = jit.distinct(part), signature

    def __missing__(self, dtype: Any) -> Callable[..., None]:
        kinds = self.signature(numba.from_dtype(dtype))
        with jit.compiling:
            if dtype not in self:  # unless another Python thread was faster
                self[dtype] = _plain(self.part, kinds) if PLAIN else _compiled(self.part, kinds)
        return self[dtype]


def _compiled(part: Callable[..., None], kinds: tuple[Any, ...]) -> Callable[..., None]:
    run = jit.build(part, (index, index, *kinds))
    launch = None if numba_internals.missing() else Launcher(run, kinds)

    def f(parts: int, *args: Any) -> None:
        if parts == 1:
            run(0, 1, *args)
        elif launch is None or not launch(parts, args):
            for i in range(parts):
                run(i, parts, *args)

    return f


def _plain(part: Callable[..., None], kinds: tuple[Any, ...]) -> Callable[..., None]:
    """The part as Python runs it, with scalars of the types that the compiled one would get."""
    scalars = [as_dtype(kind).type if isinstance(kind, types.Number) else None for kind in kinds]

    def f(parts: int, *args: Any) -> None:
        values = [value if scalar is None else scalar(value) for scalar, value in zip(scalars, args, strict=True)]
        with np.errstate(all="ignore"):
            for i in range(parts):
                part(i, parts, *values)

    return f


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
