"""`refprune verify`: what is right passes, what is wrong is found, located and named; bad manners have their own findings."""

import dataclasses
import itertools
import json
import os
import textwrap
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from formula_adapter import Formulas

import refprune
from refprune.backend import ORACLE
from refprune.cli import main as cli
from refprune.conformance import campaign, reporting
from refprune.conformance.asking import methods, scripts
from refprune.conformance.asking.calls import InProcess, describe, load, named
from refprune.conformance.asking.worker import Worker
from refprune.conformance.judging.verdicts import Expectation, compare, judge
from refprune.conformance.levels import LEVELS, METHODS, SAMPLED
from refprune.conformance.strategies import networks
from refprune.conformance.vectors.backend import BackendImplementation
from refprune.errors import InputError
from refprune.mistakes.catalogue import KNOWN
from refprune.mistakes.planting import planted
from refprune.oracle import layers
from refprune.rounding.tolerance import UNIT
from refprune.spec.json_form import to_json
from refprune.spec.layers import Activation, Dense, UnitGate
from refprune.spec.network import Network

U = UNIT["float32"]


@pytest.fixture(autouse=True)
def _little_shrinking(monkeypatch):
    monkeypatch.setattr(campaign, "SHRINKING", 2.0)


def judged(implementation, *names, examples=12, seed=0):
    """Method → outcome, so many examples of each."""
    chosen = [METHODS[name] for name in names]
    return {o.method: o for m in chosen for o in campaign.run(InProcess(implementation), [m], examples, seed)}


# What is right passes -----------------------------------------------------------------------------------------------------


def test_every_method_of_an_implementation_is_judged_by_one_level():
    documented = [n for n, f in vars(refprune.Implementation).items() if callable(f) and not n.startswith("_")]
    assert {*METHODS, *SAMPLED} == set(documented)
    assert not set(METHODS) & set(SAMPLED)
    assert sum(map(len, LEVELS.values())) == len(METHODS)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_the_oracle_conforms(precision):
    names = [m.name for m in LEVELS["layers"]] + ["network", "theta_estimate", "training_steps", "compact"]
    for name, outcome in judged(BackendImplementation(ORACLE, precision), *names, examples=6).items():
        assert outcome.verdict == "conforms", (name, outcome.findings)
        assert 0.0 <= outcome.ratio <= 1.0
        assert outcome.examples == 6


def test_what_is_not_provided_is_not_passed():
    (outcome,) = campaign.run(InProcess(refprune.Implementation()), [METHODS["gate"]], 10, 0)
    assert outcome.verdict == "not provided"
    assert not reporting.conforms([outcome])


# What is wrong is found, located and named --------------------------------------------------------------------------------


class WrongSign(Formulas):
    def penalty_slope(self, theta, log_gamma):
        return log_gamma


class Forgotten(Formulas):
    def beta(self, log_gamma, samples):
        return -log_gamma


class Leaking(Formulas):
    def gate(self, x, g, dy):
        y, _, dg = super().gate(x, g, dy)
        return y, dy, dg


class Novel(Formulas):
    def gate(self, x, g, dy):
        y, dx, dg = super().gate(x, g, dy)
        return y, 1.001 * dx, dg


def test_correct_formulas_conform():
    for outcome in judged(Formulas(), "penalty_slope", "beta", "gate").values():
        assert outcome.verdict == "conforms", outcome.findings


@pytest.mark.parametrize(
    ("implementation", "method", "mistake"),
    [
        (WrongSign, "penalty_slope", "slope of the penalty with the wrong sign"),
        (Forgotten, "beta", "1/N dropped in β"),
        (Leaking, "gate", "gate missing in the backward pass"),
    ],
)
def test_a_known_mistake_is_named(implementation, method, mistake):
    (finding,) = judged(implementation(), method)[method].findings
    assert finding.kind == "deviates"
    assert mistake in [m.name for m in finding.mistakes]


def test_an_unknown_mistake_is_located():
    (finding,) = judged(Novel(), "gate")["gate"].findings
    assert finding.first.name == "dx"
    assert [c.name for c in finding.comparisons if c.holds] == ["y", "dg"]
    assert finding.mistakes == ()
    entry = finding.first.worst[0]
    assert entry.relative == pytest.approx(1e-3, rel=1e-6)
    text = "\n".join(reporting.finding_lines(finding))
    assert "the first difference along the data flow is in dx" in text
    assert "no known mistake has these numbers" in text


