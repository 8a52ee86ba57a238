"""The end of a run (O9): undecided gates take the better vertex, by PyTorch's objective; statistics estimated again (N4)."""

import dataclasses

import numpy as np
import pytest
import torch_network
from small_training import (
    NETWORKS,
    TANH,
    U,
    convolutional,
    e2,
    ended,
    images,
    mlp,
    plain,
    settings,
    start,
)
from tolerance import assert_close, assert_identical

from refprune.backend import ORACLE
from refprune.gates.surgery import prune
from refprune.passes.batch_loss import BatchLoss
from refprune.spec import cost
from refprune.spec.layers import Dense, Section, UnitGate
from refprune.spec.network import Network
from refprune.training import decide
from refprune.training.coefficients import penalty_of
from refprune.training.images import epoch_batches

AUGMENTED = {"augmentation": "crop_flip", "padding": 1}


def torch_loss(state, data, rules, gates):
    """C over all batches of one size, in train mode."""
    order = [
        torch_network.evaluate(state.network, state.params, gates, x, labels, train=True)[0]["loss"]
        for x, labels in epoch_batches(data, rules, 0, augment=ORACLE)
    ]
    return float(np.mean(order))


def gates_left(network, gates):
    """The gates of what is built (N4): a closed section has lost its units, one without units is closed."""
    gates = gates.copy()
    for section in [g for g in network.gate_groups if g.kind == "layer"]:
        units = [g for g in network.gate_groups if g.kind == "unit" and g.position == section.position]
        if gates[section.start] == 0.0 or any(not gates[g.slice].any() for g in units):
            for g in (section, *units):
                gates[g.slice] = 0.0
    return gates


def section_of(network, where):
    """The layer gates, none or one, above a unit gate."""
    (group,) = [g for g in network.gate_groups if g.start <= where < g.stop]
    return [g.start for g in network.gate_groups if g.kind == "layer" and g.position == group.position and g != group]


@pytest.mark.parametrize(("name", "data"), [("mlp", {}), ("convolutional", {}), ("convolutional", AUGMENTED)])
@pytest.mark.parametrize("penalty", [0.0, 0.02, 5.0])
def test_undecided_gates_take_the_better_vertex(name, data, penalty):
    """O9, O4: J at the two vertices is computed again, by PyTorch; layers first, least certain last, the others as decided."""
    network = NETWORKS[name]()
    rules = settings(gates={"threshold": 0.1}, objective={"beta": penalty, "weight_decay": 0.7}, data=data)
    theta = np.array([0.3, 0.95, 0.6, 1.0, 0.05, 0.9, 0.55, 0.2])[: network.gate_count]
    state, data = start(network, rules, theta), images(network)
    gates, decisions, macs = decide.decide(state, data, rules, ORACLE)
    places = [(g.name, i) for g in network.gate_groups for i in range(g.stop - g.start)]
    sections = [g.start for g in network.gate_groups if g.kind == "layer"]
    undecided = [i for i in range(len(theta)) if 0.1 < theta[i] < 0.9]
    want, listed = np.where(theta >= 0.5, 1.0, 0.0), iter(decisions)
    for where in sorted(undecided, key=lambda i: (i not in sections, -abs(theta[i] - 0.5))):
        if not gates_left(network, want)[section_of(network, where)].all():
            want[where] = 0.0  # of a section that is not there
            continue
        d = next(listed)
        assert (places[where], theta[where]) == ((d.gate, d.unit), d.theta)
        objective = []
        for vertex in (1.0, 0.0):
            want[where] = vertex
            left = gates_left(network, want)
            c = torch_loss(state, data, rules, left)
            tolerance = e2(lambda b, jitter, w=want: {"c": jitter(decide.Comparison(state, data, rules, b).objective(w))})
            objective.append(c + penalty * left.sum())
            assert_close("J", np.float64((d.objective_off, d.objective_on)[int(vertex)]), np.float64(objective[-1]),
                         tolerance["c"] + 16 * U * penalty)  # fmt: skip
        assert d.on == (d.objective_on < d.objective_off)
        want[where] = float(d.on)
    assert next(listed, None) is None
    assert_identical("gates", gates, want)
    if penalty == 5.0:
        assert not any(d.on for d in decisions)
    loss = BatchLoss(network, ORACLE, state.params, data.x[:8], data.labels[:8], state.statistics)
    full = loss.evaluate(np.ones(network.gate_count)).tape.macs
    assert 0 < macs <= (len(decisions) + 1) * 4 * full


