"""Whole experiments in a folder: what a run leaves behind, and what is refused before anything is written."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from small_experiments import (
    QUIET,
    STEPS,
    TINY,
    files,
    lines,
    settings,
    whole_run,
)

from refprune.backend import ORACLE
from refprune.data import sets
from refprune.errors import InputError
from refprune.experiments import report, setup, sizes
from refprune.experiments import run as experiment
from refprune.experiments.run import Progress
from refprune.gates.surgery import prune
from refprune.passes.batch_loss import BatchLoss
from refprune.spec import cost, zoo
from refprune.spec.layers import Activation, Dense, Flatten, Section, UnitGate
from refprune.spec.network import Network
from refprune.training import checkpoint, config, equivalence
from refprune.training.evaluate import evaluate
from refprune.training.images import prepare_images
from refprune.training.removal import remove_gates
from refprune.training.state import initial_state


@pytest.fixture(autouse=True)
def tiny_data(monkeypatch):
    monkeypatch.setattr(sets, "load", lambda name, directory=None: TINY)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(run directory, summary) of the uninterrupted run of BASE."""
    return whole_run(tmp_path_factory.mktemp("whole") / "run")


# What a run leaves behind -------------------------------------------------------------------------------------------------


def test_the_files_of_a_run(whole):
    folder, summary = whole
    assert sorted(p.name for p in folder.iterdir()) == ["config.toml", "environment.json", "pruned", "summary.json", "unpruned"]
    for name in ("pruned", "unpruned"):
        inner = sorted(p.name for p in (folder / name).iterdir())
        assert [re.sub(r"\d{8}-\w{8}", "N", n) for n in inner] == ["checkpoint-N.npz", "checkpoint.json", "metrics.jsonl"]
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert config.load(str(folder / "config.toml")) == settings()
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["numpy"] == np.__version__
    packages = {"python", "refprune", "numpy", "numba", "scipy"}
    machine = {"machine", "processor", "cores", "vector_bits", "target_sha256"}
    assert set(environment) == packages | machine | {"code_sha256", "data_sha256"}


def test_the_summary(whole):
    folder, summary = whole
    assert (summary["name"], summary["seed"], summary["data"]) == ("tiny", 4, "tiny")
    assert list(summary["runs"]) == ["pruned", "unpruned"]
    network = zoo.residual_mlp(3, 6)
    for name, run in summary["runs"].items():
        end = checkpoint.load(folder / name).state
        assert end.finished
        assert end.network.gate_count == end.theta.size == 0
        assert run["steps"] == end.step == 4 * STEPS
        assert run["training_macs"] == end.macs
        assert run["training_macs_unpruned"] == 4 * STEPS * 8 * cost.training_macs(network)
        assert run["sections"] == len([layer for layer in end.network.layers if layer.name.startswith("section")])
        assert run["sections_at_start"] == 3
        for key, count in (("parameters", cost.parameters), ("macs_per_image", cost.macs)):
            assert run[key] == count(end.network)
            assert run[f"{key}_at_start"] == count(network)
        score = evaluate(end, prepare_images(TINY, settings())[1], ORACLE)
        assert (run["test_loss"], run["test_accuracy"]) == score
        assert 0.0 < run["first_step_seconds"] <= run["seconds"]
    pruned, unpruned = summary["runs"].values()
    assert pruned["sections"] < 3
    assert pruned["removals"]
    assert unpruned["sections"] == 3
    assert unpruned["training_macs"] == unpruned["training_macs_unpruned"]
    assert (unpruned["removals"], unpruned["decisions"], unpruned["masked_compact_error"]) == ([], [], None)


def test_the_layers_add_up(whole):
    """The table of layers has the sizes of the network at the start and of what is left, which no layer exceeds."""
    _, summary = whole
    for run in summary["runs"].values():
        for key, total in (("macs", "macs_per_image"), ("parameters", "parameters")):
            assert sum(row[key] for row in run["layers"].values()) == run[total]
            assert sum(row[f"{key}_at_start"] for row in run["layers"].values()) == run[f"{total}_at_start"]
            assert all(row[key] <= row[f"{key}_at_start"] for row in run["layers"].values())


def test_metrics_are_json_lines_in_the_order_of_steps(whole):
    folder, summary = whole
    for name, run in summary["runs"].items():
        found = lines(folder / name)
        steps = [line["step"] for line in found if line["event"] == "step"]
        assert steps == list(range(1, 4 * STEPS + 1))
        epochs = [line for line in found if line["event"] == "epoch"]
        assert [(e["epoch"], e["step"]) for e in epochs] == [(i, i * STEPS) for i in range(1, 5)]
        for key in ("step", "macs"):
            values = [line[key] for line in found if line["event"] in ("step", "epoch")]
            assert values == sorted(values)
        assert found[-1]["event"] == "end"
        assert (found[-1]["test_loss"], found[-1]["decisions"]) == (run["test_loss"], run["decisions"])
        removals = [{k: v for k, v in line.items() if k != "event"} for line in found if line["event"] == "removal"]
        assert removals == run["removals"]
        assert [e["macs_per_image"] for e in epochs] == sorted((e["macs_per_image"] for e in epochs), reverse=True)


