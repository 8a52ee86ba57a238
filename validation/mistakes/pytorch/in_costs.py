"""Mistakes in what a network costs and in what presses on θ because of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from refprune.adapters.pytorch.costs import Part
from refprune.adapters.pytorch.implementation import TorchImplementation
from refprune.spec.layers import BatchNorm

from .planting import Planted, changed, with_parts

Base = TorchImplementation


def costs(name: str, **parts: Any) -> Planted:
    return Planted(name, "complexity", with_parts(**parts))


def kept(keep: Any) -> Any:
    """Only some of the arrays are known."""

    def parts(self: Base, network: Any, theta: Tensor) -> Iterator[Part]:
        return (part for part in Base.parts(self, network, theta) if keep(part))

    return parts


def is_weight(part: Part) -> bool:
    return part.key == "weight"


def is_norm(part: Part) -> bool:
    return isinstance(part.layer, BatchNorm)


def gated_twice(self: Base, network: Any, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Layers with unit gates are counted among the gated ones and among all."""
    parameters, macs = Base.expected(self, network, theta)
    gated = [part for part in self.parts(network, theta) if part.rows is not None or part.columns is not None]
    return parameters, sum((part.macs * self.alive(part) for part in gated), macs)


def alive(change: Any) -> Any:
    """Arrays whose gates are seen differently."""
    return lambda self, part: Base.alive(self, part._replace(**change(part)))


def squared(self: Base, part: Part) -> Any:
    """The section's gate once for the rows and once for the columns."""
    share = Base.alive(self, part)
    return share if part.section is None else share * part.section


def right_slopes(self: Base, *a: Any) -> Tensor:
    """Worked out by hand, not from the value."""
    right = Base()
    right.precision = self.precision
    return right.slopes(*a)


def of_rows(self: Base, network: Any, theta: Tensor, nu: float, alpha: float, balance: float) -> Tensor:
    """Columns are numbers, not functions of θ."""
    mine = with_parts(alive=alive(lambda part: {"columns": None if part.columns is None else part.columns.detach()}))()
    mine.precision = self.precision
    return mine.slopes(network, theta, nu, alpha, balance)


def of_neighbours(self: Base, network: Any, theta: Tensor, nu: float, alpha: float, balance: float) -> Tensor:
    """Each summand of C3 gives a gate the slope of the gate before it."""
    layer = torch.tensor([group.kind == "layer" for group in network.gate_groups for _ in range(group.start, group.stop)])
    total = torch.zeros_like(theta)
    for weight, gates in self.views(theta, layer, balance):
        slopes = Base.slopes(self, network, gates, nu, alpha, 0.5).roll(1)
        total = total + weight * torch.where(gates < 1.0, slopes, 0.0)
    return total


def weights_alone(self: Base, network: Any) -> tuple[int, int]:
    parts = list(self.parts(network, torch.ones(network.gate_count)))
    return sum(part.parameters for part in parts if is_weight(part)), sum(part.macs for part in parts)


def without_biases(self: Base, network: Any) -> tuple[int, int]:
    parts = list(self.parts(network, torch.ones(network.gate_count)))
    return sum(part.parameters for part in parts if part.key != "bias"), sum(part.macs for part in parts)


def with_statistics(self: Base, network: Any) -> tuple[int, int]:
    parameters, macs = Base.count(self, network)
    return parameters + sum(
        part.parameters for part in self.parts(network, torch.ones(network.gate_count)) if is_norm(part)
    ), macs


def doubled(self: Base, network: Any) -> tuple[int, int]:
    parameters, macs = Base.count(self, network)
    return parameters, 2 * macs


def doubled_layers(self: Base, network: Any) -> dict[str, int]:
    return {name: 2 * macs for name, macs in Base.layer_macs(self, network).items()}


def others_closed(self: Base, theta: Tensor, layer: Tensor, balance: float) -> list[tuple[float, Tensor]]:
    off = torch.zeros_like(theta)
    views = Base.views(self, theta, layer, balance)
    seen = {0.0: torch.where(layer, off, theta), 1.0: torch.where(layer, theta, off)}
    both = [(weight, gates) for weight, gates in views if gates is theta]
    return both + [(weight, seen[float(balance > 0.5)]) for weight, gates in views if gates is not theta]


