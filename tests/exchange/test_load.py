"""Others' networks: the same arrays in every format; conventions against PyTorch; what does not fit is named."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.numpy
import torch
from tolerance import assert_close, gamma

from refprune.adapters.pytorch import model
from refprune.backend import ORACLE
from refprune.data import sets
from refprune.errors import DataError, InputError
from refprune.exchange import arrays_onto_spec, load, spec_of_file
from refprune.exchange.weight_files import Weights
from refprune.passes.batch_loss import BatchLoss
from refprune.passes.parameters import initial_statistics, initialise
from refprune.passes.predictor import Predictor
from refprune.rounding.tolerance import UNIT, network_tolerance
from refprune.spec import json_form, zoo
from refprune.spec.layers import BatchNorm, Conv, Dense, Flatten, Section
from refprune.spec.network import Network
from refprune.streams import Streams
from refprune.training import checkpoint, config
from refprune.training.state import initial_state, ungated

BLOCKS = (3, 2, 1)
NETWORK = zoo.resnet_cifar_keras(BLOCKS, width=2)
SPEC = "resnet-cifar-keras:width=2"


def arrays(network, seed=0):
    """Parameters and statistics, float32, no two entries alike."""
    streams = Streams(seed)
    params = initialise(network, streams)
    params = {name: p + 0.1 * streams.normal(f"p/{name}", 0, p.shape) for name, p in params.items()}
    stats = {n: np.abs(s + 0.1 * streams.normal(n, 0, s.shape)) for n, s in initial_statistics(network).items()}
    return tuple({name: a.astype(np.float32) for name, a in group.items()} for group in (params, stats))


PARAMS, STATISTICS = arrays(NETWORK)
KERAS = {"gain": "gamma", "mean": "mean", "variance": "var", "weight": "kernel"}


def as_keras(params=PARAMS, statistics=STATISTICS):
    """The arrays as Keras has them, with loops instead of axes: kernel[h, w, i, o], units of a dense layer last."""
    found = {}
    for name, array in {**params, **statistics}.items():
        layer, _, key = name.rpartition(".")
        theirs = "beta" if layer.endswith(".bn") and key == "bias" else KERAS.get(key, key)
        turned = np.empty(array.shape[2:] + array.shape[1::-1] if key == "weight" else array.shape, array.dtype)
        for index in np.ndindex(array.shape):
            turned[(*index[2:], index[1], index[0]) if key == "weight" else index] = array[index]
        found[f"{layer}.{theirs}"] = turned
    return found


def equal(trained, params=PARAMS, statistics=STATISTICS):
    for found, want in ((trained.params, params), (trained.statistics, statistics)):
        assert list(found) == list(want)
        for name in want:
            np.testing.assert_array_equal(found[name], want[name], strict=True)


def save(path, content):
    np.savez(path, **content)
    return path


def test_keras_npz_by_name_and_blocks_from_the_names(tmp_path):
    shuffled = as_keras()
    shuffled = {name: shuffled[name] for name in sorted(shuffled)}
    trained = load.load(save(tmp_path / "a.npz", shuffled), SPEC)
    assert trained.network == NETWORK
    equal(trained)


def test_what_the_spec_says():
    """The conventions that the files' README lists."""
    assert NETWORK.scaling == "pixel_mean"
    convs = {layer.name: layer for layer, _ in NETWORK.placed() if isinstance(layer, Conv)}
    assert all(conv.bias for conv in convs.values())
    halving = [name for name, conv in convs.items() if conv.stride == (2, 2)]
    assert halving == [f"stage{s}.block0.{part}" for s in (1, 2) for part in ("shortcut", "conv1")]
    assert {convs[f"stage{s}.block0.conv1"].padding for s in (1, 2)} == {((0, 1), (0, 1))}
    assert {norm.eps for norm in NETWORK.norms} == {1e-3}
    assert not any("shortcut" in norm.name for norm in NETWORK.norms)


