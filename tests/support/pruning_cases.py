"""A small trained network, and runs that prune it."""

import pytest

from refprune.data import dataset, digits, sets
from refprune.exchange.trained import Trained
from refprune.experiments import layer_pruning
from refprune.experiments.layer_pruning import Plan
from refprune.output.progress import Progress
from refprune.passes.parameters import initialise
from refprune.spec.layers import Activation, Conv, Dense, GlobalAveragePool, MaxPool, Section
from refprune.spec.network import Network
from refprune.streams import Streams

TINY = dataset.Dataset("synthetic-digits", *digits.generate(43, 20, 0), digits.CLASSES)
QUIET = Progress(quiet=True)


def same(kernel):
    return ((kernel // 2,) * 2,) * 2


def section(channels):
    path = (Conv(channels, (3, 3), padding=same(3)), Activation("relu"), Conv(6, (3, 3), padding=same(3)))
    return Section(path, gate=False, post="relu")


LAYERS = (MaxPool((4, 4), (4, 4)), Conv(6, (1, 1)), *map(section, (5, 4, 3, 2)), GlobalAveragePool(), Dense(10))
NETWORK = Network((1, 28, 28), LAYERS)
TRAINED = Trained(NETWORK, initialise(NETWORK, Streams(0), dtype="float32"), {})
SETTINGS = layer_pruning.finetuning_config(
    "synthetic-digits", 2, 3, {"training": {"backend": "oracle", "batch_size": 8}, "optimiser": {"learning_rate": 0.05}}
)
PLAN = Plan("cka", score_images=20, finetune=2, filter_rounds=1)


def run(folder, plan=PLAN, settings=SETTINGS):
    return layer_pruning.run(TRAINED, plan, settings, folder, progress=QUIET)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sets, "load", lambda name, directory=None: TINY)
        return folder, run(folder)