def test_decided_gates_need_no_comparison():
    network, rules = mlp(), settings(gates={"threshold": 0.1})
    theta = np.array([0.0, 1.0, 0.1, 0.9, 0.95, 0.05, 1.0, 0.0])
    gates, decisions, macs = decide.decide(start(network, rules, theta), images(network), rules, ORACLE)
    assert (decisions, macs) == ([], 0)
    assert_identical("gates", gates, np.round(theta))
    off, on = decide.decided(start(network, rules, theta), rules)
    assert (off == (theta <= 0.1)).all()
    assert (on == (theta >= 0.9)).all()


def test_what_the_threshold_rounds_is_told():
    """τ = ½ leaves nothing to compare; how far θ was from its vertex is said. A compared gate is not rounded."""
    network = mlp()
    theta = np.array([0.0, 1.0, 0.35, 0.9, 0.51, 1.0, 1.0, 0.02])
    for tau, rounded, compared in ((0.5, 0.49, 0), (0.4, 0.35, 1), (0.1, 0.1, 2), (0.0, 0.0, 4)):
        rules = settings(gates={"threshold": tau, "initial": 1.0})
        end = decide.decide_all(start(network, rules, theta), images(network), rules, ORACLE)
        assert end.rounded == pytest.approx(rounded, abs=1e-12)
        assert len(end.decisions) == compared


def test_deciding_removes_fixes_lists_and_counts():
    network, rules = mlp(), settings(gates={"threshold": 0.1}, objective={"beta": 0.02})
    theta = np.array([0.3, 0.95, 0.6, 1.0, 0.05, 0.9, 0.55, 0.2])
    state, data = start(network, rules, theta), images(network)
    gates, decisions, macs = decide.decide(state, data, rules, ORACLE)
    end = decide.decide_all(state, data, rules, ORACLE)
    assert end.decisions == decisions
    assert (end.removed.on == (gates == 1.0)).all()
    assert end.state.macs == state.macs + macs
    counts = {g.name: int((gates[g.slice] == 0).sum()) for g in network.gate_groups}
    assert end.removed.pruned.removed == {name: n for name, n in counts.items() if n}
    assert end.state.network.gate_count == 0
    with_gates = BatchLoss(network, ORACLE, state.params, data.x, data.labels, train=False)
    without = BatchLoss(end.state.network, ORACLE, end.state.params, data.x, data.labels, train=False)
    tolerance = e2(lambda b, _: {"y": dataclasses.replace(without, backend=b).evaluate(np.zeros(0)).tape.output})
    masked, compact = with_gates.evaluate(gates), without.evaluate(np.zeros(0))
    assert_close("output", compact.tape.output, masked.tape.output, tolerance["y"])


def test_the_list_says_what_became_of_a_spared_unit():
    network, rules = plain(), settings(objective={"beta": 50.0})
    state = start(network, rules, np.full(9, 0.4))
    end = decide.decide_all(state, images(network), rules, ORACLE)
    places = {(g.name, i): g.start + i for g in network.gate_groups for i in range(g.stop - g.start)}
    assert end.removed.on.sum() == 2
    for d in end.decisions:
        assert d.on == end.removed.on[places[d.gate, d.unit]]


@pytest.mark.parametrize("augmentation", [{}, AUGMENTED])
def test_statistics_are_estimated_again_at_the_end(augmentation):
    """N4: averages over the batches of the network without gates, not the mixture that training left behind."""
    network = convolutional()
    rules = settings(gates={"threshold": 0.1}, objective={"beta": 0.02}, data=augmentation)
    state, data = start(network, rules, [1.0, 1.0, 0.0, 0.8, 1.0, 1.0]), images(network)
    before, end = ended(state, data, rules)
    assert end.state.network.statistics_shapes
    moments = [
        torch_network.evaluate(end.state.network, end.state.params, np.zeros(0), x, labels, train=True)[1]
        for x, labels in epoch_batches(data, rules, 0, augment=ORACLE)
    ]

    def estimated(backend, jitter):
        again = decide.reestimate(before.state, data, rules, backend)
        return {name: jitter(array) for name, array in again.statistics.items()}

    tolerance = e2(estimated)
    for layer in moments[0]:
        mean = np.mean([m[layer][0] for m in moments], axis=0)
        variance = np.mean([m[layer][1] * m[layer][2] / (m[layer][2] - 1) for m in moments], axis=0)
        assert_close(layer, end.state.statistics[f"{layer}.mean"], mean, tolerance[f"{layer}.mean"])
        assert_close(layer, end.state.statistics[f"{layer}.variance"], variance, tolerance[f"{layer}.variance"])
    assert set(end.state.statistics) == set(end.state.network.statistics_shapes) == set(tolerance)


