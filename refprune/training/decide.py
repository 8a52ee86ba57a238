"""The end of a run: every gate becomes 0 or 1, nothing is rounded in silence (SPEC O7, O9, N4).

What is measured here is measured on the batches of the first epoch as training saw them, augmentation included.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ..arrays import Array, Arrays
from ..backend import Backend
from ..gates.surgery import Cut, prune, spare_plain_layers
from ..passes.batch_loss import BatchLoss
from ..passes.statistics import average_statistics
from ..passes.tape import forward
from ..spec.cost import cost_model
from ..spec.layers import Section
from .config import Config
from .images import Images, epoch_batches
from .pressure import penalty_of
from .removal import Pruned, cut_state, remove_gates
from .state import State
from .step import NonFiniteLoss


def decided(state: State, config: Config) -> tuple[Array, Array]:
    """(off, on): the gates with θ ≤ τ and those with θ ≥ 1−τ."""
    tau = config.gates.threshold
    return state.theta <= tau, state.theta >= 1.0 - tau


class Decision(NamedTuple):
    """A gate that was still undecided where all gates are decided (O9): its θ, J at its two vertices, and which was taken.

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

    Layer gates come before unit gates: a unit of a section that is not there changes nothing; it is 0 and no decision. The
    other gates have their decided or more likely value; but where that leaves a section none of its units, the undecided ones
    are on (`_open_sections`). One of the two vertices is always known from the gate before, so that G gates take at most G + 1
    passes over the data. With more than `gates.compare_at_most` gates to decide the unit gates among them are decided all at
    once, by `_first_order`. Returns the gate vector, what was decided, and the multiply-accumulates.
    """
    off, on = decided(state, config)
    more_likely = np.where(off | on, on, state.theta >= 0.5)
    gates = spare_plain_layers(state.network, more_likely, state.theta).astype(np.float64)
    undecided = np.flatnonzero(~off & ~on)
    if not undecided.size:
        return gates, [], 0
    gates = _open_sections(state, gates, ~off & ~on)
    undecided = undecided[np.argsort(-np.abs(state.theta[undecided] - 0.5), kind="stable")]
    is_layer = cost_model(state.network).is_layer[undecided]
    layers, units = undecided[is_layer], undecided[~is_layer]
    here, macs = _objective(state, images, config, backend, gates)
    decisions: list[Decision] = []

    def compare(one_by_one: Array) -> None:
        nonlocal here, macs
        for g in one_by_one:
            if _absent(state, gates, config)[g]:
                gates[g] = 0.0
                continue
            at, flipped = {gates[g]: here}, gates.copy()
            flipped[g] = 1.0 - gates[g]
            if (spare_plain_layers(state.network, flipped == 1.0, state.theta) == flipped).all():
                at[flipped[g]], spent = _objective(state, images, config, backend, flipped)
                macs += spent
            keeps = 0.0 not in at or at[1.0] < at[0.0]
            decisions.append(_decision(state, g, at[1.0], at.get(0.0), on=keeps))
            gates[g], here = float(keeps), at[float(keeps)]

    compare(layers)
    absent = _absent(state, gates, config)[units]
    gates[units[absent]] = 0.0
    units = units[~absent]
    if layers.size + units.size <= config.gates.compare_at_most:
        compare(units)
    elif units.size:
        gates, of_units, spent = _first_order(state, images, config, backend, gates, here, np.sort(units))
        decisions, macs = decisions + of_units, macs + spent
    return gates, decisions, macs


def _absent(state: State, gates: Array, config: Config) -> Array:
    """(G,): unit gates of sections that are not there at these gates: ξ = 0, or no units left where that closes them (N4)."""
    network, absent = state.network, np.zeros(gates.shape, dtype=bool)
    built = prune(network, gates == 1.0, empty=config.gates.empty).network
    there = {layer.name for layer in built.layers if isinstance(layer, Section)}
    for group in network.gate_groups:
        holder = network.layers[group.position]
        absent[group.slice] = group.kind == "unit" and isinstance(holder, Section) and holder.name not in there
    return absent


def _open_sections(state: State, gates: Array, undecided: Array) -> Array:
    """`gates`, but no section is shut by undecided units alone: its own gate would change nothing, and nobody saw it open."""
    gates = gates.copy()
    for group in state.network.gate_groups:
        if group.kind == "unit" and not gates[group.slice].any():
            gates[group.slice] = undecided[group.slice]
    return gates


def _decision(state: State, g: int, on_at: float, off_at: float | None, *, on: bool, rule: str = "compared") -> Decision:
    (group,) = (group for group in state.network.gate_groups if group.start <= g < group.stop)
    return Decision(group.name, int(state.number[g]), float(state.theta[g]), on_at, off_at, on=on, rule=rule)


def _first_order(
    state: State, images: Images, config: Config, backend: Backend, gates: Array, here: float, units: Array
) -> tuple[Array, list[Decision], int]:
    """Decide the `units` all at once, where comparing one by one would take a pass over the data for each.

    At the vertex `gates`, with J = `here`, one pass forward and backward gives d = mean ∂c/∂u, and J(on) − J(off) ≈ d + β_g
    for every unit, β_g the slope of β Σθ + ν R: on where that is negative. If J of the vertex so found, by a pass of its own,
    is not below `here`, `gates` stay.
    """
    slopes, macs = [], 0
    for x, labels in epoch_batches(images, config, epoch=0, augment=backend):
        loss = BatchLoss(state.network, backend, state.params, x, labels, state.statistics)
        evaluation = loss.evaluate(gates)
        gradients = loss.gradients(evaluation, consume=True)
        slopes.append(gradients.gates)
        macs += evaluation.tape.macs + gradients.macs
    penalty = dataclasses.replace(penalty_of(state, config, len(images.labels)), balance=0.5)
    change = np.stack(slopes).mean(axis=0, dtype=np.float64) + penalty.gradient(gates)
    found = gates.copy()
    found[units] = change[units] < 0.0
    found = spare_plain_layers(state.network, found == 1.0, state.theta).astype(np.float64)
    found[units[_absent(state, found, config)[units]]] = 0.0
    there, spent = _objective(state, images, config, backend, found)
    taken = found if there < here else gates
    decisions = [
        _decision(
            state,
            g,
            here + (1.0 - gates[g]) * change[g],
            here - gates[g] * change[g],
            on=bool(taken[g]),
            rule="first_order",
        )
        for g in units
    ]
    return taken, decisions, macs + spent


def _objective(state: State, images: Images, config: Config, backend: Backend, gates: Array) -> tuple[float, int]:
    """J of the network that is left at these gates, but for ½λ‖W‖², and the multiply-accumulates of finding it.

    The mean loss over all training batches, in train mode, and what its size costs. W is an argument of J, the same at all
    vertices, so that its decay decides nothing. Gates that were fixed before (`gates.protect`) cost nothing here.
    """
    on = gates == 1.0
    left = cut_state(state, prune(state.network, on, fix=on, empty=config.gates.empty))
    gates_on = prune(state.network, on, empty=config.gates.empty).network.gate_count
    losses, macs = [], 0
    with np.errstate(over="ignore", invalid="ignore"):
        for x, labels in epoch_batches(images, config, epoch=0, augment=backend):
            result = BatchLoss(left.network, backend, left.params, x, labels, left.statistics).evaluate(left.theta)
            losses.append(float(result.loss))
            macs += result.tape.macs
    if not np.isfinite(losses).all():
        raise NonFiniteLoss(f"step {state.step}: the training loss is not finite where undecided gates are compared")
    size = penalty_of(state, config, len(images.labels)).of_decided(left.network, gates_on)
    return float(np.mean(losses)) + size, macs


class Settlement(NamedTuple):
    """All gates decided: the state without gates, the last removal with its cut, and the gates that had to be compared.

    rounded: the largest |θ − ξ| of those that were not compared, by the rule of the threshold or because a unit was spared.
    """

    state: State
    keep: Array
    cut: Cut
    pruned: Pruned
    decisions: list[Decision]
    rounded: float


def settle_gates(state: State, images: Images, config: Config, backend: Backend) -> Settlement:
    """Every gate becomes 0 or 1, for good (O7, O9); where training goes on, it makes the running statistics follow."""
    gates, decisions, macs = decide(state, images, config, backend)
    keep = gates == 1.0
    rounded = float(np.abs(state.theta - gates)[np.logical_or(*decided(state, config))].max(initial=0.0))
    smaller, cut, pruned = remove_gates(state, keep, config, fix=keep)
    return Settlement(dataclasses.replace(smaller, macs=state.macs + macs), keep, cut, pruned, decisions, rounded)


def settle(state: State, images: Images, config: Config, backend: Backend) -> Settlement:
    """The end of a run: gates settled, then running statistics re-estimated on the network without gates (N4)."""
    settled = settle_gates(state, images, config, backend)
    statistics, macs = _reestimate(settled.state, images, config, backend)
    final = dataclasses.replace(settled.state, statistics=statistics, macs=settled.state.macs + macs, finished=True)
    return settled._replace(state=final)


def _reestimate(state: State, images: Images, config: Config, backend: Backend) -> tuple[Arrays, int]:
    if not state.statistics:
        return state.statistics, 0
    collected: list[Mapping[str, tuple[Array, Array, int]]] = []
    macs = 0
    for x, _ in epoch_batches(images, config, epoch=0, augment=backend):
        tape = forward(state.network, backend, state.params, x, train=True)
        collected.append(tape.batch_statistics)
        macs += tape.macs
    return average_statistics(state.network, state.statistics, collected), macs
