"""The predictor against the plain pass, on random networks; what its rewrite joins; the fused functions' contract."""

import collections
import dataclasses
import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tolerance import assert_close, assert_identical, gamma

from refprune.backend import FUNCTIONS, FUSED, ORACLE, load_backend
from refprune.conformance.strategies import networks as ns
from refprune.errors import InputError
from refprune.passes import predictor as predictor_
from refprune.passes.batch_loss import BatchLoss
from refprune.passes.parameters import initial_statistics, initialise
from refprune.passes.predictor import Affine, Plain, Predictor, Sum, composed
from refprune.passes.tape import forward
from refprune.rounding.tolerance import UNIT, network_tolerance
from refprune.spec import zoo
from refprune.spec.layers import Activation, BatchNorm, Conv, Dense, Flatten, GlobalAveragePool, MaxPool, Section, UnitGate
from refprune.spec.network import Network
from refprune.streams import Streams

NUMBA = load_backend("numba")
UNFUSED = dataclasses.replace(ORACLE, **dict.fromkeys(FUSED))
EVALUATED = ns.cases(gates=ns.GATES, train=False)


def output(case, backend=ORACLE):
    return forward(case.network, backend, case.params, case.x, case.gates, statistics=case.statistics).output


def predictor(case, backend=ORACLE):
    return Predictor(case.network, backend, case.params, case.statistics, case.gates)


def check(case, backend=ORACLE):
    tolerance = network_tolerance(case.loss, case.gates, unit=UNIT["float64"]).output
    assert_close("output", predictor(case, backend)(case.x), output(case), tolerance, network=case.network)


@pytest.mark.parametrize("backend", [ORACLE, UNFUSED], ids=["fused", "composed"])
def test_a_predictor_gives_the_output_of_the_plain_pass(backend):
    """Every layer, gate place, shortcut and norm, all kinds of gates: catches a factor, a shift or a layer that gets lost."""

    @given(case=EVALUATED)
    def run(case):
        check(case, backend)

    run()


@given(case=EVALUATED)
def test_compiled_in_float32(case):
    """Against the oracle's plain pass, at numbers that float32 holds; the result stays float32."""
    params, statistics = ({n: a.astype(np.float32) for n, a in arrays.items()} for arrays in (case.params, case.statistics))
    x = case.x.astype(np.float32)
    got = Predictor(case.network, NUMBA, params, statistics, case.gates)(x)
    assert got.dtype == np.float32
    wide = [{n: a.astype(np.float64) for n, a in arrays.items()} for arrays in (params, statistics)]
    loss = BatchLoss(case.network, ORACLE, wide[0], x.astype(np.float64), case.target, wide[1], train=False)
    want = forward(case.network, ORACLE, loss.params, loss.x, case.gates, statistics=loss.statistics).output
    tolerance = network_tolerance(loss, case.gates, unit=UNIT["float32"]).output
    assert_close("output", got.astype(np.float64), want, tolerance, network=case.network)


NORMED = ns.Case(
    Network(
        (1, 6, 6),
        (
            *(Conv(3, (3, 3)), BatchNorm(), Activation("relu"), UnitGate(), Conv(2, (1, 1)), BatchNorm(), Activation("relu")),
            Section((Conv(2, (3, 3), padding=((1, 1), (1, 1))), BatchNorm(), Activation("relu")), post="relu"),
            *(GlobalAveragePool(), Dense(2)),
        ),
    ),
    batch=3,
    seed=4,
    train=False,
    gate_kind="fractional",
)


def _broken_scaled(affine, factor):
    return affine._replace(scale=factor if affine.scale is None else affine.scale * factor)


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("_scaled", _broken_scaled),
        ("_scaled", lambda affine, factor: affine),
        ("_joined", lambda affine, operation, arrays: affine),
    ],
    ids=["the shift is not scaled", "gates and norms are lost", "whatever follows is lost"],
)
def test_mistakes_in_the_rewrite_are_caught(monkeypatch, name, mistake):
    check(NORMED)
    monkeypatch.setattr(predictor_, name, mistake)
    with pytest.raises(AssertionError):
        check(NORMED)


# What is joined ---------------------------------------------------------------------------------------------------------


