"""Crops and flips against loops; their numbers; and what training makes of them."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refprune.backend import ORACLE, load_backend
from refprune.oracle.crop_flip import crop_flip, draw_crops
from refprune.streams import Streams
from refprune.training import config
from refprune.training.images import Images, epoch_batches

ENGINES = [ORACLE, load_backend("numba", threads=1)]


def by_loops(x, crops, padding):
    """Pixel by pixel; outside the image there is 0."""
    y = np.zeros_like(x)
    n, channels, height, width = x.shape
    for image in range(n):
        row, column, flip = crops[image]
        for h in range(height):
            for w in range(width):
                from_h, from_w = h + row - padding, (width - 1 - w if flip else w) + column - padding
                if 0 <= from_h < height and 0 <= from_w < width:
                    for c in range(channels):
                        y[image, c, h, w] = x[image, c, from_h, from_w]
    return y


sizes = st.integers(1, 6)


@pytest.mark.parametrize("engine", ENGINES, ids=lambda e: e.name)
@given(st.integers(0, 4), st.integers(0, 3), sizes, sizes, st.integers(0, 8), st.integers(0, 99))
def test_against_loops(engine, n, channels, height, width, padding, seed):
    rng = np.random.default_rng(seed)
    x, crops = rng.normal(size=(n, channels, height, width)), draw_crops(seed, 1, n, padding)
    before = x.copy()
    np.testing.assert_array_equal(engine.crop_flip(x, crops, padding=padding), by_loops(x, crops, padding))
    np.testing.assert_array_equal(x, before)


def test_a_small_example_by_hand():
    """[1 2 / 3 4] with padding 1: down by one and mirrored; the crop in the middle is the image itself."""
    x = np.array([[[[1.0, 2.0], [3.0, 4.0]]]] * 2)
    y = crop_flip(x, np.array([[0, 1, 1], [1, 1, 0]]), padding=1)
    assert y[:, 0].tolist() == [[[0.0, 0.0], [2.0, 1.0]], [[1.0, 2.0], [3.0, 4.0]]]


@given(st.integers(0, 2**40), st.integers(0, 1000), st.integers(0, 5))
def test_the_numbers_are_those_of_the_stream(seed, epoch, padding):
    """From raw words, so that another language can draw the same; an image's crop does not depend on how many there are."""
    words = Streams(seed).words("augment", epoch, 15).reshape(5, 3)
    shares = [[(int(w) >> 11) / 2**53 for w in row] for row in words]
    want = [[int(r * (2 * padding + 1)), int(c * (2 * padding + 1)), int(f >= 0.5)] for r, c, f in shares]
    assert draw_crops(seed, epoch, 5, padding).tolist() == want
    assert draw_crops(seed, epoch, 3, padding).tolist() == want[:3]


def test_all_crops_are_drawn_about_equally_often():
    """n = 90 000: each count within 5 standard deviations (11 checks, false alarms below 10⁻⁵)."""
    crops = draw_crops(0, 0, 90_000, 2)
    for column, values in ((0, 5), (1, 5), (2, 2)):
        counts, p = np.bincount(crops[:, column], minlength=values), 1 / values
        assert len(counts) == values
        assert (np.abs(counts - 90_000 * p) < 5 * np.sqrt(90_000 * p * (1 - p))).all()


def batches(rules, epoch=0, first=0, augment=ORACLE):
    images = Images(np.random.default_rng(0).normal(size=(20, 1, 4, 3)), np.arange(20))
    return images.x, list(epoch_batches(images, rules, epoch, first, augment=augment))


def rules(**data):
    return config.from_dict({"training": {"batch_size": 6}, "data": data})


def test_epoch_batches_are_augmented_where_asked_for():
    drawn = rules(augmentation="crop_flip", padding=1)
    plain_x, found = batches(drawn)
    crops = draw_crops(drawn.seed, 0, 20, 1)
    for x, labels in found:  # labels are the numbers of the images
        np.testing.assert_array_equal(x, crop_flip(plain_x[labels], crops[labels], padding=1))
    assert any((x != plain_x[labels]).any() for x, labels in found)
    for other in (batches(rules(padding=1)), batches(drawn, augment=None)):
        for x, labels in other[1]:
            np.testing.assert_array_equal(x, plain_x[labels])


def test_augmented_batches_go_on_where_they_stopped_and_differ_between_epochs_and_seeds():
    drawn = rules(augmentation="crop_flip", padding=2)
    whole = batches(drawn)[1]
    for (x, _), (want, _) in zip(batches(drawn, first=2)[1], whole[2:], strict=True):
        np.testing.assert_array_equal(x, want)
    numbers = {draw_crops(seed, epoch, 20, 2).tobytes() for seed in (0, 1) for epoch in (0, 1)}
    assert len(numbers) == 4
    other = batches(dataclasses.replace(drawn, seed=1))[1]
    assert any((x != want).any() for (x, _), (want, _) in zip(other, whole, strict=True))
