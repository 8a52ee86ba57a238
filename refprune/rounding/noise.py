"""How large is the rounding error of each function of a Backend? A model for each (SPEC E2), and the backend that adds it.

The noise of a function is a list of parts (weight, scale): weight ⊙ scale ⊙ z, with one standard normal z per entry of
`scale`. A part whose scale is smaller than the result is shared: an error in a batch-norm's mean moves its whole channel.
Everything in a part is in units of u. Models cover the formulas in common use, not only the oracle's (tanh′ as 1 − y²,
batch-norm as x·f + b), and sums in sequence; pairwise and lane-wise sums are more accurate, and stay well inside.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import Array, Saved, per_channel
from ..backend import FUNCTIONS, Backend

Part = tuple[Any, Array]
Parts = Sequence[Part]


def map_floats(value: Any, f: Callable[[Array], Any]) -> Any:
    """`value` with f applied to every array of floats in it (tuples, mappings and Saved are entered)."""
    if isinstance(value, Saved):
        return value._replace(values=map_floats(value.values, f))
    if isinstance(value, Mapping):
        return {key: map_floats(v, f) for key, v in value.items()}
    if isinstance(value, tuple):
        return tuple(map_floats(v, f) for v in value)
    return np.asarray(f(value)) if isinstance(value, np.ndarray) and value.dtype.kind == "f" else value


def widened(value: Any) -> Any:
    """`value` with every array of floats in it as the same numbers in float64, in its shape."""
    return map_floats(value, lambda a: a.astype(np.float64))


@dataclass(frozen=True)
class Call:
    """One evaluation of a Backend's function: its arguments, its results, and Saved (for a VJP: the one it was given)."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    options: Mapping[str, Any]
    results: tuple[Any, ...]
    saved: Saved

    def on(self, f: Callable[[Array], Array]) -> tuple[Any, ...]:
        """The results of the same function with f applied to every array of floats it reads."""
        results = self.function(*map_floats(self.args, f), **map_floats(self.options, f))
        return results[:1] if len(results) == 2 and isinstance(results[1], Saved) else tuple(results)


Model = Callable[[Call], tuple[Parts, ...]]


def combined(*parts: Array | float) -> Array:
    """Root of the sum of squares: independent errors. No square is formed: those of 1e-160 would vanish."""
    size: Array | float = 0.0
    for part in parts:
        size = np.hypot(size, part)
    return np.asarray(size)


def _entry(size: Array | float) -> Part:
    """A part of its own for every entry."""
    return 1.0, np.asarray(size)


def inner_product_noise(n: float, s: Array, squares: Array) -> Array:
    """E2: √(n s²/3 + n q/6) for a sequential sum s of n products, q the sum of their squares."""
    return np.asarray(np.sqrt(n * np.square(s) / 3.0 + n * squares / 6.0))


def _total(x: Array, axes: tuple[int, ...] | None = None) -> Array:
    """E2 for the plain sum of x over axes: √(Σ S_k²/3), S_k the partial sums in this order, or the formula if that is more.

    In it L equal terms count L², not L: they all round the same way, as do the gradients that a global average pool hands
    to all its pixels (equal to 1e-5, which noise keeps).
    """
    axes = tuple(range(x.ndim)) if axes is None else axes
    kept = [a for a in range(x.ndim) if a not in axes]
    terms = x.transpose(*kept, *axes).reshape(math.prod(x.shape[a] for a in kept), math.prod(x.shape[a] for a in axes))
    n = terms.shape[1]
    if n <= 1:
        return np.zeros([x.shape[a] for a in kept])
    partial, ordered, index = np.cumsum(terms, axis=1), np.sort(terms, axis=1), np.arange(n)
    starts = np.ones(terms.shape, dtype=bool)
    starts[:, 1:] = np.abs(np.diff(ordered)) > 1e-5 * np.abs(ordered[:, 1:])
    in_run = index - np.maximum.accumulate(np.where(starts, index, 0), axis=1)
    lengths = ((2 * in_run + 1) * (ordered != 0.0)).sum(axis=1)
    formula = lengths * np.square(partial[:, -1]) / 3.0 + n * np.square(terms).sum(axis=1) / 6.0
    size = np.sqrt(np.maximum(formula, np.square(partial).sum(axis=1) / 3.0))
    return np.asarray(size.reshape([x.shape[a] for a in kept]))


