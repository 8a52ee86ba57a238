"""Sweeps on a Dask cluster on loopback: the same results, dead workers, what is checked before the first run."""

import os
import secrets
import signal
import socket
import threading
import time

import pytest
from small_sweeps import TINY, plan, quiet

from refprune.cli import main as cli
from refprune.data import sets
from refprune.errors import InputError
from refprune.experiments import cluster, environment, sweep, sweep_file

distributed = pytest.importorskip("distributed", reason="needs Dask's distributed: pip install -e '.[cluster]'")

LONG = TINY.replace("[0, 1]", "[0]").replace("epochs = 2", "epochs = 100")
SECONDS = 120


def local_cluster(workers):
    options = {"threads_per_worker": 1, "processes": True, "dashboard_address": "127.0.0.1:0", "silence_logs": 50}
    return distributed.LocalCluster(n_workers=workers, **options)


@pytest.fixture(scope="module")
def machines():
    """A scheduler here and two worker processes of one thread each, which Dask starts again when they die."""
    with local_cluster(2) as machines:
        yield machines


def address(machines):
    return machines.scheduler_address


def bits(outcome):
    return {key: outcome.summary["runs"]["pruned"][key] for key in ("test_loss", "objective", "training_macs")}


def pids(machines):
    """Address → process of every worker."""
    with distributed.Client(machines, set_as_default=False) as client:
        return client.run(os.getpid)


def at_work(machines):
    """The addresses of the workers that have runs."""
    return [w.address for w in machines.scheduler.workers.values() if w.processing]


def until(condition):
    limit = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


def begun(folder):
    metrics = folder / "pruned" / "metrics.jsonl"
    return metrics.exists() and metrics.stat().st_size > 0


def in_background(function, *arguments, **options):
    """(thread, list that will hold the result)."""
    result = []
    thread = threading.Thread(target=lambda: result.append(function(*arguments, **options)))
    thread.start()
    return thread, result


def run(machines, found, out):
    with cluster.executor(address(machines), found, out, say=quiet) as executor:
        return sweep.run_sweep(found, out, executor=executor, say=quiet)


def test_the_command_line_on_two_workers(machines, tmp_path, capsys):
    """Same results as without a cluster; a second call finds everything done; no token is left."""
    path, out = tmp_path / "tiny.toml", tmp_path / "out"
    (here,) = sweep.run_sweep(plan(tmp_path, TINY.replace("[0, 1]", "[0]")), tmp_path / "here", say=quiet)
    plan(tmp_path)
    arguments = ["sweep", str(path), "--out", str(out), "--scheduler", address(machines)]
    assert cli.main(arguments) == 0
    said = capsys.readouterr().out
    assert f"{address(machines)}: 2 workers, 2 runs at a time" in said
    assert cli.main(arguments) == 0
    assert "2 runs, 2 of them done" in capsys.readouterr().out
    there = sweep.run_sweep(plan(tmp_path), out, say=quiet)
    assert bits(there[0]) == bits(here)
    assert list(out.glob("*.token")) == []


def test_the_run_of_a_killed_worker_is_repeated(machines, tmp_path):
    found, out = plan(tmp_path, LONG), tmp_path / "out"
    folder = out / "as-it-is" / "seed-0"
    before = pids(machines)
    thread, result = in_background(run, machines, found, out)
    until(lambda: begun(folder))
    (victim,) = at_work(machines)
    os.kill(before[victim], signal.SIGKILL)
    thread.join(SECONDS)
    ((outcome,),) = result
    assert outcome.problem == ""
    log = (folder.parent / "seed-0.log").read_text()
    assert log.count("run directory:") == 2
    (fresh,) = sweep.run_sweep(found, tmp_path / "fresh", say=quiet)
    assert bits(outcome) == bits(fresh)


