"""Vectors as consumers use them: the README's consumer, verify, the commands."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from vector_cases import ORACLE, PATHS, STORED, rewritten

import refprune
from refprune.cli import main as cli
from refprune.conformance import campaign, reporting
from refprune.conformance.asking.calls import InProcess, describe
from refprune.conformance.judging.verdicts import compare
from refprune.conformance.levels import LEVELS, METHODS
from refprune.conformance.vectors import export, files
from refprune.conformance.vectors.backend import BackendImplementation
from refprune.mistakes.catalogue import KNOWN
from refprune.mistakes.planting import planted
from refprune.rounding.tolerance import UNIT

# Consumers ----------------------------------------------------------------------------------------------------------------


def _consumer(tmp_path, *changes):
    """The README's program as it stands, or with changes, on the stored vectors; without refprune in its reach."""
    (program,) = re.findall(r"```python\n(.*?)```", (STORED / "README.md").read_text(encoding="utf-8"), flags=re.S)
    for old, new in changes:
        assert old in program
        program = program.replace(old, new)
    (tmp_path / "consumer.py").write_text(program, encoding="utf-8")
    assert "refprune" not in program
    command = [sys.executable, "-I", "-X", "utf8", "consumer.py", str(STORED)]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)


def test_the_consumer_of_the_readme(tmp_path):
    run = _consumer(tmp_path)
    assert (run.stdout, run.stderr, run.returncode) == ("wrong: 0\n", "", 0)


@pytest.mark.parametrize(
    ("old", "new", "mistake"),
    [
        ('"dx": full * dy', '"dx": dy', "gate missing in the backward pass"),
        ('"dg": np.sum', '"dg": -np.sum', "sign of the gate's gradient"),
    ],
)
def test_a_mistake_of_the_consumer_is_found_by_valid_and_invalid_vectors(tmp_path, old, new, mistake):
    run = _consumer(tmp_path, (old, new))
    assert run.returncode == 1
    assert "gate-valid" in run.stdout
    assert f"must not have this mistake: {mistake}" in run.stdout


# `refprune verify --vectors` ----------------------------------------------------------------------------------------------


def _judged(implementation, stored, *names, examples=0):
    methods = [METHODS[name] for name in names]
    return {o.method: o for o in campaign.run(InProcess(implementation), methods, examples, 0, stored=stored)}


def test_the_oracle_conforms_on_all_stored_vectors(stored):
    outcomes = _judged(BackendImplementation(), stored, "gate", "max_pool", "network", "compact", "beta")
    assert {name: o.verdict for name, o in outcomes.items()} == {
        "gate": "conforms",
        "max_pool": "conforms",
        "network": "conforms",
        "compact": "conforms",
        "beta": "not provided",
    }
    for name, outcome in outcomes.items():
        assert outcome.examples == (name != "beta") * sum(v.method.name == name for v in stored)


def test_vectors_of_other_conventions_are_not_asked(stored):
    ordinary = type("Mine", (BackendImplementation,), {"conventions": refprune.adapters.implementation.PYTORCH})()
    (outcome,) = _judged(ordinary, stored, "max_pool").values()
    assert outcome.verdict == "conforms"
    assert outcome.examples == sum(v.method.name == "max_pool" and v.flags.convention == {"ties": ["first"]} for v in stored)
    reinforce = describe(ordinary)
    asked = [v for v in stored if v.method.name == "theta_estimate" and v.asks(reinforce)]
    assert asked
    assert {v.arguments["_estimator"] for v in asked} == {"reinforce"}


def test_float64_vectors_are_asked_of_float32_with_answers_derived_anew(stored):
    (outcome,) = _judged(BackendImplementation(precision="float32"), stored, "dense").values()
    assert outcome.verdict == "conforms"


