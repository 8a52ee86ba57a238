"""k steps of projected SGD for given gates and batches (O6), every step's branches and noise carried into the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

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
from ...training.config import Config
from ...training.state import project_theta
from ..asking.methods import Arguments, Description, Method
from ..judging.traced import Traced, expectation
from ..strategies import networks as strategies
from ..strategies.structures import few
from .networks import averaging, batch_of


@st.composite
def _cases(draw: st.DrawFn, cases: st.SearchStrategy[strategies.Case], estimators: Sequence[str]) -> Arguments:
    case = draw(cases)
    steps, g = draw(st.integers(1, 4)), case.network.gate_count
    arguments = batch_of(case)
    (outputs,) = case.network.output_shape
    labels = case.network.loss.kind == "cross_entropy"
    target = (
        (case.uniform("targets", (steps, case.batch)) * outputs).astype(np.int64)
        if labels
        else case.normal("targets", (steps, case.batch, outputs))
    )
    return arguments | {
        "theta": np.round(case.uniform("theta", (g,)) * 10.0) / 10.0,  # the ends are reached
        "x": case.normal("inputs", (steps, case.batch, *case.network.input_shape)),
        "target": target,
        "gates": (case.uniform("steps", (steps, g)) < 0.7) * 1.0,
        "learning_rate": draw(st.sampled_from((0.0625, 0.015625))),
        "momentum": draw(st.sampled_from((0.0, 0.5, 0.875))),
        "weight_decay": draw(st.sampled_from((0.0, 0.125))),
        "theta_learning_rate": draw(st.sampled_from((0.0625, 1.0))),
        "beta": draw(st.sampled_from((0.0, 0.25))),
        "estimator": draw(st.sampled_from(estimators)),
    }


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
    ),
)
