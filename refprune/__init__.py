"""refprune: the reference implementation, in NumPy, of concurrent training and pruning of neural networks.

The names in `__all__` are the public ones. Each is imported when it is first asked for, so that `import refprune` loads neither
NumPy nor Numba.

>>> import refprune
>>> network = refprune.zoo.build("lenet-5", {})
>>> weights = refprune.initialise(network, refprune.Streams(0))
>>> x = refprune.Streams(0).uniform("image", 0, (2, 1, 28, 28))
>>> refprune.forward(network, refprune.ORACLE, weights, x).output.shape
(2, 10)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adapters.implementation import EVERY, PYTORCH, Implementation
    from .backend import ORACLE, Backend, load_backend
    from .formulas.cka import cka
    from .gates.estimators import exact_theta_gradient
    from .gates.surgery import prune
    from .passes.batch_loss import BatchLoss
    from .passes.parameters import initial_statistics, initialise
    from .passes.predictor import Predictor
    from .passes.tape import backward, forward
    from .rounding.tolerance import UNIT, network_tolerance
    from .spec import zoo
    from .spec.layers import (
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
    from .spec.network import Loss, Network
    from .streams import Streams

__version__ = "0.1.0"

__all__ = [
    "EVERY",
    "ORACLE",
    "PYTORCH",
    "UNIT",
    "Activation",
    "AveragePool",
    "Backend",
    "BatchLoss",
    "BatchNorm",
    "Conv",
    "Dense",
    "Flatten",
    "GlobalAveragePool",
    "Implementation",
    "Loss",
    "MaxPool",
    "Network",
    "Predictor",
    "Section",
    "Streams",
    "SubsamplePad",
    "UnitGate",
    "backward",
    "cka",
    "exact_theta_gradient",
    "forward",
    "initial_statistics",
    "initialise",
    "load_backend",
    "network_tolerance",
    "prune",
    "zoo",
]

#: The room or file that has each public name.
_HOMES = {
    "adapters": ("EVERY", "PYTORCH", "Implementation"),
    "backend": ("ORACLE", "Backend", "load_backend"),
    "formulas.cka": ("cka",),
    "gates": ("exact_theta_gradient", "prune"),
    "passes": ("BatchLoss", "Predictor", "backward", "forward", "initial_statistics", "initialise"),
    "rounding": ("UNIT", "network_tolerance"),
    "spec": (
        *("Activation", "AveragePool", "BatchNorm", "Conv", "Dense", "Flatten", "GlobalAveragePool", "Loss"),
        *("MaxPool", "Network", "Section", "SubsamplePad", "UnitGate", "zoo"),
    ),
    "streams": ("Streams",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """The public name, imported now. It is not kept here: a planted mistake replaces a function where it is at home."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'refprune' has no attribute {name!r}")
    return getattr(importlib.import_module(f"refprune.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
