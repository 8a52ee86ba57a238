"""Pruning by criterion from start to end: what every round does, when it stops, and that an interruption changes no bit."""

import dataclasses
import json

import numpy as np
import pytest

from refprune.analysis import candidates
from refprune.analysis.scores import CRITERIA, Subject, ranked
from refprune.backend import ORACLE
from refprune.cli import main as cli
from refprune.data import dataset, digits, sets, standardise
from refprune.errors import InputError
from refprune.exchange import load, trained
from refprune.exchange.trained import Trained
from refprune.experiments import layer_pruning, layer_pruning_report
from refprune.experiments.layer_pruning import Plan
from refprune.output import files
from refprune.output.progress import Progress
from refprune.passes.parameters import initial_statistics, initialise
from refprune.passes.predictor import Predictor
from refprune.spec import cost, json_form, zoo
from refprune.spec.layers import Activation, Conv, Dense, GlobalAveragePool, MaxPool, Section
from refprune.spec.network import Network
from refprune.streams import Streams
from refprune.training import checkpoint
from refprune.training import step as training_step
from refprune.training.evaluate import Score, evaluate
from refprune.training.images import epoch_batches, prepare_images
from refprune.training.removal import cut_state
from refprune.training.state import ungated

TINY = dataset.Dataset("synthetic-digits", *digits.generate(43, 20, 0), digits.CLASSES)
QUIET = Progress(quiet=True)


