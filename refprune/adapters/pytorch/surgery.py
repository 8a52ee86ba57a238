"""Pruning in PyTorch: modules are cut and left out.

Nothing here knows how refprune prunes: what belongs to a gate is found by walking the modules of a chain. A unit goes with its
row of the Linear or Conv2d before the gate, its entries of the batch-norms between, and its columns of the one that reads it,
as many behind a Flatten as there are pixels (N4); units at the end of a section's path go with the stream's channels that they
added to. A closed section becomes its shortcut and ρ (N3), and so does one of which a layer has lost all its units.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .model import Gate, Module, Residual

AFFINE = (nn.Linear, nn.Conv2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class Reached(NamedTuple):
    """What the units of one gate reach: who makes them, batch-norms between, who reads them (None: the stream), the section."""

    producer: nn.Module
    norms: list[nn.Module]
    consumer: nn.Module | None
    section: Residual | None


def chain(module: nn.Module) -> list[nn.Module]:
    """The modules that run one after the other, nested Sequentials opened."""
    if isinstance(module, nn.Sequential):
        return [inner for part in module for inner in chain(part)]
    return [module]


def sections(module: Module) -> list[Residual]:
    return [part for part in chain(module.body) if isinstance(part, Residual)]


def reached(module: Module) -> dict[Gate, Reached]:
    """Every unit gate with what it reaches."""
    found: dict[Gate, Reached] = {}
    for section in (None, *sections(module)):
        parts = chain(module.body if section is None else section.path)
        for i, gate in enumerate(parts):
            if not isinstance(gate, Gate) or (section is not None and gate is section.gate):
                continue
            first = max(k for k in range(i) if isinstance(parts[k], AFFINE))
            reader = next((part for part in parts[i:] if isinstance(part, AFFINE)), None)
            found[gate] = Reached(parts[first], [p for p in parts[first:i] if isinstance(p, NORMS)], reader, section)
    return found


def compact(module: Module, keep: Tensor) -> tuple[nn.Module, dict[str, Tensor]]:
    """The module without the gates that are False in keep (G,), and what is left of every parameter; `module` is used up."""
    stays = {module.gates[group.name]: keep[group.slice] for group in module.network.gate_groups}
    links = reached(module)
    closed = [s for s in sections(module) if s.gate is not None and not stays[s.gate].any()]
    closed += [link.section for gate, link in links.items() if link.section is not None and not stays[gate].any()]
    for gate, link in links.items():
        if link.section not in closed:
            _cut(link, stays[gate].nonzero()[:, 0], len(stays[gate]))
    body = nn.Sequential(*(_without_gates(part, closed) for part in chain(module.body) if not isinstance(part, Gate)))
    body.train(module.training)
    left = {id(p): p for p in body.parameters()}
    names = {f"{layer}.{key}": p for layer, part in module.parts.items() for key, p in _named(part).items()}
    return body, {name: p for name, p in names.items() if id(p) in left}


def _named(part: nn.Module) -> dict[str, Tensor]:
    """A module's parameters under refprune's keys: a batch-norm's weight is its gain."""
    keys = {"weight": "gain"} if isinstance(part, NORMS) else {}
    return {keys.get(name, name): p for name, p in part.named_parameters()}


def _cut(link: Reached, index: Tensor, units: int) -> None:
    """Leave the units of `index` (k,) of so many."""
    for part in (link.producer, *link.norms):
        for name in ("weight", "bias", "running_mean", "running_var"):
            old = getattr(part, name, None)
            if old is not None:
                setattr(part, name, nn.Parameter(old.detach()[index]) if isinstance(old, nn.Parameter) else old[index])
    if link.consumer is not None:
        weight = link.consumer.weight.detach()
        block = weight.shape[1] // units
        columns = (index[:, None] * block + torch.arange(block)).flatten()
        link.consumer.weight = nn.Parameter(weight[:, columns])
    else:
        assert link.section is not None
        link.section.channels = index if link.section.channels is None else link.section.channels[index]


def _without_gates(part: nn.Module, closed: list[Residual]) -> nn.Module:
    if not isinstance(part, Residual):
        return part
    if part in closed:
        post = nn.ReLU() if isinstance(part.post, nn.ReLU) else nn.Identity()  # in place it would overwrite the stream
        return nn.Sequential(part.shortcut, post)
    part.path = nn.Sequential(*(inner for inner in chain(part.path) if not isinstance(inner, Gate)))
    part.gate = None
    return part
