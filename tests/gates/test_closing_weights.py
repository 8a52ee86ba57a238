"""The weight block of a gate (SPEC D, D7): at 0 the gate's value does not matter, and a closed gate's block has no gradient.

The claim is a function `check_blocks` of the blocks that are claimed, so that wrong ones can be handed to it.
"""

import contextlib
import dataclasses
import math

import numpy as np
import pytest
from checkers import fails
from hypothesis import given
from tolerance import assert_close, assert_identical, gamma

from refprune.backend import ORACLE
from refprune.conformance.strategies.networks import gated_cases
from refprune.errors import InputError
from refprune.gates.closing_weights import block_norms, blocks
from refprune.passes.batch_loss import BatchLoss
from refprune.passes.parameters import initial_statistics
from refprune.rounding.tolerance import UNIT
from refprune.spec.layers import Activation, BatchNorm, Conv, Dense, GlobalAveragePool, Section, UnitGate
from refprune.spec.network import Network

U = UNIT["float64"]
TANH = Activation("tanh")


def zeroed(params, block, j):
    """The parameters with gate j's part of the block at 0."""
    params = dict(params)
    for name in block.names:
        array = params[name].copy()
        block.split(array)[:, j] = 0.0
        params[name] = array
    return params


def check_blocks(case, blocks_of):
    """With its block at 0, a gate's value changes no bit of the output, whatever the others are."""
    __tracebackhide__ = True
    for group, block in zip(case.network.gate_groups, blocks_of(case.network), strict=True):
        assert block.gates == group.stop - group.start
        for j in range(block.gates):
            loss = dataclasses.replace(case.loss, params=zeroed(case.params, block, j))
            outputs = []
            for value in (0.0, 1.0):
                gates = case.gates.copy()
                gates[group.start + j] = value
                outputs.append(
                    loss.evaluate(gates, run_closed=True).tape.output
                )  # not run, the path would leave another memory layout
            assert_identical(f"output, gate {group.name}[{j}]", *outputs, network=case.network)


def blocks_or_none(network):
    """None where it is refused, which only a sigmoid can be the reason for: no weights make it 0."""
    if any(isinstance(layer, Activation) and layer.kind == "sigmoid" for layer, _ in network.placed()):
        with contextlib.suppress(InputError):
            return blocks(network)
        return None
    return blocks(network)


@given(gated_cases())
def test_with_its_block_at_zero_a_gate_does_not_matter(case):
    found = blocks_or_none(case.network)
    if found is not None:
        check_blocks(case, lambda _: found)


@given(gated_cases(train=True))
def test_a_closed_gates_block_has_no_gradient(case):
    """And ‖·‖ of an open one's is that of its entries, counted one by one."""
    if blocks_or_none(case.network) is None:
        return
    gradients = case.loss.gradients(case.loss.evaluate(case.gates, run_closed=True)).params
    norms = block_norms(case.network, gradients)
    assert norms.shape == case.gates.shape
    assert (norms[case.gates == 0.0] == 0.0).all()
    for group, block in zip(case.network.gate_groups, blocks(case.network), strict=True):
        for j in range(block.gates):
            parts = [gradients[name] - zeroed(gradients, block, j)[name] for name in block.names]
            want = math.sqrt(math.fsum(float(v) ** 2 for part in parts for v in part.ravel()))
            count = sum(part.size for part in parts)
            assert_close("norm", norms[group.start + j], np.float64(want), gamma(count + 4, U) * want)


def mixed():
    """Layer and unit gates, batch-norm at a path's end and before a unit, units that end a path, images and vectors."""
    same = ((1, 1), (1, 1))
    first = Section((Conv(4, (3, 3), padding=same), BatchNorm(), TANH, UnitGate(), Conv(2, (3, 3), padding=same), BatchNorm()))
    second = Section((Dense(3), TANH, UnitGate(), Dense(2), TANH, UnitGate()))
    return Network((2, 4, 4), (first, GlobalAveragePool(), second, Dense(3), TANH, UnitGate(), Dense(2)))


def mixed_case():
    """Gates half open, every number off its special value."""
    network = mixed()
    rng = np.random.default_rng(12)
    params = {name: rng.standard_normal(shape) for name, shape in network.parameter_shapes.items()}
    x, labels = rng.standard_normal((5, 2, 4, 4)), np.array([0, 1, 1, 0, 1])
    loss = BatchLoss(network, ORACLE, params, x, labels, initial_statistics(network))

    class Case:
        pass

    case = Case()
    case.network, case.params, case.loss, case.gates = network, params, loss, np.ones(network.gate_count)
    return case


def test_the_blocks_of_a_network_with_everything():
    found = {group.name: block for group, block in zip(mixed().gate_groups, blocks(mixed()), strict=True)}
    assert found == {
        "section1": (("section1.batchnorm2.gain", "section1.batchnorm2.bias"), 1, 0),
        "section1.unitgate1": (("section1.conv2.weight",), 4, 1),
        "section2": (("section2.dense2.weight", "section2.dense2.bias"), 1, 0),
        "section2.unitgate1": (("section2.dense2.weight",), 3, 1),
        "section2.unitgate2": (("section2.dense2.weight", "section2.dense2.bias"), 2, 0),
        "unitgate1": (("dense2.weight",), 3, 1),
    }
    check_blocks(mixed_case(), blocks)


def _altered(group, **changes):
    """`blocks` with one group's block wrong."""

    def wrong(network):
        return tuple(
            block._replace(**changes) if g.name == group else block
            for g, block in zip(network.gate_groups, blocks(network), strict=True)
        )

    return wrong


@pytest.mark.parametrize(
    "wrong",
    {
        "without the bias": _altered("section2", names=("section2.dense2.weight",)),
        "the matrix before a batch-norm": _altered("section1", names=("section1.conv2.weight", "section1.conv2.bias")),
        "a row for a column": _altered("section2.unitgate1", names=("section2.dense1.weight",), axis=0),
        "a gain without its bias": _altered("section1", names=("section1.batchnorm2.gain",)),
        "the matrix before": _altered("unitgate1", names=("dense1.weight",), axis=0),
    }.values(),
)
def test_planted_mistakes_in_the_blocks_are_found(wrong):
    assert fails(check_blocks, mixed_case(), wrong) is not None


def test_a_path_that_is_never_zero_is_refused():
    section = Section((Dense(3), Activation("sigmoid")), name="bad")
    with pytest.raises(InputError, match=r"bad: sigmoid1? ?.*is not 0 at 0|bad: bad\.sigmoid1 \(Activation\) is not 0 at 0"):
        blocks(Network((2,), (Dense(3), section, Dense(2))))
