"""The tape of a pass: passes from the middle, frozen branches, what is kept and for how long, batches, dtypes (SPEC N, O5)."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from network_comparison import bounds, closed_sections, part_names, tensors
from tolerance import assert_close, assert_identical

from refprune.backend import ORACLE
from refprune.conformance.strategies import networks as ns
from refprune.errors import InputError
from refprune.passes.batch_loss import BatchLoss
from refprune.passes.statistics import average_statistics, update_statistics
from refprune.passes.tape import backward, forward
from refprune.spec.layers import Activation, BatchNorm, Dense, Flatten, Section, UnitGate
from refprune.spec.network import Network

U = 2.0**-53


@given(case=ns.cases())
def test_a_pass_from_the_middle_is_the_rest_of_the_full_pass(case):
    """Shared prefix (O5): bit for bit; catches a wrong input, gate slice or train mode of the partial pass."""
    loss, full = case.loss, case.loss.evaluate(case.gates)
    all_gradients = loss.gradients(full).params
    for position in case.network.gate_positions:
        partial = loss.evaluate(case.gates, after=full, position=position)
        assert_identical("loss", partial.loss, full.loss, position=position)
        assert_identical("output", partial.tape.output, full.tape.output, position=position)
        assert partial.tape.macs == sum(sum_macs(step) for step in full.tape.steps[position:])
        gradients = loss.gradients(partial, input_gradient=True).params
        behind = part_names(everything_in(case.network.layers[position:]))
        for name, gradient in gradients.items():
            want = all_gradients[name] if name.rpartition(".")[0] in behind else np.zeros_like(gradient)
            assert_identical(name, gradient, want, position=position)


def sum_macs(step):
    return step.macs + sum(sum_macs(part) for part in (*step.shortcut, *(step.path or ())))


def everything_in(layers):
    for layer in layers:
        yield layer
        if isinstance(layer, Section):
            yield from (*layer.shortcut, *layer.path)


@given(case=ns.cases(), data=st.data())
def test_flipping_a_gate_needs_only_the_network_behind_it(case, data):
    """GateGroup.position is late enough to save and early enough to be right."""
    base = case.loss.evaluate(case.gates)
    for group in case.network.gate_groups:
        flipped = case.gates.copy()
        flipped[data.draw(st.integers(group.start, group.stop - 1))] -= 1.0
        partial = case.loss.evaluate(np.abs(flipped), after=base, position=group.position)
        assert_identical("loss", partial.loss, case.loss.evaluate(np.abs(flipped)).loss, gate=group)
        layer = case.network.layers[group.position]
        assert group.name in part_names(everything_in([layer]))


@given(case=ns.cases(activations=("relu", "leaky_relu", "identity"), norm=False, gates=ns.GATES))
def test_frozen_branches_make_the_network_affine(case):
    """Freezing keeps every branch: then f((a+b)/2) = (f(a)+f(b))/2; catches a kink that is not frozen, or not reported."""
    frozen = case.loss.evaluate(case.gates).tape.branches
    inputs = [case.x, case.normal("other", case.x.shape)]
    inputs.append((inputs[0] + inputs[1]) / 2.0)
    outputs, spread = [], 0.0
    for x, weight in zip(inputs, (0.5, 0.5, 1.0), strict=True):
        tape = forward(case.network, ORACLE, case.params, x, case.gates, statistics=case.statistics, branches=frozen)
        assert tape.branches.keys() == frozen.keys()
        for name, branch in tape.branches.items():
            np.testing.assert_array_equal(branch, frozen[name])
        outputs.append(tape.output)
        loss = dataclasses.replace(case.loss, x=x, train=False)
        spread = spread + weight * bounds(loss, case.gates, branches=frozen)["output"]
    assert_close("midpoint", outputs[2], (outputs[0] + outputs[1]) / 2.0, spread)


@given(case=ns.cases())
def test_observers_follow_the_data(case):
    """Names come in data-flow order, backward exactly reversed, with the arrays that flowed; the tape walks the same way."""
    want, want_back = [], []
    closed = closed_sections(case)
    for layer in case.network.layers:
        shortcut, path, post = [], [], []
        if isinstance(layer, Section):
            shortcut = [part.name for part in layer.shortcut]
            post = [f"{layer.name}.post"] * (layer.post == "relu")
            if layer not in closed:
                path = [part.name for part in layer.path]
                path[layer.gate_index() : layer.gate_index()] = [f"{layer.name}.gate"] * layer.gate
        want += [*shortcut, *path, *post, layer.name]
        want_back[:0] = [layer.name, *post, *reversed(path), *reversed(shortcut)]
    seen, back = [], []
    tape = forward(
        case.network, ORACLE, case.params, case.x, case.gates,
        statistics=case.statistics, train=case.train, observe=lambda name, y: seen.append((name, y)),
    )  # fmt: skip
    dy = case.normal("dy", tape.output.shape)
    backward(tape, dy, observe=lambda name, d: back.append((name, d)))
    assert [name for name, _ in seen] == [step.layer.name for step in tape.walk()] == want
    assert [name for name, _ in back] == want_back
    tops = dict(seen)
    for position, x in tape.inputs.items():
        assert x is tops[case.network.layers[position - 1].name] if position else (x == case.x).all()
    assert back[0][1] is dy
    assert seen[-1][1] is tape.output


@given(case=ns.cases(gates=ns.GATES))
def test_inputs_are_never_changed(case):
    """Read-only arrays in; the same numbers afterwards: catches in-place work on parameters, inputs or gates."""
    arrays = {**case.params, **case.statistics, "x": case.x, "target": case.target, "gates": case.gates}
    held = {name: a.copy() for name, a in arrays.items()}
    for a in held.values():
        a.setflags(write=False)
    loss = BatchLoss(
        case.network, ORACLE, {n: held[n] for n in case.params}, held["x"], held["target"],
        {n: held[n] for n in case.statistics}, case.train,
    )  # fmt: skip
    tensors(loss, held["gates"])
    evaluation = loss.evaluate(held["gates"])
    update_statistics(case.network, loss.statistics, evaluation.tape.batch_statistics)
    for name, a in arrays.items():
        assert_identical(name, held[name], a)


@given(case=ns.cases(train=False))
def test_a_batch_is_its_examples(case):
    """In eval mode each example of a batch has the output it has alone (batch size 1): catches mixing along the batch axis."""
    whole = case.loss.evaluate(case.gates).tape.output
    tolerance = bounds(case.loss, case.gates)["output"]
    for i in range(case.batch):
        alone = forward(case.network, ORACLE, case.params, case.x[i : i + 1], case.gates, statistics=case.statistics).output
        assert_close("output", alone[0], whole[i], tolerance[i], example=i)


@given(case=ns.cases(gates=ns.GATES))
def test_float32_stays_float32(case):
    """Every tensor keeps the precision of the input and lies within float32's noise: catches silent promotion or demotion."""
    half = {name: p.astype(np.float32) for name, p in case.params.items()}
    statistics = {name: s.astype(np.float32) for name, s in case.statistics.items()}
    target = case.target.astype(np.float32) if case.target.dtype.kind == "f" else case.target
    gates = case.gates.astype(np.float32).astype(np.float64)
    loss = BatchLoss(case.network, ORACLE, half, case.x.astype(np.float32), target, statistics, case.train)
    got, evaluation = tensors(loss, gates)
    for name in got.keys() - {"gates"}:
        assert got[name].dtype == np.float32, f"{name} is {got[name].dtype}"
    wide = case_in_float64(loss)
    branches = evaluation.tape.branches  # a kink in float32 is not a mistake (E3)
    tape = forward(
        wide.network, ORACLE, wide.params, wide.x, gates,
        statistics=wide.statistics, train=wide.train, branches=branches,
    )  # fmt: skip
    tolerance = bounds(wide, gates, unit=2.0**-24, branches=branches)["output"]
    assert_close("output", got["output"].astype(np.float64), tape.output, tolerance, case=case)
    moments = evaluation.tape.batch_statistics
    assert all(a.dtype == np.float32 for a in update_statistics(case.network, statistics, moments).values())


