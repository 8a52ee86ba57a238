"""Networks as data (SPEC N1-N6): JSON, names, shapes, refusals, counts. PyTorch counts independently."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
import torch_network
from hypothesis import given
from torch import nn

from refprune.backend import ORACLE
from refprune.conformance.strategies import networks as ns
from refprune.errors import InputError, SpecError
from refprune.passes.tape import forward
from refprune.spec.json_form import from_json, to_json
from refprune.spec.layers import (
    Activation,
    AveragePool,
    BatchNorm,
    Conv,
    Dense,
    Flatten,
    GlobalAveragePool,
    MaxPool,
    Section,
    SubsamplePad,
    UnitGate,
)
from refprune.spec.network import Loss, Network

# Round trip -------------------------------------------------------------------------------------------------------------


@given(network=ns.networks())
def test_json_is_an_exact_inverse(network):
    """Catches a field that is dropped, a tuple that comes back as a list, a type that is not listed."""
    text = json.dumps(to_json(network), allow_nan=False)
    again = from_json(json.loads(text))
    assert again == network
    assert hash(again) == hash(network)
    assert again.parameter_shapes == network.parameter_shapes


FORMAT = {"format": "refprune-network-1", "input_shape": [3]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"format": "refprune-network-2"}, "format: expected .*'refprune-network-1', got 'refprune-network-2'"),
        ({}, "format: expected .*'refprune-network-1', got None"),
        (FORMAT | {"layers": [{"type": "Dens", "units": 2}]}, "type: 'Dens' is not known; allowed are Dense"),
        (FORMAT | {"layers": [{"units": 2}]}, "type: None is not known"),
        (FORMAT | {"layers": [{"type": "Dense", "name": "head", "unit": 2}]}, "head: .*'unit'"),
        (FORMAT | {"layers": [{"type": "Dense"}]}, "Dense: .*'units'"),
        (FORMAT | {"layers": [{"type": "Dense", "units": "2"}]}, "Dense: units must be of type int, got '2'"),
        (FORMAT | {"layers": [{"type": "Dense", "units": 2}], "depth": 3}, "network: .*'depth'"),
        (FORMAT, "network: .*'layers'"),
        (FORMAT | {"layers": None}, "layers: expected a tuple of layers, got None"),
        (FORMAT | {"layers": [{"type": "Activation", "kind": "swish"}]}, "kind: 'swish' is not known; .*'relu'"),
    ],
)
def test_wrong_json_is_refused(data, message):
    """What is wrong is named; nothing is guessed or ignored."""
    with pytest.raises(SpecError, match=message):
        from_json(data)


MALFORMED = {
    "a list": lambda: from_json([]),
    "a number as a layer": lambda: from_json(FORMAT | {"layers": [1]}),
    "a loss as a layer": lambda: from_json(FORMAT | {"layers": [{"type": "Loss"}]}),
    "half a unit": lambda: from_json(FORMAT | {"layers": [{"type": "Dense", "units": 2.5}]}),
    "no layers on images": lambda: Network((3, 4, 4), ()),
    "negative channels": lambda: Network((2, 4, 4), (Conv(-1, (1, 1)), GlobalAveragePool())),
    "a summand twice": lambda: Network((2,), (Section((Dense(2),), channels=(0, 0)),)),
}


@pytest.mark.parametrize("malformed", MALFORMED)
def test_malformed_networks_are_refused(malformed):
    """Catches an AttributeError or IndexError that no one reads as an input error, and specs that only break later."""
    with pytest.raises(InputError):
        MALFORMED[malformed]()


# Names ------------------------------------------------------------------------------------------------------------------


def test_empty_names_are_filled_in():
    """Kind and running number; inside a section after its name; given names stay."""
    section = Section((Dense(3), Activation(), UnitGate(), Dense(3)), (Dense(3), BatchNorm()))
    network = Network((4,), (Dense(4), Activation("tanh"), section, Section((Dense(3),), name="tail"), Dense(2, name="head")))
    assert [layer.name for layer, _ in network.placed()] == [
        "dense1", "tanh1", "section1", "section1.shortcut.dense1", "section1.shortcut.batchnorm1", "section1.dense1",
        "section1.relu1", "section1.unitgate1", "section1.dense2", "tail", "tail.dense1", "head",
    ]  # fmt: skip
    assert [(g.name, g.kind, g.start, g.stop, g.position) for g in network.gate_groups] == [
        ("section1", "layer", 0, 1, 2), ("section1.unitgate1", "unit", 1, 4, 2), ("tail", "layer", 4, 5, 3),
    ]  # fmt: skip
    assert network.gate_slices["section1.unitgate1"] == slice(1, 4)


def test_names_must_be_unique():
    with pytest.raises(SpecError, match=r"layer names must be unique .*; these occur more than once: a"):
        Network((4,), (Dense(4, name="a"), Dense(4, name="a")))
    with pytest.raises(SpecError, match=r"more than once: dense1"):
        Network((4,), (Dense(4, name="dense1"), Dense(4), Dense(2, name="dense2"), Activation(name="dense1")))
    with pytest.raises(SpecError, match=r"more than once: s\.post"):
        Network((4,), (Section((Dense(4),), post="relu", name="s"), Dense(4, name="s.post")))


@given(network=ns.networks())
def test_names_are_unique_and_key_the_parameters(network):
    names = [layer.name for layer, _ in network.placed()]
    assert len(set(names)) == len(names)
    assert all(names)
    assert {name.rpartition(".")[0] for name in (*network.parameter_shapes, *network.statistics_shapes)} <= set(names)


# Shapes and counts ------------------------------------------------------------------------------------------------------


class _Modules:
    """Counts parameters and statistics of the torch.nn modules that a chain needs, by pushing an example through them."""

    def __init__(self):
        self.parameters = self.statistics = 0

    def module(self, layer, x):
        if isinstance(layer, Dense):
            return nn.Linear(x.shape[1], layer.units, layer.bias)
        if isinstance(layer, Conv):
            kernel = {"stride": layer.stride, "dilation": layer.dilation, "groups": layer.groups, "bias": layer.bias}
            (top, bottom), (left, right) = layer.padding
            return nn.Sequential(
                nn.ZeroPad2d((left, right, top, bottom)), nn.Conv2d(x.shape[1], layer.channels, layer.kernel, **kernel)
            )
        if isinstance(layer, BatchNorm):
            return (nn.BatchNorm2d if x.ndim == 4 else nn.BatchNorm1d)(x.shape[1])
        return None

    def run(self, layers, x):
        for layer in layers:
            if isinstance(layer, Section):
                shortcut = self.run(layer.shortcut, x)
                self.run(layer.path, x)
                x = shortcut
            elif (module := self.module(layer, x)) is not None:
                self.parameters += sum(p.numel() for p in module.parameters())
                self.statistics += sum(b.numel() for b in module.buffers() if b.ndim)
                x = module.eval()(x)
            elif not isinstance(layer, UnitGate):
                x = alone(layer, x)
        return x


def alone(layer, x):
    """One layer without parameters in PyTorch; torch_network.run reads the network's layers only."""
    gates = torch.ones(x.shape[1] if isinstance(layer, UnitGate) else 0)
    return torch_network.run(SimpleNamespace(layers=(layer,)), {}, gates, x, train=False)[0]


