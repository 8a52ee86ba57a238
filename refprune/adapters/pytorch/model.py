"""The gated network of a spec as a PyTorch module: gates, residual sections, parameters by their names in the spec."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ...arrays import Array, Arrays, Shape
from ...spec.layers import Layer, Section, UnitGate
from ...spec.network import Network
from .functions import per_channel
from .layers import OVERWRITABLE, module_of, padding_of

#: refprune's name of a parameter or statistic → PyTorch's attribute.
ATTRIBUTES = {"weight": "weight", "bias": "bias", "gain": "weight", "mean": "running_mean", "variance": "running_var"}


class Gate(nn.Module):
    """Multiplies by a layer gate, a number, or by one gate for every unit; `set_gates` puts them in."""

    def __init__(self) -> None:
        super().__init__()
        self.value = torch.ones(())

    def forward(self, x: Tensor) -> Tensor:
        return x * per_channel(self.value, x.ndim)


class Residual(nn.Module):
    """x ↦ ρ(shortcut(x) + path(x)); with `channels`, the path adds to those only.

    gate: the layer gate inside the path, if there is one. A closed section leaves its running statistics as they are.
    """

    def __init__(self, path: nn.Module, shortcut: nn.Module, section: Section, gate: Gate | None = None) -> None:
        super().__init__()
        self.path, self.shortcut, self.gate = path, shortcut, gate
        self.norms = [m for m in path.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
        self.post = nn.ReLU(inplace=True) if section.post == "relu" else nn.Identity()
        self.in_place = isinstance(section.path[-1], OVERWRITABLE)
        self.channels: Tensor | None
        self.register_buffer("channels", None if section.channels is None else torch.tensor(section.channels, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        closed = self.gate is not None and float(self.gate.value.detach()) == 0.0
        with frozen(self.norms if closed else []):
            y: Tensor = self.path(x)
        h: Tensor = self.shortcut(x)
        if self.channels is not None:
            y = h.index_add(1, self.channels, y)
        elif self.in_place:
            y += h
        else:
            y = y + h
        out: Tensor = self.post(y)
        return out


@contextlib.contextmanager
def frozen(norms: Sequence[nn.BatchNorm1d | nn.BatchNorm2d]) -> Iterator[None]:
    """Batch statistics are used, running ones are not moved."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    yield
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


class Module(nn.Module):
    """The network as a module: x ↦ logits. `parts`: refprune's layer name → the layer's module; `posts`: section's → ρ's;
    `gates`: gate group's → its.

    To try parts of one's own: override `layer`, `made_gate` or `made_residual`.
    """

    def __init__(self, network: Network, gated: bool = False) -> None:
        super().__init__()
        self.network, self.gated = network, gated
        self.parts: dict[str, nn.Module] = {}
        self.posts: dict[str, nn.Module] = {}
        self.gates: dict[str, Gate] = {}
        self.body = self.chain(network.layers)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y

    def chain(self, layers: Sequence[Layer]) -> nn.Sequential:
        modules: list[nn.Module] = []
        before: Layer | None = None
        for layer in layers:
            modules += self._modules_of(layer, before)
            before = layer
        return nn.Sequential(*modules)

    def layer(self, layer: Layer, shape: Shape, padding: tuple[int, int], *, in_place: bool) -> nn.Module:
        """The module of a layer that is neither a section nor a gate; padding: its own, both sides alike."""
        return module_of(layer, shape, padding, in_place=in_place)

    def made_gate(self) -> Gate:
        return Gate()

    def made_residual(self, path: nn.Module, shortcut: nn.Module, section: Section, gate: Gate | None) -> Residual:
        return Residual(path, shortcut, section, gate)

    def gate_index(self, section: Section) -> int:
        """Before which element of the path the layer gate multiplies; len(path): behind it."""
        return section.gate_index()

    def _modules_of(self, layer: Layer, before: Layer | None) -> list[nn.Module]:
        if isinstance(layer, Section):
            residual = self._residual(layer)
            self.posts[f"{layer.name}.post"] = residual.post
            return [residual]
        if isinstance(layer, UnitGate) and self.gated:
            self.gates[layer.name] = self.made_gate()
            return [self.gates[layer.name]]
        padding, around = padding_of(layer)
        shape = self.network.input_shapes[layer.name]
        module = self.layer(layer, shape, padding, in_place=isinstance(before, OVERWRITABLE))
        self.parts[layer.name] = module
        return [*around, module]

    def _residual(self, section: Section) -> Residual:
        shortcut = self.chain(section.shortcut)
        if not (self.gated and section.gate):
            return self.made_residual(self.chain(section.path), shortcut, section, None)
        gate, at = self.made_gate(), self.gate_index(section)
        self.gates[section.name] = gate
        path = nn.Sequential(self.chain(section.path[:at]), gate, self.chain(section.path[at:]))
        return self.made_residual(path, shortcut, section, gate)


def build(network: Network, *, gated: bool = False) -> Module:
    """The module of `network` with weights of PyTorch's own. InputError for a convention that PyTorch's layers lack."""
    return Module(network, gated)


def set_gates(module: Module, gates: Tensor) -> Module:
    """The same module with the gates (G,) in the order of the network's: 0 and 1, or any numbers; differentiable."""
    for group in module.network.gate_groups:
        value = gates[group.slice]
        module.gates[group.name].value = value[0] if group.kind == "layer" else value
    return module


def load(module: Module, params: Mapping[str, Array], statistics: Mapping[str, Array] | None = None) -> Module:
    """The same module with refprune's parameters and running statistics, in their precision; arrays are copied."""
    dtypes = {p.dtype for p in params.values()}
    if dtypes:
        (dtype,) = dtypes
        module.to(torch.from_numpy(np.zeros(0, dtype)).dtype)
    with torch.no_grad():
        for name, array in (dict(params) | dict(statistics or {})).items():
            _tensor(module, name).copy_(torch.from_numpy(np.array(array)))
    return module


def arrays(module: Module) -> Arrays:
    """Copies of all parameters and running statistics under refprune's names."""
    return by_parameter(module, lambda p: p) | {
        name: _array(_tensor(module, name)) for name in module.network.statistics_shapes
    }


def gradients(module: Module) -> Arrays:
    """Copies of the gradients that the last backward pass left at the parameters, under refprune's names."""
    return by_parameter(module, lambda p: p.grad)


def by_parameter(module: Module, get: Callable[[Tensor], Tensor]) -> Arrays:
    """A copy of what `get` finds for each parameter (its gradient, an optimiser's state), under refprune's names."""
    return {name: _array(get(_tensor(module, name))) for name in module.network.parameter_shapes}


def _tensor(module: Module, name: str) -> Tensor:
    layer, _, key = name.rpartition(".")
    tensor: Tensor = getattr(module.parts[layer], ATTRIBUTES[key])
    return tensor


def _array(tensor: Tensor) -> Array:
    """A copy; what NumPy lacks, bfloat16, as float32."""
    tensor = tensor.detach()
    return np.array((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy(), order="C")


def running_statistics(module: Module) -> Arrays:
    """Copies of the running statistics, under refprune's names."""
    return {name: _array(_tensor(module, name)) for name in module.network.statistics_shapes}
