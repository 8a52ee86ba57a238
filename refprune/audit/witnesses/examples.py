"""Networks that several witnesses use: small enough to enumerate every gate, with everything that SPEC N names."""

from __future__ import annotations

import dataclasses
import itertools
import math
from functools import cached_property
from typing import Any

import numpy as np

from ...arrays import Array, Arrays
from ...passes.batch_loss import BatchLoss, Evaluation
from ...spec.layers import Activation, BatchNorm, Conv, Dense, GlobalAveragePool, Section, SubsamplePad, UnitGate
from ...spec.network import Loss, Network
from ..catalogue import Context

SAME = ((1, 1), (1, 1))


def dense_network() -> Network:
    """Three sections: one matrix; two with unit gates, tanh and ρ = ReLU; batch-norm beside a dense shortcut. 8 gates."""
    matrix = Section((Dense(4), Activation("relu")))
    units = Section((Dense(5), Activation("tanh"), UnitGate(), Dense(4)), post="relu")
    norm = Section((Dense(3), BatchNorm()), shortcut=(Dense(3),))
    return Network((3,), (Dense(4), Activation("relu"), matrix, units, norm, Dense(3)))


def convolutional_network(shortcut: str = "A") -> Network:
    """Two post-activation residual blocks with batch-norm; the second halves the image, shortcut of option A or B. 2 gates."""
    conv, option_a = Conv(3, (3, 3), padding=SAME, bias=False), (SubsamplePad((2, 2), 1, 1),)
    first = Section((conv, BatchNorm(), Activation("relu"), Conv(3, (3, 3), padding=SAME), BatchNorm()), post="relu")
    around = option_a if shortcut == "A" else (Conv(5, (1, 1), (2, 2), bias=False), BatchNorm())
    halving = Section((Conv(5, (3, 3), (2, 2), SAME), BatchNorm()), shortcut=around, post="relu")
    stem = Conv(3, (3, 3), padding=SAME), Activation("relu")
    return Network((2, 6, 6), (*stem, first, halving, GlobalAveragePool(), Dense(3)))


def linear_network() -> Network:
    """x → A x, then two linear sections h + ξ (W h), squared error summed: every number is a polynomial of integers."""
    linear = Section((Dense(2, bias=False),))
    return Network((2,), (Dense(2, bias=False), linear, linear), Loss("mean_squared_error", "sum"))


def params_of(network: Network, context: Context) -> Arrays:
    """Random weights of the size 1/√fan-in, biases ¼, gains around 1."""
    found: Arrays = {}
    for name, shape in network.parameter_shapes.items():
        z = context.normal(f"params {name}", *shape)
        if name.endswith(".gain"):
            found[name] = 1.0 + 0.25 * z
        else:
            found[name] = z / math.sqrt(max(math.prod(shape[1:]), 1)) if name.endswith(".weight") else 0.25 * z
    return found


def statistics_of(network: Network, context: Context) -> Arrays:
    """Running means around 0, variances around 1."""
    return {
        name: 0.5 + context.uniform(f"stat {name}", *shape) if name.endswith("variance") else 0.2 * context.normal(name, *shape)
        for name, shape in network.statistics_shapes.items()
    }


class Remembered(BatchLoss):
    """A BatchLoss that evaluates every gate vector once, for estimators that are called thousands of times."""

    @cached_property
    def _known(self) -> dict[bytes, Evaluation]:
        return {}

    def evaluate(self, gates: Array, **options: Any) -> Evaluation:
        key = np.asarray(gates, dtype=np.float64).tobytes()
        if key not in self._known:
            self._known[key] = super().evaluate(gates, run_closed=True)
        return self._known[key]


def remembered(loss: BatchLoss) -> Remembered:
    """The same loss, remembering."""
    return Remembered(**{f.name: getattr(loss, f.name) for f in dataclasses.fields(loss)})


def loss_of(network: Network, context: Context, *, batch: int = 6, train: bool = True) -> BatchLoss:
    """Random parameters, batch and labels."""
    x = context.normal("x", batch, *network.input_shape)
    if network.loss.kind == "cross_entropy":
        target: Array = (context.uniform("labels", batch) * network.output_shape[0]).astype(int)
    else:
        target = context.normal("target", batch, *network.output_shape)
    params, statistics = params_of(network, context), statistics_of(network, context)
    return BatchLoss(network, context.backend, params, x, target, statistics, train)


# --------------------------------------------------------------------------------------------------------------------
# Tables over all gate vectors


def vertices_of(count: int) -> Array:
    return np.array(list(itertools.product((0.0, 1.0), repeat=count)))


def losses_at(loss: BatchLoss, count: int) -> tuple[Array, Array]:
    """Every gate vector with its loss."""
    vertices = vertices_of(count)
    return vertices, np.array([float(loss.evaluate(g).loss) for g in vertices])


def probabilities(vertices: Array, theta: Array) -> Array:
    return np.asarray(np.prod(np.where(vertices == 1.0, theta, 1.0 - theta), axis=1))


def slopes_of(vertices: Array, losses: Array, theta: Array) -> Array:
    """∂C/∂θ from the table of all losses."""
    ends = [[probabilities(vertices, moved_to(theta, g, v)) @ losses for v in (1.0, 0.0)] for g in range(theta.size)]
    return np.array([on - off for on, off in ends])


def moved_to(theta: Array, gate: int, value: float) -> Array:
    moved = theta.copy()
    moved[gate] = value
    return moved
