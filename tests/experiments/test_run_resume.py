"""Whole experiments that are interrupted: an interruption anywhere changes not one bit; what is no run to go on with."""

import dataclasses
import gzip
import itertools
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
from small_experiments import (
    QUIET,
    STEPS,
    TINY,
    Interrupt,
    assert_same_runs,
    files,
    interrupted,
    lines,
    settings,
    whole_run,
    without_seconds,
)

from refprune.cli import main as cli
from refprune.data import sets
from refprune.errors import InputError
from refprune.experiments import run
from refprune.experiments.journal import Log
from refprune.experiments.run import Progress
from refprune.training import checkpoint, config, decide, equivalence, evaluate, loop


@pytest.fixture(autouse=True)
def tiny_data(monkeypatch):
    monkeypatch.setattr(sets, "load", lambda name, directory=None: TINY)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(run directory, summary) of the uninterrupted run of BASE."""
    return whole_run(tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.parametrize("stop", [1, 2 * STEPS, 2 * STEPS + 1, 2 * STEPS + 4, 4 * STEPS, 4 * STEPS + 3, 8 * STEPS])
def test_resumed_is_uninterrupted(whole, tmp_path, stop):
    """Stopped in the first step, mid-epoch, at the end of an epoch and of a run: the same bits as never stopped."""
    interrupted(tmp_path / "r", settings(), stop)
    assert_same_runs(whole[0], tmp_path / "r")


@pytest.mark.parametrize(("every", "stops"), [(4, (15,)), (5, (14, 2, 9, 1)), (1, (16,)), (7, (13,))])
def test_resumed_from_a_checkpoint_within_an_epoch(tmp_path, every, stops):
    """Checkpoints between epochs change nothing, whether a run is stopped once or again and again."""
    rules = settings(training={"checkpoint_every": every}, unpruned=False)
    run.run(rules, tmp_path / "whole", progress=QUIET)
    interrupted(tmp_path / "r", rules, *stops)
    assert_same_runs(tmp_path / "whole", tmp_path / "r")


ATTRACTION = {
    "objective": {"beta": 0.1, "weight_decay": 3.0},
    "gates": {"rule": "attraction", "kappa_warmup": 3, "kappa_factor": 1.0, "warmup_epochs": 1.0},
    "training": {"checkpoint_every": 4},
}


@pytest.mark.parametrize("stops", [(9,), (11, 3, 5), (4 * STEPS - 1,)])
def test_resumed_under_the_attraction_rule(tmp_path, stops):
    """What is known of κ is in the checkpoint: catches one that begins to count again, or keeps a removed gate's."""
    rules = settings(**ATTRACTION, unpruned=False)
    summary = run.run(rules, tmp_path / "whole", progress=QUIET)
    steps = [row["step"] for row in summary["runs"]["pruned"]["removals"]]
    assert any(step < 4 * STEPS for step in steps)
    interrupted(tmp_path / "r", rules, *stops)
    assert_same_runs(tmp_path / "whole", tmp_path / "r")


@pytest.mark.parametrize(("name", "left"), [("slope", 100.0), ("seen", 0)])
def test_the_evidence_about_kappa_changes_what_is_removed(tmp_path, monkeypatch, name, left):
    """A test of the test above: a resume that forgets it is found out."""
    rules = settings(**ATTRACTION, unpruned=False)
    run.run(rules, tmp_path / "whole", progress=QUIET)
    load = checkpoint.load

    def forgetful(directory):
        found = load(directory)
        return found._replace(state=dataclasses.replace(found.state, **{name: left * getattr(found.state, name)}))

    monkeypatch.setattr(checkpoint, "load", forgetful)
    interrupted(tmp_path / "r", rules, 11)
    with pytest.raises(AssertionError):
        assert_same_runs(tmp_path / "whole", tmp_path / "r")


