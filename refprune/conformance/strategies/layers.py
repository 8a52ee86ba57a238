"""Hypothesis strategies for layer cases: valid by construction, shapes drawn, values from a drawn seed.

`cases(op)` are smooth: at least MARGIN away from every kink. `integer_cases(op)` have entries in -2 … 2: zeros and ties
on purpose. Dimension letters: N batch, C channels, H×W pixels, O output channels, kh×kw kernel.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ...arrays import Array, Pair, Shape

#: Smooth cases: |x| ≥ MARGIN before a ReLU, any two entries of a pooled image differ by ≥ MARGIN.
MARGIN = 0.05

Rng = np.random.Generator
Numbers = Callable[[Rng], tuple[tuple[Array, ...], tuple[Array, ...]]]

LAYOUTS = ("C", "Fortran", "step", "negative", "read-only")


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A call f(*arrays, *constants, **options); gradients exist for the arrays only.

    numbers: how arrays and constants are made of a random generator, which `seed` starts.
    """

    op: str
    arrays: tuple[Array, ...]
    options: Mapping[str, Any]
    constants: tuple[Array, ...] = ()
    seed: int = 0
    smooth: bool = True
    numbers: Numbers | None = None

    def normal(self, purpose: int, shape: Shape, dtype: Any = np.float64) -> Array:
        """Random numbers that belong to this case: the same for the same purpose and shape."""
        return np.asarray(np.random.default_rng([self.seed, purpose]).standard_normal(shape)).astype(dtype)

    def reseeded(self, seed: int) -> Case:
        """Other numbers in the same shapes, with the same options."""
        assert self.numbers is not None
        return made(self.op, self.numbers, self.options, seed, self.smooth)

    def astype(self, dtype: Any) -> Case:
        """The case in another precision; integer constants (labels) stay. Real constants stay real."""
        real = np.zeros(0, dtype).real.dtype
        constants = tuple(c.astype(real) if c.dtype.kind == "f" else c for c in self.constants)
        return dataclasses.replace(self, arrays=tuple(a.astype(dtype) for a in self.arrays), constants=constants)

    def relaid(self, layout: str) -> Case:
        """The same numbers in another memory layout."""
        arrays, constants = (tuple(relayout(a, layout) for a in group) for group in (self.arrays, self.constants))
        return dataclasses.replace(self, arrays=arrays, constants=constants)

    def __repr__(self) -> str:
        shapes = " ".join(str(a.shape) for a in (*self.arrays, *self.constants))
        kind = "smooth" if self.smooth else "integer"
        return f"Case({self.op} {shapes} {dict(self.options)} {kind} seed={self.seed})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))  # Hypothesis would print the fields


def relayout(a: Array, layout: str) -> Array:
    """A copy of `a` in the memory layout named; what has at most one element along every axis cannot differ."""
    if layout == "Fortran":
        return np.array(a, order="F")
    if layout == "step" and a.ndim:
        return np.repeat(np.array(a), 2, axis=-1)[..., ::2]
    if layout == "negative" and a.ndim:
        return np.flip(np.ascontiguousarray(np.flip(a)))
    copy = np.array(a, order="C")
    copy.setflags(write=layout != "read-only")
    return copy


layouts = st.sampled_from(LAYOUTS)
seeds = st.integers(0, 2**32 - 1)

Size = int | Shape


def made(op: str, numbers: Numbers, options: Mapping[str, Any], seed: int, smooth: bool) -> Case:
    """The case whose numbers follow from the seed."""
    arrays, constants = numbers(np.random.default_rng(seed))
    return Case(op, arrays, options, constants, seed, smooth, numbers)


@st.composite
def shapes_nchw(draw: st.DrawFn, n: int = 4, c: int = 4, hw: int = 6) -> Shape:
    return draw(st.integers(1, n)), draw(st.integers(1, c)), draw(st.integers(1, hw)), draw(st.integers(1, hw))


@st.composite
def shapes_nc(draw: st.DrawFn, n: int = 5, c: int = 6) -> Pair:
    return draw(st.integers(1, n)), draw(st.integers(1, c))


# Values ---------------------------------------------------------------------------------------------------------------


def uniform(rng: Rng, shape: Size, smooth: bool, low: float = -3.0, high: float = 3.0) -> Array:
    return np.asarray(rng.uniform(low, high, shape)) if smooth else np.asarray(rng.integers(-2, 3, shape).astype(float))


def off_zero(rng: Rng, shape: Shape, smooth: bool) -> Array:
    """Smooth: MARGIN ≤ |x| ≤ 3."""
    if not smooth:
        return uniform(rng, shape, smooth)
    return np.asarray(rng.uniform(MARGIN, 3.0, shape) * rng.choice((-1.0, 1.0), shape))


