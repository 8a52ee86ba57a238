"""`refprune.data.sets`: readers on small files made here, right and wrong in every way, and on the real sets where present."""

from __future__ import annotations

import gzip
import pickle
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest

from refprune.data import cifar, digits, sets
from refprune.data.idx import read_idx
from refprune.errors import DataError, InputError

RNG = np.random.Generator(np.random.Philox(key=3))
PIXELS = RNG.integers(0, 256, (5, 28, 28), dtype=np.uint8)
LABELS = np.array([3, 0, 9, 1, 4], np.uint8)
CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(">HBB", 0, CODES[array.dtype.str[1:]], array.ndim)
    shape = struct.pack(f">{array.ndim}I", *array.shape)
    return header + shape + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


# ---------------------------------------------------------------------------------------------------------------- IDX


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("code", CODES)
def test_idx_round_trip(path: Path, code: str, packed: bool) -> None:
    array = (PIXELS[:, :3, :4].astype(np.float64) - 100).astype(code)
    path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    found = read_idx(path)
    np.testing.assert_array_equal(found, array, strict=True)
    assert found.dtype.isnative


def test_idx_compression_is_told_by_content_not_by_name(tmp_path: Path) -> None:
    (tmp_path / "raw.gz").write_bytes(idx(PIXELS))
    (tmp_path / "packed").write_bytes(gzip.compress(idx(PIXELS)))
    for name in ("raw.gz", "packed"):
        np.testing.assert_array_equal(read_idx(str(tmp_path / name)), PIXELS)


