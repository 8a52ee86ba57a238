"""Arrays by name out of the files in which networks are exchanged: .npz, .safetensors, PyTorch's, Keras'.

The content tells what a file is, not its ending. Nothing a file says is executed or trusted: sizes are compared with those of
the file before memory is taken. PyTorch's files need no PyTorch, Keras' need h5py.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..arrays import Array
from ..errors import DataError, InputError
from ..output.sizes import check_size
from . import keras_files, torch_pickles

Arrays = dict[str, Array]


class Weights(NamedTuple):
    """What a file of weights holds.

    arrays: name → array, in the file's order.
    ordered: does the order say which layer comes first? Not where the writer sorts them.
    layers: of a Keras file, what it says of its layers, by the names that its arrays have; None where nothing is said.
    """

    arrays: Arrays
    ordered: bool
    layers: Mapping[str, Mapping[str, Any]] | None = None


def read(path: Path) -> Weights:
    """The file's arrays under its names. DataError for a bad file, InputError for a package that is not installed."""
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: is no regular file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    what, reader = _kind(path, content)
    try:
        found = reader(content)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except InputError:
        raise
    # A corrupt archive, header or pickle may raise nearly anything; whatever it is, the file is at fault.
    except Exception as error:
        raise DataError(f"{path}: no {what}: {type(error).__name__}: {error}") from error
    if not found.arrays:
        raise DataError(f"{path}: holds no arrays")
    return found


def _kind(path: Path, content: bytes) -> tuple[str, Callable[[bytes], Weights]]:
    """What a file is by its first bytes, and its reader. DataError if it is none that is read."""
    if content[:8] == b"\x89HDF\r\n\x1a\n":
        return "Keras weights", lambda c: Weights(*keras_files.read(c))
    if content[8:9] == b"{" or path.suffix == ".safetensors":
        return "safetensors file", lambda c: Weights(_safetensors(c), False)
    if content[:1] == b"\x80":
        return "PyTorch state dict", lambda c: Weights(torch_pickles.read(c), True)
    if content[:2] == b"PK":
        names = _members(content)
        if "model.weights.h5" in names:
            return "Keras model", lambda c: Weights(*keras_files.read_archive(c))
        if any(name.endswith("data.pkl") for name in names) or path.suffix in (".pt", ".pth"):
            return "PyTorch state dict", lambda c: Weights(torch_pickles.read(c), True)
        return "archive of plain arrays", lambda c: Weights(_npz(c), True)
    read = ".npz, .safetensors, PyTorch state dict, Keras HDF5 or .keras"
    raise DataError(f"{path}: is by its first bytes none of the files that are read: {read}")


def _members(content: bytes) -> list[str]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError):  # its reader will say so
        return []


# ------------------------------------------------------------------------------------------------------------ .npz


def _npz(content: bytes) -> Arrays:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        check_size("unpacked, its arrays", sum(member.file_size for member in archive.infolist()), len(content))
        return {m.filename.removesuffix(".npy"): _npy(archive.open(m), m.file_size) for m in archive.infolist()}


def _npy(file: Any, size: int) -> Array:
    """One array of the archive: the header must promise as many bytes as there are."""
    with file:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = header(file)
        if dtype.hasobject:
            raise DataError("holds Python objects; only plain arrays are read")
        held = size - file.tell()
        if math.prod(shape) * dtype.itemsize != held:
            raise DataError(f"an array of shape {shape} and {dtype} has {held} bytes in the file")
        flat = np.frombuffer(bytearray(file.read(held)), dtype)
        return flat.reshape(shape, order="F" if by_columns else "C")


# ---------------------------------------------------------------------------------------------------- .safetensors


#: Names of dtypes in .safetensors; bfloat16 is the upper half of a float32.
_SAFETENSORS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "U8": "u1", "BOOL": "?"}


def _safetensors(content: bytes) -> Arrays:
    """Eight bytes with the header's length, the header as JSON (name → dtype, shape, first and last byte), the data."""
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > len(content) - 8:
        raise DataError(f"{len(content)} bytes; bytes 0 to 7 promise a header of {length}")
    try:
        header = json.loads(content[8 : 8 + length])
        entries = {name: header[name] for name in header if name != "__metadata__"}
        fields = []
        for name, entry in entries.items():
            begin, end = entry["data_offsets"]
            fields.append((name, str(entry["dtype"]), tuple(entry["shape"]), begin, end))
    except Exception as error:
        raise DataError(f"no header of a safetensors file in bytes 8 to {8 + length} ({error})") from error
    arrays: Arrays = {}
    for name, kind, shape, begin, end in sorted(fields, key=lambda f: str(f[3]).zfill(20)):
        if kind not in _SAFETENSORS:
            raise DataError(f"{name}: dtype {kind} is none of {', '.join(_SAFETENSORS)}")
        numbers = (*shape, begin, end)
        size = np.dtype(_SAFETENSORS[kind]).itemsize
        if not all(type(n) is int and n >= 0 for n in numbers) or end - begin != size * math.prod(shape):
            raise DataError(f"{name}: bytes {begin} to {end} are not the {size}-byte numbers of shape {shape}")
        if 8 + length + end > len(content):
            raise DataError(f"{name}: ends at byte {8 + length + end}, the file at {len(content)}")
        raw = np.frombuffer(content, _SAFETENSORS[kind], math.prod(shape), 8 + length + begin)
        try:
            arrays[name] = _native(raw.reshape(shape), kind)
        except ValueError as error:  # more axes, or longer ones, than any array has
            raise DataError(f"{name}: no array has the shape {shape} ({error})") from error
    return arrays


def _native(raw: Array, kind: str) -> Array:
    if kind == "BF16":
        return np.asarray((raw.astype(np.uint32) << 16).view(np.float32))
    return raw.astype(raw.dtype.newbyteorder("="))
