"""C(W, θ) = E_Ξ[c(W, Ξ)] and its gradient with respect to θ: exact by enumeration, and estimators (SPEC O1-O5).

An estimator takes what a training step knows of its batch (`Sampled`) and returns an `Estimate`: one number per gate, and the
cost of the passes that it ran itself. It draws no random numbers: the uniform numbers are part of `Sampled` (O8).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from ..arrays import Array, Arrays
from ..errors import InputError
from ..passes.batch_loss import BatchLoss, Evaluation

MAX_ENUMERATED_GATES = 20


class Estimate(NamedTuple):
    """gradient: (G,) estimate of ∂C/∂θ; macs: multiply-accumulates of the estimator's own passes, for the whole batch."""

    gradient: Array
    macs: int


class Sampled(NamedTuple):
    """A batch at the gates that were sampled for it.

    loss: c of the batch, as a function of the gates.
    base: its evaluation at the sampled gates Ξ = 1[v < θ], which the training step makes anyway.
    gate_gradient: (G,) ∂c/∂ξ at Ξ, from the backward pass of the training step; only `taylor` reads it.
    theta: (G,) θ.
    uniform: (K, G) numbers v ∈ [0, 1); the first row made Ξ.
    """

    loss: BatchLoss
    base: Evaluation
    gate_gradient: Array
    theta: Array
    uniform: Array


def sample(theta: Array, uniform: Array) -> Array:
    """Ξ ~ Bern(θ) from uniform numbers v: ξ = 1 if v < θ, else 0 (O8). θ = 0 is never open, θ = 1 always.

    theta: (G,) in [0, 1].
    uniform: (…, G) in [0, 1).

    Returns float64 zeros and ones, (…, G).

    >>> import numpy as np
    >>> from refprune.gates import estimators
    >>> estimators.sample(np.array([0.0, 0.5, 1.0]), np.array([0.0, 0.4, 0.99])).tolist()
    [0.0, 1.0, 1.0]
    """
    return (uniform < theta).astype(np.float64)


# --------------------------------------------------------------------------------------------------------------------
# Enumeration: the oracle


def enumerate_gates(theta: Array) -> Iterator[tuple[Array, float]]:
    """All 2^G gate vectors with their probabilities; those of probability 0 too. InputError beyond G = 20."""
    if theta.size > MAX_ENUMERATED_GATES:
        raise InputError(f"theta: enumeration takes at most {MAX_ENUMERATED_GATES} gates, got {theta.size}")
    for code in range(2**theta.size):
        gates = ((code >> np.arange(theta.size)) & 1).astype(np.float64)
        yield gates, float(np.prod(np.where(gates == 1.0, theta, 1.0 - theta)))


def exact_expectation(loss: BatchLoss, theta: Array) -> float:
    """C(W, θ) = Σ_Ξ p(Ξ|θ) c(W, Ξ), by enumeration of all 2^G gate vectors (O1).

    loss: c(W, ·) on one batch.
    theta: (G,) in [0, 1], G ≤ 20.

    InputError for more gates.

    >>> import numpy as np
    >>> from refprune import ORACLE, BatchLoss, Dense, Network, Section
    >>> from refprune.gates import estimators
    >>> network = Network((2,), (Section((Dense(2, bias=False),)), Dense(2, bias=False)))
    >>> params = {"section1.dense1.weight": np.eye(2), "dense1.weight": np.eye(2)}
    >>> loss = BatchLoss(network, ORACLE, params, np.array([[1.0, 0.0]]), np.array([0]))
    >>> round(estimators.exact_expectation(loss, np.array([0.25])), 6)
    0.266678
    """
    return sum(p * float(loss.evaluate(gates).loss) for gates, p in enumerate_gates(theta) if p > 0)


def exact_theta_gradient(loss: BatchLoss, theta: Array) -> Array:
    """∂C/∂θ_g = E[c | ξ_g = 1] − E[c | ξ_g = 0], by enumeration of all 2^G gate vectors (O2). It also holds at θ_g = 0 and 1.

    loss: c(W, ·) on one batch.
    theta: (G,) in [0, 1], G ≤ 20.

    Returns (G,). InputError for more gates.

    >>> import numpy as np
    >>> from refprune import ORACLE, BatchLoss, Dense, Network, Section, exact_theta_gradient
    >>> network = Network((2,), (Section((Dense(2, bias=False),)), Dense(2, bias=False)))
    >>> params = {"section1.dense1.weight": np.eye(2), "dense1.weight": np.eye(2)}
    >>> loss = BatchLoss(network, ORACLE, params, np.array([[1.0, 0.0]]), np.array([0]))
    >>> exact_theta_gradient(loss, np.array([0.25])).round(6).tolist()
    [-0.186334]
    """
    return _enumerated_theta_gradient(loss, theta).gradient


def _enumerated_theta_gradient(loss: BatchLoss, theta: Array) -> Estimate:
    gradient, macs = np.zeros(theta.size), 0
    for gates, _ in enumerate_gates(theta):
        evaluation = loss.evaluate(gates)
        factors = np.where(gates == 1.0, theta, 1.0 - theta)
        others = np.array([np.prod(np.delete(factors, g)) for g in range(theta.size)])
        gradient += (2.0 * gates - 1.0) * others * float(evaluation.loss)
        macs += evaluation.tape.macs
    return Estimate(gradient, macs)


