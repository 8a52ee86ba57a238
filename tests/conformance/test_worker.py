"""Adapters that hang late, fork, leave children, write into the pipe or never read: each is found, and verify ends."""

import json
import textwrap
import time

import pytest

from refprune.cli import main as cli
from refprune.conformance import campaign
from refprune.conformance.asking import worker as asking
from refprune.conformance.asking.calls import describe, load
from refprune.conformance.asking.worker import Worker
from refprune.conformance.levels import METHODS
from refprune.errors import InputError

ADAPTER = textwrap.dedent(
    """
    import os, sys, time
    import refprune

    CALLS = 0

    class Mine(refprune.Implementation):
        def __init__(self):
            {init}

        def beta(self, log_gamma, samples):
            global CALLS
            CALLS += 1
            {body}
            return -log_gamma / samples

        def penalty_slope(self, theta, log_gamma):
            return -log_gamma
    """
)
QUESTION = {"log_gamma": 1.0, "samples": 2}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(asking, "FIRST", 1.0)


def adapter(tmp_path, body="pass", init="pass"):
    (tmp_path / "mine.py").write_text(ADAPTER.format(body=body, init=init))
    return f"{tmp_path / 'mine.py'}:Mine"


def answers(worker, times=3):
    replies = [worker.call(METHODS["beta"], QUESTION, twice=False) for _ in range(times)]
    return [(r.kind, float(r.answer["beta"]) if r.answer else None) for r in replies]


# Hangs and deaths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [1, 7])
def test_a_hang_is_a_finding_though_the_next_process_answers(tmp_path, call, capsys):
    """The adapter sleeps from some call on; a new process begins to count again, and answers."""
    target = adapter(tmp_path, f"CALLS >= {call} and not os.path.exists({str(tmp_path / 'woken')!r}) and sleep()")
    with open(tmp_path / "mine.py", "a") as file:
        file.write(f"def sleep():\n    open({str(tmp_path / 'woken')!r}, 'w').close()\n    time.sleep(300)\n")
    report = tmp_path / "found.json"
    options = ["--examples", "40", "--time-limit", "1", "--json", str(report), "--failures", str(tmp_path / "f")]
    assert cli.main(["verify", target, *options]) == 1
    found = {m["method"]: m for m in json.loads(report.read_text())["methods"]}
    assert found["beta"]["verdict"] == "DEVIATES"
    (finding,) = found["beta"]["findings"]
    assert finding["kind"] == "hangs"
    assert "a new one answered" in finding["message"]
    assert found["penalty_slope"]["verdict"] == "conforms"
    assert f"beta: hangs: {finding['message']}" in capsys.readouterr().out


def test_every_method_that_hangs_is_named(tmp_path):
    """Asleep from the seventh call on in every process: the methods share a process, and each must answer for itself."""
    worker = Worker(adapter(tmp_path, "CALLS >= 7 and time.sleep(300)"), 1.0)
    try:
        beta, slope = campaign.run(worker, [METHODS["beta"], METHODS["penalty_slope"]], 40, 0)
    finally:
        worker.close()
    assert ([f.kind for f in beta.findings], slope.verdict) == (["hangs"], "conforms")
    assert 3 < beta.examples < 20  # nothing is asked behind it


def test_a_death_after_some_calls_is_a_finding(tmp_path):
    worker = Worker(adapter(tmp_path, "CALLS >= 7 and os._exit(9)"), 5.0)
    try:
        (beta,) = campaign.run(worker, [METHODS["beta"]], 40, 0)
    finally:
        worker.close()
    assert [(f.kind, f.message) for f in beta.findings] == [("dies", "the process ended with code 9")]


def test_an_adapter_that_cannot_be_begun_again_is_a_finding(tmp_path):
    """It loads once only: the report of the other methods must not be lost."""
    gone = tmp_path / "gone"
    once = f"assert not os.path.exists({str(gone)!r}); open({str(gone)!r}, 'w').close()"
    target = adapter(tmp_path, "os._exit(9)", init=once)
    worker = Worker(target, 5.0)
    try:
        beta, slope = campaign.run(worker, [METHODS["beta"], METHODS["penalty_slope"]], 8, 0)
    finally:
        worker.close()
    assert [o.verdict for o in (beta, slope)] == ["DEVIATES", "DEVIATES"]
    assert "a new one could not be begun" in slope.findings[0].message


def test_a_slow_first_call_is_no_hang(tmp_path, monkeypatch):
    """It may compile: the first call of a process has more time, the second has not."""
    monkeypatch.setattr(asking, "FIRST", 20.0)
    worker = Worker(adapter(tmp_path, "CALLS == 1 and time.sleep(1.5)"), 1.0)
    try:
        assert worker.call(METHODS["beta"], QUESTION, twice=False).restarted == ""
    finally:
        worker.close()


