"""HSIC and CKA of two feature arrays (K1, K2, K4).

Tolerance (E2, *derived here*): that of the formulas as they stand, on n×n kernels of centred features. Every entry of a kernel
errs like an inner product of p terms, of the size of both vectors' norms; every summand of HSIC like a sum of n² products.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from ... import cka
from ...backend import ORACLE, Backend
from ...layers import Array
from ...network import Arrays
from ...rounding import LAYER_FACTOR, smallest_normal
from ..methods import Arguments, Method
from ..verdicts import Expectation


@st.composite
def _features(draw: st.DrawFn, *, least: int, batches: bool = False) -> dict[str, Any]:
    """n×p and n×q, related or not, off the origin; with `batches` several of one size."""
    n, p, q = draw(st.integers(least, 9)), draw(st.integers(1, 6)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (draw(st.integers(1, 3)),) if batches else ()
    x = rng.standard_normal((*shape, n, p))
    y = x @ rng.standard_normal((p, q)) + draw(st.sampled_from((0.25, 2.0))) * rng.standard_normal((*shape, n, q))
    return {"x": x + rng.uniform(-1.0, 1.0, p), "y": y + rng.uniform(-1.0, 1.0, q)}


_ESTIMATORS = st.sampled_from(("biased", "unbiased"))


def _gram(x: Array) -> Array:
    centred = x - x.mean(axis=0)
    product: Array = centred @ centred.T
    return product


def _rbf(x: Array) -> Array:
    squares = np.square(x[:, None] - x[None]).sum(axis=2)
    distances: Array = np.exp(-squares / (2.0 * cka.median_distance(x) ** 2))
    return distances


def _hsic_size(k: Array, l: Array, rank: int) -> float:  # noqa: E741
    """Size of HSIC's error in units of u, times (n−1)²: of its sums, and of the kernels' entries."""
    n = len(k)
    norms = float(np.linalg.norm(k) * np.linalg.norm(l))
    totals = float(np.abs(k).sum() * np.abs(l).sum()) / n**2
    return float((np.sqrt(n) + np.sqrt(rank) + 2.0) * (norms + totals))


def _ratio_tolerance(value: float, sums: list[tuple[float, float]], unit: float) -> Array:
    """Of a/√(bc) from (value, error in u) of a, b, c."""
    (_, da), (b, db), (c, dc) = sums
    size = da / np.sqrt(b * c) + 0.5 * abs(value) * (db / b + dc / c) + abs(value)
    return np.asarray(LAYER_FACTOR * unit * size + smallest_normal(unit))


def _hsic(arguments: Arguments, backend: Backend) -> Arrays:
    k, l = (_gram(arguments[name]) for name in ("x", "y"))  # noqa: E741
    return {"hsic": np.asarray(cka.hsic(k, l, estimator=arguments["estimator"]))}


def _hsic_expectation(arguments: Arguments, unit: float) -> Expectation:
    k, l = (_gram(arguments[name]) for name in ("x", "y"))  # noqa: E741
    n, rank = len(k), max(arguments[name].shape[1] for name in ("x", "y"))
    size = _hsic_size(k, l, rank) / ((n - 1) ** 2 if arguments["estimator"] == "biased" else n * (n - 3))
    return Expectation(_hsic(arguments, ORACLE), {"hsic": np.asarray(LAYER_FACTOR * unit * size + smallest_normal(unit))})


def _cka(arguments: Arguments, backend: Backend) -> Arrays:
    options = {name: arguments[name] for name in ("estimator", "kernel")}
    found = cka.cka(arguments["x"], arguments["y"], product=backend.cross_product, **options)
    return {"cka": np.asarray(np.nan if found.value is None else found.value)}


def _cka_expectation(arguments: Arguments, unit: float) -> Expectation:
    kernel = _gram if arguments["kernel"] == "linear" else _rbf
    k, l = (kernel(arguments[name]) for name in ("x", "y"))  # noqa: E741
    rank = max(arguments[name].shape[1] for name in ("x", "y")) + (4 if arguments["kernel"] == "rbf" else 0)
    right = _cka(arguments, ORACLE)
    divisor = (len(k) - 1) ** 2 if arguments["estimator"] == "biased" else len(k) * (len(k) - 3)
    pairs = ((k, l), (k, k), (l, l))
    sums = [(cka.hsic(a, b, estimator=arguments["estimator"]) * divisor, _hsic_size(a, b, rank)) for a, b in pairs]
    return Expectation(right, {"cka": _ratio_tolerance(float(right["cka"]), sums, unit)})


def _minibatch(arguments: Arguments, backend: Backend) -> Arrays:
    batches = cka.MiniBatches(product=backend.cross_product)
    for x, y in zip(arguments["x"], arguments["y"], strict=True):
        batches.add(x, y)
    value = batches.result().value
    return {"minibatch_cka": np.asarray(np.nan if value is None else value)}


def _minibatch_expectation(arguments: Arguments, unit: float) -> Expectation:
    grams = [(_gram(x), _gram(y)) for x, y in zip(arguments["x"], arguments["y"], strict=True)]
    rank = max(arguments[name].shape[2] for name in ("x", "y"))
    n = arguments["x"].shape[1]
    sums = []
    for i, j in ((0, 1), (0, 0), (1, 1)):
        total = sum(cka.hsic(g[i], g[j], estimator="unbiased") for g in grams) * n * (n - 3)
        sums.append((total, sum(_hsic_size(g[i], g[j], rank) for g in grams)))
    right = _minibatch(arguments, ORACLE)
    return Expectation(right, {"minibatch_cka": _ratio_tolerance(float(right["minibatch_cka"]), sums, unit)})


METHODS: tuple[Method, ...] = (
    Method(
        "hsic",
        "similarity",
        ("hsic",),
        lambda described: st.tuples(_features(least=4), _ESTIMATORS).map(lambda p: p[0] | {"estimator": p[1]}),
        _hsic,
        _hsic_expectation,
    ),
    Method(
        "cka",
        "similarity",
        ("cka",),
        lambda described: st.tuples(_features(least=5), _ESTIMATORS, st.sampled_from(("linear", "rbf"))).map(
            lambda p: p[0] | {"estimator": p[1], "kernel": p[2]}
        ),
        _cka,
        _cka_expectation,
    ),
    Method(
        "minibatch_cka",
        "similarity",
        ("minibatch_cka",),
        lambda described: _features(least=5, batches=True),
        _minibatch,
        _minibatch_expectation,
    ),
)
