"""How whole experiments end: numbers that are none, gates that are undecided, gates that are decided before the end."""

import dataclasses

import numpy as np
import pytest
from small_experiments import QUIET, STEPS, TINY, assert_same_runs, interrupted, lines, settings, stopped

from refprune.backend import ORACLE
from refprune.data import sets
from refprune.experiments import report
from refprune.experiments import run as experiment
from refprune.passes.batch_loss import BatchLoss
from refprune.training import checkpoint, decide, loop
from refprune.training import step as training_step
from refprune.training.evaluate import evaluate
from refprune.training.images import epoch_batches, prepare_images


@pytest.fixture(autouse=True)
def tiny_data(monkeypatch):
    monkeypatch.setattr(sets, "load", lambda name, directory=None: TINY)


# Numbers that are none ----------------------------------------------------------------------------------------------------


def diverge(monkeypatch, at):
    """From step `at` on every step is far too long."""
    step = training_step.train_step

    def too_long(state, x, labels, rules, backend, *, training_images):
        if state.step >= at:
            rules = dataclasses.replace(rules, optimiser=dataclasses.replace(rules.optimiser, learning_rate=1e25))
        with np.errstate(all="ignore"):
            return step(state, x, labels, rules, backend, training_images=training_images)

    monkeypatch.setattr(loop, "train_step", too_long)


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    diverge(monkeypatch, at=STEPS + 2)
    with pytest.raises(training_step.NonFiniteLoss, match=r"step \d+: the loss is .*; the first layer .* is \w+"):
        experiment.run(settings(), tmp_path / "r", progress=QUIET)
    state = checkpoint.load(tmp_path / "r" / "pruned").state
    assert state.step == STEPS
    assert all(np.isfinite(p).all() for p in state.params.values())
    assert not (tmp_path / "r" / "summary.json").exists()
    monkeypatch.undo()
    monkeypatch.setattr(sets, "load", lambda name, directory=None: TINY)
    assert experiment.resume(tmp_path / "r", progress=QUIET)["runs"]["pruned"]["steps"] == 4 * STEPS


def test_a_test_loss_that_is_no_number_stops_too(tmp_path, monkeypatch):
    """The last step of an epoch breaks the network: no step sees it, but the score does."""
    diverge(monkeypatch, at=2 * STEPS - 1)
    with (
        np.errstate(all="ignore"),
        pytest.raises(training_step.NonFiniteLoss, match=r"step 12: the loss is (nan|inf); all parameters are finite"),
    ):
        experiment.run(settings(), tmp_path / "r", progress=QUIET)
    assert checkpoint.load(tmp_path / "r" / "pruned").state.step == STEPS


def test_a_checkpoint_within_an_epoch_is_good_too(tmp_path, monkeypatch):
    diverge(monkeypatch, at=STEPS + 2)
    with pytest.raises(training_step.NonFiniteLoss):
        experiment.run(settings(training={"checkpoint_every": 1}), tmp_path / "r", progress=QUIET)
    state = checkpoint.load(tmp_path / "r" / "pruned").state
    with np.errstate(all="ignore"):
        assert np.isfinite(evaluate(state, prepare_images(TINY, settings())[1], ORACLE).loss)


# Gates that are undecided at the end --------------------------------------------------------------------------------------


def test_undecided_gates_are_compared_and_listed(tmp_path):
    summary = experiment.run(settings(gates={"learning_rate": 0.0}, unpruned=False), tmp_path / "r", progress=QUIET)
    run = summary["runs"]["pruned"]
    assert sorted(d["gate"] for d in run["decisions"]) == ["section1", "section2", "section3"]
    for d in run["decisions"]:
        assert d["theta"] == 0.5
        assert d["on"] == (d["objective_on"] < d["objective_off"])
    kept = {layer.name for layer in checkpoint.load(tmp_path / "r" / "pruned").state.network.layers}
    assert {d["gate"] for d in run["decisions"] if d["on"]} == {name for name in kept if name.startswith("section")}