def _exact(call: Call) -> tuple[Parts, ...]:
    return tuple([] for _ in call.results)


def _roundings(count: float) -> Model:
    """Elementwise: `count` roundings of relative size u."""
    return lambda call: tuple([_entry(math.sqrt(count) * np.abs(r))] for r in call.results)


#: How many terms each result of a direct sum of products has: E1's bound and E2's size follow from it.
Terms = Callable[[Call], tuple[int, ...]]


def _affine_terms(call: Call) -> tuple[int, ...]:
    return (math.prod(call.args[1].shape[1:]) + len([b for b in call.args[2:] if b is not None]),)


def _dense_vjp_terms(call: Call) -> tuple[int, ...]:
    return call.saved.values[1].shape[0], len(call.args[1]), len(call.args[1])


def _conv2d_vjp_terms(call: Call) -> tuple[int, ...]:
    w, dy, groups = call.saved.values[1], call.args[1], call.saved.values[5]
    pixels = dy.size // max(dy.shape[1], 1)
    return w.shape[0] // groups * math.prod(w.shape[2:]), pixels, pixels


def _overlap(call: Call) -> tuple[int, ...]:
    """So many windows of a pool share a pixel."""
    kernel, stride = call.saved.values[-3:-1]
    return (math.prod(-(-k // s) for k, s in zip(kernel, stride, strict=True)),)


TERMS: dict[str, Terms] = {
    "dense": _affine_terms,
    "dense_vjp": _dense_vjp_terms,
    "conv2d": _affine_terms,
    "conv2d_vjp": _conv2d_vjp_terms,
    "max_pool_vjp": _overlap,
    "average_pool": lambda call: (math.prod(call.options["kernel"]) + 1,),
    "average_pool_vjp": lambda call: (_overlap(call)[0] + 1,),
    "global_average_pool": lambda call: (math.prod(call.args[0].shape[2:]),),
    "gate_vjp": lambda call: (1, call.args[1].size // max(call.saved.values[1].size, 1)),
}


def _direct(name: str) -> Model:
    """E2 with the sums of squares that the same function gives on squared inputs; one term is exact but for products."""

    def model(call: Call) -> tuple[Parts, ...]:
        squares = call.on(np.square)
        if name == "average_pool":
            squares = (squares[0] / call.saved.values[1],)
        sizes = zip(TERMS[name](call), call.results, squares, strict=True)
        return tuple([] if r is None else [_entry(inner_product_noise(n, r, q))] for n, r, q in sizes)

    return model


def _affine_vjp(name: str) -> Model:
    """Two direct sums of products, and the plain sum Σ dy."""

    def model(call: Call) -> tuple[Parts, ...]:
        dy = call.args[1]
        return *_direct(name)(call)[:2], [_entry(_total(dy, (0, *range(2, dy.ndim))))]

    return model


def _global_average_pool(call: Call) -> tuple[Parts, ...]:
    x, pixels = call.args[0], math.prod(call.args[0].shape[2:])
    return ([_entry(combined(_total(x, (2, 3)) / pixels, call.results[0]))],)


def _global_average_pool_vjp(call: Call) -> tuple[Parts, ...]:
    """One division for all pixels of a channel."""
    return ([(1.0, 1.5 * np.abs(call.results[0][:, :, :1, :1]))],)


# Batch-norm. With n values per channel, m = mean, v = variance, c = x − m, f = gain/√(v + eps):
#   δm      a sum of n terms over n, rounded:            √((total/n)² + m²)
#   δv/v'   v' = v + eps: a sum of n squares over n:     √(n v²/3 + mean(c⁴)/6 + v²)/v';  1/√v' moves by half of it
# Both move a whole channel. Entry by entry: x·f + (bias − m·f) is a formula in use beside c·f + bias, so |f|(|x| + |m|).


def _moment_sizes(x: Array, mean: Array, variance: Array, eps: Array | float) -> tuple[Array, Array]:
    """(size of δm, relative size of δ(1/√v')), per channel, shaped to broadcast."""
    n, axes = x.size // max(x.shape[1], 1), (0, *range(2, x.ndim))
    fourth = np.square(np.square(x - per_channel(mean, x.ndim))).mean(axis=axes)
    shift = combined(_total(x, axes) / max(n, 1), mean)
    stretch = 0.5 * np.sqrt(n * variance**2 / 3.0 + fourth / 6.0 + variance**2) / (variance + eps)
    return per_channel(shift, x.ndim), per_channel(combined(stretch, 1.0), x.ndim)


def _batch_norm(call: Call) -> tuple[Parts, ...]:
    x, gain, bias = call.args[:3]
    normal, inverse, _ = call.saved.values
    mean, variance = (call.saved.statistics or call.args[3:5])[:2]
    f, b = per_channel(gain * inverse, x.ndim), per_channel(bias, x.ndim)
    entries = combined(2.0 * np.abs(f) * (np.abs(x) + np.abs(per_channel(mean, x.ndim))), b, call.results[0])
    if call.saved.statistics is None:
        return ([_entry(entries), (normal * per_channel(gain, x.ndim), np.full(f.shape, 2.0))],)
    shift, stretch = _moment_sizes(x, mean, variance, call.options["eps"])
    return ([_entry(entries), (f, shift), (normal * per_channel(gain, x.ndim), stretch)],)


def _batch_norm_vjp(call: Call) -> tuple[Parts, ...]:
    """dx = f(dy − db/n − normal·dg/n): db and dg carry their sums' errors, normal and f those of the forward pass."""
    dy, (dx, dgain, dbias) = call.args[1], call.results
    normal, inverse, gain = call.saved.values
    ndim, axes, n = dy.ndim, (0, *range(2, dy.ndim)), dy.size // max(dy.shape[1], 1)
    f, inverse = per_channel(gain * inverse, ndim), per_channel(inverse, ndim)
    if call.saved.statistics is None:
        shift, stretch = np.zeros(f.shape), np.full(f.shape, 2.0)
    else:
        mean, variance, _ = call.saved.statistics
        eps = np.reciprocal(np.square(inverse)).reshape(-1) - variance
        shift, stretch = _moment_sizes(normal / inverse + per_channel(mean, ndim), mean, variance, eps)
    g, b = per_channel(dgain, ndim), per_channel(dbias, ndim)
    size_b = per_channel(_total(dy, axes), ndim)
    products = dy * normal
    size_g = combined(
        per_channel(_total(products, axes), ndim),
        2.0 * np.sqrt(per_channel(np.square(products).sum(axis=axes), ndim)),
        shift * inverse * b,
        stretch * g,
    )
    sums: tuple[Parts, ...] = [_entry(size_g.reshape(dgain.shape))], [_entry(size_b.reshape(dbias.shape))]
    if call.saved.statistics is None:
        return ([_entry(2.0 * np.abs(dx)), (dx, stretch)], *sums)
    entries = 2.0 * np.abs(f) * combined(dy, b / n, 2.0 * normal * g / n)
    common = combined(size_b / n, shift * inverse * g / n)
    return ([_entry(entries), (f, common), (f * normal, size_g / n), (dx, stretch)], *sums)


# Activations: what cancels or saturates keeps the error of what went in, so sizes are not all relative to the result.


def _leaky_relu(call: Call) -> tuple[Parts, ...]:
    """Factors 0 and 1 are exact."""
    (factor,), (r,) = call.saved.values, call.results
    return ([_entry(2.0 * np.abs(r) * ((factor != 0.0) & (factor != 1.0)))],)


def _tanh_vjp(call: Call) -> tuple[Parts, ...]:
    """Frameworks use 1 − y², with y's absolute error."""
    y = np.square(np.tanh(call.saved.values[0]))
    return ([_entry(np.abs(call.args[1]) * (5.0 * y + 2.0 * (1.0 - y)))],)


def _sigmoid_vjp(call: Call) -> tuple[Parts, ...]:
    """Frameworks use y(1 − y), with y's absolute error (which side of 0 x was on is not known here: the larger of the two)."""
    return ([_entry(4.0 * np.abs(call.args[1]) / (1.0 + call.saved.values[0]))],)


def _gelu(call: Call) -> tuple[Parts, ...]:
    """Φ = (1 + erf)/2 has an absolute error; a vectorised erf in float32 is off by some 4u (PyTorch)."""
    return ([_entry(2.0 * combined(call.args[0], call.results[0]))],)


def _gelu_vjp(call: Call) -> tuple[Parts, ...]:
    x = call.saved.values[0]
    density = np.exp(-0.5 * x * x) * (2.0 * np.pi) ** -0.5
    return ([_entry(np.abs(call.args[1]) * combined(2.0, np.abs(x) * density * (3.0 + x * x)))],)


def _gelu_tanh(call: Call) -> tuple[Parts, ...]:
    return ([_entry(combined(2.0 * call.args[0], 2.0 * call.results[0]))],)


def _gelu_tanh_vjp(call: Call) -> tuple[Parts, ...]:
    x, t = call.saved.values[0], call.saved.values[-1]
    slope = (2.0 / np.pi) ** 0.5 * (1.0 + 3.0 * 0.044715 * x * x)
    return ([_entry(np.abs(call.args[1]) * combined(3.0, 0.5 * x * slope * (5.0 * np.abs(t) + 3.0 * (1.0 - t * t))))],)


# Residual sections, gates, losses


def _add(call: Call) -> tuple[Parts, ...]:
    size, channels = np.abs(call.results[0]), call.options["channels"]
    if channels is not None:
        size[:, [c for c in range(size.shape[1]) if c not in channels]] = 0.0
    return ([_entry(size)],)


def _gate(call: Call) -> tuple[Parts, ...]:
    g = call.args[1]
    interior = ((g != 0.0) & (g != 1.0)).astype(np.float64)
    return ([_entry(np.abs(call.results[0]) * (interior if g.ndim == 0 else per_channel(interior, call.args[0].ndim)))],)


def _log_sum(log_softmax: Array) -> tuple[Array, Array]:
    """(log Σ exp(logit − max), the size of its error), N×1: exp carries its argument's rounding, the sum E2's."""
    log_sum = -log_softmax.max(axis=1, keepdims=True)
    spread = (np.exp(log_softmax) * np.abs(log_softmax + log_sum)).sum(axis=1, keepdims=True)
    return log_sum, combined(math.sqrt(log_softmax.shape[1] / 3.0), 2.0 + spread, log_sum)


def _cross_entropy(call: Call) -> tuple[Parts, ...]:
    log_softmax, labels, reduction = call.saved.values
    log_sum, size = _log_sum(log_softmax)
    losses = -log_softmax[np.arange(len(labels)), labels]
    each = combined(size[:, 0], losses - log_sum[:, 0], losses)
    total = combined(_total(losses), np.sqrt(np.square(each).sum()), losses.sum())
    return ([_entry(total / (len(labels) if reduction == "mean" else 1))],)


def _cross_entropy_vjp(call: Call) -> tuple[Parts, ...]:
    log_softmax, labels, reduction = call.saved.values
    log_sum, size = _log_sum(log_softmax)
    factor = np.abs(call.args[1]) / (len(labels) if reduction == "mean" else 1)
    p = np.exp(log_softmax)
    entries = combined(factor * p * combined(log_softmax, log_softmax + log_sum, 2.0), 2.0 * call.results[0])
    return ([_entry(entries), (factor * p, size)],)


def _mean_squared_error(call: Call) -> tuple[Parts, ...]:
    difference, count = call.saved.values
    squares = np.square(difference)
    return ([_entry(combined(_total(squares), 3.0 * np.sqrt(np.square(squares).sum()), squares.sum()) / count)],)


def _weight_decay(call: Call) -> tuple[Parts, ...]:
    squares = np.square(call.args[0])
    size = combined(_total(squares), np.sqrt(np.square(squares).sum()), 2.0 * squares.sum())
    return ([_entry(0.5 * call.options["strength"] * size)],)


#: Function → the parts of its noise, one list per result.
MODELS: dict[str, Model] = {name: _direct(name) for name in TERMS} | {
    "batch_norm": _batch_norm,
    "batch_norm_vjp": _batch_norm_vjp,
    "batch_norm_eval": _batch_norm,
    "batch_norm_eval_vjp": _batch_norm_vjp,
    "leaky_relu": _leaky_relu,
    "leaky_relu_vjp": _leaky_relu,
    "tanh": _roundings(4),
    "tanh_vjp": _tanh_vjp,
    "sigmoid": _roundings(9),
    "sigmoid_vjp": _sigmoid_vjp,
    "gelu": _gelu,
    "gelu_vjp": _gelu_vjp,
    "gelu_tanh": _gelu_tanh,
    "gelu_tanh_vjp": _gelu_tanh_vjp,
    "max_pool": _exact,
    "dense_vjp": _affine_vjp("dense_vjp"),
    "conv2d_vjp": _affine_vjp("conv2d_vjp"),
    "global_average_pool": _global_average_pool,
    "global_average_pool_vjp": _global_average_pool_vjp,
    "flatten": _exact,
    "flatten_vjp": _exact,
    "subsample_pad": _exact,
    "subsample_pad_vjp": _exact,
    "add": _add,
    "add_vjp": _exact,
    "gate": _gate,
    "cross_entropy": _cross_entropy,
    "cross_entropy_vjp": _cross_entropy_vjp,
    "mean_squared_error": _mean_squared_error,
    "mean_squared_error_vjp": _roundings(4),
    "weight_decay": _weight_decay,
    "weight_decay_vjp": _roundings(3),
}


def noisy(backend: Backend, *, unit: float, rng: np.random.Generator) -> Backend:
    """`backend` with Gaussian noise, of the size of a rounding error in precision `unit`, on every result.

    backend: the oracle or a mutant of it (its Saved is read). Saved and branch stay those of the unperturbed call on the
    same inputs, so every VJP is that of the function at its noisy inputs.
    """

    def drawn(result: Any, parts: Parts) -> Any:
        for weight, scale in parts:
            result = result + weight * (unit * scale * rng.standard_normal(scale.shape))
        return result

    def wrapped(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        model = MODELS[name]

        def run_forward(*args: Any, **options: Any) -> tuple[Array, Saved]:
            y, saved = function(*args, **options)
            (parts,) = model(Call(function, args, options, (y,), saved))
            return drawn(y, parts), saved

        def run_vjp(saved: Saved, dy: Array, **options: Any) -> tuple[Any, ...]:
            results = function(saved, dy, **options)
            parts = model(Call(function, (saved, dy), options, results, saved))
            return tuple(drawn(r, p) for r, p in zip(results, parts, strict=True))

        return run_vjp if name.endswith("_vjp") else run_forward

    def momentum_step(w: Array, v: Array, g: Array, **options: Any) -> tuple[Array, Array]:
        """Four roundings of the velocity, two of the weights."""
        new, velocity = backend.momentum_step(w, v, g, **options)
        size = combined(velocity, options["momentum"] * v, g + options["decay"] * w, options["decay"] * w)
        return drawn(new, [_entry(combined(new, options["learning_rate"] * velocity))]), drawn(velocity, [_entry(size)])

    functions: dict[str, Any] = {name: wrapped(name, getattr(backend, name)) for name in FUNCTIONS}
    functions["momentum_step"] = momentum_step
    return dataclasses.replace(backend, name=f"noisy {backend.name}", **functions)
