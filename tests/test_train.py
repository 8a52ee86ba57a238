"""Projected SGD with removals (O6, O7, O9) against PyTorch's SGD, hand counts, and the masked network that never shrinks.

Tolerances are measured as in E2, for whole trajectories: `e2` runs the same computation with a noisy backend.
"""

import dataclasses
import itertools
import math
import weakref
from collections import Counter

import numpy as np
import pytest
import torch
import torch_network
from hypothesis import given
from hypothesis import strategies as st
from tolerance import assert_close, assert_identical, gamma

from refprune import config, settle, train
from refprune.backend import FUNCTIONS, ORACLE
from refprune.data import Dataset
from refprune.errors import InputError
from refprune.estimators import ESTIMATORS
from refprune.flattening import beta_from_log_gamma, log_gamma_from_beta
from refprune.layerspec import Activation, BatchNorm, Conv, Dense, Flatten, GlobalAveragePool, Section, UnitGate
from refprune.network import initialise
from refprune.noise import noisy
from refprune.objective import BatchLoss
from refprune.rounding import INJECTED, NETWORK_FACTOR, UNIT, smallest_normal
from refprune.spec import Loss, Network
from refprune.streams import Streams

U = UNIT["float64"]
SAME = ((1, 1), (1, 1))
TANH = Activation("tanh")


def mlp():
    """Three sections on a stream of 4, one with unit gates. tanh: no kinks."""
    with_units = Section((Dense(5), TANH, UnitGate(), Dense(4)))
    plain = Section((Dense(3), TANH, Dense(4)))
    return Network((3,), (Dense(4), TANH, plain, with_units, plain, Dense(3)))


def convolutional():
    """Convolutions and batch-norm, inside and outside a section, an option-B shortcut, unit gates."""
    norm = (BatchNorm(), TANH)
    body = Section((Conv(4, (3, 3), padding=SAME, bias=False), *norm, UnitGate(), Conv(3, (3, 3), padding=SAME)))
    wider = Section((Conv(2, (1, 1)), *norm, Conv(4, (1, 1)), BatchNorm()), shortcut=(Conv(4, (1, 1)), BatchNorm()))
    return Network((2, 4, 4), (Conv(3, (3, 3), padding=SAME), *norm, body, wider, GlobalAveragePool(), Dense(3)))


def plain():
    """No section: unit gates of two plain layers."""
    return Network((3,), (Dense(5), TANH, UnitGate(), Dense(4), TANH, UnitGate(), Dense(3)))


NETWORKS = {"mlp": mlp, "convolutional": convolutional, "plain": plain}


def settings(**tables):
    training = {"backend": "oracle", "dtype": "float64", "batch_size": 8, "epochs": 2}
    return config.from_dict(tables | {"training": training | tables.get("training", {})})


def images(network, n=32, seed=5):
    streams = Streams(seed)
    (classes,) = network.output_shape
    labels = (streams.uniform("labels", 0, (n,)) * classes).astype(np.int64)
    return train.Images(streams.normal("images", 0, (n, *network.input_shape)), labels)


def start(network, rules, theta=None):
    """The first state, with biases and gains off their special values, momenta off zero."""
    state, streams = train.init(rules, network), Streams(11)
    params = {name: p + 0.2 * streams.normal(f"off/{name}", 0, p.shape) for name, p in state.params.items()}
    velocity = {name: 0.1 * streams.normal(f"velocity/{name}", 0, p.shape) for name, p in state.params.items()}
    theta = state.theta if theta is None else np.asarray(theta, dtype=np.float64)
    return dataclasses.replace(state, params=params, velocity=velocity, theta=theta)


def batches(data, rules, count):
    epochs = (train.epoch_batches(data, rules, epoch) for epoch in itertools.count())
    return list(itertools.islice(itertools.chain.from_iterable(epochs), count))


def run(state, data, rules, count, backend=ORACLE, after=lambda state: state):
    """`count` steps; `after` is applied to every state."""
    for x, labels in batches(data, rules, count):
        state, _ = train.step(state, x, labels, rules, backend, samples=len(data.labels))
        state = after(state)
    return state


def named(state):
    """Every array of a state by one name."""
    groups = ("params", "velocity", "statistics")
    return {f"{group} {name}": a for group in groups for name, a in getattr(state, group).items()} | {"theta": state.theta}


def e2(f, runs=6):
    """Tolerances of f(backend, jitter) → {name: array}: NETWORK_FACTOR times the largest deviation under rounding noise.

    jitter(array) is noise for the roundings that f makes outside the backend: four of them, relative to the array.
    """
    base = f(ORACLE, lambda array: array)
    worst = dict.fromkeys(base, 0.0)
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        found = f(
            noisy(ORACLE, unit=INJECTED, rng=rng),
            lambda array, rng=rng: array * (1.0 + 4.0 * INJECTED * rng.standard_normal(np.shape(array))),
        )
        for name, value in found.items():
            worst[name] = max(worst[name], float(np.max(np.abs(value - base[name]), initial=0.0)))
    return {name: NETWORK_FACTOR * w * U / INJECTED + smallest_normal(U) for name, w in worst.items()}


def trajectory_tolerance(state, data, rules, count, after=lambda state: state):
    def f(backend, jitter):
        def shaken(now):
            now = after(now)
            groups = {g: {n: jitter(a) for n, a in getattr(now, g).items()} for g in ("params", "velocity", "statistics")}
            return dataclasses.replace(now, theta=np.clip(jitter(now.theta), 0.0, 1.0), **groups)

        return named(run(state, data, rules, count, backend, shaken))

    return e2(f)


# Against torch.optim.SGD --------------------------------------------------------------------------------------------------


def torch_run(state, data, rules, count, factor):
    """The same steps with autograd and torch.optim.SGD on the sampled networks, as `named` but without statistics."""
    network, samples = state.network, len(data.labels)
    weights = torch_network.tensors(state.params, grad=True)
    beta, decay = rules.objective.penalty, rules.objective.weight_decay
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
        uniform = [Streams(rules.seed).uniform(f"gates/{g.name}", t, (1, g.stop - g.start))[0] for g in network.gates]
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
        objective={"penalty": 0.2, "weight_decay": 0.3, "decay": decay},
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


