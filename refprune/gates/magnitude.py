"""The baseline: filter pruning by the ℓ1 norm of the filter, then fine-tuning in what is left; θ plays no part.

(Li et al. 2017, *Pruning filters for efficient ConvNets*, arXiv 1608.08710, one shot, the same share of every layer.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from ..arrays import Array
from ..spec.network import Network


def filter_norms(network: Network, params: Mapping[str, Array]) -> Array:
    """(G,) for a unit gate Σ|W| of the row of weights that makes the unit, without its bias; +∞ for layer gates."""
    norms = np.full(network.gate_count, np.inf)
    for group in network.gate_groups:
        if group.kind == "unit":
            weight = params[f"{network.unit_links[group.name].producer}.weight"]
            norms[group.slice] = np.abs(weight.reshape(len(weight), -1)).sum(axis=1, dtype=np.float64)
    return norms


def keep_largest(network: Network, params: Mapping[str, Array], removed: float) -> Array:
    """keep, (G,): in every group of n unit gates the ⌊removed·n⌋ of smallest norm go, at least one stays; layer gates stay.

    Of equal norms the earlier unit stays.
    """
    norms = filter_norms(network, params)
    keep = np.ones(network.gate_count, dtype=bool)
    for group in network.gate_groups:
        if group.kind == "unit":
            n = group.stop - group.start
            keep[group.start + smallest(norms[group.slice], min(math.floor(Fraction(str(removed)) * n), n - 1))] = False
    return keep


def smallest(norms: Array, count: int) -> Array:
    """Positions of the `count` smallest; of equal ones the later."""
    order: Array = np.argsort(-norms, kind="stable")
    return order[len(order) - count :]
