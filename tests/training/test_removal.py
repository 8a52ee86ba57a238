"""Removal during training (O7) against the masked network that never shrinks."""

import dataclasses
import math

import numpy as np
import pytest
from small_training import (
    NETWORKS,
    SAME,
    TANH,
    convolutional,
    ended,
    images,
    mlp,
    named,
    plain,
    run,
    settings,
    start,
    trajectory_tolerance,
)
from tolerance import assert_close, assert_identical

from refprune.backend import ORACLE
from refprune.passes.batch_loss import BatchLoss
from refprune.spec.layers import Conv, Dense, Flatten, Section, UnitGate
from refprune.spec.network import Network
from refprune.training.evaluate import evaluate
from refprune.training.loop import Stepped, train_epochs
from refprune.training.removal import Removed, cut_state, gates_kept, remove_gates
from refprune.training.state import gate_uniforms, initial_state


def removed_from(network, rules, theta):
    state = start(network, rules, theta)
    keep = gates_kept(state, rules, training_images=32)
    smaller, cut, pruned = remove_gates(state, keep, rules)
    return state, keep, smaller, cut, pruned


def kept(network, theta, threshold):
    rules = settings(gates={"threshold": threshold})
    return gates_kept(start(network, rules, theta), rules, training_images=32)


def test_the_rule_removes_at_and_below_the_threshold():
    network = mlp()
    theta = np.array([0.1, 0.1, 0.0, math.nextafter(0.1, 1.0), 0.2, 0.5, 1.0, 0.05])
    assert kept(network, theta, 0.1).tolist() == [False, False, False, True, True, True, True, False]


def test_a_removal_leaves_the_rest_as_it_is():
    """The gate is gone with weights, momenta and θ; what stays has the same bits, units' rows and columns included."""
    rules = settings(gates={"threshold": 0.1})
    theta = np.array([0.05, 0.7, 0.2, 0.1, 0.6, 0.0, 0.9, 0.3])
    state, keep, smaller, cut, pruned = removed_from(mlp(), rules, theta)
    assert pruned == (0, {"section1": 1, "section2.unitgate1": 2}, (), ())
    assert [g.name for g in smaller.network.gate_groups] == ["section2", "section2.unitgate1", "section3"]
    assert_identical("theta", smaller.theta, theta[keep])
    assert not any(name.startswith("section1") for name in named(smaller))
    left = [0, 2, 4]
    for group in ("params", "velocity"):
        old, new = getattr(state, group), getattr(smaller, group)
        assert set(new) == {name for name in old if not name.startswith("section1")}
        for name, array in new.items():
            want = old[name]
            if name in ("section2.dense1.weight", "section2.dense1.bias"):
                want = want[left]
            if name == "section2.dense2.weight":
                want = want[:, left]
            assert_identical(name, array, want)
    assert (smaller.step, smaller.macs, smaller.finished) == (state.step, state.macs, state.finished)
    assert (cut.gates == np.flatnonzero(keep)).all()


def test_a_state_is_never_changed():
    """Steps and removals make new states: the old one's arrays keep their bits."""
    network, rules = convolutional(), settings(gates={"learning_rate": 0.3}, objective={"beta": 0.3, "weight_decay": 0.1})
    state = start(network, rules, [0.0, 1.0, 0.0, 0.5, 0.5, 0.5])
    before = {name: array.copy() for name, array in named(state).items()}
    run(state, images(network), rules, 2)
    remove_gates(state, state.theta > 0, rules)
    ended(state, images(network), rules)
    for name, array in before.items():
        assert_identical(name, named(state)[name], array)


def compare_masked_and_compact(network, rules, theta, hold):
    """The smaller network's trajectory is that of the network whose gates `hold` stay at 0."""
    state, _, smaller, cut, _ = removed_from(network, rules, theta)
    data = images(network)

    def held(now):
        return dataclasses.replace(now, theta=np.where(hold, 0.0, now.theta))

    masked = run(held(state), data, rules, 5, after=held)
    compact = run(smaller, data, rules, 5)
    tolerance = trajectory_tolerance(smaller, data, rules, 5)
    want = named(cut_state(masked, cut))
    assert set(want) == set(named(compact))
    for name, array in named(compact).items():
        assert_close(name, array, want[name], tolerance[name])
    assert compact.macs < masked.macs or rules.gates.estimator != "taylor"