GOOD = idx(PIXELS)
BAD_IDX = {
    "empty": (b"", "ends at byte 0, inside the 4-byte IDX magic"),
    "short magic": (GOOD[:3], "ends at byte 3, inside the 4-byte IDX magic"),
    "not zeros": (b"\x01" + GOOD[1:], "bytes 0 to 3 are 01 00 08 03, not an IDX magic"),
    "unknown type": (b"\x00\x00\x0a\x03" + GOOD[4:], "bytes 0 to 3 are 00 00 0a 03"),
    "no dimensions": (b"\x00\x00\x08\x00" + GOOD[4:], "bytes 0 to 3 are 00 00 08 00"),
    "many dimensions": (b"\x00\x00\x08\x09" + GOOD[4:], "bytes 0 to 3 are 00 00 08 09"),
    "html": (b"<html>no</html>", "bytes 0 to 3 are 3c 68 74 6d"),
    "short dimensions": (GOOD[:11], "ends at byte 11, inside the 3 IDX dimensions"),
    "truncated": (GOOD[:-1], r"truncated at byte 3935; dimensions \(5, 28, 28\) of uint8 need 3936"),
    "trailing": (GOOD + b"\x00", "goes on after byte 3936"),
    "huge": (b"\x00\x00\x0e\x08" + b"\xff" * 40, r"dimensions \(4294967295, .* of float64 would take"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("case", BAD_IDX)
def test_bad_idx(path: Path, case: str, packed: bool) -> None:
    body, message = BAD_IDX[case]
    path.write_bytes(gzip.compress(body) if packed else body)
    with pytest.raises(DataError, match=f"file: {message}"):
        read_idx(path)


PACKED = gzip.compress(GOOD, mtime=0)
BAD_GZIP = {
    "truncated header": PACKED[:5],
    "truncated body": PACKED[: len(PACKED) // 2],
    "truncated checksum": PACKED[:-3],
    "wrong checksum": PACKED[:-8] + b"\x00\x00\x00\x00" + PACKED[-4:],
    "wrong length": PACKED[:-1] + b"\x01",
    "flipped bits": PACKED[:40] + bytes(byte ^ 0xFF for byte in PACKED[40:60]) + PACKED[60:],
    "garbage after the end": PACKED + b"garbage",
}


@pytest.mark.parametrize("case", BAD_GZIP)
def test_corrupt_gzip(path: Path, case: str) -> None:
    path.write_bytes(BAD_GZIP[case])
    with pytest.raises(DataError, match=r"file: (corrupt gzip near compressed byte \d+: |truncated at byte )"):
        read_idx(path)


def test_idx_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none: cannot be read: No such file"):
        read_idx(tmp_path / "none")
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_idx(tmp_path)


# -------------------------------------------------------------------------------------------------------------- CIFAR

MATRIX = RNG.integers(0, 256, (5, 3072), dtype=np.uint8)
UINT8_STATE = b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"


def string(body: bytes) -> bytes:
    return b"T" + struct.pack("<i", len(body)) + body


def integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def array(matrix: np.ndarray, code: bytes = b"u1", kind: bytes = b"cnumpy\nndarray\n") -> bytes:
    """What Python 2 wrote for a NumPy array: _reconstruct(ndarray, (0,), 'b'), then its state."""
    make = b"cnumpy.core.multiarray\n_reconstruct\n(" + kind + b"K\x00\x85U\x01btR"
    dtype = b"cnumpy\ndtype\n(" + string(code) + b"K\x00K\x01tR" + UINT8_STATE
    shape = b"(" + b"".join(map(integer, matrix.shape)) + b"t"
    return make + b"(K\x01" + shape + dtype + b"\x89" + string(matrix.tobytes()) + b"tb"


def batch(pixels: bytes = array(MATRIX), labels: bytes | None = None, drop: str = "") -> bytes:
    """A batch as in the files of 2009: a Python-2 pickle of protocol 2 with byte-string keys."""
    label_list = b"](" + b"".join(integer(int(label)) for label in LABELS) + b"e" if labels is None else labels
    fields = {"batch_label": string(b"training batch 1 of 5"), "labels": label_list, "data": pixels}
    fields["filenames"] = b"](" + string(b"a.png") * len(LABELS) + b"e"
    fields.pop(drop, None)
    return b"\x80\x02}(" + b"".join(string(key.encode()) + value for key, value in fields.items()) + b"u."


def records(matrix: np.ndarray = MATRIX, labels: np.ndarray = LABELS) -> bytes:
    return np.concatenate([labels[:, None], matrix], axis=1).tobytes()


def write_cifar(folder: Path, suffix: str, body: bytes, **replaced: bytes) -> Path:
    folder.mkdir(parents=True)
    for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"):
        (folder / (name + suffix)).write_bytes(replaced.get(name, body))
    return folder


@pytest.mark.parametrize(("suffix", "body"), [("", batch()), (".bin", records())])
def test_cifar_both_versions(tmp_path: Path, suffix: str, body: bytes) -> None:
    found = cifar.read_cifar10(write_cifar(tmp_path / "c", suffix, body))
    assert (found.name, found.classes) == ("cifar10", 10)
    images = MATRIX.reshape(5, 3, 32, 32)
    np.testing.assert_array_equal(found.train_images, np.concatenate([images] * 5), strict=True)
    np.testing.assert_array_equal(found.train_labels, np.tile(LABELS, 5).astype(np.int64), strict=True)
    np.testing.assert_array_equal(found.test_images, images, strict=True)
    np.testing.assert_array_equal(found.test_labels, LABELS.astype(np.int64), strict=True)


@pytest.mark.parametrize("order", ["C", "F"])
def test_cifar_pickle_written_by_todays_numpy(tmp_path: Path, order: str) -> None:
    body = pickle.dumps({b"data": np.array(MATRIX, order=order), b"labels": LABELS.tolist()}, protocol=4)
    found = cifar.read_cifar10(write_cifar(tmp_path / "c", "", body))
    np.testing.assert_array_equal(found.test_images.reshape(5, -1), MATRIX)


def test_pickles_of_this_test_are_what_numpy_reads() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # NumPy's, about the old module name in the pickle
        found = pickle.loads(batch(), encoding="bytes")
    np.testing.assert_array_equal(found[b"data"], MATRIX, strict=True)
    assert found[b"labels"] == LABELS.tolist()


def call(name: bytes, *arguments: bytes) -> bytes:
    return b"c" + name + b"(" + b"".join(arguments) + b"tR"


def malicious(target: bytes) -> dict[str, bytes]:
    return {
        "os.system": call(b"os\nsystem\n", string(b"touch " + target)),
        "posix.system": call(b"posix\nsystem\n", string(b"touch " + target)),
        "builtins.eval": call(b"builtins\neval\n", b"X" + string(b"open('" + target + b"', 'w')")[1:]),
        "builtins.open": call(b"__builtin__\nopen\n", string(target), string(b"w")),
        "numpy.memmap": call(b"numpy\nmemmap\n", string(target), string(b"u1"), string(b"w+")),
        "numpy.save": call(b"numpy\nsave\n", string(target), b"K\x01"),
        "dotted": b"\x8c\x05numpy\x8c\x0endarray.tofile\x93(" + string(target) + b"tR",
        "copyreg": call(b"copy_reg\n_reconstructor\n", b"cos\n_wrap_close\n", b"c__builtin__\nobject\n", b"N"),
        "subclass": array(MATRIX, kind=b"cnumpy\nmatrix\n"),
        "persistent id": string(target) + b"Q",
        "instance": b"(" + string(b"touch " + target) + b"ios\nsystem\n",
    }


@pytest.mark.parametrize("case", malicious(b""))
@pytest.mark.parametrize("place", ["inside", "whole"])
def test_malicious_pickle_is_refused_before_it_acts(tmp_path: Path, case: str, place: str) -> None:
    target = tmp_path / "owned"
    code = malicious(str(target).encode())[case]
    protocol = b"\x80\x04" if case == "dotted" else b"\x80\x02"
    body = protocol + batch(code)[2:] if place == "inside" else protocol + code + b"."
    folder = write_cifar(tmp_path / "c", "", batch(), data_batch_3=body)
    with pytest.raises(DataError, match=r"data_batch_3: no CIFAR pickle: .*refused: (the pickle names|opcode)"):
        cifar.read_cifar10(folder)
    assert not target.exists()


def test_malicious_pickles_of_this_test_would_act(tmp_path: Path) -> None:
    """Else the test above proves nothing."""
    for case in ("os.system", "builtins.eval", "builtins.open"):
        target = tmp_path / case
        made = pickle.loads(b"\x80\x02" + malicious(str(target).encode())[case] + b".")
        if hasattr(made, "close"):
            made.close()
        assert target.exists()


BAD_PICKLES = {
    "empty": (b"", "no CIFAR pickle: damaged near byte 0 .ValueError: pickle exhausted before seeing STOP"),
    "html": (b"<html>", "no CIFAR pickle: damaged near byte 1 .ValueError: at position 0, opcode b'<' unknown"),
    "truncated": (batch()[:-40], "no CIFAR pickle: "),
    "truncated in the array": (batch()[:9000], "no CIFAR pickle: "),
    "trailing": (batch() + b"x", r"goes on after byte \d+, where the pickle ends"),
    "huge length": (b"\x80\x05\x96" + b"\xff" * 7 + b"\x7fabc.", "no CIFAR pickle: "),
    "bytearray": (b"\x80\x05\x96" + struct.pack("<Q", 3) + b"abc.", "holds a bytearray; a CIFAR batch is a dict"),
    "huge memo": (b"\x80\x02}r\xff\xff\xff\x7f.", "field b'data' is missing"),
    "not a dict": (b"\x80\x02](K\x01e.", "holds a list; a CIFAR batch is a dict"),
    "no data": (batch(drop="data"), "field b'data' is missing; found .*b'labels'"),
    "no labels": (batch(drop="labels"), "field b'labels' is missing"),
    "data is a list": (batch(b"](K\x01e"), "field b'data' is a list"),
    "data without state": (batch(array(MATRIX).split(b"(K\x01(")[0]), "field b'data' is a _Array"),
    "float data": (batch(array(MATRIX, b"f8")), r"numpy type b'f8', allowed is 'u1'"),
    "object data": (batch(array(MATRIX, b"O8")), r"numpy type b'O8', allowed is 'u1'"),
    "one dimension": (batch(array(MATRIX[0])), "not two-dimensional uint8"),
    "wrong width": (batch(array(MATRIX[:, :3071])), r"field b'data' has shape \(5, 3071\); it must be"),
    "counts differ": (batch(array(MATRIX[:4])), "4 images, but 5 labels"),
    "label 10": (batch(labels=b"](K\x00K\x01K\x02K\x03K\x0ae"), "label 4 is 10; allowed is 0 to 9"),
    "label -1": (batch(labels=b"](" + integer(-1) + b"K\x01K\x02K\x03K\x04e"), "label 0 is -1; allowed is 0 to 9"),
    "label True": (batch(labels=b"](\x88K\x01K\x02K\x03K\x04e"), "must be a list of whole numbers"),
    "labels no list": (batch(labels=string(b"12345")), "must be a list of whole numbers"),
    "nothing": (batch(array(MATRIX[:0]), labels=b"]"), "holds no labels"),
    "bad shape": (batch(array(MATRIX).replace(integer(5), integer(6), 1)), "no CIFAR pickle: damaged near byte"),
}


@pytest.mark.parametrize("case", BAD_PICKLES)
def test_bad_cifar_pickle(tmp_path: Path, case: str) -> None:
    body, message = BAD_PICKLES[case]
    with pytest.raises(DataError, match=f"data_batch_5: .*{message}"):
        cifar.read_cifar10(write_cifar(tmp_path / "c", "", batch(), data_batch_5=body))


BAD_RECORDS = {
    "empty": (b"", "0 bytes; a whole number of 3073-byte records is needed"),
    "truncated": (records()[:-1], "15364 bytes; .* 3072 bytes follow byte 12292"),
    "trailing": (records() + b"xy", "15367 bytes; .* 2 bytes follow byte 15365"),
    "label 10": (records(labels=LABELS + np.uint8(6)), "label 2 is 15; allowed is 0 to 9"),
}


@pytest.mark.parametrize("case", BAD_RECORDS)
def test_bad_cifar_records(tmp_path: Path, case: str) -> None:
    body, message = BAD_RECORDS[case]
    with pytest.raises(DataError, match=f"test_batch.bin: {message}"):
        cifar.read_cifar10(write_cifar(tmp_path / "c", ".bin", records(), test_batch=body))


def test_cifar_folder_that_is_empty_incomplete_or_ambiguous(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds neither data_batch_1 .* nor data_batch_1\.bin"):
        cifar.read_cifar10(tmp_path)
    folder = write_cifar(tmp_path / "c", ".bin", records())
    (folder / "data_batch_4.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_4\.bin: cannot be read: No such file"):
        cifar.read_cifar10(folder)
    (folder / "data_batch_4").write_bytes(batch())
    with pytest.raises(DataError, match="python version and of the binary version"):
        cifar.read_cifar10(folder)


# --------------------------------------------------------------------------------------------------------------- load


def write_idx_set(folder: Path, packed: bool = True, **replaced: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {"train_images": PIXELS, "train_labels": LABELS, "t10k_images": PIXELS[:2], "t10k_labels": LABELS[:2]}
    for key, content in (arrays | replaced).items():
        part, kind = key.split("_")
        name = f"{part}-{kind}-idx{3 if kind == 'images' else 1}-ubyte"
        body = idx(content)
        (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(body) if packed else body)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_load_idx_sets(tmp_path: Path, name: str, packed: bool) -> None:
    write_idx_set(tmp_path / name, packed)
    found = sets.load(name, tmp_path)
    assert (found.name, found.classes) == (name, 10)
    np.testing.assert_array_equal(found.train_images, PIXELS[:, None], strict=True)
    np.testing.assert_array_equal(found.train_labels, LABELS.astype(np.int64), strict=True)
    np.testing.assert_array_equal(found.test_images, PIXELS[:2, None], strict=True)
    np.testing.assert_array_equal(found.test_labels, LABELS[:2].astype(np.int64), strict=True)


BAD_SETS = {
    "counts differ": ({"train_labels": LABELS[:4]}, "train-images-idx3-ubyte.gz: 5 images, but .* holds 4 labels"),
    "label 10": ({"t10k_labels": LABELS[:2] + np.uint8(8)}, "t10k-labels-idx1-ubyte.gz: label 0 is 11; allowed is 0 to 9"),
    "float images": ({"train_images": PIXELS.astype("f4")}, "train-images-.*: holds float32 .*; images are uint8"),
    "flat images": ({"train_images": PIXELS.reshape(5, -1)}, r"holds uint8 \(5, 784\); images are uint8 \(count, height"),
    "square labels": ({"train_labels": LABELS[:, None]}, r"train-labels-.*: holds uint8 \(5, 1\); labels are uint8"),
    "small images": ({"t10k_images": PIXELS[:2, :14]}, "t10k-images-.*: images are 14×28 pixels; mnist has 28×28"),
    "nothing": ({"t10k_images": PIXELS[:0], "t10k_labels": LABELS[:0]}, "t10k-labels-.*: holds no labels"),
}


@pytest.mark.parametrize("case", BAD_SETS)
def test_idx_set_whose_files_do_not_fit(tmp_path: Path, case: str) -> None:
    replaced, message = BAD_SETS[case]
    write_idx_set(tmp_path / "mnist", **replaced)
    with pytest.raises(DataError, match=message):
        sets.load("mnist", tmp_path)


def test_load_cifar_from_either_folder(tmp_path: Path) -> None:
    write_cifar(tmp_path / "cifar-10-batches-bin", ".bin", records())
    assert sets.load("cifar10", tmp_path).train_images.shape == (25, 3, 32, 32)
    write_cifar(tmp_path / "cifar-10-batches-py", "", batch(), data_batch_2=b"")
    with pytest.raises(DataError, match="cifar-10-batches-py/data_batch_2"):
        sets.load("cifar10", tmp_path)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10"])
def test_missing_data_error_says_where_and_what_helps(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError) as raised:
        sets.load(name, tmp_path / "nowhere")
    for expected in (str(tmp_path / "nowhere"), f"`refprune data fetch {name}`", "--data synthetic-digits needs no files"):
        assert expected in str(raised.value)


def test_incomplete_set_names_the_missing_file(tmp_path: Path) -> None:
    write_idx_set(tmp_path / "mnist")
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"mnist/t10k-labels-idx1-ubyte\.gz \(or t10k-labels-idx1-ubyte\) was not found"):
        sets.load("mnist", tmp_path)


def test_unknown_name() -> None:
    with pytest.raises(InputError, match="'imagenet' is unknown; allowed are mnist, fashion-mnist, kmnist, emnist-"):
        sets.load("imagenet")


def test_data_directory_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout, installed = tmp_path / "checkout", tmp_path / "site-packages"
    (checkout / "datasets").mkdir(parents=True)
    (checkout / "pyproject.toml").touch()
    monkeypatch.setattr(sets, "__file__", str(checkout / "refprune" / "data" / "sets.py"))
    monkeypatch.setenv("REFPRUNE_DATA", str(tmp_path / "named"))
    assert sets.data_directory("given") == Path("given")
    assert sets.data_directory() == tmp_path / "named"
    monkeypatch.setenv("REFPRUNE_DATA", "")
    assert sets.data_directory() == checkout.resolve() / "datasets"
    monkeypatch.setattr(sets, "__file__", str(installed / "refprune" / "data" / "sets.py"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert sets.data_directory() == tmp_path / "cache" / "refprune"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert sets.data_directory() == tmp_path / "home" / ".cache" / "refprune"


def test_synthetic_digits_need_no_files(tmp_path: Path) -> None:
    found = sets.load("synthetic-digits", tmp_path / "nowhere")
    assert found.train_images.shape == (sets.SYNTHETIC_TRAIN, 1, digits.SIZE, digits.SIZE)
    assert found.test_images.shape == (sets.SYNTHETIC_TEST, 1, digits.SIZE, digits.SIZE)
    assert (found.name, found.classes) == ("synthetic-digits", 10)


REAL = {"mnist": ("mnist", (1, 28, 28), [5, 0, 4, 1, 9]), "cifar10": ("cifar-10-batches-py", (3, 32, 32), [6, 9, 9, 4, 1])}


@pytest.mark.parametrize("name", REAL)
def test_real_files(name: str) -> None:
    folder, shape, first_labels = REAL[name]
    root = sets.data_directory()
    if not (root / folder).is_dir():
        pytest.skip(f"{name} is not in {root}; set REFPRUNE_DATA to a folder that holds it")
    found = sets.load(name)
    assert found.train_images.shape == ((60_000 if name == "mnist" else 50_000), *shape)
    assert found.test_images.shape == (10_000, *shape)
    assert found.train_labels[:5].tolist() == first_labels
    assert found.train_images.dtype == np.uint8
    assert found.train_labels.dtype == np.int64
    assert set(found.test_labels.tolist()) == set(range(10))
