"""F: the flattening hyper-prior. Witnesses: sympy, quadrature, minimisation, 50 digits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...formulas import hyper_prior, scalar
from ...output import figures
from ..catalogue import EPS, LP, OURS, Claim, Context, Finding, close, exact, worst
from ..witnesses.many_digits import Exactly, ulps

F1 = Claim(
    "F1",
    "The flattening hyper-prior is a density on [0, 1]; γ → 1 gives the uniform one.",
    "p(π|γ) = \\frac{γ−1}{log γ} \\frac{1}{1+(γ−1)(1−π)}, ∫_0^1 p dπ = 1",
    OURS,
    (
        "formulas.hyper_prior:log_density",
        "formulas.hyper_prior:density",
        "formulas.hyper_prior:log_normaliser",
        "formulas.hyper_prior:log_density_slope",
    ),
)
F2 = Claim(
    "F2",
    "The minimiser of KL plus hyper-prior over π, in closed form.",
    "π^* = argmin_π [KL(θ‖π) − log p(π|γ)] = \\frac{γθ}{1+(γ−1)θ}",
    OURS,
    ("formulas.hyper_prior:pi_star", "formulas.hyper_prior:log_pi_star"),
)
F3 = Claim(
    "F3",
    "The minimum is linear in θ: the curvature of the KL is flattened away.",
    "min_π = −θ log γ + c(γ), c(γ) = log γ − log \\frac{γ−1}{log γ}",
    LP,
    (
        "formulas.hyper_prior:penalty",
        "formulas.hyper_prior:penalty_constant",
        "formulas.hyper_prior:penalty_slope",
        "formulas.hyper_prior:kl_at_pi_star",
    ),
)
F4 = Claim(
    "F4",
    "Uniqueness: of the densities for which the minimum is attained at every θ in (0, 1), only this family profiles to a line.",
    "f(t) = softplus(t) − log p = sup_θ [θt − θ log θ − (1−θ) log(1−θ) − θ log γ + c(γ)], t = logit π",
    OURS,
    ("formulas.hyper_prior:log_density",),
)
F5 = Claim(
    "F5",
    "Without a hyper-prior (γ = 1) π* = θ and the term vanishes: empirical Bayes alone does not prune.",
    "γ = 1 ⇒ π^* = θ, min_π KL(θ‖π) = 0",
    OURS,
    ("formulas.hyper_prior:pi_star", "formulas.hyper_prior:penalty"),
)
F6 = Claim(
    "F6",
    "Numerics: any finite log γ, exact ends; 4 ulp, of the largest summand for logarithms.",
    "log p = log \\frac{expm1(L)}{L} − log(π + e^L (1−π)), L = log γ",
    OURS,
    (
        "formulas.hyper_prior:log_density",
        "formulas.hyper_prior:density",
        "formulas.hyper_prior:log_density_slope",
        "formulas.hyper_prior:log_normaliser",
        "formulas.hyper_prior:log_decay",
        "formulas.hyper_prior:pi_star",
        "formulas.hyper_prior:penalty",
        "formulas.hyper_prior:penalty_constant",
        "formulas.hyper_prior:kl_at_pi_star",
    ),
)

LOG_GAMMAS = (-30.0, -5.0, -0.7, -1e-8, 0.0, 1e-8, 0.3, 5.0, 30.0)
THETAS = (1e-6, 0.03, 0.4, 0.5, 0.8, 0.999)


def _symbols() -> Any:
    import sympy

    pi, theta, gamma = sympy.symbols("pi theta gamma", positive=True)
    density = (gamma - 1) / sympy.log(gamma) / (1 + (gamma - 1) * (1 - pi))
    kl = theta * sympy.log(theta / pi) + (1 - theta) * sympy.log((1 - theta) / (1 - pi))
    return sympy, pi, theta, gamma, density, kl


def is_zero(expression: Any) -> bool:
    """By expanding logarithms of products of positive numbers; nothing is assumed of the others."""
    import sympy

    plain = expression.replace(
        lambda e: isinstance(e, sympy.log), lambda e: sympy.log(sympy.factor(sympy.expand_log(e.args[0])))
    )
    return bool(sympy.simplify(sympy.expand(sympy.expand_log(plain))) == 0)


def _exact_density(p: Any, log_gamma: float) -> Any:
    """F1 as it stands in SPEC, with mpmath's digits."""
    import mpmath

    gamma = mpmath.exp(mpmath.mpf(log_gamma))
    return (gamma - 1) / mpmath.log(gamma) / (1 + (gamma - 1) * (1 - p)) if log_gamma else mpmath.mpf(1)


