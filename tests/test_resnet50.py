"""ResNet-50 at 224×224, a batch of two, train mode: forward and backward of the Numba backend against PyTorch, in float64."""

import numpy as np
import torch

from refprune import zoo
from refprune.backend import by_name
from refprune.bench import agreement
from refprune.conformance import torch_adapter
from refprune.network import initialise
from refprune.objective import BatchLoss
from refprune.streams import Streams


def pytorch(network, params, x, labels):
    """(output, every parameter's gradient) of the mean cross-entropy."""
    module = torch_adapter.load(torch_adapter.build(network).double(), params).train()
    output = module(torch.from_numpy(x))
    torch.nn.functional.cross_entropy(output, torch.from_numpy(labels)).backward()
    return output.detach().numpy(), torch_adapter.gradients(module)


def test_resnet_50_against_pytorch():
    """Relative distances within what rounding explains; a filter of the last stage off by a thousandth is found."""
    network = zoo.build("resnet-50", {"gates": True, "units": True})
    streams = Streams(3)
    params = initialise(network, streams, section_scale=0.5)
    x, labels = streams.normal("x", 0, (2, 3, 224, 224)), np.array([7, 421])
    loss = BatchLoss(network, by_name("numba"), params, x, labels)
    evaluation = loss.evaluate(np.ones(network.gate_count))
    output = evaluation.tape.output.copy()
    gradients = loss.gradients(evaluation, consume=True).params
    want_output, want = pytorch(network, params, x, labels)
    assert agreement.outputs(network, output, want_output, "float64").holds
    found = agreement.displacements(network, 2, gradients, want, "float64")
    assert found.holds, found

    name = "section16.conv2.weight"
    altered = params | {name: params[name].copy()}
    altered[name][0] *= 1.001
    off = BatchLoss(network, by_name("numba"), altered, x, labels).evaluate(np.ones(network.gate_count))
    assert not agreement.outputs(network, off.tape.output, want_output, "float64").holds