def parameters(network):
    return sum(math.prod(shape) for shape in network.parameter_shapes.values())


def macs(network):
    return sum(layer.macs(shape) for layer, shape in network.placed())


@given(case=ns.cases(gates=("ones",)))
def test_shapes_and_counts_against_torch(case):
    """Catches a wrong size in shape inference, parameters, statistics or MACs."""
    network = case.network
    with torch.no_grad():
        modules = _Modules()
        output = modules.run(network.layers, torch.zeros((2, *network.input_shape)))
    assert tuple(output.shape[1:]) == network.output_shape
    assert modules.parameters == parameters(network)
    assert modules.statistics == sum(math.prod(s) for s in network.statistics_shapes.values())
    seen = {}
    tape = forward(network, ORACLE, case.params, case.x, statistics=case.statistics, train=case.train, observe=seen.__setitem__)
    *_, multiplications = torch_network.evaluate(
        network, case.params, case.gates, case.x, case.target, statistics=case.statistics, train=case.train
    )
    assert macs(network) == multiplications == tape.macs // case.batch
    for layer, shape in network.placed():
        assert seen[layer.name].shape[1:] == layer.output_shape(shape), layer


def lenet5():
    convolutions = (Conv(20, (5, 5)), MaxPool((2, 2), (2, 2)), Conv(50, (5, 5)), MaxPool((2, 2), (2, 2)))
    return Network((1, 28, 28), (*convolutions, Flatten(), Dense(500), Activation(), Dense(10)))


