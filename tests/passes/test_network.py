"""The whole network: loss, output and all gradients against PyTorch, the complex step, and its own contract (SPEC N1-N5, G).

Cases are drawn in `refprune.conformance`, PyTorch's side stands in torch_network.py; tolerances are measured (E2).
"""

import dataclasses

import numpy as np
import pytest
import torch
import torch_network
from hypothesis import given, settings
from network_comparison import assert_tensors, bounds, closed_sections, part_names, tensors
from tolerance import SIDES, assert_close, assert_identical, gamma

from refprune.backend import ORACLE
from refprune.conformance.strategies import networks as ns
from refprune.errors import InputError
from refprune.passes.batch_loss import BatchLoss
from refprune.passes.parameters import initial_statistics, initialise
from refprune.passes.statistics import average_statistics, update_statistics
from refprune.passes.tape import backward, forward
from refprune.spec.layers import Activation, BatchNorm, Conv, Dense, Flatten, GlobalAveragePool, MaxPool, Section, UnitGate
from refprune.spec.network import Loss, Network
from refprune.streams import Streams

COMPLEX_STEP_LIMIT = 1e-12
U = 2.0**-53


# Against PyTorch --------------------------------------------------------------------------------------------------------


def check_against_torch(case, backend=ORACLE):
    """Loss, output, gradients of weights, gates and input, batch statistics and MACs agree."""
    loss = dataclasses.replace(case.loss, backend=backend)
    got, evaluation = tensors(loss, case.gates)
    want, moments, macs = torch_network.evaluate(
        case.network, case.params, case.gates, case.x, case.target, statistics=case.statistics, train=case.train
    )
    assert_tensors(got, want, bounds(case.loss, case.gates), case=case)
    assert evaluation.tape.macs == macs * case.batch
    closed = set().union(*(part_names(s.path) for s in closed_sections(case)))
    assert set(evaluation.tape.batch_statistics) == set(moments) - closed
    for name, (_, _, count) in evaluation.tape.batch_statistics.items():
        assert count == moments[name][2]


@given(case=ns.cases(gates=ns.GATES))
def test_network_against_torch(case):
    """Catches any wrong formula, wiring or gate place, in train and eval mode, for 0/1 and fractional gates."""
    check_against_torch(case)


@given(case=ns.cases(image=True, norm=True, unit_gates=True, train=True))
def test_convolutional_network_with_norms_and_unit_gates_against_torch(case):
    """The same where most is wired up: images, batch statistics, unit gates."""
    check_against_torch(case)


@given(case=ns.cases(gates=ns.GATES))
def test_vjp_of_a_random_cotangent_against_torch(case):
    """Catches a backward pass that is right for the loss's own (special: sums to 0) cotangent only.

    Σ(y − t)² with t = y − dy/2 has the gradient dy, which gives the tolerance.
    """
    tape = case.loss.evaluate(case.gates, run_closed=True).tape
    dy = case.normal("cotangent", tape.output.shape)
    gradients = backward(tape, dy, input_gradient=True)
    got = {"gates": gradients.gates, "input": gradients.input} | gradients.params
    want, *_ = torch_network.evaluate(
        case.network, case.params, case.gates, case.x, case.target,
        statistics=case.statistics, train=case.train, cotangent=dy,
    )  # fmt: skip
    squared = dataclasses.replace(case.network, loss=Loss("mean_squared_error", "sum"))
    loss = dataclasses.replace(case.loss, network=squared, target=tape.output - dy / 2.0)
    assert_tensors(got, {name: want[name] for name in got}, bounds(loss, case.gates), case=case)


