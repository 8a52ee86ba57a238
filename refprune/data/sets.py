"""Image sets for classification: readers for IDX and CIFAR-10 files, and `load`, which finds a set by its name.

Readers check the structure of a file completely (magic, sizes, counts, label range) and its checksum never: that is
`refprune.data.fetch.verify`. Nothing is downloaded here.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import DataError, InputError
from ..output.files import user_cache
from . import digits, folder
from .cifar import read_cifar10, read_cifar100
from .dataset import Dataset, Labelled
from .fetch import manifest
from .idx import read_idx_pair

#: MNIST and its relatives: what stands before the names of files, and how many classes there are.
IDX = {"mnist": ("", 10), "fashion-mnist": ("", 10), "kmnist": ("", 10)} | {
    f"emnist-{split}": (f"emnist-{split}-", classes)
    for split, classes in {"balanced": 47, "byclass": 62, "bymerge": 47, "digits": 10, "letters": 26, "mnist": 10}.items()
}

#: What torchvision calls their folders.
TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"} | {
    name: "EMNIST" for name in IDX if name.startswith("emnist")
}

NAMES = (*IDX, "cifar10", "cifar100", "synthetic-digits")
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
    fetched = f"`refprune data fetch {name}` downloads the set, " if name in manifest() else ""
    return DataError(
        f"{name}: {wanted} was not found in {root}; {fetched}"
        "--data-dir or REFPRUNE_DATA names another folder, and --data synthetic-digits needs no files"
    )


def _load_idx(name: str, root: Path) -> Dataset:
    """MNIST and its relatives, under the names and in the folders in which people have them."""
    prefix, classes = IDX[name]
    folders = [root / name, *(root / name / inner for inner in ("raw", "gzip", f"{TORCHVISION.get(name, name)}/raw"))]
    folders.append(root / TORCHVISION.get(name, name) / "raw")

    def find(part: str, kind: str) -> Path:
        stem = f"{prefix}{part}-{kind}"
        names = (
            f"{stem}-ubyte.gz",
            f"{stem}-ubyte",
            *(f"{stem.replace('-idx', '.idx')}-ubyte{ending}" for ending in ("", ".gz")),
        )
        found = next((path for place in folders for path in map(place.joinpath, names) if path.exists()), None)
        if found is None:
            raise _missing(name, root, f"{name}/{stem}-ubyte.gz (or {stem}-ubyte)")
        return found

    parts = ("train", "test" if prefix else "t10k")
    paths = [find(part, kind) for part in parts for kind in ("images-idx3", "labels-idx1")]
    lowest = 1 if name == "emnist-letters" else 0
    train, test = (_idx_part(name, images, labels, classes, lowest) for images, labels in (paths[:2], paths[2:]))
    return Dataset(name, *train, *test, classes)


def _idx_part(name: str, images_path: Path, labels_path: Path, classes: int, lowest: int) -> Labelled:
    """Images and labels from 0 on. EMNIST's images lie on their side: rows are columns there."""
    images, labels = read_idx_pair(images_path, labels_path, classes + lowest)
    if images.shape[1:] != (1, 28, 28):
        raise DataError(f"{images_path}: images are {images.shape[2]}×{images.shape[3]} pixels; {name} has 28×28")
    if (labels < lowest).any():
        raise DataError(f"{labels_path}: has a label 0; those of {name} are 1 to {classes}")
    turned = images.transpose(0, 1, 3, 2).copy() if name.startswith("emnist") else images
    return turned, labels - lowest


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
    if name in IDX:
        return _load_idx(name, root)
    if name == "cifar100":
        if (root / "cifar-100-python").is_dir():
            return read_cifar100(root / "cifar-100-python")
        raise _missing(name, root, "cifar-100-python/")
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
    if not path or not re.fullmatch(r"[0-9]{1,9}", size):
        raise InputError(f"data set {name!r}: expected folder:PATH or folder:PATH@SIZE")
    try:
        found = folder.read(root / path, int(size))
    except DataError as error:
        where = "" if Path(path).is_absolute() else f" ({path} is below the folder of the data sets; or give an absolute path)"
        raise DataError(f"{error}{where}") from error
    return Dataset(name, *found[:4], classes=len(found.classes))
