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
    """Random numbers that depend on (seed, purpose, step) only, not on what was drawn before (O8).

    The generator is Philox 4×64-10 (Salmon et al. 2011) with a key from SHA-256 of the three.

    seed: the seed of all streams.

    >>> from refprune import Streams
    >>> streams = Streams(0)
    >>> streams.uniform("gates", 1, (3,)).round(4).tolist()
    [0.6756, 0.4034, 0.4663]
    >>> bool((streams.uniform("gates", 1, (5,))[:3] == streams.uniform("gates", 1, (3,))).all())
    True
    """

    seed: int

    def words(self, purpose: str, step: int, count: int) -> NDArray[np.uint64]:
        """The first `count` raw 64-bit words of the stream, (count,)."""
        digest = hashlib.sha256(f"{self.seed}|{purpose}|{step}".encode()).digest()
        key = np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64)
        return np.asarray(np.random.Philox(key=key).random_raw(count), dtype=np.uint64)

    def uniform(self, purpose: str, step: int, shape: tuple[int, ...]) -> Float:
        """Uniform numbers in [0, 1) of the given shape, multiples of 2⁻⁵³."""
        words = self.words(purpose, step, math.prod(shape))
        return ((words >> np.uint64(11)).astype(np.float64) * 2.0**-53).reshape(shape)

    def normal(self, purpose: str, step: int, shape: tuple[int, ...]) -> Float:
        """Standard normal numbers of the given shape, by inversion.

        >>> from refprune import Streams
        >>> Streams(0).normal("init/dense1.weight", 0, (2, 2)).round(3).tolist()
        [[0.73, -0.238], [-0.336, 0.344]]
        """
        words = self.words(purpose, step, math.prod(shape))
        return np.asarray(ndtri(((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52)).reshape(shape)

    def permutation(self, purpose: str, step: int, n: int) -> NDArray[np.intp]:
        """A random order of 0 … n−1, (n,).

        >>> from refprune import Streams
        >>> Streams(0).permutation("shuffle", 0, 6).tolist()
        [0, 1, 3, 2, 4, 5]
        """
        return np.argsort(self.uniform(purpose, step, (n,)), kind="stable")
