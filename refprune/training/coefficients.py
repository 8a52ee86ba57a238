"""What moves W and θ beside the loss: β, λ and ν, step sizes, schedule."""

from __future__ import annotations

import math

import numpy as np

from ..arrays import Array
from ..errors import InputError
from ..formulas.hyper_prior import beta_from_log_gamma
from ..gates.rules import Rule
from ..gates.surgery import prune
from ..gates.theta_penalty import Penalty
from ..spec.network import Network
from .config import Config
from .state import State


def pressed(network: Network, config: Config) -> Network:
    """The network in which every gate that no penalty acts on is fixed to 1 (C3: layers only, units only).

    With β = 0 these are the unit gates for ρ = 1 and the layer gates for ρ = 0. InputError if no gate would be left.
    """
    objective = config.objective
    alone = {1.0: "layer", 0.0: "unit"}.get(objective.balance)
    if alone is None or objective.beta > 0.0 or objective.nu == 0.0:
        return network
    on = np.ones(network.gate_count, dtype=bool)
    fix = np.zeros_like(on)
    for group in network.gate_groups:
        fix[group.slice] = group.kind != alone
    if fix.size and fix.all():
        raise InputError(
            f"objective.balance: {objective.balance} presses on {alone} gates alone, of which the network has none; "
            "allowed are 0 for unit gates, 1 for layer gates, and what lies between"
        )
    return prune(network, on, fix=fix).network


def penalties(config: Config, training_images: int) -> tuple[float, float]:
    """(β, λ) of the per-sample objective (O1), also where the configuration gives those of the whole data set."""
    penalty, decay = config.objective.beta, config.objective.weight_decay
    if config.objective.per == "sample":
        return penalty, decay
    return beta_from_log_gamma(-penalty, training_images), decay / training_images


def penalty_of(state: State, config: Config, training_images: int) -> Penalty:
    """The penalty on θ, per sample: Σ β θ + ν R_ρ(θ) of the state's network, relative to the network at the start (O1, C4)."""
    beta, _ = penalties(config, training_images)
    objective = config.objective
    nu = objective.nu / (1 if objective.per == "sample" else training_images)
    return Penalty(state.network, state.start, beta, nu, objective.alpha, objective.balance, config.gates.empty)


def rule_of(config: Config, training_images: int) -> Rule:
    """The rule of removal that the configuration asks for, for `training_images` training images."""
    gates, optimiser = config.gates, config.optimiser
    beta, decay = penalties(config, training_images)
    return Rule(
        kind=gates.rule,
        threshold=gates.threshold,
        kappa_factor=gates.kappa_factor,
        kappa_warmup=gates.kappa_warmup,
        beta=beta,
        decay=decay,
        decayed=config.objective.decay,
        ratio=gates.learning_rate * (1.0 - optimiser.momentum) / optimiser.learning_rate,
        steady_units=gates.unit_learning_rate == 0.0,
        floor=gates.floor,
    )


def gate_rates(network: Network, config: Config) -> Array:
    """(G,) η_θ of every gate, without the schedule's factor."""
    rates = np.full(network.gate_count, config.gates.learning_rate)
    for group in network.gate_groups:
        if group.kind == "unit" and config.gates.unit_learning_rate > 0.0:
            rates[group.slice] = config.gates.unit_learning_rate * (group.stop - group.start)
    return rates


def step_factor(config: Config, step: int, steps: int) -> float:
    """Factor on both step sizes in the step after `step` others, of `steps` in the run (O6)."""
    optimiser = config.optimiser
    if optimiser.schedule == "robbins_monro":
        return float((1.0 + step / optimiser.schedule_offset) ** -optimiser.schedule_power)
    return schedule_factor(optimiser.schedule, (step + 0.5) / steps)


def schedule_factor(kind: str, progress: float) -> float:
    """Factor at `progress` ∈ [0, 1] of the run, of the schedules that end with it; past the end it stays where it ended."""
    progress = min(progress, 1.0)
    if kind == "constant":
        return 1.0
    if kind == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    if kind == "warmup_stable_decay":
        return min(progress / 0.1, 1.0, (1.0 - progress) / 0.2)
    rise = 0.3
    if progress < rise:
        return progress / rise
    return 0.5 * (1.0 + math.cos(math.pi * (progress - rise) / (1.0 - rise)))


def learns_theta(state: State, config: Config, training_images: int) -> bool:
    """Does θ move in the step after `state`? Not during the warm-up, without gates, or under the baseline `gates.magnitude`."""
    warm = state.step >= config.gates.warmup_epochs * (training_images // config.training.batch_size)
    return warm and state.theta.size > 0 and config.gates.magnitude == 0.0