@pytest.mark.parametrize(
    ("where", "message"), [("import", "was not imported within 2 s"), ("init", "was not constructed within 1 s")]
)
def test_an_adapter_that_does_not_come_up_is_refused_in_time(tmp_path, monkeypatch, where, message):
    monkeypatch.setattr(asking, "STARTING", 2.0)
    target = adapter(tmp_path, init="time.sleep(300)" if where == "init" else "pass")
    if where == "import":
        (tmp_path / "mine.py").write_text("import time\ntime.sleep(300)\n")
    started = time.monotonic()
    with pytest.raises(InputError, match=message):
        Worker(target, 1.0)
    assert time.monotonic() - started < 30.0


# Processes of its own -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        "os.fork()",  # both return
        "if os.fork() == 0: os.setsid(); os.fork(); time.sleep(300)",  # a daemon that keeps the pipe
        "if os.fork() == 0: raise SystemExit(3)",
    ],
)
def test_forks_do_not_answer_and_keep_nobody(tmp_path, body):
    started = time.monotonic()
    worker = Worker(adapter(tmp_path, body), 10.0)
    try:
        assert answers(worker) == [("answer", -0.5)] * 3
    finally:
        worker.close()
    assert time.monotonic() - started < 60.0


def test_a_fork_in_the_constructor_does_not_answer(tmp_path):
    worker = Worker(adapter(tmp_path, init="os.fork()"), 10.0)
    try:
        assert answers(worker) == [("answer", -0.5)] * 3
    finally:
        worker.close()


def test_a_death_that_leaves_a_child_with_the_pipe_is_seen_at_once(tmp_path):
    """The pipe is not at its end while the child lives; the process is what counts."""
    worker = Worker(adapter(tmp_path, "if os.fork(): os._exit(4)\n        os.setsid(); time.sleep(20)"), 15.0)
    started = time.monotonic()
    try:
        reply = worker.call(METHODS["beta"], QUESTION, twice=False)
    finally:
        worker.close()
    assert (reply.kind, reply.message) == ("dies", "the process ended with code 4")
    assert time.monotonic() - started < 10.0


def test_what_is_written_into_the_pipe_is_no_answer(tmp_path):
    """Bytes between the replies: the process is ended, and the finding says so; nothing is taken for an answer."""
    body = "[os.write(n, b'\\\\xff' * 64) for n in range(3, 20) if os.path.exists(f'/proc/self/fd/{n}') and pipe(n)]"
    target = adapter(tmp_path, body.replace("\\\\", "\\"))
    with open(tmp_path / "mine.py", "a") as file:
        file.write(
            "def pipe(n):\n    link = os.readlink(f'/proc/self/fd/{n}')\n    return 'pipe' in link and os.get_blocking(n)\n"
        )
    worker = Worker(target, 2.0)
    try:
        (beta,) = campaign.run(worker, [METHODS["beta"]], 5, 0)
    finally:
        worker.close()
    assert beta.verdict == "DEVIATES"
    assert {f.kind for f in beta.findings} & {"dies", "hangs", "raises"}


# What nobody asks for -------------------------------------------------------------------------------------------------------

MISSPELT = """
import refprune

class Mine(refprune.Implementation):
    def conv_2d(self, **arguments): raise SystemError("wrong")
    def Penalty(self, theta): return 0.0
    def helper(self): return 1
    def _own(self): return 1
    def gate(self, x, g, dy, gradient=None, **more): return x * g, dy * g
    def penalty_slope(self, theta, log_gamma): return -log_gamma
"""


def test_what_nobody_calls_or_gives_is_named(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(MISSPELT)
    report = tmp_path / "found.json"
    target = f"{tmp_path / 'mine.py'}:Mine"
    cli.main(["verify", target, "--level", "penalty_slope", "--examples", "5", "--json", str(report)])
    strangers = [
        "conv_2d is none of the methods; did you mean conv2d?",
        "Penalty is none of the methods; did you mean penalty?",
        "helper is none of the methods",
        "gate: gradient is never given",
    ]
    assert json.loads(report.read_text())["never_asked_for"] == strangers
    assert f"never asked for, and therefore not judged: {'; '.join(strangers)}" in capsys.readouterr().out


def test_what_the_documented_class_has_is_no_stranger():
    for name in ("BackendImplementation", "NumbaImplementation"):
        assert describe(load(f"refprune.conformance.vectors.backend:{name}")).strangers == ()
    assert describe(load("refprune.adapters.pytorch.implementation:TorchImplementation")).strangers == ()
