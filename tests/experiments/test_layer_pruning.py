"""Pruning by criterion from start to end: what every round does, when it stops, and that an interruption changes no bit."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from pruning_cases import NETWORK, PLAN, QUIET, SETTINGS, TINY, TRAINED, run

from refprune.analysis import candidates
from refprune.analysis.scores import CRITERIA, Subject, ranked
from refprune.backend import ORACLE
from refprune.data import sets
from refprune.errors import InputError
from refprune.exchange.trained import Trained
from refprune.experiments import layer_pruning
from refprune.experiments.layer_pruning import Plan
from refprune.output import files
from refprune.passes.parameters import initial_statistics, initialise
from refprune.spec import cost, zoo
from refprune.streams import Streams
from refprune.training import checkpoint
from refprune.training import step as training_step
from refprune.training.evaluate import Score, evaluate
from refprune.training.images import epoch_batches, prepare_images
from refprune.training.removal import cut_state


@pytest.fixture(autouse=True)
def tiny_data(monkeypatch):
    monkeypatch.setattr(sets, "load", lambda name, directory=None: TINY)


def timeless(value):
    """Without the times, which no run repeats."""
    if isinstance(value, dict):
        return {key: timeless(v) for key, v in value.items() if key != "seconds"}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def arrays(folder):
    state = checkpoint.load(folder).state
    return {f"{g}/{n}": a for g in ("params", "velocity", "statistics") for n, a in getattr(state, g).items()}


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
        (tmp_path / "run" / "plan.json").write_text("taken")
        return real(*arguments, **options)

    monkeypatch.setattr(layer_pruning, "prepare_images", slow)
    with pytest.raises(InputError, match="another run has just begun in this folder"):
        run(tmp_path / "run")


@pytest.mark.parametrize("writes", range(6))
def test_a_disk_that_fills_before_round_0_is_whole_lets_it_begin_again(whole, tmp_path, monkeypatch, writes):
    """Every write until then fails once; the same call goes through when there is space again."""
    write, left = Path.write_bytes, [writes]

    def filling(path, content):
        if left[0] == 0:
            raise OSError(28, "No space left on device")
        left[0] -= 1
        return write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", filling)
        with pytest.raises(InputError, match="No space left on device"):
            run(tmp_path / "run")
    if (tmp_path / "run" / "round-00" / checkpoint.NAME).exists():
        layer_pruning.resume(tmp_path / "run", progress=QUIET)
    else:
        run(tmp_path / "run")
    assert [r["removed"] for r in json.loads((tmp_path / "run" / "rounds.json").read_text())] == [
        r["removed"] for r in json.loads((whole[0] / "rounds.json").read_text())
    ]


def test_what_is_no_unbegun_run_is_not_removed(tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("plan.json", "thesis.tex"):
        (tmp_path / "run" / name).write_text("mine")
    with pytest.raises(InputError, match="not an empty folder"):
        run(tmp_path / "run")
    assert len(list((tmp_path / "run").iterdir())) == 2


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
