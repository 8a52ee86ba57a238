"""The oracle: every layer's forward function and, right below it, its vector-Jacobian product (SPEC G, G1-G3).

Contract of every pair (f, f_vjp), which every other backend keeps too:

* `y, saved = f(x, ..., conventions by keyword)`; `saved` holds what the VJP needs, and the *branch* that was taken.
* `f_vjp(saved, dy)` returns the gradient with respect to x, followed by those of the other array arguments, in order.
* A function with kinks (ReLU, max pooling) accepts `branch=` and then takes that branch instead of its own (G3).
* Inputs are never changed and may have any strides, be read-only, or have batch size 1. Results may have any strides, and
  are views of an input only where the docstring says so. The dtype of x is kept: float64 and complex128 are the oracle's
  precisions.
* Complex inputs carry a complex step (G2): branches go by the real part, nothing takes a modulus or conjugates.

Shapes: dense data N×n, images N×C×H×W, weights as in PyTorch (out×in, out×in/groups×kh×kw).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.special import erf

from ..arrays import Array, Padding, Pair, Saved, per_channel
from ..errors import InputError

# --------------------------------------------------------------------------------------------------------------------
# Affine maps


def dense(x: Array, w: Array, b: Array | None = None) -> tuple[Array, Saved]:
    """y = x wᵀ + b with x N×n, w m×n, b m."""
    y = x @ w.T
    return (y if b is None else y + b), Saved((x, w))


def dense_vjp(saved: Saved, dy: Array, *, input_gradient: bool = True) -> tuple[Array | None, Array, Array]:
    """dx = dy w (None unless input_gradient: the first layer of a network does without), dw = dyᵀ x, db = Σ dy."""
    x, w = saved.values
    return (dy @ w if input_gradient else None), dy.T @ x, dy.sum(axis=0)


def _taps(kernel: Pair, stride: Pair, dilation: Pair, out: Pair) -> list[tuple[int, int, tuple[slice, slice]]]:
    """For each kernel tap (i, j): where in the padded image its operands lie, one per output pixel."""
    (sh, sw), (eh, ew), (ho, wo) = stride, dilation, out
    return [
        (i, j, (slice(i * eh, i * eh + sh * (ho - 1) + 1, sh), slice(j * ew, j * ew + sw * (wo - 1) + 1, sw)))
        for i in range(kernel[0])
        for j in range(kernel[1])
    ]


def pad(x: Array, padding: Padding, value: float = 0.0) -> Array:
    return np.pad(x, ((0, 0), (0, 0), *padding), constant_values=value)


def _unpad(x: Array, padding: Padding) -> Array:
    (top, bottom), (left, right) = padding
    return x[:, :, top : x.shape[2] - bottom, left : x.shape[3] - right]


def _windows(x: Array, kernel: Pair, stride: Pair, dilation: Pair = (1, 1)) -> Array:
    """Read-only view N×C×Ho×Wo×kh×kw of the windows of a padded image."""
    extent = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))
    view = sliding_window_view(x, extent, axis=(2, 3))
    return view[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]


def conv2d(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    stride: Pair = (1, 1),
    padding: Padding = ((0, 0), (0, 0)),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> tuple[Array, Saved]:
    """Cross-correlation  y[n,o,p,q] = Σ_{c,i,j} w[o,c,i,j] x̂[n, c, p·sh + i·eh, q·sw + j·ew] + b[o]  (x̂: x zero-padded).

    x N×C×H×W, w O×(C/groups)×kh×kw, b O; padding ((top, bottom), (left, right)), so that TensorFlow's asymmetric "same"
    can be said; output channel o sees the input channels of its group only.
    """
    windows = _windows(pad(x, padding), (w.shape[2], w.shape[3]), stride, dilation)
    per_group = [
        np.tensordot(wx, wg, axes=((1, 4, 5), (1, 2, 3)))
        for wx, wg in zip(np.split(windows, groups, axis=1), np.split(w, groups), strict=True)
    ]
    y = np.moveaxis(np.concatenate(per_group, axis=-1), -1, 1)
    y = np.ascontiguousarray(y) if b is None else y + per_channel(b, 4)
    return y, Saved((x, w, stride, padding, dilation, groups))


def conv2d_vjp(saved: Saved, dy: Array, *, input_gradient: bool = True) -> tuple[Array | None, Array, Array]:
    """dw: dy correlated with the windows of x; dx: each tap hands dy back to the pixels it read; db = Σ dy."""
    x, w, stride, padding, dilation, groups = saved.values
    padded, kernel = pad(x, padding), (w.shape[2], w.shape[3])
    windows = np.split(_windows(padded, kernel, stride, dilation), groups, axis=1)
    dy_groups, w_groups = np.split(dy, groups, axis=1), np.split(w, groups)
    dw = np.concatenate([np.tensordot(g, wx, axes=((0, 2, 3), (0, 2, 3))) for g, wx in zip(dy_groups, windows, strict=True)])
    db = dy.sum(axis=(0, 2, 3))
    if not input_gradient:
        return None, dw, db
    dpadded = np.zeros(padded.shape, dtype=np.result_type(dy, w))
    for i, j, (rows, columns) in _taps(kernel, stride, dilation, (dy.shape[2], dy.shape[3])):
        parts = [np.tensordot(g, wg[:, :, i, j], axes=(1, 0)) for g, wg in zip(dy_groups, w_groups, strict=True)]
        dpadded[:, :, rows, columns] += np.moveaxis(np.concatenate(parts, axis=-1), -1, 1)
    return _unpad(dpadded, padding), dw, db


# --------------------------------------------------------------------------------------------------------------------
# Batch normalisation


def batch_norm(x: Array, gain: Array, bias: Array, *, eps: float) -> tuple[Array, Saved]:
    """Train mode: y = gain·(x − μ)/√(v + eps) + bias, with μ and the *biased* variance v of this batch, per channel.

    x N×C or N×C×H×W. `saved.statistics` = (μ, v, values per channel). A single value has no variance: InputError (N4).
    """
    axes = (0, *range(2, x.ndim))
    count = len(x) * math.prod(x.shape[2:])
    if count == 1:
        raise InputError(f"train-mode batch-norm needs more than one value per channel; got x of shape {x.shape}")
    mean = x.mean(axis=axes)
    centred = x - per_channel(mean, x.ndim)
    variance = (centred * centred).mean(axis=axes)  # not np.var: it takes a modulus (G2)
    inverse = 1.0 / np.sqrt(variance + eps)
    normal = centred * per_channel(inverse, x.ndim)
    y = normal * per_channel(gain, x.ndim) + per_channel(bias, x.ndim)
    return y, Saved((normal, inverse, gain), statistics=(mean, variance, count))


def batch_norm_vjp(saved: Saved, dy: Array) -> tuple[Array, Array, Array]:
    """dx = gain/√(v+eps) · (dy − mean dy − n·mean(n·dy)) with n the normalised input: μ and v depend on x too."""
    normal, inverse, gain = saved.values
    axes = (0, *range(2, dy.ndim))
    dbias, dgain = dy.sum(axis=axes), (dy * normal).sum(axis=axes)
    count = len(dy) * math.prod(dy.shape[2:])
    inner = dy - per_channel(dbias / count, dy.ndim) - normal * per_channel(dgain / count, dy.ndim)
    return inner * per_channel(gain * inverse, dy.ndim), dgain, dbias


def batch_norm_eval(x: Array, gain: Array, bias: Array, mean: Array, variance: Array, *, eps: float) -> tuple[Array, Saved]:
    """Eval mode: the same with the running mean and variance, which are constants (no gradient)."""
    inverse = 1.0 / np.sqrt(variance + eps)
    normal = (x - per_channel(mean, x.ndim)) * per_channel(inverse, x.ndim)
    return normal * per_channel(gain, x.ndim) + per_channel(bias, x.ndim), Saved((normal, inverse, gain))


def batch_norm_eval_vjp(saved: Saved, dy: Array) -> tuple[Array, Array, Array]:
    """dx = gain/√(v+eps) · dy, dgain = Σ n·dy, dbias = Σ dy."""
    normal, inverse, gain = saved.values
    axes = (0, *range(2, dy.ndim))
    return dy * per_channel(gain * inverse, dy.ndim), (dy * normal).sum(axis=axes), dy.sum(axis=axes)


# --------------------------------------------------------------------------------------------------------------------
# Activations


def leaky_relu(x: Array, *, slope: float, at_zero: float, branch: Array | None = None) -> tuple[Array, Saved]:
    """max(x, 0) + slope·min(x, 0); ReLU is slope 0. Branch: the sign of x as int8.

    at_zero ∈ [0, 1] says which subgradient is taken at exactly 0: slope + at_zero·(1 − slope). PyTorch: 0.
    """
    taken = (x.real > 0).astype(np.int8) - (x.real < 0).astype(np.int8) if branch is None else branch
    factor = np.choose(taken + 1, (slope, slope + at_zero * (1.0 - slope), 1.0)).astype(x.real.dtype)
    finite = np.where((taken < 0) & (factor == 0.0), 0.0, x)  # relu(−∞) = 0, but −∞·0 is not
    return finite * factor, Saved((factor,), taken)


def leaky_relu_vjp(saved: Saved, dy: Array) -> tuple[Array]:
    """dx = dy · (1, the declared subgradient, or slope), by branch."""
    (factor,) = saved.values
    return (dy * factor,)


def _decaying_exponential(x: Array) -> Array:
    """e^{−|x|}, |·| taken by the sign of the real part: never overflows, and stays analytic (G2)."""
    return np.exp(np.where(x.real < 0, x, -x))


def tanh(x: Array) -> tuple[Array, Saved]:
    """y = tanh x."""
    return np.tanh(x), Saved((x,))


def tanh_vjp(saved: Saved, dy: Array) -> tuple[Array]:
    """dx = dy/cosh² x = dy · 4e/(1 + e)² with e = e^{−2|x|}; 1 − y², which frameworks use, loses all digits from |x| ≈ 19."""
    (x,) = saved.values
    return (dy * _sech_squared(x),)


def _sech_squared(x: Array) -> Array:
    e = _decaying_exponential(2.0 * x)
    return 4.0 * e / ((1.0 + e) * (1.0 + e))


def sigmoid(x: Array) -> tuple[Array, Saved]:
    """y = 1/(1 + e^{−x}), in two branches so that neither exponential overflows (G2)."""
    e = _decaying_exponential(x)
    return np.where(x.real < 0, e, 1.0) / (1.0 + e), Saved((e,))


def sigmoid_vjp(saved: Saved, dy: Array) -> tuple[Array]:
    """dx = dy · e/(1 + e)² with e = e^{−|x|}; y(1 − y), which frameworks use, loses its digits for large x."""
    (e,) = saved.values
    return (dy * (e / ((1.0 + e) * (1.0 + e))),)


def gelu(x: Array) -> tuple[Array, Saved]:
    """y = x Φ(x), Φ the normal distribution function (PyTorch's approximate="none")."""
    phi = 0.5 * (1.0 + erf(x * 0.5**0.5))
    return x * phi, Saved((x, phi))


def gelu_vjp(saved: Saved, dy: Array) -> tuple[Array]:
    """dx = dy (Φ(x) + x e^{−x²/2}/√(2π))."""
    x, phi = saved.values
    return (dy * (phi + x * np.exp(-0.5 * x * x) * (2.0 * np.pi) ** -0.5),)


_GELU_SCALE, _GELU_CUBE = (2.0 / np.pi) ** 0.5, 0.044715


def gelu_tanh(x: Array) -> tuple[Array, Saved]:
    """y = x/2 · (1 + tanh(√(2/π)(x + 0.044715 x³))) (PyTorch's approximate="tanh")."""
    u = _GELU_SCALE * (x + _GELU_CUBE * x * x * x)
    t = np.tanh(u)
    return 0.5 * x * (1.0 + t), Saved((x, u, t))


def gelu_tanh_vjp(saved: Saved, dy: Array) -> tuple[Array]:
    """dx = dy ( (1 + t)/2 + x/2 · sech²(u)·√(2/π)(1 + 3·0.044715 x²) ) with t = tanh u."""
    x, u, t = saved.values
    inner = _GELU_SCALE * (1.0 + 3.0 * _GELU_CUBE * x * x)
    return (dy * (0.5 * (1.0 + t) + 0.5 * x * _sech_squared(u) * inner),)


# --------------------------------------------------------------------------------------------------------------------
# Pooling and shape


def max_pool(
    x: Array, *, kernel: Pair, stride: Pair, padding: Padding, ties: str, branch: Array | None = None
) -> tuple[Array, Saved]:
    """Largest value of each window; padding never wins (−∞). Branch: index i·kw + j inside the window, intp N×C×Ho×Wo.

    ties = "first" (row-major, PyTorch) or "last": which of equal maxima is chosen, and so receives the gradient.
    """
    windows = _windows(pad(x, padding, -np.inf), kernel, stride)
    flat = windows.reshape(*windows.shape[:4], kernel[0] * kernel[1])
    if branch is not None:
        taken = branch
    elif ties == "first":
        taken = flat.real.argmax(axis=-1)
    else:
        taken = flat.shape[-1] - 1 - flat.real[..., ::-1].argmax(axis=-1)
    y = np.take_along_axis(flat, taken[..., None].astype(np.intp), axis=-1)[..., 0]
    return y, Saved((x.shape, kernel, stride, padding), taken)


def max_pool_vjp(saved: Saved, dy: Array) -> tuple[Array]:
    """Each dy goes to the pixel its window chose."""
    shape, kernel, stride, padding = saved.values
    dpadded = pad(np.zeros(shape, dtype=dy.dtype), padding)
    for i, j, (rows, columns) in _taps(kernel, stride, (1, 1), (dy.shape[2], dy.shape[3])):
        dpadded[:, :, rows, columns] += np.where(saved.branch == i * kernel[1] + j, dy, 0.0)
    return (_unpad(dpadded, padding),)


def average_pool(x: Array, *, kernel: Pair, stride: Pair, padding: Padding, count_padding: bool) -> tuple[Array, Saved]:
    """Mean of each window; the divisor is kh·kw (count_padding, PyTorch) or the number of real pixels (TensorFlow)."""
    windows = _windows(pad(x, padding), kernel, stride)
    real = np.ones((1, 1, *x.shape[2:]), dtype=x.real.dtype)
    count = _windows(pad(real, padding, float(count_padding)), kernel, stride).sum(axis=(4, 5))
    return windows.sum(axis=(4, 5)) / count, Saved((x.shape, count, kernel, stride, padding))


def average_pool_vjp(saved: Saved, dy: Array) -> tuple[Array]:
    """Each dy, divided by its window's count, goes to all pixels of the window."""
    shape, count, kernel, stride, padding = saved.values
    dpadded = pad(np.zeros(shape, dtype=dy.dtype), padding)
    share = dy / count
    for _, _, (rows, columns) in _taps(kernel, stride, (1, 1), (dy.shape[2], dy.shape[3])):
        dpadded[:, :, rows, columns] += share
    return (_unpad(dpadded, padding),)


def global_average_pool(x: Array) -> tuple[Array, Saved]:
    """Mean over all pixels: N×C×H×W → N×C."""
    return x.mean(axis=(2, 3)), Saved((x.shape,))


def global_average_pool_vjp(saved: Saved, dy: Array) -> tuple[Array]:
    """Every pixel receives dy/(H·W)."""
    (shape,) = saved.values
    return (np.broadcast_to((dy / (shape[2] * shape[3]))[:, :, None, None], shape).copy(),)


def flatten(x: Array) -> tuple[Array, Saved]:
    """N×C×H×W → N×(C·H·W), channels outermost: one channel is one block of columns (N4). May be a view of x."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:])), Saved((x.shape,))


def flatten_vjp(saved: Saved, dy: Array) -> tuple[Array]:
    """dx = dy in the shape of x; may be a view of dy."""
    (shape,) = saved.values
    return (dy.reshape(shape),)


# --------------------------------------------------------------------------------------------------------------------
# Residual sections and gates


def subsample_pad(x: Array, *, stride: Pair, before: int, after: int) -> tuple[Array, Saved]:
    """Option-A shortcut: every stride-th pixel, with zero channels before and after (N1)."""
    picked = x[:, :, :: stride[0], :: stride[1]]
    return np.pad(picked, ((0, 0), (before, after), (0, 0), (0, 0))), Saved((x.shape, stride, before))


def subsample_pad_vjp(saved: Saved, dy: Array) -> tuple[Array]:
    """The picked pixels receive the dy of the copied channels, all others 0."""
    shape, stride, before = saved.values
    dx = np.zeros(shape, dtype=dy.dtype)
    dx[:, :, :: stride[0], :: stride[1]] = dy[:, before : before + shape[1]]
    return (dx,)


def add(shortcut: Array, path: Array, *, channels: tuple[int, ...] | None) -> tuple[Array, Saved]:
    """shortcut + path; with `channels`, path has only those channels and the others get nothing (missing summands, N1)."""
    if channels is None:
        return shortcut + path, Saved((None,))
    index = np.asarray(channels, dtype=np.intp)
    y = shortcut.astype(np.result_type(shortcut, path), copy=True)
    y[:, index] += path
    return y, Saved((index,))


def add_vjp(saved: Saved, dy: Array) -> tuple[Array, Array]:
    """(d shortcut, d path) = (dy, dy on the path's channels); both may be dy itself."""
    (index,) = saved.values
    return dy, dy if index is None else dy[:, index]


def gate(x: Array, g: Array) -> tuple[Array, Saved]:
    """y = g ⊙ x: g of shape () is a layer gate, of shape (C,) one gate per unit or filter (axis 1)."""
    return x * (g if g.ndim == 0 else per_channel(g, x.ndim)), Saved((x, g))


def gate_vjp(saved: Saved, dy: Array) -> tuple[Array, Array]:
    """dx = g ⊙ dy;  dg = Σ x·dy over everything that g multiplies."""
    x, g = saved.values
    axes = tuple(range(x.ndim)) if g.ndim == 0 else (0, *range(2, x.ndim))
    return dy * (g if g.ndim == 0 else per_channel(g, x.ndim)), np.asarray((x * dy).sum(axis=axes))


# --------------------------------------------------------------------------------------------------------------------
# Losses and weight decay


def cross_entropy(logits: Array, labels: Array, *, reduction: str) -> tuple[Array, Saved]:
    """−log softmax(logits)[label] in nats, over the batch: "mean" (PyTorch) or "sum". logits N×K, labels N integers."""
    rows, largest = np.arange(len(labels)), logits.real.argmax(axis=1)
    shifted = logits - logits[rows, largest][:, None]
    others = np.exp(shifted)
    others[rows, largest] = 0.0
    log_sum = np.log1p(others.sum(axis=1))  # of the sum of all, the largest being e⁰: exact for confident answers too
    losses = log_sum - shifted[rows, labels]
    loss = losses.mean() if reduction == "mean" else losses.sum()
    return np.asarray(loss), Saved((shifted - log_sum[:, None], labels, reduction))


def cross_entropy_vjp(saved: Saved, dy: Array) -> tuple[Array]:
    """d logits = (softmax − onehot)·dy, divided by N for the mean; at the label it is minus the sum of the others."""
    log_softmax, labels, reduction = saved.values
    rows = np.arange(len(labels))
    d = np.exp(log_softmax)
    d[rows, labels] = 0.0
    d[rows, labels] = -d.sum(axis=1)
    return (d * (dy / len(labels) if reduction == "mean" else dy),)


def mean_squared_error(prediction: Array, target: Array, *, reduction: str) -> tuple[Array, Saved]:
    """Squared differences: "mean" over all entries (PyTorch), "batch_mean" (sum over outputs, mean over N), or "sum"."""
    difference = prediction - target
    count = {"mean": difference.size, "batch_mean": len(difference), "sum": 1}[reduction]
    return np.asarray((difference * difference).sum() / count), Saved((difference, count))


def mean_squared_error_vjp(saved: Saved, dy: Array) -> tuple[Array]:
    """d prediction = 2 (prediction − target)/count · dy; targets are constants."""
    difference, count = saved.values
    return (difference * (2.0 / count * dy),)


def weight_decay(w: Array, *, strength: float) -> tuple[Array, Saved]:
    """½ λ ‖w‖² (O1: λ per sample, not per data set)."""
    return np.asarray(0.5 * strength * (w * w).sum()), Saved((w, strength))


def weight_decay_vjp(saved: Saved, dy: Array) -> tuple[Array]:
    """λ w dy."""
    w, strength = saved.values
    return (strength * w * dy,)
