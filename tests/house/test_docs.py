"""The README's code runs, its commands exist, its files are there."""

import re
import shlex
from pathlib import Path

import pytest

from refprune.cli import main as cli
from refprune.conformance import campaign
from refprune.conformance.asking.calls import InProcess
from refprune.conformance.levels import METHODS
from refprune.training import presets

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.S | re.M)
ADAPTER, REPLACED, EXAMPLE = (block for language, block in BLOCKS if language == "python")


def run(code):
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    return names


def test_the_python_example_runs(capsys):
    run(EXAMPLE)
    assert "section3.dense1.weight" in capsys.readouterr().out


@pytest.mark.parametrize(("code", "method", "first"), [(ADAPTER, "gate", "dx"), (REPLACED, "network", "params/dense1.weight")])
def test_the_adapters_are_found_wrong_as_it_says(code, method, first):
    (outcome,) = campaign.run(InProcess(run(code)["Mine"]()), [METHODS[method]], 200, 0)
    (finding,) = outcome.findings
    assert finding.kind == "deviates"
    assert finding.first.name == first
    assert "straight-through gate: dx = dy, no gradient for the gate" in [m.name for m in finding.mistakes]
    if method == "gate":
        assert all(f"known mistake: {m.name} " in README for m in finding.mistakes)


def test_what_is_right_in_the_adapter_conforms():
    (outcome,) = campaign.run(InProcess(run(ADAPTER)["Mine"]()), [METHODS["penalty_slope"]], 100, 0)
    assert outcome.verdict == "conforms"


def test_the_commands_parse():
    """Every `refprune …` line of a code block is understood by the command line's parser."""
    lines = [
        line.split("  ")[0]
        for language, block in BLOCKS
        if not language
        for line in block.splitlines()
        if line.startswith("refprune ")
    ]
    assert len(lines) >= 5
    for line in lines:
        options = cli.parser().parse_args(shlex.split(line)[1:])
        name = getattr(options, "experiment", None)
        assert name is None or name.endswith(".toml") or name in presets.experiments()


def test_the_files_it_names_exist():
    table = README[README.index("| file | what |") :]
    for name in re.findall(r"`([\w/]+(?:\.py|/))`", table):
        assert (ROOT / "refprune" / name).exists(), name


def test_no_placeholder_is_left():
    assert "@@" not in README
