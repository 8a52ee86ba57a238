"""The networks of the authors of the CKA pruning paper: figures that nobody of this project made (`reference.json`).

Needs REFPRUNE_MODELS (a folder with resnet56-cka/) and, for accuracy, REFPRUNE_DATA with CIFAR-10.
"""

import dataclasses
import functools
import json
import os
from pathlib import Path

import numpy as np
import pytest

from refprune.analysis import candidates
from refprune.analysis.scores import cka_score, classifier, representations
from refprune.backend import ORACLE, load_backend
from refprune.data import sets, standardise
from refprune.exchange import load
from refprune.passes.predictor import Predictor
from refprune.spec import cost
from refprune.spec.layers import BatchNorm, Section
from refprune.training.evaluate import evaluate
from refprune.training.images import Images
from refprune.training.state import State

FOLDER = Path(os.environ.get("REFPRUNE_MODELS", "")) / "resnet56-cka"
NAMES = ["base", *(f"cka-removed{n:02d}" for n in (1, 2, 10, 20))]

pytestmark = pytest.mark.skipif(not (FOLDER / "reference.json").is_file(), reason="REFPRUNE_MODELS names no resnet56-cka")
needs_cifar = pytest.mark.skipif(
    not any((sets.data_directory() / f"cifar-10-batches-{kind}").is_dir() for kind in ("py", "bin")),
    reason="no CIFAR-10 in REFPRUNE_DATA",
)


@functools.cache
def reference():
    found = json.loads((FOLDER / "reference.json").read_text())
    return {name: found[f"resnet56-{name}"] for name in NAMES}


@functools.cache
def trained(name, dtype="float32"):
    return load.load(f"resnet56-cka/resnet56-{name}.npz", "resnet-cifar-keras", dtype=dtype)


@functools.cache
def images_of_the_test_set():
    dataset = sets.load("cifar10")
    return standardise.standardisation(dataset, "pixel_mean", images=0, dtype="float64")(
        dataset.test_images
    ), dataset.test_labels


def synthetic_batch():
    """As the README says, in the network's layout."""
    i = np.arange(64 * 32 * 32 * 3) + 1.0
    x = (0.3 * np.sin(0.1 * i) + 0.1 * np.cos(0.0007 * i**1.5)).astype(np.float32)
    return np.ascontiguousarray(x.reshape(64, 32, 32, 3).transpose(0, 3, 1, 2))


def block(name):
    """ "stage1.block7" → "1.7"."""
    return name.replace("stage", "").replace("block", "")


@pytest.mark.parametrize("name", NAMES)
def test_size(name):
    """MACs exactly. The reference counts the running statistics among the parameters; N6 does not."""
    network, want = trained(name).network, reference()[name]
    assert [len(stage) for stage in candidates.stages(network)] == want["blocks_per_stage"]
    assert cost.macs(network) == want["macs"]
    assert cost.parameters(network) + sum(map(np.prod, network.statistics_shapes.values())) == want["params"]


@pytest.mark.parametrize(("name", "backend"), [*((name, "numba") for name in NAMES), ("cka-removed20", "oracle")])
def test_scores_of_the_synthetic_batch(name, backend):
    """Features, softmax and 1 − CKA of every block but the first of a stage, to the digits that were written down."""
    dtype = "float64" if backend == "oracle" else "float32"
    network, params, statistics, *_ = trained(name, dtype)
    engine, x, want = load_backend(backend), synthetic_batch().astype(dtype), reference()[name]["synthetic_batch"]
    names = [section.name for stage in candidates.stages(network) for section in stage[1:]]
    full, lacking = representations(network, engine, params, statistics, x, names)
    assert {block(n) for n in names} == set(want["scores_synth64"])
    scores = {block(n): cka_score(full, features, engine) for n, features in lacking.items()}
    assert max(abs(scores[n] - want["scores_synth64"][n]) for n in scores) < 2e-6
    assert abs(full.mean(dtype=np.float64) - want["synth64_feature_mean"]) < 1e-5
    assert abs(full.std(dtype=np.float64) - want["synth64_feature_std"]) < 1e-5
    assert np.abs(full[0, :4] - want["synth64_feature0_first4"]).max() < 1e-4
    logits = Predictor(network, engine, params, statistics, start=classifier(network))(full).astype(np.float64)
    assert np.bincount(logits.argmax(axis=1), minlength=10).tolist() == want["synth64_argmax_hist"]
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    assert abs((p**2).sum() - want["synth64_softmax_sum_sq"]) < 1e-3


@needs_cifar
@pytest.mark.parametrize("name", NAMES)
def test_accuracy_on_the_real_test_set(name):
    """To the last image; cross-entropy to 1e-3."""
    network, params, statistics, *_ = trained(name)
    x, labels = images_of_the_test_set()
    none, no_counts = np.zeros(0), np.zeros(0, np.intp)
    state = State(network, params, {}, statistics, none, no_counts, none, no_counts, none)
    score = evaluate(state, Images(x.astype(np.float32), labels), load_backend("numba"), batch_size=250)
    assert round(score.accuracy * 10_000) == round(100 * reference()[name]["test_accuracy_percent"])
    assert abs(score.loss - reference()[name]["test_cross_entropy"]) < 1e-3


@needs_cifar
def test_the_oracle_agrees_on_a_part():
    """In float64: the same classes, and the loss to 1e-3 of that of the compiled network."""
    x, labels = images_of_the_test_set()
    losses = {}
    for backend, dtype in ((ORACLE, "float64"), (load_backend("numba"), "float32")):
        network, params, statistics, *_ = trained("base", dtype)
        logits = Predictor(network, backend, params, statistics)(x[:100].astype(dtype)).astype(np.float64)
        losses[dtype] = logits.argmax(axis=1), float(backend.cross_entropy(logits, labels[:100], reduction="mean")[0])
    assert (losses["float64"][0] == losses["float32"][0]).all()
    assert abs(losses["float64"][1] - losses["float32"][1]) < 1e-3


def test_a_planted_convention_is_seen():
    """With PyTorch's ε the scores of the synthetic batch leave 1e-4, so that the check above tells the conventions apart."""
    network, params, statistics, *_ = trained("cka-removed20")

    def changed(layer):
        if isinstance(layer, Section):
            return dataclasses.replace(layer, path=tuple(map(changed, layer.path)))
        return dataclasses.replace(layer, eps=1e-5) if isinstance(layer, BatchNorm) else layer

    wrong = dataclasses.replace(network, layers=tuple(map(changed, network.layers)))
    engine, names = load_backend("numba"), candidates.candidates(network)
    full, lacking = representations(wrong, engine, params, statistics, synthetic_batch(), names)
    want = reference()["cka-removed20"]["synthetic_batch"]["scores_synth64"]
    errors = [abs(cka_score(full, lacking[n], engine) - want[block(n)]) for n in names]
    assert max(errors) > 1e-4
