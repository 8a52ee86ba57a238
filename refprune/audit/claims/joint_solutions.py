"""O10: solutions are deterministic jointly in W and θ. Witnesses: constructed stationary points, sympy, counterexamples."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ...arrays import Array
from ...gates import estimators, saddle
from ...gates.theta_penalty import Penalty, reference
from ...passes.batch_loss import BatchLoss
from ...spec.layers import Dense, Section
from ...spec.network import Loss, Network
from ..catalogue import EPS, LP, Claim, Context, Finding, exact, worst
from ..witnesses import joint

O10 = Claim(
    "O10",
    "Solutions are deterministic jointly in W: with λ > 0 and β_g > 0 a stationary point with θ_g inside is a strict saddle.",
    "∂^2 J/∂θ_g^2 = 0, ∂^2 J/∂θ_g ∂W_g = −λ W_g/θ_g ≠ 0, μ_{min} ≤ \\frac{1}{2}(h − √(h^2 + 4 λ^2 ‖W_g‖^2/θ_g^2)) < 0",
    LP,
    ("gates.saddle:escape", "gates.saddle:mixed_derivative"),
)


def _planes(point: joint.Stationary, hessian: Array) -> list[tuple[float, float, Array, Array]]:
    """(θ_g, ‖W_g‖, the two directions θ_g and W_g/‖W_g‖ as columns, J's Hessian along them) of every gate."""
    found = []
    for gate, block in enumerate(joint.blocks()):
        norm = float(np.linalg.norm(point.w[block]))
        plane = np.zeros((len(hessian), 2))
        plane[joint.WEIGHTS + gate, 0] = 1.0
        plane[block, 1] = point.w[block] / norm
        found.append((float(point.theta[gate]), norm, plane, plane.T @ hessian @ plane))
    return found


@O10.witness("40 networks with layer and unit gates, stationary by Newton: Hessians by complex step and tables over all gates")
def stationary_points_are_strict_saddles(context: Context) -> Finding:
    """Errors in units of the plane's Hessian: each is a sum over 16 vertices of 4 examples, at a gradient of 1e-14 at most."""
    error = wrong = 0.0
    for point in joint.stationary_points(context.rng("O10"), 40):
        hessian = point.joint.hessian(point.w, point.theta, point.decay)
        lowest = float(np.linalg.eigvalsh(hessian)[0])
        for theta, norm, plane, inside in _planes(point, hessian):
            found = saddle.escape(theta, norm, point.decay, float(inside[1, 1]))
            size, want = float(np.abs(inside).max()), np.linalg.eigvalsh(inside)
            b = saddle.mixed_derivative(theta, norm, point.decay)
            direction = plane @ np.array([found.theta, found.weights])
            along = float(direction @ hessian @ direction)
            wrong += inside[0, 0] != 0.0 or lowest > found.curvature + 64 * EPS * size or found.curvature >= 0.0
            parts = (inside[0, 1] - b, want[0] - found.curvature, along - found.curvature)
            error = max(error, *(abs(float(part)) / size for part in parts))
    return worst(exact(wrong), Finding(error / EPS, 512.0, detail="in eps of the Hessian in the plane"))


@O10.witness("sympy: the determinant in the plane is −λ²w²/θ² at a stationary point, whatever the loss is")
def determinant_by_symbols(context: Context) -> Finding:
    import sympy

    w, theta, decay, beta, closed = sympy.symbols("w theta lambda beta c_0", positive=True)
    c = sympy.Function("c")
    j = theta * c(w) + (1 - theta) * closed + decay * w**2 / 2 + beta * theta
    slope = sympy.solve(sympy.diff(j, w), sympy.diff(c(w), w))[0]
    hessian = sympy.hessian(j, (theta, w)).subs(sympy.diff(c(w), w), slope)
    wrong = sympy.simplify(hessian.det() + (decay * w / theta) ** 2) != 0
    h = sympy.Symbol("h", real=True)
    values = hessian.subs(hessian[1, 1], h).eigenvals()
    lower, upper = (sympy.lambdify((theta, w, decay, h), pick(values, key=str), "math") for pick in (min, max))
    error = 0.0
    for t, norm, strength, curved in context.uniform("O10 symbols", 40, 4).tolist():
        at = 0.1 + 0.8 * t, 0.1 + norm, 0.1 + strength, 4.0 * curved - 2.0
        want, size = min(lower(*at), upper(*at)), max(abs(lower(*at)), abs(upper(*at)))
        error = max(error, abs(saddle.escape(*at).curvature - want) / size)
    return worst(exact(int(wrong)), Finding(error / EPS, 16.0, detail="in eps of the larger eigenvalue"))


def _objective(loss: BatchLoss, point: joint.Stationary, penalty: Penalty, pull: Array) -> Any:
    """J by enumeration of the library's losses, as a function of a vector (W, θ)."""

    def j(at: Array) -> float:
        w, theta = at[: joint.WEIGHTS], at[joint.WEIGHTS :]
        moved = dataclasses.replace(loss, params=joint.split(w))
        c = estimators.exact_expectation(moved, theta)
        return c + 0.5 * point.decay * float(w @ w) + float(pull @ theta) + float(penalty.value(theta))

    return j


@O10.witness("the library's J falls on both sides along the escape, also with ν R_ρ(θ) in the place of a part of Σβθ")
def objective_falls_along_the_escape(context: Context) -> Finding:
    """Second differences of J; their error is of the order of the square of the step 1e-3, the bound a fiftieth part."""
    error = wrong = 0.0
    for i, point in enumerate(joint.stationary_points(context.rng("O10 library"), 3)):
        loss = point.joint.library(point.w, context.backend)
        network = loss.network
        penalty = Penalty(network, reference(network), nu=0.02, alpha=0.3, balance=(0.5, 0.2, 0.8)[i])
        j = _objective(loss, point, penalty, point.pull - penalty.gradient(point.theta))
        at, step = np.concatenate([point.w, point.theta]), 1e-3
        hessian = point.joint.hessian(point.w, point.theta, point.decay)
        for theta, norm, plane, inside in _planes(point, hessian):
            found = saddle.escape(theta, norm, point.decay, float(inside[1, 1]))
            direction = plane @ np.array([found.theta, found.weights])
            here, ahead, behind = (j(at + s * direction) for s in (0.0, step, -step))
            second = (ahead - 2.0 * here + behind) / step**2
            straight = j(at + step * plane[:, 0]) - j(at - step * plane[:, 0])
            wrong += second >= 0.0 or abs(straight) > 1e-12
            error = max(error, abs(second - found.curvature) / float(np.abs(inside).max()))
    return worst(exact(wrong), Finding(error, 0.02, detail="second differences, in units of the plane's Hessian"))


def _line(context: Context, target: float) -> BatchLoss:
    """x = 1 → 1 + ξw, squared error: c = (1 + ξw − target)²."""
    network = Network((1,), (Section((Dense(1, bias=False),)),), Loss("mean_squared_error", "sum"))
    params = {"section1.dense1.weight": np.ones((1, 1))}
    return BatchLoss(network, context.backend, params, np.ones((1, 1)), np.array([[target]]))


@O10.witness("counterexamples: with λ = 0 or β = 0 a whole line of θ is minimal; with W = 0 the slope in θ is β")
def without_the_conditions(context: Context) -> Finding:
    """λ = 0, β = 1, target 2: J = 1 + θ(w − 1)². λ = 1, β = 0, target 1: J = θw² + ½w². Grid of w and θ, exact."""
    wrong = 0
    for target, decay, beta, best in ((2.0, 0.0, 1.0, 1.0), (1.0, 1.0, 0.0, 0.0)):
        for theta in (0.25, 0.5, 0.75):
            values = []
            for w in best + np.array([-0.5, -0.25, 0.0, 0.25, 0.5]):
                loss = dataclasses.replace(_line(context, target), params={"section1.dense1.weight": np.array([[w]])})
                j = estimators.exact_expectation(loss, np.array([theta])) + 0.5 * decay * w * w + beta * theta
                values.append(j)
            wrong += int(np.argmin(values)) != 2 or values[2] != (1.0 if beta else 0.0)
    closed = dataclasses.replace(_line(context, 2.0), params={"section1.dense1.weight": np.zeros((1, 1))})
    slopes = estimators.exact_theta_gradient(closed, np.array([0.5]))
    return exact(wrong + int(slopes[0] != 0.0))
