"""Calling an implementation: what it gave, and everything that it should not have done on the way."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import inspect
import io
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ...adapters.implementation import EVERY, PYTORCH, Implementation
from ...arrays import Array, Arrays
from ...errors import InputError
from ...gates.estimators import ESTIMATORS
from .methods import Arguments, Description, Method


class Reply(NamedTuple):
    """kind: "answer", "declined" (NotImplementedError), "raises", "results" (not what is documented), "hangs", "dies".

    answer: name → array, nested names joined by "/". message: what was raised, or how it ended. printed: what went to the
    standard output. changed: arguments that the call has changed. repeatable: whether a second call gave the same bits; None
    if it was not asked. restarted: why a first process had to be ended, if one had to be.
    """

    kind: str
    answer: Arrays
    message: str = ""
    printed: str = ""
    changed: tuple[str, ...] = ()
    repeatable: bool | None = None
    seconds: float = 0.0
    restarted: str = ""


class Caller(Protocol):
    """Somebody who can be asked."""

    description: Description

    def call(self, method: Method, arguments: Arguments, *, twice: bool) -> Reply: ...

    def close(self) -> None: ...


def describe(implementation: Implementation) -> Description:
    """What it declares, and the methods that it overrides. InputError for what is not allowed."""
    kind = type(implementation)
    own = tuple(
        name
        for name, base in vars(Implementation).items()
        if callable(base) and not name.startswith("_") and (name in vars(implementation) or getattr(kind, name) is not base)
    )
    _one_of("precision", implementation.precision, ("float64", "float32", "bfloat16"))
    _one_of("estimator", implementation.estimator, tuple(ESTIMATORS))
    if not isinstance(implementation.conventions, Mapping):
        raise InputError(f"conventions: got {implementation.conventions!r}; a mapping of names to tuples of values is allowed")
    conventions = dict(PYTORCH)
    for name, values in implementation.conventions.items():
        _one_of("conventions", name, tuple(EVERY))
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise InputError(f"conventions: {name} is {values!r}; a tuple of values out of {tuple(EVERY[name])} is allowed")
        for value in values:
            _one_of(f"conventions: {name}", value, tuple(EVERY[name]))
        conventions[name] = tuple(values)
    i = implementation
    if i.structures is not None and i.structures < 1:
        raise InputError(f"structures: must be at least 1, or None for any number, got {i.structures}")
    return Description(
        kind.__name__,
        i.precision,
        conventions,
        i.estimator,
        bool(i.deterministic),
        own,
        i.samples,
        i.structures,
        strangers=(*_misspelt(kind), *(s for name in own for s in _never_given(name, getattr(implementation, name)))),
    )


def _misspelt(kind: type) -> list[str]:
    """Public functions of somebody's own classes that no class of refprune's has: nobody calls them."""
    ours, own = ([c for c in kind.__mro__ if (c.__module__.partition(".")[0] == "refprune") is mine] for mine in (True, False))
    documented = {name for c in ours for name in vars(c)}
    methods = [name for name, value in vars(Implementation).items() if callable(value) and not name.startswith("_")]
    found = []
    for name in dict.fromkeys(n for c in own if issubclass(c, Implementation) for n in vars(c)):
        if name.startswith("_") or name in documented or not callable(getattr(kind, name)):
            continue
        near = difflib.get_close_matches(name, methods, n=1) or [n for n in methods if _plain(n) == _plain(name)]
        found.append(f"{name} is none of the methods" + (f"; did you mean {near[0]}?" if near else ""))
    return found


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


def _never_given(name: str, own: Any) -> list[str]:
    """Parameters of an own method that the documented one does not have, where nobody notices because they have defaults."""
    given = inspect.signature(getattr(Implementation, name)).parameters
    found = []
    for p in inspect.signature(own).parameters.values():
        if p.name not in given and p.default is not p.empty:
            near = difflib.get_close_matches(p.name, list(given), n=1)
            found.append(f"{name}: {p.name} is never given" + (f"; did you mean {near[0]}?" if near else ""))
    return found


def _one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{name}: {value!r} is not known; allowed are {', '.join(map(repr, allowed))}")


def find(target: str) -> Any:
    """What "package.module:Name" or "path/adapter.py:Name" names, imported and not called.

    InputError where it does not exist; what the import itself raises comes through.
    """
    where, _, name = target.partition(":")
    if not where or not name:
        raise InputError(f"adapter: expected package.module:Name or file.py:Name, got {target!r}")
    if where.endswith(".py"):
        path = Path(where)
        if not path.is_file():
            raise InputError(f"adapter: there is no file {where}")
        sys.path.insert(0, str(path.parent.resolve()))
        called = f"adapter {path.stem}"  # no module's name: the file may be called like one that it needs
        spec = importlib.util.spec_from_file_location(called, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[called] = module
        spec.loader.exec_module(module)
    else:
        sys.path.insert(0, os.getcwd())
        module = importlib.import_module(where)
    if not hasattr(module, name):
        raise InputError(f"adapter: {where} has no {name}")
    return getattr(module, name)


def load(target: str, found: Any = None) -> Implementation:
    """The implementation that `target` names: a class to be called, or an instance. found: what `find` found.

    InputError where it does not exist or is no Implementation; what the import or the class itself raises comes through.
    """
    found = find(target) if found is None else found
    implementation = found() if isinstance(found, type) else found
    if not isinstance(implementation, Implementation):
        raise InputError(f"adapter: {target} is a {type(implementation).__name__}, not a refprune.Implementation")
    return implementation


# --------------------------------------------------------------------------------------------------------------------
# One call


def perform(implementation: Implementation, name: str, results: tuple[str, ...], arguments: Arguments, *, twice: bool) -> Reply:
    """Call the method; what it raises becomes part of the reply. Arguments whose names begin with "_" are the oracle's only."""
    arguments = {n: value for n, value in arguments.items() if not n.startswith("_")}
    given = _copied(arguments)
    started = time.monotonic()
    called = False
    try:
        value, called = getattr(implementation, name)(**given), True
        seconds = time.monotonic() - started
        answer = named(results, value)
        repeatable = None
        if twice:
            called = False
            value, called = getattr(implementation, name)(**_copied(arguments)), True
            again = named(results, value)
            repeatable = answer.keys() == again.keys() and all(_same(answer[n], again[n]) for n in answer)
    except NotImplementedError as error:
        return Reply("declined", {}, str(error))
    except (Exception, SystemExit) as error:
        if called:
            return Reply("results", {}, str(error))
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = "" if last.filename == __file__ else f" ({Path(last.filename).name}, line {last.lineno})"
        return Reply("raises", {}, f"{type(error).__name__}: {error}{where}")
    changed = tuple(n for n, value in arguments.items() if not _equal(value, given[n]))
    return Reply("answer", answer, "", "", changed, repeatable, seconds)


