"""Networks by name: shapes and counts against PyTorch modules written here by hand, refusals, and a real pass.

What `residual-*` and `lenet-*` cost is checked in test_complexity.py, as is that real passes count the same.
"""

import numpy as np
import pytest
import torch.nn.functional as F
from torch import nn
from torch_zoo import counts, torch_counts, torch_vgg

from refprune.backend import load_backend
from refprune.errors import InputError
from refprune.gates.surgery import prune
from refprune.spec import zoo
from refprune.spec.layers import Section
from refprune.training import config
from refprune.training.state import initial_state, ungated
from refprune.training.step import train_step

#: Depth → MACs with option A (K6 for 56), parameters.
RESNETS = {
    20: (40_551_040, 269_722),
    32: (68_862_592, 464_154),
    44: (97_174_144, 658_586),
    56: (125_485_696, 853_018),
    110: (252_887_680, 1_727_962),
}


class TorchBlock(nn.Module):
    def __init__(self, old, new, option):
        super().__init__()
        self.stride, self.extra = (1, 0) if old == new else (2, new - old)
        self.conv1, self.bn1 = nn.Conv2d(old, new, 3, self.stride, 1, bias=False), nn.BatchNorm2d(new)
        self.conv2, self.bn2 = nn.Conv2d(new, new, 3, 1, 1, bias=False), nn.BatchNorm2d(new)
        self.around = None
        if option == "B" and old != new:
            self.around = nn.Sequential(nn.Conv2d(old, new, 1, 2, bias=False), nn.BatchNorm2d(new))

    def forward(self, x):
        h = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.around is not None:
            return F.relu(h + self.around(x))
        before = self.extra // 2
        return F.relu(h + F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.extra - before)))


def torch_resnet(depth, width, option):
    blocks, old = [], width
    for stage in range(3):
        for _ in range((depth - 2) // 6):
            blocks.append(TorchBlock(old, width * 2**stage, option))
            old = width * 2**stage
    stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(old, 10))


@pytest.mark.parametrize("width", [64, 3])
def test_vgg_counts_as_in_pytorch(width):
    network = zoo.build("vgg-16", {"width": width})
    assert counts(network) == torch_counts(torch_vgg(width), (3, 32, 32))
    assert width != 64 or counts(network) == (14_724_042, 313_201_664)


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize(("depth", "width"), [(depth, 16) for depth in RESNETS] + [(20, 3)])
def test_resnets_count_as_in_pytorch(depth, width, shortcut):
    network = zoo.build(f"resnet-{depth}", {"width": width, "shortcut": shortcut})
    assert counts(network) == torch_counts(torch_resnet(depth, width, shortcut), (3, 32, 32))
    if (width, shortcut) == (16, "A"):
        assert counts(network) == RESNETS[depth][::-1]


def test_where_resnets_change_shape():
    """K6: a stage's first section, and only that of the second and third stage, changes the shape."""
    network = zoo.resnet_cifar(32, width=5)
    sections = [layer for layer in network.layers if isinstance(layer, Section)]
    assert [i for i, s in enumerate(sections) if s.shortcut] == [5, 10]
    (a,) = sections[5].shortcut
    assert (a.stride, a.before, a.after) == ((2, 2), 2, 3)
    assert [network.input_shapes[sections[i].name] for i in (0, 5, 6, 10, 11)] == [
        *((5, 32, 32), (5, 32, 32)),
        *((10, 16, 16), (10, 16, 16)),
        (20, 8, 8),
    ]


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_gates_of_resnets(shortcut):
    """Gates change no count; without gates there is none; any section can go, and then costs its shortcut only."""
    network = zoo.build("resnet-20", {"gates": True, "width": 2, "shortcut": shortcut})
    plain = zoo.build("resnet-20", {"width": 2, "shortcut": shortcut})
    assert (network.gate_count, plain.gate_count) == (9, 0)
    assert counts(network) == counts(plain)
    assert ungated(network) == plain
    saved = counts(network)[1] - counts(prune(network, np.arange(9) != 4).network)[1]
    assert saved == 2 * 9 * 16 * 16 * 4 * 4
    assert counts(prune(network, np.arange(9) != 3).network)[1] == counts(network)[1] - (2 + 4) * 9 * 16 * 16 * 4


@pytest.mark.parametrize("name", ["vgg-16", "resnet-20"])
def test_a_small_one_trains(name):
    network = zoo.build(name, {"width": 2})
    rules = config.from_dict({"training": {"batch_size": 4}})
    x = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)
    state, metrics = train_step(
        initial_state(rules, network), x, np.arange(4), rules, load_backend("numba", threads=1), training_images=4
    )
    assert np.isfinite(metrics.loss)
    assert all((state.velocity[name] != 0).any() for name in state.velocity)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: zoo.build("resnet-20", {"width": 0}), "network.width: must be at least 1, got 0"),
        (lambda: zoo.build("vgg-16", {"width": 0}), "network.width: must be at least 1, got 0"),
        (lambda: zoo.build("resnet-20", {"shortcut": "C"}), "network.shortcut: 'C' is not known; allowed are 'A', 'B'"),
        (lambda: zoo.build("resnet-20", {"depth": 26}), "network.depth: resnet-20 has no such option; allowed are width"),
        (lambda: zoo.build("resnet-20", {"gates": 1}), "network.gates: expected bool, got 1"),
        (lambda: zoo.build("resnet-21", {}), "network: 'resnet-21' is not known; allowed are .*resnet-110"),
        (lambda: zoo.resnet_cifar(21), r"depth: must be 6·n \+ 2 .*, got 21"),
        (lambda: zoo.resnet_cifar(2), r"depth: must be 6·n \+ 2 .*, got 2"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(InputError, match=message):
        make()
