"""Keras' files of both ages: order by depth, names by class, and what a model says of itself against the spec."""

import io
import json
import zipfile

import h5py
import numpy as np
import pytest

from refprune.errors import DataError
from refprune.exchange import load, weight_files
from refprune.spec import json_form
from refprune.spec.layers import Activation, BatchNorm, Conv, Dense, Flatten, GlobalAveragePool, MaxPool, Section
from refprune.spec.network import Network

RNG = np.random.default_rng(0)
SAME, HALVES = ((1, 1), (1, 1)), ((0, 1), (0, 1))
NORM = ("gamma", "beta", "moving_mean", "moving_variance")


def norm(channels):
    return {kind: np.abs(RNG.standard_normal(channels)).astype("f4") + 0.1 for kind in NORM}


def conv(k, i, o):
    return {"kernel": RNG.standard_normal((k, k, i, o)).astype("f4"), "bias": RNG.standard_normal(o).astype("f4")}


def dense(i, o):
    return {"kernel": RNG.standard_normal((i, o)).astype("f4"), "bias": RNG.standard_normal(o).astype("f4")}


def keras_2(path, layers, config=None):
    with h5py.File(path, "w") as file:
        if config is not None:
            file.attrs["model_config"] = json.dumps(config)
        root = file.create_group("model_weights")
        root.attrs["layer_names"] = [name.encode() for name in layers]
        for name, arrays in layers.items():
            group = root.create_group(name)
            group.attrs["weight_names"] = [f"{name}/{kind}:0".encode() for kind in arrays]
            for kind, array in arrays.items():
                group[f"{name}/{kind}:0"] = array
    return path


def keras_3(file, layers):
    for name, arrays in layers.items():
        for i, array in enumerate(arrays.values()):
            file[f"layers/{name}/vars/{i}"] = array
    file["optimizer/vars/0"] = np.ones(3)
    file["layers/dropout/seed_generator/vars/0"] = np.array([1, 2], np.uint32)


def spec(tmp_path, *layers, shape=(4,)):
    path = tmp_path / "s.json"
    path.write_text(json.dumps(json_form.to_json(Network(shape, layers))))
    return str(path)


BLOCK = Section(
    (Conv(6, (3, 3), (2, 2), HALVES), BatchNorm(), Activation("relu"), Conv(6, (3, 3), padding=SAME), BatchNorm()),
    (Conv(6, (1, 1), (2, 2)),),
    post="relu",
    gate=False,
)
RESIDUAL = (Conv(4, (3, 3), padding=SAME), Activation("relu"), BLOCK, GlobalAveragePool(), Dense(3))


@pytest.mark.parametrize("shortcut", ["conv2d_3", "conv2d_1"])
@pytest.mark.parametrize("age", [2, 3])
def test_a_projection_in_a_functional_model(tmp_path, shortcut, age):
    """Made before or after the path, it stands by its depth, between the second convolution and that one's norm."""
    first, second = ("conv2d_1", "conv2d_2") if shortcut == "conv2d_3" else ("conv2d_2", "conv2d_3")
    layers = {"conv2d": conv(3, 2, 4), first: conv(3, 4, 6), "bn": norm(6), second: conv(3, 6, 6), shortcut: conv(1, 4, 6)}
    layers |= {"bn_1": norm(6), "dense": dense(6, 3)}
    path = tmp_path / ("m.h5" if age == 2 else "m.weights.h5")
    if age == 2:
        keras_2(path, layers)
    else:
        with h5py.File(path, "w") as file:
            keras_3(file, layers)
    found = load.load(path, spec(tmp_path, *RESIDUAL, shape=(2, 8, 8))).params
    for ours, theirs in {"shortcut.conv1": shortcut, "conv1": first, "conv2": second}.items():
        np.testing.assert_array_equal(found[f"section1.{ours}.weight"], layers[theirs]["kernel"].transpose(3, 2, 0, 1))
    np.testing.assert_array_equal(found["section1.batchnorm2.gain"], layers["bn_1"]["gamma"])


