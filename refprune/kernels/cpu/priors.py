"""Priors over large arrays, and the flattening hyper-prior. Contracts as in `refprune.formulas.priors` and
`refprune.formulas.hyper_prior`.

Blocks of weights are taken in chunks of CHUNK, whose bounds do not depend on threads. Of each chunk, first the squared norms
are worked out, then the prior's law gives log p and the factor of the score, then the score is written; all of it stays in the
first-level cache. The log-densities are summed in double precision, per chunk and then over all.

An entry that is not finite makes the sum NaN or infinite; then the oracle looks for it and says which it is. A prior with
constants that the dtype cannot hold is left to the oracle.

The exponential and the logarithm of the spike and slab are written here, as Taylor series after a reduction of the argument, in
operations that LLVM can vectorise; with as many terms as the dtype needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir

from ...arrays import Array
from ...formulas import hyper_prior, priors
from ..machine.kernel import ELEMENT_GRAIN, FLOATS, inner, kernel, native, reader, ready, real64, share, writer
from ..machine.workspace import Workspace

CHUNK = 512  # blocks of weights
CERTAIN = 1e4  # log-odds of which the exponential is 0 in every dtype: for π = 0 and 1
LN2_HIGH = 355 / 512  # ln 2 with so few bits that a small multiple is exact in float32
LN2_LOW = math.log(2.0) - LN2_HIGH
LARGE, TERMS = priors.LARGE, priors.TERMS


def _power_of_half_in_python(n: Any, like: Any) -> Any:
    return type(like)(2.0 ** -int(n))


@native(_power_of_half_in_python)
def power_of_half(typing_context: Any, n: Any, like: Any) -> Any:
    """2⁻ⁿ in the dtype of `like`, which is only looked at; 0 ≤ n below the largest exponent."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        width, mantissa, bias = (32, 23, 127) if like.bitwidth == 32 else (64, 52, 1023)
        kind = ir.IntType(width)
        count = builder.trunc(args[0], kind) if width < args[0].type.width else args[0]
        bits = builder.shl(builder.sub(ir.Constant(kind, bias), count), ir.Constant(kind, mantissa))
        return builder.bitcast(bits, context.get_value_type(like))

    return like(n, like), emit


def _law_of_spike_slab(exponential_terms: int, logarithm_terms: int, limit: float) -> Any:
    """law(q, constants) → (log p, pull) with score = −w·pull; `constants`: see `_constants`."""

    @inner
    def decay(x: float) -> float:
        """e^{−x} for x ≥ 0; 0 from `limit` on and for NaN."""
        t = type(x)
        inside = x if x < t(limit) else t(0.0)
        n = np.int64(inside * t(1.0 / math.log(2.0)) + t(0.5))
        r = (t(n) * t(LN2_HIGH) - inside) + t(n) * t(LN2_LOW)
        series = t(1.0)
        for k in range(exponential_terms, 0, -1):
            series = t(1.0) + series * r * t(1.0 / k)
        return series * power_of_half(n, inside) if x < t(limit) else t(0.0)

    @inner
    def law(square: float, c: Any) -> tuple[float, float]:
        t = type(square)
        odds = c[0] + c[1] * square
        e = decay(abs(odds))
        z = e / (t(2.0) + e)
        series = t(0.0)
        for k in range(logarithm_terms, 0, -1):
            series = z * z * (t(1.0 / (2 * k + 1)) + series)
        more = t(2.0) * z * (t(1.0) + series)  # log(1 + e) = 2 artanh z
        spike, slab = c[2] - c[4] * square, c[3] - c[5] * square
        likelier = t(1.0) / (t(1.0) + e)
        in_slab = likelier if odds >= 0 else e * likelier
        in_spike = e * likelier if odds >= 0 else likelier
        return (slab if odds >= 0 else spike) + more, in_spike * c[6] + in_slab * c[7]

    return law


@inner
def _law_of_student_t(square: float, c: Any) -> tuple[float, float]:
    return c[0] - c[1] * math.log1p(square / c[2]), c[3] / (c[2] + square)


@inner
def _law_of_laplace(size: float, c: Any) -> tuple[float, float]:
    return c[0] - size / c[1], c[2]


