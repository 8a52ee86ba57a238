"""A Backend is a record of functions: whoever computes is one, and the network does not know which."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from .arrays import Array, Saved
from .errors import InputError
from .formulas import cka, hyper_prior, priors
from .oracle import crop_flip, fused, layers, momentum

Forward = Callable[..., tuple[Array, Saved]]
Vjp = Callable[..., tuple[Any, ...]]
Fused = Callable[..., Array]


@dataclasses.dataclass(frozen=True)
class Backend:
    """A record of functions: for every layer f a pair (f, f_vjp), and what training computes besides (G1).

    f(x, parameters, conventions) → (y, saved) and f_vjp(saved, dy) → gradients, as `refprune.oracle.layers` documents them. No
    function keeps a state, and nothing is global: a backend is handed to what computes with it.

    name: how it is called in messages.
    momentum_step, crop_flip, cross_product: without VJP; see `refprune.oracle.momentum`, `refprune.oracle.crop_flip` and
        `refprune.formulas.cka.numpy_product`.
    prior_density, flattening_profile, flattening_density: see `refprune.formulas.priors` and `refprune.formulas.hyper_prior`.
    dense_fused, conv2d_fused: for inference, without VJP; None: composed of the backend's own functions. Give None where one of
        these is replaced.

    To change one function, replace it:

    >>> import dataclasses
    >>> from refprune import ORACLE
    >>> def doubled(saved, dy):
    ...     dx, dg = ORACLE.gate_vjp(saved, dy)
    ...     return dx, 2 * dg
    >>> wrong = dataclasses.replace(ORACLE, name="wrong", gate_vjp=doubled)
    >>> wrong.name, wrong.dense is ORACLE.dense
    ('wrong', True)
    """

    name: str
    dense: Forward
    dense_vjp: Vjp
    conv2d: Forward
    conv2d_vjp: Vjp
    batch_norm: Forward
    batch_norm_vjp: Vjp
    batch_norm_eval: Forward
    batch_norm_eval_vjp: Vjp
    leaky_relu: Forward
    leaky_relu_vjp: Vjp
    tanh: Forward
    tanh_vjp: Vjp
    sigmoid: Forward
    sigmoid_vjp: Vjp
    gelu: Forward
    gelu_vjp: Vjp
    gelu_tanh: Forward
    gelu_tanh_vjp: Vjp
    max_pool: Forward
    max_pool_vjp: Vjp
    average_pool: Forward
    average_pool_vjp: Vjp
    global_average_pool: Forward
    global_average_pool_vjp: Vjp
    flatten: Forward
    flatten_vjp: Vjp
    subsample_pad: Forward
    subsample_pad_vjp: Vjp
    add: Forward
    add_vjp: Vjp
    gate: Forward
    gate_vjp: Vjp
    cross_entropy: Forward
    cross_entropy_vjp: Vjp
    mean_squared_error: Forward
    mean_squared_error_vjp: Vjp
    weight_decay: Forward
    weight_decay_vjp: Vjp
    momentum_step: Callable[..., tuple[Array, Array]]
    crop_flip: Callable[..., Array]
    cross_product: Callable[..., Array]
    prior_density: Callable[..., priors.Density]
    flattening_profile: Callable[..., hyper_prior.Profile]
    flattening_density: Callable[..., hyper_prior.HyperPrior]
    dense_fused: Fused | None = None
    conv2d_fused: Fused | None = None


#: Functions of a Backend that are never differentiated: priors, of training in all, and the fused ones.
PRIORS = ("prior_density", "flattening_profile", "flattening_density")
WITHOUT_VJP = ("momentum_step", "crop_flip", "cross_product", *PRIORS)
FUSED = ("dense_fused", "conv2d_fused")

#: Names of the other functions of a Backend, each forward directly before its VJP.
FUNCTIONS: tuple[str, ...] = tuple(f.name for f in dataclasses.fields(Backend) if f.name not in ("name", *WITHOUT_VJP, *FUSED))

#: Pure NumPy, float64 or complex128: made for reading and judging.
ORACLE = Backend(
    "oracle",
    momentum_step=momentum.momentum_step,
    crop_flip=crop_flip.crop_flip,
    cross_product=cka.numpy_product,
    prior_density=priors.prior_density,
    flattening_profile=hyper_prior.flattening_profile,
    flattening_density=hyper_prior.flattening_density,
    dense_fused=fused.dense_fused,
    conv2d_fused=fused.conv2d_fused,
    **{name: getattr(layers, name) for name in FUNCTIONS},
)

NAMES = ("oracle", "numba")


def load_backend(name: str, *, threads: int | None = None) -> Backend:
    """The backend called `name`.

    name: "oracle" (NumPy, float64 and complex128, for reading and judging) or "numba" (compiled, float32 and float64).
    threads: how many threads "numba" uses; None: all cores. The number changes no bit of the results.

    InputError for another name, or for threads outside 1 … the cores that Numba sees.

    >>> from refprune import ORACLE, load_backend
    >>> load_backend("oracle") is ORACLE
    True
    >>> load_backend("numba", threads=1).name
    'numba'
    """
    if name == "oracle":
        return ORACLE
    if name == "numba":
        from . import kernels

        fast: dict[str, Any] = {**dict.fromkeys(FUSED), **kernels.functions(threads)}
        return dataclasses.replace(ORACLE, name="numba", **fast)
    raise InputError(f"backend: {name!r} is not known; allowed are {', '.join(NAMES)}")
