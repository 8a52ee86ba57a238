"""HSIC and CKA of two feature arrays (K1, K2, K4).

Tolerance (E2, *derived here*): that of the formulas as they stand, on n×n kernels of centred features. Every entry of a kernel
errs like an inner product of p terms, of the size of both vectors' norms; every summand of HSIC like a sum of n² products.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from ...arrays import Array, Arrays
from ...backend import ORACLE, Backend
from ...formulas import cka
from ...rounding.tolerance import LAYER_FACTOR, smallest_normal
from ..asking.methods import Arguments, Description, Method, Question, fixed
from ..judging.verdicts import Expectation
from ..strategies.structures import few


class Features(NamedTuple):
    """n×p and n×q, related or not, off the origin; `batch` is () or how many there are of one size. options: of the call."""

    batch: tuple[int, ...]
    n: int
    p: int
    q: int
    noise: float
    options: dict[str, str]
    seed: int

    def reseeded(self, seed: int) -> Features:
        return self._replace(seed=seed)

    def arguments(self) -> Arguments:
        rng = np.random.default_rng(self.seed)
        x = rng.standard_normal((*self.batch, self.n, self.p))
        y = x @ rng.standard_normal((self.p, self.q)) + self.noise * rng.standard_normal((*self.batch, self.n, self.q))
        return {"x": x + rng.uniform(-1.0, 1.0, self.p), "y": y + rng.uniform(-1.0, 1.0, self.q), **self.options}


def _draw(
    least: int, *, batches: bool = False, **options: tuple[str, ...]
) -> Callable[[Description], st.SearchStrategy[Arguments]]:
    """Features of `least` to 9 examples, with `batches` several of them, and values of the options."""
    batch: st.SearchStrategy[tuple[int, ...]] = st.tuples(*[st.integers(1, 3)] * batches)
    width, noise, seed = st.integers(1, 6), st.sampled_from((0.25, 2.0)), st.integers(0, 2**32 - 1)
    chosen = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in options.items()})
    cases = st.builds(Features, batch, st.integers(least, 9), width, width, noise, chosen, seed)
    return lambda described: few(cases, described.structures, described.seed).map(Features.arguments)


_ESTIMATORS = ("biased", "unbiased")

#: n, p, q around the blocks of compiled code and beyond a thousand features.
_SIZES = ((9, 3, 17), (17, 9, 8), (33, 65, 2), (65, 7, 33), (129, 3, 4), (10, 129, 300), (12, 1025, 5))


def _standing(least: int, *, batches: bool = False, **options: tuple[str, ...]) -> Callable[[Description], list[Question]]:
    """Every option at every size; where distances are squared, also two clusters, whose median lies between far numbers."""

    def standing(described: Description) -> list[Question]:
        questions = []
        chosen = [dict(zip(options, values, strict=True)) for values in itertools.product(*options.values())]
        for number, ((n, p, q), given) in enumerate(itertools.product(_SIZES, chosen)):
            seed, batch = 2**16 * described.seed + number, (3,) * batches

            def make(sizes: tuple[int, ...], given: dict[str, str] = given, seed: int = seed, batch: Any = batch) -> Arguments:
                return Features(batch, sizes[0], sizes[1], sizes[2], 0.25, given, seed).arguments()

            questions.append(Question(make, (n, p, q), (least, 1, 1)))
        return questions + [fixed(_clusters(o)) for o in chosen if o.get("kernel") == "rbf"]

    return standing


def _clusters(options: dict[str, str]) -> Arguments:
    """Three examples far from six: 18 small distances and 18 large ones, so that the median is the mean of one of each."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((9, 2)) + 4.0 * (np.arange(9) < 3)[:, None]
    return {"x": x, "y": x @ rng.standard_normal((2, 3)) + 0.25 * rng.standard_normal((9, 3)), **options}


def centred_gram(x: Array) -> Array:
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
    k, l = (centred_gram(arguments[name]) for name in ("x", "y"))  # noqa: E741
    return {"hsic": np.asarray(cka.hsic(k, l, estimator=arguments["estimator"]))}


def _hsic_expectation(arguments: Arguments, unit: float) -> Expectation:
    k, l = (centred_gram(arguments[name]) for name in ("x", "y"))  # noqa: E741
    n, rank = len(k), max(arguments[name].shape[1] for name in ("x", "y"))
    size = _hsic_size(k, l, rank) / ((n - 1) ** 2 if arguments["estimator"] == "biased" else n * (n - 3))
    return Expectation(_hsic(arguments, ORACLE), {"hsic": np.asarray(LAYER_FACTOR * unit * size + smallest_normal(unit))})


def _cka(arguments: Arguments, backend: Backend) -> Arrays:
    options = {name: arguments[name] for name in ("estimator", "kernel")}
    found = cka.cka(arguments["x"], arguments["y"], product=backend.cross_product, **options)
    return {"cka": np.asarray(np.nan if found.value is None else found.value)}


def _cka_expectation(arguments: Arguments, unit: float) -> Expectation:
    kernel = centred_gram if arguments["kernel"] == "linear" else _rbf
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
    grams = [(centred_gram(x), centred_gram(y)) for x, y in zip(arguments["x"], arguments["y"], strict=True)]
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
        _draw(4, estimator=_ESTIMATORS),
        _hsic,
        _hsic_expectation,
        standing=_standing(4, estimator=_ESTIMATORS),
    ),
    Method(
        "cka",
        "similarity",
        ("cka",),
        _draw(5, estimator=_ESTIMATORS, kernel=("linear", "rbf")),
        _cka,
        _cka_expectation,
        standing=_standing(5, estimator=_ESTIMATORS, kernel=("linear", "rbf")),
    ),
    Method(
        "minibatch_cka",
        "similarity",
        ("minibatch_cka",),
        _draw(5, batches=True),
        _minibatch,
        _minibatch_expectation,
        standing=_standing(5, batches=True),
    ),
)
