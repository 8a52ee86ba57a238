"""Vectors: the stored set holds by two witnesses, what is damaged is seen, files are refused by name, all by the schema."""

import copy
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest

import refprune
from refprune.cli import main as cli
from refprune.conformance import campaign, reporting
from refprune.conformance.asking.calls import InProcess, describe
from refprune.conformance.judging.verdicts import compare
from refprune.conformance.levels import LEVELS, METHODS
from refprune.conformance.vectors import export, extremes, files
from refprune.conformance.vectors.backend import BackendImplementation
from refprune.conformance.vectors.torch_witness import Witness
from refprune.errors import InputError
from refprune.gates.estimators import ESTIMATORS
from refprune.mistakes.catalogue import KNOWN
from refprune.mistakes.planting import planted
from refprune.oracle import layers
from refprune.rounding.tolerance import UNIT

STORED = Path(__file__).parents[2] / "validation" / "vectors"
SCHEMA = json.loads((STORED / "schema.json").read_text(encoding="utf-8"))
PATHS = [path for path in sorted(STORED.rglob("*.json")) if path.name != "schema.json"]
ORACLE = ("the oracle", lambda: InProcess(BackendImplementation()))


@pytest.fixture(scope="module")
def stored():
    return list(files.read(STORED))


# The stored set -----------------------------------------------------------------------------------------------------------


def test_the_stored_vectors_hold_by_both_witnesses():
    checked = list(export.check(STORED))
    assert [row for row in checked if not row.holds] == []
    assert [row.name for row in checked if row.second != "holds"] == []


def test_the_stored_set_is_small_and_covers_everything(stored):
    assert sum(path.stat().st_size for path in STORED.rglob("*.*")) < 1_250_000
    assert {v.method.name for v in stored if v.result == "valid"} == set(METHODS)
    values = {(name, value) for v in stored for name, found in v.flags.convention.items() for value in found}
    assert values >= {(name, value) for name, found in refprune.adapters.implementation.EVERY.items() for value in found}
    assert {v.flags.bug_class for v in stored} == set(files.BUG_CLASSES)
    assert len({v.flags.mistake for v in stored if v.result == "invalid"}) > 100
    assert all(v.flags.kinks == 0 for v in stored)


def test_extremes_are_reached(stored):
    valid = [v for v in stored if v.result == "valid"]
    ends = {float(t) for v in valid if "theta" in v.arguments for t in v.arguments["theta"].ravel()}
    assert {0.0, 1.0} <= ends
    assert any(v.method.name == "network" and len(v.arguments["x"]) == 1 for v in valid)
    assert any((v.arguments["x"] == 0.0).any() for v in valid if v.method.name == "leaky_relu")
    assert any(np.isinf(v.values["kl"]).any() for v in valid if v.method.name == "kl")


def test_every_extreme_is_stored_under_its_aim(stored):
    assert {e.aim for e in extremes.extremes()} <= {v.flags.aim for v in stored}


def test_no_right_answer_is_within_a_tolerance_of_an_invalid_vector(stored):
    """Right ones may be off by one tolerance: from the oracle it must be more than two, somewhere in every result."""
    for v in (v for v in stored if v.result == "invalid"):
        expected = v.method.expect(v.arguments, UNIT[v.precision])
        for name, wrong in v.values.items():
            with np.errstate(invalid="ignore"):
                distance = np.abs(wrong.astype(float) - expected.values[name].astype(float))
            assert (distance > 2.0 * v.tolerance[name]).any(), (v.name, name)


def test_acceptable_means_another_convention_than_pytorchs(stored):
    for v in stored:
        standard = all(value in files.STANDARD[n] for n, found in v.flags.convention.items() for value in found)
        assert v.result == "invalid" or (v.result == "valid") == standard


# The schema ---------------------------------------------------------------------------------------------------------------


def test_the_schema_is_one_and_the_stored_vectors_obey_it():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    check = jsonschema.Draft202012Validator(SCHEMA)
    for path in PATHS:
        check.validate(json.loads(path.read_text(encoding="utf-8")))


def test_the_files_beside_the_vectors_are_the_packages():
    for name, source in files.BESIDE.items():
        assert (STORED / name).read_bytes() == (Path(files.__file__).parent / source).read_bytes()


def _changed(content, place, value):
    content = copy.deepcopy(content)
    *path, last = place
    where = content
    for key in path:
        where = where[key]
    if value is KeyError:
        del where[last]
    else:
        where[last] = value
    return content


