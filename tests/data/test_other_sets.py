"""MNIST's relatives and CIFAR-100; files under their other names; sizes that promise too much."""

import gzip
import os
import pickle
import struct

import numpy as np
import pytest

from refprune.data import sets
from refprune.data.idx import read_idx
from refprune.errors import DataError


def idx_set(folder, names, classes=10, lowest=0):
    """Four IDX files; the first image has one bright pixel in row 2, column 5."""
    folder.mkdir(parents=True, exist_ok=True)
    images = np.zeros((classes, 28, 28), np.uint8)
    images[0, 2, 5] = 200
    for name, array in zip(names, (images, np.arange(classes) + lowest) * 2, strict=True):
        array = array.astype(np.uint8)
        body = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
        (folder / name).write_bytes(gzip.compress(body) if name.endswith(".gz") else body)


@pytest.mark.parametrize("where", ["mnist", "mnist/raw", "mnist/MNIST/raw", "MNIST/raw"])
@pytest.mark.parametrize("form", ["-idx{}-ubyte.gz", "-idx{}-ubyte", ".idx{}-ubyte", ".idx{}-ubyte.gz"])
def test_idx_files_under_their_other_names(tmp_path, where, form):
    names = [f"{part}-{kind}{form.format(n)}" for part in ("train", "t10k") for kind, n in (("images", 3), ("labels", 1))]
    idx_set(tmp_path / where, names)
    found = sets.load("mnist", tmp_path)
    assert found.train_images[0, 0, 2, 5] == found.test_images[0, 0, 2, 5] == 200


@pytest.mark.parametrize(("name", "classes"), [("emnist-letters", 26), ("emnist-balanced", 47), ("emnist-byclass", 62)])
def test_emnist_stands_upright_and_counts_from_0(tmp_path, name, classes):
    """Its images lie on their side in the files; the letters' labels begin with 1."""
    kinds = [f"{name}-{part}-{kind}-ubyte.gz" for part in ("train", "test") for kind in ("images-idx3", "labels-idx1")]
    idx_set(tmp_path / name, kinds, classes, lowest=int(name == "emnist-letters"))
    found = sets.load(name, tmp_path)
    assert found.train_images[0, 0, 5, 2] == 200
    assert (found.classes, found.train_labels.tolist()) == (classes, list(range(classes)))


def test_cifar_100_by_its_fine_labels(tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name, count in (("train", 100), ("test", 20)):
        batch = {
            b"data": np.full((count, 3072), 7, np.uint8),
            b"fine_labels": list(range(count)),
            b"coarse_labels": [1] * count,
        }
        (folder / name).write_bytes(pickle.dumps(batch | {b"coarse_labels": [1] * count, b"filenames": [b"x"] * count}, 2))
    found = sets.load("cifar100", tmp_path)
    assert (found.classes, found.train_images.shape, found.test_labels.tolist()) == (100, (100, 3, 32, 32), list(range(20)))


def test_a_batch_that_was_saved_again_by_a_new_python(tmp_path):
    """Protocol 5 writes arrays from buffers."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"):
        batch = {"data": np.full((2, 3072), 9, np.uint8), "labels": [1, 2]}
        (folder / name).write_bytes(pickle.dumps(batch, 5))
    assert sets.load("cifar10", tmp_path).train_images.shape == (10, 3, 32, 32)


def test_sixteen_bytes_that_promise_eight_gigabytes(tmp_path):
    (tmp_path / "file").write_bytes(struct.pack(">HBBIII", 0, 8, 3, 1 << 31, 2, 2))
    with pytest.raises(DataError, match=r"dimensions \(2147483648, 2, 2\) of uint8 would take 8,589,934,592 bytes"):
        read_idx(tmp_path / "file")
    (tmp_path / "file").write_bytes(gzip.compress(struct.pack(">HBBI", 0, 8, 1, 1 << 27) + bytes(1 << 27)))
    with pytest.raises(DataError, match="would take 134,217,728 bytes of memory"):
        read_idx(tmp_path / "file")
    (tmp_path / "file").write_bytes(struct.pack(">HBB7I", 0, 8, 7, 0, *[(1 << 32) - 1] * 6))
    with pytest.raises(DataError, match="no array has the dimensions"):
        read_idx(tmp_path / "file")


def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe: is no regular file"):
        read_idx(tmp_path / "pipe")
