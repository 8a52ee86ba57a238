"""How pixels become inputs: numbers in the spec, an option, every export; each evaluation says which, and refuses NaN."""

import json

import numpy as np
import onnx
import pytest

from refprune.analysis.robustness import fgsm, input_gradient
from refprune.backend import ORACLE
from refprune.cli import main as cli
from refprune.data import dataset, digits, sets, standardise
from refprune.data.standardise import Scaling
from refprune.errors import InputError, SpecError
from refprune.exchange import export, load
from refprune.exchange.inputs import in_words, inputs_of
from refprune.exchange.trained import Trained
from refprune.passes.parameters import initialise
from refprune.spec import json_form
from refprune.spec.layers import Activation, BatchNorm, Conv, Dense, Flatten, GlobalAveragePool, Section
from refprune.spec.network import Inputs, Network
from refprune.streams import Streams

TINY = dataset.Dataset("synthetic-digits", *digits.generate(1000, 200, 0), digits.CLASSES)
LINEAR = Network((1, 28, 28), (Flatten(), Dense(10)))


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tmp_path):
    monkeypatch.setattr(sets, "load", lambda name, directory=None: TINY)
    monkeypatch.chdir(tmp_path)


def regression(inputs):
    """Softmax regression on inputs of some scaling, a few steps, and its accuracy on the test images."""
    x, t = (inputs(images).reshape(len(images), -1).astype(float) for images in (TINY.train_images, TINY.test_images))
    w, y, step = np.zeros((10, 784)), np.eye(10)[TINY.train_labels], 10.0 / np.square(x).sum(axis=1).mean()
    for _ in range(60):
        p = np.exp(x @ w.T - (x @ w.T).max(1, keepdims=True))
        w -= step * (p / p.sum(1, keepdims=True) - y).T @ x / len(x)
    return w.astype("f4"), 100 * np.mean((t @ w.T).argmax(1) == TINY.test_labels)


SCALINGS = {
    "unit": Scaling(np.zeros((1, 1, 1)), np.full((1, 1, 1), 1 / 255)),
    "pixels": Scaling(np.zeros((1, 1, 1)), np.ones((1, 1, 1))),
    "mine.json": Scaling(np.full((1, 1, 1), 255.0), np.full((1, 1, 1), -1 / 255)),  # black on white
}


def written(w, network=LINEAR):
    np.savez("w.npz", **{"dense1.weight": w, "dense1.bias": np.zeros(10, "f4")})
    with open("s.json", "w") as file:
        json.dump(json_form.to_json(network), file)
    with open("mine.json", "w") as file:
        json.dump({"shift": 255, "scale": [-1 / 255]}, file)


def evaluated(capsys, *arguments):
    code = cli.main(["evaluate", *arguments, "--data", "synthetic-digits", "--backend", "oracle", "--clean"])
    out = capsys.readouterr()
    return code, out.out + out.err


@pytest.mark.parametrize("how", SCALINGS)
def test_weights_of_others_with_their_scaling(capsys, how):
    """By the option and by numbers in the spec: the accuracy that they were trained to; else what is assumed is said."""
    w, accuracy = regression(SCALINGS[how])
    numbers = standardise.numbers_of(SCALINGS[how])
    written(w)
    code, text = evaluated(capsys, "w.npz", "--spec", "s.json", "--inputs", how)
    assert (code, text.split()[-1]) == (0, f"{accuracy:.2f}")
    assert "this scaling is the network's own" in text
    written(w, Network((1, 28, 28), LINEAR.layers, inputs=numbers))
    _, text = evaluated(capsys, "w.npz", "--spec", "s.json")
    assert text.split()[-1] == f"{accuracy:.2f}"
    _, text = evaluated(capsys, "w.npz", "--spec", "s.json", "--inputs", "set")
    assert "because neither the network nor --inputs says" in text


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("imagenet", "is for images of 3 channels, the network takes 1"),
        ("nothing", "is not known; allowed are set, unit, pixels, imagenet, and a .json file"),
        ("none.json", "no JSON object with the lists shift and scale"),
        ("list.json", "no JSON object with the lists shift and scale"),
        ("zero.json", "a scale of 0 makes all images alike"),
        ("nan.json", "shift must be a list of finite numbers"),
        ("long.json", "3 shifts and 3 scales do not fit images of shape"),
    ],
)
def test_scalings_that_are_none(capsys, option, message):
    written(np.zeros((10, 784), "f4"))
    files = {"list": [], "zero": {"shift": 0, "scale": 0}, "nan": {"shift": [float("nan")], "scale": 1}}
    files["long"] = {"shift": [0, 0, 0], "scale": [1, 1, 1]}
    for name, content in files.items():
        with open(f"{name}.json", "w") as file:
            json.dump(content, file)
    code, text = evaluated(capsys, "w.npz", "--spec", "s.json", "--inputs", option)
    assert code == 2
    assert message in text