DAMAGES = [
    (("format",), "refprune-vector-1", "another format"),
    (("source",), KeyError, "source missing"),
    (("source",), 3, "source: must be text"),
    (("more",), 1, "more not known"),
    (("method",), "x", "method: 'x' is none of"),
    (("method",), None, "method: None is none of"),
    (("level",), "x", "level: 'x' is none of"),
    (("precision",), "float16", "precision: 'float16' is none of"),
    (("result",), "wrong", "result: 'wrong' is none of"),
    (("arrays",), "../gate-valid-0.npz", "arrays: '../gate-valid-0.npz' is none of"),
    (("arrays",), "gate-valid-0.pkl", "arrays: 'gate-valid-0.pkl' is none of"),
    (("results",), [], "results: must be a list"),
    (("results",), ["y", "y"], "results: must be a list"),
    (("results",), [1], "results: must be a list"),
    (("arguments",), [], "arguments: must be an object"),
    (("flags",), None, "flags: must be an object"),
    (("flags", "aim"), KeyError, "aim missing"),
    (("flags", "aim"), 1, "aim: must be text"),
    (("flags", "bug_class"), "bad", "bug_class: 'bad' is none of"),
    (("flags", "mistake"), "gate not applied", "mistake: must be a name where"),
    (("result",), "invalid", "mistake: must be a name where"),
    (("flags", "kinks"), -1, "kinks: must be a whole number"),
    (("flags", "kinks"), 0.5, "kinks: must be a whole number"),
    (("flags", "convention"), {"x": [1]}, "convention: allowed are"),
    (("flags", "convention"), {"ties": []}, "convention: values must be lists"),
    (("flags", "convention"), {"ties": "first"}, "convention: values must be lists"),
]
#: What no schema says: arguments are those of the method, arrays exist and fit.
BEYOND = [
    (("arguments", "x"), KeyError, "arguments: x missing"),
    (("arguments", "z"), 1, "arguments: z not known"),
    (("arguments", "x"), {"array": "none"}, "none"),
    (("results",), ["z"], "want/z"),
]


@pytest.fixture
def gate(tmp_path):
    """A folder with one valid vector of the gate."""
    for suffix in (".json", ".npz"):
        shutil.copy(STORED / "layers" / f"gate-valid-0{suffix}", tmp_path)
    return tmp_path


