"""Random crops and flips of images. Same contract as `refprune.oracle.crop_flip.crop_flip`."""

from __future__ import annotations

import numpy as np

from ...arrays import Array
from ...oracle import crop_flip as crop_flip_oracle
from ..machine.kernel import ELEMENT_GRAIN, FLOATS, index, kernel, reader, ready, share, writer
from ..machine.workspace import Workspace


@kernel(lambda f: (reader(f, 4), reader(index, 2), index, writer(f, 4)))
def _crop_flip(part: int, parts: int, x: Array, crops: Array, padding: int, y: Array) -> None:
    channels, height, width = x.shape[1], x.shape[2], x.shape[3]
    for n in range(part * len(x) // parts, (part + 1) * len(x) // parts):
        down, right, flip = crops[n, 0] - padding, crops[n, 1] - padding, crops[n, 2]
        y[n] = 0
        for c in range(channels):
            for h in range(max(0, -down), min(height, height - down)):
                for w in range(max(0, -right), min(width, width - right)):
                    y[n, c, h, width - 1 - w if flip else w] = x[n, c, h + down, w + right]


def crop_flip(workspace: Workspace, x: Array, crops: Array, *, padding: int) -> Array:
    """Same contract as `refprune.oracle.crop_flip.crop_flip`."""
    if not (x.ndim == 4 and x.dtype in FLOATS and crops.shape == (len(x), 3) and padding >= 0):
        return crop_flip_oracle.crop_flip(x, crops, padding=padding)
    y = workspace.empty(x.shape, x.dtype)
    parts = share(workspace.threads, x.size, ELEMENT_GRAIN)
    _crop_flip[x.dtype](parts, ready(x), ready(np.asarray(crops, dtype=np.intp)), padding, y)
    return y
