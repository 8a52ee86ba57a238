"""The numba backend: the layers that cost time, compiled, for float32 and float64.

Numba is imported when `functions` is called, never by `import refprune`. Each kernel is compiled, or loaded from disk, when
it first runs. What a kernel does not take — another dtype, mixed dtypes, shapes that do not meet — goes to the oracle's
function of the same name, which computes it or raises its own error.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ..errors import InputError

__all__ = ["functions"]


def functions(threads: int | None = None) -> dict[str, Callable[..., Any]]:
    """The functions that replace the oracle's, by name; at most `threads` threads work in each.

    None: all cores that the process may use, or fewer if NUMBA_NUM_THREADS says so. The results are the same bits for every
    number.
    """
    import numba

    from .cpu import batch_norm, conv, crop_flip, cross_entropy, elementwise, matmul, momentum, pool, priors
    from .machine import cores
    from .machine.workspace import Workspace

    config: Any = numba.config
    available = int(config.NUMBA_NUM_THREADS)
    if threads is None:
        threads = min(available, cores.allowed())
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= available:
        raise InputError(f"threads: {threads!r} is not possible here; allowed are the integers 1 to {available}")
    chosen = (
        *(matmul.dense, matmul.dense_vjp, matmul.dense_fused, conv.conv2d, conv.conv2d_vjp, conv.conv2d_fused),
        *(batch_norm.batch_norm, batch_norm.batch_norm_vjp, batch_norm.batch_norm_eval, batch_norm.batch_norm_eval_vjp),
        *(cross_entropy.cross_entropy, cross_entropy.cross_entropy_vjp),
        *(elementwise.leaky_relu, elementwise.leaky_relu_vjp, elementwise.gate, elementwise.gate_vjp),
        *(elementwise.add, elementwise.add_vjp, elementwise.subsample_pad, elementwise.subsample_pad_vjp),
        *(pool.max_pool, pool.max_pool_vjp, pool.average_pool, pool.average_pool_vjp),
        *(pool.global_average_pool, pool.global_average_pool_vjp),
        *(momentum.momentum_step, crop_flip.crop_flip, matmul.cross_product),
        *(priors.prior_density, priors.flattening_profile, priors.flattening_density),
    )
    workspace = Workspace(threads)
    return {f.__name__: functools.partial(f, workspace) for f in chosen}
