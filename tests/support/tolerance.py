"""Tolerances that are computed (SPEC E1), and the one assertion that uses them.

Running error analysis (Higham, Accuracy and Stability, 3.3). `Tracked` carries a value, its `scale` (the same
operations on absolute values, so that cancellation shows) and a bound on the rounding `error` of computing it in unit
roundoff u. Rules, for operands a, b with errors e, f and every result r rounded once (u|r|, plus the smallest normal
number for underflow):

    a ± b   e + f                       Σ of n   Σe + γ_n(Σ|a| + Σe)          f(a)   sup|f'|·e + 4u|f|
    a · b   |a|f + |b|e + e f           a / b    (e + |a/b| f)/(|b| − f)      √a     e/√a

γ_n holds for every order of summation and with fused multiply-add; 4 ulp is what NumPy, SLEEF and libm promise for
exp, log, tanh and erf. A direct sum of products of m terms gets γ_m times the sum of absolute products (E1).

`FORWARD[op](case, u)` and `VJP[op](case, dy, u)` give the Tracked results. Two computed values differ by at most the
sum of their errors: `SIDES` = 2.
"""

import dataclasses
import math

import naive
import numpy as np
from scipy.special import erf

SIDES = 2
ULPS = 4
TINY = {2.0**-24: float(np.finfo(np.float32).smallest_normal), 2.0**-53: float(np.finfo(np.float64).smallest_normal)}


def unit_roundoff(dtype):
    """2⁻²⁴ for float32, 2⁻⁵³ for float64 and complex128."""
    return float(np.finfo(dtype).eps) / 2


def gamma(m, u):
    """γ_m = mu/(1 − mu)."""
    return m * u / (1.0 - m * u)


# The assertion --------------------------------------------------------------------------------------------------------


def assert_same_kind(name, got, want, **context):
    """The dtype and the shape agree."""
    __tracebackhide__ = True
    for what, mine, theirs in (("dtype", got.dtype, want.dtype), ("shape", got.shape, want.shape)):
        assert mine == theirs, f"{name}: {what} is {mine}, wanted {theirs}{_described(context)}"


def assert_close(name, got, want, bound, **context):
    """|got − want| ≤ bound everywhere. A NaN, or a bound that is not finite, is a failure; equal infinities are equal."""
    __tracebackhide__ = True
    got, want = np.asarray(got), np.asarray(want)
    assert_same_kind(name, got, want, **context)
    bound = np.broadcast_to(bound, got.shape)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        error = np.where(got == want, 0.0, np.abs(got - want))
        bad = ~((error <= bound) & np.isfinite(bound))
        if not bad.any():
            return
        excess = np.where(np.isnan(error / bound), np.where(bad, np.inf, 0.0), error / bound)
    worst = np.unravel_index(np.argmax(np.where(bad, excess, -1.0)), got.shape)
    raise AssertionError(
        f"{name}: {bad.sum()} of {bad.size} entries are off, shape {got.shape} {got.dtype}; worst at "
        f"{tuple(map(int, worst))}: got {got[worst]!r}, wanted {want[worst]!r}, "
        f"error {error[worst]:.3g}, bound {bound[worst]:.3g}, ratio {excess[worst]:.3g}{_described(context)}"
    )


def assert_identical(name, got, want, **context):
    """The same bits, up to the sign of zero."""
    __tracebackhide__ = True
    assert_close(name, got, want, 0.0, **context)


def _described(context):
    return "".join(f"\n  {key}: {value!r}" for key, value in context.items())


