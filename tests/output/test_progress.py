"""Long work says every ten seconds how much is left, in pipes and without tqdm; hints name the command that works here."""

import itertools

import pytest

from refprune.output import install, progress


@pytest.fixture
def clock(monkeypatch):
    """Three seconds pass from one look to the next."""
    ticks = itertools.count(0, 3)
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(ticks)))


def test_a_line_every_ten_seconds_says_what_is_left(clock, capsys):
    heart = progress.Heartbeat("images", 100)
    for done in range(1, 9):
        heart.reach(done)
    assert capsys.readouterr().err.splitlines() == ["images: 4 of 100, 288 s left", "images: 8 of 100, 276 s left"]


def test_a_run_that_is_resumed_counts_what_it_does_now(clock, capsys):
    shown = progress.Progress()
    shown.start("pruned", 1000, 900)
    for _ in range(4):
        shown.advance()
    assert capsys.readouterr() == ("", "pruned: 904 of 1,000, 288 s left\n")
    shown.finish()
    shown.advance()
    assert capsys.readouterr() == ("", "")


def test_quiet_is_quiet(clock, capsys):
    shown = progress.Progress(quiet=True)
    shown.start("pruned", 1000, 0)
    for _ in range(20):
        shown.advance()
    assert capsys.readouterr() == ("", "")


def test_the_command_that_works_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(install, "ABOVE", tmp_path)
    assert install.command("audit") == "pip install 'refprune[audit]'"
    (tmp_path / "pyproject.toml").touch()
    assert install.command("audit") == "pip install -e '.[audit]'"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert install.command("audit") == f"pip install -e '{tmp_path}[audit]'"