def same(kernel):
    return ((kernel // 2,) * 2,) * 2


def section(channels):
    path = (Conv(channels, (3, 3), padding=same(3)), Activation("relu"), Conv(6, (3, 3), padding=same(3)))
    return Section(path, gate=False, post="relu")


LAYERS = (MaxPool((4, 4), (4, 4)), Conv(6, (1, 1)), *map(section, (5, 4, 3, 2)), GlobalAveragePool(), Dense(10))
NETWORK = Network((1, 28, 28), LAYERS)
TRAINED = Trained(NETWORK, initialise(NETWORK, Streams(0), dtype="float32"), {})
SETTINGS = layer_pruning.finetuning_config(
    "synthetic-digits", 2, 3, {"training": {"backend": "oracle", "batch_size": 8}, "optimiser": {"learning_rate": 0.05}}
)
PLAN = Plan("cka", score_images=20, finetune=2, filter_rounds=1)


@pytest.fixture(autouse=True)
def tiny_data(monkeypatch):
    monkeypatch.setattr(sets, "load", lambda name, directory=None: TINY)


def run(folder, plan=PLAN, settings=SETTINGS):
    return layer_pruning.run(TRAINED, plan, settings, folder, progress=QUIET)


def timeless(value):
    """Without the times, which no run repeats."""
    if isinstance(value, dict):
        return {key: timeless(v) for key, v in value.items() if key != "seconds"}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def arrays(folder):
    state = checkpoint.load(folder).state
    return {f"{g}/{n}": a for g in ("params", "velocity", "statistics") for n, a in getattr(state, g).items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sets, "load", lambda name, directory=None: TINY)
        return folder, run(folder)


def test_what_a_run_does(whole):
    """Two of four sections go, by the criterion's lowest score on the network as it is then; at last a tenth of the filters."""
    folder, summary = whole
    start, *rounds = summary["rounds"]
    assert [r["kind"] for r in summary["rounds"]] == ["start", "section", "section", "filters"]
    assert start["macs_per_image"] == cost.macs(NETWORK)
    assert summary["stopped"].startswith("no candidate is left")
    assert summary["result"] == "round-03"
    images, test = prepare_images(TINY, SETTINGS)
    chosen = np.sort(Streams(3).permutation("prune/samples", 0, 43)[:20])
    for number, record in enumerate(rounds[:2]):
        before = checkpoint.load(folder / f"round-{number:02d}").state
        scores = CRITERIA["cka"](Subject(before.network, ORACLE, before.params, before.statistics, images.x[chosen]))
        assert record["scores"] == scores
        assert (record["removed"], record["margin"]) == ranked(scores)
        cut = candidates.without(before.network, [record["removed"]])
        after = checkpoint.load(folder / f"round-{number + 1:02d}").state
        assert after.network == cut.network
        unfinished = dataclasses.replace(before, network=cut.network, params=cut.arrays(before.params))
        assert record["accuracy_before_finetuning"] == evaluate(unfinished, test, ORACLE).accuracy
        assert record["test_accuracy"] == evaluate(after, test, ORACLE).accuracy
        assert record["macs_per_image"] == cost.macs(after.network)
        assert record["parameters"] == cost.parameters(after.network)
        assert len(record["finetune"]) == 2
        assert any((after.params[n] != cut.arrays(before.params)[n]).any() for n in after.params), "nothing was fine-tuned"
    assert json.loads((folder / "rounds.json").read_text()) == summary["rounds"]


def test_fine_tuning_is_training(whole):
    """Round 2 again, by hand: fresh momentum and schedule, epochs 2 and 3 of the shuffles."""
    folder, _ = whole
    before = checkpoint.load(folder / "round-01").state
    record = checkpoint.load(folder / "round-02").run
    state = cut_state(before, candidates.without(before.network, [record["removed"]]))
    state = dataclasses.replace(state, step=0, velocity={n: np.zeros_like(p) for n, p in state.params.items()})
    images, _ = prepare_images(TINY, SETTINGS)
    for epoch in (2, 3):
        for x, labels in epoch_batches(images, SETTINGS, epoch, augment=ORACLE):
            state, _ = training_step.train_step(state, x, labels, SETTINGS, ORACLE, training_images=43)
    for name, array in arrays(folder / "round-02").items():
        group, _, key = name.partition("/")
        np.testing.assert_array_equal(array, getattr(state, group)[key])


def test_the_rate_falls_with_the_macs(tmp_path):
    """Geometrically: a^p of itself once a share p of what can go has gone; the second round by hand shows its use."""
    plan = dataclasses.replace(PLAN, criterion="l1", anneal=0.01, finetune=1)
    records = run(tmp_path / "run", plan)["rounds"]
    macs = [record["macs_per_image"] for record in records]
    end = macs[-2]  # of the sections; the last round thins filters
    want = [0.05 * 0.01 ** ((macs[0] - before) / (macs[0] - end)) for before in macs[:-1]]
    np.testing.assert_allclose([record["learning_rate"] for record in records[1:]], want, rtol=1e-12)
    assert want[0] == 0.05
    assert want[-1] == pytest.approx(0.05 * 0.01)
    before, after = (checkpoint.load(tmp_path / "run" / f"round-{n:02d}").state for n in (1, 2))
    state = cut_state(before, candidates.without(before.network, [records[2]["removed"]]))
    state = dataclasses.replace(state, step=0, velocity={n: np.zeros_like(p) for n, p in state.params.items()})
    settings = dataclasses.replace(SETTINGS, optimiser=dataclasses.replace(SETTINGS.optimiser, learning_rate=want[1]))
    images, _ = prepare_images(TINY, settings)
    for x, labels in epoch_batches(images, settings, 1, augment=ORACLE):
        state, _ = training_step.train_step(state, x, labels, settings, ORACLE, training_images=43)
    for name, array in state.params.items():
        np.testing.assert_array_equal(after.params[name], array)


class Stop(Exception):
    pass


def stopped_at(monkeypatch, saves):
    """`training.checkpoint.save` raises at its n-th call, before the file is on disk for odd n, after it for even; →
    set_count."""
    real, count = checkpoint.save, [0]

    def save(*arguments):
        count[0] += 1
        if count[0] == saves and saves % 2:
            raise Stop
        real(*arguments)
        if count[0] == saves:
            raise Stop

    monkeypatch.setattr(checkpoint, "save", save)
    return lambda n: count.__setitem__(0, n)


def assert_the_same_run(theirs, summary, ours, again):
    assert timeless(again) == timeless(summary)
    assert timeless(json.loads((ours / "rounds.json").read_text())) == timeless(summary["rounds"])
    assert not (ours / "working").exists()
    for number in range(len(summary["rounds"])):
        one, other = arrays(theirs / f"round-{number:02d}"), arrays(ours / f"round-{number:02d}")
        assert list(one) == list(other)
        assert all((one[name] == other[name]).all() for name in one)


@pytest.mark.parametrize("saves", range(1, 13))
def test_an_interruption_anywhere_changes_no_bit(whole, tmp_path, monkeypatch, saves):
    """Stopped before the n-th checkpoint is on disk, or right after it; resumed, and stopped, and resumed again."""
    folder, summary = whole
    set_count = stopped_at(monkeypatch, saves)
    mine = tmp_path / "run"
    with pytest.raises(Stop):
        run(mine)
    if saves == 1:  # nothing had begun
        with pytest.raises(InputError, match="no checkpoint can be read here"):
            layer_pruning.resume(mine, progress=QUIET)
        return
    set_count(saves - 2 if saves > 3 else saves)
    again = None
    try:
        again = layer_pruning.resume(mine, progress=QUIET)
    except Stop:
        again = layer_pruning.resume(mine, progress=QUIET)
    assert_the_same_run(folder, summary, mine, again)


@pytest.fixture(scope="module")
def elaborate(tmp_path_factory):
    """Batch-norm, crops and flips, a falling rate, and a criterion that draws numbers of its own every round."""
    small = dataclasses.replace(zoo.resnet_cifar_keras((5,), width=1), input_shape=(1, 28, 28))
    weights = initialise(small, Streams(1), dtype="float32")
    trained = Trained(small, weights, initial_statistics(small, dtype="float32"))
    changes = {"data": {"augmentation": "crop_flip"}, "training": {"backend": "oracle", "batch_size": 8}}
    settings = layer_pruning.finetuning_config("synthetic-digits", 1, 3, changes)
    how = (trained, Plan("random", finetune=1, anneal=0.1, score_images=0), settings)
    folder = tmp_path_factory.mktemp("elaborate") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sets, "load", lambda name, directory=None: TINY)
        return how, folder, layer_pruning.run(*how, folder, progress=QUIET)


@pytest.mark.parametrize("saves", [2, 3, 4, 5, 7, 8, 9, 10])
def test_an_interruption_of_all_that_a_run_may_hold(elaborate, tmp_path, monkeypatch, saves):
    how, folder, summary = elaborate
    assert len(summary["rounds"]) == 4
    assert len({record["learning_rate"] for record in summary["rounds"][1:]}) == 3
    stopped_at(monkeypatch, saves)
    with pytest.raises(Stop):
        layer_pruning.run(*how, tmp_path / "run", progress=QUIET)
    again = layer_pruning.resume(tmp_path / "run", progress=QUIET)
    assert_the_same_run(folder, summary, tmp_path / "run", again)


def test_every_round_draws_its_own_numbers(elaborate):
    _, _, summary = elaborate
    scores = [set(record["scores"].values()) for record in summary["rounds"][1:]]
    assert not scores[0] & scores[1]
    assert not scores[1] & scores[2]


def test_of_two_runs_that_begin_at_once_one_is_refused(tmp_path, monkeypatch):
    """The other one makes the folder while this one loads its data."""
    real = prepare_images

    def slow(*arguments, **options):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "environment.json").touch()
        return real(*arguments, **options)

    monkeypatch.setattr(layer_pruning, "prepare_images", slow)
    with pytest.raises(InputError, match="another run has just begun there"):
        run(tmp_path / "run")


