"""Accuracy on images that were changed on purpose: adversarial ones (FGSM) and corrupted ones.

FGSM (Goodfellow et al. 2015): x' = clip(x + ε sign ∂c/∂x, 0, 1) on pixels in [0, 1], c the cross-entropy of the true label, by
the hand-derived input gradient in eval mode (G1). Inputs are (pixel − shift)·scale, so that ∂c/∂pixel has the sign of
scale · ∂c/∂input.

Corruptions are *like* those of CIFAR-10-C (Hendrycks & Dietterich 2019) as far as scipy.ndimage makes them, at five severities
of our own choice, on [0, 1], clipped and rounded to whole pixel values. They are not the same images: compare networks with
each other here, not with published CIFAR-10-C figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.special import ndtri

from ..arrays import Array
from ..backend import Backend
from ..data.standardise import Scaling
from ..errors import InputError
from ..exchange.trained import Trained
from ..passes.finite import check_finite
from ..passes.predictor import Predictor
from ..passes.tape import backward, forward
from ..streams import Streams

SEVERITIES = (1, 2, 3, 4, 5)
BATCH = 250


# --------------------------------------------------------------------------------------------------------------------
# FGSM


def input_gradient(trained: Trained, backend: Backend, x: Array, labels: Array) -> Array:
    """∂/∂x of the summed cross-entropy, N×input_shape, in eval mode: each example's own gradient."""
    tape = forward(trained.network, backend, trained.params, x, statistics=trained.statistics)
    value, saved = backend.cross_entropy(tape.output, labels, reduction="sum")
    (dlogits,) = backend.cross_entropy_vjp(saved, np.ones_like(value))
    gradient = backward(tape, dlogits, input_gradient=True).input
    assert gradient is not None
    return gradient


def fgsm(trained: Trained, backend: Backend, scaling: Scaling, pixels: Array, labels: Array, eps: float) -> Array:
    """Adversarial pixels, N×C×H×W in 0 … 255, not rounded: at most 255·eps away, in the dtype of the inputs."""
    x = scaling(pixels)
    step = np.sign(scaling.scale * input_gradient(trained, backend, x, labels)) * np.asarray(255.0 * eps, x.dtype)
    moved: Array = np.clip(pixels.astype(x.dtype) + step, 0.0, 255.0).astype(x.dtype)
    return moved


# --------------------------------------------------------------------------------------------------------------------
# Corruptions: images N×C×H×W in [0, 1], a strength, and uniforms of their own


class Draw(NamedTuple):
    """Uniform numbers for one corruption, severity and batch: draw(k) is k of them for every value, k×N×C×H×W.

    The first of the k are the same however many images N the batch has, the others are not.
    """

    streams: Streams
    purpose: str
    step: int
    shape: tuple[int, ...]

    def __call__(self, k: int = 1) -> Array:
        return self.streams.uniform(self.purpose, self.step, (k, *self.shape))


def _gaussian_noise(x: Array, strength: float, draw: Draw) -> Array:
    noisy: Array = x + strength * ndtri(draw()[0] * (1.0 - 2.0**-53) + 2.0**-54)
    return noisy


def _shot_noise(x: Array, photons: float, draw: Draw) -> Array:
    """Poisson counts of mean photons·x, by inversion: the sum of [u > P(count ≤ k)] over k."""
    mean, u = photons * x, draw()[0]
    term = np.exp(-mean)
    total, count, k = term.copy(), np.zeros_like(x), 0
    while (below := u > total).any() and k < 20 * photons:
        count += below
        k += 1
        term *= mean / k
        total += term
    return count / photons


def _impulse_noise(x: Array, share: float, draw: Draw) -> Array:
    u, v = draw(2)
    return np.where(u < share, np.round(v), x)


def _gaussian_blur(x: Array, sigma: float, draw: Draw) -> Array:
    blurred: Array = ndimage.gaussian_filter(x, sigma, axes=(2, 3), mode="reflect")
    return blurred


def _defocus_blur(x: Array, radius: float, draw: Draw) -> Array:
    """The mean over a disc; pixels on its rim count by how much of them lies inside, on a 9×9 grid."""
    reach = int(np.ceil(radius))
    fine = (np.arange((2 * reach + 1) * 9) - (2 * reach + 1) * 9 / 2 + 0.5) / 9
    inside = (fine[:, None] ** 2 + fine**2 <= (radius + 0.5) ** 2).astype(np.float64)
    disc = inside.reshape(2 * reach + 1, 9, 2 * reach + 1, 9).mean(axis=(1, 3))
    blurred: Array = ndimage.correlate(x, (disc / disc.sum())[None, None], mode="reflect")
    return blurred


def _motion_blur(x: Array, length: float, draw: Draw) -> Array:
    """The mean along a horizontal line of an odd number of pixels."""
    blurred: Array = ndimage.uniform_filter1d(x, int(length), axis=3, mode="reflect")
    return blurred


def _brightness(x: Array, strength: float, draw: Draw) -> Array:
    brighter: Array = x + strength
    return brighter


def _contrast(x: Array, factor: float, draw: Draw) -> Array:
    mean = x.mean(axis=(2, 3), keepdims=True)
    flatter: Array = (x - mean) * factor + mean
    return flatter


