"""E1-E4: bounds hold, noise has the right size, tolerances pass what is right and not what is wrong.

The backends and random networks, and the calibration on thousands of them, stand in calibration.py.
"""

import dataclasses
from types import MappingProxyType

import numpy as np
import pytest
from calibration import BACKENDS, SAME, SEQUENTIAL, U, candidate, flat, random_case, ratios, rounded, sequential_sum, tensors

from refprune import arrays
from refprune.backend import FUNCTIONS, ORACLE
from refprune.errors import InputError
from refprune.oracle import layers
from refprune.passes import parameters
from refprune.passes.batch_loss import BatchLoss
from refprune.rounding import noise, tolerance
from refprune.rounding.noise import noisy, widened
from refprune.rounding.tolerance import UNIT, inner_product_bound, layer_tolerance, network_tolerance, output_tolerance
from refprune.spec.layers import Activation, BatchNorm, Conv, Dense, GlobalAveragePool, MaxPool, Section, UnitGate
from refprune.spec.network import Network
from refprune.streams import Streams

# E1 -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 64, 576, 20_000])
def test_no_float32_inner_product_is_beyond_e1(n):
    rng = np.random.default_rng(n)
    for shift in (0.0, 3.0):
        x, y = (rng.standard_normal((20, n)).astype(np.float32) + np.float32(shift) for _ in range(2))
        wide = x.astype(np.float64) * y
        exact, bound = wide.sum(axis=1), inner_product_bound(n, np.abs(wide).sum(axis=1), U)
        for computed in (sequential_sum(x * y, (1,)), np.einsum("ij,ij->i", x, y), (x * y).sum(axis=1)):
            assert (np.abs(computed - exact) <= bound).all()
        if n <= 576:  # beyond that E1 is too wide to see one missing term
            assert (np.abs(exact - wide[:, -1] - exact) > bound).any()


def test_e1_by_hand_and_underflow():
    assert inner_product_bound(3, 2.0, U, roundings=1) == 4 * U / (1 - 4 * U) * 2.0 + 3 * 2.0**-126
    tiny = np.float32(2.0**-100)
    assert tiny * tiny == 0.0  # all of the product is lost
    assert abs(float(tiny) ** 2) <= inner_product_bound(1, 0.0, U)
    with pytest.raises(InputError, match=r"unit: 0\.1 is not known"):
        inner_product_bound(1, 1.0, 0.1)


# E2: size of the noise ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [8, 64, 1024])
@pytest.mark.parametrize("kind", ["zero-mean", "positive", "squares"])
def test_noise_of_a_sequential_sum_has_the_observed_size(n, kind):
    """SPEC E2: observed/model 0.3 to 0.9."""
    rng = np.random.default_rng([n, len(kind)])
    x = rng.standard_normal((400, n)).astype(np.float32)
    w = (rng.standard_normal((1, n)) if kind == "zero-mean" else np.ones((1, n))).astype(np.float32)
    x = {"zero-mean": x, "positive": np.abs(x), "squares": x * x}[kind]
    observed = np.sqrt(np.mean(np.square(SEQUENTIAL.dense(x, w)[0] - x.astype(np.float64) @ w.T.astype(np.float64))))
    (tolerance,) = layer_tolerance("dense", x, w, unit=U, factor=1.0)
    model = np.sqrt(np.mean(np.square(tolerance.noise)))
    assert 0.3 <= observed / model <= 0.9


@pytest.mark.parametrize("n", [64, 1000])
def test_noise_of_a_variance_has_the_observed_size(n):
    """1/√variance by sums in sequence, in float32: observed/model like that of other sums."""
    x = np.random.default_rng(n).standard_normal((n, 400)).astype(np.float32)
    mean = x.mean(axis=0, dtype=np.float64)
    variance = np.square(x - mean).mean(axis=0)
    summed = np.cumsum(np.square(x - mean.astype(np.float32)), axis=0)[-1] / np.float32(n)
    _, stretch = noise._moment_sizes(x.astype(np.float64), mean, variance, 0.0)
    observed = np.sqrt(np.mean(np.square(np.sqrt(variance / summed) - 1.0)))
    model = U * np.sqrt(np.mean(np.square(stretch)))
    assert 0.3 <= observed / model <= 0.6


