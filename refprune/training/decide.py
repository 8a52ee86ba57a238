"""Deciding every gate: θ becomes 0 or 1 for good, and no undecided gate is rounded in silence (SPEC O7, O9, N4).

J is compared on the batches of the first epoch as training saw them, augmentation included.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ..arrays import Array, Arrays
from ..backend import Backend
from ..gates.surgery import prune, spare_plain_layers
from ..passes.batch_loss import BatchLoss
from ..passes.statistics import average_statistics
from ..passes.tape import forward
from ..spec.cost import cost_model
from ..spec.layers import Section
from .coefficients import penalty_of
from .config import Config
from .images import Images, epoch_batches
from .removal import Removed, cut_state, remove_gates
from .state import State
from .step import NonFiniteLoss


def decided(state: State, config: Config) -> tuple[Array, Array]:
    """(off, on): the gates with θ ≤ τ and those with θ ≥ 1−τ."""
    tau = config.gates.threshold
    return state.theta <= tau, state.theta >= 1.0 - tau


def all_decided(state: State, config: Config) -> bool:
    """Is no θ inside (τ, 1−τ)?"""
    off, on = decided(state, config)
    return bool((off | on).all())


class Decision(NamedTuple):
    """An undecided gate and what was decided (O9).

    unit: the gate's number in its group when training began.
    objective_on, objective_off: J with the gate at 1 and at 0; objective_off is None for the last unit of a plain layer, which
        cannot go.
    on: the gate is 1.
    rule: "compared", or "first_order", by which J at the other vertex is a first-order estimate.
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
    once (`Comparison.first_order`). Returns the gate vector, (G,), the decisions, and the multiply-accumulates.
    """
    off, on = decided(state, config)
    more_likely = np.where(off | on, on, state.theta >= 0.5)
    gates = spare_plain_layers(state.network, more_likely, state.theta).astype(np.float64)
    undecided = np.flatnonzero(~off & ~on)
    if not undecided.size:
        return gates, [], 0
    undecided = undecided[np.argsort(-np.abs(state.theta[undecided] - 0.5), kind="stable")]
    is_layer = cost_model(state.network).is_layer[undecided]
    layers, units = undecided[is_layer], undecided[~is_layer]
    comparison = Comparison(state, images, config, backend)
    comparison.start(_open_sections(state, gates, ~off & ~on))
    comparison.one_by_one(layers)
    units = comparison.present(units)
    if layers.size + units.size <= config.gates.compare_at_most:
        comparison.one_by_one(units)
    elif units.size:
        comparison.first_order(np.sort(units))
    return comparison.gates, comparison.decisions, comparison.macs


def _open_sections(state: State, gates: Array, undecided: Array) -> Array:
    """`gates`, but every group of units that would be all 0 has its undecided units at 1.

    Otherwise the comparison of the section's own gate would find no effect: without units its path is a constant at most.
    """
    gates = gates.copy()
    for group in state.network.gate_groups:
        if group.kind == "unit" and not gates[group.slice].any():
            gates[group.slice] = undecided[group.slice]
    return gates


@dataclass
class Comparison:
    """J at vertices of the gates' cube {0, 1}^G, from one vertex to the next.

    gates: (G,) the vertex that the comparison has come to.
    here: J at `gates`.
    decisions: the gates decided so far, in order.
    macs: multiply-accumulates spent so far.
    """

    state: State
    images: Images
    config: Config
    backend: Backend
    gates: Array = field(init=False)
    here: float = field(init=False)
    decisions: list[Decision] = field(default_factory=list)
    macs: int = 0

    def start(self, gates: Array) -> None:
        """Begin at this vertex."""
        self.gates, self.here = gates, self.objective(gates)

    def one_by_one(self, undecided: Array) -> None:
        """Decide the gates one after the other: each takes the vertex with the smaller J, at 1 only if J is smaller there."""
        for g in undecided:
            if _absent(self.state, self.gates, self.config)[g]:
                self.gates[g] = 0.0
                continue
            at, flipped = {self.gates[g]: self.here}, self.gates.copy()
            flipped[g] = 1.0 - self.gates[g]
            if (spare_plain_layers(self.state.network, flipped == 1.0, self.state.theta) == flipped).all():
                at[flipped[g]] = self.objective(flipped)
            on = 0.0 not in at or at[1.0] < at[0.0]
            self._record(g, at[1.0], at.get(0.0), on=on)
            self.gates[g], self.here = float(on), at[float(on)]

    def present(self, units: Array) -> Array:
        """Those of the unit gates whose section is there; the others become 0, which changes nothing."""
        absent = _absent(self.state, self.gates, self.config)[units]
        self.gates[units[absent]] = 0.0
        return units[~absent]

    def first_order(self, units: Array) -> None:
        """Decide the unit gates all at once, where comparing one by one would take a pass over the data for each.

        J(on) − J(off) ≈ ∂c/∂u + β_g for every unit: ∂c/∂u is the mean over the batches of one pass forward and backward at
        `gates`, β_g the slope of β Σθ + ν R. A unit is on where that is negative. If J of the vertex so found, by a pass of its
        own, is not below J at `gates`, `gates` stay.
        """
        state, config, here = self.state, self.config, self.here
        penalty = dataclasses.replace(penalty_of(state, config, len(self.images.labels)), balance=0.5)
        change = self._mean_slope() + penalty.gradient(self.gates)
        found = self.gates.copy()
        found[units] = change[units] < 0.0
        found = spare_plain_layers(state.network, found == 1.0, state.theta).astype(np.float64)
        found[units[_absent(state, found, config)[units]]] = 0.0
        objective, before = self.objective(found), self.gates
        if objective < here:
            self.gates, self.here = found, objective
        for g in units:
            on, off = here + (1.0 - before[g]) * change[g], here - before[g] * change[g]
            self._record(g, on, off, on=bool(self.gates[g]), rule="first_order")

    def objective(self, gates: Array) -> float:
        """J of the network that is left at these gates, but for ½λ‖W‖².

        The mean loss over all training batches, in train mode, and what the network's size costs. W is an argument of J, the
        same at all vertices, so that its decay decides nothing. Gates that were fixed before (`gates.protect`) cost nothing
        here. NonFiniteLoss if the loss of a batch is not finite.
        """
        state, empty, on = self.state, self.config.gates.empty, gates == 1.0
        left = cut_state(state, prune(state.network, on, fix=on, empty=empty))
        gates_on = prune(state.network, on, empty=empty).network.gate_count
        losses = []
        with np.errstate(over="ignore", invalid="ignore"):
            for x, labels in epoch_batches(self.images, self.config, epoch=0, augment=self.backend):
                loss = BatchLoss(left.network, self.backend, left.params, x, labels, left.statistics)
                result = loss.evaluate(left.theta)
                losses.append(float(result.loss))
                self.macs += result.tape.macs
        if not np.isfinite(losses).all():
            raise NonFiniteLoss(f"step {state.step}: the training loss is not finite where undecided gates are compared")
        size = penalty_of(state, self.config, len(self.images.labels)).of_decided(left.network, gates_on)
        return float(np.mean(losses)) + size

    def _mean_slope(self) -> Array:
        """(G,) the mean of ∂c/∂ξ at `gates` over all batches."""
        state, slopes = self.state, []
        for x, labels in epoch_batches(self.images, self.config, epoch=0, augment=self.backend):
            loss = BatchLoss(state.network, self.backend, state.params, x, labels, state.statistics)
            evaluation = loss.evaluate(self.gates)
            gradients = loss.gradients(evaluation, consume=True)
            slopes.append(gradients.gates)
            self.macs += evaluation.tape.macs + gradients.macs
        mean: Array = np.stack(slopes).mean(axis=0, dtype=np.float64)
        return mean

    def _record(self, g: int, objective_on: float, objective_off: float | None, *, on: bool, rule: str = "compared") -> None:
        (group,) = (group for group in self.state.network.gate_groups if group.start <= g < group.stop)
        unit, theta = int(self.state.number[g]), float(self.state.theta[g])
        self.decisions.append(Decision(group.name, unit, theta, objective_on, objective_off, on=on, rule=rule))


def _absent(state: State, gates: Array, config: Config) -> Array:
    """(G,): unit gates of sections that are not there at these gates: ξ = 0, or no units left where that closes them (N4)."""
    network, absent = state.network, np.zeros(gates.shape, dtype=bool)
    built = prune(network, gates == 1.0, empty=config.gates.empty).network
    there = {layer.name for layer in built.layers if isinstance(layer, Section)}
    for group in network.gate_groups:
        holder = network.layers[group.position]
        absent[group.slice] = group.kind == "unit" and isinstance(holder, Section) and holder.name not in there
    return absent


@dataclass(frozen=True)
class Decided:
    """Every gate is 0 or 1.

    removed: the removal of those at 0; its `state` has no gates.
    decisions: the gates that were undecided.
    rounded: the largest |θ − ξ| of the other gates, by the threshold τ or because a plain layer keeps its last unit.
    """

    state: State
    removed: Removed
    decisions: list[Decision]
    rounded: float


def decide_all(state: State, images: Images, config: Config, backend: Backend) -> Decided:
    """Every gate becomes 0 or 1, for good (O7, O9); running statistics stay as they are."""
    gates, decisions, macs = decide(state, images, config, backend)
    keep = gates == 1.0
    rounded = float(np.abs(state.theta - gates)[np.logical_or(*decided(state, config))].max(initial=0.0))
    smaller, cut, pruned = remove_gates(state, keep, config, fix=keep)
    smaller = dataclasses.replace(smaller, macs=state.macs + macs)
    gates_on = prune(state.network, keep, empty=config.gates.empty).network.gate_count
    return Decided(smaller, Removed(state, smaller, cut, pruned, keep, gates_on), decisions, rounded)


def reestimate(state: State, images: Images, config: Config, backend: Backend) -> State:
    """The state with running statistics averaged over the batches of one epoch, in train mode (N4).

    Those of training are a mixture of many networks: with gates on and off, and with earlier weights.
    """
    if not state.statistics:
        return state
    collected: list[Mapping[str, tuple[Array, Array, int]]] = []
    macs = 0
    for x, _ in epoch_batches(images, config, epoch=0, augment=backend):
        tape = forward(state.network, backend, state.params, x, train=True)
        collected.append(tape.batch_statistics)
        macs += tape.macs
    statistics: Arrays = average_statistics(state.network, state.statistics, collected)
    return dataclasses.replace(state, statistics=statistics, macs=state.macs + macs)