def test_theta_is_logged_until_its_gate_goes(whole):
    folder, summary = whole
    gone = {name: row["step"] for row in summary["runs"]["pruned"]["removals"] for name in row["removed"]}
    assert gone
    for line in lines(folder / "pruned"):
        if line["event"] == "step":
            assert set(line["theta"]) == {f"section{i}" for i in (1, 2, 3) if line["step"] < gone.get(f"section{i}", 99)}
            assert 0 <= line["gates_on"] <= 3
    assert all(line.get("theta") in (None, {}) for line in lines(folder / "unpruned"))


def test_every_line_tells_the_size_that_is_left_and_the_training_so_far(whole):
    """C6: realised and expected MACs and parameters, from the θ of the line (six digits), and the unpruned run's MACs."""
    folder, summary = whole
    outside, section = np.array([784 * 6 + 60, 785 * 6 + 70]), np.array([36, 42])
    for name, run in summary["runs"].items():
        found = [line for line in lines(folder / name) if line["event"] in ("step", "epoch")]
        assert [line["macs_unpruned"] for line in found] == [line["step"] * 8 * (2 * 4704 + 3 * 168) for line in found]
        assert found[-1]["macs_unpruned"] == run["training_macs_unpruned"]
        for line in found:
            counts = np.array([line["macs_per_image"], line["parameters"]])
            expected = np.array([line["expected_macs_per_image"], line["expected_parameters"]])
            if name == "unpruned":
                assert counts.tolist() == expected.tolist() == (outside + 3 * section).tolist()
            elif line["event"] == "step":
                assert counts.tolist() == (outside + len(line["theta"]) * section).tolist()
                assert np.abs(expected - outside - sum(line["theta"].values()) * section).max() <= 3 * 0.51e-6 * 42


def test_every_removal_was_compared_with_the_masked_network(whole):
    for row in whole[1]["runs"]["pruned"]["removals"]:
        assert 0.0 <= row["masked_compact_error"] <= 1.0
    errors = [row["masked_compact_error"] for row in whole[1]["runs"]["pruned"]["removals"]]
    assert whole[1]["runs"]["pruned"]["masked_compact_error"] == max(errors)


def test_that_comparison_finds_a_network_that_is_not_the_masked_one():
    """A test of the test: the removed gate left on, and one weight 1e-9 off."""
    rules = settings(training={"dtype": "float64"})
    images, _ = prepare_images(TINY, rules)
    state = initial_state(rules, zoo.residual_mlp(3, 6))
    keep = np.array([True, False, True])
    _, cut, _ = remove_gates(state, keep, rules)
    assert equivalence.masked_against_compact(state, cut, keep * 1.0, images) <= 1.0
    assert equivalence.masked_against_compact(state, cut, np.ones(3), images) > 1e6

    class Off:
        network, gates, closed_for_emptiness = cut.network, cut.gates, ()

        @staticmethod
        def arrays(old):
            return {n: a * (1.0 + 1e-9 * (n == "section3.dense1.weight")) for n, a in cut.arrays(old).items()}

    assert equivalence.masked_against_compact(state, Off, keep * 1.0, images) > 1.0


def test_a_section_that_lost_its_last_unit_is_closed_in_the_comparison():
    """Its gate is on in the vector that was asked for; the network that is built is the one where it is off."""
    layers = (Flatten(), Dense(6), Section((Dense(4), Activation("tanh"), UnitGate(), Dense(6))), Dense(10))
    network, rules = Network((1, 28, 28), layers), settings(training={"dtype": "float64"})
    images, _ = prepare_images(TINY, rules)
    state = initial_state(rules, network)
    state.params["section1.dense2.bias"][:] = 1.0  # the constant that the emptied path would add
    keep = np.array([group.kind == "layer" for group in network.gate_groups for _ in range(group.stop - group.start)])
    _, cut, pruned = remove_gates(state, keep, rules)
    assert pruned.closed_for_emptiness == ("section1",)
    assert equivalence.masked_against_compact(state, cut, keep * 1.0, images) <= 1.0
    assert (
        equivalence.masked_against_compact(state, dataclasses.replace(cut, closed_for_emptiness=()), keep * 1.0, images) > 1e6
    )


def test_without_the_comparison_only_the_pruned_run_is_there(tmp_path):
    summary = experiment.run(settings(unpruned=False, training={"epochs": 1}), tmp_path / "r", progress=QUIET)
    assert list(summary["runs"]) == ["pruned"]
    assert not (tmp_path / "r" / "unpruned").exists()


