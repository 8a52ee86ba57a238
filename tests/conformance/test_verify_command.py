"""The command refprune verify: its files, exit codes and refusals."""

import dataclasses
import json
import os
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from formula_adapter import Formulas
from verify_cases import ADAPTER, judged

from refprune.backend import ORACLE
from refprune.cli import main as cli
from refprune.conformance import campaign, reporting
from refprune.conformance.asking import methods
from refprune.conformance.asking.calls import describe, load
from refprune.conformance.judging.verdicts import Expectation, compare, judge
from refprune.conformance.levels import METHODS, SAMPLED
from refprune.conformance.strategies import networks
from refprune.errors import InputError
from refprune.rounding.tolerance import UNIT
from refprune.spec.json_form import to_json
from refprune.spec.layers import Activation, Dense
from refprune.spec.network import Network


@pytest.fixture(autouse=True)
def _little_shrinking(monkeypatch):
    monkeypatch.setattr(campaign, "SHRINKING", 2.0)


SUPPORT = Path(__file__).parents[1] / "support"

U = UNIT["float32"]


def test_the_command(tmp_path, capsys, monkeypatch):
    """Exit codes 0, 1 and 2, and the three files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(ADAPTER.format(name="Mine", body="return x * g, dy, (x * dy).sum()"))
    common = ["verify", "mine.py:Mine", "--examples", "30"]
    assert cli.main([*common, "--level", "scalars"]) == 0
    printed = capsys.readouterr().out
    assert "9.5 % of its 30 (penalty_slope)" in printed
    assert "the same 10 examples are asked in every run, the largest sizes among them: penalty_slope 65" in printed
    assert "conforms in 40 examples" in printed
    files = ["--json", "r.json", "--junit", "r.xml", "--report", "r.html"]
    assert cli.main([*common, *files]) == 1
    printed = capsys.readouterr().out
    assert "deviates in gate" in printed
    assert "not provided, and therefore not judged: pi_star" in printed
    found = json.loads((tmp_path / "r.json").read_text())
    assert [m["method"] for m in found["methods"] if m["verdict"] == "DEVIATES"] == ["gate"]
    suite = ElementTree.parse(tmp_path / "r.xml").getroot()
    assert (suite.get("failures"), suite.get("tests")) == ("1", str(len(METHODS) + len(SAMPLED)))
    assert "<h2>gate: deviates" in (tmp_path / "r.html").read_text()
    assert list((tmp_path / "verify-failures").glob("gate-deviates.py"))
    assert cli.main(["verify", "mine.py:Yours"]) == 2
    assert "mine.py has no Yours" in capsys.readouterr().err
    assert cli.main(["verify", "mine.py:Mine", "--level", "everything"]) == 2
    assert "'everything' is not known" in capsys.readouterr().err


def test_structures_are_as_many_as_asked_for(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "import numpy as np\nfrom formula_adapter import Formulas\nclass Mine(Formulas):\n"
        "    def gate(self, x, g, dy):\n        open('shapes', 'a').write(f'{x.shape} {g.shape}\\n')\n"
        "        return super().gate(x, g, dy)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(SUPPORT), prepend=os.pathsep)
    assert cli.main(["verify", "mine.py:Mine", "--level", "gate", "--examples", "40", "--structures", "2"]) == 0
    asked = (tmp_path / "shapes").read_text().splitlines()
    assert 1 <= len(set(asked[:-4])) <= 2
    assert len(set(asked)) <= 2 + 2 + 2  # two extremes, and two of what is standing
    assert cli.main(["verify", "mine.py:Mine", "--structures", "0"]) == 2
    assert "--structures: must be at least 1, got 0" in capsys.readouterr().err


def test_an_impossible_number_of_structures_is_refused():
    mine = Formulas()
    mine.structures = 0
    with pytest.raises(InputError, match="structures: must be at least 1"):
        describe(mine)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nowhere", "expected package.module:Name"),
        ("nowhere.py:Mine", "there is no file nowhere.py"),
        ("refprune.errors:InputError", "not a refprune.Implementation"),
    ],
)
def test_targets_that_cannot_be_loaded(target, message):
    with pytest.raises(InputError, match=message):
        load(target)


def test_an_unknown_precision_is_refused():
    mine = Formulas()
    mine.precision = "float16"
    with pytest.raises(InputError, match="precision: 'float16' is not known"):
        describe(mine)


# Comparing ----------------------------------------------------------------------------------------------------------------


def test_entries_are_listed_with_index_values_and_distances():
    want = np.array([[1.0, 2.0], [4.0, 0.0]])
    got = want + np.array([[0.0, 0.5], [0.25, 0.0]])
    c = compare("x", got, want, np.full((2, 2), 0.1), unit=UNIT["float64"])
    assert (c.off, c.ratio) == (2, 5.0)
    assert c.worst[0][:5] == ((0, 1), 2.5, 2.0, 0.5, 0.25)
    assert c.worst[0].ulps == 0.5 / 2.0**-51
    assert c.worst[1].place == (1, 0)


def test_nan_and_infinities():
    inf = np.array([np.inf, -np.inf, 1.0])
    assert compare("x", inf, inf, np.zeros(3), unit=U).holds
    assert compare("x", np.array([np.nan] * 3), inf, np.full(3, 1e9), unit=U).off == 3


def test_what_float32_cannot_hold_is_wanted_as_an_infinity():
    big, none = np.array([1e110, -1e110]), np.zeros(2)
    assert compare("x", np.array([np.inf, -np.inf]), big, none, unit=U).holds
    assert compare("x", np.array([np.inf, -np.inf]), big, none, unit=UNIT["float64"]).off == 2
    assert compare("x", np.array([np.inf, np.inf]), big, none, unit=U).off == 1


def test_bfloat16_rounds_to_nearest_even():
    got = methods.rounded(np.array([1.0, 1.0 + 2.0**-8, 1.0 + 3 * 2.0**-8, -3.1415926]), "bfloat16")
    np.testing.assert_array_equal(got, np.array([1.0, 1.0, 1.0 + 2.0**-6, -3.140625], dtype=np.float32))


def test_small_numbers_have_a_relative_tolerance():
    """π* = 2.8e-185, whose square float64 does not hold: a relative error of 1e-15 is right, one of 1e-9 is not."""
    arguments = {"theta": np.array([0.80964265]), "log_gamma": np.array([-426.40362604])}
    expected = METHODS["pi_star"].expect(arguments, UNIT["float64"])
    right = expected.values["pi_star"]
    assert judge(expected, {"pi_star": right * (1.0 + 2e-15)}, UNIT["float64"]).kind == "conforms"
    assert judge(expected, {"pi_star": right * (1.0 + 1e-9)}, UNIT["float64"]).kind == "deviates"


def test_a_tensor_that_zeros_would_pass_for_is_blind():
    value = np.array([0.5, -0.25])
    assert compare("x", value, value, np.array([0.6, 0.3]), unit=U).blind
    assert not compare("x", value, value, np.array([0.6, 0.2]), unit=U).blind
    assert not compare("x", np.zeros(2), np.zeros(2), np.ones(2), unit=U).blind, "zeros are right"
    assert not compare("x", np.zeros(2), np.full(2, 1e-40), np.full(2, 1e-38), unit=U).blind, "float32 has no such number"
    assert not compare("x", np.zeros(1), np.array([1e-17]), np.array([1e-6]), unit=U).blind, "0, but for the oracle's rounding"
    assert compare("x", np.zeros(1), np.array([1e-12]), np.array([1e-6]), unit=U).blind


def test_an_example_of_blind_tensors_is_undecided_whatever_the_answer():
    blind, seeing = np.array(1.0), np.array([1.0])
    expected = Expectation({"x": blind, "y": seeing}, {"x": np.array(2.0), "y": np.array([0.1])})
    for got in (1.0, 99.0, np.nan):
        assert judge(expected, {"x": np.array(got)}, U).kind == "undecided"
    assert judge(expected, {"x": np.array(1.5), "y": seeing}, U).kind == "conforms"
    assert judge(expected, {"x": np.array(99.0), "y": seeing}, U).kind == "deviates"


def cascade(sign):
    """Two ReLUs in a row, the first at a kink; behind it the second's input is exactly 0, or not."""
    network = Network((2,), (Dense(1, False), Activation(), Dense(1, False), Activation(), Dense(2)))
    case = networks.Case(network, batch=1, seed=1, train=False)
    params = case.params | {"dense1.weight": np.array([[0.5, -0.5 + sign * 2.0**-30]]), "dense2.weight": np.ones((1, 1))}
    arguments = {"spec": to_json(network), "params": params, "statistics": {}, "x": np.ones((1, 2)), "target": case.target}
    return arguments | {"gates": np.zeros(0), "train": False}