@inner
def _exponential_integral(z: float) -> float:
    """E₁(z) for TINY ≤ z < LARGE: −γ − log z + z − z²/4 + …"""
    total, term = 0.0, -1.0
    for k in range(1, 25):
        term *= -z / k
        total += term / k
    return float(total - math.log(z) - np.euler_gamma)


@inner
def _law_of_horseshoe(size: float, c: Any) -> tuple[float, float]:
    """As `formulas.priors._tricomi`, in double precision."""
    x, width = np.float64(size), np.float64(c[1])
    ratio = x / width
    z = 0.5 * ratio * ratio
    log_z = 2.0 * (math.log(x) - math.log(width)) - math.log(2.0) if x > 0.0 else -np.inf
    if z < LARGE:
        near = math.exp(z) * _exponential_integral(z) if z >= priors.TINY else -np.euler_gamma - log_z
        log_u, quotient = math.log(near), 1.0 / near - z
    else:
        denominator = z + (2.0 * TERMS + 1.0)
        for k in range(TERMS, 1, -1):
            denominator = z + (2.0 * k - 1.0) - k * k / denominator
        quotient = 1.0 - 1.0 / denominator
        log_u = -log_z - math.log1p(quotient / z)
    score = 2.0 * quotient / x if x > 0.0 else 0.0
    return type(size)(np.float64(c[0]) + log_u), type(size)(score)


def _of_blocks(law: Any) -> Any:
    """Kernel of a prior of a block: w is blocks × entries."""

    @kernel(lambda f: (reader(f, 2), reader(f, 1), writer(f, 1), writer(f, 2), writer(real64, 1)))
    def of_blocks(part: int, parts: int, w: Array, constants: Array, log_p: Array, score: Array, totals: Array) -> None:
        k = constants
        c = (k[0], k[1], k[2], k[3], k[4], k[5], k[6], k[7])
        entries = w.shape[1]
        square, pull = np.empty(CHUNK, w.dtype), np.empty(CHUNK, w.dtype)
        for chunk in range(part * len(totals) // parts, (part + 1) * len(totals) // parts):
            low, high = chunk * CHUNK, min(len(w), (chunk + 1) * CHUNK)
            n, out = high - low, log_p[low:high]
            if entries == 1:
                x, y = w[low:high].reshape(n), score[low:high].reshape(n)
                for i in range(n):
                    square[i] = x[i] * x[i]
            else:
                for i in range(n):
                    total = 0.0
                    for j in range(entries):
                        total += np.float64(w[low + i, j]) * np.float64(w[low + i, j])
                    square[i] = total
            for i in range(n):
                out[i], pull[i] = law(square[i], c)
            if entries == 1:
                for i in range(n):
                    y[i] = -x[i] * pull[i]
            else:
                for i in range(n):
                    for j in range(entries):
                        score[low + i, j] = -w[low + i, j] * pull[i]
            totals[chunk] = _sum(out)

    return of_blocks


def _of_weights(law: Any) -> Any:
    """Kernel of a prior per weight."""

    @kernel(lambda f: (reader(f, 1), reader(f, 1), writer(f, 1), writer(f, 1), writer(real64, 1)))
    def of_weights(part: int, parts: int, w: Array, constants: Array, log_p: Array, score: Array, totals: Array) -> None:
        k = constants
        c = (k[0], k[1], k[2], k[3], k[4], k[5], k[6], k[7])
        for chunk in range(part * len(totals) // parts, (part + 1) * len(totals) // parts):
            low, high = chunk * CHUNK, min(len(w), (chunk + 1) * CHUNK)
            x, out, y = w[low:high], log_p[low:high], score[low:high]
            for i in range(len(x)):
                out[i], pull = law(abs(x[i]), c)
                y[i] = -pull if x[i] > 0 else (pull if x[i] < 0 else x[i] * 0)
            totals[chunk] = _sum(out)

    return of_weights


@inner
def _sum(x: Array) -> float:
    """In double precision; eight sums side by side, so that LLVM can vectorise them."""
    lanes = np.zeros(8)
    whole = len(x) // 8 * 8
    for i in range(0, whole, 8):
        for j in range(8):
            lanes[j] += np.float64(x[i + j])
    total = ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]))
    for i in range(whole, len(x)):
        total += np.float64(x[i])
    return float(total)