def test_a_worker_that_dies_too_often_is_a_failed_run(machines, tmp_path, monkeypatch):
    """Here once is too often. The other run is none the worse."""
    monkeypatch.setattr(machines.scheduler, "allowed_failures", 0)
    variants = "".join(f"[[variants]]\nname = '{n}'\ntraining.epochs = {e}\n" for n, e in (("endless", 100000), ("short", 2)))
    found, out = plan(tmp_path, TINY.replace("[0, 1]", "[0]").replace("training.epochs = 2\n", "") + variants), tmp_path / "out"
    machines.wait_for_workers(2)
    before = pids(machines)
    thread, result = in_background(run, machines, found, out)
    until(lambda: begun(out / "endless" / "seed-0") and (out / "short" / "seed-0" / "summary.json").exists())
    until(lambda: len(at_work(machines)) == 1)
    os.kill(before[at_work(machines)[0]], signal.SIGKILL)
    thread.join(SECONDS)
    (outcomes,) = result
    assert [outcome.problem[:13] for outcome in outcomes] == ["KilledWorker:", ""]


def test_an_interrupt_ends_the_runs_on_the_workers(machines, tmp_path):
    found, out = plan(tmp_path, LONG.replace("epochs = 100", "epochs = 4000")), tmp_path / "out"
    folder = out / "as-it-is" / "seed-0"

    def interrupted():
        with cluster.executor(address(machines), found, out, say=quiet) as executor:
            executor.submit(sweep.execute, *sweep_file.jobs(found, out))
            until(lambda: begun(folder))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    cluster.wait_until_free(folder / "config.toml", SECONDS)
    size = (folder / "pruned" / "metrics.jsonl").stat().st_size
    time.sleep(1.0)
    assert (folder / "pruned" / "metrics.jsonl").stat().st_size == size
    assert not (folder / "summary.json").exists()


def test_a_scheduler_that_goes_away(tmp_path):
    """What was not done is reported as failed, and the command comes back."""
    found, out = plan(tmp_path, LONG.replace("epochs = 100", "epochs = 4000")), tmp_path / "out"
    with local_cluster(1) as machines:
        thread, result = in_background(run, machines, found, out)
        until(lambda: begun(out / "as-it-is" / "seed-0"))
    thread.join(SECONDS)
    ((outcome,),) = result
    assert outcome.summary is None
    assert "CancelledError" in outcome.problem


# What is checked ---------------------------------------------------------------------------------------------------------