@pytest.mark.parametrize("estimator", ["paired", "taylor"])
@pytest.mark.parametrize("name", ["mlp", "convolutional"])
def test_a_removed_section_is_one_that_stays_masked(name, estimator):
    """O7: five more steps. Catches lost momenta, other gates' shifted random numbers, and statistics that a closed section
    changes."""
    network = NETWORKS[name]()
    rules = settings(
        gates={"estimator": estimator, "learning_rate": 0.1},
        objective={"beta": 0.05, "weight_decay": 0.1},
        optimiser={"learning_rate": 0.1},
    )
    theta = np.full(network.gate_count, 0.6)
    theta[network.gate_slices["section1"]] = 0.0
    if name == "convolutional":  # with its section the unit gates go too
        compare_masked_and_compact(network, rules, theta, np.arange(6) < 5)
    compare_masked_and_compact(network, rules, theta, theta == 0.0)


@pytest.mark.parametrize("name", NETWORKS)
def test_removed_units_are_masked_ones(name):
    """The same for units. The gates that stay are at 1, so that no random number matters."""
    network, rules = NETWORKS[name](), settings(gates={"learning_rate": 0.0}, objective={"weight_decay": 0.1})
    theta = np.ones(network.gate_count)
    for group in network.gate_groups:
        if group.kind == "unit":
            theta[group.start + 1 : group.start + 3] = 0.0
    compare_masked_and_compact(network, rules, theta, theta == 0.0)


def test_the_shortcut_of_a_removed_first_section_goes_on_learning():
    section = Section((Dense(5), TANH, Dense(4)), shortcut=(Dense(4),))
    network = Network((3,), (section, TANH, Section((Dense(3), TANH, Dense(4))), Dense(3)))
    rules = settings(gates={"learning_rate": 0.1, "estimator": "paired"})
    compare_masked_and_compact(network, rules, np.array([0.0, 0.6]), np.array([True, False]))


def test_units_keep_their_random_numbers_when_another_unit_goes():
    network, rules = mlp(), settings(gates={"learning_rate": 0.1, "estimator": "paired"})
    theta = np.full(network.gate_count, 0.6)
    theta[network.gate_slices["section2.unitgate1"].start] = 0.0
    compare_masked_and_compact(network, rules, theta, theta == 0.0)


def gates_at(state, rules, step):
    """The gates that a step samples, by group; seen in what the forward pass is given."""
    seen = {}
    uniform = gate_uniforms(dataclasses.replace(state, step=step), rules.seed, rules.gates.gate_samples)
    for group in state.network.gate_groups:
        seen[group.name] = uniform[:, group.slice]
    return seen


def test_a_removal_does_not_touch_the_streams_of_other_groups():
    rules = settings()
    state, _, smaller, _, _ = removed_from(mlp(), rules, [0.0, 0.5, 0.0, 0.5, 0.5, 0.5, 0.5, 0.5])
    for step in (0, 1, 17):
        before, after = gates_at(state, rules, step), gates_at(smaller, rules, step)
        for name in ("section2", "section3"):
            assert_identical(name, after[name], before[name])
        assert (gates_at(state, rules, step + 1)["section2"] != before["section2"]).all()


def test_a_plain_layer_keeps_its_best_unit():
    network = plain()
    theta = np.array([0.0, 0.1, 0.3, 0.2, 0.3, 0.0, 0.0, 0.0, 0.0])
    assert np.flatnonzero(kept(network, theta, 0.4)).tolist() == [2, 5]
    assert not kept(mlp(), np.zeros(8), 0.0).any()  # in a section all units may go
    rules = settings(gates={"threshold": 0.4})
    _, _, smaller, _, pruned = removed_from(network, rules, theta)
    assert pruned.removed == {"unitgate1": 4, "unitgate2": 3}
    assert [layer.units for layer in smaller.network.layers if isinstance(layer, Dense)] == [1, 1, 3]


