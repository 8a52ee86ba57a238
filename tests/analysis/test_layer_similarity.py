"""Features of named points, and the similarity of all pairs: against plain passes and `cka` on them."""

import dataclasses

import numpy as np
import pytest
from tolerance import assert_close, assert_identical, gamma

from refprune.analysis import layer_similarity
from refprune.backend import ORACLE
from refprune.errors import InputError
from refprune.formulas import cka
from refprune.passes.parameters import initial_statistics, initialise
from refprune.passes.tape import forward
from refprune.spec import zoo
from refprune.streams import Streams

NETWORK = dataclasses.replace(zoo.resnet_cifar_keras((2, 2), width=3), input_shape=(3, 8, 8))
PARAMS, STATISTICS = initialise(NETWORK, Streams(0)), initial_statistics(NETWORK)
X = Streams(0).normal("x", 0, (13, 3, 8, 8))
HOW = (NETWORK, ORACLE, PARAMS, STATISTICS, X)


def observed(x=X):
    seen = {}
    forward(NETWORK, ORACLE, PARAMS, x, statistics=STATISTICS, observe=seen.__setitem__)
    return {name: y.reshape(len(y), -1) for name, y in seen.items()}


def test_points_are_what_a_pass_shows_in_its_order():
    assert layer_similarity.points(NETWORK) == [name for name in observed() if not name.endswith(".post")]
    assert {"stem.bn", "stage1.block0.shortcut", "stage0.block1.conv2", "stage0.block1", "head"} <= set(
        layer_similarity.points(NETWORK)
    )


def test_collected_features():
    names = ["stage1.block0", "stem", "stage0.block1.conv1.bn"]
    found = layer_similarity.collect(*HOW, names, batch_size=5)
    assert list(found) == names
    want = observed()
    for name in names:
        parts = [observed(X[start : start + 5])[name] for start in (0, 5, 10)]
        assert_identical(name, found[name], np.concatenate(parts))
        assert found[name].shape == want[name].shape


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_the_matrix_is_the_streamed_one(kernel):
    """Against the definition: mean unbiased HSIC of kernels over two batches of 6 (the 13th image is left out)."""
    names = ["stem", "stage0.block0", "stage1.block1"]
    found = layer_similarity.similarities(*HOW, names, kernel=kernel, batch_size=6)
    seen = observed()
    sigma = {name: cka.median_distance(seen[name][:6]) for name in names}

    def kernel_of(name, rows):
        f = seen[name][rows] - seen[name][rows].mean(axis=0)
        if kernel == "linear":
            return f @ f.T
        return np.exp(-((f[:, None] - f[None]) ** 2).sum(axis=2) / (2 * sigma[name] ** 2))

    def hsic(a, b):
        rows = (slice(0, 6), slice(6, 12))
        return np.mean([cka.hsic(kernel_of(a, r), kernel_of(b, r), estimator="unbiased") for r in rows])

    want = np.array([[hsic(a, b) / np.sqrt(hsic(a, a) * hsic(b, b)) for b in names] for a in names])
    # K1's terms are at most a few times ‖X‖⁴, which self-HSICs of 6 independent images are not far below
    assert_close("matrix", found.values, want, 100 * gamma(10 * (6 + seen["stem"].shape[1]), 2.0**-53))
    biased = cka.cka_matrix([seen[n] for n in names], estimator="biased").values
    assert np.abs(biased - want).max() > 1e-3, "planted: the biased estimator would be seen"


def test_one_batch_of_all_is_the_unbiased_cka():
    names = ["stem.bn", "stage1.block0"]
    found = layer_similarity.similarities(*HOW, names, batch_size=13)
    want = cka.cka_matrix(list(layer_similarity.collect(*HOW, names, batch_size=13).values()), estimator="unbiased")
    assert_identical("matrix", found.values, want.values)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["stem", "nothing"], "--points: 'nothing' is none; the network's points are stem, stem.bn"),
        ([], "--points: each once, at least one"),
        (["stem", "stem"], "--points: each once"),
    ],
)
def test_points_that_are_none(names, message):
    with pytest.raises(InputError, match=message):
        layer_similarity.collect(*HOW, names)


@pytest.mark.parametrize("size", [3, 14])
def test_batches_that_cannot_be(size):
    with pytest.raises(InputError, match=rf"--batch-size: must lie in 4 … 13 images, got {size}"):
        layer_similarity.similarities(*HOW, ["stem"], batch_size=size)
