"""The benchmark's machinery, never its figures: turns, checks that see a planted wrong result, output, refusals."""

import json
import re
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from refprune.bench import agreement, cases, machine, memory, page, pictures, run, timing, torch_side
from refprune.cli import main as cli
from refprune.errors import InputError
from refprune.kernels.machine import peak
from refprune.oracle.layers import conv2d

QUICK = run.Options(repeats=1, compile_seconds=(0.0, 0.0), memory=False)


@pytest.fixture
def small(monkeypatch):
    """Sizes at which every case takes a fraction of a second, and random images."""
    monkeypatch.setattr(cases, "TRAINING_BATCH", dict.fromkeys(cases.TRAINING_BATCH, 8))
    monkeypatch.setattr(cases, "GATED_BATCH", 4)
    monkeypatch.setattr(cases, "CONVOLUTION_BATCH", 2)
    monkeypatch.setattr(cases, "CKA_SAMPLES", 40)
    monkeypatch.setattr(cases, "CKA_FEATURES", 6)
    monkeypatch.setattr(peak, "BURST", 100)
    return cases.Setting(threads=1, torch=True, data_directory="nowhere")


# Timing -----------------------------------------------------------------------------------------------------------------


class Clock:
    """A clock that only the sides move."""

    def __init__(self):
        self.now, self.calls, self.speed = 0.0, [], 1.0

    def __call__(self):
        return self.now

    def side(self, name, seconds):
        def call():
            self.calls.append(name)
            self.now += seconds * self.speed

        return call


def test_sides_take_turns():
    clock = Clock()
    times = timing.interleave({"a": clock.side("a", 0.5), "b": clock.side("b", 0.25)}, seconds=0.0, repeats=4, clock=clock)
    assert "".join(clock.calls).endswith("ab" * 4)
    np.testing.assert_allclose(times["a"], [0.5] * 4)
    np.testing.assert_allclose(times["b"], [0.25] * 4)


def test_what_slows_all_sides_leaves_the_ratio():
    """A machine that gets slower from round to round: medians move, pairwise ratios do not."""
    clock = Clock()
    a, slow = clock.side("a", 0.1), clock.side("b", 0.3)

    def b():
        slow()
        clock.speed *= 1.5

    times = timing.interleave({"a": a, "b": b}, seconds=0.0, repeats=7, clock=clock)
    assert times["a"][-1] > 5 * times["a"][0]
    np.testing.assert_allclose(times["b"] / times["a"], 3.0)


@pytest.mark.parametrize(("seconds", "budget", "rounds"), [(0.2, 0.0, 5), (0.2, 2.1, 11), (0.02, 99.0, 51), (2.0, 0.0, 3)])
def test_rounds_fit_into_the_time(seconds, budget, rounds):
    clock = Clock()
    times = timing.interleave({"a": clock.side("a", seconds)}, seconds=budget, clock=clock)
    assert len(times["a"]) == rounds


def test_short_sides_run_several_times_and_once_untimed():
    clock = Clock()
    times = timing.interleave({"a": clock.side("a", 0.004)}, seconds=0.0, repeats=2, clock=clock)
    assert len(clock.calls) in (2 + 2 * (1 + 3), 3 + 2 * (1 + 3))
    np.testing.assert_allclose(times["a"], 0.004)


def test_quartiles():
    assert timing.quartiles(np.array([4.0, 1.0, 3.0, 2.0, 5.0])) == (2.0, 3.0, 4.0)


def test_the_peak_kernel_does_its_work():
    """v ← v/2 + ½ tends to 1 in every lane of every accumulator of every part."""
    for dtype in ("float32", "float64"):
        run, flops = peak._peak_kernel(dtype)
        out = np.zeros(2, dtype)
        run(2, 200, np.dtype(dtype).type(0.5), out)
        np.testing.assert_array_equal(out, flops / 2)
    assert peak.vector_bits() in (128, 256, 512)
    assert peak.fma_gflops(1, "float32", seconds=0.01) > 0


