"""`refprune verify`: what is right passes, what is wrong is found, located and named; bad manners have their own findings."""

import dataclasses
import itertools

import numpy as np
import pytest
from formula_adapter import Formulas
from verify_cases import ADAPTER, judged

import refprune
from refprune.backend import ORACLE
from refprune.conformance import campaign, reporting
from refprune.conformance.asking import scripts
from refprune.conformance.asking.calls import InProcess, load, named
from refprune.conformance.asking.worker import Worker
from refprune.conformance.judging.verdicts import judge
from refprune.conformance.levels import LEVELS, METHODS, SAMPLED
from refprune.conformance.strategies import networks
from refprune.conformance.vectors.backend import BackendImplementation
from refprune.mistakes.catalogue import KNOWN
from refprune.mistakes.planting import planted
from refprune.oracle import layers
from refprune.rounding.tolerance import UNIT
from refprune.spec.json_form import to_json
from refprune.spec.layers import Activation, Dense, UnitGate
from refprune.spec.network import Network


@pytest.fixture(autouse=True)
def _little_shrinking(monkeypatch):
    monkeypatch.setattr(campaign, "SHRINKING", 2.0)


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
        assert outcome.examples - outcome.standing == 6


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


def test_dropout_left_in_is_not_repeatable_and_not_a_deviation():
    """Its numbers are wrong, but by chance: also where the first calls, which are made twice, are too small to show it."""
    rng = np.random.default_rng(0)

    def dropout(x, g, dy):
        y, dx, dg = Formulas().gate(x, g, dy)
        return (2.0 * y * (rng.random(y.shape) < 0.5) if y.size > 150 else y), dx, dg

    mine = type("Mine", (refprune.Implementation,), {"gate": lambda self, x, g, dy: dropout(x, g, dy)})
    outcome = judged(mine(), "gate", examples=30)["gate"]
    assert outcome.examples > campaign.REPEATED
    assert [f.kind for f in outcome.findings] == ["not repeatable"]
    assert outcome.verdict == "DEVIATES"


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
    assert (outcome.verdict, outcome.declined) == ("declined", outcome.examples)


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
