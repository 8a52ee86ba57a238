"""Counts: SPEC N6's numbers, sums by hand, and what real passes count as they run."""

import math

import numpy as np
import pytest
import torch
import torch_network
from counted_networks import BY_HAND, KNOWN, networks

from refprune.backend import ORACLE
from refprune.passes.batch_loss import BatchLoss
from refprune.passes.parameters import initial_statistics, initialise
from refprune.spec import cost, zoo
from refprune.spec.layers import Activation, Dense, Flatten, MaxPool, Section
from refprune.spec.network import Network
from refprune.streams import Streams


@pytest.mark.parametrize(("name", "counts"), KNOWN.items())
def test_published_networks(name, counts):
    """N6."""
    network = zoo.build(name, {})
    assert (cost.parameters(network), cost.macs(network)) == counts


@pytest.mark.parametrize("name", BY_HAND)
def test_counts_by_hand(name):
    network, parameters, macs = BY_HAND[name]
    assert cost.parameters(network) == parameters
    assert cost.macs(network) == macs


@pytest.mark.parametrize(("sections", "width"), [(0, 4), (1, 1), (12, 64)])
def test_residual_mlp_by_formula(sections, width):
    network = zoo.residual_mlp(sections, width)
    assert cost.macs(network) == 784 * width + sections * width**2 + 10 * width
    assert cost.parameters(network) == cost.macs(network) + (1 + sections) * width + 10


@pytest.mark.parametrize("name", networks())
def test_the_rows_sum_to_the_totals(name):
    network = networks()[name]
    rows = cost.per_layer(network)
    assert [row.layer.name for row in rows] == [layer.name for layer, _ in network.placed()]
    assert sum(row.parameters for row in rows) == cost.parameters(network)
    assert sum(row.macs for row in rows) == cost.macs(network)
    assert cost.parameters(network) == sum(math.prod(shape) for shape in network.parameter_shapes.values())
    for row in rows:
        assert row.input_shape == network.input_shapes[row.layer.name]
        assert row.output_shape == row.layer.output_shape(row.input_shape)
        if isinstance(row.layer, Section):
            assert (row.parameters, row.macs) == (0, 0)
    assert all(type(value) is int for row in rows for value in row[3:])


def batch_loss(network, batch):
    streams = Streams(3)
    x = streams.normal("x", 0, (batch, *network.input_shape))
    labels = np.zeros(batch, dtype=np.int64)
    return BatchLoss(network, ORACLE, initialise(network, streams), x, labels, initial_statistics(network))


@pytest.mark.parametrize("batch", [2, 3])
@pytest.mark.parametrize("name", networks())
def test_a_real_training_step_counts_the_same(name, batch):
    """Forward and backward as they run, against the formula: all gates on, no gradient with respect to the images."""
    network = networks()[name]
    loss = batch_loss(network, batch)
    base = loss.evaluate(np.ones(network.gate_count))
    assert base.tape.macs == batch * cost.macs(network)
    assert base.tape.macs + loss.gradients(base).macs == batch * cost.training_macs(network)
    with_images = loss.gradients(base, input_gradient=True)
    assert base.tape.macs + with_images.macs == 3 * batch * cost.macs(network)


@pytest.mark.parametrize("name", networks())
def test_pytorch_counts_the_same(name):
    """PyTorch's side counts weights times output positions as it runs."""
    network = networks()[name]
    params = initialise(network, Streams(0))
    x = torch.zeros(2, *network.input_shape, dtype=torch.float64)
    gates = torch.ones(network.gate_count, dtype=torch.float64)
    statistics = torch_network.tensors(initial_statistics(network))
    _, _, macs = torch_network.run(network, torch_network.tensors(params), gates, x, statistics=statistics, train=False)
    assert macs == cost.macs(network)
    assert sum(p.size for p in params.values()) == cost.parameters(network)


def test_training_by_hand():
    """Forward, weight gradients and input gradients; the first layer that learns needs none with respect to its input."""
    assert cost.training_macs(BY_HAND["dense"][0]) == 3 * (12 + 8) - 12
    assert cost.training_macs(BY_HAND["section of dense layers"][0]) == 3 * (15 + 20 + 12 + 8)
    assert cost.training_macs(BY_HAND["nothing to train"][0]) == 0
    frozen_stem = Network((1, 4, 4), (MaxPool((2, 2), (2, 2)), Flatten(), Activation(), Dense(3), Dense(2)))
    assert cost.training_macs(frozen_stem) == 3 * (12 + 6) - 12


def test_closed_sections_cost_nothing_unless_their_gradient_is_wanted():
    network = zoo.residual_mlp(3, 5)
    loss = batch_loss(network, 2)
    closed = loss.evaluate(np.array([1.0, 0.0, 0.0]))
    assert closed.tape.macs == 2 * (cost.macs(network) - 50)
    assert loss.gradients(closed).macs == 2 * (784 * 5 + 2 * (25 + 50))
    watched = loss.evaluate(np.array([1.0, 0.0, 0.0]), run_closed=True)
    assert watched.tape.macs == 2 * cost.macs(network)
    assert loss.gradients(watched).macs == loss.gradients(closed).macs
