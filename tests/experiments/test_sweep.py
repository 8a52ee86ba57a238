"""Sweeps: the file, runs as processes, restart, failures, tables."""

import concurrent.futures
import copy
import json
import multiprocessing
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_sweeps import TINY, plan, quiet

from refprune.cli import main as cli
from refprune.errors import InputError
from refprune.experiments import report, sweep, sweep_file, sweep_pictures, sweep_report, sweep_results, sweep_tables
from refprune.output import files


def test_every_variant_meets_every_combination_of_the_grid(tmp_path):
    found = plan(
        tmp_path,
        TINY
        + """
        [grid]
        objective.beta = [0.001, 0.01]
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
    assert (last.seed, last.gates.estimator, last.objective.beta) == (1, "paired", 0.01)
    assert (last.gates.protect, last.training.epochs, last.network["sections"]) == (("section1",), 2, 2)
    jobs = sweep_file.jobs(found, tmp_path)
    assert [job.seed for job in jobs] == [0] * 8 + [1] * 8
    assert len({job.directory for job in jobs}) == 16


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "experiment must be"),
        ("experiment = 'quickstart'\nseeds = []", "seeds must be"),
        ("experiment = 'quickstart'\nseeds = [1, 1]", "seeds must be"),
        ("experiment = 'quickstart'\nseed = 3", "unknown key seed"),
        ("experiment = 'quickstart'\n[[variants]]\nname = 'a'\nseeds = [2, 2]", "a: seeds must be"),
        ("experiment = 'quickstart'\n[[variants]]\nname = 'a'\nseeds = [1.5]", "a: seeds must be"),
        ("experiment = 'quickstart'\n[[variants]]\nname = 'a'\ngroup = 3", "a: group must be a string, got 3"),
        ("experiment = 'nowhere'", "nowhere"),
        ("experiment = 'quickstart'\n[grid]\ngates.initial = 0.5", "grid.gates.initial must be a list"),
        ("experiment = 'quickstart'\n[grid]\ngates.initial = [0.5, 2.0]", "initial 2.0: .*must lie in"),
        ("experiment = 'quickstart'\n[[variants]]\ngates.initial = 0.5", "needs a name"),
        ("experiment = 'quickstart'\n[[variants]]\nname = 'a'\n[[variants]]\nname = 'a'", "no name of its own"),
        ("experiment = 'quickstart'\nset = 3", "set must be a table"),
        ("experiment = 'quickstart'\n[set]\ngates.nonsense = 3", "unknown key gates.nonsense"),
        ("experiment = ", "cannot be read"),
        ("experiment = 'quickstart'\nvariants = 3", "variants must be tables"),
        ("experiment = 'quickstart'\nvariants = []", "variants must be tables"),
        ("experiment = 'quickstart'\n[grid]\nseed = [0, 1]", "seed is set by seeds"),
        ("experiment = 'quickstart'\n[set]\nseed = 3", "seed is set by seeds"),
        ("experiment = 'quickstart'\n[grid]\ngates.initial = [0.1, 0.1]", "grid.gates.initial has a value twice"),
        ("experiment = 'quickstart'\n[grid]\nobjective.nu = [1, 1.0]", "grid.objective.nu has a value twice"),
        ("experiment = 'quickstart'\n[[variants]]\nname = 'sweep.json'", "no name of its own"),
        (f"experiment = 'quickstart'\n[[variants]]\nname = '{'x' * 201}'", "is too long for a folder's name"),
        ("experiment = 'quickstart'\n[[variants]]\nname = '..'", "no name of its own"),
        ("experiment = 'quickstart'\n[[variants]]\nname = 'a b'\n[[variants]]\nname = 'A-b'", "no name of its own"),
        (
            "experiment = 'quickstart'\n[grid]\ngates.initial = [0.5]\n[[variants]]\nname = 'p'\ngates.initial = 0.6",
            "gates.initial is set in more than one",
        ),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        plan(tmp_path, text)


def test_a_variant_may_have_its_own_seeds_and_group(tmp_path):
    """The first seed of every setting comes before the second of any."""
    variants = "[[variants]]\nname = 'a'\n[[variants]]\nname = 'b'\nseeds = [7]\ngroup = 'few'\ngates.estimator = 'paired'\n"
    found = plan(tmp_path, TINY + variants + "[grid]\nobjective.beta = [0.0, 1.0]\n")
    assert [(s.label, s.group, s.seeds) for s in found.settings] == [
        ("a, penalty 0.0", "a", (0, 1)),
        ("a, penalty 1.0", "a", (0, 1)),
        ("b, penalty 0.0", "few", (7,)),
        ("b, penalty 1.0", "few", (7,)),
    ]
    assert [c.seed for c in found.settings[2].configs] == [7]
    jobs = sweep_file.jobs(found, tmp_path)
    assert [(job.label[0], job.seed) for job in jobs] == [("a", 0), ("a", 0), ("b", 7), ("b", 7), ("a", 1), ("a", 1)]
    assert ["seed = 7" in job.configuration for job in jobs] == [False, False, True, True, False, False]


def test_a_sweep_runs_restarts_and_reports(tmp_path):
    found = plan(tmp_path, TINY + "[grid]\nobjective.beta = [0.0, 1.0]\n")
    out = tmp_path / "out"
    outcomes = sweep.run_sweep(found, out, workers=2, say=quiet)
    assert [o.problem for o in outcomes] == [""] * 4
    page = sweep_tables.read_results(out)
    kept = {r["label"]: r["runs"]["pruned"]["sections"] for r in page["results"]}
    assert kept["penalty 1.0"] == [0.0, 0.0]  # a penalty of 1 nat a section removes all of them
    assert [r["seeds"] for r in page["results"]] == [[0, 1], [0, 1]]
    mean = sum(page["results"][0]["runs"]["pruned"]["test_accuracy"]) / 2
    assert f"{100 * mean:.2f} ± " in sweep_tables.text(out)
    first = (out / "sweep.json").read_bytes()

    untouched = out / "penalty-0.0" / "seed-0" / "summary.json"
    stamp = untouched.stat().st_mtime_ns
    shutil.rmtree(out / "penalty-1.0" / "seed-1")  # as if it had never begun
    (out / "penalty-1.0" / "seed-0" / "summary.json").unlink()  # as if it had been stopped at its end: resumed
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
    assert html.count("<svg") == 4  # one key differs: what it does is drawn too
    assert "penalty 1.0" in html
    assert "<h2>Accuracy against size</h2><table>" in html
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
from refprune import sweep
sweep.run(sweep.load(pathlib.Path(sys.argv[1])), pathlib.Path(sys.argv[2]))
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
    (folder / "config.toml").touch()
    (folder / "environment.json.part").write_text("{")
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
    assert cells["training MACs"][1].endswith(f"({share:.0%})")


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


# Accuracy against size ---------------------------------------------------------------------------------------------------


def on_the_frontier(where):
    """Those to which no other point is preferred, each against each; of equal ones the first."""

    def beaten(i):
        cost, accuracy = where[i]
        return any(
            c <= cost and a >= accuracy and ((c, a) != (cost, accuracy) or j < i) for j, (c, a) in enumerate(where) if j != i
        )

    return {i for i in range(len(where)) if not beaten(i)}


def check_frontier(function):
    coordinates = st.integers(0, 5).map(float)  # few values: many ties

    @settings(max_examples=300, derandomize=True, database=None, deadline=None)
    @given(st.lists(st.tuples(coordinates, coordinates), max_size=12))
    def check(where):
        found = function(where)
        assert set(found) == on_the_frontier(where)
        assert [where[i][0] for i in found] == sorted(where[i][0] for i in found)

    check()


def test_the_frontier_is_what_nothing_is_preferred_to():
    check_frontier(sweep_tables.frontier)


def test_the_check_of_the_frontier_finds_mistakes():
    """Planted: equally accurate points at a higher price stay; ties in cost in the wrong order; accuracy not looked at."""

    def sweep_line(order, better):
        def wrong(where):
            best, found = -1.0, []
            for i in sorted(range(len(where)), key=lambda i: order(*where[i])):
                if better(where[i][1], best):
                    best = where[i][1]
                    found.append(i)
            return found

        return wrong

    wrong = (
        sweep_line(lambda c, a: (c, -a), lambda a, best: a >= best),
        sweep_line(lambda c, a: (c, a), lambda a, best: a > best),
        sweep_line(lambda c, a: (c, -a), lambda a, best: True),
    )
    for function in wrong:
        with pytest.raises(AssertionError):
            check_frontier(function)
    check_frontier(sweep_line(lambda c, a: (c, -a), lambda a, best: a > best))


def made(label, group, accuracies, macs, parameters, network="pruned"):
    """A setting's part of sweep.json; all networks start with 1,000 MACs and 500 parameters."""
    values = {key: [0.0] * len(macs) for key in sweep_results.QUANTITIES}
    values |= {"test_accuracy": accuracies, "macs_per_image": macs, "parameters": parameters}
    values |= {"macs_share": [m / 1000 for m in macs], "parameters_share": [p / 500 for p in parameters]}
    return {"label": label, "group": group, "set": {}, "seeds": list(range(len(macs))), "runs": {network: values}}


PAGE = {
    "name": "made",
    "experiment": "none",
    "failed": [],
    "results": [
        made("whole", "unpruned", [0.99, 0.97], [1000.0, 1000.0], [500.0, 500.0], "trained"),
        made("layers", "layers only", [0.95], [400.0], [100.0]),
        made("units 1", "units only", [0.96], [500.0], [90.0]),
        made("units 2", "units only", [0.94], [100.0], [200.0]),
    ],
}


def test_the_table_of_accuracy_against_size():
    head, *lines = sweep_tables.size_rows(PAGE)
    whole = "1000 ± 0 (100.0 ± 0.0 %)", "500 ± 0 (100.0 ± 0.0 %)"
    assert head[3:] == ("test accuracy, %", "MACs per image", "parameters", "on the frontier of")
    assert lines == [
        ("whole", "unpruned", "trained", "98.00 ± 1.41", *whole, "MACs per image, parameters"),
        ("layers", "layers only", "pruned", "95.00", "400 (40.0 %)", "100 (20.0 %)", "MACs per image"),
        ("units 1", "units only", "pruned", "96.00", "500 (50.0 %)", "90 (18.0 %)", "MACs per image, parameters"),
        ("units 2", "units only", "pruned", "94.00", "100 (10.0 %)", "200 (40.0 %)", "MACs per image"),
    ]


def test_the_picture_of_accuracy_against_size():
    """Its lines are the frontiers, its markers the means, its bars the standard deviations, its dots the runs."""
    left, right = sweep_pictures.accuracy_picture(PAGE).axes
    of_all = {"MACs": [(100, 94), (400, 95), (500, 96), (1000, 98)], "parameters": [(90, 96), (500, 98)]}
    of_units = {"MACs": [(100, 94), (500, 96)], "parameters": [(90, 96)]}
    for axes, cost in ((left, "MACs"), (right, "parameters")):
        steps = [line for line in axes.lines if line.get_drawstyle() == "steps-post"]
        drawn = [np.round(line.get_xydata(), 9).tolist() for line in steps]
        assert drawn[0] == [list(p) for p in of_all[cost]]
        assert drawn[3] == [list(p) for p in of_units[cost]]
        assert [c.get_label() for c in axes.containers] == ["unpruned, trained", "layers only, pruned", "units only, pruned"]
        marked = [c.lines[0].get_xydata().tolist() for c in axes.containers]
        assert np.round(marked[0], 9).tolist() == [[1000 if cost == "MACs" else 500, 98]]
        ((low, high),) = [bar.get_segments()[0][:, 1] for bar in axes.containers[0].lines[2][1:]]
        assert high - low == pytest.approx(2 * 2**0.5, rel=1e-12)
        (dashed,) = [line for line in axes.lines if line.get_label() == "best without pruning"]
        assert round(dashed.get_ydata()[0], 9) == 98
        (upper,) = axes.child_axes
        to_share = upper._functions[0]
        assert to_share(1000 if cost == "MACs" else 500) == 1.0
        assert axes.get_xscale() == "log"
    assert [len(line.get_xdata()) for line in left.lines if line.get_marker() == "."] == [2, 1, 1, 1]
    assert sum(len(s.get_texts()) for s in left.figure.legends) == 5


def test_networks_of_different_sizes_have_no_common_share():
    page = copy.deepcopy(PAGE)
    page["results"][1]["runs"]["pruned"]["macs_share"] = [0.8]
    left, right = sweep_pictures.accuracy_picture(page).axes
    assert (len(left.child_axes), len(right.child_axes)) == (0, 1)


def of_one_knob(values, key="objective.nu"):
    """Settings that differ in one key, with sections and without: two seeds each, larger values leave less."""
    results = []
    for value in values:
        result = made(f"{key} {value}", "", [0.9, 0.92], [1000 / (1 + value)] * 2, [500 / (1 + value), 500 / (1 + value)])
        result["runs"]["pruned"] |= {"sections": [3.0, 1.0], "sections_at_start": [4.0, 4.0]}
        result["runs"]["pruned"] |= {"units": [12.0, 8.0], "units_at_start": [40.0, 40.0]}
        results.append({**result, "set": {key: value, "unpruned": False}})
    return {**PAGE, "results": results}


def test_a_knob_is_the_one_key_that_differs():
    assert sweep_pictures.knob(of_one_knob([0.1, 1.0])) == "objective.nu"
    words = of_one_knob([0.1, 1.0])
    words["results"][0]["set"]["objective.nu"] = "much"
    for page in (of_one_knob([0.1]), words, of_one_knob([True, False]), PAGE):
        assert sweep_pictures.knob(page) is None
    two = of_one_knob([0.1, 1.0])
    two["results"][0]["set"]["training.epochs"] = 3
    assert sweep_pictures.knob(two) is None
    two["results"][1]["set"]["training.epochs"] = 4
    assert sweep_pictures.knob(two) is None


def test_the_picture_of_a_knob(tmp_path):
    """Lines through the means in the order of the values, bars of a standard deviation, a dot a run."""
    page = of_one_knob([3.0, 0.0, 1.0])
    accuracy, left = sweep_pictures.pictures(page, tmp_path)["knob"].axes
    drawn = {c.get_label(): np.round(c.lines[0].get_xydata(), 9).tolist() for c in (*accuracy.containers, *left.containers)}
    size = [[0.0, 100.0], [1.0, 50.0], [3.0, 25.0]]
    assert drawn == {
        "test accuracy": [[0.0, 91.0], [1.0, 91.0], [3.0, 91.0]],
        "MACs per image": size,
        "parameters": size,
        "sections": [[0.0, 50.0], [1.0, 50.0], [3.0, 50.0]],
        "units": [[0.0, 25.0], [1.0, 25.0], [3.0, 25.0]],
    }
    low, high = accuracy.containers[0].lines[2][0].get_segments()[0][:, 1]
    assert high - low == pytest.approx(2 * 2**0.5, rel=1e-12)
    assert [len(line.get_xdata()) for line in accuracy.lines if line.get_marker() == "."] == [2, 2, 2]
    assert (accuracy.get_xscale(), left.get_ylim()[0]) == ("linear", 0.0)
    assert sweep_pictures.knob_picture(of_one_knob([0.1, 1.0]), "objective.nu").axes[0].get_xscale() == "log"


def test_a_setting_without_gates_on_units_has_no_point_there():
    """As ρ = 1, which fixes them."""
    page = of_one_knob([0.5, 1.0], key="objective.balance")
    page["results"][1]["runs"]["pruned"] |= {"units": [0.0, 0.0], "units_at_start": [0.0, 0.0]}
    _, left = sweep_pictures.knob_picture(page, "objective.balance").axes
    points = {c.get_label(): c.lines[0].get_xdata().tolist() for c in left.containers}
    assert points == {"MACs per image": [0.5, 1.0], "parameters": [0.5, 1.0], "sections": [0.5, 1.0], "units": [0.5]}


def test_a_knob_without_sections_or_results(tmp_path):
    page = of_one_knob([0.1, 0.2])
    for result in page["results"]:
        result["runs"]["pruned"] |= {"sections_at_start": [0.0, 0.0], "units_at_start": [0.0, 0.0]}
    _, left = sweep_pictures.knob_picture(page, "objective.nu").axes
    assert [c.get_label() for c in left.containers] == ["MACs per image", "parameters"]
    page["results"][0] |= {"runs": {}, "seeds": []}  # failed
    _, left = sweep_pictures.pictures(page, tmp_path)["knob"].axes
    assert len(left.containers[0].lines[0].get_xdata()) == 1


def test_pictures_where_every_run_failed(tmp_path):
    empty = {**PAGE, "results": [{**PAGE["results"][0], "seeds": [], "runs": {}}]}
    assert len(sweep_tables.size_rows(empty)) == 1
    assert set(sweep_pictures.pictures(empty, tmp_path)) == {"accuracy"}


def test_networks_without_gates_have_no_pictures_of_pruning(tmp_path):
    page = of_one_knob([0.1, 0.2], key="optimiser.learning_rate")
    for result in page["results"]:
        result["runs"] = {"trained": result["runs"]["pruned"]}
    assert set(sweep_pictures.pictures(page, tmp_path)) == {"accuracy"}


def test_bad_numbers_on_the_command_line(tmp_path, capsys):
    assert cli.main(["sweep", "x.toml", "--jobs", "0"]) == 2
    assert "--jobs: must be at least 1" in capsys.readouterr().err
    assert cli.main(["sweep", str(tmp_path / "none.toml")]) == 2
