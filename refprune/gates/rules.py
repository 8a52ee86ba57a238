"""Pruning rules: which gates go for good while training goes on (SPEC D6, D7; the rules are *derived here*)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..arrays import Array
from ..spec.network import Network
from ..training.config import Config
from .closing_weights import block_norms, blocks
from .dynamics import in_domain
from .surgery import spare_plain_layers


def rule_keep(
    network: Network,
    params: Mapping[str, Array],
    theta: Array,
    slope: Array,
    seen: Array,
    config: Config,
    *,
    beta: float,
    decay: float,
) -> Array:
    """What the rule `gates.rule` leaves: (G,), False where a gate goes. β and λ are per sample (O1); slope, seen: `observe`.

    β is `objective.penalty`, under C4 the floor that D asks for: β_g(θ) = β + ν ∂R_ρ/∂θ_g ≥ β at every θ and after every
    removal, because no gate lowers R_ρ (validation/SPEC.md, D6).
    """
    keep = np.zeros(theta.shape, dtype=bool)
    if config.gates.rule in ("threshold", "both"):
        keep |= above(theta, config.gates.threshold)
    if config.gates.rule in ("attraction", "both"):
        keep |= ~attracted(network, params, theta, slope, seen, config, beta=beta, decay=decay)
    return spare_plain_layers(network, keep, theta)


def above(theta: Array, threshold: float) -> Array:
    """The rule `threshold`: a gate stays as long as θ > τ. (G,)"""
    stays: Array = theta > threshold
    return stays


def attracted(
    network: Network,
    params: Mapping[str, Array],
    theta: Array,
    slope: Array,
    seen: Array,
    config: Config,
    *,
    beta: float,
    decay: float,
) -> Array:
    """The gates, (G,), that are in the domain of attraction H of D4 as far as κ is known.

    κ is estimated by gates.kappa_factor times the largest slope seen, after gates.kappa_warmup steps that had one. λ is 0 for
    a block of which a part does not decay. r is η_θ(1 − momentum)/η: the schedule's factor is on both.
    """
    gates, optimiser = config.gates, config.optimiser
    w = block_norms(network, params)
    known = (seen >= gates.kappa_warmup) & np.isfinite(slope) & np.isfinite(w)
    kappa = gates.kappa_factor * np.where(known, slope, 1.0)
    strength = decay * _decaying(network, config)
    ratio = gates.learning_rate * (1.0 - optimiser.momentum) / optimiser.learning_rate
    safe: Array = known & in_domain(
        np.where(known, w, 0.0), theta, kappa=kappa, beta=beta, decay=strength, ratio=ratio, floor=gates.floor
    )
    return safe


def observe(network: Network, gradients: Mapping[str, Array], slope: Array, seen: Array) -> tuple[Array, Array]:
    """The running evidence on κ after one more step: the largest ‖∂c/∂W‖ of each gate's block, and the steps that had one.

    gradients: ∂c/∂W of the sampled Ξ. A closed gate's block has gradient 0 (N3), which says nothing and is not counted.
    """
    now = block_norms(network, gradients)
    return np.maximum(slope, now), seen + (now > 0.0)


def decays(config: Config, name: str) -> bool:
    """Does weight decay act on this parameter?"""
    return config.objective.decay == "all" or name.endswith(".weight")


def _decaying(network: Network, config: Config) -> Array:
    """1 for a gate all of whose block decays, else 0: (G,)."""
    groups = [np.full(b.gates, all(decays(config, name) for name in b.names), dtype=np.float64) for b in blocks(network)]
    return np.concatenate([np.zeros(0), *groups])
