"""C(W, θ) with its exact gradients, and estimators of ∂C/∂θ made of given uniform numbers.

O1–O3 by enumeration of all gate vectors, O5 from the library's estimators.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
from hypothesis import strategies as st

from ...arrays import Array, Arrays
from ...backend import Backend
from ...gates import estimators
from ...rounding.tolerance import COARSE, UNIT
from ...spec.layers import Activation, BatchNorm, Conv, Dense, Flatten, Section, UnitGate
from ...spec.network import Loss
from ..asking.methods import Arguments, Description, Method, Question
from ..judging.traced import Traced, expectation
from ..judging.verdicts import Expectation
from ..strategies import networks as strategies
from ..strategies import sized_networks as sized
from ..strategies.structures import few
from .networks import asked_of, batch_of, loss_of

#: Enumeration takes 2^G passes.
MOST_GATES = 3

#: No branch is ambiguous here: networks without kinks, so that each of the 2^G passes can be compared.
TANH = Activation("tanh")
SMOOTH = ("tanh", "sigmoid", "gelu", "identity")


def _few_gates(described: Description) -> st.SearchStrategy[strategies.Case]:
    options = {"activations": SMOOTH, "limit": 2, "gates": ("ones",), "conventions": described.conventions}
    cases = strategies.gated_cases(least=1, image=False, unit_gates=None, **options)
    return few(cases.filter(lambda case: case.network.gate_count <= MOST_GATES), described.structures, described.seed)


@st.composite
def _exact_cases(draw: st.DrawFn, cases: st.SearchStrategy[strategies.Case]) -> Arguments:
    """θ anywhere in [0, 1], the ends included."""
    case = draw(cases)
    theta = case.uniform("theta", (case.network.gate_count,))
    theta = np.where(theta < 0.1, 0.0, np.where(theta > 0.9, 1.0, theta))
    return batch_of(case) | {"theta": theta, "train": case.train}


#: Steps of the grid on which θ, 1 − θ and uniform numbers are exact in every precision.
GRID = 2.0**-7

#: Between a uniform number and its θ: float16 has no such difference.
BESIDE = 2.0**-13


@st.composite
def _estimate_cases(draw: st.DrawFn, cases: st.SearchStrategy[strategies.Case], described: Description) -> Arguments:
    """Uniform numbers anywhere, or some exactly at θ or 1 − θ, or just beside it."""
    case = draw(cases)
    return _estimated_from(case, draw(st.integers(1, 3)), described, exactly=draw(st.booleans()))


def _estimated_from(case: strategies.Case, samples: int, described: Description, *, exactly: bool) -> Arguments:
    """What one estimate is made of; rounding can flip no gate.

    exactly: θ on the grid, from its first step on, and of the uniform numbers some exactly at θ (the gate is closed) or at
    1 − θ, some BESIDE it. Otherwise θ in [0.01, 0.99], and no uniform number within 2⁻⁶ of a θ or of 1 − θ. A coarse
    precision, in which rounding divided by θ leaves no digits, gets θ in [¼, ¾].
    """
    g = case.network.gate_count
    low, high = (0.25, 0.75) if UNIT[described.precision] >= COARSE else (0.01, 0.99)
    theta, uniform = low + (high - low) * case.uniform("theta", (g,)), case.uniform("uniform", (samples, g))
    if not exactly:
        for at in (theta, 1.0 - theta):
            below, above = np.maximum(at - 2.0**-6, 0.0), np.minimum(at + 2.0**-6, 1.0 - 2.0**-6)
            uniform = np.where(np.abs(uniform - at) < 2.0**-6, np.where(uniform < at, below, above), uniform)
        return batch_of(case) | {"theta": theta, "uniform": uniform, "train": case.train}
    theta = np.clip(np.round(theta / GRID), 1.0, 1.0 / GRID - 1.0) * GRID
    uniform = np.minimum(np.round(uniform / GRID), 1.0 / GRID - 1.0) * GRID
    place = case.uniform("place", uniform.shape)
    at = np.where(place < 0.6, theta, 1.0 - theta)
    beside = np.where((at >= 0.25) & (at <= 0.75), BESIDE * np.sign(case.uniform("beside", uniform.shape) - 0.5), 0.0)
    uniform = np.where(place < 0.8, at + np.where((place < 0.3) | ((place >= 0.6) & (place < 0.7)), beside, 0.0), uniform)
    return batch_of(case) | {"theta": theta, "uniform": uniform, "train": case.train}


def _hidden(arguments: Arguments, described: Description) -> Arguments:
    """The estimator's name goes with the arguments, for the oracle only."""
    return arguments | {"_estimator": described.estimator}


