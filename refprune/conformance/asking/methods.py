"""What a method of an `Implementation` is asked and what its answer must be: the record that the levels are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...adapters.implementation import Conventions
from ...arrays import Arrays
from ...backend import ORACLE, Backend
from ...rounding.noise import map_floats, widened
from ..judging.verdicts import Expectation

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Description:
    """What an implementation says of itself; provided: the methods that it has.

    structures: the most structures that a method's examples may have, None for any number; seed: of their choice. strangers:
    what it has that nobody calls or gives.
    """

    name: str
    precision: str
    conventions: Conventions
    estimator: str
    deterministic: bool
    provided: tuple[str, ...]
    samples: int = 1
    structures: int | None = None
    seed: int = 0
    strangers: tuple[str, ...] = ()


class Question(NamedTuple):
    """What is asked in every run, and not drawn.

    make(sizes): its arguments. sizes: with which it is asked first; where it fails, each may become smaller, down to `least`.
    """

    make: Callable[[tuple[int, ...]], Arguments]
    sizes: tuple[int, ...] = ()
    least: tuple[int, ...] = ()


def fixed(arguments: Arguments) -> Question:
    """These arguments, which nothing makes smaller."""
    return Question(lambda sizes: arguments)


@dataclass(frozen=True)
class Method:
    """One method of `Implementation`.

    results: names of what a tuple holds, in order; () for a dict with names of its own. draw: strategy of arguments for what is
    described. values(arguments, backend): the right answer, by name, in data-flow order; a mutant's with a mutant
    backend. expect(arguments, unit): the same with tolerances. share: of all examples, relative to the other methods'.
    standing: what is asked in every run, at the sizes and in the ranges that drawing seldom meets.
    """

    name: str
    level: str
    results: tuple[str, ...]
    draw: Callable[[Description], SearchStrategy[Arguments]]
    values: Callable[[Arguments, Backend], Arrays]
    expect: Callable[[Arguments, float], Expectation]
    share: float = 1.0
    standing: Callable[[Description], Sequence[Question]] = lambda described: ()


def in_precision(arguments: Mapping[str, Any], precision: str) -> Arguments:
    """The arguments with every array of floats rounded to what the precision holds, in the dtype in which it travels."""
    found: Arguments = map_floats(arguments, lambda a: rounded(a, precision))
    return found


def rounded(a: Any, precision: str) -> Any:
    """float64, float32, or float32 holding bfloat16 numbers (rounded to nearest, ties to even)."""
    if precision != "bfloat16":
        return np.asarray(a, dtype=precision)
    bits = np.asarray(a, dtype=np.float32).view(np.uint32)
    nearest = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return nearest.view(np.float32)


def dtype_of(precision: str) -> str:
    """In which dtype arrays of a precision travel."""
    return "float64" if precision == "float64" else "float32"


def oracle_values(method: Method, arguments: Mapping[str, Any]) -> Arrays:
    """What is right, in float64."""
    return method.values(widened(arguments), ORACLE)
