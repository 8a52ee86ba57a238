"""Checkpoints without pickle: one .json that names one .npz, each written to a temporary file, fsynced and renamed.

The .json is replaced last and holds the .npz's name and SHA-256, so that a crash at any moment leaves the previous pair or
the new one, never a mixture.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import __version__
from ..arrays import Array
from ..errors import InputError, SpecError
from ..gates.theta_penalty import Reference
from ..output.files import PART, write_atomically
from ..output.texts import read_json
from ..spec import json_form, network
from .state import State

FORMAT = "refprune-checkpoint-3"
NAME = "checkpoint.json"
GROUPS = ("params", "velocity", "statistics")
PER_GATE = ("theta", "number", "slope", "seen", "bias_slope")
HEADER_FIELDS = {"arrays": str, "sha256": str, "step": int, "macs": int, "finished": bool, "network": dict, "run": dict}
HEADER_FIELDS |= {"start": list}


class Checkpoint(NamedTuple):
    """state, and whatever the run keeps beside it (JSON-able)."""

    state: State
    run: dict[str, Any]


def save(directory: Path, state: State, run: Mapping[str, Any]) -> None:
    """Write `state` and `run` as the directory's checkpoint; the previous one's arrays are deleted afterwards."""
    for leftover in directory.glob(f"checkpoint*{PART}"):
        leftover.unlink()
    arrays = {f"{group}/{name}": array for group in GROUPS for name, array in getattr(state, group).items()}
    buffer = io.BytesIO()
    np.savez(buffer, **{name: getattr(state, name) for name in PER_GATE}, **arrays)
    content = buffer.getvalue()
    digest = hashlib.sha256(content).hexdigest()
    file = f"checkpoint-{state.step:08d}-{digest[:8]}.npz"
    header = {
        "format": FORMAT,
        "version": __version__,
        "arrays": file,
        "sha256": digest,
        "step": state.step,
        "macs": state.macs,
        "finished": state.finished,
        "start": list(state.start),
        "network": json_form.to_json(state.network),
        "run": dict(run),
    }
    write_atomically(directory / file, content)
    write_atomically(directory / NAME, json.dumps(header | {"digest": _digest(header)}, indent=1).encode())
    for old in directory.glob("checkpoint-*.npz"):
        if old.name != file:
            old.unlink()


def load(directory: Path) -> Checkpoint:
    """The directory's checkpoint. InputError names the file and what is wrong: missing, corrupt, other version or network."""
    path = directory / NAME
    header = _header(path)
    npz = directory / str(header["arrays"])
    try:
        content = npz.read_bytes()
    except OSError as error:
        raise InputError(f"{npz}: cannot be read ({error})") from error
    if hashlib.sha256(content).hexdigest() != header["sha256"]:
        raise InputError(f"{npz}: SHA-256 differs from the one in {path.name}; the file is corrupt or from another checkpoint")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except ValueError as error:
        raise InputError(f"{npz}: not an archive of plain arrays ({error})") from error
    try:
        network = json_form.from_json(header["network"])
    except SpecError as error:
        raise InputError(f"{path}: network: {error}") from error
    params, velocity, statistics = (_group(arrays, group, network, npz) for group in GROUPS)
    for name in PER_GATE:
        if name not in arrays or arrays[name].shape != (network.gate_count,):
            raise InputError(f"{npz}: {name} does not fit the network's {network.gate_count} gates")
    strange = [name for name in arrays if name not in PER_GATE and name.partition("/")[0] not in GROUPS]
    if strange:
        raise InputError(f"{npz}: {strange[0]} is none of the arrays of a checkpoint")
    if header.pop("digest", None) != _digest(header):
        raise InputError(f"{path}: its own digest differs; it was edited or damaged")
    rest = {name: arrays[name] for name in PER_GATE} | {name: header[name] for name in ("step", "macs", "finished")}
    state = State(network, params, velocity, statistics, **rest, start=Reference(*header["start"]))
    return Checkpoint(state, header["run"])


def _digest(header: Mapping[str, Any]) -> str:
    """SHA-256 of the header without its digest, as canonical JSON."""
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def _header(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise InputError(f"{path}: no checkpoint can be read here (no such file)")
    header = read_json(path)
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        found = header.get("format") if isinstance(header, dict) else type(header).__name__
        raise InputError(f"{path}: expected format {FORMAT!r}, found {found!r}")
    if header.get("version") != __version__:
        raise InputError(f"{path}: written by refprune {header.get('version')}, this is {__version__}; bits would differ")
    for field, kind in HEADER_FIELDS.items():
        if type(header.get(field)) is not kind:
            raise InputError(f"{path}: {field} must be of type {kind.__name__}, found {header.get(field)!r}")
    return header


def _group(arrays: Mapping[str, Array], group: str, network: network.Network, path: Path) -> dict[str, Array]:
    """The arrays of one group, checked against the network: the first that does not fit is named."""
    expected = network.statistics_shapes if group == "statistics" else network.parameter_shapes
    found = {name.removeprefix(f"{group}/"): array for name, array in arrays.items() if name.startswith(f"{group}/")}
    for name, shape in expected.items():
        if name not in found:
            raise InputError(f"{path}: {group}/{name} is missing; the checkpoint is of another network")
        if found[name].shape != shape:
            raise InputError(f"{path}: {group}/{name} has shape {found[name].shape}, the network needs {shape}")
    extra = sorted(set(found) - set(expected))
    if extra:
        raise InputError(f"{path}: {group}/{extra[0]} belongs to no layer of the network")
    return found
