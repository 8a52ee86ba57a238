"""Ways of damaging bytes: most keep the file near enough to a whole one to reach deep into its reader."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from random import Random

#: Numbers as texts and as bytes on which readers break.
TEXTS = (b"0", b"-1", b"1e400", b"nan", b"9" * 400, b"1" + b"0" * 30, b"4294967296", b"null", b"[]", b"{}", b'""', b"true")
WORDS = (b"\x00" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\x00\x00\x00", b"\x00" * 8, b"\x01")

Mutation = Callable[[bytes, Random, Sequence[bytes]], bytes]


def _flip(body: bytes, random: Random, _: Sequence[bytes]) -> bytes:
    changed = bytearray(body)
    for _i in range(random.choice((1, 1, 2, 8))):
        if changed:
            changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _cut(body: bytes, random: Random, _: Sequence[bytes]) -> bytes:
    return body[: random.randrange(len(body) + 1)]


def _drop(body: bytes, random: Random, _: Sequence[bytes]) -> bytes:
    at = random.randrange(len(body) + 1)
    return body[:at] + body[at + random.choice((1, 2, 4, 16, 64)) :]


def _repeat(body: bytes, random: Random, _: Sequence[bytes]) -> bytes:
    at, length = random.randrange(len(body) + 1), random.choice((1, 4, 16, 200))
    return body[:at] + body[at : at + length] * random.choice((2, 3, 50)) + body[at:]


def _word(body: bytes, random: Random, _: Sequence[bytes]) -> bytes:
    """An extreme number over what stands there."""
    at, word = random.randrange(len(body) + 1), random.choice(WORDS)
    return body[:at] + word + body[at + len(word) :]


def _splice(body: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    other = random.choice(others)
    return body[: random.randrange(len(body) + 1)] + other[random.randrange(len(other) + 1) :]


def _number(body: bytes, random: Random, _: Sequence[bytes]) -> bytes:
    """A number or a text of the file becomes something that it should not be."""
    found = list(re.finditer(rb'-?\d+(\.\d+)?|"[^"]{0,40}"', body))
    if not found:
        return _word(body, random, _)
    place = random.choice(found)
    return body[: place.start()] + random.choice(TEXTS) + body[place.end() :]


def _deep(body: bytes, random: Random, _: Sequence[bytes]) -> bytes:
    at, bracket = random.randrange(len(body) + 1), random.choice((b"[", b"{", b'{"a":', b"(", b"]", b"\x80\x02("))
    return body[:at] + bracket * random.choice((3, 2000, 20_000)) + body[at:]


MUTATIONS: tuple[Mutation, ...] = (_flip, _flip, _cut, _drop, _repeat, _word, _word, _splice, _number, _number, _deep)


def mutated(seeds: Sequence[bytes], random: Random) -> bytes:
    """One of the seeds, damaged once to four times."""
    body = random.choice(seeds)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        body = random.choice(MUTATIONS)(body, random, seeds)
    return body
