"""How pixels become inputs, as an option says it and in words (`spec.network.Inputs`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..arrays import Array
from ..data.standardise import USUAL, Scaling
from ..errors import InputError
from ..output.texts import read_json
from ..spec.network import Inputs, Network
from .trained import Trained


def inputs_of(option: str, network: Network) -> Inputs | None:
    """What `--inputs` means for a network: None for "set", the data set's own numbers. InputError for anything unknown."""
    channels = network.input_shape[0]
    if option == "set":
        return None
    if option in USUAL:
        return USUAL[option](channels)
    if not option.endswith(".json"):
        raise InputError(f"--inputs {option}: is not known; allowed are set, {', '.join(USUAL)}, and a .json file")
    try:
        found = read_json(Path(option))
        return Inputs(*(_per_channel(found[name], channels) for name in ("shift", "scale")))
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise InputError(f"--inputs {option}: no JSON object with the lists shift and scale ({error})") from error


def _per_channel(numbers: float | Sequence[float], channels: int) -> tuple[float, ...]:
    """One number counts for every channel."""
    return (float(numbers),) * channels if isinstance(numbers, int | float) else tuple(map(float, numbers))


def in_words(scaling: Scaling) -> str:
    """ "(pixel − 33.3)·0.0127", with a list where channels differ and a mean where every pixel has its own."""
    return f"(pixel − {_listed(scaling.shift)})·{_listed(scaling.scale)}"


def sentence(trained: Trained, name: str, scaling: Scaling) -> str:
    """Which scaling of the images of the set `name` is used, as numbers, and who says so."""
    why = f"that of the training images of {name}"
    if trained.network.inputs is not None:
        why = "the network's own"
    elif trained.data != name:
        why += ", because neither the network nor --inputs says"
    return f"inputs: {in_words(scaling)}; this scaling is {why}"


def _listed(numbers: Array) -> str:
    flat = numbers.reshape(len(numbers), -1)
    shown = [f"{mean:.4g}" for mean in flat.mean(axis=1, dtype=np.float64)]
    text = shown[0] if len(set(shown)) == 1 else f"({', '.join(shown)})"
    return text if flat.shape[1] == 1 else f"{text} on average, a number a pixel"