# Scalings, warm-up, schedules, floor --------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [mlp(), convolutional()])
def test_both_scalings_are_the_same_run(network):
    """With N a power of two the conversion is exact: not one bit differs."""
    objective = {"penalty": 0.2, "weight_decay": 0.03}
    per_set = {key: 32 * value for key, value in objective.items()} | {"scaling": "per_data_set"}
    ends = []
    for table in (objective, per_set):
        rules = settings(objective=table, gates={"learning_rate": 0.3, "estimator": "paired"})
        ends.append(named(run(start(network, rules), images(network), rules, 5)))
    for name, array in ends[0].items():
        assert_identical(name, ends[1][name], array)


@given(penalty=st.floats(0.0, 1e3), decay=st.floats(0.0, 1e3), samples=st.integers(1, 10**7))
def test_penalties_of_both_scalings(penalty, decay, samples):
    """β = −log γ/N, λ/N: multiplying by N and back costs two roundings."""
    rules = settings(objective={"penalty": penalty, "weight_decay": decay})
    whole = settings(objective={"penalty": penalty * samples, "weight_decay": decay * samples, "scaling": "per_data_set"})
    assert train.penalties(rules, samples) == (penalty, decay)
    want = np.array([penalty, decay])
    assert_close("penalties", np.array(train.penalties(whole, samples)), want, gamma(2, U) * want + smallest_normal(U))


def test_warm_up_keeps_theta_and_spends_nothing_on_it():
    network = mlp()
    rules = settings(gates={"warmup_epochs": 1.25, "estimator": "paired", "learning_rate": 0.1}, objective={"penalty": 0.1})
    state, data = start(network, rules), images(network)
    weight = state.params["dense1.weight"]
    for t, (x, labels) in enumerate(batches(data, rules, 7)):
        following, _ = train.step(state, x, labels, rules, ORACLE, samples=32)
        gates = np.concatenate(
            [Streams(0).uniform(f"gates/{g.name}", t, (1, g.stop - g.start))[0] for g in network.gates]
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
            name: train.step(state, x, labels, settings(gates=gates), ORACLE, samples=32)[0] for name, gates in variants.items()
        }
        assert (following["taylor"].theta != following["paired"].theta).any()
        assert following["taylor"].macs < following["paired"].macs
        expected = following["taylor" if i < 3 else "paired"]
        assert (following["mixed"].theta == expected.theta).all()
        assert following["mixed"].macs == expected.macs
        state = following["mixed"]


def test_past_the_epochs_the_estimator_stays():
    """Where training goes on for undecided gates, `paired` takes over only if paired_epochs says so."""
    gates = {"estimator": "taylor", "learning_rate": 0.1, "undecided": "continue", "max_epochs": 9}
    rules, network = settings(gates=gates), mlp()
    data = images(network)
    state = dataclasses.replace(start(network, rules), step=8)
    ((x, labels),) = batches(data, rules, 1)
    past, _ = train.step(state, x, labels, rules, ORACLE, samples=32)
    longer = dataclasses.replace(rules, training=dataclasses.replace(rules.training, epochs=100))
    within, _ = train.step(state, x, labels, longer, ORACLE, samples=32)
    paired, _ = train.step(state, x, labels, settings(gates=gates | {"estimator": "paired"}), ORACLE, samples=32)
    assert past.macs == within.macs < paired.macs
    np.testing.assert_array_equal(past.theta, within.theta)
    assert (past.theta != paired.theta).any()


ENDS = {"constant": (1.0, 1.0), "cosine": (1.0, 0.0), "one_cycle": (0.0, 0.0), "warmup_stable_decay": (0.0, 0.0)}
KINKS = {"one_cycle": [0.3], "warmup_stable_decay": [0.1, 0.8]}
STEEPEST = {"constant": 0.0, "cosine": math.pi / 2, "one_cycle": 1 / 0.3, "warmup_stable_decay": 10.0}


@pytest.mark.parametrize("kind", config.SCHEDULES)
def test_schedules(kind):
    """Values at both ends, 1 at the top, no jump, and no change past the end."""
    grid = np.union1d(np.linspace(0.0, 1.0, 2001), KINKS.get(kind, []))
    values = np.array([train.schedule_factor(kind, float(p)) for p in grid])
    assert_close("ends", values[[0, -1]], np.array(ENDS[kind]), gamma(4, U))
    assert_close("top", values.max(), np.float64(1.0), gamma(4, U))
    assert values.min() >= 0.0
    for corner in KINKS.get(kind, []):
        assert_close(f"at {corner}", np.float64(train.schedule_factor(kind, corner)), np.float64(1.0), gamma(8, U))
    assert (np.abs(np.diff(values)) <= STEEPEST[kind] * np.diff(grid) + gamma(8, U)).all()
    assert train.schedule_factor(kind, 7.5) == train.schedule_factor(kind, 1.0)


@given(penalty=st.sampled_from([0.0, 0.1, 1e6]), rate=st.sampled_from([0.1, 1e6]), floor=st.floats(0.0, 0.49))
def test_theta_stays_between_floor_and_one_minus_floor(penalty, rate, floor):
    network = mlp()
    gates = {"initial": 1.0, "floor": floor, "threshold": 0.49, "learning_rate": rate, "estimator": "paired"}
    rules = settings(gates=gates, objective={"penalty": penalty})
    first = train.init(rules, network)
    assert (first.theta == 1.0 - floor).all()
    seen = []
    run(first, images(network), rules, 3, after=lambda state: (seen.append(state.theta), state)[1])
    assert (np.array(seen) >= floor).all()
    assert (np.array(seen) <= 1.0 - floor).all()
    if penalty == rate == 1e6:
        assert (seen[0] == floor).all()


