"""When is it safe to prune the gates of a section and of its units, seen together? (SPEC D8, *derived here*)

Columns w_j = ‖W_j‖ of the section's last matrix, unit gates θ_j, a bias w_b, the layer gate θ. Along the projected ODE

    ẇ_j ≤ −λ w_j + κ_j θ_j θ,   θ̇_j ≤ r_j (κ_j θ w_j − β),   ẇ_b ≤ −λ_b w_b + κ_b θ,   θ̇ ≤ r (Σ κ_j θ_j w_j + κ_b w_b − β).

More of any of them means more of every other: the system is cooperative, and a box [0, z̄] in which no right-hand side leads
outwards is never left. No speed r stands in the conditions: they hold for speeds that differ and change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..arrays import Array
from ..formulas.scalar import not_negative, positive, probability
from ..spec.network import GateGroup, Network
from .closing_weights import closing_block


class Columns(NamedTuple):
    """The units of a section: w norms of their columns, theta, kappa slopes in a column, (n,) each; decay λ of the columns."""

    w: Array
    theta: Array
    kappa: Array
    decay: float


class Bias(NamedTuple):
    """The bias beside the columns: its norm, the slope in it, and its decay; no bias has norm 0 and slope 0."""

    w: float = 0.0
    kappa: float = 0.0
    decay: float = 0.0


def ceiling(w: ArrayLike, drive: ArrayLike, decay: float) -> Array:
    """The least w̄ ≥ w with λ w̄ ≥ drive: what w never exceeds while ẇ ≤ −λw + drive. ∞ where nothing decays."""
    w, drive = not_negative("w", w), not_negative("drive", drive)
    with np.errstate(divide="ignore", invalid="ignore"):
        rest = np.where(drive > 0.0, drive / decay, 0.0)
    return np.maximum(w, rest)


def unit_box(w: ArrayLike, theta: ArrayLike, *, kappa: ArrayLike, beta: float, decay: float, layer: float = 1.0) -> Array:
    """Units whose θ reaches 0 and stays, if the layer gate never exceeds `layer`: κ·layer·w̄ < β, w̄ the ceiling of w.

    w, theta, kappa: of one shape. For any speed of θ. InputError unless w, β, λ ≥ 0, κ > 0 and θ, `layer` ∈ [0, 1].
    """
    theta, kappa, top = probability("theta", theta), positive("kappa", kappa), float(probability("layer", layer))
    beta, decay = float(not_negative("beta", beta)), float(not_negative("decay", decay))
    highest = ceiling(w, kappa * theta * top, decay)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(top > 0.0, kappa * top * highest, 0.0) < beta)


def section_box(columns: Columns, bias: Bias, theta: float, *, beta: float) -> tuple[bool, Array]:
    """(does θ of the section reach 0 and stay?, which of its units' θ_j do so too (n,)).

    The box has θ̄ = θ, θ̄_j = θ_j where the unit is in its own box below θ, and 1 elsewhere, and the least w̄ that it allows. If
    Σ κ_j θ̄_j w̄_j + κ_b w̄_b < β, it is never left, and θ falls at least at the speed r times the difference. If not, nothing
    is said: no unit is named. InputError as for `unit_box`.
    """
    units = unit_box(columns.w, columns.theta, kappa=columns.kappa, beta=beta, decay=columns.decay, layer=theta)
    tops = np.where(units, columns.theta, 1.0)
    highest = ceiling(columns.w, columns.kappa * tops * theta, columns.decay)
    beside = float(ceiling(bias.w, bias.kappa * theta, bias.decay))
    with np.errstate(invalid="ignore"):
        parts = np.where(tops > 0.0, columns.kappa * tops * highest, 0.0)
    total = float(parts.sum()) + (bias.kappa * beside if bias.kappa > 0.0 else 0.0)
    inside = total < beta
    return inside, units & inside


class Known(NamedTuple):
    """What the rule knows of every gate, (G,) each: ‖W‖, θ, κ and where it is known, λ of the block.

    bias_w, bias_kappa: ‖b‖ and the slope in it for a layer gate whose block has a bias; bias_decay: λ of biases.
    """

    w: Array
    theta: Array
    kappa: Array
    known: Array
    decay: Array
    bias_w: Array
    bias_kappa: Array
    bias_decay: float


def in_joint_domain(network: Network, params: Mapping[str, Array], seen: Known, beta: float) -> Array:
    """(G,) the gates of which D8 says that θ reaches 0 and stays there. False where κ is not known.

    A column whose own κ is not known has the section's, of whose block it is a part.
    """
    safe = np.zeros(seen.theta.shape, dtype=bool)
    units: dict[int, list[GateGroup]] = {}
    for group in network.gate_groups:
        if group.kind == "unit":
            safe[group.slice] = _units(seen, group.slice, beta, 1.0)
            units.setdefault(group.position, []).append(group)
    for group in network.gate_groups:
        if group.kind != "layer" or not seen.known[group.start]:
            continue
        inside = units.get(group.position, [])
        safe[group.start] = _section(network, params, seen, group, inside, beta)
        for other in inside if safe[group.start] else ():
            safe[other.slice] |= _units(seen, other.slice, beta, float(seen.theta[group.start]))
    return safe


def _units(seen: Known, where: slice, beta: float, layer: float) -> Array:
    found = np.zeros(where.stop - where.start, dtype=bool)
    for decay in np.unique(seen.decay[where]):
        some = seen.known[where] & (seen.decay[where] == decay)
        w, theta, kappa = (a[where][some] for a in (seen.w, seen.theta, seen.kappa))
        found[some] = unit_box(w, theta, kappa=kappa, beta=beta, decay=float(decay), layer=layer)
    return found


def _section(
    network: Network, params: Mapping[str, Array], seen: Known, group: GateGroup, units: list[GateGroup], beta: float
) -> bool:
    """Is the section's gate in the box, by its columns if units stand on them, else by its block as a whole?"""
    g = group.start
    kappa, theta = float(seen.kappa[g]), float(seen.theta[g])
    names = closing_block(network, group).names
    on_columns = [u for u in units if f"{network.unit_links[u.name].consumer}.weight" == names[0]]
    whole = unit_box(seen.w[g], theta, kappa=kappa, beta=beta, decay=float(seen.decay[g]))
    if not on_columns:
        return bool(whole)
    where = on_columns[0].slice
    own = np.where(seen.known[where], np.minimum(seen.kappa[where], kappa), kappa)
    w = np.where(seen.known[where], seen.w[where], _column_norms(network, params, on_columns[0]))
    bias = Bias(float(seen.bias_w[g]), min(float(seen.bias_kappa[g]), kappa), seen.bias_decay)
    columns = Columns(w, seen.theta[where], own, float(seen.decay[where][0]))
    return bool(whole) or section_box(columns, bias, theta, beta=beta)[0]


def _column_norms(network: Network, params: Mapping[str, Array], group: GateGroup) -> Array:
    block = closing_block(network, group)
    squares = sum(np.square(block.split(params[name]), dtype=np.float64).sum(axis=(0, 2)) for name in block.names)
    return np.asarray(np.sqrt(squares))
