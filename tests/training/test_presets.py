"""The presets for images in colour, end to end: narrow networks pressed hard, a few steps on noise; each kind goes."""

import numpy as np
import pytest

from refprune.data import dataset
from refprune.data import sets as image_sets
from refprune.experiments import run as experiment
from refprune.output.progress import Progress
from refprune.training import checkpoint, config, presets

NAMES = sorted(name for name in presets.experiments() if name.startswith(("cifar10-", "imagenet-")))
#: Has each preset, as its name says, gates on sections and on units?
GATES = {
    "cifar10-resnet20-combined": (True, True),
    "cifar10-resnet20-magnitude": (False, True),
    "cifar10-vgg16-combined": (True, True),
    "cifar10-vgg16-units": (False, True),
    "imagenet-resnet18-combined": (True, True),
}


def narrow(name):
    """The preset at a quarter of the width or less, for three epochs of two steps; what is decided early, after two."""
    whole = config.load(name)
    width = {"resnet-20": 4, "vgg-16": 4, "vgg-16-residual": 4, "resnet-18": 4}[whole.network["name"]]
    changes = [f"network.width={width}", "unpruned=false", "training.epochs=3", "training.batch_size=8", "training.threads=1"]
    pressed = ["gates.decide_epoch=2", "gates.removal_every=1", "objective.nu=40.0"]
    changes += pressed if whole.gates.decide_epoch else ["gates.magnitude_epoch=2"]
    changes += ["network.size=32"] if name.startswith("imagenet-") else []
    return config.load(name, changes)


@pytest.fixture(autouse=True)
def noise(monkeypatch):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (24, 3, 32, 32), dtype=np.uint8), np.arange(24) % 10
    sets = dataset.Dataset("noise", images[:16], labels[:16], images[16:], labels[16:], 10)
    monkeypatch.setattr(image_sets, "load", lambda name, directory=None: sets)


def test_each_is_expected():
    assert list(GATES) == NAMES
    names = {config.load(name).data.name for name in NAMES}
    assert names == {"cifar10", "folder:imagenet@224"}
    assert "cifar10" in image_sets.NAMES


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_to_the_end(name, tmp_path):
    rules = narrow(name)
    network = experiment.set_up(rules, None).networks["pruned"]
    assert tuple(any(group.kind == kind for group in network.gate_groups) for kind in ("layer", "unit")) == GATES[name]
    run = experiment.run(rules, tmp_path / "run", progress=Progress(quiet=True))["runs"]["pruned"]
    state = checkpoint.load(tmp_path / "run" / "pruned").state
    assert (state.network.gate_count, run["steps"]) == (0, 6)
    assert 0 < run["macs_per_image"] < 0.95 * run["macs_per_image_at_start"]
    assert run["masked_compact_error"] <= 1.0
    gone = {group.kind for group in network.gate_groups for row in run["removals"] if group.name in row["removed"]}
    assert gone == {kind for kind, there in zip(("layer", "unit"), GATES[name], strict=True) if there}


@pytest.mark.parametrize("name", ["resnet-34", "resnet-50"])
def test_other_depths_are_one_key_away(name):
    options = ["network.width=4", "network.size=32", "training.batch_size=8", f"network.name={name}"]
    rules = config.load("imagenet-resnet18-combined", options)
    assert experiment.set_up(rules, None).networks["pruned"].gate_count
