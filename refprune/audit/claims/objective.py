"""O1 to O5: the objective and its gradients. Witnesses: enumeration, rationals, complex step, Monte Carlo, quadrature."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from typing import Any

import numpy as np

from ...arrays import Array
from ...formulas import hyper_prior
from ...gates import estimators
from ...output import figures
from ...passes.batch_loss import BatchLoss
from ...spec.layers import Activation, Dense, Section
from ...spec.network import Network
from ...training import config
from ...training.coefficients import penalties
from ..catalogue import EPS, LP, OURS, Claim, Context, Finding, close, exact, worst, z_score
from ..witnesses.examples import (
    dense_network,
    linear_network,
    loss_of,
    losses_at,
    moved_to,
    probabilities,
    remembered,
    slopes_of,
    vertices_of,
)

O1 = Claim(
    "O1",
    "The per-sample objective; its scaling against the bound for the whole data set.",
    "J(W, θ) = C(W, θ) + \\frac{1}{2} λ ‖W‖^2 + ∑_g β_g θ_g, β_g = −\\frac{log γ_g}{N}",
    LP,
    (
        "gates.estimators:exact_expectation",
        "formulas.hyper_prior:beta_from_log_gamma",
        "formulas.hyper_prior:log_gamma_from_beta",
        "training.coefficients:penalties",
        "oracle.layers:weight_decay",
    ),
)
O2 = Claim(
    "O2",
    "C is multi-affine in θ; its derivative is the difference of two conditional expectations.",
    "∂C/∂θ_g = E[c | ξ_g = 1] − E[c | ξ_g = 0]",
    LP,
    ("gates.estimators:exact_theta_gradient", "gates.estimators:exact_expectation", "gates.estimators:exact"),
)
O3 = Claim(
    "O3",
    "The gradient of a section's weights is θ times that with its gate open.",
    "∂C/∂W^l = θ^l E[∂c/∂W^l | ξ^l = 1]",
    LP,
    ("gates.estimators:exact_weight_gradient",),
)
O4 = Claim(
    "O4",
    "Deterministic solutions: J is harmonic in θ, some vertex minimises it, an interior minimum is never better.",
    "min_{θ∈{[0,1]}^G} J = min_{θ∈\\{0,1\\}^G} J, ∑_g ∂^2 J/∂θ_g^2 = 0",
    LP,
    ("gates.estimators:exact_expectation", "gates.estimators:exact_theta_gradient"),
)
O5 = Claim(
    "O5",
    "Estimators: paired, reinforce, arm and disarm are unbiased, taylor is exact for affine c only.",
    "E[ĝ] = ∂C/∂θ",
    OURS,
    (
        "gates.estimators:paired",
        "gates.estimators:reinforce",
        "gates.estimators:arm",
        "gates.estimators:disarm",
        "gates.estimators:taylor",
    ),
)

ROUNDINGS = 256  # in eps: sums of 2⁸ losses, each times 8 factors, are off by 265 u = 133 eps of the largest loss; twice


def _linear_by_rationals(theta: list[Fraction]) -> tuple[list[list[int]], Fraction, list[Fraction]]:
    """Weights, C and ∂C/∂θ of `linear_network` on one example, in rational arithmetic."""
    a, w1, w2, x, y = [[1, -2], [3, 1]], [[2, 1], [-1, 1]], [[0, 3], [1, -2]], [2, -1], [1, 4]

    def apply(m: list[list[int]], v: list[Any]) -> list[Any]:
        return [sum(p * q for p, q in zip(row, v, strict=True)) for row in m]

    def c(first: int, second: int) -> int:
        h = apply(a, x)
        h = [p + first * q for p, q in zip(h, apply(w1, h), strict=True)]
        h = [p + second * q for p, q in zip(h, apply(w2, h), strict=True)]
        return sum((p - q) ** 2 for p, q in zip(h, y, strict=True))

    t1, t2 = theta
    total = sum(
        ((t1 if i else 1 - t1) * (t2 if j else 1 - t2) * c(i, j) for i in (0, 1) for j in (0, 1)),
        Fraction(0),
    )
    first = (1 - t2) * (c(1, 0) - c(0, 0)) + t2 * (c(1, 1) - c(0, 1))
    second = (1 - t1) * (c(0, 1) - c(0, 0)) + t1 * (c(1, 1) - c(1, 0))
    return [a, w1, w2, [x, y]], total, [first, second]  # type: ignore[list-item]


def _linear_loss(context: Context, arrays: Any) -> BatchLoss:
    a, w1, w2, (x, y) = arrays
    params = {"dense1.weight": a, "section1.dense1.weight": w1, "section2.dense1.weight": w2}
    wide = {n: np.array(p, dtype=float) for n, p in params.items()}
    return BatchLoss(linear_network(), context.backend, wide, np.array([x], float), np.array([y], float))


@O1.witness("rationals: C of a linear network with integer weights, to the bit")
def expectation_in_rationals(context: Context) -> Finding:
    wrong = 0
    for t in ((Fraction(1, 4), Fraction(1, 2)), (Fraction(0), Fraction(3, 8)), (Fraction(1), Fraction(1))):
        arrays, total, _ = _linear_by_rationals(list(t))
        got = estimators.exact_expectation(_linear_loss(context, arrays), np.array([float(v) for v in t]))
        wrong += Fraction(got) != total
    return exact(wrong)


@O1.witness("Monte Carlo: the mean loss over sampled gates is C")
def expectation_by_monte_carlo(context: Context) -> Finding:
    loss, theta = remembered(loss_of(dense_network(), context)), 0.1 + 0.8 * context.uniform("O1", 8)
    _, losses = losses_at(loss, 8)
    gates = estimators.sample(theta, context.uniform("O1 v", 60_000, 8))
    codes = (gates @ (2.0 ** np.arange(7, -1, -1))).astype(int)
    return z_score(losses[codes][:, None], estimators.exact_expectation(loss, theta))


@O1.witness("both scalings give the same step sizes: β = −log γ/N, λ/N, weight decay ½λ‖W‖²")
def both_scalings_step_alike(context: Context) -> Finding:
    n, log_gamma, precision = 1024, -37.5, 3.0
    per_set = config.Config(objective=config.Objective(beta=-log_gamma, weight_decay=precision, per="data_set"))
    beta, decay = penalties(per_set, n)
    w = context.normal("O1 w", 9)
    value, saved = context.backend.weight_decay(w, strength=decay)
    (gradient,) = context.backend.weight_decay_vjp(saved, np.ones(()))
    exactly = Fraction(37.5) / n, Fraction(3) / n
    wrong = int(Fraction(beta) != exactly[0]) + int(Fraction(decay) != exactly[1])
    wrong += int(hyper_prior.log_gamma_from_beta(beta, n) != log_gamma) + int(beta <= 0)
    plain = math.fsum(v * v for v in w) * precision / (2 * n)
    return worst(exact(wrong), close(value, plain, plain, 16), close(gradient, precision / n * w, np.abs(w), 4))


@O2.witness("rationals: ∂C/∂θ of a linear network, to the bit, also at θ = 0 and 1")
def theta_gradient_in_rationals(context: Context) -> Finding:
    wrong = 0
    for t in ((Fraction(1, 4), Fraction(1, 2)), (Fraction(0), Fraction(3, 8)), (Fraction(1), Fraction(1))):
        arrays, _, gradient = _linear_by_rationals(list(t))
        got = estimators.exact_theta_gradient(_linear_loss(context, arrays), np.array([float(v) for v in t]))
        wrong += [Fraction(float(v)) for v in got] != gradient
    return exact(wrong)


@O2.witness("affine in each θ_g: values at three points lie on a line, whose slope is the gradient")
def expectation_is_affine_in_each_theta(context: Context) -> Finding:
    loss, theta = remembered(loss_of(dense_network(), context)), context.uniform("O2", 8)
    vertices, losses = losses_at(loss, 8)
    gradient, findings = estimators.exact_theta_gradient(loss, theta), []
    size = np.abs(losses).max()
    for g in range(8):
        values = []
        for at in (0.0, 0.37, 1.0):
            moved = theta.copy()
            moved[g] = at
            values.append(estimators.exact_expectation(loss, moved))
            findings.append(close(values[-1], probabilities(vertices, moved) @ losses, size, ROUNDINGS))
        findings.append(close(values[1], 0.63 * values[0] + 0.37 * values[2], size, ROUNDINGS))
        findings.append(close(gradient[g], values[2] - values[0], size, ROUNDINGS))
    return worst(*findings)


@O3.witness("θ times the mean over gate vectors with the gate open, summed by hand")
def weight_gradient_by_summation(context: Context) -> Finding:
    loss, theta = loss_of(dense_network(), context), 0.1 + 0.8 * context.uniform("O3", 8)
    total, findings = estimators.exact_weight_gradient(loss, theta), []
    for gate, prefix in ((0, "section1.dense1"), (1, "section2.dense2"), (7, "section3.dense1")):
        name, others = f"{prefix}.weight", [g for g in range(8) if g != gate]
        inside = np.zeros(loss.params[name].shape)
        for vertex in vertices_of(7):
            gates = np.ones(8)
            gates[others] = vertex
            p = np.prod(np.where(vertex == 1.0, theta[others], 1.0 - theta[others]))
            inside += p * loss.gradients(loss.evaluate(gates)).params[name]
        findings.append(close(total[name], theta[gate] * inside, np.abs(inside).max() + 1e-3, ROUNDINGS))
    return worst(*findings)


@O3.witness("complex step through C itself, enumerated")
def weight_gradient_by_complex_step(context: Context) -> Finding:
    """Im C(W + ih D)/h along a random direction; h = 1e-200 (erratum to G2)."""
    loss, theta = loss_of(dense_network(), context), context.uniform("O3 c", 8)
    total = estimators.exact_weight_gradient(loss, theta)
    vertices, p = vertices_of(8), probabilities(vertices_of(8), theta)
    findings = []
    for name in ("section1.dense1.weight", "section2.dense1.bias", "dense1.weight"):
        direction = context.normal(f"O3 {name}", *loss.params[name].shape)
        moved = {n: w.astype(complex) for n, w in loss.params.items()}
        moved[name] = moved[name] + 1e-200j * direction
        complexly = dataclasses.replace(loss, params=moved, x=loss.x.astype(complex))
        slope = sum(q * float(np.imag(complexly.evaluate(g).loss)) for q, g in zip(p, vertices, strict=True)) / 1e-200
        findings.append(close((total[name] * direction).sum(), slope, np.abs(total[name] * direction).sum(), ROUNDINGS))
    return worst(*findings)


@O4.witness("enumeration: no interior point and no descent ends below the best vertex")
def no_interior_minimum_by_enumeration(context: Context) -> Finding:
    loss, beta = remembered(loss_of(dense_network(), context)), 0.02
    vertices, losses = losses_at(loss, 8)
    best = float((losses + beta * vertices.sum(axis=1)).min())
    above, wrong = ROUNDINGS * EPS * (float(np.abs(losses).max()) + 8 * beta), 0
    for start in context.uniform("O4", 6, 8):
        theta = start
        wrong += estimators.exact_expectation(loss, theta) + beta * theta.sum() < best - above
        for _step in range(60):
            slopes = slopes_of(vertices, losses, theta)
            theta = np.clip(theta - 2.0 * (slopes + beta), 0.0, 1.0)
        wrong += float(probabilities(vertices, theta) @ losses) + beta * theta.sum() < best - above
    return exact(wrong)


@O4.witness("harmonic: J is the mean of its neighbours along the axes; rounding one gate after the other never raises it")
def objective_is_harmonic(context: Context) -> Finding:
    loss, beta, findings = remembered(loss_of(dense_network(), context)), 0.02, []
    play = ROUNDINGS * EPS * (float(np.abs(losses_at(loss, 8)[1]).max()) + 8 * beta)
    for theta in 0.3 + 0.4 * context.uniform("O4 h", 3, 8):
        pairs = [estimators.exact_expectation(loss, moved_to(theta, g, theta[g] + s)) for g in range(8) for s in (-0.2, 0.2)]
        value = estimators.exact_expectation(loss, theta)
        findings.append(close(np.mean(pairs), value, 10.0, ROUNDINGS))
        rounded, j, raised = theta.copy(), value + beta * theta.sum(), 0
        for g in range(8):
            slope = estimators.exact_theta_gradient(loss, rounded)[g] + beta
            rounded[g] = 0.0 if slope > 0 else 1.0
            after = estimators.exact_expectation(loss, rounded) + beta * rounded.sum()
            raised += after > j + play
            j = after
        findings.append(exact(raised))
    return worst(*findings)


def _estimates(name: str, loss: BatchLoss, theta: Array, uniforms: Array) -> Array:
    """The estimator once for every row of uniforms (repeats, K, G)."""
    kind, found = estimators.ESTIMATORS[name], []
    function = getattr(estimators, name)
    for uniform in uniforms:
        base = loss.evaluate(estimators.sample(theta, uniform[0]), run_closed=True)
        gates = loss.gradients(base).gates if name == "taylor" else np.zeros(theta.size)
        used = uniform if kind.many_samples else uniform[:1]
        found.append(function(estimators.Sampled(loss, base, gates, theta, used)).gradient)
    return np.array(found)


def _three_gates(context: Context) -> tuple[BatchLoss, Array]:
    section = Section((Dense(3), Activation("tanh")))
    loss = loss_of(Network((3,), (Dense(3), section, section, section, Dense(3))), context, batch=4)
    return loss, np.array([0.2, 0.5, 0.85])


@O5.witness("enumeration of the base sample: paired and reinforce (K = 1) have the exact mean, to rounding")
def mean_over_the_base_sample_by_enumeration(context: Context) -> Finding:
    loss, theta = _three_gates(context)
    want, findings = estimators.exact_theta_gradient(loss, theta), []
    for name in ("paired", "reinforce"):
        mean = np.zeros(3)
        for vertex in vertices_of(3):
            uniform = np.where(vertex == 1.0, theta / 2, (1 + theta) / 2)
            mean += probabilities(vertex[None], theta)[0] * _estimates(name, loss, theta, uniform[None, None])[0]
        findings.append(close(mean, want, 20.0, ROUNDINGS))
    return worst(*findings)


@O5.witness("Monte Carlo: paired, reinforce with baseline (K = 3), arm, disarm against the exact gradient")
def unbiased_by_monte_carlo(context: Context) -> Finding:
    plain, theta = _three_gates(context)
    loss = remembered(plain)
    want = estimators.exact_theta_gradient(loss, theta)
    uniforms, samples = context.uniform("O5", 3000, 3, 3), []
    for name in ("paired", "reinforce", "arm", "disarm"):
        samples.append(_estimates(name, loss, theta, uniforms) - want)
    return z_score(np.concatenate(samples, axis=1), 0.0)


@O5.witness("quadrature over the uniform number of one gate: arm and disarm, exactly")
def antithetic_estimators_by_quadrature(context: Context) -> Finding:
    """In θ the integrand is piecewise linear in v with breaks at θ and 1−θ: the midpoint rule on each piece is exact."""
    section = Section((Dense(3), Activation("tanh")))
    loss, findings = loss_of(Network((3,), (Dense(3), section, Dense(3))), context), []
    for t in (0.1, 0.5, 0.7, 0.98):
        theta = np.array([t])
        want = estimators.exact_theta_gradient(loss, theta)
        edges = np.array(sorted({0.0, t, 1 - t, 1.0}))
        middle, length = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
        for name in ("arm", "disarm"):
            values = _estimates(name, loss, theta, middle[:, None, None])
            findings.append(close(length @ values, want, 10.0 / min(t, 1 - t), ROUNDINGS))
    return worst(*findings)


@O5.witness("taylor: exact in the mean for a quadratic c at θ = ½ only; its bias elsewhere is (2θ−1)·curvature")
def bias_of_taylor(context: Context) -> Finding:
    """One linear section, squared error: c(ξ) = a + bξ + qξ², so E[c'(ξ)] = b + 2qθ while ∂C/∂θ = b + q."""
    network = Network((2,), (Dense(2, bias=False), Section((Dense(2, bias=False),))), linear_network().loss)
    loss, findings = loss_of(network, context), []
    values = [float(loss.evaluate(np.array([g])).loss) for g in (0.0, 0.5, 1.0)]
    q = 2 * values[0] - 4 * values[1] + 2 * values[2]
    for t in (0.1, 0.5, 0.9):
        theta = np.array([t])
        on, off = (_estimates("taylor", loss, theta, np.array([[[v]]]))[0, 0] for v in (t / 2, (1 + t) / 2))
        bias = t * on + (1 - t) * off - estimators.exact_theta_gradient(loss, theta)[0]
        findings.append(close(bias, (2 * t - 1) * q, np.abs(values).max() * 8, ROUNDINGS))
    return worst(*findings, exact(int(abs(q) < 1e-6)))


@O5.picture
def picture_of_the_estimators(context: Context) -> Any:
    figure, axes = figures.figure(
        "Estimators of ∂C/∂θ, 400 samples: bias (cross) and standard deviation (bar)", "gate", "error"
    )
    plain, theta = _three_gates(context)
    loss = remembered(plain)
    want = estimators.exact_theta_gradient(loss, theta)
    uniforms = context.uniform("O5 picture", 400, 3, 3)
    for i, name in enumerate(("paired", "reinforce", "arm", "disarm", "taylor")):
        error = _estimates(name, loss, theta, uniforms) - want
        at = np.arange(3) + 0.15 * (i - 2)
        axes.errorbar(at, error.mean(axis=0), error.std(axis=0), fmt="x", capsize=3, label=name)
    axes.set_xticks(range(3), [f"θ = {t:g}" for t in theta])
    axes.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False)
    return figure
