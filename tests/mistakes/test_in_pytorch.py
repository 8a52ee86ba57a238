"""Known mistakes made in the PyTorch implementation: all of the catalogue are made or excused, some of each level tried.

The whole run is `python -m validation.mistakes.pytorch`.
"""

import numpy as np
import pytest

from refprune.adapters.pytorch.implementation import TorchImplementation
from refprune.backend import ORACLE
from refprune.conformance import campaign
from refprune.conformance.asking.calls import InProcess
from refprune.conformance.levels import METHODS
from refprune.mistakes.catalogue import KNOWN
from refprune.mistakes.planting import planted
from refprune.rounding.tolerance import UNIT
from refprune.spec import cost, zoo
from validation.mistakes.pytorch import __main__ as command
from validation.mistakes.pytorch.catalogue import PLANTED, try_out
from validation.mistakes.pytorch.in_pruning import Compacting
from validation.mistakes.pytorch.in_training import ESTIMATING
from validation.mistakes.pytorch.not_asked import NOT_ASKED
from validation.mistakes.pytorch.planting import Planted


@pytest.fixture(autouse=True)
def _little_shrinking(monkeypatch):
    monkeypatch.setattr(campaign, "SHRINKING", 0.5)


def test_every_known_mistake_is_made_in_pytorch_or_excused():
    known, made = {m.name for m in KNOWN}, {p.name for p in PLANTED}
    assert len(known) == len(KNOWN)
    assert made | set(NOT_ASKED) == known
    assert not made & set(NOT_ASKED)
    assert all(NOT_ASKED.values())


def test_each_method_that_pytorch_has_is_put_wrong_but_for_the_plain_ones():
    """tanh, sigmoid, gelu_tanh and flatten have nothing that implementations differ in."""
    made = {p.method for p in PLANTED}
    assert made <= set(METHODS)
    provided = set(InProcess(TorchImplementation()).description.provided)
    random = {"theta_sample"}  # put wrong in ten ways in test_sampled.py
    assert provided - made <= {"tanh", "sigmoid", "gelu_tanh", "flatten"} | random


ONE_A_LEVEL = {
    ("beta", "1/N dropped in β"): "beta",
    ("attracted", "domain with the eigenvalues of λ = 0"): "attracted",
    ("gate", "gate missing in the backward pass"): "dx",
    ("cka", "Gram matrices centred on one side"): "cka",
    ("network", "no gradient for the gate"): "gates",
    ("theta_gradient", "sign of ∂C/∂θ"): "theta",
    ("training_steps", "θ climbs"): "theta",
    ("compact", "what is removed is fixed to 1"): "output",
    ("complexity", "layer gate on weights alone"): "expected_parameters",
}


@pytest.mark.parametrize(("method", "name"), ONE_A_LEVEL, ids=lambda value: value.replace(" ", "-"))
def test_a_mistake_made_in_pytorch_is_found_and_named(method, name):
    (mistake,) = (p for p in PLANTED if (p.method, p.name) == (method, name))
    found = try_out(mistake)
    assert found.first == ONE_A_LEVEL[method, name]
    assert found.named, found.names


def test_a_mistake_is_named_by_its_numbers():
    (mistake,) = (p for p in PLANTED if p.name == "1/N dropped in β")
    found = try_out(mistake._replace(name="sign of β"))
    assert found.found
    assert not found.named
    assert found.verdict == "called 1/N dropped in β"


@pytest.mark.parametrize("method", ["gate", "attracted", "pi_star"])
def test_nothing_is_found_where_nothing_is_wrong(method):
    found = try_out(Planted("none", method, TorchImplementation))
    assert not found.found
    assert found.verdict == "NOT FOUND"


def test_tolerances_of_very_small_numbers_do_not_vanish():
    """π* = 3e-230: rounding log γ = −527 alone moves it by 300 ulp; squares of such sizes underflow."""
    arguments = {"theta": np.array([0.17773957]), "log_gamma": np.array([-526.9322996])}
    expected = METHODS["pi_star"].expect(arguments, UNIT["float64"])
    moved = {**arguments, "log_gamma": arguments["log_gamma"] * (1.0 + UNIT["float64"] * 2.0)}
    difference = abs(METHODS["pi_star"].values(moved, ORACLE)["pi_star"] - expected.values["pi_star"])
    assert 0.0 < difference < expected.tolerance["pi_star"]
    assert expected.tolerance["pi_star"] < 1e-11 * expected.values["pi_star"]


@pytest.mark.parametrize("kind", [*ESTIMATING, Compacting], ids=lambda kind: kind.__name__)
def test_what_wrong_ones_are_made_of_is_right(kind):
    method = METHODS["compact" if kind is Compacting else "theta_estimate"]
    (outcome,) = campaign.run(InProcess(kind()), [method], 12, 1)
    assert outcome.verdict == "conforms", outcome.findings


def test_a_planted_mistake_leaves_no_wrong_costs_behind():
    network = zoo.lenet5()
    (mistake,) = (m for m in KNOWN if m.name == "biases counted as MACs")
    right = cost.expected(network, np.ones(network.gate_count))
    with planted(mistake):
        wrong = cost.expected(network, np.ones(network.gate_count))
    assert wrong > right
    assert cost.expected(network, np.ones(network.gate_count)) == right


def test_the_command_writes_its_table(tmp_path, capsys):
    path = tmp_path / "table.md"
    assert command.main(["beta", "--table", str(path)]) == 0
    text = path.read_text()
    assert "| `beta` | sign of β | beta | named |" in text
    assert all(f"| {name} |" in text for name in NOT_ASKED if "|" not in name)
    assert "found, " in capsys.readouterr().out


def test_the_command_fails_for_what_is_not_found(monkeypatch):
    monkeypatch.setattr(command, "PLANTED", (Planted("sign of β", "beta", TorchImplementation),))
    assert command.main(["beta"]) == 1
