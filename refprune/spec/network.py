"""Networks as data: frozen, JSON-able specs of layers, sections, gates and conventions (SPEC N1-N5). No arrays here.

A network is a chain of layers and sections. A layer maps one array to one array; a `Section` adds a path to a shortcut,
h ↦ ρ(s(h) + ξ·path(h)). Layer gates ξ belong to sections, unit gates u are `UnitGate` layers. Conventions on which
frameworks disagree are named fields, with PyTorch's choice as default.

Names: every layer has one, unique in the network; what is left empty is filled in ("dense1", "section3.conv2"). They key
the parameters ("section3.conv2.weight") and survive pruning, however positions shift.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from ..arrays import Shape
from ..errors import SpecError
from .layers import Activation, BatchNorm, Layer, Section, UnitGate, chain_shape, choose
from .unit_links import UnitLinks, unit_links

#: The largest whole number that a layer may have, and the most layers of a network.
LARGEST, MOST_LAYERS = 1 << 24, 100_000

#: How pixels become inputs (`refprune.data.standardise`).
SCALINGS = ("channel", "pixel_mean")


@dataclass(frozen=True)
class Loss:
    """The loss at the end of a network, in nats.

    kind: "cross_entropy" −log softmax(output)[label] with integer labels, or "mean_squared_error".
    reduction: "mean" over the batch or "sum". For the squared error "mean" is over all entries, as in PyTorch; "batch_mean"
        sums over the outputs and takes the mean over the batch.

    >>> from refprune import Loss
    >>> Loss()
    Loss(kind='cross_entropy', reduction='mean')
    """

    kind: str = "cross_entropy"
    reduction: str = "mean"

    def __post_init__(self) -> None:
        choose("loss kind", self.kind, ("cross_entropy", "mean_squared_error"))
        allowed = ("mean", "sum") if self.kind == "cross_entropy" else ("mean", "batch_mean", "sum")
        choose("loss reduction", self.reduction, allowed)


@dataclass(frozen=True)
class GateGroup:
    """The layer gate of one section, or the unit gates of one layer; entries start … stop−1 of the gate vector.

    position: index of the chain element that holds it: the network behind it is what a flip of the gate changes.
    """

    name: str
    kind: str
    start: int
    stop: int
    position: int

    @property
    def slice(self) -> slice:
        return slice(self.start, self.stop)


@dataclass(frozen=True)
class Inputs:
    """How pixels of 0 … 255 become inputs: x = (pixel − shift)·scale, as numbers.

    shift: a number for each channel, or for each pixel of an image, channel by channel.
    scale: a number for each channel.

    SpecError for numbers that are not finite, and a scale of 0.

    >>> from refprune.spec.network import Inputs
    >>> Inputs((0.0,), (1 / 255,))
    Inputs(shift=(0.0,), scale=(0.00392156862745098,))
    """

    shift: tuple[float, ...]
    scale: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("shift", "scale"):
            numbers = getattr(self, name)
            if not isinstance(numbers, tuple) or not numbers or not all(_is_number(n) for n in numbers):
                raise SpecError(f"inputs: {name} must be a list of finite numbers, got {numbers!r}")
        if 0.0 in self.scale:
            raise SpecError("inputs: a scale of 0 makes all images alike")


def _check_sizes(layers: Iterable[Layer]) -> None:
    """SpecError for a whole number in a layer, such as a width or a padding, that no array could have."""
    for layer in layers:
        for field in dataclasses.fields(layer):
            value = getattr(layer, field.name)
            if isinstance(layer, Section) and field.name in ("path", "shortcut"):
                _check_sizes(value)
            elif (largest := _largest(value)) > LARGEST:
                name = layer.name or type(layer).__name__
                raise SpecError(f"{name}: {field.name} has {len(str(largest))} digits; at most {LARGEST:,} is allowed")


def _largest(value: object) -> int:
    if isinstance(value, tuple):
        return max(map(_largest, value), default=0)
    return abs(value) if isinstance(value, int) else 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Network:
    """A chain of layers and sections with a loss, as frozen data without arrays (N1); checked as a whole when it is made.

    input_shape: (n,) or (channels, height, width), without the batch axis.
    layers: layers and sections in the order of data flow. Empty names are filled in ("dense1", "section2.conv1").
    loss: what training minimises.
    scaling: how pixels become inputs, "channel" or "pixel_mean" (`refprune.data.standardise`).
    inputs: the same as numbers, which then count; None: the numbers are the data set's own.

    SpecError names the layer and its shapes.

    >>> from refprune import Activation, Dense, Network, Section
    >>> network = Network((4,), (Dense(8), Section((Dense(8), Activation("relu"))), Dense(3)))
    >>> network.output_shape, network.gate_count
    ((3,), 1)
    >>> list(network.parameter_shapes)[:3]
    ['dense1.weight', 'dense1.bias', 'section1.dense1.weight']
    """

    input_shape: Shape
    layers: tuple[Layer, ...]
    loss: Loss = Loss()
    scaling: str = "channel"
    inputs: Inputs | None = None

    def __post_init__(self) -> None:
        choose("scaling", self.scaling, SCALINGS)
        self._check_inputs()
        if not isinstance(self.layers, tuple) or not all(isinstance(layer, Layer) for layer in self.layers):
            raise SpecError(f"layers: expected a tuple of layers, got {self.layers!r}")
        if len(self.layers) > MOST_LAYERS:
            raise SpecError(f"layers: {len(self.layers):,} are more than {MOST_LAYERS:,}, the most that is allowed")
        _check_sizes(self.layers)
        if not isinstance(self.loss, Loss):
            raise SpecError(f"loss: expected a Loss, got {self.loss!r}")
        if (
            not isinstance(self.input_shape, tuple)
            or len(self.input_shape) not in (1, 3)
            or not all(type(n) is int and n > 0 for n in self.input_shape)
        ):
            raise SpecError(f"input_shape: expected (n,) or (channels, height, width), got {self.input_shape!r}")
        object.__setattr__(self, "layers", _named(self.layers))
        names = Counter(layer.name for layer, _ in self.placed())
        names.update(f"{layer.name}.{part}" for layer in self.layers if isinstance(layer, Section) for part in ("gate", "post"))
        twice = sorted(name for name, count in names.items() if count > 1)
        if twice:
            rule = "layer names must be unique (a section also takes NAME.gate and NAME.post)"
            raise SpecError(f"{rule}; these occur more than once: {', '.join(twice)}")
        if len(self.output_shape) != 1 or self.output_shape[0] < 1:
            end = self.layers[-1].name if self.layers else "layers"
            raise SpecError(f"{end}: the network must end with a vector, got shape {self.output_shape}")
        _ = self.unit_links  # raises where a unit gate is impossible

    def _check_inputs(self) -> None:
        if self.inputs is None:
            return
        if not isinstance(self.inputs, Inputs):
            raise SpecError(f"inputs: expected shift and scale, got {self.inputs!r}")
        channels, whole = self.input_shape[0], math.prod(self.input_shape)
        if len(self.inputs.scale) != channels or len(self.inputs.shift) not in (channels, whole):
            raise SpecError(
                f"inputs: {len(self.inputs.shift)} shifts and {len(self.inputs.scale)} scales do not fit images of shape "
                f"{self.input_shape}; a scale a channel, and a shift a channel or a pixel are allowed"
            )

    def placed(self) -> Iterator[tuple[Layer, Shape]]:
        """Every layer in data-flow order with its input shape; a section comes before its shortcut and its path."""
        shape = self.input_shape
        for layer in self.layers:
            yield layer, shape
            if isinstance(layer, Section):
                for chain in (layer.shortcut, layer.path):
                    inner = shape
                    for part in chain:
                        yield part, inner
                        inner = part.output_shape(inner)
            shape = layer.output_shape(shape)

    @cached_property
    def unit_links(self) -> dict[str, UnitLinks]:
        """Unit gate's name → the layers that lose rows and columns with its units."""
        links: dict[str, UnitLinks] = {}
        for chain, in_section in [(self.layers, False)] + [(e.path, True) for e in self.layers if isinstance(e, Section)]:
            shapes = [self.input_shapes[layer.name] for layer in chain]
            for i, layer in enumerate(chain):
                if isinstance(layer, UnitGate):
                    links[layer.name] = unit_links(chain, shapes, i, in_section=in_section)
        return links

    @cached_property
    def output_shape(self) -> Shape:
        return chain_shape(self.layers, self.input_shape)

    @cached_property
    def input_shapes(self) -> dict[str, Shape]:
        """Layer name → shape of its input."""
        return {layer.name: shape for layer, shape in self.placed()}

    @cached_property
    def first_trainable(self) -> int:
        """Position of the first chain element with parameters or gates: gradients need not flow further back."""

        def trains(layer: Layer) -> bool:
            parts = (layer, *layer.shortcut, *layer.path) if isinstance(layer, Section) else (layer,)
            return any(part.parameter_keys() or part.name in self.gate_slices for part in parts)

        return next((i for i, layer in enumerate(self.layers) if trains(layer)), len(self.layers))

    @cached_property
    def parameter_shapes(self) -> dict[str, Shape]:
        """Parameter name ("layer.weight") → shape, in data-flow order."""
        return {
            f"{layer.name}.{key}": size for layer, shape in self.placed() for key, size in layer.parameter_shapes(shape).items()
        }

    @cached_property
    def statistics_shapes(self) -> dict[str, Shape]:
        """Running statistics ("layer.mean", "layer.variance") → shape."""
        return {f"{norm.name}.{key}": self.input_shapes[norm.name][:1] for norm in self.norms for key in ("mean", "variance")}

    @cached_property
    def norms(self) -> tuple[BatchNorm, ...]:
        """All batch-norms in data-flow order."""
        return tuple(layer for layer, _ in self.placed() if isinstance(layer, BatchNorm))

    @cached_property
    def gate_groups(self) -> tuple[GateGroup, ...]:
        """All gates in data-flow order; a section's own gate comes before the unit gates inside it."""
        groups: list[GateGroup] = []
        start = 0
        for position, element in enumerate(self.layers):
            parts = (element, *element.path) if isinstance(element, Section) else (element,)
            for layer in parts:
                if isinstance(layer, Section) and layer.gate:
                    kind, size = "layer", 1
                elif isinstance(layer, UnitGate):
                    kind, size = "unit", self.input_shapes[layer.name][0]
                else:
                    continue
                groups.append(GateGroup(layer.name, kind, start, start + size, position))
                start += size
        return tuple(groups)

    @cached_property
    def gate_slices(self) -> dict[str, slice]:
        """Gate group's name → its place in the gate vector."""
        return {group.name: group.slice for group in self.gate_groups}

    @property
    def gate_count(self) -> int:
        return self.gate_groups[-1].stop if self.gate_groups else 0

    @cached_property
    def gate_positions(self) -> frozenset[int]:
        """Positions of the chain elements that hold gates."""
        return frozenset(group.position for group in self.gate_groups)


def _named(layers: Sequence[Layer], prefix: str = "") -> tuple[Layer, ...]:
    """The same layers with every empty name filled in: kind and a running number, after the section's name."""
    counts: dict[str, int] = {}
    named: list[Layer] = []
    for layer in layers:
        kind = layer.kind if isinstance(layer, Activation) else type(layer).__name__.lower()
        counts[kind] = counts.get(kind, 0) + 1
        name = layer.name or f"{prefix}{kind}{counts[kind]}"
        if isinstance(layer, Section):
            path, shortcut = _named(layer.path, f"{name}."), _named(layer.shortcut, f"{name}.shortcut.")
            layer = dataclasses.replace(layer, name=name, path=path, shortcut=shortcut)
        named.append(layer if layer.name else dataclasses.replace(layer, name=name))
    return tuple(named)
