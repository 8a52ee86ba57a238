"""State dicts in the files of `torch.save`, without PyTorch: zip archives (since 1.6) and the streams of before.

Tensors are made only for the dict that is taken, after their sizes were compared with what the file holds.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from .. import pickled
from ..arrays import Array
from ..errors import DataError

#: PyTorch's classes of storages → NumPy's type; bfloat16 is the upper half of a float32.
STORAGES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": "u2",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}

#: The first pickle of a file from before 1.6.
MAGIC = 0x1950A86A20F9469CFC6C

#: Names under which people keep the state dict, the likelier first.
USUAL = ("state_dict", "model_state_dict", "model", "net", "module", "network", "weights", "params", "student")

#: Names of what is kept beside it and is made of tensors too.
BESIDE = ("optim", "scheduler", "scaler", "ema", "momentum", "grad", "amp", "rng")


class Storage(NamedTuple):
    """What a tensor is a view of. key: its name in the file; size: how many numbers it has."""

    kind: str
    key: str
    size: int


class Tensor(NamedTuple):
    """A view of a storage that has not been read."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def read(content: bytes) -> dict[str, Array]:
    """The tensors of the state dict, by name, in the file's order. DataError for anything else."""
    try:
        found, bytes_of = _archive(content) if content[:2] == b"PK" else _stream(content)
        return {name: _array(tensor, bytes_of) for name, tensor in _state_dict(found).items()}
    except pickled.Refused as error:
        raise DataError(str(error)) from error


def _archive(content: bytes) -> tuple[Any, Callable[[Storage], bytes]]:
    """A zip with data.pkl and one file a storage."""
    archive = zipfile.ZipFile(io.BytesIO(content))
    names = archive.namelist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
        raise DataError("holds compressed parts, which torch.save never writes")
    pickles = [name for name in names if name.endswith("data.pkl")]
    if len(pickles) != 1:
        raise DataError("holds no data.pkl: no state dict as torch.save writes it since PyTorch 1.6")
    folder = pickles[0].removesuffix("data.pkl")
    order = f"{folder}byteorder"
    if order in names and archive.read(order) != b"little":
        raise DataError(f"byte order {archive.read(order)!r}; only little-endian files are read")

    def bytes_of(storage: Storage) -> bytes:
        name, promised = f"{folder}data/{storage.key}", storage.size * np.dtype(STORAGES[storage.kind]).itemsize
        held = archive.getinfo(name).file_size if name in names else 0
        if held != promised:
            raise DataError(f"storage {storage.key} holds {held} bytes, {promised} are promised")
        return archive.read(name)

    return pickled.load(io.BytesIO(archive.read(pickles[0])), _makers(), _storage), bytes_of


def _stream(content: bytes) -> tuple[Any, Callable[[Storage], bytes]]:
    """Five pickles, the last the names of the storages, then each storage behind the count of its numbers."""
    file = io.BytesIO(content)
    if pickled.load(file, {}) != MAGIC:
        raise DataError("does not begin like a file of torch.save")
    pickled.load(file, {})
    system = pickled.load(file, {})
    if not isinstance(system, dict) or not system.get("little_endian", True):
        raise DataError("only little-endian files are read")
    storages: dict[str, Storage] = {}

    def storage(pid: Any) -> Any:
        if pid[0] == "module":  # a class, with the source it once had
            return pid[1]
        found = _storage(pid[:5])
        return storages.setdefault(found.key, found)

    found = pickled.load(file, _makers(), storage)
    parts = {}
    for key in pickled.load(file, {}):
        if key not in storages:
            raise DataError(f"storage {key!r} belongs to no tensor")
        (count,) = struct.unpack("<q", file.read(8).rjust(8, b"\xff"))
        size = np.dtype(STORAGES[storages[key].kind]).itemsize
        if count != storages[key].size or file.tell() + count * size > len(content):
            raise DataError(f"storage {key} holds {count} numbers, {storages[key].size} are promised, or the file is cut off")
        parts[key] = memoryview(content)[file.tell() : file.tell() + count * size]
        file.seek(count * size, io.SEEK_CUR)
    return found, lambda wanted: bytes(parts[wanted.key])