def unweighted(self: Base, theta: Tensor, layer: Tensor, balance: float) -> list[tuple[float, Tensor]]:
    return [(1.0, gates) for _, gates in Base.views(self, theta, layer, balance)]


def slopes_at(at: Any) -> Any:
    return lambda self, network, theta, *a: Base.slopes(self, network, at(theta), *a)


def linear(right: Any, a: dict[str, Any]) -> Any:
    found = right(**a)
    return found | {"penalty": found["beta"] @ right.__self__.tensor(a["theta"])}


def expected_at(at: Any) -> Any:
    """For `changed`: the expectations are those at other gates."""

    def wrong(right: Any, a: dict[str, Any]) -> Any:
        there = right(**{**a, "theta": at(a["theta"])})
        return right(**a) | {name: there[name] for name in ("expected_parameters", "expected_macs")}

    return wrong


def as_dense(self: Base, layer: nn.Module, x: Tensor, y: Tensor) -> int:
    return Base.macs_of(self, layer, x, y) * getattr(layer, "groups", 1)


def at_input_size(self: Base, layer: nn.Module, x: Tensor, y: Tensor) -> int:
    count: int = layer.weight.numel() * x.shape[2:].numel()
    return count


def with_biases(self: Base, layer: nn.Module, x: Tensor, y: Tensor) -> int:
    return Base.macs_of(self, layer, x, y) + (0 if layer.bias is None else y.numel())


def macs_alone(self: Base, **a: Any) -> Any:
    return {"macs": Base.complexity(self, **a)["macs"]}


IN_COSTS: tuple[Planted, ...] = (
    costs("MACs counted twice", count=doubled),
    costs("MACs counted twice, expected ones too", layer_macs=doubled_layers),
    costs("biases not counted", count=without_biases),
    costs("running statistics counted as parameters", count=with_statistics),
    costs("grouped convolutions counted as dense", macs_of=as_dense),
    costs("MACs of a convolution at its input's size", macs_of=at_input_size, complexity=macs_alone),
    costs("biases counted as MACs", macs_of=with_biases, complexity=macs_alone),
    changed("expected cost with all gates on", "complexity", expected_at(lambda theta: 0.0 * theta + 1.0)),
    changed("expected cost at the likelier gates", "complexity", expected_at(lambda theta: (theta >= 0.5) * 1.0)),
    costs("batch-norm forgotten", parts=kept(lambda part: not is_norm(part))),
    costs("biases forgotten", parts=kept(lambda part: is_norm(part) or part.key != "bias")),
    costs("MACs of gated layers counted twice", expected=gated_twice),
    costs("a shared group counted on one side", alive=alive(lambda part: {"columns": None})),
    costs("layer gate without effect on the cost", alive=alive(lambda part: {"section": None})),
    costs("layer gate on weights alone", alive=alive(lambda part: {} if is_weight(part) else {"section": None})),
    costs("layer gate squared", alive=squared, slopes=right_slopes),
    costs("layer gate squared, slope and all", alive=squared),
    costs("slope of the rows' side alone", slopes=of_rows),
    costs("slopes of the neighbouring gates", slopes=of_neighbours),
    costs("slope of the cost with all gates on", slopes=slopes_at(torch.ones_like)),
    costs("slope at half of θ", slopes=slopes_at(lambda theta: 0.5 * theta)),
    costs(
        "α and 1 − α swapped",
        size_penalty=lambda self, n, theta, nu, alpha, balance: Base.size_penalty(self, n, theta, nu, 1.0 - alpha, balance),
    ),
    costs("reference without biases and norms", reference=weights_alone),
    costs("ρ and 1 − ρ swapped", views=lambda self, theta, layer, balance: Base.views(self, theta, layer, 1.0 - balance)),
    costs("gates of the other kind closed", views=others_closed),
    costs("summands of the balance unweighted", views=unweighted),
    changed("Σ β θ taken for ν R", "complexity", linear),
)
