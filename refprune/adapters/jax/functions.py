"""Formulas and single layers in JAX, as a user of it would write them: jax.numpy and jax.lax forward, jax.vjp backward.

Calls are compiled by jax.jit, once for every set of shapes and options that is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln, logit, xlogy

from ...arrays import Array
from ..implementation import EVERY, Conventions, Implementation
from . import layers
from .layers import Padding, Pair, Tensor, require

# --------------------------------------------------------------------------------------------------------------------
# Formulas


def log_normaliser(log_gamma: Tensor) -> Tensor:
    """log((γ−1)/log γ)."""
    size = jnp.where(log_gamma == 0.0, 1.0, jnp.abs(log_gamma))
    value = jnp.maximum(log_gamma, 0.0) + jnp.log(-jnp.expm1(-size) / size)
    return jnp.where(log_gamma == 0.0, 0.0, value)


def penalty(theta: Tensor, log_gamma: Tensor) -> Tensor:
    return log_gamma - log_normaliser(log_gamma) - theta * log_gamma


def kl(theta: Tensor, pi: Tensor) -> Tensor:
    on = xlogy(theta, theta) - xlogy(theta, pi)
    return on + xlogy(1.0 - theta, 1.0 - theta) - xlogy(1.0 - theta, 1.0 - pi)


def hyper_prior(pi: Tensor, log_gamma: Tensor) -> tuple[Tensor, Tensor]:
    """The log-density, and its slope −(γ−1)·(−1)/(1 + (γ−1)(1−π)) with γ, or 1/γ, of at most 1."""
    log_density = log_normaliser(log_gamma) - jnp.logaddexp(jnp.log(pi), log_gamma + jnp.log1p(-pi))
    below = jnp.exp(-jnp.abs(log_gamma))
    denominator = jnp.where(log_gamma > 0.0, below * pi + (1.0 - pi), pi + below * (1.0 - pi))
    return log_density, -jnp.sign(log_gamma) * jnp.expm1(-jnp.abs(log_gamma)) / denominator


def log_prior(w: Tensor, p: Mapping[str, Tensor], *, kind: str) -> Tensor:
    """log p(w), of each block or weight."""
    if kind == "laplace":
        return -jnp.abs(w) / p["width"] - jnp.log(2.0 * p["width"])
    require(kind != "horseshoe", "scaled exponential integral for the horseshoe")
    d, square = w.shape[-1], jnp.square(w).sum(-1)
    if kind == "student_t":
        nu, scale = p["degrees"], p["degrees"] * p["width"] ** 2
        constant = gammaln((nu + d) / 2) - gammaln(nu / 2) - d / 2 * jnp.log(jnp.pi * scale)
        return constant - (nu + d) / 2 * jnp.log1p(square / scale)
    slab = 0.5 * d * jnp.log(p["precision"] / (2.0 * jnp.pi)) - 0.5 * p["precision"] * square
    spike = -0.5 * d * jnp.log(2.0 * jnp.pi * p["spike"]) - square / (2.0 * p["spike"])
    return jnp.logaddexp(jnp.log(p["pi"]) + slab, jnp.log1p(-p["pi"]) + spike)


def prior(w: Tensor, p: Mapping[str, Tensor], *, kind: str) -> tuple[Tensor, Tensor]:
    """log p(w) and its gradient."""
    log_density, back = jax.vjp(lambda w: log_prior(w, p, kind=kind), w)
    return log_density, *back(jnp.ones_like(log_density))


def responsibility(w: Tensor, pi: Tensor, precision: Tensor, spike: Tensor) -> Tensor:
    odds = jnp.log(pi / (1.0 - pi)) + 0.5 * w.shape[-1] * jnp.log(precision * spike)
    return jax.nn.sigmoid(odds + 0.5 * jnp.square(w).sum(-1) * (1.0 / spike - precision))


def attracted(w: Tensor, theta: Tensor, kappa: Tensor, beta: Tensor, decay: Tensor, ratio: Tensor) -> Tensor:
    eigenvalue = 0.5 * (-decay + jnp.sqrt(decay**2 + 4.0 * ratio * kappa**2))
    return ratio * kappa * (w - beta / kappa) + (decay + eigenvalue) * (theta - decay * beta / kappa**2) < 0.0


def gram(x: Tensor) -> Tensor:
    """x xᵀ of centred features."""
    centred = x - x.mean(0)
    return centred @ centred.T


def rbf(x: Tensor) -> Tensor:
    """exp(−d²/2σ²), σ the median distance of different rows."""
    squares = jnp.square(x[:, None] - x[None]).sum(2)
    sigma = jnp.median(jnp.sqrt(squares[np.triu_indices(len(x), 1)]))
    return jnp.exp(-squares / (2.0 * jnp.square(sigma)))


def hsic(k: Tensor, l: Tensor, *, estimator: str) -> Tensor:  # noqa: E741
    n = len(k)
    if estimator == "biased":
        centred = k - k.mean(0) - k.mean(1)[:, None] + k.mean()
        return (centred * l).sum() / (n - 1) ** 2
    off = 1.0 - jnp.eye(n, dtype=k.dtype)
    k, l = k * off, l * off  # noqa: E741
    products = (k * l).sum() + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2.0 / (n - 2) * (k.sum(0) @ l.sum(0))
    return products / (n * (n - 3))


def features_hsic(x: Tensor, y: Tensor, *, estimator: str) -> Tensor:
    return hsic(gram(x), gram(y), estimator=estimator)


def cka(x: Tensor, y: Tensor, *, estimator: str, kernel: str) -> Tensor:
    k, l = ((gram if kernel == "linear" else rbf)(a) for a in (x, y))  # noqa: E741
    kl, kk, ll = (hsic(*pair, estimator=estimator) for pair in ((k, l), (k, k), (l, l)))
    return kl / jnp.sqrt(kk * ll)


def minibatch_cka(x: Tensor, y: Tensor) -> Tensor:
    def three(x: Tensor, y: Tensor) -> Tensor:
        return jnp.stack([features_hsic(*pair, estimator="unbiased") for pair in ((x, y), (x, x), (y, y))])

    kl, kk, ll = jax.vmap(three)(x, y).mean(0)
    return kl / jnp.sqrt(kk * ll)


# --------------------------------------------------------------------------------------------------------------------
# Calling them


def _run(function: Callable[..., Any], options: tuple[tuple[str, Any], ...], *arrays: Any) -> Any:
    return function(*arrays, **dict(options))


def _run_vjp(
    function: Callable[..., Tensor], options: tuple[tuple[str, Any], ...], dy: Tensor, arrays: Any, constants: Any
) -> Any:
    y, back = jax.vjp(lambda *arrays: function(*arrays, *constants, **dict(options)), *arrays)
    return y, *back(dy)


_compiled, _compiled_vjp = (jax.jit(f, static_argnums=(0, 1)) for f in (_run, _run_vjp))


#: JAX says all of it but which of two equal maxima gets the gradient.
FIRST_OF_TIES: Conventions = {**EVERY, "ties": ("first",)}


class JaxFunctions(Implementation):
    """The levels `scalars`, `layers` and `similarity`, and the pruning decisions."""

    conventions = FIRST_OF_TIES
    structures = 24

    def array(self, a: Any) -> Any:
        """Floats in the declared precision, labels and numbers as they are."""
        floats = isinstance(a, np.ndarray) and a.dtype.kind == "f"
        return a.astype(jnp.dtype(self.precision)) if floats else a

    def run(self, function: Callable[..., Any], *arrays: Any, **options: Any) -> Any:
        """function(*arrays, **options), compiled; options are static."""
        return _compiled(function, tuple(options.items()), *map(self.array, arrays))

    def vjp(
        self,
        function: Callable[..., Tensor],
        dy: Array,
        *arrays: Array | None,
        constants: tuple[Array, ...] = (),
        **options: Any,
    ) -> tuple[Tensor | None, ...]:
        """function(*arrays, *constants) and its gradients in the arrays for the cotangent; None for an array not there."""
        leaves, fixed = (tuple(map(self.array, group)) for group in (arrays, constants))
        found: tuple[Tensor | None, ...] = _compiled_vjp(function, tuple(options.items()), self.array(dy), leaves, fixed)
        return found

    # ------------------------------------------------------------------------------------------------------ formulas

    def pi_star(self, theta: Array, log_gamma: Array) -> Tensor:
        return self.run(_pi_star, theta, log_gamma)

    def penalty(self, theta: Array, log_gamma: Array) -> Tensor:
        return self.run(penalty, theta, log_gamma)

    def penalty_slope(self, theta: Array, log_gamma: Array) -> Tensor:
        return self.vjp(penalty, np.ones_like(theta), theta, constants=(log_gamma,))[1]

    def kl(self, theta: Array, pi: Array) -> Tensor:
        return self.run(kl, theta, pi)

    def hyper_prior(self, pi: Array, log_gamma: Array) -> Any:
        return self.run(hyper_prior, pi, log_gamma)

    def beta(self, log_gamma: float, samples: int) -> float:
        return -log_gamma / samples

    def prior(self, w: Array, kind: str, parameters: Mapping[str, float]) -> Any:
        return self.run(prior, w, dict(parameters), kind=kind)

    def responsibility(self, w: Array, pi: float, precision: float, spike: float) -> Tensor:
        return self.run(responsibility, w, pi, precision, spike)

    def theta_step(self, theta: Array, gradient: Array, beta: float, learning_rate: float) -> Tensor:
        return self.run(_theta_step, theta, gradient, beta, learning_rate)

    def pruning_decision(self, theta: Array, threshold: float) -> Tensor:
        return self.array(theta) > threshold

    def attracted(self, w: Array, theta: Array, kappa: Array, beta: float, decay: float, ratio: float) -> Tensor:
        return self.run(attracted, w, theta, kappa, beta, decay, ratio)

    # -------------------------------------------------------------------------------------------------------- layers

    def dense(self, x: Array, w: Array, b: Array | None, dy: Array) -> Any:
        return self.vjp(layers.dense, dy, x, w, b)

    def conv2d(
        self, x: Array, w: Array, b: Array | None, dy: Array, stride: Pair, padding: Padding, dilation: Pair, groups: int
    ) -> Any:
        return self.vjp(layers.conv2d, dy, x, w, b, stride=stride, padding=padding, dilation=dilation, groups=groups)

    def batch_norm(self, x: Array, gain: Array, bias: Array, dy: Array, eps: float) -> Any:
        return self.vjp(layers.batch_norm, dy, x, gain, bias, eps=eps)

    def batch_norm_eval(self, x: Array, gain: Array, bias: Array, mean: Array, variance: Array, dy: Array, eps: float) -> Any:
        return self.vjp(layers.batch_norm_eval, dy, x, gain, bias, constants=(mean, variance), eps=eps)

    def leaky_relu(self, x: Array, dy: Array, slope: float, at_zero: float) -> Any:
        return self.vjp(layers.leaky_relu, dy, x, slope=slope, at_zero=at_zero)

    def tanh(self, x: Array, dy: Array) -> Any:
        return self.vjp(jnp.tanh, dy, x)

    def sigmoid(self, x: Array, dy: Array) -> Any:
        return self.vjp(jax.nn.sigmoid, dy, x)

    def gelu(self, x: Array, dy: Array) -> Any:
        return self.vjp(layers.gelu, dy, x)

    def gelu_tanh(self, x: Array, dy: Array) -> Any:
        return self.vjp(layers.gelu_tanh, dy, x)

    def max_pool(self, x: Array, dy: Array, kernel: Pair, stride: Pair, padding: Padding, ties: str) -> Any:
        return self.vjp(layers.max_pool, dy, x, kernel=kernel, stride=stride, padding=padding, ties=ties)

    def average_pool(self, x: Array, dy: Array, kernel: Pair, stride: Pair, padding: Padding, count_padding: bool) -> Any:
        return self.vjp(layers.average_pool, dy, x, kernel=kernel, stride=stride, padding=padding, count_padding=count_padding)

    def global_average_pool(self, x: Array, dy: Array) -> Any:
        return self.vjp(layers.global_average_pool, dy, x)

    def flatten(self, x: Array, dy: Array) -> Any:
        return self.vjp(layers.flatten, dy, x)

    def subsample_pad(self, x: Array, dy: Array, stride: Pair, before: int, after: int) -> Any:
        return self.vjp(layers.subsample_pad, dy, x, stride=stride, before=before, after=after)

    def add(self, shortcut: Array, path: Array, dy: Array, channels: tuple[int, ...] | None) -> Any:
        return self.vjp(layers.add, dy, shortcut, path, channels=channels)

    def gate(self, x: Array, g: Array, dy: Array) -> Any:
        return self.vjp(layers.gate, dy, x, g)

    def cross_entropy(self, logits: Array, labels: Array, dy: Array, reduction: str) -> Any:
        return self.vjp(layers.cross_entropy, dy, logits, constants=(labels,), reduction=reduction)

    def mean_squared_error(self, prediction: Array, target: Array, dy: Array, reduction: str) -> Any:
        return self.vjp(layers.mean_squared_error, dy, prediction, constants=(target,), reduction=reduction)

    def weight_decay(self, w: Array, dy: Array, strength: float) -> Any:
        return self.vjp(layers.weight_decay, dy, w, strength=strength)

    # ---------------------------------------------------------------------------------------------------- similarity

    def hsic(self, x: Array, y: Array, estimator: str) -> Tensor:
        return self.run(features_hsic, x, y, estimator=estimator)

    def cka(self, x: Array, y: Array, estimator: str, kernel: str) -> Tensor:
        return self.run(cka, x, y, estimator=estimator, kernel=kernel)

    def minibatch_cka(self, x: Array, y: Array) -> Tensor:
        return self.run(minibatch_cka, x, y)


def _pi_star(theta: Tensor, log_gamma: Tensor) -> Tensor:
    return jax.nn.sigmoid(logit(theta) + log_gamma)


def _theta_step(theta: Tensor, gradient: Tensor, beta: Tensor, learning_rate: Tensor) -> Tensor:
    return jnp.clip(theta - learning_rate * (gradient + beta), 0.0, 1.0)