def test_a_mistake_is_found_on_stored_vectors_and_named(stored):
    mistake = next(m for m in KNOWN if m.name == "gate missing in the backward pass")
    with planted(mistake) as backend:
        pass
    (outcome,) = _judged(BackendImplementation(backend), stored, "gate", examples=20).values()
    (finding,) = outcome.findings
    assert finding.kind == "deviates"
    assert finding.first.name == "dx"
    assert "vectors: gate-" in finding.message
    assert mistake.name in [m.name for m in finding.mistakes]
    assert outcome.examples == sum(v.method.name == "gate" for v in stored)  # nothing was drawn


def test_the_report_tells_stored_from_drawn(stored):
    described = describe(BackendImplementation())
    count = sum(v.method.name == "gate" for v in stored)
    alone = _judged(BackendImplementation(), stored, "gate").values()
    assert reporting.text(list(alone), described).endswith(f"conforms in {count} examples")
    both = _judged(BackendImplementation(), stored, "gate", examples=20).values()
    text = reporting.text(list(both), described)
    assert "14 % of its 20 (gate)" in text
    (outcome,) = both
    assert text.endswith(f"conforms in {count + 20 + outcome.standing} examples")


def test_stored_values_are_what_counts(stored):
    """A vector whose values say otherwise than the oracle is believed; `vectors check` is there to find it."""
    (first, *_) = [v for v in stored if v.method.name == "gate" and v.result == "valid"]
    other = first._replace(values={**first.values, "y": first.values["y"] + 1.0})
    (outcome,) = _judged(BackendImplementation(), [other], "gate").values()
    assert outcome.findings[0].first.name == "y"


ADAPTER = """
import refprune

class Mine(refprune.Implementation):
    def gate(self, x, g, dy):
        return x * g, dy, (x * dy).sum()
"""


