"""PyTorch as a Backend: its functions forward, its autograd as the VJPs. The network does not know who computes.

What PyTorch has no word for (branches of ReLU and max pool, shortcuts, gates' bookkeeping) stays the oracle's.
"""

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F

from refprune.arrays import Saved
from refprune.backend import ORACLE

torch.set_num_threads(1)


def _pad(x, padding, value=0.0):
    (top, bottom), (left, right) = padding
    return F.pad(x, (left, right, top, bottom), value=value)


def _conv2d(x, w, b=None, *, stride=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1):
    return F.conv2d(_pad(x, padding), w, b, stride, 0, dilation, groups)


def _average_pool(x, *, kernel, stride, padding, count_padding):
    real = _pad(torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype), padding, float(count_padding))
    return F.avg_pool2d(_pad(x, padding), kernel, stride) / F.avg_pool2d(real, kernel, stride)


def _mean_squared_error(x, target, *, reduction):
    if reduction == "batch_mean":
        return F.mse_loss(x, target, reduction="sum") / len(x)
    return F.mse_loss(x, target, reduction=reduction)


def _gate(x, g):
    return x * (g if g.ndim == 0 else g.reshape((1, -1) + (1,) * (x.ndim - 2)))


#: Function of a Backend → (PyTorch's, how many of its first arguments have gradients).
FUNCTIONS = {
    "dense": (F.linear, 3),
    "conv2d": (_conv2d, 3),
    "batch_norm": (lambda x, gain, bias, *, eps: F.batch_norm(x, None, None, gain, bias, True, 0.1, eps), 3),
    "batch_norm_eval": (lambda x, gain, bias, m, v, *, eps: F.batch_norm(x, m, v, gain, bias, False, 0.1, eps), 3),
    "tanh": (torch.tanh, 1),
    "sigmoid": (torch.sigmoid, 1),
    "gelu": (F.gelu, 1),
    "gelu_tanh": (lambda x: F.gelu(x, approximate="tanh"), 1),
    "average_pool": (_average_pool, 1),
    "global_average_pool": (lambda x: x.mean((2, 3)), 1),
    "gate": (_gate, 2),
    "cross_entropy": (F.cross_entropy, 1),
    "mean_squared_error": (_mean_squared_error, 1),
}


def _pair(name, function, differentiable):
    """(f, f_vjp) in the Backend's contract around one PyTorch function."""

    def forward(*args, **options):
        tensors = [None if a is None else torch.from_numpy(np.array(a, order="C")) for a in args]
        leaves = [t.requires_grad_() for t in tensors[:differentiable] if t is not None]
        y = function(*tensors, **options)
        statistics = None
        if name == "batch_norm":
            per_channel = tensors[0].detach().transpose(0, 1).flatten(1)
            mean, variance = per_channel.mean(1), per_channel.var(1, unbiased=False)
            statistics = (mean.numpy(), variance.numpy(), per_channel.shape[1])
        return y.detach().numpy(), Saved((leaves, y), statistics=statistics)

    def vjp(saved, dy, *, input_gradient=True):
        leaves, y = saved.values
        cotangent = torch.from_numpy(np.array(np.broadcast_to(dy, y.shape), order="C"))
        gradients = [g.numpy() for g in torch.autograd.grad(y, leaves, cotangent)]
        return (gradients[0] if input_gradient else None, *gradients[1:])

    return {name: forward, f"{name}_vjp": vjp}


TORCH = dataclasses.replace(
    ORACLE,
    name="torch",
    **{key: f for name, (function, k) in FUNCTIONS.items() for key, f in _pair(name, function, k).items()},
)
