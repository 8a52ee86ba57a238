"""One step of projected SGD in W and θ."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from ..arrays import Array, Arrays
from ..backend import Backend
from ..errors import InputError
from ..gates import rules
from ..gates.estimators import ESTIMATORS, Sampled, sample
from ..gates.rules import Evidence
from ..passes.batch_loss import BatchLoss, Evaluation
from ..passes.statistics import update_statistics
from .coefficients import gate_rates, learns_theta, penalties, penalty_of, step_factor
from .config import Config
from .state import State, gate_uniforms, non_finite_parameter, project_theta


class StepMetrics(NamedTuple):
    """loss: c(W, Ξ) on the batch at the sampled gates; gates_on: how many were 1."""

    loss: float
    gates_on: int


REMEDY = "try a smaller optimiser.learning_rate or training.section_scale"


class NonFiniteLoss(InputError):
    """The loss is no longer a finite number; the message names the first layer whose output is not finite."""


@np.errstate(over="ignore", invalid="ignore")  # what overflows is found in the loss, and named
def train_step(
    state: State, x: Array, labels: Array, config: Config, backend: Backend, *, training_images: int
) -> tuple[State, StepMetrics]:
    """One step of projected SGD on a mini-batch (O6); `training_images` is N, the number of training images.

    W ← W − η v with v ← m v + ∇̂_W J;  θ ← clip(θ − η_θ (∇̂_θ C + β_g(θ)), δ, 1−δ), β_g the slope of the penalty (C5).
    """
    steps = training_images // config.training.batch_size * config.training.epochs
    factor = step_factor(config, state.step, steps)
    moves_theta = learns_theta(state, config, training_images)
    batch = _gradients(state, x, labels, config, backend, _estimator(state, config, training_images) if moves_theta else None)

    evidence, theta = Evidence(state.slope, state.seen, state.bias_slope), state.theta
    if batch.theta is not None:
        if config.gates.rule != "threshold":
            evidence = rules.observe(state.network, batch.params, evidence)
        theta = _theta_update(state, batch.theta, config, training_images, factor)
    params, velocity = _weights_update(state, batch.params, config, backend, training_images, factor)
    following = dataclasses.replace(
        state,
        params=params,
        velocity=velocity,
        statistics=batch.statistics,
        theta=theta,
        slope=evidence.slope,
        seen=evidence.seen,
        bias_slope=evidence.bias_slope,
        step=state.step + 1,
        macs=state.macs + batch.macs,
    )
    return following, batch.metrics


class _Gradients(NamedTuple):
    """What a mini-batch says at one sampled Ξ.

    params: ∇̂_W c.
    theta: (G,) ∇̂_θ C; None as long as θ is held.
    statistics: the running statistics after the batch.
    macs: multiply-accumulates of all passes.
    """

    params: Arrays
    theta: Array | None
    statistics: Arrays
    macs: int
    metrics: StepMetrics


def _gradients(state: State, x: Array, labels: Array, config: Config, backend: Backend, estimator: str | None) -> _Gradients:
    """One pass forward and backward at Ξ ~ Bern(θ), and what the estimator adds; None: θ is held.

    The arrays that the pass saves die with this function, so that the update has their memory.
    """
    uniform = gate_uniforms(state, config.seed, config.gates.gate_samples)
    loss = BatchLoss(state.network, backend, state.params, x, labels, state.statistics)
    base = _forward(loss, state, uniform, run_closed=estimator is not None and ESTIMATORS[estimator].needs_closed_paths)
    metrics = StepMetrics(float(base.loss), int(base.tape.gates.sum()))
    statistics = update_statistics(state.network, state.statistics, base.tape.batch_statistics)
    gradients = loss.gradients(base, consume=True)
    macs = base.tape.macs + gradients.macs
    if estimator is None:
        return _Gradients(gradients.params, None, statistics, macs, metrics)
    estimate = ESTIMATORS[estimator].function(Sampled(loss, base, gradients.gates, state.theta, uniform))
    wrong = np.flatnonzero(~np.isfinite(estimate.gradient))
    if wrong.size:
        group = next(g.name for g in state.network.gate_groups if g.start <= wrong[0] < g.stop)
        raise NonFiniteLoss(f"step {state.step}: the {estimator} estimate for gate {group} is not finite")
    return _Gradients(gradients.params, estimate.gradient, statistics, macs + estimate.macs, metrics)


def _forward(loss: BatchLoss, state: State, uniform: Array, *, run_closed: bool) -> Evaluation:
    """c(W, Ξ) at Ξ = 1[v < θ], v the first row of the uniforms. NonFiniteLoss if c is not finite."""
    base = loss.evaluate(sample(state.theta, uniform[0]), run_closed=run_closed)
    if not np.isfinite(base.loss):
        where = first_non_finite(loss, base.tape.gates, run_closed=run_closed)
        raise NonFiniteLoss(f"step {state.step}: the loss is {base.loss}; {where}; {REMEDY}")
    return base


def _estimator(state: State, config: Config, training_images: int) -> str:
    """`gates.estimator`, and "paired" in the last `gates.paired_epochs` epochs of learning θ."""
    gates = config.gates
    learning = gates.decide_epoch or config.training.epochs
    steps_per_epoch = training_images // config.training.batch_size
    last = gates.paired_epochs > 0.0 and state.step >= (learning - gates.paired_epochs) * steps_per_epoch
    return "paired" if last else gates.estimator


def _theta_update(state: State, gradient: Array, config: Config, training_images: int, factor: float) -> Array:
    """clip(θ − η_θ (∇̂_θ C + β_g(θ)), δ, 1−δ)."""
    ascent = gradient + penalty_of(state, config, training_images).gradient(state.theta)
    return project_theta(state.theta - gate_rates(state.network, config) * factor * ascent, config)


def _weights_update(
    state: State, gradients: Arrays, config: Config, backend: Backend, training_images: int, factor: float
) -> tuple[Arrays, Arrays]:
    """W − η v and v = m v + ∇̂_W c + λW; λ acts on the arrays that `objective.decay` names."""
    _, decay = penalties(config, training_images)
    params, velocity = {}, {}
    for name, w in state.params.items():
        params[name], velocity[name] = backend.momentum_step(
            w,
            state.velocity[name],
            gradients[name],
            learning_rate=config.optimiser.learning_rate * factor,
            momentum=config.optimiser.momentum,
            decay=decay if rules.decays(config.objective.decay, name) else 0.0,
        )
    return params, velocity


def first_non_finite(loss: BatchLoss, gates: Array, *, run_closed: bool) -> str:
    """Which parameter or which layer's output is the first that is not finite."""
    spoiled = non_finite_parameter(loss.params)
    if spoiled is not None:
        return f"the first parameter that is not finite is {spoiled}"
    first: str | None = None

    def look(name: str, y: Array) -> None:
        nonlocal first
        if first is None and not np.isfinite(y).all():
            first = name

    with np.errstate(all="ignore"):
        loss.evaluate(gates, run_closed=run_closed, observe=look)
    return f"the first layer with an output that is not finite is {first or 'the loss itself'}"