def calls(seed=0):
    """Name → a call (args, options) for every forward function."""
    r = np.random.default_rng(seed)

    def a(*shape):
        return rounded(r.standard_normal(shape))

    image, pool = a(4, 6, 7, 7), {"kernel": (3, 3), "stride": (2, 2), "padding": SAME}
    found = {name: ((a(5, 8),), {}) for name in ("tanh", "sigmoid", "gelu", "gelu_tanh")}
    return found | {
        "dense": ((a(8, 30), a(7, 30), a(7)), {}),
        "conv2d": ((image, a(8, 3, 3, 3), a(8)), {"stride": (2, 1), "padding": ((0, 1), (1, 2)), "groups": 2}),
        "batch_norm": ((image + 1.0, a(6), a(6)), {"eps": 1e-5}),
        "batch_norm_eval": ((image, a(6), a(6), a(6), rounded(r.uniform(0.5, 2.0, 6))), {"eps": 1e-5}),
        "leaky_relu": ((image,), {"slope": 0.125, "at_zero": 0.0}),
        "max_pool": ((image,), pool | {"ties": "first"}),
        "average_pool": ((image,), pool | {"count_padding": True}),
        "global_average_pool": ((image,), {}),
        "flatten": ((image,), {}),
        "subsample_pad": ((image,), {"stride": (2, 2), "before": 1, "after": 2}),
        "add": ((image, a(4, 2, 7, 7)), {"channels": (4, 1)}),
        "gate": ((image, rounded(r.random(6))), {}),
        "cross_entropy": ((3.0 * a(9, 10), r.integers(0, 10, 9)), {"reduction": "mean"}),
        "mean_squared_error": ((a(9, 10), a(9, 10)), {"reduction": "sum"}),
        "weight_decay": ((a(20, 20),), {"strength": 0.25}),
    }


FORWARD = tuple(name for name in FUNCTIONS if not name.endswith("_vjp"))


def test_every_function_of_a_backend_has_a_noise_model():
    assert set(noise.MODELS) == set(FUNCTIONS)
    assert set(calls()) == set(FORWARD)


@pytest.mark.parametrize("name", FORWARD)
def test_noise_is_added_to_results_only(name):
    """Shapes, branch and Saved are those of the unperturbed call; 200 draws spread as `layer_tolerance` says."""
    args, options = calls()[name]
    backend = noisy(ORACLE, unit=1e-6, rng=np.random.default_rng(1))
    y, saved = getattr(ORACLE, name)(*args, **options)
    dy = np.asarray(np.random.default_rng(2).standard_normal(y.shape))
    exact = (y, *getattr(ORACLE, f"{name}_vjp")(saved, dy))
    draws = []
    for _ in range(200):
        noisy_y, noisy_saved = getattr(backend, name)(*args, **options)
        for mine, theirs in zip(noisy_saved.values, saved.values, strict=True):
            np.testing.assert_array_equal(mine, theirs)
        np.testing.assert_array_equal(noisy_saved.branch, saved.branch)
        draws.append((noisy_y, *getattr(backend, f"{name}_vjp")(noisy_saved, dy)))
    sizes = [*layer_tolerance(name, *args, unit=U, factor=1.0, **options)]
    sizes += layer_tolerance(f"{name}_vjp", saved, dy, unit=U, factor=1.0)
    for i, (want, size) in enumerate(zip(exact, sizes, strict=True)):
        got = np.array([d[i] for d in draws])
        assert got.shape == (200, *want.shape)
        deviation = np.sqrt(np.mean(np.square(got - want), axis=0)) / 1e-6 * U
        assert (deviation <= 1.4 * size.noise).all()
        unclipped = size.noise < size.certain
        assert (deviation[unclipped] >= 0.6 * size.noise[unclipped] - 1e-37).all()


@pytest.mark.parametrize("name", FORWARD)
@pytest.mark.parametrize("backend", BACKENDS)
def test_layers_in_float32_stay_within_their_tolerance(name, backend):
    backend = BACKENDS[backend]()
    for seed in range(10):
        args, options = calls(seed)[name]
        narrow = [a.astype(np.float32) if a.dtype.kind == "f" else a for a in args]
        y, saved = getattr(ORACLE, name)(*args, **options)
        y32, saved32 = getattr(backend, name)(*narrow, **options)
        dy = rounded(np.random.default_rng(seed).standard_normal(y.shape))
        want = (y, *getattr(ORACLE, f"{name}_vjp")(saved, dy))
        got = (y32, *getattr(backend, f"{name}_vjp")(saved32, dy.astype(np.float32)))
        sizes = [*layer_tolerance(name, *args, unit=U, **options), *layer_tolerance(f"{name}_vjp", saved, dy, unit=U)]
        for w, g, size in zip(want, got, sizes, strict=True):
            assert (np.abs(w - g) <= size.noise).all()
            assert (size.noise <= size.certain).all()