#: A network with everything that a mistake of the backend or the wiring could hide in.
EVERYTHING = ns.Case(
    Network(
        (2, 6, 5),
        (
            Conv(4, (3, 3), padding=((1, 1), (1, 1))),
            BatchNorm(),
            Activation("leaky_relu"),
            UnitGate(),
            MaxPool((2, 2), (2, 2)),
            Conv(3, (1, 1), bias=False),
            Section((Conv(3, (3, 3), padding=((1, 1), (1, 1))), Activation("tanh"), UnitGate(), Conv(2, (1, 1))),
                    post="relu", channels=(2, 0)),
            Section((Conv(4, (1, 1)), BatchNorm(), Activation("relu")), (Conv(4, (1, 1)), BatchNorm()),
                    gate_place="preactivation"),
            Flatten(),
            Dense(3),
        ),
    ),
    batch=4, seed=7, train=True, gate_kind="fractional",
)  # fmt: skip


def _scaled(name, factor, which=0):
    """The VJP `name` with one of its results scaled."""

    def mutant(saved, dy, **options):
        results = list(getattr(ORACLE, name)(saved, dy, **options))
        results[which] = None if results[which] is None else results[which] * factor
        return tuple(results)

    return {name: mutant}


NETWORK_MISTAKES = {
    "gate's own gradient halved": _scaled("gate_vjp", 0.5, 1),
    "gate's own gradient with the wrong sign": _scaled("gate_vjp", -1.0, 1),
    "gate not applied backward": {"gate_vjp": lambda s, dy: (dy, ORACLE.gate_vjp(s, dy)[1])},
    "gate not applied forward": {"gate": lambda x, g: (x, ORACLE.gate(x, g)[1])},
    "path gets no gradient": _scaled("add_vjp", 0.0, 1),
    "batch statistics are constants": {"batch_norm_vjp": ORACLE.batch_norm_eval_vjp},
    "gradient of the input off by 1e-9": _scaled("conv2d_vjp", 1.0 + 1e-9, 0),
    "summands on the first channels": {"add": lambda s, p, *, channels: ORACLE.add(s, p, channels=channels and (0, 1))},
}


def test_everything_is_right():
    check_against_torch(EVERYTHING)


@pytest.mark.parametrize("mistake", NETWORK_MISTAKES)
def test_planted_mistakes_are_caught(mistake):
    """Tests the test: each mistake changes one function of the backend."""
    with pytest.raises(AssertionError):
        check_against_torch(EVERYTHING, dataclasses.replace(ORACLE, **NETWORK_MISTAKES[mistake]))


# Complex step -----------------------------------------------------------------------------------------------------------


def complex_step(case, step):
    """(Im c(W + ih·dW, ξ + ih·dξ, x + ih·dx)/h, the directions by name) along one random direction of everything."""
    directions = {
        name: case.normal(f"direction {name}", a.shape)
        for name, a in (case.params | {"gates": case.gates, "input": case.x}).items()
    }
    params = {name: p + 1j * step * directions[name] for name, p in case.params.items()}
    x, gates = case.x + 1j * step * directions["input"], case.gates + 1j * step * directions["gates"]
    loss = dataclasses.replace(case.loss, params=params, x=x)
    return loss.evaluate(gates).loss.imag / step, directions


def check_complex_step(case, step=1e-200):
    # 1e-200, not 1e-100: a closed gate makes exact zeros, 0·z, whose real part gets −h² dξ dz; with h = 1e-100 that is
    # −1e-200 ≠ 0 and a ReLU behind it takes another branch than at 0; with 1e-200 it underflows to 0.
    derivative, directions = complex_step(case, step)
    gradients, _ = tensors(case.loss, case.gates)
    products = np.concatenate([(gradients[name] * d).reshape(-1) for name, d in directions.items()])
    error, size = abs(derivative - products.sum()), np.abs(products).sum()
    assert error <= COMPLEX_STEP_LIMIT * size, f"complex step {derivative!r}, gradient {products.sum()!r}, {error / size:.2g}"


@given(case=ns.cases(gates=ns.GATES))
def test_complex_step_along_a_random_direction(case):
    """Catches a gradient that PyTorch and the oracle have wrong in the same way; needs no second implementation."""
    check_complex_step(case)