def distinct(rng: Rng, shape: Shape, smooth: bool) -> Array:
    """Smooth: any two entries differ by at least MARGIN; positive and negative."""
    if not smooth:
        return uniform(rng, shape, smooth)
    size = math.prod(shape)
    order = rng.permutation(size).reshape(shape) - size // 2
    return 2.0 * MARGIN * order + rng.uniform(0.0, MARGIN, shape)


def spread(rng: Rng, shape: Shape, smooth: bool) -> Array:
    """Smooth: per channel its own mean (up to 2) and standard deviation (e^-2 … e^2)."""
    if not smooth:
        return uniform(rng, shape, smooth)
    channels = (1, shape[1]) + (1,) * (len(shape) - 2)
    return rng.uniform(-2.0, 2.0, channels) + np.exp(rng.uniform(-2.0, 2.0, channels)) * rng.standard_normal(shape)


# One composite per family of layers -----------------------------------------------------------------------------------


@st.composite
def dense_cases(draw: st.DrawFn, op: str, smooth: bool) -> Case:
    (n, i), o, seed = draw(shapes_nc()), draw(st.integers(1, 5)), draw(seeds)
    shapes = [(n, i), (o, i), (o,)][: draw(st.integers(2, 3))]
    return made(op, lambda rng: (tuple(uniform(rng, s, smooth) for s in shapes), ()), {}, seed, smooth)


