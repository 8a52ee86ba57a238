"""The networks with layer and unit gates: counts of N6 and of PyTorch modules written here, what a removal saves, ResNet-50."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch_zoo import counts, torch_counts, torch_imagenet, torch_vgg

from refprune.adapters.pytorch import model
from refprune.backend import ORACLE, load_backend
from refprune.bench import agreement
from refprune.errors import InputError
from refprune.gates.surgery import prune
from refprune.passes.batch_loss import BatchLoss
from refprune.passes.parameters import initialise
from refprune.passes.tape import forward
from refprune.spec import zoo
from refprune.spec.layers import Section
from refprune.streams import Streams
from refprune.training.state import ungated


@pytest.mark.parametrize(
    ("depth", "stride_in", "parameters"),
    [(18, "3x3", 11_689_512), (34, "3x3", 21_797_672), (50, "3x3", 25_557_032), (50, "1x1", 25_557_032)],
)
def test_imagenet_resnets_count_as_in_pytorch(depth, stride_in, parameters):
    network = zoo.build(f"resnet-{depth}", {"stride_in": stride_in})
    with torch.device("meta"):
        module = torch_imagenet(depth, 64, stride_in)
        assert counts(network) == torch_counts(module, (3, 224, 224))
    assert counts(network)[0] == parameters


def test_published_counts_of_resnet_50():
    """N6."""
    assert counts(zoo.build("resnet-50", {})) == (25_557_032, 4_089_184_256)
    assert counts(zoo.build("resnet-50", {"stride_in": "1x1"})) == (25_557_032, 3_857_973_248)


ALTERED = "section16.conv2.weight"


@pytest.mark.parametrize("backend", ["oracle", "numba"])
def test_resnet_50_forward_and_backward_against_pytorch(backend):
    """Narrow and small, train mode, every entry within the measured tolerance (E2); `validation/resnet50.py` has 224×224."""
    network = zoo.build("resnet-50", {"gates": True, "units": True, "width": 4, "size": 33})
    streams = Streams(3)
    params = initialise(network, streams, section_scale=0.5)
    loss = BatchLoss(network, load_backend(backend), params, streams.normal("x", 0, (2, 3, 33, 33)), np.array([7, 421]))

    def pytorch(x, labels, scale=1.0):
        module = model.load(model.build(network).double(), params).train()
        logits = module(torch.from_numpy(x))
        value = F.cross_entropy(logits, torch.from_numpy(labels))
        value.backward()
        found = model.gradients(module)
        planted = {ALTERED: found[ALTERED] * scale}
        return found | planted | {"loss": value.detach().numpy(), "output": logits.detach().numpy()}

    right = agreement.entrywise(loss, pytorch, "float64")
    assert right.holds, right
    wrong = agreement.entrywise(loss, lambda x, labels: pytorch(x, labels, 1.0 + 1e-6), "float64")
    assert (wrong.holds, wrong.where) == (False, ALTERED)


def test_vgg_with_residual_paths_counts_as_vgg():
    """But for the norm before the dense layer: A costs nothing, B a 1×1 convolution and a norm where the width changes."""
    plain = torch_counts(torch_vgg(64), (3, 32, 32))
    plain = plain[0] + 2 * 512, plain[1]
    assert counts(zoo.build("vgg-16-residual", {})) == plain
    widths = [(3, 64, 32), (64, 128, 16), (128, 256, 8), (256, 512, 4)]
    more = sum(i * o + 2 * o for i, o, _ in widths), sum(i * o * size**2 for i, o, size in widths)
    with_b = counts(zoo.build("vgg-16-residual", {"shortcut": "B"}))
    assert (with_b[0] - plain[0], with_b[1] - plain[1]) == more


def test_the_stream_of_the_residual_vgg_is_large_and_normalised_before_the_dense_layer():
    """Erratum N1: thirteen summands, none of them negative, and five maxima, at initial weights, option A."""
    network, streams, seen = zoo.build("vgg-16-residual", {"width": 8}), Streams(0), {}
    x = streams.normal("x", 0, (16, 3, 32, 32))
    forward(network, ORACLE, initialise(network, streams), x, train=True, observe=seen.__setitem__)
    pool, norm = network.layers[-4], network.layers[-3]
    assert np.mean(np.square(seen[pool.name])) > 50.0
    assert np.mean(np.square(seen[norm.name])) == pytest.approx(1.0, rel=1e-3)


GATED = {
    "lenet-5": ({"units": True}, 570),
    "residual-mlp-bn": ({"units": True}, 12 + 12 * 64),
    "vgg-16": ({"units": True}, 4224),
    "vgg-16-residual": ({}, 4224 + 13),
    "resnet-20": ({"gates": True, "units": True}, 9 + 3 * (16 + 32 + 64)),
    "resnet-56": ({"gates": True, "units": True}, 27 + 9 * (16 + 32 + 64)),
    "resnet-18": ({"gates": True, "units": True}, 8 + 2 * (64 + 128 + 256 + 512)),
    "resnet-50": ({"gates": True, "units": True}, 16 + 2 * (3 * 64 + 4 * 128 + 6 * 256 + 3 * 512)),
}


@pytest.mark.parametrize("name", GATED)
def test_gates_change_no_count(name):
    options, gates = GATED[name]
    network = zoo.build(name, options)
    assert network.gate_count == gates
    assert counts(network) == counts(zoo.build(name, {key: False for key in ("gates", "units") if key in options}))
    assert counts(ungated(network)) == counts(network)


def test_what_a_unit_of_vgg_costs():
    """VGG chains: filter 0 of the second convolution takes a row of its own, its norm, and a column of the third."""
    network = zoo.build("vgg-16", {"units": True})
    keep = np.arange(network.gate_count) != 64
    smaller = prune(network, keep).network
    saved = counts(network)[0] - counts(smaller)[0], counts(network)[1] - counts(smaller)[1]
    assert saved == (64 * 9 + 2 + 128 * 9, 64 * 9 * 32**2 + 128 * 9 * 16**2)


def test_all_sections_of_the_residual_vgg_can_go():
    """N5: the shortcuts keep the network connected; nothing but pools and zero channels is left before the head."""
    network = zoo.build("vgg-16-residual", {"width": 3})
    smaller = prune(network, np.zeros(network.gate_count)).network
    assert counts(smaller) == (2 * 24 + 24 * 10 + 10, 240)
    assert not any(isinstance(layer, Section) for layer in smaller.layers)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: zoo.build("resnet-50", {"stride_in": "7x7"}), "network.stride_in: '7x7' is not known"),
        (
            lambda: zoo.build("resnet-34", {"stride_in": "1x1"}),
            "network.stride_in: '1x1' is for bottlenecks",
        ),
        (lambda: zoo.build("resnet-18", {"classes": 0}), "network.classes, network.size: must be at least 1"),
        (lambda: zoo.build("vgg-16-residual", {"width": 2}), "network.width: option A pads"),
        (lambda: zoo.build("vgg-16-residual", {"shortcut": "C"}), "network.shortcut: 'C' is not known"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(InputError, match=message):
        make()
