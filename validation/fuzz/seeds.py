"""Readers and the small whole files, made here, from which damaged ones are bred."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from refprune.data import cifar, folder, idx
from refprune.exchange import load, spec_of_file, weight_files
from refprune.exchange.export import write_npz
from refprune.exchange.inputs import inputs_of
from refprune.exchange.trained import Trained
from refprune.experiments import layer_pruning_report, sweep_file
from refprune.passes.parameters import initialise
from refprune.spec import json_form, zoo
from refprune.spec.layers import Activation, BatchNorm, Dense
from refprune.spec.network import Network
from refprune.streams import Streams
from refprune.training import checkpoint, config
from refprune.training.state import initial_state

NETWORK = Network((4,), (Dense(3), BatchNorm(), Activation("relu"), Dense(2)))


class Reader(NamedTuple):
    """read: what is called with the path of a damaged file. name: of that file. seeds: whole files.

    beside: files that stand beside it, whole. share: of the cases; less where each starts a process.
    """

    read: Callable[[Path], Any]
    name: str
    seeds: list[bytes]
    beside: Mapping[str, bytes] = MappingProxyType({})
    share: float = 1.0


def readers() -> dict[str, Reader]:
    """Every reader by name."""
    return {**_texts(), **_weights(), **_folders(), **_images()}


def _texts() -> dict[str, Reader]:
    spec = json.dumps(json_form.to_json(zoo.build("lenet-5", {}))).encode()
    small = json.dumps(json_form.to_json(NETWORK)).encode()
    experiment = config.to_toml(config.load("quickstart")).encode()
    short = b'[network]\nname = "residual-mlp"\nsections = 3\n[gates]\nprotect = ["section1"]\nthreshold = 0.1\n'
    sweep = b'experiment = "quickstart"\nseeds = [0, 1]\n[set]\n"gates.initial" = 0.5\n[grid]\n"objective.beta" = [0.1, 0.2]\n'
    inputs = b'{"shift": [1.0, 2.0, 3.0], "scale": [0.1, 0.2, 0.3]}'
    return {
        "experiment": Reader(lambda path: config.load(str(path)), "e.toml", [experiment, short]),
        "sweep": Reader(sweep_file.load_sweep, "s.toml", [sweep]),
        "spec": Reader(lambda path: spec_of_file.network_for(str(path), {}), "s.json", [spec, small]),
        "inputs": Reader(lambda path: inputs_of(str(path), zoo.build("resnet-20", {})), "i.json", [inputs]),
    }


def _arrays() -> dict[str, np.ndarray]:
    one = np.ones(3, "f4")
    norm = {f"batchnorm1.{key}": one for key in ("gain", "bias", "mean", "variance")}
    return {name: a.astype("f4") for name, a in initialise(NETWORK, Streams(0)).items()} | norm


def _weights() -> dict[str, Reader]:
    arrays, plain, packed, whole = _arrays(), io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.savez(plain, **arrays)
    np.savez_compressed(packed, **arrays)
    with tempfile.TemporaryDirectory() as place:
        names = set(NETWORK.parameter_shapes)
        trained = Trained(NETWORK, *({n: a for n, a in arrays.items() if (n in names) is own} for own in (True, False)))
        write_npz(Path(place) / "w.npz", trained)
        whole.write((Path(place) / "w.npz").read_bytes())
    spec = {"s.json": json.dumps(json_form.to_json(NETWORK)).encode()}

    def under_spec(path: Path) -> Any:
        return load.load(path, str(path.with_name("s.json")))

    found = {
        "npz": Reader(under_spec, "w.npz", [plain.getvalue(), packed.getvalue()], spec),
        "npz with its spec": Reader(load.load, "w.npz", [whole.getvalue()]),
        "safetensors": Reader(under_spec, "w.safetensors", [_safetensors(arrays)], spec),
    }
    for name, maker in {"torch": _torch, "keras": _keras}.items():
        try:
            found[name] = Reader(under_spec, f"w.{name}", maker(arrays), spec, share=0.05 if name == "keras" else 1.0)
        except ImportError:
            print(f"{name}: is not installed, its files are left out")
    return found


def _safetensors(arrays: dict[str, np.ndarray]) -> bytes:
    header, data = {}, b""
    for name, array in arrays.items():
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [len(data), len(data) + array.nbytes]}
        data += array.tobytes()
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def _torch(arrays: dict[str, np.ndarray]) -> list[bytes]:
    """The zip of today and the stream of before 1.6, alone and beside other things."""
    import torch

    state = {name: torch.from_numpy(a.copy()) for name, a in arrays.items()}
    found = []
    for content in (state, {"epoch": 3, "state_dict": state, "optimizer": {"state": {0: {"m": torch.ones(2)}}, "lr": 0.1}}):
        for modern in (True, False):
            buffer = io.BytesIO()
            torch.save(content, buffer, _use_new_zipfile_serialization=modern)
            found.append(buffer.getvalue())
    return found


def _keras(arrays: dict[str, np.ndarray]) -> list[bytes]:
    import h5py

    kinds = {"weight": "kernel", "bias": "bias", "gain": "gamma", "mean": "moving_mean", "variance": "moving_variance"}
    old, new = io.BytesIO(), io.BytesIO()
    with h5py.File(old, "w") as file:
        layers = list(dict.fromkeys(name.rpartition(".")[0] for name in arrays))
        file.attrs["layer_names"] = [name.encode() for name in layers]
        for layer in layers:
            norm = layer.startswith("batchnorm")
            own = {n.rpartition(".")[2]: a for n, a in arrays.items() if n.startswith(f"{layer}.")}
            theirs = {"beta" if norm and key == "bias" else kinds[key]: array.T for key, array in own.items()}
            group = file.create_group(layer)
            group.attrs["weight_names"] = [f"{layer}/{kind}:0".encode() for kind in theirs]
            for kind, array in theirs.items():
                group[f"{layer}/{kind}:0"] = array
    with h5py.File(new, "w") as file:
        for name, shapes in {"dense": ((4, 3), (3,)), "batch_normalization": ((3,),) * 4, "dense_1": ((3, 2), (2,))}.items():
            for i, shape in enumerate(shapes):
                file[f"layers/{name}/vars/{i}"] = np.ones(shape, "f4")
    return [old.getvalue(), new.getvalue()]


def _folders() -> dict[str, Reader]:
    """A checkpoint's two files, a pruning run's two, data sets."""
    with tempfile.TemporaryDirectory() as place:
        rules = config.from_dict({"network": {"name": "residual-mlp", "sections": 2, "width": 3}})
        checkpoint.save(Path(place), initial_state(rules, rules.build_network()), {"data": "mnist"})
        files = {path.name: path.read_bytes() for path in Path(place).iterdir()}
    (arrays,) = (name for name in files if name.endswith(".npz"))
    plan = json.dumps({"plan": {"criterion": "cka"}, "settings": {}, "network": {"source": "x"}}).encode()
    rounds = json.dumps([{"round": 0, "macs_per_image": 10, "parameters": 3, "test_accuracy": 0.5}] * 2).encode()
    header = files.pop(checkpoint.NAME)

    def of_folder(path: Path) -> Any:
        return checkpoint.load(path.parent)

    pixels = np.arange(2 * 3072, dtype=np.uint8).reshape(2, 3072)
    batches = [pickle.dumps({b"data": pixels, b"labels": [1, 2], b"batch_label": b"x"}, protocol) for protocol in (2, 4, 5)]
    image = struct.pack(">HBB3I", 0, 8, 3, 2, 3, 4) + bytes(range(24))
    return {
        "checkpoint": Reader(of_folder, checkpoint.NAME, [header], files),
        "checkpoint's arrays": Reader(
            lambda path: checkpoint.load(path.parent), arrays, [files[arrays]], {checkpoint.NAME: header}
        ),
        "pruning run": Reader(
            lambda path: layer_pruning_report.read_run(path.parent), "rounds.json", [rounds], {"plan.json": plan}
        ),
        "cifar": Reader(cifar._read_cifar_pickle, "data_batch_1", batches),
        "cifar binary": Reader(cifar._read_cifar_binary, "data_batch_1.bin", [b"\x01" + bytes(3072)]),
        "idx": Reader(idx.read_idx, "images", [image, gzip.compress(image)]),
        "arrays by name": Reader(weight_files.read, "any", [files[arrays], _safetensors(_arrays()), *batches]),
    }


def _pruning_run(path: Path) -> Any:
    return layer_pruning_report.read_run(path.parent)


def _images() -> dict[str, Reader]:
    try:
        from PIL import Image
    except ImportError:
        print("Pillow: is not installed, images are left out")
        return {}
    found = {}
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    for kind in ("JPEG", "PNG", "BMP", "WEBP"):
        seeds = []
        for image in (Image.fromarray(pixels), Image.fromarray(pixels).convert("L"), Image.fromarray(pixels).quantize(8)):
            buffer = io.BytesIO()
            (image.convert("RGB") if kind in ("JPEG", "WEBP") else image).save(buffer, kind)
            seeds.append(buffer.getvalue())
        found[kind] = Reader(lambda path: folder._read(path, 8), f"a.{kind.lower()}", seeds)
    return found
