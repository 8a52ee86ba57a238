"""Sweeps: runs as processes, restart, failures."""

import concurrent.futures
import json
import multiprocessing
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_sweeps import TINY, plan, quiet

from refprune.cli import main as cli
from refprune.errors import InputError
from refprune.experiments import report, sweep, sweep_file, sweep_report, sweep_tables
from refprune.output import files


def test_a_sweep_runs_restarts_and_reports(tmp_path):
    found = plan(tmp_path, TINY + "[grid]\nobjective.beta = [0.0, 1.0]\n")
    out = tmp_path / "out"
    outcomes = sweep.run_sweep(found, out, workers=2, say=quiet)
    assert [o.problem for o in outcomes] == [""] * 4
    page = sweep_tables.read_results(out)
    kept = {r["label"]: r["runs"]["pruned"]["sections"] for r in page["results"]}
    assert kept["beta 1.0"] == [0.0, 0.0]  # 1 nat a section removes all of them
    assert [r["seeds"] for r in page["results"]] == [[0, 1], [0, 1]]
    mean = sum(page["results"][0]["runs"]["pruned"]["test_accuracy"]) / 2
    assert f"{100 * mean:.2f} ± " in sweep_tables.text(out)
    first = (out / "sweep.json").read_bytes()

    untouched = out / "beta-0.0" / "seed-0" / "summary.json"
    stamp = untouched.stat().st_mtime_ns
    shutil.rmtree(out / "beta-1.0" / "seed-1")  # as if it had never begun
    (out / "beta-1.0" / "seed-0" / "summary.json").unlink()  # as if it had been stopped at its end: resumed
    sweep.run_sweep(found, out, workers=2, say=quiet)
    assert untouched.stat().st_mtime_ns == stamp

    def results(content):
        page = json.loads(content)
        for result in page["results"]:
            del result["runs"]["pruned"]["seconds"]
        return page

    assert results((out / "sweep.json").read_bytes()) == results(first)

    with pytest.raises(InputError, match="another configuration"):
        sweep.run_sweep(plan(tmp_path, TINY.replace("epochs = 2", "epochs = 3") + "[grid]\nobjective.beta = [0.0, 1.0]\n"), out)

    assert sweep_report.write_html(out) is not None
    html = (out / "report.html").read_text()
    assert html.count("<svg") == 5  # accuracy, removals, θ of two settings; one key differs: what it does is drawn too
    assert "beta 1.0" in html
    assert "<h2>Accuracy against size</h2>" in html
    assert sorted(p.name for p in out.glob("*.svg")) == ["accuracy.svg", "knob.svg", "removals.svg", "theta.svg"]


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
        assert "failed: bad, seed 0" in said.split("setting", 1)[1]
    assert "2 runs, 1 of them done" in said
    assert "mnist" in (tmp_path / "out" / "bad" / "seed-0.log").read_text()
    assert [r["seeds"] for r in sweep_tables.read_results(tmp_path / "out")["results"]] == [[], [0]]


def test_a_damaged_folder_of_a_run_stops_nothing(tmp_path):
    """A summary that is none is made again; a configuration that cannot be read fails that run alone, in its own words."""
    found = plan(tmp_path)
    assert all(outcome.summary for outcome in sweep.run_sweep(found, tmp_path / "out", say=quiet))
    first, second = (Path(job.directory) for job in sweep_file.jobs(found, tmp_path / "out"))
    (first / "summary.json").write_text("[]")
    (second / "config.toml").write_text("no = [toml")
    outcomes = sweep.run_sweep(found, tmp_path / "out", say=quiet)
    assert set(outcomes[0].summary["runs"]) == {"pruned"}
    assert re.match(r"exit code 2: refprune: .*config\.toml", outcomes[1].problem)


def test_a_failure_is_told_by_its_own_words(tmp_path, monkeypatch):
    """Not by the last line that an earlier attempt left in the log."""
    (job, _) = sweep_file.jobs(plan(tmp_path), tmp_path / "out")
    Path(job.directory).parent.mkdir(parents=True)
    Path(job.directory).with_name("seed-0.log").write_text("refprune: an error of last week\n")
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    assert sweep.execute(job).problem == "exit code 1: no message"


