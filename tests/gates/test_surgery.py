"""Pruning (SPEC N3, N4, O7): the masked network and the compact one are the same function, with the same gradients.

`check_equivalent` compares loss, output, all gradients, batch statistics and one momentum step; the property tests draw whole
networks and gates to remove, and planted mistakes show that it catches what it should.
"""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from network_comparison import assert_tensors, bounds, safe, tensors
from tolerance import assert_close, assert_identical, gamma

from refprune.backend import ORACLE
from refprune.conformance.strategies import networks as ns
from refprune.errors import InputError
from refprune.gates.surgery import prune
from refprune.passes.batch_loss import BatchLoss
from refprune.passes.tape import forward
from refprune.rounding.noise import noisy
from refprune.rounding.tolerance import INJECTED, NETWORK_FACTOR
from refprune.spec.json_form import from_json, to_json
from refprune.spec.layers import (
    Activation,
    AveragePool,
    BatchNorm,
    Conv,
    Dense,
    Flatten,
    GlobalAveragePool,
    MaxPool,
    Section,
    SubsamplePad,
    UnitGate,
)
from refprune.spec.network import Loss, Network

U = 2.0**-53
RATE, MOMENTUM, DECAY = 0.1, 0.9, 0.01


# Masked ≡ compact -------------------------------------------------------------------------------------------------------


def masked_gates(network, cut, keep):
    """`keep` as a gate vector; sections that went only because they were empty are closed."""
    gates = keep.astype(np.float64)
    for name in cut.closed_for_emptiness:
        if name in network.gate_slices:
            gates[network.gate_slices[name]] = 0.0
    return gates


def statistics_bounds(loss, gates, runs=8):
    """E2 for batch statistics: the largest spread of each array over noisy runs with frozen branches, times the factor."""
    base = forward(loss.network, ORACLE, loss.params, loss.x, gates, train=True)
    squares = {name: [0.0, 0.0] for name in base.batch_statistics}
    for run in range(runs):
        backend = noisy(ORACLE, unit=INJECTED, rng=np.random.default_rng(run))
        tape = forward(loss.network, backend, loss.params, loss.x, gates, train=True, branches=base.branches)
        for name, (mean, variance, _) in tape.batch_statistics.items():
            for i, (noised, exact) in enumerate(zip((mean, variance), base.batch_statistics[name], strict=False)):
                squares[name][i] += np.square(noised - exact).max(initial=0.0) / runs
    return {name: [NETWORK_FACTOR * U / INJECTED * s**0.5 + U for s in pair] for name, pair in squares.items()}


def momentum_step(params, gradients, momenta):
    """(W, momenta) after one step of SGD with momentum and weight decay."""
    new = {name: MOMENTUM * momenta[name] + gradients[name] + DECAY * params[name] for name in params}
    return {name: params[name] - RATE * new[name] for name in params}, new