@F1.witness("sympy: the antiderivative from 0 to 1 is 1")
def density_integrates_to_one_by_sympy(context: Context) -> Finding:
    sympy, pi, _, gamma, density, _ = _symbols()
    antiderivative = -sympy.log(1 + (gamma - 1) * (1 - pi)) / sympy.log(gamma)
    slope = sympy.simplify(sympy.diff(antiderivative, pi) - density)
    total = sympy.simplify(antiderivative.subs(pi, 1) - antiderivative.subs(pi, 0))
    limit = sympy.limit(density, gamma, 1)
    return exact(int(slope != 0) + int(total != 1) + int(limit != 1), "derivative, integral, limit γ → 1")


@F1.witness("quadrature in t = logit π, of the code's density")
def sums_to_one_by_quadrature(context: Context) -> Finding:
    """dπ = π(1−π) dt; the tails beyond ±80 are below 1e-22. For t > 0 by the reflection p(π|γ) = p(1−π|1/γ), since a π near 1
    has few digits of 1−π. So the integrand is off by 4 eps of the density, 3 of π in it, 6 of π(1−π) and 1 of the products.
    """
    from scipy.integrate import quad

    worst = 0.0
    for log_gamma in LOG_GAMMAS:

        def integrand(t: float, log_gamma: float = log_gamma) -> float:
            p, q = 1 / (1 + math.exp(-t)), 1 / (1 + math.exp(t))
            return float(hyper_prior.density(q, -log_gamma) if t > 0 else hyper_prior.density(p, log_gamma)) * p * q

        points = [-abs(log_gamma), 0.0, abs(log_gamma)]
        value, error = quad(integrand, -80, 80, points=points, limit=400, epsabs=0.0, epsrel=1e-13)
        worst = max(worst, abs(value - 1.0) / (14 * EPS + error))
    return Finding(worst, 1.0, detail="|∫p − 1| over quad's own error estimate + 14 eps")


@F1.witness("mpmath, 50 digits: log-density against SPEC's formula")
def log_density_in_fifty_digits(context: Context) -> Finding:
    import mpmath

    with mpmath.workdps(50):
        cases = [(p, g) for p in (0.0, *THETAS, 1.0) for g in LOG_GAMMAS]
        want = [float(mpmath.log(_exact_density(mpmath.mpf(p), g))) for p, g in cases]
    got = [float(hyper_prior.log_density(p, g)) for p, g in cases]
    return close(got, want, np.abs(want) + 1.0 + np.abs([g for _, g in cases]), 4)


@F1.witness("mpmath, 50 digits: normaliser and the slope of log p by numerical differentiation")
def normaliser_and_slope_in_fifty_digits(context: Context) -> Finding:
    import mpmath

    with mpmath.workdps(50):
        want = [mpmath.diff(lambda x, g=g: mpmath.log(_exact_density(x, g)), mpmath.mpf(p)) for p in THETAS for g in LOG_GAMMAS]
        norm = [float(mpmath.log(mpmath.expm1(g) / g)) if g else 0.0 for g in LOG_GAMMAS]
    got = np.array([float(hyper_prior.log_density_slope(p, g)) for p in THETAS for g in LOG_GAMMAS])
    slopes = np.array([float(v) for v in want])
    first = close(got, slopes, np.abs(slopes) + 1e-20, 8)
    second = close(hyper_prior.log_normaliser(LOG_GAMMAS), norm, np.abs(norm) + np.abs(LOG_GAMMAS), 8)
    return worst(first, second)