def module_of(network, params, statistics):
    module = model.build(network)
    model.load(module, params, statistics)
    return module.eval()


@pytest.mark.parametrize("ending", ["pt", "safetensors", "npz"])
def test_a_torch_state_dict_in_its_own_order(tmp_path, ending):
    """Names of the module's own making: taken in the order in which PyTorch registers modules, the path before the shortcut."""
    state = module_of(NETWORK, PARAMS, STATISTICS).state_dict()
    path = tmp_path / f"a.{ending}"
    if ending == "pt":
        torch.save(state, path)
    elif ending == "npz":
        save(path, {name: tensor.numpy() for name, tensor in state.items()})
    else:  # such files are sorted by name: body.10 comes before body.2
        safetensors.numpy.save_file({name: tensor.numpy() for name, tensor in state.items()}, path)
    names = tmp_path / "names.json"
    modules = dict.fromkeys(name.rpartition(".")[0] for name in state)
    ours = [layer.name for layer in arrays_onto_spec._in_order(NETWORK) if arrays_onto_spec._keys(layer)]
    names.write_text(json.dumps(dict(zip(modules, ours, strict=True))))
    equal(load.load(path, f"{SPEC};blocks=[3,2,1]", str(names)))
    equal(load.load(path, f"{SPEC};blocks=[3,2,1]"))


@pytest.mark.parametrize(
    ("text", "message"), [("[1]", "must be an object"), ("{", "no JSON file"), ('{"x": "stem"}', "x is no layer of the file")]
)
def test_names_that_are_none(tmp_path, text, message):
    (tmp_path / "names.json").write_text(text)
    with pytest.raises(InputError, match=message):
        load.load(save(tmp_path / "a.npz", as_keras()), SPEC, str(tmp_path / "names.json"))


def test_the_same_output_as_in_pytorch():
    """Every convention at once: asymmetric padding, ε, biases, shortcuts without batch-norm."""
    x = Streams(1).normal("x", 0, (2, 3, 32, 32))
    wide = [{name: a.astype(np.float64) for name, a in group.items()} for group in (PARAMS, STATISTICS)]
    loss = BatchLoss(NETWORK, ORACLE, wide[0], x, np.array([1, 2]), wide[1], train=False)
    tolerance = network_tolerance(loss, np.ones(0), unit=UNIT["float64"]).output
    theirs = module_of(NETWORK, *wide).double()
    model.load(theirs, *wide)
    want = theirs(torch.from_numpy(x)).detach().numpy()
    assert_close("logits", Predictor(NETWORK, ORACLE, *wide)(x), want, tolerance)