_SPIKE_SLAB = {
    np.dtype(np.float32): _of_blocks(_law_of_spike_slab(7, 7, 87.0)),
    np.dtype(np.float64): _of_blocks(_law_of_spike_slab(13, 16, 708.0)),
}
_STUDENT_T, _LAPLACE, _HORSESHOE = _of_blocks(_law_of_student_t), _of_weights(_law_of_laplace), _of_weights(_law_of_horseshoe)


def _constants(prior: priors.Prior, d: int) -> tuple[float, ...]:
    """What the law of the prior reads, in its order."""
    if isinstance(prior, priors.SpikeSlab):
        (a, b), (spike, slab) = prior.log_odds(d), prior.log_constants(d)
        if prior.pi == 0.0:
            return -CERTAIN, 0.0, spike, 0.0, 0.5 / prior.spike, 0.0, 1.0 / prior.spike, 0.0
        if prior.pi == 1.0:
            return CERTAIN, 0.0, 0.0, slab, 0.0, 0.5 * prior.precision, 0.0, prior.precision
        return a, b, spike, slab, 0.5 / prior.spike, 0.5 * prior.precision, 1.0 / prior.spike, prior.precision
    if isinstance(prior, priors.StudentT):
        exponent = prior.degrees + d
        variance = prior.width * prior.width
        return prior.log_constant(d), 0.5 * exponent, prior.degrees * variance, exponent, variance
    if isinstance(prior, priors.Laplace):
        return -(math.log(2.0) + math.log(prior.width)), prior.width, 1.0 / prior.width
    return -math.log(prior.width) - 0.5 * math.log(2.0 * math.pi**3), prior.width


