"""Test vectors: examples with their right answers as files, for implementations in languages that cannot be called.

One vector is METHOD-NUMBER.json beside METHOD-NUMBER.npz. The JSON holds the format's version, the method, the precision, what
is asked (`arguments`: plain values, or {"array": KEY} into the .npz), the names of the results, flags, and who wrote it; the
.npz holds the arrays, under "want/NAME" the right values in float64, under "tolerance/NAME" how far a correct implementation
of that precision may be from them (E2). No pickle.

`check` derives every vector again by two witnesses: the oracle, whose values must be the stored ones to float64's rounding,
and the PyTorch implementation, which must lie within the stored tolerance.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import __version__
from ..errors import InputError
from ..files import write_atomically
from ..implementation import PYTORCH
from ..network import Arrays
from ..rounding import UNIT
from .calls import Caller
from .levels import METHODS
from .methods import Arguments, Description, Method, in_precision, widened
from .verdicts import Expectation, judge

FORMAT = "refprune-vector-1"

#: What every JSON file of a vector holds.
KEYS = ("format", "method", "level", "precision", "arguments", "results", "flags", "source")


class Vector(NamedTuple):
    """One vector as it was read."""

    path: Path
    method: Method
    precision: str
    arguments: Arguments
    expected: Expectation


class Checked(NamedTuple):
    """One vector and what two witnesses say: "holds", "declined", or what is wrong."""

    path: Path
    oracle: str
    second: str

    @property
    def holds(self) -> bool:
        return self.oracle == "holds" and self.second in ("holds", "declined")


def draw(method: Method, count: int, seed: int) -> list[Arguments]:
    """Examples of one method, PyTorch's conventions, the same for the same seed."""
    import hypothesis

    found: list[Arguments] = []
    described = Description("vectors", "float64", PYTORCH, "reinforce", True, ())
    settings = hypothesis.settings(
        max_examples=4 * count + 4,
        database=None,
        deadline=None,
        phases=(hypothesis.Phase.generate,),
        suppress_health_check=list(hypothesis.HealthCheck),
        verbosity=hypothesis.Verbosity.quiet,
    )

    def keep(arguments: Arguments) -> None:
        found.append(arguments)

    hypothesis.seed(seed)(settings(hypothesis.given(method.draw(described))(keep)))()
    return found[-count:]  # the first are the simplest


def export(directory: Path, *, per_method: int = 2, precision: str = "float64", seed: int = 0) -> int:
    """Write so many vectors of every method; returns how many there are. The folder must be new or hold vectors only."""
    directory.mkdir(parents=True, exist_ok=True)
    strangers = [p.name for p in directory.iterdir() if p.suffix not in (".json", ".npz")]
    if strangers:
        raise InputError(f"{directory}: holds other files ({', '.join(strangers[:3])}); give a new folder")
    written = 0
    for method in METHODS.values():
        for number, arguments in enumerate(draw(method, per_method, seed)):
            _write(directory / f"{method.name}-{number}", method, in_precision(arguments, precision), precision)
            written += 1
    return written


def _write(path: Path, method: Method, arguments: Arguments, precision: str) -> None:
    arrays: Arrays = {}
    with np.errstate(all="ignore"):
        expected = method.expect(widened(arguments), UNIT[precision])
    plain = {name: _plain(value, f"arguments/{name}", arrays) for name, value in arguments.items()}
    for name, value in expected.values.items():
        arrays |= {f"want/{name}": value, f"tolerance/{name}": expected.tolerance[name]}
    content = {
        "format": FORMAT,
        "method": method.name,
        "level": method.level,
        "precision": precision,
        "arguments": plain,
        "results": list(expected.values),
        "flags": {"aim": f"{method.level}: {method.name}", "convention": "pytorch", "kinks": expected.ambiguous},
        "source": f"refprune {__version__}",
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **{name: np.asarray(a) for name, a in arrays.items()})
    write_atomically(path.with_suffix(".npz"), buffer.getvalue())
    write_atomically(path.with_suffix(".json"), json.dumps(content, indent=1, ensure_ascii=False).encode())


def _plain(value: Any, key: str, arrays: Arrays) -> Any:
    """`value` with every array put into `arrays` and named in its place."""
    if isinstance(value, np.ndarray):
        arrays[key] = value
        return {"array": key}
    if isinstance(value, dict):
        return {name: _plain(v, f"{key}/{name}", arrays) for name, v in value.items()}
    return [_plain(v, key, arrays) for v in value] if isinstance(value, list | tuple) else value


def read(directory: Path) -> Iterator[Vector]:
    """Every vector of a folder. InputError names a file that is not one."""
    paths = sorted(directory.glob("*.json"))
    if not paths:
        raise InputError(f"{directory}: there are no vectors (*.json)")
    for path in paths:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            missing = [key for key in KEYS if key not in content]
            if missing or content["format"] != FORMAT or content["method"] not in METHODS or content["precision"] not in UNIT:
                raise InputError(f"{path}: not a vector of format {FORMAT}; missing: {', '.join(missing) or 'nothing'}")
            with np.load(path.with_suffix(".npz"), allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            values = {name: arrays[f"want/{name}"] for name in content["results"]}
            tolerance = {name: arrays[f"tolerance/{name}"] for name in content["results"]}
            arguments = {name: _filled(value, arrays) for name, value in content["arguments"].items()}
        except (KeyError, ValueError, TypeError) as error:
            raise InputError(f"{path}: not a vector of format {FORMAT} ({error})") from error
        yield Vector(path, METHODS[content["method"]], content["precision"], arguments, Expectation(values, tolerance))


def _filled(value: Any, arrays: Mapping[str, Any]) -> Any:
    if isinstance(value, dict):
        if set(value) == {"array"}:
            return arrays[value["array"]]
        return {name: _filled(v, arrays) for name, v in value.items()}
    return _tuples(value) if isinstance(value, list) else value


def _tuples(value: Any) -> Any:
    """Pairs and paddings are tuples where they are arguments; inside a spec JSON's lists stay (`from_json` takes both)."""
    return tuple(map(_tuples, value)) if isinstance(value, list) and not any(isinstance(v, dict) for v in value) else value


def check(directory: Path, second: Caller) -> Iterator[Checked]:
    """Each vector, derived again by the oracle and by a second implementation, which computes in float64."""
    unit = UNIT["float64"]
    for vector in read(directory):
        method, expected = vector.method, vector.expected
        wide = widened(vector.arguments)
        with np.errstate(all="ignore"):
            again = method.expect(wide, unit)
        oracle = judge(again, {**expected.values}, unit)
        reply = second.call(method, in_precision(vector.arguments, "float64"), twice=False)
        verdict = "declined" if reply.kind == "declined" or method.name not in second.description.provided else reply.kind
        if reply.kind == "answer":
            found = judge(expected, reply.answer, UNIT[vector.precision])
            verdict = "holds" if found.kind == "conforms" else f"{found.kind} in {found.first.name if found.first else ''}"
        yield Checked(vector.path, "holds" if oracle.kind == "conforms" else oracle.kind, verdict)
