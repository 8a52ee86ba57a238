"""Images as training sees them, batches of an epoch, and evaluation with gates at their mode, mean or sampled (O9)."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch_network
from hypothesis import given
from hypothesis import strategies as st
from small_training import (
    NETWORKS,
    U,
    e2,
    images,
    mlp,
    run,
    settings,
    start,
)
from tolerance import assert_close, assert_identical, gamma

from refprune.backend import ORACLE
from refprune.data.dataset import Dataset
from refprune.errors import InputError
from refprune.oracle.crop_flip import draw_crops
from refprune.passes.batch_loss import BatchLoss
from refprune.streams import Streams
from refprune.training.evaluate import evaluate
from refprune.training.images import Images, epoch_batches, prepare_images


def dataset(n=64, channels=2):
    """Channel 0 is half 0, half 200: mean 100, deviation 100. Channel 1 is 4 or 20: mean 12, deviation 8. All is exact."""
    values = np.array([[0, 4], [200, 20]], dtype=np.uint8)[:, :channels]
    pixels = values[np.arange(n * 4) % 2].reshape(n, 2, 2, channels).transpose(0, 3, 1, 2)
    labels = np.arange(n) % 10
    return Dataset("exact", pixels, labels, np.full((3, channels, 2, 2), 250, dtype=np.uint8), np.arange(3), 10)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_images_are_standardised_per_channel_by_the_training_images(dtype):
    found, test = prepare_images(dataset(), settings(training={"dtype": dtype}))
    assert found.x.dtype == test.x.dtype == dtype
    raw = dataset().train_images
    assert_identical("train", found.x, np.where(raw > 50, 1.0, np.where(raw == 20, 1.0, -1.0)).astype(dtype))
    want = np.empty(test.x.shape, dtype=dtype)
    want[:, 0], want[:, 1] = 1.5, (250 - 12) / 8
    assert_identical("test", test.x, want)
    assert (found.labels == dataset().train_labels).all()
    assert (test.labels == [0, 1, 2]).all()


def test_the_limit_takes_the_first_images_and_their_mean():
    data = dataset()
    data.train_images[32:] = 7
    found, _ = prepare_images(data, settings(data={"train_limit": 32}))
    assert found.x.shape == (32, 2, 2, 2)
    assert np.unique(found.x).tolist() == [-1.0, 1.0]
    assert (found.labels == data.train_labels[:32]).all()


def test_a_constant_channel_becomes_zero():
    data = dataset()
    data.train_images[:, 1] = 9
    found, _ = prepare_images(data, settings())
    assert (found.x[:, 1] == 0.0).all()
    assert np.isfinite(found.x).all()


def test_a_batch_needs_enough_images():
    with pytest.raises(InputError, match=r"training\.batch_size: 8 exceeds the 7 training images"):
        prepare_images(dataset(), settings(data={"train_limit": 7}))


def test_held_out_images_stand_for_the_test_images_and_are_not_trained_on():
    data = dataset()
    count = len(data.train_labels)
    limit = count - 3
    rules = settings(data={"train_limit": limit, "holdout": 5})
    found, held = prepare_images(data, rules)
    plain, _ = prepare_images(
        dataclasses.replace(data, train_images=data.train_images[: limit - 5], train_labels=data.train_labels[: limit - 5]),
        settings(),
    )
    assert found.x.tobytes() == plain.x.tobytes()  # mean and deviation without the held-out ones
    assert (held.labels == data.train_labels[limit - 5 : limit]).all()
    assert held.x.shape == (5, *data.train_images.shape[1:])
    with pytest.raises(InputError, match=f"data.holdout: {count} leaves none"):
        prepare_images(data, settings(data={"holdout": count}))


@given(n=st.integers(8, 60), size=st.integers(1, 8), epoch=st.integers(0, 5), seed=st.integers(0, 3), data=st.data())
def test_epoch_batches(n, size, epoch, seed, data):
    """Every index at most once and all but the last partial batch; the same order again; from `first` on the same rest."""
    rules = dataclasses.replace(settings(training={"batch_size": size}), seed=seed)
    numbers = Images(np.arange(n) * 1.0, np.arange(n))
    whole = [labels.tolist() for _, labels in epoch_batches(numbers, rules, epoch)]
    flat = list(itertools.chain.from_iterable(whole))
    assert all(len(labels) == size for labels in whole)
    assert len(flat) == len(set(flat)) == n - n % size
    assert all((x == labels).all() for x, labels in epoch_batches(numbers, rules, epoch))
    first = data.draw(st.integers(0, len(whole)))
    assert [labels.tolist() for _, labels in epoch_batches(numbers, rules, epoch, first)] == whole[first:]
    other = dataclasses.replace(rules, gates=dataclasses.replace(rules.gates, initial=0.1))
    assert [labels.tolist() for _, labels in epoch_batches(numbers, other, epoch)] == whole
    if n - size >= 20:
        for changed in (
            epoch_batches(numbers, rules, epoch + 1),
            epoch_batches(numbers, dataclasses.replace(rules, seed=seed + 1), epoch),
        ):
            assert [labels.tolist() for _, labels in changed] != whole


@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_every_epoch_has_crops_of_its_own(epoch):
    """Image i of the set gets row i of the epoch's crops, whatever batch it is in."""
    rules = settings(data={"augmentation": "crop_flip", "padding": 2}, training={"batch_size": 5})
    found, _ = prepare_images(dataset(n=17), rules)
    order = Streams(rules.seed).permutation("shuffle", epoch, 17)
    crops = draw_crops(rules.seed, epoch, 17, 2)
    assert (crops != draw_crops(rules.seed, epoch + 1, 17, 2)).any()
    batches = list(epoch_batches(found, rules, epoch, augment=ORACLE))
    assert len(batches) == 3
    for i, (x, labels) in enumerate(batches):
        index = order[5 * i : 5 * (i + 1)]
        assert (labels == found.labels[index]).all()
        for image, (row, column, flip) in zip(range(5), crops[index], strict=True):
            padded = np.pad(found.x[index[image]], ((0, 0), (2, 2), (2, 2)))
            cut = padded[:, row : row + 2, column : column + 2]
            assert_identical("crop", x[image], cut[:, :, ::-1] if flip else cut)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("gates", ["mode", "mean"])
