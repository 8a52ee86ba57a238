"""Estimates of ∂C/∂θ made of an implementation's own random numbers (O5), on a few small networks that can be tabulated."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from ...arrays import Arrays
from ...backend import ORACLE, Backend
from ...spec.layers import Activation, BatchNorm, Dense, Section, UnitGate
from ...spec.network import Loss, Network
from ..asking.methods import Arguments, Description, Method
from ..judging.sampling import Facts, expected, facts
from ..judging.verdicts import Expectation
from ..strategies.networks import Case
from .networks import batch_of, loss_of

TANH = Activation("tanh")

#: Layer and unit gates that act on each other, three losses, batch-norm over the batch; without kinks.
NETWORKS = (
    Network((4,), (Section((Dense(3), TANH, Dense(4))), Section((Dense(2), TANH, UnitGate(), Dense(4)), gate=False), Dense(3))),
    Network((3,), (Dense(3), Activation("gelu"), UnitGate(), Dense(2), TANH, Dense(2)), Loss("mean_squared_error", "sum")),
    Network(
        (4,),
        (
            Section((Dense(3), BatchNorm(), TANH, Dense(4)), post="identity"),
            Section((Dense(3), BatchNorm(), Activation("sigmoid"), Dense(4)), post="identity"),
            Activation("tanh"),
            Dense(3),
        ),
        Loss("cross_entropy", "sum"),
    ),
)


def cases(described: Description, seed: int) -> list[Arguments]:
    """What is asked about each network, but for `draws` and `seed`; θ is in [0.2, 0.35] and [0.65, 0.8] by turns."""
    found = []
    for number, network in enumerate(NETWORKS):
        case = Case(network, 4, seed * len(NETWORKS) + number, bool(network.statistics_shapes))
        u = case.uniform("theta", (network.gate_count,))
        theta = 0.2 + 0.45 * (np.arange(u.size) % 2) + 0.15 * u
        hidden = {"_estimator": described.estimator, "_samples": described.samples}
        found.append(batch_of(case) | {"theta": theta, "train": case.train} | hidden)
    return found


def facts_of(arguments: Arguments, unit: float) -> Facts:
    """What is known of the declared estimator on the network that the arguments describe."""
    a = arguments
    return facts(loss_of(a, ORACLE), a["theta"], a["_estimator"], a["_samples"], unit)


def _values(arguments: Arguments, backend: Backend) -> Arrays:
    a = arguments
    return {"theta_sample": expected(loss_of(a, backend), a["theta"], a["_estimator"], a["_samples"])}


def _expectation(arguments: Arguments, unit: float) -> Expectation:
    known = facts_of(arguments, unit)
    return Expectation({"theta_sample": known.mean}, {"theta_sample": known.rounding})


#: Its `values` and `expect` are of the mean of what the method returns.
METHODS: tuple[Method, ...] = (
    Method(
        "theta_sample",
        "theta",
        ("theta_sample",),
        lambda described: st.integers(0, 2**16).flatmap(lambda seed: st.sampled_from(cases(described, seed))),
        _values,
        _expectation,
        1.0,
    ),
)