def test_input_gradients_not_asked_for_have_no_tolerance():
    args, options = calls()["conv2d"]
    y, saved = ORACLE.conv2d(*args, **options)
    backend = noisy(ORACLE, unit=U, rng=np.random.default_rng(0))
    assert backend.conv2d_vjp(saved, y, input_gradient=False)[0] is None
    assert layer_tolerance("conv2d_vjp", saved, y, unit=U, input_gradient=False)[0] is None


# E2: networks ---------------------------------------------------------------------------------------------------------


def small_network(depth=4, *, batch_norm=True, seed=3):
    norm = (BatchNorm(),) if batch_norm else ()
    path = (Conv(6, (3, 3), padding=SAME), *norm, Activation("relu"), UnitGate(), Conv(6, (3, 3), padding=SAME), *norm)
    sections = [Section(path=path, post="relu") for _ in range(depth)]
    stem = (Conv(6, (3, 3), padding=SAME), *norm, Activation("relu"), MaxPool((2, 2), (2, 2)))
    network = Network((3, 8, 8), (*stem, *sections, GlobalAveragePool(), Dense(10)))
    r = np.random.default_rng(seed)
    params = {k: rounded(v) for k, v in parameters.initialise(network, Streams(seed), section_scale=0.5).items()}
    x, labels = rounded(r.standard_normal((6, 3, 8, 8))), r.integers(0, 10, 6)
    return BatchLoss(network, ORACLE, params, x, labels, parameters.initial_statistics(network), True), np.ones(
        network.gate_count
    )


def test_noise_is_linear_in_the_unit(monkeypatch):
    """Injected at 2⁻³⁰ or 2⁻²⁶ with the same draws: the same tolerance; and float64's is 2⁻²⁹ of float32's.

    What is allowed is the second order; noise that grew like the root or the square of the unit would differ 4-fold, 16-fold.
    """
    loss, gates = small_network()
    reference = flat(network_tolerance(loss, gates, unit=U))
    double = flat(network_tolerance(loss, gates, unit=UNIT["float64"]))
    monkeypatch.setattr(tolerance, "INJECTED", 2.0**-26)
    for name, t in flat(network_tolerance(loss, gates, unit=U)).items():
        np.testing.assert_allclose(t, reference[name], rtol=1e-2)
        np.testing.assert_allclose(double[name], reference[name] * 2.0**-29, rtol=1e-6, atol=1e-46)


@pytest.mark.parametrize("backend", BACKENDS)
def test_random_networks_in_float32_stay_within_the_tolerance(backend):
    backend = BACKENDS[backend]()
    for seed in range(25):
        loss, gates = random_case(seed)
        found, _ = ratios(loss, gates, backend, run_closed=bool(seed % 2))
        assert max(found.values()) <= 1.0, (seed, max(found, key=found.get))


def test_float64_is_judged_on_its_own_scale():
    loss, gates = small_network()
    assert max(ratios(loss, gates, SEQUENTIAL, "float64")[0].values()) <= 1.0
    assert max(ratios(loss, gates, ORACLE, "float32", factor=12.0 * 2.0**-29)[0].values()) > 1e4


def _scaled_weight_gradient(saved, dy, **options):
    dx, dw, db = layers.conv2d_vjp(saved, dy, **options)
    return dx, dw * dw.dtype.type(1.001), db


def _one_wrong_entry(saved, dy, **options):
    dx, dw, db = layers.conv2d_vjp(saved, dy, **options)
    dw.flat[7] += dw.dtype.type(1e-3) * np.sqrt(np.mean(np.square(dw)))
    return dx, dw, db