def check_equivalent(case, keep, cut):
    """The compact network of `cut` against the masked one: forward, backward, batch statistics, one momentum step."""
    gates = masked_gates(case.network, cut, keep)
    masked, evaluation = tensors(case.loss, gates)
    tolerances = bounds(case.loss, gates)
    compact_loss = BatchLoss(
        cut.network, ORACLE, cut.arrays(case.params), case.x, case.target, cut.arrays(case.statistics), case.train
    )
    compact, small = tensors(compact_loss, np.ones(cut.network.gate_count))

    def restricted(named):
        same = {name: named[name] for name in ("loss", "output", "input")}
        return same | {"gates": named["gates"][cut.gates]} | cut.arrays(named)

    assert_tensors(compact, restricted(masked), restricted(tolerances), case=case, keep=keep)
    assert {name: p.shape for name, p in cut.arrays(case.params).items()} == cut.network.parameter_shapes
    assert small.tape.macs <= evaluation.tape.macs

    if case.train and case.network.statistics_shapes:
        limits = statistics_bounds(case.loss, gates)
        for name, (mean, variance, count) in small.tape.batch_statistics.items():
            theirs = evaluation.tape.batch_statistics[name]
            rows = cut.rows.get(name, slice(None))
            assert_close(f"{name} mean", mean, theirs[0][rows], limits[name][0], case=case, keep=keep)
            assert_close(f"{name} variance", variance, theirs[1][rows], limits[name][1], case=case, keep=keep)
            assert count == theirs[2] or not mean.size

    momenta = {name: case.normal(f"momentum {name}", p.shape) for name, p in case.params.items()}
    stepped = momentum_step(case.params, {n: masked[n] for n in case.params}, momenta)
    small_params, small_momenta = cut.arrays(case.params), cut.arrays(momenta)
    got = momentum_step(small_params, {n: compact[n] for n in small_params}, small_momenta)
    errors = cut.arrays(tolerances)
    for what, mine, theirs, rate in zip(("weights", "momenta"), got, stepped, (RATE, 1.0), strict=True):
        for name, wanted in cut.arrays(theirs).items():
            size = np.abs(small_params[name]) + MOMENTUM * np.abs(small_momenta[name]) + np.abs(compact[name])
            bound = rate * errors[name] + gamma(8, U) * size
            assert_close(f"{what} {name}", mine[name], wanted, bound, case=case, keep=keep)


@st.composite
def removals(draw, network, seed):
    """(keep, fix, empty), with few or many removals; an empty section without a gate of its own cannot be masked shut."""
    rng = np.random.default_rng(seed)
    keep = safe(network, rng.random(network.gate_count) < draw(st.sampled_from((0.2, 0.5, 0.8, 1.0))))
    fix = rng.random(network.gate_count) < draw(st.sampled_from((0.0, 0.5, 1.0)))
    empty = draw(st.sampled_from(("close", "keep_constant")))
    if any(name not in network.gate_slices for name in prune(network, keep).closed_for_emptiness):
        empty = "keep_constant"
    return keep, fix, empty


@st.composite
def prunable(draw, **options):
    case = draw(ns.gated_cases(least=2, gates=("ones",), **options))
    return case, *draw(removals(case.network, case.seed))


@given(drawn=prunable())
def test_masked_is_compact(drawn):
    """N3, N4: catches any row, column, norm entry, summand or ρ that is cut wrongly, in train and eval mode."""
    case, keep, fix, empty = drawn
    check_equivalent(case, keep, prune(case.network, keep, fix=fix, empty=empty))


@given(drawn=prunable(image=True, unit_gates=True, norm=True))
def test_masked_is_compact_for_images_with_norms(drawn):
    """The same where blocks of columns, norm entries and pools meet."""
    case, keep, fix, empty = drawn
    check_equivalent(case, keep, prune(case.network, keep, fix=fix, empty=empty))


@given(drawn=prunable())
def test_layers_without_units_change_nothing(drawn):
    """keep_constant: every unit gate inside sections is 0; only constants are left, and they stay."""
    case, *_ = drawn
    keep = np.ones(case.network.gate_count, dtype=bool)
    for group in case.network.gate_groups:
        keep[group.slice] = group.kind == "layer"
    keep = safe(case.network, keep)
    cut = prune(case.network, keep, empty="keep_constant")
    assert cut.closed_for_emptiness == ()
    check_equivalent(case, keep, cut)


@given(drawn=prunable())
def test_nothing_removed_is_nothing_changed(drawn):
    """keep everything: the same spec, the same arrays; fix everything: no gates left, the same arrays."""
    case, *_ = drawn
    everything = np.ones(case.network.gate_count, dtype=bool)
    cut = prune(case.network, everything)
    assert cut.network == case.network
    np.testing.assert_array_equal(cut.gates, np.arange(case.network.gate_count))
    fixed = prune(case.network, everything, fix=everything)
    assert fixed.network.gate_count == fixed.gates.size == 0
    for name, p in case.params.items():
        assert_identical(name, cut.arrays(case.params)[name], p)
        assert_identical(name, fixed.arrays(case.params)[name], p)