def case_in_float64(loss):
    def wide(arrays):
        return {name: a.astype(np.float64) for name, a in arrays.items()}

    target = loss.target.astype(np.float64) if loss.target.dtype.kind == "f" else loss.target
    return BatchLoss(
        loss.network, ORACLE, wide(loss.params), loss.x.astype(np.float64), target, wide(loss.statistics), loss.train
    )


def test_backward_costs_by_hand():
    """Multiply-accumulates: weight and input gradient each cost the forward product; the first trainable layer's input none."""
    case = ns.Case(
        Network((2, 1, 2), (Flatten(), Dense(3), Activation(), Section((Dense(2), Dense(3))), Dense(2))),
        batch=5, seed=1, train=True,
    )  # fmt: skip
    for xi, path in ((1.0, 6 + 6), (0.0, 0)):
        evaluation = case.loss.evaluate(np.array([xi]), run_closed=True)
        assert evaluation.tape.macs == 5 * (12 + 12 + 6)
        for wanted, first in ((True, 24), (False, 12)):
            gradients = case.loss.gradients(evaluation, input_gradient=wanted)
            assert gradients.macs == 5 * (first + 2 * path + 12)
            assert (gradients.input is None) == (not wanted)


@given(case=ns.cases())
def test_consuming_the_tape_gives_the_same_gradients_once(case):
    """A training step gives up what the pass saved: the same bits; a second backward pass is refused, not empty."""
    evaluation = case.loss.evaluate(case.gates)
    for wanted in (True, False):
        want = case.loss.gradients(evaluation, input_gradient=wanted)
        once = case.loss.evaluate(case.gates)
        got = case.loss.gradients(once, input_gradient=wanted, consume=True)
        assert got.macs == want.macs
        assert_identical("gates", got.gates, want.gates)
        for name, gradient in want.params.items():
            assert_identical(name, got.params[name], gradient)
        with pytest.raises(InputError, match="consumed"):
            case.loss.gradients(once)


