"""Networks as frozen, JSON-able data: layers, sections, gates; what they compute and what they cost. No arrays.

For others:

- `Network`, `Loss`: a network, its loss.
- `Dense`, `Conv`, `BatchNorm`, `Activation`, `MaxPool`, `AveragePool`, `GlobalAveragePool`, `Flatten`, `SubsamplePad`: layers.
- `Section`, `UnitGate`: what carries gates.
- `zoo`: networks by name.
- `json_form`: a network as JSON and back.
- `cost`: MACs and parameters, now and expected under θ.
"""

from . import zoo
from .layers import (
    Activation,
    AveragePool,
    BatchNorm,
    Conv,
    Dense,
    Flatten,
    GlobalAveragePool,
    MaxPool,
    Section,
    SubsamplePad,
    UnitGate,
)
from .network import Loss, Network

__all__ = [
    "Activation",
    "AveragePool",
    "BatchNorm",
    "Conv",
    "Dense",
    "Flatten",
    "GlobalAveragePool",
    "Loss",
    "MaxPool",
    "Network",
    "Section",
    "SubsamplePad",
    "UnitGate",
    "zoo",
]