# Running error analysis -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Tracked:
    value: np.ndarray
    scale: np.ndarray
    error: np.ndarray
    u: float

    def _result(self, value, scale, error, rounded=None):
        """A rounded result; `rounded`: a bound of what is rounded, if that is not |value| + error."""
        magnitude = np.abs(value) + error if rounded is None else rounded
        return Tracked(value, scale, error + self.u * magnitude + TINY[self.u], self.u)

    def _lift(self, other):
        return other if isinstance(other, Tracked) else constant(other, self.u)

    def __add__(self, other):
        b = self._lift(other)
        return self._result(self.value + b.value, self.scale + b.scale, self.error + b.error)

    def __neg__(self):
        return Tracked(-self.value, self.scale, self.error, self.u)

    def __sub__(self, other):
        return self + -self._lift(other)

    def __rsub__(self, other):
        return -self + other

    def __mul__(self, other):
        b = self._lift(other)
        error = np.abs(self.value) * b.error + np.abs(b.value) * self.error + self.error * b.error
        return self._result(self.value * b.value, self.scale * b.scale, error)

    __radd__, __rmul__ = __add__, __mul__

    def __truediv__(self, other):
        b = self._lift(other)
        value, size = self.value / b.value, np.abs(b.value)
        assert (size > b.error).all(), "a denominator is lost in rounding: the case is out of the strategy's contract"
        return self._result(value, self.scale / size, (self.error + np.abs(value) * b.error) / (size - b.error))

    def __rtruediv__(self, other):
        return self._lift(other) / self

    def sqrt(self):
        value = np.sqrt(self.value)
        return self._result(value, value, self.error / value)

    def apply(self, f, slope):
        """f with |f'| ≤ slope between the exact and the computed argument; ULPS roundings."""
        value, carried = f(self.value), slope * self.error
        return self._result(value, np.abs(value), carried, ULPS * (np.abs(value) + carried))

    def exp(self):
        return self.apply(np.exp, np.exp(self.value + self.error))

    def sum(self, axes):
        n = math.prod(self.value.shape[a] for a in axes)
        size, error = np.abs(self.value).sum(axis=axes), self.error.sum(axis=axes)
        error = error + gamma(n, self.u) * (size + error) + n * TINY[self.u]
        return Tracked(self.value.sum(axis=axes), self.scale.sum(axis=axes), error, self.u)

    def _map(self, f):
        return Tracked(f(self.value), f(self.scale), f(self.error), self.u)

    def reshape(self, shape):
        return self._map(lambda v: np.reshape(v, shape))

    def __getitem__(self, index):
        return self._map(lambda v: v[index])

    def total(self):
        return self.sum(tuple(range(self.value.ndim)))


def exact(value, u):
    """A number that is represented exactly: an input."""
    value = np.asarray(value).astype(np.float64)
    return Tracked(value, np.abs(value), np.zeros_like(value), u)


def constant(value, u):
    """A constant that is rounded to the working precision, unless it is an integer or a half."""
    value = np.asarray(value, dtype=np.float64)
    return Tracked(value, np.abs(value), np.where(2 * value == np.rint(2 * value), 0.0, u * np.abs(value)), u)


def where(condition, a, b):
    return Tracked(*(np.where(condition, getattr(a, f), getattr(b, f)) for f in ("value", "scale", "error")), a.u)


# Direct sums: γ_m · (the same operation on absolute values) -----------------------------------------------------------


def _direct(m, f, arrays, u, **options):
    """m roundings or terms of f(*arrays), which is a sum of products; a tuple of results takes a tuple of m."""
    values = f(*(np.asarray(a).astype(np.float64) for a in arrays), **options)
    scales = f(*(np.abs(np.asarray(a).astype(np.float64)) for a in arrays), **options)
    if not isinstance(values, tuple):
        return Tracked(values, scales, gamma(m, u) * scales + m * TINY[u], u)
    results = zip(values, scales, m, strict=True)
    return tuple(Tracked(v, s, gamma(terms, u) * s + terms * TINY[u], u) for v, s, terms in results)


def _linear(forward_terms, vjp_terms):
    """(forward, vjp) of an operation that is a direct sum; the two functions count terms from case (and dy's shape)."""

    def forward(case, u):
        return _direct(forward_terms(case), getattr(naive, case.op), (*case.arrays, *case.constants), u, **case.options)

    def vjp(case, dy, u):
        f = getattr(naive, f"{case.op}_gradient")
        return _direct(vjp_terms(case, dy), f, (dy, *case.arrays, *case.constants), u, **case.options)

    return forward, vjp


def _conv2d_terms(case):
    return math.prod(case.arrays[1].shape[1:]) + 1


def _conv2d_vjp_terms(case, dy):
    w, pixels = case.arrays[1], math.prod(dy.shape[2:]) * dy.shape[0]
    return w.shape[0] // case.options["groups"] * math.prod(w.shape[2:]), pixels, pixels


def _window(case):
    return math.prod(case.options["kernel"])


def _max_pool():
    """A choice: exact forward. Backward sums at most kh·kw of the dy. The choice itself is kept out of |x|."""

    def forward(case, u):
        return exact(naive.max_pool(*case.arrays, **case.options), u)

    def vjp(case, dy, u):
        options = dict(case.options)
        options["branch"] = options.get("branch")
        if options["branch"] is None:
            chosen = {k: v for k, v in options.items() if k != "branch"}
            options["branch"] = naive.max_pool_branch(*case.arrays, **chosen)
        return _direct((_window(case),), naive.max_pool_gradient, (dy, *case.arrays), u, **options)

    return forward, vjp