def test_the_time_before_an_interruption_counts(tmp_path, monkeypatch):
    """A clock that goes on by ten seconds a look: what a stopped run had spent at its checkpoint is counted on."""
    ticks = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: 10.0 * next(ticks))
    rules = settings(training={"checkpoint_every": 4}, unpruned=False)
    with pytest.raises(KeyboardInterrupt):
        run.run(rules, tmp_path / "r", progress=Interrupt(11))
    before = Log.of_checkpoint(path := tmp_path / "r" / "pruned" / checkpoint.NAME, checkpoint.load(path.parent)).seconds
    started = time.monotonic()
    summary = run.resume(tmp_path / "r", progress=QUIET)["runs"]["pruned"]
    since = time.monotonic() - started
    assert before > 10
    assert since + before - 50 <= summary["seconds"] <= since + before


def test_a_checkpoint_within_an_epoch_is_gone_on_from(tmp_path):
    """Catches a checkpoint_every that nobody obeys."""
    with pytest.raises(KeyboardInterrupt):
        run.run(settings(training={"checkpoint_every": 4}), tmp_path / "r", progress=Interrupt(11))
    assert checkpoint.load(tmp_path / "r" / "pruned").state.step == 8


def test_an_interruption_between_an_epochs_last_step_and_its_score(tmp_path):
    rules = settings(training={"checkpoint_every": STEPS}, unpruned=False)
    run.run(rules, tmp_path / "whole", progress=QUIET)
    interrupted(tmp_path / "r", rules, 2 * STEPS)
    assert_same_runs(tmp_path / "whole", tmp_path / "r")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (evaluate, "evaluate"),
        (decide, "decide"),
        (decide, "remove_gates"),
        (loop, "decide_all"),
        (loop, "reestimate"),
        (loop, "removal"),
        (equivalence, "masked_against_compact"),
    ],
)
@pytest.mark.parametrize("call", [1, 3])
def test_an_interruption_outside_the_steps(whole, tmp_path, monkeypatch, module, name, call):
    """Stopped in the test score, in the comparison at the end, while the end or a removal is made."""
    function, calls = getattr(module, name), []

    def stopping(*args, **options):
        calls.append(name)
        if len(calls) == call:
            raise KeyboardInterrupt
        return function(*args, **options)

    monkeypatch.setattr(module, name, stopping)
    try:
        run.run(settings(), tmp_path / "r", progress=QUIET)
    except KeyboardInterrupt:
        run.resume(tmp_path / "r", progress=QUIET)
    else:
        assert len(calls) < call
    assert_same_runs(whole[0], tmp_path / "r")


def test_a_finished_run_is_only_summarised_again(whole, tmp_path):
    run.run(settings(), tmp_path / "r", progress=QUIET)
    before = {name: content for name, (content, _) in files(tmp_path / "r").items()}
    assert without_seconds(run.resume(tmp_path / "r", progress=Interrupt(1))) == without_seconds(whole[1])
    assert {name: content for name, (content, _) in files(tmp_path / "r").items()} == before


def test_a_run_that_ended_while_its_first_state_was_written_is_begun_again(whole, tmp_path):
    """The arrays are there, the header that names them is not: nothing had been trained."""
    folder = tmp_path / "r"
    (folder / "pruned").mkdir(parents=True)
    shutil.copy(whole[0] / "config.toml", folder / "config.toml")
    (folder / "pruned" / "checkpoint-00000000-01234567.npz").write_bytes(b"whole or not")
    run.resume(folder, progress=QUIET)
    assert_same_runs(whole[0], folder)


def test_an_empty_configuration_is_no_experiment(tmp_path):
    """A disk that was full once left one: read as TOML it is the experiment of all defaults."""
    (tmp_path / "config.toml").touch()
    with pytest.raises(InputError, match=r"config\.toml: is empty; the run ended before it began"):
        run.resume(tmp_path, progress=QUIET)


@pytest.mark.parametrize("left", [["config.toml"], ["config.toml", "environment.json"]])
def test_a_run_that_ended_before_its_first_checkpoint_is_resumed(whole, tmp_path, left):
    folder = tmp_path / "r"
    folder.mkdir()
    for name in left:
        shutil.copy(whole[0] / name, folder / name)
    run.resume(folder, progress=QUIET)
    assert_same_runs(whole[0], folder)
    assert (folder / "environment.json").read_bytes() == (whole[0] / "environment.json").read_bytes()


def test_there_must_be_a_run_to_resume(tmp_path):
    with pytest.raises(InputError, match=r"no run to resume here \(config\.toml is missing\)"):
        run.resume(tmp_path, progress=QUIET)


