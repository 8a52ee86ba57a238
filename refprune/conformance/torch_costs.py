"""What a network costs in PyTorch: counts, their expectation over the gates, and what presses on θ by autograd (N6, C1–C5).

One walk along the network: every array costs its numbers and multiply-accumulates, times the share of its output channels and
of its input channels that is expected to be alive (the mean θ of the gates there), times θ of its section. Gates are
independent and no array has the same gate twice, so that means multiply (C1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..layers import Array
from ..layerspec import BatchNorm, Conv, Dense, Layer, Section, UnitGate
from ..spec import Network, from_json
from .torch_functions import TorchFunctions


class Part(NamedTuple):
    """One array: kind "weight", "bias" or "norm"; its parameters and multiply-accumulates with all gates on.

    rows, columns, section: expected shares alive of its output channels, its input channels, its section; tensors ().
    """

    layer: Layer
    kind: str
    parameters: int
    macs: int
    rows: Tensor
    columns: Tensor
    section: Tensor


class TorchCosts(TorchFunctions):
    """The level `complexity`."""

    def layer_macs(self, network: Network) -> dict[str, int]:
        """Name of each convolution and dense layer → its multiply-accumulates for one input."""
        raise NotImplementedError

    def parts(self, network: Network, theta: Tensor) -> Iterator[Part]:
        """All arrays with what is expected to be left of them at θ (G,)."""
        one, macs = torch.ones((), dtype=theta.dtype), self.layer_macs(network)
        yield from self._of_chain(network, network.layers, theta, one, macs)
        for section in network.layers:
            if isinstance(section, Section):
                on = theta[network.gate_slices[section.name]].prod() if section.gate else one
                yield from self._of_chain(network, section.shortcut, theta, one, macs)
                yield from self._of_chain(network, section.path, theta, on, macs)

    def _of_chain(
        self, network: Network, chain: Sequence[Layer], theta: Tensor, on: Tensor, macs: dict[str, int]
    ) -> Iterator[Part]:
        rows = columns = one = torch.ones((), dtype=theta.dtype)
        for i, layer in enumerate(chain):
            sizes = {} if isinstance(layer, Section) else layer.parameter_shapes(network.input_shapes[layer.name])
            if isinstance(layer, Section):
                rows = columns = one
            elif isinstance(layer, (Dense, Conv)):
                gate = _gate_behind(chain, i)
                columns, rows = rows, one if gate is None else theta[network.gate_slices[gate.name]].mean()
            for key, size in sizes.items():
                kind = "norm" if isinstance(layer, BatchNorm) else key
                count = macs[layer.name] if kind == "weight" else 0
                yield Part(layer, kind, torch.Size(size).numel(), count, rows, columns if kind == "weight" else one, on)

    def alive(self, part: Part) -> Tensor:
        """Expected share of an array that is left."""
        return part.rows * part.columns * part.section

    def count(self, network: Network) -> tuple[int, int]:
        """Parameters and multiply-accumulates, all gates on."""
        parts = list(self.parts(network, torch.ones(network.gate_count)))
        return sum(part.parameters for part in parts), sum(part.macs for part in parts)

    def expected(self, network: Network, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Expected parameters and multiply-accumulates at θ (C1)."""
        parts = [(part, self.alive(part)) for part in self.parts(network, theta)]
        zero = torch.zeros((), dtype=theta.dtype)
        return sum((p.parameters * a for p, a in parts), zero), sum((p.macs * a for p, a in parts), zero)

    def share(self, network: Network, theta: Tensor, whole: tuple[int, int], alpha: float) -> Tensor:
        """R(θ) (C2)."""
        parameters, macs = self.expected(network, theta)
        return alpha * macs / whole[1] + (1.0 - alpha) * parameters / whole[0]

    def views(self, theta: Tensor, layer: Tensor, balance: float) -> list[tuple[float, Tensor]]:
        """C3's summands: (weight, θ where the summand looks, 1 elsewhere). layer: (G,) which gates are layer gates."""
        both = 1.0 - abs(2.0 * balance - 1.0)
        on = torch.ones_like(theta)
        views = (both, theta), (2.0 * balance - 1.0, on.where(~layer, theta)), (1.0 - 2.0 * balance, on.where(layer, theta))
        return [(max(weight, 0.0), gates) for weight, gates in views]

    def size_penalty(self, network: Network, theta: Tensor, nu: float, alpha: float, balance: float) -> Tensor:
        """ν R_ρ(θ) (C3, C4)."""
        whole = self.count(network)
        layer = torch.tensor([group.kind == "layer" for group in network.gates for _ in range(group.start, group.stop)])
        views = self.views(theta, layer, balance)
        return nu * sum((w * self.share(network, t, whole, alpha) for w, t in views), torch.zeros((), dtype=theta.dtype))

    def slopes(self, network: Network, theta: Tensor, nu: float, alpha: float, balance: float) -> Tensor:
        """(G,) the penalty's gradient (C5)."""
        on = theta.detach().requires_grad_()
        (found,) = torch.autograd.grad(self.size_penalty(network, on, nu, alpha, balance), on, allow_unused=True)
        return torch.zeros_like(on) if found is None else found

    def complexity(self, spec: Any, theta: Array, nu: float, alpha: float, balance: float) -> dict[str, Any]:
        network, on = from_json(spec), self.tensor(theta)
        parameters, macs = self.count(network)
        expected_parameters, expected_macs = self.expected(network, on)
        return {
            "parameters": parameters,
            "macs": macs,
            "expected_parameters": expected_parameters,
            "expected_macs": expected_macs,
            "penalty": self.size_penalty(network, on, nu, alpha, balance),
            "beta": self.slopes(network, on, nu, alpha, balance),
        }


def _gate_behind(chain: Sequence[Layer], index: int) -> UnitGate | None:
    """The gate of the units that an affine layer makes, if they have one."""
    for layer in chain[index + 1 :]:
        if isinstance(layer, (Dense, Conv, Section)):
            return None
        if isinstance(layer, UnitGate):
            return layer
    return None