def names(program):
    """The program as nested names; an affine map says whether it has a scale, a shift, a ReLU."""
    found = []
    for item in program:
        if isinstance(item, Affine):
            parts = [("scale", item.scale is not None), ("shift", item.shift is not None), ("relu", item.relu)]
            found.append(" ".join([item.function, *(part for part, there in parts if there)]))
        else:
            found.append(item.function if isinstance(item, Plain) else (names(item.shortcut), names(item.path)))
    return found


def program(network, gates=None):
    params = initialise(network, Streams(0))
    return Predictor(network, ORACLE, params, initial_statistics(network), gates).program


def test_lenets_are_chains_of_fused_maps():
    hidden, last = "dense shift relu", "dense shift"
    assert names(program(zoo.lenet_300_100())) == ["flatten", hidden, hidden, last]
    stage = ["conv2d shift relu", "max_pool"]
    assert names(program(zoo.lenet5())) == [*stage, *stage, "flatten", hidden, last]


def test_norms_gates_and_relus_join_the_map_before_them():
    fused = "conv2d scale shift relu"
    assert names(predictor(NORMED).program) == [fused, fused, ([], [fused]), "leaky_relu", "global_average_pool", "dense shift"]


def test_what_is_no_affine_map_stays_a_call():
    """A norm behind a ReLU, a tanh, a gate behind a pool: the map before cannot say them."""
    layers = (Conv(2, (1, 1)), Activation("relu"), BatchNorm(), Conv(2, (1, 1), bias=False), Activation("tanh"))
    layers += (Conv(2, (1, 1)), Activation("leaky_relu"), Conv(2, (1, 1)), MaxPool((2, 2), (2, 2)), UnitGate())
    got = names(program(Network((1, 4, 4), (*layers, Conv(2, (1, 1)), Flatten(), Dense(2)))))
    first = ["conv2d shift relu", "batch_norm_eval", "conv2d", "tanh", "conv2d shift", "leaky_relu"]
    assert got == [*first, "conv2d shift", "max_pool", "gate", "conv2d shift", "flatten", "dense shift"]


def test_a_gate_joins_a_relu_only_if_it_is_not_negative():
    """ξ·relu(z) = relu(ξ·z) for ξ ≥ 0 only: a negative gate stays a call, and the output right."""
    network = Network((2,), (Dense(3), Activation("relu"), UnitGate(), Dense(2)))
    assert names(program(network, np.array([0.0, 0.5, 2.0]))) == ["dense scale shift relu", "dense shift"]
    gates, params = np.array([0.5, -0.5, 1.0]), initialise(network, Streams(0))
    assert names(program(network, gates)) == ["dense shift relu", "gate", "dense shift"]
    x = Streams(1).normal("x", 0, (4, 2))
    want = forward(network, ORACLE, params, x, gates).output
    assert_identical("output", Predictor(network, ORACLE, params, gates=gates)(x), want)


def test_closed_sections_are_dissolved():
    """Their path is gone, and a shortcut's map takes ρ with it."""
    section = Section((Dense(3), Activation("relu")), (Dense(3), BatchNorm()), post="relu")
    network = Network((3,), (section, section, Dense(2)))
    closed = "dense scale shift relu"
    assert names(program(network, np.zeros(2))) == [closed, closed, "dense shift"]
    sum_of = (["dense scale shift"], ["dense scale shift relu"])
    assert names(program(network, np.array([1.0, 0.0]))) == [sum_of, "leaky_relu", closed, "dense shift"]


def test_a_section_on_some_channels_knows_them():
    (section, _) = program(Network((3,), (Section((Dense(2),), gate=False, channels=(2, 0)), Dense(2))))
    assert isinstance(section, Sum)
    assert section.channels == (2, 0)


# Calls ------------------------------------------------------------------------------------------------------------------


def test_a_call_runs_each_item_once_and_nothing_else():
    """Counts the backend's calls: catches work for closed gates, and constants worked out again in every call."""
    counts = collections.Counter()

    def counted(name):
        def run(*args, **options):
            counts[name] += 1
            return getattr(ORACLE, name)(*args, **options)

        return run

    backend = dataclasses.replace(ORACLE, **{name: counted(name) for name in (*FUNCTIONS, *FUSED)})
    network = zoo.residual_mlp(sections=3)
    gates = np.array([1.0, 0.0, 1.0])
    predict = Predictor(network, backend, initialise(network, Streams(0)), gates=gates)
    assert not counts
    predict(np.ones((1, 1, 28, 28)))
    assert counts == {"flatten": 1, "dense_fused": 4, "add": 2}