def test_another_configuration_is_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run.run(settings(), tmp_path / "r", progress=Interrupt(9))
    file = tmp_path / "r" / "config.toml"
    file.write_text(file.read_text().replace("seed = 4", "seed = 5"))
    before = files(tmp_path / "r" / "pruned")
    with pytest.raises(InputError, match=r"checkpoint\.json: made by another run, network or configuration"):
        run.resume(tmp_path / "r", progress=QUIET)
    assert files(tmp_path / "r" / "pruned") == before


def test_a_corrupt_checkpoint_is_refused_and_kept(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run.run(settings(), tmp_path / "r", progress=Interrupt(9))
    (path,) = (tmp_path / "r" / "pruned").glob("*.npz")
    path.write_bytes(path.read_bytes()[:-1])
    before = files(tmp_path / "r" / "pruned")
    with pytest.raises(InputError, match="SHA-256 differs"):
        run.resume(tmp_path / "r", progress=QUIET)
    assert files(tmp_path / "r" / "pruned") == before


def test_metrics_shorter_than_the_checkpoint_says_are_refused_or_stay_json(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run.run(settings(unpruned=False), tmp_path / "r", progress=Interrupt(9))
    file = tmp_path / "r" / "pruned" / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[:100])
    try:
        run.resume(tmp_path / "r", progress=QUIET)
    except InputError:
        return
    assert lines(tmp_path / "r" / "pruned")


def test_a_checkpoint_of_the_other_run_is_refused(whole, tmp_path):
    """Both runs of a folder share config.toml: the pruned run's checkpoint is not the unpruned one's."""
    shutil.copytree(whole[0], tmp_path / "r")
    shutil.rmtree(tmp_path / "r" / "unpruned")
    shutil.copytree(tmp_path / "r" / "pruned", tmp_path / "r" / "unpruned")
    with pytest.raises(InputError, match=r"unpruned.checkpoint\.json: made by another run, network or configuration"):
        run.resume(tmp_path / "r", progress=QUIET)


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Log)])
def test_a_checkpoint_without_its_log_is_refused(whole, tmp_path, field):
    shutil.copytree(whole[0], tmp_path / "r")
    path = tmp_path / "r" / "pruned" / checkpoint.NAME
    header = json.loads(path.read_text())
    header["run"][field] = {}
    path.write_text(json.dumps(header))
    header["digest"] = checkpoint._digest({key: value for key, value in header.items() if key != "digest"})
    path.write_text(json.dumps(header))
    name = "final.test_loss" if field == "final" else field
    with pytest.raises(InputError, match=rf"run\.{name} is missing or of a wrong type"):
        run.resume(tmp_path / "r", progress=QUIET)


def test_a_lost_checkpoint_is_not_a_new_run(whole, tmp_path):
    """Without checkpoint.json a resume must not begin again over the arrays that are there."""
    shutil.copytree(whole[0], tmp_path / "r")
    (tmp_path / "r" / "pruned" / checkpoint.NAME).unlink()
    before = files(tmp_path / "r")
    with pytest.raises(InputError, match=r"checkpoint\.json: is missing, but checkpoint-.*npz is there"):
        run.resume(tmp_path / "r", progress=QUIET)
    assert files(tmp_path / "r") == before


def test_a_folder_that_another_run_has_just_taken_is_refused(tmp_path, monkeypatch):
    """Two runs into one folder at once: what the second finds after its own check is the first one's config.toml."""
    made = run.set_up

    def meanwhile(*arguments):
        (tmp_path / "r").mkdir()
        (tmp_path / "r" / "config.toml").write_text("taken")
        return made(*arguments)

    monkeypatch.setattr(run, "set_up", meanwhile)
    with pytest.raises(InputError, match="another run has just begun in this folder"):
        run.run(settings(), tmp_path / "r", progress=QUIET)
    assert (tmp_path / "r" / "config.toml").read_text() == "taken"


@pytest.mark.parametrize("content", ["[]", "{}", "nonsense"])
def test_a_spoilt_environment_is_refused(whole, tmp_path, content):
    shutil.copytree(whole[0], tmp_path / "r")
    (tmp_path / "r" / "environment.json").write_text(content)
    with pytest.raises(InputError, match=r"environment\.json: "):
        run.resume(tmp_path / "r", progress=QUIET)


