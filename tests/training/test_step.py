"""Steps of projected SGD (O6) against PyTorch's SGD; scalings, schedules, bounds of θ, the first state."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch_network
from hypothesis import given
from hypothesis import strategies as st
from small_training import (
    NETWORKS,
    U,
    batches,
    convolutional,
    images,
    mlp,
    named,
    run,
    settings,
    start,
    trajectory_tolerance,
)
from tolerance import assert_close, assert_identical, gamma

from refprune.backend import ORACLE
from refprune.errors import InputError
from refprune.formulas.hyper_prior import beta_from_log_gamma, log_gamma_from_beta
from refprune.passes.batch_loss import BatchLoss
from refprune.passes.parameters import initialise
from refprune.rounding.tolerance import smallest_normal
from refprune.spec.layers import UnitGate
from refprune.spec.network import Loss
from refprune.streams import Streams
from refprune.training.coefficients import penalties, schedule_factor, step_factor
from refprune.training.images import Images
from refprune.training.state import initial_state, ungated
from refprune.training.step import train_step


def torch_run(state, data, rules, count, factor):
    """The same steps with autograd and torch.optim.SGD on the sampled networks, as `named` but without statistics."""
    network, samples = state.network, len(data.labels)
    weights = torch_network.tensors(state.params, grad=True)
    beta, decay = rules.objective.beta, rules.objective.weight_decay
    decays = {name: rules.objective.decay == "all" or name.endswith("weight") for name in weights}
    groups = [{"params": [p for n, p in weights.items() if decays[n] is d], "weight_decay": decay * d} for d in (True, False)]
    sgd = torch.optim.SGD([g for g in groups if g["params"]], lr=0.0, momentum=rules.optimiser.momentum)
    for name, p in weights.items():
        sgd.state[p]["momentum_buffer"] = torch.tensor(state.velocity[name])
    theta = torch.tensor(state.theta)
    per_epoch = samples // rules.training.batch_size

    def c(x, labels, gates):
        output, _, _ = torch_network.run(network, weights, gates, x, train=True)
        return torch_network.loss(network, output, labels)

    for t, (x, labels) in enumerate(batches(data, rules, count)):
        x, labels = torch.tensor(x), torch.tensor(labels)
        uniform = [Streams(rules.seed).uniform(f"gates/{g.name}", t, (1, g.stop - g.start))[0] for g in network.gate_groups]
        xi = (torch.tensor(np.concatenate(uniform)) < theta).to(torch.float64).requires_grad_()
        sgd.zero_grad()
        loss = c(x, labels, xi)
        loss.backward()
        scale = factor((t + 0.5) / (per_epoch * rules.training.epochs))
        if rules.gates.estimator == "taylor":
            estimate = xi.grad
        else:
            on, off = (torch.stack([c(x, labels, xi.detach().index_fill(0, torch.tensor(g), v)) for g in range(len(xi))])
                       for v in (1.0, 0.0))  # fmt: skip
            estimate = (on - off).detach()
        theta = torch.clip(theta - rules.gates.learning_rate * scale * (estimate + beta), 0.0, 1.0)
        for group in sgd.param_groups:
            group["lr"] = rules.optimiser.learning_rate * scale
        sgd.step()
    found = {f"params {name}": p.detach().numpy() for name, p in weights.items()}
    found |= {f"velocity {name}": sgd.state[p]["momentum_buffer"].numpy() for name, p in weights.items()}
    return found | {"theta": theta.numpy()}


FACTORS = {"constant": lambda t: 1.0, "cosine": lambda t: math.cos(0.5 * math.pi * t) ** 2}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    ("estimator", "decay", "schedule"),
    [("paired", "all", "cosine"), ("taylor", "weights", "cosine"), ("taylor", "all", "constant")],
)
def test_steps_are_those_of_torch_sgd_on_the_sampled_networks(name, estimator, decay, schedule):
    """Six steps of W, v and θ. Catches a wrong sign, order, factor, decayed array, estimator or projection."""
    network = NETWORKS[name]()
    rules = settings(
        gates={"estimator": estimator, "learning_rate": 0.3},
        objective={"beta": 0.2, "weight_decay": 0.3, "decay": decay},
        optimiser={"learning_rate": 0.1, "momentum": 0.7, "schedule": schedule},
    )
    data = images(network)
    first = start(network, rules, Streams(2).uniform("theta", 0, (network.gate_count,)))
    got, want = named(run(first, data, rules, 6)), torch_run(first, data, rules, 6, FACTORS[schedule])
    tolerance = trajectory_tolerance(first, data, rules, 6)
    for array, wanted in want.items():
        assert_close(array, got[array], wanted, tolerance[array])
        assert np.abs(wanted - named(first)[array]).max() > tolerance[array], f"{array}: did not move: nothing was tested"


def test_the_tolerance_of_a_trajectory_is_small():
    """A test of the test: a relative error of 1e-9 in one weight's momentum would be found."""
    network = mlp()
    rules = settings(gates={"estimator": "paired"}, optimiser={"learning_rate": 0.1, "momentum": 0.7})
    first = start(network, rules)
    assert max(trajectory_tolerance(first, images(network), rules, 6).values()) < 1e-9


