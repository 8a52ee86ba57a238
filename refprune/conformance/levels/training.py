"""k steps of projected SGD for given gates and batches (O6), every step's branches and noise carried into the next."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from ...arrays import Array, Arrays
from ...backend import Backend
from ...gates.estimators import ESTIMATORS, Sampled
from ...passes.batch_loss import BatchLoss, Evaluation
from ...passes.statistics import update_statistics
from ...passes.tape import Gradients
from ...rounding.watching import KinkInput, watching
from ...spec.json_form import from_json
from ...spec.layers import Activation, BatchNorm, Conv, Dense, Flatten, Layer, Section, UnitGate
from ...spec.network import Loss
from ...training.config import Config
from ...training.state import project_theta
from ..asking.methods import Arguments, Description, Method, Question
from ..judging.traced import Traced, expectation
from ..strategies import networks as strategies
from ..strategies import sized_networks as sized
from ..strategies.structures import few
from .networks import asked_of, averaging, batch_of

TANH = Activation("tanh")

_RATES: dict[str, tuple[float, ...]] = {
    "learning_rate": (0.0625, 0.015625),
    "momentum": (0.0, 0.5, 0.875),
    "weight_decay": (0.0, 0.125),
    "theta_learning_rate": (0.0625, 1.0),
    "beta": (0.0, 0.25),
}

#: More steps than a schedule of a few knows.
MANY_STEPS = 9


@st.composite
def _cases(draw: st.DrawFn, cases: st.SearchStrategy[strategies.Case], estimators: Sequence[str]) -> Arguments:
    case = draw(cases)
    rates = {name: draw(st.sampled_from(values)) for name, values in _RATES.items()}
    return _steps(case, draw(st.integers(1, 4)), rates | {"estimator": draw(st.sampled_from(estimators))})


def _steps(case: strategies.Case, steps: int, chosen: Mapping[str, Any]) -> Arguments:
    """So many steps from the case's weights; θ in tenths, the ends among them. chosen: rates and estimator."""
    g, (outputs,) = case.network.gate_count, case.network.output_shape
    labels = case.network.loss.kind == "cross_entropy"
    target = (
        (case.uniform("targets", (steps, case.batch)) * outputs).astype(np.int64)
        if labels
        else case.normal("targets", (steps, case.batch, outputs))
    )
    return batch_of(case) | {
        "theta": np.round(case.uniform("theta", (g,)) * 10.0) / 10.0,
        "x": case.normal("inputs", (steps, case.batch, *case.network.input_shape)),
        "target": target,
        "gates": (case.uniform("steps", (steps, g)) < 0.7) * 1.0,
        **chosen,
    }


def _standing(described: Description) -> list[Question]:
    """Many steps, some of more than eight examples, with every rate in turn, momentum and decay together."""

    def trained(case: strategies.Case, number: int) -> Arguments:
        rates = {name: values[(number + 1) % len(values)] for name, values in _RATES.items()}
        estimators = described.conventions["estimator"]
        chosen = rates | {"weight_decay": 0.125, "estimator": estimators[number % len(estimators)]}
        return _steps(case, MANY_STEPS + number, chosen)

    return [asked_of(r, k, described, functools.partial(trained, number=k)) for k, r in enumerate(_RECIPES)]


def _units(n: int, a: int) -> tuple[Layer, ...]:
    return (Dense(a), TANH, UnitGate(), Dense(3), BatchNorm(), TANH)


#: Small rates keep many steps near each other; no kinks, so that rounding alone parts them.
_RECIPES = (
    sized.Recipe(_units, (3, 2, 4), train=True),
    sized.Recipe(lambda n, a: (Section((Dense(a), TANH, Dense(n)), post="identity"),) * 2, (9, 3, 2), train=True),
    sized.Recipe(
        lambda c: (Conv(2, (2, 3), padding=((1, 0), (0, 2))), TANH, UnitGate(), Flatten()),
        (2, 3),
        (3, 3),
        True,
        Loss("mean_squared_error", "mean"),
    ),
)


