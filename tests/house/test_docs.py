"""README and docs: their Python blocks run, their output is what they show, their commands parse, their files are there.

The blocks of a page share one namespace, in order, and one empty folder. A block with title="name.ext" is also written there.
A block `text` behind another block of Python is its output, and on a tutorial that of the commands before it. There `…` stands
for any text, and where the title says "numbers vary" only the words between the numbers count. On the tutorials commands run,
elsewhere they are only parsed. A block with "Not run here" right above it is left out.
"""

import contextlib
import importlib
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import refprune
from refprune.cli.main import main, parser
from refprune.conformance import campaign
from refprune.conformance.asking.calls import InProcess
from refprune.conformance.levels import METHODS
from refprune.training import presets

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted(page for page in (ROOT / "docs").rglob("*.md") if "ledger" not in page.parts)]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
LEDGER = sorted((ROOT / "docs" / "ledger").glob("*.md"))
ALL = [*PAGES, *LEDGER]
NAMES = [str(page.relative_to(ROOT)) for page in ALL]

#: What a command needs that a test does not have.
NEEDS_DATA = re.compile(r"mnist|cifar10")


class Block(NamedTuple):
    language: str
    title: str
    body: str
    runs: bool


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in re.finditer(r"^```(\w+)([^\n]*)\n(.*?)^```$", text, flags=re.S | re.M):
        title = re.search(r'title="([^"]*)"', match[2])
        above = text[: match.start()].rstrip().rsplit("\n\n", 1)[-1]
        body = match[3].replace("\\\n", " ") if match[1] == "sh" else match[3]
        found.append(Block(match[1], title[1] if title else "", body, "Not run here" not in above))
    return found


def commands(page: Path) -> list[str]:
    """Every `refprune …` line of a shell block, and every one in running text."""
    text = page.read_text(encoding="utf-8")
    lines = [line for block in blocks(page) if block.language == "sh" for line in re.split(r"\n|&&", block.body)]
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M)
    lines += [" ".join(code.split()) for code in re.findall(r"`(refprune [^`]+)`", prose)]
    stripped = (re.split(r"\s+#", line)[0].strip() for line in lines)
    return [line for line in stripped if line.startswith("refprune ") and not re.search(r"[…|]|OPTIONS", line)]


def titled(page: Path, title: str) -> str:
    (body,) = (block.body for block in blocks(page) if block.title == title)
    return body


def alike(shown: str, got: str, *, numbers: bool) -> bool:
    """Whether `got` is what a page shows."""

    def plain(text: str) -> str:
        text = "\n".join(line.rstrip() for line in text.strip().splitlines())
        if numbers:
            return text
        text = re.sub(r"\d[\d,]*(\.\d+)?([eE][+-]?\d+)?", "0", text)
        return re.sub(r"[ ]+", " ", re.sub(r"-{2,}", "--", re.sub(r"(?<![\w-])-(?=0)", "", text)))

    pattern = ".*?".join(re.escape(part) for part in plain(shown).split("…"))
    return re.fullmatch(pattern, plain(got), flags=re.S) is not None


def run_page(page: Path, monkeypatch: pytest.MonkeyPatch, folder: Path, *, with_commands: bool) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, object] = {"__name__": "page"}
    printed: str | None = None
    for block in blocks(page):
        if re.fullmatch(r"[\w.-]+\.(py|toml)", block.title):
            (folder / block.title).write_text(block.body, encoding="utf-8")
        if not block.runs:
            printed = None
        elif block.language == "python":
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile(block.body, f"{page.name}: {block.body.splitlines()[0]}", "exec"), names)
            printed = None if block.title else output.getvalue()
        elif block.language == "sh" and with_commands:
            lines = [line for line in block.body.splitlines() if line.startswith("refprune ") and not NEEDS_DATA.search(line)]
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                for line in lines:
                    assert main(shlex.split(line)[1:]) in (0, 1), line
            printed = output.getvalue() if lines else None
        elif block.language == "text" and printed is not None:
            assert alike(block.body, printed, numbers="numbers vary" not in block.title), (
                f"shown:\n{block.body}\ngot:\n{printed}"
            )
            printed = None
        else:
            printed = None


@pytest.mark.parametrize("page", [page for page in PAGES if page not in TUTORIALS], ids=lambda page: page.stem)
def test_the_python_blocks_run(page, monkeypatch, tmp_path):
    if any(block.language == "python" and block.runs for block in blocks(page)):
        run_page(page, monkeypatch, tmp_path, with_commands=False)


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_the_tutorials_run(page, monkeypatch, tmp_path):
    run_page(page, monkeypatch, tmp_path, with_commands=True)


@pytest.mark.parametrize("page", ALL, ids=NAMES)
def test_the_commands_parse(page):
    for line in commands(page):
        arguments = shlex.split(line)[1:]
        try:
            options = parser().parse_args(arguments if len(arguments) > 1 else [*arguments, "--help"])
        except SystemExit as end:
            if end.code:
                pytest.fail(line)
            continue
        name = getattr(options, "experiment", None)
        assert name is None or name.isupper() or name.endswith(".toml") or name in presets.experiments(), line


def test_there_are_commands():
    assert sum(len(commands(page)) for page in PAGES) > 50


def test_a_block_that_is_wrong_is_seen():
    assert alike("a 1.5 …\nend", "a 1.5 b\nc\nend", numbers=True)
    assert not alike("a 1.5", "a 1.6", numbers=True)
    assert alike("loss  1.5e-3 (12%)\n-----", "loss 0.7 (3%)\n--", numbers=False)
    assert not alike("kept 3", "lost 3", numbers=False)