def test_a_step_of_1e_100_flips_the_relu_behind_a_closed_gate():
    """Why the step is 1e-200: ξ = 0 and a ReLU that reads s + ξ·path = 0 exactly (at_zero makes its branch visible)."""
    section = Section((Dense(2), Activation("relu", at_zero=0.5)), gate_place="preactivation")
    case = ns.Case(Network((2,), (section, Dense(2))), batch=3, seed=1, train=True, gate_kind="zeros")
    check_complex_step(case)
    with pytest.raises(AssertionError, match="complex step"):
        check_complex_step(case, step=1e-100)


def test_the_two_gate_places_differ():
    """N1's ξ·a(z) and N2's a(ξ·z) agree at ξ ∈ {0, 1}, not between; and not in ∂/∂ξ at 0 (taylor depends on it)."""

    def run(place, xi):
        section = Section((Dense(1, bias=False), Activation("tanh")), gate_place=place)
        net = Network((1,), (section,), Loss("mean_squared_error"))
        params = {"section1.dense1.weight": np.array([[2.0]])}
        loss = BatchLoss(net, ORACLE, params, np.array([[0.75]]), np.array([[0.0]]))
        evaluation = loss.evaluate(np.array([xi]), run_closed=True)
        return float(evaluation.tape.output[0, 0]), backward(evaluation.tape, np.ones((1, 1))).gates[0]

    for xi in (0.0, 1.0):
        assert run("path", xi)[0] == run("preactivation", xi)[0] == 0.75 + xi * np.tanh(1.5)
    assert run("path", 0.5)[0] != run("preactivation", 0.5)[0]
    assert run("path", 0.0)[1] == np.tanh(1.5)
    assert run("preactivation", 0.0)[1] == 1.5


# Closed means inert (N3, N4) --------------------------------------------------------------------------------------------


@given(case=ns.cases())
def test_closed_sections_are_inert(case):
    """N3: h = ρ(s(h)), zero gradients of all weights in the path; catches gradient leaks and a path that still adds."""
    for run_closed in (False, True):
        outputs = {}
        tape = forward(
            case.network, ORACLE, case.params, case.x, case.gates,
            statistics=case.statistics, train=case.train, run_closed=run_closed, observe=outputs.__setitem__,
        )  # fmt: skip
        gradients = backward(tape, case.normal("dy", tape.output.shape))
        for section in closed_sections(case):
            i = case.network.layers.index(section)
            before = outputs[case.network.layers[i - 1].name] if i else case.x
            shortcut = outputs[section.shortcut[-1].name] if section.shortcut else before
            want = np.maximum(shortcut, 0.0) if section.post == "relu" else shortcut
            assert_identical(section.name, outputs[section.name], want)
            for name, gradient in gradients.params.items():
                if name.rpartition(".")[0] in part_names(section.path):
                    assert not gradient.any(), f"{name} gets a gradient behind a closed gate"


@given(case=ns.cases())
def test_skipping_closed_paths_changes_nothing(case):
    """Catches a skipped path that mattered: everything but ∂c/∂ξ of the closed gates is the same, bit for bit."""
    skipped, fast = tensors(case.loss, case.gates, run_closed=False)
    computed, full = tensors(case.loss, case.gates, run_closed=True)
    shut = np.zeros(case.gates.shape, dtype=bool)
    for section in closed_sections(case):
        shut[case.network.gate_slices[section.name]] = True
        for part in section.path:
            if part.name in case.network.gate_slices:
                shut[case.network.gate_slices[part.name]] = True
    for name in skipped.keys() - {"gates"}:
        assert_identical(name, skipped[name], computed[name])
    assert_identical("gates", skipped["gates"][~shut], computed["gates"][~shut])
    assert not skipped["gates"][shut].any()
    assert fast.tape.macs <= full.tape.macs
    assert set(fast.tape.batch_statistics) == set(full.tape.batch_statistics)
    for name, (mean, variance, count) in fast.tape.batch_statistics.items():
        assert_identical(name, np.stack([mean, variance]), np.stack(full.tape.batch_statistics[name][:2]))
        assert count == full.tape.batch_statistics[name][2]


