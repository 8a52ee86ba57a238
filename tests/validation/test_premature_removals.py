"""validation.checks.premature_removals on a sweep written by hand: 10 steps an epoch, θ held for one epoch, three sections."""

import json

import pytest

from refprune.experiments.sweep_file import run_directory
from refprune.training import config
from validation.checks import premature_removals as premature

#: J of the run in which nothing is protected, and of those in which one section is.
FREE, PROTECTED = 1.0, {"early": 0.9, "late": 1.2, "kept": 1.01, "compared": 0.5}
REMOVED = {"early": 11, "late": 35, "compared": 40}


def write(folder, seed, objectives):
    for label, objective in objectives.items():
        run = run_directory(folder, label, seed)
        (run / "pruned").mkdir(parents=True)
        (run / "summary.json").write_text(json.dumps({"runs": {"pruned": {"objective": objective}}}))
        settings = config.from_dict({"gates": {"warmup_epochs": 1}, "training": {"epochs": 4}})
        (run / "config.toml").write_text(config.to_toml(settings))
        lines = [{"event": "removal", "step": step, "removed": {name: 1}} for name, step in REMOVED.items()]
        lines += [{"event": "epoch", "epoch": e, "step": 10 * e} for e in (1, 2, 3, 4)]
        (run / "pruned" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def sweep(tmp_path):
    labels = {premature.FREE: FREE} | {f"protect {name}": objective for name, objective in PROTECTED.items()}
    write(tmp_path, 0, labels)
    page = {"results": [{"label": label, "seeds": [0], "runs": {}} for label in labels]}
    (tmp_path / "sweep.json").write_text(json.dumps(page))
    return tmp_path


def test_gains_by_epoch_of_theta(sweep):
    found = {g.section: (g.epoch, round(g.gain, 9)) for g in premature.gains(sweep)}
    assert found == {"early": (1, 0.1), "late": (3, -0.2), "kept": (None, -0.01)}


def test_gates_decided_early_are_no_removals_during_training(sweep):
    """decide_epoch 3: what goes at its end, step 30, was compared or rounded, not removed by θ."""
    for run in sweep.glob("*/*/config.toml"):
        settings = config.from_dict({"gates": {"warmup_epochs": 1, "decide_epoch": 3}, "training": {"epochs": 4}})
        run.write_text(config.to_toml(settings))
        metrics = run.parent / "pruned" / "metrics.jsonl"
        metrics.write_text(metrics.read_text().replace('"step": 35', '"step": 30'))
    assert {g.section: g.epoch for g in premature.gains(sweep)} == {"early": 1, "kept": None}


def test_the_table_counts_against_the_noise(sweep, capsys):
    assert premature.main([str(sweep)]) == 0
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert rows["1"] == ["1", "1", "1", "1", "+0.1000", "+0.1000"]
    assert rows["2"][1:4] == ["0", "0", "0"]
    assert rows["3"] == ["3", "1", "0", "0", "-0.2000", "-0.2000"]
    assert rows["all"][1:4] == ["2", "1", "1"]
    assert rows["noise"] == ["noise", "0.0100"]


def test_other_folders_are_refused(tmp_path, capsys):
    assert premature.main([str(tmp_path)]) == 2
    (tmp_path / "sweep.json").write_text(json.dumps({"results": []}))
    assert premature.main([str(tmp_path)]) == 2
    assert "has no setting 'protect none'" in capsys.readouterr().err
