"""Where J falls from a stationary point with an open question: solutions are deterministic jointly in W and θ (SPEC O10).

At a stationary point with 0 < θ < 1 of a gate, W its block of closing weights and λ > 0 on all of W, the Hessian of J along θ
and along W/‖W‖ is [[0, b], [b, h]] with b = −λ‖W‖/θ. It is indefinite: the point is a strict saddle.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..errors import InputError
from ..formulas.scalar import finite, positive, probability, single


class Escape(NamedTuple):
    """The direction in which J falls fastest within the plane of θ and W/‖W‖, a unit vector, and J's curvature along it.

    theta, weights: the direction's components along θ and along W/‖W‖; its negative serves as well.
    curvature: the smaller eigenvalue of the plane's Hessian, below 0; the whole Hessian has one at most as large.
    """

    theta: float
    weights: float
    curvature: float


def mixed_derivative(theta: float, norm: float, decay: float) -> float:
    """b = −λ‖W‖/θ, the derivative of J in θ and along W/‖W‖ at a stationary point.

    theta: θ strictly between 0 and 1. norm: ‖W‖ > 0. decay: λ > 0.

    InputError for anything else: with λ = 0 or W = 0 it vanishes, and the point need not be a strict saddle.
    """
    share = single("theta", theta, probability)
    if share in (0.0, 1.0):
        raise InputError(f"theta: got {share}; numbers strictly between 0 and 1 are allowed")
    return -single("decay", decay, positive) * single("norm", norm, positive) / share


def escape(theta: float, norm: float, decay: float, curvature: float) -> Escape:
    """How to leave a stationary point at which θ lies inside (0, 1).

    theta, norm, decay: as for `mixed_derivative`.
    curvature: h, the second derivative of J along W/‖W‖, decay included.

    InputError as for `mixed_derivative`, and for a curvature that is not finite.

    >>> from refprune.gates import saddle
    >>> saddle.escape(0.5, 1.0, 0.25, 0.0).curvature
    -0.5
    """
    b, h = mixed_derivative(theta, norm, decay), single("curvature", curvature, finite)
    root = float(np.hypot(h, 2.0 * b))
    lowest = 0.5 * (h - root) if h <= 0.0 else -2.0 * b * (b / (h + root))  # without cancellation
    length = float(np.hypot(b, lowest))
    return Escape(b / length, lowest / length, lowest)