def test_the_objective_is_counted_again(whole):
    """J of both networks from their checkpoints, by the oracle: loss on the training images, β a gate that is on, ½λ‖W‖²."""
    folder, summary = whole
    images, _ = prepare_images(TINY, settings())
    for name, on in (("pruned", summary["runs"]["pruned"]["sections"]), ("unpruned", 3)):
        state = checkpoint.load(folder / name).state
        loss = BatchLoss(state.network, ORACLE, state.params, images.x, images.labels, state.statistics, train=False)
        expected = float(loss.evaluate(np.zeros(0)).loss)
        assert summary["runs"][name]["train_loss"] == pytest.approx(expected, rel=1e-5)
        norm = sum(float((p.astype(np.float64) ** 2).sum()) for p in state.params.values())
        assert summary["runs"][name]["gates_on"] == on
        assert summary["runs"][name]["objective"] == pytest.approx(expected + 0.1 * on + 0.5e-3 * norm, rel=1e-5)


def test_a_protected_section_has_no_gate_and_stays(tmp_path):
    """At a penalty that removes everything else."""
    rules = settings(unpruned=False, objective={"beta": 10.0}, gates={"protect": ["section2"]})
    run = experiment.run(rules, tmp_path / "r", progress=QUIET)["runs"]["pruned"]
    assert (run["sections"], run["sections_at_start"], run["gates_on"]) == (1, 3, 1)
    state = checkpoint.load(tmp_path / "r" / "pruned").state
    assert {name.split(".")[0] for name in state.params if name.startswith("section")} == {"section2"}
    with pytest.raises(InputError, match=r"gates.protect: 'section9' is no gate of the network; there are section1, section2"):
        experiment.run(settings(gates={"protect": ["section9"]}), tmp_path / "s", progress=QUIET)


def test_from_scratch_trains_what_is_left_from_other_weights(tmp_path):
    rules = settings(unpruned=False, from_scratch=True, gates={"protect": ["section2"]})
    summary = experiment.run(rules, tmp_path / "r", progress=QUIET)
    pruned, scratch = summary["runs"]["pruned"], summary["runs"]["from-scratch"]
    assert list(summary["runs"]) == ["pruned", "from-scratch"]
    assert 0 < pruned["sections"] < 3
    for key in ("sections", "parameters", "macs_per_image", "epochs", "gates_on"):
        assert scratch[key] == pruned[key]
    before, after = (checkpoint.load(tmp_path / "r" / name).state for name in ("pruned", "from-scratch"))
    assert before.network == after.network
    other = initial_state(dataclasses.replace(rules, seed=rules.seed + experiment.SCRATCH_SEED), before.network)
    mine = initial_state(rules, before.network)
    assert all((other.params[name] != mine.params[name]).any() for name in mine.params if name.endswith("weight"))
    shutil.rmtree(tmp_path / "r" / "from-scratch")  # stopped between the two runs
    (tmp_path / "r" / "summary.json").unlink()
    again = experiment.resume(tmp_path / "r", progress=QUIET)["runs"]["from-scratch"]
    assert again["objective"] == scratch["objective"]


def test_from_scratch_starts_from_the_weights_of_another_seed(tmp_path):
    """The first state of the run itself, before any step."""

    class Stop(Progress):
        def start(self, label, total, done):
            if label == "from-scratch":
                raise KeyboardInterrupt

    rules = settings(unpruned=False, from_scratch=True, training={"epochs": 1})
    with pytest.raises(KeyboardInterrupt):
        experiment.run(rules, tmp_path / "r", progress=Stop(quiet=True))
    found = checkpoint.load(tmp_path / "r" / "from-scratch").state
    other = initial_state(dataclasses.replace(rules, seed=rules.seed + experiment.SCRATCH_SEED), found.network)
    mine = initial_state(rules, found.network)
    assert found.step == 0
    for name, weight in found.params.items():
        assert (weight == other.params[name]).all()
        assert not name.endswith("weight") or (weight != mine.params[name]).any()


def test_a_network_without_gates_is_trained_once(tmp_path):
    rules = settings(network={"sections": 0}, from_scratch=True)
    summary = experiment.run(rules, tmp_path / "r", progress=QUIET)
    assert list(summary["runs"]) == ["trained"]
    assert summary["runs"]["trained"]["removals"] == []
    assert summary["runs"]["trained"]["training_macs"] == summary["runs"]["trained"]["training_macs_unpruned"]
    assert report.write_html(tmp_path / "r", summary) is not None