def resnet50(*, stride_in_first):
    """ImageNet's ResNet-50: convolutions without bias, batch-norm behind each, option B where a stage begins."""

    def conv(channels, k, stride=1):
        return Conv(channels, (k, k), (stride, stride), ((k // 2, k // 2),) * 2, bias=False), BatchNorm()

    relu = (Activation(),)
    layers = [*conv(64, 7, 2), *relu, MaxPool((3, 3), (2, 2), ((1, 1), (1, 1)))]
    for width, blocks, stage_stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            stride = stage_stride if block == 0 else 1
            first, second = (stride, 1) if stride_in_first else (1, stride)
            path = (*conv(width, 1, first), *relu, *conv(width, 3, second), *relu, *conv(4 * width, 1))
            layers.append(Section(path, conv(4 * width, 1, stride) if block == 0 else (), post="relu"))
    return Network((3, 224, 224), (*layers, GlobalAveragePool(), Dense(1000)))


@pytest.mark.parametrize(
    ("network", "counts"),
    [
        (Network((784,), (Dense(300), Activation(), Dense(100), Activation(), Dense(10))), (266_610, 266_200)),
        (lenet5(), (431_080, 2_293_000)),
        (resnet50(stride_in_first=False), (25_557_032, 4_089_184_256)),
        (resnet50(stride_in_first=True), (25_557_032, 3_857_973_248)),
    ],
    ids=["LeNet-300-100", "LeNet-5", "ResNet-50, stride in the 3x3", "ResNet-50, stride in the 1x1"],
)
def test_published_counts(network, counts):
    """N6."""
    assert (parameters(network), macs(network)) == counts


# Refusals ---------------------------------------------------------------------------------------------------------------

IMAGE, PIXEL = (2, 4, 4), (1, 1)
END = (GlobalAveragePool(), Dense(2))


def conv(channels=2, **options):
    return Conv(channels, PIXEL, **options)


@pytest.mark.parametrize(
    ("shape", "layers", "message"),
    [
        # shapes that do not meet
        (IMAGE, (Dense(2),), r"dense1: dense layers need vectors, got shape \(2, 4, 4\); put Flatten"),
        ((4,), (conv(),), r"conv1: needs images of shape \(channels, height, width\), got \(4,\)"),
        ((4,), (MaxPool(PIXEL, PIXEL),), r"maxpool1: needs images .* got \(4,\)"),
        ((4,), (Flatten(),), r"flatten1: needs images .* got \(4,\)"),
        ((4,), (GlobalAveragePool(),), r"globalaveragepool1: needs images .* got \(4,\)"),
        (IMAGE, (conv(),), r"conv1: the network must end with a vector, got shape \(2, 4, 4\)"),
        (IMAGE, (Conv(2, (5, 3)), *END), r"conv1: kernel extent 5 exceeds the padded height 4 of \(2, 4, 4\)"),
        (IMAGE, (Conv(2, (1, 3), dilation=(1, 2)), *END), r"conv1: kernel extent 5 exceeds the padded width 4"),
        (IMAGE, (Conv(2, (0, 1)), *END), r"conv1: kernel \(0, 1\), .*: padding must be ≥ 0, all else ≥ 1"),
        (IMAGE, (conv(stride=(0, 1)), *END), r"conv1: .*stride \(0, 1\)"),
        (IMAGE, (conv(padding=((0, -1), (0, 0))), *END), r"conv1: .*padding \(\(0, -1\), \(0, 0\)\): padding must be ≥ 0"),
        (IMAGE, (MaxPool((2, 2), (1, 1), ((2, 0), (0, 0))), *END), r"maxpool1: padding .* smaller than the kernel \(2, 2\)"),
        (IMAGE, (conv(3, groups=2), *END), r"conv1: groups 2 must divide 2 inputs and 3 outputs"),
        (IMAGE, (conv(groups=0), *END), r"conv1: groups 0 must divide"),
        ((4,), (Dense(-1),), r"dense1: units must be ≥ 0, got -1"),
        (IMAGE, (SubsamplePad((0, 1)), *END), r"subsamplepad1: stride \(0, 1\), .*: stride must be ≥ 1"),
        # sections: channels, shortcut, gate place
        ((4,), (Section((Dense(3),)),), r"section1: the path ends with shape \(3,\), the shortcut with \(4,\)"),
        (IMAGE, (Section((conv(stride=(2, 2)),)), *END), r"section1: the path ends with shape \(2, 2, 2\), .* \(2, 4, 4\)"),
        ((4,), (Section((Dense(3),), channels=(0, 1)),), r"section1: the path ends with shape \(3,\), .* \(4,\)"),
        ((4,), (Section((Dense(2),), channels=(0, 4)),), r"section1: channels \(0, 4\) must be different channels"),
        ((4,), (Section((Dense(2),), channels=(-1, 0)),), r"section1: channels \(-1, 0\) must be different channels"),
        ((4,), (Section((Activation(),)),), r"section1: a gate on nothing: the path holds no dense or convolution"),
        ((4,), (Section(()),), r"section1: a gate on nothing"),
        ((4,), (Section((Dense(4),), (Activation(),)),), r"section1: shortcut \(Activation\) is neither identity, option A"),
        ((4,), (Section((Dense(4),), (Dense(4), UnitGate())),), r"section1: shortcut \(Dense, UnitGate\) is neither"),
        ((4,), (Section((Dense(4),), gate_place="preactivation"),), r"section1: gate_place 'preactivation' needs a path that"),
        ((4,), (Section((Dense(4), Activation("sigmoid")), gate_place="preactivation"),), r"section1: .* a\(0\) = 0"),
        ((4,), (Section((Dense(4), Section((Dense(4),)))),), r"section1: sections cannot be nested"),
        # unit gates
        ((4,), (UnitGate(), Dense(2)), r"unitgate1: a gate on nothing: no dense or convolution layer makes these units"),
        (IMAGE, (conv(), Flatten(), UnitGate(), Dense(2)), r"unitgate1: a gate on nothing: flatten1 \(Flatten\)"),
        ((4,), (Section((Dense(4),)), UnitGate(), Dense(2)), r"unitgate1: a gate on nothing: section1 \(Section\)"),
        ((4,), (Dense(4), UnitGate(), Section((Dense(4),)), Dense(2)), r"unitgate1: gates the input of section section1"),
        ((4,), (Dense(4), UnitGate(), Activation(), UnitGate(), Dense(2)), r"unitgate1: .* a second gate, unitgate2"),
        ((4,), (Dense(4), UnitGate(), BatchNorm(), Dense(2)), r"unitgate1: a pruned unit would leak through batchnorm1"),
        ((4,), (Dense(4), UnitGate(), Activation("sigmoid"), Dense(2)), r"unitgate1: .* leak through sigmoid1 \(Activation\)"),
        ((4,), (Section((Dense(4), UnitGate(), BatchNorm())), Dense(2)), r"section1.unitgate1: .* leak through section1.batch"),
        ((4,), (Dense(4), UnitGate()), r"unitgate1: gates the network's output; no layer reads these units"),
        (IMAGE, (conv(4, groups=2), UnitGate(), *END), r"unitgate1: conv1 has 2 groups; units of grouped conv"),
        (IMAGE, (conv(), UnitGate(), conv(groups=2), *END), r"unitgate1: conv2 has 2 groups"),
    ],
)
def test_impossible_networks_are_refused(shape, layers, message):
    """Each message names the layer and what does not fit; catches specs that would only fail, or lie, when run."""
    with pytest.raises(SpecError, match=message):
        Network(shape, layers)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Activation("swish"), "kind: 'swish' is not known; allowed are 'identity', 'relu'"),
        (lambda: Activation(at_zero=1.5), r"at_zero: must lie in \[0, 1\], got 1.5"),
        (lambda: BatchNorm(momentum_of="old"), "momentum_of: 'old' is not known; allowed are 'batch', 'running'"),
        (lambda: BatchNorm(running_variance="n"), "running_variance: 'n' is not known; allowed are 'unbiased', 'biased'"),
        (lambda: MaxPool(PIXEL, PIXEL, ties="share"), "ties: 'share' is not known; allowed are 'first', 'last'"),
        (lambda: Section((Dense(2),), gate_place="input"), "gate_place: 'input' is not known"),
        (lambda: Section((Dense(2),), post="tanh"), "post: 'tanh' is not known; allowed are 'identity', 'relu'"),
        (lambda: Loss("hinge"), "loss kind: 'hinge' is not known"),
        (lambda: Loss("cross_entropy", "batch_mean"), "loss reduction: 'batch_mean' is not known; allowed are 'mean', 'sum'"),
    ],
)
def test_unknown_conventions_are_refused(make, message):
    """Every convention is named, and its allowed values are listed."""
    with pytest.raises(SpecError, match=message):
        make()


# Which activations keep 0 and the sign ----------------------------------------------------------------------------------


@given(case=ns.cases(limit=1))
def test_what_a_spec_says_of_zero_and_sign_is_true(case):
    """keeps_zero and keeps_sign decide what may be pruned: catches a claim that the layer breaks."""
    for layer, shape in case.network.placed():
        if isinstance(layer, Section) or not (layer.keeps_zero() or layer.keeps_sign()):
            continue
        if layer.keeps_zero():
            assert not alone(layer, torch.zeros((2, *shape))).any(), layer
        if layer.keeps_sign():
            assert (alone(layer, torch.tensor(case.uniform("positive", (2, *shape)))) >= 0.0).all(), layer


@pytest.mark.parametrize("pool", [AveragePool, MaxPool])
def test_a_gate_may_stand_before_a_pool_and_a_flatten(pool):
    """N4: the block of columns that one unit owns is H·W behind the pool."""
    network = Network((2, 4, 6), (conv(3), UnitGate(), pool((2, 2), (2, 2)), Flatten(), Dense(2)))
    links = network.unit_links["unitgate1"]
    assert (links.producer, links.consumer, links.block) == ("conv1", "dense1", 6)
