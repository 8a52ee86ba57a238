"""Random streams (SPEC O8): another implementation must be able to draw the same numbers.

Philox4x64-10 is written out below from Salmon et al. (SC 2011), in Python integers.
"""

import hashlib
import inspect
import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from refprune import streams
from refprune.streams import Streams

MASK = 2**64 - 1
MULTIPLIERS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
WEYL = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B

GOLDEN = [13262309269460406654, 5366996978024846174]

purposes = st.text(max_size=10)
seeds = st.integers(-5, 2**40)
steps = st.integers(0, 2**40)


def philox(counter, key):
    """Four words of Philox4x64-10."""
    c, (k0, k1) = list(counter), key
    for _ in range(10):
        high0, low0 = divmod(MULTIPLIERS[0] * c[0], 2**64)
        high1, low1 = divmod(MULTIPLIERS[1] * c[2], 2**64)
        c = [high1 ^ c[1] ^ k0, low1, high0 ^ c[3] ^ k1, low0]
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c


def stream(seed, purpose, step, count):
    """The first words of a stream: blocks with the counters 1, 2, 3, … (NumPy counts up before it generates)."""
    digest = hashlib.sha256(f"{seed}|{purpose}|{step}".encode()).digest()
    key = int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")
    words = [w for block in range(1, count // 4 + 2) for w in philox((block, 0, 0, 0), key)]
    return words[:count]


def test_the_reference_generator_has_its_published_answers():
    """Known answers of Random123's kat_vectors: without them two wrong generators could agree."""
    assert philox((0, 0, 0, 0), (0, 0)) == [
        0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B,
    ]  # fmt: skip
    assert philox((MASK,) * 4, (MASK,) * 2) == [
        0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0,
    ]  # fmt: skip


@given(seed=seeds, purpose=purposes, step=steps, count=st.integers(0, 13))
def test_words_are_philox_keyed_by_sha256(seed, purpose, step, count):
    """Catches another key order, byte order or first counter."""
    assert Streams(seed).words(purpose, step, count).tolist() == stream(seed, purpose, step, count)


def test_known_answers():
    """Golden values, made with `stream` above: a change of any of them breaks every stored run."""
    assert Streams(0).words("gates", 0, 2).tolist() == GOLDEN
    assert stream(0, "gates", 0, 2) == GOLDEN
    assert Streams(0).uniform("gates", 0, (2,)).tolist() == [(w >> 11) / 2**53 for w in GOLDEN]
    exact = [special.ndtri(((w >> 12) + 0.5) / 2**52) for w in GOLDEN]
    assert Streams(0).normal("gates", 0, (2,)).tolist() == exact


def test_the_first_counter_is_documented():
    """Whoever implements the docstring must get the same words."""
    assert "counters 1, 2, 3" in inspect.getdoc(streams)


@given(seed=seeds, purpose=purposes, step=steps)
def test_streams_differ_by_seed_purpose_and_step(seed, purpose, step):
    """Catches an ignored argument; and a stream does not depend on how much is drawn of it or of others."""
    mine = Streams(seed).words(purpose, step, 4)
    for other in (Streams(seed + 1).words(purpose, step, 4), Streams(seed).words(purpose + "x", step, 4),
                  Streams(seed).words(purpose, step + 1, 4)):  # fmt: skip
        assert not (mine == other).any()
    np.testing.assert_array_equal(Streams(seed).words(purpose, step, 9)[:4], mine)


@given(seed=seeds, shape=st.lists(st.integers(0, 4), max_size=3).map(tuple))
def test_shapes_only_fold_the_stream(seed, shape):
    """Row-major; () is a single number."""
    flat = Streams(seed).uniform("x", 0, (math.prod(shape),))
    folded = Streams(seed).uniform("x", 0, shape)
    assert folded.shape == shape
    np.testing.assert_array_equal(folded.reshape(-1), flat)
    assert ((flat >= 0.0) & (flat < 1.0)).all()
    np.testing.assert_array_equal(flat * 2.0**53, np.rint(flat * 2.0**53))
    assert Streams(seed).normal("x", 0, shape).shape == shape


@given(seed=seeds, n=st.integers(0, 40))
def test_permutations_are_permutations(seed, n):
    order = Streams(seed).permutation("shuffle", 0, n)
    assert sorted(order.tolist()) == list(range(n))
    ranks = sorted(range(n), key=Streams(seed).uniform("shuffle", 0, (n,)).tolist().__getitem__)
    assert order.tolist() == ranks


def _words(monkeypatch, *values):
    monkeypatch.setattr(Streams, "words", lambda self, purpose, step, count: np.array(values[:count], dtype=np.uint64))


def test_the_ends_of_the_range(monkeypatch):
    """Word 0 gives uniform 0 and the smallest normal number; the largest word stays below 1."""
    _words(monkeypatch, 0, MASK)
    assert Streams(0).uniform("x", 0, (2,)).tolist() == [0.0, 1.0 - 2.0**-53]
    assert Streams(0).normal("x", 0, (1,))[0] == special.ndtri(2.0**-53)


def test_normal_numbers_are_finite(monkeypatch):
    """Catches an argument that rounds to 1: the largest is 1 − 2⁻⁵³, the last number below 1."""
    _words(monkeypatch, MASK)
    assert Streams(0).normal("x", 0, (1,))[0] == special.ndtri(1.0 - 2.0**-53)


def test_moments_by_z_score():
    """Mean, variance, third and fourth moment, lag-1 and cross-stream correlation: |z| < 5, false alarm 6e-7 each."""
    n = 200_000
    x, y = (Streams(12).normal(purpose, 3, (n,)) for purpose in ("a", "b"))
    scores = {
        "mean": x.mean() * n**0.5,
        "variance": (np.square(x).mean() - 1.0) * (n / 2.0) ** 0.5,
        "third": (x**3).mean() * (n / 15.0) ** 0.5,
        "fourth": ((x**4).mean() - 3.0) * (n / 96.0) ** 0.5,
        "lag": (x[1:] * x[:-1]).mean() * n**0.5,
        "cross": (x * y).mean() * n**0.5,
    }
    u = Streams(12).uniform("a", 3, (n,))
    counts = np.bincount((u * 64).astype(int), minlength=64)
    scores["chi-square"] = (np.square(counts - n / 64).sum() / (n / 64) - 63.0) / 126.0**0.5
    first = np.array([Streams(12).permutation("p", step, 5)[0] for step in range(2000)])
    scores["first of a permutation"] = (np.square(np.bincount(first) - 400.0).sum() / 400.0 - 4.0) / 8.0**0.5
    assert all(abs(z) < 5.0 for z in scores.values()), scores
