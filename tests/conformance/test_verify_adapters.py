"""`refprune verify` and adapters as people write them: odd results, bad manners, files that do not load, and options."""

import functools
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import refprune
from refprune.cli import main as cli
from refprune.conformance import campaign, page, reporting
from refprune.conformance.asking import scripts
from refprune.conformance.asking.calls import InProcess, describe, load
from refprune.conformance.asking.worker import Worker
from refprune.conformance.judging.traced import Traced, expectation
from refprune.conformance.judging.verdicts import judge
from refprune.conformance.levels import METHODS
from refprune.conformance.testing import conformance
from refprune.errors import InputError
from refprune.rounding.tolerance import UNIT


@pytest.fixture(autouse=True)
def _little_shrinking(monkeypatch):
    monkeypatch.setattr(campaign, "SHRINKING", 1.0)


def right(x, g, dy):
    full = np.reshape(g, (1, -1, *[1] * (x.ndim - 2))) if g.ndim else g
    return x * full, dy * full, np.asarray((x * dy).sum(axis=(0, *range(2, x.ndim)) if g.ndim else None))


def judged(function, examples=15):
    """The outcome of an implementation that has this gate(x, g, dy) and nothing else."""
    mine = type("Mine", (refprune.Implementation,), {"gate": lambda self, x, g, dy: function(x, g, dy)})
    (outcome,) = campaign.run(InProcess(mine()), [METHODS["gate"]], examples, 0)
    return outcome


# Odd results that are right ---------------------------------------------------------------------------------------------


def _torch_with_gradients(x, g, dy):
    torch = pytest.importorskip("torch")
    return tuple(torch.tensor(a, requires_grad=True) for a in right(x, g, dy))


def _views_of_its_inputs(x, g, dy):
    return x * 0.0 + right(x, g, dy)[0], right(x, g, dy)[1][::1], right(x, g, dy)[2]