def test_statistics_follow_the_sampled_pass_only():
    """Catches running statistics that an estimator's extra passes touch (O9): momentum average of the batches' moments."""
    network, rules = convolutional(), settings(gates={"estimator": "paired", "learning_rate": 0.0})
    first = start(network, rules, [0.0, 1.0, 0.0, 1.0, 1.0, 1.0])
    data = images(network)
    got = run(first, data, rules, 1)
    ((x, labels),) = batches(data, rules, 1)
    _, moments, _ = torch_network.evaluate(network, first.params, first.theta, x, labels, train=True)
    closed = {n for n in network.statistics_shapes if n.startswith("section1.")}
    want = {}
    for layer, (mean, variance, n) in moments.items():
        for key, value, initial in (("mean", mean, 0.0), ("variance", variance * n / (n - 1), 1.0)):
            inside = f"{layer}.{key}" in closed
            want[f"statistics {layer}.{key}"] = np.full(value.shape, initial) if inside else 0.9 * initial + 0.1 * value
    tolerance = trajectory_tolerance(first, data, rules, 1)
    for name, wanted in want.items():
        assert_close(name, named(got)[name], wanted, tolerance[name])
    assert closed
    for name in closed:
        assert_identical(name, got.statistics[name], first.statistics[name])


@pytest.mark.parametrize("network", [mlp(), convolutional()])
def test_both_scalings_are_the_same_run(network):
    """With N a power of two the conversion is exact: not one bit differs."""
    objective = {"beta": 0.2, "weight_decay": 0.03}
    per_set = {key: 32 * value for key, value in objective.items()} | {"per": "data_set"}
    ends = []
    for table in (objective, per_set):
        rules = settings(objective=table, gates={"learning_rate": 0.3, "estimator": "paired"})
        ends.append(named(run(start(network, rules), images(network), rules, 5)))
    for name, array in ends[0].items():
        assert_identical(name, ends[1][name], array)


@given(penalty=st.floats(0.0, 1e3), decay=st.floats(0.0, 1e3), samples=st.integers(1, 10**7))
def test_penalties_of_both_scalings(penalty, decay, samples):
    """β = −log γ/N, λ/N: multiplying by N and back costs two roundings."""
    rules = settings(objective={"beta": penalty, "weight_decay": decay})
    whole = settings(objective={"beta": penalty * samples, "weight_decay": decay * samples, "per": "data_set"})
    assert penalties(rules, samples) == (penalty, decay)
    want = np.array([penalty, decay])
    assert_close("penalties", np.array(penalties(whole, samples)), want, gamma(2, U) * want + smallest_normal(U))


def test_warm_up_keeps_theta_and_spends_nothing_on_it():
    network = mlp()
    rules = settings(gates={"warmup_epochs": 1.25, "estimator": "paired", "learning_rate": 0.1}, objective={"beta": 0.1})
    state, data = start(network, rules), images(network)
    weight = state.params["dense1.weight"]
    for t, (x, labels) in enumerate(batches(data, rules, 7)):
        following, _ = train_step(state, x, labels, rules, ORACLE, training_images=32)
        gates = np.concatenate(
            [Streams(0).uniform(f"gates/{g.name}", t, (1, g.stop - g.start))[0] for g in network.gate_groups]
        ) < state.theta  # fmt: skip
        loss = BatchLoss(network, ORACLE, state.params, x, labels, state.statistics)
        base = loss.evaluate(gates.astype(np.float64))
        spent = base.tape.macs + loss.gradients(base).macs
        assert (following.theta == state.theta).all() == (t < 5)
        assert (following.macs - state.macs == spent) == (t < 5)
        state = following
    assert (state.params["dense1.weight"] != weight).all()