def _draw(described: Description) -> st.SearchStrategy[Arguments]:
    cases = strategies.gated_cases(least=1, train=True, limit=2, conventions=described.conventions)
    return _cases(few(cases, described.structures, described.seed), described.conventions["estimator"])


class Step(NamedTuple):
    """One step of the weights: the batch's loss at those before it, its evaluation and gradients, the weights after it."""

    loss: BatchLoss
    evaluation: Evaluation
    gradients: Gradients
    params: Arrays


def theta_slope(step: Step, kind: str, theta: Array) -> Array:
    """The estimate of ∂C/∂θ, of the weights before the step."""
    gates = step.evaluation.tape.gates
    sampled = Sampled(step.loss, step.evaluation, step.gradients.gates, theta, gates[None])
    return ESTIMATORS[kind].function(sampled).gradient


def moved_theta(theta: Array, slope: Array, beta: float, rate: float) -> Array:
    """clip(θ − η_θ(ĝ + β), 0, 1) (O6)."""
    return project_theta(theta - rate * (slope + beta), Config())


def _run(arguments: Arguments, backend: Backend, branches: Mapping[str, Array]) -> Traced:
    """Losses, then parameters and momenta, running statistics and θ after the last step; branches of every step."""
    a, network = arguments, from_json(arguments["spec"])
    params, statistics, theta = dict(a["params"]), dict(a["statistics"]), a["theta"]
    velocity = {name: np.zeros_like(p) for name, p in params.items()}
    losses: list[float] = []
    taken: Arrays = {}
    inputs: dict[str, KinkInput] = {}
    roundings: Arrays = {}
    theta_size = np.abs(theta)
    options = {"learning_rate": a["learning_rate"], "momentum": a["momentum"], "decay": a["weight_decay"]}
    for k, (x, target, gates) in enumerate(zip(a["x"], a["target"], a["gates"], strict=True)):
        seen: list[KinkInput] = []
        prefix = f"branches/{k}/"
        given = {name.removeprefix(prefix): b for name, b in branches.items() if name.startswith(prefix)}
        loss = BatchLoss(network, watching(backend, seen), params, x, target, statistics, True)
        evaluation = loss.evaluate(gates, run_closed=True, branches=given)
        taken |= {prefix + name: branch for name, branch in evaluation.tape.branches.items()}
        inputs |= {prefix + name: into for name, into in zip(evaluation.tape.branches, seen, strict=True)}
        gradients = loss.gradients(evaluation)
        updated = update_statistics(network, statistics, evaluation.tape.batch_statistics)
        for name, size in averaging(statistics, updated).items():
            roundings[name] = roundings[name] + size if name in roundings else size
        quiet = BatchLoss(network, backend, dict(params), x, target, statistics, True)
        statistics = updated
        for name, w in params.items():
            params[name], velocity[name] = backend.momentum_step(w, velocity[name], gradients.params[name], **options)
        slope = theta_slope(Step(quiet, evaluation, gradients, params), a["estimator"], theta)
        theta = moved_theta(theta, slope, a["beta"], a["theta_learning_rate"])
        theta_size = theta_size + a["theta_learning_rate"] * (np.abs(slope) + a["beta"])
        losses.append(float(evaluation.loss))
    tensors: Arrays = {"loss": np.array(losses)}
    for name in reversed(network.parameter_shapes):
        tensors |= {f"velocity/{name}": velocity[name], f"params/{name}": params[name]}
    tensors |= {f"statistics/{name}": value for name, value in statistics.items()} | {"theta": theta}
    return Traced(tensors, taken, inputs, {**roundings, "theta": theta_size})


METHODS: tuple[Method, ...] = (
    Method(
        "training_steps",
        "training",
        (),
        _draw,
        lambda arguments, backend: _run(arguments, backend, {}).tensors,
        lambda arguments, unit: expectation(lambda b, taken: _run(arguments, b, taken), unit),
        0.5,
        _standing,
    ),
)
