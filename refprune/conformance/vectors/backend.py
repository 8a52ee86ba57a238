"""A Backend as an implementation to be verified: its functions, run by refprune's own network, and refprune's own surgery."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...adapters.implementation import EVERY, Implementation
from ...arrays import Array, Arrays
from ...backend import ORACLE, Backend, load_backend
from ...gates.surgery import prune
from ...passes.tape import forward
from ...spec.json_form import from_json
from ..asking.methods import dtype_of
from ..levels import LEVELS, METHODS


class BackendImplementation(Implementation):
    """Layers, networks, θ-gradients, training steps and compact networks of a Backend, in its own arithmetic of a precision."""

    conventions = EVERY

    def __init__(self, backend: Backend = ORACLE, precision: str = "float64") -> None:
        self.backend, self.precision = backend, precision

    def compact(self, spec: Any, params: Arrays, statistics: Arrays, keep: Array, x: Array, train: bool) -> dict[str, Any]:
        """`gates.surgery.prune`, and the smaller network run."""
        cut = prune(from_json(spec), keep, fix=np.ones(keep.shape, dtype=bool))
        left, running = cut.arrays(params), cut.arrays(statistics)
        tape = forward(cut.network, self.backend, left, x, statistics=running, train=train)
        return {"output": tape.output, "parameters": sum(p.size for p in left.values()), "params": left}


def _answering(name: str) -> Any:
    def answer(self: BackendImplementation, **arguments: Any) -> dict[str, Any]:
        hidden = {"_estimator": self.estimator} if name == "theta_estimate" else {}
        found = METHODS[name].values(arguments | hidden, self.backend)
        # sums of a whole batch, and what refprune keeps per gate, are Python floats or float64 whatever the backend is
        return {n: a.astype(dtype_of(self.precision)) if a.dtype == np.float64 else a for n, a in found.items()}

    return answer


# Names and arguments are those of the levels' tables, and all methods do the same: written out they would be 23 copies.
for _method in (*LEVELS["layers"], METHODS["network"], *LEVELS["theta"], METHODS["training_steps"]):
    setattr(BackendImplementation, _method.name, _answering(_method.name))


class NumbaImplementation(BackendImplementation):
    """The compiled backend with one thread."""

    def __init__(self) -> None:
        super().__init__(load_backend("numba", threads=1), "float32")