@F1.picture
def picture_of_the_densities(context: Context) -> Any:
    figure, axes = figures.figure("Density of π for several γ", "π", "p(π|γ)")
    p = np.linspace(0, 1, 401)
    for log_gamma in (-5.0, -2.0, 0.0, 2.0, 5.0):
        axes.plot(p, hyper_prior.density(p, log_gamma), label=f"log γ = {log_gamma:g}")
    axes.set_ylim(0, 6)
    figures.label_lines(axes)
    return figure


@F2.witness("sympy: the derivative vanishes at π*, and logit π* = logit θ + log γ")
def minimum_by_sympy(context: Context) -> Finding:
    sympy, pi, theta, gamma, density, kl = _symbols()
    star = gamma * theta / (1 + (gamma - 1) * theta)
    slope = sympy.simplify(sympy.diff(kl - sympy.log(density), pi).subs(pi, star))
    odds = sympy.simplify(star / (1 - star) - gamma * theta / (1 - theta))
    return exact(int(slope != 0) + int(odds != 0))


@F2.witness("scipy minimisation of KL − log p over t = logit π")
def minimum_by_scipy(context: Context) -> Finding:
    """The objective is convex in t with curvature π*(1−π*): the minimum lies within √(eps·size/curvature) of logit π*."""
    from scipy.optimize import minimize_scalar

    worst = 0.0
    for theta in THETAS:
        for log_gamma in (-5.0, -0.7, 0.3, 5.0):

            def objective(t: float, theta: float = theta, g: float = log_gamma) -> float:
                softplus = math.log1p(math.exp(-abs(t))) + max(t, 0.0)  # −log(1−π)
                kl = theta * (math.log(theta) - t + softplus) + (1 - theta) * (math.log1p(-theta) + softplus)
                return kl + math.log(1 / (1 + math.exp(t)) * (math.exp(t) + math.exp(g)))  # − log p up to the normaliser

            centre = math.log(theta / (1 - theta)) + log_gamma
            found = minimize_scalar(objective, bounds=(centre - 8, centre + 8), method="bounded", options={"xatol": 1e-10}).x
            star = float(hyper_prior.pi_star(theta, log_gamma))
            curvature = theta * (1 - theta)
            allowed = 8 * math.sqrt(2 * np.finfo(float).eps * (1 + abs(objective(centre))) / curvature) + 1e-9
            worst = max(worst, abs(scalar.logit(np.asarray(star)) - found) / allowed)
    return Finding(float(worst), 1.0, detail="|logit π* − minimiser| over what rounding of the objective allows")


@F2.witness("mpmath, 50 digits: π* and its logarithms")
def pi_star_in_fifty_digits(context: Context) -> Finding:
    import mpmath

    cases = [(t, g) for t in THETAS for g in (*LOG_GAMMAS, -800.0, 800.0)]
    with mpmath.workdps(50):
        inside = [1 + (mpmath.exp(g) - 1) * mpmath.mpf(t) for t, g in cases]
        both = [(mpmath.exp(g) * t / d, (1 - mpmath.mpf(t)) / d) for (t, g), d in zip(cases, inside, strict=True)]
        want = [[float(on), float(mpmath.log(on)), float(mpmath.log(off))] for on, off in both]
    t, g = (np.array(column) for column in zip(*cases, strict=True))
    got = np.stack([hyper_prior.pi_star(t, g), *hyper_prior.log_pi_star(t, g)], axis=1)
    size = np.abs(want)
    size[:, 1:] += (np.abs(g) + 1.0 + np.abs(np.log(t)))[:, None]
    return close(got, want, size, 4)


@F3.witness("sympy: KL(θ‖π*) − log p(π*|γ) + θ log γ − c(γ) is 0, for γ > 1 and for γ < 1")
def profile_is_linear_by_sympy(context: Context) -> Finding:
    """θ = t/(1+t), γ = 1+g and 1/(1+g) with t, g > 0: every logarithm is of positive numbers and expands by itself."""
    sympy, pi, theta, gamma, density, kl = _symbols()
    t, g = sympy.symbols("t g", positive=True)
    constant = sympy.log(gamma) - sympy.log((gamma - 1) / sympy.log(gamma))
    substituted = (kl - sympy.log(density)).subs(pi, gamma * theta / (1 + (gamma - 1) * theta))
    difference = (substituted + theta * sympy.log(gamma) - constant).subs(theta, t / (1 + t))
    return exact(sum(not is_zero(difference.subs(gamma, value)) for value in (1 + g, 1 / (1 + g))))


