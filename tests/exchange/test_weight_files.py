"""Readers of weight files: against the libraries that write them, and on files that are wrong in every way."""

import io
import json
import pickle
import zipfile

import h5py
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from refprune.errors import DataError
from refprune.exchange import weight_files

RNG = np.random.default_rng(0)
ARRAYS = {
    "b.weight": RNG.standard_normal((3, 2, 5, 1)).astype(np.float32),
    "a.bias": RNG.standard_normal(4),
    "c": np.float16(RNG.standard_normal((2, 0, 3))),
    "n": np.array(7),
}


def arrays(path):
    return weight_files.read(path).arrays


def same(found, want=ARRAYS):
    assert list(found) == list(want)
    for name, array in want.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


def test_npz(tmp_path):
    np.savez(tmp_path / "a.npz", **ARRAYS)
    same(arrays(tmp_path / "a.npz"))


def test_safetensors_against_the_library(tmp_path):
    safetensors.numpy.save_file(ARRAYS, tmp_path / "a.safetensors", metadata={"made": "here"})
    found = arrays(tmp_path / "a.safetensors")
    same({name: found[name] for name in ARRAYS})


def test_bfloat16(tmp_path):
    tensor = torch.tensor([[1.0, -0.3], [1e30, 0.0]], dtype=torch.bfloat16)
    torch.save({"t": tensor}, tmp_path / "a.pt")
    safetensors.torch.save_file({"t": tensor}, tmp_path / "a.safetensors")
    for name in ("a.pt", "a.safetensors"):
        same(arrays(tmp_path / name), {"t": tensor.float().numpy()})


@pytest.mark.parametrize("wrapped", [False, True])
def test_pytorch(tmp_path, wrapped):
    """Strided views, shared storages, parameters, scalars, an empty tensor; the same under "state_dict"."""
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in ARRAYS.items()}
    tensors["turned"] = tensors["b.weight"].permute(3, 1, 0, 2)
    tensors["part"] = tensors["b.weight"][1, :, 2:4]
    tensors["parameter"] = torch.nn.Parameter(torch.arange(3.0))
    torch.save({"state_dict": tensors} if wrapped else tensors, tmp_path / "a.pth")
    want = {name: np.ascontiguousarray(t.detach().numpy()) if t.ndim else t.numpy() for name, t in tensors.items()}
    same(arrays(tmp_path / "a.pth"), want)


@pytest.mark.parametrize("group", ["/", "model_weights"])
def test_keras(tmp_path, group):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        root = file.require_group(group)
        root.attrs["layer_names"] = [b"conv2d_1", b"relu", b"norm"]
        for layer, kinds in {"conv2d_1": ["kernel", "bias"], "relu": [], "norm": ["gamma"]}.items():
            made = root.create_group(layer)
            made.attrs["weight_names"] = np.array([f"{layer}/{kind}:0".encode() for kind in kinds], dtype="S")
            for kind in kinds:
                made[f"{layer}/{kind}:0"] = np.full((2, 3), len(kind), np.float32)
    want = {"conv2d_1.kernel": 6, "conv2d_1.bias": 4, "norm.gamma": 5}
    same(arrays(tmp_path / "a.h5"), {name: np.full((2, 3), n, np.float32) for name, n in want.items()})


def saved(**tensors):
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