def test_closed_sections_keep_their_running_statistics():
    """N4: catches an update from a path that was computed only for ∂c/∂ξ; the shortcut's norm is updated."""
    section = Section((Dense(2), BatchNorm()), (Dense(2), BatchNorm()))
    case = ns.Case(Network((3,), (section, Dense(2))), batch=4, seed=5, train=True, gate_kind="zeros")
    for run_closed in (False, True):
        tape = case.loss.evaluate(case.gates, run_closed=run_closed).tape
        updated = update_statistics(case.network, case.statistics, tape.batch_statistics)
        changed = {name for name in updated if (updated[name] != case.statistics[name]).any()}
        assert changed == {f"section1.shortcut.batchnorm1.{key}" for key in ("mean", "variance")}


# Running statistics -----------------------------------------------------------------------------------------------------


def _norm_network(norm, image):
    layers = (norm, GlobalAveragePool()) if image else (norm,)
    return Network((3, 4, 2) if image else (3,), layers, Loss("mean_squared_error"))


def _moments_of(network, x):
    params = initialise(network, Streams(0))
    return forward(network, ORACLE, params, x, train=True).batch_statistics


def _statistics_bounds(batches, start):
    """γ_m times the sums of absolute values: n terms each, a handful of roundings per batch."""
    n = sum(x.size // x.shape[1] for x in batches)
    axes = [(0, *range(2, x.ndim)) for x in batches]
    size = max(np.abs(x).mean(axis=a).max() for x, a in zip(batches, axes, strict=True)) + np.abs(start).max() + 1.0
    square = max((4.0 * np.square(x)).mean(axis=a).max() for x, a in zip(batches, axes, strict=True)) + size**2
    return SIDES * gamma(2 * n + 10, U) * size, SIDES * gamma(4 * n + 10, U) * 2.0 * square


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("convention", ["torch", "keep the old", "biased"])
def test_running_statistics_against_torch(convention, image):
    """Catches momentum on the wrong side and a biased variance in the average, over three batches of unequal size."""
    norm = {
        "torch": BatchNorm(momentum=0.1),
        "keep the old": BatchNorm(momentum=0.9, momentum_of="running"),
        "biased": BatchNorm(momentum=0.1, running_variance="biased"),
    }[convention]
    network = _norm_network(norm, image)
    kind = torch.nn.BatchNorm2d if image else torch.nn.BatchNorm1d
    theirs = kind(3, momentum=0.1, dtype=torch.float64)
    mine = initial_statistics(network)
    batches = [Streams(3).normal("x", step, (n, *network.input_shape)) * 2.0 + 1.0 for step, n in enumerate((2, 5, 3))]
    variance = torch.ones(3, dtype=torch.float64)  # PyTorch cannot keep the biased one: written out
    for x in batches:
        mine = update_statistics(network, mine, _moments_of(network, x))
        t = torch.tensor(x)
        theirs(t)
        variance = 0.9 * variance + 0.1 * t.transpose(0, 1).flatten(1).var(1, unbiased=False)
    want = variance if convention == "biased" else theirs.running_var
    mean_bound, variance_bound = _statistics_bounds(batches, 1.0)
    assert_close("mean", mine["batchnorm1.mean"], theirs.running_mean.numpy(), mean_bound)
    assert_close("variance", mine["batchnorm1.variance"], want.numpy(), variance_bound)
    assert not np.allclose(variance, theirs.running_var)  # the conventions differ on these batches


@pytest.mark.parametrize("image", [False, True])
def test_average_statistics_against_torch(image):
    """PyTorch's momentum=None averages plainly; catches weights by batch order or by size."""
    network = _norm_network(BatchNorm(), image)
    theirs = (torch.nn.BatchNorm2d if image else torch.nn.BatchNorm1d)(3, momentum=None, dtype=torch.float64)
    batches = [Streams(4).normal("x", step, (n, *network.input_shape)) - 0.5 for step, n in enumerate((2, 4, 3))]
    for x in batches:
        theirs(torch.tensor(x))
    mine = average_statistics(network, initial_statistics(network), [_moments_of(network, x) for x in batches])
    mean_bound, variance_bound = _statistics_bounds(batches, 1.0)
    assert_close("mean", mine["batchnorm1.mean"], theirs.running_mean.numpy(), mean_bound)
    assert_close("variance", mine["batchnorm1.variance"], theirs.running_var.numpy(), variance_bound)


def test_average_statistics_of_biased_variances():
    """running_variance="biased" holds for the re-estimation too."""
    network = _norm_network(BatchNorm(running_variance="biased"), False)
    moments = [_moments_of(network, Streams(4).normal("x", step, (3, 3))) for step in range(2)]
    want = (moments[0]["batchnorm1"][1] + moments[1]["batchnorm1"][1]) / 2.0
    got = average_statistics(network, initial_statistics(network), moments)
    assert_close("variance", got["batchnorm1.variance"], want, gamma(4, U) * want)


# Refusals ---------------------------------------------------------------------------------------------------------------

SMALL = Network((3,), (Section((Dense(3), Activation(), UnitGate(), Dense(3))), Dense(2)))


def test_wrong_shapes_are_refused():
    """The message says what the network expects and what came."""
    params = initialise(SMALL, Streams(0))
    with pytest.raises(InputError, match=r"x: .*\(N ≥ 1, 3\), got \(2, 4\)"):
        forward(SMALL, ORACLE, params, np.zeros((2, 4)))
    with pytest.raises(InputError, match=r"gates: the network has 4 gates, got an array of shape \(3,\)"):
        forward(SMALL, ORACLE, params, np.zeros((2, 3)), np.ones(3))
    with pytest.raises(InputError, match=r"x: .*\(N ≥ 1, 3\), got \(2, 2\)"):
        forward(SMALL, ORACLE, params, np.zeros((2, 2)), start=1)
    with pytest.raises(InputError, match=r"x: .*\(N ≥ 1, 3\), got \(0, 3\)"):
        forward(SMALL, ORACLE, params, np.zeros((0, 3)))
    with pytest.raises(InputError, match=r"params: .*section1.dense2.bias of shape \(3,\), got one of shape \(4,\)"):
        forward(SMALL, ORACLE, params | {"section1.dense2.bias": np.zeros(4)}, np.zeros((2, 3)))
    with pytest.raises(InputError, match=r"params: .*section1.dense1.weight of shape \(3, 3\), got none"):
        forward(SMALL, ORACLE, {}, np.zeros((2, 3)))
    normed = Network((3,), (BatchNorm(), Dense(2)))
    with pytest.raises(InputError, match=r"statistics: .*batchnorm1.mean of shape \(3,\), got none"):
        forward(normed, ORACLE, initialise(normed, Streams(0)), np.zeros((2, 3)))


@pytest.mark.parametrize(
    ("loss", "target", "message"),
    [
        (Loss(), np.array([0, -1]), "labels must lie in 0 … 1, got -1 … 0"),
        (Loss(), np.array([0, 2]), "labels must lie in 0 … 1, got 0 … 2"),
        (Loss(), np.array([0.0, 1.0]), r"expected 2 integer labels, got float64 of shape \(2,\)"),
        (Loss(), np.array([[0], [1]]), "expected 2 integer labels"),
        (Loss("mean_squared_error"), np.zeros((2, 1)), r"needs shape \(2, 2\), got \(2, 1\)"),
    ],
)
def test_wrong_targets_are_refused(loss, target, message):
    """NumPy would count −1 from the end and broadcast N×1, silently."""
    network = dataclasses.replace(SMALL, loss=loss)
    batch = BatchLoss(network, ORACLE, initialise(network, Streams(0)), np.zeros((2, 3)), target)
    with pytest.raises(InputError, match=message):
        batch.evaluate(np.ones(4))


def test_one_value_per_channel_has_no_variance():
    """N4: catches a silent division by n − 1 = 0."""
    network = Network((3,), (BatchNorm(), Dense(2)))
    with pytest.raises(ValueError, match=r"more than one value per channel; got x of shape \(1, 3\)"):
        forward(network, ORACLE, initialise(network, Streams(0)), np.ones((1, 3)), train=True)


# Initial values ---------------------------------------------------------------------------------------------------------


def test_initial_weights_are_he_normal_and_depend_on_their_own_name_only():
    """Catches a stream shared between layers, a wrong fan-in, and section_scale outside sections."""
    network = Network((400,), (Dense(400), Activation(), Section((Dense(300), Activation(), Dense(400))), Dense(2)))
    params = initialise(network, Streams(1), section_scale=0.5)
    for name, scale in (("dense1", 1.0), ("section1.dense1", 0.5), ("section1.dense2", 0.5)):
        w = params[f"{name}.weight"]
        squares = np.square(w) * w.shape[1] / 2.0 / scale**2  # of standard normals: mean 1, variance 2
        assert abs(squares.mean() - 1.0) < 5.0 * (2.0 / w.size) ** 0.5, name  # false alarm 6e-7
    assert all(not p.any() for name, p in params.items() if name.endswith(".bias"))
    changed = Network((400,), (Dense(400), Activation(), Dense(2)))
    assert_identical("dense1", initialise(changed, Streams(1))["dense1.weight"], params["dense1.weight"])
    assert initialise(network, Streams(1), dtype="float32")["dense1.weight"].dtype == np.float32


# The strategy -----------------------------------------------------------------------------------------------------------


def features(case):
    """What a case exercises, in words."""
    yield from {f"loss {case.network.loss.kind} {case.network.loss.reduction}", f"batch {min(case.batch, 2)}"}
    yield "train" if case.train else "eval"
    for layer, shape in case.network.placed():
        yield f"{type(layer).__name__} on {'images' if len(shape) == 3 else 'vectors'}"
        if isinstance(layer, Activation):
            yield layer.kind
        if isinstance(layer, Section):
            depth = sum(isinstance(part, (Dense, Conv)) for part in layer.path)
            shortcut = "+".join(type(part).__name__ for part in layer.shortcut) or "identity"
            yield from {f"K={depth}", f"shortcut {shortcut}", layer.gate_place, f"post {layer.post}", f"gate {layer.gate}"}
            if layer.channels is not None:
                yield "missing summands"
            if isinstance(layer.path[-1], UnitGate):
                yield "gated summands"
            if any(isinstance(part, UnitGate) for part in layer.path[:-1]):
                yield "unit gate in a section"
    for group in case.network.gate_groups:
        holder = case.network.layers[group.position]
        if isinstance(holder, UnitGate):
            links = case.network.unit_links[holder.name]
            yield from {"plain unit gate", f"norms {min(len(links.norms), 1)}", f"block {min(links.block, 2)}"}
    if not case.network.gate_groups:
        yield "no gates"


WANTED = {
    *(f"loss {kind} {r}" for kind in ("cross_entropy", "mean_squared_error") for r in ("mean", "sum")),
    "loss mean_squared_error batch_mean", "batch 1", "batch 2", "train", "eval", *ns.ACTIVATIONS, "K=1", "K=2", "K=3",
    *(f"shortcut {s}" for s in ("identity", "SubsamplePad", "Conv", "Conv+BatchNorm", "Dense", "Dense+BatchNorm")),
    "path", "preactivation", "post relu", "post identity", "gate True", "gate False", "missing summands",
    "gated summands", "unit gate in a section", "plain unit gate", "norms 0", "norms 1", "block 1", "block 2", "no gates",
    "MaxPool on images", "AveragePool on images", "Flatten on images", "GlobalAveragePool on images",
    "BatchNorm on vectors", "BatchNorm on images", "UnitGate on vectors", "UnitGate on images",
}  # fmt: skip


def test_the_strategy_reaches_everything():
    """Tests the tests: a generator that quietly stops drawing a feature would pass everything else."""
    seen = set()

    @settings(max_examples=600, derandomize=True, database=None)
    @given(case=ns.cases())
    def look(case):
        seen.update(features(case))

    look()
    assert seen >= WANTED, sorted(WANTED - seen)
