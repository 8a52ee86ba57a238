"""Named random streams: all randomness is an input (SPEC O8).

A stream is the Philox 4×64-10 generator keyed by the first 16 bytes (two little-endian words) of
SHA-256("seed|purpose|step"); its blocks of four words have the counters 1, 2, 3, …. Everything is made of these raw 64-bit
words, whose values NumPy guarantees, so that another framework, language or NumPy version can draw the same numbers:

    uniform      (word >> 11)·2⁻⁵³ ∈ [0, 1)
    normal       Φ⁻¹(((word >> 12) + ½)·2⁻⁵²)
    permutation  stable argsort of n uniforms
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Streams:
    """Random numbers that depend on (seed, purpose, step) only, not on what was drawn before."""

    seed: int

    def words(self, purpose: str, step: int, count: int) -> NDArray[np.uint64]:
        """The first `count` raw 64-bit words of the stream."""
        digest = hashlib.sha256(f"{self.seed}|{purpose}|{step}".encode()).digest()
        key = np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64)
        return np.asarray(np.random.Philox(key=key).random_raw(count), dtype=np.uint64)

    def uniform(self, purpose: str, step: int, shape: tuple[int, ...]) -> Float:
        """Uniform numbers in [0, 1), multiples of 2⁻⁵³."""
        words = self.words(purpose, step, math.prod(shape))
        return ((words >> np.uint64(11)).astype(np.float64) * 2.0**-53).reshape(shape)

    def normal(self, purpose: str, step: int, shape: tuple[int, ...]) -> Float:
        """Standard normal numbers by inversion."""
        words = self.words(purpose, step, math.prod(shape))
        return np.asarray(ndtri(((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52)).reshape(shape)

    def permutation(self, purpose: str, step: int, n: int) -> NDArray[np.intp]:
        """A random order of 0 … n−1."""
        return np.argsort(self.uniform(purpose, step, (n,)), kind="stable")
