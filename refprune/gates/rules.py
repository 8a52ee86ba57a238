"""Rules of removal: which gates go for good while training goes on (*derived here*; SPEC D6, D7)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..arrays import Array
from ..spec.network import Network
from .closing_weights import bias_norms, block_norms, blocks
from .dynamics import in_domain
from .joint_domain import Known, in_joint_domain
from .surgery import spare_plain_layers


@dataclass(frozen=True)
class Rule:
    """When a gate is removed.

    kind: "threshold" (θ ≤ τ), "attraction" (θ and its weights lie in the domain of attraction of 0) or "both".
    threshold: τ.
    kappa_factor: κ is taken as this factor times the largest slope seen.
    kappa_warmup: steps with a slope before κ counts as known.
    beta: β per sample. Under a penalty of size it is the floor that the domain asks for: β + ν ∂R_ρ/∂θ_g ≥ β at every θ and
        after every removal, because no gate lowers R_ρ (SPEC D6).
    decay: λ per sample.
    decayed: the arrays that λ acts on, "all" or "weights".
    ratio: r = η_θ(1 − momentum)/η, the speed of θ over that of W; steady_units: unit gates have this r too, and keep it.
    floor: δ, the least θ of the projection.
    """

    kind: str = "threshold"
    threshold: float = 0.0
    kappa_factor: float = 2.0
    kappa_warmup: int = 100
    beta: float = 0.0
    decay: float = 0.0
    decayed: str = "all"
    ratio: float = 1.0
    steady_units: bool = True
    floor: float = 0.0


class Evidence(NamedTuple):
    """What training has seen of κ, gate by gate.

    slope: (G,) the largest ‖∂c/∂W‖ of the gate's block.
    seen: (G,) steps in which the block had a gradient.
    bias_slope: (G,) the same as slope of the bias in a layer gate's block alone, if it has one; else 0.
    """

    slope: Array
    seen: Array
    bias_slope: Array


def rule_keep(network: Network, params: Mapping[str, Array], theta: Array, evidence: Evidence, rule: Rule) -> Array:
    """What the rule leaves: (G,), False where a gate goes. A plain layer keeps its last unit."""
    keep = np.zeros(theta.shape, dtype=bool)
    if rule.kind in ("threshold", "both"):
        keep |= above(theta, rule.threshold)
    if rule.kind in ("attraction", "both"):
        keep |= ~attracted(network, params, theta, evidence, rule)
    return spare_plain_layers(network, keep, theta)


def above(theta: Array, threshold: float) -> Array:
    """The rule `threshold`: a gate stays as long as θ > τ. (G,)"""
    stays: Array = theta > threshold
    return stays


def attracted(network: Network, params: Mapping[str, Array], theta: Array, evidence: Evidence, rule: Rule) -> Array:
    """The gates, (G,), whose θ goes to 0 as far as κ is known: in the domain H of D4, or in the box of D8.

    A block of which a part does not decay counts as one without decay.
    """
    w = block_norms(network, params)
    known = (evidence.seen >= rule.kappa_warmup) & np.isfinite(evidence.slope) & np.isfinite(w)
    kappa = rule.kappa_factor * np.where(known, evidence.slope, 1.0)
    decay = rule.decay * _decaying(network, rule.decayed)
    steady = known & (_of_layers(network) | rule.steady_units)
    alone = steady & in_domain(
        np.where(known, w, 0.0), theta, kappa=kappa, beta=rule.beta, decay=decay, ratio=rule.ratio, floor=rule.floor
    )
    biases = bias_norms(network, params), rule.kappa_factor * evidence.bias_slope
    finite = known & np.isfinite(biases[0]) & np.isfinite(biases[1])
    biases = np.where(finite, biases[0], 0.0), np.where(finite, biases[1], np.inf)
    seen = Known(
        np.where(known, w, 0.0),
        np.maximum(theta, rule.floor),
        kappa,
        known,
        decay,
        *biases,
        rule.decay * (rule.decayed == "all"),
    )
    safe: Array = alone | in_joint_domain(network, params, seen, rule.beta)
    return safe


def _of_layers(network: Network) -> Array:
    """(G,) which gates are layer gates."""
    kinds = [np.full(g.stop - g.start, g.kind == "layer") for g in network.gate_groups]
    return np.concatenate([np.zeros(0, dtype=bool), *kinds])


def observe(network: Network, gradients: Mapping[str, Array], evidence: Evidence) -> Evidence:
    """The evidence on κ after one more step.

    gradients: ∂c/∂W of the sampled Ξ. A closed gate's block has gradient 0, which says nothing and is not counted (SPEC N3).
    """
    now = block_norms(network, gradients)
    bias = np.maximum(evidence.bias_slope, bias_norms(network, gradients))
    return Evidence(np.maximum(evidence.slope, now), evidence.seen + (now > 0.0), bias)


def decays(decayed: str, name: str) -> bool:
    """Does weight decay that acts on `decayed`, "all" or "weights", act on the parameter `name`?"""
    return decayed == "all" or name.endswith(".weight")


def _decaying(network: Network, decayed: str) -> Array:
    """1 for a gate all of whose block decays, else 0: (G,)."""
    groups = [np.full(b.gates, all(decays(decayed, name) for name in b.names), dtype=np.float64) for b in blocks(network)]
    return np.concatenate([np.zeros(0), *groups])
