"""The sizes of a network and of what is left of it: sections, units, MACs and parameters."""

from __future__ import annotations

from typing import Any

from ..spec import cost as network_cost
from ..spec.layers import Section
from ..spec.network import Network
from ..training.state import State

#: What a run or a training run says of itself when it has ended, as summary.json holds it.
Summary = dict[str, Any]


def count_sections(network: Network) -> int:
    return sum(isinstance(layer, Section) for layer in network.layers)


def count_units(whole: Network, left: Network) -> dict[str, int]:
    """Units in `left` of every group of unit gates of `whole`, fixed ones too; 0 where the section was removed."""
    shapes = left.parameter_shapes
    made_by = {group.name: whole.unit_links[group.name].producer for group in whole.gate_groups if group.kind == "unit"}
    return {name: shapes.get(f"{producer}.weight", (0,))[0] for name, producer in made_by.items()}


def layers_left(start: Network, left: Network) -> dict[str, dict[str, int]]:
    """MACs of one image and parameters of every layer of `start` that costs something: in `left`, and in `start`."""

    def sizes(cost: network_cost.Cost) -> dict[str, int]:
        return {"macs": cost.macs, "parameters": cost.parameters}

    gone = {"macs": 0, "parameters": 0}
    now = {cost.layer.name: sizes(cost) for cost in network_cost.per_layer(left)}
    whole = {cost.layer.name: sizes(cost) for cost in network_cost.per_layer(start)}
    return {
        name: now.get(name, gone) | {f"{key}_at_start": size for key, size in before.items()}
        for name, before in whole.items()
        if any(before.values())
    }


def fixed_gates_gone(whole: Network, gated: Network, left: Network) -> int:
    """Gates of `whole` that are fixed to 1 in `gated` and whose section has gone on the way from there to `left`."""
    trained = {group.name for group in gated.gate_groups}
    begun, stays = ({layer.name for layer in n.layers if isinstance(layer, Section)} for n in (gated, left))
    fixed = (group for group in whole.gate_groups if group.name not in trained)
    return sum(group.stop - group.start for group in fixed if whole.layers[group.position].name in begun - stays)


def theta_by_name(state: State) -> dict[str, float]:
    """θ of every layer gate, the mean θ of every group of unit gates."""
    return {g.name: round(float(state.theta[g.slice].mean()), 6) for g in state.network.gate_groups}


def size_left(state: State, empty: str) -> Summary:
    """MACs of one image and parameters: of the network that is left, all its gates on, and expected at θ (C6).

    empty: what becomes of sections without units, `gates.empty`.
    """
    network = state.network
    expected = {q: float(network_cost.expected(network, state.theta, q, empty=empty)) for q in ("macs", "parameters")}
    return {
        "macs_per_image": network_cost.macs(network),
        "parameters": network_cost.parameters(network),
        "expected_macs_per_image": expected["macs"],
        "expected_parameters": expected["parameters"],
    }


def macs_spent(state: State, start: Network, batch_size: int) -> Summary:
    """MACs of the training so far, and those of as many steps with `start`, the network before training (C6)."""
    return {"macs": state.macs, "macs_unpruned": network_cost.training_macs(start) * batch_size * state.step}
