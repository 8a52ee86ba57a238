"""Mistakes in single layers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from refprune.adapters.pytorch.functions import pad, per_channel
from refprune.adapters.pytorch.implementation import TorchImplementation
from refprune.mistakes.whole_parts import shifted

from .planting import Planted, asked, autograd, changed, result, tensor, with_parts


def swapped(padding: Any) -> Any:
    return tuple((after, before) for before, after in padding)


def one_sided(padding: Any) -> Any:
    return tuple((sum(sides), 0) for sides in padding)


def channels(v: Any, ndim: int) -> Tensor:
    return per_channel(tensor(v), ndim)


def inverse_deviation(a: dict[str, Any]) -> Tensor:
    x = tensor(a["x"])
    axes = (0, *range(2, x.ndim))
    return 1.0 / (x.var(axes, unbiased=False, keepdim=True) + a["eps"]).sqrt()


def of_unbiased_variance(y: Any, a: dict[str, Any]) -> Any:
    b, count = channels(a["bias"], y.ndim), a["x"].size // a["x"].shape[1]
    return (y - b) * ((count - 1) / count) ** 0.5 + b


def eps_outside(x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:
    axes = (0, *range(2, x.ndim))
    centred = x - x.mean(axes, keepdim=True)
    deviation = centred.square().mean(axes, keepdim=True).sqrt()
    return centred / (deviation + eps) * per_channel(gain, x.ndim) + per_channel(bias, x.ndim)


def last_maximum(x: Tensor, kernel: Any, stride: Any, padding: Any) -> Tensor:
    """Max pooling that lets the last of equal maxima win: the image is read backwards, from where its last window ends."""
    padded = pad(x, padding, -torch.inf)
    covered = [(size - k) // s * s + k for size, k, s in zip(padded.shape[2:], kernel, stride, strict=True)]
    read = padded[:, :, : covered[0], : covered[1]].flip((2, 3))
    return F.max_pool2d(read, kernel, stride).flip((2, 3))


def one_at_zero(x: Tensor, slope: float) -> Tensor:
    """Leaky ReLU; autograd takes the right side at 0."""
    return torch.where(x >= 0.0, x, slope * x)


def bias(a: dict[str, Any]) -> Any:
    return 0.0 if a["b"] is None else tensor(a["b"])


def without_shortcut(self: TorchImplementation, shortcut: Any, path: Any, dy: Any, channels: Any) -> Any:
    """The path alone; autograd finds no way to the shortcut."""
    index = torch.arange(shortcut.shape[1]) if channels is None else torch.tensor(channels)
    return self.vjp(lambda s, p: (0.0 * s).index_add(1, index, p), dy, shortcut, path)


def backwards_unlike(function: Any, backward: Any, *names: str) -> Any:
    """For `changed`: function(*arrays) with the gradients backward(dy, *arrays)."""
    own = autograd(function, backward)
    return lambda right, a: right.__self__.vjp(own, a["dy"], *(a[name] for name in names))


def gated(x: Tensor, g: Tensor) -> Tensor:
    return x * per_channel(g, x.ndim)


def summed_to(value: Tensor, g: Tensor) -> Tensor:
    return value.sum() if g.ndim == 0 else value.sum((0, *range(2, value.ndim)))


def counted_padding(
    self: TorchImplementation, x: Any, dy: Any, kernel: Any, stride: Any, padding: Any, count_padding: bool
) -> Any:
    """Says that it does not count padding, and does."""
    return self.vjp(lambda x: F.avg_pool2d(pad(x, padding), kernel, stride), dy, x)


def uncounted_padding(
    self: TorchImplementation, x: Any, dy: Any, kernel: Any, stride: Any, padding: Any, count_padding: bool
) -> Any:
    ones = pad(torch.ones_like(self.tensor(x)), padding)
    return self.vjp(lambda x: F.avg_pool2d(pad(x, padding), kernel, stride) / F.avg_pool2d(ones, kernel, stride), dy, x)


def undivided(right: Any, a: dict[str, Any]) -> Any:
    taps = a["kernel"][0] * a["kernel"][1]
    return {"y": right(**a)[0], "dx": right(**a)[1] * taps}


UNCOUNTED = {"conventions": {**TorchImplementation.conventions, "count_padding": (False,)}}


AFFINE = (
    changed("dense weights' gradient divided by N", "dense", result(dw=lambda g, a: g / len(a["x"]))),
    changed("bias left out", "dense", result(y=lambda y, a: y - bias(a), db=lambda g, a: 0.0 * g)),
    changed("convolution with paddings swapped", "conv2d", asked(padding=swapped)),
    changed("padding on one side only", "conv2d", asked(padding=one_sided)),
    changed("padding one row and column too early", "conv2d", asked(padding=shifted)),
    changed("kernel flipped in the backward pass", "conv2d", result(dw=lambda g, a: g.flip((2, 3)))),
)

NORMS = (
    changed("batch-norm divides by n − 1", "batch_norm", result(y=of_unbiased_variance)),
    changed("batch-norm leaves its mean in", "batch_norm", result(y=lambda y, a: y + 0.1)),
    changed(
        "batch-norm without eps",
        "batch_norm",
        lambda f, a: f.__self__.vjp(lambda x, g, b: eps_outside(x, g, b, 0.0), a["dy"], a["x"], a["gain"], a["bias"]),
    ),
    changed(
        "batch-norm: eps outside the root",
        "batch_norm",
        lambda f, a: f.__self__.vjp(lambda x, g, b: eps_outside(x, g, b, a["eps"]), a["dy"], a["x"], a["gain"], a["bias"]),
    ),
    changed(
        "batch-norm's mean taken for a constant",
        "batch_norm",
        result(dx=lambda g, a: tensor(a["dy"]) * channels(a["gain"], g.ndim) * inverse_deviation(a)),
    ),
    changed("eval batch-norm without eps", "batch_norm_eval", asked(eps=lambda e: 0.0)),
    changed("eval batch-norm's gain left out of dx", "batch_norm_eval", result(dx=lambda g, a: tensor(a["dy"]))),
)

POINTWISE = (
    changed("slope of the leaky ReLU forgotten", "leaky_relu", asked(slope=lambda s: 0.0)),
    changed(
        "subgradient 1 at 0 whatever is declared",
        "leaky_relu",
        lambda f, a: f.__self__.vjp(lambda x: one_at_zero(x, a["slope"]), a["dy"], a["x"]),
    ),
    changed(
        "GELU by its tanh formula",
        "gelu",
        lambda f, a: (f.__self__.gelu_tanh(**a)[0], f(**a)[1]),
    ),
    changed("GELU by its tanh formula, forward and backward", "gelu", lambda f, a: f.__self__.gelu_tanh(**a)),
)

POOLS = (
    changed(
        "last of equal maxima",
        "max_pool",
        lambda f, a: f.__self__.vjp(lambda x: last_maximum(x, a["kernel"], a["stride"], a["padding"]), a["dy"], a["x"]),
    ),
    changed(
        "max pool pads with zeros",
        "max_pool",
        lambda f, a: f.__self__.vjp(lambda x: F.max_pool2d(pad(x, a["padding"]), a["kernel"], a["stride"]), a["dy"], a["x"]),
    ),
    changed("average pool spreads without dividing", "average_pool", undivided),
    Planted("average pool: padding not counted", "average_pool", with_parts(average_pool=uncounted_padding)),
    Planted("average pool: padding counted", "average_pool", with_parts(average_pool=counted_padding, **UNCOUNTED)),
    changed(
        "sum for mean in the global average pool",
        "global_average_pool",
        lambda f, a: f.__self__.vjp(lambda x: x.sum((2, 3)), a["dy"], a["x"]),
    ),
)

SECTIONS = (
    changed("option A with the channels at the other end", "subsample_pad", result(y=lambda y, a: y.flip(1))),
    changed(
        "option A: zero channels at the other end",
        "subsample_pad",
        lambda f, a: f(**{**a, "before": a["after"], "after": a["before"]}),
    ),
    changed("section without its shortcut", "add", result(y=lambda y, a: y - tensor(a["shortcut"]))),
    Planted("section without its shortcut, forward and backward", "add", with_parts(add=without_shortcut)),
    changed(
        "gate not applied",
        "gate",
        backwards_unlike(
            lambda x, g: x.clone(), lambda dy, x, g: (dy * per_channel(g, dy.ndim), summed_to(dy * x, g)), "x", "g"
        ),
    ),
    changed(
        "gate missing in the backward pass",
        "gate",
        backwards_unlike(gated, lambda dy, x, g: (dy, summed_to(dy * x, g)), "x", "g"),
    ),
    changed("gate's gradient as a mean", "gate", result(dg=lambda g, a: g / len(a["dy"]))),
    changed("gradient of the gate of one example", "gate", result(dg=lambda g, a: g * len(a["dy"]))),
    changed("sign of the gate's gradient", "gate", result(dg=lambda g, a: -g)),
    changed("no gradient for the gate", "gate", result(dg=lambda g, a: 0.0 * g)),
    changed(
        "gate forgotten, forward and backward",
        "gate",
        lambda f, a: f.__self__.vjp(lambda x, g: x + 0.0 * g.sum(), a["dy"], a["x"], a["g"]),
    ),
    changed(
        "gate applied twice", "gate", lambda f, a: f.__self__.vjp(lambda x, g: gated(gated(x, g), g), a["dy"], a["x"], a["g"])
    ),
)

LOSSES = (
    changed("sum for mean in the cross-entropy", "cross_entropy", asked(reduction=lambda r: "sum")),
    changed("mean for sum in the cross-entropy", "cross_entropy", asked(reduction=lambda r: "mean")),
    changed("cross-entropy's mean not in its gradient", "cross_entropy", result(dlogits=lambda g, a: g * len(g))),
    changed("squared error: sum", "mean_squared_error", asked(reduction=lambda r: "sum")),
    changed("squared error: mean over all entries", "mean_squared_error", asked(reduction=lambda r: "mean")),
    changed("squared error: mean over the batch", "mean_squared_error", asked(reduction=lambda r: "batch_mean")),
    changed("squared error without the 2", "mean_squared_error", result(dprediction=lambda g, a: g / 2.0)),
    changed("weight decay without ½", "weight_decay", result(value=lambda v, a: 2.0 * v)),
    changed("weight decay's gradient without λ", "weight_decay", result(dw=lambda g, a: tensor(a["w"]) * tensor(a["dy"]))),
)

IN_LAYERS: tuple[Planted, ...] = (*AFFINE, *NORMS, *POINTWISE, *POOLS, *SECTIONS, *LOSSES)