# Multiply-accumulates -----------------------------------------------------------------------------------------------------


def counted():
    """For one input, forward: 12 before the sections, 40 and 16 in them, 8 behind."""
    first, second = (Section((Dense(n), TANH, Dense(4))) for n in (5, 2))
    return Network((3,), (Dense(4), TANH, first, second, Dense(2)))


def sampled_gates(estimator, seed, theta, samples):
    streams = Streams(seed)
    uniform = np.concatenate([streams.uniform(f"gates/section{i}", 0, (samples, 1)) for i in (1, 2)], axis=1)
    return uniform, (uniform < theta).astype(int)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("seed", range(8))
def test_macs_of_a_step_by_hand(estimator, seed):
    """Catches passes that are not counted, closed sections that are, and an input gradient of the first layer."""
    samples, batch, theta = (3 if ESTIMATORS[estimator].many_samples else 1), 8, np.array([0.6, 0.4])
    gates = {"estimator": estimator, "samples": samples, "floor": 0.01, "threshold": 0.01}
    rules = dataclasses.replace(settings(gates=gates), seed=seed)
    network = counted()
    state = run(start(network, rules, theta), images(network), rules, 1)
    uniform, ((a, b), *others) = sampled_gates(estimator, seed, theta, samples)

    def forward(first, second):
        return 12 + 40 * first + 16 * second + 8

    backward = 12 + 2 * (40 * a + 16 * b + 8)
    anti = (uniform[0] > 1.0 - theta).astype(int)
    extra = {
        "exact": forward(0, 0) + forward(1, 0) + forward(0, 1) + forward(1, 1),
        "paired": (40 * (1 - a) + 16 * b + 8) + (16 * (1 - b) + 8),
        "reinforce": sum(forward(*o) for o in others),
        "arm": forward(*anti),
        "disarm": forward(*anti),
        "taylor": 40 * (1 - a) + 16 * (1 - b),
    }[estimator]
    assert state.macs == batch * (forward(a, b) + backward + extra)


def counting(done):
    """The oracle; every call adds its multiply-accumulates to done["macs"] and itself to done[function]."""

    def counted(name, function):
        def run(*args, **options):
            results = function(*args, **options)
            done[name] += 1
            if name in ("dense", "conv2d"):
                done["macs"] += results[0].size * args[1][0].size
            elif name in ("dense_vjp", "conv2d_vjp"):
                done["macs"] += args[1].size * args[0].values[1][0].size * (1 + (results[0] is not None))
            return results

        return run

    return dataclasses.replace(ORACLE, **{name: counted(name, getattr(ORACLE, name)) for name in FUNCTIONS})


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_work_that_is_done_is_the_work_that_is_counted(name, estimator):
    """The products that the backend was asked for, in three steps with random gates: catches work behind closed gates."""
    network, done = NETWORKS[name](), Counter()
    rules = settings(gates={"estimator": estimator, "floor": 0.01, "threshold": 0.01})
    first = start(network, rules, np.full(network.gate_count, 0.5))
    last = run(first, images(network), rules, 3, counting(done))
    assert last.macs == done["macs"] > 0


def test_a_closed_section_is_asked_for_nothing():
    """Not one call more than the network without it makes, but for the gate of the open one."""
    network, rules = counted(), settings(gates={"estimator": "paired"})
    x, labels = images(network)
    calls = []
    for layers, gates in ((network.layers, [1.0, 0.0]), ((*network.layers[:3], network.layers[4]), [1.0])):
        loss = BatchLoss(Network((3,), layers), counting(done := Counter()), start(network, rules).params, x, labels)
        loss.gradients(loss.evaluate(np.array(gates)))
        calls.append(done)
    assert calls[0] == calls[1]
    assert calls[0]["gate"] == calls[0]["gate_vjp"] == 1


# Memory -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["taylor", "paired"])
@pytest.mark.parametrize("name", NETWORKS)
def test_what_a_pass_saved_is_gone_before_the_update(monkeypatch, name, estimator):
    """Catches a reference to the tape that keeps the activations of a whole network beside the update's new arrays."""
    network, rules = NETWORKS[name](), settings(gates={"estimator": estimator})
    outputs, alive = [], []

    def watched(name):
        def run(*args, **options):
            y, saved = getattr(ORACLE, name)(*args, **options)
            outputs.append(weakref.ref(y))
            return y, saved

        return run

    backend = dataclasses.replace(ORACLE, **{name: watched(name) for name in ("dense", "conv2d", "tanh", "gate", "add")})
    update = train._momentum_step

    def looking(*args):
        alive.extend(y for y in outputs if y() is not None)
        return update(*args)

    monkeypatch.setattr(train, "_momentum_step", looking)
    run(start(network, rules), images(network), rules, 1, backend)
    assert len(outputs) > 6
    assert not alive


# Removal ------------------------------------------------------------------------------------------------------------------


def removed_from(network, rules, theta):
    state = start(network, rules, theta)
    keep = train.keep(state, rules, samples=32)
    smaller, cut, pruned = train.remove(state, keep, rules)
    return state, keep, smaller, cut, pruned


def kept(network, theta, threshold):
    rules = settings(gates={"threshold": threshold})
    return train.keep(start(network, rules, theta), rules, samples=32)


def test_the_rule_removes_at_and_below_the_threshold():
    network = mlp()
    theta = np.array([0.1, 0.1, 0.0, math.nextafter(0.1, 1.0), 0.2, 0.5, 1.0, 0.05])
    assert kept(network, theta, 0.1).tolist() == [False, False, False, True, True, True, True, False]