# Checks before timing ---------------------------------------------------------------------------------------------------


def chosen(name, *tasks):
    return [case for case in run.select([name]) if not tasks or case.task in tasks]


@pytest.mark.parametrize(("name", "task"), [("lenet-300-100", "train"), ("lenet-300-100", "infer"), ("gates", "half sampled")])
def test_equal_results_are_timed(small, name, task):
    for r in run.run_bench(chosen(name, task), small, QUICK):
        assert r["equal"], r
        assert r["ratio"] > 0
        assert r["ratio_quartiles"][0] <= r["ratio"] <= r["ratio_quartiles"][1]
        assert r["against"] in r["milliseconds"]


@pytest.mark.parametrize("task", ["forward", "backward-data", "backward-weights"])
def test_convolutions(small, task, monkeypatch):
    """Equal to PyTorch; the time of the weights' gradient alone is taken off."""
    case = cases.Case("conv", task, lambda setting: cases.convolution((3, 5, 6), task, setting))
    (r,) = run.run_bench([case], small, QUICK)
    assert r["equal"], r
    assert r["label"] == f"conv 3→5 6² {task}"
    assert r["share_of_peak"] > 0
    assert set(r["ratios"]) == {"torch contiguous", "torch channels_last"}
    right = torch_side.convolution
    monkeypatch.setattr(torch_side, "convolution", lambda *a: lambda: 1.001 * right(*a)())
    (r,) = run.run_bench([case], small, QUICK)
    assert not r["equal"]


def test_the_convolution_of_the_case_is_the_oracles(small):
    x, w, dy = (np.random.default_rng(0).standard_normal(s) for s in ((2, 3, 4, 4), (5, 3, 3, 3), (2, 5, 4, 4)))
    y, _ = conv2d(x, w, None, stride=(1, 1), padding=((1, 1), (1, 1)), dilation=(1, 1), groups=1)
    found = agreement.in_norm({"y": torch_side.convolution(x, w, dy, "channels_last", "forward")()}, {"y": y}, 1e-13, "")
    assert found.holds


def test_a_planted_wrong_step_fails(small, monkeypatch):
    """PyTorch with a momentum that is off by a tenth: not timed, and the command fails."""
    right = torch_side.Training
    wrong = lambda *a, momentum, **k: right(*a, momentum=0.9 * momentum, **k)  # noqa: E731
    monkeypatch.setattr(torch_side, "Training", wrong)
    (r,) = run.run_bench(chosen("lenet-300-100", "train"), small, QUICK)
    assert not r["equal"]
    assert "milliseconds" not in r
    assert not run.holds([r])
    assert "NOT EQUAL" in run.table([r])[1]
    assert any("not timed" in line for line in run.notes([r]))


@pytest.mark.parametrize("factor", [1e-4, np.nan])
def test_a_planted_wrong_gradient_entry_fails(small, monkeypatch, factor):
    """One entry wrong by a part in ten thousand of the largest: only the entrywise comparison can see it."""
    right = torch_side.gradients

    def wrong(*a):
        found = right(*a)
        found["dense3.weight"][3, 3] += factor * np.abs(found["dense3.weight"]).max()
        return found

    monkeypatch.setattr(torch_side, "gradients", wrong)
    (r,) = run.run_bench(chosen("lenet-300-100", "train"), small, QUICK)
    assert not r["equal"]
    assert r["worst"] == "dense3.weight"
    json.dumps(r, allow_nan=False)
    assert any("dense3.weight is" in line for line in run.notes([r]))


def test_a_planted_nan_fails():
    good = {"w": np.ones(3)}
    assert agreement.in_norm(good, good, 1e-6, "").holds
    assert not agreement.in_norm({"w": np.array([1.0, np.nan, 1.0])}, good, 1e-6, "").holds
    assert not agreement.in_norm({"w": np.ones(3)}, {"w": np.zeros(3)}, 1e-6, "").holds


