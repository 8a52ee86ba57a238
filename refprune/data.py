"""Image sets for classification: readers for IDX and CIFAR-10 files, and `load`, which finds a set by its name.

Readers check the structure of a file completely (magic, sizes, counts, label range) and its checksum never: that is
`refprune.fetch.verify`. Nothing is downloaded here.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import pickle
import pickletools
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from . import digits, folder
from .errors import DataError, InputError
from .output.files import user_cache

NAMES = ("mnist", "fashion-mnist", "cifar10", "synthetic-digits")
SYNTHETIC_TRAIN, SYNTHETIC_TEST, SYNTHETIC_SEED = 6000, 2000, 0

_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_IDX_MAX_DIMENSIONS = 8
_CHUNK = 1 << 20
_CIFAR_SHAPE = (3, 32, 32)
_CIFAR_PIXELS = math.prod(_CIFAR_SHAPE)
_CIFAR_TRAIN, _CIFAR_TEST = tuple(f"data_batch_{k}" for k in range(1, 6)), ("test_batch",)
_CIFAR_MAX_BYTES = 1 << 28

Labelled = tuple[NDArray[np.uint8], NDArray[np.int64]]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A labelled image set in two parts.

    train_images: uint8 (N, C, H, W); train_labels: int64 (N,), values 0..classes−1; test_images (M, C, H, W) and
    test_labels (M,) likewise.
    """

    name: str
    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]
    classes: int


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
    body = _read_at_most(stream, expected)
    if len(body) < expected:
        raise DataError(
            f"{path}: truncated at byte {start + len(body)}; dimensions {shape} of {dtype.name} need {start + expected}"
        )
    if stream.read(1):
        raise DataError(f"{path}: goes on after byte {start + expected}, where dimensions {shape} of {dtype.name} end")
    return np.frombuffer(body, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def read_idx(path: str | os.PathLike[str]) -> NDArray[Any]:
    """The array in an IDX file, gzipped or raw (told by content), in native byte order.

    Raises DataError if it cannot be read, is no IDX file, is truncated, goes on after its end, or is corrupt gzip.
    """
    path = Path(path)
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


def _read_idx_pair(images_path: Path, labels_path: Path) -> Labelled:
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.dtype != np.uint8 or images.ndim != 3:
        raise DataError(f"{images_path}: holds {images.dtype} {images.shape}; images are uint8 (count, height, width)")
    if labels.dtype != np.uint8 or labels.ndim != 1:
        raise DataError(f"{labels_path}: holds {labels.dtype} {labels.shape}; labels are uint8 (count,)")
    if len(images) != len(labels):
        raise DataError(f"{images_path}: {len(images)} images, but {labels_path.name} holds {len(labels)} labels")
    return images[:, None], _check_labels(labels.tolist(), labels_path, classes=10)


def _check_labels(labels: list[int], path: Path, classes: int) -> NDArray[np.int64]:
    if not labels:
        raise DataError(f"{path}: holds no labels")
    for index, label in enumerate(labels):
        if not 0 <= label < classes:
            raise DataError(f"{path}: label {index} is {label}; allowed is 0 to {classes - 1}")
    return np.array(labels, np.int64)


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
    return pixels.value.reshape(-1, *_CIFAR_SHAPE), _check_labels(labels, path, classes=10)


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
    return records[:, 1:].reshape(-1, *_CIFAR_SHAPE), _check_labels(records[:, 0].tolist(), path, classes=10)


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


# --------------------------------------------------------------------------------------------------------------- load


def data_directory(directory: str | os.PathLike[str] | None = None) -> Path:
    """The folder where data sets lie: `directory`; else $REFPRUNE_DATA; else `datasets/` of the checkout that this
    module runs from; else `refprune` in the user's cache folder ($XDG_CACHE_HOME or ~/.cache).

    An empty variable counts as unset.
    """
    if directory is not None:
        return Path(directory)
    if named := os.environ.get("REFPRUNE_DATA"):
        return Path(named)
    checkout = Path(__file__).resolve().parents[1]
    if (checkout / "pyproject.toml").is_file() and (checkout / "datasets").is_dir():
        return checkout / "datasets"
    return user_cache()


def _missing(name: str, root: Path, wanted: str) -> DataError:
    return DataError(
        f"{name}: {wanted} was not found in {root}; `refprune data fetch {name}` downloads the set, "
        "--data-dir or REFPRUNE_DATA names another folder, and --data synthetic-digits needs no files"
    )


def _load_idx(name: str, root: Path) -> Dataset:
    def find(stem: str) -> Path:
        for candidate in (root / name / f"{stem}.gz", root / name / stem):
            if candidate.exists():
                return candidate
        raise _missing(name, root, f"{name}/{stem}.gz (or {stem})")

    paths = [find(f"{part}-{kind}-ubyte") for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    train, test = _read_idx_pair(paths[0], paths[1]), _read_idx_pair(paths[2], paths[3])
    for path, (images, _) in ((paths[0], train), (paths[2], test)):
        if images.shape[1:] != (1, 28, 28):
            raise DataError(f"{path}: images are {images.shape[2]}×{images.shape[3]} pixels; {name} has 28×28")
    return Dataset(name, *train, *test, 10)


def load(name: str, directory: str | os.PathLike[str] | None = None) -> Dataset:
    """The set `name`, one of NAMES; `directory` as in `data_directory`. `synthetic-digits` needs no files.

    "folder:PATH" or "folder:PATH@SIZE" is a tree of images as ImageNet's (`folder.read`), PATH being absolute or in the
    folder of the data sets, SIZE the images' side (224). Raises InputError for an unknown name, DataError if files are
    missing or not what their names say.
    """
    if name == "synthetic-digits":
        return Dataset(name, *digits.generate(SYNTHETIC_TRAIN, SYNTHETIC_TEST, SYNTHETIC_SEED), digits.CLASSES)
    root = data_directory(directory)
    if name.startswith("folder:"):
        return _load_folder(name, root)
    if name in ("mnist", "fashion-mnist"):
        return _load_idx(name, root)
    if name == "cifar10":
        for folder in ("cifar-10-batches-py", "cifar-10-batches-bin"):
            if (root / folder).is_dir():
                return read_cifar10(root / folder)
        raise _missing(name, root, "cifar-10-batches-py/ (or cifar-10-batches-bin/)")
    raise InputError(f"data set {name!r} is unknown; allowed are {', '.join(NAMES)}, folder:PATH@SIZE")


def _load_folder(name: str, root: Path) -> Dataset:
    path, at, size = name.removeprefix("folder:").rpartition("@")
    if not at:
        path, size = size, "224"
    if not path or not size.isdecimal():
        raise InputError(f"data set {name!r}: expected folder:PATH or folder:PATH@SIZE")
    try:
        found = folder.read(root / path, int(size))
    except DataError as error:
        where = "" if Path(path).is_absolute() else f" ({path} is below the folder of the data sets; or give an absolute path)"
        raise DataError(f"{error}{where}") from error
    return Dataset(name, *found[:4], classes=len(found.classes))
