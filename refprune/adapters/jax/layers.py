"""Single layers in JAX as pure functions of arrays, by the names and with the options of `Implementation`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

jax.config.update("jax_enable_x64", True)  # JAX turns float64 into float32 without it; float32 stays what it is

Tensor = Any
Padding = tuple[tuple[int, int], tuple[int, int]]
Pair = tuple[int, int]


def require(holds: bool, what: str) -> None:
    """NotImplementedError, which declines the call, where JAX has no such convention."""
    if not holds:
        raise NotImplementedError(f"JAX has no {what}")


def per_channel(v: Tensor, ndim: int) -> Tensor:
    """A vector of channels, shaped to broadcast; a number as it is."""
    return v if v.ndim == 0 else v.reshape(1, -1, *[1] * (ndim - 2))


def dense(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    return x @ w.T if b is None else x @ w.T + b


def conv2d(x: Tensor, w: Tensor, b: Tensor | None, *, stride: Pair, padding: Padding, dilation: Pair, groups: int) -> Tensor:
    axes = ("NCHW", "OIHW", "NCHW")
    options = {"rhs_dilation": dilation, "feature_group_count": groups, "dimension_numbers": axes}
    y = lax.conv_general_dilated(x, w, stride, padding, **options)
    return y if b is None else y + per_channel(b, 4)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every channel."""
    axes = (0, *range(2, x.ndim))
    mean = x.mean(axes)
    return mean, jnp.square(x - per_channel(mean, x.ndim)).mean(axes)


def batch_norm(x: Tensor, gain: Tensor, bias: Tensor, *, eps: float) -> Tensor:
    return batch_norm_eval(x, gain, bias, *moments(x), eps=eps)


def batch_norm_eval(x: Tensor, gain: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, *, eps: float) -> Tensor:
    mean, gain, bias = (per_channel(v, x.ndim) for v in (mean, gain, bias))
    return (x - mean) * per_channel(lax.rsqrt(variance + eps), x.ndim) * gain + bias


def leaky_relu(x: Tensor, *, slope: float, at_zero: float) -> Tensor:
    """JAX's three habits differ at 0: jax.nn.relu is flat there, jnp.maximum halves, jax.nn.leaky_relu has slope 1."""
    if at_zero == 0.0:
        return jnp.where(x > 0.0, x, slope * x) if slope else jax.nn.relu(x)
    if at_zero == 0.5:
        return jnp.maximum(x, 0.0) + slope * jnp.minimum(x, 0.0)
    require(at_zero == 1.0, f"subgradient {at_zero} at 0")
    return jax.nn.leaky_relu(x, slope)


def gelu(x: Tensor) -> Tensor:
    return jax.nn.gelu(x, approximate=False)


def gelu_tanh(x: Tensor) -> Tensor:
    return jax.nn.gelu(x, approximate=True)


def _windows(x: Tensor, start: float, reduce: Any, kernel: Pair, stride: Pair, padding: Padding) -> Tensor:
    return lax.reduce_window(x, start, reduce, (1, 1, *kernel), (1, 1, *stride), ((0, 0), (0, 0), *padding))


def max_pool(x: Tensor, *, kernel: Pair, stride: Pair, padding: Padding, ties: str) -> Tensor:
    require(ties == "first", f"max pool that takes the {ties} of ties")
    return _windows(x, -jnp.inf, lax.max, kernel, stride, padding)


def max_pool_choice(x: Tensor, *, kernel: Pair, stride: Pair, padding: Padding) -> Tensor:
    """Row-major index of the first maximum inside every window."""
    padded = jnp.pad(x, ((0, 0), (0, 0), *padding), constant_values=-jnp.inf)
    height, width = (n - k + 1 for n, k in zip(padded.shape[2:], kernel, strict=True))
    taps = [
        padded[:, :, i : i + height : stride[0], j : j + width : stride[1]] for i in range(kernel[0]) for j in range(kernel[1])
    ]
    return jnp.stack(taps).argmax(0)


def average_pool(x: Tensor, *, kernel: Pair, stride: Pair, padding: Padding, count_padding: bool) -> Tensor:
    total = _windows(x, 0.0, lax.add, kernel, stride, padding)
    if count_padding:
        return total / (kernel[0] * kernel[1])
    return total / _windows(jnp.ones_like(x), 0.0, lax.add, kernel, stride, padding)


def global_average_pool(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def flatten(x: Tensor) -> Tensor:
    return x.reshape(len(x), -1)


def subsample_pad(x: Tensor, *, stride: Pair, before: int, after: int) -> Tensor:
    return jnp.pad(x[:, :, :: stride[0], :: stride[1]], ((0, 0), (before, after), (0, 0), (0, 0)))


def add(shortcut: Tensor, path: Tensor, *, channels: tuple[int, ...] | None) -> Tensor:
    return shortcut + path if channels is None else shortcut.at[:, np.array(channels)].add(path)


def gate(x: Tensor, g: Tensor) -> Tensor:
    return x * per_channel(g, x.ndim)


def cross_entropy(logits: Tensor, labels: Tensor, *, reduction: str) -> Tensor:
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
    return losses.mean() if reduction == "mean" else losses.sum()


def mean_squared_error(prediction: Tensor, target: Tensor, *, reduction: str) -> Tensor:
    squares = jnp.square(prediction - target)
    return squares.mean() if reduction == "mean" else squares.sum() / (len(squares) if reduction == "batch_mean" else 1)


def weight_decay(w: Tensor, *, strength: float) -> Tensor:
    return 0.5 * strength * jnp.square(w).sum()
