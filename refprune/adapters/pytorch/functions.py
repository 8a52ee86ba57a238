"""Formulas and single layers in PyTorch, as a user of it would write them: functions forward, autograd backward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...arrays import Array
from ..implementation import Implementation

Padding = tuple[tuple[int, int], tuple[int, int]]
Pair = tuple[int, int]


def pad(x: Tensor, padding: Padding, value: float = 0.0) -> Tensor:
    (top, bottom), (left, right) = padding
    return F.pad(x, (left, right, top, bottom), value=value)


def require(holds: bool, what: str) -> None:
    """NotImplementedError, which declines the call, where PyTorch has no such convention."""
    if not holds:
        raise NotImplementedError(f"PyTorch has no {what}")


def per_channel(g: Tensor, ndim: int) -> Tensor:
    return g if g.ndim == 0 else g.reshape(1, -1, *[1] * (ndim - 2))


def branch(module: nn.Module, x: Tensor) -> Tensor:
    """Which branch it takes at x: the sign of a ReLU's input, or the row-major index of a max pool's choice in its window."""
    if not isinstance(module, nn.MaxPool2d):
        return torch.sign(x.detach()).to(torch.int8)
    kernel, stride, padding = ((v, v) if isinstance(v, int) else v for v in (module.kernel_size, module.stride, module.padding))
    _, flat = F.max_pool2d(x.detach(), kernel, stride, padding, return_indices=True)
    rows, columns = (torch.arange(n) * s - p for n, s, p in zip(flat.shape[2:], stride, padding, strict=True))
    return (flat // x.shape[3] - rows[:, None]) * kernel[1] + flat % x.shape[3] - columns


class TorchFunctions(Implementation):
    """The levels `scalars`, `layers` and `similarity`, and the pruning decisions."""

    def tensor(self, a: Array) -> Tensor:
        """A copy; floats in the declared precision."""
        t = torch.from_numpy(np.array(a))
        return t.to(getattr(torch, self.precision)) if t.is_floating_point() else t

    # ------------------------------------------------------------------------------------------------------ formulas

    def pi_star(self, theta: Array, log_gamma: Array) -> Tensor:
        return torch.sigmoid(torch.logit(self.tensor(theta)) + self.tensor(log_gamma))

    def log_normaliser(self, log_gamma: Tensor) -> Tensor:
        """log((γ−1)/log γ)."""
        size = log_gamma.abs()
        value = torch.where(log_gamma > 0.0, log_gamma, 0.0) + torch.log(-torch.expm1(-size) / size)
        return torch.where(log_gamma == 0.0, 0.0, value)

    def penalty(self, theta: Array, log_gamma: Array) -> Tensor:
        t, l = self.tensor(theta), self.tensor(log_gamma)  # noqa: E741
        return l - self.log_normaliser(l) - t * l

    def penalty_slope(self, theta: Array, log_gamma: Array) -> Tensor:
        return -self.tensor(log_gamma)

    def kl(self, theta: Array, pi: Array) -> Tensor:
        t, p = self.tensor(theta), self.tensor(pi)
        on = torch.xlogy(t, t) - torch.xlogy(t, p)
        return on + torch.xlogy(1.0 - t, 1.0 - t) - torch.xlogy(1.0 - t, 1.0 - p)

    def hyper_prior(self, pi: Array, log_gamma: Array) -> tuple[Tensor, Tensor]:
        p, l = self.tensor(pi), self.tensor(log_gamma)  # noqa: E741
        log_density = self.log_normaliser(l) - torch.logaddexp(torch.log(p), l + torch.log1p(-p))
        up, decay = l > 0.0, torch.exp(-l.abs())
        denominator = torch.where(up, decay * p + (1.0 - p), p + decay * (1.0 - p))
        return log_density, torch.sign(l) * -torch.expm1(-l.abs()) / denominator

    def beta(self, log_gamma: float, samples: int) -> float:
        return -log_gamma / samples

    def log_prior(self, w: Tensor, kind: str, p: Mapping[str, float]) -> Tensor:
        """log p(w), of each block or weight; not of the horseshoe."""
        if kind == "laplace":
            return -w.abs() / p["width"] - np.log(2.0 * p["width"])
        d, square = w.shape[-1], w.square().sum(-1)
        if kind == "student_t":
            nu, width = torch.tensor(p["degrees"], dtype=w.dtype), p["width"]
            constant = torch.lgamma((nu + d) / 2) - torch.lgamma(nu / 2) - d / 2 * torch.log(nu * torch.pi * width**2)
            return constant - (nu + d) / 2 * torch.log1p(square / (nu * width**2))

        def normal(variance: float) -> Tensor:
            return -0.5 * d * float(np.log(2.0 * np.pi * variance)) - square / (2.0 * variance)

        slab, spike = normal(1.0 / p["precision"]), normal(p["spike"])
        return torch.logaddexp(float(np.log(p["pi"])) + slab, float(np.log1p(-p["pi"])) + spike)

    def prior(self, w: Array, kind: str, parameters: Mapping[str, float]) -> tuple[Tensor, Tensor]:
        if kind == "horseshoe":
            return self.horseshoe(self.tensor(w), parameters["width"])
        weights = self.tensor(w).requires_grad_()
        log_density = self.log_prior(weights, kind, parameters)
        (score,) = torch.autograd.grad(log_density.sum(), weights)
        return log_density, score

    def horseshoe(self, w: Tensor, width: float) -> tuple[Tensor, Tensor]:
        log_u, q = scaled_integral(0.5 * (w / width).square())
        return log_u - float(np.log(width * (2.0 * np.pi**3) ** 0.5)), -2.0 * q / w

    def responsibility(self, w: Array, pi: float, precision: float, spike: float) -> Tensor:
        x = self.tensor(w)
        odds = float(np.log(pi / (1.0 - pi)) + 0.5 * x.shape[-1] * np.log(precision * spike))
        return torch.sigmoid(odds + 0.5 * x.square().sum(-1) * (1.0 / spike - precision))

    def theta_step(self, theta: Array, gradient: Array, beta: float, learning_rate: float) -> Tensor:
        return (self.tensor(theta) - learning_rate * (self.tensor(gradient) + beta)).clamp(0.0, 1.0)

    def pruning_decision(self, theta: Array, threshold: float) -> Tensor:
        return self.tensor(theta) > threshold

    def attracted(self, w: Array, theta: Array, kappa: Array, beta: float, decay: float, ratio: float) -> Tensor:
        size, on, k = self.tensor(w), self.tensor(theta), self.tensor(kappa)
        eigenvalue = 0.5 * (-decay + (decay**2 + 4.0 * ratio * k**2).sqrt())
        return ratio * k * (size - beta / k) + (decay + eigenvalue) * (on - decay * beta / k**2) < 0.0

    # -------------------------------------------------------------------------------------------------------- layers

    def vjp(self, function: Callable[..., Tensor], dy: Array, *arrays: Array | None) -> tuple[Tensor | None, ...]:
        """function(*arrays) and its gradients for the cotangent; None stands for an array that is not there."""
        leaves = [None if a is None else self.tensor(a).requires_grad_() for a in arrays]
        y = function(*leaves)
        gradients = iter(torch.autograd.grad(y, [leaf for leaf in leaves if leaf is not None], self.tensor(dy)))
        return y, *(None if leaf is None else next(gradients) for leaf in leaves)

    def dense(self, x: Array, w: Array, b: Array | None, dy: Array) -> Any:
        return self.vjp(F.linear, dy, x, w, b)

    def conv2d(
        self, x: Array, w: Array, b: Array | None, dy: Array, stride: Pair, padding: Padding, dilation: Pair, groups: int
    ) -> Any:
        return self.vjp(lambda x, w, b: F.conv2d(pad(x, padding), w, b, stride, 0, dilation, groups), dy, x, w, b)

    def batch_norm(self, x: Array, gain: Array, bias: Array, dy: Array, eps: float) -> Any:
        return self.vjp(lambda x, g, b: F.batch_norm(x, None, None, g, b, True, 0.1, eps), dy, x, gain, bias)

    def batch_norm_eval(self, x: Array, gain: Array, bias: Array, mean: Array, variance: Array, dy: Array, eps: float) -> Any:
        m, v = self.tensor(mean), self.tensor(variance)
        return self.vjp(lambda x, g, b: F.batch_norm(x, m, v, g, b, False, 0.1, eps), dy, x, gain, bias)

    def leaky_relu(self, x: Array, dy: Array, slope: float, at_zero: float) -> Any:
        require(at_zero == 0.0, f"subgradient {at_zero} at 0")
        return self.vjp(lambda x: F.leaky_relu(x, slope), dy, x)

    def tanh(self, x: Array, dy: Array) -> Any:
        return self.vjp(torch.tanh, dy, x)

    def sigmoid(self, x: Array, dy: Array) -> Any:
        return self.vjp(torch.sigmoid, dy, x)

    def gelu(self, x: Array, dy: Array) -> Any:
        return self.vjp(F.gelu, dy, x)

    def gelu_tanh(self, x: Array, dy: Array) -> Any:
        return self.vjp(lambda x: F.gelu(x, approximate="tanh"), dy, x)

    def max_pool(self, x: Array, dy: Array, kernel: Pair, stride: Pair, padding: Padding, ties: str) -> Any:
        require(ties == "first", f"max pool that takes the {ties} of ties")
        return self.vjp(lambda x: F.max_pool2d(pad(x, padding, -torch.inf), kernel, stride), dy, x)

    def average_pool(self, x: Array, dy: Array, kernel: Pair, stride: Pair, padding: Padding, count_padding: bool) -> Any:
        require(count_padding, "average pool that pads sides differently and does not count it")
        return self.vjp(lambda x: F.avg_pool2d(pad(x, padding), kernel, stride), dy, x)

    def global_average_pool(self, x: Array, dy: Array) -> Any:
        return self.vjp(lambda x: x.mean((2, 3)), dy, x)

    def flatten(self, x: Array, dy: Array) -> Any:
        return self.vjp(lambda x: x.flatten(1), dy, x)

    def subsample_pad(self, x: Array, dy: Array, stride: Pair, before: int, after: int) -> Any:
        return self.vjp(lambda x: F.pad(x[:, :, :: stride[0], :: stride[1]], (0, 0, 0, 0, before, after)), dy, x)

    def add(self, shortcut: Array, path: Array, dy: Array, channels: tuple[int, ...] | None) -> Any:
        if channels is None:
            return self.vjp(torch.add, dy, shortcut, path)
        index = torch.tensor(channels)
        return self.vjp(lambda s, p: s.index_add(1, index, p), dy, shortcut, path)

    def gate(self, x: Array, g: Array, dy: Array) -> Any:
        return self.vjp(lambda x, g: x * per_channel(g, x.ndim), dy, x, g)

    def cross_entropy(self, logits: Array, labels: Array, dy: Array, reduction: str) -> Any:
        target = self.tensor(labels)
        return self.vjp(lambda x: F.cross_entropy(x, target, reduction=reduction), dy, logits)

    def mean_squared_error(self, prediction: Array, target: Array, dy: Array, reduction: str) -> Any:
        wanted = self.tensor(target)
        return self.vjp(lambda x: squared_error(x, wanted, reduction), dy, prediction)

    def weight_decay(self, w: Array, dy: Array, strength: float) -> Any:
        return self.vjp(lambda w: 0.5 * strength * w.square().sum(), dy, w)

    # ---------------------------------------------------------------------------------------------------- similarity

    def hsic(self, x: Array, y: Array, estimator: str) -> Tensor:
        return hsic(gram(self.tensor(x)), gram(self.tensor(y)), estimator)

    def cka(self, x: Array, y: Array, estimator: str, kernel: str) -> Tensor:
        k, l = ((gram if kernel == "linear" else rbf)(self.tensor(a)) for a in (x, y))  # noqa: E741
        return hsic(k, l, estimator) / (hsic(k, k, estimator) * hsic(l, l, estimator)).sqrt()

    def minibatch_cka(self, x: Array, y: Array) -> Tensor:
        grams = [(gram(self.tensor(a)), gram(self.tensor(b))) for a, b in zip(x, y, strict=True)]
        pairs = torch.stack([torch.stack([hsic(*p, "unbiased") for p in ((a, b), (a, a), (b, b))]) for a, b in grams])
        kl, kk, ll = pairs.mean(0)
        return kl / (kk * ll).sqrt()


def scaled_integral(z: Tensor) -> tuple[Tensor, Tensor]:
    """(log u, −z d log u/dz) of u = e^z E₁(z), z > 0, E₁ the exponential integral: its series below 1, above it Stieltjes'
    continued fraction 1/u = z + q, where q is the second result."""
    small = z < 1.0
    near, far = torch.where(small, z, 1.0), torch.where(small, 1.0, z)
    term, total = torch.ones_like(near), -torch.log(near) - float(np.euler_gamma)
    for k in range(1, 22):
        term = -term * near / k
        total = total - term / k
    tail = far
    for k in range(100, 1, -1):
        tail = far + k / (1.0 + k / tail)
    q = 1.0 / (1.0 + 1.0 / tail)
    u = torch.exp(near) * total
    return torch.where(small, near + torch.log(total), -torch.log(far + q)), torch.where(small, 1.0 / u - near, q)


def squared_error(prediction: Tensor, target: Tensor, reduction: str) -> Tensor:
    if reduction == "batch_mean":
        return F.mse_loss(prediction, target, reduction="sum") / len(prediction)
    return F.mse_loss(prediction, target, reduction=reduction)


def gram(x: Tensor) -> Tensor:
    """x xᵀ of centred features."""
    centred = x - x.mean(0)
    return centred @ centred.T


def rbf(x: Tensor) -> Tensor:
    """exp(−d²/2σ²), σ the median distance of different rows."""
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    above = distances[tuple(torch.triu_indices(len(x), len(x), 1))]
    sigma = above.quantile(0.5)
    return torch.exp(-distances.square() / (2.0 * sigma.square()))


def hsic(k: Tensor, l: Tensor, estimator: str) -> Tensor:  # noqa: E741
    n = len(k)
    if estimator == "biased":
        centring = torch.eye(n, dtype=k.dtype) - 1.0 / n
        return torch.trace(k @ centring @ l @ centring) / (n - 1) ** 2
    k, l = (a - torch.diag(torch.diag(a)) for a in (k, l))  # noqa: E741
    products = (k * l).sum() + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2.0 / (n - 2) * (k.sum(0) @ l.sum(0))
    return products / (n * (n - 3))
