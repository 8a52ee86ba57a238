"""What a network costs, expected and in all, and what presses on θ because of it (N6, C1–C5)."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from ...arrays import Arrays
from ...backend import ORACLE, Backend
from ...gates.theta_penalty import Penalty, reference
from ...rounding.tolerance import LAYER_FACTOR, smallest_normal
from ...spec import cost, zoo
from ...spec.json_form import from_json, to_json
from ...spec.layers import Conv, Dense, Flatten, UnitGate
from ...spec.network import Network
from ..asking.methods import Arguments, Description, Method, Question, fixed
from ..judging.verdicts import Expectation
from ..strategies import networks as strategies
from ..strategies import sized_networks as sized
from ..strategies.structures import few
from .networks import asked_of


@st.composite
def _cases(draw: st.DrawFn, cases: st.SearchStrategy[strategies.Case]) -> Arguments:
    case = draw(cases)
    rates = {name: draw(st.sampled_from((0.0, 0.25, 0.5, 1.0))) for name in ("alpha", "balance")}
    return {"spec": to_json(case.network), "theta": case.gates, "nu": draw(st.sampled_from((0.25, 1.0))), **rates}


def _draw(described: Description) -> st.SearchStrategy[Arguments]:
    options: dict[str, Any] = {"gates": ("fractional",), "conventions": described.conventions}
    cases = st.one_of(strategies.gated_cases(**options), strategies.gated_cases(unit_gates=True, **options))
    return _cases(few(cases, described.structures, described.seed))


def _standing(described: Description) -> list[Question]:
    """Every sized network; odd counts beyond float32's integers; those of ResNet-50, beyond 2³¹."""
    rates = {"nu": 1.0, "alpha": 0.5, "balance": 0.25}

    def costed(case: strategies.Case) -> Arguments:
        return {"spec": to_json(case.network), "theta": case.uniform("gates", (case.network.gate_count,)), **rates}

    def counted(network: Network) -> Question:
        theta = np.linspace(0.25, 1.0, network.gate_count)
        return fixed({"spec": to_json(network), "theta": theta, **rates})

    odd = Network((17, 45, 45), (Conv(17, (7, 7)), Flatten(), Dense(2), UnitGate(), Dense(2)))  # 21,590,599
    recipes = [r for r in (*sized.DENSE, *sized.IMAGES, *sized.FIXED) if r.layers(*r.sizes[1:])]
    questions = [asked_of(recipe, k, described, costed) for k, recipe in enumerate(recipes)]
    return [*questions, counted(odd), counted(zoo.resnet_imagenet(50, classes=999, gates=True))]


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


METHODS: tuple[Method, ...] = (Method("complexity", "complexity", (), _draw, _values, _expectation, standing=_standing),)
