"""Images in folders as ImageNet lays them out: train/CLASS/… and val/CLASS/…, read with Pillow (extra `images`)."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, InputError
from ..output import install
from ..output.progress import Heartbeat

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
#: Pillow's decoders for them; no other is ever tried, so that no other program is started.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
#: Images that are not read: they must not be left out without a word.
OTHERS = (".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm", ".jp2", ".jfif", ".jpe", ".tga", ".ico", ".heic", ".avif", ".eps")
#: The short side before the crop, over the crop's side.
MARGIN = 256 / 224
#: Side of the largest crop, and the most that an image's long side may be of its short one.
LARGEST, LONGEST = 4096, 100


class Images(NamedTuple):
    """train_images, test_images: uint8 (N, 3, size, size); labels: int64, places in `classes`, the sorted names of folders."""

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]
    classes: tuple[str, ...]


def read(directory: Path, size: int = 224) -> Images:
    """All images under train/ and val/, as RGB: short side scaled to size·256/224 (bilinear), centre cut to size×size.

    Everything is held in memory. InputError for a size outside [1, 4096] and without Pillow; DataError names the folder or
    file that is missing, empty, no image, or a class that one part has and the other has not.
    """
    if not 1 <= size <= LARGEST:
        raise InputError(f"size: must lie in [1, {LARGEST}], got {size}")
    parts = [directory / name for name in ("train", "val")]
    for part in parts:
        if not part.is_dir():
            raise DataError(f"{part}: is no folder; expected are train/CLASS/image and val/CLASS/image")
    classes, others = (sorted(p.name for p in part.iterdir() if p.is_dir()) for part in parts)
    if classes != others or not classes:
        odd = sorted(set(classes) ^ set(others))
        where = f"class {odd[0]!r} is in one of train/ and val/ only" if odd else "there are no classes"
        raise DataError(f"{directory}: {where}")
    (train, train_labels), (test, test_labels) = (_part(part, classes, size) for part in parts)
    return Images(train, train_labels, test, test_labels, tuple(classes))


def _part(part: Path, classes: list[str], size: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    files, labels = [], []
    for label, name in enumerate(classes):
        there = sorted(p for p in (part / name).iterdir() if not p.name.startswith("."))
        found = [p for p in there if p.suffix.lower() in ENDINGS]
        others = [p.name for p in there if p.suffix.lower() in OTHERS or p.is_dir()]
        if others:
            raise DataError(
                f"{part / name}: {others[0]} would be left out, with {len(others) - 1} more; images are read that end in "
                f"{', '.join(ENDINGS)} and lie in the folder of the class itself"
            )
        if not found:
            raise DataError(f"{part / name}: holds no images ({', '.join(ENDINGS)})")
        files += found
        labels += [label] * len(found)
    images = np.empty((len(files), 3, size, size), dtype=np.uint8)
    heart = Heartbeat(f"images of {part}", len(files))
    for done, (image, file) in enumerate(zip(images, files, strict=True)):
        image[...] = _read(file, size)
        heart.reach(done + 1)
    return images, np.array(labels, dtype=np.int64)


def _read(file: Path, size: int) -> NDArray[np.uint8]:
    """One image, (3, size, size)."""
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError(f"image folders need Pillow:  {install.command('images')}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)  # of damaged metadata, which is not asked for
            with Image.open(file, formats=FORMATS) as opened:
                image: Any = _eight_bits(opened).convert("RGB")
    except DataError:
        raise
    except Exception as error:  # a decoder may raise nearly anything; whatever it is, the file is at fault
        raise DataError(f"{file}: no image that can be read ({error})") from error
    if max(image.size) > LONGEST * min(image.size):
        raise DataError(f"{file}: is {image.width}×{image.height} pixels; the long side may be {LONGEST} times the short one")
    scale = max(round(size * MARGIN), size) / min(image.size)
    width, height = (max(round(side * scale), size) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    cut = np.asarray(image.crop((left, top, left + size, top + size)), dtype=np.uint8)
    return np.ascontiguousarray(cut.transpose(2, 0, 1))


def _eight_bits(image: Any) -> Any:
    """Grey values of 16 bits scaled to 8, where Pillow would clip them. DataError for wider ones, whose scale is unknown."""
    if image.mode.startswith("I;16"):
        from PIL import Image

        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DataError(f"{image.filename}: has pixels of mode {image.mode}; 8 bits a channel, or 16 of grey, are allowed")
    return image
