"""The types that every room speaks: arrays by name, shapes, pairs, what a forward function keeps for its VJP."""

from __future__ import annotations

from typing import Any, NamedTuple

from numpy.typing import NDArray

Array = NDArray[Any]
#: Arrays by name, as in parameters, statistics and gradients.
Arrays = dict[str, Array]
Shape = tuple[int, ...]
#: (vertical, horizontal), as in kernels and strides.
Pair = tuple[int, int]
#: ((top, bottom), (left, right)).
Padding = tuple[Pair, Pair]


class Saved(NamedTuple):
    """What a forward function leaves for its VJP.

    values: the arrays and conventions the VJP reads; private to the pair that made them.
    branch: the branch taken where the function has kinks; comparable between backends.
    statistics: (mean, biased variance, values per channel) of the batch, from train-mode batch-norm only.
    """

    values: tuple[Any, ...]
    branch: Array | None = None
    statistics: tuple[Array, Array, int] | None = None


def per_channel(v: Array, ndim: int) -> Array:
    """A vector over channels, shaped to broadcast along axis 1."""
    return v.reshape((1, -1) + (1,) * (ndim - 2))