def test_columns_cut_at_the_wrong_end_are_found():
    """The compact network must compute what the masked one does (N4)."""
    network = Network((2,), (Dense(4), Activation("tanh"), UnitGate(), Dense(3)))
    case = networks.Case(network, batch=3, seed=1, train=False)
    arguments = {"spec": to_json(network), "params": case.params, "statistics": {}, "x": case.x, "train": False}
    arguments["keep"] = np.array([False, True, True, False])
    expected = METHODS["compact"].expect(arguments, UNIT["float64"])
    right = InProcess(BackendImplementation()).call(METHODS["compact"], arguments, twice=True)
    assert judge(expected, right.answer, UNIT["float64"]).kind == "conforms"
    with planted(next(m for m in KNOWN if m.name == "pruned columns taken from the end")):
        wrong = InProcess(BackendImplementation()).call(METHODS["compact"], arguments, twice=True)
    verdict = judge(expected, wrong.answer, UNIT["float64"])
    assert (verdict.kind, verdict.first.name) == ("deviates", "output")
    assert not next(c for c in verdict.comparisons if c.name == "params/dense2.weight").holds


def test_examples_are_made_small():
    (finding,) = judged(Novel(), "gate", examples=40)["gate"].findings
    assert finding.arguments["x"].size <= 4


def test_the_first_divergence_of_a_network():
    """Batch-norm's backward without its mean: forward is right; the first wrong gradient lies behind the last batch-norm."""
    wrong = next(m for m in KNOWN if m.name == "batch-norm's mean taken for a constant")
    backend = dataclasses.replace(ORACLE, batch_norm_vjp=wrong.wrong(layers.batch_norm_vjp))
    (finding,) = judged(BackendImplementation(backend), "network", examples=25)["network"].findings
    assert finding.first.name.startswith(("params/", "gates", "input"))
    assert wrong.name in [m.name for m in finding.mistakes]
    assert all(c.holds for c in finding.comparisons if c.name in ("loss", "output"))


def test_the_smallest_example_runs_as_a_script(tmp_path, capsys):
    adapter = tmp_path / "mine.py"
    adapter.write_text(ADAPTER.format(name="Mine", body="return x * g, dy, (x * dy).sum()"))
    mine = load(f"{adapter}:Mine")
    (finding,) = judged(mine, "gate")["gate"].findings
    exec(compile(scripts.script(finding, f"{adapter}:Mine", "float64"), "script.py", "exec"), {})
    printed = capsys.readouterr().out
    assert "got" in printed
    assert "wanted" in printed


# Bad manners --------------------------------------------------------------------------------------------------------------


def _raises(x, g, dy):
    raise RuntimeError("no such kernel")


def _prints(x, g, dy):
    print("debug")
    return Formulas().gate(x, g, dy)


def _changes(x, g, dy):
    found = Formulas().gate(x, g, dy)
    x += 1.0
    return found


def _nan(x, g, dy):
    y, dx, dg = Formulas().gate(x, g, dy)
    return y, dx * np.nan, dg


CALLS = itertools.count()


def _another_every_time(x, g, dy):
    y, dx, dg = Formulas().gate(x, g, dy)
    return y + next(CALLS), dx, dg


MANNERS = {
    "raises": (_raises, "RuntimeError: no such kernel"),
    "prints": (_prints, "wrote 'debug"),
    "changes its input": (_changes, "changed x"),
    "not finite": (_nan, "dx has"),
    "shape": (lambda x, g, dy: (x[None], dy, g), "y has shape"),
    "dtype": (lambda x, g, dy: tuple(a.astype("f4") for a in Formulas().gate(x, g, dy)), "float32, wanted float64"),
    "not repeatable": (_another_every_time, "other bits"),
}


