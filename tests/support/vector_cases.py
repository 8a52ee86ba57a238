"""The stored vectors, and a folder with one of them to change."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from refprune.conformance.asking.calls import InProcess
from refprune.conformance.vectors import files
from refprune.conformance.vectors.backend import BackendImplementation

STORED = Path(__file__).parents[2] / "validation" / "vectors"
PATHS = [path for path in sorted(STORED.rglob("*.json")) if path.name != "schema.json"]
ORACLE = ("the oracle", lambda: InProcess(BackendImplementation()))


@pytest.fixture(scope="module")
def stored():
    return list(files.read(STORED))


@pytest.fixture
def gate(tmp_path):
    """A folder with one valid vector of the gate."""
    for suffix in (".json", ".npz"):
        shutil.copy(STORED / "layers" / f"gate-valid-0{suffix}", tmp_path)
    return tmp_path


# Checking -----------------------------------------------------------------------------------------------------------------


def rewritten(folder, name, **changes):
    """The arrays of one vector put through functions."""
    with np.load(folder / f"{name}.npz") as file:
        arrays = dict(file)
    np.savez(folder / f"{name}.npz", **{key: changes.get(key, lambda a: a)(a) for key, a in arrays.items()})