def naive_cka(x, y, estimator):
    """K1, K2 with kernel matrices."""
    n = len(x)

    def hsic(k, l):  # noqa: E741
        if estimator == "biased":
            h = np.eye(n) - 1 / n
            return np.trace(k @ h @ l @ h)
        k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))  # noqa: E741
        return np.trace(k @ l) + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k @ l).sum()

    k, l = x @ x.T, y @ y.T  # noqa: E741
    return hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l))


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_cka(small, monkeypatch, estimator):
    """PyTorch's side is the formula; a wrong one of refprune's side is seen."""

    def stub(factor):
        return lambda x, y, *, estimator, product: SimpleNamespace(value=factor * naive_cka(x, y, estimator))

    monkeypatch.setattr(cases.cka, "cka", stub(1.0))
    (r,) = run.run_bench(chosen("cka", estimator), small, QUICK)
    assert r["equal"], r
    monkeypatch.setattr(cases.cka, "cka", stub(1.0 + 1e-9))
    assert not run.run_bench(chosen("cka", estimator), small, QUICK)[0]["equal"]


def test_compiling_has_a_limit():
    side = lambda: None  # noqa: E731
    assert torch_side.attempt(lambda: side, 5.0) == (side, "works")
    assert torch_side.attempt(lambda: lambda: time.sleep(5.0), 0.05) == (None, "compiling took longer than 0 s")
    assert torch_side.attempt(lambda: 1 / 0, 5.0) == (None, "ZeroDivisionError: division by zero")


# The command ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick_machine(monkeypatch):
    limits = {"peak_gflops_1_thread": 1.0, "peak_gflops": 2.0, "memory_gbytes": 3.0, "vector_bits": 128}
    monkeypatch.setattr(machine, "limits", lambda setting: limits)
    figures = {"step": 1.0, "with_first": 2.0}
    monkeypatch.setattr(memory, "measure", lambda *a, **k: figures)
    monkeypatch.setattr(torch_side, "attempt", lambda make, seconds: (None, "RuntimeError: no compiler"))


def test_the_whole_command(small, quick_machine, tmp_path, capsys):
    arguments = ["bench", "lenet-300-100", "--against", "torch", "--threads", "1", "--repeats", "2", "--data-dir", "nowhere"]
    files = {kind: tmp_path / f"bench.{kind}" for kind in ("json", "svg", "html")}
    options = [*("--json", str(files["json"])), *("--picture", str(files["svg"])), *("--report", str(files["html"]))]
    assert cli.main([*arguments, *options]) == 0
    out = capsys.readouterr().out
    for expected in ("lenet-300-100 train", "synthetic-digits", "checked before timing", "RuntimeError: no compiler", "1 MB"):
        assert expected in out
    written = json.loads(files["json"].read_text())
    assert {"cpu", "threads", "versions", "seed", "peak_gflops", "memory_gbytes"} <= set(written["machine"])
    assert {"refprune", "torch", "numba", "numpy"} <= set(written["machine"]["versions"])
    assert [(r["name"], r["task"], r["batch"]) for r in written["results"]] == [
        ("lenet-300-100", "train", 8),
        ("lenet-300-100", "infer", 1),
        ("lenet-300-100", "infer", 256),
    ]
    for r in written["results"]:
        assert isinstance(r["ratio"], float)
        assert len(r["milliseconds"]["refprune"]) == 3
        assert r["rounds"] == 2
    assert "<svg" in files["svg"].read_text()
    report = files["html"].read_text(encoding="utf-8")
    assert report.count("<svg") == 1
    assert re.search(r'class="verdict plain">refprune is faster than PyTorch in \d of 3 cases', report)
    assert "lenet-300-100 infer, 256 images" in report


def test_without_against_there_are_refprunes_own_figures(small, quick_machine, monkeypatch, capsys):
    monkeypatch.setattr(cases, "CASES", chosen("lenet-300-100", "infer"))
    monkeypatch.setattr(run, "CASES", cases.CASES)
    assert cli.main(["bench", "lenet-300-100", "--repeats", "1", "--threads", "1"]) == 0
    out = capsys.readouterr().out
    assert "lenet-300-100 infer, 256 images" in out
    assert "ratio" in out
    assert "torch.compile" not in out