@pytest.mark.parametrize(
    ("page", "file", "adapter", "method", "first"),
    [
        (README, "mine.py", "Mine", "gate", "dx"),
        (ROOT / "docs/verify.md", "mine.py", "Mine", "gate", "dx"),
        (ROOT / "docs/verify.md", "net.py", "Mine", "network", "params/dense1.weight"),
        (ROOT / "docs/tutorials/is-my-pytorch-code-right.md", "mine.py", "Mine", "batch_norm", "y"),
        (ROOT / "docs/tutorials/is-my-pytorch-code-right.md", "network.py", "WholeNetwork", "network", "params/dense1.weight"),
    ],
)
def test_the_adapters_are_found_wrong_as_the_page_says(page, file, adapter, method, first):
    names: dict = {}
    exec(compile(titled(page, file), file, "exec"), names)
    (outcome,) = campaign.run(InProcess(names[adapter]()), [METHODS[method]], 200, 0)
    (finding,) = outcome.findings
    assert finding.kind == "deviates"
    assert finding.first.name == first
    found = [mistake.name for mistake in finding.mistakes]
    shown = re.findall(r"known mistake: (.*) \([A-Z0-9, ]+\)$", page.read_text(encoding="utf-8"), flags=re.M)
    assert set(found) <= set(shown) if page is not README else set(shown) <= set(found)
    assert found or method == "batch_norm"


def test_what_is_right_in_the_adapter_conforms():
    names: dict = {}
    exec(compile(titled(ROOT / "docs/verify.md", "mine.py"), "mine.py", "exec"), names)
    (outcome,) = campaign.run(InProcess(names["Mine"]()), [METHODS["penalty_slope"]], 100, 0)
    assert outcome.verdict == "conforms"


@pytest.mark.parametrize("page", ALL, ids=NAMES)
def test_its_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("page", [page for page in ALL if page.name != "machines.md"], ids=lambda page: page.stem)  # old names
def test_the_files_and_modules_it_names_exist(page):
    text = page.read_text(encoding="utf-8")
    rooms = {path.name for path in (ROOT / "refprune").iterdir()}
    paths = re.findall(r"(?<![\w/.])(?:refprune|docs|validation|tests|datasets)/[\w/.-]*[\w/]", text)
    paths += [f"refprune/{name}" for name in re.findall(r"`([\w./-]+)`", text) if "/" in name and name.split("/")[0] in rooms]
    for path in paths:
        assert re.search("[A-Z]{3}", Path(path).stem) or (ROOT / path).exists(), path
    for module in re.findall(r"python -m (validation\.[\w.]+)", text):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
    for name in re.findall(r"\brefprune(?:\.[a-z_]+)+\b", text):
        assert is_there(name), name


def is_there(name: str) -> bool:
    """Whether a dotted name is a module or something in one; the module itself is not imported, it may need a framework."""
    path = ROOT / name.replace(".", "/")
    if path.with_suffix(".py").exists() or (path / "__init__.py").exists():
        return True
    module, _, attribute = name.rpartition(".")
    return is_there(module) and hasattr(importlib.import_module(module), attribute)


def test_the_api_page_has_every_public_name():
    targets = re.findall(r"^::: (refprune[\w.]*)$", (ROOT / "docs/api.md").read_text(encoding="utf-8"), flags=re.M)
    assert [target for target in targets if not is_there(target)] == []
    assert set(refprune.__all__) <= {target.rpartition(".")[2] for target in targets}


def test_the_pictures_name_files_that_exist(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    pictures = importlib.import_module("pictures_of_rooms")
    for way in pictures.WAYS.values():
        for room, places, _ in way:
            found = ROOT / "refprune" / room
            for place in places.split(", ") if found.is_dir() else []:
                path = found.joinpath(*place.split("."))
                files = (path.with_suffix(".py"), path.parent.with_suffix(".py"))  # the latter: a function in it
                assert place == "…" or path.exists() or any(file.exists() for file in files), path
    assert sorted(pictures.levels()) == sorted(pictures.imports())


def test_the_readme_is_short_and_lists_the_rooms():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    rooms = {path.name + "/" if path.is_dir() else path.name for path in (ROOT / "refprune").iterdir()}
    listed = re.findall(r"^\| `([\w/.]+)` \|", text, flags=re.M)
    there = {room for room in rooms if re.fullmatch(r"[a-z]\w*(/|\.py)", room)}
    assert sorted(name for name in listed if name.endswith(("/", ".py"))) == sorted({*there, "refprune/"})


def test_the_readme_has_the_two_commands():
    text = README.read_text(encoding="utf-8")
    assert "pip install -e . && refprune run" in text
    assert "pip install -e '.[test]' && pytest" in text


def test_no_placeholder_is_left():
    assert not [page for page in ALL if re.search(r"@@|TODO|XXX", page.read_text(encoding="utf-8"))]


def test_the_site_builds(tmp_path):
    pytest.importorskip("mkdocs", reason="pip install -e '.[docs]'")
    pytest.importorskip("mkdocstrings_handlers.python", reason="pip install -e '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = sorted((tmp_path / "site").rglob("*.html"))
    fetched = re.compile(r'(?:src|href)="(https?://[^"]+\.(?:js|css|woff2?))')
    foreign = [(page.name, url) for page in pages for url in fetched.findall(page.read_text(encoding="utf-8"))]
    assert len(pages) > 20
    assert not foreign
    assert "<math" in (tmp_path / "site" / "spec.html").read_text(encoding="utf-8")