def archive(path, layers, config):
    weights = io.BytesIO()
    with h5py.File(weights, "w") as file:
        keras_3(file, layers)
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("config.json", json.dumps(config))
        made.writestr("metadata.json", "{}")
        made.writestr("model.weights.h5", weights.getvalue())
    return path


def layer(kind, name, **config):
    return {"class_name": kind, "config": {"name": name, **config}}


def sequential(*layers):
    return {"class_name": "Sequential", "config": {"name": "m", "layers": list(layers)}}


def test_a_keras_archive_with_names_of_its_own(tmp_path):
    """Keras 3 stores by class and count, whatever the layers are called."""
    layers = {"dense": dense(4, 3), "batch_normalization": norm(3), "dense_1": dense(3, 2)}
    parts = [layer("Dense", "first"), layer("BatchNormalization", "middle", epsilon=1e-3), layer("Dense", "last")]
    ours = (Dense(3), BatchNorm(eps=1e-3), Dense(2))
    found = load.load(archive(tmp_path / "m.keras", layers, sequential(*parts)), spec(tmp_path, *ours))
    np.testing.assert_array_equal(found.params["dense2.weight"], layers["dense_1"]["kernel"].T)
    with pytest.raises(DataError, match=r"batchnorm1: the file says epsilon = 0\.001, the spec 1e-05"):
        load.load(tmp_path / "m.keras", spec(tmp_path, Dense(3), BatchNorm(), Dense(2)))


# What a model says of itself ------------------------------------------------------------------------------------------------

CHAIN = {"conv2d": conv(3, 2, 4), "bn": norm(4), "conv2d_1": conv(3, 4, 4), "dense": dense(4, 3)}
SAYS = (
    layer("InputLayer", "in"),
    layer("Conv2D", "conv2d", strides=[2, 2], padding="same", dilation_rate=[1, 1], groups=1, activation="linear"),
    layer("BatchNormalization", "bn", epsilon=1e-3),
    layer("Activation", "a", activation="relu"),
    layer("Conv2D", "conv2d_1", strides=[1, 1], padding="valid", activation="tanh"),
    layer("GlobalAveragePooling2D", "pool"),
    layer("Dense", "dense", activation="softmax"),
)
OURS = (
    Conv(4, (3, 3), (2, 2), HALVES),
    BatchNorm(eps=1e-3),
    Activation("relu"),
    Conv(4, (3, 3)),
    Activation("tanh"),
    GlobalAveragePool(),
    Dense(3),
)


def replaced(index, new):
    return (*OURS[:index], *([] if new is None else [new]), *OURS[index + 1 :])


def test_a_spec_that_says_the_same_is_accepted(tmp_path):
    path = keras_2(tmp_path / "m.h5", CHAIN, sequential(*SAYS))
    assert load.load(path, spec(tmp_path, *OURS, shape=(2, 8, 8))).network.layers[1].eps == 1e-3


@pytest.mark.parametrize(
    ("ours", "message"),
    [
        (replaced(1, BatchNorm(eps=1e-5)), r"batchnorm1: the file says epsilon = 0\.001, the spec 1e-05"),
        (replaced(0, Conv(4, (3, 3), (2, 2), SAME)), r"conv1: the file says padding 'same' = \(\(0, 1\), \(0, 1\)\), the"),
        (
            replaced(3, Conv(4, (3, 3), padding=SAME)),
            r"conv2: the file says padding 'valid' = \(\(0, 0\), \(0, 0\)\), the spec",
        ),
        (replaced(3, Conv(4, (3, 3), (2, 2))), r"conv2: the file says strides = \(1, 1\), the spec \(2, 2\)"),
        (replaced(2, Activation("gelu")), "activations: the file has 0 of kind gelu, the spec 1"),
        (replaced(4, None), "activations: the file has 1 of kind tanh, the spec 0"),
        (replaced(2, MaxPool((1, 1), (1, 1))), r"activations: the file has 1 of kind relu, the spec 0"),
    ],
)
def test_the_first_difference_is_named(tmp_path, ours, message):
    path = keras_2(tmp_path / "m.h5", CHAIN, sequential(*SAYS))
    with pytest.raises(DataError, match=message):
        load.load(path, spec(tmp_path, *ours, shape=(2, 8, 8)))


