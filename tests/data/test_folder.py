"""Trees of images: a generated one read back, scaled and cut as by hand, and what is refused."""

import subprocess

import numpy as np
import pytest
from PIL import Image

from refprune.data import folder, sets
from refprune.errors import DataError, InputError
from refprune.experiments import run
from refprune.training import config


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def tree(tmp_path):
    """Two classes; PNG, so that pixels come back; an RGB image, a grey one, one with a palette, one of other endings."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 3), ("val", 2)):
        for name in ("cat", "ant"):
            for i in range(count):
                write(tmp_path / part / name / f"{i}.png", rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
            (tmp_path / part / name / "notes.txt").write_text("no image")
    return tmp_path


def test_labels_are_places_in_the_sorted_classes(tree):
    images = folder.read(tree, 14)
    assert images.classes == ("ant", "cat")
    assert images.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert images.test_labels.tolist() == [0, 0, 1, 1]
    assert (images.train_images.shape, images.train_images.dtype) == ((6, 3, 14, 14), np.uint8)


def test_an_image_of_the_margins_size_is_cut_and_nothing_else(tree):
    """16 = 14·256/224: no scaling, the centre 14×14 of every channel, first image of the first class first."""
    images = folder.read(tree, 14)
    pixels = np.asarray(Image.open(tree / "train" / "ant" / "0.png"))
    np.testing.assert_array_equal(images.train_images[0], pixels[1:15, 1:15].transpose(2, 0, 1))


def test_long_sides_are_cut_in_the_middle_and_grey_becomes_rgb(tree):
    """A grey ramp of 8×24 pixels, doubled to 16×48 by the scaling: the middle 14 columns, equal channels, still rising."""
    ramp = np.tile(np.linspace(0, 230, 24).astype(np.uint8), (8, 1))
    write(tree / "train" / "ant" / "0.png", ramp)
    image = folder.read(tree, 14).train_images[0]
    assert (image == image[0]).all()
    assert (np.diff(image[0].astype(int), axis=1) >= 0).all()
    pixels = ramp[0].astype(float)
    fine = np.arange(17, 31) / 2 - 0.25  # the centre of a fine pixel, in coarse ones: bilinear, halfway between centres
    low = np.floor(fine).astype(int)
    middle = pixels[low] + (fine - low) * (pixels[low + 1] - pixels[low])
    assert np.abs(image[0] - middle).max() <= 1


def test_jpeg_and_palette_images_are_read(tree):
    Image.new("RGB", (40, 30), (200, 10, 60)).save(tree / "train" / "ant" / "0.JPEG")
    Image.new("P", (5, 9)).save(tree / "val" / "cat" / "p.png")
    images = folder.read(tree, 14)
    assert (len(images.train_labels), len(images.test_labels)) == (7, 5)
    assert np.abs(images.train_images[0].mean(axis=(1, 2)) - [200, 10, 60]).max() < 4


def test_load_by_name_and_run(tree, tmp_path):
    dataset = sets.load(f"folder:{tree}@14")
    assert (dataset.classes, dataset.train_images.shape) == (2, (6, 3, 14, 14))
    assert sets.load(f"folder:{tree.name}@14", tree.parent).test_labels.tolist() == [0, 0, 1, 1]
    assert sets.load(f"folder:{tree}").train_images.shape == (6, 3, 224, 224)
    settings = config.from_dict(
        {
            "network": {"name": "resnet-18", "width": 2, "size": 33, "classes": 2, "gates": True, "units": True},
            "data": {"name": f"folder:{tree}@33"},
            "training": {"epochs": 1, "batch_size": 3, "threads": 1},
            "unpruned": False,
        }
    )
    assert run.run(settings, tmp_path / "run")["runs"]["pruned"]["steps"] == 2


def broken(tree, how):
    if how == "no val":
        (tree / "val").rename(tree / "test")
    elif how == "class in one part":
        (tree / "train" / "bee").mkdir()
    elif how == "empty class":
        for part in ("train", "val"):
            (tree / part / "bee").mkdir()
    elif how == "no image":
        (tree / "val" / "cat" / "1.png").write_bytes(b"\x89PNG\r\n")
    elif how == "no classes":
        for part in ("train", "val"):
            (tree / part).rename(tree / f"old {part}")
            (tree / part).mkdir()
    return tree


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no val", "val: is no folder; expected are train/CLASS/image"),
        ("class in one part", "class 'bee' is in one of train/ and val/ only"),
        ("empty class", "bee: holds no images"),
        ("no image", r"1\.png: no image that can be read"),
        ("no classes", "there are no classes"),
    ],
)
def test_broken_trees_are_refused(tree, how, message):
    with pytest.raises(DataError, match=message):
        folder.read(broken(tree, how), 14)


@pytest.mark.parametrize("name", ["folder:", "folder:@14", "folder:x@big"])
def test_names_that_say_nothing_are_refused(name):
    with pytest.raises(InputError, match="expected folder:PATH or folder:PATH@SIZE"):
        sets.load(name)


@pytest.mark.parametrize("size", [0, 4097])
def test_sizes_out_of_range_are_refused(tree, size):
    with pytest.raises(InputError, match=rf"size: must lie in \[1, 4096\], got {size}"):
        folder.read(tree, size)


def test_where_a_relative_path_is_looked_for_is_said(tmp_path):
    with pytest.raises(DataError, match=r"is no folder.*\(pictures is below the folder of the data sets"):
        sets.load("folder:pictures@14", tmp_path)
    with pytest.raises(DataError, match=r"is no folder; expected are train/CLASS/image and val/CLASS/image$"):
        sets.load(f"folder:{tmp_path / 'pictures'}@14")


def test_grey_values_of_sixteen_bits_are_scaled(tree):
    """Pillow's own way to RGB clips them: all but the darkest 256 values would be white."""
    deep = np.random.default_rng(1).integers(0, 1 << 16, (16, 16), dtype=np.uint16)
    write(tree / "train" / "ant" / "0.png", deep)
    image = folder.read(tree, 14).train_images[0]
    np.testing.assert_array_equal(image, np.tile((deep >> 8)[1:15, 1:15], (3, 1, 1)))


