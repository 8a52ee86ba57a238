"""Mistakes in single parts of implementations: formulas, layers, costs, similarity.

Like those of `whole_networks`, they are not for refprune's own audit.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..arrays import Array, Saved, per_channel
from ..formulas import cka, hyper_prior
from ..oracle import layers
from ..spec.layers import BatchNorm
from .planting import Function, Mistake, instead, options, result

Sides = tuple[tuple[int, int], tuple[int, int]]


# --------------------------------------------------------------------------------------------------------------------
# Formulas and layers


def _other_normaliser(sign: float) -> Any:
    """The logarithm of a density, times sign, with the normaliser of 1/γ."""

    def wrong(f: Function) -> Function:
        def g(*a: Any) -> Any:
            l = np.asarray(a[-1], dtype=float)  # noqa: E741
            return f(*a) + sign * (hyper_prior.log_normaliser(-l) - hyper_prior.log_normaliser(l))

        return g

    return wrong


def _domain(saddle: float, slope_of: Any) -> Any:
    """H around another saddle, or with another slope."""

    def wrong(w: Array, theta: Array, *, kappa: Array, beta: Array, decay: Array, ratio: Array, floor: float = 0.0) -> Array:
        slope = slope_of(decay, ratio, kappa)
        inside: Array = ratio * (kappa * w - beta) + slope * (theta - saddle * decay * beta / kappa**2) < 0.0
        return inside

    return instead(wrong)


def _right_slope(decay: Array, ratio: Array, kappa: Array) -> Array:
    slope: Array = 0.5 * (decay + np.sqrt(decay**2 + 4.0 * ratio * kappa**2))
    return slope


def shifted(padding: Sides) -> Sides:
    """One row and one column more before, one less behind, where there is one."""
    (top, bottom), (left, right) = padding
    return (top + (bottom > 0), bottom - (bottom > 0)), (left + (right > 0), right - (right > 0))


def _padded_with_zeros(f: Function) -> Function:
    def wrong(x: Array, *, padding: Sides, **k: Any) -> Any:
        y, saved = f(layers.pad(x, padding), padding=((0, 0), (0, 0)), **k)
        return y, Saved((x.shape, *saved.values[1:3], padding), saved.branch)

    return wrong


def _eps_outside(x: Array, gain: Array, bias: Array, *, eps: float) -> Any:
    axes = (0, *range(2, x.ndim))
    mean = x.mean(axis=axes)
    centred = x - per_channel(mean, x.ndim)
    variance = (centred * centred).mean(axis=axes)
    inverse = 1.0 / (np.sqrt(variance) + eps)
    normal = centred * per_channel(inverse, x.ndim)
    y = normal * per_channel(gain, x.ndim) + per_channel(bias, x.ndim)
    count = len(x) * math.prod(x.shape[2:])
    return y, Saved((normal, inverse, gain, np.sqrt(variance)), statistics=(mean, variance, count))


def _eps_outside_vjp(saved: Saved, dy: Array) -> Any:
    normal, inverse, gain, deviation = saved.values
    axes = (0, *range(2, dy.ndim))
    means = [per_channel(a.mean(axis=axes), dy.ndim) for a in (dy, dy * normal)]
    inner = dy - means[0] - normal * means[1] / per_channel(inverse * deviation, dy.ndim)
    return inner * per_channel(gain * inverse, dy.ndim), (dy * normal).sum(axis=axes), dy.sum(axis=axes)


FORMULAS = (
    Mistake(
        "normaliser of 1/γ in log-density and penalty",
        "formulas.hyper_prior:log_density",
        _other_normaliser(1.0),
        ("F1", "F3"),
        also=(("formulas.hyper_prior:penalty", _other_normaliser(-1.0)),),
    ),
    Mistake("domain around a saddle at half of λ", "gates.dynamics:in_domain", _domain(0.5, _right_slope), ("D4",)),
    Mistake(
        "domain with the eigenvalues of λ = 0",
        "gates.dynamics:in_domain",
        _domain(1.0, lambda decay, ratio, kappa: decay + np.sqrt(ratio) * kappa),
        ("D4",),
    ),
    Mistake("padding one row and column too early", "oracle.layers:conv2d", options(padding=shifted), ("G1",)),
    Mistake(
        "option A: zero channels at the other end",
        "oracle.layers:subsample_pad",
        lambda f: lambda x, *, stride, before, after: f(x, stride=stride, before=after, after=before),
        ("N1", "G1"),
    ),
    Mistake("max pool pads with zeros", "oracle.layers:max_pool", _padded_with_zeros, ("G1",)),
    Mistake(
        "batch-norm: eps outside the root",
        "oracle.layers:batch_norm",
        instead(_eps_outside),
        ("G1",),
        also=(("oracle.layers:batch_norm_vjp", instead(_eps_outside_vjp)),),
    ),
    Mistake(
        "gate applied twice",
        "oracle.layers:gate",
        lambda f: lambda x, g: f(f(x, g)[0], g),
        ("G1",),
        also=(("oracle.layers:gate_vjp", lambda f: lambda saved, dy: _squared(f, saved, dy)),),
    ),
)


def _squared(f: Function, saved: Saved, dy: Array) -> tuple[Array, Array]:
    """Of y = g² ⊙ x; what is saved is that of the second multiplication, (g ⊙ x, g)."""
    inner, dg = f(saved, dy)
    return f(saved, inner)[0], 2.0 * dg


# --------------------------------------------------------------------------------------------------------------------
# Costs


def _at(gates: Function) -> Any:
    """The expectation at other gates."""
    return lambda f: lambda network, theta, *a, **k: f(network, gates(theta), *a, **k)


def _at_input_size(f: Function) -> Function:
    def wrong(self: Any, shape: Any) -> int:
        inputs, outputs = (math.prod(size[1:]) for size in (shape, self.output_shape(shape)))
        count: int = f(self, shape) * inputs // max(outputs, 1)
        return count

    return wrong


def _with_statistics(f: Function) -> Function:
    def wrong(network: Any, **k: Any) -> int:
        sizes = (shape[0] for layer, shape in network.placed() if isinstance(layer, BatchNorm))
        count: int = f(network, **k) + 2 * sum(sizes)
        return count

    return wrong


def _squared_slope(f: Function) -> Function:
    """Layer gates' slopes are 2θ times as large, unit gates' θ times."""

    def wrong(self: Any, theta: Array, weights: Array) -> Array:
        sections = np.append(theta, 1.0)[self.sections]
        slope: Array = np.where(self.is_layer, 2.0 * theta * f(self, theta, weights), f(self, theta, weights * sections))
        return slope

    return wrong


COSTS = (
    Mistake(
        "layer gate squared, slope and all",
        "spec.cost:CostModel.alive",
        lambda f: lambda self, theta: f(self, theta) * np.append(theta, 1.0)[self.sections],
        ("C1",),
        also=(("spec.cost:CostModel.gradient", _squared_slope),),
    ),
    Mistake("expected cost with all gates on", "spec.cost:expected", _at(np.ones_like), ("C1", "C6")),
    Mistake("expected cost at the likelier gates", "spec.cost:expected", _at(lambda t: (t >= 0.5) * 1.0), ("C1", "C6")),
    Mistake(
        "grouped convolutions counted as dense",
        "spec.layers:Conv.macs",
        lambda f: lambda self, shape: f(self, shape) * self.groups,
        ("N6",),
    ),
    Mistake("MACs of a convolution at its input's size", "spec.layers:Conv.macs", _at_input_size, ("N6",)),
    Mistake(
        "biases counted as MACs",
        "spec.layers:Conv.macs",
        lambda f: lambda self, shape: f(self, shape) + self.bias * math.prod(self.output_shape(shape)),
        ("N6",),
        also=(("spec.layers:Dense.macs", lambda f: lambda self, shape: f(self, shape) + self.bias * self.units),),
    ),
    Mistake("running statistics counted as parameters", "spec.cost:parameters", _with_statistics, ("N6",)),
)


# --------------------------------------------------------------------------------------------------------------------
# Similarity


def _one_sided(x: Array, y: Array, *, estimator: str, **k: Any) -> Any:
    """Linear Gram matrices of features as they come, the mean of every column subtracted."""
    grams = [a @ a.T for a in (x, y)]
    first, second = (gram - gram.mean(axis=0) for gram in grams)
    sums = [float((a * b).sum()) for a, b in ((first, second), (first, first), (second, second))]
    return cka.Similarity(sums[0] / np.sqrt(sums[1] * sums[2]), "ok", *sums)


def _narrower(f: Function) -> Function:
    """exp(−d²/σ²)."""

    def wrong(gram: Array, sigma: float | None) -> Any:
        _, used = f(gram, sigma)
        return f(gram, used / 2.0**0.5)

    return wrong


def _each_batch(f: Function) -> Function:
    def wrong(self: Any, *features: Any) -> None:
        alone = cka.MiniBatches()
        f(alone, *features)
        self.values = [*getattr(self, "values", []), alone.matrix().pair(0, 1).value]
        f(self, *features)

    return wrong


def _mean_of_batches(f: Function) -> Function:
    def wrong(self: Any) -> Any:
        return cka.Similarity(float(np.mean([np.nan if v is None else v for v in self.values])), "ok", 0.0, 0.0, 0.0)

    return wrong


def _biased_batches(f: Function) -> Function:
    def wrong(self: Any, **k: Any) -> None:
        f(self, **k)
        self._options = self._options._replace(estimator="biased")

    return wrong


RESEMBLANCE = (
    Mistake(
        "CKA averaged over batches",
        "formulas.cka:MiniBatches.add",
        _each_batch,
        ("K4",),
        also=(("formulas.cka:MiniBatches.result", _mean_of_batches),),
    ),
    Mistake("mini-batches of biased HSIC", "formulas.cka:MiniBatches.__init__", _biased_batches, ("K4",)),
    Mistake("Gram matrices centred on one side", "formulas.cka:cka", instead(_one_sided), ("K2",)),
    Mistake("RBF kernel without its ½", "formulas.hsic_sums:rbf_kernel", _narrower, ("K2",)),
    Mistake(
        "σ the median of all distances, the zeros too",
        "formulas.hsic_sums:median_of_distances",
        instead(lambda squared: float(np.median(np.sqrt(squared)))),
        ("K2",),
    ),
    Mistake(
        "biased HSIC not divided",
        "formulas.cka:hsic",
        lambda f: lambda k, m, *, estimator: f(k, m, estimator=estimator) * ((len(k) - 1) ** 2 if estimator == "biased" else 1),
        ("K1",),
    ),
    Mistake(
        "HSIC's root for HSIC", "formulas.cka:hsic", result(lambda value: math.copysign(abs(value) ** 0.5, value)), ("K1",)
    ),
)

IN_PARTS: tuple[Mistake, ...] = (*FORMULAS, *COSTS, *RESEMBLANCE)