def repacked(content, change):
    """A zip with some of its files changed; None takes one away."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            made = change(name, old.read(name))
            if made is not None:
                new.writestr(name, made)
    return out.getvalue()


def header(entries, data=b""):
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data


class Evil:
    def __reduce__(self):
        return (print, ("this must not be printed",))


def pickled(value):
    return repacked(saved(w=torch.ones(2)), lambda name, old: pickle.dumps(value) if name.endswith(".pkl") else old)


W = saved(w=torch.ones(4, 5))
ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BAD = {
    "npz, no zip": (".npz", b"nothing", "is by its first bytes none of the files that are read"),
    "npz, cut": (".npz", None, "no archive of plain arrays"),
    "npz, objects": (".npz", {"a": np.array([{}])}, "holds Python objects; only plain arrays are read"),
    "npz, empty": (".npz", {}, "holds no arrays"),
    "safetensors, short": (".safetensors", b"\x01", "1 bytes; bytes 0 to 7 promise a header of 1"),
    "safetensors, promise": (".safetensors", b"\xff" * 12, "12 bytes; bytes 0 to 7 promise"),
    "safetensors, no JSON": (".safetensors", (3).to_bytes(8, "little") + b"abc", "no header of a safetensors file"),
    "safetensors, field": (".safetensors", header({"w": {"dtype": "F32"}}), "no header of a safetensors file"),
    "safetensors, dtype": (".safetensors", header({"w": ENTRY | {"dtype": "F8"}}), "w: dtype F8 is none of F64"),
    "safetensors, size": (
        ".safetensors",
        header({"w": ENTRY | {"shape": [3]}}, bytes(8)),
        "w: bytes 0 to 8 are not the 4-byte",
    ),
    "safetensors, one offset": (".safetensors", header({"w": ENTRY | {"data_offsets": [0]}}, bytes(8)), "no header of a saf"),
    "safetensors, three": (
        ".safetensors",
        header({"w": ENTRY | {"data_offsets": [0, 8, 8]}}, bytes(8)),
        "no header of a safet",
    ),
    "safetensors, list": (".safetensors", header({"w": ENTRY | {"dtype": ["F32"]}}, bytes(8)), r"dtype \['F32'\] is none of"),
    "safetensors, deep": (".safetensors", (200_000).to_bytes(8, "little") + b"[" * 200_000, "no header of a safetensors file"),
    "safetensors, axes": (
        ".safetensors",
        header({"w": ENTRY | {"shape": [0] * 70, "data_offsets": [0, 0]}}),
        "w: no array has",
    ),
    "safetensors, negative": (".safetensors", header({"w": ENTRY | {"data_offsets": [-8, 0]}}, bytes(8)), "w: bytes -8 to 0"),
    "safetensors, end": (".safetensors", header({"w": ENTRY}, bytes(7)), r"w: ends at byte \d+, the file at \d+"),
    "pt, no zip": (".pt", b"nothing", "is by its first bytes none of the files that are read"),
    "pt, legacy": (".pt", repacked(W, lambda n, old: None if n.endswith(".pkl") else old), "holds no data.pkl"),
    "pt, cut storage": (
        ".pt",
        repacked(W, lambda n, old: old[:8] if n.endswith("/data/0") else old),
        "storage 0 holds 8 bytes, 80 are promised",
    ),
    "pt, big endian": (".pt", repacked(W, lambda n, old: b"big" if n.endswith("order") else old), "byte order b'big'"),
    "pt, code": (".pt", pickled({"w": Evil()}), "no dict of tensors; it holds w"),
    "pt, no arrays": (".pt", pickled({"w": 3}), "is no state dict"),
    "pt, list": (".pt", pickled([1]), "is no state dict"),
    "h5, nothing": (".h5", b"nothing", "is by its first bytes none"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused(tmp_path, case, capsys):
    ending, content, message = BAD[case]
    path = tmp_path / f"bad{ending}"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, **(ARRAYS if content is None else content))
        path.write_bytes(path.read_bytes()[: None if content is not None else 300])
    with pytest.raises(DataError, match=message) as error:
        weight_files.read(path)
    assert str(path) in str(error.value)
    assert capsys.readouterr().out == ""


def test_a_tensor_that_leaves_its_storage_is_refused(tmp_path):
    """The pickle says shape (4, 5) over a storage of 20: with stride 6 the last row would be outside."""

    def wider(name, old):
        return old.replace(b"K\x05K\x01\x86", b"K\x06K\x01\x86") if name.endswith(".pkl") else old

    (tmp_path / "a.pt").write_bytes(repacked(W, wider))
    with pytest.raises(DataError, match=r"a tensor of shape \(4, 5\), stride \(6, 1\), offset 0 leaves its storage"):
        weight_files.read(tmp_path / "a.pt")


def test_h5_without_layer_names(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = np.ones(2)
    with pytest.raises(DataError, match="holds neither the attribute layer_names of Keras 2"):
        weight_files.read(tmp_path / "a.h5")


def test_unknown_ending_and_missing_file(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"GIF89a")
    with pytest.raises(DataError, match=r"a.bin: is by its first bytes none of the files that are read: .npz, .safetensors"):
        weight_files.read(tmp_path / "a.bin")
    with pytest.raises(DataError, match="cannot be read"):
        weight_files.read(tmp_path / "a.npz")