@st.composite
def conv2d_cases(draw: st.DrawFn, op: str, smooth: bool) -> Case:
    """Groups (depthwise: one channel per group), stride beyond the kernel, dilation, another padding on every side."""
    seed, groups = draw(seeds), draw(st.integers(1, 3))
    n, c, o = draw(st.integers(1, 3)), groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    kernel, stride, dilation, padding, size = [], [], [], [], []
    for _ in range(2):
        kernel.append(draw(st.integers(1, 3)))
        stride.append(draw(st.integers(1, 4)))
        dilation.append(draw(st.integers(1, 2)))
        padding.append((draw(st.integers(0, 2)), draw(st.integers(0, 2))))
        least = (kernel[-1] - 1) * dilation[-1] + 1 - sum(padding[-1])
        size.append(max(least, 1) + draw(st.integers(0, 3)))
    shapes = [(n, c, *size), (o, c // groups, *kernel), (o,)][: draw(st.integers(2, 3))]
    options = {"stride": tuple(stride), "padding": tuple(padding), "dilation": tuple(dilation), "groups": groups}
    return made(op, lambda rng: (tuple(uniform(rng, s, smooth) for s in shapes), ()), options, seed, smooth)


@st.composite
def shapes_normalised(draw: st.DrawFn, least: int) -> Shape:
    """N×C or N×C×H×W with at least `least` values per channel."""
    c = draw(st.integers(1, 4))
    if draw(st.booleans()):
        return least + draw(st.integers(0, 4)), c
    n, h, w = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    return n, c, h, max(w, -(-least // (n * h)))


@st.composite
def batch_norm_cases(draw: st.DrawFn, op: str, smooth: bool) -> Case:
    train = op == "batch_norm"
    shape, seed = draw(shapes_normalised(2 if train else 1)), draw(seeds)
    eps = draw(st.sampled_from((1e-5, 1e-3, 0.1)))

    def numbers(rng: Rng) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        arrays = (spread(rng, shape, smooth), *(uniform(rng, shape[1], smooth) for _ in range(2)))
        return arrays, () if train else (uniform(rng, shape[1], smooth), rng.uniform(0.1, 3.0, shape[1]))

    return made(op, numbers, {"eps": eps}, seed, smooth)


@st.composite
def activation_cases(draw: st.DrawFn, op: str, smooth: bool) -> Case:
    shape, seed = draw(st.one_of(shapes_nc(), shapes_nchw())), draw(seeds)
    if op != "leaky_relu":
        return made(op, lambda rng: ((uniform(rng, shape, smooth),), ()), {}, seed, smooth)
    options = {"slope": draw(st.sampled_from((0.0, 0.01, 0.3))), "at_zero": draw(st.sampled_from((0.0, 0.5, 1.0)))}
    return made(op, lambda rng: ((off_zero(rng, shape, smooth),), ()), options, seed, smooth)


@st.composite
def pool_cases(draw: st.DrawFn, op: str, smooth: bool) -> Case:
    """Padding below the kernel on every side, so that each window holds a real pixel."""
    n, c, seed = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(seeds)
    kernel, stride, padding, size = [], [], [], []
    for _ in range(2):
        k = draw(st.integers(1, 3))
        kernel.append(k)
        stride.append(draw(st.integers(1, 4)))
        padding.append((draw(st.integers(0, k - 1)), draw(st.integers(0, k - 1))))
        size.append(max(k - sum(padding[-1]), 1) + draw(st.integers(0, 4)))
    options: dict[str, Any] = {"kernel": tuple(kernel), "stride": tuple(stride), "padding": tuple(padding)}
    if op == "max_pool":
        options["ties"] = draw(st.sampled_from(("first", "last")))
    else:
        options["count_padding"] = draw(st.booleans())
    values = distinct if op == "max_pool" else uniform
    return made(op, lambda rng: ((values(rng, (n, c, *size), smooth),), ()), options, seed, smooth)


@st.composite
def image_cases(draw: st.DrawFn, op: str, smooth: bool) -> Case:
    seed, shape = draw(seeds), draw(shapes_nchw())
    return made(op, lambda rng: ((uniform(rng, shape, smooth),), ()), {}, seed, smooth)


@st.composite
def subsample_pad_cases(draw: st.DrawFn, op: str, smooth: bool) -> Case:
    seed, stride = draw(seeds), (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    options = {"stride": stride, "before": draw(st.integers(0, 3)), "after": draw(st.integers(0, 3))}
    shape = draw(shapes_nchw())
    return made(op, lambda rng: ((uniform(rng, shape, smooth),), ()), options, seed, smooth)


@st.composite
def add_cases(draw: st.DrawFn, op: str, smooth: bool) -> Case:
    """All channels, or path on a non-empty subset of them in any order."""
    shape, seed = draw(st.one_of(shapes_nc(), shapes_nchw())), draw(seeds)
    channels = None
    if draw(st.booleans()):
        channels = tuple(draw(st.permutations(range(shape[1]))))[: draw(st.integers(1, shape[1]))]
    path = shape if channels is None else (shape[0], len(channels), *shape[2:])
    shapes = (shape, path)
    return made(op, lambda rng: (tuple(uniform(rng, s, smooth) for s in shapes), ()), {"channels": channels}, seed, smooth)


@st.composite
def gate_cases(draw: st.DrawFn, op: str, smooth: bool) -> Case:
    shape, seed = draw(st.one_of(shapes_nc(), shapes_nchw())), draw(seeds)
    gates = draw(st.sampled_from(((), shape[1:2])))
    return made(op, lambda rng: ((uniform(rng, shape, smooth), uniform(rng, gates, smooth)), ()), {}, seed, smooth)


@st.composite
def loss_cases(draw: st.DrawFn, op: str, smooth: bool) -> Case:
    shape, seed = draw(shapes_nc()), draw(seeds)
    labels = op == "cross_entropy"

    def numbers(rng: Rng) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        x = uniform(rng, shape, smooth)
        return (x,), (rng.integers(0, shape[1], shape[0]) if labels else uniform(rng, shape, smooth),)

    reductions = ("mean", "sum") if labels else ("mean", "batch_mean", "sum")
    return made(op, numbers, {"reduction": draw(st.sampled_from(reductions))}, seed, smooth)


@st.composite
def weight_decay_cases(draw: st.DrawFn, op: str, smooth: bool) -> Case:
    shape, seed = draw(st.one_of(shapes_nc(), shapes_nchw())), draw(seeds)
    options = {"strength": draw(st.sampled_from((0.0, 5e-4, 0.3)))}
    return made(op, lambda rng: ((uniform(rng, shape, smooth),), ()), options, seed, smooth)


_FAMILIES: dict[str, Callable[[str, bool], st.SearchStrategy[Case]]] = {
    "dense": dense_cases,
    "conv2d": conv2d_cases,
    "batch_norm": batch_norm_cases,
    "batch_norm_eval": batch_norm_cases,
    "leaky_relu": activation_cases,
    "tanh": activation_cases,
    "sigmoid": activation_cases,
    "gelu": activation_cases,
    "gelu_tanh": activation_cases,
    "max_pool": pool_cases,
    "average_pool": pool_cases,
    "global_average_pool": image_cases,
    "flatten": image_cases,
    "subsample_pad": subsample_pad_cases,
    "add": add_cases,
    "gate": gate_cases,
    "cross_entropy": loss_cases,
    "mean_squared_error": loss_cases,
    "weight_decay": weight_decay_cases,
}
OPS = tuple(_FAMILIES)


def cases(op: str) -> st.SearchStrategy[Case]:
    """Smooth cases of one operation, at least MARGIN away from its kinks."""
    return _FAMILIES[op](op, True)


def integer_cases(op: str) -> st.SearchStrategy[Case]:
    """Entries in -2 … 2: zeros and ties everywhere, and sums of products without rounding."""
    return _FAMILIES[op](op, False)


def all_cases(op: str) -> st.SearchStrategy[Case]:
    return st.one_of(cases(op), integer_cases(op))
