"""The command line as a user meets it: exit codes, sentences, the table, the report; nothing else on the screen."""

import builtins
import dataclasses
import gzip
import io
import json
import re
import sys

import numpy as np
import pytest
from command_line import SET

import refprune
from refprune.data import sets
from refprune.experiments import report, run
from refprune.output import figures, progress, tables
from refprune.spec import zoo
from refprune.training import config, equivalence, loop, presets


def refused(result, *words):
    """Exit code 2 and one sentence on standard error that holds the words; nothing else."""
    __tracebackhide__ = True
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.startswith("refprune: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    for word in words:
        assert word in err


# Help, version, usage -----------------------------------------------------------------------------------------------------


def test_version_and_help(command):
    assert command("--version") == (0, f"refprune {refprune.__version__}\n", "")
    code, out, _ = command("--help")
    assert code == 0
    for name in ("run", "data", "zoo", "warmup"):
        assert name in out


@pytest.mark.parametrize("arguments", [[], ["rn"], ["run", "--sett", "a=1"], ["data"], ["data", "fetch"], ["run", "a", "b"]])
def test_wrong_usage(command, arguments):
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert "usage: refprune" in err


# zoo ----------------------------------------------------------------------------------------------------------------------


def test_zoo_lists_networks_and_experiments(command):
    code, out, err = command("zoo")
    assert (code, err) == (0, "")
    for name in (*zoo.NETWORKS, *presets.experiments()):
        assert name in out


def test_zoo_shows_a_network_with_its_published_counts(command):
    """N6: LeNet-5 has 431,080 parameters and 2,293,000 MACs."""
    code, out, _ = command("zoo", "lenet-5")
    assert code == 0
    *rows, total, bare, flops = out.splitlines()
    assert bare == "without biases and norms: 430,500 parameters"
    assert flops.endswith("of weights alone, 2 for each MAC, 4,586,000")
    assert total.split() == ["total", "431,080", "2,293,000"]
    assert rows[0].split() == ["layer", "kind", "input", "output", "parameters", "MACs"]
    assert "dense1" in out
    assert "800" in out
    sums = np.sum([[int(cell.replace(",", "")) for cell in row.split()[-2:]] for row in rows[2:]], axis=0)
    assert sums.tolist() == [431_080, 2_293_000]


@pytest.mark.parametrize("name", sorted(set(zoo.NETWORKS) | set(presets.experiments())))
def test_zoo_shows_everything_it_lists(command, name, tmp_path):
    code, out, err = command("zoo", name)
    assert (code, err) == (0, "")
    if name in presets.experiments():
        (tmp_path / "copy.toml").write_text(out)
        assert dataclasses.replace(config.load("copy.toml"), name=name) == config.load(name)


def test_zoo_refuses_what_it_does_not_know(command):
    refused(command("zoo", "lenet-6"), "'lenet-6' is neither a network nor an experiment", "lenet-5", "mnist-lenet5-combined")
    refused(command("zoo", "lenet-5:units=maybe"), "expected NAME:key=value")


def test_zoo_takes_options(command):
    """A LeNet-5 with unit gates shows them; nothing costs more for it."""
    code, out, _ = command("zoo", "lenet-5:units=true")
    assert code == 0
    assert out.count("UnitGate") == 3
    assert "431,080  2,293,000" in out


# data ---------------------------------------------------------------------------------------------------------------------


def test_data_list_of_an_empty_folder(command, tmp_path):
    code, out, err = command("data", "list", "--data-dir", tmp_path / "none")
    assert (code, err) == (0, "")
    assert f"folder: {tmp_path / 'none'}" in out
    for name in sets.NAMES:
        assert name in out
    assert not (tmp_path / "none").exists()
    (row,) = (line for line in out.splitlines() if line.startswith("mnist "))
    assert "absent" in row


def test_data_verify_of_an_empty_folder(command, tmp_path):
    code, out, _ = command("data", "verify", "mnist", "--data-dir", tmp_path)
    assert code == 2
    assert out.count("missing") == 4
    refused(command("data", "verify", "minst", "--data-dir", tmp_path), "minst", "mnist")


def test_missing_data_say_what_to_do(command, tmp_path):
    result = command("run", "mnist-resmlp", "--data-dir", tmp_path / "none", "--out", "r")
    refused(result, "refprune data fetch mnist", "--data synthetic-digits needs no files", str(tmp_path / "none"))
    assert not (tmp_path / "r").exists()


def test_corrupt_data_are_named(command, tmp_path):
    """A download that broke off: the file and the place are named, and no run directory is made."""
    folder = tmp_path / "d" / "mnist"
    folder.mkdir(parents=True)
    body = gzip.compress(b"\0\0\x08\x03" + b"\0\0\0\2\0\0\0\x1c\0\0\0\x1c" + bytes(1000))
    (folder / "train-images-idx3-ubyte.gz").write_bytes(body)
    for name in ("train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (folder / f"{name}-ubyte.gz").write_bytes(b"no gzip")
    result = command("run", "--data", "mnist", "--data-dir", tmp_path / "d", "--out", "r")
    refused(result, "train-images-idx3-ubyte.gz: truncated at byte 1016", "need 1584")
    assert not (tmp_path / "r").exists()
    (folder / "train-images-idx3-ubyte.gz").write_bytes(body[:-20])
    refused(command("run", "--data", "mnist", "--data-dir", tmp_path / "d", "--out", "r"), "train-images-idx3-ubyte.gz: ")


def test_an_unknown_data_set(command):
    refused(command("run", "--data", "minst", "--out", "r"), "'minst' is unknown", "mnist")


# run ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "quikstart"], ["quikstart", "quickstart"]),
        (["run", "none.toml"], ["none.toml: cannot be read"]),
        (["run", "--set", "gates.tresold=1"], ["unknown key gates.tresold", "did you mean gates.threshold?"]),
        (["run", "--set", "gates.threshold=1"], ["gates.threshold = 1.0 must lie in [0.0, 0.5]"]),
        (["run", "--set", "gates.threshold"], ["--set gates.threshold: expected key=value"]),
        (["run", "--set", "network.name=lenet-6"], ["lenet-6", "lenet-5"]),
        (["run", "--resume", "none"], ["none: no run to resume here"]),
    ],
)
def test_arguments_that_cannot_be(command, tmp_path, arguments, words):
    refused(command(*arguments), *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("other", [["quickstart2"], ["--set", "seed=1"], ["--data", "mnist"], ["--out", "q"], ["mnist-resmlp"]])
def test_resume_takes_no_other_arguments(command, other):
    refused(command("run", "--resume", "r", *other), "--resume: goes on with the run as it was")


@pytest.fixture
def finished(command, tiny_data):
    """A finished run in r/: (exit code, standard output, standard error)."""
    return command("run", *SET, "--out", "r")


def test_a_run_ends_with_the_table(finished, tmp_path):
    code, out, err = finished
    assert (code, err) == (0, "")
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert tables.text_table(report.rows(summary)) in out
    pruned, unpruned = summary["runs"].values()
    for title, cells in {
        "test accuracy": [f"{100 * r['test_accuracy']:.2f} %" for r in (pruned, unpruned)],
        "sections kept": [f"{pruned['sections']} of 3", "3 of 3"],
        "parameters": [f"{pruned['parameters']:,}", f"{unpruned['parameters']:,} (100%)"],
        "MACs per image": [f"{pruned['macs_per_image']:,}", "(100%)"],
        "MACs of training": ["(100%)"],
        "wall-clock": [" s"],
        "undecided gates, both values tried": [str(len(pruned["decisions"])), "0"],
        "largest rounding of θ": [f"{pruned['rounded']:.3f}", "0.000"],
        "removal error/tolerance": ["(holds)", "nothing removed"],
    }.items():
        (row,) = (line for line in out.splitlines() if line.startswith(title))
        for cell in cells:
            assert cell in row
    for line in report.decision_lines(summary):
        assert line in out
    assert out.startswith("run directory: r\n")
    assert out.endswith("report: r/report.html\n")


def test_progress_is_one_line_an_epoch_when_it_goes_to_a_file(finished):
    """Captured output is no terminal."""
    _, out, _ = finished
    found = re.findall(r"^(\w+) +epoch +(\d+)/3  test +[\d.]+ %  loss [\d.]+  sections +(\d)/3 +[\d.]+ s$", out, re.MULTILINE)
    assert [(name, epoch) for name, epoch, _ in found] == [(n, e) for n in ("pruned", "unpruned") for e in "123"]
    assert "\r" not in out
    assert "\x1b" not in out


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_there_is_a_bar_and_quiet_says_nothing(monkeypatch):
    for quiet, tqdm_there in ((False, True), (False, False), (True, True)):
        screen = Terminal()
        monkeypatch.setattr(sys, "stdout", screen)
        with pytest.MonkeyPatch.context() as patch:
            if not tqdm_there:
                patch.setitem(sys.modules, "tqdm", None)
            shown = progress.Progress(quiet=quiet)
            shown.start("pruned", 4, 1)
            shown.advance()
            shown.line("epoch 1")
            shown.finish()
            shown.finish()
        text = screen.getvalue()
        assert ("epoch 1" in text) == (not quiet)
        assert ("2/4" in text or "1/4" in text) == (tqdm_there and not quiet)


def test_the_same_folder_is_refused(command, finished, tmp_path):
    before = {p: p.read_bytes() for p in (tmp_path / "r").rglob("*") if p.is_file()}
    refused(command("run", *SET, "--out", "r"), "r: is there and not an empty folder; nothing is overwritten")
    assert {p: p.read_bytes() for p in (tmp_path / "r").rglob("*") if p.is_file()} == before


def test_a_folder_that_cannot_be_written(command, tiny_data, tmp_path):
    (tmp_path / "file").write_text("")
    refused(command("run", *SET, "--out", "file/r"), "file/r: cannot be made")


def test_without_out_the_folder_has_name_and_time(command, tiny_data, tmp_path):
    assert command("run", *SET, "--set=name=mine", "--set=unpruned=false")[0] == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"mine-\d{8}-\d{6}", folder.name)


