"""What this machine can do at most: fused multiply-adds in registers, bytes to and from memory. For the roofline of `bench`."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

ACCUMULATORS = 12  # more than latency × units, so that none waits for another; fewer than AVX2 has registers
BURST = 1 << 20  # rounds
TRIAD_BYTES = 3 << 28  # far more than a processor's caches


def vector_bits() -> int:
    """Width of this processor's vector registers, as far as LLVM tells: 512, 256 or 128."""
    features = binding.get_host_cpu_features()
    return 512 if features.get("avx512f") else 256 if features.get("avx") else 128


def _chains(item: Any, lanes: int) -> Any:
    """Intrinsic (count, x) → sum of all lanes of ACCUMULATORS vectors after `count` rounds of v ← v·x + x."""
    word, bits = (ir.FloatType(), 32) if item == types.float32 else (ir.DoubleType(), 64)
    vector = ir.VectorType(word, lanes)

    def run(typing_context: Any, count: Any, x: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            integer, lane = ir.IntType(64), ir.IntType(32)
            get: Any = cgutils.get_or_insert_function
            fma = get(builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{lanes}f{bits}")
            first = builder.insert_element(ir.Constant(vector, ir.Undefined), args[1], ir.Constant(lane, 0))
            zeros = ir.Constant(ir.VectorType(lane, lanes), [0] * lanes)
            factor = builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), zeros)
            before = builder.block
            loop, end = (builder.function.append_basic_block(name) for name in ("chains.loop", "chains.end"))
            builder.branch(loop)
            builder.position_at_end(loop)
            done = builder.phi(integer)
            done.add_incoming(ir.Constant(integer, 0), before)
            sums = [builder.phi(vector) for _ in range(ACCUMULATORS)]
            for i, s in enumerate(sums):
                s.add_incoming(ir.Constant(vector, [float(i)] * lanes), before)
            following = [builder.call(fma, (s, factor, factor)) for s in sums]
            for s, f in zip(sums, following, strict=True):
                s.add_incoming(f, loop)
            more = builder.add(done, ir.Constant(integer, 1))
            done.add_incoming(more, loop)
            builder.cbranch(builder.icmp_signed("<", more, args[0]), loop, end)
            builder.position_at_end(end)
            total = functools.reduce(builder.fadd, following)
            parts = [builder.extract_element(total, ir.Constant(lane, i)) for i in range(lanes)]
            return functools.reduce(builder.fadd, parts)

        return item(types.int64, item), emit

    return intrinsic(run)


@functools.cache
def _peak_kernel(dtype: str) -> tuple[Callable[..., None], int]:
    """(f(parts, count, x, out), floating-point operations of one round in one part)."""
    item = numba.from_dtype(np.dtype(dtype))
    lanes = vector_bits() // (8 * np.dtype(dtype).itemsize)
    chains: Any = _chains(item, lanes)

    def run(parts: int, count: int, x: Any, out: Any) -> None:
        for part in numba.prange(parts):
            out[part] = chains(count, x)

    signature = types.void(types.intp, types.intp, item, types.Array(item, 1, "C"))
    compiled: Callable[..., None] = numba.njit(signature, parallel=True, nogil=True)(run)
    return compiled, 2 * ACCUMULATORS * lanes


def burst(threads: int, dtype: str) -> tuple[Callable[[], None], float]:
    """(a function that keeps `threads` threads multiplying and adding in registers, its floating-point operations).

    A fused multiply-add is two; it takes a few milliseconds.
    """
    run, flops = _peak_kernel(dtype)
    out, x = np.zeros(threads, dtype), np.dtype(dtype).type(0.5)
    return lambda: run(threads, BURST, x, out), float(flops) * BURST * threads


def fma_gflops(threads: int, dtype: str, *, seconds: float = 1.0) -> float:
    """Most GFLOP/s that `threads` threads reach in registers: the best burst within `seconds`."""
    run, flops = burst(threads, dtype)
    best, end = np.inf, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return flops / best / 1e9


@functools.cache
def _triad_kernel() -> Callable[..., None]:
    def run(parts: int, a: Any, b: Any, c: Any) -> None:
        size = len(a) // parts
        for part in numba.prange(parts):
            for i in range(part * size, (part + 1) * size):
                a[i] = b[i] + np.float32(0.5) * c[i]

    array = types.Array(types.float32, 1, "C")
    compiled: Callable[..., None] = numba.njit(types.void(types.intp, array, array, array), parallel=True, nogil=True)(run)
    return compiled


def memory_gbytes(threads: int, *, rounds: int = 5) -> float:
    """GB/s of a ← b + s·c on arrays of 256 MiB each, three accesses counted; the best of `rounds`."""
    run = _triad_kernel()
    a, b, c = (np.full(TRIAD_BYTES // 12, value, np.float32) for value in (0.0, 1.0, 2.0))
    best = np.inf
    for _ in range(rounds):
        start = time.perf_counter()
        run(threads, a, b, c)
        best = min(best, time.perf_counter() - start)
    return TRIAD_BYTES / best / 1e9
