"""What is given on the command line is used or refused; closed and full streams change no exit code."""

import subprocess
import sys

import pytest

from refprune.errors import InputError
from refprune.experiments import sweep
from refprune.kernels.machine import cores


def shell(line, folder):
    line = line.replace("refprune", f"{sys.executable} -m refprune")
    return subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-", "> /dev/full", "2> /dev/full"])
@pytest.mark.parametrize(("arguments", "code"), [("audit --only F9", 2), ("zoo lenet-5", 0), ("verify wrong.py:Mine", 1)])
def test_closed_and_full_streams_change_no_exit_code(tmp_path, closed, arguments, code):
    """But that what was asked for and could not be written is an error of its own."""
    (tmp_path / "wrong.py").write_text(
        "import refprune\nclass Mine(refprune.Implementation):\n    def beta(self, log_gamma, samples): return 7.0\n"
    )
    done = shell(f"refprune {arguments} {'--examples 2' * (code == 1)} {closed}", tmp_path)
    assert done.returncode == (2 if closed == "> /dev/full" else code)
    assert "Traceback" not in done.stderr
    if "2>" not in closed and code == 2:
        assert done.stderr.startswith("refprune: --only: 'F9' is not known")


def test_a_file_is_not_written_to_where_the_output_was_closed(tmp_path):
    """Without a stand-in the first file that is opened gets the number of the standard output."""
    code = "from refprune.cli import main; main.main(['zoo']); open('f', 'w').write('mine'); print('lost')"
    assert subprocess.run(["bash", "-c", f'{sys.executable} -c "{code}" >&-'], cwd=tmp_path).returncode == 0
    assert (tmp_path / "f").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", ""], "experiment: is empty"),
        (["run", "--data", ""], "data: is empty"),
        (["run", "--set", ""], "set: is empty"),
        (["run", "--set", "seed=1\nname='x'"], "has several lines; one key is changed by each --set"),
        (["verify", "mine.py:Mine", "--level", ","], "--level: ',' has an empty name"),
        (["verify", "mine.py:Mine", "--level", "gate,,add"], "--level: 'gate,,add' has an empty name"),
        (["verify", "mine.py:Mine", "--level", ""], "level: is empty"),
        (["vectors", "export", "v", "--level", ","], "--level: ',' has an empty name"),
        (["evaluate", "x", "--fgsm", "1/255,"], "--fgsm: '1/255,' has an empty name"),
        (["evaluate", "x", "--corruptions", ","], "--corruptions: ',' has an empty name"),
        (
            ["evaluate", "x", "--clean", "--fgsm", "8/255"],
            "--clean: says that nothing else is measured; leave it out, or --fgsm",
        ),
        (
            ["evaluate", "x", "--clean", "--corruptions"],
            "--clean: says that nothing else is measured; leave it out, or --corrup",
        ),
        (["score", "x", "--subsets", "10,,20"], "--subsets: '10,,20' has an empty name"),
        (["audit", "--only", ""], "only: is empty"),
    ],
)
def test_nothing_that_was_given_is_dropped(command, arguments, message):
    code, _, err = command(*arguments)
    assert code == 2
    assert message in err


@pytest.mark.parametrize("option", [["run", "--out", ""], ["run", "--resume", ""], ["evaluate", "x", "--json", ""]])
def test_an_empty_name_is_no_folder(command, option):
    code, _, err = command(*option)
    assert code == 2
    assert "is empty; the name of a file or folder is allowed" in err


@pytest.mark.parametrize(("option", "name"), [("--npz", "x.h5"), ("--onnx", "x.npz"), ("--torch", "x.onnx"), ("--npz", "x.pt")])
def test_an_ending_of_another_format_is_refused(command, tmp_path, option, name):
    code, _, err = command("export", tmp_path, option, tmp_path / name)
    assert code == 2
    assert "which is another format" in err
    assert not (tmp_path / name).exists()


def test_a_folder_of_failures_is_tried_before_the_work(command, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    code, _, err = command("verify", "mine.py:Mine", "--failures", tmp_path / "file" / "f")
    assert code == 2
    assert "is a file; the name of a folder is allowed" in err
    monkeypatch.setattr("os.access", lambda path, mode: False)
    code, _, err = command("verify", "mine.py:Mine", "--failures", tmp_path / "new" / "f")
    assert code == 2
    assert "nothing can be written into the folder" in err


def test_names_that_are_no_text_do_not_end_a_command(command, tmp_path):
    """A lone surrogate is how Python shows a byte of a file's name that is no UTF-8."""
    folder = tmp_path / "a\udcffb"
    folder.mkdir()
    (folder / "mine.py").write_text(
        "import refprune\nclass Mine(refprune.Implementation):\n    def beta(self, log_gamma, samples): return 7.0\n"
    )
    reports = [
        "--json",
        folder / "v.json",
        "--report",
        folder / "v.html",
        "--junit",
        folder / "v.xml",
        "--failures",
        folder / "f",
    ]
    code, _, err = command("verify", f"{folder / 'mine.py'}:Mine", "--examples", "2", *reports)
    assert (code, "Traceback" in err) == (1, False)
    assert (folder / "v.json").stat().st_size > 0


@pytest.mark.parametrize(("options", "workers"), [([], 3), (["--threads", "2"], 1), (["--jobs", "7"], 7)])
def test_a_sweep_starts_as_many_runs_as_there_are_cores_allowed(command, tmp_path, monkeypatch, options, workers):
    (tmp_path / "s.toml").write_text('experiment = "quickstart"\nseeds = [0, 1]\n')
    seen = {}

    def spy(*_, **how):
        seen.update(how)
        raise InputError("that is all")

    monkeypatch.setattr(cores, "allowed", lambda: 3)
    monkeypatch.setattr(sweep, "run_sweep", spy)
    assert command("sweep", "s.toml", *options)[0] == 2
    assert seen["workers"] == workers