def test_wrong_arrays_are_refused_as_by_the_plain_pass():
    network = NORMED.network
    params, statistics = NORMED.params, NORMED.statistics
    short = {name: p for name, p in params.items() if name != "dense1.bias"}
    for arguments in ((short, statistics), (params, {}), (params, statistics, np.ones(9))):
        with pytest.raises(InputError) as plain:
            forward(network, ORACLE, arguments[0], NORMED.x, *arguments[2:], statistics=arguments[1])
        with pytest.raises(InputError) as fast:
            Predictor(network, ORACLE, *arguments)
        assert str(fast.value) == str(plain.value)
    for shape in ((1, 6, 6), (0, 1, 6, 6), (2, 1, 6, 5)):
        with pytest.raises(InputError) as plain:
            forward(network, ORACLE, params, np.zeros(shape), statistics=statistics)
        with pytest.raises(InputError) as fast:
            predictor(NORMED)(np.zeros(shape))
        assert str(fast.value) == str(plain.value)


@given(case=EVALUATED)
def test_nothing_is_changed(case):
    """Read-only arrays in; a second call gives the same bits."""
    held = {"params": case.params, "statistics": case.statistics}
    x, gates = case.x, case.gates
    for a in (x, gates, *itertools.chain.from_iterable(arrays.values() for arrays in held.values())):
        a.flags.writeable = False
    predict = Predictor(case.network, ORACLE, **held, gates=gates)
    assert_identical("output", predict(x), predict(x))


def test_several_threads_share_a_predictor():
    network = zoo.lenet5()
    params = initialise(network, Streams(0), dtype="float32")
    predict = Predictor(network, NUMBA, params)
    batches = [Streams(i).normal("x", 0, (1 + i % 3, 1, 28, 28)).astype(np.float32) for i in range(24)]
    want = [predict(x) for x in batches]
    with ThreadPoolExecutor(4) as pool:
        for got, wanted in zip(pool.map(predict, batches), want, strict=True):
            assert_identical("output", got, wanted)


# The fused functions ----------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.booleans(), st.booleans(), st.booleans(), st.sampled_from((1, 2)))
def test_fused_functions_are_maps_with_an_epilogue(seed, scaled, shifted, relu, groups):
    """Against the formula; None is 1 and 0; composed of the pairs they are the same within rounding."""
    r = np.random.default_rng(seed)
    n, c, out = r.integers(1, 4), groups * r.integers(1, 3), groups * r.integers(1, 4)
    scale, shift = (r.standard_normal(out) if there else None for there in (scaled, shifted))
    conventions = {"stride": (1, 2), "padding": ((0, 1), (1, 0)), "dilation": (2, 1), "groups": int(groups)}
    calls = [
        ("dense", r.standard_normal((n, c)), r.standard_normal((out, c)), {}),
        ("conv2d", r.standard_normal((n, c, 5, 4)), r.standard_normal((out, c // groups, 3, 2)), conventions),
    ]
    for function, x, w, options in calls:
        s, t = (v.reshape(1, -1, *[1] * (x.ndim - 2)) for v in (np.ones(out) if scale is None else scale, shift_of(shift, out)))
        plain, _ = getattr(ORACLE, function)(x, w, **options)
        size, _ = getattr(ORACLE, function)(np.abs(x), np.abs(w), **options)
        want = plain * s + t
        want = np.where(want > 0.0, want, 0.0) if relu else want
        tolerance = gamma(w[0].size + 6, 2.0**-53) * (size * np.abs(s) + np.abs(t)) * 2.0
        for fused in (getattr(ORACLE, f"{function}_fused"), composed(ORACLE, function)):
            assert_close(function, fused(x, w, scale, shift, relu=relu, **options), want, tolerance)


def shift_of(shift, out):
    return np.zeros(out) if shift is None else shift