def test_the_last_epochs_are_paired():
    """2 epochs of 4 steps, the last 1.25 epochs paired: step by step the bits, and the cost, of one estimator or the other."""
    network = mlp()
    data = images(network)
    mixed = {"estimator": "taylor", "paired_epochs": 1.25, "learning_rate": 0.1}
    paired = {"estimator": "paired", "learning_rate": 0.1}
    variants = {"mixed": mixed, "taylor": mixed | {"paired_epochs": 0.0}, "paired": paired}
    rules = settings(gates=mixed)
    state = start(network, rules)
    for i, (x, labels) in enumerate(batches(data, rules, 8)):
        following = {
            name: train_step(state, x, labels, settings(gates=gates), ORACLE, training_images=32)[0]
            for name, gates in variants.items()
        }
        assert (following["taylor"].theta != following["paired"].theta).any()
        assert following["taylor"].macs < following["paired"].macs
        expected = following["taylor" if i < 3 else "paired"]
        assert (following["mixed"].theta == expected.theta).all()
        assert following["mixed"].macs == expected.macs
        state = following["mixed"]


def test_paired_epochs_end_where_the_gates_are_decided():
    """decide_epoch 1 of 2, half an epoch paired: the last two of the first four steps."""
    network = mlp()
    data = images(network)
    rules = settings(gates={"estimator": "taylor", "paired_epochs": 0.5, "decide_epoch": 1, "learning_rate": 0.1})
    alone = settings(gates={"estimator": "taylor", "learning_rate": 0.1})
    state, found = start(network, rules), []
    for x, labels in batches(data, rules, 4):
        following, taylor = (train_step(state, x, labels, r, ORACLE, training_images=32)[0] for r in (rules, alone))
        found.append(following.macs > taylor.macs)
        state = following
    assert found == [False, False, True, True]


def test_past_the_epochs_the_estimator_stays():
    """Where training goes on for undecided gates, `paired` takes over only if paired_epochs says so."""
    gates = {"estimator": "taylor", "learning_rate": 0.1, "undecided": "continue", "max_epochs": 9}
    rules, network = settings(gates=gates), mlp()
    data = images(network)
    state = dataclasses.replace(start(network, rules), step=8)
    ((x, labels),) = batches(data, rules, 1)
    past, _ = train_step(state, x, labels, rules, ORACLE, training_images=32)
    longer = dataclasses.replace(rules, training=dataclasses.replace(rules.training, epochs=100))
    within, _ = train_step(state, x, labels, longer, ORACLE, training_images=32)
    paired, _ = train_step(state, x, labels, settings(gates=gates | {"estimator": "paired"}), ORACLE, training_images=32)
    assert past.macs == within.macs < paired.macs
    np.testing.assert_array_equal(past.theta, within.theta)
    assert (past.theta != paired.theta).any()


ENDS = {"constant": (1.0, 1.0), "cosine": (1.0, 0.0), "one_cycle": (0.0, 0.0), "warmup_stable_decay": (0.0, 0.0)}
KINKS = {"one_cycle": [0.3], "warmup_stable_decay": [0.1, 0.8]}
STEEPEST = {"constant": 0.0, "cosine": math.pi / 2, "one_cycle": 1 / 0.3, "warmup_stable_decay": 10.0}


def test_steps_of_robbins_and_monro():
    """(1 + t/t₀)^−p, whatever the length of the run."""
    rules = settings(optimiser={"schedule": "robbins_monro", "schedule_power": 0.75, "schedule_offset": 4.0})
    for steps in (1, 1000):
        got = [step_factor(rules, t, steps) for t in (0, 12, 60)]
        np.testing.assert_allclose(got, [1.0, 4.0**-0.75, 16.0**-0.75], rtol=1e-15)


