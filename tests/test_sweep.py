"""Sweeps: the file, runs as processes, restart, failures, tables."""

import concurrent.futures
import json
import multiprocessing
import shutil
import sys
import textwrap

import pytest

from refprune import cli, sweep, sweep_report
from refprune.errors import InputError

TINY = """
experiment = "quickstart"
seeds = [0, 1]

[set]
unpruned = false
data.train_limit = 256
training.epochs = 2
training.backend = "oracle"
training.dtype = "float64"
network.sections = 2
network.width = 8
"""


def plan(tmp_path, text=TINY, name="tiny"):
    path = tmp_path / f"{name}.toml"
    path.write_text(textwrap.dedent(text))
    return sweep.load(path)


def quiet(text):
    pass


def test_every_variant_meets_every_combination_of_the_grid(tmp_path):
    found = plan(
        tmp_path,
        TINY
        + """
        [grid]
        objective.penalty = [0.001, 0.01]
        gates.protect = [[], ["section1"]]
        [[variants]]
        name = "a"
        [[variants]]
        name = "b"
        gates.estimator = "paired"
        """.replace("        ", ""),
    )
    assert [s.label for s in found.settings] == [
        f"{name}, penalty {penalty}, protect {protect}"
        for name in "ab"
        for penalty in ("0.001", "0.01")
        for protect in ("none", "section1")
    ]
    last = found.settings[-1].configs[1]
    assert (last.seed, last.gates.estimator, last.objective.penalty) == (1, "paired", 0.01)
    assert (last.gates.protect, last.training.epochs, last.network["sections"]) == (("section1",), 2, 2)
    jobs = sweep.jobs(found, tmp_path)
    assert [job.seed for job in jobs] == [0] * 8 + [1] * 8
    assert len({job.directory for job in jobs}) == 16


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "experiment must be"),
        ("experiment = 'quickstart'\nseeds = []", "seeds must be"),
        ("experiment = 'quickstart'\nseeds = [1, 1]", "seeds must be"),
        ("experiment = 'quickstart'\nseed = 3", "unknown key seed"),
        ("experiment = 'nowhere'", "nowhere"),
        ("experiment = 'quickstart'\n[grid]\ngates.initial = 0.5", "grid.gates.initial must be a list"),
        ("experiment = 'quickstart'\n[grid]\ngates.initial = [0.5, 2.0]", "initial 2.0: .*must lie in"),
        ("experiment = 'quickstart'\n[[variants]]\ngates.initial = 0.5", "needs a name"),
        ("experiment = 'quickstart'\n[[variants]]\nname = 'a'\n[[variants]]\nname = 'a'", "same name"),
        ("experiment = 'quickstart'\nset = 3", "set must be a table"),
        ("experiment = 'quickstart'\n[set]\ngates.nonsense = 3", "unknown key gates.nonsense"),
        ("experiment = ", "cannot be read"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        plan(tmp_path, text)


def test_a_sweep_runs_restarts_and_reports(tmp_path):
    found = plan(tmp_path, TINY + "[grid]\nobjective.penalty = [0.0, 1.0]\n")
    out = tmp_path / "out"
    outcomes = sweep.run(found, out, workers=2, say=quiet)
    assert [o.problem for o in outcomes] == [""] * 4
    page = sweep_report.read(out)
    kept = {r["label"]: r["runs"]["pruned"]["sections"] for r in page["results"]}
    assert kept["penalty 1.0"] == [0.0, 0.0]  # a penalty of 1 nat a section removes all of them
    assert [r["seeds"] for r in page["results"]] == [[0, 1], [0, 1]]
    mean = sum(page["results"][0]["runs"]["pruned"]["test_accuracy"]) / 2
    assert f"{100 * mean:.2f} ± " in sweep_report.text(out)
    first = (out / "sweep.json").read_bytes()

    untouched = out / "penalty-0.0" / "seed-0" / "summary.json"
    stamp = untouched.stat().st_mtime_ns
    shutil.rmtree(out / "penalty-1.0" / "seed-1")  # as if it had never begun
    (out / "penalty-1.0" / "seed-0" / "summary.json").unlink()  # as if it had been stopped at its end: resumed
    sweep.run(found, out, workers=2, say=quiet)
    assert untouched.stat().st_mtime_ns == stamp

    def results(content):
        page = json.loads(content)
        for result in page["results"]:
            del result["runs"]["pruned"]["seconds"]
        return page

    assert results((out / "sweep.json").read_bytes()) == results(first)

    with pytest.raises(InputError, match="another configuration"):
        sweep.run(plan(tmp_path, TINY.replace("epochs = 2", "epochs = 3") + "[grid]\nobjective.penalty = [0.0, 1.0]\n"), out)

    assert sweep_report.write_html(out) is not None
    html = (out / "report.html").read_text()
    assert html.count("<svg") == 3
    assert "penalty 1.0" in html
    assert sorted(p.name for p in out.glob("*.svg")) == ["accuracy.svg", "removals.svg", "theta.svg"]


def test_a_failed_run_stops_nothing_and_is_repeated(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("REFPRUNE_DATA", str(tmp_path / "nothing"))
    text = TINY.replace("[0, 1]", "[0]") + "[[variants]]\nname = 'bad'\ndata.name = 'mnist'\n[[variants]]\nname = 'good'\n"
    path = tmp_path / "tiny.toml"
    path.write_text(text)
    arguments = ["sweep", str(path), "--out", str(tmp_path / "out"), "--jobs", "1"]
    for _ in range(2):
        assert cli.main(arguments) == 1
        said = capsys.readouterr().out
        assert "bad, seed 0: failed: exit code 2: refprune:" in said
        assert "failed: bad, seed 0" in said.split("setting")[1]
    assert "2 runs, 1 of them done" in said
    assert "mnist" in (tmp_path / "out" / "bad" / "seed-0.log").read_text()
    assert [r["seeds"] for r in sweep_report.read(tmp_path / "out")["results"]] == [[], [0]]


def test_a_dead_process_and_a_dead_executor_are_failures(tmp_path, monkeypatch):
    """Planted: a run that is killed, and an executor whose worker dies."""
    found = plan(tmp_path, TINY.replace("[0, 1]", "[0]"))
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    (outcome,) = sweep.run(found, tmp_path / "a", say=quiet)
    assert outcome.summary is None
    assert "exit code 1" in outcome.problem

    class Dying(concurrent.futures.Executor):
        def submit(self, function, *arguments):
            future = concurrent.futures.Future()
            future.set_exception(RuntimeError("the worker has gone"))
            return future

    (outcome,) = sweep.run(found, tmp_path / "b", executor=Dying(), say=quiet)
    assert outcome.problem == "RuntimeError: the worker has gone"


def test_threads_are_set_before_the_process_begins(tmp_path, monkeypatch):
    spy = tmp_path / "python"
    spy.write_text("#!/bin/sh\ncat > /dev/null\necho $NUMBA_NUM_THREADS $OMP_NUM_THREADS $OPENBLAS_NUM_THREADS\nexit 3\n")
    spy.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(spy))
    (outcome, _) = sweep.run(plan(tmp_path), tmp_path / "out", threads=3, say=quiet)
    assert outcome.problem == "exit code 3: 3 3 3"


def test_any_executor_of_concurrent_futures_serves(tmp_path):
    found = plan(tmp_path, TINY.replace("[0, 1]", "[0]"))
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        (outcome,) = sweep.run(found, tmp_path / "out", executor=pool, say=quiet)
    assert outcome.summary is not None


def test_bad_numbers_on_the_command_line(tmp_path, capsys):
    assert cli.main(["sweep", "x.toml", "--jobs", "0"]) == 2
    assert "--jobs: must be at least 1" in capsys.readouterr().err
    assert cli.main(["sweep", str(tmp_path / "none.toml")]) == 2