def _storage(pid: Any) -> Storage:
    what, kind, key, _, count = pid
    if what != "storage" or kind not in STORAGES or type(count) is not int or count < 0:
        raise pickled.Refused(f"a storage of {kind!r} with {count!r} numbers is not read")
    return Storage(kind, str(key), count)


def _makers() -> dict[str, pickled.Maker]:
    return {
        "collections.OrderedDict": pickled.ordered_dict,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_tensor": _tensor,
        "torch._utils._rebuild_parameter": lambda data, *_: data,
        **{f"torch.{kind}": _Kind(kind) for kind in STORAGES},
    }


class _Kind(str):
    """The name of a class of storages; the machine hands it on and calls it never."""

    def __call__(self, *_: object) -> None:
        raise pickled.Refused(f"makes a {self}")


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: object) -> Tensor:
    numbers = (offset, *shape, *stride)
    if not isinstance(storage, Storage) or not all(type(n) is int and n >= 0 for n in numbers) or len(shape) != len(stride):
        raise pickled.Refused(f"a tensor of shape {shape!r}, stride {stride!r}, offset {offset!r} is none")
    last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
    entries = 1
    for n in shape:
        entries *= n
    if entries and (last >= storage.size or entries > storage.size):
        raise pickled.Refused(
            f"a tensor of shape {shape}, stride {stride}, offset {offset} leaves its storage of {storage.size} numbers"
        )
    return Tensor(storage, offset, tuple(shape), tuple(stride))


def _array(tensor: Tensor, bytes_of: Callable[[Storage], bytes]) -> Array:
    kind = tensor.storage.kind
    raw = np.frombuffer(bytes_of(tensor.storage), np.dtype(STORAGES[kind]).newbyteorder("<"))
    if len(raw) != tensor.storage.size:
        raise DataError(f"storage {tensor.storage.key} holds {len(raw)} numbers, {tensor.storage.size} are promised")
    strides = [s * raw.itemsize for s in tensor.stride]
    view = np.lib.stride_tricks.as_strided(raw[tensor.offset :], tensor.shape, strides, writeable=False)
    if kind == "BFloat16Storage":
        return np.asarray((view.astype(np.uint32) << 16).view(np.float32))
    return np.array(view, dtype=view.dtype.newbyteorder("="))


# --------------------------------------------------------------------------------------------------------------------
# Which dict it is


def _state_dict(found: Any) -> dict[str, Tensor]:
    """The one dict of tensors in what was saved; what stands beside it is left alone. DataError if there is none or several."""
    places = dict(_dicts(found))
    likely = {path: tensors for path, tensors in places.items() if not any(part.lower().startswith(BESIDE) for part in path)}
    if len(likely) > 1:
        usual = [path for name in USUAL for path in likely if path[-1:] == (name,)]
        likely = {usual[0]: likely[usual[0]]} if usual else likely
    if len(likely) == 1:
        return next(iter(likely.values()))
    keys = ", ".join(map(str, found)) if isinstance(found, dict) else f"a {type(found).__name__}"
    if not likely:
        whole = isinstance(found, pickled.Stranger)
        what = f"a whole {found.name}; save its state_dict()" if whole else f"no dict of tensors; it holds {keys}"
        raise DataError(f"is no state dict (names → tensors, alone or beside other things): {what}")
    listed = ", ".join(".".join(path) or "the whole" for path in likely)
    raise DataError(f"holds several dicts of tensors, {listed}; save one of them alone")


def _dicts(found: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """(keys on the way, tensors by name) of every dict with texts as keys that holds tensors, the outermost of each way."""
    if not isinstance(found, dict) or len(path) > 3 or not all(isinstance(key, str) for key in found):
        return
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    others = [value for value in found.values() if isinstance(value, dict) and value]
    if tensors and not others:
        yield path, tensors
        return
    for name, value in found.items():
        yield from _dicts(value, (*path, name))