def test_the_unpruned_network_starts_from_the_same_weights(tmp_path):
    """Its first checkpoint, before any step, holds the pruned run's initial weights and no gate."""

    class Stop(Progress):
        def start(self, label, total, done):
            if label == "unpruned":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        experiment.run(settings(training={"epochs": 1}), tmp_path / "r", progress=Stop(quiet=True))
    found = checkpoint.load(tmp_path / "r" / "unpruned").state
    first = initial_state(settings(), zoo.residual_mlp(3, 6))
    assert (found.step, found.network.gate_count, found.theta.size) == (0, 0, 0)
    assert list(found.params) == list(first.params)
    for name, p in first.params.items():
        assert found.params[name].tobytes() == p.tobytes()


# Nothing is overwritten ---------------------------------------------------------------------------------------------------


def test_a_folder_with_anything_in_it_is_refused_and_not_touched(whole, tmp_path):
    folder, _ = whole
    (tmp_path / "note.txt").write_text("mine")
    for target in (folder, tmp_path, tmp_path / "note.txt"):
        before = files(folder) | files(tmp_path)
        with pytest.raises(InputError, match="not an empty folder; nothing is overwritten") as caught:
            experiment.run(settings(), target, progress=QUIET)
        assert str(target) in str(caught.value)
        assert files(folder) | files(tmp_path) == before


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "r").mkdir()
    experiment.run(settings(unpruned=False, training={"epochs": 1}), tmp_path / "r", progress=QUIET)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/run: cannot be made"):
        experiment.run(settings(), tmp_path / "file" / "run", progress=QUIET)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"training": {"batch_size": 52}}, r"training\.batch_size: 52 exceeds the 51 training images"),
        ({"data": {"train_limit": 7}}, r"training\.batch_size: 8 exceeds the 7 training images"),
    ],
)
def test_settings_that_do_not_fit_the_data(tmp_path, tables, message):
    with pytest.raises(InputError, match=message):
        experiment.run(settings(**tables), tmp_path / "r", progress=QUIET)


def test_a_refused_run_leaves_nothing_behind(tmp_path):
    with pytest.raises(InputError):
        experiment.run(settings(training={"batch_size": 52}), tmp_path / "r", progress=QUIET)
    assert not (tmp_path / "r").exists()


def test_images_that_do_not_fit_the_network(tmp_path, monkeypatch):
    small = dataclasses.replace(TINY, train_images=TINY.train_images[:, :, 2:], test_images=TINY.test_images[:, :, 2:])
    monkeypatch.setattr(sets, "load", lambda name, directory=None: small)
    with pytest.raises(InputError, match=r"data\.name: tiny has images \(1, 26, 28\), the network needs \(1, 28, 28\)"):
        experiment.run(settings(), tmp_path / "r", progress=QUIET)


def test_enumeration_of_too_many_gates_is_refused_before_anything_is_written(tmp_path):
    rules = settings(network={"sections": 21}, gates={"estimator": "exact"})
    with pytest.raises(InputError, match="'exact' takes 20 gates, the network has 21"):
        experiment.run(rules, tmp_path / "r", progress=QUIET)
    assert not (tmp_path / "r").exists()
    fewer = settings(network={"sections": 21}, gates={"estimator": "exact", "protect": ["section3"]})
    assert experiment.set_up(fewer, None).networks["pruned"].gate_count == 20


def test_gates_that_were_fixed_cost_as_long_as_their_section_stands():
    network = zoo.residual_mlp_bn(sections=2, width=3, units=True)
    gated = setup.protected(network, ("section1.unitgate1", "section2.unitgate1"))
    assert [group.name for group in gated.gate_groups] == ["section1", "section2"]
    for keep, gone in (([True, True], 0), ([True, False], 3), ([False, False], 6)):
        left = prune(gated, np.array(keep), fix=np.array(keep)).network
        assert sizes.fixed_gates_gone(network, gated, left) == gone
        assert sizes.fixed_gates_gone(network, left, left) == 0  # a network to compare with lost nothing on its way


def test_magnitude_with_all_units_protected_is_refused(tmp_path):
    rules = {"network": {"name": "residual-mlp-bn", "units": True, "sections": 1, "width": 3}}
    rules |= {"gates": {"magnitude": 0.5, "initial": 1.0, "magnitude_epoch": 1, "protect": ["section1.unitgate1"]}}
    rules |= {"data": {"name": "synthetic-digits"}, "training": {"epochs": 2}}
    with pytest.raises(InputError, match=r"gates\.magnitude: 0\.5 removes units, but the network has no unit gates"):
        experiment.run(config.from_dict(rules), tmp_path / "run")


def test_more_classes_than_outputs_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "build", lambda name, options: Network((1, 28, 28), (Flatten(), Dense(3))))
    rules = config.from_dict({"data": {"name": "synthetic-digits"}})
    with pytest.raises(InputError, match=r"data\.name: tiny has 10 classes, the network 3 outputs"):
        experiment.run(rules, tmp_path / "run")
    assert not (tmp_path / "run").exists()
