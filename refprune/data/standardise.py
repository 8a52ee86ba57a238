"""How pixels become what a network takes: x = (pixel − shift)·scale, by the convention that its spec names (`Network.scaling`).

"channel"      shift and 1/scale: mean and deviation of each channel over the training images
"pixel_mean"   shift: the mean training image, pixel by pixel; scale 1/255 (Keras' ResNet example)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..arrays import Array
from .dataset import Dataset


class Scaling(NamedTuple):
    """shift, in units of 0 … 255, and scale: (C, 1, 1) or (C, H, W), in the dtype of the inputs."""

    shift: Array
    scale: Array

    def __call__(self, pixels: Array) -> Array:
        """pixels: N×C×H×W, 0 … 255, whole or not → inputs of the same shape."""
        inputs: Array = (pixels.astype(self.shift.dtype) - self.shift) * self.scale
        return inputs


def standardisation(dataset: Dataset, kind: str, *, images: int, dtype: str) -> Scaling:
    """The scaling `kind`, one of SCALINGS, for inputs of `dtype`.

    images: how many of the first training images "channel" looks at. A mean image is always that of all of them: a network that
    others trained has seen it.
    """
    train = dataset.train_images
    if kind == "pixel_mean":
        mean_image = train.mean(axis=0, dtype=np.float64)
        return Scaling(mean_image.astype(dtype), np.full((len(mean_image), 1, 1), 1.0 / 255.0, dtype))
    pixels = np.moveaxis(train[:images], 1, 0).reshape(train.shape[1], -1)
    mean = np.array([channel.mean(dtype=np.float64) for channel in pixels])
    deviation = np.array([channel.std(dtype=np.float64) for channel in pixels])
    scale = (1.0 / np.where(deviation > 0, deviation, 1.0)).astype(dtype)[:, None, None]
    return Scaling(mean.astype(dtype)[:, None, None], scale)