def test_other_data_are_refused_and_other_versions_said(whole, tmp_path, monkeypatch, capsys):
    shutil.copytree(whole[0], tmp_path / "r")
    path = tmp_path / "r" / "environment.json"
    environment = json.loads(path.read_text())
    path.write_text(json.dumps(environment | {"numpy": "1.0"}))
    run.resume(tmp_path / "r", progress=Progress())
    assert f"resumed in another environment (numpy 1.0 → {np.__version__}): the bits may differ" in capsys.readouterr().out
    path.write_text(json.dumps({key: value for key, value in environment.items() if key != "code_sha256"}))
    run.resume(tmp_path / "r", progress=Progress())  # of a refprune that did not write it down
    assert "another environment" not in capsys.readouterr().out
    path.write_text(json.dumps(environment | {"code_sha256": "0"}))
    run.resume(tmp_path / "r", progress=Progress())
    assert "resumed in another environment (code_sha256 0 → " in capsys.readouterr().out
    other = dataclasses.replace(TINY, test_labels=(TINY.test_labels + 1) % 10)
    monkeypatch.setattr(sets, "load", lambda name, directory=None: other)
    with pytest.raises(InputError, match=r"environment\.json: the run began with other data"):
        run.resume(tmp_path / "r", progress=QUIET)


# kill -9 ------------------------------------------------------------------------------------------------------------------


def write_idx(path, array):
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


@pytest.fixture
def small_mnist(tmp_path):
    """A folder with four IDX files of a few images."""
    (tmp_path / "data" / "mnist").mkdir(parents=True)
    parts = {"train": (TINY.train_images, TINY.train_labels), "t10k": (TINY.test_images, TINY.test_labels)}
    for part, (x, labels) in parts.items():
        write_idx(tmp_path / "data" / "mnist" / f"{part}-images-idx3-ubyte.gz", x[:, 0])
        write_idx(tmp_path / "data" / "mnist" / f"{part}-labels-idx1-ubyte.gz", labels)
    return tmp_path / "data"


def test_killed_in_mid_epoch_and_resumed_is_never_killed(small_mnist, tmp_path, monkeypatch):
    """SIGKILL after epoch 2 has begun, then --resume: byte for byte the arrays of the run that was left alone."""
    monkeypatch.undo()
    rules = settings(unpruned=False, data={"name": "mnist"}, training={"epochs": 40, "checkpoint_every": 4})
    (tmp_path / "tiny.toml").write_text(config.to_toml(rules))
    command = ["run", str(tmp_path / "tiny.toml"), "--data-dir", str(small_mnist), "--out"]
    folder = tmp_path / "killed"
    child = subprocess.Popen([sys.executable, "-m", "refprune", *command, str(folder)], stdout=subprocess.DEVNULL)
    metrics = folder / "pruned" / "metrics.jsonl"
    give_up = time.monotonic() + 30.0
    while not (metrics.exists() and f'"step": {STEPS + 1},' in metrics.read_text()):
        assert child.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < give_up, "the run did not get to its second epoch"
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not (folder / "summary.json").exists()
    assert STEPS <= checkpoint.load(folder / "pruned").state.step < 40 * STEPS
    assert cli.main(["run", "--resume", str(folder), "--data-dir", str(small_mnist)]) == 0
    run.run(rules, tmp_path / "whole", data_directory=str(small_mnist), progress=QUIET)
    assert_same_runs(tmp_path / "whole", folder)


# The compiled backend -----------------------------------------------------------------------------------------------------


def test_a_run_on_the_compiled_backend_resumes_to_the_same_bits(tmp_path):
    rules = settings(training={"backend": "numba", "threads": 1, "epochs": 2}, unpruned=False)
    whole = run.run(rules, tmp_path / "whole", progress=QUIET)
    assert whole["runs"]["pruned"]["masked_compact_error"] <= 1.0
    interrupted(tmp_path / "r", rules, STEPS + 3)
    assert_same_runs(tmp_path / "whole", tmp_path / "r")
