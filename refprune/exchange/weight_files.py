"""Arrays by name out of the files in which networks are exchanged: .npz, .safetensors, PyTorch state dicts, Keras HDF5.

Nothing a file says is executed or trusted: pickles may name tensors and dicts only, offsets are checked before they are read.
PyTorch's files need no PyTorch, Keras' need h5py.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import Array
from ..errors import DataError, InputError

Arrays = dict[str, Array]

#: Names of dtypes in .safetensors and in PyTorch's files; bfloat16 is the upper half of a float32.
_SAFETENSORS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "U8": "u1", "BOOL": "?"}
_STORAGES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": "u2",
    "LongStorage": "i8",
    "IntStorage": "i4",
}


def read(path: Path) -> Arrays:
    """The file's arrays in its order, under its names. InputError for an unknown ending, DataError for a bad file."""
    if path.suffix not in READERS:
        raise InputError(f"{path}: the name of a file of weights ends in one of {', '.join(READERS)}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    reader, what = READERS[path.suffix]
    try:
        arrays = reader(content)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except InputError:
        raise
    # A corrupt archive, header or pickle may raise nearly anything; whatever it is, the file is at fault.
    except Exception as error:
        raise DataError(f"{path}: no {what}: {type(error).__name__}: {error}") from error
    if not arrays:
        raise DataError(f"{path}: holds no arrays")
    return arrays


def _widened(raw: Array, bfloat16: bool) -> Array:
    wide: Array = (raw.astype(np.uint32) << 16).view(np.float32) if bfloat16 else raw.astype(raw.dtype.newbyteorder("="))
    return wide


# ------------------------------------------------------------------------------------------------------------ .npz


def _npz(content: bytes) -> Arrays:
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError("is one array, not an archive of arrays")
        return {name: archive[name] for name in archive.files}


# ---------------------------------------------------------------------------------------------------- .safetensors


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
            arrays[name] = _widened(raw.reshape(shape), kind == "BF16")
        except ValueError as error:  # more axes, or longer ones, than any array has
            raise DataError(f"{name}: no array has the shape {shape} ({error})") from error
    return arrays


# --------------------------------------------------------------------------------------------------------- PyTorch


class _StateDict(pickle.Unpickler):
    """The pickle of a state dict: tensors as arrays, and nothing else that could be called."""

    def __init__(self, pickled: bytes, storages: Callable[[str], bytes]) -> None:
        super().__init__(io.BytesIO(pickled))
        self.storages = storages

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module_name, global_name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module_name, global_name) == ("torch._utils", "_rebuild_parameter"):
            return _parameter
        if module_name == "torch" and global_name in _STORAGES:
            return global_name
        raise pickle.UnpicklingError(f"refused: the pickle names {module_name}.{global_name}, no part of a state dict")

    def persistent_load(self, pid: Any) -> Array:
        _, kind, key, _, count = pid
        raw = np.frombuffer(self.storages(f"data/{key}"), np.dtype(_STORAGES[kind]).newbyteorder("<"))
        if len(raw) != count:
            raise pickle.UnpicklingError(f"storage {key} holds {len(raw)} numbers, {count} are promised")
        return _widened(raw, kind == "BFloat16Storage")


def _tensor(storage: Array, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Array:
    last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
    if min((offset, *shape, *stride)) < 0 or (0 not in shape and last >= len(storage)):
        raise pickle.UnpicklingError(f"a tensor of shape {shape}, stride {stride}, offset {offset} leaves its storage")
    strides = [s * storage.itemsize for s in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, strides, writeable=False).copy()


def _parameter(data: Array, *_: object) -> Array:
    return data


def _pytorch(content: bytes) -> Arrays:
    """A state dict as `torch.save` writes it since 1.6: a zip with data.pkl and one file a storage; or {"state_dict": …}."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("data.pkl")]
        if len(pickles) != 1:
            raise DataError("holds no data.pkl: no state dict as torch.save writes it since PyTorch 1.6")
        folder = pickles[0].removesuffix("data.pkl")
        order = f"{folder}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise DataError(f"byte order {archive.read(order)!r}; only little-endian files are read")
        found = _StateDict(archive.read(pickles[0]), lambda name: archive.read(folder + name)).load()
    found = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(k, str) and isinstance(v, np.ndarray) for k, v in found.items()):
        raise DataError("is no state dict (names → tensors, or the same under 'state_dict')")
    return dict(found)


# ----------------------------------------------------------------------------------------------------------- Keras


def _keras(content: bytes) -> Arrays:
    """Weights or a model as Keras 2 saves them: "conv2d_1/kernel:0" of the layer conv2d_1 is called conv2d_1.kernel here."""
    try:
        import h5py
    except ImportError as error:
        raise InputError("Keras HDF5 files need h5py:  pip install -e '.[exchange]'") from error
    with h5py.File(io.BytesIO(content), "r") as file:
        root = file.get("model_weights", file)
        if "layer_names" not in root.attrs:
            raise DataError("holds no attribute layer_names: not what Keras 2 writes")
        arrays: Arrays = {}
        for layer in _texts(root.attrs["layer_names"]):
            for name in _texts(root[layer].attrs["weight_names"]):
                ours = f"{layer}.{name.rpartition('/')[2].removesuffix(':0')}"
                if ours in arrays:
                    raise DataError(f"{layer}: has two arrays of the name {ours}, the second {name}")
                arrays[ours] = np.asarray(root[layer][name])
        return arrays


def _texts(names: Any) -> list[str]:
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


#: Endings of files whose writers sort the arrays, by dtype and name.
WITHOUT_ORDER = (".safetensors",)

#: Ending → how such a file is read, and what it is to be.
READERS: dict[str, tuple[Callable[[bytes], Arrays], str]] = {
    ".npz": (_npz, "archive of plain arrays"),
    ".safetensors": (_safetensors, "safetensors file"),
    ".pt": (_pytorch, "PyTorch state dict"),
    ".pth": (_pytorch, "PyTorch state dict"),
    ".h5": (_keras, "Keras weights"),
    ".hdf5": (_keras, "Keras weights"),
}
