"""What the tests of training share: small networks without kinks, states off their special values, tolerances of trajectories.

Tolerances are measured as in E2, for whole trajectories: `e2` runs the same computation with a noisy backend.
"""

import dataclasses
import itertools

import numpy as np

from refprune.backend import ORACLE
from refprune.rounding.noise import noisy
from refprune.rounding.tolerance import INJECTED, NETWORK_FACTOR, UNIT, smallest_normal
from refprune.spec.layers import Activation, BatchNorm, Conv, Dense, GlobalAveragePool, Section, UnitGate
from refprune.spec.network import Network
from refprune.streams import Streams
from refprune.training import config
from refprune.training.images import Images, epoch_batches
from refprune.training.loop import train, train_epochs
from refprune.training.state import initial_state

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
    return Images(streams.normal("images", 0, (n, *network.input_shape)), labels)


def start(network, rules, theta=None):
    """The first state, with biases and gains off their special values, momenta off zero."""
    state, streams = initial_state(rules, network), Streams(11)
    params = {name: p + 0.2 * streams.normal(f"off/{name}", 0, p.shape) for name, p in state.params.items()}
    velocity = {name: 0.1 * streams.normal(f"velocity/{name}", 0, p.shape) for name, p in state.params.items()}
    theta = state.theta if theta is None else np.asarray(theta, dtype=np.float64)
    return dataclasses.replace(state, params=params, velocity=velocity, theta=theta)


def batches(data, rules, count):
    epochs = (epoch_batches(data, rules, epoch) for epoch in itertools.count())
    return list(itertools.islice(itertools.chain.from_iterable(epochs), count))


def run(state, data, rules, count, backend=ORACLE, after=lambda state: state):
    """`count` steps of the loop, from which no gate goes; `after` is applied to every state."""
    for _ in range(count):
        state = after(next(train_epochs(state, rules, data, backend, until=state.step + 1, removes=False)).state)
    return state


def ended(state, data, rules):
    """What the loop does when the epochs are over: the events Decided and Finished."""
    decided, finished = train(state, rules, data, ORACLE, until=0)
    return decided, finished


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
