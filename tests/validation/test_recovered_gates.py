"""validation.checks.recovered_gates on a network of two sections whose gates go under the threshold and come back."""

import functools
import json

import numpy as np
import pytest

from refprune.backend import ORACLE
from refprune.data import sets
from refprune.training.config import load
from refprune.training.images import epoch_batches, prepare_images
from refprune.training.state import initial_state
from refprune.training.step import train_step
from validation.checks import recovered_gates as recovered

TINY = (
    "network.sections=4",
    "network.width=8",
    "data.train_limit=256",
    "training.epochs=3",
    "training.batch_size=32",
    "training.backend=oracle",
    "gates.warmup_epochs=1",
    "gates.learning_rate=2.0",
    "gates.kappa_warmup=2",
    "optimiser.learning_rate=0.1",
    "objective.weight_decay=0.3",
)


@functools.cache
def watched(overrides):
    return recovered.watch(load("quickstart", overrides))


def thetas(config):
    """θ after every step of the training that is watched, which no rule touches."""
    images, _ = prepare_images(sets.load(config.data.name), config)
    network = config.build_network()
    state, path = initial_state(config, network), []
    for epoch in range(config.training.epochs):
        for x, labels in epoch_batches(images, config, epoch):
            state, _ = train_step(state, x, labels, config, ORACLE, training_images=len(images.labels))
            path.append(state.theta)
    return np.array(path)


#: θ wanders about the threshold, or is pulled down while the weights decay.
WANDERING = (*TINY, "gates.threshold=0.495", "objective.beta=0.0001")
PULLED = (*TINY, "gates.estimator=paired", "gates.learning_rate=6.0", "objective.beta=0.02")


@pytest.mark.parametrize("overrides", [WANDERING, PULLED])
def test_steps_and_recoveries_by_the_path_of_theta(overrides):
    config = load("quickstart", overrides)
    found, path = watched(overrides), thetas(config)
    held = 256 // 32
    for g, gate in enumerate(found["gates"]):
        under = np.flatnonzero(path[held:, g] <= config.gates.threshold) + held + 1  # steps count from 1
        first = int(under[0]) if under.size else None
        back = first is not None and bool((path[first:, g] > 0.5).any())
        assert gate["threshold"] == {"step": first, "recovered": back}
        assert gate["theta"] == path[-1, g]
    backs, gone = ([gate["threshold"][key] for gate in found["gates"]] for key in ("recovered", "step"))
    assert sum(backs) == (2 if overrides == WANDERING else 0)
    assert None not in gone
    assert found["steps"] == len(path) == 24


def test_both_rules_agree_no_sooner_than_each():
    steps = [[gate[rule]["step"] for rule in recovered.RULES] for gate in watched(PULLED)["gates"]]
    spoken = [row for row in steps if row[2] is not None]
    assert len(spoken) == 3
    assert all(row[2] >= max(row[0], row[1]) for row in spoken)
    assert any(row[0] != row[1] for row in spoken)


def row(step, back):
    never = {"step": None, "recovered": False}
    return {"threshold": {"step": step, "recovered": back}, "attraction": never, "both": never}


def test_the_table_counts_over_seeds():
    lines = recovered.summary([{"gates": [row(10, True), row(None, False)]}, {"gates": [row(30, False), row(40, True)]}])
    assert lines[1].split() == ["threshold", "4", "3", "2", "30"]
    assert lines[2].split() == ["attraction", "4", "0", "0", "–"]


def test_the_command(capsys):
    quick = [x for setting in (*TINY, "training.epochs=2") for x in ("--set", setting)]
    assert recovered.main(["quickstart", *quick, "--seeds", "3", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    results = [json.loads(line) for line in lines[:2]]
    assert [r["seed"] for r in results] == [3, 4]
    assert lines[2:] == recovered.summary(results)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere"),
        (["quickstart", "--set", "gates.nope=1"], "nope"),
        (["mnist-resmlp", "--data-dir", "/no"], "/no"),
    ],
)
def test_wrong_input_is_one_sentence(capsys, arguments, message):
    assert recovered.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("validation.checks.recovered_gates: ")
    assert message in error
