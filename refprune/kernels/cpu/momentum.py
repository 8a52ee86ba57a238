"""The update of momentum SGD in one pass, with the oracle's bits. Same contract as `refprune.oracle.momentum.momentum_step`."""

from __future__ import annotations

from ...arrays import Array
from ...oracle import momentum as momentum_oracle
from ..machine.kernel import ELEMENT_GRAIN, FLOATS, kernel, reader, ready, share, writer
from ..machine.workspace import Workspace


@kernel(lambda f: (reader(f, 1), reader(f, 1), reader(f, 1), f, f, f, writer(f, 1), writer(f, 1)))
def _momentum_step(
    part: int,
    parts: int,
    w: Array,
    v: Array,
    g: Array,
    learning_rate: float,
    momentum: float,
    decay: float,
    new_w: Array,
    new_v: Array,
) -> None:
    low, high = part * len(w) // parts, (part + 1) * len(w) // parts
    w, v, g, new_w, new_v = w[low:high], v[low:high], g[low:high], new_w[low:high], new_v[low:high]
    for i in range(len(w)):
        velocity = momentum * v[i] + (g[i] + decay * w[i])
        new_v[i] = velocity
        new_w[i] = w[i] - learning_rate * velocity


def momentum_step(
    workspace: Workspace, w: Array, v: Array, g: Array, *, learning_rate: float, momentum: float, decay: float
) -> tuple[Array, Array]:
    """Same contract as `refprune.oracle.momentum.momentum_step`."""
    dtype = w.dtype
    if dtype not in FLOATS or not (v.dtype == g.dtype == dtype and v.shape == g.shape == w.shape):
        return momentum_oracle.momentum_step(w, v, g, learning_rate=learning_rate, momentum=momentum, decay=decay)
    new_w, new_v = workspace.empty(w.shape, dtype), workspace.empty(w.shape, dtype)
    _momentum_step[dtype](
        share(workspace.threads, w.size, ELEMENT_GRAIN),
        ready(w).reshape(-1),
        ready(v).reshape(-1),
        ready(g).reshape(-1),
        dtype.type(learning_rate),
        dtype.type(momentum),
        dtype.type(decay),
        new_w.reshape(-1),
        new_v.reshape(-1),
    )
    return new_w, new_v
