"""How a mistake is planted: one function of refprune is replaced by a wrong version of it, wherever it is used.

`planted(mistake)` does so for as long as its block runs and gives the mutant backend, the oracle with the wrong function. The
catalogue is in `mistakes`; `validation/mistakes/audit.py` proves that the audit sees every one of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ..arrays import Saved
from ..backend import ORACLE, Backend
from ..gates import estimators
from ..spec.cost import cost_model

Function = Callable[..., Any]


@dataclass(frozen=True)
class Mistake:
    """target: "module:name" within refprune; wrong: right function → wrong one; claims: the numbers that must go red.

    A claim goes red by what a witness finds. Where every witness that notices raises an error instead, the mistake says so by
    listing the claim in `raises` too.
    also: further targets that are wrong at the same time, with their wrong functions.
    """

    name: str
    target: str
    wrong: Callable[[Any], Any]
    claims: tuple[str, ...]
    raises: tuple[str, ...] = ()
    also: tuple[tuple[str, Callable[[Any], Any]], ...] = ()


@contextlib.contextmanager
def planted(mistake: Mistake) -> Iterator[Backend]:
    """The mistake is in force inside the block; the value is the mutant backend. Not for several threads at once."""
    with contextlib.ExitStack() as undo:
        fields: dict[str, Any] = {}
        for target, make in ((mistake.target, mistake.wrong), *mistake.also):
            fields |= _plant(target, make, undo)
        cost_model.cache_clear()
        undo.callback(cost_model.cache_clear)
        yield dataclasses.replace(ORACLE, name=f"oracle with {mistake.name!r}", **fields) if fields else ORACLE


def _plant(target: str, make: Callable[[Any], Any], undo: contextlib.ExitStack) -> dict[str, Any]:
    """Replace one function; returns the fields of the oracle that it stands in."""
    module, _, name = target.partition(":")
    owner: Any = importlib.import_module(f"refprune.{module}")
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    right = getattr(owner, last)
    wrong = make(right)
    if path:
        setattr(owner, last, wrong)
        undo.callback(setattr, owner, last, right)
    else:
        _replace_everywhere(right, wrong, undo)
    return {f.name: wrong for f in dataclasses.fields(ORACLE) if getattr(ORACLE, f.name) is right}


def _replace_everywhere(right: Function, wrong: Function, undo: contextlib.ExitStack) -> None:
    """In every module of refprune that has the function under some name, and in the estimators' table.

    Not where the mistakes are written down: wrong versions are made of right functions.
    """
    for key, module in list(sys.modules.items()):
        if key.split(".")[0] == "refprune" and not key.startswith(f"{__package__}."):
            for name, value in list(vars(module).items()):
                if value is right:
                    setattr(module, name, wrong)
                    undo.callback(setattr, module, name, right)
    for name, kind in list(estimators.ESTIMATORS.items()):
        if kind.function is right:
            estimators.ESTIMATORS[name] = kind._replace(function=wrong)
            undo.callback(estimators.ESTIMATORS.__setitem__, name, kind)


# --------------------------------------------------------------------------------------------------------------------
# Ways to be wrong


def result(change: Callable[..., Any]) -> Callable[[Function], Function]:
    """The right result put through `change`."""
    return lambda f: lambda *a, **k: change(f(*a, **k))


def output(change: Callable[..., Any]) -> Callable[[Function], Function]:
    """A layer's output put through `change(y, *arguments)`; what it saves stays right."""

    def wrong(f: Function) -> Function:
        def g(*a: Any, **k: Any) -> Any:
            y, saved = f(*a, **k)
            return change(y, *a), saved

        return g

    return wrong


def gradient(index: int, change: Callable[..., Any]) -> Callable[[Function], Function]:
    """One of a VJP's gradients put through `change(gradient, saved, dy)`."""

    def wrong(f: Function) -> Function:
        def g(saved: Saved, dy: Any, **k: Any) -> Any:
            found = list(f(saved, dy, **k))
            found[index] = None if found[index] is None else change(found[index], saved, dy)
            return tuple(found)

        return g

    return wrong


def options(**changes: Callable[[Any], Any]) -> Callable[[Function], Function]:
    """The right function with keyword options put through functions of their value."""
    return lambda f: lambda *a, **k: f(*a, **{n: changes[n](v) if n in changes else v for n, v in k.items()})


def instead(function: Function) -> Callable[[Function], Function]:
    """Another function altogether."""
    return lambda f: function


def field_of(name: str, change: Callable[[Any], Any]) -> Callable[[Function], Function]:
    """One field of the NamedTuple or dataclass that is returned."""

    def wrong(f: Function) -> Function:
        def g(*a: Any, **k: Any) -> Any:
            found = f(*a, **k)
            new = {name: change(getattr(found, name))}
            return found._replace(**new) if hasattr(found, "_replace") else dataclasses.replace(found, **new)

        return g

    return wrong
