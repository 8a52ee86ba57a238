"""Removing gates from the state of training: which go, and what goes with them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..arrays import Array
from ..gates.rules import Evidence, rule_keep
from ..gates.surgery import Cut, prune
from ..spec.layers import UnitGate
from .coefficients import learns_theta, rule_of
from .config import Config
from .state import State


class Pruned(NamedTuple):
    """What one removal took.

    step: updates done before it.
    removed: how many gates of each group.
    closed_for_emptiness: sections that went because no unit of theirs was left.
    last: gate groups of plain layers with one unit left, which cannot go and is fixed to 1.
    """

    step: int
    removed: dict[str, int]
    closed_for_emptiness: tuple[str, ...]
    last: tuple[str, ...]


def cut_state(state: State, cut: Cut) -> State:
    """The state of the smaller network: parameters, momenta, statistics and θ without the removed gates (O7)."""
    return dataclasses.replace(
        state,
        network=cut.network,
        params=cut.arrays(state.params),
        velocity=cut.arrays(state.velocity),
        statistics=cut.arrays(state.statistics),
        theta=state.theta[cut.gates],
        number=state.number[cut.gates],
        slope=state.slope[cut.gates],
        seen=state.seen[cut.gates],
        bias_slope=state.bias_slope[cut.gates],
    )


@dataclass(frozen=True)
class Removed:
    """Gates have gone, for good.

    before: the state with them; state: the state without.
    cut: from the network of `before` to that of `state`.
    on: (G,) the gates of `before` at which both networks are the same function: False for the removed ones, True for those
        fixed to 1; the gates that are left are on as by their mode.
    fixed: how many gates were decided to be 1 and are left in the network without a θ.
    """

    before: State
    state: State
    cut: Cut
    pruned: Pruned
    on: Array
    fixed: int


def gates_kept(state: State, config: Config, *, training_images: int) -> Array:
    """What the rule `gates.rule` leaves of the gates: (G,), False where one goes (D6). As long as θ is held, none goes."""
    if not learns_theta(state, config, training_images):
        return np.ones(state.theta.shape, dtype=bool)
    evidence = Evidence(state.slope, state.seen, state.bias_slope)
    return rule_keep(state.network, state.params, state.theta, evidence, rule_of(config, training_images))


def remove_gates(state: State, keep: Array, config: Config, *, fix: Array | None = None) -> tuple[State, Cut, Pruned]:
    """Remove the gates where `keep` is False, for good, and fix those where `fix` is True to 1.

    The last unit of a plain layer is fixed to 1 too: it cannot go, so that θ = 0 would only make the network a constant.
    """
    network = state.network
    removed = {g.name: int((~keep[g.slice]).sum()) for g in network.gate_groups if not keep[g.slice].all()}
    fix = np.zeros(keep.shape, dtype=bool) if fix is None else fix.copy()
    last = [g for g in network.gate_groups if isinstance(network.layers[g.position], UnitGate) and keep[g.slice].sum() == 1]
    for group in last:
        fix[group.slice] = keep[group.slice]
    cut = prune(network, keep, fix=fix, empty=config.gates.empty)
    return cut_state(state, cut), cut, Pruned(state.step, removed, cut.closed_for_emptiness, tuple(g.name for g in last))


def removal(state: State, keep: Array, config: Config) -> Removed:
    """The removal of the gates where `keep` is False, by a rule and while training goes on."""
    smaller, cut, pruned = remove_gates(state, keep, config)
    gone = np.ones(keep.shape, dtype=bool)
    gone[cut.gates] = False
    return Removed(state, smaller, cut, pruned, keep & (gone | (state.theta >= 0.5)), len(pruned.last))
