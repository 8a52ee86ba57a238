"""FGSM against PyTorch and complex step; every corruption against its own definition; what the command prints."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from scipy import stats
from tolerance import assert_close, assert_identical

from refprune.adapters.pytorch import model
from refprune.analysis import pictures, robustness
from refprune.analysis.robustness import CORRUPTIONS, SEVERITIES, Row, corrupt
from refprune.backend import ORACLE
from refprune.cli import main as cli
from refprune.data import dataset, digits, sets
from refprune.data.standardise import Scaling
from refprune.errors import InputError
from refprune.exchange.trained import Trained
from refprune.output import figures
from refprune.passes.batch_loss import BatchLoss
from refprune.passes.parameters import initial_statistics, initialise
from refprune.passes.tape import forward
from refprune.rounding.tolerance import UNIT, network_tolerance
from refprune.spec import json_form, network, zoo
from refprune.spec.layers import Activation, Conv, Dense, GlobalAveragePool, MaxPool
from refprune.spec.network import Network
from refprune.streams import Streams

NETWORK = dataclasses.replace(zoo.resnet_cifar_keras((2, 1), width=2), input_shape=(3, 8, 8))
STREAMS = Streams(0)
PARAMS = {n: p + 0.2 * STREAMS.normal(n, 1, p.shape) for n, p in initialise(NETWORK, STREAMS).items()}
STATISTICS = initial_statistics(NETWORK)
TRAINED = Trained(NETWORK, PARAMS, STATISTICS)
PIXELS = (255 * STREAMS.uniform("pixels", 0, (6, 3, 8, 8))).astype(np.uint8)
LABELS = np.array([3, 1, 4, 1, 5, 9])
SCALING = Scaling(120.0 * STREAMS.uniform("shift", 0, (3, 8, 8)), np.full((3, 1, 1), 1 / 255))


# FGSM -----------------------------------------------------------------------------------------------------------------


def test_the_input_gradient_against_pytorch():
    """Each example's own gradient of its summed loss, in eval mode."""
    x = SCALING(PIXELS)
    module = model.build(NETWORK).double()
    model.load(module, PARAMS, STATISTICS)
    theirs = torch.tensor(x, requires_grad=True)
    torch.nn.functional.cross_entropy(module.eval()(theirs), torch.tensor(LABELS), reduction="sum").backward()
    summed = dataclasses.replace(NETWORK, loss=network.Loss(reduction="sum"))
    loss = BatchLoss(summed, ORACLE, PARAMS, x, LABELS, STATISTICS, train=False)
    tolerance = network_tolerance(loss, np.ones(0), unit=UNIT["float64"]).input
    assert_close("dx", robustness.input_gradient(TRAINED, ORACLE, x, LABELS), theirs.grad.numpy(), tolerance)


def test_the_input_gradient_by_complex_step():
    """One direction in input space: Im c(x + ihd)/h."""
    x, h = SCALING(PIXELS), 1e-100
    direction = Streams(1).normal("d", 0, x.shape)
    output = forward(NETWORK, ORACLE, PARAMS, x + 1j * h * direction, statistics=STATISTICS).output
    value, _ = ORACLE.cross_entropy(output, LABELS, reduction="sum")
    products = robustness.input_gradient(TRAINED, ORACLE, x, LABELS) * direction
    # n terms and the depth of the network: rounding of 2⁻⁵³ each, relative to the sum of sizes
    assert abs(value.imag / h - products.sum()) <= 2.0**-53 * products.size * np.abs(products).sum()


@pytest.mark.parametrize("eps", [0.0, 1 / 255, 8 / 255])
def test_fgsm_moves_every_pixel_by_eps_and_stays_in_range(eps):
    gradient = robustness.input_gradient(TRAINED, ORACLE, SCALING(PIXELS), LABELS)
    moved = robustness.fgsm(TRAINED, ORACLE, SCALING, PIXELS, LABELS, eps)
    want = np.clip(PIXELS + 255.0 * eps * np.sign(gradient), 0.0, 255.0)
    assert_identical("moved", moved, want)
    assert moved.min() >= 0.0
    assert moved.max() <= 255.0


def test_fgsm_makes_the_loss_larger():
    """To first order by ε‖∂c/∂pixel‖₁; planted: the other sign makes it smaller."""

    def loss(pixels):
        output = forward(NETWORK, ORACLE, PARAMS, SCALING(pixels), statistics=STATISTICS).output
        return float(ORACLE.cross_entropy(output, LABELS, reduction="sum")[0])

    inner = np.clip(PIXELS, 1, 254)
    eps = 1e-6
    x = SCALING(inner)
    moved = robustness.fgsm(TRAINED, ORACLE, SCALING, inner, LABELS, eps)
    slope = np.abs(robustness.input_gradient(TRAINED, ORACLE, x, LABELS)).sum()  # scale·255 = 1
    rises, falls = loss(moved) - loss(inner), loss(2.0 * inner - moved) - loss(inner)
    assert falls < 0 < rises
    # symmetric difference: the second-order term cancels; what is left are kinks and third order, both far below 1 %
    assert abs((rises - falls) / (2 * eps) / slope - 1) < 0.01


