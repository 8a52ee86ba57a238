"""Random crops and flips of training images: their numbers, and the oracle of `Backend.crop_flip`.

All randomness is an input: image i of the data set gets in epoch e row i of the uniforms (N, 3) of the stream
("augment", e), whatever the batch it is in, so that a resumed run or another framework sees the same images.
"""

from __future__ import annotations

import numpy as np

from ..arrays import Array
from ..streams import Streams


def draw_crops(seed: int, epoch: int, count: int, padding: int) -> Array:
    """(N, 3) integers, a row per image: first row and first column of its crop, each in 0 … 2·padding, and 1 for a flip."""
    uniform = Streams(seed).uniform("augment", epoch, (count, 3))
    return np.asarray(uniform * (2 * padding + 1, 2 * padding + 1, 2), dtype=np.intp)


def crop_flip(x: Array, crops: Array, *, padding: int) -> Array:
    """Each image, padded with zeros on all sides, cut back to its size at its crop, and mirrored left to right if so drawn.

    x N×C×H×W, standardised, so that zero is the mean of a channel; crops as from `draw_crops`.
    y[n, c, h, w] = x̂[n, c, h + row, w' + column] with w' = W − 1 − w for a flip and w otherwise (x̂: x padded).
    """
    height, width = x.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    y = np.empty_like(x, order="C")
    for image, (row, column, flip) in enumerate(crops):
        cut = padded[image, :, row : row + height, column : column + width]
        y[image] = cut[:, :, ::-1] if flip else cut
    return y