@F3.witness("mpmath, 50 digits: penalty against KL − log p at π*")
def profile_in_fifty_digits(context: Context) -> Finding:
    import mpmath

    want, size, got = [], [], []
    with mpmath.workdps(50):
        for t in THETAS:
            for g in LOG_GAMMAS:
                theta, star = mpmath.mpf(t), mpmath.exp(g) * t / (1 + (mpmath.exp(g) - 1) * mpmath.mpf(t))
                kl = theta * mpmath.log(theta / star) + (1 - theta) * mpmath.log((1 - theta) / (1 - star))
                log_p = mpmath.log(_exact_density(star, g))
                want += [float(kl - log_p), float(kl)]
                size += [abs(float(kl)) + abs(float(log_p)) + abs(g), 1.0 + abs(float(mpmath.log(star))) + abs(math.log(t))]
                got += [float(hyper_prior.penalty(t, g)), float(hyper_prior.kl_at_pi_star(t, g))]
    return close(got, want, size, 8)


@F3.witness("slope: differences of the penalty over all of [0, 1] are −log γ times the step")
def slope_by_differences(context: Context) -> Finding:
    theta = np.linspace(0, 1, 65)
    got = np.concatenate([np.diff(hyper_prior.penalty(theta, g)) for g in LOG_GAMMAS])
    want = np.concatenate([np.diff(theta) * hyper_prior.penalty_slope(g) for g in LOG_GAMMAS])
    size = np.repeat(np.abs(LOG_GAMMAS), 64) + 1.0
    sign = np.array([float(hyper_prior.penalty_slope(g)) * g for g in LOG_GAMMAS])
    return worst(close(got, want, size, 8), exact(int((sign > 0).sum())))


@F3.picture
def picture_of_the_profiles(context: Context) -> Any:
    figure, axes = figures.figure("Profiled KL: a line; the KL at fixed π is curved", "θ", "nats")
    theta = np.linspace(0, 1, 201)
    for log_gamma in (-4.0, -2.0, 2.0):
        axes.plot(theta, hyper_prior.penalty(theta, log_gamma), label=f"min over π, log γ = {log_gamma:g}")
    axes.plot(theta, scalar.bernoulli_kl(theta, 0.3), "--", label="KL(θ‖0.3)")
    figures.label_lines(axes)
    return figure


@F4.witness("Legendre transform on a grid: f(t) from the code equals the supremum over θ")
def legendre_transform_on_a_grid(context: Context) -> Finding:
    """sup over a grid of step h misses the maximum by at most h²/8 · max curvature near the maximiser σ(t−a)."""
    theta = np.linspace(1e-4, 1 - 1e-4, 200_001)
    entropy = theta * np.log(theta) + (1 - theta) * np.log1p(-theta)
    worst, h = 0.0, theta[1] - theta[0]
    for log_gamma in (-3.0, -0.5, 2.0):
        for t in (-4.0, -1.0, 0.5, 3.0):
            maximiser = 1 / (1 + math.exp(-(t - log_gamma)))
            if not 0.01 < maximiser < 0.99:
                continue
            p = 1 / (1 + math.exp(-t))
            f = math.log1p(math.exp(t)) - float(hyper_prior.log_density(p, log_gamma))
            constant = float(hyper_prior.penalty_constant(log_gamma))
            supremum = float(np.max(theta * t - entropy - theta * log_gamma + constant))
            worst = max(worst, abs(f - supremum) / (h * h / (8 * 0.01 * 0.99) + 1e-12))
    return Finding(worst, 1.0, detail="over the grid's own error")