def test_keras_flattens_with_the_channels_innermost(tmp_path):
    """convolution → flatten → batch-norm → dense as Keras computes it, N×H×W×C, from its own formulas."""
    rng = np.random.default_rng(3)
    network = Network((2, 3, 4), (Conv(3, (1, 1), bias=False), Flatten(), BatchNorm(), Dense(2)))
    shapes = {"conv1.kernel": (1, 1, 2, 3), "dense1.kernel": (36, 2), "dense1.bias": (2,)}
    shapes |= {f"batchnorm1.{name}": (36,) for name in ("gamma", "beta", "moving_mean", "moving_variance")}
    theirs = {name: np.abs(rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}
    np.savez(tmp_path / "keras.npz", **theirs)
    (tmp_path / "spec.json").write_text(json.dumps(json_form.to_json(network)))
    trained = load.load(tmp_path / "keras.npz", str(tmp_path / "spec.json"), dtype="float64")
    x = rng.standard_normal((5, 2, 3, 4))
    h = (x.transpose(0, 2, 3, 1) @ theirs["conv1.kernel"][0, 0].astype(float)).reshape(5, 36)
    mean, variance = theirs["batchnorm1.moving_mean"], theirs["batchnorm1.moving_variance"].astype(float)
    h = (h - mean) / np.sqrt(variance + network.layers[2].eps) * theirs["batchnorm1.gamma"] + theirs["batchnorm1.beta"]
    want = h @ theirs["dense1.kernel"].astype(float) + theirs["dense1.bias"]
    got = Predictor(network, ORACLE, trained.params, trained.statistics)(x)
    assert_close("logits", got, want, gamma(200, UNIT["float64"]) * np.abs(want).max())


def test_keras_sections_behind_a_flatten_are_refused(tmp_path):
    network = Network((2, 2, 2), (Flatten(), Section((Dense(8),)), Dense(2)))
    arrays = {"section1.dense1": (8, 8), "dense1": (8, 2)}
    theirs = {
        f"{name}.{key}": np.ones(s) for name, shape in arrays.items() for key, s in (("kernel", shape), ("bias", shape[1:]))
    }
    with pytest.raises(DataError, match="section1: a section reads a flattened image"):
        arrays_onto_spec.from_arrays(Weights(theirs, True), network)
    one_channel = dataclasses.replace(network, input_shape=(1, 2, 4))  # the order is the same
    assert arrays_onto_spec.from_arrays(Weights(theirs, True), one_channel).params["dense1.weight"].shape == (2, 8)


def test_a_planted_convention_is_seen():
    """Symmetric padding or another ε changes the output by far more than rounding."""
    x = Streams(1).normal("x", 0, (2, 3, 32, 32))
    text = json.dumps(json_form.to_json(NETWORK))
    right = Predictor(NETWORK, ORACLE, PARAMS, STATISTICS)(x)
    for old, new in (("[[0, 1], [0, 1]]", "[[1, 0], [1, 0]]"), ('"eps": 0.001', '"eps": 1e-05')):
        wrong = json_form.from_json(json.loads(text.replace(old, new)))
        assert wrong != NETWORK
        assert np.abs(Predictor(wrong, ORACLE, PARAMS, STATISTICS)(x) - right).max() > 1e-4 * np.abs(right).max()


def test_a_json_spec(tmp_path):
    (tmp_path / "n.json").write_text(json.dumps(json_form.to_json(NETWORK)))
    equal(load.load(save(tmp_path / "a.npz", as_keras()), str(tmp_path / "n.json")))


def test_a_checkpoint_folder(tmp_path):
    rules = config.from_dict({"data": {"name": "synthetic-digits"}})
    network = zoo.residual_mlp(sections=2, width=3)
    state = dataclasses.replace(initial_state(rules, ungated(network)), finished=True)
    (tmp_path / "config.toml").write_text(config.to_toml(rules))
    (tmp_path / "unpruned").mkdir()
    checkpoint.save(tmp_path / "unpruned", state, {})
    trained = load.load(tmp_path / "unpruned")
    assert (trained.network, trained.data) == (state.network, "synthetic-digits")
    equal(trained, state.params, state.statistics)
    checkpoint.save(tmp_path / "unpruned", dataclasses.replace(state, finished=False), {})
    with pytest.raises(InputError, match="its run has not ended"):
        load.load(tmp_path / "unpruned")
    with pytest.raises(InputError, match="holds its own spec"):
        load.load(tmp_path / "unpruned", SPEC)


def test_models_are_found_below_the_folder_of_models(tmp_path, monkeypatch):
    (tmp_path / "them").mkdir()
    save(tmp_path / "them" / "a.npz", as_keras())
    monkeypatch.delenv("REFPRUNE_MODELS", raising=False)
    with pytest.raises(InputError, match="REFPRUNE_MODELS, the folder of others' models, is not set"):
        load.load("them/a.npz", SPEC)
    monkeypatch.setenv("REFPRUNE_MODELS", str(tmp_path))
    equal(load.load("them/a.npz", SPEC))


def changed(**changes):
    """Keras arrays with some replaced; None takes one away."""
    made = {**as_keras(), **changes}
    return {name: array for name, array in made.items() if array is not None}


NAN = np.full(2, np.nan, np.float32)
WRONG = {
    "missing": ({"stage1.block0.conv1.kernel": None}, r"stage1.block0.conv1.kernel is missing; .* shape \(4, 2, 3, 3\)"),
    "missing norm": ({"stem.bn.var": None}, r"stem.bn.moving_variance is missing; the network needs it as stem.bn.variance"),
    "shape": ({"head.kernel": np.ones((8, 9), "f4")}, r"head.kernel has shape \(8, 9\); the network needs \(8, 10\)"),
    "unturned": ({"stem.kernel": np.ones((2, 3, 3, 3), "f4")}, r"stem.kernel has shape \(2, 3, 3, 3\); .* \(3, 3, 3, 2\)"),
    "axes": ({"stem.kernel": np.ones(9, "f4")}, r"stem.kernel has shape \(9,\); the network needs \(3, 3, 3, 2\)"),
    "not finite": ({"stem.bn.beta": NAN}, "stem.bn.beta: must be finite"),
    "integers": ({"stem.bn.beta": np.ones(2, int)}, "stem.bn.beta: must be finite floating-point numbers, got int64"),
    "left over": ({"extra.kernel": np.ones(2, "f4")}, "extra.kernel belongs to no layer of the network"),
    "left in layer": ({"stem.gamma": np.ones(2, "f4")}, r"stem.gamma belongs to no array of layer stem \(Conv\)"),
    "strange": ({"stem.momentum": np.ones(2, "f4")}, r"stem.momentum: is not what an array of .* is called \(keras\)"),
    "gap": ({"stage0.block4.conv1.bias": NAN}, r"no array is called stage0.block3.…"),
    "stage gap": ({"stage4.block0.conv1.bias": NAN}, r"no array is called stage3.block0.…"),
}


@pytest.mark.parametrize("case", WRONG)
def test_the_first_array_that_does_not_fit_is_named(tmp_path, case):
    changes, message = WRONG[case]
    path = save(tmp_path / "a.npz", changed(**changes))
    with pytest.raises(DataError, match=message) as error:
        load.load(path, SPEC)
    assert str(path) in str(error.value)


def test_names_without_blocks_need_them():
    with pytest.raises(DataError, match=r"no array is called stage0.block0.…; .*blocks=\[9,9,9\]"):
        spec_of_file.network_for("resnet-cifar-keras", {"conv2d.kernel": np.ones(3)})


@pytest.mark.parametrize(
    ("spec_name", "message"),
    [
        (None, "needs --spec"),
        ("nothing", "network: 'nothing' is not known"),
        ("resnet-20:width=x", "expected NAME:key=value"),
        ("resnet-cifar-keras:blocks=[]", "network.blocks: every stage needs at least one block"),
        ("resnet-cifar-keras:blocks=[1.5]", "network.blocks: expected list, got"),
        ("none.json", "none.json: cannot be read"),
    ],
)
def test_specs_that_are_none(tmp_path, spec_name, message):
    with pytest.raises(InputError, match=message):
        load.load(save(tmp_path / "a.npz", as_keras()), spec_name)


def test_images_that_do_not_fit():
    digits = sets.load("synthetic-digits")
    with pytest.raises(InputError, match=r"synthetic-digits: has images \(1, 28, 28\) of 10 classes; .* \(3, 32, 32\) and 10"):
        load.check_images(NETWORK, digits)
    load.check_images(zoo.lenet5(), digits)


def test_layouts_tell_each_other_apart():
    assert arrays_onto_spec.layout_of(as_keras()) is arrays_onto_spec.LAYOUTS["keras"]
    assert arrays_onto_spec.layout_of({**PARAMS, **STATISTICS}) is arrays_onto_spec.LAYOUTS["refprune"]
    state = module_of(NETWORK, PARAMS, STATISTICS).state_dict()
    assert arrays_onto_spec.layout_of({name: t.numpy() for name, t in state.items()}) is arrays_onto_spec.LAYOUTS["pytorch"]
    assert {type(layer) for layer, _ in NETWORK.placed() if arrays_onto_spec._keys(layer)} == {Conv, Dense, BatchNorm}
