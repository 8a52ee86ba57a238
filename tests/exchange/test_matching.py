"""Which layer of a file is which of a spec: numbers as numbers, trees of names, widths, wrappers; what is open is refused."""

import json
import re

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from refprune.backend import ORACLE
from refprune.errors import DataError
from refprune.exchange import load, matching
from refprune.passes.predictor import Predictor
from refprune.spec import json_form, zoo
from refprune.spec.layers import Activation, BatchNorm, Conv, Dense, Flatten, GlobalAveragePool, Section
from refprune.spec.network import Network

RELU = Activation("relu")


class Block(nn.Module):
    """With batch-norms called as torchvision calls them, or in another way."""

    def __init__(self, i, o, stride, norms="bn"):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.Conv2d(o, o, 3, 1, 1, bias=False)
        setattr(self, f"{norms}1", nn.BatchNorm2d(o))
        setattr(self, f"{norms}2", nn.BatchNorm2d(o))
        if i != o:
            self.downsample = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))


class ResNet(nn.Module):
    def __init__(self, blocks=3, norms="bn", stem="conv1", classes=10):
        super().__init__()
        setattr(self, stem, nn.Conv2d(3, 16, 3, 1, 1, bias=False))
        setattr(self, f"{norms}1", nn.BatchNorm2d(16))
        for k, (i, o) in enumerate(((16, 16), (16, 32), (32, 64)), 1):
            layers = [Block(i if b == 0 else o, o, 1 + (i != o and b == 0), norms) for b in range(blocks)]
            setattr(self, f"layer{k}", nn.Sequential(*layers))
        self.linear = nn.Linear(64, classes)


def randomised(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for tensor in module.state_dict().values():
        if tensor.dtype.is_floating_point:
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
    return module


def write(path, state, order=None):
    """In the order of names, of the module or shuffled; the ending says how."""
    arrays = {name: np.asarray(t) for name, t in state.items()}
    names = {"text": sorted(arrays), "shuffled": sorted(arrays, key=hash)}.get(order, list(arrays))
    if path.suffix == ".npz":
        np.savez(path, **{name: arrays[name] for name in names})
    elif path.suffix == ".safetensors":
        safetensors.numpy.save_file(arrays, path)
    else:
        torch.save({name: torch.from_numpy(arrays[name].copy()) for name in names}, path)
    return path


# Numbers in names -----------------------------------------------------------------------------------------------------------


def test_names_sort_by_their_numbers():
    names = ["a.10.b", "a.2.b", "a.2.a10", "a.2.a9", "a", "conv2d_10", "conv2d_2", "conv2d"]
    want = ["a", "a.2.a9", "a.2.a10", "a.2.b", "a.10.b", "conv2d", "conv2d_2", "conv2d_10"]
    assert sorted(names, key=matching.natural) == want
    assert matching.sorted_as_text(sorted(names))
    assert not matching.sorted_as_text(want)
    assert not matching.sorted_as_text(["a", "b", "c9"])


@pytest.mark.parametrize("ending", ["npz", "pt", "safetensors"])
def test_twelve_equal_blocks_keep_their_order(tmp_path, ending):
    """layers.10 comes behind layers.9, not behind layers.1, however the file was sorted."""
    rng, n = np.random.default_rng(0), 12
    state = {}
    for name, o, i in (("in_proj", 6, 8), *((f"layers.{k}", 6, 6) for k in range(n)), ("out_proj", 3, 6)):
        state |= {f"{name}.weight": rng.standard_normal((o, i)), f"{name}.bias": rng.standard_normal(o)}
    network = Network((8,), (Dense(6), RELU, *[Section((Dense(6), RELU), gate=False)] * n, Dense(3)))
    (tmp_path / "s.json").write_text(json.dumps(json_form.to_json(network)))
    found = load.load(write(tmp_path / f"w.{ending}", state, "text"), str(tmp_path / "s.json"), dtype="float64")
    x = rng.standard_normal((4, 8))
    h = np.maximum(x @ state["in_proj.weight"].T + state["in_proj.bias"], 0)
    for k in range(n):
        h = h + np.maximum(h @ state[f"layers.{k}.weight"].T + state[f"layers.{k}.bias"], 0)
    want = h @ state["out_proj.weight"].T + state["out_proj.bias"]
    np.testing.assert_allclose(Predictor(found.network, ORACLE, found.params, found.statistics)(x), want, rtol=1e-12)


# Trees of names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stem", ["conv1", "stem", "a", "z"])
@pytest.mark.parametrize("norms", ["bn", "norm", "a_norm"])
@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_a_resnet_whose_order_is_lost(tmp_path, stem, norms, shortcut):
    """Every array in its place, whatever the alphabet makes of the names."""
    module = randomised(ResNet(norms=norms, stem=stem))
    state = module.state_dict()
    if shortcut == "A":
        state = {name: t for name, t in state.items() if "downsample" not in name}
    path = write(tmp_path / "w.safetensors", state)
    found = load.load(path, f'resnet-20:shortcut="{shortcut}"')
    params = found.params
    for k in range(3):
        for b in range(3):
            section, block = f"section{3 * k + b + 1}", getattr(module, f"layer{k + 1}")[b]
            for i in (1, 2):
                assert (params[f"{section}.conv{i}.weight"] == getattr(block, f"conv{i}").weight.detach().numpy()).all()
                gain = params[f"{section}.batchnorm{i}.gain"]
                assert (gain == getattr(block, f"{norms}{i}").weight.detach().numpy()).all()
    first = next(name for name in params if name.endswith(".gain"))
    assert (params[first] == getattr(module, f"{norms}1").weight.detach().numpy()).all()


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "model.", "module._orig_mod.model."])
@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_wrappers_are_taken_off_and_told(tmp_path, wrapper, ending):
    module = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    state = {f"{wrapper}{name}": t for name, t in module.state_dict().items()}
    (tmp_path / "s.json").write_text(json.dumps(json_form.to_json(Network((4,), (Dense(3), RELU, Dense(2))))))
    found = load.load(write(tmp_path / f"w.{ending}", state), str(tmp_path / "s.json"))
    assert (found.params["dense2.weight"] == module[2].weight.detach().numpy()).all()
    assert found.said == (f"names: '{wrapper}', which a wrapper puts before every name, was taken off",)


