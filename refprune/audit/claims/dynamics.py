"""D1 to D5: dynamics of a gate and its weights. Witnesses: sympy, ODE integration, projected Euler steps, small networks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...arrays import Array
from ...gates import dynamics
from ...output import figures
from ..catalogue import EPS, OURS, Claim, Context, Finding, close, exact, worst
from ..witnesses.flows import (
    Sections,
    all_gates,
    euler,
    linear_solution,
    outcome,
    probability,
    random_comparison,
    random_point,
    settled,
    sides_of_d1,
)
from .pruning_rules import gates_that_matter

D1 = Claim(
    "D1",
    "What a gate and its weights do to the loss is bounded by ‖W‖ and by θ: κ is a Lipschitz bound of c in W, gate on.",
    "|c(ξ=1) − c(ξ=0)| ≤ κ w, ‖E ∂c/∂W‖ ≤ θ κ, w = ‖W‖",
    OURS,
    (
        "gates.closing_weights:blocks",
        "gates.closing_weights:closing_block",
        "gates.closing_weights:block_norms",
        "gates.dynamics:network_field",
    ),
)
D2 = Claim(
    "D2",
    "A system of two variables bounds every trajectory of the projected ODE from above.",
    "w' ≤ −λ w + κ θ, θ' ≤ r (κ w − β), 0 ≤ θ ≤ 1",
    OURS,
    (
        "gates.dynamics:projected_flow",
        "gates.dynamics:drives_outwards",
        "gates.dynamics:Comparison.velocity",
        "gates.dynamics:network_field",
    ),
)
D3 = Claim(
    "D3",
    "If λβ < κ² there is a saddle inside, and (κ/λ, 1) is the other attractor; if λβ > κ² everything ends at (0, 0).",
    "(w^*, θ^*) = (β/κ, λβ/κ^2), μ_± = \\frac{1}{2}(−λ ± √(λ^2 + 4 r κ^2))",
    OURS,
    ("gates.dynamics:Comparison.saddle", "gates.dynamics:Comparison.eigenvalues", "gates.dynamics:Comparison.velocity"),
)
D4 = Claim(
    "D4",
    "The domain of attraction of θ = 0 is a half-plane: exact for the comparison system, sufficient for the network.",
    "H = \\{ r κ (w − w^*) + (λ + μ_+)(θ − θ^*) < 0 \\}",
    OURS,
    (
        "gates.dynamics:in_domain",
        "gates.dynamics:Comparison.contains",
        "gates.dynamics:Comparison.radius",
        "gates.dynamics:Comparison.time_bound",
    ),
)
D5 = Claim(
    "D5",
    "A box lies in the domain, with the saddle as its corner.",
    "w < β/κ, θ < λβ/κ^2 ⇒ (w, θ) ∈ H",
    OURS,
    ("gates.dynamics:in_domain", "gates.dynamics:Comparison.saddle"),
)


def _case(context: Context, number: int) -> tuple[Sections, dynamics.Comparison, np.random.Generator]:
    """A network whose κ is proved, and constants with λβ < κ² and a pull of the size of its slopes."""
    case = Sections(1000 * context.seed + number, gates=1 + number % 2, backend=context.backend)
    rng = context.rng(f"d/{number}")
    beta, decay, ratio = (float(10.0**x) for x in rng.uniform((-1.5, -1.0, -1.0), (0.0, 0.5, 1.0)))
    return case, dynamics.Comparison(case.kappa, beta, min(decay, 0.9 * case.kappa**2 / beta), ratio), rng


@D1.witness("networks with a proved κ: both sides along flows, expectations by enumeration")
def inequality_along_flows(context: Context) -> Finding:
    worst = 0.0
    for number in range(3):
        case, c, _ = _case(context, number)
        flow = case.flow(c, 0.5, 0.6, 1.0)
        for weights, theta in zip(flow.weights, flow.theta, strict=True):
            difference, slope = sides_of_d1(case, weights, theta)
            worst = max(worst, difference / (c.kappa * case.norm(weights)), slope / (c.kappa * theta[-1]) if theta[-1] else 0.0)
    return Finding(worst, 1.0, detail="largest left side over right side")


@D1.witness("blocks at 0 and not at 0: a section's gate matters only where its block is not 0")
def gate_matters_only_where_its_block_is_not_zero(context: Context) -> Finding:
    return gates_that_matter(context, "layer")


@D2.witness("projected Euler steps of O6 come to the flow at first order, gates leaving and reaching 0 and 1")
def euler_steps_converge_to_the_flow(context: Context) -> Finding:
    rng, worst = context.rng("d/euler"), 0.0
    for _ in range(3):
        a, b, phase = rng.standard_normal((2, 2)) - 2.0 * np.eye(2), rng.standard_normal((2, 4)), rng.uniform(0.0, 6.0, 4)

        def field(w: Any, theta: Any, a: Any = a, b: Any = b, phase: Any = phase) -> Any:
            return a @ w + b @ theta, 1.5 * np.cos(3.0 * w[0] + phase) + b.T @ w - 0.3

        w, theta = rng.standard_normal(2), np.array([0.0, 1.0, 0.3, 0.7])
        flow = dynamics.projected_flow(field, w, theta, 3.0)
        end, errors = np.concatenate([flow.weights[-1], flow.theta[-1]]), []
        for steps in (1000, 2000, 4000):
            path = euler(field, w, theta, 3.0, steps)
            errors.append(float(np.abs(np.concatenate([path[0][-1], path[1][-1]]) - end).max()))
        worst = max(worst, errors[2] / errors[0])
    return Finding(worst, 0.5, detail="error with 4000 steps over error with 1000")


@D2.witness("the field of a network is −∂J/∂W and −r ∂J/∂θ: J by enumeration, complex step in W, differences in θ")
def field_is_the_negative_gradient(context: Context) -> Finding:
    findings = []
    for number in range(2):
        case, c, rng = _case(context, number)
        weights, theta = case.start(0.7, 0.4)
        dw, dtheta = case.field(c)(weights, theta)

        def value(weights: Any, theta: Array, case: Sections = case, c: Any = c) -> Any:
            """J; analytic in the weights, whose square is no modulus."""
            loss = case.at(weights)
            mean = sum(probability(gates, theta) * loss.evaluate(gates).loss for gates in all_gates(case.gates))
            return mean + c.beta * theta.sum() + 0.5 * c.decay * (weights**2).sum()

        for i in rng.permutation(weights.size)[:12]:
            moved = weights.astype(np.complex128)
            moved[i] += 1e-200j
            findings.append(close(dw[i], -value(moved, theta).imag / 1e-200, 1.0 + abs(dw[i]), 256))
        for g in range(case.gates):
            ends = [value(weights, np.where(np.arange(case.gates) == g, end, theta)) for end in (0.0, 1.0)]
            findings.append(close(dtheta[g], -c.ratio * (ends[1] - ends[0]), c.ratio * (abs(ends[0]) + abs(ends[1])), 256))
    return worst(*findings)


@D2.witness("networks with a proved κ: the inequalities at every point of a flow")
def inequalities_along_flows(context: Context) -> Finding:
    worst = -math.inf
    for number in range(3):
        case, c, _ = _case(context, number)
        flow, field = case.flow(c, 0.3, 0.4, 1.0), case.field(c)
        for weights, theta in zip(flow.weights, flow.theta, strict=True):
            dw, dtheta = field(weights, theta)
            w, speed = case.norm(weights), case.part(dw)
            rounding = 32 * EPS * float(np.linalg.norm(speed))
            excess = float(case.part(weights) @ speed) / w - (-c.decay * w + c.kappa * theta[-1]) - rounding
            worst = max(worst, excess, float(dtheta[-1]) - c.ratio * (c.kappa * w - c.beta))
    return Finding(worst, 0.0, detail="largest left side minus right side")


@D2.witness("networks with a proved κ: (‖W‖, θ) never exceeds the comparison system's flow")
def flow_stays_below_the_comparison_system(context: Context) -> Finding:
    wrong = 0
    for number in range(3):
        case, c, _ = _case(context, number)
        for w, theta in ((0.5 * c.radius, 0.5 * min(c.saddle[1], 1.0)), (2.0 * c.radius, 0.7)):
            flow, above = case.flow(c, w, theta, 1.0), np.array([w, theta])
            for i in range(1, len(flow.time)):
                bound = dynamics.projected_flow(c.velocity, above[:1], above[1:], float(flow.time[i] - flow.time[i - 1]))
                above = np.array([bound.weights[-1, 0], bound.theta[-1, 0]])
                wrong += case.norm(flow.weights[i]) > above[0] or flow.theta[i, -1] > above[1]
    return exact(wrong)


@D3.witness("sympy: nothing moves at the saddle; characteristic polynomial; λβ = κ² puts the saddle on θ = 1")
def saddle_and_eigenvalues_by_sympy(context: Context) -> Finding:
    import sympy

    kappa, beta, decay, ratio, mu = sympy.symbols("kappa beta lambda r mu", positive=True)
    w, theta = beta / kappa, decay * beta / kappa**2
    rest = [sympy.simplify(-decay * w + kappa * theta), sympy.simplify(ratio * (kappa * w - beta))]
    matrix = sympy.Matrix([[-decay, kappa], [ratio * kappa, 0]])
    root = sympy.sqrt(decay**2 + 4 * ratio * kappa**2)
    polynomial = (mu * sympy.eye(2) - matrix).det()
    values = [sympy.expand(polynomial.subs(mu, (-decay + sign * root) / 2)) for sign in (1, -1)]
    at_edge = sympy.simplify(theta.subs(beta, kappa**2 / decay) - 1)
    return exact(sum(value != 0 for value in (*rest, *values, at_edge)))


@D3.witness("the code's saddle and eigenvalues against LAPACK and the right-hand side")
def saddle_and_eigenvalues_by_lapack(context: Context) -> Finding:
    rng, worst = context.rng("d/saddle"), 0.0
    for _ in range(200):
        c = random_comparison(rng)
        w, theta = c.saddle
        dw, dtheta = c.velocity(np.array([w]), np.array([theta]))
        matrix = np.array([[-c.decay, c.kappa], [c.ratio * c.kappa, 0.0]])
        values, vectors = np.linalg.eig(matrix)
        error = np.abs(np.array(c.eigenvalues) - np.sort(values)[::-1]).max()
        size = float(np.linalg.norm(matrix) * np.linalg.cond(vectors))
        worst = max(worst, float(error) / size, abs(float(dw[0])) / (c.decay * w), abs(float(dtheta[0])) / (c.ratio * c.beta))
    return Finding(worst / EPS, 32.0, detail="in eps of matrix norm × condition (Bauer-Fike)")


@D3.witness("integration: λβ > κ² sends everything to (0, 0); λβ < κ² sends to (κ/λ, 1) what starts above w* at θ = 1")
def ends_of_flows_on_both_sides_of_the_condition(context: Context) -> Finding:
    """Both ends, in w and in θ; the last stretch is long enough for w to come within 1e-6 κ/λ of its end."""
    rng, wrong, far = context.rng("d/strong"), 0, 0.0
    for excess in (0.5, 0.9, 1.1, 3.0):
        kappa, decay, ratio = (float(x) for x in 10.0 ** rng.uniform(-0.5, 0.5, 3))
        c, most = dynamics.Comparison(kappa, excess * kappa**2 / decay, decay, ratio), kappa / decay
        for w in (20.0 * most, (0.1 + 0.9 * excess) * most):
            until = (settled(c, w) if excess > 1.0 else 0.0) + math.log(4e7) / decay
            flow = dynamics.projected_flow(c.velocity, np.array([w]), np.array([1.0]), until)
            end = (0.0, 0.0) if excess > 1.0 else (most, 1.0)
            far = max(far, abs(float(flow.weights[-1, 0]) - end[0]) / most)
            wrong += flow.theta[-1, 0] != end[1] or (flow.zero_since(0) is not None) != (excess > 1.0)
    return worst(exact(wrong), Finding(far, 1e-6, detail="distance of w from its end, in κ/λ"))


@D4.witness("sympy: the edge's normal is the left eigenvector of μ₊, so that φ' = μ₊ φ")
def edge_normal_is_a_left_eigenvector(context: Context) -> Finding:
    import sympy

    kappa, decay, ratio = sympy.symbols("kappa lambda r", positive=True)
    mu = (-decay + sympy.sqrt(decay**2 + 4 * ratio * kappa**2)) / 2
    normal = sympy.Matrix([[ratio * kappa, decay + mu]])
    difference = normal * sympy.Matrix([[-decay, kappa], [ratio * kappa, 0]]) - mu * normal
    return exact(sum(sympy.simplify(entry) != 0 for entry in difference))


@D4.witness("the edge of H lies at w_c for θ = 0, and no point of H has a larger w")
def edge_of_the_domain_at_theta_zero(context: Context) -> Finding:
    rng, wrong, near = context.rng("d/edge"), 0, 1e-9
    for i in range(200):
        c = random_comparison(rng, decay=i % 6 > 0, strong=i % 6 == 5)
        top = c.radius
        wrong += not bool(c.contains(top * (1 - near), 0.0)) or bool(c.contains(top * (1 + near), 0.0))
        w = rng.uniform(0.0, 2.0, 50) * top
        wrong += bool((c.contains(w, rng.uniform(size=50)) & (w > top)).any())
    return exact(wrong, "200 systems")


@D4.witness("integration: in H ⇔ the comparison system ends at θ = 0 with w ≤ w*, over systems, ratios r and points")
def domain_by_integration(context: Context) -> Finding:
    rng, wrong = context.rng("d/domain"), 0
    for i in range(100):
        c = random_comparison(rng, decay=i % 6 > 0)
        w, theta = random_point(rng, c)
        wrong += outcome(c, w, theta)[1] != bool(c.contains(w, theta))
    return exact(wrong, "100 systems")


@D4.witness("integration: from H, w < w_c, θ = 0 for good within the bound on the time, then w = w(t₁) e^{−λ(t−t₁)}")
def time_bound_and_decay_by_integration(context: Context) -> Finding:
    rng, wrong, shares = context.rng("d/ball"), 0, []
    for i in range(60):
        c = random_comparison(rng, decay=i % 6 > 0)
        w, theta = random_point(rng, c, inside=True)
        flow, _ = outcome(c, w, theta)
        since, limit = flow.zero_since(0), float(c.time_bound(w, theta))
        wrong += since is None or since > limit * (1 + 1e-6) or flow.weights.max() > c.radius
        if since is not None:
            shares.append(since / limit if limit else 0.0)
            after = flow.time >= since
            start = flow.weights[after][0, 0]
            want = start * np.exp(-c.decay * (flow.time[after] - since))
            wrong += np.abs(flow.weights[after, 0] - want).max() > 1e-8 * start + 1e-11  # ten times rtol and atol
    return exact(wrong, f"time over its bound: median {np.median(shares):.2f}")


@D4.witness("λβ > κ²: θ = 0 for good from everywhere, so that H is sufficient only; from H within the bounds on time and w")
def everything_collapses_above_the_condition(context: Context) -> Finding:
    rng, wrong, inside = context.rng("d/beyond"), 0, 0
    for _ in range(20):
        c = random_comparison(rng, strong=True)
        w, theta = random_point(rng, c)
        flow = dynamics.projected_flow(c.velocity, np.array([w]), np.array([theta]), settled(c, w))
        since, safe = flow.zero_since(0), bool(c.contains(w, theta))
        wrong += since is None or since > float(c.time_bound(w, theta)) * (1 + 1e-6)
        wrong += safe and flow.weights.max() > c.radius
        inside += safe
    return exact(wrong if 0 < inside < 20 else math.inf, f"20 systems, {inside} points in H")


@D4.witness("networks with a proved κ that start in H have θ = 0 at the bound on the time, over ratios r")
def networks_in_the_domain_collapse_in_time(context: Context) -> Finding:
    wrong = 0
    for number in range(12):
        case, c, rng = _case(context, 100 + number)
        w, theta = random_point(rng, c, inside=True)
        flow = case.flow(c, w, theta, float(c.time_bound(w, theta)) * (1 + 1e-6) + 1e-6)
        wrong += flow.zero_since(case.gates - 1) is None or case.norm(flow.weights[-1]) > c.saddle[0]
    return exact(wrong, "12 networks")


@D4.witness("matrix exponential: the flow before θ reaches an end")
def linear_flow_by_matrix_exponential(context: Context) -> Finding:
    rng, worst = context.rng("d/expm"), 0.0
    for _ in range(6):
        c = random_comparison(rng)
        w, theta = random_point(rng, c)
        flow = dynamics.projected_flow(c.velocity, np.array([w]), np.array([theta]), 3.0 / c.eigenvalues[0])
        first = flow.contacts[0].time if flow.contacts else math.inf
        some = np.flatnonzero(flow.time < first)[::10]
        want = linear_solution(c, w, theta, flow.time[some])
        got = np.column_stack([flow.weights[some, 0], flow.theta[some, 0]])
        worst = max(worst, float(np.abs(got - want).max() / max(1.0, np.abs(want).max())))
    return Finding(worst / 1e-9, 100.0, detail="in the solver's relative tolerance")


@D5.witness("random points of the box, and the saddle from both sides")
def box_lies_in_the_domain(context: Context) -> Finding:
    rng, wrong = context.rng("d/box"), 0
    for _ in range(200):
        c = random_comparison(rng)
        w, theta = c.saddle
        shrink = 1 - 1e-9
        wrong += not c.contains(rng.uniform(size=50) * w * shrink, rng.uniform(size=50) * theta * shrink).all()
        wrong += bool(c.contains(w / shrink, theta)) + bool(c.contains(w, theta / shrink))
    return exact(wrong)


@D5.witness("Euler steps of the system written out: from the box θ only falls, down to 0, w stays below w*, all of it in H")
def theta_falls_in_the_box_by_euler_steps(context: Context) -> Finding:
    """With steps h ≤ 1/λ the box is invariant for the steps as it is for the flow."""
    rng, wrong = context.rng("d/steps"), 0
    for _ in range(20):
        c = random_comparison(rng)
        (kappa, beta, decay, ratio), corner = (c.kappa, c.beta, c.decay, c.ratio), c.saddle
        w, theta = corner[0] * rng.uniform(0.5, 0.99), corner[1] * rng.uniform(0.5, 0.99)
        growth = 0.5 * (math.sqrt(decay**2 + 4.0 * ratio * kappa**2) - decay)
        h, points = 0.5 / max(decay, growth), []
        for _ in range(math.ceil(20.0 / (h * growth))):
            points.append((w, theta))
            w, theta = w + h * (kappa * theta - decay * w), max(0.0, theta + h * ratio * (kappa * w - beta))
        path = np.array(points)
        wrong += theta != 0.0 or bool((path[:, 0] >= beta / kappa).any()) or bool((np.diff(path[:, 1]) > 0.0).any())
        wrong += not c.contains(path[:, 0], path[:, 1]).all()
    return exact(wrong)


@D4.picture
def picture_of_the_phase_plane(context: Context) -> Any:
    figure, axes = figures.figure("Phase plane: H (shaded), its saddle, and trajectories", "w = ‖W‖", "θ")
    c = dynamics.Comparison(kappa=1.0, beta=0.5, decay=0.6, ratio=0.5)
    w, theta = np.meshgrid(np.linspace(0.0, 1.8, 200), np.linspace(0.0, 1.0, 200))
    axes.contourf(w, theta, c.contains(w, theta), levels=[0.5, 1.5], colors=["#cfe3f7"])
    for start in [(x, y) for x in (0.1, 0.5, 0.9, 1.3) for y in (0.02, 0.3, 0.6, 0.95)]:
        flow = dynamics.projected_flow(c.velocity, np.array(start[:1]), np.array(start[1:]), 12.0)
        axes.plot(flow.weights[:, 0], flow.theta[:, 0], color="C0" if c.contains(*start) else "C3", lw=0.9)
    axes.plot(*c.saddle, "ko")
    axes.set_xlim(0.0, 1.8)
    return figure


@D4.picture
def picture_of_the_times(context: Context) -> Any:
    figure, axes = figures.figure("Times until θ = 0 for good, from random points of H", "time over its bound", "systems")
    rng, shares = context.rng("d/times"), []
    for _ in range(150):
        c = random_comparison(rng)
        point = random_point(rng, c, inside=True)
        since, bound = outcome(c, *point)[0].zero_since(0), float(c.time_bound(*point))
        if since is not None and bound > 0.0:
            shares.append(since / bound)
    axes.hist(shares, bins=np.linspace(0.0, 1.0, 21))
    return figure
