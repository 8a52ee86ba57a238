"""Kernels between pages that may not be touched: `python tests/fence.py CASES SEED`.

A read or write outside ends it by a signal.

Every array of the workspace, and every input, ends (or begins) at such a page, and is filled with NaN before.
"""

import ctypes
import math
import mmap
import sys

import numpy as np

from refprune.kernels.machine import workspace
from refprune.oracle import layers

PAGE = mmap.PAGESIZE
system = ctypes.CDLL(None, use_errno=True)
system.mmap.restype = ctypes.c_void_p
system.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
system.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
system.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class Fenced:
    """Memory of `size` bytes that ends, or begins, at a forbidden page."""

    def __init__(self, size, front):
        body = -(-size // PAGE) * PAGE
        self.length = body + 2 * PAGE
        self.address = system.mmap(None, self.length, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANON, -1, 0)
        assert system.mprotect(self.address, PAGE, 0) == system.mprotect(self.address + PAGE + body, PAGE, 0) == 0
        ctypes.memset(self.address + PAGE, 0xFF, body)
        start = self.address + PAGE + (0 if front else body - size)
        self.__array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (start, False), "version": 3}

    def __del__(self):
        system.munmap(self.address, self.length)


def main(cases, seed):
    rng = np.random.default_rng(seed)

    def empty(shape, dtype):
        dtype = np.dtype(dtype)
        size = math.prod(shape) * dtype.itemsize
        if not size:
            return np.empty(shape, dtype)
        return np.asarray(Fenced(size, rng.random() < 0.3)).view(dtype).reshape(shape)

    def array(*shape):
        made = empty(shape, dtype)
        made[...] = rng.standard_normal(shape)
        return made

    workspace.Workspace.empty = lambda self, shape, dtype: empty(shape, dtype)
    from refprune import kernels

    functions = kernels.functions(1)
    for case in range(cases):
        dtype = ("float32", "float64")[case % 2]
        groups, stride, dilation = (int(v) for v in (rng.integers(1, 3), rng.integers(1, 4), rng.integers(1, 3)))
        kernel = tuple(int(v) for v in rng.integers(1, 5, 2))
        padding = tuple(tuple(int(v) for v in rng.integers(0, 3, 2)) for _ in range(2))
        size = [int(rng.integers((k - 1) * dilation + 1, 36)) for k in kernel]
        inputs, outputs = int(rng.integers(1, 9)), int(rng.choice([1, 3, 8, 13, 40]))
        x, w = array(int(rng.integers(1, 4)), groups * inputs, *size), array(groups * outputs, inputs, *kernel)
        options = {"stride": (stride, stride), "padding": padding, "dilation": (dilation, dilation), "groups": groups}
        y, saved = functions["conv2d"](x, w, None, **options)
        want, want_saved = layers.conv2d(x.astype(float), w.astype(float), None, **options)
        dy = array(*y.shape)
        found = (y, *functions["conv2d_vjp"](saved, dy))
        expected = (want, *layers.conv2d_vjp(want_saved, dy.astype(float)))
        n, i, o = (int(v) for v in rng.integers(1, 60, 3))
        a, b = array(n, i * 8), array(o, i * 8)
        z, dense_saved = functions["dense"](a, b, None)
        want_z, want_dense = layers.dense(a.astype(float), b.astype(float), None)
        dz = array(*z.shape)
        found += (z, *functions["dense_vjp"](dense_saved, dz))
        expected += (want_z, *layers.dense_vjp(want_dense, dz.astype(float)))
        for got, right in zip(found, expected, strict=True):
            assert np.isfinite(got).all(), (case, options, x.shape, w.shape)
            assert np.abs(got - right).max(initial=0) <= 1e4 * np.finfo(dtype).eps * max(1.0, np.abs(right).max(initial=0)), (
                case
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
