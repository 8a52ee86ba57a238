"""The penalty on θ: Σ β θ + ν R_ρ(θ), multi-affine in θ like the loss (SPEC O1, C2–C5; the form is *derived here*).

R(θ) = α·E[MACs]/MACs₀ + (1−α)·E[parameters]/parameters₀ is the expected size of the network, as a share of its size at the
start of training. R_ρ weighs layer gates against unit gates: with ρ = ½ it is R, with ρ = 1 it depends on layer gates alone,
with ρ = 0 on unit gates alone. The gradient gives every gate its own β_g(θ) = β + ν ∂R_ρ/∂θ_g (C5), which changes with θ and
with every removal.

R is measured against the network at the start of training. Removed gates no longer count. "All units at 1" (C3) therefore
means all units that are left. Hence a removal at θ = 0, which does not change R, lowers R_ρ for ρ ≠ ½: the slope on a
section's gate is what closing the section can still save.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..arrays import Array
from ..errors import InputError
from ..spec import cost
from ..spec.network import Network


class Reference(NamedTuple):
    """MACs of one image and parameters of the network with which training began: what 100 % means."""

    macs: int
    parameters: int


def reference(network: Network) -> Reference:
    """The network's own cost, all gates on."""
    return Reference(cost.macs(network), cost.parameters(network))


def share(network: Network, whole: Reference, alpha: float) -> float:
    """R of a network without gates: α·MACs/MACs₀ + (1−α)·parameters/parameters₀; R_ρ is the same there, whatever ρ is."""
    left = reference(network)
    return alpha * left.macs / whole.macs + (1.0 - alpha) * left.parameters / whole.parameters


@dataclass(frozen=True)
class Penalty:
    """Σ β θ + ν R_ρ(θ) for the gates of one network.

    beta: β ≥ 0 of every gate; nu: ν ≥ 0, accuracy against size; alpha: α ∈ [0, 1], MACs (1) against parameters (0);
    balance: ρ ∈ [0, 1], layers (1) against units (0); empty: what becomes of a section without units, "close" or
    "keep_constant" (`cost.expected`). InputError for anything else.
    """

    network: Network
    reference: Reference
    beta: float = 0.0
    nu: float = 0.0
    alpha: float = 0.5
    balance: float = 0.5
    empty: str = "keep_constant"

    def __post_init__(self) -> None:
        for name, high in (("beta", np.inf), ("nu", np.inf), ("alpha", 1.0), ("balance", 1.0)):
            value = getattr(self, name)
            if not 0.0 <= value <= high or np.isinf(value):
                raise InputError(f"{name}: must lie in [0, {high}{')' if np.isinf(high) else ']'}, got {value}")
        if self.nu > 0.0 and min(self.reference) < 1:
            raise InputError(f"reference: ν needs a network that costs something, got {self.reference}")

    def value(self, theta: Array) -> Any:
        """The penalty at θ, (G,), complex too."""
        value = self.beta * theta.sum()
        for weight, gates, _ in self._views(theta):
            value = value + self.nu * weight * self._share(gates)
        return value

    def of_decided(self, network: Network, gates_on: int) -> float:
        """The penalty of `network`, what is left when every gate is decided and `gates_on` of them are 1: R_ρ is R there."""
        return self.beta * gates_on + (self.nu * share(network, self.reference, self.alpha) if self.nu else 0.0)

    def gradient(self, theta: Array) -> Array:
        """(G,) β_g(θ): the slope of the penalty in each gate (C5)."""
        gradient = np.full(theta.shape, self.beta, np.result_type(theta, np.float64))
        for weight, gates, seen in self._views(theta):
            gradient += self.nu * weight * np.where(seen, self._share_gradient(gates), 0.0)
        return gradient

    def _views(self, theta: Array) -> list[tuple[float, Array, Array]]:
        """C3's three summands that count: (weight, θ with 1 where the summand does not look, where it looks)."""
        if self.nu == 0.0 or not theta.size:
            return []
        layer = cost.cost_model(self.network, self.empty).is_layer
        both, layers, units = 1.0 - abs(2.0 * self.balance - 1.0), 2.0 * self.balance - 1.0, 1.0 - 2.0 * self.balance
        views = ((both, np.ones_like(layer)), (layers, layer), (units, ~layer))
        return [(weight, np.where(seen, theta, 1.0), seen) for weight, seen in views if weight > 0.0]

    def _share(self, theta: Array) -> Any:
        """R(θ) (C2)."""
        return self._weights() @ cost.cost_model(self.network, self.empty).alive(theta)

    def _share_gradient(self, theta: Array) -> Array:
        return cost.cost_model(self.network, self.empty).gradient(theta, self._weights())

    def _weights(self) -> Array:
        """What one pair of each term adds to R."""
        model = cost.cost_model(self.network, self.empty)
        macs, parameters = (model.weights(quantity) for quantity in ("macs", "parameters"))
        weights: Array = self.alpha * macs / self.reference.macs + (1.0 - self.alpha) * parameters / self.reference.parameters
        return weights
