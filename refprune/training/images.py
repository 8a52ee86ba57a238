"""A data set as the network takes it, and its mini-batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ..arrays import Array
from ..backend import Backend
from ..data import standardise
from ..data.dataset import Dataset
from ..errors import InputError
from ..oracle.crop_flip import draw_crops
from ..spec.network import Network
from ..streams import Streams
from .config import Config


class Images(NamedTuple):
    """A data set, or a batch of one, as the network takes it.

    x: (N, *input_shape) in the training dtype, standardised.
    labels: (N,) classes.
    """

    x: Array
    labels: Array


def prepare_images(
    dataset: Dataset, config: Config, network: Network | None = None, *, scaled_by: int | None = None
) -> tuple[Images, Images]:
    """Training and test images as the network takes them.

    With `data.holdout` the held-out training images stand for the test images.
    network: how it takes them, as numbers or by a convention (`refprune.data.standardise`); None: by "channel".
    scaled_by: mean and deviation are those of the first `scaled_by` training images; by default of all that are trained on,
        so that held-out images have no part in them.
    """
    data = config.data
    limit = data.train_limit or len(dataset.train_labels)
    if limit > len(dataset.train_labels):
        raise InputError(f"data.train_limit: {limit} exceeds the {len(dataset.train_labels)} training images")
    if data.holdout >= limit:
        raise InputError(f"data.holdout: {data.holdout} leaves none of the {limit} training images")
    side = min(dataset.train_images.shape[-2:])
    if data.augmentation == "crop_flip" and data.padding > side:
        raise InputError(f"data.padding: {data.padding} exceeds the {side} pixels of the images' shorter side")
    kept = limit - data.holdout
    if kept < config.training.batch_size:
        raise InputError(f"training.batch_size: {config.training.batch_size} exceeds the {kept} training images")
    seen, dtype = kept if scaled_by is None else scaled_by, config.training.dtype
    if network is None:
        scale = standardise.standardisation(dataset, "channel", images=seen, dtype=dtype)
    else:
        scale = standardise.scaling_of(network, dataset, images=seen, dtype=dtype)
    train = Images(scale(dataset.train_images[:kept]), dataset.train_labels[:kept])
    if data.holdout:
        return train, Images(scale(dataset.train_images[kept:limit]), dataset.train_labels[kept:limit])
    return train, Images(scale(dataset.test_images), dataset.test_labels)


def epoch_steps(images: Images, config: Config) -> int:
    """Steps of an epoch: whole mini-batches among the images."""
    return len(images.labels) // config.training.batch_size


def epoch_batches(
    images: Images, config: Config, epoch: int, first: int = 0, *, augment: Backend | None = None
) -> Iterator[tuple[Array, Array]]:
    """The mini-batches of one epoch, in the order of the stream "shuffle"; a last partial batch is left out.

    first: number of the first batch that is wanted.
    augment: the backend that changes the images as `data.augmentation` says; None leaves them as they are.
    """
    size, data = config.training.batch_size, config.data
    order = Streams(config.seed).permutation("shuffle", epoch, len(images.labels))
    backend = augment if data.augmentation == "crop_flip" else None
    crops = np.zeros((0, 3)) if backend is None else draw_crops(config.seed, epoch, len(order), data.padding)
    for i in range(first, len(order) // size):
        index = order[i * size : (i + 1) * size]
        x = images.x[index]
        if backend is not None:
            x = backend.crop_flip(x, crops[index], padding=data.padding)
        yield x, images.labels[index]