@given(drawn=prunable(), data=st.data())
def test_pruning_twice_is_pruning_once(drawn, data):
    """Removals compose: catches indices that refer to the first network in the second cut, channels of channels included."""
    case, keep, _, empty = drawn
    first = prune(case.network, keep, empty=empty)
    rng = np.random.default_rng(case.seed + 1)
    again = safe(first.network, rng.random(first.gates.size) < data.draw(st.sampled_from((0.3, 0.7))))
    second = prune(first.network, again, empty=empty)
    both = np.zeros_like(keep)
    both[first.gates[again]] = True
    gone = np.ones_like(keep)
    gone[first.gates] = False
    vanished = gone & keep  # gates inside sections that the first cut removed
    once = prune(case.network, both | vanished, empty=empty)
    np.testing.assert_array_equal(first.gates[second.gates], once.gates)
    twice, direct = second.arrays(first.arrays(case.params)), once.arrays(case.params)
    assert twice.keys() == direct.keys()
    for name, p in direct.items():
        assert_identical(name, twice[name], p)
    outputs = [
        forward(network, ORACLE, params, case.x, statistics=cuts(case.statistics), train=case.train).output
        for network, params, cuts in (
            (second.network, twice, lambda s: second.arrays(first.arrays(s))),
            (once.network, direct, once.arrays),
        )
    ]
    assert_identical("output", *outputs)


@given(drawn=prunable())
def test_the_pruned_network_is_a_valid_spec_and_survives_json(drawn):
    """Checkpoints hold pruned networks: catches names or fields that from_json cannot read."""
    case, keep, fix, empty = drawn
    smaller = prune(case.network, keep, fix=fix, empty=empty).network
    assert from_json(to_json(smaller)) == smaller


@given(drawn=prunable())
def test_gates_that_are_left_still_belong_to_their_units(drawn):
    """Cut.gates: labels on the rows of every producer come out in the order of the gates; catches a shifted θ."""
    case, keep, fix, empty = drawn
    cut = prune(case.network, keep, fix=fix, empty=empty)
    old = {group.name: group for group in case.network.gate_groups}
    labels = {
        name: np.arange(shape[0], dtype=np.float64)[(...,) + (None,) * (len(shape) - 1)] * np.ones(shape)
        for name, shape in case.network.parameter_shapes.items()
    }
    rows = cut.arrays(labels)
    assert len(cut.gates) == cut.network.gate_count
    for group in cut.network.gate_groups:
        positions = cut.gates[group.slice] - old[group.name].start
        assert keep[cut.gates[group.slice]].all()
        if group.kind == "layer":
            assert positions.tolist() == [0]
            assert not fix[cut.gates[group.slice]].any()
            continue
        weight = rows[f"{cut.network.unit_links[group.name].producer}.weight"]
        if weight.size:
            np.testing.assert_array_equal(weight.reshape(len(weight), -1)[:, 0], positions)


# Planted mistakes -------------------------------------------------------------------------------------------------------

BEHIND_FLATTEN = ns.Case(
    Network(
        (2, 4, 3),
        (Conv(4, (3, 3), padding=((1, 1), (1, 1))), BatchNorm(), Activation("relu"), UnitGate(), Flatten(), Dense(3)),
        Loss("mean_squared_error"),
    ),
    batch=3, seed=11, train=True, gate_kind="ones",
)  # fmt: skip
THIRD_GONE = np.array([True, True, False, True])