@pytest.mark.parametrize("empty", ["close", "keep_constant"])
def test_the_vertices_of_the_last_unit_are_those_of_the_network_that_is_built(empty):
    """Closing an emptied section drops its constant: J_off must be the J without it, as it is with ξ = 0."""
    section = Section((Dense(1), TANH, UnitGate(), Dense(4)))
    network = Network((3,), (Dense(4), TANH, section, Dense(3)))
    rules = settings(gates={"threshold": 0.1, "empty": empty})
    state, data = start(network, rules, [0.95, 0.4]), images(network)
    _, (decision,), _ = decide.decide(state, data, rules, ORACLE)
    gates = np.array([0.0, 0.0]) if empty == "close" else np.array([1.0, 0.0])
    want = torch_loss(state, data, rules, gates)
    other = torch_loss(state, data, rules, np.array([1.0, 0.0]) if empty == "close" else np.array([0.0, 0.0]))
    tolerance = e2(lambda b, jitter: {"c": jitter(decide.Comparison(state, data, rules, b).objective(np.array([1.0, 0.0])))})
    assert_close("J", np.float64(decision.objective_off), np.float64(want), tolerance["c"])
    assert abs(want - other) > 1e3 * tolerance["c"]


@pytest.mark.parametrize("compare_at_most", [32, 0])
@pytest.mark.parametrize(("section", "units"), [(0.45, 0.9), (0.45, 0.7), (0.94, 0.49), (0.99, 0.45), (0.45, 0.45)])
def test_a_section_that_is_needed_is_compared_with_it_open(compare_at_most, section, units):
    """θ just below ½ for a section without which the loss is much larger, or for all of its units: neither shuts it unseen."""
    network = Network((3,), (Dense(4), TANH, Section((Dense(5), TANH, UnitGate(), Dense(4))), Dense(3)))
    rules = settings(gates={"threshold": 0.05, "compare_at_most": compare_at_most}, objective={"beta": 0.001})
    state = start(network, rules, [section, *[units] * 5])
    louder = {name: p * (8.0 if name.startswith("section1") else 1.0) for name, p in state.params.items()}
    state, data = dataclasses.replace(state, params=louder), images(network)
    whole = BatchLoss(network, ORACLE, state.params, data.x, data.labels).evaluate(np.ones(6)).tape.output
    data = data._replace(labels=whole.argmax(axis=1))
    off, on = (decide.Comparison(state, data, rules, ORACLE).objective(np.full(6, value)) for value in (0.0, 1.0))
    assert off > on + 0.2
    gates, decisions, _ = decide.decide(state, data, rules, ORACLE)
    assert section == 0.99 or (decisions[0].gate, decisions[0].on) == ("section1", True)
    assert gates[0] == 1.0
    assert gates[1:].any()
    assert decide.Comparison(state, data, rules, ORACLE).objective(gates) <= on


def test_a_section_with_two_groups_of_units_is_compared_with_both_open():
    path = (Dense(3), TANH, UnitGate(), Dense(3), TANH, UnitGate(), Dense(4))
    network = Network((3,), (Dense(4), TANH, Section(path), Dense(3)))
    rules = settings(gates={"threshold": 0.05}, objective={"beta": 0.001})
    state, data = start(network, rules, [0.99, *[0.7] * 3, *[0.45] * 3]), images(network)
    louder = {name: p * (8.0 if name.startswith("section1") else 1.0) for name, p in state.params.items()}
    state = dataclasses.replace(state, params=louder)
    whole = BatchLoss(network, ORACLE, state.params, data.x, data.labels).evaluate(np.ones(7)).tape.output
    data = data._replace(labels=whole.argmax(axis=1))
    gates, _, _ = decide.decide(state, data, rules, ORACLE)
    assert gates[1:4].any()
    assert gates[4:].any()
    on, off, got = (decide.Comparison(state, data, rules, ORACLE).objective(at) for at in (np.ones(7), np.zeros(7), gates))
    assert got <= on < off - 0.1