def test_evaluation(name, gates):
    """Loss and accuracy in eval mode at ξ = 1[θ ≥ ½] or ξ = θ, in pieces, against PyTorch on all at once."""
    network, rules = NETWORKS[name](), settings()
    theta = np.array([0.5, math.nextafter(0.5, 0.0), 0.9, 0.1, 0.6, 0.0, 1.0, 0.7, 0.2])[: network.gate_count]
    state, data = start(network, rules, theta), images(network, 30)
    state = run(state, images(network), settings(gates={"learning_rate": 0.0}), 2)
    values = theta if gates == "mean" else (theta >= 0.5) * 1.0
    want, _, _ = torch_network.evaluate(
        network, state.params, values, data.x, data.labels, statistics=state.statistics, train=False
    )
    got = evaluate(state, data, ORACLE, gates=gates, batch_size=7)
    tolerance = e2(lambda b, jitter: {"loss": jitter(evaluate(state, data, b, gates=gates).loss)})
    assert_close("loss", np.float64(got.loss), want["loss"], tolerance["loss"])
    assert got.accuracy == np.mean(want["output"].argmax(axis=1) == data.labels)


def test_sampled_evaluation_is_the_mean_over_its_gates():
    """O9's third evaluation: one Ξ ~ Bern(θ) a batch from the stream "evaluation"; other numbers than training's."""
    network, rules = mlp(), settings()
    state, data = start(network, rules, np.full(8, 0.5)), images(network)
    got = evaluate(state, data, ORACLE, gates="sampled", seed=3, batch_size=16)
    uniforms = [Streams(3).uniform(f"evaluation/{g.name}", 0, (g.stop - g.start, 2)) for g in network.gate_groups]
    losses = []
    for i, row in enumerate((np.concatenate(uniforms).T < 0.5).astype(np.float64)):
        x, labels = data.x[16 * i : 16 * (i + 1)], data.labels[16 * i : 16 * (i + 1)]
        losses.append(float(BatchLoss(network, ORACLE, state.params, x, labels, {}, train=False).evaluate(row).loss))
    assert_close("loss", np.float64(got.loss), np.float64(np.mean(losses)), gamma(34, U) * np.mean(losses))
    assert got.loss != evaluate(state, data, ORACLE, batch_size=16).loss
