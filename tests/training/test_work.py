"""Multiply-accumulates of a step (O9) by hand and by what the backend was asked for; what a step keeps in memory."""

import dataclasses
import weakref
from collections import Counter

import numpy as np
import pytest
from small_training import (
    NETWORKS,
    TANH,
    images,
    run,
    settings,
    start,
)

from refprune.backend import FUNCTIONS, ORACLE
from refprune.gates.estimators import ESTIMATORS
from refprune.passes.batch_loss import BatchLoss
from refprune.spec.layers import Dense, Section
from refprune.spec.network import Network
from refprune.streams import Streams
from refprune.training import step as training_step


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
    gates = {"estimator": estimator, "gate_samples": samples, "floor": 0.01, "threshold": 0.01}
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
    update = training_step._weights_update

    def looking(*args):
        alive.extend(y for y in outputs if y() is not None)
        return update(*args)

    monkeypatch.setattr(training_step, "_weights_update", looking)
    run(start(network, rules), images(network), rules, 1, backend)
    assert len(outputs) > 6
    assert not alive
