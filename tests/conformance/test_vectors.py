"""Vectors: the stored set holds by two witnesses, what is damaged is seen, files are refused by name, all by the schema."""

import copy
import dataclasses
import json
import re
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from vector_cases import ORACLE, PATHS, STORED, rewritten

import refprune
from refprune.conformance import campaign
from refprune.conformance.asking.calls import InProcess
from refprune.conformance.levels import METHODS
from refprune.conformance.vectors import export, extremes, files
from refprune.conformance.vectors.backend import BackendImplementation
from refprune.conformance.vectors.torch_witness import Witness
from refprune.errors import InputError
from refprune.gates.estimators import ESTIMATORS
from refprune.mistakes.catalogue import KNOWN
from refprune.oracle import layers
from refprune.rounding.tolerance import UNIT

SCHEMA = json.loads((STORED / "schema.json").read_text(encoding="utf-8"))


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


def test_a_damaged_value_is_seen_by_both_witnesses(gate):
    rewritten(gate, "gate-valid-0", **{"want/dx": lambda a: a + 1e-9})
    (row,) = export.check(gate, [ORACLE])
    assert (row.oracle, row.second) == ("deviates in dx", "deviates in dx")
    assert not row.holds


@pytest.mark.parametrize("factor", [1e3, 1e-3])
def test_a_changed_tolerance_is_seen(gate, factor):
    rewritten(gate, "gate-valid-0", **{"tolerance/dx": lambda a: a * factor})
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
    assert outcome.declined <= 6


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