def test_what_stays_open_is_refused_with_names_to_fill_in(tmp_path):
    """Two layers of the same shape whose names say nothing of their order."""
    state = {f"{n}.{k}": np.ones(s, "f4") for n in ("left", "right") for k, s in (("weight", (4, 4)), ("bias", (4,)))}
    spec = tmp_path / "s.json"
    spec.write_text(json.dumps(json_form.to_json(Network((4,), (Dense(4), RELU, Dense(4))))))
    path = write(tmp_path / "w.safetensors", state)
    with pytest.raises(DataError, match="do not tell whether left or right comes first") as error:
        load.load(path, str(spec))
    template = json.loads(re.search(r"\{.*\}", str(error.value))[0])
    assert template == {"left": "dense1", "right": "dense2"}
    (tmp_path / "names.json").write_text(json.dumps(template))
    load.load(path, str(spec), str(tmp_path / "names.json"))


def test_names_without_end_end():
    names = {f"{chr(97 + i)}": ("affine", (4, 4), None) for i in range(26)}
    with pytest.raises(DataError, match="do not tell whether"):
        matching.by_tree(names, list(names.values()), [str(i) for i in range(26)])
    other = [*list(names.values())[:-1], ("affine", (5, 4), None)]
    with pytest.raises(DataError, match="leave too many orders open"):
        matching.by_tree(names, other, [str(i) for i in range(26)])


@given(st.integers(1, 12), st.randoms(use_true_random=False))
def test_blocks_are_found_in_any_order_of_the_file(blocks, random):
    """Of blocks with a convolution and a norm each, all alike."""
    names = [f"body.{k}.{part}" for k in range(blocks) for part in ("conv", "norm")]
    signatures = {name: name.rpartition(".")[2] for name in names}
    shuffled = random.sample(names, len(names))
    found = matching.by_tree({name: signatures[name] for name in shuffled}, [signatures[n] for n in names], names)
    assert found == names


# Widths, norms, masks -------------------------------------------------------------------------------------------------------


def test_widths_of_a_pruned_file_and_other_classes(tmp_path):
    """Inner widths of a ResNet after pruning, and 100 classes; the stream's width is the spec's."""
    module = randomised(ResNet(classes=100))
    for k, layer in enumerate((module.layer1, module.layer2, module.layer3)):
        for b, block in enumerate(layer):
            width = 5 + k + b
            block.conv1 = nn.Conv2d(block.conv1.in_channels, width, 3, block.conv1.stride, 1, bias=False)
            block.bn1 = nn.BatchNorm2d(width)
            block.conv2 = nn.Conv2d(width, block.conv2.out_channels, 3, 1, 1, bias=False)
    state = {name: t for name, t in module.state_dict().items() if "downsample" not in name}
    for ending in ("pt", "safetensors"):
        found = load.load(write(tmp_path / f"w.{ending}", state), "resnet-20")
        assert found.network.output_shape == (100,)
        assert found.network.parameter_shapes["section5.conv1.weight"] == (7, 32, 3, 3)
        assert "widths: those of the file, which are not the spec's" in found.said
        assert (found.params["section9.conv2.weight"] == module.layer3[2].conv2.weight.detach().numpy()).all()


