"""Everything that training goes on from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..arrays import Array, Arrays
from ..errors import InputError
from ..gates.closing_weights import blocks, unscaled_layer
from ..gates.surgery import prune
from ..gates.theta_penalty import Reference, reference
from ..passes.parameters import initial_statistics, initialise
from ..spec.layers import Activation
from ..spec.network import Loss, Network
from ..streams import Streams
from .config import Config

#: No shares can be counted of this; ν > 0 refuses it.
NO_REFERENCE = Reference(0, 0)


@dataclass(frozen=True)
class State:
    """Everything that training goes on from.

    theta: (G,) float64.
    number: (G,) each gate's number in its group when training began, which removals do not change.
    slope, seen, bias_slope: (G,) the evidence on κ (`gates.rules.Evidence`); zeros under the rule "threshold".
    step: updates done.
    macs: multiply-accumulates spent on training so far, every pass counted.
    finished: all gates are decided and training is over.
    start: cost of the network with which training began, of which ν counts shares (C2).
    """

    network: Network
    params: Arrays
    velocity: Arrays
    statistics: Arrays
    theta: Array
    number: Array
    slope: Array
    seen: Array
    bias_slope: Array
    step: int = 0
    macs: int = 0
    finished: bool = False
    start: Reference = NO_REFERENCE


def ungated(network: Network) -> Network:
    """The same network with every gate fixed to 1: the unpruned network to compare with."""
    on = np.ones(network.gate_count, dtype=bool)
    return prune(network, on, fix=on).network


def initial_state(config: Config, network: Network) -> State:
    """The state before the first step.

    InputError for a loss that is not the mean cross-entropy, because β and λ are per sample (O1), and for a rule that the
    network does not allow.
    """
    if network.loss != Loss():
        raise InputError(f"network.loss: training takes the mean cross-entropy, got {network.loss}")
    _require_domain(config, network)
    dtype = config.training.dtype
    params = initialise(network, Streams(config.seed), section_scale=config.training.section_scale, dtype=dtype)
    velocity = {name: np.zeros_like(p) for name, p in params.items()}
    theta = project_theta(np.full(network.gate_count, config.gates.initial), config)
    number = np.array([i for group in network.gate_groups for i in range(group.stop - group.start)], dtype=np.intp)
    evidence = np.zeros(theta.shape), np.zeros(theta.shape, dtype=np.intp), np.zeros(theta.shape)
    statistics = initial_statistics(network, dtype=dtype)
    return State(network, params, velocity, statistics, theta, number, *evidence, start=reference(network))


def _require_domain(config: Config, network: Network) -> None:
    """InputError unless the rule's domain of attraction is proved for the network and the estimator (SPEC D9)."""
    gates = config.gates
    if gates.rule == "threshold":
        return
    blocks(network)  # raises where a gate has none
    if gates.estimator != "taylor":
        return
    for group in network.gate_groups:
        layer = unscaled_layer(network, group)
        if layer is not None:
            kind = layer.kind if isinstance(layer, Activation) else type(layer).__name__
            raise InputError(
                f"gates.rule {gates.rule!r}: {group.name} has {layer.name} ({kind}) between its closing weights and its gate, "
                "where the weights' size does not bound the slope that gates.estimator 'taylor' takes; set gates.estimator to "
                "'paired' or another unbiased one"
            )


def gate_uniforms(state: State, seed: int, k: int, *, purpose: str = "gates") -> Array:
    """Uniforms (K, G): gate number i of a group always gets the numbers i·K … of the group's stream, whatever was removed."""
    parts = [np.zeros((0, k))]
    for group in state.network.gate_groups:
        number = state.number[group.slice]
        parts.append(Streams(seed).uniform(f"{purpose}/{group.name}", state.step, (int(number.max()) + 1, k))[number])
    return np.concatenate(parts).T


def project_theta(theta: Array, config: Config) -> Array:
    """clip(θ, δ, 1−δ), δ = `gates.floor`."""
    return np.clip(theta, config.gates.floor, 1.0 - config.gates.floor)


def non_finite_parameter(params: Mapping[str, Array]) -> str | None:
    """Name of the first parameter with an entry that is no finite number."""
    return next((name for name, p in params.items() if not np.isfinite(p).all()), None)