def test_units_behind_a_flatten_take_their_blocks_of_columns():
    """N4, by hand: unit 2 of 4×3 pixels owns columns 24 … 35 of the dense layer."""
    cut = prune(BEHIND_FLATTEN.network, THIRD_GONE)
    w = BEHIND_FLATTEN.params["dense1.weight"]
    assert_identical("dense1", cut.arrays(BEHIND_FLATTEN.params)["dense1.weight"], np.delete(w, range(24, 36), axis=1))
    gain = BEHIND_FLATTEN.params["batchnorm1.gain"]
    assert_identical("gain", cut.arrays(BEHIND_FLATTEN.params)["batchnorm1.gain"], gain[[0, 1, 3]])
    statistics = BEHIND_FLATTEN.statistics
    assert_identical("mean", cut.arrays(statistics)["batchnorm1.mean"], statistics["batchnorm1.mean"][[0, 1, 3]])
    for train in (False, True):
        check_equivalent(dataclasses.replace(BEHIND_FLATTEN, train=train), THIRD_GONE, cut)


SURGICAL_MISTAKES = {
    "columns interleaved instead of in blocks": lambda cut: {"columns": {"dense1": np.sort(np.r_[0:48:4, 1:48:4, 3:48:4])}},
    "the first entries of the norm": lambda cut: {"rows": cut.rows | {"batchnorm1": np.arange(3)}},
    "norm entries forgotten": lambda cut: {"rows": {"conv1": cut.rows["conv1"]}},
    "rows of the wrong units": lambda cut: {"rows": cut.rows | {"conv1": np.arange(3)}},
    "columns of the wrong unit": lambda cut: {"columns": {"dense1": np.arange(36)}},
    "gate indices not mapped": lambda cut: {"gates": np.arange(3)},
}


@pytest.mark.parametrize("mistake", SURGICAL_MISTAKES)
def test_surgical_mistakes_are_caught(mistake):
    """Tests the test; where shapes no longer meet, NumPy's refusal is as good."""
    cut = prune(BEHIND_FLATTEN.network, THIRD_GONE)
    wrong = dataclasses.replace(cut, **SURGICAL_MISTAKES[mistake](cut))
    with pytest.raises((AssertionError, ValueError)):
        check_equivalent(BEHIND_FLATTEN, THIRD_GONE, wrong)


def test_a_forgotten_relu_is_caught():
    """Tests the test: a removed section with post ReLU on a signed input."""
    network = Network((3,), (Section((Dense(3),), post="relu"), Dense(2)))
    case = ns.Case(network, batch=4, seed=2, train=True, gate_kind="ones")
    cut = prune(network, np.zeros(1))
    check_equivalent(case, np.zeros(1, dtype=bool), cut)
    wrong = dataclasses.replace(cut, network=Network((3,), (network.layers[1],), network.loss))
    with pytest.raises(AssertionError):
        check_equivalent(case, np.zeros(1, dtype=bool), wrong)


# What a removed section leaves (N3, N5) ---------------------------------------------------------------------------------


def kinds_after_removal(*before, section, shape=(2, 4, 4)):
    """The names of the layer types left when the only layer gate is closed."""
    network = Network(shape, (*before, section, GlobalAveragePool()))
    return [type(layer).__name__ for layer in prune(network, np.zeros(1)).network.layers[len(before) : -1]]


PATH = (Conv(2, (3, 3), padding=((1, 1), (1, 1))),)
A, B = (SubsamplePad((2, 2), 1, 0),), (Conv(3, (1, 1), (2, 2)), BatchNorm())
DOWN = (Conv(3, (3, 3), (2, 2), ((1, 1), (1, 1))),)