#: More than eight examples, layer and unit gates, without kinks.
_RECIPES = (
    sized.Recipe(lambda n, a: (Dense(a), TANH, Section((Dense(a), TANH, Dense(a))), Section((Dense(a), TANH))), (9, 5, 7)),
    sized.Recipe(lambda n, a: (Section((Dense(a), BatchNorm(), TANH, Dense(n)), post="identity"),), (17, 9, 3), train=True),
    sized.Recipe(lambda n: (Dense(3), Activation("sigmoid"), UnitGate()), (33, 17), loss=Loss("mean_squared_error", "mean")),
    sized.Recipe(
        lambda c: (Conv(2, (3, 2), padding=((1, 0), (0, 1))), Activation("gelu"), UnitGate(), Flatten()), (9, 3), (4, 3)
    ),
)


def _standing_exact(described: Description) -> list[Question]:
    def exact(case: strategies.Case) -> Arguments:
        return batch_of(case) | {"theta": case.uniform("theta", (case.network.gate_count,)), "train": case.train}

    return [asked_of(recipe, k, described, exact) for k, recipe in enumerate(_RECIPES)]


def _standing_estimates(described: Description) -> list[Question]:
    def estimate(case: strategies.Case, samples: int, exactly: bool) -> Arguments:
        return _hidden(_estimated_from(case, samples, described, exactly=exactly), described)

    kinds = [(recipe, k, exactly) for recipe in _RECIPES for k in (1, 2, 9) for exactly in (True, False)]
    return [
        asked_of(recipe, number, described, functools.partial(estimate, samples=k, exactly=exactly))
        for number, (recipe, k, exactly) in enumerate(kinds)
    ]


def _run_exact(arguments: Arguments, backend: Backend, branches: Mapping[str, Array]) -> Traced:
    """value, gradients of the weights, of θ. There are no branches."""
    loss, theta = loss_of(arguments, backend), arguments["theta"]
    tensors: Arrays = {"value": np.asarray(estimators.exact_expectation(loss, theta))}
    weights = estimators.exact_weight_gradient(loss, theta)
    tensors |= {f"params/{name}": weights[name] for name in reversed(loss.network.parameter_shapes)}
    tensors["theta"] = estimators.exact_theta_gradient(loss, theta)
    terms = 2.0 ** (theta.size / 2)  # sums of 2^G terms, of which those of ∂C/∂θ and ∂C/∂W cancel
    sizes = {name: terms * (np.abs(t) + np.sqrt(np.square(t).mean())) for name, t in tensors.items() if t.size}
    return Traced(tensors, {}, {}, sizes | {"theta": terms * np.full(theta.shape, float(np.abs(tensors["value"])))})


def _run_estimate(kind: str, arguments: Arguments, backend: Backend) -> Traced:
    loss, theta, uniform = loss_of(arguments, backend), arguments["theta"], arguments["uniform"]
    base = loss.evaluate(estimators.sample(theta, uniform[0]), run_closed=True)
    gates = loss.gradients(base).gates
    found = estimators.ESTIMATORS[kind].function(estimators.Sampled(loss, base, gates, theta, uniform))
    # losses cancel, and what is left of their rounding is divided by no more than min(θ, 1 − θ)
    size = np.abs(found.gradient) + (1.0 + len(uniform) ** 0.5) * abs(float(base.loss)) / np.minimum(theta, 1.0 - theta)
    return Traced({"theta_estimate": found.gradient}, {}, {}, {"theta_estimate": size})


def _estimated(arguments: Arguments, backend: Backend) -> Arrays:
    return _run_estimate(arguments["_estimator"], arguments, backend).tensors


def _estimate_expectation(arguments: Arguments, unit: float) -> Expectation:
    return expectation(lambda b, taken: _run_estimate(arguments["_estimator"], arguments, b), unit)


METHODS: tuple[Method, ...] = (
    Method(
        "theta_gradient",
        "theta",
        (),
        lambda described: _exact_cases(_few_gates(described)),
        lambda arguments, backend: _run_exact(arguments, backend, {}).tensors,
        lambda arguments, unit: expectation(lambda b, taken: _run_exact(arguments, b, taken), unit),
        0.25,
        _standing_exact,
    ),
    Method(
        "theta_estimate",
        "theta",
        ("theta_estimate",),
        lambda described: _estimate_cases(_few_gates(described), described).map(
            lambda arguments: _hidden(arguments, described)
        ),
        _estimated,
        _estimate_expectation,
        1.0,
        _standing_estimates,
    ),
)
