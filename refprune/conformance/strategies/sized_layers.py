"""Layers at the sizes and options on which fast code stumbles: around the blocks that kernels are cut into, long, odd, common.

Unlike what is drawn they are the same in every run, from the smallest on; only their numbers follow from a seed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ...arrays import Array, Shape
from .layers import Case, Numbers, Rng, distinct, made, off_zero, spread, uniform

Sizes = tuple[int, ...]

#: Usual blocks of compiled code, each less one, exact, and one more.
EDGES: Sizes = tuple(block + d for block in (8, 16, 32, 64, 128) for d in (-1, 0, 1))

#: Lengths of sums beyond the blocks in which they are added.
LONG: Sizes = (257, 300, 1023, 1024, 1025, 2049)

#: Largest input of an activation: through its tails, to where an exponential has no more digits, to where it overflows.
REACHES = (1e-8, 1e-3, 3.0, 8.0, 40.0, 100.0, 1000.0)


class Sized(NamedTuple):
    """build(sizes, seed): the case of these sizes, each of which may be anything from `least` on."""

    build: Callable[[Sizes, int], Case]
    sizes: Sizes
    least: Sizes


def _sized(
    op: str, numbers: Callable[..., Numbers], sizes: Sizes, least: Sizes | None = None, *, smooth: bool = True, **options: Any
) -> Sized:
    """numbers(*sizes): how the arrays are made."""

    def build(found: Sizes, seed: int) -> Case:
        return made(op, numbers(*found), options, seed, smooth)

    return Sized(build, sizes, (1,) * len(sizes) if least is None else least)


def _uniform(*shapes: Shape, reach: float = 3.0) -> Numbers:
    return lambda rng: (tuple(uniform(rng, shape, True, -reach, reach) for shape in shapes), ())


def _turned(places: int, lengths: Sizes = EDGES) -> Iterator[Sizes]:
    """`places` sizes at once, each of the lengths once at every place, the smallest first at the first of them."""
    step = len(lengths) // places
    for k in range(len(lengths)):
        yield tuple(lengths[(k + step * place) % len(lengths)] for place in range(places))


def _images(channels: Sizes = (3, 9, 17, 33, 65, 129, 300)) -> Iterator[Sizes]:
    """N, C, H, W: more than eight examples; every length of a row or column; many pixels."""
    yield from ((9, 3, 4, 5), (17, 3, 3, 2), (33, 2, 1, 2), (129, 1, 2, 2))
    yield from ((2, c, 2, 3) for c in channels)
    yield from ((1, 2, 2, length) for length in EDGES)
    yield from ((1, 2, length, 3) for length in EDGES[::2])
    yield from ((1, 1, 33, 32), (2, 2, 64, 33))


# A list of each family of layers ---------------------------------------------------------------------------------------


def _dense() -> Iterator[Sized]:
    def numbers(n: int, i: int, o: int) -> Numbers:
        return _uniform((n, i), (o, i), (o,))

    yield from (_sized("dense", numbers, sizes) for sizes in sorted(_turned(3), key=math.prod))
    yield from (_sized("dense", numbers, (2, length, 3)) for length in LONG)
    yield from (_sized("dense", numbers, sizes) for sizes in ((300, 2, 2), (1, 3, 300), (1025, 3, 2)))
    yield _sized("dense", lambda n, i, o: _uniform((n, i), (o, i)), (9, 33, 17))


SAME = ((1, 1), (1, 1))
NONE = ((0, 0), (0, 0))

#: N, C and O in a group, H, W; kernel; stride, padding, dilation, groups. What networks have most comes first.
_CONVOLUTIONS: tuple[tuple[Sizes, tuple[int, int], Mapping[str, Any]], ...] = (
    *(((2, 3, 4, h, w), (3, 3), {}) for h, w in ((3, 3), (4, 5), (6, 7), (8, 8), (9, 10))),
    ((9, 3, 2, 5, 4), (3, 3), {}),
    ((17, 2, 9, 4, 4), (3, 3), {}),
    *(((2, c, o, 4, 4), (3, 3), {}) for c, o in ((8, 9), (9, 7), (17, 16), (15, 33), (33, 8), (64, 17), (65, 4))),
    *(((1, c, 2, 3, 3), (3, 3), {}) for c in (113, 114, 129, 228)),  # around 1,024 and above 2,048 products in a sum
    *(((1, 2, 2, 3, w), (3, 3), {}) for w in EDGES[3:]),
    *(((1, 1, 2, h, 4), (3, 3), {}) for h in EDGES[4::3]),
    *(((2, c, o, 2, 3), (1, 1), {"padding": NONE}) for c, o in ((9, 17), (65, 3), (300, 2), (2, 300), (1025, 2))),
    *(((2, 3, 4, h, h), (3, 3), {"stride": (2, 2)}) for h in (7, 8, 16, 17)),
    ((2, 3, 4, 15, 14), (7, 7), {"stride": (2, 2), "padding": ((3, 3), (3, 3))}),
    ((1, 3, 2, 9, 8), (5, 5), {"padding": ((2, 2), (2, 2))}),
    ((1, 23, 2, 7, 7), (7, 7), {"padding": NONE}),
    ((2, 3, 2, 4, 9), (1, 7), {"padding": ((0, 0), (3, 3))}),
    ((2, 3, 2, 9, 4), (7, 1), {"padding": ((3, 3), (0, 0))}),
    ((2, 2, 3, 9, 9), (3, 3), {"dilation": (2, 2), "padding": ((2, 2), (2, 2))}),
    ((1, 2, 3, 9, 10), (3, 3), {"dilation": (3, 1), "padding": NONE}),
    ((1, 2, 3, 11, 8), (5, 2), {"dilation": (2, 3), "padding": ((4, 0), (0, 3))}),
    ((2, 3, 4, 4, 5), (1, 1), {"padding": ((1, 0), (0, 2))}),
    ((2, 3, 2, 5, 5), (3, 3), {"padding": ((2, 0), (0, 1))}),
    *(((2, 1, 1, 5, 4), (3, 3), {"groups": groups}) for groups in (2, 3, 9, 17, 33)),
    ((2, 2, 3, 5, 4), (3, 3), {"groups": 9}),
    ((1, 9, 2, 4, 4), (3, 3), {"groups": 3}),
)


def _conv2d() -> Iterator[Sized]:
    for sizes, kernel, options in _CONVOLUTIONS:
        yield _convolution(sizes, kernel, **options)
    paddings = (SAME, NONE, ((2, 0), (1, 2)), ((0, 1), (0, 0)))
    strides, dilations = ((1, 1), (2, 1), (1, 2), (2, 2), (3, 3)), ((1, 1), (2, 1), (1, 2))
    every = tuple(itertools.product(strides, paddings, dilations, (1, 2)))
    for stride, padding, dilation, groups in every[::7]:  # 7 divides no number of values: all pairs of neighbours meet
        sizes = (2, 4 // groups, 4 // groups, 8, 7)
        yield _convolution(sizes, (3, 3), stride=stride, padding=padding, dilation=dilation, groups=groups)


def _convolution(sizes: Sizes, kernel: tuple[int, int], **given: Any) -> Sized:
    options: dict[str, Any] = {"stride": (1, 1), "padding": SAME, "dilation": (1, 1), "groups": 1} | given
    groups, reach = options["groups"], zip(kernel, options["dilation"], options["padding"], strict=True)
    pixels = tuple(max((k - 1) * d + 1 - sum(padding), 1) for k, d, padding in reach)

    def numbers(n: int, c: int, o: int, h: int, w: int) -> Numbers:
        return _uniform((n, groups * c, h, w), (groups * o, c, *kernel), (groups * o,))

    return _sized("conv2d", numbers, sizes, (1, 1, 1, *pixels), **options)


def _batch_norm(op: str) -> Iterator[Sized]:
    train = op == "batch_norm"

    def of(shape: Shape) -> Numbers:
        def numbers(rng: Rng) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
            arrays = (spread(rng, shape, True), *(uniform(rng, shape[1], True) for _ in range(2)))
            return arrays, () if train else (uniform(rng, shape[1], True), rng.uniform(0.1, 3.0, shape[1]))

        return numbers

    flat: Callable[..., Numbers] = lambda n, c: of((n, c))  # noqa: E731
    image: Callable[..., Numbers] = lambda n, c, h, w: of((n, c, h, w))  # noqa: E731
    for eps in (1e-5, 1e-3, 0.1):
        yield _sized(op, flat, (5, 3), (2, 1), eps=eps)
        yield _sized(op, image, (3, 3, 2, 3), (2, 1, 1, 1), eps=eps)
    yield from (_sized(op, flat, sizes, (2, 1), eps=1e-5) for sizes in _turned(2))
    yield from (_sized(op, flat, (length, 2), (2, 1), eps=1e-5) for length in LONG)
    yield from (_sized(op, image, sizes, (2, 1, 1, 1), eps=1e-3) for sizes in _images() if sizes[0] > 1 or not train)
    yield from (_sized(op, image, sizes, (2, 1, 1, 1), eps=1e-3) for sizes in ((2, 2, 33, 31), (3, 1, 65, 33)))


def _activation(op: str) -> Iterator[Sized]:
    choices: Sequence[Mapping[str, Any]] = ({},)
    if op == "leaky_relu":
        choices = [{"slope": slope, "at_zero": at} for slope in (0.0, 0.01, 0.3) for at in (0.0, 0.5, 1.0)]
        for options in choices:
            numbers: Callable[..., Numbers] = lambda n, c: lambda rng: ((uniform(rng, (n, c), False),), ())  # noqa: E731
            yield _sized(op, numbers, (3, 5), smooth=False, **options)

    def of(reach: float) -> Callable[..., Numbers]:
        if op == "leaky_relu":
            return lambda *shape: lambda rng: ((reach / 3.0 * off_zero(rng, shape, True),), ())
        return lambda *shape: _uniform(shape, reach=reach)

    yield from (_sized(op, of(reach), (4, 33), **choices[0]) for reach in REACHES)
    yield from (_sized(op, of(3.0), sizes, **choices[-1]) for sizes in _turned(2))
    yield from (_sized(op, of(3.0), sizes, **choices[0]) for sizes in ((9, 3, 5, 4), (2, 17, 3, 3), (1, 2, 33, 32), (2, 1025)))


def _pool(op: str) -> Iterator[Sized]:
    convention, values = ("ties", ("first", "last")) if op == "max_pool" else ("count_padding", (True, False))
    one_sided = (((1, 0), (0, 0)), ((0, 1), (1, 0)), ((0, 0), (0, 1)))
    kernels, strides = ((2, 2), (3, 3), (3, 2), (2, 4)), ((2, 2), (1, 1), (2, 1))
    every = tuple(itertools.product(kernels, strides, (NONE, SAME, *one_sided), values))
    for kernel, stride, padding, value in every[::7]:
        yield _window(op, (2, 3, 7, 8), kernel, stride, padding, {convention: value})
    first = {convention: values[0]}
    for sizes in ((9, 3, 4, 4), (17, 2, 2, 4), (1, 17, 4, 5), (1, 65, 3, 3), (1, 2, 4, 33), (1, 2, 65, 5), (1, 1, 128, 129)):
        yield _window(op, sizes, (2, 2), (2, 2), NONE, first)
        yield _window(op, sizes, (3, 3), (2, 2), SAME, first)
    for kernel in ((7, 7), (8, 9), (17, 17), (20, 20), (1, 300), (300, 1)):
        sizes = (2, 3, kernel[0] + 2, kernel[1] + 2)
        yield _window(op, sizes, kernel, (1, 1), NONE, first)


def _window(
    op: str, sizes: Sizes, kernel: tuple[int, int], stride: tuple[int, int], padding: Any, convention: Mapping[str, Any]
) -> Sized:
    values = distinct if op == "max_pool" else uniform
    least = (1, 1, *(max(k - sum(side), 1) for k, side in zip(kernel, padding, strict=True)))
    numbers: Callable[..., Numbers] = lambda *shape: lambda rng: ((values(rng, shape, True),), ())  # noqa: E731
    return _sized(op, numbers, sizes, least, kernel=kernel, stride=stride, padding=padding, **convention)


def _image(op: str) -> Iterator[Sized]:
    yield from (_sized(op, lambda *shape: _uniform(shape), sizes) for sizes in _images())


def _subsample_pad(op: str) -> Iterator[Sized]:
    strides, sides = ((1, 1), (2, 2), (2, 1), (1, 2), (3, 3)), (0, 1, 3, 8)
    for stride, before, after in tuple(itertools.product(strides, sides, sides))[::3]:
        yield _sized(op, lambda *shape: _uniform(shape), (2, 3, 5, 6), stride=stride, before=before, after=after)
    for sizes in _images():
        yield _sized(
            op, lambda *shape: _uniform(shape), sizes, stride=(2, 2), before=sizes[1] // 2, after=sizes[1] - sizes[1] // 2
        )


def _add(op: str) -> Iterator[Sized]:
    for sizes in (*((n, c) for n, c in _turned(2)), *_images()):
        yield _sized(op, lambda *shape: _uniform(shape, shape), sizes, channels=None)
        c = sizes[1]
        if c > 1:
            order = tuple(int(i) for i in np.random.default_rng(c).permutation(c)[: max(c - c // 3, 1)])
            least = (1, c, *[1] * (len(sizes) - 2))  # the channels named must exist
            kept = len(order)
            yield _sized(op, lambda *s, kept=kept: _uniform(s, (s[0], kept, *s[2:])), sizes, least, channels=order)


def _gate(op: str) -> Iterator[Sized]:
    for sizes in (*_turned(2), *_images()):
        yield _sized(op, lambda *shape: _uniform(shape, shape[1:2]), sizes)
    for sizes in ((9, 17), (2, 1025), (9, 3, 5, 4), (2, 65, 3, 3), (1, 2, 33, 32)):
        yield _sized(op, lambda *shape: _uniform(shape, ()), sizes)


def _loss(op: str) -> Iterator[Sized]:
    labels = op == "cross_entropy"
    reductions = ("mean", "sum") if labels else ("mean", "batch_mean", "sum")

    def of(reach: float, unlikely: bool = False) -> Callable[..., Numbers]:
        def numbers(n: int, k: int) -> Numbers:
            def draw(rng: Rng) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
                x = uniform(rng, (n, k), True, -reach, reach)
                if not labels:
                    return (x,), (uniform(rng, (n, k), True),)
                return (x,), (x.argmin(axis=1) if unlikely else rng.integers(0, k, n),)

            return draw

        return numbers

    for reduction in reductions:
        for sizes in ((3, 3), (9, 10), (17, 3), (2, 1000), (1025, 2), (129, 65)):
            yield _sized(op, of(3.0), sizes, reduction=reduction)
    yield from (_sized(op, of(3.0), sizes, reduction=reductions[0]) for sizes in _turned(2))
    yield from (_sized(op, of(reach, True), (5, 6), reduction=reductions[0]) for reach in REACHES[2:])


def _weight_decay(op: str) -> Iterator[Sized]:
    for strength in (0.0, 5e-4, 0.3):
        yield _sized(op, lambda *shape: _uniform(shape), (3, 5), strength=strength)
    for sizes in (
        *((1, length) for length in (*EDGES, *LONG)),
        *((length, 2) for length in EDGES),
        (9, 3, 3, 3),
        (2, 65, 3, 2),
    ):
        yield _sized(op, lambda *shape: _uniform(shape), sizes, strength=0.3)


_FAMILIES: dict[str, Callable[[str], Iterator[Sized]]] = {
    "dense": lambda op: _dense(),
    "conv2d": lambda op: _conv2d(),
    "batch_norm": _batch_norm,
    "batch_norm_eval": _batch_norm,
    **dict.fromkeys(("leaky_relu", "tanh", "sigmoid", "gelu", "gelu_tanh"), _activation),
    "max_pool": _pool,
    "average_pool": _pool,
    "global_average_pool": _image,
    "flatten": _image,
    "subsample_pad": _subsample_pad,
    "add": _add,
    "gate": _gate,
    "cross_entropy": _loss,
    "mean_squared_error": _loss,
    "weight_decay": _weight_decay,
}


def sized(op: str) -> list[Sized]:
    """Every one of an operation, the common and small before the long."""
    return list(_FAMILIES[op](op))