@pytest.mark.parametrize(
    ("before", "section", "left"),
    [
        ((), Section(PATH), []),
        ((), Section(PATH, post="relu"), ["Activation"]),
        ((Activation("relu"),), Section(PATH, post="relu"), []),
        ((Activation("sigmoid"),), Section(PATH, post="relu"), []),
        ((Activation("tanh"),), Section(PATH, post="relu"), ["Activation"]),
        ((Activation("leaky_relu"),), Section(PATH, post="relu"), ["Activation"]),
        ((Activation("relu"), AveragePool((2, 2), (1, 1))), Section(PATH, post="relu"), []),
        ((Activation("relu"), BatchNorm()), Section(PATH, post="relu"), ["Activation"]),
        ((Activation("relu"), Conv(2, (1, 1))), Section(PATH, post="relu"), ["Activation"]),
        ((Section(PATH, gate=False, post="relu"),), Section(PATH, post="relu"), []),
        ((Section(PATH, gate=False),), Section(PATH, post="relu"), ["Activation"]),
        ((), Section(DOWN, A), ["SubsamplePad"]),
        ((), Section(DOWN, A, post="relu"), ["SubsamplePad", "Activation"]),
        ((Activation("relu"),), Section(DOWN, A, post="relu"), ["SubsamplePad"]),
        ((Activation("relu"),), Section(DOWN, B, post="relu"), ["Conv", "BatchNorm", "Activation"]),
        ((Activation("relu"),), Section(DOWN, B), ["Conv", "BatchNorm"]),
    ],
)
def test_what_a_removed_section_leaves(before, section, left):
    """N3: ρ vanishes where the input is known to be ≥ 0 and only there; shortcuts stay as plain layers."""
    assert kinds_after_removal(*before, section=section) == left


def test_the_last_section_can_go_too():
    """A network without layers is the identity."""
    network = Network((3,), (Section((Dense(3),)),), Loss("mean_squared_error"))
    cut = prune(network, np.zeros(1))
    assert cut.network.layers == ()
    case = ns.Case(network, batch=2, seed=3, train=True, gate_kind="zeros")
    check_equivalent(case, np.zeros(1, dtype=bool), cut)


# Missing summands, emptiness, fixing ------------------------------------------------------------------------------------


def test_gated_outputs_of_a_section_become_missing_summands():
    """K = 1, and once more: the stream keeps its width; channels index the stream, not the path of the first cut."""
    network = Network((4,), (Section((Dense(4), Activation("tanh"), UnitGate())), Dense(2)))
    first = prune(network, np.array([1, 1, 0, 1, 1]))
    assert first.network.layers[0].channels == (0, 2, 3)
    assert first.gates.tolist() == [0, 1, 3, 4]
    second = prune(first.network, np.array([1, 1, 0, 1]))
    assert second.network.layers[0].channels == (0, 3)
    assert second.network.parameter_shapes["section1.dense1.weight"] == (2, 4)
    third = prune(second.network, np.array([1, 0, 0]), empty="keep_constant")
    assert third.network.layers[0].channels == ()


EMPTY = Network((3,), (Section((Dense(2), Activation(), UnitGate(), Dense(3))), Dense(2)))


def test_an_empty_section_is_closed_or_keeps_its_constant():
    """N4: named, never silent."""
    keep = np.array([True, False, False])
    closed = prune(EMPTY, keep)
    assert closed.closed_for_emptiness == ("section1",)
    assert [layer.name for layer in closed.network.layers] == ["dense1"]
    assert closed.gates.size == 0
    kept = prune(EMPTY, keep, empty="keep_constant")
    assert kept.closed_for_emptiness == ()
    assert kept.network.parameter_shapes["section1.dense1.weight"] == (0, 3)
    assert kept.network.parameter_shapes["section1.dense2.weight"] == (3, 0)
    assert kept.gates.tolist() == [0]
    case = ns.Case(EMPTY, batch=3, seed=4, train=True)
    for cut in (closed, kept):
        check_equivalent(case, keep, cut)
    removed = prune(EMPTY, np.zeros(3))  # the layer gate itself is closed: nothing to report
    assert removed.closed_for_emptiness == ()


def test_unit_gates_are_fixed_all_together():
    """A gate group stays until every unit left is decided; removed ones do not count."""
    keep = np.array([True, True, False])
    undecided = np.array([False, True, False])
    one = Network((3,), (Section((Dense(3), Activation(), UnitGate(), Dense(3))), Dense(2)))
    partly = prune(one, np.ones(4), fix=np.array([True, True, False, True]))
    assert [(g.name, g.stop - g.start) for g in partly.network.gate_groups] == [("section1.unitgate1", 3)]
    assert partly.gates.tolist() == [1, 2, 3]
    wholly = prune(EMPTY, keep, fix=undecided)
    assert [g.name for g in wholly.network.gate_groups] == ["section1"]
    assert wholly.gates.tolist() == [0]