@pytest.mark.parametrize(("place", "value", "message"), DAMAGES)
def test_schema_and_reader_refuse_the_same(gate, place, value, message):
    content = _changed(json.loads((gate / "gate-valid-0.json").read_text()), place, value)
    assert not jsonschema.Draft202012Validator(SCHEMA).is_valid(content)
    (gate / "gate-valid-0.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=re.escape(message)):
        list(files.read(gate))


@pytest.mark.parametrize(("place", "value", "message"), BEYOND)
def test_the_reader_refuses_more(gate, place, value, message):
    content = _changed(json.loads((gate / "gate-valid-0.json").read_text()), place, value)
    (gate / "gate-valid-0.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=re.escape(message)):
        list(files.read(gate))


def test_files_that_cannot_be_read(gate, tmp_path_factory):
    with pytest.raises(InputError, match="there are no vectors"):
        list(files.read(tmp_path_factory.mktemp("empty")))
    (gate / "gate-valid-0.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match=re.escape("gate-valid-0.npz")):
        list(files.read(gate))
    (gate / "gate-valid-0.json").write_text("{")
    with pytest.raises(InputError, match=re.escape("gate-valid-0.json: is not JSON")):
        list(files.read(gate))


# Checking -----------------------------------------------------------------------------------------------------------------


def _rewritten(folder, name, **changes):
    """The arrays of one vector put through functions."""
    with np.load(folder / f"{name}.npz") as file:
        arrays = dict(file)
    np.savez(folder / f"{name}.npz", **{key: changes.get(key, lambda a: a)(a) for key, a in arrays.items()})


def test_a_damaged_value_is_seen_by_both_witnesses(gate):
    _rewritten(gate, "gate-valid-0", **{"want/dx": lambda a: a + 1e-9})
    (row,) = export.check(gate, [ORACLE])
    assert (row.oracle, row.second) == ("deviates in dx", "deviates in dx")
    assert not row.holds


@pytest.mark.parametrize("factor", [1e3, 1e-3])
def test_a_changed_tolerance_is_seen(gate, factor):
    _rewritten(gate, "gate-valid-0", **{"tolerance/dx": lambda a: a * factor})
    (row,) = export.check(gate, [ORACLE])
    assert row.oracle == "another tolerance of dx"


def test_another_convention_than_flagged_is_seen(gate):
    content = json.loads((gate / "gate-valid-0.json").read_text())
    content["flags"]["convention"] = {"ties": ["last"]}
    (gate / "gate-valid-0.json").write_text(json.dumps(content))
    (row,) = export.check(gate, [ORACLE])
    assert row.oracle == "another convention"


@pytest.fixture
def invalid(tmp_path, stored):
    """A folder with one invalid vector, of a gate without its backward pass."""
    (vector,) = [v for v in stored if v.flags.mistake == "gate missing in the backward pass"]
    files.write(tmp_path, vector._replace(name="v-0"))
    return tmp_path


def test_an_invalid_vector_is_rejected_by_both_witnesses(invalid):
    (row,) = export.check(invalid, [ORACLE])
    assert (row.result, row.oracle, row.second) == ("invalid", "holds", "holds")


def test_a_witness_with_the_mistake_agrees_with_the_invalid_vector(invalid):
    mistake = next(m for m in KNOWN if m.name == "gate missing in the backward pass")
    wrong = dataclasses.replace(refprune.backend.ORACLE, gate_vjp=mistake.wrong(layers.gate_vjp))
    (row,) = export.check(invalid, [("mutant", lambda: InProcess(BackendImplementation(wrong)))])
    assert row.second == "agrees in dx"
    assert not row.holds


def test_an_invalid_vector_that_is_right_or_another_mistakes_is_seen(invalid, stored):
    (vector,) = files.read(invalid)
    right = vector.method.expect(vector.arguments, UNIT[vector.precision]).values
    files.write(invalid, vector._replace(values={name: right[name] for name in vector.values}))
    (row,) = export.check(invalid, [ORACLE])
    assert (row.oracle, row.second) == ("agrees in dx", "agrees in dx")
    files.write(invalid, vector._replace(flags=vector.flags._replace(mistake="sign of the gate's gradient")))
    (row,) = export.check(invalid, [ORACLE])
    assert row.oracle == "the mistake has other numbers"
    files.write(invalid, vector._replace(flags=vector.flags._replace(mistake="a typing error")))
    (row,) = export.check(invalid, [ORACLE])
    assert row.oracle == "no known mistake has this name"


@pytest.mark.parametrize(
    ("estimator", "method"), [*((e, "theta_estimate") for e in ESTIMATORS), ("exact", "complexity"), ("exact", "prior")]
)
def test_the_second_witness_is_right_on_drawn_examples_too(estimator, method):
    """Its estimators, enumeration of costs and quadrature share nothing with what they are compared with."""
    (outcome,) = campaign.run(InProcess(Witness(estimator)), [METHODS[method]], 25, 0)
    assert outcome.verdict == "conforms", outcome.findings
    assert outcome.withheld == []
    assert outcome.declined <= 5


# Writing ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("container", ["npz", "safetensors"])
def test_what_is_read_is_what_was_written(tmp_path, stored, container):
    chosen = [v for v in stored if v.method.name in ("conv2d", "network", "pruning_decision", "theta_estimate", "add")]
    for v in chosen:
        files.write(tmp_path, v, container)
    again = list(files.read(tmp_path))
    assert len(list(tmp_path.glob(f"*.{container}"))) == len(again) == len(chosen)
    for mine, theirs in zip(again, chosen, strict=True):
        assert mine._replace(arguments={}, values={}, tolerance={}) == theirs._replace(arguments={}, values={}, tolerance={})
        for a, b in ((mine.arguments, theirs.arguments), (mine.values, theirs.values), (mine.tolerance, theirs.tolerance)):
            np.testing.assert_equal(a, b)
            assert list(a) == list(b)


def test_float32_vectors_hold_too(tmp_path):
    export.export(tmp_path, methods=[METHODS[name] for name in ("gate", "dense", "hyper_prior")], precision="float32")
    checked = list(export.check(tmp_path))
    assert {row.result for row in checked} == {"valid", "invalid"}
    assert [row for row in checked if not row.holds] == []
    (first, *_) = files.read(tmp_path)
    assert first.arguments["x"].dtype == np.float32


def test_exporting_again_gives_the_same_files(tmp_path):
    for folder in ("a", "b"):
        export.export(tmp_path / folder, methods=[METHODS["gate"], METHODS["beta"]], seed=5)
    a, b = (sorted(p.relative_to(tmp_path / f) for p in (tmp_path / f).rglob("*.*")) for f in ("a", "b"))
    assert a == b
    names = [path.as_posix() for path in a]
    assert {"README.md", "schema.json", "layers/gate-valid-0.npz", "scalars/beta-valid-0.json"} <= set(names)
    assert all((tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in names)


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
    assert f"conforms in {count + 20} examples; a mistake that shows in 14 % of those drawn" in reporting.text(
        list(both), described
    )


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
    _rewritten(gate, "gate-valid-0", **{"want/y": lambda a: a + 1.0})
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
