"""A Backend as an implementation to be verified: its functions, run by refprune's own network."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend import ORACLE, Backend, by_name
from ..implementation import EVERY, Implementation
from .levels import LEVELS, METHODS
from .methods import dtype_of


class BackendImplementation(Implementation):
    """Layers, networks and training steps of a Backend, in its own arithmetic of the given precision."""

    conventions = EVERY

    def __init__(self, backend: Backend = ORACLE, precision: str = "float64") -> None:
        self.backend, self.precision = backend, precision


def _answering(name: str) -> Any:
    def answer(self: BackendImplementation, **arguments: Any) -> dict[str, Any]:
        found = METHODS[name].values(arguments, self.backend)
        # sums of a whole batch, and what refprune keeps per gate, are Python floats or float64 whatever the backend is
        return {n: a.astype(dtype_of(self.precision)) if a.dtype == np.float64 else a for n, a in found.items()}

    return answer


for _method in (*LEVELS["layers"], METHODS["network"], METHODS["training_steps"]):
    setattr(BackendImplementation, _method.name, _answering(_method.name))


class NumbaImplementation(BackendImplementation):
    """The compiled backend with one thread."""

    def __init__(self) -> None:
        super().__init__(by_name("numba", threads=1), "float32")