def test_a_removal_leaves_the_rest_as_it_is():
    """The gate is gone with weights, momenta and θ; what stays has the same bits, units' rows and columns included."""
    rules = settings(gates={"threshold": 0.1})
    theta = np.array([0.05, 0.7, 0.2, 0.1, 0.6, 0.0, 0.9, 0.3])
    state, keep, smaller, cut, pruned = removed_from(mlp(), rules, theta)
    assert pruned == (0, {"section1": 1, "section2.unitgate1": 2}, (), ())
    assert [g.name for g in smaller.network.gates] == ["section2", "section2.unitgate1", "section3"]
    assert_identical("theta", smaller.theta, theta[keep])
    assert not any(name.startswith("section1") for name in named(smaller))
    left = [0, 2, 4]
    for group in ("params", "velocity"):
        old, new = getattr(state, group), getattr(smaller, group)
        assert set(new) == {name for name in old if not name.startswith("section1")}
        for name, array in new.items():
            want = old[name]
            if name in ("section2.dense1.weight", "section2.dense1.bias"):
                want = want[left]
            if name == "section2.dense2.weight":
                want = want[:, left]
            assert_identical(name, array, want)
    assert (smaller.step, smaller.macs, smaller.finished) == (state.step, state.macs, state.finished)
    assert (cut.gates == np.flatnonzero(keep)).all()


def test_a_state_is_never_changed():
    """Steps and removals make new states: the old one's arrays keep their bits."""
    network, rules = convolutional(), settings(gates={"learning_rate": 0.3}, objective={"penalty": 0.3, "weight_decay": 0.1})
    state = start(network, rules, [0.0, 1.0, 0.0, 0.5, 0.5, 0.5])
    before = {name: array.copy() for name, array in named(state).items()}
    run(state, images(network), rules, 2)
    train.remove(state, state.theta > 0, rules)
    settle.settle(state, images(network), rules, ORACLE)
    for name, array in before.items():
        assert_identical(name, named(state)[name], array)


def compare_masked_and_compact(network, rules, theta, hold):
    """The smaller network's trajectory is that of the network whose gates `hold` stay at 0."""
    state, _, smaller, cut, _ = removed_from(network, rules, theta)
    data = images(network)

    def held(now):
        return dataclasses.replace(now, theta=np.where(hold, 0.0, now.theta))

    masked = run(held(state), data, rules, 5, after=held)
    compact = run(smaller, data, rules, 5)
    tolerance = trajectory_tolerance(smaller, data, rules, 5)
    want = named(train.cut_state(masked, cut))
    assert set(want) == set(named(compact))
    for name, array in named(compact).items():
        assert_close(name, array, want[name], tolerance[name])
    assert compact.macs < masked.macs or rules.gates.estimator != "taylor"


@pytest.mark.parametrize("estimator", ["paired", "taylor"])
@pytest.mark.parametrize("name", ["mlp", "convolutional"])
def test_a_removed_section_is_one_that_stays_masked(name, estimator):
    """O7: five more steps. Catches lost momenta, other gates' shifted random numbers, and statistics that a closed section
    changes."""
    network = NETWORKS[name]()
    rules = settings(
        gates={"estimator": estimator, "learning_rate": 0.1},
        objective={"penalty": 0.05, "weight_decay": 0.1},
        optimiser={"learning_rate": 0.1},
    )
    theta = np.full(network.gate_count, 0.6)
    theta[network.gate_slices["section1"]] = 0.0
    if name == "convolutional":  # with its section the unit gates go too
        compare_masked_and_compact(network, rules, theta, np.arange(6) < 5)
    compare_masked_and_compact(network, rules, theta, theta == 0.0)


@pytest.mark.parametrize("name", NETWORKS)
def test_removed_units_are_masked_ones(name):
    """The same for units. The gates that stay are at 1, so that no random number matters."""
    network, rules = NETWORKS[name](), settings(gates={"learning_rate": 0.0}, objective={"weight_decay": 0.1})
    theta = np.ones(network.gate_count)
    for group in network.gates:
        if group.kind == "unit":
            theta[group.start + 1 : group.start + 3] = 0.0
    compare_masked_and_compact(network, rules, theta, theta == 0.0)


def test_the_shortcut_of_a_removed_first_section_goes_on_learning():
    section = Section((Dense(5), TANH, Dense(4)), shortcut=(Dense(4),))
    network = Network((3,), (section, TANH, Section((Dense(3), TANH, Dense(4))), Dense(3)))
    rules = settings(gates={"learning_rate": 0.1, "estimator": "paired"})
    compare_masked_and_compact(network, rules, np.array([0.0, 0.6]), np.array([True, False]))


def test_units_keep_their_random_numbers_when_another_unit_goes():
    network, rules = mlp(), settings(gates={"learning_rate": 0.1, "estimator": "paired"})
    theta = np.full(network.gate_count, 0.6)
    theta[network.gate_slices["section2.unitgate1"].start] = 0.0
    compare_masked_and_compact(network, rules, theta, theta == 0.0)


def gates_at(state, rules, step):
    """The gates that a step samples, by group; seen in what the forward pass is given."""
    seen = {}
    uniform = train._gate_uniforms(dataclasses.replace(state, step=step), rules.seed, rules.gates.samples)
    for group in state.network.gates:
        seen[group.name] = uniform[:, group.slice]
    return seen


def test_a_removal_does_not_touch_the_streams_of_other_groups():
    rules = settings()
    state, _, smaller, _, _ = removed_from(mlp(), rules, [0.0, 0.5, 0.0, 0.5, 0.5, 0.5, 0.5, 0.5])
    for step in (0, 1, 17):
        before, after = gates_at(state, rules, step), gates_at(smaller, rules, step)
        for name in ("section2", "section3"):
            assert_identical(name, after[name], before[name])
        assert (gates_at(state, rules, step + 1)["section2"] != before["section2"]).all()


def test_a_plain_layer_keeps_its_best_unit():
    network = plain()
    theta = np.array([0.0, 0.1, 0.3, 0.2, 0.3, 0.0, 0.0, 0.0, 0.0])
    assert np.flatnonzero(kept(network, theta, 0.4)).tolist() == [2, 5]
    assert not kept(mlp(), np.zeros(8), 0.0).any()  # in a section all units may go
    rules = settings(gates={"threshold": 0.4})
    _, _, smaller, _, pruned = removed_from(network, rules, theta)
    assert pruned.removed == {"unitgate1": 4, "unitgate2": 3}
    assert [layer.units for layer in smaller.network.layers if isinstance(layer, Dense)] == [1, 1, 3]
    assert train.keep(smaller, rules, samples=32).all()


