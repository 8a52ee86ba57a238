"""The end of a run: every gate becomes 0 or 1, nothing is rounded in silence (SPEC O7, O9, N4)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from .backend import Backend
from .complexity import cost_model
from .config import Config
from .layers import Array
from .network import Arrays, forward
from .objective import BatchLoss, average_statistics
from .pruning import spare_plain_layers
from .surgery import Cut, prune
from .train import Images, NonFiniteLoss, Pruned, State, cut_state, epoch_batches, penalty_of, remove


def decided(state: State, config: Config) -> tuple[Array, Array]:
    """(off, on): the gates with θ ≤ τ and those with θ ≥ 1−τ."""
    tau = config.gates.threshold
    return state.theta <= tau, state.theta >= 1.0 - tau


class Decision(NamedTuple):
    """A gate that was still undecided at the end (O9): its θ, J at its two vertices, and which was taken.

    unit: the gate's number in its group when training began. objective_off is None for the last unit of a plain layer, which
    cannot go. rule: "compared", or "first_order", by which J at the other vertex is a first-order estimate.
    """

    gate: str
    unit: int
    theta: float
    objective_on: float
    objective_off: float | None
    on: bool
    rule: str = "compared"


def decide(state: State, images: Images, config: Config, backend: Backend) -> tuple[Array, list[Decision], int]:
    """Decide every gate by O9: those inside (τ, 1−τ) one after the other, least certain last, by J at their two vertices.

    J is the mean training loss over all batches of the network that the vertex leads to, plus the penalty that the gate costs;
    the other gates have their decided or more likely value. One of the two vertices is always known from the gate before, so
    that G gates take at most G + 1 passes over the data. With more than `gates.compare_at_most` undecided gates the unit
    gates among them are decided before, by `_first_order`. Returns the gate vector, what was compared, and the
    multiply-accumulates.
    """
    penalty = penalty_of(state, config, len(images.labels))
    off, on = decided(state, config)
    more_likely = np.where(off | on, on, state.theta >= 0.5)
    gates = spare_plain_layers(state.network, more_likely, state.theta).astype(np.float64)
    undecided = np.flatnonzero(~off & ~on)
    if not undecided.size:
        return gates, [], 0
    decisions: list[Decision] = []
    spent_before = 0
    if undecided.size > config.gates.compare_at_most:
        is_layer = cost_model(state.network).is_layer[undecided]
        gates, decisions, spent_before = _first_order(state, images, config, backend, gates, undecided[~is_layer])
        undecided = undecided[is_layer]
    names = _gate_names(state)
    loss, macs = _training_loss(state, images, config, backend, gates)
    macs += spent_before
    for g in undecided[np.argsort(-np.abs(state.theta[undecided] - 0.5), kind="stable")]:
        flipped = gates.copy()
        flipped[g] = 1.0 - gates[g]
        if (spare_plain_layers(state.network, flipped == 1.0, state.theta) != flipped).any():
            at = {gates[g]: loss}
        else:
            other, spent = _training_loss(state, images, config, backend, flipped)
            macs += spent
            at = {gates[g]: loss, flipped[g]: other}
        objective_on = at[1.0] + float(penalty.gradient(gates)[g])
        keeps = 0.0 not in at or objective_on < at[0.0]
        decisions.append(
            Decision(names[g], int(state.number[g]), float(state.theta[g]), objective_on, at.get(0.0), on=bool(keeps))
        )
        gates[g], loss = float(keeps), at[float(keeps)]
    return gates, decisions, macs


def _gate_names(state: State) -> list[str]:
    return [group.name for group in state.network.gates for _ in range(group.stop - group.start)]


def _first_order(
    state: State, images: Images, config: Config, backend: Backend, gates: Array, units: Array
) -> tuple[Array, list[Decision], int]:
    """Decide the `units` all at once, where comparing one by one would take a pass over the data for each.

    At the vertex of the more likely values, one pass forward and backward gives d = mean ∂c/∂u, and J(on) − J(off) ≈ d + β_g
    for every unit: on where that is negative. If J of the vertex so found, by a pass of its own, is not below J of the more
    likely one, that one stays.
    """
    penalty = penalty_of(state, config, len(images.labels))
    losses, slopes, macs = [], [], 0
    for x, labels in epoch_batches(images, config, epoch=0):
        loss = BatchLoss(state.network, backend, state.params, x, labels, state.statistics)
        evaluation = loss.evaluate(gates)
        losses.append(float(evaluation.loss))
        gradients = loss.gradients(evaluation, consume=True)
        slopes.append(gradients.gates)
        macs += evaluation.tape.macs + gradients.macs
    here, slope = float(np.mean(losses)), np.stack(slopes).mean(axis=0, dtype=np.float64)
    cost = penalty.gradient(gates)
    found = gates.copy()
    found[units] = slope[units] + cost[units] < 0.0
    found = spare_plain_layers(state.network, found == 1.0, state.theta).astype(np.float64)
    there, spent = _training_loss(state, images, config, backend, found)
    better = there + float(penalty.value(found)) < here + float(penalty.value(gates))
    taken = found if better else gates
    names = _gate_names(state)
    decisions = [
        Decision(
            names[g],
            int(state.number[g]),
            float(state.theta[g]),
            here + (1.0 - gates[g]) * slope[g] + cost[g],
            here - gates[g] * slope[g],
            on=bool(taken[g]),
            rule="first_order",
        )
        for g in units
    ]
    return taken, decisions, macs + spent


def _training_loss(state: State, images: Images, config: Config, backend: Backend, gates: Array) -> tuple[float, int]:
    """Mean loss over all training batches of the network that is left at these gates, and its multiply-accumulates."""
    on = gates == 1.0
    left = cut_state(state, prune(state.network, on, fix=on, empty=config.gates.empty))
    losses, macs = [], 0
    with np.errstate(over="ignore", invalid="ignore"):
        for x, labels in epoch_batches(images, config, epoch=0):
            result = BatchLoss(left.network, backend, left.params, x, labels, left.statistics).evaluate(left.theta)
            losses.append(float(result.loss))
            macs += result.tape.macs
    if not np.isfinite(losses).all():
        raise NonFiniteLoss(f"step {state.step}: the training loss is not finite where undecided gates are compared")
    return float(np.mean(losses)), macs


class Settlement(NamedTuple):
    """The end of a run: the final state, the last removal with its cut, and the gates that had to be decided."""

    state: State
    keep: Array
    cut: Cut
    pruned: Pruned
    decisions: list[Decision]


def settle(state: State, images: Images, config: Config, backend: Backend) -> Settlement:
    """Every gate becomes 0 or 1, then running statistics are re-estimated on the network without gates (O7, O9, N4)."""
    gates, decisions, macs = decide(state, images, config, backend)
    keep = gates == 1.0
    smaller, cut, pruned = remove(state, keep, config, fix=keep)
    statistics, spent = _reestimate(smaller, images, config, backend)
    final = dataclasses.replace(smaller, statistics=statistics, macs=state.macs + macs + spent, finished=True)
    return Settlement(final, keep, cut, pruned, decisions)


def _reestimate(state: State, images: Images, config: Config, backend: Backend) -> tuple[Arrays, int]:
    if not state.statistics:
        return state.statistics, 0
    collected: list[Mapping[str, tuple[Array, Array, int]]] = []
    macs = 0
    for x, _ in epoch_batches(images, config, epoch=0):
        tape = forward(state.network, backend, state.params, x, train=True)
        collected.append(tape.batch_statistics)
        macs += tape.macs
    return average_statistics(state.network, state.statistics, collected), macs
