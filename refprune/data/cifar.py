"""CIFAR-10's batches, pickled by Python or binary; the pickles are read without running anything."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from .. import pickled
from ..errors import DataError
from .dataset import Dataset, Labelled, check_labels

_CIFAR_SHAPE = (3, 32, 32)
_CIFAR_PIXELS = math.prod(_CIFAR_SHAPE)
_CIFAR_TRAIN, _CIFAR_TEST = tuple(f"data_batch_{k}" for k in range(1, 6)), ("test_batch",)
_CIFAR_MAX_BYTES = 1 << 28


# -------------------------------------------------------------------------------------------------------------- CIFAR


class _Type:
    """Stands for numpy.dtype; only uint8 is allowed, and the type code of an empty array."""

    def __init__(self, code: object, *_align_and_copy: object) -> None:
        text = code.decode("ascii") if isinstance(code, bytes) else str(code)
        if text not in ("u1", "|u1", "uint8"):
            raise pickled.Refused(f"numpy type {code!r}, allowed is 'u1'")

    def fill(self, state: object) -> None:
        """Byte order and alignment, which say nothing about uint8."""


class _Array:
    """Stands for numpy.ndarray; `value` is set from the pickle's state."""

    value: NDArray[np.uint8] | None = None

    def fill(self, state: tuple[int, tuple[int, ...], _Type, bool, bytes]) -> None:
        _version, shape, kind, column_major, raw = state
        self.value = _matrix(raw, kind, shape, "F" if column_major else "C")


def _matrix(raw: object, kind: object, shape: object, order: str) -> NDArray[np.uint8]:
    two = isinstance(shape, tuple) and len(shape) == 2 and all(type(n) is int and n >= 0 for n in shape)
    if not isinstance(kind, _Type) or not isinstance(raw, bytes | bytearray) or not two:
        raise pickled.Refused("an array that is not two-dimensional uint8")
    return np.frombuffer(raw, np.uint8).reshape(cast(Any, shape), order=cast(Any, order))


def _reconstruct(kind: object, _shape: object, _code: object) -> _Array:
    """Stands for numpy's function of that name, which makes an empty array to be filled by its state."""
    if kind is not _Array:
        raise pickled.Refused(f"an array of type {kind!r}")
    return _Array()


def _from_buffer(raw: object, kind: object, shape: object, order: str) -> _Array:
    """Stands for numpy's function of that name, by which protocol 5 writes arrays."""
    made = _Array()
    made.value = _matrix(raw, kind, shape, order)
    return made


def _encoded(text: object, _encoding: object) -> bytes:
    """Stands for Python's function of that name, by which protocol 2 writes bytes."""
    if not isinstance(text, str):
        raise pickled.Refused(f"bytes made of a {type(text).__name__}")
    return text.encode("latin-1")


# All that the files of 2009 name (numpy.core) and what newer NumPy writes (numpy._core).
_MAKERS: dict[str, Callable[..., object]] = {
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy._core.multiarray._reconstruct": _reconstruct,
    "numpy.core.numeric._frombuffer": _from_buffer,
    "numpy._core.numeric._frombuffer": _from_buffer,
    "_codecs.encode": _encoded,
    "numpy.ndarray": _Array,
    "numpy.dtype": _Type,
}


def _read_bytes(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > _CIFAR_MAX_BYTES:
            raise DataError(f"{path}: {size} bytes; a CIFAR file has at most {_CIFAR_MAX_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _read_cifar_pickle(path: Path, field_of_labels: bytes = b"labels", classes: int = 10) -> Labelled:
    body = _read_bytes(path)
    file = io.BytesIO(body)
    try:
        batch = pickled.load(file, _MAKERS, strict=True, text=False)
    except pickled.Refused as error:
        raise DataError(f"{path}: no CIFAR pickle: {error}") from error
    if file.tell() != len(body):
        raise DataError(f"{path}: goes on after byte {file.tell()}, where the pickle ends")
    if not isinstance(batch, dict):
        raise DataError(f"{path}: holds a {type(batch).__name__}; a CIFAR batch is a dict")
    batch = {key.encode() if isinstance(key, str) else key: value for key, value in batch.items()}  # saved again by Python 3
    for field in (b"data", field_of_labels):
        if field not in batch:
            raise DataError(f"{path}: field {field!r} is missing; found {sorted(map(repr, batch))}")
    pixels, labels = batch[b"data"], batch[field_of_labels]
    if not isinstance(pixels, _Array) or pixels.value is None:
        raise DataError(f"{path}: field b'data' is a {type(pixels).__name__}; it must be an array")
    if pixels.value.shape[1] != _CIFAR_PIXELS:
        raise DataError(f"{path}: field b'data' has shape {pixels.value.shape}; it must be (count, {_CIFAR_PIXELS})")
    if not isinstance(labels, list) or any(type(label) is not int for label in labels):
        raise DataError(f"{path}: field {field_of_labels!r} must be a list of whole numbers")
    if len(labels) != len(pixels.value):
        raise DataError(f"{path}: {len(pixels.value)} images, but {len(labels)} labels")
    return pixels.value.reshape(-1, *_CIFAR_SHAPE), check_labels(labels, path, classes)


def _read_cifar_binary(path: Path) -> Labelled:
    raw = _read_bytes(path)
    record = 1 + _CIFAR_PIXELS
    whole, rest = divmod(len(raw), record)
    if rest or not whole:
        raise DataError(
            f"{path}: {len(raw)} bytes; a whole number of {record}-byte records is needed, and {rest} bytes "
            f"follow byte {whole * record}"
        )
    records = np.frombuffer(raw, np.uint8).reshape(whole, record)
    return records[:, 1:].reshape(-1, *_CIFAR_SHAPE), check_labels(records[:, 0].tolist(), path, classes=10)


def read_cifar10(directory: str | os.PathLike[str]) -> Dataset:
    """CIFAR-10 from a folder with `data_batch_1` … `data_batch_5`, `test_batch` (python) or the same with `.bin`.

    Images are uint8 (N, 3, 32, 32). Pickles may hold uint8 arrays, numbers, strings, lists and dicts; anything else is
    refused before it runs. Raises DataError for a missing, corrupt or malicious file, and if both versions are present.
    """
    directory = Path(directory)
    names = _CIFAR_TRAIN + _CIFAR_TEST
    versions = [suffix for suffix in ("", ".bin") if any((directory / (name + suffix)).exists() for name in names)]
    if not versions:
        raise DataError(f"{directory}: holds neither data_batch_1 (python version) nor data_batch_1.bin (binary)")
    if len(versions) > 1:
        raise DataError(f"{directory}: holds files of the python version and of the binary version; keep one of them")
    suffix = versions[0]
    read = _read_cifar_binary if suffix else _read_cifar_pickle
    train = [read(directory / (name + suffix)) for name in _CIFAR_TRAIN]
    test_images, test_labels = read(directory / (_CIFAR_TEST[0] + suffix))
    images, labels = (np.concatenate(parts) for parts in zip(*train, strict=True))
    return Dataset("cifar10", images, labels, test_images.copy(), test_labels, 10)


def read_cifar100(directory: str | os.PathLike[str]) -> Dataset:
    """CIFAR-100 with its fine classes, from a folder with the pickles `train` and `test`. DataError as in `read_cifar10`."""
    directory = Path(directory)
    train, test = (_read_cifar_pickle(directory / name, b"fine_labels", 100) for name in ("train", "test"))
    return Dataset("cifar100", train[0].copy(), train[1], test[0].copy(), test[1], 100)
