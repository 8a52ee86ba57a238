"""Running statistics of batch normalisation: their update in training, their average over batches at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..arrays import Array, Arrays
from ..spec.network import Network


def update_statistics(network: Network, statistics: Arrays, batch: Mapping[str, tuple[Array, Array, int]]) -> Arrays:
    """Running statistics after one batch: `batch` is `Tape.batch_statistics`; norms that are not in it keep theirs (N4)."""
    updated = dict(statistics)
    for layer in network.norms:
        if layer.name in batch:
            mean, variance, count = batch[layer.name]
            if layer.running_variance == "unbiased":
                variance = variance * (count / (count - 1))
            share = layer.momentum if layer.momentum_of == "batch" else 1.0 - layer.momentum
            for key, value in (("mean", mean), ("variance", variance)):
                old = statistics[f"{layer.name}.{key}"]
                updated[f"{layer.name}.{key}"] = ((1.0 - share) * old + share * value).astype(old.dtype, copy=False)
    return updated


def average_statistics(
    network: Network, statistics: Arrays, batches: Sequence[Mapping[str, tuple[Array, Array, int]]]
) -> Arrays:
    """Running statistics re-estimated as plain averages over batches, for evaluation once θ is final (N4).

    A norm is averaged over the batches that hold it; one that none holds (its section was always closed) keeps its own.
    """
    averaged = dict(statistics)
    for layer in network.norms:
        held = [batch[layer.name] for batch in batches if layer.name in batch]
        if held:
            unbiased = layer.running_variance == "unbiased"
            variances = [v * (n / (n - 1) if unbiased else 1.0) for _, v, n in held]
            for key, values in (("mean", [m for m, _, _ in held]), ("variance", variances)):
                old = statistics[f"{layer.name}.{key}"]
                averaged[f"{layer.name}.{key}"] = np.mean(values, axis=0, dtype=np.float64).astype(old.dtype)
    return averaged