@pytest.mark.parametrize("empty", ["close", "keep_constant"])
def test_a_section_without_units_is_closed_or_keeps_its_constant(empty):
    rules = settings(gates={"empty": empty})
    _, _, smaller, _, pruned = removed_from(mlp(), rules, [0.5, 0.5, 0, 0, 0, 0, 0, 0.5])
    assert pruned.closed_for_emptiness == (("section2",) if empty == "close" else ())
    assert ("section2.dense2.bias" in smaller.params) == (empty == "keep_constant")
    run(smaller, images(mlp()), rules, 2)


def trained(network, rules, steps):
    """Steps with removals in between, as an experiment makes them; also the widths seen."""
    data, state, removals = images(network, 64), train.init(rules, network), []
    for x, labels in batches(data, rules, steps):
        state, metrics = train.step(state, x, labels, rules, ORACLE, samples=64)
        assert math.isfinite(metrics.loss)
        assert 0 <= metrics.gates_on <= state.theta.size
        keep = train.keep(state, rules, samples=64)
        if not keep.all():
            state, _, pruned = train.remove(state, keep, rules)
            removals.append(pruned)
        assert (train.keep(state, rules, samples=64)).all()
    return state, data, removals


def units_only():
    """A section without gate of its own, but with unit gates."""
    return Network((3,), (Dense(4), TANH, Section((Dense(5), TANH, UnitGate(), Dense(4)), gate=False), Dense(3)))


@pytest.mark.parametrize("make", [*NETWORKS.values(), units_only])
def test_gates_go_one_after_another_and_in_the_end_none_is_left(make):
    """Training end to end with layer and unit gates: removals while it runs, then every θ exactly 0 or 1."""
    network = make()
    rules = settings(gates={"learning_rate": 0.15, "estimator": "paired"}, objective={"penalty": 0.3})
    state, data, removals = trained(network, rules, 16)
    assert removals
    assert make is mlp or any("unitgate" in group for pruned in removals for group in pruned.removed)
    assert [p.step for p in removals] == sorted(p.step for p in removals)
    end = settle.settle(state, data, rules, ORACLE).state
    assert end.finished
    assert end.network.gate_count == end.theta.size == 0
    assert set(end.params) == set(end.velocity) == set(end.network.parameter_shapes)
    score = train.evaluate(end, data, ORACLE)
    assert math.isfinite(score.loss)


# The end ------------------------------------------------------------------------------------------------------------------


def torch_objective(state, data, rules, gates):
    """C over all batches of one size, in train mode."""
    order = [
        torch_network.evaluate(state.network, state.params, gates, x, labels, train=True)[0]["loss"]
        for x, labels in train.epoch_batches(data, rules, 0)
    ]
    return float(np.mean(order))


@pytest.mark.parametrize("name", ["mlp", "convolutional"])
@pytest.mark.parametrize("penalty", [0.0, 0.02, 5.0])
def test_undecided_gates_take_the_better_vertex(name, penalty):
    """O9, O4: J at the two vertices is computed again, by PyTorch; least certain last, the others at the decided value."""
    network = NETWORKS[name]()
    rules = settings(gates={"threshold": 0.1}, objective={"penalty": penalty, "weight_decay": 0.7})
    theta = np.array([0.3, 0.95, 0.6, 1.0, 0.05, 0.9, 0.55, 0.2])[: network.gate_count]
    state, data = start(network, rules, theta), images(network)
    gates, decisions, macs = settle.decide(state, data, rules, ORACLE)
    places = [(g.name, i) for g in network.gates for i in range(g.stop - g.start)]
    assert [d.theta for d in decisions] == sorted((t for t in theta if 0.1 < t < 0.9), key=lambda t: -abs(t - 0.5))
    want = np.where(theta >= 0.5, 1.0, 0.0)
    for d in decisions:
        where = places.index((d.gate, d.unit))
        assert theta[where] == d.theta
        objective = []
        for vertex in (1.0, 0.0):
            want[where] = vertex
            c = torch_objective(state, data, rules, want)
            tolerance = e2(lambda b, jitter, w=want: {"c": jitter(settle._training_loss(state, data, rules, b, w)[0])})
            objective.append(c + penalty * vertex)
            assert_close("J", np.float64((d.objective_off, d.objective_on)[int(vertex)]), np.float64(objective[-1]),
                         tolerance["c"] + 2 * U * penalty)  # fmt: skip
        assert d.on == (d.objective_on < d.objective_off)
        want[where] = float(d.on)
    assert_identical("gates", gates, want)
    if penalty == 5.0:
        assert not any(d.on for d in decisions)
    loss = BatchLoss(network, ORACLE, state.params, data.x[:8], data.labels[:8], state.statistics)
    full = loss.evaluate(np.ones(network.gate_count)).tape.macs
    assert 0 < macs <= (len(decisions) + 1) * 4 * full


def test_decided_gates_need_no_comparison():
    network, rules = mlp(), settings(gates={"threshold": 0.1})
    theta = np.array([0.0, 1.0, 0.1, 0.9, 0.95, 0.05, 1.0, 0.0])
    gates, decisions, macs = settle.decide(start(network, rules, theta), images(network), rules, ORACLE)
    assert (decisions, macs) == ([], 0)
    assert_identical("gates", gates, np.round(theta))
    off, on = settle.decided(start(network, rules, theta), rules)
    assert (off == (theta <= 0.1)).all()
    assert (on == (theta >= 0.9)).all()