@pytest.mark.parametrize("kind", MANNERS)
def test_bad_manners_are_findings_of_their_own(kind):
    function, message = MANNERS[kind]
    mine = type("Mine", (refprune.Implementation,), {"gate": lambda self, x, g, dy: function(x, g, dy)})
    outcome = judged(mine(), "gate", examples=30)["gate"]
    finding = next(f for f in outcome.findings if f.kind == kind)
    assert message in finding.message
    assert finding.arguments
    assert outcome.verdict == ("conforms" if kind == "prints" else "DEVIATES")


def test_results_by_tuple_dict_and_wrong_number():
    assert list(named(("y", "dx"), (1.0, None))) == ["y"]
    assert list(named((), {"params": {"w": [1.0]}, "loss": 2.0})) == ["params/w", "loss"]
    with pytest.raises(ValueError, match="returned 3 results, documented are 2: y, dx"):
        named(("y", "dx"), (1, 2, 3))
    with pytest.raises(ValueError, match="documented is a dict"):
        named((), 1.0)


def test_declined_calls_are_not_passed():
    def declines(self, x, dy, slope, at_zero):
        raise NotImplementedError("only on Sundays")

    outcome = judged(type("Mine", (refprune.Implementation,), {"leaky_relu": declines})(), "leaky_relu")["leaky_relu"]
    assert (outcome.verdict, outcome.declined) == ("declined", 12)


# The worker and the command -----------------------------------------------------------------------------------------------

ADAPTER = textwrap.dedent(
    """
    import os, time
    import refprune

    class {name}(refprune.Implementation):
        def gate(self, x, g, dy):
            {body}

        def penalty_slope(self, theta, log_gamma):
            return -log_gamma
    """
)


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [("time.sleep(60)", "hangs", "no answer within"), ("os._exit(3)", "dies", "ended with code 3")],
)
def test_a_hang_and_a_death_are_found_and_the_run_goes_on(tmp_path, body, kind, message):
    (tmp_path / "mine.py").write_text(ADAPTER.format(name="Mine", body=body))
    worker = Worker(f"{tmp_path / 'mine.py'}:Mine", limit=1.0)
    try:
        gate, slope = campaign.run(worker, [METHODS["gate"], METHODS["penalty_slope"]], 10, 0)
    finally:
        worker.close()
    assert [f.kind for f in gate.findings] == [kind]
    assert message in gate.findings[0].message
    assert slope.verdict == "conforms"


def test_the_command(tmp_path, capsys, monkeypatch):
    """Exit codes 0, 1 and 2, and the three files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(ADAPTER.format(name="Mine", body="return x * g, dy, (x * dy).sum()"))
    common = ["verify", "mine.py:Mine", "--examples", "30"]
    assert cli.main([*common, "--level", "scalars"]) == 0
    assert "conforms in 30 examples" in capsys.readouterr().out
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
        "import numpy as np\nfrom test_verify import Formulas\nclass Mine(Formulas):\n"
        "    def gate(self, x, g, dy):\n        open('shapes', 'a').write(f'{x.shape} {g.shape}\\n')\n"
        "        return super().gate(x, g, dy)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    assert cli.main(["verify", "mine.py:Mine", "--level", "gate", "--examples", "40", "--structures", "2"]) == 0
    assert 1 <= len(set((tmp_path / "shapes").read_text().splitlines())) <= 2
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
    """CKA in bfloat16, wrong or not: its rounding is as large as it is."""

    precision = "bfloat16"

    def minibatch_cka(self, x, y):
        return np.float32(np.nan)

    def gate(self, x, g, dy):
        return tuple(methods.rounded(a, "bfloat16") for a in super().gate(x, g, dy))


def test_what_cannot_be_judged_in_a_precision_is_undecided_and_not_passed(tmp_path, capsys):
    cka, gate = judged(Similar(), "minibatch_cka", "gate").values()
    assert (cka.verdict, gate.verdict) == ("undecided", "conforms")
    assert cka.undecided > 0.9 * cka.examples
    assert not reporting.conforms([cka, gate])
    text = reporting.text([cka, gate], describe(Similar()))
    assert "undecided in minibatch_cka; elsewhere conforms in 12 examples" in text
    assert "zeros would pass: minibatch_cka minibatch_cka 1" in text
    suite = ElementTree.fromstring(reporting.junit([cka, gate], "mine"))
    assert (suite.get("failures"), suite.get("skipped")) == ("0", "1")
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
