"""Trained networks leave the house: .npz without pickle, ONNX, PyTorch (extras `exchange` and `torch`); see also `exchange`.

Every format takes x as the network takes it: N×input_shape, standardised as `training.images.prepare_images` does. Only
networks whose gates are all decided are exported: there is nothing random left in them.
"""

from __future__ import annotations

import dataclasses
import importlib
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..arrays import Array
from ..backend import ORACLE
from ..data import sets, standardise
from ..errors import InputError
from ..output import install
from ..output.files import write_atomically
from ..passes.batch_loss import BatchLoss
from ..passes.predictor import Predictor
from ..rounding.tolerance import UNIT, output_tolerance
from ..spec import json_form
from ..spec.network import Loss
from ..streams import Streams
from ..training import checkpoint
from . import load
from .inputs import in_words
from .trained import NPZ_FORMAT, Trained


def read_run(directory: Path, run: str = "pruned") -> Trained:
    """The network of a finished run directory. InputError where it is not finished or not there."""
    there = sorted(path.parent.name for path in directory.glob(f"*/{checkpoint.NAME}"))
    if there and run not in there:
        raise InputError(f"{directory}: has no run {run!r}; there are {', '.join(there)} (--of)")
    return load.read_checkpoint(directory / run)


def with_inputs(trained: Trained, data_directory: str | None = None) -> Trained:
    """The network with the scaling of its inputs as numbers, those of the data set that it was trained on.

    Unchanged where the spec has numbers, the set is not known, or its files are not here; `said` tells.
    """
    if trained.network.inputs is not None or trained.data is None or len(trained.network.input_shape) != 3:
        return trained
    try:
        dataset = sets.load(trained.data, data_directory)
    except InputError as error:
        missing = f"inputs: no numbers are written, because the data set of the run is not here ({error})"
        return trained._replace(said=(*trained.said, missing))
    images = trained.training_images or len(dataset.train_labels)
    scaling = standardise.scaling_of(trained.network, dataset, images=images, dtype="float32")
    network = dataclasses.replace(trained.network, inputs=standardise.numbers_of(scaling))
    said = f"inputs: {in_words(scaling)}, that of the training images of {trained.data}, is written as numbers"
    return trained._replace(network=network, said=(*trained.said, said))


def write_npz(path: Path, trained: Trained) -> None:
    """One .npz without pickle: the spec as JSON text under "spec", arrays under refprune's names."""
    origin = {"data": trained.data, "training_images": trained.training_images}
    text = json.dumps({"format": NPZ_FORMAT, "network": json_form.to_json(trained.network)} | origin)
    buffer = io.BytesIO()
    arrays = {name: np.ascontiguousarray(a) for name, a in (trained.params | trained.statistics).items()}
    np.savez(buffer, spec=np.array(text), **arrays)  # type: ignore[arg-type]
    write_atomically(path, buffer.getvalue())


class Check(NamedTuple):
    """error: largest |difference| of a logit over its tolerance (E2) in float32; images: how many were compared."""

    error: float
    images: int


def compare(trained: Trained, outputs: Any, *, images: int = 2, seed: int = 0) -> Check:
    """Logits of `outputs`(x) for random x, float32 N×input_shape, against the oracle's, within E2's tolerance."""
    params, statistics = (
        {name: a.astype(np.float32).astype(np.float64) for name, a in arrays.items()}
        for arrays in (trained.params, trained.statistics)
    )
    x = Streams(seed).normal("export", 0, (images, *trained.network.input_shape)).astype(np.float32)
    labels = np.zeros(images, dtype=np.int64)
    network = dataclasses.replace(trained.network, loss=Loss())
    loss = BatchLoss(network, ORACLE, params, x.astype(np.float64), labels, statistics, train=False)
    want: Array = loss.evaluate(np.zeros(0)).tape.output
    tolerance = output_tolerance(loss, np.zeros(0), unit=UNIT["float32"])
    error = np.abs(np.asarray(outputs(x), dtype=np.float64) - want) / tolerance
    return Check(float(np.max(np.where(np.isnan(error), np.inf, error))), images)


def write_checked(path: Path, trained: Trained, kind: str) -> Check:
    """Write `kind`, "npz", "onnx" or "torch", and compare what the file computes with the oracle.

    InputError names a missing extra, or a layer that the format cannot hold.
    """
    if kind == "npz":
        write_npz(path, trained)
        read = load.read_npz(path)
        return compare(trained, Predictor(read.network, ORACLE, read.params, read.statistics))
    extra = {"onnx": "exchange", "torch": "torch"}[kind]
    try:
        writer = importlib.import_module(f"{__package__}.{kind}_file")
    except ImportError as error:
        raise InputError(f"--{kind}: needs {error.name}:  {install.command(extra)}") from error
    for name, array in trained.params.items():
        if array.ndim == 4 and not array.size:
            layer = name.rpartition(".")[0]
            raise InputError(f"{layer}: a convolution that has lost all its channels is nothing --{kind} can hold; --npz can")
    for name, array in trained.statistics.items():
        if kind == "torch" and not array.size:
            layer = name.rpartition(".")[0]
            raise InputError(f"{layer}: a batch-norm without channels cannot run in PyTorch; --npz and --onnx hold it")
    writer.write(path, trained)
    return compare(trained, lambda x: writer.outputs(path, x))