ODD = {
    "lists of Python floats": lambda x, g, dy: [a.tolist() for a in right(x, g, dy)],
    "Fortran order": lambda x, g, dy: tuple(np.array(a, order="F") for a in right(x, g, dy)),
    "another byte order": lambda x, g, dy: tuple(a.astype(a.dtype.newbyteorder("S")) for a in right(x, g, dy)),
    "read-only": lambda x, g, dy: tuple(np.broadcast_to(a, a.shape) for a in right(x, g, dy)),
    "0-d arrays as numbers": lambda x, g, dy: (*right(x, g, dy)[:2], right(x, g, dy)[2].tolist()),
    "a dict": lambda x, g, dy: dict(zip(("y", "dx", "dg"), right(x, g, dy), strict=True)),
    "PyTorch tensors with gradients": _torch_with_gradients,
    "views": _views_of_its_inputs,
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_results_that_are_right_conform(kind):
    outcome = judged(ODD[kind])
    assert outcome.verdict == "conforms", outcome.findings
    assert outcome.withheld == []


def test_views_of_the_arguments_are_no_change_of_them():
    mine = type(
        "Mine", (refprune.Implementation,), {"flatten": lambda self, x, dy: (x.reshape(len(x), -1), dy.reshape(x.shape))}
    )
    (outcome,) = campaign.run(InProcess(mine()), [METHODS["flatten"]], 15, 0)
    assert outcome.verdict == "conforms", outcome.findings


# Results that are not what is documented --------------------------------------------------------------------------------


class _Other:
    pass


RESULTS = {
    "objects": (lambda x, g, dy: (x.astype(object), dy, g), "returned y of dtype object"),
    "objects of its own": (lambda x, g, dy: (_Other(), dy, g), "returned y of dtype object"),
    "text": (lambda x, g, dy: (x, dy, "a"), "returned dg of dtype <U1"),
    "complex numbers": (lambda x, g, dy: (x, dy, 1j), "returned dg of dtype complex128"),
    "nothing": (lambda x, g, dy: None, "returned NoneType, documented are 3 results: y, dx, dg"),
    "one array": (lambda x, g, dy: x, "returned ndarray, documented are 3 results"),
    "ragged lists": (lambda x, g, dy: ([[1.0], [1.0, 2.0]], dy, g), "inhomogeneous"),
    "a generator": (lambda x, g, dy: (a for a in right(x, g, dy)), "returned generator"),
}


@pytest.mark.parametrize("kind", RESULTS)
def test_results_that_are_not_documented_are_a_finding(kind):
    function, message = RESULTS[kind]
    outcome = judged(function)
    assert [f.kind for f in outcome.findings] == ["results"]
    assert message in outcome.findings[0].message


OTHERS = {
    "no result at all": (lambda x, g, dy: (None, None, None), "names"),
    "an empty dict": (lambda x, g, dy: {}, "names"),
    "a name of its own": (lambda x, g, dy: {"y": right(x, g, dy)[0], "gradient": x}, "names"),
    "sys.exit": (lambda x, g, dy: sys.exit(3), "raises"),
    "endless recursion": (lambda x, g, dy: OTHERS["endless recursion"][0](x, g, dy), "raises"),
    "another signature": (lambda x, g: x, "raises"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_results_have_their_finding(kind):
    function, found = OTHERS[kind]
    assert [f.kind for f in judged(function).findings] == [found]


def test_results_that_are_never_given_are_named_in_every_report():
    outcome = judged(lambda x, g, dy: (right(x, g, dy)[0], None, None))
    assert (outcome.verdict, outcome.withheld) == ("conforms", ["dg", "dx"])
    described = describe(refprune.Implementation())
    line = "not given, and therefore not judged: gate: dg, dx"
    assert line in reporting.text([outcome], described)
    assert line in page.page([outcome], described, "mine")
    (method,) = reporting.as_json([outcome], described, "mine", 0)["methods"]
    assert method["withheld"] == ["dg", "dx"]


NASTY = 'bad \x1b[31m """ \\x \x00 \x9b <tag> {brace} \ud800'


def test_what_is_raised_harms_no_report_and_no_script():
    def raising(x, g, dy):
        raise RuntimeError(NASTY)

    outcome = judged(raising)
    assert outcome.findings[0].kind == "raises"
    described = describe(refprune.Implementation())
    assert "\x1b" not in reporting.text([outcome], described)
    page.page([outcome], described, "mine").encode()
    (failure,) = ElementTree.fromstring(reporting.junit([outcome], "mine")).iter("failure")
    assert "\\x1b[31m" in failure.text
    json.loads(json.dumps(reporting.as_json([outcome], described, "mine", 0), allow_nan=False))
    compile(scripts.script(outcome.findings[0], "C:\\new\\x.py:Mine", "float64"), "script.py", "exec")


# Branches ---------------------------------------------------------------------------------------------------------------


def _pooled(backend, branches):
    x = np.array([[[[1.0, 1.0 + 1e-9, 0.5, 0.25]]]])
    given = {"branch": branches["branches/pool"]} if branches else {}
    options = {"kernel": (1, 4), "stride": (1, 1), "padding": ((0, 0), (0, 0)), "ties": "first"}
    y, saved = backend.max_pool(x, **options, **given)
    branch = saved.branch if given == {} else given["branch"]
    return Traced({"y": y}, {"branches/pool": branch}, {"branches/pool": (x, options)}, {"y": np.abs(y)})


@pytest.mark.parametrize(
    ("choice", "verdict"), [(0, "kink"), (1, "conforms"), (2, "deviates"), (99, "deviates"), (-1, "deviates")]
)
def test_only_what_lies_within_rounding_of_the_maximum_may_be_chosen(monkeypatch, choice, verdict):
    """Two of four values are equal within float32; choosing a third one is wrong, although its output goes with it."""
    x = np.array([1.0, 1.0 + 1e-9, 0.5, 0.25])
    monkeypatch.setattr("refprune.conformance.judging.traced.noise_tolerance", _one_ulp)
    expected = expectation(_pooled, UNIT["float32"])
    assert expected.ambiguous == 1
    y = x[choice] if 0 <= choice < 4 else 7.0
    answer = {"branches/pool": np.full((1, 1, 1, 1), choice), "y": np.full((1, 1, 1, 1), y)}
    assert judge(expected, answer, UNIT["float32"]).kind == verdict


def _one_ulp(perturbed, exact, *, unit):
    return {name: 2.0 * unit * np.abs(a) for name, a in exact.items()}


# What an adapter declares -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"precision": "float16"}, "precision: 'float16' is not known"),
        ({"estimator": "gumbel"}, "estimator: 'gumbel' is not known; allowed are 'exact'"),
        ({"conventions": {"atzero": (0.0,)}}, "conventions: 'atzero' is not known"),
        ({"conventions": {"at_zero": (0.25,)}}, "conventions: at_zero: 0.25 is not known; allowed are 0.0, 0.5, 1.0"),
        ({"conventions": {"at_zero": ()}}, "a tuple of values out of"),
        ({"conventions": {"ties": "first"}}, "a tuple of values out of"),
        ({"conventions": "pytorch"}, "conventions: got 'pytorch'"),
    ],
)
def test_declarations_that_are_not_known_are_refused(declared, message):
    with pytest.raises(InputError, match=message):
        describe(type("Mine", (refprune.Implementation,), declared)())


def test_conventions_that_are_not_named_are_pytorchs():
    described = describe(type("Mine", (refprune.Implementation,), {"conventions": {"at_zero": [0.5]}})())
    assert described.conventions == {**refprune.adapters.implementation.PYTORCH, "at_zero": (0.5,)}


def test_methods_given_to_an_instance_count():
    mine = refprune.Implementation()
    mine.gate = right
    assert describe(mine).provided == ("gate",)


def test_a_suite_that_would_judge_nothing_is_refused():
    with pytest.raises(InputError, match="Implementation: provides no method"):
        conformance(refprune.Implementation)
    with pytest.raises(InputError, match="provides no method of network"):
        conformance(type("Mine", (refprune.Implementation,), {"beta": lambda *a: 0.0}), levels=("network",))


# Loading ----------------------------------------------------------------------------------------------------------------

ADAPTER = textwrap.dedent(
    """
    import os, subprocess, sys, threading, time
    import refprune

    class Mine(refprune.Implementation):
        def beta(self, log_gamma, samples):
            {body}
            return -log_gamma / samples
    """
)


def loaded(target):
    worker = Worker(target, limit=20.0)
    worker.close()
    return worker.description


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("syntax.py", "class Mine(:\n", r"syntax.py:Mine raised .*SyntaxError"),
        ("imports.py", "import nowhere_at_all\n", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("other.py", "class Mine: pass\n", "is a Mine, not a refprune.Implementation"),
        ("function.py", "def Mine(): pass\n", "is a function, not a refprune.Implementation"),
        ("missing.py", "", "has no Mine"),
        ("exits.py", "import sys; sys.exit(4)\n", "raised SystemExit: 4"),
        ("dies.py", "import os; os._exit(5)\n", "ended the process with code 5 while it was loaded"),
        (
            "init.py",
            "import refprune\nclass Mine(refprune.Implementation):\n    def __init__(self): raise RuntimeError('no device')\n",
            "raised RuntimeError: no device",
        ),
        (
            "needs.py",
            "import refprune\nclass Mine(refprune.Implementation):\n    def __init__(self, device): pass\n",
            "missing 1 required positional argument: 'device'",
        ),
    ],
)
def test_what_does_not_load_is_refused_in_words(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=f"(?s)adapter: .*{message}"):
        loaded(f"{tmp_path / name}:Mine")


