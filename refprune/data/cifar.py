"""CIFAR-10's batches, pickled by Python or binary; the pickles are read by an unpickler that makes arrays and nothing else."""

from __future__ import annotations

import io
import math
import os
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .dataset import Dataset, Labelled, check_labels

_CIFAR_SHAPE = (3, 32, 32)
_CIFAR_PIXELS = math.prod(_CIFAR_SHAPE)
_CIFAR_TRAIN, _CIFAR_TEST = tuple(f"data_batch_{k}" for k in range(1, 6)), ("test_batch",)
_CIFAR_MAX_BYTES = 1 << 28


# -------------------------------------------------------------------------------------------------------------- CIFAR


def _text(value: object) -> str:
    return value.decode("ascii") if isinstance(value, bytes) else str(value)


class _PickledType:
    """Stands for numpy.dtype while a pickle is read; only uint8 is allowed, and the type code of an empty array."""

    def __init__(self, code: object, *_align_and_copy: object) -> None:
        if _text(code) not in ("u1", "|u1", "uint8"):
            raise pickle.UnpicklingError(f"numpy type {code!r}, allowed is 'u1'")

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment, which say nothing about uint8."""


class _PickledArray:
    """Stands for numpy.ndarray while a pickle is read; `value` is set from the pickle's state."""

    value: NDArray[np.uint8]

    def __setstate__(self, state: tuple[int, tuple[int, ...], _PickledType, bool, bytes]) -> None:
        _version, shape, kind, column_major, raw = state
        if not isinstance(kind, _PickledType) or not isinstance(raw, bytes) or len(shape) != 2:
            raise pickle.UnpicklingError("an array that is not two-dimensional uint8")
        self.value = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if column_major else "C")


def _reconstruct(kind: object, _shape: object, _code: object) -> _PickledArray:
    """Stands for numpy's function of that name, which makes an empty array to be filled by its state."""
    if kind is not _PickledArray:
        raise pickle.UnpicklingError(f"an array of type {kind!r}")
    return _PickledArray()


# All that the files of 2009 name (numpy.core) and what newer NumPy writes (numpy._core). Nothing of NumPy itself is
# handed out, so a pickle can fill a uint8 matrix and do nothing else.
_ALLOWED: dict[tuple[str, str], Callable[..., object]] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _PickledArray,
    ("numpy", "dtype"): _PickledType,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Callable[..., object]:
        try:
            return _ALLOWED[module_name, global_name]
        except KeyError:
            allowed = ", ".join(".".join(key) for key in _ALLOWED)
            message = f"refused: the pickle names {module_name}.{global_name}; allowed are {allowed}"
            raise pickle.UnpicklingError(message) from None


_CONTAINER_OPCODES = ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "APPEND", "APPENDS", "SETITEM", "SETITEMS")
_TUPLE_OPCODES = ("MARK", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
_VALUE_OPCODES = ("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "SHORT_BINSTRING", "BINSTRING")
_ARRAY_OPCODES = ("GLOBAL", "REDUCE", "BUILD")
_FRAME_OPCODES = ("PROTO", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "STOP")
# The same contents written by newer versions of Python.
_NEWER_OPCODES = ("FRAME", "MEMOIZE", "STACK_GLOBAL", "SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES", "BINBYTES")
_OPCODES = frozenset(_CONTAINER_OPCODES + _TUPLE_OPCODES + _VALUE_OPCODES + _ARRAY_OPCODES + _FRAME_OPCODES + _NEWER_OPCODES)


def _check_opcodes(body: bytes) -> None:
    """Raises before anything is loaded if a length points outside the file or an opcode has no place in a batch.

    A corrupt length or memo index would else make the unpickler allocate up to the whole memory.
    """
    end = 0
    for opcode, argument, position in pickletools.genops(body):
        end = cast(int, position) + 1
        if opcode.name not in _OPCODES:
            raise pickle.UnpicklingError(f"refused: opcode {opcode.name} at byte {position} has no place in a batch")
        if opcode.name == "LONG_BINPUT" and cast(int, argument) > len(body):
            raise pickle.UnpicklingError(f"memo index {argument} at byte {position} is beyond the file's size")
    if end != len(body):
        raise pickle.UnpicklingError(f"goes on after byte {end}, where the pickle ends")


def _read_bytes(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > _CIFAR_MAX_BYTES:
            raise DataError(f"{path}: {size} bytes; a CIFAR-10 file has at most {_CIFAR_MAX_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _read_cifar_pickle(path: Path) -> Labelled:
    body = _read_bytes(path)
    try:
        _check_opcodes(body)
        batch = _ArrayUnpickler(io.BytesIO(body), encoding="bytes").load()
    # A corrupt pickle may raise nearly anything; whatever it is, the file is at fault.
    except Exception as error:
        raise DataError(f"{path}: no CIFAR-10 pickle: {type(error).__name__}: {error}") from error
    if not isinstance(batch, dict):
        raise DataError(f"{path}: holds a {type(batch).__name__}; a CIFAR-10 batch is a dict")
    for field in (b"data", b"labels"):
        if field not in batch:
            raise DataError(f"{path}: field {field!r} is missing; found {sorted(map(repr, batch))}")
    pixels, labels = batch[b"data"], batch[b"labels"]
    if not isinstance(pixels, _PickledArray) or not hasattr(pixels, "value"):
        raise DataError(f"{path}: field b'data' is a {type(pixels).__name__}; it must be an array")
    if pixels.value.shape[1] != _CIFAR_PIXELS:
        raise DataError(f"{path}: field b'data' has shape {pixels.value.shape}; it must be (count, {_CIFAR_PIXELS})")
    if not isinstance(labels, list) or any(type(label) is not int for label in labels):
        raise DataError(f"{path}: field b'labels' must be a list of whole numbers")
    if len(labels) != len(pixels.value):
        raise DataError(f"{path}: {len(pixels.value)} images, but {len(labels)} labels")
    return pixels.value.reshape(-1, *_CIFAR_SHAPE), check_labels(labels, path, classes=10)


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