def test_imagenets_numbers():
    network = Network((3, 4, 4), (GlobalAveragePool(), Dense(2)))
    numbers = inputs_of("imagenet", network)
    pixels = np.array([[255.0, 0.0, 128.0]]).reshape(1, 3, 1, 1)
    want = (pixels.ravel() / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    shift, scale = (np.array(n).reshape(3, 1, 1) for n in (numbers.shift, numbers.scale))
    np.testing.assert_allclose(Scaling(shift, scale)(pixels).ravel(), want, rtol=1e-14)
    assert inputs_of("set", network) is None


def test_words():
    one = np.ones((3, 1, 1))
    assert in_words(Scaling(33.3 * one, 0.5 * one)) == "(pixel − 33.3)·0.5"
    assert in_words(Scaling(one * [[[1]], [[2]], [[3]]], one)) == "(pixel − (1, 2, 3))·1"
    assert "a number a pixel" in in_words(Scaling(np.ones((3, 2, 2)), one))


# Specs and files ------------------------------------------------------------------------------------------------------------


def test_numbers_in_a_spec_come_back():
    network = Network((3, 8, 8), (GlobalAveragePool(), Dense(2)), inputs=Inputs((1.5, 2.0, 3.0), (0.1, 0.2, -0.3)))
    assert json_form.from_json(json.loads(json.dumps(json_form.to_json(network)))) == network
    assert "inputs" not in json_form.to_json(LINEAR)
    image = Network((2, 2, 2), (GlobalAveragePool(), Dense(2)), inputs=Inputs(tuple(map(float, range(8))), (1.0, 2.0)))
    pixels = np.arange(8.0).reshape(1, 2, 2, 2)
    assert (standardise.scaling_of(image, TINY, images=1, dtype="float64")(pixels) == 0.0).all()


@pytest.mark.parametrize(("shift", "scale"), [((0.0,), (1.0, 1.0)), ((0.0, 0.0), (1.0,)), ((), (1.0,)), (("a",), (1.0,))])
def test_numbers_that_do_not_fit_an_image_are_refused(shift, scale):
    with pytest.raises(SpecError, match="inputs: "):
        Network((1, 2, 2), (Flatten(), Dense(2)), inputs=Inputs(shift, scale))


def test_every_export_has_the_numbers(tmp_path):
    model = Trained(LINEAR, initialise(LINEAR, Streams(0), dtype="float32"), {}, "synthetic-digits", 50)
    model = export.with_inputs(model)
    pixels = TINY.train_images[:50].astype(np.float64)
    shift, scale = model.network.inputs.shift, model.network.inputs.scale
    assert shift == pytest.approx((pixels.mean(),), rel=1e-6)
    assert scale == pytest.approx((1 / pixels.std(),), rel=1e-6)
    for kind in ("npz", "onnx", "torch"):
        export.write_checked(tmp_path / f"w.{kind}", model, kind)
    assert load.load(tmp_path / "w.npz").network.inputs == model.network.inputs
    (found,) = onnx.load(tmp_path / "w.onnx").metadata_props
    assert json.loads(found.value) == {"shift": list(shift), "scale": list(scale)}
    text = (tmp_path / "w.py").read_text()
    assert f"shift {shift[0]:.9g}; scale {scale[0]:.9g}" in text
    assert "inputs: (pixel − " in model.said[0]


def test_a_set_that_is_not_here_is_told(monkeypatch):
    def missing(name, directory=None):
        raise InputError("mnist was not found")

    monkeypatch.setattr(sets, "load", missing)
    model = export.with_inputs(Trained(LINEAR, {}, {}, "mnist"))
    assert model.network.inputs is None
    assert model.said == ("inputs: no numbers are written, because the data set of the run is not here (mnist was not found)",)


def test_an_adversary_follows_the_sign_of_the_scale():
    """Black on white: the gradient by pixels has the other sign than that by inputs."""
    scaling = SCALINGS["mine.json"]
    model = Trained(LINEAR, {n: p.astype("f8") for n, p in initialise(LINEAR, Streams(0)).items()}, {})
    pixels, labels = TINY.test_images[:4], TINY.test_labels[:4]
    moved = fgsm(model, ORACLE, scaling, pixels, labels, 1 / 255) - pixels
    slope = input_gradient(model, ORACLE, scaling(pixels), labels)
    inner = (pixels > 0) & (pixels < 255)
    assert (np.sign(moved) == -np.sign(slope))[inner].all()


# Results that are no numbers ------------------------------------------------------------------------------------------------

DEEP = Network(
    (1, 28, 28),
    (
        Conv(4, (3, 3), (4, 4), name="stem"),
        *[Section((Conv(4, (1, 1)), BatchNorm(), Activation("relu"), Conv(4, (1, 1))), gate=False)] * 3,
        GlobalAveragePool(),
        Dense(10),
    ),
)


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "--clean"],
        ["evaluate", "--fgsm", "1/255"],
        ["similarity"],
        ["score"],
        ["prune", "--criterion", "l1", "--score-images", "500", "--out", "out"],
        ["prune", "--criterion", "kl", "--score-images", "500", "--out", "out"],
    ],
)
def test_logits_that_are_not_finite_are_an_error_with_the_first_layer(command, capsys):
    params = initialise(DEEP, Streams(0), dtype="float32")
    params["section2.conv2.weight"][:] = 3e38
    statistics = {n: np.ones(s, "f4") for n, s in DEEP.statistics_shapes.items()}
    np.savez("w.npz", **params, **statistics)
    with open("s.json", "w") as file:
        json.dump(json_form.to_json(DEEP), file)
    arguments = ["w.npz", "--spec", "s.json", "--data", "synthetic-digits", "--backend", "oracle"]
    with np.errstate(all="ignore"):
        code = cli.main([command[0], *arguments, *command[1:]])
    err = capsys.readouterr().err
    assert code == 2
    assert "finite" in err or "the test loss is" in err
    if command[0] != "prune":
        assert "section2.conv2" in err