# Corruptions ----------------------------------------------------------------------------------------------------------

IMAGES = dataset.Dataset("x", *digits.generate(8, 4, 0), digits.CLASSES).train_images
GREY = np.full((40, 3, 32, 32), 128, np.uint8)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_every_corruption_is_seeded_whole_and_grows(kind):
    sizes = []
    for severity in SEVERITIES:
        changed = corrupt(IMAGES, kind, severity, seed=0)
        assert (changed.dtype, changed.shape) == (np.uint8, IMAGES.shape)
        assert_identical(kind, corrupt(IMAGES, kind, severity, seed=0), changed)
        sizes.append(float(np.abs(changed.astype(float) - IMAGES).mean()))
    assert sizes[0] > 0
    assert sizes == sorted(sizes)
    strengths = CORRUPTIONS[kind].strengths
    assert sorted(strengths) == list(strengths) or sorted(strengths, reverse=True) == list(strengths)
    noisy = kind.endswith("noise")
    assert (corrupt(IMAGES, kind, 5, seed=1) != corrupt(IMAGES, kind, 5, seed=0)).any() == noisy
    assert (corrupt(IMAGES, kind, 5, seed=0, first=250) != corrupt(IMAGES, kind, 5, seed=0)).any() == noisy


def normal_bound(values, variance):
    """Six standard errors of a mean: a false alarm in 5·10⁸."""
    return 6.0 * math.sqrt(variance / values.size)


def test_gaussian_noise_has_its_deviation():
    noise = (corrupt(GREY, "gaussian-noise", 1, seed=0).astype(float) - 128) / 255
    sigma = CORRUPTIONS["gaussian-noise"].strengths[0]
    variance = sigma**2 + 1 / (12 * 255**2)  # rounding to whole pixels
    assert abs(noise.mean()) <= normal_bound(noise, variance)
    assert abs((noise**2).mean() - variance) <= normal_bound(noise, 2 * variance**2)


def test_shot_noise_is_poisson():
    photons = CORRUPTIONS["shot-noise"].strengths[4]
    x = np.full((20, 1, 32, 32), 0.5)
    draw = robustness.Draw(Streams(0), "test", 0, x.shape)
    counts = np.rint(photons * robustness._shot_noise(x, photons, draw))
    assert_identical("inversion", counts, stats.poisson.ppf(draw()[0], photons * 0.5))
    mean = photons / 2
    assert abs(counts.mean() - mean) <= normal_bound(counts, mean)
    assert abs(((counts - mean) ** 2).mean() - mean) <= normal_bound(counts, mean + 2 * mean**2)


def test_impulse_noise_is_salt_and_pepper():
    changed = corrupt(GREY, "impulse-noise", 5, seed=0)
    share = CORRUPTIONS["impulse-noise"].strengths[4]
    assert set(np.unique(changed)) == {0, 128, 255}
    for value in (0, 255):
        hit = changed == value
        assert abs(hit.mean() - share / 2) <= normal_bound(hit, share / 2 * (1 - share / 2))


@pytest.mark.parametrize("kind", ["gaussian-blur", "defocus-blur", "motion-blur", "pixelate", "contrast"])
def test_blurs_keep_constants(kind):
    for severity in SEVERITIES:
        assert_identical(kind, corrupt(GREY[:1], kind, severity, seed=0), GREY[:1])


@pytest.mark.parametrize("kind", ["gaussian-blur", "defocus-blur", "motion-blur"])
def test_blurs_stay_in_their_channel_and_image(kind):
    """A single bright pixel: the sum stays, others see nothing; in width only, for motion."""
    x = np.zeros((2, 2, 21, 21))
    x[0, 1, 10, 10] = 1.0
    for strength in CORRUPTIONS[kind].strengths:
        y = CORRUPTIONS[kind].function(x, strength, None)
        assert abs(y[0, 1].sum() - 1.0) <= 21 * 21 * 2.0**-53
        assert (y[0, 0] == 0).all()
        assert (y[1] == 0).all()
        assert (y[0, 1, 9] != 0).any() == (kind != "motion-blur")


def test_a_gaussian_blur_by_its_formula():
    x = np.zeros((1, 1, 21, 21))
    x[0, 0, 10, 10] = 1.0
    weights = np.exp(-0.5 * np.arange(-4, 5) ** 2)
    want = np.outer(weights, weights) / weights.sum() ** 2
    got = robustness._gaussian_blur(x, 1.0, None)[0, 0, 6:15, 6:15]
    assert_close("kernel", got, want, 50 * 2.0**-53)


