"""The files of test vectors: LEVEL/METHOD-RESULT-NUMBER.json beside an .npz or .safetensors of the same name.

`vector.schema.json` is the format, `vector.README.md` explains it; both are written beside the levels. No pickle.
"""

from __future__ import annotations

import dataclasses
import inspect
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ... import __version__
from ...adapters.implementation import EVERY, PYTORCH, Conventions, Implementation
from ...arrays import Arrays
from ...errors import InputError
from ...exchange import weight_files
from ...output import install
from ...output.files import encoded, write_atomically
from ...output.texts import read_json
from ...rounding.noise import widened
from ...rounding.tolerance import UNIT
from ..asking.methods import Arguments, Description, Method, in_precision
from ..judging.verdicts import Expectation, representable
from ..levels import LEVELS, METHODS

FORMAT = "refprune-vector-2"

#: Container → ending of its file.
CONTAINERS = {"npz": ".npz", "safetensors": ".safetensors"}

#: Files that stand beside the folders of the levels → where they come from in this package.
BESIDE = {"schema.json": "vector.schema.json", "README.md": "vector.README.md"}

RESULTS = ("valid", "invalid", "acceptable")

#: What a vector is aimed at. The last four are what the values of an invalid one are wrong in.
BUG_CLASSES = ("any", "boundary", "size", "tie", "convention", "value", "gradient", "update", "decision")

#: The values of conventions by which an answer is valid, not only acceptable.
STANDARD: Conventions = {**PYTORCH, "theta_estimator": (Implementation.estimator,)}


class Flags(NamedTuple):
    """aim: what the vector tests, in words. mistake: of an invalid one, the name of the known mistake that gives its values.
    convention: the values of each convention that the arguments ask for. kinks: how many entries lie within rounding of a kink.
    """

    aim: str
    bug_class: str
    mistake: str | None
    convention: dict[str, list[Any]]
    kinks: int


class Vector(NamedTuple):
    """One vector. values: of every result that it holds, tolerance: how far a right implementation may be from right ones."""

    name: str
    method: Method
    precision: str
    result: str
    arguments: Arguments
    values: Arrays
    tolerance: Arrays
    flags: Flags

    def asks(self, described: Description) -> bool:
        """Is this a question for an implementation of these methods and conventions?"""
        return agreed(self.flags.convention, described) and self.method.name in described.provided

    def expectation(self, arguments: Arguments, precision: str) -> Expectation:
        """What is right for these arguments: the stored values where they are the vector's own, else derived anew."""
        with np.errstate(all="ignore"):
            found = self.method.expect(widened(arguments), UNIT[precision])
        own = self.result != "invalid" and precision == self.precision
        return dataclasses.replace(found, values=self.values, tolerance=self.tolerance) if own else found


def agreed(convention: Mapping[str, Sequence[Any]], described: Description) -> bool:
    """Has an implementation declared every value of these conventions?"""
    declared = {**described.conventions, "theta_estimator": (described.estimator,)}
    return all(value in declared[name] for name, values in convention.items() for value in values)