def test_settling_removes_fixes_lists_and_counts():
    network, rules = mlp(), settings(gates={"threshold": 0.1}, objective={"penalty": 0.02})
    theta = np.array([0.3, 0.95, 0.6, 1.0, 0.05, 0.9, 0.55, 0.2])
    state, data = start(network, rules, theta), images(network)
    gates, decisions, macs = settle.decide(state, data, rules, ORACLE)
    end = settle.settle(state, data, rules, ORACLE)
    assert end.decisions == decisions
    assert (end.keep == (gates == 1.0)).all()
    assert end.state.macs == state.macs + macs  # no statistics to re-estimate
    counts = {g.name: int((gates[g.slice] == 0).sum()) for g in network.gates}
    assert end.pruned.removed == {name: n for name, n in counts.items() if n}
    assert end.state.network.gate_count == 0
    with_gates = BatchLoss(network, ORACLE, state.params, data.x, data.labels, train=False)
    without = BatchLoss(end.state.network, ORACLE, end.state.params, data.x, data.labels, train=False)
    tolerance = e2(lambda b, _: {"y": dataclasses.replace(without, backend=b).evaluate(np.zeros(0)).tape.output})
    masked, compact = with_gates.evaluate(gates), without.evaluate(np.zeros(0))
    assert_close("output", compact.tape.output, masked.tape.output, tolerance["y"])


def test_the_list_says_what_became_of_a_spared_unit():
    network, rules = plain(), settings(objective={"penalty": 50.0})
    state = start(network, rules, np.full(9, 0.4))
    end = settle.settle(state, images(network), rules, ORACLE)
    places = {(g.name, i): g.start + i for g in network.gates for i in range(g.stop - g.start)}
    assert end.keep.sum() == 2
    for d in end.decisions:
        assert d.on == end.keep[places[d.gate, d.unit]]


def test_statistics_are_estimated_again_at_the_end():
    """N4: averages over the batches of the network without gates, not the mixture that training left behind."""
    network, rules = convolutional(), settings(gates={"threshold": 0.1}, objective={"penalty": 0.02})
    state, data = start(network, rules, [1.0, 1.0, 0.0, 0.8, 1.0, 1.0]), images(network)
    end = settle.settle(state, data, rules, ORACLE)
    assert end.state.network.statistics_shapes
    moments = [
        torch_network.evaluate(end.state.network, end.state.params, np.zeros(0), x, labels, train=True)[1]
        for x, labels in train.epoch_batches(data, rules, 0)
    ]
    smaller = dataclasses.replace(end.state, finished=False)
    tolerance = e2(lambda b, jitter: {n: jitter(a) for n, a in settle._reestimate(smaller, data, rules, b)[0].items()})
    for layer in moments[0]:
        mean = np.mean([m[layer][0] for m in moments], axis=0)
        variance = np.mean([m[layer][1] * m[layer][2] / (m[layer][2] - 1) for m in moments], axis=0)
        assert_close(layer, end.state.statistics[f"{layer}.mean"], mean, tolerance[f"{layer}.mean"])
        assert_close(layer, end.state.statistics[f"{layer}.variance"], variance, tolerance[f"{layer}.variance"])
    assert set(end.state.statistics) == set(end.state.network.statistics_shapes) == set(tolerance)


# Data ---------------------------------------------------------------------------------------------------------------------


def dataset(n=64, channels=2):
    """Channel 0 is half 0, half 200: mean 100, deviation 100. Channel 1 is 4 or 20: mean 12, deviation 8. All is exact."""
    values = np.array([[0, 4], [200, 20]], dtype=np.uint8)[:, :channels]
    pixels = values[np.arange(n * 4) % 2].reshape(n, 2, 2, channels).transpose(0, 3, 1, 2)
    labels = np.arange(n) % 10
    return Dataset("exact", pixels, labels, np.full((3, channels, 2, 2), 250, dtype=np.uint8), np.arange(3), 10)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_images_are_standardised_per_channel_by_the_training_images(dtype):
    found, test = train.prepare(dataset(), settings(training={"dtype": dtype}))
    assert found.x.dtype == test.x.dtype == dtype
    raw = dataset().train_images
    assert_identical("train", found.x, np.where(raw > 50, 1.0, np.where(raw == 20, 1.0, -1.0)).astype(dtype))
    want = np.empty(test.x.shape, dtype=dtype)
    want[:, 0], want[:, 1] = 1.5, (250 - 12) / 8
    assert_identical("test", test.x, want)
    assert (found.labels == dataset().train_labels).all()
    assert (test.labels == [0, 1, 2]).all()


def test_the_limit_takes_the_first_images_and_their_mean():
    data = dataset()
    data.train_images[32:] = 7
    found, _ = train.prepare(data, settings(data={"train_limit": 32}))
    assert found.x.shape == (32, 2, 2, 2)
    assert np.unique(found.x).tolist() == [-1.0, 1.0]
    assert (found.labels == data.train_labels[:32]).all()


def test_a_constant_channel_becomes_zero():
    data = dataset()
    data.train_images[:, 1] = 9
    found, _ = train.prepare(data, settings())
    assert (found.x[:, 1] == 0.0).all()
    assert np.isfinite(found.x).all()


def test_a_batch_needs_enough_images():
    with pytest.raises(InputError, match=r"training\.batch_size: 8 exceeds the 7 training images"):
        train.prepare(dataset(), settings(data={"train_limit": 7}))


def test_held_out_images_stand_for_the_test_images_and_are_not_trained_on():
    data = dataset()
    count = len(data.train_labels)
    limit = count - 3
    rules = settings(data={"train_limit": limit, "holdout": 5})
    found, held = train.prepare(data, rules)
    plain, _ = train.prepare(
        dataclasses.replace(data, train_images=data.train_images[: limit - 5], train_labels=data.train_labels[: limit - 5]),
        settings(),
    )
    assert found.x.tobytes() == plain.x.tobytes()  # mean and deviation without the held-out ones
    assert (held.labels == data.train_labels[limit - 5 : limit]).all()
    assert held.x.shape == (5, *data.train_images.shape[1:])
    with pytest.raises(InputError, match=f"data.holdout: {count} leaves none"):
        train.prepare(data, settings(data={"holdout": count}))


