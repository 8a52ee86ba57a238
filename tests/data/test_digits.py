"""`refprune.data.digits`: determinism, the look of the images in numbers, and how hard the set is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from tolerance import assert_close, gamma

from refprune.data import dataset, digits, sets
from refprune.errors import InputError


@pytest.fixture(scope="module")
def loaded() -> dataset.Dataset:
    return sets.load("synthetic-digits")


def test_shapes_and_types() -> None:
    train_images, train_labels, test_images, test_labels = digits.generate(7, 3, 5)
    for images, labels, n in ((train_images, train_labels, 7), (test_images, test_labels, 3)):
        assert (images.shape, images.dtype) == ((n, 1, 28, 28), np.uint8)
        assert (labels.shape, labels.dtype) == ((n,), np.int64)
        assert ((labels >= 0) & (labels < digits.CLASSES)).all()


def test_same_seed_same_images_and_prefixes_agree() -> None:
    few, many = digits.generate(30, 20, 11), digits.generate(digits._BLOCK + 30, 50, 11)
    for short, long in zip(few, many, strict=True):
        np.testing.assert_array_equal(short, long[: len(short)])


def test_seeds_and_parts_differ() -> None:
    train, _, test, _ = digits.generate(20, 20, 0)
    other, *_ = digits.generate(20, 20, 1)
    assert not np.array_equal(train, test)
    assert not np.array_equal(train, other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 5, 0), "n_train is 0; allowed is 1 or more"),
        ((5, -1, 0), "n_test is -1"),
        ((5, 5, -1), "seed is -1; allowed is 0 to"),
        ((5, 5, 1 << 64), "seed is 18446744073709551616"),
    ],
)
def test_arguments_out_of_range(arguments: tuple[int, int, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        digits.generate(*arguments)


def test_strokes_stay_in_the_unit_square_and_points_are_even() -> None:
    points, ink = digits._templates()
    assert points.shape == (10, 3, digits._POINTS, 2)
    assert np.abs(points).max() <= 0.5
    gaps = np.linalg.norm(np.diff(points, axis=2), axis=3)
    # Neighbours on one stroke lie at most the stroke length between points apart; only jumps between strokes are larger.
    assert (np.sum(gaps > 1.001 * ink[:, :, None], axis=2) <= 1).all()


def test_splat_keeps_ink_and_centre_of_mass() -> None:
    rng = np.random.Generator(np.random.Philox(key=1))
    points, ink = rng.random((4, 9, 2)) * 0.8 - 0.4, rng.random((4, 9))
    grid = digits._splat(points, ink)
    bound = gamma(grid[0].size + 8, 2.0**-53) * ink.sum(axis=1)  # all cells summed, each made with a few roundings; |x| ≤ ½
    assert_close("ink", grid.sum(axis=(1, 2)), ink.sum(axis=1), bound)
    cell = (np.arange(digits._GRID) + 0.5) / digits._GRID - 0.5
    mass_x, mass_y = (grid * cell).sum(axis=(1, 2)), (grid * cell[:, None]).sum(axis=(1, 2))
    assert_close("x", mass_x, (ink * points[:, :, 0]).sum(axis=1), bound)
    assert_close("y", mass_y, (ink * points[:, :, 1]).sum(axis=1), bound)


def test_images_are_bright_strokes_on_dark_ground(loaded: dataset.Dataset) -> None:
    images = loaded.train_images[:, 0]
    assert (images.max(axis=(1, 2)) >= 140).all()
    assert np.median(images) < 20
    middle = images[:, 4:-4, 4:-4].sum() / images.sum(dtype=np.int64)
    assert middle > 0.75
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)


def test_labels_are_uniform(loaded: dataset.Dataset) -> None:
    """Each count is binomial; six standard deviations are exceeded by chance once in 5e8 per class."""
    counts = np.bincount(loaded.train_labels, minlength=10)
    n = len(loaded.train_labels)
    assert (np.abs(counts - n / 10) < 6 * np.sqrt(n * 0.09)).all()


def train(dataset: dataset.Dataset, hidden: int, epochs: int) -> float:
    """Test accuracy of a softmax model (hidden = 0) or one ReLU layer, by Adam on batches of 50."""
    rng = np.random.Generator(np.random.Philox(key=0))
    x, y = dataset.train_images.reshape(-1, 784) / np.float32(255), dataset.train_labels
    widths = [784, hidden, 10] if hidden else [784, 10]
    weights = []
    for n_in, n_out in itertools.pairwise(widths):
        weights += [((rng.random((n_in, n_out)) - 0.5) * 2 / np.sqrt(n_in)).astype(np.float32), np.zeros(n_out, np.float32)]
    moments = [(np.zeros_like(w), np.zeros_like(w)) for w in weights]

    def forward(inputs: np.ndarray) -> list[np.ndarray]:
        layers = [inputs]
        for k in range(0, len(weights), 2):
            z = layers[-1] @ weights[k] + weights[k + 1]
            layers.append(np.maximum(z, 0) if k + 2 < len(weights) else z)
        return layers

    step = 0
    for _ in range(epochs):
        for rows in rng.permutation(len(x)).reshape(-1, 50):
            step += 1
            layers = forward(x[rows])
            p = np.exp(layers[-1] - layers[-1].max(axis=1, keepdims=True))
            delta = p / p.sum(axis=1, keepdims=True)
            delta[np.arange(50), y[rows]] -= 1
            delta /= 50
            for k in reversed(range(0, len(weights), 2)):
                grads = (layers[k // 2].T @ delta, delta.sum(axis=0))
                delta = (delta @ weights[k].T) * (layers[k // 2] > 0)
                for w, (m, v), g in zip(weights[k : k + 2], moments[k : k + 2], grads, strict=True):
                    m += 0.1 * (g - m)
                    v += 0.001 * (g * g - v)
                    w -= 1e-3 * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    scores = forward(dataset.test_images.reshape(-1, 784) / np.float32(255))[-1]
    return float((scores.argmax(axis=1) == dataset.test_labels).mean())


def test_small_network_learns_what_a_linear_model_cannot(loaded: dataset.Dataset) -> None:
    """Bounds with a margin of at least three standard errors (0.7 % at 2,000 test images) from what was measured."""
    linear, network = train(loaded, hidden=0, epochs=15), train(loaded, hidden=100, epochs=15)
    assert 0.80 < linear < 0.92
    assert network > 0.925
    assert network - linear > 0.02


def test_the_embedded_set_is_the_published_one(loaded: dataset.Dataset) -> None:
    """Reported results rest on these images. Labels are exact; between machines one pixel in a thousand may round by one."""
    assert loaded.train_labels[:12].tolist() == [0, 6, 4, 0, 7, 7, 9, 4, 1, 9, 7, 0]
    assert loaded.test_labels[:12].tolist() == [8, 4, 7, 2, 0, 4, 7, 6, 2, 4, 3, 8]
    assert loaded.train_images.mean() == pytest.approx(31.852664, abs=1e-3)
    assert loaded.test_images.mean() == pytest.approx(32.257243, abs=1e-3)