def conventions_of(method: Method, arguments: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Every convention that the arguments ask for, with the values in use, those of the network's layers included."""
    found: dict[str, list[Any]] = {}

    def note(name: str, value: Any) -> None:
        if value not in found.setdefault(name, []):
            found[name].append(value)

    def layer(fields: Any) -> None:
        if isinstance(fields, list | tuple):
            for part in fields:
                layer(part)
        elif isinstance(fields, dict):
            smooth = fields.get("type") == "Activation" and fields["kind"] not in ("relu", "leaky_relu")
            for name, value in fields.items():
                if name in EVERY and not smooth:
                    note(name, value)
                layer(value)

    for name, value in arguments.items():
        if name in EVERY and (name != "estimator" or method.name == "training_steps"):
            note(name, value)
    if "_estimator" in arguments:
        note("theta_estimator", arguments["_estimator"])
    layer(arguments.get("spec"))
    return found


def right(
    name: str, method: Method, arguments: Arguments, precision: str, aim: str, bug_class: str, expected: Expectation
) -> Vector:
    """The vector of right values: valid, or acceptable where a convention is not PyTorch's."""
    convention = conventions_of(method, arguments)
    ordinary = all(value in STANDARD[key] for key, values in convention.items() for value in values)
    flags = Flags(aim, bug_class, None, convention, expected.ambiguous)
    values = {key: representable(value, UNIT[precision]) for key, value in expected.values.items()}
    result = "valid" if ordinary else "acceptable"
    return Vector(name, method, precision, result, arguments, values, dict(expected.tolerance), flags)


# ----------------------------------------------------------------------------------------------------------------- writing


def write(directory: Path, vector: Vector, container: str = "npz") -> None:
    """Both files of the vector, in the folder `directory`.

    container: "npz" or "safetensors" (InputError if its package is missing).
    """
    arrays: Arrays = {}
    plain = {name: _plain(value, f"arguments/{name}", arrays) for name, value in vector.arguments.items()}
    for name, value in vector.values.items():
        tolerance = np.broadcast_to(vector.tolerance[name], value.shape)
        arrays |= {f"want/{name}": value, f"tolerance/{name}": tolerance}
    file = vector.name + CONTAINERS[container]
    content = {
        "format": FORMAT,
        "method": vector.method.name,
        "level": vector.method.level,
        "precision": vector.precision,
        "result": vector.result,
        "arrays": file,
        "arguments": plain,
        "results": list(vector.values),
        "flags": vector.flags._asdict(),
        "source": f"refprune {__version__}",
    }
    write_atomically(directory / file, _packed({n: np.array(a, order="C") for n, a in arrays.items()}, container))
    lines = [f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False, allow_nan=False)}" for key, value in content.items()]
    write_atomically(directory / f"{vector.name}.json", encoded("{\n " + ",\n ".join(lines) + "\n}\n"))


def write_beside(directory: Path) -> None:
    """The format's schema and its page of explanation."""
    for name, source in BESIDE.items():
        write_atomically(directory / name, resources.files(__package__).joinpath(source).read_bytes())


def _packed(arrays: Arrays, container: str) -> bytes:
    if container == "npz":
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        return buffer.getvalue()
    try:
        from safetensors.numpy import save
    except ImportError as error:
        raise InputError(f"--format safetensors needs the package safetensors:  {install.command('verify')}") from error
    return save(arrays)


def _plain(value: Any, key: str, arrays: Arrays) -> Any:
    """`value` with every array put into `arrays` and named in its place."""
    if isinstance(value, np.ndarray):
        arrays[key] = value
        return {"array": key}
    if isinstance(value, dict):
        return {name: _plain(v, f"{key}/{name}", arrays) for name, v in value.items()}
    return [_plain(v, key, arrays) for v in value] if isinstance(value, list | tuple) else value


# ----------------------------------------------------------------------------------------------------------------- reading


def files_of(directory: Path) -> list[Path]:
    """All files of a folder of vectors and of its levels. InputError if there are others, which writing vectors would spoil."""
    levels = [path for path in sorted(directory.iterdir()) if path.name in LEVELS and path.is_dir()]
    files = [path for folder in (directory, *levels) for path in sorted(folder.iterdir()) if path not in levels]
    vectors = {path.with_suffix("") for path in files if path.suffix == ".json" and _is_vector(path)}
    ours = {directory / name for name in BESIDE} if vectors else set()
    ours |= {path.with_name(path.name + ending) for path in vectors for ending in (".json", *CONTAINERS.values())}
    strangers = [path.relative_to(directory).as_posix() for path in files if path not in ours]
    if strangers:
        raise InputError(f"{directory}: holds other files ({', '.join(strangers[:3])}); give a new folder")
    return files


def _is_vector(path: Path) -> bool:
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and str(content.get("format", "")).startswith(FORMAT.rstrip("0123456789"))


def read(directory: Path) -> Iterator[Vector]:
    """Every vector of a folder and of the folders in it, by name. InputError names the file that is not one, and the field."""
    return map(read_vector, vector_paths(directory))


def vector_paths(directory: Path) -> list[Path]:
    """The JSON files of the vectors in a folder and in the folders in it, by name. InputError if there are none."""
    paths = sorted((path for path in directory.rglob("*.json") if path.name not in BESIDE), key=lambda path: (path.name, path))
    if not paths:
        raise InputError(f"{directory}: there are no vectors (*.json)")
    return paths


def read_vector(path: Path) -> Vector:
    """The vector of one JSON file. InputError names the field that is wrong."""
    try:
        content = read_json(path)
    except ValueError as error:
        raise InputError(f"{path}: is not JSON ({error})") from error
    _check_form(path, content)
    arrays = weight_files.read(path.with_name(content["arrays"])).arrays
    try:
        return _vector(path.stem, content, arrays)
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: {error}") from error


