"""Known mistakes in the dynamics and the pruning rules made of them (SPEC D)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from ..arrays import Array
from ..gates.dynamics import Flow
from ..gates.rules import Evidence, Rule
from .planting import Function, Mistake, instead, options, result


def _unprojected(field: Any, weights: Array, theta: Array, until: float, **_: Any) -> Flow:
    """θ goes wherever its drive leads."""
    from scipy.integrate import solve_ivp

    n = weights.size
    y = np.concatenate([weights, theta])
    found = solve_ivp(lambda _, y: np.concatenate(field(y[:n], y[n:])), (0.0, until), y, method="DOP853", rtol=1e-9, atol=1e-12)
    return Flow(found.t, found.y[:n].T, found.y[n:].T, ())


def _other_way(w: Array, theta: Array, *, kappa: Array, beta: Array, decay: Array, ratio: Array, floor: float = 0.0) -> Array:
    """θ* − θ in the place of θ − θ*."""
    slope = 0.5 * (decay + np.sqrt(decay**2 + 4.0 * ratio * kappa**2))
    inside: Array = ratio * (kappa * w - beta) - slope * (theta - decay * beta / kappa**2) < 0.0
    return inside


def _property(value: Function) -> Any:
    """A property of another value."""
    return lambda _: property(value)


def _of_right(change: Function) -> Any:
    """A property whose right value is put through `change`."""
    return lambda right: property(lambda c: change(right.fget(c)))


def _decayed_twice(f: Function) -> Function:
    return lambda self, w, theta: f(dataclasses.replace(self, decay=2.0 * self.decay), w, theta)


def _with_rule(**changes: Any) -> Any:
    """`attracted` by another rule."""
    return lambda f: (
        lambda network, params, theta, evidence, rule: f(network, params, theta, evidence, dataclasses.replace(rule, **changes))
    )


def _dropped(name: str) -> Callable[[Function], Function]:
    """`network_field` with a constant that is 0."""
    return options(**{name: lambda value: 0.0})


def _smallest(f: Function) -> Function:
    """The smallest slope in the place of the largest."""

    def wrong(network: Any, gradients: Any, evidence: Evidence) -> Evidence:
        slope, seen, bias = evidence
        now, count, bias = f(network, gradients, Evidence(np.zeros_like(slope), seen, bias))
        return Evidence(np.where(seen == 0, now, np.minimum(slope, now)), count, bias)

    return wrong


def _either(f: Function) -> Function:
    """`both` removes what one of the rules would."""

    def wrong(network: Any, params: Any, theta: Array, evidence: Evidence, rule: Rule) -> Array:
        kinds = ("threshold", "attraction") if rule.kind == "both" else (rule.kind,)
        keeps = [f(network, params, theta, evidence, dataclasses.replace(rule, kind=kind)) for kind in kinds]
        found: Array = np.logical_and.reduce(keeps)
        return found

    return wrong


DYNAMICS: tuple[Mistake, ...] = (
    Mistake("flow without projection", "gates.dynamics:projected_flow", instead(_unprojected), ("D2",)),
    Mistake("an end is never left", "gates.dynamics:drives_outwards", instead(lambda t, d: (t <= 0.0) | (t >= 1.0)), ("D2",)),
    Mistake(
        "saddle at half of λ",
        "gates.dynamics:Comparison.saddle",
        _property(lambda c: (c.beta / c.kappa, 0.5 * c.decay * c.beta / c.kappa**2)),
        ("D3", "D5"),
    ),
    Mistake(
        "eigenvalues of λ = 0",
        "gates.dynamics:Comparison.eigenvalues",
        _property(lambda c: (c.kappa * c.ratio**0.5, -c.kappa * c.ratio**0.5)),
        ("D3",),
    ),
    Mistake("κ too small", "gates.dynamics:in_domain", options(kappa=lambda kappa: 0.7 * kappa), ("D4", "D5", "D6")),
    Mistake("r left out", "gates.dynamics:in_domain", options(ratio=lambda ratio: 1.0), ("D4", "D6")),
    Mistake("sign of θ − θ*", "gates.dynamics:in_domain", instead(_other_way), ("D4", "D5", "D6")),
    Mistake("time bound too short", "gates.dynamics:Comparison.time_bound", result(lambda t: 0.3 * t), ("D4",)),
    Mistake(
        "block without its bias",
        "gates.closing_weights:closing_block",
        result(lambda b: b._replace(names=b.names[:1])),
        ("D1", "D7"),
    ),
    Mistake(
        "a unit's row for its column", "gates.closing_weights:closing_block", result(lambda b: b._replace(axis=0)), ("D7",)
    ),
    Mistake("norm not drawn the root of", "gates.closing_weights:block_norms", result(np.square), ("D1", "D7")),
    Mistake("w_c five times too large", "gates.dynamics:Comparison.radius", _of_right(lambda w: 5.0 * w), ("D4",)),
    Mistake("comparison with twice the decay", "gates.dynamics:Comparison.velocity", _decayed_twice, ("D2", "D3")),
    Mistake("field without its pull", "gates.dynamics:network_field", _dropped("beta"), ("D2",)),
    Mistake("field without decay", "gates.dynamics:network_field", _dropped("decay"), ("D2",)),
    Mistake("smallest slope taken for κ", "gates.rules:observe", _smallest, ("D6",)),
    Mistake(
        "steps with a closed gate counted",
        "gates.rules:observe",
        lambda f: lambda n, g, evidence: f(n, g, evidence)._replace(seen=evidence.seen + 1),
        ("D6",),
    ),
    Mistake("either rule is enough", "gates.rules:rule_keep", _either, ("D6",)),
    Mistake(
        "a plain layer may lose all its units", "gates.surgery:spare_plain_layers", instead(lambda n, keep, t: keep), ("O7",)
    ),
    Mistake(
        "weights taken to stay",
        "gates.joint_domain:ceiling",
        instead(lambda w, drive, decay: np.asarray(w)),
        ("D8",),
    ),
    Mistake(
        "section in the box without its bias",
        "gates.joint_domain:section_box",
        lambda f: lambda columns, bias, theta, **k: f(columns, bias._replace(w=0.0, kappa=0.0), theta, **k),
        ("D8",),
    ),
    Mistake(
        "units of a section taken to be open",
        "gates.joint_domain:section_box",
        lambda f: lambda columns, bias, theta, **k: f(columns._replace(theta=np.ones_like(columns.theta)), bias, theta, **k),
        ("D8",),
    ),
    Mistake("every activation scales", "gates.closing_weights:scales", instead(lambda layer: True), ("D9",)),
    Mistake("no activation scales", "gates.closing_weights:scales", instead(lambda layer: False), ("D9",)),
    Mistake("κ without its factor", "gates.rules:attracted", _with_rule(kappa_factor=1.0), ("D6",)),
    Mistake("rule without its warm-up", "gates.rules:attracted", _with_rule(kappa_warmup=1), ("D6",)),
)