def with_two_groups():
    path = (Dense(3), TANH, UnitGate(), Dense(3), TANH, UnitGate(), Dense(4))
    return Network((3,), (Dense(4), TANH, Section(path), Dense(2), TANH, UnitGate(), Dense(3)))


@pytest.mark.parametrize("compare_at_most", [3, 0])
@pytest.mark.parametrize("section", [0.05, 0.4])
def test_units_of_a_section_that_is_not_there_are_no_decisions(section, compare_at_most):
    """ξ = 0 by τ, or by comparison: its undecided units are 0, cost no pass, are not listed and do not count as undecided."""
    network = with_two_groups()
    rules = settings(gates={"threshold": 0.1, "compare_at_most": compare_at_most}, objective={"beta": 50.0})
    theta = np.array([section, *[0.6] * 6, 0.4, 0.6])
    state, data = start(network, rules, theta), images(network)
    gates, decisions, macs = decide.decide(state, data, rules, ORACLE)
    asked = [] if section == 0.05 else ["section1"]
    assert [d.gate for d in decisions] == [*asked, "unitgate1", "unitgate1"]
    assert [d.rule for d in decisions[len(asked) :]] == ["compared" if compare_at_most else "first_order"] * 2
    assert not gates[:7].any()
    full = cost.macs(network) * len(data.labels)
    assert macs <= (len(decisions) + 1) * full if compare_at_most else 5 * full
    end = decide.decide_all(state, data, rules, ORACLE)
    assert end.removed.pruned.removed["section1.unitgate1"] == end.removed.pruned.removed["section1.unitgate2"] == 3
    assert not any(isinstance(layer, Section) for layer in end.state.network.layers)


@pytest.mark.parametrize("empty", ["close", "keep_constant"])
def test_a_section_that_lost_its_last_unit_asks_for_no_others(empty):
    """Its first group goes, unit by unit; that closes the section, and with it the second group, unless its constant stays."""
    network = with_two_groups()
    rules = settings(gates={"threshold": 0.1, "empty": empty}, objective={"beta": 50.0})
    state, data = start(network, rules, [1.0, *[0.3] * 3, *[0.6] * 3, 1.0, 1.0]), images(network)
    gates, decisions, _ = decide.decide(state, data, rules, ORACLE)
    asked = ["section1.unitgate1"] * 3 + ["section1.unitgate2"] * 3
    assert [d.gate for d in decisions] == (asked[:3] if empty == "close" else asked)
    assert not gates[1:7].any()


@pytest.mark.parametrize("objective", [{"beta": 1.0}, {"nu": 1.0}])
def test_the_last_unit_of_a_section_costs_what_the_section_costs(objective):
    """Without its last unit the section goes: its whole cost is saved. The pull lies between that of the unit and of both."""
    network = Network((3,), (Dense(4), TANH, Section((Dense(1), TANH, UnitGate(), Dense(4))), Dense(3)))
    state, data = start(network, settings(), [0.95, 0.4]), images(network)
    whole = BatchLoss(network, ORACLE, state.params, data.x, data.labels).evaluate(np.ones(2)).tape.output
    data = data._replace(labels=whole.argmax(axis=1))
    free = settings(gates={"threshold": 0.1})
    gain = np.subtract(*(decide.Comparison(state, data, free, ORACLE).objective(np.array([1.0, u])) for u in (0.0, 1.0)))
    assert gain > 0.0
    pull = penalty_of(state, settings(objective=objective), 32)
    closed = prune(network, np.zeros(2, dtype=bool)).network
    kept = dataclasses.replace(pull, empty="keep_constant")
    unit, both = (pull.value(np.ones(2)) - left for left in (kept.value(np.array([1.0, 0.0])), pull.of_decided(closed, 0)))
    assert both > unit > 0.0
    if "nu" in objective:  # training counts what will be built
        assert pull.value(np.array([1.0, 0.0])) == pytest.approx(pull.of_decided(closed, 0), rel=1e-14)
    (name,) = objective
    rules = settings(gates={"threshold": 0.1}, objective={name: float(2.0 * gain / (unit + both))})
    gates, _, _ = decide.decide(state, data, rules, ORACLE)
    assert gates[1] == 0.0