@F4.witness("sympy: a linear profile leaves no other density, through f* and its only subgradient")
def linear_profile_has_one_density_by_sympy(context: Context) -> Finding:
    """Let KL − log p have the minimum −θ log γ + B over t for every θ in (0, 1), attained; f = softplus(t) − log p.

    KL = θ log θ + (1−θ) log(1−θ) − θt + softplus(t) (1), so f*(θ) = θ log θ + (1−θ) log(1−θ) + θ log γ − B. Where t attains it,
    f*(θ') ≥ θ't − f(t) = f*(θ) + (θ'−θ)t for all θ': t is a subgradient. f* has a derivative, which therefore is t, logit θ +
    log γ (2); it takes every real value (3); so f(t) = θt − f*(θ) on the whole line, and p is F1's up to a factor (4), which
    ∫p = 1 makes F1's own, B = c(γ) (5).
    """
    sympy, pi, theta, gamma, density, kl = _symbols()
    x, y, g = sympy.symbols("x y g", positive=True)  # the odds of π and of θ; |γ − 1|
    b = sympy.Symbol("B", real=True)
    share = y / (1 + y)
    entropy = theta * sympy.log(theta) + (1 - theta) * sympy.log(1 - theta)
    in_t = kl.subs(pi, x / (1 + x)) - (entropy - theta * sympy.log(x) + sympy.log(1 + x))
    conjugate = entropy + theta * sympy.log(gamma) - b
    t = sympy.log(y) + sympy.log(gamma)
    f = share * t - conjugate.subs(theta, share)
    log_p = (sympy.log(1 + gamma * y) - f).subs(y, x / gamma)  # e^t = x
    shape = gamma / (pi + gamma * (1 - pi))
    wrong = int(not is_zero(in_t.subs(theta, share)))  # 1
    wrong += int(not is_zero(sympy.diff(conjugate, theta).subs(theta, share) - t))  # 2
    wrong += int((sympy.limit(t, y, 0), sympy.limit(t, y, sympy.oo)) != (-sympy.oo, sympy.oo))  # 3
    wrong += int(not is_zero(log_p - sympy.log(shape.subs(pi, x / (1 + x))) + b))  # 4
    for value in (1 + g, 1 / (1 + g)):  # 5
        constant = sympy.log(gamma) - sympy.log((gamma - 1) / sympy.log(gamma))
        wrong += int(not is_zero((sympy.log(shape) - constant - sympy.log(density)).subs(pi, x / (1 + x)).subs(gamma, value)))
    return exact(wrong)


@F4.witness("two other hyper-priors (Beta(2,1), truncated exponential) profile to curves, not lines")
def other_hyper_priors_have_curved_profiles(context: Context) -> Finding:
    """A claim of uniqueness needs rivals that fail: second differences far above rounding."""
    p = np.linspace(1e-5, 1 - 1e-5, 100_001)
    flat = 0
    for log_prior in (np.log(2 * p), -3 * p):
        profile = [float(np.min(scalar.bernoulli_kl(np.full_like(p, t), p) - log_prior)) for t in (0.2, 0.4, 0.6, 0.8)]
        flat += int(np.abs(np.diff(profile, 2)).max() < 1e-3)
    mine = [
        float(np.min(scalar.bernoulli_kl(np.full_like(p, t), p) - hyper_prior.log_density(p, -2.0))) for t in (0.2, 0.5, 0.8)
    ]
    return exact(flat + int(abs(np.diff(mine, 2)[0]) > 1e-8), "rivals that are linear + ours not linear")


@F5.witness("γ = 1: π* is θ to the bit, the penalty 0")
def gamma_one_leaves_theta(context: Context) -> Finding:
    theta = context.uniform("F5", 1000)
    star = close(hyper_prior.pi_star(theta, 0.0), theta, theta, 1)
    return worst(star, exact(np.abs(hyper_prior.penalty(theta, 0.0)).max()))