def test_a_dead_process_and_a_dead_executor_are_failures(tmp_path, monkeypatch):
    """Planted: a run that is killed, and an executor whose worker dies."""
    found = plan(tmp_path, TINY.replace("[0, 1]", "[0]"))
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    (outcome,) = sweep.run_sweep(found, tmp_path / "a", say=quiet)
    assert outcome.summary is None
    assert "exit code 1" in outcome.problem

    class Dying(concurrent.futures.Executor):
        def submit(self, function, *arguments):
            future = concurrent.futures.Future()
            future.set_exception(RuntimeError("the worker has gone"))
            return future

    (outcome,) = sweep.run_sweep(found, tmp_path / "b", executor=Dying(), say=quiet)
    assert outcome.problem == "RuntimeError: the worker has gone"


def test_a_process_that_ends_before_it_has_read_its_job(tmp_path, monkeypatch):
    class Slow(sweep.Children):
        def start(self, *arguments, **options):
            process = super().start(*arguments, **options)
            process.wait()
            return process

    (job, _) = sweep_file.jobs(plan(tmp_path), tmp_path / "out")
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    assert sweep.execute(job, Slow()).problem == "exit code 1: no message"


def test_an_executor_that_takes_no_more_jobs(tmp_path):
    class Full(concurrent.futures.Executor):
        def submit(self, function, *arguments):
            raise RuntimeError("closed")

    outcomes = sweep.run_sweep(plan(tmp_path), tmp_path / "out", executor=Full(), say=quiet)
    assert [outcome.problem for outcome in outcomes] == ["RuntimeError: closed"] * 2


def test_an_interrupt_leaves_no_job_waiting(tmp_path):
    """Ctrl-C after the first of three runs, on an executor of the caller's: the third never begins."""
    begun = []

    class Pool(concurrent.futures.ThreadPoolExecutor):
        def submit(self, function, job):
            begun.append(super().submit(function, job))
            return begun[-1]

    def say(text):
        if text.startswith("[1/3]"):
            raise KeyboardInterrupt

    with Pool(1) as pool, pytest.raises(KeyboardInterrupt):
        sweep.run_sweep(plan(tmp_path, TINY.replace("[0, 1]", "[0, 1, 2]")), tmp_path / "out", executor=pool, say=say)
    assert [future.cancelled() for future in begun][::2] == [False, True]
    assert not (tmp_path / "out" / "as-it-is" / "seed-2").exists()


KILLED = """
import pathlib, sys
from refprune.experiments import sweep, sweep_file
sweep.run_sweep(sweep_file.load_sweep(pathlib.Path(sys.argv[1])), pathlib.Path(sys.argv[2]))
"""


def test_a_killed_sweep_leaves_no_process_and_goes_on_to_the_same_bits(tmp_path):
    text = TINY.replace("[0, 1]", "[0]").replace("epochs = 2", "epochs = 40")
    plan(tmp_path, text)
    out, folder = tmp_path / "out", tmp_path / "out" / "as-it-is" / "seed-0"
    parent = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "tiny.toml"), str(out)], stdout=subprocess.DEVNULL)
    limit = time.monotonic() + 60
    while not (folder / "pruned" / "metrics.jsonl").exists() or not (folder / "pruned" / "metrics.jsonl").stat().st_size:
        assert time.monotonic() < limit
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    size = -1
    while size != (size := (folder / "pruned" / "metrics.jsonl").stat().st_size):  # until nobody writes any more
        assert time.monotonic() < limit
        time.sleep(1.0)
    assert not (folder / "summary.json").exists()
    (again,) = sweep.run_sweep(sweep_file.load_sweep(tmp_path / "tiny.toml"), out, say=quiet)
    (fresh,) = sweep.run_sweep(sweep_file.load_sweep(tmp_path / "tiny.toml"), tmp_path / "fresh", say=quiet)
    for name in ("test_loss", "objective", "training_macs"):
        assert again.summary["runs"]["pruned"][name] == fresh.summary["runs"]["pruned"][name]


def test_two_processes_never_write_one_run(tmp_path):
    found = plan(tmp_path, TINY.replace("[0, 1]", "[0]"))
    (outcome,) = sweep.run_sweep(found, tmp_path / "out", say=quiet)
    folder = tmp_path / "out" / "as-it-is" / "seed-0"
    (folder / "summary.json").unlink()
    with files.locked(folder / "config.toml"):
        (outcome,) = sweep.run_sweep(found, tmp_path / "out", say=quiet)
    assert "another process is at work here" in outcome.problem


