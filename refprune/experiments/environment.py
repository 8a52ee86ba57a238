"""Where and on what a run was made: everything beside its configuration that the bits of its results depend on."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .. import __version__
from ..data.dataset import Dataset
from ..errors import InputError
from ..output.files import write_atomically
from ..output.progress import Progress
from ..output.texts import read_json


def describe(dataset: Dataset) -> dict[str, str]:
    """Versions, machine and digests of code and data.

    vector_bits, target_sha256: what the kernels are chosen and compiled for; NUMBA_CPU_NAME and NUMBA_CPU_FEATURES change it.
    """
    from ..kernels.machine import cores, numba_internals, vectors

    digest = hashlib.sha256()
    for array in (dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels):
        digest.update(np.ascontiguousarray(array).data)
    others = {name: importlib.metadata.version(name) for name in ("numpy", "numba", "scipy")}
    packages = {"refprune": __version__} | others  # without installation too, from PYTHONPATH
    machine = {"python": platform.python_version(), "machine": platform.machine(), "processor": processor()}
    target = hashlib.sha256(",".join(numba_internals.target()).encode()).hexdigest()
    machine |= {"cores": str(cores.allowed()), "vector_bits": str(8 * vectors.HOST.vector_bytes), "target_sha256": target}
    return packages | machine | {"code_sha256": code_digest(), "data_sha256": digest.hexdigest()}


def code_digest() -> str:
    """SHA-256 over refprune's source files: another checkout may have the same version."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def processor() -> str:
    """The processor's name as the system tells it, the machine's type where it tells none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())


def write(path: Path, environment: Mapping[str, str]) -> None:
    """For `compare`, when the run is resumed."""
    write_atomically(path, json.dumps(environment, indent=1).encode())


def compare(path: Path, now: Mapping[str, str], progress: Progress) -> None:
    """Other data are refused; other versions, code or another machine are said, because the bits may then differ.

    What an earlier refprune did not write down is not compared.
    """
    try:
        then = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); it belongs to every run") from error
    if not isinstance(then, dict) or "data_sha256" not in then:
        raise InputError(f"{path}: holds no data_sha256; it was edited or belongs to something else")
    changed = [f"{key} {then.get(key)} → {value}" for key, value in now.items() if then.get(key, value) != value]
    if then.get("data_sha256") != now["data_sha256"]:
        raise InputError(f"{path}: the run began with other data (SHA-256 of images and labels differs)")
    if changed:
        progress.line(f"resumed in another environment ({', '.join(changed)}): the bits may differ")
