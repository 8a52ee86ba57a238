"""The table that a run prints, its decisions in words, and signs that a terminal cannot show."""

import os
import re
import subprocess
import sys

import pytest
from command_line import SET

from refprune.errors import InputError
from refprune.experiments import report
from refprune.output import figures, tables
from refprune.training.step import NonFiniteLoss

# The table ----------------------------------------------------------------------------------------------------------------


def test_text_table():
    table = [("", "a", "bb"), ("title", "1", "2,000"), ("long title", "10 %", "3")]
    assert tables.text_table(table).splitlines() == [
        "               a     bb",
        "-----------------------",
        "title          1  2,000",
        "long title  10 %      3",
    ]


@pytest.mark.parametrize(
    ("removals", "error", "text"),
    [
        ([], None, "nothing removed"),
        ([{}], None, "not comparable"),
        ([{}], 0.0, "0 (holds)"),
        ([{}], 1.0, "1 (holds)"),
        ([{}], 1.01, "1 (VIOLATED)"),
        ([{}], float("nan"), "nan (VIOLATED)"),
    ],
)
def test_the_equivalence_in_words(removals, error, text):
    run = {"removals": removals, "masked_compact_error": error}
    assert report._equivalence(run) == text
    assert report.holds({"runs": {"pruned": run}}) == ("VIOLATED" not in text)


def test_a_terminal_that_cannot_show_a_sign_shows_another():
    """Catches a UnicodeEncodeError at the end of a long run."""
    code = "import sys; from refprune.cli.main import main; sys.exit(main(['zoo', 'lenet-5']))"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert "431,080" in run.stdout


def test_every_decision_is_one_line():
    decision = {"gate": "section2.unitgate1", "unit": 3, "theta": 0.4, "objective_on": 1.5, "objective_off": 1.25, "on": False}
    decision |= {"rule": "compared"}
    summary = {"runs": {"pruned": {"decisions": [decision, decision | {"on": True}]}}}
    assert report.decision_lines(summary) == [
        "pruned: gate section2.unitgate1[3] stood at θ = 0.400; training loss + cost of size: on 1.5000, off 1.2500: removed",
        "pruned: gate section2.unitgate1[3] stood at θ = 0.400; training loss + cost of size: on 1.5000, off 1.2500: kept",
    ]


def test_crosses_stand_on_the_curve_where_the_gate_was_removed():
    """Units of a group go one after another; a cross before the first line stands at its start."""
    metrics = [{"event": "step", "step": s, "theta": {"unitgate1": t}} for s, t in ((20, 0.9), (40, 0.6), (60, 0.2))]
    metrics[1:1] = [{"event": "removal", "step": s, "removed": {"unitgate1": 1}} for s in (10, 20, 50, 70)]
    _, axes = figures.figure("θ", "step", "θ")
    report.draw_theta(axes, metrics)
    crosses = axes.lines[1].get_xydata().tolist()
    assert crosses == [[10, 0.9], [20, 0.9], [50, 0.6], [70, 0.2]]


def test_input_errors_are_value_errors():
    assert issubclass(InputError, ValueError)
    assert issubclass(NonFiniteLoss, InputError)


def test_a_name_cannot_leave_the_folder_of_runs(command, tiny_data):
    code, out, _ = command("run", *SET, "--set", "name='../../evil name'")
    assert code == 0
    assert re.match(r"run directory: runs/-evil-name-\d{8}-\d{6}\n", out)


def test_a_reader_that_leaves_is_no_error():
    """`refprune zoo … | head -1`."""
    code = "import sys; from refprune.cli.main import main; sys.exit(main(['zoo', 'residual-mlp']))"
    line = f'{sys.executable} -c "{code}" | true'
    run = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert run.stderr == ""


def test_near_misses_are_named(command, tmp_path):
    _, _, err = command("run", "quikstart")
    assert "did you mean quickstart?" in err
    (tmp_path / "here.TOML").write_text("")
    code, _, err = command("run", "here.TOML")
    assert code == 2
    assert "must end in .toml" in err
