"""The JAX adapter, judged as `refprune verify` judges it. Without JAX (`pip install -e '.[jax]'`) this file is skipped."""

import numpy as np
import pytest

pytest.importorskip("jax", reason="JAX is not installed (extra 'jax'): its adapter is not tested")

import jax.numpy as jnp
from jax import lax

from refprune.adapters.jax import layers
from refprune.adapters.jax.implementation import JaxImplementation, Model
from refprune.conformance import campaign
from refprune.conformance.asking.calls import InProcess
from refprune.conformance.levels import LEVELS, METHODS
from refprune.conformance.strategies import networks
from refprune.spec.json_form import to_json
from refprune.spec.layers import Activation, Dense, Section
from refprune.spec.network import Network

PROVIDED = [m.name for level in LEVELS.values() for m in level if m.name != "compact"]


@pytest.fixture(autouse=True)
def _little_shrinking(monkeypatch):
    monkeypatch.setattr(campaign, "SHRINKING", 2.0)


def judged(implementation, name, *, structures=2, examples=12):
    """The outcome of so many examples."""
    implementation.structures = structures
    (outcome,) = campaign.run(InProcess(implementation), [METHODS[name]], examples, 0)
    return outcome


def test_it_provides_all_but_surgery():
    assert set(InProcess(JaxImplementation()).description.provided) == set(PROVIDED)


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("name", [n for n in PROVIDED if n != "network"])
def test_every_method_conforms(name, precision):
    mine = JaxImplementation()
    mine.precision = precision
    outcome = judged(mine, name)
    assert outcome.verdict == "conforms", outcome.findings
    assert outcome.declined < outcome.examples


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_networks_conform(precision):
    """Everything that is documented is compared."""
    mine = JaxImplementation()
    mine.precision = precision
    outcome = judged(mine, "network", structures=1, examples=30)
    assert outcome.verdict == "conforms", outcome.findings
    assert set(outcome.tensors) >= {"layers", "output", "loss", "statistics", "params", "gates", "input"}


def test_one_structure_is_traced_once():
    """Other numbers of the same network are a call of the same program."""
    traced = []

    class Counting(JaxImplementation):
        def model(self, *arguments, **options):
            traced.append(1)
            return super().model(*arguments, **options)

    network = Network((3,), (Section((Dense(4), Activation(), Dense(3))), Dense(2)))
    mine = Counting()
    for seed in (1, 2):
        case = networks.Case(network, batch=3, seed=seed, train=True)
        mine.network(to_json(network), case.params, {}, case.x, case.target, case.gates, True)
    assert len(traced) == 1


def test_branches_of_ties():
    """The first of equal maxima, in windows that overlap and reach over the border."""
    x = jnp.array([[[[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]]])
    found = layers.max_pool_choice(x, kernel=(2, 2), stride=(1, 1), padding=((1, 0), (0, 1)))
    np.testing.assert_array_equal(found[0, 0], [[2, 2, 2], [0, 0, 2]])


# Mistakes that are easily made in JAX, and must be found ------------------------------------------------------------------


class Halving(JaxImplementation):
    """jnp.maximum for ReLU: its gradient at 0 is ½, whatever is asked for."""

    def leaky_relu(self, x, dy, slope, at_zero):
        return super().leaky_relu(x, dy, slope, 0.5)


class Stopped(JaxImplementation):
    """A gate that is taken for a constant."""

    def gate(self, x, g, dy):
        return self.vjp(lambda x, g: layers.gate(x, lax.stop_gradient(g)), dy, x, g)


class Moving(JaxImplementation):
    """Compiled code computes closed sections too, and here their statistics move."""

    def model(self, *arguments, **options):
        model = Model(*arguments, **options)
        model.keep_statistics = lambda section, closed: None
        return model


class Unbatched(JaxImplementation):
    """The antithetic pair's difference is not halved."""

    def estimate(self, losses, theta, uniform):
        return 2.0 * super().estimate(losses, theta, uniform)


class Narrow(JaxImplementation):
    """float64 computed in float32, which JAX does unless it is told not to."""

    def array(self, a):
        return super().array(a).astype("float32").astype(a.dtype) if isinstance(a, np.ndarray) else a


@pytest.mark.parametrize(
    ("implementation", "method", "first", "mistake"),
    [
        (Halving, "leaky_relu", "dx", None),
        (Stopped, "gate", "dg", "no gradient for the gate"),
        (Moving, "network", "statistics", None),
        (Unbatched, "theta_estimate", "theta_estimate", None),
        (Narrow, "dense", "y", None),
    ],
)
def test_a_mistake_is_found(implementation, method, first, mistake):
    outcome = judged(implementation(), method, examples=60)
    assert outcome.verdict == "DEVIATES"
    (finding,) = outcome.findings
    assert finding.first.name.startswith(first)
    assert mistake is None or mistake in [m.name for m in finding.mistakes]