@given(n=st.integers(8, 60), size=st.integers(1, 8), epoch=st.integers(0, 5), seed=st.integers(0, 3), data=st.data())
def test_epoch_batches(n, size, epoch, seed, data):
    """Every index at most once and all but the last partial batch; the same order again; from `first` on the same rest."""
    rules = dataclasses.replace(settings(training={"batch_size": size}), seed=seed)
    numbers = train.Images(np.arange(n) * 1.0, np.arange(n))
    whole = [labels.tolist() for _, labels in train.epoch_batches(numbers, rules, epoch)]
    flat = list(itertools.chain.from_iterable(whole))
    assert all(len(labels) == size for labels in whole)
    assert len(flat) == len(set(flat)) == n - n % size
    assert all((x == labels).all() for x, labels in train.epoch_batches(numbers, rules, epoch))
    first = data.draw(st.integers(0, len(whole)))
    assert [labels.tolist() for _, labels in train.epoch_batches(numbers, rules, epoch, first)] == whole[first:]
    other = dataclasses.replace(rules, gates=dataclasses.replace(rules.gates, initial=0.1))
    assert [labels.tolist() for _, labels in train.epoch_batches(numbers, other, epoch)] == whole
    if n - size >= 20:
        for changed in (
            train.epoch_batches(numbers, rules, epoch + 1),
            train.epoch_batches(numbers, dataclasses.replace(rules, seed=seed + 1), epoch),
        ):
            assert [labels.tolist() for _, labels in changed] != whole


# Evaluation ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("gates", ["mode", "mean"])
def test_evaluation(name, gates):
    """Loss and accuracy in eval mode at ξ = 1[θ ≥ ½] or ξ = θ, in pieces, against PyTorch on all at once."""
    network, rules = NETWORKS[name](), settings()
    theta = np.array([0.5, math.nextafter(0.5, 0.0), 0.9, 0.1, 0.6, 0.0, 1.0, 0.7, 0.2])[: network.gate_count]
    state, data = start(network, rules, theta), images(network, 30)
    state = run(state, images(network), settings(gates={"learning_rate": 0.0}), 2)
    values = theta if gates == "mean" else (theta >= 0.5) * 1.0
    want, _, _ = torch_network.evaluate(
        network, state.params, values, data.x, data.labels, statistics=state.statistics, train=False
    )
    got = train.evaluate(state, data, ORACLE, gates=gates, batch_size=7)
    tolerance = e2(lambda b, jitter: {"loss": jitter(train.evaluate(state, data, b, gates=gates).loss)})
    assert_close("loss", np.float64(got.loss), want["loss"], tolerance["loss"])
    assert got.accuracy == np.mean(want["output"].argmax(axis=1) == data.labels)


# Numbers that are none ----------------------------------------------------------------------------------------------------


def run_quietly(*arguments):
    with np.errstate(all="ignore"):
        return run(*arguments)


