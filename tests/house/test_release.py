"""What a release needs: one version, package data for every file that the code reads, extras that the documents name."""

import ast
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import refprune

ROOT = Path(refprune.__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_version_is_written_once():
    """setuptools reads the literal from the source without importing the package."""
    assert "version" not in PROJECT["project"]
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["setuptools"]["dynamic"] == {"version": {"attr": "refprune.__version__"}}
    tree = ast.parse((ROOT / "refprune" / "__init__.py").read_text(encoding="utf-8"))
    assigned = [n for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "__version__"]
    assert [ast.literal_eval(node.value) for node in assigned] == [refprune.__version__]
    assert re.fullmatch(r"\d+\.\d+\.\d+", refprune.__version__)


def test_the_command_and_the_changelog_name_that_version():
    run = subprocess.run([sys.executable, "-m", "refprune", "--version"], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == f"refprune {refprune.__version__}"
    newest = re.search(r"^## (\S+) – (\d{4}-\d{2}-\d{2})$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    assert newest[1] == refprune.__version__


def test_every_file_that_is_no_source_goes_into_the_wheel():
    """Catches a preset, schema or table that the code reads and that an installed package would lack."""
    data = PROJECT["tool"]["setuptools"]["package-data"]
    patterns = [f"{package.replace('.', '/')}/{pattern}" for package, listed in data.items() for pattern in listed]
    tracked = [p for p in (ROOT / "refprune").rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")]
    names = [path.relative_to(ROOT).as_posix() for path in tracked]
    assert [name for name in names if not any(fnmatch(name, pattern) for pattern in patterns)] == []
    assert [pattern for pattern in patterns if not any(fnmatch(name, pattern) for name in names)] == []
    for needed in (
        "py.typed",
        "data/manifest.json",
        "training/presets/quickstart.toml",
        "conformance/vectors/vector.schema.json",
    ):
        assert f"refprune/{needed}" in names


def test_every_folder_of_the_package_is_found():
    """setuptools takes folders with an `__init__`; a folder of sources without one would be left out."""
    folders = {path.parent for path in (ROOT / "refprune").rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_the_lowest_versions_are_pinned():
    """`pip install -c .ci/lowest.txt` makes an environment of exactly the bounds, all of them at once."""
    extras = PROJECT["project"]["optional-dependencies"]
    asked = [*PROJECT["project"]["dependencies"], *(r for n in ("experiments", "verify", "audit", "test") for r in extras[n])]
    bounds = {requirement.split(">=")[0]: requirement.split(">=")[1] for requirement in asked if ">=" in requirement}
    unbounded = [requirement for requirement in asked if ">=" not in requirement and "==" not in requirement]
    pinned = dict(line.split("==") for line in (ROOT / ".ci" / "lowest.txt").read_text(encoding="utf-8").split())
    of_its_time = {"pyparsing": "3.1"}  # matplotlib 3.9 uses names that pyparsing 3.3 warns of, and warnings are errors
    assert unbounded == []
    assert pinned == bounds | of_its_time


def test_the_quick_tests_are_there_and_need_no_torch():
    """What `.ci/run` runs at other versions: a file that has gone would stop it late, torch would be gigabytes."""
    listed = [ROOT / line for line in (ROOT / ".ci" / "quick.txt").read_text(encoding="utf-8").split()]
    files = [file for path in listed for file in (path.glob("test_*.py") if path.is_dir() else [path])]
    assert [path for path in listed if not path.exists()] == []
    assert len(files) > 20
    assert [file for file in files if re.search(r"^(import|from) torch", file.read_text(encoding="utf-8"), re.MULTILINE)] == []


def test_extras_that_messages_name_exist():
    """`pip install 'refprune[…]'` and `extra NAME` in sources, pages and README are extras of the project."""
    extras = set(PROJECT["project"]["optional-dependencies"])
    files = [*(ROOT / "refprune").rglob("*.py"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    named = {
        name.strip()
        for path in files
        for listed in re.findall(r"(?:refprune|'\.|\"\.)\[([a-z, ]+)\]|\(extra `(\w+)`\)", path.read_text(encoding="utf-8"))
        for part in listed
        for name in part.split(",")
        if part
    }
    assert len(named) > 3
    assert named <= extras