def test_files_called_like_modules_of_python_do_no_harm(tmp_path, monkeypatch):
    """The adapter itself may be called so, and so may files beside it, which the worker must not import in their place."""
    monkeypatch.chdir(tmp_path)
    for name in ("random.py", "queue.py", "numpy.py"):
        (tmp_path / name).write_text(ADAPTER.format(body="pass"))
    assert loaded("random.py:Mine").provided == ("beta",)
    (tmp_path / "mine.py").write_text(ADAPTER.format(body="pass"))
    assert loaded("mine:Mine").provided == ("beta",)


def test_modules_of_the_current_folder_and_beside_the_file_are_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "helper.py").write_text("RATE = -1.0\n")
    adapter = ADAPTER.format(body="pass")
    (tmp_path / "package" / "beside.py").write_text("from helper import RATE\n" + adapter)
    (tmp_path / "package" / "inside.py").write_text("from .helper import RATE\n" + adapter)
    assert loaded("package/beside.py:Mine").provided == ("beta",)
    assert loaded("package.inside:Mine").provided == ("beta",)


def test_a_file_may_be_loaded_twice(tmp_path):
    (tmp_path / "mine.py").write_text(ADAPTER.format(body="pass"))
    first, second = (load(f"{tmp_path / 'mine.py'}:Mine") for _ in range(2))
    assert type(first) is not type(second)


# Its process ------------------------------------------------------------------------------------------------------------


def test_what_an_adapter_starts_ends_with_it(tmp_path):
    (tmp_path / "mine.py").write_text(
        ADAPTER.format(
            body="print(subprocess.Popen(['sleep', '300']).pid); threading.Thread(target=time.sleep, args=(300,)).start()"
        )
    )
    worker = Worker(f"{tmp_path / 'mine.py'}:Mine", limit=20.0)
    reply = worker.call(METHODS["beta"], {"log_gamma": 1.0, "samples": 2}, twice=False)
    assert reply.kind == "answer"
    child = int(reply.printed)
    os.kill(child, 0)
    started = time.monotonic()
    worker.close()
    assert time.monotonic() - started < 20.0
    for _ in range(100):  # the orphan is reaped by whoever adopts it
        if not _is_running(child):
            break
        time.sleep(0.05)
    assert not _is_running(child)