def test_brightness_contrast_and_pixelate_by_hand():
    x = np.array([[[[0.0, 0.2], [0.4, 1.0]]]])
    assert_identical("brightness", robustness._brightness(x, 0.25, None), np.array([[[[0.25, 0.45], [0.65, 1.25]]]]))
    mean = 0.4
    assert_close("contrast", robustness._contrast(x, 0.5, None), (x + mean) / 2, 8 * 2.0**-53)
    assert_close("pixelate", robustness._pixelate(x, 0.5, None), np.full_like(x, mean), 8 * 2.0**-53)
    wide = np.arange(6.0)[None, None, None].repeat(2, axis=2)
    halves = np.repeat([1.0, 4.0], 3)
    assert_close("thirds", robustness._pixelate(wide, 0.34, None), np.broadcast_to(halves, wide.shape), 40 * 2.0**-53)


def test_pixels_are_rounded_to_the_nearest():
    """128 + 255·0.05 = 140.75, and 128 + 255·0.1 = 153.5 to the even one."""
    for severity, want in ((1, 141), (2, 154)):
        assert (corrupt(GREY, "brightness", severity, seed=0) == want).all()


@pytest.mark.parametrize("radius", [0.3, 0.5, 0.8, 1.5])
def test_a_defocused_point_is_a_disc(radius):
    """The share of every pixel that lies within radius + ½ of the point, by a grid of 200×200 a pixel."""
    reach, fine = 2, 200
    x = np.zeros((1, 1, 9, 9))
    x[0, 0, 4, 4] = 1.0
    at = (np.arange((2 * reach + 1) * fine) + 0.5) / fine - reach - 0.5
    inside = np.hypot(at[:, None], at) <= radius + 0.5
    disc = inside.reshape(2 * reach + 1, fine, 2 * reach + 1, fine).mean(axis=(1, 3))
    got = robustness._defocus_blur(x, radius, None)[0, 0, 2:7, 2:7]
    assert abs(got.sum() - 1.0) <= 100 * 2.0**-53
    # of a rim's pixel the 9×9 grid misses at most the points along the rim, 1/9 of its area
    np.testing.assert_allclose(got * disc.sum(), disc, rtol=0, atol=1 / 9)
    assert np.abs(got * disc.sum() - disc).mean() < 0.01


# Evaluation -----------------------------------------------------------------------------------------------------------


def test_evaluate_counts_what_it_changed():
    rows = list(robustness.evaluate(TRAINED, ORACLE, SCALING, PIXELS, LABELS, eps=[8 / 255], corruptions=["contrast"], seed=2))
    assert [(row.what, row.strength) for row in rows] == [
        *(("clean", 0.0), ("fgsm", 8 / 255)),
        *(("contrast", float(s)) for s in SEVERITIES),
    ]

    def accuracy(pixels):
        output = forward(NETWORK, ORACLE, PARAMS, SCALING(pixels), statistics=STATISTICS).output
        return float((output.argmax(axis=1) == LABELS).mean())

    changed = [PIXELS, robustness.fgsm(TRAINED, ORACLE, SCALING, PIXELS, LABELS, 8 / 255)]
    changed += [corrupt(PIXELS, "contrast", s, seed=2) for s in SEVERITIES]
    assert [row.accuracy for row in rows] == [accuracy(pixels) for pixels in changed]


