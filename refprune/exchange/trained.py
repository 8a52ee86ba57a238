"""A network with weights."""

from __future__ import annotations

import hashlib
import json
from typing import NamedTuple

import numpy as np

from ..arrays import Arrays
from ..spec import json_form
from ..spec.network import Network

#: Of .npz files that hold their spec.
NPZ_FORMAT = "refprune-weights-1"


class Trained(NamedTuple):
    """A network with weights.

    data: the set it is for, if the folder it comes from says so.
    training_images: the end of the slice of that set which it was trained on, from the back if negative; None: all of it.
    said: what was assumed when it was read, a sentence each.
    """

    network: Network
    params: Arrays
    statistics: Arrays
    data: str | None = None
    training_images: int | None = None
    said: tuple[str, ...] = ()


def digest(trained: Trained) -> str:
    """SHA-256 of the spec and every array."""
    found = hashlib.sha256(json.dumps(json_form.to_json(trained.network), sort_keys=True).encode())
    for name, array in sorted((trained.params | trained.statistics).items()):
        found.update(f"{name} {array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return found.hexdigest()