@pytest.mark.parametrize("kind", ENDS)
def test_schedules(kind):
    """Values at both ends, 1 at the top, no jump, and no change past the end."""
    grid = np.union1d(np.linspace(0.0, 1.0, 2001), KINKS.get(kind, []))
    values = np.array([schedule_factor(kind, float(p)) for p in grid])
    assert_close("ends", values[[0, -1]], np.array(ENDS[kind]), gamma(4, U))
    assert_close("top", values.max(), np.float64(1.0), gamma(4, U))
    assert values.min() >= 0.0
    for corner in KINKS.get(kind, []):
        assert_close(f"at {corner}", np.float64(schedule_factor(kind, corner)), np.float64(1.0), gamma(8, U))
    assert (np.abs(np.diff(values)) <= STEEPEST[kind] * np.diff(grid) + gamma(8, U)).all()
    assert schedule_factor(kind, 7.5) == schedule_factor(kind, 1.0)


@given(penalty=st.sampled_from([0.0, 0.1, 1e6]), rate=st.sampled_from([0.1, 1e6]), floor=st.floats(0.0, 0.49))
def test_theta_stays_between_floor_and_one_minus_floor(penalty, rate, floor):
    network = mlp()
    gates = {"initial": 1.0, "floor": floor, "threshold": 0.49, "learning_rate": rate, "estimator": "paired"}
    rules = settings(gates=gates, objective={"beta": penalty})
    first = initial_state(rules, network)
    assert (first.theta == 1.0 - floor).all()
    seen = []
    run(first, images(network), rules, 3, after=lambda state: (seen.append(state.theta), state)[1])
    assert (np.array(seen) >= floor).all()
    assert (np.array(seen) <= 1.0 - floor).all()
    if penalty == rate == 1e6:
        assert (seen[0] == floor).all()


def test_the_first_state():
    """θ₀, He's weights by name, momenta 0, nothing spent; dtype as configured."""
    network = convolutional()
    rules = settings(gates={"initial": 0.3}, training={"dtype": "float32", "section_scale": 0.5})
    state = initial_state(rules, network)
    assert (state.theta == 0.3).all()
    assert state.theta.dtype == np.float64
    assert (state.step, state.macs, state.finished) == (0, 0, False)
    want = initialise(network, Streams(rules.seed), section_scale=0.5, dtype="float32")
    assert {a.dtype for n, a in named(state).items() if n != "theta"} == {np.dtype("float32")}
    for name, p in state.params.items():
        assert_identical(name, p, want[name])
        assert not state.velocity[name].any()


def test_a_float32_run_stays_float32():
    network, rules = convolutional(), settings(training={"dtype": "float32"}, objective={"weight_decay": 0.1, "beta": 0.1})
    data = images(network)
    state = run(initial_state(rules, network), Images(data.x.astype(np.float32), data.labels), rules, 2)
    assert {a.dtype for n, a in named(state).items() if n != "theta"} == {np.dtype("float32")}
    assert state.theta.dtype == np.float64


def test_the_ungated_network_is_the_same_without_gates():
    for make in NETWORKS.values():
        network = make()
        free = ungated(network)
        assert free.gate_count == 0
        assert free.parameter_shapes == network.parameter_shapes
        assert not any(isinstance(layer, UnitGate) for layer, _ in free.placed())


def test_training_takes_the_mean_cross_entropy_only():
    """β and λ are per sample (O1); a summed loss would weigh them wrongly without a word."""
    network = dataclasses.replace(mlp(), loss=Loss("cross_entropy", "sum"))
    with pytest.raises(InputError, match=r"network\.loss: training takes the mean cross-entropy"):
        initial_state(settings(), network)


def test_the_two_scalings_convert_back():
    """O1: β = −log γ/N, to one rounding each way."""
    for beta in (0.0, 1e-7, 0.003, 17.0):
        for samples in (1, 7, 60_000):
            again = beta_from_log_gamma(log_gamma_from_beta(beta, samples), samples)
            assert_close("beta", np.float64(again), np.float64(beta), gamma(2, U) * beta)
            with pytest.raises(InputError, match="samples: must be an integer of at least 1, got 0"):
                log_gamma_from_beta(beta, 0)
