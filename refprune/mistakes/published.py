"""Mistakes that were found in public code, with where; facts alone are taken from there, no code.

`validation/published_mistakes.py` makes each of them again, in PyTorch, as its source made it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..arrays import Array
from ..formulas import cka
from ..spec.layers import Conv
from ..spec.network import Network
from .planting import Function, Mistake, instead


def _diagonal_as_a_row(f: Function) -> Function:
    """The unbiased formula, with the diagonal subtracted from every row."""

    def wrong(k: Array, l: Array, *, estimator: str) -> float:  # noqa: E741
        if estimator == "biased":
            return float(f(k, l, estimator=estimator))
        n = len(k)
        k, l = (a - np.diagonal(a) for a in (k, l))  # noqa: E741
        total = np.trace(k @ l) + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2.0 / (n - 2) * (k.sum(axis=0) @ l.sum(axis=0))
        return float(total / (n * (n - 3)))

    return wrong


def _uncentred(x: Array) -> Array:
    product: Array = x @ x.T
    return product


def _rootless(f: Function) -> Function:
    def wrong(*a: Any, **k: Any) -> Any:
        s = f(*a, **k)
        return cka.Similarity(s.hsic_xy / (s.hsic_xx * s.hsic_yy), s.status, s.hsic_xy, s.hsic_xx, s.hsic_yy)

    return wrong


def _without_floor(network: Network) -> float:
    """Output sizes of convolutions as fractions, and all input channels for every group."""
    total = 0.0
    for layer, shape in network.placed():
        if isinstance(layer, Conv):
            sizes = [
                (size + sum(around) - kernel) / stride + 1.0
                for size, around, kernel, stride in zip(shape[1:], layer.padding, layer.kernel, layer.stride, strict=True)
            ]
            total += layer.channels * math.prod(layer.kernel) * shape[0] * math.prod(sizes)
        else:
            total += layer.macs(shape)
    return total


def _depthwise_with_pointwise(network: Network) -> int:
    """A convolution of single channels pays for a 1×1 convolution of all of them as well."""
    total = 0
    for layer, shape in network.placed():
        total += layer.macs(shape)
        if isinstance(layer, Conv) and layer.groups == shape[0] > 1:
            total += math.prod(layer.output_shape(shape)) * shape[0]
    return total


PUBLIC: tuple[Mistake, ...] = (
    # clovaai/rebias, criterions/hsic.py; Cogito2012/DEAR issue 4; dmarx/cka_pytorch issue 2. With an RBF kernel, whose diagonal
    # is 1 everywhere, it does no harm: both HSICs of K and of K with a constant off its diagonal are the same.
    Mistake(
        "diagonal subtracted from every row",
        "formulas.cka:hsic",
        _diagonal_as_a_row,
        ("K1",),
        also=(("conformance.levels.similarity:centred_gram", instead(_uncentred)),),
    ),
    # Project-MONAI/MONAI, monai/metrics/embedding_collapse.py, pull request 9129
    Mistake(
        "biased HSIC called unbiased",
        "formulas.cka:hsic",
        lambda f: lambda k, m, *, estimator: f(k, m, estimator="biased"),
        ("K1",),
    ),
    # ahwillia/netrep, netrep/metrics/cka.py, pull request 19
    Mistake("CKA's denominator without its root", "formulas.cka:cka", _rootless, ("K2",)),
    # AMLab-Amsterdam/L0_regularization, l0_layers.py, L0Conv2d.count_expected_flops_and_l0
    Mistake("fractional output sizes, groups ignored", "spec.cost:macs", instead(_without_floor), ("N6",)),
    # IanPons/CKA-Layer-Pruning, main.py
    Mistake("depthwise convolutions with a pointwise one", "spec.cost:macs", instead(_depthwise_with_pointwise), ("N6",)),
)