def test_a_failing_case_is_stored_as_a_vector_and_asked_again(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(campaign, "SHRINKING", 2.0)
    (tmp_path / "mine.py").write_text(ADAPTER)
    assert cli.main(["verify", "mine.py:Mine", "--examples", "20", "--dtype", "float32"]) == 1
    printed = capsys.readouterr().out
    assert "refprune verify mine.py:Mine --vectors verify-failures --examples 0" in printed
    (vector,) = files.read(tmp_path / "verify-failures")
    assert (vector.name, vector.precision, vector.result) == ("gate-deviates", "float32", "valid")
    assert [row.holds for row in export.check(tmp_path / "verify-failures", [ORACLE])] == [True]
    again = ["verify", "mine.py:Mine", "--vectors", "verify-failures", "--examples", "0", "--dtype", "float32"]
    assert cli.main([*again, "--failures", "other"]) == 1
    assert "in 1 of 1 vectors: gate-deviates" in capsys.readouterr().out
    mended = "full = g.reshape(1, -1, *[1] * (x.ndim - 2)) if g.ndim else g\n        "
    mended += "return x * full, dy * full, (x * dy).sum(axis=(0, *range(2, x.ndim)) if g.ndim else None)"
    (tmp_path / "mine.py").write_text(ADAPTER.replace("return x * g, dy, (x * dy).sum()", mended))
    assert cli.main(again) == 0
    assert capsys.readouterr().out.splitlines()[-2].endswith("conforms in 1 examples")


def test_a_script_runs_from_another_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(campaign, "SHRINKING", 1.0)
    (tmp_path / "mine.py").write_text(ADAPTER)
    assert cli.main(["verify", "mine.py:Mine", "--examples", "20"]) == 1
    capsys.readouterr()
    (tmp_path / "elsewhere").mkdir()
    script = tmp_path / "verify-failures" / "gate-deviates.py"
    run = subprocess.run([sys.executable, str(script)], cwd=tmp_path / "elsewhere", capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "wanted" in run.stdout


# The commands -------------------------------------------------------------------------------------------------------------


def test_the_commands(gate, tmp_path, capsys):
    assert cli.main(["vectors", "check", str(gate)]) == 0
    assert "1 vectors, 1 hold, 1 of them by two witnesses" in capsys.readouterr().out
    assert cli.main(["vectors", "export", str(gate), "--level", "beta"]) == 0
    assert "invalid, 0 acceptable" in capsys.readouterr().out
    assert not (gate / "gate-valid-0.json").exists()
    assert {"README.md", "schema.json", "scalars"} == {p.name for p in gate.iterdir()}
    assert cli.main(["vectors", "export", str(gate), "--level", "beta", "--format", "safetensors"]) == 0
    assert {p.suffix for p in gate.rglob("*.*")} == {".json", ".safetensors", ".md"}
    assert cli.main(["vectors", "check", str(gate)]) == 0
    capsys.readouterr()
    assert cli.main(["vectors", "export", str(gate), "--level", "gate"]) == 0
    assert {"README.md", "schema.json", "layers"} == {p.name for p in gate.iterdir()}
    assert cli.main(["vectors", "export", str(gate), "--per-method", "0"]) == 2
    assert cli.main(["vectors", "export", str(gate), "--level", "nothing"]) == 2


@pytest.mark.parametrize(
    "name",
    ["strange.txt", "package.json", "other.npz", "list.json", "layers/mine.txt", "layers/package.json", "layers/deeper/a.txt"],
)
def test_a_folder_with_other_files_is_left_alone(gate, capsys, name):
    (gate / name).parent.mkdir(parents=True, exist_ok=True)
    (gate / name).write_text('{"format": "x"}' if name.endswith("package.json") else "[]")
    before = sorted(gate.rglob("*"))
    assert cli.main(["vectors", "export", str(gate), "--level", "beta"]) == 2
    assert f"holds other files ({name.removesuffix('/a.txt')})" in capsys.readouterr().err
    assert sorted(gate.rglob("*")) == before


def test_folders_that_are_no_levels_are_left_alone(gate, capsys):
    shutil.copytree(STORED / "layers", gate / "mine")
    assert cli.main(["vectors", "export", str(gate), "--level", "beta"]) == 2
    assert "holds other files (mine)" in capsys.readouterr().err


def test_the_stored_vectors_stand_in_the_folders_of_their_levels():
    places = {path.parent.relative_to(STORED).as_posix() for path in PATHS}
    assert places == set(LEVELS)
    assert all(json.loads(path.read_text(encoding="utf-8"))["level"] == path.parent.name for path in PATHS)


def test_somebody_elses_readme_is_not_written_over(tmp_path, capsys):
    (tmp_path / "README.md").write_text("mine")
    assert cli.main(["vectors", "export", str(tmp_path), "--level", "beta"]) == 2
    assert (tmp_path / "README.md").read_text() == "mine"
    assert "holds other files (README.md)" in capsys.readouterr().err


def test_check_ends_with_1_where_a_vector_fails(gate, capsys):
    rewritten(gate, "gate-valid-0", **{"want/y": lambda a: a + 1.0})
    assert cli.main(["vectors", "check", str(gate)]) == 1
    assert "gate-valid-0.json (valid): oracle deviates in y; PyTorch deviates in y" in capsys.readouterr().out


def test_verify_refuses_a_folder_without_vectors(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(ADAPTER)
    assert cli.main(["verify", f"{tmp_path / 'mine.py'}:Mine", "--vectors", str(tmp_path)]) == 2
    assert "there are no vectors" in capsys.readouterr().err


def test_every_mistake_has_a_name_of_its_own():
    assert len({m.name for m in KNOWN}) == len(KNOWN)


def test_a_mistake_that_makes_another_shape_or_nan_is_left_out():
    question = next(export._questions(METHODS["beta"], "float64", 0, [], 1))
    right = question.expected.values["beta"]
    room = question.expected.tolerance["beta"]
    for value in (np.full((2,), 1e9), np.asarray(np.nan), right + 1.5 * room):
        assert export._shown(question, {"beta": value}, UNIT["float64"]) == {}
    assert export._shown(question, {"beta": right + 3.0 * room}, UNIT["float64"]).keys() == {"beta"}
    assert compare("beta", right, right, room, unit=UNIT["float64"]).holds
