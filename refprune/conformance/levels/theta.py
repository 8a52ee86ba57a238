"""C(W, θ) with its exact gradients, and estimators of ∂C/∂θ made of given uniform numbers.

O1–O3 by enumeration of all gate vectors, O5 from the library's estimators.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from hypothesis import strategies as st

from ...arrays import Array, Arrays
from ...backend import Backend
from ...gates import estimators
from ..asking.methods import Arguments, Description, Method
from ..judging.traced import Traced, expectation
from ..judging.verdicts import Expectation
from ..strategies import networks as strategies
from ..strategies.structures import few
from .networks import batch_of, loss_of

#: Enumeration takes 2^G passes.
MOST_GATES = 3

#: No branch is ambiguous here: networks without kinks, so that each of the 2^G passes can be compared.
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


@st.composite
def _estimate_cases(draw: st.DrawFn, cases: st.SearchStrategy[strategies.Case]) -> Arguments:
    """θ well inside (0, 1), no uniform number within 2⁻⁶ of a θ or of 1 − θ: rounding cannot flip a gate."""
    case = draw(cases)
    g, k = case.network.gate_count, draw(st.integers(1, 3))
    theta = 0.25 + 0.5 * case.uniform("theta", (g,))
    uniform = case.uniform("uniform", (k, g))
    for at in (theta, 1.0 - theta):
        uniform = np.where(np.abs(uniform - at) < 2.0**-6, np.where(uniform < at, at - 2.0**-6, at + 2.0**-6), uniform)
    return batch_of(case) | {"theta": theta, "uniform": uniform, "train": case.train}


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


def _of_kind(cases: st.SearchStrategy[Arguments], described: Description) -> st.SearchStrategy[Arguments]:
    """The estimator's name goes with the arguments, for the oracle only."""
    return cases.map(lambda arguments: arguments | {"_estimator": described.estimator})


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
    ),
    Method(
        "theta_estimate",
        "theta",
        ("theta_estimate",),
        lambda described: _of_kind(_estimate_cases(_few_gates(described)), described),
        _estimated,
        _estimate_expectation,
        1.0,
    ),
)