def _is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def test_what_cannot_be_read_is_no_hang(tmp_path):
    """An answer whose class the caller does not know is refused where it was made."""
    (tmp_path / "mine.py").write_text("class Other: pass\n" + ADAPTER.format(body="return Other()"))
    worker = Worker(f"{tmp_path / 'mine.py'}:Mine", limit=20.0)
    reply = worker.call(METHODS["beta"], {"log_gamma": 1.0, "samples": 2}, twice=False)
    worker.close()
    assert (reply.kind, reply.message) == ("results", "returned beta of dtype object; real numbers are documented")


@pytest.mark.parametrize("body", ["sys.stdout = None", "sys.stdout.close()"])
def test_an_adapter_may_lose_its_standard_output(tmp_path, body):
    (tmp_path / "mine.py").write_text(ADAPTER.format(body=body))
    worker = Worker(f"{tmp_path / 'mine.py'}:Mine", limit=20.0)
    replies = [worker.call(METHODS["beta"], {"log_gamma": 1.0, "samples": 2}, twice=False) for _ in range(2)]
    worker.close()
    assert [(r.kind, float(r.answer["beta"])) for r in replies] == [("answer", -0.5)] * 2


# The user's side --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(ADAPTER.format(body="pass"))
    return tmp_path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--examples", "0"], "--examples: must be at least 1"),
        (["--time-limit", "-1"], "--time-limit: must be a positive number"),
        (["--time-limit", "0"], "--time-limit: must be a positive number"),
        (["--level", "beta,gates"], "'gates' is not known"),
        (["--json", "nowhere/r.json"], "the folder nowhere does not exist"),
        (["--report", "."], "is a folder"),
        (["--json", "r", "--junit", "r"], "are the same file"),
        (["--failures", "mine.py"], "is a file; the name of a folder is allowed"),
        (["--vectors", "nowhere"], "there are no vectors"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_runs(folder, capsys, options, message):
    assert cli.main(["verify", "mine.py:Mine", *options]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == ""


def _run(folder, *arguments):
    command = [sys.executable, "-P", "-m", "refprune", "verify", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_one_example_leaves_nothing_behind_in_the_folder(folder):
    run = _run(folder, "mine.py:Mine", "--examples", "1")
    assert run.returncode == 0, run.stderr
    assert "95 % of its 1 (beta)" in run.stdout
    assert {p.name for p in folder.iterdir()} - {"__pycache__"} == {"mine.py"}


def test_an_adapter_in_numpy_needs_no_framework(folder, monkeypatch):
    """The command, its worker and every report run where no framework can be imported."""
    (folder / "without").mkdir()
    for framework in ("torch", "jax", "keras", "tensorflow"):
        (folder / "without" / f"{framework}.py").write_text(f"raise ImportError('there is no {framework}')\n")
    monkeypatch.setenv("PYTHONPATH", str(folder / "without"), prepend=os.pathsep)
    reports = ["--json", "r.json", "--junit", "r.xml", "--report", "r.html"]
    run = _run(folder, "mine.py:Mine", "--examples", "1", *reports)
    assert run.returncode == 0, run.stderr
    assert all((folder / name).stat().st_size > 0 for name in reports[1::2])


def test_the_same_seed_gives_the_same_report(folder):
    (folder / "mine.py").write_text(ADAPTER.format(body="log_gamma *= 1.0 + 1e-9 * (samples > 100)"))
    reports = []
    for name in ("a.json", "b.json"):
        assert cli.main(["verify", "mine.py:Mine", "--examples", "60", "--seed", "4", "--json", name]) == 1
        found = json.loads((folder / name).read_text())
        (method,) = [m for m in found["methods"] if m["verdict"] == "DEVIATES"]
        reports.append({**method, "seconds": 0})
    assert reports[0] == reports[1]


def test_nothing_judged_is_no_success(folder, capsys):
    assert cli.main(["verify", "mine.py:Mine", "--level", "network"]) == 2
    assert "nothing could be judged" in capsys.readouterr().out


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_an_interruption_ends_both_processes_quietly(folder):
    (folder / "mine.py").write_text(ADAPTER.format(body="open('called', 'w').write(str(os.getpid())); time.sleep(300)"))
    command = [sys.executable, "-P", "-m", "refprune", "verify", "mine.py:Mine"]
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=folder, preexec_fn=heard, **pipes)
    called = folder / "called"
    for _ in range(1200):
        if called.exists() and called.read_text():
            break
        time.sleep(0.1)
    worker = int(called.read_text())
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert not _is_running(worker)