def named(results: tuple[str, ...], value: Any) -> Arrays:
    """What a method returned, by name; None is left out. ValueError where it is neither of what is documented."""
    if isinstance(value, Mapping):
        return dict(_flat(value, ""))
    if not results:
        raise ValueError(f"returned {type(value).__name__}, documented is a dict")
    several = len(results) > 1
    if several and not isinstance(value, tuple | list):
        raise ValueError(f"returned {type(value).__name__}, documented are {len(results)} results: {', '.join(results)}")
    parts = value if several else (value,)
    if len(parts) != len(results):
        raise ValueError(f"returned {len(parts)} results, documented are {len(results)}: {', '.join(results)}")
    return dict(_flat(dict(zip(results, parts, strict=True)), ""))


def _flat(value: Mapping[str, Any], prefix: str) -> list[tuple[str, Array]]:
    found: list[tuple[str, Array]] = []
    for key, part in value.items():
        if isinstance(part, Mapping):
            found += _flat(part, f"{prefix}{key}/")
        elif part is not None:
            found.append((f"{prefix}{key}", _array(f"{prefix}{key}", part)))
    return found


def _array(name: str, value: Any) -> Array:
    """A copy as a NumPy array; PyTorch tensors (bfloat16 as float32) are detached. ValueError unless its numbers are real."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    array = np.array(value)
    array = array.astype(np.float32) if array.dtype.name == "bfloat16" else array
    if array.dtype.kind not in "biuf":
        raise ValueError(f"returned {name} of dtype {array.dtype}; real numbers are documented")
    return array.astype(array.dtype.newbyteorder("="))


def _copied(arguments: Arguments) -> Arguments:
    """Arrays that nobody else holds, and containers too."""
    return {name: _copy(value) for name, value in arguments.items()}


def _copy(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, dict):
        return {key: _copy(v) for key, v in value.items()}
    return [_copy(v) for v in value] if isinstance(value, list) else value


def _same(a: Array, b: Array) -> bool:
    """The same bits, NaN included."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and _same(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    return bool(a == b)


# --------------------------------------------------------------------------------------------------------------------
# In this process


class InProcess:
    """An implementation that is called here: for tests in one's own suite. A hang cannot be ended."""

    def __init__(self, implementation: Implementation) -> None:
        self.implementation = implementation
        self.description = describe(implementation)

    def call(self, method: Method, arguments: Arguments, *, twice: bool) -> Reply:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            reply = perform(self.implementation, method.name, method.results, arguments, twice=twice)
        return reply._replace(printed=printed.getvalue())

    def close(self) -> None:
        """Nothing is held."""
