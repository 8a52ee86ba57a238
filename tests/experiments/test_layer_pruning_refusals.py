"""Plans of layer pruning that are refused, and in which words."""

import dataclasses
import json

import numpy as np
import pytest
from pruning_cases import NETWORK, PLAN, QUIET, SETTINGS, TINY, TRAINED, run

from refprune.backend import ORACLE
from refprune.cli import main as cli
from refprune.data import sets, standardise
from refprune.errors import InputError
from refprune.exchange import load, trained
from refprune.exchange.trained import Trained
from refprune.experiments import layer_pruning, layer_pruning_report
from refprune.experiments.layer_pruning import Plan
from refprune.passes.parameters import initial_statistics, initialise
from refprune.passes.predictor import Predictor
from refprune.spec import json_form, zoo
from refprune.streams import Streams
from refprune.training import checkpoint
from refprune.training.images import prepare_images
from refprune.training.state import ungated


@pytest.fixture(autouse=True)
def tiny_data(monkeypatch):
    monkeypatch.setattr(sets, "load", lambda name, directory=None: TINY)


REFUSED = {
    "epochs": (
        lambda: layer_pruning.finetuning_config("x", 1, 0, {"training": {"epochs": 2}}),
        "--set training.epochs: --finetune",
    ),
    "nu": (lambda: layer_pruning.finetuning_config("x", 1, 0, {"objective": {"nu": 2.0}}), "--set objective.nu: has no effect"),
    "gates": (
        lambda: layer_pruning.check(zoo.residual_mlp(3, 4), Plan("l1")),
        "network: has 3 gates; trained networks have none",
    ),
    "one image": (
        lambda: layer_pruning.check(zoo.resnet_cifar_keras(), Plan(score_images=1)),
        "--score-images: CKA takes at least 2 images",
    ),
    "no maps": (lambda: layer_pruning.check(ungated(zoo.residual_mlp(3, 4)), Plan("rank")), "'rank' needs feature maps"),
    "criterion": (lambda: Plan("l3"), "--criterion: 'l3' is not known; allowed are cka, random, l1, activation, kl, rank"),
    "score_images": (lambda: Plan(score_images=-1), "--score-images: must be at least 0, got -1"),
    "share": (lambda: Plan(target_macs=1.5), r"--target-macs: is a share and must lie in \[0, 1\], got 1.5"),
    "anneal": (lambda: Plan(anneal=0.0), r"--anneal: is a share and must lie in \(0, 1\], got 0.0"),
    "minimum": (
        lambda: layer_pruning.check(zoo.resnet_cifar_keras(), Plan(target_macs=0.2)),
        r"0.2 of 125,747,840 MACs cannot be reached: .* the minimum is 0.2120 \(26,657,408 MACs\)",
    ),
    "no candidates": (lambda: layer_pruning.check(zoo.lenet5(), Plan()), "no section can be removed"),
    "table": (
        lambda: layer_pruning.finetuning_config("x", 1, 0, {"gates": {}}),
        "--set gates: fine-tuning has the tables data, ",
    ),
    "key": (lambda: layer_pruning.finetuning_config("x", 1, 0, {"training": {"x": 1}}), "fine-tuning: unknown key training.x"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_plans_that_are_refused(case):
    make, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        make()


def test_nothing_is_written_for_a_run_that_cannot_be(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(InputError, match="--score-images: 44 exceeds the 43 training images"):
        run(folder, Plan(score_images=44))
    fewer = dataclasses.replace(SETTINGS, data=dataclasses.replace(SETTINGS.data, train_limit=16))
    with pytest.raises(InputError, match="--score-images: 20 exceeds the 16 training images"):
        run(folder, settings=fewer)
    small = zoo.resnet_cifar_keras((3,), width=1)
    with pytest.raises(InputError, match=r"has images \(1, 28, 28\)"):
        layer_pruning.run(Trained(small, {}, {}), Plan(score_images=4), SETTINGS, folder, progress=QUIET)
    assert not folder.exists()
    folder.mkdir()
    (folder / "x").touch()
    with pytest.raises(InputError, match="not an empty folder"):
        run(folder)
    with pytest.raises(InputError, match="no pruning run to resume here"):
        layer_pruning.resume(folder)


def test_the_command(tmp_path, capsys):
    """From a file of weights to table and report; the result is a checkpoint that other commands take; then resumed."""
    np.savez(tmp_path / "a.npz", **TRAINED.params)
    (tmp_path / "spec.json").write_text(json.dumps(json_form.to_json(NETWORK)))
    given = ["prune", tmp_path / "a.npz", "--spec", tmp_path / "spec.json", "--data", "synthetic-digits", "--score-images", 20]
    given += ["--criterion", "l1", "--backend", "oracle", "--set", "training.batch_size=8", "--out", tmp_path / "run"]
    assert cli.main([str(a) for a in given]) == 0
    text = capsys.readouterr().out
    assert "stopped: no candidate is left" in text
    assert (tmp_path / "run" / "report.html").read_text().count("<svg") == 2
    assert load.load(tmp_path / "run" / "round-02").data == "synthetic-digits"
    assert cli.main(["prune", "--resume", str(tmp_path / "run")]) == 0
    again = capsys.readouterr().out
    assert text[text.index("test before") :] == again[again.index("test before") :]
    assert cli.main(["prune"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "--resume", "y"], "may be given beside it, got checkpoint"),
        (["--resume", "y", "--criterion", "cka"], "may be given beside it, got --criterion"),
        (["--resume", "y", "--anneal", "0.1"], "may be given beside it, got --anneal"),
        (["--resume", "y", "--spec", "q"], "may be given beside it, got --spec"),
        (["--compare", "y", "--score-images", "3"], "only --picture may be given beside it, got --score-images"),
        (["x", "--picture", "a.svg"], "--picture: goes with --compare"),
    ],
)
def test_options_that_would_have_no_effect_are_refused(capsys, arguments, message):
    assert cli.main(["prune", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_runs_side_by_side(whole, tmp_path, capsys):
    """What differs is told; a run under way is shown as far as it is; folders of one name stay apart."""
    folder, summary = whole
    other = tmp_path / "run"
    plan = dataclasses.replace(PLAN, criterion="l1", finetune=0, filter_rounds=0)
    run(other, plan, dataclasses.replace(SETTINGS, seed=9))
    (other / "summary.json").unlink()
    picture = tmp_path / "a.svg"
    assert cli.main(["prune", "--compare", str(folder), str(other), "--picture", str(picture)]) == 0
    out = capsys.readouterr().out
    table, differs = out.split("differs")
    assert str(folder) in table.splitlines()[0]
    assert str(other) in table.splitlines()[0]
    assert len(table.strip().splitlines()) == 2 + len(summary["rounds"])
    names = [line.split()[0] for line in differs.splitlines()[2:] if line]
    assert names == ["plan.criterion", "plan.finetune", "plan.filter_rounds", "settings.seed"]
    assert picture.read_text().startswith("<?xml")
    runs = layer_pruning_report.read_all([folder])
    assert layer_pruning_report.differences(runs) == [("differs", "run")]
    assert layer_pruning_report.rounds(runs["run"]) == layer_pruning_report.rounds(summary)


@pytest.mark.parametrize("content", ["[]", "{}", "no JSON"])
def test_folders_that_hold_no_pruning_run(tmp_path, capsys, content):
    (tmp_path / "plan.json").write_text(content)
    (tmp_path / "rounds.json").write_text("[]")
    assert cli.main(["prune", "--compare", str(tmp_path)]) == 2
    assert "no pruning run" in capsys.readouterr().err


def test_a_run_says_what_was_pruned_and_how(whole):
    _, summary = whole
    assert summary["network"] == {"source": "", "sha256": trained.digest(TRAINED), "training_images": None}
    other = TRAINED._replace(params={n: p + (n == "dense1.bias") for n, p in TRAINED.params.items()})
    assert trained.digest(other) != trained.digest(TRAINED)
    facts = layer_pruning_report.facts(summary)
    assert (facts["plan.score_images"], facts["settings.optimiser.learning_rate"]) == ("20", "0.05")


def test_images_are_scaled_as_the_network_saw_them(tmp_path):
    """A network trained on the first 11 images: fine-tuning and the checkpoint's readers scale by those."""
    trained = TRAINED._replace(training_images=11)
    plan = dataclasses.replace(PLAN, finetune=0, filter_rounds=0)
    layer_pruning.run(trained, plan, SETTINGS, tmp_path / "run", progress=QUIET)
    again = load.load(tmp_path / "run" / "round-01")
    assert (again.data, again.training_images) == ("synthetic-digits", 11)
    x = standardise.standardisation(TINY, "channel", images=11, dtype="float32")(TINY.test_images)
    right = Predictor(again.network, ORACLE, again.params, again.statistics)(x).argmax(axis=1) == TINY.test_labels
    records = json.loads((tmp_path / "run" / "rounds.json").read_text())
    assert records[1]["test_accuracy"] == right.mean()
    images, _ = prepare_images(TINY, SETTINGS, scaled_by=11)
    np.testing.assert_array_equal(
        images.x, standardise.standardisation(TINY, "channel", images=11, dtype="float32")(TINY.train_images)
    )


def test_batch_norm_statistics_go_on(tmp_path):
    """A network with batch-norm: what fine-tuning updates comes through removal and checkpoints."""
    small = dataclasses.replace(zoo.resnet_cifar_keras((3,), width=1), input_shape=(1, 28, 28))
    statistics = initial_statistics(small, dtype="float32")
    trained = Trained(small, initialise(small, Streams(1), dtype="float32"), statistics)
    layer_pruning.run(
        trained, dataclasses.replace(PLAN, finetune=1, filter_rounds=0), SETTINGS, tmp_path / "run", progress=QUIET
    )
    after = checkpoint.load(tmp_path / "run" / "round-01").state.statistics
    assert 0 < len(after) < len(statistics)
    assert all((after[name] != statistics[name]).any() for name in after)