def spoiled(name, value, network=None, theta=None):
    """One step from a state with `value` in one parameter."""
    network = network or mlp()
    rules = settings()
    state = start(network, rules, theta)
    params = state.params | {name: np.full_like(state.params[name], value)}
    run_quietly(dataclasses.replace(state, params=params), images(network), rules, 1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_parameter_that_is_no_number_is_named(value):
    network = Network((3,), (Dense(4), *[Section((Dense(3), Dense(4)))] * 3, Dense(3)))
    with pytest.raises(train.NonFiniteLoss, match=r"step 0: the loss is nan; .*parameter .* is section3\.dense1\.bias"):
        spoiled("section3.dense1.bias", value, network, np.ones(3))


def test_the_first_layer_that_overflows_is_named():
    relu = Activation("relu")
    network = Network((3,), (Dense(4), relu, Dense(4, name="here"), relu, Section((Dense(4, name="later"), relu)), Dense(3)))
    with pytest.raises(train.NonFiniteLoss, match="the first layer with an output that is not finite is here"):
        spoiled("here.weight", 1e308, network, np.ones(1))


def test_an_overflow_in_a_closed_path_is_named():
    relu = Activation("relu")
    network = Network((3,), (Dense(4), relu, Section((Dense(4, name="here"), relu)), Dense(3)))
    with pytest.raises(train.NonFiniteLoss, match="not finite is here"):
        spoiled("here.weight", 1e308, network, np.zeros(1))


def test_steps_that_are_too_long_end_in_one_sentence():
    network = Network((3,), (Dense(4), Activation("relu"), Section((Dense(4),)), Dense(3)))
    rules = settings(optimiser={"learning_rate": 1e200})
    with pytest.raises(train.NonFiniteLoss, match=r"step \d+: the loss is (nan|inf); the first") as caught:
        run_quietly(start(network, rules), images(network), rules, 8)
    assert any(f" {layer.name}" in str(caught.value) for layer, _ in network.placed())


def test_the_first_state():
    """θ₀, He's weights by name, momenta 0, nothing spent; dtype as configured."""
    network = convolutional()
    rules = settings(gates={"initial": 0.3}, training={"dtype": "float32", "section_scale": 0.5})
    state = train.init(rules, network)
    assert (state.theta == 0.3).all()
    assert state.theta.dtype == np.float64
    assert (state.step, state.macs, state.finished) == (0, 0, False)
    want = initialise(network, Streams(rules.seed), section_scale=0.5, dtype="float32")
    assert {a.dtype for n, a in named(state).items() if n != "theta"} == {np.dtype("float32")}
    for name, p in state.params.items():
        assert_identical(name, p, want[name])
        assert not state.velocity[name].any()


def test_a_float32_run_stays_float32():
    network, rules = convolutional(), settings(training={"dtype": "float32"}, objective={"weight_decay": 0.1, "penalty": 0.1})
    data = images(network)
    state = run(train.init(rules, network), train.Images(data.x.astype(np.float32), data.labels), rules, 2)
    assert {a.dtype for n, a in named(state).items() if n != "theta"} == {np.dtype("float32")}
    assert state.theta.dtype == np.float64


def test_the_ungated_network_is_the_same_without_gates():
    for make in NETWORKS.values():
        network = make()
        free = train.ungated(network)
        assert free.gate_count == 0
        assert free.parameter_shapes == network.parameter_shapes
        assert not any(isinstance(layer, UnitGate) for layer, _ in free.placed())


def test_layers_after_flatten_lose_blocks_of_columns_in_training():
    """A unit of a convolution goes with its block of columns behind the flatten."""
    network = Network((2, 4, 4), (Conv(3, (3, 3), padding=SAME), TANH, UnitGate(), Flatten(), Dense(3)))
    rules = settings(gates={"learning_rate": 0.0})
    compare_masked_and_compact(network, rules, np.array([1.0, 0.0, 1.0]), np.array([False, True, False]))


# What is not finite never decides ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["paired", "disarm", "arm", "reinforce", "taylor"])
def test_an_estimate_that_is_not_finite_stops_and_removes_nothing(estimator):
    """The base loss is finite, another pass of the estimator is not: θ must not become NaN and be taken for pruned."""
    network = Network((3,), (Dense(4), *[Section((Dense(3), Dense(4)))] * 2, Dense(3)))
    table = {"estimator": estimator, "floor": 0.01, "threshold": 0.02}
    rules = settings(gates=table | ({"samples": 8} if estimator == "reinforce" else {}))
    state = start(network, rules)
    big = {"section2.dense2.bias": np.full(4, 1e308), "section2.dense2.weight": np.full((4, 3), 1e308)}
    state = dataclasses.replace(state, params=state.params | big)
    (x, labels), *_ = batches(images(network), rules, 1)
    messages = []
    for step in range(20):
        try:
            train.step(dataclasses.replace(state, step=step), x, labels, rules, ORACLE, samples=32)
        except train.NonFiniteLoss as error:
            messages.append(str(error))
    of_the_estimate = [m for m in messages if f"the {estimator} estimate for gate section" in m]
    assert of_the_estimate or estimator == "taylor"  # taylor has no other pass: its closed path ends in the base loss
    assert len(messages) == 20 or estimator in ("disarm", "arm", "reinforce")  # whose passes may all leave section2 closed


def test_vertices_whose_loss_is_not_finite_are_not_compared():
    network, rules = mlp(), settings(gates={"threshold": 0.1})
    state = start(network, rules, np.full(8, 0.4))
    state = dataclasses.replace(state, params=state.params | {"section1.dense1.weight": np.full((3, 4), np.nan)})
    with pytest.raises(train.NonFiniteLoss, match="where undecided gates are compared"):
        settle.decide(state, images(network), rules, ORACLE)


@pytest.mark.parametrize("empty", ["close", "keep_constant"])
def test_the_vertices_of_the_last_unit_are_those_of_the_network_that_is_built(empty):
    """Closing an emptied section drops its constant: J_off must be the J without it, as it is with ξ = 0."""
    section = Section((Dense(1), TANH, UnitGate(), Dense(4)))
    network = Network((3,), (Dense(4), TANH, section, Dense(3)))
    rules = settings(gates={"threshold": 0.1, "empty": empty})
    state, data = start(network, rules, [0.95, 0.4]), images(network)
    _, (decision,), _ = settle.decide(state, data, rules, ORACLE)
    gates = np.array([0.0, 0.0]) if empty == "close" else np.array([1.0, 0.0])
    want = torch_objective(state, data, rules, gates)
    other = torch_objective(state, data, rules, np.array([1.0, 0.0]) if empty == "close" else np.array([0.0, 0.0]))
    tolerance = e2(lambda b, jitter: {"c": jitter(settle._training_loss(state, data, rules, b, np.array([1.0, 0.0]))[0])})
    assert_close("J", np.float64(decision.objective_off), np.float64(want), tolerance["c"])
    assert abs(want - other) > 1e3 * tolerance["c"]


def test_sampled_evaluation_is_the_mean_over_its_gates():
    """O9's third evaluation: one Ξ ~ Bern(θ) a batch from the stream "evaluation"; other numbers than training's."""
    network, rules = mlp(), settings()
    state, data = start(network, rules, np.full(8, 0.5)), images(network)
    got = train.evaluate(state, data, ORACLE, gates="sampled", seed=3, batch_size=16)
    uniforms = [Streams(3).uniform(f"evaluation/{g.name}", 0, (g.stop - g.start, 2)) for g in network.gates]
    losses = []
    for i, row in enumerate((np.concatenate(uniforms).T < 0.5).astype(np.float64)):
        x, labels = data.x[16 * i : 16 * (i + 1)], data.labels[16 * i : 16 * (i + 1)]
        losses.append(float(BatchLoss(network, ORACLE, state.params, x, labels, {}, train=False).evaluate(row).loss))
    assert_close("loss", np.float64(got.loss), np.float64(np.mean(losses)), gamma(34, U) * np.mean(losses))
    assert got.loss != train.evaluate(state, data, ORACLE, batch_size=16).loss


def test_training_takes_the_mean_cross_entropy_only():
    """β and λ are per sample (O1); a summed loss would weigh them wrongly without a word."""
    network = dataclasses.replace(mlp(), loss=Loss("cross_entropy", "sum"))
    with pytest.raises(InputError, match=r"network\.loss: training takes the mean cross-entropy"):
        train.init(settings(), network)


def test_the_two_scalings_convert_back():
    """O1: β = −log γ/N, to one rounding each way."""
    for beta in (0.0, 1e-7, 0.003, 17.0):
        for samples in (1, 7, 60_000):
            again = beta_from_log_gamma(log_gamma_from_beta(beta, samples), samples)
            assert_close("beta", np.float64(again), np.float64(beta), gamma(2, U) * beta)
            with pytest.raises(InputError, match="samples: must be an integer of at least 1, got 0"):
                log_gamma_from_beta(beta, 0)
