"""Pruning in PyTorch: they conform, and what is put wrong in them is seen."""

import numpy as np
import pytest
import torch
from torch import nn

from refprune.adapters.pytorch import surgery
from refprune.adapters.pytorch.implementation import CONVENTIONS, TorchImplementation
from refprune.adapters.pytorch.model import build
from refprune.conformance import campaign
from refprune.conformance.asking.calls import InProcess
from refprune.conformance.judging.verdicts import judge
from refprune.conformance.levels import METHODS, pruning
from refprune.conformance.strategies.networks import Case
from refprune.conformance.vectors.backend import BackendImplementation
from refprune.rounding.tolerance import UNIT
from refprune.spec.json_form import to_json
from refprune.spec.layers import Activation, BatchNorm, Conv, Dense, Flatten, MaxPool, Section, UnitGate
from refprune.spec.network import Network

TANH, SIDES = Activation("tanh"), ((1, 1), (1, 1))


def network():
    """Units before a flatten, a section with units inside and at its end, ρ behind sections, a section that empties."""
    inner = (Conv(3, (3, 3), padding=SIDES), BatchNorm(), TANH, UnitGate(), Conv(2, (1, 1)), UnitGate())
    emptied = (Conv(2, (1, 1)), TANH, UnitGate(), Conv(2, (1, 1)))
    sections = (Section(inner, post="relu", channels=(1, 0)), Section(emptied, post="relu"), Section((Conv(2, (1, 1)),)))
    head = (Conv(4, (2, 2)), BatchNorm(), Activation("gelu"), UnitGate(), MaxPool((2, 2), (2, 2)), Flatten(), Dense(3))
    return Network((2, 5, 5), (*sections, *head))


KEEP = {
    "all": [1] * 14,
    "units": [1, 0, 1, 1, 0, 1, 1, 1, 0, 1, 0, 1, 0, 1],
    "a section that is first": [0, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
    "two that close": [0, 1, 1, 1, 1, 1, 0, 1, 1, 0, 1, 0, 0, 0],
    "an emptied section": [1, 1, 1, 1, 0, 1, 1, 0, 0, 0, 1, 1, 1, 0],
    "no summand left": [1, 1, 0, 1, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1],
}


def asked(keep, train):
    case = Case(network(), 3, 11, train)
    arguments = {"spec": to_json(case.network), "params": case.params, "statistics": case.statistics, "x": case.x}
    return arguments | {"keep": np.array(KEEP[keep], dtype=bool), "train": train}


def judged(arguments):
    reply = InProcess(TorchImplementation()).call(METHODS["compact"], arguments, twice=True)
    expected = METHODS["compact"].expect(arguments, UNIT["float64"])
    assert set(reply.answer) == set(expected.values), reply.message
    return judge(expected, reply.answer, UNIT["float64"])


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("keep", KEEP)
def test_a_cut_module_computes_what_the_masked_network_does(keep, train):
    verdict = judged(asked(keep, train))
    assert verdict.kind == "conforms", verdict.first


@pytest.mark.parametrize("name", ["compact", "complexity", "training_steps"])
def test_it_conforms(name):
    (outcome,) = campaign.run(InProcess(TorchImplementation()), [METHODS[name]], 30, 5)
    assert outcome.verdict == "conforms", outcome.findings
    assert outcome.declined == 0
    assert CONVENTIONS["estimator"] == ("taylor", "paired")


def _columns_interleaved(right):
    """The pixels of a unit taken for every so many columns."""

    def wrong(link, index, units):
        consumer = link.consumer
        if consumer is not None and consumer.weight.shape[1] > units:
            block = consumer.weight.shape[1] // units
            weight = consumer.weight.detach().unflatten(1, (block, units)).transpose(1, 2).flatten(1)
            consumer.weight = nn.Parameter(weight)
        right(link, index, units)

    return wrong


def _rho_dropped(right):
    def wrong(part, closed):
        found = right(part, closed)
        return found[0] if isinstance(part, surgery.Residual) and part in closed else found

    return wrong


def _norm_of_the_first_units(right):
    def wrong(link, index, units):
        right(link._replace(norms=[]), index, units)
        for norm in link.norms:
            for key in ("weight", "bias", "running_mean", "running_var"):
                old = getattr(norm, key)
                first = old.detach()[: len(index)]
                setattr(norm, key, nn.Parameter(first) if isinstance(old, nn.Parameter) else first)

    return wrong


WRONG = {
    "_cut": [("units", _columns_interleaved), ("units", _norm_of_the_first_units)],
    "_without_gates": [("two that close", _rho_dropped)],
}


@pytest.mark.parametrize(("name", "keep", "make"), [(n, k, m) for n, found in WRONG.items() for k, m in found])
def test_what_is_cut_wrongly_is_seen(name, keep, make, monkeypatch):
    monkeypatch.setattr(surgery, name, make(getattr(surgery, name)))
    verdict = judged(asked(keep, False))
    assert verdict.kind == "deviates"
    assert not next(c for c in verdict.comparisons if c.name == "output").holds


def test_costs_at_a_vertex_are_those_of_the_compact_module():
    """What is counted at θ in {0, 1} against the modules that are left, wherever each layer keeps a unit (C1)."""
    spec = Network((3,), (Section((Dense(2), BatchNorm(), TANH, UnitGate(), Dense(3))), Dense(2), UnitGate(), Dense(2)))
    for code in range(2**5):
        gates = torch.tensor([code >> g & 1 for g in range(5)], dtype=torch.float64)
        if gates[0] == 1.0 and gates[1:3].sum() == 0.0:
            continue  # an emptied section that stays open costs what its other layers cost
        if gates[3:].sum() == 0.0:
            continue  # a plain layer cannot be emptied
        module = build(spec, gated=True).double().eval()
        parameters, macs = TorchImplementation().expected(spec, gates)
        body, left = surgery.compact(module, gates == 1.0)
        assert int(parameters) == sum(p.numel() for p in body.parameters())
        assert int(macs) == sum(p.numel() for p in left.values() if p.ndim == 2)


def test_a_section_without_a_gate_keeps_a_unit_of_every_layer_that_is_read():
    """Its constant could not be switched off: whether it stays is open (N4), so that nobody is asked."""
    plain = Network((3,), (Section((Dense(2), TANH, UnitGate(), Dense(3), UnitGate()), gate=False), Dense(2)))
    kept = pruning._spare_ungated_sections(plain, np.zeros(5, dtype=bool))
    assert kept.tolist() == [True, False, False, False, False]
    case = Case(plain, 2, 0, False)
    arguments = {"spec": to_json(plain), "params": case.params, "statistics": {}, "x": case.x, "keep": kept, "train": False}
    expected = METHODS["compact"].expect(arguments, UNIT["float64"])
    for implementation in (BackendImplementation(), TorchImplementation()):
        reply = InProcess(implementation).call(METHODS["compact"], arguments, twice=False)
        assert judge(expected, reply.answer, UNIT["float64"]).kind == "conforms"
