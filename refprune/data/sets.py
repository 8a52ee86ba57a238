"""Image sets for classification: readers for IDX and CIFAR-10 files, and `load`, which finds a set by its name.

Readers check the structure of a file completely (magic, sizes, counts, label range) and its checksum never: that is
`refprune.data.fetch.verify`. Nothing is downloaded here.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import DataError, InputError
from ..output.files import user_cache
from . import digits, folder
from .cifar import read_cifar10
from .dataset import Dataset
from .idx import read_idx_pair

NAMES = ("mnist", "fashion-mnist", "cifar10", "synthetic-digits")
SYNTHETIC_TRAIN, SYNTHETIC_TEST, SYNTHETIC_SEED = 6000, 2000, 0


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
    checkout = Path(__file__).resolve().parents[2]
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
    train, test = read_idx_pair(paths[0], paths[1]), read_idx_pair(paths[2], paths[3])
    for path, (images, _) in ((paths[0], train), (paths[2], test)):
        if images.shape[1:] != (1, 28, 28):
            raise DataError(f"{path}: images are {images.shape[2]}×{images.shape[3]} pixels; {name} has 28×28")
    return Dataset(name, *train, *test, 10)


def load(name: str, directory: str | os.PathLike[str] | None = None) -> Dataset:
    """The image set called `name`.

    name: one of NAMES, or "folder:PATH@SIZE" for a tree of images PATH/train/CLASS and PATH/val/CLASS, cut to SIZE×SIZE pixels
        (224 without @SIZE). A relative PATH is below the folder of the data sets.
    directory: that folder; None: see `data_directory`. "synthetic-digits" needs no files.

    Returns a `Dataset`: images N×C×H×W as uint8, labels N.
    InputError for an unknown name; DataError if files are missing or not what their names say.

    >>> from refprune.data import sets
    >>> digits = sets.load("synthetic-digits")
    >>> digits.train_images.shape, digits.test_images.shape, digits.classes
    ((6000, 1, 28, 28), (2000, 1, 28, 28), 10)
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