@pytest.mark.parametrize("others", [[False, False, False, True], [True, True, False, False]])
def test_the_last_unit_of_a_plain_layer_is_on_for_good(others):
    """Whatever took the other units, and whatever its own θ, which is 0 here: that would make the network a constant."""
    network, rules = plain(), settings()
    state = start(network, rules, np.zeros(9))
    keep = np.array([False, False, False, False, True, *others])
    smaller, _, pruned = remove_gates(state, keep, rules)
    one_left = sum(others) == 1
    assert pruned.last == (("unitgate1", "unitgate2") if one_left else ("unitgate1",))
    assert [g.name for g in smaller.network.gate_groups] == ([] if one_left else ["unitgate2"])
    data = images(network)
    y = BatchLoss(smaller.network, ORACLE, smaller.params, *data).evaluate(np.ones(smaller.theta.size)).tape.output
    assert np.ptp(y, axis=0).max() > 0.0


@pytest.mark.parametrize("empty", ["close", "keep_constant"])
def test_a_section_without_units_is_closed_or_keeps_its_constant(empty):
    rules = settings(gates={"empty": empty})
    _, _, smaller, _, pruned = removed_from(mlp(), rules, [0.5, 0.5, 0, 0, 0, 0, 0, 0.5])
    assert pruned.closed_for_emptiness == (("section2",) if empty == "close" else ())
    assert ("section2.dense2.bias" in smaller.params) == (empty == "keep_constant")
    run(smaller, images(mlp()), rules, 2)


def trained(network, rules, epochs):
    """Training with removals; also what was removed."""
    data, state, removals = images(network, 64), initial_state(rules, network), []
    gates = state.theta.size
    for event in train_epochs(state, rules, data, ORACLE, until=epochs):
        if isinstance(event, Removed):
            assert event.before.network == state.network
            removals.append(event.pruned)
        elif isinstance(event, Stepped):
            assert math.isfinite(event.metrics.loss)
            assert 0 <= event.metrics.gates_on <= gates
            gates = event.state.theta.size
        state = event.state
        assert (gates_kept(state, rules, training_images=64)).all()
    return state, data, removals


def units_only():
    """A section without gate of its own, but with unit gates."""
    return Network((3,), (Dense(4), TANH, Section((Dense(5), TANH, UnitGate(), Dense(4)), gate=False), Dense(3)))


@pytest.mark.parametrize("make", [*NETWORKS.values(), units_only])
def test_gates_go_one_after_another_and_in_the_end_none_is_left(make):
    """Training end to end with layer and unit gates: removals while it runs, then every θ exactly 0 or 1."""
    network = make()
    rules = settings(gates={"learning_rate": 0.15, "estimator": "paired"}, objective={"beta": 0.3})
    state, data, removals = trained(network, rules, 2)
    assert removals
    assert make is mlp or any("unitgate" in group for pruned in removals for group in pruned.removed)
    assert [p.step for p in removals] == sorted(p.step for p in removals)
    end = ended(state, data, rules)[-1].state
    assert end.finished
    assert end.network.gate_count == end.theta.size == 0
    assert set(end.params) == set(end.velocity) == set(end.network.parameter_shapes)
    score = evaluate(end, data, ORACLE)
    assert math.isfinite(score.loss)


def test_layers_after_flatten_lose_blocks_of_columns_in_training():
    """A unit of a convolution goes with its block of columns behind the flatten."""
    network = Network((2, 4, 4), (Conv(3, (3, 3), padding=SAME), TANH, UnitGate(), Flatten(), Dense(3)))
    rules = settings(gates={"learning_rate": 0.0})
    compare_masked_and_compact(network, rules, np.array([1.0, 0.0, 1.0]), np.array([False, True, False]))
