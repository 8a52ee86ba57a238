"""E1-E4: bounds hold, noise has the right size, tolerances pass what is right and not what is wrong.

`python tests/test_rounding.py FIRST LAST` measures max error/tolerance on random networks in float32 (the calibration).
"""

import collections
import dataclasses
import sys

import numpy as np
import pytest

from refprune import layers, noise, rounding
from refprune import network as nw
from refprune.backend import FUNCTIONS, ORACLE
from refprune.errors import InputError
from refprune.layers import Saved
from refprune.layerspec import (
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
from refprune.noise import noisy
from refprune.objective import BatchLoss
from refprune.rounding import UNIT, inner_product_bound, layer_tolerance, network_tolerance
from refprune.spec import Loss, Network
from refprune.streams import Streams

U = UNIT["float32"]


def rounded(a):
    """Numbers that float32 holds, as float64."""
    return np.asarray(a).astype(np.float32).astype(np.float64)


def sequential_sum(products, axes):
    """Σ over axes, one term after the other, in the dtype of `products`: what E2's model describes (np.cumsum does it)."""
    rest = [a for a in range(products.ndim) if a not in axes]
    flat = products.transpose(*rest, *axes).reshape(*(products.shape[a] for a in rest), -1)
    return np.cumsum(flat, axis=-1, dtype=products.dtype)[..., -1]


# A backend that sums in sequence: the least accurate of the correct ones -----------------------------------------------


def _channels(v, ndim):
    return v.reshape((1, -1) + (1,) * (ndim - 2))


def _axes(x):
    return (0, *range(2, x.ndim))


def _dense(x, w, b=None):
    y = sequential_sum(x[:, None, :] * w[None], (2,))
    return (y if b is None else y + b), Saved((x, w))


def _dense_vjp(saved, dy, *, input_gradient=True):
    x, w = saved.values
    dx = sequential_sum(dy[:, :, None] * w[None], (1,)) if input_gradient else None
    return dx, sequential_sum(dy[:, :, None] * x[:, None, :], (0,)), sequential_sum(dy, (0,))


def _patches(x, w, stride, padding, dilation, groups):
    """Per group, N×Ho×Wo×1×(C/groups·kh·kw)."""
    windows = layers._windows(layers._pad(x, padding), w.shape[2:], stride, dilation)
    for part in np.split(windows, groups, axis=1):
        p = part.transpose(0, 2, 3, 1, 4, 5)
        yield p.reshape(*p.shape[:3], 1, -1)


def _conv2d(x, w, b=None, *, stride=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1):
    parts = zip(_patches(x, w, stride, padding, dilation, groups), np.split(w, groups), strict=True)
    y = np.concatenate([sequential_sum(p * wg.reshape(len(wg), -1), (4,)) for p, wg in parts], axis=-1).transpose(0, 3, 1, 2)
    return (y if b is None else y + _channels(b, 4)), Saved((x, w, stride, padding, dilation, groups))


def _conv2d_vjp(saved, dy, *, input_gradient=True):
    x, w, stride, padding, dilation, groups = saved.values
    parts = zip(_patches(x, w, stride, padding, dilation, groups), np.split(dy, groups, axis=1), strict=True)
    dw = [sequential_sum(p * g.transpose(0, 2, 3, 1)[..., None], (0, 1, 2)) for p, g in parts]
    dx = layers.conv2d_vjp(saved, dy, input_gradient=input_gradient)[0]
    return dx, np.concatenate(dw).reshape(w.shape), sequential_sum(dy, (0, 2, 3))


def _batch_norm(x, gain, bias, *, eps):
    """Also the other formula: x·f + (bias − m·f)."""
    n = x.dtype.type(x.size // x.shape[1])
    mean = sequential_sum(x, _axes(x)) / n
    centred = x - _channels(mean, x.ndim)
    variance = sequential_sum(centred * centred, _axes(x)) / n
    inverse = (1.0 / np.sqrt(variance + eps)).astype(x.dtype)
    f = inverse * gain
    y = x * _channels(f, x.ndim) + _channels(bias - mean * f, x.ndim)
    return y, Saved((centred * _channels(inverse, x.ndim), inverse, gain), statistics=(mean, variance))


def _batch_norm_vjp(saved, dy):
    normal, inverse, gain = saved.values
    n, nd = dy.dtype.type(dy.size // dy.shape[1]), dy.ndim
    db, dg = sequential_sum(dy, _axes(dy)), sequential_sum(dy * normal, _axes(dy))
    return (dy - _channels(db / n, nd) - normal * _channels(dg / n, nd)) * _channels(gain * inverse, nd), dg, db


def _batch_norm_eval_vjp(saved, dy):
    normal, inverse, gain = saved.values
    dgain = sequential_sum(dy * normal, _axes(dy))
    return dy * _channels(gain * inverse, dy.ndim), dgain, sequential_sum(dy, _axes(dy))


def _global_average_pool(x):
    return sequential_sum(x, (2, 3)) / x.dtype.type(x.shape[2] * x.shape[3]), Saved((x.shape,))


def _gate_vjp(saved, dy):
    x, g = saved.values
    return layers.gate_vjp(saved, dy)[0], sequential_sum(x * dy, tuple(range(x.ndim)) if g.ndim == 0 else _axes(x))


def _cross_entropy(logits, labels, *, reduction):
    _, saved = layers.cross_entropy(logits, labels, reduction=reduction)
    loss = sequential_sum(-saved.values[0][np.arange(len(labels)), labels], (0,))
    return np.asarray(loss / loss.dtype.type(len(labels) if reduction == "mean" else 1)), saved


SEQUENTIAL = dataclasses.replace(
    ORACLE,
    name="sequential",
    dense=_dense,
    dense_vjp=_dense_vjp,
    conv2d=_conv2d,
    conv2d_vjp=_conv2d_vjp,
    batch_norm=_batch_norm,
    batch_norm_vjp=_batch_norm_vjp,
    batch_norm_eval_vjp=_batch_norm_eval_vjp,
    global_average_pool=_global_average_pool,
    gate_vjp=_gate_vjp,
    cross_entropy=_cross_entropy,
)


# Random networks ------------------------------------------------------------------------------------------------------

ACTIVATIONS = ("relu",) * 6 + ("leaky_relu", "tanh", "sigmoid", "gelu", "gelu_tanh")
SAME = ((1, 1), (1, 1))


def random_case(seed):
    """A random network of 1 to 24 sections, dense or convolutional, with its batch loss and gates."""
    r = np.random.default_rng([7, seed])
    depth = int(r.choice([1, 2, 3, 4, 6, 8, 12, 24], p=[0.15, 0.15, 0.15, 0.15, 0.14, 0.12, 0.1, 0.04]))
    with_norm, images = r.integers(2), r.integers(2)
    n, classes, width = int(r.integers(2, 7)), int(r.integers(2, 11)), int(r.integers(2, 9) if images else r.integers(2, 40))

    def act():
        return Activation(str(r.choice(ACTIVATIONS)))

    def norm():
        return (BatchNorm(),) if with_norm and r.integers(4) else ()

    def affine(units, stride=(1, 1)):
        return Conv(units, (3, 3), stride, SAME, bias=bool(r.integers(2))) if images else Dense(units, bias=bool(r.integers(2)))

    def section():
        post = str(r.choice(("identity", "relu")))
        if r.integers(2):
            gates = (UnitGate(),) if r.integers(2) else ()
            path = (affine(int(r.integers(2, 2 * width + 1))), *norm(), act(), *gates, affine(width), *norm())
            return Section(path=path, post=post)
        place, last = str(r.choice(("path", "preactivation"))), Activation(str(r.choice(("relu", "tanh", "gelu"))))
        return Section(path=(affine(width), *norm(), last), gate_place=place, post=post)

    chain = [affine(width), *norm(), act()]
    if images:
        pools = (MaxPool((2, 2), (2, 2)), MaxPool((3, 3), (2, 2), SAME), AveragePool((3, 3), (2, 2), SAME, count_padding=False))
        chain += [[], [], *([p] for p in pools)][r.integers(5)]
        if r.integers(3) == 0:
            path = (affine(2 * width, (2, 2)), *norm(), act(), affine(2 * width), *norm())
            pads = SubsamplePad((2, 2), width // 2, width - width // 2)
            chain.append(Section(path=path, shortcut=(pads,) if r.integers(2) else (Conv(2 * width, (1, 1), (2, 2)), *norm())))
            width *= 2
    chain += [section() for _ in range(depth - 1)]
    if images:
        chain.append(GlobalAveragePool() if r.integers(2) else Flatten())
    entropy = bool(r.integers(4))
    loss = Loss() if entropy else Loss("mean_squared_error", str(r.choice(("mean", "batch_mean", "sum"))))
    size = int(r.integers(5, 11))
    shape = (int(r.integers(1, 4)), size, size) if images else (int(r.integers(1, 60)),)
    network = Network(shape, (*chain, Dense(classes)), loss)
    initial = nw.initialise(network, Streams(seed), section_scale=float(r.choice((0.3, 1.0))))
    params = {k: rounded(v if k.endswith("weight") else v + 0.2 * r.standard_normal(v.shape)) for k, v in initial.items()}
    statistics = {
        k: rounded(v + (0.3 * r.standard_normal(v.shape) if k.endswith("mean") else r.uniform(-0.5, 1.5, v.shape)))
        for k, v in nw.initial_statistics(network).items()
    }
    x = rounded(r.standard_normal((n, *network.input_shape)) + float(r.integers(4) == 0))
    target = r.integers(0, classes, n) if entropy else rounded(r.standard_normal((n, classes)))
    gates = (r.random(network.gate_count) < 0.8).astype(float) if r.integers(8) else rounded(r.random(network.gate_count))
    return BatchLoss(network, ORACLE, params, x, target, statistics, bool(r.integers(2))), gates


def tensors(loss, gates, branches=None, run_closed=False):
    """Name → what is judged."""
    return rounding._tensors(loss, gates, branches, run_closed)


def candidate(loss, backend, dtype="float32"):
    def cast(arrays):
        return {name: a.astype(dtype) for name, a in arrays.items()}

    target = loss.target if loss.target.dtype.kind == "i" else loss.target.astype(dtype)
    return dataclasses.replace(
        loss,
        backend=backend,
        params=cast(loss.params),
        x=loss.x.astype(dtype),
        target=target,
        statistics=cast(loss.statistics),
    )


def flat(tolerance):
    single = {name: getattr(tolerance, name) for name in ("loss", "output", "gates", "input")}
    groups = {f"{group} {name}": t for group in ("params", "kinks") for name, t in getattr(tolerance, group).items()}
    return single | groups


def ratios(loss, gates, backend, dtype="float32", *, run_closed=False, **options):
    """Tensor → max error/tolerance of `backend` in `dtype`; at a kink both take its branches (E3). And: was there one?"""
    want, mine = tensors(loss, gates, None, run_closed)
    got, theirs = tensors(candidate(loss, backend, dtype), gates.astype(dtype), None, run_closed)
    branches = theirs.tape.branches
    kink = any(not np.array_equal(b, branches[name]) for name, b in mine.tape.branches.items())
    if kink:
        want, _ = tensors(loss, gates, branches, run_closed)
    tolerance = flat(network_tolerance(loss, gates, unit=UNIT[dtype], branches=branches, run_closed=run_closed, **options))
    found = {}
    for name, t in tolerance.items():
        error = np.abs(want[name] - got[name])
        found[name] = float(np.max(np.where(error == 0.0, 0.0, error / t), initial=0.0))
    return found, kink


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
    observed = np.sqrt(np.mean(np.square(_dense(x, w)[0] - x.astype(np.float64) @ w.T.astype(np.float64))))
    (tolerance,) = layer_tolerance("dense", x, w, unit=U, factor=1.0)
    model = np.sqrt(np.mean(np.square(tolerance.noise)))
    assert 0.3 <= observed / model <= 0.9


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
@pytest.mark.parametrize("backend", [ORACLE, SEQUENTIAL], ids=["oracle", "sequential"])
def test_layers_in_float32_stay_within_their_tolerance(name, backend):
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
    params = {k: rounded(v) for k, v in nw.initialise(network, Streams(seed), section_scale=0.5).items()}
    x, labels = rounded(r.standard_normal((6, 3, 8, 8))), r.integers(0, 10, 6)
    return BatchLoss(network, ORACLE, params, x, labels, nw.initial_statistics(network), True), np.ones(network.gate_count)


def test_noise_is_linear_in_the_unit(monkeypatch):
    """Injected at 2⁻³⁰ or 2⁻²⁶ with the same draws: the same tolerance; and float64's is 2⁻²⁹ of float32's."""
    loss, gates = small_network()
    reference = flat(network_tolerance(loss, gates, unit=U))
    double = flat(network_tolerance(loss, gates, unit=UNIT["float64"]))
    monkeypatch.setattr(rounding, "INJECTED", 2.0**-26)
    for name, t in flat(network_tolerance(loss, gates, unit=U)).items():
        np.testing.assert_allclose(t, reference[name], rtol=1e-2)
        np.testing.assert_allclose(double[name], reference[name] * 2.0**-29, rtol=1e-6, atol=1e-46)


@pytest.mark.parametrize("backend", [ORACLE, SEQUENTIAL], ids=["oracle", "sequential"])
def test_random_networks_in_float32_stay_within_the_tolerance(backend):
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
    centred = dy - _channels(dbias / dy.dtype.type(dy.size // dy.shape[1]), dy.ndim)
    return centred * _channels(gain * inverse, dy.ndim), dgain, dbias


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
    closed = loss.network.gates[0]
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
    params = {k: rounded(v) for k, v in nw.initialise(network, Streams(1)).items()}
    loss = BatchLoss(network, ORACLE, params, rounded(r.standard_normal((3, 4))), r.integers(0, 3, 3))
    at_zero = loss.evaluate(np.ones(0)).tape.inputs[1][0, 0]
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
    assert np.abs(frozen.tape.inputs[1][0, 0]) < tolerance.kinks["relu1"][0, 0]  # E3: a kink, not an error


def test_tolerances_have_the_shapes_of_their_tensors_and_repeat():
    for seed in range(6):
        loss, gates = random_case(seed)
        want, _ = tensors(loss, gates)
        first, second = (flat(network_tolerance(candidate(loss, None), gates, unit=U, runs=2)) for _ in range(2))
        assert {n: t.shape for n, t in first.items()} == {n: np.shape(t) for n, t in want.items()}
        for name, t in first.items():
            np.testing.assert_array_equal(t, second[name])


# Calibration ----------------------------------------------------------------------------------------------------------


def calibrate(first, last):
    """Max error/tolerance over random networks: NumPy's and the sequential float32, by kind of tensor."""
    for backend in (ORACLE, SEQUENTIAL):
        worst, kinks = collections.defaultdict(float), 0
        for seed in range(first, last):
            loss, gates = random_case(seed)
            found, kink = ratios(loss, gates, backend, run_closed=bool(seed % 2))
            kinks += kink
            for name, ratio in found.items():
                kind = name.rpartition(".")[2] if name.startswith("params") else name.split()[0]
                worst[kind] = max(worst[kind], ratio)
        print(f"{backend.name}: {last - first} cases, {kinks} kinks;", {k: round(v, 3) for k, v in sorted(worst.items())})


if __name__ == "__main__":
    calibrate(int(sys.argv[1]), int(sys.argv[2]))