@pytest.mark.parametrize("shows", [True, False])
def test_what_lies_behind_a_kink_is_judged_on_the_branch_taken_there(shows):
    method = METHODS["network"]
    expected = method.expect(cascade(-1.0), U)
    np.testing.assert_array_equal(expected.branches["branches/relu1"], [[-1]])
    np.testing.assert_array_equal(expected.branches["branches/relu2"], [[0]])
    answer = method.values(cascade(1.0), ORACLE)
    signs = {"branches/relu1": np.array([[1]]), "branches/relu2": np.array([[1]])} if shows else {}
    assert judge(expected, answer | signs, U).kind == "kink"
    wrong = answer | {"input": answer["input"] * 1.01}
    assert judge(expected, wrong | signs, U).kind == "deviates"


def test_branches_that_contradict_each_other_are_wrong():
    """The second ReLU cannot be on behind a first one that is off."""
    expected = METHODS["network"].expect(cascade(-1.0), U)
    answer = dict(expected.values) | {"branches/relu1": np.array([[-1]]), "branches/relu2": np.array([[1]])}
    verdict = judge(expected, answer, U)
    assert (verdict.kind, verdict.first.name) == ("deviates", "branches/relu2")


class Similar(Formulas):
    """CKA in bfloat16: in most of its examples its rounding is as large as it is."""

    precision = "bfloat16"

    def minibatch_cka(self, x, y):
        return methods.rounded(METHODS["minibatch_cka"].values({"x": x, "y": y}, ORACLE)["minibatch_cka"], "bfloat16")

    def gate(self, x, g, dy):
        return tuple(methods.rounded(a, "bfloat16") for a in super().gate(x, g, dy))