def test_refusals():
    """The message names the argument or the layer."""
    plain = Network((3,), (Dense(2), UnitGate(), Dense(2)))
    with pytest.raises(InputError, match="removing all units of unitgate1"):
        prune(plain, np.zeros(2))
    with pytest.raises(InputError, match=r"keep: the network has 2 gates, got an array of shape \(3,\)"):
        prune(plain, np.ones(3))
    with pytest.raises(InputError, match=r"fix: the network has 2 gates, got an array of shape \(1,\)"):
        prune(plain, np.ones(2), fix=np.ones(1))
    with pytest.raises(InputError, match="empty: 'drop' is not known; allowed are 'close', 'keep_constant'"):
        prune(plain, np.ones(2), empty="drop")


def test_arrays_are_copies_of_what_is_there():
    """Momenta may be missing (plain SGD); what comes back is C-ordered and owns nothing of the removed parts."""
    cut = prune(BEHIND_FLATTEN.network, THIRD_GONE)
    assert cut.arrays({}) == {}
    only = cut.arrays({"dense1.weight": BEHIND_FLATTEN.params["dense1.weight"], "unknown": np.zeros(3)})
    assert list(only) == ["dense1.weight"]
    assert only["dense1.weight"].flags.c_contiguous


def test_pools_work_without_channels():
    """keep_constant through a pool: catches a reshape that cannot infer its last axis."""
    pools = MaxPool((3, 3), (1, 1), ((1, 1), (1, 1))), AveragePool((1, 1), (1, 1))
    path = (Conv(2, (1, 1)), UnitGate(), *pools, Conv(2, (1, 1)))
    network = Network((2, 3, 3), (Section(path), GlobalAveragePool()))
    keep = np.array([True, False, False])
    case = ns.Case(network, batch=2, seed=8, train=True, gate_kind="ones")
    check_equivalent(case, keep, prune(network, keep, empty="keep_constant"))


def test_a_shortcut_that_becomes_the_first_layer_still_learns():
    """Its name keeps the dead section's prefix: catches a first trainable layer that is looked up by that prefix."""
    section = Section((Dense(2), Activation("tanh"), Dense(2)), (Dense(2),))
    case = ns.Case(Network((3,), (section, Dense(2))), batch=3, seed=9, train=True, gate_kind="zeros")
    check_equivalent(case, np.array([False]), prune(case.network, np.array([False])))


def test_units_in_front_of_padded_channels():
    """Option A's padding as a plain layer would move the channels that the next layer reads."""
    layers = (Conv(3, (1, 1)), UnitGate(), SubsamplePad((1, 1), 1, 2), Conv(2, (1, 1)), GlobalAveragePool())
    with pytest.raises(InputError, match="pads channels"):
        Network((2, 4, 4), layers)


def test_a_vanishing_relu_keeps_the_subgradient_at_zero():
    """N3 at a kink: relu(at_zero=½) then ρ (at_zero 0) gives 0 at exactly 0; without ρ it gives ½."""
    layers = (Dense(2, bias=False), Activation("relu", at_zero=0.5), Section((Dense(2),), post="relu"), Dense(2))
    network = Network((2,), layers)
    case = ns.Case(network, batch=1, seed=1, train=True, gate_kind="zeros")
    cut = prune(network, np.zeros(1))
    gradients = [
        tensors(BatchLoss(n, ORACLE, p, np.zeros((1, 2)), case.target), np.zeros(n.gate_count))[0]["input"]
        for n, p in ((network, case.params), (cut.network, cut.arrays(case.params)))
    ]
    assert_identical("input", *gradients)
