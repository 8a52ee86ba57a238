"""Mistakes in the objective, estimators and training (O)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from ..spec.layers import Section
from .planting import Function, Mistake, instead, result


def _without_theta(f: Function) -> Function:
    """The mean over gate vectors that are on, weighted equally."""

    def wrong(loss: Any, theta: Any) -> Any:
        return f(loss, np.full_like(theta, 0.5))

    return wrong


def _at_the_mean(loss: Any, theta: Any) -> float:
    return float(loss.evaluate(theta).loss)


def _biased(change: Callable[[Any, Any], Any]) -> Callable[[Function], Function]:
    """An estimator whose value is put through change(gradient, θ)."""

    def wrong(f: Function) -> Function:
        def g(sampled: Any) -> Any:
            found = f(sampled)
            return found._replace(gradient=change(found.gradient, sampled.theta))

        return g

    return wrong


def _as_if_on(f: Function) -> Function:
    """The weights of every gated section get E[∂c/∂W | ξ = 1] (O3)."""

    def wrong(loss: Any, theta: Any) -> Any:
        found = f(loss, theta)
        for section in loss.network.layers:
            if isinstance(section, Section) and section.gate:
                on = theta.copy()
                on[loss.network.gate_slices[section.name]] = 1.0
                names = {part.name for part in section.path}
                found |= {n: g for n, g in f(loss, on).items() if n.rpartition(".")[0] in names}
        return found

    return wrong


def _unsigned(f: Function) -> Function:
    """c(Ξ) minus c with the gate flipped, also where the gate is closed."""

    def wrong(sampled: Any) -> Any:
        found = f(sampled)
        return found._replace(gradient=found.gradient * (2.0 * sampled.base.tape.gates - 1.0))

    return wrong


def _dampened(w: Any, v: Any, g: Any, *, learning_rate: float, momentum: float, decay: float) -> Any:
    velocity = momentum * v + (1 - momentum) * (g + decay * w)
    return w - learning_rate * velocity, velocity


def _undecayed(f: Function) -> Function:
    def wrong(state: Any, x: Any, labels: Any, config: Any, backend: Any, **k: Any) -> Any:
        plain = dataclasses.replace(config, objective=dataclasses.replace(config.objective, weight_decay=0.0))
        return f(state, x, labels, plain, backend, **k)

    return wrong


def _unpowered(f: Function) -> Function:
    """Step sizes that fall like 1/t, whatever the power."""

    def wrong(config: Any, step: int, steps: int) -> float:
        return float(
            f(dataclasses.replace(config, optimiser=dataclasses.replace(config.optimiser, schedule_power=1.0)), step, steps)
        )

    return wrong


def _statistics_swapped(f: Function) -> Function:
    def wrong(network: Any, statistics: Any, batch: Any) -> Any:
        return f(network, statistics, {n: (m, v * (c - 1) / c, c) for n, (m, v, c) in batch.items()})

    return wrong


def _decides_the_other_way(f: Function) -> Function:
    def wrong(*a: Any, **k: Any) -> Any:
        gates, decisions, macs = f(*a, **k)
        return 1.0 - gates, [d._replace(on=not d.on) for d in decisions], macs

    return wrong


OBJECTIVE = (
    Mistake(
        "scaling of the data set ignored",
        "training.coefficients:penalties",
        instead(lambda c, n: (c.objective.beta, c.objective.weight_decay)),
        ("O1",),
    ),
    Mistake(
        "loss at the mean gates instead of the mean loss",
        "gates.estimators:exact_expectation",
        instead(_at_the_mean),
        ("O1", "O2", "O4"),
    ),
    Mistake("∂C/∂θ times θ", "gates.estimators:exact_theta_gradient", lambda f: lambda loss, t: f(loss, t) * t, ("O2", "O5")),
    Mistake("∂C/∂W of equally likely gates", "gates.estimators:exact_weight_gradient", _without_theta, ("O3",)),
    Mistake("θ forgotten in ∂C/∂W", "gates.estimators:exact_weight_gradient", _as_if_on, ("O3",)),
    Mistake("sign of ∂C/∂θ", "gates.estimators:exact_theta_gradient", result(np.negative), ("O2", "O4", "O5")),
    Mistake(
        "mixed derivative times θ", "gates.saddle:mixed_derivative", lambda f: lambda t, w, d: f(t, w, d) * t * t, ("O10",)
    ),
    Mistake(
        "curvature left out of the escape",
        "gates.saddle:escape",
        lambda f: lambda theta, norm, decay, curvature: f(theta, norm, decay, 0.0),
        ("O10",),
    ),
    Mistake("paired with the sign of a closed gate forgotten", "gates.estimators:paired", _unsigned, ("O5",)),
    Mistake("reinforce without its denominator", "gates.estimators:reinforce", _biased(lambda g, t: g * t * (1 - t)), ("O5",)),
    Mistake("arm without the chain rule to θ", "gates.estimators:arm", _biased(lambda g, t: g * t * (1 - t)), ("O5",)),
    Mistake("disarm without its half", "gates.estimators:disarm", _biased(lambda g, t: 2 * g), ("O5",)),
    Mistake("taylor weighted by θ", "gates.estimators:taylor", _biased(lambda g, t: g * t), ("O5",)),
    Mistake("projection forgotten", "training.state:project_theta", instead(lambda theta, config: theta), ("O6",)),
    Mistake("momentum with dampening", "oracle.momentum:momentum_step", instead(_dampened), ("O6",)),
    Mistake("a step without weight decay", "training.step:train_step", _undecayed, ("O6",)),
    Mistake("schedule without effect", "training.coefficients:schedule_factor", instead(lambda kind, progress: 1.0), ("O6",)),
    Mistake("falling schedule without its power", "training.coefficients:step_factor", _unpowered, ("O6",)),
    Mistake(
        "momenta lost at a removal",
        "training.removal:cut_state",
        lambda f: (
            lambda s, c: dataclasses.replace(f(s, c), velocity={n: np.zeros_like(v) for n, v in f(s, c).velocity.items()})
        ),
        ("O7",),
    ),
    Mistake(
        "the other gates are removed",
        "training.removal:remove_gates",
        lambda f: lambda s, keep, c, **k: f(s, ~keep, c, **k),
        ("O7",),
    ),
    Mistake("θ < τ instead of θ ≤ τ", "gates.rules:above", instead(lambda t, tau: t >= tau), ("O7",)),
    Mistake(
        "step left out of the stream's name", "streams:Streams.words", lambda f: lambda self, p, s, n: f(self, p, 0, n), ("O8",)
    ),
    Mistake("uniforms of 52 bits", "streams:Streams.uniform", result(lambda u: np.floor(u * 2.0**52) / 2.0**52), ("O8",)),
    Mistake("normals of twice the variance", "streams:Streams.normal", result(lambda z: np.sqrt(2) * z), ("O8",)),
    Mistake("permutation reversed", "streams:Streams.permutation", result(lambda p: p[::-1]), ("O8",)),
    Mistake("the worse vertex is taken", "training.decide:decide", _decides_the_other_way, ("O9", "C4")),
    Mistake("undecided gates not listed", "training.decide:decide", result(lambda r: (r[0], [], r[2])), ("O9", "C4")),
    Mistake("biased variance in the running average", "passes.statistics:update_statistics", _statistics_swapped, ("O9",)),
)