def test_what_cannot_be_judged_in_a_precision_is_undecided_and_not_passed(tmp_path, monkeypatch):
    cka, gate = judged(Similar(), "minibatch_cka", "gate").values()
    assert (cka.verdict, gate.verdict) == ("undecided", "conforms")
    assert cka.undecided > campaign.MOST_UNDECIDED * cka.examples
    assert not reporting.conforms([cka, gate])
    text = reporting.text([cka, gate], describe(Similar()))
    assert "undecided in minibatch_cka; elsewhere conforms in 70 examples" in text
    assert "zeros would pass: minibatch_cka minibatch_cka" in text
    suite = ElementTree.fromstring(reporting.junit([cka, gate], "mine"))
    assert (suite.get("failures"), suite.get("skipped")) == ("0", "1")
    monkeypatch.setenv("PYTHONPATH", str(SUPPORT), prepend=os.pathsep)
    target = [f"{__file__}:Similar", "--examples", "30", "--failures", str(tmp_path)]
    assert cli.main(["verify", *target, "--level", "minibatch_cka,gate"]) == 3
    assert cli.main(["verify", *target, "--level", "gate"]) == 0


def test_a_kink_is_judged_on_its_other_branch():
    right, other = (Expectation({"y": np.array([v])}, {"y": np.array([0.1])}) for v in (0.0, 1.0))
    ambiguous = dataclasses.replace(right, ambiguous=1, alternatives=lambda: iter([other]))
    assert judge(ambiguous, {"y": np.array([1.05])}, U).kind == "kink"
    assert judge(ambiguous, {"y": np.array([0.5])}, U).kind == "deviates"
    assert judge(dataclasses.replace(right, ambiguous=99), {"y": np.array([1.0])}, U).kind == "undecided"
    assert judge(right, {"y": np.array([1.0])}, U).kind == "deviates"