def test_a_padding_layer_counts_for_the_convolution_behind_it(tmp_path):
    says = (*SAYS[:4], layer("ZeroPadding2D", "z", padding=[[1, 1], [1, 1]]), *SAYS[4:])
    path = keras_2(tmp_path / "m.h5", CHAIN, sequential(*says))
    load.load(path, spec(tmp_path, *replaced(3, Conv(4, (3, 3), padding=SAME)), shape=(2, 8, 8)))


def test_pools_and_the_order_of_layers(tmp_path):
    says = (*SAYS[:4], layer("MaxPooling2D", "p", pool_size=[2, 2]), *SAYS[4:])
    path = keras_2(tmp_path / "m.h5", CHAIN, sequential(*says))
    with pytest.raises(DataError, match=r"pools: the file has MaxPooling2D of sizes \[\(2, 2\)\], the spec \[\]"):
        load.load(path, spec(tmp_path, *OURS, shape=(2, 16, 16)))
    swapped = {"dense_1": dense(4, 4), "dense": dense(4, 4)}
    says = sequential(layer("Dense", "dense"), layer("Dense", "dense_1"))
    keras_2(tmp_path / "m.h5", swapped, says)
    with pytest.raises(DataError, match="dense: comes in the file where the spec has dense_1"):
        load.load(tmp_path / "m.h5", spec(tmp_path, Dense(4), Dense(4)))


def test_a_rescaling_in_the_model_becomes_the_inputs(tmp_path):
    """x·scale + offset is (x − shift)·scale with shift = −offset/scale."""
    says = (layer("Rescaling", "r", scale=1 / 127.5, offset=-1.0), *SAYS)
    path = keras_2(tmp_path / "m.h5", CHAIN, sequential(*says))
    found = load.load(path, spec(tmp_path, *OURS, shape=(2, 8, 8)))
    assert found.network.inputs.shift == pytest.approx((127.5, 127.5))
    assert found.network.inputs.scale == pytest.approx((1 / 127.5,) * 2)
    assert any("Rescaling" in sentence for sentence in found.said)


# Damage ---------------------------------------------------------------------------------------------------------------------


def test_a_dataset_that_was_never_written_takes_no_memory(tmp_path):
    with h5py.File(tmp_path / "m.weights.h5", "w") as file:
        file.create_dataset("layers/dense/vars/0", shape=(1 << 20, 1 << 20), dtype="f4", chunks=(1024, 1024))
    with pytest.raises(DataError, match="would take 4,398,046,511,104 bytes of memory"):
        weight_files.read(tmp_path / "m.weights.h5")


@pytest.mark.parametrize("config", [{"config": {"layers": [{"config": {}, "class_name": "Dense"}]}}, [], "x", {"config": 3}])
def test_a_damaged_model_config(tmp_path, config):
    layers = {"dense": dense(4, 3)}
    path = keras_2(tmp_path / "m.h5", layers, config)
    if isinstance(config, dict) and isinstance(config["config"], dict):
        with pytest.raises(DataError, match="its model_config is damaged"):
            weight_files.read(path)
    else:
        assert weight_files.read(path).layers is None


def test_arrays_of_no_known_layer(tmp_path):
    with h5py.File(tmp_path / "m.weights.h5", "w") as file:
        for i in range(3):
            file[f"layers/lstm/vars/{i}"] = np.ones((2, 2))
    with pytest.raises(DataError, match=r"lstm: arrays of shapes .* belong to no convolution, dense layer or batch-norm"):
        weight_files.read(tmp_path / "m.weights.h5")


def test_flatten_in_a_sequential_model(tmp_path):
    """The kernel's rows are pixels with the channels innermost."""
    path = keras_2(
        tmp_path / "m.h5", {"dense": dense(2 * 2 * 3, 2)}, sequential(layer("Flatten", "f"), layer("Dense", "dense"))
    )
    found = load.load(path, spec(tmp_path, Flatten(), Dense(2), shape=(3, 2, 2)))
    assert found.params["dense1.weight"].shape == (2, 12)
