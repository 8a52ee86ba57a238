"""Estimators of ∂C/∂θ on real networks: bias, what taylor needs, gradients of the weights, cost (SPEC O3, O5)."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
import torch_network
from estimator_cases import U, moved
from hypothesis import given
from hypothesis import strategies as st
from network_comparison import bounds
from tolerance import assert_close, assert_identical, gamma

from refprune.arrays import Saved
from refprune.backend import ORACLE
from refprune.conformance.strategies import networks as ns
from refprune.errors import InputError
from refprune.gates.estimators import (
    ESTIMATORS,
    Sampled,
    enumerate_gates,
    exact_expectation,
    exact_theta_gradient,
    exact_weight_gradient,
    sample,
)
from refprune.passes.batch_loss import BatchLoss
from refprune.spec.layers import Activation, BatchNorm, Conv, Dense, Flatten, MaxPool, Section, UnitGate
from refprune.spec.network import Loss, Network

FALSE_ALARM = 5.0  # |z| of a normal mean: 6e-7 a gate


# On real networks -------------------------------------------------------------------------------------------------------


class Remembering(BatchLoss):
    """A BatchLoss that keeps its full passes: the 2^G values of c are few."""

    def evaluate(self, gates, *, after=None, position=0, run_closed=False):
        if after is not None or run_closed:
            return super().evaluate(gates, after=after, position=position, run_closed=run_closed)
        memory = self.__dict__.setdefault("memory", {})
        if gates.tobytes() not in memory:
            memory[gates.tobytes()] = super().evaluate(gates)
        return memory[gates.tobytes()]


def _bottleneck(width, hidden, **options):
    return Section((Dense(hidden), Activation("tanh"), Dense(width)), **options)


NETWORKS = {
    "sections": Network((3,), (*(_bottleneck(3, 2) for _ in range(4)), Dense(3))),
    "units": Network(
        (3,),
        (
            Dense(2), Activation("tanh"), UnitGate(), Dense(3), Activation("relu"),
            Section((Dense(3), Activation("tanh"), UnitGate()), post="relu"),
            Dense(2),
        ),
        Loss("mean_squared_error"),
    ),
    "images with batch-norm": Network(
        (1, 6, 6),
        (
            Conv(2, (3, 3)), BatchNorm(), Activation("relu"), UnitGate(), MaxPool((2, 2), (2, 2)), Conv(2, (1, 1)),
            Section((Conv(2, (1, 1)), BatchNorm(), Activation("relu")), gate_place="preactivation"),
            Section((Conv(2, (1, 1)), Activation("tanh"), Conv(2, (1, 1)), BatchNorm()), (Conv(2, (1, 1)),)),
            Flatten(), Dense(3),
        ),
    ),
}  # fmt: skip


def network_case(name, seed=5):
    """(remembering loss, θ in [0.2, 0.8], case)."""
    case = ns.Case(NETWORKS[name], batch=4, seed=seed, train=True)
    fields = {f.name: getattr(case.loss, f.name) for f in dataclasses.fields(BatchLoss)}
    theta = 0.2 + 0.6 * case.uniform("theta", (case.network.gate_count,))
    return Remembering(**fields), theta, case


def estimates(name, loss, theta, case, count, samples=1):
    """`count` independent estimates."""
    kind, drawn = ESTIMATORS[name], []
    v = case.uniform("v", (count, samples, theta.size))
    for row in v:
        base = loss.evaluate(sample(theta, row[0]), run_closed=kind.needs_closed_paths)
        gate_gradient = loss.gradients(base).gates if kind.needs_closed_paths else np.zeros(theta.size)
        drawn.append(kind.function(Sampled(loss, base, gate_gradient, theta, row)).gradient)
    return np.array(drawn)


def z_scores(drawn, want):
    error = drawn.std(axis=0, ddof=1) / len(drawn) ** 0.5
    return (drawn.mean(axis=0) - want) / error


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("name", "samples"), [("paired", 1), ("reinforce", 1), ("reinforce", 3), ("arm", 1), ("disarm", 1)])
def test_estimators_are_unbiased_on_networks(network, name, samples):
    """Catches a wrong shared prefix, gate order or reuse of the base pass; batch-norm in train mode, unit gates."""
    loss, theta, case = network_case(network)
    scores = z_scores(estimates(name, loss, theta, case, 500, samples), exact_theta_gradient(loss, theta))
    assert np.abs(scores).max() < FALSE_ALARM, scores


@pytest.mark.parametrize("network", NETWORKS)
def test_taylor_is_biased(network):
    """O5: the same z-score that passes the others finds the bias; so it is not blind."""
    loss, theta, case = network_case(network)
    scores = z_scores(estimates("taylor", loss, theta, case, 500), exact_theta_gradient(loss, theta))
    assert np.abs(scores).max() > FALSE_ALARM, scores


@given(st.integers(0, 2**32 - 1), st.floats(-2.0, 2.0))
def test_taylor_with_threshold_one_half_decides_as_the_unbiased_estimate(seed, beta):
    """A linear section and the squared error: c is quadratic in ξ and convex. Its mean, by both gate values, from all θ ≥ ½.

    Where J = c + β ξ is less at 0, the mean drift leads to ½ from everywhere above; where it is less at 1, it leads away.
    """
    network = Network((2,), (Dense(2, bias=False), Section((Dense(2, bias=False),))), Loss("mean_squared_error"))
    loss = ns.Case(network, batch=3, seed=seed, train=True)
    loss = BatchLoss(network, ORACLE, loss.params, loss.x, loss.target)
    passes = [loss.evaluate(np.array([value]), run_closed=True) for value in (0.0, 1.0)]
    sampled = [Sampled(loss, p, loss.gradients(p).gates, None, None) for p in passes]
    off, on = (float(ESTIMATORS["taylor"].function(s).gradient[0]) for s in sampled)
    gain = float(passes[1].loss) - float(passes[0].loss) + beta
    scale = gamma(64, U) * (abs(off) + abs(on) + float(passes[0].loss) + float(passes[1].loss) + abs(beta))
    assert on >= off - scale
    drift = [theta * on + (1.0 - theta) * off + beta for theta in (0.5, 0.6, 0.8, 1.0)]
    assert abs(drift[0] - gain) <= scale
    if gain > scale:
        assert min(drift) > 0.0
    if gain < -scale:
        assert drift[0] < 0.0


def _linear_loss(prediction, target, *, reduction):
    return np.asarray((prediction * target).sum()), Saved((target,))


@pytest.mark.parametrize("seed", range(4))
def test_taylor_is_exact_where_c_is_affine_in_each_gate(seed):
    """Linear layers and a linear loss (another function in the backend's record), integers: no rounding at all."""
    network = Network(
        (3,),
        (
            Section((Dense(2), UnitGate(), Dense(3))), Dense(2), UnitGate(), Dense(3),
            Section((Dense(2), Activation("identity"), UnitGate()), channels=(2, 0)), Dense(2),
        ),
        Loss("mean_squared_error"),
    )  # fmt: skip
    case = ns.Case(network, batch=3, seed=seed, train=True)
    backend = dataclasses.replace(
        ORACLE, mean_squared_error=_linear_loss, mean_squared_error_vjp=lambda saved, dy: (saved.values[0] * dy,)
    )
    integers = {name: np.rint(3.0 * p) for name, p in case.params.items()}
    loss = BatchLoss(network, backend, integers, np.rint(3.0 * case.x), np.rint(3.0 * case.target))
    base = loss.evaluate(case.gates, run_closed=True)
    theta, v = np.full(case.gates.size, 0.5), np.zeros((1, case.gates.size))
    sampled = Sampled(loss, base, loss.gradients(base).gates, theta, v)
    taylor, paired = (ESTIMATORS[name].function(sampled).gradient for name in ("taylor", "paired"))
    assert_identical("taylor", taylor, paired)
    assert paired.any()


def test_taylor_needs_the_closed_paths():
    """Kind.needs_closed_paths: without them the derivative of a closed gate is missing, not small."""
    loss, _, _ = network_case("sections")
    gates = np.array([1.0, 0.0, 1.0, 0.0])
    with_paths, without = (loss.gradients(loss.evaluate(gates, run_closed=run)).gates for run in (True, False))
    assert with_paths.all()
    assert (without != 0).tolist() == [True, False, True, False]
    assert ESTIMATORS["taylor"].needs_closed_paths


# Weight gradients (O3) --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
def test_weight_gradient_is_theta_times_the_conditional_one(network):
    """O3 for every section: catches a probability that counts the closed branch; the sum's rounding is bounded (E1)."""
    loss, theta, case = network_case(network)
    total = exact_weight_gradient(loss, theta)
    for group in (g for g in case.network.gate_groups if g.kind == "layer"):
        section = case.network.layers[group.position]
        inside = {part.name for part in section.path}
        conditional = {name: 0.0 for name in total if name.rpartition(".")[0] in inside}
        size = dict.fromkeys(conditional, 0.0)
        for gates, p in enumerate_gates(moved(theta, group.start, 1.0)):
            if p > 0:
                gradients = loss.gradients(loss.evaluate(gates)).params
                conditional = {name: c + p * gradients[name] for name, c in conditional.items()}
                size = {name: s + p * np.abs(gradients[name]) for name, s in size.items()}
        for name, c in conditional.items():
            bound = gamma(2 ** (theta.size + 1) + 2 * theta.size, U) * size[name]
            assert_close(name, total[name], theta[group.start] * c, bound)


@pytest.mark.parametrize("network", ["sections", "images with batch-norm"])
def test_weight_gradient_against_torch(network):
    """O1, O3: PyTorch differentiates the enumerated C, weights and θ at once."""
    loss, theta, case = network_case(network)
    weights = torch_network.tensors(case.params, grad=True)
    t = torch.tensor(theta, requires_grad=True)
    x, target = torch.tensor(case.x), torch.tensor(case.target)
    total, spread = torch.zeros((), dtype=torch.float64), dict.fromkeys(("loss", *weights), 0.0)
    for bits in itertools.product((0.0, 1.0), repeat=theta.size):
        gates = torch.tensor(bits, dtype=torch.float64)
        probability = torch.where(gates == 1, t, 1 - t).prod()
        output, *_ = torch_network.run(case.network, weights, gates, x, train=True)
        total = total + probability * torch_network.loss(case.network, output, target)
        allowed = bounds(case.loss, gates.numpy(), runs=4)
        for name in spread:
            spread[name] = spread[name] + probability.item() * allowed[name]
    total.backward()
    passes = gamma(2 ** (theta.size + 1), U)
    largest = max(float(loss.evaluate(gates).loss) for gates, _ in enumerate_gates(theta))
    assert_close("C", np.asarray(exact_expectation(loss, theta)), total.detach().numpy(), spread["loss"] + passes * largest)
    gradient_bound = 2.0 * max(float(bounds(case.loss, g, runs=4)["loss"]) for g, _ in enumerate_gates(theta))
    assert_close("∂C/∂θ", exact_theta_gradient(loss, theta), t.grad.numpy(), gradient_bound + 2.0 * passes * largest)
    mine = exact_weight_gradient(loss, theta)
    for name, w in weights.items():
        assert_close(name, mine[name], w.grad.numpy(), spread[name] + passes * np.abs(mine[name]).max())


# Cost -------------------------------------------------------------------------------------------------------------------


def test_costs_by_hand():
    """Multiply-accumulates: a section 3·2 + 2·3 = 12, the head 9, batch 4, Ξ = (1, 0, 1, 0); a closed section costs nothing."""
    loss, _, _ = network_case("sections")
    theta, v = np.full(4, 0.5), np.array([[0.1, 0.9, 0.1, 0.9], [0.1, 0.1, 0.1, 0.9]])
    base = loss.evaluate(np.array([1.0, 0.0, 1.0, 0.0]))
    assert base.tape.macs == 4 * (2 * 12 + 9)

    def cost(name, rows):
        return ESTIMATORS[name].function(Sampled(loss, base, np.zeros(4), theta, v[:rows])).macs / 4

    assert cost("taylor", 1) == 0
    # the network from the gate's section on, flipped: 0?10, 110, 00, 1: one, two, no, one open section
    assert cost("paired", 1) == (12 + 9) + (24 + 9) + (0 + 9) + (12 + 9)
    assert cost("exact", 1) == 16 * 9 + 32 * 12  # every section is open in half of the 16
    assert cost("reinforce", 1) == 0
    assert cost("reinforce", 2) == 36 + 9
    assert cost("arm", 1) == cost("disarm", 1) == 24 + 9  # b̃ = (0, 1, 0, 1)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_shared_prefix_saves_and_changes_nothing(network):
    """paired: the same bits as full passes, for fewer multiply-accumulates."""
    loss, theta, case = network_case(network)
    base = loss.evaluate(case.gates)
    got = ESTIMATORS["paired"].function(Sampled(loss, base, np.zeros(theta.size), theta, np.zeros((1, theta.size))))
    others = [loss.evaluate(moved(case.gates, g, 1.0 - case.gates[g])) for g in range(theta.size)]
    want = [(2.0 * xi - 1.0) * (float(base.loss) - float(o.loss)) for xi, o in zip(case.gates, others, strict=True)]
    assert got.gradient.tolist() == want
    assert 0 < got.macs < sum(o.tape.macs for o in others)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_theta_at_the_ends(name):
    """O5: what divides by θ(1−θ) refuses, naming gate, value and remedy; the others go on."""
    loss, theta, _ = network_case("sections")
    for end in (0.0, 1.0):
        at_end = moved(theta, 2, end)
        base = loss.evaluate(np.ones(4))
        sampled = Sampled(loss, base, np.zeros(4), at_end, np.full((1, 4), 0.5))
        if ESTIMATORS[name].needs_interior:
            with pytest.raises(InputError, match=f"theta: {name} .* gate 2 has {end}; use a floor, or the paired"):
                ESTIMATORS[name].function(sampled)
        else:
            assert ESTIMATORS[name].function(sampled).gradient.shape == (4,)