def _pixelate(x: Array, share: float, draw: Draw) -> Array:
    """Averaged down to `share` of the size, then each pixel takes its nearest of the small image."""
    height, width = x.shape[2:]
    rows, columns = (np.arange(n) * max(int(n * share), 1) // n for n in (height, width))
    down, across = ((np.eye(m[-1] + 1)[m] / np.bincount(m)).T for m in (rows, columns))  # rows of weights that sum to 1
    small = down @ x @ across.T
    coarse: Array = small[:, :, rows[:, None], columns]
    return coarse


class Corruption(NamedTuple):
    """function(x, strength, draw), and its strengths at the five severities."""

    function: Callable[[Array, float, Draw], Array]
    strengths: tuple[float, float, float, float, float]


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian-noise": Corruption(_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot-noise": Corruption(_shot_noise, (500.0, 250.0, 100.0, 75.0, 50.0)),
    "impulse-noise": Corruption(_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "gaussian-blur": Corruption(_gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "defocus-blur": Corruption(_defocus_blur, (0.3, 0.5, 0.8, 1.0, 1.5)),
    "motion-blur": Corruption(_motion_blur, (3.0, 5.0, 7.0, 9.0, 11.0)),
    "brightness": Corruption(_brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": Corruption(_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "pixelate": Corruption(_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
}


def _check_kind(kind: str) -> None:
    if kind not in CORRUPTIONS:
        raise InputError(f"--corruptions: {kind!r} is not known; allowed are {', '.join(CORRUPTIONS)}")


def corrupt(pixels: Array, kind: str, severity: int, *, seed: int, first: int = 0) -> Array:
    """Corrupted pixels, uint8 N×C×H×W. first: number of the first image in its set; the stream's step. InputError otherwise."""
    _check_kind(kind)
    if severity not in SEVERITIES:
        raise InputError(f"severity: must be one of {SEVERITIES}, got {severity}")
    if pixels.dtype != np.uint8 or pixels.ndim != 4:
        raise InputError(f"pixels: must be uint8 of shape (N, C, H, W), got {pixels.dtype} of shape {pixels.shape}")
    function, strengths = CORRUPTIONS[kind]
    draw = Draw(Streams(seed), f"corruption/{kind}/{severity}", first, pixels.shape)
    changed = function(pixels / 255.0, strengths[severity - 1], draw)
    whole: Array = np.rint(255.0 * np.clip(changed, 0.0, 1.0)).astype(np.uint8)
    return whole


# --------------------------------------------------------------------------------------------------------------------
# Accuracy


#: (pixels, labels, number of the first image) → changed pixels.
Change = Callable[[Array, Array, int], Array]


class Row(NamedTuple):
    """What was done to the images, how strongly (ε or severity, 0: nothing), and the share of right answers."""

    what: str
    strength: float
    accuracy: float


def evaluate(
    trained: Trained,
    backend: Backend,
    scaling: Scaling,
    pixels: Array,
    labels: Array,
    *,
    eps: Sequence[float] = (),
    corruptions: Sequence[str] = (),
    seed: int = 0,
) -> Iterator[Row]:
    """Accuracy on the clean images, then by FGSM for every ε, then for every corruption at the five severities.

    pixels: uint8 N×C×H×W; labels N. InputError for other shapes or scales, an ε outside [0, 1], unknown corruptions.
    """
    if pixels.dtype != np.uint8 or pixels.shape[1:] != trained.network.input_shape or len(pixels) != len(labels):
        raise InputError(
            f"pixels: must be uint8 (0 … 255) of shape (N, *{trained.network.input_shape}), a label for each; "
            f"got {pixels.dtype} of shape {pixels.shape}, {len(labels)} labels"
        )
    for value in eps:
        if not 0.0 <= value <= 1.0:
            raise InputError(f"--fgsm: ε is a share of the pixel range and must lie in [0, 1], got {value}")
    for kind in corruptions:
        _check_kind(kind)
    predict = Predictor(trained.network, backend, trained.params, trained.statistics)

    def accuracy(change: Change) -> float:
        right = 0
        for start in range(0, len(labels), BATCH):
            part = slice(start, start + BATCH)
            x = scaling(change(pixels[part], labels[part], start))
            logits = predict(x)
            check_finite("the logits", logits, trained.network, backend, trained.params, trained.statistics, x)
            right += int((logits.argmax(axis=1) == labels[part]).sum())
        return right / len(labels)

    def attack(value: float) -> Change:
        return lambda images, own, _: fgsm(trained, backend, scaling, images, own, value)

    def corruption(kind: str, severity: int) -> Change:
        return lambda images, _, first: corrupt(images, kind, severity, seed=seed, first=first)

    yield Row("clean", 0.0, accuracy(lambda images, _, __: images))
    for value in eps:
        yield Row("fgsm", value, accuracy(attack(value)))
    for kind in corruptions:
        for severity in SEVERITIES:
            yield Row(kind, float(severity), accuracy(corruption(kind, severity)))


def table(results: Mapping[str, Sequence[Row]]) -> list[tuple[str, ...]]:
    """A row for clean, each ε, each corruption (accuracy at severities 1 … 5) and their mean; a column a network."""
    first = next(iter(results.values()))
    rows: list[tuple[str, ...]] = [("accuracy (%)", *results)]
    for index, row in enumerate(first):
        if row.what in ("clean", "fgsm"):
            title = "clean" if row.what == "clean" else f"FGSM ε = {255 * row.strength:g}/255"
            rows.append((title, *(f"{100 * found[index].accuracy:.2f}" for found in results.values())))
    kinds = list(dict.fromkeys(row.what for row in first if row.what not in ("clean", "fgsm")))
    for kind in kinds:
        own = [[f"{100 * row.accuracy:.2f}" for row in found if row.what == kind] for found in results.values()]
        rows.append((kind, *map(" ".join, own)))
    if kinds:
        means = (np.mean([row.accuracy for row in found if row.what in kinds]) for found in results.values())
        rows.append(("mean of corruptions", *(f"{100 * mean:.2f}" for mean in means)))
    return rows