def _vector(name: str, content: Mapping[str, Any], arrays: Arrays) -> Vector:
    """KeyError for an array that is missing, ValueError for one that cannot be."""
    method = METHODS[content["method"]]
    values, tolerance = ({key: arrays[f"{kind}/{key}"] for key in content["results"]} for kind in ("want", "tolerance"))
    for key, value in values.items():
        if value.shape != tolerance[key].shape or not (tolerance[key] >= 0.0).all():
            raise ValueError(f"tolerance/{key}: must be numbers of at least 0, as many as want/{key}")
    arguments = {key: _filled(value, arrays) for key, value in content["arguments"].items()}
    flags, precision = Flags(**content["flags"]), content["precision"]
    return Vector(name, method, precision, content["result"], arguments, values, tolerance, flags)


def _filled(value: Any, arrays: Mapping[str, Any]) -> Any:
    if isinstance(value, dict):
        if set(value) == {"array"}:
            return arrays[value["array"]]
        return {name: _filled(v, arrays) for name, v in value.items()}
    return _tuples(value) if isinstance(value, list) else value


def _tuples(value: Any) -> Any:
    """Pairs and paddings are tuples where they are arguments; inside a spec JSON's lists stay (`from_json` takes both)."""
    return tuple(map(_tuples, value)) if isinstance(value, list) and not any(isinstance(v, dict) for v in value) else value


def _check_form(path: Path, content: Any) -> None:
    """The schema's demands on one file, without a package for schemas, and what a schema cannot say of arguments."""

    def need(holds: bool, what: str) -> None:
        if not holds:
            raise InputError(f"{path}: {what}; not a vector of format {FORMAT}")

    def one_of(where: Mapping[str, Any], key: str, allowed: Sequence[str]) -> None:
        found = where[key]
        need(isinstance(found, str) and found in allowed, f"{key}: {found!r} is none of {', '.join(allowed)}")

    def keys_of(where: Any, keys: Sequence[str], what: str) -> None:
        need(isinstance(where, dict), f"{what}: must be an object")
        missing, unknown = [k for k in keys if k not in where], [k for k in where if k not in keys]
        need(not missing, f"{what}: {', '.join(missing)} missing")
        need(not unknown, f"{what}: {', '.join(unknown)} not known")

    need(isinstance(content, dict) and content.get("format") == FORMAT, "another format")
    head = ("format", "method", "level", "precision", "result", "arrays", "arguments", "results", "flags", "source")
    keys_of(content, head, "vector")
    one_of(content, "method", tuple(METHODS))
    one_of(content, "level", tuple(LEVELS))
    one_of(content, "precision", tuple(UNIT))
    one_of(content, "result", RESULTS)
    one_of(content, "arrays", tuple(path.stem + ending for ending in CONTAINERS.values()))
    need(isinstance(content["source"], str), "source: must be text")
    results = content["results"]
    listed = isinstance(results, list) and all(isinstance(name, str) for name in results)
    need(listed and 0 < len(set(results)) == len(results), "results: must be a list of different names")
    flags = content["flags"]
    keys_of(flags, Flags._fields, "flags")
    one_of(flags, "bug_class", BUG_CLASSES)
    need(isinstance(flags["aim"], str), "aim: must be text")
    need(type(flags["kinks"]) is int and flags["kinks"] >= 0, "kinks: must be a whole number of at least 0")
    wrong = content["result"] == "invalid"
    named = isinstance(flags["mistake"], str) if wrong else flags["mistake"] is None
    need(named, "mistake: must be a name where result is invalid, else null")
    convention = flags["convention"]
    need(isinstance(convention, dict) and set(convention) <= set(STANDARD), f"convention: allowed are {', '.join(STANDARD)}")
    need(all(isinstance(v, list) and v for v in convention.values()), "convention: values must be lists")
    asked, method = content["arguments"], content["method"]
    need(isinstance(asked, dict), "arguments: must be an object")
    hidden = ["_estimator"] if method == "theta_estimate" else []
    keys_of(asked, [*list(inspect.signature(getattr(Implementation, method)).parameters)[1:], *hidden], "arguments")


def from_finding(name: str, method: Method, arguments: Arguments, precision: str, aim: str) -> Vector:
    """The vector of one question that somebody's implementation has answered wrongly."""
    asked = in_precision(arguments, precision)
    with np.errstate(all="ignore"):
        expected = method.expect(widened(asked), UNIT[precision])
    return right(name, method, asked, precision, aim, "any", expected)