@pytest.mark.parametrize("content", ["{}", '{"runs": {}}', '{"runs": 3}', '{"runs": {"pruned": {}}}', '{"runs": [1]}', "{"])
def test_a_damaged_summary_is_made_again(tmp_path, content):
    """From the checkpoint of the run, which has ended; the table is what it was."""
    found = plan(tmp_path, TINY.replace("[0, 1]", "[0]"))
    sweep.run_sweep(found, tmp_path / "out", say=quiet)
    before = sweep_tables.rows(sweep_tables.read_results(tmp_path / "out"))
    summary = tmp_path / "out" / "as-it-is" / "seed-0" / "summary.json"
    summary.write_text(content)
    (outcome,) = sweep.run_sweep(found, tmp_path / "out", say=quiet)
    assert outcome.summary == json.loads(summary.read_text())
    assert sweep_tables.rows(sweep_tables.read_results(tmp_path / "out")) == before


@pytest.mark.parametrize("content", ["[]", "{}", '{"results": 3}', '{"results": [{"runs": {"pruned": {}}}]}'])
def test_a_damaged_page_is_refused(tmp_path, content):
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(InputError, match=r"sweep\.json: (cannot be read|has no values of)"):
        sweep_tables.read_results(tmp_path)


def test_a_run_that_ended_while_it_made_its_folder_is_begun_again(tmp_path):
    folder = tmp_path / "out" / "as-it-is" / "seed-0"
    folder.mkdir(parents=True)
    (folder / "config.toml.123.part").write_text("name = ")
    (outcome,) = sweep.run_sweep(plan(tmp_path, TINY.replace("[0, 1]", "[0]")), tmp_path / "out", say=quiet)
    assert outcome.summary is not None


def test_shares_are_of_the_network_that_was_pruned(tmp_path):
    """The network that is left, trained from scratch, costs what it costs, not 100 % of itself."""
    text = TINY + 'from_scratch = true\ngates.protect = ["section1"]\nobjective.beta = 1.0\n'
    found = plan(tmp_path, text)
    outcomes = sweep.run_sweep(found, tmp_path / "out", workers=2, say=quiet)
    runs = sweep_tables.read_results(tmp_path / "out")["results"][0]["runs"]
    assert runs["from-scratch"]["macs_share"] == runs["pruned"]["macs_share"]
    assert runs["from-scratch"]["macs_share"][0] < 1.0
    assert runs["from-scratch"]["sections_at_start"] == [2.0, 2.0]
    summary = outcomes[0].summary
    left, whole = summary["runs"]["from-scratch"], summary["runs"]["pruned"]
    share = left["training_macs"] / whole["training_macs_unpruned"]
    assert runs["from-scratch"]["training_macs_share"][0] == pytest.approx(share, rel=1e-12)
    cells = {row[0]: row[1:] for row in report.rows(summary)}
    assert cells["sections kept"] == ("1 of 2", "1 of 2")
    assert cells["MACs per image"][0] == cells["MACs per image"][1]
    assert cells["MACs of training"][1].endswith(f"({share:.0%})")


def test_threads_are_set_before_the_process_begins(tmp_path, monkeypatch):
    spy = tmp_path / "python"
    spy.write_text("#!/bin/sh\nread job\necho $NUMBA_NUM_THREADS $OMP_NUM_THREADS $OPENBLAS_NUM_THREADS\nexit 3\n")
    spy.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(spy))
    (outcome, _) = sweep.run_sweep(plan(tmp_path), tmp_path / "out", threads=3, say=quiet)
    assert outcome.problem == "exit code 3: 3 3 3"


def test_any_executor_of_concurrent_futures_serves(tmp_path):
    found = plan(tmp_path, TINY.replace("[0, 1]", "[0]"))
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        (outcome,) = sweep.run_sweep(found, tmp_path / "out", executor=pool, say=quiet)
    assert outcome.summary is not None


def test_bad_numbers_on_the_command_line(tmp_path, capsys):
    assert cli.main(["sweep", "x.toml", "--jobs", "0"]) == 2
    assert "--jobs: must be at least 1" in capsys.readouterr().err
    assert cli.main(["sweep", str(tmp_path / "none.toml")]) == 2
