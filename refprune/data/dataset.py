"""A labelled image set in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

Labelled = tuple[NDArray[np.uint8], NDArray[np.int64]]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A labelled image set in two parts.

    train_images: uint8 (N, C, H, W); train_labels: int64 (N,), values 0..classes−1; test_images (M, C, H, W) and
    test_labels (M,) likewise.
    """

    name: str
    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]
    classes: int


def check_labels(labels: list[int], path: Path, classes: int) -> NDArray[np.int64]:
    if not labels:
        raise DataError(f"{path}: holds no labels")
    for index, label in enumerate(labels):
        if not 0 <= label < classes:
            raise DataError(f"{path}: label {index} is {label}; allowed is 0 to {classes - 1}")
    return np.array(labels, np.int64)
