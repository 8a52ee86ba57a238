"""Features of any named point of a network, and how similar all points are to each other (SPEC K2, K4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from ..arrays import Array, Arrays
from ..backend import Backend
from ..errors import InputError
from ..formulas.cka import FEWEST, Kernel, MiniBatches, Sigma, Similarities, median_distance
from ..passes.finite import check_finite
from ..passes.tape import forward
from ..spec.layers import Activation, Section
from ..spec.network import Network


def points(network: Network) -> list[str]:
    """Names of all points in data-flow order: a layer's is behind it, a section's behind its ρ."""
    found: list[str] = []
    for layer in network.layers:
        parts = (*layer.shortcut, *layer.path) if isinstance(layer, Section) else ()
        found += [part.name for part in (*parts, layer) if not (isinstance(part, Activation) and part.kind == "identity")]
    return found


def checked_points(network: Network, names: Sequence[str]) -> list[str]:
    """`names` as a list. InputError for an empty one, one given twice, or no point of the network."""
    known = points(network)
    strange = [name for name in names if name not in known]
    if not names or strange or len(set(names)) < len(names):
        what = f"{strange[0]!r} is none" if strange else "each once, at least one"
        raise InputError(f"--points: {what}; the network's points are {', '.join(known)}")
    return list(names)


def batches(
    network: Network,
    backend: Backend,
    params: Mapping[str, Array],
    statistics: Mapping[str, Array],
    x: Array,
    names: Sequence[str],
    *,
    batch_size: int = 250,
) -> Iterator[Arrays]:
    """For every batch of x (N×input_shape) in eval mode: name → features, b×p, an example a row. The last may be smaller.

    InputError for names that are no points.
    """
    wanted = checked_points(network, names)
    for start in range(0, len(x), batch_size):
        batch, seen = x[start : start + batch_size], dict[str, Array]()

        def look(name: str, y: Array, seen: Arrays = seen) -> None:
            if name in wanted:
                seen[name] = y.reshape(len(y), -1).copy()

        logits = forward(network, backend, params, batch, statistics=statistics, observe=look).output
        check_finite("the logits", logits, network, backend, params, statistics, batch)
        yield {name: seen[name] for name in wanted}


def collect(
    network: Network,
    backend: Backend,
    params: Mapping[str, Array],
    statistics: Mapping[str, Array],
    x: Array,
    names: Sequence[str],
    *,
    batch_size: int = 250,
) -> Arrays:
    """Name → features of all of x, N×p. InputError as in `batches`."""
    parts = list(batches(network, backend, params, statistics, x, names, batch_size=batch_size))
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def similarities(
    network: Network,
    backend: Backend,
    params: Mapping[str, Array],
    statistics: Mapping[str, Array],
    x: Array,
    names: Sequence[str],
    *,
    kernel: Kernel = "linear",
    batch_size: int = 250,
    advance: Callable[[int], None] = lambda done: None,
) -> Similarities:
    """CKA of all pairs of points: the ratio of means of unbiased HSIC over mini-batches (K4), in one batch's memory.

    Images that fill no whole batch are left out, so that every batch counts the same. kernel "rbf": each point's σ is the
    median distance in the first batch, one for all batches. InputError: a batch of fewer than 4 images, or of more than all.
    """
    if len(x) < FEWEST["unbiased"]:
        raise InputError(f"--score-images: unbiased CKA takes at least {FEWEST['unbiased']} images, got {len(x)}")
    if not FEWEST["unbiased"] <= batch_size <= len(x):
        raise InputError(f"--batch-size: must lie in {FEWEST['unbiased']} … {len(x)} images, got {batch_size}")
    product = backend.cross_product
    sigma: Sigma = None
    if kernel == "rbf":
        first = collect(network, backend, params, statistics, x[:batch_size], names, batch_size=batch_size)
        sigma = [median_distance(f, product=product) for f in first.values()]
    stream = MiniBatches(kernel=kernel, sigma=sigma, product=product)
    whole = len(x) // batch_size * batch_size
    for number, seen in enumerate(batches(network, backend, params, statistics, x[:whole], names, batch_size=batch_size)):
        stream.add(*seen.values())
        advance((number + 1) * batch_size)
    return stream.matrix()