def _leaky_relu():
    """The factor slope + at_zero(1 − slope) takes 3 roundings and a cast, the product one: 5."""

    def branch(case):
        taken = case.options.get("branch")
        return {**case.options, "branch": naive.leaky_relu_branch(*case.arrays) if taken is None else taken}

    def forward(case, u):
        return _direct(5, naive.leaky_relu, case.arrays, u, **branch(case))

    def vjp(case, dy, u):
        return _direct((5,), naive.leaky_relu_gradient, (dy, *case.arrays), u, **branch(case))

    return forward, vjp


# Compositions ---------------------------------------------------------------------------------------------------------


def _worse(ours, theirs):
    """The oracle's formula, with the larger error of the two: a witness that uses another formula rounds otherwise."""
    return dataclasses.replace(ours, error=np.maximum(ours.error, theirs.error))


def _cosh(x):
    return x.apply(np.cosh, np.sinh(np.abs(x.value) + x.error))


def _inputs(case, u):
    return [exact(a, u) for a in (*case.arrays, *(c for c in case.constants if c.dtype.kind == "f"))]


def _axes(x):
    return (0, *range(2, x.ndim))


def _per_channel(t, ndim):
    return t.reshape((1, -1) + (1,) * (ndim - 2))


def _moments(x):
    """(centred, mean, variance); the last two shaped to broadcast."""
    ndim, n = x.value.ndim, x.value.size // x.value.shape[1]
    mean = _per_channel(x.sum(_axes(x.value)) / n, ndim)
    centred = x - mean
    return centred, mean, _per_channel((centred * centred).sum(_axes(x.value)) / n, ndim)


def _normalised(case, u):
    x, gain, bias, *running = _inputs(case, u)
    ndim = x.value.ndim
    if running:
        mean, variance = (_per_channel(t, ndim) for t in running)
        centred = x - mean
    else:
        centred, mean, variance = _moments(x)
    inverse = 1.0 / (variance + case.options["eps"]).sqrt()
    return x, _per_channel(gain, ndim), _per_channel(bias, ndim), mean, centred * inverse, inverse


def _batch_norm(case, u):
    """gain·(x − μ)/σ + bias; PyTorch: x·(gain/σ) + (bias − μ·gain/σ)."""
    x, gain, bias, mean, normal, inverse = _normalised(case, u)
    factor = gain * inverse
    return _worse(normal * gain + bias, x * factor + (bias - mean * factor))


def _batch_norm_vjp(case, dy, u):
    _, gain, _, _, normal, inverse = _normalised(case, u)
    d, axes = exact(dy, u), _axes(dy)
    dbias, dgain = d.sum(axes), (d * normal).sum(axes)
    if case.op == "batch_norm_eval":
        return d * (gain * inverse), dgain, dbias
    n = dy.size // dy.shape[1]
    inner = d - _per_channel(dbias / n, dy.ndim) - normal * _per_channel(dgain / n, dy.ndim)
    return inner * (gain * inverse), dgain, dbias


def _tanh(case, u):
    (x,) = _inputs(case, u)
    return x.apply(np.tanh, 1.0)


def _tanh_vjp(case, dy, u):
    """1 − y²; loops: 1/cosh²."""
    (x,), y, d = _inputs(case, u), _tanh(case, u), exact(dy, u)
    return (_worse(d * (1.0 - y * y), d / (_cosh(x) * _cosh(x))),)


def _sigmoid(case, u):
    """1/(1 + e^−x) in two branches; loops: (1 + tanh(x/2))/2."""
    (x,) = _inputs(case, u)
    e = where(x.value < 0, x, -x).exp()
    ours = where(x.value < 0, e, exact(np.ones_like(x.value), u)) / (1.0 + e)
    return _worse(ours, 0.5 * (1.0 + (0.5 * x).apply(np.tanh, 1.0)))


def _sigmoid_vjp(case, dy, u):
    """y(1 − y); loops: 1/(2 cosh(x/2))²."""
    (x,), y, d = _inputs(case, u), _sigmoid(case, u), exact(dy, u)
    return (_worse(d * y * (1.0 - y), d * 0.25 / (_cosh(0.5 * x) * _cosh(0.5 * x))),)


def _phi(x):
    return 0.5 * (1.0 + (x * 0.5**0.5).apply(erf, 2.0 * math.pi**-0.5))


