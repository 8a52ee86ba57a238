"""Implementations that are right but for one thing, judged by `refprune verify` in this process, and how they are made."""

import copy

import refprune
from refprune.conformance import campaign
from refprune.conformance.asking.calls import InProcess
from refprune.conformance.asking.methods import oracle_values
from refprune.conformance.levels import METHODS


def only_found(monkeypatch):
    """Nothing is made smaller, one failure is enough, and none is named: that is tested elsewhere."""
    monkeypatch.setattr(campaign, "SHRINKING", 0.0)
    monkeypatch.setattr(campaign, "EVIDENCE", 1)
    monkeypatch.setattr(campaign, "named", lambda *evidence: [])


def right(method, a):
    """What is right, with the hidden arguments that an implementation does not get."""
    hidden = {"_estimator": "reinforce"} if method == "theta_estimate" else {}
    return oracle_values(METHODS[method], a | hidden)


def outcome_of(method, wrong):
    """Of an implementation of this method alone. wrong(a): its answer to the arguments."""
    mine = type("Mine", (refprune.Implementation,), {method: lambda self, **a: wrong(a)})
    (outcome,) = campaign.run(InProcess(mine()), [METHODS[method]], 2, 0)
    return outcome


def altered(method, **changes):
    """The right answer, of which some tensors are changed: name → f(right tensor, arguments)."""

    def wrong(a):
        answer = right(method, a)
        return answer | {name: change(answer[name], a) for name, change in changes.items() if name in answer}

    return wrong


def asked_for(method, change):
    """The right answer to other arguments."""
    return lambda a: right(method, change(copy.deepcopy(a)))


def without(array, *places):
    """A copy in which what these places name is 0."""
    array = array.copy()
    array[places] = 0.0
    return array
