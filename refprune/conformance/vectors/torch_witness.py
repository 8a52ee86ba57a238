"""The second witness of test vectors: PyTorch's implementation, and by other ways what it declines.

Estimators of O5 from losses alone, the cost of a network by counting its living weights at every gate vector (C1–C5), the
horseshoe by quadrature (P1). Nothing of refprune's own estimators, cost model or densities is used.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...adapters.pytorch.implementation import TorchImplementation
from ...adapters.pytorch.model import Module, set_gates
from ...arrays import Array
from ...spec.json_form import from_json
from ...spec.layers import BatchNorm, Conv, Dense, Flatten, Layer, Section, UnitGate
from ...spec.network import Network

#: Gate vectors are enumerated up to so many gates.
MOST_GATES = 12

#: Nodes of the quadrature, in log s: a trapezoidal sum of what falls exponentially on both sides.
LOG_SCALES = np.arange(-40.0, 40.0, 1.0 / 32.0)


class Witness(TorchImplementation):
    """estimator: any of O5."""

    def __init__(self, estimator: str) -> None:
        self.estimator = estimator

    # ------------------------------------------------------------------------------------------------- estimators (O5)

    def estimates(self, module: Module, x: Array, target: Array, theta: Tensor, uniform: Tensor) -> Tensor:
        """One value per gate, from the losses at the gate vectors that the estimator asks for."""

        def c(gates: Tensor) -> Tensor:
            return self.loss(module, set_gates(module, gates)(self.tensor(x)), target)

        if self.estimator == "reinforce":
            return super().estimates(module, x, target, theta, uniform)
        v = uniform[0]
        b, other = (v < theta).to(theta.dtype), (v > 1.0 - theta).to(theta.dtype)
        if self.estimator == "taylor":
            xi = b.clone().requires_grad_()
            (slope,) = torch.autograd.grad(c(xi), xi)
            return slope
        with torch.no_grad():
            if self.estimator == "exact":
                return torch.stack([self._mean(c, theta, g, 1.0) - self._mean(c, theta, g, 0.0) for g in range(len(theta))])
            if self.estimator == "paired":
                return torch.stack([c(_put(b, g, 1.0)) - c(_put(b, g, 0.0)) for g in range(len(theta))])
            if self.estimator == "arm":
                return (c(other) - c(b)) * (v - 0.5) / (theta * (1.0 - theta))
            return 0.5 * (c(b) - c(other)) * (b - other) / torch.minimum(theta, 1.0 - theta)

    def _mean(self, c: Callable[[Tensor], Tensor], theta: Tensor, gate: int, value: float) -> Tensor:
        """E[c] over all gates but one, which has a value."""
        given, total = _put(theta, gate, value), torch.zeros((), dtype=theta.dtype)
        for bits in itertools.product((0.0, 1.0), repeat=len(theta)):
            gates = torch.tensor(bits, dtype=theta.dtype)
            total = total + torch.where(gates == 1.0, given, 1.0 - given).prod() * c(gates)
        return total

    # ------------------------------------------------------------------------------------------------- complexity (C1–C5)

    def complexity(self, spec: Any, theta: Array, nu: float, alpha: float, balance: float) -> dict[str, Any]:
        """Expectations by enumeration; β is the difference of the penalty between θ_g = 1 and 0, in extended precision."""
        network = from_json(spec)
        if len(theta) > MOST_GATES:
            raise NotImplementedError(f"{len(theta)} gates")
        vectors = np.array(list(itertools.product((0.0, 1.0), repeat=len(theta)))).reshape(2 ** len(theta), len(theta))
        costs, theta = np.array([_living(network, gates) for gates in vectors], np.longdouble), theta.astype(np.longdouble)
        whole = costs[-1]
        weights = np.array([1.0 - alpha, alpha]) / whole
        is_layer = np.zeros(len(theta), dtype=bool)
        for group in network.gate_groups:
            is_layer[group.slice] = group.kind == "layer"

        def expected(at: Array) -> Array:
            mean: Array = np.where(vectors == 1.0, at, 1.0 - at).prod(axis=1) @ costs
            return mean

        def penalty(at: Array) -> Any:
            whose = ((1.0 - abs(2.0 * balance - 1.0), at), (2.0 * balance - 1.0, np.where(is_layer, at, 1.0)))
            views = (*whose, (1.0 - 2.0 * balance, np.where(is_layer, 1.0, at)))
            return nu * sum(max(w, 0.0) * (weights @ expected(view)) for w, view in views)

        ends = np.tile(theta, (2, len(theta), 1))
        for g in range(len(theta)):
            ends[:, g, g] = 0.0, 1.0
        slopes = np.array([penalty(ends[1, g]) - penalty(ends[0, g]) for g in range(len(theta))])
        mean = expected(theta)
        found = {"parameters": whole[0], "macs": whole[1], "expected_parameters": mean[0], "expected_macs": mean[1]}
        found |= {"penalty": penalty(theta), "beta": slopes}
        return {name: np.asarray(value, np.float64) for name, value in found.items()}

    # ------------------------------------------------------------------------------------------------------- priors (P1)

    def prior(self, w: Array, kind: str, parameters: Mapping[str, float]) -> tuple[Any, Any]:
        """The horseshoe: N(w; 0, s²) over a half-Cauchy s of this width, d s = s d log s."""
        if kind != "horseshoe":
            return super().prior(w, kind, parameters)
        s, relative = np.exp(LOG_SCALES), np.exp(LOG_SCALES) / parameters["width"]
        cauchy = 2.0 / (math.pi * parameters["width"] * (1.0 + relative**2))
        with np.errstate(under="ignore"):
            terms = np.exp(-0.5 * np.square(w[:, None] / s)) / (math.sqrt(2.0 * math.pi) * s) * cauchy * s
        step = LOG_SCALES[1] - LOG_SCALES[0]
        return np.log(step * terms.sum(axis=1)), -w * (terms / s**2).sum(axis=1) / terms.sum(axis=1)


def _put(gates: Tensor, gate: int, value: float) -> Tensor:
    changed = gates.clone()
    changed[gate] = value
    return changed


def _living(network: Network, gates: Array) -> tuple[float, float]:
    """(parameters, MACs of one input) that are left at one vector of gates 0 and 1: weights between living channels."""
    values = {group.name: gates[group.slice] for group in network.gate_groups}
    total = np.zeros(2)

    def walk(layers: Sequence[Layer], columns: Array, on: float) -> Array:
        """Adds what a chain costs that reads these channels; returns the channels behind it."""
        for i, layer in enumerate(layers):
            shape = network.input_shapes[layer.name]
            if isinstance(layer, Section):
                own = on * (float(values[layer.name][0]) if layer.gate else 1.0)
                walk(layer.path, columns, own)
                walk(layer.shortcut, columns, on)
                columns = np.ones(layer.output_shape(shape)[0])
            elif isinstance(layer, (Dense, Conv)):
                rows = _gated_by(layers[i + 1 :], layer.output_shape(shape)[0], values)
                pixels = math.prod(layer.output_shape(shape)[1:])
                taps = math.prod(layer.kernel) if isinstance(layer, Conv) else 1
                groups = layer.groups if isinstance(layer, Conv) else 1
                pairs = sum(a.sum() * b.sum() for a, b in zip(np.split(rows, groups), np.split(columns, groups), strict=True))
                total[:] += on * np.array([taps * pairs + layer.bias * rows.sum(), taps * pairs * pixels])
                columns = rows
            elif isinstance(layer, BatchNorm):
                total[0] += on * 2.0 * (columns if _is_behind_affine(layers[:i]) else np.ones(shape[0])).sum()
            elif isinstance(layer, Flatten):
                columns = np.repeat(columns, math.prod(shape[1:]))
            elif not isinstance(layer, UnitGate) and layer.output_shape(shape)[0] != shape[0]:
                columns = np.ones(layer.output_shape(shape)[0])
        return columns

    walk(network.layers, np.ones(network.input_shape[0]), 1.0)
    return float(total[0]), float(total[1])


def _gated_by(behind: Sequence[Layer], channels: int, values: Mapping[str, Array]) -> Array:
    """Which channels of a layer live: by the unit gate that stands before whatever mixes channels next."""
    for layer in behind:
        if isinstance(layer, UnitGate):
            return values[layer.name]
        if isinstance(layer, (Dense, Conv, Section)):
            break
    return np.ones(channels)


def _is_behind_affine(before: Sequence[Layer]) -> bool:
    return any(isinstance(layer, (Dense, Conv)) for layer in before)