def test_a_partial_pass_cannot_go_back():
    """From a pass that began at element 2, element 1 cannot be evaluated: refused, not another number."""
    case = ns.Case(Network((2,), tuple(Section((Dense(2),)) for _ in range(3))), batch=2, seed=1, train=True)
    late = case.loss.evaluate(np.ones(3), after=case.loss.evaluate(np.ones(3)), position=2)
    with pytest.raises(InputError, match=r"position: .* \(2\), got 1"):
        case.loss.evaluate(np.ones(3), after=late, position=1)


def test_a_tape_keeps_the_inputs_of_gated_elements_only():
    """Every other input may go as soon as nothing needs it: catches a tape that holds the memory of a whole deep network."""
    sections = Section((Dense(2),)), Section((Dense(2),), gate=False)
    case = ns.Case(Network((2,), (Dense(2), UnitGate(), Dense(2), *sections)), batch=2, seed=1, train=True)
    assert list(case.loss.evaluate(np.ones(3)).tape.inputs) == [1, 3]


def test_average_statistics_leaves_out_closed_sections():
    """N4: masked networks are re-estimated too; update_statistics keeps what it has no batch for."""
    case = ns.Case(Network((3,), (Section((Dense(3), BatchNorm())), Dense(2))), batch=4, seed=5, train=True, gate_kind="zeros")
    kept = average_statistics(case.network, case.statistics, [case.loss.evaluate(case.gates).tape.batch_statistics])
    for name, array in case.statistics.items():
        assert_identical(name, kept[name], array)