def _gelu(case, u):
    (x,) = _inputs(case, u)
    return x * _phi(x)


def _gelu_vjp(case, dy, u):
    (x,) = _inputs(case, u)
    return (exact(dy, u) * (_phi(x) + x * (-0.5 * (x * x)).exp() * (2.0 * math.pi) ** -0.5),)


def _gelu_inner(x):
    scale, cube = (2.0 / math.pi) ** 0.5, 0.044715
    return (scale * (x + cube * (x * x * x))).apply(np.tanh, 1.0), scale * (1.0 + 3.0 * cube * (x * x))


def _gelu_tanh(case, u):
    (x,) = _inputs(case, u)
    return 0.5 * x * (1.0 + _gelu_inner(x)[0])


def _gelu_tanh_vjp(case, dy, u):
    (x,) = _inputs(case, u)
    t, slope = _gelu_inner(x)
    return (exact(dy, u) * (0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope),)


def _log_softmax(case, u):
    x = exact(case.arrays[0], u)
    shifted = x - exact(x.value.max(axis=1, keepdims=True), u)
    total = shifted.exp().sum((1,))
    log_sum = total.apply(np.log, 1.0 / (total.value - total.error))
    return shifted - log_sum.reshape((-1, 1))


def _cross_entropy(case, u):
    (labels,) = case.constants
    losses = -_log_softmax(case, u)[np.arange(len(labels)), labels]
    return losses.total() / (len(labels) if case.options["reduction"] == "mean" else 1)


def _cross_entropy_vjp(case, dy, u):
    (labels,) = case.constants
    onehot = labels[:, None] == np.arange(case.arrays[0].shape[1])
    d = _log_softmax(case, u).exp() - exact(onehot, u)
    return (d * (exact(dy, u) / (len(labels) if case.options["reduction"] == "mean" else 1)),)


def _squares_divisor(case):
    return {"mean": case.arrays[0].size, "batch_mean": len(case.arrays[0]), "sum": 1}[case.options["reduction"]]


def _mean_squared_error(case, u):
    prediction, target = _inputs(case, u)
    difference = prediction - target
    return (difference * difference).total() / _squares_divisor(case)


def _mean_squared_error_vjp(case, dy, u):
    prediction, target = _inputs(case, u)
    return ((prediction - target) * (exact(2.0, u) / _squares_divisor(case) * exact(dy, u)),)


def _weight_decay(case, u):
    (w,) = _inputs(case, u)
    return 0.5 * constant(case.options["strength"], u) * (w * w).total()


def _weight_decay_vjp(case, dy, u):
    (w,) = _inputs(case, u)
    return (constant(case.options["strength"], u) * w * exact(dy, u),)


_PAIRS = {
    "dense": _linear(
        lambda c: c.arrays[0].shape[1] + 1, lambda c, dy: (dy.shape[1], c.arrays[0].shape[0], c.arrays[0].shape[0])
    ),
    "conv2d": _linear(_conv2d_terms, _conv2d_vjp_terms),
    "batch_norm": (_batch_norm, _batch_norm_vjp),
    "batch_norm_eval": (_batch_norm, _batch_norm_vjp),
    "leaky_relu": _leaky_relu(),
    "tanh": (_tanh, _tanh_vjp),
    "sigmoid": (_sigmoid, _sigmoid_vjp),
    "gelu": (_gelu, _gelu_vjp),
    "gelu_tanh": (_gelu_tanh, _gelu_tanh_vjp),
    "max_pool": _max_pool(),
    "average_pool": _linear(lambda c: _window(c) + 1, lambda c, dy: (_window(c) + 1,)),
    "global_average_pool": _linear(lambda c: math.prod(c.arrays[0].shape[2:]) + 1, lambda c, dy: (1,)),
    "flatten": _linear(lambda c: 0, lambda c, dy: (0,)),
    "subsample_pad": _linear(lambda c: 0, lambda c, dy: (0,)),
    "add": _linear(lambda c: 1, lambda c, dy: (0, 0)),
    "gate": _linear(lambda c: 1, lambda c, dy: (1, dy.size)),
    "cross_entropy": (_cross_entropy, _cross_entropy_vjp),
    "mean_squared_error": (_mean_squared_error, _mean_squared_error_vjp),
    "weight_decay": (_weight_decay, _weight_decay_vjp),
}
FORWARD = {op: pair[0] for op, pair in _PAIRS.items()}
VJP = {op: pair[1] for op, pair in _PAIRS.items()}