@F5.witness("scipy minimisation of the KL alone over π gives θ and 0")
def gamma_one_minimises_the_kl_by_scipy(context: Context) -> Finding:
    """The KL is (p−θ)²/2·curvature, curvature 1/(θ(1−θ)), with a rounding of 8 eps, which hides √(16 eps/curvature) of p.

    Brent's search ends within 2(√eps·p + xatol/3) of a point that no other it saw is below. The KL there is at most the square
    of both together times the curvature: twice what it is at θ.
    """
    from scipy.optimize import minimize_scalar

    worst, tolerance = 0.0, 1e-7
    for theta in (0.1, 0.4, 0.9):

        def kl(p: float, theta: float = theta) -> float:
            return float(scalar.bernoulli_kl(theta, p))

        found = minimize_scalar(kl, bounds=(1e-9, 1 - 1e-9), method="bounded", options={"xatol": tolerance})
        curvature = 1 / (theta * (1 - theta))
        reach = 2 * (math.sqrt(EPS) + tolerance / 3) + math.sqrt(16 * EPS / curvature)
        worst = max(worst, abs(found.x - theta) / reach, abs(found.fun) / (reach**2 * curvature + 8 * EPS))
    return Finding(worst, 1.0, detail="over the minimiser's resolution, 1e-7")


def _extremes() -> tuple[Any, Any]:
    size = np.array([1e-300, 1e-12, 0.3, 2.0, 37.0, 599.0, 601.0, 709.0, 715.0, 745.0, 5000.0, 1e300])
    p = np.array([0.0, 5e-324, 1e-310, 1e-20, 0.1, 0.5, 0.9, 1 - 2.0**-53, 1.0])
    grid = np.meshgrid(p, np.concatenate([-size, [0.0], size]))
    return grid[0].ravel(), grid[1].ravel()


def _accuracy(names: tuple[str, ...]) -> Finding:
    """The worst of these functions over all extremes, in ulp."""
    import mpmath

    p, g = _extremes()
    alone = ("log_normaliser", "penalty_constant")
    got = {n: getattr(hyper_prior, n)(g) if n in alone else getattr(hyper_prior, n)(p, g) for n in names}
    errors = dict.fromkeys(names, 0.0)
    for i, (x, l) in enumerate(zip(p.tolist(), g.tolist(), strict=True)):  # noqa: E741
        with mpmath.workdps(50 + int(max(0.0, -2 * math.log10(abs(l) + 1e-300)))):
            exactly = Exactly(x, l)
            plain = {"density": exactly.density, "pi_star": exactly.star, "log_density_slope": exactly.density * exactly.l}
            logs = exactly.logarithms()
            for n in names:
                want, summands = logs[n] if n in logs else (plain[n], [plain[n]])
                errors[n] = max(errors[n], ulps(float(got[n][i]), want, max(map(abs, (want, *summands)))))
    return Finding(max(errors.values()), 4.0, detail="ulp: " + ", ".join(f"{n} {e:.2f}" for n, e in errors.items()))


@F6.witness("mpmath, 50 digits, extremes of π and log γ: π*, density and slope to 4 ulp")
def extremes_of_the_density_in_fifty_digits(context: Context) -> Finding:
    return _accuracy(("pi_star", "density", "log_density_slope"))


@F6.witness(
    "mpmath, 50 digits, extremes: log-density, normaliser, penalty, its constant and the KL to 4 ulp of the largest summand"
)
def extremes_of_the_profile_in_fifty_digits(context: Context) -> Finding:
    return _accuracy(("log_density", "log_normaliser", "penalty_constant", "penalty", "kl_at_pi_star"))


@F6.witness("the ends are exact, and the KL at π* is finite where π* itself rounds to an end")
def ends_are_exact(context: Context) -> Finding:
    wrong = 0
    for g in (-1e300, -5000.0, -40.0, 0.0, 40.0, 5000.0, 1e300):
        wrong += list(hyper_prior.pi_star([0.0, 1.0], g)) != [0.0, 1.0]
        wrong += list(hyper_prior.kl_at_pi_star([0.0, 1.0], g)) != [0.0, 0.0]
        wrong += not np.isfinite(hyper_prior.kl_at_pi_star(0.5, g))
        wrong += not np.isfinite(hyper_prior.log_density([1e-300, 0.5, 1.0], g)).all()
    return exact(wrong)
