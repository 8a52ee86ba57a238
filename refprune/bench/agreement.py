"""Do two implementations do the same work? Bounds that cost little beside what is timed.

Rounding: a sum of n products in precision u is off by about u√n of its size, errors being independent; through a network the
squares add up, r = FACTOR·u·√(Σ n) over all its sums. So far may an output be off, relative, in the L2 norm. A gradient also
depends on choices: of the ReLUs and pools about the share r stands so near to its kink that rounding decides, and each of m
units moves the gradient's norm by about 1/√m of it: together √r. Hence r + √r for gradients (*derived here*, an estimate and no
certain bound). Where the oracle is cheap enough, `entrywise` measures the tolerance instead (E2).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from ..arrays import Array, Arrays
from ..passes.batch_loss import BatchLoss
from ..rounding.tolerance import NETWORK_FACTOR, UNIT, network_tolerance
from ..spec.layers import Conv, Dense
from ..spec.network import Network

FACTOR = NETWORK_FACTOR
ENTRYWISE_IMAGES, ENTRYWISE_ATTEMPTS = 8, 4
ENTRYWISE_MACS = 5_000_000  # of one image: above, E2 costs too much


class Agreement(NamedTuple):
    """error: the largest deviation over its bound, +inf if one is not finite; where: in which tensor; bound: relative, in the
    L2 norm, None where every entry has its own."""

    error: float
    where: str
    method: str
    bound: float | None = None

    @property
    def holds(self) -> bool:
        return self.error <= 1.0


def worst(agreements: list[Agreement]) -> Agreement:
    """The largest error of several comparisons; the methods of all."""
    top = max(agreements, key=lambda a: a.error)
    return top._replace(method="; ".join(dict.fromkeys(a.method for a in agreements)))


def sums(products: float, dtype: str) -> float:
    """r for sums of so many products in all."""
    return FACTOR * UNIT[dtype] * math.sqrt(products)


def network_sums(network: Network, images: int) -> tuple[int, int]:
    """Σ n over the layers for one output; and for one gradient: forward, backward, and the sums over images and pixels."""
    forward = backward = 0
    for layer, shape in network.placed():
        if isinstance(layer, (Dense, Conv)):
            out = layer.output_shape(shape)
            forward += layer.macs(shape) // math.prod(out)
            backward += layer.macs(shape) // math.prod(shape) + images * math.prod(out[1:])
    return forward, forward + backward


def in_norm(mine: Mapping[str, Array], theirs: Mapping[str, Array], bound: float, method: str) -> Agreement:
    """Relative L2 distance of every tensor against `bound`."""
    found = []
    for name, b in theirs.items():
        a = np.asarray(mine[name], dtype=np.float64)
        size = float(np.linalg.norm(b.astype(np.float64)))
        error = float(np.linalg.norm(a - b)) / (bound * size) if size else float(np.abs(a).max(initial=0.0) > 0) * np.inf
        found.append(Agreement(error if math.isfinite(error) else math.inf, name, method, bound))
    return worst(found)


def outputs(network: Network, mine: Array, theirs: Array, dtype: str) -> Agreement:
    """Logits of the same batch."""
    bound = sums(network_sums(network, len(mine))[0], dtype)
    return in_norm({"output": mine}, {"output": theirs}, bound, "relative L2 distance, bound from rounding")


def displacements(
    network: Network, images: int, mine: Mapping[str, Array], theirs: Mapping[str, Array], dtype: str
) -> Agreement:
    """What training steps changed, tensor by tensor."""
    r = sums(network_sums(network, images)[1], dtype)
    return in_norm(mine, theirs, r + math.sqrt(r), "relative L2 distance, bound from rounding and kinks")


def entrywise(loss: BatchLoss, theirs: Callable[[Array, Array], Arrays], dtype: str) -> Agreement | None:
    """Loss, output and weight gradients of a few images within E2's tolerance; None where the network is too large for it.

    theirs(x, labels): {"loss", "output" and every parameter: value or gradient}. Where they differ, the next images are taken,
    up to ENTRYWISE_ATTEMPTS times: a ReLU or pool may stand so near to its kink that rounding decides. A mistake stays.
    """
    if sum(layer.macs(shape) for layer, shape in loss.network.placed()) > ENTRYWISE_MACS:
        return None
    gates = np.ones(loss.network.gate_count)
    found = None
    for start in range(0, len(loss.x), ENTRYWISE_IMAGES)[:ENTRYWISE_ATTEMPTS]:
        images = slice(start, start + ENTRYWISE_IMAGES)
        part = dataclasses.replace(loss, x=loss.x[images], target=loss.target[images])
        evaluation = part.evaluate(gates)
        mine = part.gradients(evaluation).params | {"loss": evaluation.loss, "output": evaluation.tape.output}
        other = theirs(part.x, part.target)
        t = network_tolerance(part, gates, unit=UNIT[dtype])
        bounds = {"loss": t.loss, "output": t.output} | t.params
        deviations = {n: np.abs(np.asarray(mine[n], np.float64) - other[n]) / b for n, b in bounds.items()}
        errors = {n: float(np.max(np.where(np.isnan(d), np.inf, d))) for n, d in deviations.items()}
        name = max(errors, key=lambda n: errors[n])
        found = Agreement(errors[name], name, f"every entry within the measured tolerance ({len(part.x)} images)")
        if found.holds:
            break
    return found
