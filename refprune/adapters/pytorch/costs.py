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

from ...arrays import Array
from ...spec.json_form import from_json
from ...spec.layers import Conv, Dense, Layer, Section, UnitGate
from ...spec.network import Network
from .functions import TorchFunctions


class Part(NamedTuple):
    """One array of a layer, "weight", "bias" or "gain": its parameters and multiply-accumulates with all gates on.

    rows, columns, section: expected shares alive, tensors (), of its output channels, its input channels and its section;
    None where there is no gate.
    """

    layer: Layer
    key: str
    parameters: int
    macs: int
    rows: Tensor | None
    columns: Tensor | None
    section: Tensor | None


class TorchCosts(TorchFunctions):
    """The level `complexity` of `refprune verify`."""

    def layer_macs(self, network: Network) -> dict[str, int]:
        """Name of each convolution and dense layer → its multiply-accumulates for one input."""
        raise NotImplementedError

    def parts(self, network: Network, theta: Tensor) -> Iterator[Part]:
        """All arrays with what is expected to be left of them at θ (G,)."""
        macs = self.layer_macs(network)
        yield from self._of_chain(network, network.layers, theta, None, macs)
        for section in network.layers:
            if isinstance(section, Section):
                on = theta[network.gate_slices[section.name]].prod() if section.gate else None
                yield from self._of_chain(network, section.shortcut, theta, None, macs)
                yield from self._of_chain(network, section.path, theta, on, macs)

    def _of_chain(
        self, network: Network, chain: Sequence[Layer], theta: Tensor, on: Tensor | None, macs: dict[str, int]
    ) -> Iterator[Part]:
        rows: Tensor | None = None
        columns: Tensor | None = None
        for i, layer in enumerate(chain):
            if isinstance(layer, Section):
                rows = columns = None
                continue
            if isinstance(layer, (Dense, Conv)):
                gate = _gate_behind(chain, i)
                columns, rows = rows, None if gate is None else theta[network.gate_slices[gate.name]].mean()
            for key, size in layer.parameter_shapes(network.input_shapes[layer.name]).items():
                count, read = (macs[layer.name], columns) if key == "weight" else (0, None)
                yield Part(layer, key, torch.Size(size).numel(), count, rows, read, on)

    def alive(self, part: Part) -> Tensor | float:
        """Expected share of an array that is left: the gates are independent, and all different (C1)."""
        share: Tensor | float = 1.0
        for factor in (part.rows, part.columns, part.section):
            share = share if factor is None else share * factor
        return share

    def count(self, network: Network) -> tuple[int, int]:
        """Parameters and multiply-accumulates, all gates on."""
        parts = list(self.parts(network, torch.ones(network.gate_count)))
        return sum(part.parameters for part in parts), sum(part.macs for part in parts)

    def reference(self, network: Network) -> tuple[int, int]:
        """What 100 % means: parameters and multiply-accumulates."""
        return self.count(network)

    def expected(self, network: Network, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Expected parameters and multiply-accumulates at θ (C1)."""
        parameters = macs = torch.zeros((), dtype=theta.dtype)
        for part in self.parts(network, theta):
            alive = self.alive(part)
            parameters, macs = parameters + part.parameters * alive, macs + part.macs * alive
        return parameters, macs

    def views(self, theta: Tensor, layer: Tensor, balance: float) -> list[tuple[float, Tensor]]:
        """C3's summands: (weight, θ where the summand looks, 1 elsewhere). layer: (G,) which gates are layer gates."""
        both, on = 1.0 - abs(2.0 * balance - 1.0), torch.ones_like(theta)
        layers, units = torch.where(layer, theta, on), torch.where(layer, on, theta)
        views = ((both, theta), (2.0 * balance - 1.0, layers), (1.0 - 2.0 * balance, units))
        return [(weight, gates) for weight, gates in views if weight > 0.0]

    def size_penalty(self, network: Network, theta: Tensor, nu: float, alpha: float, balance: float) -> Tensor:
        """ν R_ρ(θ) (C2–C4)."""
        whole, total = self.reference(network), torch.zeros((), dtype=theta.dtype)
        kinds = [group.kind == "layer" for group in network.gate_groups for _ in range(group.start, group.stop)]
        layer = torch.tensor(kinds, dtype=torch.bool)
        for weight, gates in self.views(theta, layer, balance):
            parameters, macs = self.expected(network, gates)
            total = total + weight * (alpha * macs / whole[1] + (1.0 - alpha) * parameters / whole[0])
        return nu * total

    def slopes(self, network: Network, theta: Tensor, nu: float, alpha: float, balance: float) -> Tensor:
        """(G,) the penalty's gradient (C5)."""
        on = theta.detach().clone().requires_grad_()
        penalty = self.size_penalty(network, on, nu, alpha, balance)
        (found,) = torch.autograd.grad(penalty, on, allow_unused=True) if penalty.requires_grad else (None,)
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
