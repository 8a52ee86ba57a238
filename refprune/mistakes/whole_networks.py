"""Mistakes in how gated networks are put together, trained and cut, forward and backward wrong together.

They are those of implementations with automatic differentiation; refprune's own audit is not tested with them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ..arrays import Array
from ..gates import estimators
from ..spec.layers import BatchNorm, Conv, Dense, Layer, Section, UnitGate
from .planting import Function, Mistake, gradient, instead, options, output, result


def _last_affine(section: Section) -> int:
    return max(i for i, layer in enumerate(section.path) if isinstance(layer, (Dense, Conv)))


def _before_norm(section: Section) -> int:
    """Behind the last affine map, where a batch-norm follows it at once; else where it belongs."""
    at = _last_affine(section) + 1
    if at < len(section.path) and isinstance(section.path[at], BatchNorm):
        return at
    return len(section.path) if section.gate_place == "path" else at


def gates_first(chain: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Every unit gate directly behind the affine map that makes its units: before batch-norm and activation."""
    found: list[Layer] = []
    for layer in chain:
        if isinstance(layer, UnitGate):
            at = max(i for i, before in enumerate(found) if isinstance(before, (Dense, Conv))) + 1
            found.insert(at, layer)
        else:
            found.append(layer)
    return tuple(found)


def _reordered(layer: Layer) -> Layer:
    return dataclasses.replace(layer, path=gates_first(layer.path)) if isinstance(layer, Section) else layer


def _gates_before_norms(f: Function) -> Function:
    return lambda layers, *a, **k: f(gates_first(tuple(map(_reordered, layers))), *a, **k)


def _without_post(f: Function) -> Function:
    def bare(layer: Layer) -> Layer:
        return dataclasses.replace(layer, post="identity") if isinstance(layer, Section) else layer

    return lambda layers, *a, **k: f(tuple(map(bare, layers)), *a, **k)


def _one_minus_momentum(network: Any, statistics: Any, batch: Any) -> Any:
    updated = dict(statistics)
    for layer in network.norms:
        if layer.name in batch:
            mean, variance, count = batch[layer.name]
            variance = variance * (count / (count - 1)) if layer.running_variance == "unbiased" else variance
            kept = layer.momentum if layer.momentum_of == "batch" else 1.0 - layer.momentum
            for key, value in (("mean", mean), ("variance", variance)):
                updated[f"{layer.name}.{key}"] = kept * statistics[f"{layer.name}.{key}"] + (1.0 - kept) * value
    return updated


def _open_section(self: Any, step: Any, dy: Array) -> Array:
    """Backward through a section that knows no closed path."""
    dy = self.chain(step.post, dy)
    dshortcut, dpath = self.tape.backend.add_vjp(step.saved, dy)
    dx: Array = self.chain(step.path, dpath) + self.chain(step.shortcut, dshortcut)
    return dx


def _mean_slope(loss: Any, theta: Array) -> Array:
    """E[∂c/∂ξ]."""
    slope = np.zeros(theta.size)
    for gates, probability in estimators.enumerate_gates(theta):
        slope += probability * loss.gradients(loss.evaluate(gates, run_closed=True)).gates
    return slope


def _slope_at_the_mean(loss: Any, theta: Array) -> Array:
    found: Array = loss.gradients(loss.evaluate(theta, run_closed=True)).gates
    return found


def _own_baseline(f: Function) -> Function:
    def wrong(sampled: Any) -> Any:
        k = len(sampled.uniform)
        found = f(sampled)
        return found._replace(gradient=found.gradient * (k - 1) / k) if k > 1 else found

    return wrong


def _summed(f: Function) -> Function:
    def wrong(sampled: Any) -> Any:
        found = f(sampled)
        return found._replace(gradient=found.gradient * len(sampled.loss.x))

    return wrong


def _untouched(f: Function) -> Function:
    return lambda w, v, g, **k: f(w, v, g, **k) if np.any(g) else (w, v)


def _matrices_alone(f: Function) -> Function:
    return lambda w, v, g, *, decay, **k: f(w, v, g, decay=decay if w.ndim > 1 else 0.0, **k)


def _after_the_weights(f: Function) -> Function:
    """The same batch and gates, with the weights that the step has made."""

    def wrong(step: Any, kind: str, theta: Array) -> Any:
        loss = dataclasses.replace(step.loss, params=step.params)
        evaluation = loss.evaluate(step.evaluation.tape.gates, run_closed=True)
        return f(step._replace(loss=loss, evaluation=evaluation, gradients=loss.gradients(evaluation)), kind, theta)

    return wrong


def _norms_cut_at_the_end(f: Function) -> Function:
    def wrong(self: Any, old: Any) -> Any:
        right = f(self, old)
        keys = (".gain", ".mean", ".variance")
        return {n: np.ascontiguousarray(old[n][: len(a)]) if n.endswith(keys) else a for n, a in right.items()}

    return wrong


