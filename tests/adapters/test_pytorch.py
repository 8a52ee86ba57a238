"""The PyTorch adapter against refprune, in float64 with measured tolerances (E2)."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from network_comparison import assert_tensors
from torch_network import odd_network

from refprune.adapters.pytorch import model
from refprune.adapters.pytorch.implementation import TorchImplementation
from refprune.backend import ORACLE
from refprune.conformance import campaign
from refprune.conformance.asking.calls import InProcess
from refprune.conformance.asking.methods import in_precision
from refprune.conformance.judging.verdicts import judge
from refprune.conformance.levels import METHODS
from refprune.conformance.levels.networks import batch_of
from refprune.conformance.strategies import networks
from refprune.errors import InputError
from refprune.passes.batch_loss import BatchLoss
from refprune.passes.parameters import initialise
from refprune.rounding import tolerance
from refprune.rounding.noise import noisy, widened
from refprune.rounding.tolerance import INJECTED, NETWORK_FACTOR, UNIT, network_tolerance, smallest_normal
from refprune.spec import zoo
from refprune.spec.json_form import to_json
from refprune.spec.layers import Activation, AveragePool, BatchNorm, Dense, GlobalAveragePool, MaxPool
from refprune.spec.network import Network
from refprune.streams import Streams
from refprune.training import config
from refprune.training.state import initial_state, ungated
from refprune.training.step import train_step

U = UNIT["float64"]


NETWORKS = {
    "lenet-300-100": lambda: zoo.build("lenet-300-100", {}),
    "lenet-5": lambda: zoo.build("lenet-5", {}),
    "residual-lenet": lambda: zoo.build("residual-lenet", {"sections": 4}),
    "vgg-16": lambda: zoo.build("vgg-16", {"width": 4}),
    "resnet-20": lambda: zoo.build("resnet-20", {"width": 2, "gates": True}),
    "resnet-8 option B": lambda: zoo.resnet_cifar(8, width=3, shortcut="B"),
    "odd": odd_network,
}


@functools.cache
def case(name):
    """A network with random parameters and statistics, eight images and labels."""
    network = NETWORKS[name]()
    streams = Streams(5)
    params = {n: p + 0.1 * streams.normal(f"shift/{n}", 0, p.shape) for n, p in initialise(network, streams).items()}
    statistics = {n: 0.5 + streams.uniform(n, 0, shape) for n, shape in network.statistics_shapes.items()}
    x = streams.normal("x", 0, (8, *network.input_shape))
    return BatchLoss(network, ORACLE, params, x, np.arange(8) % network.output_shape[0], statistics)


def module_of(loss):
    return model.load(model.build(loss.network), loss.params, loss.statistics)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", NETWORKS)
def test_output_and_gradients_are_refprunes(name, training):
    loss = dataclasses.replace(case(name), train=training)
    gates = np.ones(loss.network.gate_count)
    evaluation = loss.evaluate(gates)
    mine = {"loss": evaluation.loss, "output": evaluation.tape.output} | loss.gradients(evaluation).params
    module = module_of(loss).train(training)
    output = module(torch.tensor(loss.x))
    value = torch.nn.functional.cross_entropy(output, torch.tensor(loss.target))
    value.backward()
    found = {"loss": value.detach().numpy(), "output": output.detach().numpy()} | model.gradients(module)
    t = network_tolerance(loss, gates, unit=U)
    assert_tensors(found, mine, {"loss": t.loss, "output": t.output} | t.params, network=loss.network)


def spread(f, runs=3):
    """E2 for f(backend) → {name: array}: NETWORK_FACTOR times the largest deviation that rounding noise causes."""
    base, worst = f(ORACLE), {}
    for seed in range(runs):
        for name, value in f(noisy(ORACLE, unit=INJECTED, rng=np.random.default_rng(seed))).items():
            worst[name] = max(worst.get(name, 0.0), float(np.max(np.abs(value - base[name]))))
    size = {name: float(np.max(np.abs(value))) for name, value in base.items()}
    return base, {name: NETWORK_FACTOR * (w * U / INJECTED + U * size[name]) + smallest_normal(U) for name, w in worst.items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_two_sgd_steps_are_refprunes(name):
    """Parameters and running statistics after two steps of torch.optim.SGD with momentum."""
    loss = case(name)
    network = ungated(loss.network)
    rules = config.from_dict(
        {"training": {"batch_size": 8, "dtype": "float64"}, "optimiser": {"learning_rate": 0.05, "momentum": 0.8}}
    )
    start = dataclasses.replace(initial_state(rules, network), params=dict(loss.params), statistics=dict(loss.statistics))

    def steps(backend):
        state = start
        for _ in range(2):
            state, _ = train_step(state, loss.x, loss.target, rules, backend, training_images=8)
        return state.params | state.statistics

    module = module_of(dataclasses.replace(loss, network=network))
    sgd = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.8)
    for _ in range(2):
        sgd.zero_grad()
        torch.nn.functional.cross_entropy(module(torch.tensor(loss.x)), torch.tensor(loss.target)).backward()
        sgd.step()
    mine, tolerance = spread(steps)
    assert_tensors(model.arrays(module), mine, tolerance, network=network)


def test_arrays_come_back_as_they_went_in():
    loss = case("resnet-8 option B")
    narrow = {n: p.astype(np.float32) for n, p in (loss.params | loss.statistics).items()}
    params = {n: narrow[n] for n in loss.params}
    module = model.load(model.build(loss.network), params, {n: narrow[n] for n in loss.statistics})
    back = model.arrays(module)
    assert list(back) == [*loss.network.parameter_shapes, *loss.network.statistics_shapes]
    for name, array in back.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, narrow[name])
    assert sum(p.numel() for p in module.parameters()) == sum(p.size for p in loss.params.values())


def test_a_planted_mistake_is_seen():
    """The same comparison as above, with one weight of the module off by a part in a million."""
    loss = case("lenet-5")
    module = module_of(loss).eval()
    with torch.no_grad():
        module.parts["conv2"].weight[0, 0, 0, 0] *= 1.000001
    want = dataclasses.replace(loss, train=False).evaluate(np.zeros(0)).tape.output
    t = network_tolerance(dataclasses.replace(loss, train=False), np.zeros(0), unit=U)
    with pytest.raises(AssertionError, match="output"):
        assert_tensors({"output": module(torch.tensor(loss.x)).detach().numpy()}, {"output": want}, {"output": t.output})


@pytest.mark.parametrize("name", NETWORKS)
def test_branches_are_the_oracles(name):
    """Signs before every ReLU, choices of every max pool: overlapping, padded on one side, behind batch-norm."""
    loss = case(name)
    ones = np.ones(loss.network.gate_count)
    arrays = {"params": loss.params, "statistics": loss.statistics or {}, "x": loss.x, "target": loss.target, "gates": ones}
    found = TorchImplementation().network(to_json(loss.network), **arrays, train=True)
    want = loss.evaluate(ones).tape.branches
    assert found["branches"].keys() == want.keys()
    for layer, branch in want.items():
        np.testing.assert_array_equal(found["branches"][layer].numpy(), branch)


class Leaking(TorchImplementation):
    """A sixteenth of the gradient goes past the gate."""

    def gate(self, x, g, dy):
        y, dx, dg = super().gate(x, g, dy)
        return y, dx + self.tensor(dy) / 16, dg


def in_bfloat16(mine, method):
    """The outcome of fifteen examples."""
    mine.precision = "bfloat16"
    (outcome,) = campaign.run(InProcess(mine), [METHODS[method]], 15, 0)
    return outcome


@pytest.mark.parametrize("method", ["dense", "gate", "batch_norm", "network", "training_steps", "theta_gradient"])
def test_bfloat16_conforms(method):
    outcome = in_bfloat16(TorchImplementation(), method)
    assert outcome.verdict == "conforms", outcome.findings


def test_a_mistake_that_is_coarser_than_bfloat16_is_found(monkeypatch):
    monkeypatch.setattr(campaign, "SHRINKING", 1.0)
    outcome = in_bfloat16(Leaking(), "gate")
    assert outcome.verdict == "DEVIATES"
    assert outcome.findings[0].first.name == "dx"


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((MaxPool((2, 2), (2, 2), ties="last"),), "maxpool1: PyTorch's max pool takes the first of ties, not the last"),
        ((Activation(at_zero=0.5),), "relu1: PyTorch's subgradient at 0 .* at_zero is 0.5"),
        ((BatchNorm(running_variance="biased"),), "batchnorm1: .* no running_variance 'biased'"),
        ((AveragePool((2, 2), (1, 1), ((1, 0), (0, 0)), count_padding=False),), "averagepool1: .* that does not count"),
    ],
)
def test_what_pytorch_has_no_layer_for_is_refused(layers, message):
    with pytest.raises(InputError, match=message):
        model.build(Network((2, 4, 4), (*layers, GlobalAveragePool())))


def test_in_bfloat16_products_of_roundings_count(monkeypatch):
    """Behind two batch-norms of two examples a gradient is 0 to first order, and so is its noise; PyTorch's is not."""
    path = (Dense(1, False), BatchNorm(), Dense(1, False), BatchNorm(), Activation("tanh"), Dense(3))
    network, mine = Network((4,), path), TorchImplementation()
    mine.precision = "bfloat16"
    u = UNIT["bfloat16"]

    def verdict(seed):
        drawn = networks.Case(network, batch=2, seed=seed, train=True)
        arguments = in_precision(batch_of(drawn) | {"gates": np.zeros(0), "train": True}, "bfloat16")
        answer = InProcess(mine).call(METHODS["network"], arguments, twice=False).answer
        return judge(METHODS["network"].expect(widened(arguments), u), answer, u).kind

    assert {verdict(seed) for seed in range(30)} == {"conforms"}
    monkeypatch.setattr(tolerance, "COARSE", 1.0)
    assert "deviates" in {verdict(seed) for seed in range(30)}


class OneByOne(TorchImplementation):
    """Every argument of `training_steps` by its own name, as an adapter may have it."""

    def training_steps(
        self, spec, params, statistics, theta, x, target, gates,
        learning_rate, momentum, weight_decay, theta_learning_rate, beta, estimator,
    ):  # fmt: skip
        rates = {"learning_rate": learning_rate, "momentum": momentum, "weight_decay": weight_decay}
        rates |= {"theta_learning_rate": theta_learning_rate, "beta": beta}
        arrays = {"params": params, "statistics": statistics, "theta": theta, "x": x, "target": target, "gates": gates}
        return super().training_steps(spec=spec, **arrays, estimator=estimator, **rates)


def test_an_adapter_may_take_the_rates_one_by_one():
    (outcome,) = campaign.run(InProcess(OneByOne()), [METHODS["training_steps"]], 10, 0)
    assert outcome.verdict == "conforms", outcome.findings
