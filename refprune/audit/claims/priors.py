"""P: the probabilistic model. Witnesses: quadrature over the mixing distribution, 50 digits, sampling, enumeration."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...arrays import Array
from ...formulas import hyper_prior, priors, scalar
from ...output import figures
from ..catalogue import EPS, LP, OURS, Claim, Context, Finding, close, exact, worst, z_score
from ..witnesses import joint
from ..witnesses.examples import probabilities
from ..witnesses.many_digits import ulps

P1 = Claim(
    "P1",
    "Gaussian scale mixtures: spike and slab, Student-t (per block), Laplace, horseshoe (per weight).",
    "p(w) = ∫ N(w; 0, s I) p(s) d s",
    LP,
    (
        "formulas.priors:SpikeSlab.density",
        "formulas.priors:SpikeSlab.log_constants",
        "formulas.priors:SpikeSlab.log_odds",
        "formulas.priors:StudentT.density",
        "formulas.gamma_ratio:log_gamma_ratio",
        "formulas.priors:Laplace.density",
        "formulas.priors:Horseshoe.density",
        "formulas.priors:SpikeSlab.scale",
        "formulas.priors:StudentT.scale",
        "formulas.priors:Laplace.scale",
        "formulas.priors:Horseshoe.scale",
        "formulas.priors:sample",
    ),
)
P2 = Claim(
    "P2",
    "Bernoulli scale: the probability that a block comes from the slab.",
    "r = σ(logit π + \\frac{d}{2} log(λ s_0) + \\frac{1}{2} ‖w‖^2 (1/s_0 − λ))",
    LP,
    ("formulas.priors:SpikeSlab.responsibility", "formulas.priors:SpikeSlab.log_odds"),
)
P3 = Claim(
    "P3",
    "The posterior family has one independent Bernoulli gate per θ.",
    "q(W, Ξ) = δ(W) ∏_g Bern(ξ_g | θ_g)",
    LP,
    ("gates.estimators:sample", "gates.estimators:enumerate_gates"),
)
P4 = Claim(
    "P4",
    "The negative evidence bound is one; profiled over π it is N times the per-sample objective plus constants.",
    "L = −log p(D, W, π | λ, γ) + KL(q ‖ p(Ξ | D, W, π)), "
    "min_π L(W, θ, π) = N (C + \\frac{1}{2} λ_N ‖W‖^2 + ∑_g β_g θ_g) + ∑_g c(γ_g)",
    LP,
    (
        "formulas.hyper_prior:penalty_constant",
        "formulas.hyper_prior:beta_from_log_gamma",
        "formulas.hyper_prior:decay_from_precision",
        "formulas.hyper_prior:precision_from_decay",
    ),
)
P5 = Claim(
    "P5",
    "The Bernoulli divergence with 0 log 0 = 0; infinite exactly where π excludes what θ allows.",
    "KL(θ‖π) = θ log \\frac{θ}{π} + (1−θ) log \\frac{1−θ}{1−π}",
    OURS,
    ("formulas.scalar:bernoulli_kl", "formulas.scalar:bernoulli_kl_from_logs"),
)

SLAB = priors.SpikeSlab(pi=0.3, precision=2.0, spike=1e-2)
STUDENT, LAPLACE, HORSESHOE = priors.StudentT(3.5, 0.7), priors.Laplace(0.4), priors.Horseshoe(0.6)
POINTS = (0.02, 0.3, 0.9, 2.5)


def _mixed(prior: Any, w: float, d: int = 1) -> tuple[float, float]:
    """(log ∫ N(w; 0, s I) p(s) ds, bound of its error), over the textbook density of s by quadrature; w: norm of the block.

    s from e⁻⁴⁰ to e⁴⁰: beyond are less than 1e-17 of each integral (p(s) N falls as s⁻² or faster, and as e^{−w²/2s}). The
    error is quad's own estimate and that of the integrand, a power of e whose exponent is the sum of four numbers, below 40
    in size where it counts, each with two roundings: 4·2·40 u = 160 eps.
    """
    from scipy.integrate import quad
    from scipy.special import gammaln

    def normal(s: float) -> float:
        return math.exp(-0.5 * d * math.log(2 * math.pi * s) - w * w / (2 * s)) if s > 0 else 0.0

    if isinstance(prior, priors.StudentT):
        a, b = prior.degrees / 2, prior.degrees * prior.width**2 / 2

        def density(s: float) -> float:
            return math.exp(a * math.log(b) - float(gammaln(a)) - (a + 1) * math.log(s) - b / s)
    elif isinstance(prior, priors.Laplace):

        def density(s: float) -> float:
            return float(math.exp(-s / (2 * prior.width**2)) / (2 * prior.width**2))
    else:

        def density(s: float) -> float:
            root = math.sqrt(s)
            return float(2 / (math.pi * prior.width * (1 + s / prior.width**2)) / (2 * root))

    options = {"limit": 400, "epsabs": 0.0, "epsrel": 1e-12}
    value, error = quad(lambda v: normal(math.exp(v)) * density(math.exp(v)) * math.exp(v), -40, 40, **options)[:2]
    return math.log(value), float(error / value) + 160 * EPS


@P1.witness("quadrature over the scale s: Student-t (d = 1, 3), Laplace, horseshoe")
def mixtures_by_quadrature(context: Context) -> Finding:
    got, want = [], []
    for w in POINTS:
        for prior in (LAPLACE, HORSESHOE):
            got.append(float(prior.density(w).log_density))
            want.append(_mixed(prior, w))
        for d in (1, 3):
            block = np.zeros(d)
            block[-1] = w
            got.append(float(STUDENT.density(block).log_density))
            want.append(_mixed(STUDENT, w, d))
    value, bound = np.array(want).T
    return Finding(
        float((np.abs(got - value) / bound).max()), 1.0, detail=f"of log p, over quad's estimate, ≤ {bound.max():.1g}"
    )


@P1.witness("50 digits: spike and slab as a sum of two normals (d = 1, 3, 40), horseshoe through E₁")
def densities_in_fifty_digits(context: Context) -> Finding:
    import mpmath

    got, want, size = [], [], []
    with mpmath.workdps(50):
        for d in (1, 3, 40):
            for w in (0.0, 1e-3, *POINTS, 8.0):
                x, pi, s0, lam = (mpmath.mpf(v) for v in (w, SLAB.pi, SLAB.spike, SLAB.precision))
                spike = mpmath.exp(-x * x / (2 * s0)) / mpmath.sqrt(2 * mpmath.pi * s0) ** d
                slab = mpmath.exp(-x * x * lam / 2) * mpmath.sqrt(lam / (2 * mpmath.pi)) ** d
                want.append(float(mpmath.log((1 - pi) * spike + pi * slab)))
                block = np.zeros(d)
                block[-1] = w
                got.append(float(SLAB.density(block).log_density))
                size.append(8.0 + 3 * d + w * w / SLAB.spike)
        for w in (1e-8, *POINTS, 40.0):
            z = (mpmath.mpf(w) / mpmath.mpf(HORSESHOE.width)) ** 2 / 2
            value = mpmath.exp(z) * mpmath.e1(z) / mpmath.mpf(HORSESHOE.width) / mpmath.sqrt(2 * mpmath.pi**3)
            want.append(float(mpmath.log(value)))
            got.append(float(HORSESHOE.density(w).log_density))
            size.append(1.0 + abs(want[-1]))
    return close(got, want, size, 8)


def _student_in_sixty_digits(prior: priors.StudentT, w: Array) -> tuple[Any, Any]:
    """(log p(w), its largest summand): logΓ((ν+d)/2) − logΓ(ν/2) − ½d log(ν/2), ½d log 2π, d log σ and the fall with ‖w‖."""
    import mpmath

    with mpmath.workdps(60 + 2 * max(0, int(math.log10(prior.degrees)))):
        n, width, d = mpmath.mpf(prior.degrees), mpmath.mpf(prior.width), len(w)
        q = sum((mpmath.mpf(float(v)) / width) ** 2 for v in w)
        ratio = mpmath.loggamma((n + d) / 2) - mpmath.loggamma(n / 2) - mpmath.mpf(d) / 2 * mpmath.log(n / 2)
        scale, fall = d * mpmath.log(width), (n + d) / 2 * mpmath.log1p(q / n)
        parts = [ratio, -mpmath.mpf(d) / 2 * mpmath.log(2 * mpmath.pi), -scale, -fall]
        return sum(parts), max(abs(part) for part in parts)


@P1.witness("60 digits: Student-t with ν from 1e-250 to 1e250, widths 1e±170 and |w| to 1e300, in ulp of the largest summand")
def student_over_the_whole_range(context: Context) -> Finding:
    error, u = 0.0, context.uniform("P1 student", 150, 4)
    for i, (a, b, c, e) in enumerate(u):
        degrees = 10.0 ** (((6 * a - 3), (18 * a + 2), (500 * a - 250))[i % 3])
        prior = priors.StudentT(degrees, 10.0 ** (340 * b - 170 if i % 2 else 4 * b - 2))
        w = context.normal(f"P1 student {i}", (1, 2, 5, 40)[int(4 * e)])
        w *= 10.0 ** (600 * c - 300) if i % 5 == 0 else prior.width * 10.0 ** (10 * c - 5)
        value, largest = _student_in_sixty_digits(prior, w)
        error = max(error, ulps(float(prior.density(w).log_density), value, largest))
    return Finding(error, 4.0, detail="in ulp of the largest summand")


@P1.witness("score: central differences of the log-density with two step sizes, order h²")
def scores_by_central_differences(context: Context) -> Finding:
    """Richardson: (4 D(h/2) − D(h))/3 has an error of order h⁴; h is chosen for it, the bound is its own estimate."""
    worst = 0.0
    for prior in (SLAB, STUDENT, LAPLACE, HORSESHOE):
        block = isinstance(prior, priors.SpikeSlab | priors.StudentT)
        for w in (*POINTS, -0.4):

            def log_p(x: float, prior: Any = prior, block: bool = block) -> float:
                return float(prior.density(np.array([x, 0.2]) if block else x).log_density)

            h = 2e-4 * min(1.0, abs(w))
            first, second = ((log_p(w + k) - log_p(w - k)) / (2 * k) for k in (h, h / 2))
            score = prior.density(np.array([w, 0.2]) if block else w).score
            got = float(score[0] if block else score)
            bound = abs(second - first) + 1e-11 * (1 + abs(log_p(w))) / h
            worst = max(worst, abs(got - (4 * second - first) / 3) / bound)
    return Finding(worst, 1.0, detail="over the difference of the two step sizes + rounding")


@P1.witness("Monte Carlo: samples √s·z have the distribution function that quadrature of the density gives")
def samples_by_monte_carlo(context: Context) -> Finding:
    from scipy.integrate import quad

    n = 40_000
    z, u = context.normal("P1 z", n), np.clip(context.uniform("P1 u", n), 2.0**-54, None)
    scores = []
    for prior in (SLAB, STUDENT, LAPLACE, HORSESHOE):
        block = isinstance(prior, priors.SpikeSlab | priors.StudentT)
        w = priors.sample(prior, u, z[:, None] if block else z).reshape(-1)

        def density(x: float, prior: Any = prior, block: bool = block) -> float:
            return math.exp(float(prior.density(np.array([x]) if block else x).log_density))

        for edge in (0.1, 0.5, 1.5):
            inside = 2 * quad(density, 1e-12, edge, limit=200, points=[1e-3, 1e-2, 0.05])[0]
            scores.append((np.abs(w) < edge) - inside)
    return z_score(np.stack(scores, axis=1), 0.0)


@P1.picture
def picture_of_the_densities(context: Context) -> Any:
    figure, axes = figures.figure("Scale mixtures of normals", "w", "log p(w)")
    w = np.linspace(-3, 3, 601)
    for name, prior in (("spike and slab", SLAB), ("Student-t", STUDENT), ("Laplace", LAPLACE), ("horseshoe", HORSESHOE)):
        block = isinstance(prior, priors.SpikeSlab | priors.StudentT)
        value = prior.density(w[:, None] if block else w).log_density
        axes.plot(w, np.minimum(value, 4), label=name)
    figures.label_lines(axes)
    return figure


@P2.witness("Bayes' rule with 50 digits, d = 1 … 40")
def bayes_rule_in_fifty_digits(context: Context) -> Finding:
    import mpmath

    got, want, size = [], [], []
    with mpmath.workdps(50):
        for d in (1, 3, 40):
            for norm in (0.0, 0.1, 0.4, 1.0):
                pi, s0, lam, q = (mpmath.mpf(v) for v in (SLAB.pi, SLAB.spike, SLAB.precision, norm * norm))
                slab = pi * (lam / (2 * mpmath.pi)) ** (mpmath.mpf(d) / 2) * mpmath.exp(-lam * q / 2)
                spike = (1 - pi) * (2 * mpmath.pi * s0) ** (-mpmath.mpf(d) / 2) * mpmath.exp(-q / (2 * s0))
                block = np.zeros(d)
                block[0] = norm
                want.append(float(slab / (slab + spike)))
                got.append(float(SLAB.responsibility(block)))
                size.append(want[-1] * (10.0 + 2 * d + 100 * norm * norm))
    return close(got, want, size, 8, "relative to the size of the log-odds")


@P2.witness("Monte Carlo: among samples, the slab's share at given ‖w‖ is r")
def slab_share_by_monte_carlo(context: Context) -> Finding:
    """E[(1[slab] − r(w)) g(w)] = 0 for every g."""
    n, d = 50_000, 2
    z, u = context.normal("P2 z", n, d), np.clip(context.uniform("P2 u", n), 2.0**-54, None)
    w = priors.sample(SLAB, u, z)
    slab, r = (u >= 1.0 - SLAB.pi).astype(float), SLAB.responsibility(w)
    norm = np.linalg.norm(w, axis=1)
    tests = [np.ones(n), norm < 0.15, (norm >= 0.15) & (norm < 0.4), norm]
    return z_score(np.stack([(slab - r) * g for g in tests], axis=1), 0.0)


@P2.witness("the limit s₀ → 0: the slab has everything that is not 0")
def limit_of_a_narrow_spike(context: Context) -> Finding:
    w = np.array([[0.0, 0.0], [0.0, 1e-3], [-2.0, 0.5]])
    limit = priors.SpikeSlab(0.3, 2.0, 0.0).responsibility(w)
    near = [priors.SpikeSlab(0.3, 2.0, s).responsibility(w) for s in (1e-12, 1e-20, 1e-30)]
    return exact(int((limit != [0, 1, 1]).sum()) + int(np.abs(near[-1] - limit).max() > 1e-15))


@P3.witness("enumeration: the probabilities of all gate vectors sum to 1 with means θ and covariances 0")
def gate_moments_by_enumeration(context: Context) -> Finding:
    from ...gates import estimators

    theta = np.concatenate([context.uniform("P3", 6), [0.0, 1.0]])
    gates, p = (np.array(c) for c in zip(*estimators.enumerate_gates(theta), strict=True))
    second = np.einsum("k,ki,kj->ij", p, gates, gates)
    want = np.outer(theta, theta)
    np.fill_diagonal(want, theta)
    return close(np.concatenate([[p.sum()], p @ gates, second.ravel()]), np.concatenate([[1.0], theta, want.ravel()]), 1.0, 16)


@P3.witness("Monte Carlo: samples have these means and covariances; θ = 0 and 1 never and always")
def gate_moments_by_monte_carlo(context: Context) -> Finding:
    from ...gates import estimators

    theta = np.array([0.0, 0.03, 0.5, 0.8, 1.0])
    gates = estimators.sample(theta, context.uniform("P3 v", 40_000, 5))
    centred = gates - theta
    pairs = np.stack([centred[:, i] * centred[:, j] for i in range(5) for j in range(i)], axis=1)
    ends = int((gates[:, 0] != 0).sum() + (gates[:, 4] != 1).sum())
    return worst(z_score(np.concatenate([centred, pairs], axis=1), 0.0), exact(ends))


@P4.witness("minimisation of the bound over π, gate by gate, against N × the per-sample objective")
def bound_minimised_over_pi(context: Context) -> Finding:
    """Two sums of n losses round by less than n u each, relatively; 32 other operations on numbers below |L| are in it. The
    minimisers are within 1e-7 of their places, so the minima within 1e-14·curvature of theirs, far below eps·|L| = 1e-13.
    """
    from scipy.optimize import minimize_scalar

    n, strength = 500, 3.0
    theta, log_gammas = np.array([0.1, 0.5, 0.93]), np.array([-4.0, -0.5, 2.0])
    weights, losses = context.normal("P4 w", 7), 2.0 * context.uniform("P4 loss", n)
    bound = losses.sum() + 0.5 * strength * weights @ weights
    for t, g in zip(theta, log_gammas, strict=True):

        def cost(p: float, t: float = t, g: float = g) -> float:
            kl = t * math.log(t / p) + (1 - t) * math.log((1 - t) / (1 - p))
            log_prior = math.log(math.expm1(g) / g) - math.log(p + math.exp(g) * (1 - p))
            return kl - log_prior

        bound += minimize_scalar(cost, bounds=(1e-6, 1 - 1e-6), method="bounded", options={"xatol": 1e-11}).fun
    decay = hyper_prior.decay_from_precision(strength, n)
    beta = np.array([hyper_prior.beta_from_log_gamma(float(g), n) for g in log_gammas])
    per_sample = losses.mean() + 0.5 * decay * weights @ weights + beta @ theta
    constant = sum(float(hyper_prior.penalty_constant(g)) for g in log_gammas)
    return close(n * per_sample + constant, bound, abs(bound), n + 32, "in units of eps·|L|; 500 losses are summed")


@P4.witness("a bound: with 16 gate vectors, L = −log p(D, W, π | λ, γ) + KL(q ‖ p(Ξ | D, W, π)), both by enumeration")
def bound_by_enumeration(context: Context) -> Finding:
    """L at the best π, as N·J, c(γ) and −½n log(λ/2π); evidence and posterior from the table of all likelihoods."""
    rng, findings = context.rng("P4 bound"), []
    for _ in range(6):
        net = joint.Joint(rng.standard_normal((5, 2)), rng.integers(0, 3, 5))
        w, theta = rng.standard_normal(joint.WEIGHTS), rng.uniform(0.05, 0.95, joint.GATES)
        log_gamma, precision, n = rng.uniform(-3.0, 2.0, joint.GATES), float(rng.uniform(0.5, 4.0)), len(net.labels)
        losses = n * net.loss(w)
        beta = np.array([hyper_prior.beta_from_log_gamma(float(g), n) for g in log_gamma])
        decay = hyper_prior.decay_from_precision(precision, n)
        q = probabilities(joint.VERTICES, theta)
        size = -0.5 * len(w) * math.log(precision / (2 * math.pi))
        constant = sum(float(hyper_prior.penalty_constant(g)) for g in log_gamma) + size
        bound = n * (float(q @ losses) / n + 0.5 * decay * float(w @ w) + float(beta @ theta)) + constant
        gamma = np.exp(log_gamma)
        pi = gamma * theta / (1 + (gamma - 1) * theta)
        likelihoods = probabilities(joint.VERTICES, pi) * np.exp(-losses)
        evidence = math.log(likelihoods.sum()) - size - 0.5 * precision * float(w @ w)
        evidence += float(np.sum(np.log((gamma - 1) / log_gamma / (1 + (gamma - 1) * (1 - pi)))))
        divergence = float(np.sum(q * np.log(q * likelihoods.sum() / likelihoods)))
        largest = abs(evidence) + abs(divergence) + abs(size) + float(np.abs(losses).max())
        findings += [close(bound, divergence - evidence, largest, 256), exact(int(bound < -evidence))]
    return worst(*findings)


@P4.witness("rationals: the weight's term scales back and forth exactly")
def weight_term_in_rationals(context: Context) -> Finding:
    from fractions import Fraction

    wrong = 0
    for n in (1, 64, 1024):
        for value in (0.75, 3.0, 1e-3):
            decay = hyper_prior.decay_from_precision(value, n)
            wrong += Fraction(decay) != Fraction(value) / n  # powers of 2 divide exactly
            wrong += hyper_prior.precision_from_decay(decay, n) != value
    return exact(wrong)


@P5.witness("the sum over both outcomes, 50 digits")
def kl_in_fifty_digits(context: Context) -> Finding:
    import mpmath

    theta, pi = context.uniform("P5 t", 200), context.uniform("P5 p", 200)
    with mpmath.workdps(50):
        want = []
        for t, p in zip(map(mpmath.mpf, theta), map(mpmath.mpf, pi), strict=True):
            want.append(float(t * mpmath.log(t / p) + (1 - t) * mpmath.log((1 - t) / (1 - p))))
    size = np.abs(np.log(theta)) + np.abs(np.log(pi)) + np.abs(np.log1p(-theta)) + np.abs(np.log1p(-pi))
    return close(scalar.bernoulli_kl(theta, pi), want, size, 4)


@P5.witness("finite or infinite exactly as stated, at all ends; never negative")
def kl_at_the_ends(context: Context) -> Finding:
    wrong, values = 0, (0.0, 1e-300, 0.3, 1.0)
    for t in values:
        for p in values:
            kl = float(scalar.bernoulli_kl(t, p))
            wrong += np.isinf(kl) != ((p == 0 and t > 0) or (p == 1 and t < 1))
            wrong += kl < 0 or (t == p and kl != 0)
    return exact(wrong)