NETWORKS = (
    Mistake(
        "section without its shortcut, forward and backward",
        "oracle.layers:add",
        output(lambda y, shortcut, path: y - shortcut),
        ("N1", "G1"),
        also=(("oracle.layers:add_vjp", gradient(0, lambda g, saved, dy: np.zeros_like(g))),),
    ),
    Mistake(
        "straight-through gate: dx = dy, no gradient for the gate",
        "oracle.layers:gate_vjp",
        lambda f: lambda saved, dy: (dy, np.zeros_like(f(saved, dy)[1])),
        ("N4", "O3", "G1"),
        also=(("passes.tape:_Backward.section", instead(_open_section)),),
    ),
    Mistake(
        "gate's dx = dy, in closed sections too",
        "oracle.layers:gate_vjp",
        gradient(0, lambda g, saved, dy: dy),
        ("N4", "O3", "G1"),
        also=(("passes.tape:_Backward.section", instead(_open_section)),),
    ),
    Mistake("layer gate before the last affine map", "spec.layers:Section.gate_index", instead(_last_affine), ("N1", "N3")),
    Mistake("layer gate before the last batch-norm", "spec.layers:Section.gate_index", instead(_before_norm), ("N1", "N3")),
    Mistake("unit gates before batch-norm and activation", "spec.calls:operations_of", _gates_before_norms, ("N4",)),
    Mistake("no ρ behind the addition", "spec.calls:operations_of", _without_post, ("N1",)),
    Mistake(
        "closed sections skipped: no gradient for their gates",
        "passes.tape:_Backward.closed_path",
        instead(lambda self, path, dy: None),
        ("O2", "G1"),
    ),
    Mistake(
        "running statistics used in training", "spec.calls:operations_of", options(train=lambda train: False), ("G1", "N4")
    ),
    Mistake(
        "running statistics with 1 − momentum", "passes.statistics:update_statistics", instead(_one_minus_momentum), ("N4",)
    ),
    Mistake("running statistics not updated", "passes.statistics:update_statistics", instead(lambda n, s, batch: s), ("N4",)),
)

TRAINING = (
    Mistake("E[∂c/∂ξ] taken for ∂C/∂θ", "gates.estimators:exact_theta_gradient", instead(_mean_slope), ("O2",)),
    Mistake(
        "value and gradients at the mean gates",
        "gates.estimators:exact_expectation",
        instead(lambda loss, theta: float(loss.evaluate(theta).loss)),
        ("O1", "O2", "O3"),
        also=(
            ("gates.estimators:exact_theta_gradient", instead(_slope_at_the_mean)),
            ("gates.estimators:exact_weight_gradient", instead(lambda loss, t: loss.gradients(loss.evaluate(t)).params)),
        ),
    ),
    Mistake("reinforce with its own sample in the baseline", "gates.estimators:reinforce", _own_baseline, ("O5",)),
    Mistake("θ's gradient summed over the batch", "gates.estimators:taylor", _summed, ("O5",)),
    Mistake("what has no gradient neither decays nor moves", "oracle.momentum:momentum_step", _untouched, ("O1", "O6")),
    Mistake("biases and batch-norms do not decay", "oracle.momentum:momentum_step", _matrices_alone, ("O1", "O6")),
    Mistake(
        "θ projected before its step",
        "conformance.levels.training:moved_theta",
        instead(lambda theta, slope, beta, rate: np.clip(theta, 0.0, 1.0) - rate * (slope + beta)),
        ("O6",),
    ),
    Mistake(
        "β left out of θ's step",
        "conformance.levels.training:moved_theta",
        lambda f: lambda theta, slope, beta, rate: f(theta, slope, 0.0, rate),
        ("O1", "O6"),
    ),
    Mistake(
        "θ climbs",
        "conformance.levels.training:moved_theta",
        lambda f: lambda theta, slope, beta, rate: f(theta, slope, beta, -rate),
        ("O6",),
    ),
    Mistake(
        "θ's gradient after the weights have moved", "conformance.levels.training:theta_slope", _after_the_weights, ("O6",)
    ),
)

PRUNING = (
    Mistake("gates that go given for those that stay", "gates.rules:above", result(np.logical_not), ("D6",)),
    Mistake(
        "an emptied section's constant kept",
        "gates.surgery:prune",
        lambda f: lambda *a, **k: f(*a, **{**k, "empty": "keep_constant"}),
        ("N4",),
    ),
    Mistake("batch-norms of pruned units cut at their end", "gates.surgery:Cut.arrays", _norms_cut_at_the_end, ("N4",)),
)

STRUCTURE: tuple[Mistake, ...] = (*NETWORKS, *TRAINING, *PRUNING)
