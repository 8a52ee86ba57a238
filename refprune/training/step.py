"""One step of projected SGD in W and θ."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from ..arrays import Array, Arrays
from ..backend import Backend
from ..errors import InputError
from ..gates import rules
from ..gates.estimators import ESTIMATORS, sample
from ..gates.rules import Evidence
from ..passes.batch_loss import BatchLoss
from ..passes.statistics import update_statistics
from .config import Config
from .pressure import gate_rates, learns_theta, penalties, penalty_of, schedule_factor
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
    gates, training = config.gates, config.training
    steps_per_epoch = training_images // training.batch_size
    learning = gates.decide_epoch or training.epochs
    last = gates.paired_epochs > 0.0 and state.step >= (learning - gates.paired_epochs) * steps_per_epoch
    name = "paired" if last else gates.estimator
    kind = ESTIMATORS[name]
    _, decay = penalties(config, training_images)
    factor = schedule_factor(config.optimiser.schedule, (state.step + 0.5) / (steps_per_epoch * training.epochs))
    moves_theta = learns_theta(state, config, training_images)

    uniform = gate_uniforms(state, config.seed, gates.gate_samples)
    loss = BatchLoss(state.network, backend, state.params, x, labels, state.statistics)
    run_closed = moves_theta and kind.needs_closed_paths
    base = loss.evaluate(sample(state.theta, uniform[0]), run_closed=run_closed)
    if not np.isfinite(base.loss):
        where = first_non_finite(loss, base.tape.gates, run_closed=run_closed)
        raise NonFiniteLoss(f"step {state.step}: the loss is {base.loss}; {where}; {REMEDY}")
    metrics = StepMetrics(float(base.loss), int(base.tape.gates.sum()))
    statistics = update_statistics(state.network, state.statistics, base.tape.batch_statistics)
    gradients = loss.gradients(base, consume=True)
    macs = base.tape.macs + gradients.macs
    evidence = Evidence(state.slope, state.seen)
    if moves_theta and gates.rule != "threshold":
        evidence = rules.observe(state.network, gradients.params, evidence)

    theta = state.theta
    if moves_theta:
        estimate = kind.function(loss, base, gradients.gates, theta, uniform)
        wrong = np.flatnonzero(~np.isfinite(estimate.gradient))
        if wrong.size:
            group = next(g.name for g in state.network.gate_groups if g.start <= wrong[0] < g.stop)
            raise NonFiniteLoss(f"step {state.step}: the {name} estimate for gate {group} is not finite")
        ascent = estimate.gradient + penalty_of(state, config, training_images).gradient(theta)
        theta = project_theta(theta - gate_rates(state.network, config) * factor * ascent, config)
        macs += estimate.macs
    del base  # the update needs none of the arrays that the pass has saved
    params, velocity = _momentum_step(state, gradients.params, config, backend, config.optimiser.learning_rate * factor, decay)
    following = dataclasses.replace(
        state,
        params=params,
        velocity=velocity,
        statistics=statistics,
        theta=theta,
        slope=evidence.slope,
        seen=evidence.seen,
        step=state.step + 1,
        macs=state.macs + macs,
    )
    return following, metrics


def _momentum_step(
    state: State, gradients: Arrays, config: Config, backend: Backend, learning_rate: float, decay: float
) -> tuple[Arrays, Arrays]:
    params, velocity = {}, {}
    for name, w in state.params.items():
        params[name], velocity[name] = backend.momentum_step(
            w,
            state.velocity[name],
            gradients[name],
            learning_rate=learning_rate,
            momentum=config.optimiser.momentum,
            decay=decay if rules.decays(config.objective.decay, name) else 0.0,
        )
    return params, velocity


def first_non_finite(loss: BatchLoss, gates: Array, *, run_closed: bool) -> str:
    """Which parameter or which layer's output is the first that is not finite."""
    spoiled = non_finite_parameter(loss.params)
    if spoiled is not None:
        return f"the first parameter that is not finite is {spoiled}"
    bad: list[str] = []

    def look(name: str, y: Array) -> None:
        if not bad and not np.isfinite(y).all():
            bad.append(name)

    with np.errstate(all="ignore"):
        loss.evaluate(gates, run_closed=run_closed, observe=look)
    return f"the first layer with an output that is not finite is {bad[0] if bad else 'the loss itself'}"
