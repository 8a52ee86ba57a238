"""The README's code runs, its commands exist, its files are there."""

import re
import shlex
from pathlib import Path

from refprune import cli, zoo

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_example_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    exec(compile(code, "README.md", "exec"), {})
    assert "section3.dense1.weight" in capsys.readouterr().out


def test_the_commands_parse():
    """Every `refprune …` line of a code block is understood by the command line's parser."""
    blocks = re.findall(r"```\n(.*?)```", README, flags=re.S)
    lines = [line.split("  ")[0] for block in blocks for line in block.splitlines() if line.startswith("refprune ")]
    assert len(lines) >= 5
    for line in lines:
        options = cli._parser().parse_args(shlex.split(line)[1:])
        name = getattr(options, "experiment", None)
        assert name is None or name.endswith(".toml") or name in zoo.experiments()


def test_the_files_it_names_exist():
    table = README[README.index("| file | what |") :]
    for name in re.findall(r"`([\w/]+(?:\.py|/))`", table):
        assert (ROOT / "refprune" / name).exists(), name


def test_no_placeholder_is_left():
    assert "@@" not in README