def test_the_report_says_first_what_is_not_equal():
    made = {"name": "x", "task": "t", "ratio": None, "label": "x t", "checked": "norms", "worst": "output"}
    wrong, right = made | {"equal": False, "error_over_bound": 3.0}, made | {"equal": True, "error_over_bound": 0.5}
    right |= {"label": "y t", "milliseconds": {"refprune": [1.0, 2.0, 3.0]}}
    where = {"cpu": "c", "threads": 1, "dtype": "float32", "python": "3", "versions": {}, "time": "2026-01-01T00:00:00Z"}
    text = page.report([right, wrong], where)
    assert "1 of 2 cases give other results than what they are compared with: x t." in text
    assert text.index("Results that are not equal") < text.index("x t: output is off by 3 bounds") < text.index("<h2>Times")
    assert "1 of 1 cases were timed, beside nothing else." in page.report([right], where)


def test_a_mismatch_ends_with_exit_code_1(small, quick_machine, monkeypatch, capsys):
    right = torch_side.Inference.__call__
    monkeypatch.setattr(torch_side.Inference, "__call__", lambda self: right(self) * np.float32(1.01))
    assert cli.main(["bench", "lenet-300-100", "--against", "torch", "--repeats", "1", "--threads", "1"]) == 1
    assert "NOT EQUAL" in capsys.readouterr().out


def test_the_roofline(tmp_path):
    found = [
        {"task": t, "intensity": i, "gflops": 9.0, "torch_gflops": 8.0}
        for t in ("forward", "backward-data")
        for i in (1.0, 99.0)
    ]
    path = tmp_path / "roof.png"
    pictures.roofline(path, found, {"peak_gflops": 10.0, "memory_gbytes": 5.0}, "title")
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="run the case conv"):
        pictures.roofline(path, [{"task": "train"}], {}, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["resnet-21"],
            "bench: 'resnet-21' is not known; known are lenet-300-100, lenet-5, resnet-20, vgg-16, gates, cka, prior, conv",
        ),
        (["--threads", "0"], "--threads: must be at least 1, got 0"),
        (["--repeats", "-1"], "--repeats: must be at least 1, got -1"),
        (["--json", "no/such/a.json"], "--json no/such/a.json: the folder no/such does not exist"),
        (["--picture", "bars.pdf"], "bars.pdf: the name of a picture ends in .png or .svg"),
    ],
)
def test_refusals(arguments, message, capsys):
    assert cli.main(["bench", *arguments]) == 2
    assert capsys.readouterr().err == f"refprune: {message}\n"


def test_without_pytorch_one_sentence(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert cli.main(["bench", "--against", "torch"]) == 2
    assert capsys.readouterr().err == "refprune: --against torch: PyTorch is not installed:  pip install -e '.[torch]'\n"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process's peak memory")
def test_memory_is_measured_in_a_process_of_its_own():
    """PyTorch's step on a LeNet-300-100: at least its gradients, at most a gigabyte."""
    x, labels = np.zeros((64, 1, 28, 28), np.float32), np.zeros(64, np.int64)
    found = memory.measure("torch", "lenet-300-100", x, labels, threads=1, dtype="float32")
    assert 0.5 < found["step"] < 1000
    assert found["with_first"] < 1000
    with pytest.raises(InputError, match=r"the measuring process failed: .*network: 'lenet-4'"):
        memory.measure("refprune", "lenet-4", x, labels, threads=1, dtype="float32")


def test_every_network_of_the_benchmark_is_in_the_list():
    assert set(cases.TRAINING_BATCH) <= set(run.NAMES)
    assert run.select([]) == cases.CASES
    assert [case.task for case in run.select(["cka"])] == ["biased", "unbiased"]