def test_widths_that_fit_nothing_are_named(tmp_path):
    state = {"0.weight": np.ones((5, 4), "f4"), "0.bias": np.ones(5, "f4"), "1.weight": np.ones((2, 3), "f4")}
    (tmp_path / "s.json").write_text(json.dumps(json_form.to_json(Network((4,), (Dense(3), Dense(2, bias=False))))))
    with pytest.raises(DataError, match=r"0.weight has shape \(5, 4\); the network needs \(3, 4\)"):
        load.load(write(tmp_path / "w.pt", state), str(tmp_path / "s.json"))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("tracked", [True, False])
def test_norms_without_gain_or_statistics(tmp_path, affine, tracked):
    module = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3, affine=affine, track_running_stats=tracked))
    network = Network((2, 4, 4), (Conv(3, (1, 1)), BatchNorm(), GlobalAveragePool()))
    (tmp_path / "s.json").write_text(json.dumps(json_form.to_json(network)))
    path = write(tmp_path / "w.pt", module.state_dict())
    if not tracked:
        with pytest.raises(DataError, match=r"keeps no (running_)?mean; a norm" if affine else r"batchnorm1\.gain is missing"):
            load.load(path, str(tmp_path / "s.json"))
        return
    found = load.load(path, str(tmp_path / "s.json"))
    assert (found.params["batchnorm1.gain"] == 1.0).all()
    assert any("1 and 0 taken" in sentence for sentence in found.said) != affine


def test_masks_of_torchs_pruning_are_multiplied_in(tmp_path):
    layer = nn.Linear(6, 4)
    prune.ln_structured(layer, "weight", 0.5, n=1, dim=0)
    prune.l1_unstructured(layer, "bias", 0.5)
    (tmp_path / "s.json").write_text(json.dumps(json_form.to_json(Network((6,), (Dense(4),)))))
    for ending in ("pt", "npz", "safetensors"):
        path = write(tmp_path / f"w.{ending}", nn.Sequential(layer).state_dict())
        found = load.load(path, str(tmp_path / "s.json"))
        assert (found.params["dense1.weight"] == layer.weight.detach().numpy()).all()
        assert (found.params["dense1.bias"] == layer.bias.detach().numpy()).all()
    state = {name: t for name, t in nn.Sequential(layer).state_dict().items() if "weight_mask" not in name}
    with pytest.raises(DataError, match=r"0\.weight_orig: has no mask"):
        load.load(write(tmp_path / "w.pt", state), str(tmp_path / "s.json"))


def test_a_negative_variance_is_no_variance(tmp_path):
    one = np.ones(4, "f4")
    arrays = {"gain": one, "bias": one, "mean": one, "variance": np.array([1, 1, -1, 1], "f4")}
    (tmp_path / "s.json").write_text(json.dumps(json_form.to_json(Network((4, 1, 1), (BatchNorm(), Flatten(), Dense(2))))))
    state = {f"batchnorm1.{k}": v for k, v in arrays.items()}
    state |= {"dense1.weight": np.ones((2, 4), "f4"), "dense1.bias": np.ones(2, "f4")}
    with pytest.raises(DataError, match=r"batchnorm1\.variance: is a running variance and has negative entries"):
        load.load(write(tmp_path / "w.npz", state), str(tmp_path / "s.json"))


def test_the_zoo_is_found_in_its_own_state_dicts(tmp_path):
    """Named by position, as `nn.Sequential` does, sorted and unsorted."""
    from refprune.adapters.pytorch import model
    from refprune.passes.parameters import initial_statistics, initialise
    from refprune.streams import Streams
    from refprune.training.state import ungated

    for name in ("lenet-5", "resnet-20"):
        network = ungated(zoo.build(name, {}))
        params = initialise(network, Streams(0), dtype="float32")
        statistics = {n: s.astype("f4") for n, s in initial_statistics(network).items()}
        module = model.build(network)
        model.load(module, params, statistics)
        for ending in ("pt", "safetensors"):
            (tmp_path / "s.json").write_text(json.dumps(json_form.to_json(network)))
            found = load.load(write(tmp_path / f"w.{ending}", module.state_dict()), str(tmp_path / "s.json"))
            assert all((found.params[n] == params[n]).all() for n in params)
