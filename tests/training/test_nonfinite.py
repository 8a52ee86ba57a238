"""What is not finite stops a run with its cause named, and never decides about a gate."""

import dataclasses
import math

import numpy as np
import pytest
from small_training import (
    batches,
    images,
    mlp,
    run,
    settings,
    start,
)

from refprune.backend import ORACLE
from refprune.spec.layers import Activation, Dense, Section
from refprune.spec.network import Network
from refprune.training import decide
from refprune.training.step import NonFiniteLoss, train_step


def run_quietly(*arguments):
    with np.errstate(all="ignore"):
        return run(*arguments)


def spoiled(name, value, network=None, theta=None):
    """One step from a state with `value` in one parameter."""
    network = network or mlp()
    rules = settings()
    state = start(network, rules, theta)
    params = state.params | {name: np.full_like(state.params[name], value)}
    run_quietly(dataclasses.replace(state, params=params), images(network), rules, 1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_parameter_that_is_no_number_is_named(value):
    network = Network((3,), (Dense(4), *[Section((Dense(3), Dense(4)))] * 3, Dense(3)))
    with pytest.raises(NonFiniteLoss, match=r"step 0: the loss is nan; .*parameter .* is section3\.dense1\.bias"):
        spoiled("section3.dense1.bias", value, network, np.ones(3))


def test_the_first_layer_that_overflows_is_named():
    relu = Activation("relu")
    network = Network((3,), (Dense(4), relu, Dense(4, name="here"), relu, Section((Dense(4, name="later"), relu)), Dense(3)))
    with pytest.raises(NonFiniteLoss, match="the first layer with an output that is not finite is here"):
        spoiled("here.weight", 1e308, network, np.ones(1))


def test_an_overflow_in_a_closed_path_is_named():
    relu = Activation("relu")
    network = Network((3,), (Dense(4), relu, Section((Dense(4, name="here"), relu)), Dense(3)))
    with pytest.raises(NonFiniteLoss, match="not finite is here"):
        spoiled("here.weight", 1e308, network, np.zeros(1))


def test_steps_that_are_too_long_end_in_one_sentence():
    network = Network((3,), (Dense(4), Activation("relu"), Section((Dense(4),)), Dense(3)))
    rules = settings(optimiser={"learning_rate": 1e200})
    with pytest.raises(NonFiniteLoss, match=r"step \d+: the loss is (nan|inf); the first") as caught:
        run_quietly(start(network, rules), images(network), rules, 8)
    assert any(f" {layer.name}" in str(caught.value) for layer, _ in network.placed())


@pytest.mark.parametrize("estimator", ["paired", "disarm", "arm", "reinforce", "taylor"])
def test_an_estimate_that_is_not_finite_stops_and_removes_nothing(estimator):
    """The base loss is finite, another pass of the estimator is not: θ must not become NaN and be taken for pruned."""
    network = Network((3,), (Dense(4), *[Section((Dense(3), Dense(4)))] * 2, Dense(3)))
    table = {"estimator": estimator, "floor": 0.01, "threshold": 0.02}
    rules = settings(gates=table | ({"gate_samples": 8} if estimator == "reinforce" else {}))
    state = start(network, rules)
    big = {"section2.dense2.bias": np.full(4, 1e308), "section2.dense2.weight": np.full((4, 3), 1e308)}
    state = dataclasses.replace(state, params=state.params | big)
    (x, labels), *_ = batches(images(network), rules, 1)
    messages = []
    for step in range(20):
        try:
            train_step(dataclasses.replace(state, step=step), x, labels, rules, ORACLE, training_images=32)
        except NonFiniteLoss as error:
            messages.append(str(error))
    of_the_estimate = [m for m in messages if f"the {estimator} estimate for gate section" in m]
    assert of_the_estimate or estimator == "taylor"  # taylor has no other pass: its closed path ends in the base loss
    assert len(messages) == 20 or estimator in ("disarm", "arm", "reinforce")  # whose passes may all leave section2 closed


def test_vertices_whose_loss_is_not_finite_are_not_compared():
    network, rules = mlp(), settings(gates={"threshold": 0.1})
    state = start(network, rules, np.full(8, 0.4))
    state = dataclasses.replace(state, params=state.params | {"section1.dense1.weight": np.full((3, 4), np.nan)})
    with pytest.raises(NonFiniteLoss, match="where undecided gates are compared"):
        decide.decide(state, images(network), rules, ORACLE)
