"""How pixels become what a network takes: x = (pixel − shift)·scale, by numbers that its spec holds (`Network.inputs`), or else
by numbers of the data set, of a kind that the spec names (`Network.scaling`).

"channel"      shift and 1/scale: mean and deviation of each channel over the training images
"pixel_mean"   shift: the mean training image, pixel by pixel; scale 1/255 (Keras' ResNet example)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..arrays import Array
from ..errors import InputError
from ..spec.network import Inputs, Network
from .dataset import Dataset


class Scaling(NamedTuple):
    """shift, in units of 0 … 255, and scale: (C, 1, 1) or (C, H, W), in the dtype of the inputs."""

    shift: Array
    scale: Array

    def __call__(self, pixels: Array) -> Array:
        """pixels: N×C×H×W, 0 … 255, whole or not → inputs of the same shape."""
        inputs: Array = (pixels.astype(self.shift.dtype) - self.shift) * self.scale
        return inputs


#: Usual inputs of networks that others trained on images with 1 or 3 channels, pixels from 0 to 255; by option.
USUAL = {
    "unit": lambda channels: Inputs((0.0,) * channels, (1.0 / 255.0,) * channels),
    "pixels": lambda channels: Inputs((0.0,) * channels, (1.0,) * channels),
    "imagenet": lambda channels: _imagenet(channels),
}

#: ImageNet's mean and deviation of pixels/255, as torchvision's networks take them.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def _imagenet(channels: int) -> Inputs:
    if channels != 3:
        raise InputError(f"--inputs imagenet: is for images of 3 channels, the network takes {channels}")
    mean, deviation = IMAGENET
    return Inputs(tuple(255.0 * m for m in mean), tuple(1.0 / (255.0 * d) for d in deviation))


def numbers_of(scaling: Scaling) -> Inputs:
    """The scaling as numbers for a spec."""
    return Inputs(tuple(map(float, scaling.shift.ravel())), tuple(map(float, scaling.scale.ravel())))


def scaling_of(network: Network, dataset: Dataset, *, images: int, dtype: str) -> Scaling:
    """What the network takes: the numbers of its spec, else those of the data set. images: as in `standardisation`."""
    if network.inputs is None:
        return standardisation(dataset, network.scaling, images=images, dtype=dtype)
    shift, scale = (np.array(numbers, dtype) for numbers in (network.inputs.shift, network.inputs.scale))
    channels = network.input_shape[0]
    shape = (channels, 1, 1) if len(shift) == channels else network.input_shape
    return Scaling(shift.reshape(shape), scale.reshape(channels, 1, 1))


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