def _without_variance(saved, dy):
    """μ depends on x, v is taken as a constant."""
    _, inverse, gain = saved.values
    _, dgain, dbias = layers.batch_norm_vjp(saved, dy)
    centred = dy - arrays.per_channel(dbias / dy.dtype.type(dy.size // dy.shape[1]), dy.ndim)
    return centred * arrays.per_channel(gain * inverse, dy.ndim), dgain, dbias


def _gate_forgotten(saved, dy):
    return dy, layers.gate_vjp(saved, dy)[1]


@pytest.mark.parametrize(
    ("function", "mistake"),
    [
        ("conv2d_vjp", _scaled_weight_gradient),
        ("conv2d_vjp", _one_wrong_entry),
        ("batch_norm_vjp", _without_variance),
        ("gate_vjp", _gate_forgotten),
        ("max_pool_vjp", lambda saved, dy: (layers.max_pool_vjp(saved._replace(branch=0 * saved.branch), dy)[0],)),
    ],
)
def test_planted_mistakes_exceed_the_tolerance(function, mistake):
    loss, gates = small_network(depth=10)
    gates[[1, 4, 9]] = 0.0  # three units
    mutant = dataclasses.replace(ORACLE, **{function: mistake})
    assert max(ratios(loss, gates, ORACLE)[0].values()) <= 1.0
    assert max(ratios(loss, gates, mutant)[0].values()) > 2.0


def test_what_no_noise_reaches_must_be_exact():
    """Behind a closed gate gradients are 0 (N3): the smallest number there is an error."""
    loss, gates = small_network()
    closed = loss.network.gate_groups[0]
    gates[closed.slice] = 0.0
    tolerance = network_tolerance(loss, gates, unit=U)
    name = f"{closed.name}.conv1.weight"
    assert tolerance.params[name].max() < 1e-37
    assert tolerance.gates[closed.slice] < 1e-37
    assert network_tolerance(loss, gates, unit=U, run_closed=True).gates[closed.slice] > 1e-9


def test_freezing_matters():
    """One ReLU input at 0: without frozen branches its flips widen the spread many times, and would hide mistakes."""
    network = Network((4,), (Dense(6), Activation("relu"), Dense(3)))
    r = np.random.default_rng(0)
    params = {k: rounded(v) for k, v in parameters.initialise(network, Streams(1)).items()}
    loss = BatchLoss(network, ORACLE, params, rounded(r.standard_normal((3, 4))), r.integers(0, 3, 3))
    outputs = {}
    loss.evaluate(np.ones(0), observe=outputs.__setitem__)
    at_zero = outputs["dense1"][0, 0]
    params["dense1.bias"][0] -= at_zero + 1e-12
    want, frozen = tensors(loss, np.ones(0))
    tolerance = network_tolerance(loss, np.ones(0), unit=U)

    def spread(branches):
        runs = []
        for k in range(16):
            backend = noisy(ORACLE, unit=U, rng=np.random.default_rng(k))
            runs.append(tensors(dataclasses.replace(loss, backend=backend), np.ones(0), branches)[0])
        name = "params dense1.weight"
        return np.sqrt(np.mean([np.square(t[name] - want[name]) for t in runs]))

    assert spread(None) > 50.0 * spread(frozen.tape.branches)
    loss.evaluate(np.ones(0), observe=outputs.__setitem__)
    assert np.abs(outputs["dense1"][0, 0]) < tolerance.kinks["relu1"][0, 0]  # E3: a kink, not an error


def test_tolerances_have_the_shapes_of_their_tensors_and_repeat():
    for seed in range(6):
        loss, gates = random_case(seed)
        want, _ = tensors(loss, gates)
        first, second = (flat(network_tolerance(candidate(loss, None), gates, unit=U, runs=2)) for _ in range(2))
        assert {n: t.shape for n, t in first.items()} == {n: np.shape(t) for n, t in want.items()}
        for name, t in first.items():
            np.testing.assert_array_equal(t, second[name])


def test_the_outputs_tolerance_alone_is_the_same():
    """`output_tolerance` leaves out the backward passes and nothing else."""
    network = Network((3,), (Dense(5), Activation("relu"), UnitGate(), Dense(4), BatchNorm(), Activation("tanh"), Dense(2)))
    params, statistics = parameters.initialise(network, Streams(1)), parameters.initial_statistics(network)
    x = Streams(2).normal("x", 0, (4, 3))
    loss = BatchLoss(network, ORACLE, params, x, np.array([0, 1, 1, 0]), statistics, train=False)
    gates = np.array([1.0, 0.0, 1.0, 1.0, 0.0])
    for unit in (UNIT["float32"], UNIT["float64"]):
        want = network_tolerance(loss, gates, unit=unit).output
        np.testing.assert_array_equal(output_tolerance(loss, gates, unit=unit), want)


def test_widening_keeps_shapes_and_enters_every_container():
    """NumPy before 2.4 makes a number of an array with one element where it is called as np.float64(array)."""
    one = np.full((1, 1), 0.5, np.float32)
    found = widened(MappingProxyType({"x": one, "nested": {"pair": (one[0], np.array([3]))}}))
    assert (found["x"].shape, found["x"].dtype) == ((1, 1), np.float64)
    first, labels = found["nested"]["pair"]
    assert (first.shape, first.dtype) == ((1,), np.float64)
    assert labels.dtype.kind == "i"