def test_pixels_of_unknown_scale_and_extreme_shapes_are_refused(tree):
    file = tree / "train" / "ant" / "0.png"
    Image.new("RGB", (1, 101)).save(file)
    with pytest.raises(DataError, match=r"0\.png: is 1×101 pixels; the long side may be 100 times the short one"):
        folder.read(tree, 14)
    file.unlink()
    write(file.with_suffix(".bmp"), np.zeros((4, 4), np.uint8))
    Image.new("F", (4, 4)).save(file.with_suffix(".tiff"))
    file.with_suffix(".tiff").rename(file.with_suffix(".bmp"))
    with pytest.raises(DataError, match=r"0\.bmp: no image that can be read"):
        folder.read(tree, 14)


@pytest.mark.parametrize("name", ["extra.tif", "extra.GIF", "inner/"])
def test_images_that_would_be_left_out_are_named(tmp_path, name):
    for part in ("train", "val"):
        for kind in ("ant", "bee"):
            there = tmp_path / part / kind
            there.mkdir(parents=True)
            Image.new("RGB", (9, 9)).save(there / "a.png")
            (there / ".DS_Store").write_bytes(b"x")
    folder.read(tmp_path, 8)
    target = tmp_path / "val" / "bee" / name.strip("/")
    target.mkdir() if name.endswith("/") else target.write_bytes(b"II*")
    with pytest.raises(DataError, match=f"bee: {name.strip('/')} would be left out"):
        folder.read(tmp_path, 8)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"


@pytest.mark.parametrize("content", [POSTSCRIPT, b"GIF89a", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_other_formats_behind_an_ending_are_not_decoded(tmp_path, content, monkeypatch):
    """No program is started for them, whatever Pillow could do."""
    for part in ("train", "val"):
        (tmp_path / part / "ant").mkdir(parents=True)
        (tmp_path / part / "ant" / "a.png").write_bytes(content)
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("a program was started"))
    with pytest.raises(DataError, match=r"a\.png: no image that can be read"):
        folder.read(tmp_path, 8)
