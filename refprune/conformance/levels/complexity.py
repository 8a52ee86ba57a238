"""What a network costs, expected and in all, and what presses on θ because of it (N6, C1–C5)."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from ...arrays import Arrays
from ...backend import ORACLE, Backend
from ...gates.theta_penalty import Penalty, reference
from ...rounding.tolerance import LAYER_FACTOR, smallest_normal
from ...spec import cost
from ...spec.json_form import from_json, to_json
from ..asking.methods import Arguments, Description, Method
from ..judging.verdicts import Expectation
from ..strategies import networks as strategies
from ..strategies.structures import few


@st.composite
def _cases(draw: st.DrawFn, cases: st.SearchStrategy[strategies.Case]) -> Arguments:
    case = draw(cases)
    rates = {name: draw(st.sampled_from((0.0, 0.25, 0.5, 1.0))) for name in ("alpha", "balance")}
    return {"spec": to_json(case.network), "theta": case.gates, "nu": draw(st.sampled_from((0.25, 1.0))), **rates}


def _draw(described: Description) -> st.SearchStrategy[Arguments]:
    cases = strategies.gated_cases(least=1, gates=("fractional",), conventions=described.conventions)
    return _cases(few(cases, described.structures, described.seed))


def _values(arguments: Arguments, backend: Backend) -> Arrays:
    a, network = arguments, from_json(arguments["spec"])
    pressing = Penalty(network, reference(network), 0.0, a["nu"], a["alpha"], a["balance"])
    found = {"parameters": cost.parameters(network), "macs": cost.macs(network)}
    expected = {f"expected_{q}": cost.expected(network, a["theta"], q) for q in ("parameters", "macs")}
    numbers = found | expected | {"penalty": pressing.value(a["theta"])}
    return {name: np.asarray(float(value)) for name, value in numbers.items()} | {"beta": pressing.gradient(a["theta"])}


def _expectation(arguments: Arguments, unit: float) -> Expectation:
    """Counts are exact as far as the precision holds integers; expectations are sums of products of three factors."""
    right = _values(arguments, ORACLE)
    network = from_json(arguments["spec"])
    terms = len(cost.terms(network)) + max(arguments["theta"].size, 1)
    tolerance = {name: LAYER_FACTOR * unit * terms**0.5 * np.abs(v) + smallest_normal(unit) for name, v in right.items()}
    tolerance |= {name: np.asarray(0.0) for name in ("parameters", "macs")}
    tolerance["beta"] = LAYER_FACTOR * unit * terms**0.5 * np.full(right["beta"].shape, np.abs(right["beta"]).max(initial=0.0))
    return Expectation(right, tolerance)


METHODS: tuple[Method, ...] = (Method("complexity", "complexity", (), _draw, _values, _expectation),)
