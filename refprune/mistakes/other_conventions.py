"""Mistakes of implementations with automatic differentiation, forward and backward wrong together, and of their training.

refprune's own audit is not tested with these: most are right mathematics for another convention.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..formulas import cka, hyper_prior
from ..gates import estimators
from ..oracle import layers
from .cost import terms_put
from .planting import Mistake, gradient, instead, options, output, result

Sides = tuple[tuple[int, int], tuple[int, int]]


def _one_sided(padding: Sides) -> Sides:
    (top, bottom), (left, right) = padding
    return (top + bottom, 0), (left + right, 0)


def _nesterov(w: Any, v: Any, g: Any, *, learning_rate: float, momentum: float, decay: float) -> Any:
    velocity = momentum * v + (g + decay * w)
    return w - learning_rate * (g + decay * w + momentum * velocity), velocity


def _decoupled(w: Any, v: Any, g: Any, *, learning_rate: float, momentum: float, decay: float) -> Any:
    velocity = momentum * v + g
    return w * (1.0 - learning_rate * decay) - learning_rate * velocity, velocity


def _rate_in_velocity(w: Any, v: Any, g: Any, *, learning_rate: float, momentum: float, decay: float) -> Any:
    velocity = momentum * v + learning_rate * (g + decay * w)
    return w - velocity, velocity


def _dampened(w: Any, v: Any, g: Any, *, learning_rate: float, momentum: float, decay: float) -> Any:
    """PyTorch's dampening, equal to the momentum: the first step has none."""
    first = not np.any(v)
    velocity = momentum * v + (1.0 if first else 1.0 - momentum) * (g + decay * w)
    return w - learning_rate * velocity, velocity


def _penalty(slope: float) -> Any:
    return lambda f: lambda theta, log_gamma: f(theta, log_gamma) + (slope - 1.0) * -np.asarray(log_gamma) * theta


def _baseline(change: Any) -> Any:
    """Reinforce with another baseline, change(losses (K,)) → (K,) or a number, for K > 1."""

    def wrong(f: Any) -> Any:
        def g(sampled: Any) -> Any:
            theta, samples = sampled.theta, estimators.sample(sampled.theta, sampled.uniform)
            c = np.array([float(sampled.loss.evaluate(xi).loss) for xi in samples])
            score = (samples - theta) / (theta * (1.0 - theta))
            baseline = change(c) if len(c) > 1 else 0.0
            return f(sampled)._replace(gradient=((c - baseline)[:, None] * score).mean(axis=0))

        return g

    return wrong


def _biased_in_batches(f: Any) -> Any:
    """What each batch's biased CKA is, noted when it is added."""

    def wrong(self: Any, x: Any, y: Any) -> None:
        f(self, x, y)
        self.noted = [*getattr(self, "noted", []), cka.cka(x, y, estimator="biased").value]

    return wrong


def _mean_of_batches(f: Any) -> Any:
    def wrong(self: Any) -> Any:
        s = f(self)
        return cka.Similarity(float(np.mean(self.noted)), "ok", s.hsic_xy, s.hsic_xx, s.hsic_yy)

    return wrong


STRAIGHT = instead(estimators.taylor)

#: Of estimators of ∂C/∂θ and of how gates are sampled.
ESTIMATORS: tuple[Mistake, ...] = (
    Mistake(
        "straight-through taken for an unbiased estimator",
        "gates.estimators:reinforce",
        STRAIGHT,
        ("O5",),
        also=tuple((f"gates.estimators:{name}", STRAIGHT) for name in ("arm", "disarm", "paired")),
    ),
    Mistake(
        "one uniform number for all gates",
        "gates.estimators:sample",
        lambda f: lambda t, v: f(t, np.broadcast_to(v[..., :1], v.shape)),
        ("O1", "O5"),
    ),
    Mistake(
        "baseline added, not subtracted",
        "gates.estimators:reinforce",
        _baseline(lambda c: (c - c.sum()) / (len(c) - 1)),
        ("O5",),
    ),
    Mistake("no baseline", "gates.estimators:reinforce", _baseline(lambda c: 0.0), ("O5",)),
)

