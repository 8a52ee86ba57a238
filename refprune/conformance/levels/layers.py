"""Single layers: the function and its vector-Jacobian product for a random cotangent (G), tolerances by E1 and E2."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from ...arrays import Arrays
from ...backend import ORACLE, Backend
from ...rounding.tolerance import layer_tolerance
from ..asking.methods import Arguments, Description, Method, Question
from ..judging.verdicts import Expectation
from ..strategies import layers as strategies
from ..strategies.sized_layers import Sized, sized
from ..strategies.structures import few

#: Layer → names of the arrays that have gradients, and of its constants.
ARRAYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    **dict.fromkeys(strategies.OPS, (("x",), ())),
    "dense": (("x", "w", "b"), ()),
    "conv2d": (("x", "w", "b"), ()),
    "batch_norm": (("x", "gain", "bias"), ()),
    "batch_norm_eval": (("x", "gain", "bias"), ("mean", "variance")),
    "add": (("shortcut", "path"), ()),
    "gate": (("x", "g"), ()),
    "cross_entropy": (("logits",), ("labels",)),
    "mean_squared_error": (("prediction",), ("target",)),
    "weight_decay": (("w",), ()),
}

#: What is not called y.
VALUES = {"cross_entropy": "loss", "mean_squared_error": "loss", "weight_decay": "value"}


def results(op: str) -> tuple[str, ...]:
    """Names of a layer's results, in the order of `Implementation`'s documentation."""
    return VALUES.get(op, "y"), *(f"d{name}" for name in ARRAYS[op][0])


def arguments_of(case: strategies.Case, conventions: Any) -> Arguments:
    """A drawn case as keyword arguments; conventions outside the allowed values are put to the first allowed."""
    names, constants = ARRAYS[case.op]
    options = {name: _allowed(value, conventions.get(name)) for name, value in case.options.items()}
    found: Arguments = dict.fromkeys(names)
    found |= zip(names, case.arrays, strict=False)
    found |= zip(constants, case.constants, strict=True)
    y, _ = _called(case.op, found | options, ORACLE)
    return found | {"dy": case.normal(1, y.shape)} | options


def _allowed(value: Any, allowed: Any) -> Any:
    return value if allowed is None or value in allowed else allowed[0]


def _split(op: str, arguments: Arguments) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arrays in the order of the backend's function, and its options."""
    names = (*ARRAYS[op][0], *ARRAYS[op][1])
    arrays = [arguments[name] for name in names if arguments[name] is not None]
    return tuple(arrays), {name: value for name, value in arguments.items() if name not in (*names, "dy")}


def _called(op: str, arguments: Arguments, backend: Backend) -> Any:
    arrays, options = _split(op, arguments)
    return getattr(backend, op)(*arrays, **options)


def _values(op: str, arguments: Arguments, backend: Backend) -> Arrays:
    y, saved = _called(op, arguments, backend)
    gradients = getattr(backend, f"{op}_vjp")(saved, arguments["dy"])
    named = zip(results(op), (y, *gradients), strict=False)
    return {name: np.asarray(value) for name, value in named if arguments.get(name[1:], 0) is not None}


def _expectation(op: str, arguments: Arguments, unit: float) -> Expectation:
    values = _values(op, arguments, ORACLE)
    arrays, options = _split(op, arguments)
    _, saved = _called(op, arguments, ORACLE)
    found = (
        *layer_tolerance(op, *arrays, unit=unit, **options),
        *layer_tolerance(f"{op}_vjp", saved, arguments["dy"], unit=unit),
    )
    sizes = {name: size for name, size in zip(results(op), found, strict=False) if size is not None}
    return Expectation(values, {n: sizes[n].noise for n in values}, {n: sizes[n].certain for n in values})


def _standing(op: str, described: Description) -> list[Question]:
    """The sized cases, with numbers that follow from the run's seed."""

    def question(number: int, case: Sized) -> Question:
        seed = 2**16 * described.seed + number
        return Question(lambda sizes: arguments_of(case.build(sizes, seed), described.conventions), case.sizes, case.least)

    return [question(number, case) for number, case in enumerate(sized(op))]


def _method(op: str) -> Method:
    def draw(described: Description) -> st.SearchStrategy[Arguments]:
        cases = few(strategies.all_cases(op), described.structures, described.seed)
        return cases.map(lambda case: arguments_of(case, described.conventions))

    return Method(
        op,
        "layers",
        results(op),
        draw,
        lambda arguments, backend: _values(op, arguments, backend),
        lambda arguments, unit: _expectation(op, arguments, unit),
        2.0 if op in ("conv2d", "batch_norm") else 1.0,
        lambda described: _standing(op, described),
    )


METHODS: tuple[Method, ...] = tuple(map(_method, strategies.OPS))