REFUSED = {
    "shape": (lambda: PIXELS[:, :2], {}, "pixels: must be uint8 .* of shape .*3, 8, 8"),
    "scale": (lambda: PIXELS / 255.0, {}, "pixels: must be uint8 .* got float64"),
    "labels": (lambda: PIXELS[:3], {}, "6 labels"),
    "ε": (lambda: PIXELS, {"eps": [8.0]}, r"--fgsm: ε is a share .* \[0, 1\], got 8"),
    "kind": (lambda: PIXELS, {"corruptions": ["snow"]}, "--corruptions: 'snow' is not known; allowed are gaussian-noise"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case):
    pixels, options, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        list(robustness.evaluate(TRAINED, ORACLE, SCALING, pixels(), LABELS, **options))


def test_severities_that_are_none():
    with pytest.raises(InputError, match=r"severity: must be one of \(1, 2, 3, 4, 5\), got 6"):
        corrupt(PIXELS, "contrast", 6, seed=0)
    with pytest.raises(InputError, match=r"pixels: must be uint8 of shape \(N, C, H, W\)"):
        corrupt(PIXELS[0], "contrast", 1, seed=0)


def test_the_table():
    rows = [Row("clean", 0.0, 0.9), Row("fgsm", 1 / 255, 0.5), *(Row("contrast", float(s), 1 - s / 10) for s in SEVERITIES)]
    table = robustness.table({"a": rows, "b": rows})
    assert table[1:] == [
        ("clean", "90.00", "90.00"),
        ("FGSM ε = 1/255", "50.00", "50.00"),
        ("contrast", *["90.00 80.00 70.00 60.00 50.00"] * 2),
        ("mean of corruptions", "70.00", "70.00"),
    ]


# Commands -------------------------------------------------------------------------------------------------------------

TINY = dataset.Dataset("synthetic-digits", *digits.generate(30, 20, 0), digits.CLASSES)
SMALL = Network((1, 28, 28), (MaxPool((4, 4), (4, 4)), Conv(6, (1, 1)), Activation("relu"), GlobalAveragePool(), Dense(10)))


@pytest.fixture
def network_file(tmp_path, monkeypatch):
    monkeypatch.setattr(sets, "load", lambda name, directory=None: TINY)
    np.savez(tmp_path / "a.npz", **initialise(SMALL, Streams(0), dtype="float32"))
    (tmp_path / "spec.json").write_text(json.dumps(json_form.to_json(SMALL)))
    return [tmp_path / "a.npz", "--spec", tmp_path / "spec.json", "--data", "synthetic-digits", "--backend", "oracle"]


def run(*arguments):
    return cli.main([str(a) for a in arguments])


def test_evaluate_command(network_file, tmp_path, capsys):
    given = ["--fgsm", "1/255,0.1", "--corruptions", "contrast,pixelate", "--json", tmp_path / "a.json"]
    assert run("evaluate", *network_file, *given, "--picture", tmp_path / "a.svg") == 0
    text = capsys.readouterr().out
    assert [line.split("  ")[0] for line in text.splitlines()[3:]] == [
        *("clean", "FGSM ε = 1/255", "FGSM ε = 25.5/255", "contrast", "pixelate", "mean of corruptions")
    ]
    assert len(json.loads((tmp_path / "a.json").read_text())["a"]) == 3 + 10
    assert (tmp_path / "a.svg").read_text().count("<svg") == 1
    assert run("evaluate", *network_file, "--clean", "--images", 5) == 0
    assert "clean" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--fgsm", "x"], "--fgsm: expected numbers or fractions"),
        (["--images", 21], "--images: must lie in 1 … 20"),
        (["--picture", "a.pdf"], "ends in .png or .svg"),
        (["--json", "none/a.json"], "the folder none does not exist"),
    ],
)
def test_evaluate_refuses(network_file, given, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("evaluate", *network_file, *given) == 2
    assert message in capsys.readouterr().err


def test_similarity_command(network_file, tmp_path, capsys):
    given = ["--score-images", 20, "--batch-size", 10, "--json", tmp_path / "a.json", "--picture", tmp_path / "a.png"]
    assert run("similarity", *network_file, *given) == 0
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["points"] == [layer.name for layer in SMALL.layers]
    assert len(found["cka"]) == 5
    assert "to globalaveragepool1" in capsys.readouterr().out
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert run("similarity", *network_file, "--points", "x") == 2


def test_score_command(tmp_path, monkeypatch, capsys):
    network = zoo.residual_mlp(sections=4, width=5)
    plain = dataclasses.replace(
        network, layers=tuple(dataclasses.replace(e, gate=False) if hasattr(e, "gate") else e for e in network.layers)
    )
    monkeypatch.setattr(sets, "load", lambda name, directory=None: TINY)
    np.savez(tmp_path / "a.npz", **initialise(plain, Streams(0), dtype="float32"))
    (tmp_path / "s.json").write_text(json.dumps(json_form.to_json(plain)))
    given = ["score", tmp_path / "a.npz", "--spec", tmp_path / "s.json", "--data", "x", "--backend", "oracle"]
    assert run(*given, "--subsets", "10,30", "--repeats", 3, "--json", tmp_path / "a.json") == 0
    text = capsys.readouterr().out
    assert "share of subsets of 30" in text
    assert set(json.loads((tmp_path / "a.json").read_text())) == {"cka", "uncentred", "distance"}
    assert run(*given, "--subsets", "ten") == 2
    assert run(*given, "--repeats", "0") == 2
    assert run(*given, "--score-images", "31") == 2


def test_pictures_that_cannot_be(tmp_path):
    with pytest.raises(InputError, match=r"ends in \.png or \.svg"):
        figures.check_picture(tmp_path / "a.gif")
    drawing = pictures.similarity_matrix(["a", "b"], np.array([[1.0, np.nan], [np.nan, 1.0]]), "title")
    with pytest.raises(InputError, match="cannot be written"):
        figures.save_picture(tmp_path / "none" / "a.svg", drawing)