OTHERS: tuple[Mistake, ...] = (
    *ESTIMATORS,
    Mistake(
        "gate forgotten, forward and backward",
        "oracle.layers:gate",
        output(lambda y, x, g: x),
        ("N1", "G1"),
        also=(("oracle.layers:gate_vjp", lambda f: lambda s, dy: (dy, np.zeros_like(f(s, dy)[1]))),),
    ),
    Mistake("no gradient for the gate", "oracle.layers:gate_vjp", gradient(1, lambda g, s, dy: np.zeros_like(g)), ("G1",)),
    Mistake(
        "gradient of the gate of one example", "oracle.layers:gate_vjp", gradient(1, lambda g, s, dy: g * len(dy)), ("G1",)
    ),
    Mistake("sign of the gate's gradient", "oracle.layers:gate_vjp", gradient(1, lambda g, s, dy: -g), ("G1", "O2")),
    Mistake(
        "penalty without its constant",
        "formulas.hyper_prior:penalty",
        instead(lambda t, g: -np.asarray(t) * np.asarray(g)),
        ("F3",),
    ),
    Mistake(
        "log γ to the base 10",
        "formulas.hyper_prior:penalty",
        lambda f: lambda t, g: f(t, np.asarray(g) / np.log(10.0)),
        ("F3",),
    ),
    Mistake("penalty's slope twice", "formulas.hyper_prior:penalty", _penalty(2.0), ("F3",)),
    Mistake(
        "γ−1 for log γ in the slope",
        "formulas.hyper_prior:penalty_slope",
        instead(lambda g: -np.expm1(np.minimum(g, 700.0))),
        ("F3",),
    ),
    Mistake(
        "prior's KL at π = θ",
        "formulas.hyper_prior:penalty",
        instead(lambda t, g: hyper_prior.log_density(t, g) * -1.0),
        ("F2", "F3"),
    ),
    Mistake(
        "sum for mean in the cross-entropy", "oracle.layers:cross_entropy", options(reduction=lambda r: "sum"), ("O1", "G1")
    ),
    Mistake(
        "mean for sum in the cross-entropy", "oracle.layers:cross_entropy", options(reduction=lambda r: "mean"), ("O1", "G1")
    ),
    Mistake(
        "squared error: mean over all entries", "oracle.layers:mean_squared_error", options(reduction=lambda r: "mean"), ("G1",)
    ),
    Mistake(
        "squared error: mean over the batch",
        "oracle.layers:mean_squared_error",
        options(reduction=lambda r: "batch_mean"),
        ("G1",),
    ),
    Mistake("squared error: sum", "oracle.layers:mean_squared_error", options(reduction=lambda r: "sum"), ("G1",)),
    Mistake("batch-norm without eps", "oracle.layers:batch_norm", options(eps=lambda e: 0.0), ("G1",)),
    Mistake("eval batch-norm without eps", "oracle.layers:batch_norm_eval", options(eps=lambda e: 0.0), ("G1",)),
    Mistake("padding on one side only", "oracle.layers:conv2d", options(padding=_one_sided), ("G1",)),
    Mistake("average pool: padding not counted", "oracle.layers:average_pool", options(count_padding=lambda c: False), ("G1",)),
    Mistake("average pool: padding counted", "oracle.layers:average_pool", options(count_padding=lambda c: True), ("G1",)),
    Mistake("slope of the leaky ReLU forgotten", "oracle.layers:leaky_relu", options(slope=lambda s: 0.0), ("G1",)),
    Mistake(
        "sum for mean in the global average pool",
        "oracle.layers:global_average_pool",
        output(lambda y, x: y * (x.shape[2] * x.shape[3])),
        ("G1",),
        also=(("oracle.layers:global_average_pool_vjp", gradient(0, lambda g, s, dy: g * (g.shape[2] * g.shape[3]))),),
    ),
    Mistake(
        "GELU by its tanh formula, forward and backward",
        "oracle.layers:gelu",
        instead(layers.gelu_tanh),
        ("G1",),
        also=(("oracle.layers:gelu_vjp", instead(layers.gelu_tanh_vjp)),),
    ),
    Mistake(
        "bias left out",
        "oracle.layers:dense",
        lambda f: lambda x, w, b=None: f(x, w),
        ("G1",),
        also=(("oracle.layers:dense_vjp", gradient(2, lambda g, s, dy: np.zeros_like(g))),),
    ),
    Mistake("Nesterov momentum", "oracle.momentum:momentum_step", instead(_nesterov), ("O6",)),
    Mistake("momentum with PyTorch's dampening", "oracle.momentum:momentum_step", instead(_dampened), ("O6",)),
    Mistake("decoupled weight decay", "oracle.momentum:momentum_step", instead(_decoupled), ("O6",)),
    Mistake("learning rate inside the velocity", "oracle.momentum:momentum_step", instead(_rate_in_velocity), ("O6",)),
    Mistake("no weight decay", "oracle.momentum:momentum_step", options(decay=lambda d: 0.0), ("O1", "O6")),
    Mistake("weight decay twice", "oracle.momentum:momentum_step", options(decay=lambda d: 2.0 * d), ("O1", "O6")),
    Mistake("no momentum", "oracle.momentum:momentum_step", options(momentum=lambda m: 0.0), ("O6",)),
    Mistake(
        "closed sections move their running statistics",
        "passes.tape:Tape.is_closed",
        instead(lambda self, step: False),
        ("N4", "O9"),
    ),
    Mistake(
        "MACs counted twice, expected ones too",
        "spec.cost:macs",
        result(lambda n: 2 * n),
        ("N6", "C1"),
        also=(("spec.cost:cost_model", result(terms_put(lambda t, n: t._replace(macs=2 * t.macs)))),),
    ),
    Mistake(
        "mean of the batches' biased CKA",
        "formulas.cka:MiniBatches.add",
        _biased_in_batches,
        ("K4",),
        also=(("formulas.cka:MiniBatches.result", _mean_of_batches),),
    ),
)