def prior_density(workspace: Workspace, w: Array, prior: priors.Prior) -> priors.Density:
    """Same contract as `formulas.priors.prior_density`."""
    block = isinstance(prior, priors.SpikeSlab | priors.StudentT)
    fits = isinstance(w, np.ndarray) and w.dtype in FLOATS and w.size > 0 and (w.ndim > 0 or not block)
    if not fits or (isinstance(prior, priors.SpikeSlab) and prior.spike == 0.0):
        return priors.prior_density(w, prior)
    if isinstance(prior, priors.SpikeSlab):
        run = _SPIKE_SLAB[w.dtype]
    else:
        run = {priors.StudentT: _STUDENT_T, priors.Laplace: _LAPLACE, priors.Horseshoe: _HORSESHOE}[type(prior)]
    d = w.shape[-1] if block else 1
    given = _constants(prior, d)
    if not priors.representable(w.dtype, *given):
        return priors.prior_density(w, prior)
    log_p, score = workspace.empty(w.shape[:-1] if block else w.shape, w.dtype), workspace.empty(w.shape, w.dtype)
    totals, constants = np.empty(-(-log_p.size // CHUNK)), np.zeros(8, w.dtype)
    constants[: len(given)] = given
    shape = (-1, d) if block else (-1,)
    parts = share(workspace.threads, w.size, ELEMENT_GRAIN)
    run[w.dtype](parts, ready(w).reshape(shape), constants, log_p.reshape(-1), score.reshape(shape), totals)
    total = float(totals.sum())
    return priors.Density(log_p, score, total) if math.isfinite(total) else priors.prior_density(w, prior)


# --------------------------------------------------------------------------------------------------------------------
# The flattening hyper-prior, in double precision: gates are few


@inner
def _log_decay(a: float) -> float:
    """As `formulas.hyper_prior.log_decay`."""
    if a >= 1.0:
        return math.log(-math.expm1(-a) / a)
    square, excess = 0.25 * a * a, 0.0
    for k in range(8, 0, -1):
        excess = square / (2 * k * (2 * k + 1)) * (1.0 + excess)
    return math.log1p(excess) - 0.5 * a


@inner
def _log(x: float) -> float:
    return math.log(x) if x > 0.0 else -np.inf


@inner
def _scaled(a: float) -> tuple[float, float]:
    """(e^{−a}·y, y) as in `formulas.hyper_prior._scaled_exponential`."""
    if a <= hyper_prior.SUBNORMAL:
        return math.exp(-a), 1.0
    root = math.exp(-0.5 * a)
    return root * 2.0**hyper_prior.SHIFT * root, 2.0**hyper_prior.SHIFT


@kernel(lambda f: (reader(f, 1), reader(f, 1), writer(f, 1), writer(f, 1), writer(f, 1)))
def _profile(part: int, parts: int, theta: Array, log_gamma: Array, best: Array, cost: Array, totals: Array) -> None:
    for chunk in range(part * len(totals) // parts, (part + 1) * len(totals) // parts):
        low, high = chunk * CHUNK, min(len(theta), (chunk + 1) * CHUNK)
        for i in range(low, high):
            t, l = theta[i], log_gamma[i]  # noqa: E741
            decay, scale = _scaled(abs(l))
            on = t * scale if l > 0.0 else decay * t
            off = decay * (1.0 - t) if l > 0.0 else (1.0 - t) * scale
            best[i] = t if t == 0.0 or t == 1.0 else on / (on + off)
            valid = 0.0 <= t <= 1.0 and abs(l) < np.inf
            cost[i] = min(l, 0.0) - _log_decay(abs(l)) - t * l if valid else np.nan
        totals[chunk] = _sum(cost[low:high])


@kernel(lambda f: (reader(f, 1), reader(f, 1), writer(f, 1), writer(f, 1), writer(f, 1)))
def _density(part: int, parts: int, pi: Array, log_gamma: Array, log_p: Array, slope: Array, totals: Array) -> None:
    for chunk in range(part * len(totals) // parts, (part + 1) * len(totals) // parts):
        low, high = chunk * CHUNK, min(len(pi), (chunk + 1) * CHUNK)
        for i in range(low, high):
            p, l = pi[i], log_gamma[i]  # noqa: E741
            a, near, far = abs(l), 1.0 - p if l > 0.0 else p, p if l > 0.0 else 1.0 - p
            removed = -math.expm1(-a) * far
            if removed <= 0.5:
                denominator = math.log1p(-removed)
            else:
                log_near = math.log1p(-p) if l > 0.0 and p < 1.0 else (_log(p) if l <= 0.0 else -np.inf)
                log_far = (_log(p) if l > 0.0 else math.log1p(-p)) - a
                larger = max(log_near, log_far)
                denominator = larger + math.log1p(math.exp(-abs(log_near - log_far)))
            valid = 0.0 <= p <= 1.0 and a < np.inf
            log_p[i] = _log_decay(a) - denominator if valid else np.nan
            decay, scale = _scaled(a)
            size = -math.expm1(-a) / (near * scale + decay * far) * scale
            slope[i] = size if l > 0.0 else -size
        totals[chunk] = _sum(log_p[low:high])


def _over_gates(workspace: Workspace, run: Any, oracle: Callable[..., Any], result: Any, first: Any, log_gamma: Any) -> Any:
    if not isinstance(first, np.ndarray) or not isinstance(log_gamma, np.ndarray | float | int):
        return oracle(first, log_gamma)
    x, l = first, np.asarray(log_gamma)  # noqa: E741
    if x.dtype.kind != "f" or l.dtype.kind not in "fiu" or x.size == 0 or l.shape not in ((), x.shape):
        return oracle(first, log_gamma)
    flat = ready(x.astype(np.float64, copy=False)).reshape(-1)
    spread = ready(np.broadcast_to(l, x.shape).astype(np.float64)).reshape(-1)
    one, other = workspace.empty(x.shape, np.float64), workspace.empty(x.shape, np.float64)
    totals = np.empty(-(-x.size // CHUNK))
    parts = share(workspace.threads, x.size, ELEMENT_GRAIN // 16)  # an exponential and logarithms for each
    run[flat.dtype](parts, flat, spread, one.reshape(-1), other.reshape(-1), totals)
    total = float(totals.sum())
    return result(one, other, total) if math.isfinite(total) else oracle(first, log_gamma)


def flattening_profile(workspace: Workspace, theta: Array, log_gamma: Any) -> hyper_prior.Profile:
    """Same contract as `formulas.hyper_prior.flattening_profile`."""
    found: hyper_prior.Profile = _over_gates(
        workspace, _profile, hyper_prior.flattening_profile, hyper_prior.Profile, theta, log_gamma
    )
    return found


def flattening_density(workspace: Workspace, pi: Array, log_gamma: Any) -> hyper_prior.HyperPrior:
    """Same contract as `formulas.hyper_prior.flattening_density`."""
    found: hyper_prior.HyperPrior = _over_gates(
        workspace, _density, hyper_prior.flattening_density, hyper_prior.HyperPrior, pi, log_gamma
    )
    return found