def test_nobody_answers(tmp_path, capsys):
    plan(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for wrong in (f"tcp://127.0.0.1:{port}", "local", "nonsense://x:1"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cluster, "CONNECT", 1.0)
            assert cli.main(["sweep", str(tmp_path / "tiny.toml"), "--out", str(tmp_path / "out"), "--scheduler", wrong]) == 2
        assert f"--scheduler {wrong}: no Dask scheduler answers there" in capsys.readouterr().err


def test_a_scheduler_without_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT", 2.0)
    with (
        local_cluster(0) as empty,
        pytest.raises(InputError, match="has no workers; start some with `dask worker tcp://"),
    ):
        run(empty, plan(tmp_path), tmp_path / "out")


def test_jobs_belong_to_the_cluster(tmp_path, capsys):
    assert cli.main(["sweep", str(tmp_path / "tiny.toml"), "--scheduler", "tcp://localhost:1", "--jobs", "2"]) == 2
    assert "--jobs: with --scheduler" in capsys.readouterr().err


def test_missing_data_name_the_worker(machines, tmp_path):
    found = plan(tmp_path, TINY.replace("[set]", "[set]\ndata.name = 'mnist'"))
    with (
        pytest.raises(InputError, match=r"the worker tcp://.* cannot read the data: .*train-images"),
        cluster.executor(address(machines), found, tmp_path / "out", data_directory=str(tmp_path), say=quiet),
    ):
        pytest.fail("no run may begin")
    assert list((tmp_path / "out").glob("*.token")) == []


def test_a_folder_that_a_worker_does_not_see(machines, tmp_path, monkeypatch):
    """Planted: a token that only this process knows, as if the folder were on another disk."""
    monkeypatch.setattr(cluster.Path, "touch", lambda self: None)
    with pytest.raises(InputError, match=r"the worker tcp://.* does not see the sweep's folder .*out; it must be shared"):
        run(machines, plan(tmp_path), tmp_path / "out")


def test_a_worker_that_joins_later_is_checked_before_its_run(machines, tmp_path):
    """The token has gone: the run fails with the reason, and has no folder."""
    found, out = plan(tmp_path), tmp_path / "out"
    with cluster.executor(address(machines), found, out, say=quiet) as executor:
        (token,) = out.glob("*.token")
        token.unlink()
        outcomes = sweep.run_sweep(found, out, executor=executor, say=quiet)
    assert all("does not see the sweep's folder" in outcome.problem for outcome in outcomes)
    assert not (out / "as-it-is").exists()


def answers(**changes):
    good = {"code": environment.code_digest(), "data": {"mnist": "1"}, "problem": ""}
    return {"tcp://a:1": good, "tcp://b:2": good | changes}


def test_the_answers_of_the_workers():
    cluster.check_workers("tcp://s:1", answers())
    for changes, message in (
        ({"code": "other"}, r"tcp://b:2 runs other source files of refprune"),
        ({"data": {"mnist": "2"}}, r"tcp://b:2 has other data than tcp://a:1 under the name mnist"),
        ({"problem": "is ill"}, r"the worker tcp://b:2 is ill"),
    ):
        with pytest.raises(InputError, match=message):
            cluster.check_workers("tcp://s:1", answers(**changes))
    with pytest.raises(InputError, match=r"tcp://c:3 failed the check \(OSError: gone\)"):
        cluster.check_workers("tcp://s:1", {"tcp://c:3": OSError("gone")})


def test_what_a_worker_answers(tmp_path):
    token = tmp_path / "token"
    assert cluster.probe(str(token), ["synthetic-digits"], None)["problem"].startswith("does not see the sweep's folder")
    token.touch()
    answer = cluster.probe(str(token), ["synthetic-digits"], None)
    digest = environment.describe(sets.load("synthetic-digits"))["data_sha256"]
    assert answer == {"code": environment.code_digest(), "data": {"synthetic-digits": digest}, "problem": ""}


def versions(machines):
    with distributed.Client(machines, set_as_default=False) as client:
        return client.get_versions(packages=["refprune"])


def test_versions_that_differ(machines):
    found = versions(machines)
    cluster.check_versions("tcp://s:1", found)
    worker = next(iter(found["workers"]))
    changes = (
        ("scheduler", found["scheduler"], "distributed", "1.0", "the scheduler has distributed 1.0, here it is "),
        ("worker", found["workers"][worker], "refprune", None, f"the worker {worker} has refprune None, here it is "),
        ("python", found["workers"][worker], "python", "3.1.4.final.0", f"the worker {worker} has python 3.1, here it is 3"),
    )
    for _, side, package, version, message in changes:
        before = side["packages"][package]
        side["packages"][package] = version
        with pytest.raises(InputError, match=message):
            cluster.check_versions("tcp://s:1", found)
        side["packages"][package] = before
    python = found["scheduler"]["packages"]["python"].split(".")
    found["scheduler"]["packages"]["python"] = ".".join([*python[:2], "99", *python[3:]])
    cluster.check_versions("tcp://s:1", found)  # another patch release is none of another language


def test_without_distributed(tmp_path, monkeypatch, capsys):
    plan(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    assert cli.main(["sweep", str(tmp_path / "tiny.toml"), "--scheduler", "tcp://localhost:1"]) == 2
    assert "pip install -e '.[cluster]'" in capsys.readouterr().err


# In a worker -------------------------------------------------------------------------------------------------------------


def test_a_worker_waits_for_the_process_of_a_dead_one(tmp_path):
    path = tmp_path / "config.toml"
    path.touch()
    started = time.monotonic()
    with cluster.locked(path):
        cluster.wait_until_free(path, 0.5)
        assert time.monotonic() - started >= 0.5
    cluster.wait_until_free(path, SECONDS)
    assert time.monotonic() - started < SECONDS
    cluster.wait_until_free(tmp_path / "none", SECONDS)
    assert time.monotonic() - started < SECONDS


def test_after_the_end_nothing_begins(tmp_path):
    token = tmp_path / f"cluster-{secrets.token_hex(4)}.token"
    token.touch()
    (job, _) = sweep_file.jobs(plan(tmp_path), tmp_path / "out")
    cluster.end(str(token))
    with pytest.raises(InputError, match="the sweep was stopped"):
        cluster.at_worker(str(token), sweep.execute, job)
