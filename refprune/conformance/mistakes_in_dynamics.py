"""Known mistakes in the dynamics and the pruning rules made of them (SPEC D)."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ..dynamics import Flow
from ..layers import Array
from .planting import Function, Mistake, instead, options, result


def _unprojected(field: Any, weights: Array, theta: Array, until: float, **_: Any) -> Flow:
    """θ goes wherever its drive leads."""
    from scipy.integrate import solve_ivp

    n = weights.size
    y = np.concatenate([weights, theta])
    found = solve_ivp(lambda _, y: np.concatenate(field(y[:n], y[n:])), (0.0, until), y, method="DOP853", rtol=1e-9, atol=1e-12)
    return Flow(found.t, found.y[:n].T, found.y[n:].T, ())


def _other_way(f: Function) -> Function:
    """θ* − θ in the place of θ − θ*."""

    def wrong(w: Array, theta: Array, *, kappa: Array, beta: float, decay: Array, **k: Any) -> Array:
        found: Array = f(w, 2.0 * decay * beta / kappa**2 - theta, kappa=kappa, beta=beta, decay=decay, **k)
        return found

    return wrong


def _property(value: Function) -> Any:
    """A property of another value."""
    return lambda _: property(value)


def _with_gates(**changes: Any) -> Any:
    """`attracted` with other rules."""

    def plant(f: Function) -> Function:
        def wrong(n: Any, p: Any, t: Any, s: Any, seen: Any, c: Any, **k: Any) -> Any:
            return f(n, p, t, s, seen, dataclasses.replace(c, gates=dataclasses.replace(c.gates, **changes)), **k)

        return wrong

    return plant


DYNAMICS: tuple[Mistake, ...] = (
    Mistake("flow without projection", "dynamics:projected_flow", instead(_unprojected), ("D2",)),
    Mistake("an end is never left", "dynamics:_outwards", instead(lambda t, d: (t <= 0.0) | (t >= 1.0)), ("D2",)),
    Mistake(
        "saddle at λ = 1",
        "dynamics:Comparison.saddle",
        _property(lambda c: (c.beta / c.kappa, c.beta / c.kappa**2)),
        ("D3", "D5"),
    ),
    Mistake(
        "eigenvalues of λ = 0",
        "dynamics:Comparison.eigenvalues",
        _property(lambda c: (c.kappa * c.ratio**0.5, -c.kappa * c.ratio**0.5)),
        ("D3",),
    ),
    Mistake("κ too small", "dynamics:in_domain", options(kappa=lambda kappa: 0.7 * kappa), ("D4", "D5", "D6")),
    Mistake("r left out", "dynamics:in_domain", options(ratio=lambda ratio: 1.0), ("D4", "D6")),
    Mistake("sign of θ − θ*", "dynamics:in_domain", _other_way, ("D4", "D5", "D6")),
    Mistake("time bound too short", "dynamics:Comparison.time_bound", result(lambda t: 0.3 * t), ("D4",)),
    Mistake("block without its bias", "blocks:_block", result(lambda b: b._replace(names=b.names[:1])), ("D1", "D7")),
    Mistake("a unit's row for its column", "blocks:_block", result(lambda b: b._replace(axis=0)), ("D7",)),
    Mistake("norm not drawn the root of", "blocks:block_norms", result(np.square), ("D1", "D7")),
    Mistake("κ without its factor", "pruning:attracted", _with_gates(kappa_factor=1.0), ("D6",)),
    Mistake("rule without its warm-up", "pruning:attracted", _with_gates(kappa_warmup=1), ("D6",)),
)