def exact_weight_gradient(loss: BatchLoss, theta: Array) -> Arrays:
    """∂C/∂W by enumeration (O3); each gate vector contributes with its probability."""
    total = {name: np.zeros(p.shape) for name, p in loss.params.items()}
    for gates, probability in enumerate_gates(theta):
        if probability > 0:
            gradients = loss.gradients(loss.evaluate(gates)).params
            total = {name: total[name] + probability * gradients[name] for name in total}
    return total


# --------------------------------------------------------------------------------------------------------------------
# Estimators (O5)


def exact(sampled: Sampled) -> Estimate:
    """2^G passes; G ≤ 20. Zero variance in Ξ."""
    return _enumerated_theta_gradient(sampled.loss, sampled.theta)


def paired(sampled: Sampled) -> Estimate:
    """For each gate, c with ξ_g = 1 minus c with ξ_g = 0, the others as sampled: unbiased, also at θ_g ∈ {0, 1}.

    Each flip runs only the network from the gate's chain element on; G extra partial forward passes.
    """
    loss, base = sampled.loss, sampled.base
    gates, macs = base.tape.gates, 0
    gradient = np.zeros(sampled.theta.size)
    for group in loss.network.gate_groups:
        for g in range(group.start, group.stop):
            flipped = gates.copy()
            flipped[g] = 1.0 - gates[g]
            other = loss.evaluate(flipped, after=base, position=group.position)
            gradient[g] = (2.0 * gates[g] - 1.0) * (float(base.loss) - float(other.loss))
            macs += other.tape.macs
    return Estimate(gradient, macs)


def reinforce(sampled: Sampled) -> Estimate:
    """mean over K samples of (c(Ξ_k) − b_k)(ξ − θ)/(θ(1−θ)), b_k the mean of the others' c (0 for K = 1): unbiased.

    uniform: (K, G), whose first row made the base sample; K − 1 extra forward passes. θ strictly inside (0, 1).
    """
    theta = sampled.theta
    _require_interior(theta, "reinforce")
    samples = sample(theta, sampled.uniform)
    extra = [sampled.loss.evaluate(gates) for gates in samples[1:]]
    c = np.array([float(sampled.base.loss)] + [float(e.loss) for e in extra])
    k = len(c)
    baseline = (c.sum() - c) / (k - 1) if k > 1 else np.zeros(1)
    score = (samples - theta) / (theta * (1.0 - theta))
    return Estimate(((c - baseline)[:, None] * score).mean(axis=0), sum(e.tape.macs for e in extra))


def arm(sampled: Sampled) -> Estimate:
    """(c(b̃) − c(b))(v − ½)/(θ(1−θ)) with b = 1[v < θ], b̃ = 1[v > 1−θ]: unbiased, one extra forward pass. θ in (0, 1)."""
    theta, v = sampled.theta, sampled.uniform[0]
    _require_interior(theta, "arm")
    other = sampled.loss.evaluate(_antithetic(theta, v))
    difference = float(other.loss) - float(sampled.base.loss)
    return Estimate(difference * (v - 0.5) / (theta * (1.0 - theta)), other.tape.macs)


def disarm(sampled: Sampled) -> Estimate:
    """½(c(b) − c(b̃))(b − b̃)/min(θ, 1−θ), b and b̃ as in `arm`: unbiased, one extra forward pass. θ in (0, 1)."""
    theta, v = sampled.theta, sampled.uniform[0]
    _require_interior(theta, "disarm")
    b, b_anti = sample(theta, v), _antithetic(theta, v)
    other = sampled.loss.evaluate(b_anti)
    difference = float(sampled.base.loss) - float(other.loss)
    return Estimate(0.5 * difference * (b - b_anti) / np.minimum(theta, 1.0 - theta), other.tape.macs)


def taylor(sampled: Sampled) -> Estimate:
    """∂c/∂ξ at the sampled Ξ, from the backward pass that is there anyway: biased; exact when c is affine in each ξ_g.

    The base evaluation must have computed closed paths too (`run_closed`). With gate_place "preactivation" the derivative is
    that of a(ξ·z), which for ReLU at ξ = 0 is 0 on the kink's declared side.
    """
    return Estimate(np.array(sampled.gate_gradient, dtype=np.float64), 0)


def _antithetic(theta: Array, v: Array) -> Array:
    return (v > 1.0 - theta).astype(np.float64)


def _require_interior(theta: Array, name: str) -> None:
    outside = np.flatnonzero((theta <= 0.0) | (theta >= 1.0))
    if outside.size:
        raise InputError(
            f"theta: {name} needs every θ strictly between 0 and 1, but gate {outside[0]} has {theta[outside[0]]}; "
            "use a floor, or the paired estimator"
        )


Estimator = Callable[[Sampled], Estimate]


class Kind(NamedTuple):
    """An estimator with what the training step must know: does it need closed paths, θ inside (0, 1), K samples?"""

    function: Estimator
    needs_closed_paths: bool = False
    needs_interior: bool = False
    many_samples: bool = False


ESTIMATORS: dict[str, Kind] = {
    "exact": Kind(exact),
    "paired": Kind(paired),
    "reinforce": Kind(reinforce, needs_interior=True, many_samples=True),
    "arm": Kind(arm, needs_interior=True),
    "disarm": Kind(disarm, needs_interior=True),
    "taylor": Kind(taylor, needs_closed_paths=True),
}
