"""Mistakes in similarity and in rounding tolerances (K, E)."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from .planting import Function, Mistake, instead


def _uncentred(x: Any, y: Any, *, estimator: str, **options: Any) -> Any:
    from ..formulas import cka

    k, l = (np.asarray(a) @ np.asarray(a).T for a in (x, y))  # noqa: E741
    sums = [float((a * b).sum()) for a, b in ((k, l), (k, k), (l, l))]
    return cka.Similarity(sums[0] / np.sqrt(sums[1] * sums[2]), "ok", *sums)


def _diagonal_kept(f: Function) -> Function:
    """The biased estimate with the unbiased one's denominator."""

    def wrong(k: Any, l: Any, *, estimator: str) -> float:  # noqa: E741
        n = len(k)
        biased = float(f(k, l, estimator="biased"))
        return biased if estimator == "biased" else biased * (n - 1) ** 2 / (n * (n - 3))

    return wrong


def _forgetful(f: Function) -> Function:
    def wrong(self: Any, *features: Any) -> None:
        self._total = None
        f(self, *features)

    return wrong


def _down_to_one(f: Function) -> Function:
    def wrong(network: Any) -> Any:
        from ..analysis import candidates

        return [s.name for stage in candidates.stages(network) if len(stage) > 1 for s in stage[1:] if not s.shortcut]

    return wrong


def _highest(scores: Any) -> Any:
    order = sorted(scores.values(), reverse=True)
    return max(scores, key=lambda name: scores[name]), order[0] - order[1]


def _unbranched(f: Function) -> Function:
    return lambda *a, branches=None, **k: f(*a, **k)


SIMILARITY = (
    Mistake(
        "biased HSIC over n²",
        "formulas.cka:hsic",
        lambda f: lambda k, m, *, estimator: f(k, m, estimator=estimator) * ((len(k) - 1) / len(k)) ** 2,
        ("K1",),
    ),
    Mistake("unbiased HSIC with its diagonals", "formulas.cka:hsic", _diagonal_kept, ("K1",)),
    Mistake(
        "CKA without the root",
        "formulas.cka:cka",
        lambda f: (
            lambda x, y, **o: (lambda s: dataclasses.replace(s, value=None if s.value is None else s.value**2))(f(x, y, **o))
        ),
        ("K2", "K5", "K6", "K7"),
    ),
    Mistake("features not scaled", "formulas.hsic_sums:exponent_of", instead(lambda x: 0), ("K3",)),
    Mistake("features not centred", "formulas.cka:cka", instead(_uncentred), ("K2", "K3", "K5", "K6", "K7")),
    Mistake(
        "biased CKA called unbiased",
        "formulas.cka:cka",
        lambda f: lambda x, y, *, estimator, **o: f(x, y, estimator="biased", **o),
        ("K2", "K5", "K7"),
    ),
    Mistake(
        "mini-batches: CKA of the last batch alone",
        "formulas.cka:MiniBatches.add",
        _forgetful,
        ("K4",),
    ),
    Mistake(
        "degenerate input as a silent NaN",
        "formulas.cka:cka",
        lambda f: (
            lambda x, y, **o: (
                lambda s: dataclasses.replace(s, value=float("nan") if s.value is None else s.value, status="ok")
            )(f(x, y, **o))
        ),
        ("K7",),
    ),
    Mistake("a stage goes down to one block", "analysis.candidates:candidates", _down_to_one, ("K6",)),
    Mistake("the section with the highest score goes", "analysis.scores:ranked", instead(_highest), ("K6",)),
    Mistake(
        "bound of a sum: γ without n",
        "rounding.tolerance:inner_product_bound",
        instead(lambda n, size, unit, *, roundings=0: np.asarray(unit * np.asarray(size))),
        ("E1",),
    ),
    Mistake(
        "size of a sum's rounding error without √n",
        "rounding.noise:inner_product_noise",
        instead(lambda n, s, q: np.sqrt(s * s / 3 + q / 6)),
        ("E2",),
    ),
    Mistake("given branches not taken", "passes.tape:forward", _unbranched, ("E3", "G3")),
    Mistake(
        "tolerance of a network 1000 times too wide",
        "rounding.tolerance:network_tolerance",
        lambda f: lambda *a, **k: f(*a, factor=12000.0, **k),
        ("E4",),
    ),
    Mistake(
        "tolerance of a network 100 times too narrow",
        "rounding.tolerance:network_tolerance",
        lambda f: lambda *a, **k: f(*a, factor=0.12, **k),
        ("E4",),
    ),
)