def test_data_is_short_for_set(command, tiny_data, tmp_path):
    assert command("run", "mnist-resmlp", *SET, "--data", "synthetic-digits", "--out", "r")[0] == 0
    assert config.load("r/config.toml").data.name == "synthetic-digits"


def test_a_loss_that_is_no_number_is_one_sentence(command, tiny_data):
    with np.errstate(all="ignore"):
        refused_with_lines = command("run", *SET, "--set=optimiser.learning_rate=1e25", "--out", "r")
    code, _, err = refused_with_lines
    assert code == 2
    assert re.fullmatch(r"refprune: (step|epoch) \d+: the (test )?loss is (nan|inf); the .*\n", err)


def test_an_interrupt_says_how_to_go_on(command, tiny_data, monkeypatch):
    original = loop.reestimate

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "reestimate", interrupt)
    code, _, err = command("run", *SET, "--out", "r")
    assert (code, err) == (130, "refprune: interrupted; go on with: refprune run --resume r\n")
    monkeypatch.setattr(loop, "reestimate", original)
    code, out, err = command("run", "--resume", "r")
    assert (code, err) == (0, "")
    assert "report: r/report.html" in out


def test_an_interrupt_before_there_is_a_run_advises_nothing(command, tiny_data, monkeypatch):
    monkeypatch.setattr(run, "run", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    assert command("run", *SET, "--out", "r") == (130, "", "refprune: interrupted\n")


def test_a_mistake_of_ours_is_not_hidden_and_looks_like_no_verdict(command, tiny_data, monkeypatch):
    """Only InputError becomes a sentence: a bug shows its traceback, and has an exit code of its own."""
    monkeypatch.setattr(run, "run", lambda *a, **k: {}["bug"])
    code, _, err = command("run", *SET, "--out", "r")
    assert code == 70
    assert "KeyError: 'bug'" in err
    assert err.endswith("refprune: a mistake of refprune's own, not of the input; please report it with the lines above\n")


def test_a_violated_equivalence_is_exit_code_1(command, tiny_data, monkeypatch):
    monkeypatch.setattr(equivalence, "masked_against_compact", lambda *a: 1.5)
    code, out, _ = command("run", *SET, "--out", "r")
    assert code == 1
    assert "1.5 (VIOLATED)" in out


# report.html --------------------------------------------------------------------------------------------------------------


def test_the_report_is_self_contained(finished, tmp_path):
    """It asks for nothing outside itself: no script, link, image or font; URLs stand only in names of namespaces and text."""
    page = (tmp_path / "r" / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert page.count("<svg") == page.count("</svg>") == 4
    for tag in ("<script", "<link", "<img", "<iframe", "<object", "<embed", "@import", "@font-face"):
        assert tag not in page
    for attribute in re.findall(r"""(?:href|src|action|data|poster)\s*=\s*["']?([^"'\s>]+)""", page):
        assert attribute.startswith("#")
    for target in re.findall(r"url\(([^)]*)\)", page):
        assert target.startswith("#")
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    for row in report.rows(summary)[1:]:
        for cell in row:
            assert re.search(rf"<t[dh][^>]*>{re.escape(cell.replace('&', '&amp;'))}</t[dh]>", page), cell


def test_the_report_needs_no_run_of_matplotlib_windows(finished, tmp_path):
    import matplotlib

    assert matplotlib.get_backend().lower() == "agg"


def test_names_are_escaped_in_the_report(command, tiny_data, tmp_path):
    assert command("run", *SET, "--set", "name=<script>alert(1)</script>", "--out", "r")[0] == 0
    page = (tmp_path / "r" / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_without_matplotlib_one_line_says_how_to_get_the_report(command, tiny_data, monkeypatch, tmp_path):
    load = builtins.__import__

    def none(name, *arguments):
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return load(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", none)
    code, out, err = command("run", *SET, "--out", "r")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == figures.HINT
    assert "pip install -e '.[experiments]'" in figures.HINT
    assert not (tmp_path / "r" / "report.html").exists()