def test_two_processes_never_work_in_one_folder(whole):
    folder, _ = whole
    with files.locked(folder / "plan.json"), pytest.raises(InputError, match="another process is at work here"):
        layer_pruning.resume(folder, progress=QUIET)


def test_a_finished_run_resumes_to_its_summary(whole):
    folder, summary = whole
    assert layer_pruning.resume(folder, progress=QUIET) == summary


def test_stops_at_the_target(tmp_path):
    plan = dataclasses.replace(PLAN, criterion="random", target_macs=0.9, finetune=0, filter_rounds=0)
    summary = run(tmp_path / "run", plan)
    assert summary["stopped"] == "the target is reached"
    shares = [r["macs_per_image"] / cost.macs(NETWORK) for r in summary["rounds"]]
    assert len(shares) == 2
    assert shares[1] <= 0.9
    before, after = (arrays(tmp_path / "run" / f"round-{n:02d}") for n in (0, 1))
    assert all((after[name] == before[name]).all() for name in after), "without fine-tuning the weights stay"


def test_stops_below_the_least_accuracy(tmp_path, monkeypatch):
    """The network before that is the result."""
    accuracies = iter([0.9, 0.85, 0.84, 0.8, 0.79])
    monkeypatch.setattr(layer_pruning, "evaluate", lambda *a, **k: Score(1.0, next(accuracies)))
    summary = run(tmp_path / "run", dataclasses.replace(PLAN, least_accuracy=0.82, finetune=0))
    assert [r["test_accuracy"] for r in summary["rounds"]] == [0.9, 0.84, 0.79]
    assert summary["stopped"] == "the accuracy fell below 0.82 in round 2"
    assert summary["result"] == "round-01"


def test_filters_with_the_smallest_norm_go():
    cut = candidates.thinned(NETWORK, TRAINED.params, 0.5)
    for name, width in (("section1", 5), ("section2", 4), ("section3", 3), ("section4", 2)):
        weight = TRAINED.params[f"{name}.conv1.weight"]
        norms = [float(np.abs(filter_).astype(np.float64).sum()) for filter_ in weight]
        stays = sorted(sorted(range(width), key=lambda i: norms[i])[width // 2 :])
        np.testing.assert_array_equal(cut.arrays(TRAINED.params)[f"{name}.conv1.weight"], weight[stays])
        columns = TRAINED.params[f"{name}.conv2.weight"][:, stays]
        np.testing.assert_array_equal(cut.arrays(TRAINED.params)[f"{name}.conv2.weight"], columns)
    assert cut.network.gate_count == 0
    thin = candidates.thinned(cut.network, cut.arrays(TRAINED.params), 0.01).network
    assert [s.path[0].channels for s in candidates.stages(thin)[0]] == [2, 1, 1, 1], "at least one goes, the last one stays"


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
