"""IDX files, as MNIST has them, plain or gzipped."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..output.sizes import check_size
from .dataset import Labelled, check_labels

_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_IDX_MAX_DIMENSIONS = 8
_CHUNK = 1 << 20


# ---------------------------------------------------------------------------------------------------------------- IDX


def _read_at_most(stream: BinaryIO | gzip.GzipFile, count: int) -> bytearray:
    """Up to `count` bytes, in pieces: `count` may come from a corrupt header and must not be allocated at once."""
    found = bytearray()
    while len(found) < count:
        piece = stream.read(min(_CHUNK, count - len(found)))
        if not piece:
            break
        found += piece
    return found


def _parse_idx(path: Path, stream: BinaryIO | gzip.GzipFile) -> NDArray[Any]:
    header = _read_at_most(stream, 4)
    if len(header) < 4:
        raise DataError(f"{path}: ends at byte {len(header)}, inside the 4-byte IDX magic number")
    zeros, code, ndim = struct.unpack(">HBB", header)
    if zeros != 0 or code not in _IDX_TYPES or not 1 <= ndim <= _IDX_MAX_DIMENSIONS:
        allowed = ", ".join(f"{c:02x}" for c in _IDX_TYPES)
        raise DataError(
            f"{path}: bytes 0 to 3 are {header.hex(' ')}, not an IDX magic number "
            f"(00 00, then the type, one of {allowed}, then the number of dimensions, 1 to {_IDX_MAX_DIMENSIONS})"
        )
    sizes = _read_at_most(stream, 4 * ndim)
    if len(sizes) < 4 * ndim:
        raise DataError(f"{path}: ends at byte {4 + len(sizes)}, inside the {ndim} IDX dimensions")
    shape = struct.unpack(f">{ndim}I", sizes)
    dtype = np.dtype(_IDX_TYPES[code])
    start, expected = 4 + 4 * ndim, math.prod(shape) * dtype.itemsize
    check_size(f"{path}: dimensions {shape} of {dtype.name}", expected, path.stat().st_size)
    body = _read_at_most(stream, expected)
    if len(body) < expected:
        raise DataError(
            f"{path}: truncated at byte {start + len(body)}; dimensions {shape} of {dtype.name} need {start + expected}"
        )
    if stream.read(1):
        raise DataError(f"{path}: goes on after byte {start + expected}, where dimensions {shape} of {dtype.name} end")
    try:
        return np.frombuffer(body, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)
    except ValueError as error:  # a dimension of 0 beside others beyond all arrays
        raise DataError(f"{path}: no array has the dimensions {shape} ({error})") from error


def read_idx(path: str | os.PathLike[str]) -> NDArray[Any]:
    """The array in an IDX file, gzipped or raw (told by content), in native byte order.

    Raises DataError if it cannot be read, is no IDX file, is truncated, goes on after its end, or is corrupt gzip.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise DataError(f"{path}: is no regular file")
    try:
        with path.open("rb") as file:
            if file.peek(2)[:2] != b"\x1f\x8b":
                return _parse_idx(path, file)
            with gzip.GzipFile(fileobj=file) as unpacked:
                try:
                    return _parse_idx(path, unpacked)
                except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                    raise DataError(f"{path}: corrupt gzip near compressed byte {file.tell()}: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def read_idx_pair(images_path: Path, labels_path: Path, classes: int = 10) -> Labelled:
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.dtype != np.uint8 or images.ndim != 3:
        raise DataError(f"{images_path}: holds {images.dtype} {images.shape}; images are uint8 (count, height, width)")
    if labels.dtype != np.uint8 or labels.ndim != 1:
        raise DataError(f"{labels_path}: holds {labels.dtype} {labels.shape}; labels are uint8 (count,)")
    if len(images) != len(labels):
        raise DataError(f"{images_path}: {len(images)} images, but {labels_path.name} holds {len(labels)} labels")
    return images[:, None], check_labels(labels.tolist(), labels_path, classes)
