"""Whole networks at given gates: output, loss, statistics and all gradients, in data-flow order (N1–N4, O3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from hypothesis import strategies as st

from ...arrays import Array, Arrays
from ...backend import Backend
from ...passes.batch_loss import BatchLoss
from ...passes.statistics import update_statistics
from ...rounding.watching import KinkInput, watching
from ...spec.json_form import from_json, to_json
from ..asking.methods import Arguments, Description, Method, Question
from ..judging.traced import Traced, expectation
from ..strategies import networks as strategies
from ..strategies import sized_networks as sized
from ..strategies.structures import few


def batch_of(case: strategies.Case) -> Arguments:
    """What every method gets that runs a network on one batch."""
    return {
        "spec": to_json(case.network),
        "params": case.params,
        "statistics": case.statistics,
        "x": case.x,
        "target": case.target,
    }


def draw(described: Description) -> st.SearchStrategy[Arguments]:
    cases = few(strategies.cases(conventions=described.conventions), described.structures, described.seed)
    return cases.map(lambda case: batch_of(case) | {"gates": case.gates, "train": case.train})


def asked_of(
    recipe: sized.Recipe, number: int, described: Description, arguments: Callable[[strategies.Case], Arguments]
) -> Question:
    """What is asked about a recipe's network; only its batch is made smaller where the widths have to fit each other."""
    seed = 2**16 * described.seed + number
    sizes = recipe.sizes if recipe not in sized.FIXED else recipe.sizes[:1]

    def make(found: tuple[int, ...]) -> Arguments:
        return arguments(sized.case(recipe, (*found, *recipe.sizes[len(found) :]), seed, described.conventions))

    return Question(make, sizes, recipe.least[: len(sizes)])


def _standing(described: Description) -> list[Question]:
    """The sized networks at random gates; then inputs and logits so large that a plain exponential overflows."""

    def gated(case: strategies.Case) -> Arguments:
        return batch_of(case) | {"gates": case.gates, "train": case.train}

    def loud(case: strategies.Case) -> Arguments:
        arguments = gated(case)
        first = np.linspace(-800.0, 800.0, case.params["dense1.bias"].size)
        head = 40.0 * np.arange(case.params["dense2.bias"].size)
        return arguments | {"params": case.params | {"dense1.bias": first, "dense2.bias": head}}

    plain = [(recipe, gated) for recipe in (*sized.DENSE, *sized.IMAGES, *sized.FIXED)]
    return [asked_of(r, k, described, how) for k, (r, how) in enumerate([*plain, *((r, loud) for r in sized.LOUD)])]


def loss_of(arguments: Arguments, backend: Backend, *, train: bool | None = None) -> BatchLoss:
    """The batch's loss that the arguments describe."""
    a = arguments
    mode = a["train"] if train is None else train
    return BatchLoss(from_json(a["spec"]), backend, a["params"], a["x"], a["target"], a["statistics"], mode)


def run(arguments: Arguments, backend: Backend, branches: Mapping[str, Array]) -> Traced:
    """Layers forward, output, loss, statistics, then gradients from the last layer to the first, gates, input."""
    seen: list[KinkInput] = []
    layers: Arrays = {}

    def observe(name: str, y: Array) -> None:
        layers[f"layers/{name}"] = np.array(y)

    loss = loss_of(arguments, watching(backend, seen))
    evaluation = loss.evaluate(arguments["gates"], run_closed=True, branches=branches, observe=observe)
    gradients = loss.gradients(evaluation, input_gradient=True)
    tape, network = evaluation.tape, loss.network
    tensors = layers | {"output": tape.output, "loss": np.asarray(evaluation.loss)}
    roundings: Arrays = {}
    if loss.train:
        updated = update_statistics(network, dict(arguments["statistics"]), tape.batch_statistics)
        tensors |= {f"statistics/{name}": value for name, value in updated.items()}
        roundings = averaging(arguments["statistics"], updated)
    tensors |= {f"params/{name}": gradients.params[name] for name in reversed(network.parameter_shapes)}
    assert gradients.input is not None
    tensors |= {"gates": gradients.gates, "input": gradients.input}
    names = {name: f"branches/{name}" for name in tape.branches}
    inputs = {names[name]: into for name, into in zip(tape.branches, seen, strict=True)}
    return Traced(tensors, {names[name]: branch for name, branch in tape.branches.items()}, inputs, roundings)


def averaging(old: Mapping[str, Array], new: Mapping[str, Array]) -> Arrays:
    """Sizes of what is rounded in a running average."""
    return {f"statistics/{name}": np.abs(old[name]) + np.abs(value) for name, value in new.items() if value is not old[name]}


def layer_branches(branches: Mapping[str, Array]) -> Arrays:
    return {name.removeprefix("branches/"): branch for name, branch in branches.items()}


METHODS: tuple[Method, ...] = (
    Method(
        "network",
        "network",
        (),
        draw,
        lambda arguments, backend: run(arguments, backend, {}).tensors,
        lambda arguments, unit: expectation(lambda b, taken: run(arguments, b, layer_branches(taken)), unit),
        5.0,
        _standing,
    ),
)