def test_training_goes_on_for_undecided_gates_to_the_last_epoch_allowed(tmp_path):
    gates = {"learning_rate": 0.0, "undecided": "continue", "max_epochs": 4}
    rules = settings(gates=gates, training={"epochs": 2}, optimiser={"schedule": "constant"})
    summary = experiment.run(rules, tmp_path / "r", progress=QUIET)
    assert summary["runs"]["pruned"]["steps"] == 4 * STEPS
    assert len(summary["runs"]["pruned"]["decisions"]) == 3
    assert summary["runs"]["unpruned"]["steps"] == 4 * STEPS  # the same budget


def test_training_goes_on_only_until_all_are_decided(tmp_path):
    gates = {"learning_rate": 0.05, "undecided": "continue", "max_epochs": 50, "threshold": 0.1}
    rules = settings(gates=gates, objective={"beta": 0.6}, training={"epochs": 1}, optimiser={"schedule": "constant"})
    summary = experiment.run(rules, tmp_path / "r", progress=QUIET)
    assert STEPS < summary["runs"]["pruned"]["steps"] < 50 * STEPS
    assert summary["runs"]["pruned"]["decisions"] == []


# Gates that are decided before the end ------------------------------------------------------------------------------------

EARLY = {
    "gates": {"decide_epoch": 2, "learning_rate": 0.1},
    "objective": {"beta": 0.005},
    "optimiser": {"learning_rate": 0.1},
    "unpruned": False,
}


def test_gates_are_decided_early_and_what_is_left_is_trained_on(tmp_path):
    """Done again step by step from the checkpoint before the decision: the same bits; J counts the gates that were kept."""
    rules = settings(**EARLY)
    run = experiment.run(rules, tmp_path / "r", progress=QUIET)["runs"]["pruned"]
    stopped(tmp_path / "half", rules, 2 * STEPS + 1)
    before, images = checkpoint.load(tmp_path / "half" / "pruned").state, prepare_images(TINY, rules)[0]
    assert before.step == 2 * STEPS
    assert before.network.gate_count == 3
    decided = decide.decide_all(before, images, rules, ORACLE)
    kept = decided.removed.on
    assert 0 < kept.sum() < 3
    assert run["decisions"] == [d._asdict() for d in decided.decisions] != []
    state = decided.state
    for epoch in (2, 3):
        for x, labels in epoch_batches(images, rules, epoch):
            state, _ = training_step.train_step(state, x, labels, rules, ORACLE, training_images=len(images.labels))
    assert any((state.params[name] != decided.state.params[name]).any() for name in state.params)
    end = checkpoint.load(tmp_path / "r" / "pruned").state
    *_, expected = (event.state for event in loop.train(state, rules, images, ORACLE, until=4))
    assert (end.network, end.step, end.macs, end.finished) == (expected.network, 4 * STEPS, expected.macs, True)
    for name, p in expected.params.items():
        assert end.params[name].tobytes() == p.tobytes()
    loss = BatchLoss(end.network, ORACLE, end.params, images.x, images.labels, end.statistics, train=False)
    norm = sum(float((p.astype(np.float64) ** 2).sum()) for p in end.params.values())
    assert run["gates_on"] == run["sections"] == kept.sum()
    objective = float(loss.evaluate(np.zeros(0)).loss) + 0.005 * run["gates_on"] + 0.5e-3 * norm
    assert run["objective"] == pytest.approx(objective, rel=1e-5)


def test_no_theta_after_the_decision(tmp_path):
    summary = experiment.run(settings(**EARLY), tmp_path / "r", progress=QUIET)
    found = lines(tmp_path / "r" / "pruned")
    assert all((line["theta"] == {}) == (line["step"] > 2 * STEPS) for line in found if line["event"] == "step")
    assert [line["step"] for line in found if line["event"] == "removal"][-1] == 2 * STEPS
    assert report.write_html(tmp_path / "r", summary) is not None


@pytest.mark.parametrize("stops", [(2 * STEPS,), (2 * STEPS + 1,), (2 * STEPS + 3, 1, 4), (4 * STEPS,)])
def test_resumed_around_the_decision(tmp_path, stops):
    rules = settings(**EARLY, training={"checkpoint_every": 4})
    experiment.run(rules, tmp_path / "whole", progress=QUIET)
    interrupted(tmp_path / "r", rules, *stops)
    assert_same_runs(tmp_path / "whole", tmp_path / "r")
