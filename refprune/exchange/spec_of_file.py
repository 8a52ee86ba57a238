"""The spec under which a file of weights is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..arrays import Array
from ..errors import DataError, InputError
from ..output.texts import parse_json, read_json
from ..spec import json_form, zoo
from ..spec.network import Network

# --------------------------------------------------------------------------------------------------------------------
# The spec of a file


def network_for(spec_name: str, arrays: Mapping[str, Array]) -> Network:
    """The network that `spec_name` says; resnet-cifar-keras takes its blocks per stage from the arrays' names, if not given."""
    if spec_name.endswith(".json"):
        try:
            return json_form.from_json(read_json(Path(spec_name)))
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            named = isinstance(error, InputError) and str(error).startswith(spec_name)
            raise error if named else InputError(f"--spec {spec_name}: {error}") from error
    name, _, text = spec_name.partition(":")
    options: dict[str, Any] = {}
    for entry in filter(None, text.split(";")):
        key, _, value = entry.partition("=")
        try:
            options[key.strip()] = parse_json(value, key)
        except InputError as error:
            raise InputError(f"{spec_name}: expected NAME:key=value;…, values as JSON ({error})") from error
    if name == "resnet-cifar-keras" and "blocks" not in options and arrays:
        options["blocks"] = blocks_per_stage(arrays)
    return zoo.build(name, options)


def blocks_per_stage(arrays: Mapping[str, Array]) -> list[int]:
    """How many blocks the names "stageS.blockB.…" count in each stage. DataError unless S and B run from 0 without a gap."""
    found = sorted({(int(m[1]), int(m[2])) for m in map(re.compile(r"stage(\d+)\.block(\d+)\.").match, arrays) if m})
    stages = [sum(stage == s for s, _ in found) for stage in range(found[-1][0] + 1)] if found else []
    expected = [(s, b) for s, count in enumerate(stages) for b in range(max(count, 1))]
    if not found or found != expected:
        missing = next(((s, b) for s, b in expected if (s, b) not in found), None)
        what = (
            "no array is called stage0.block0.…" if missing is None else "no array is called stage{}.block{}.…".format(*missing)
        )
        raise DataError(f"{what}; without such names, give the blocks, as in --spec 'resnet-cifar-keras:blocks=[9,9,9]'")
    return stages
