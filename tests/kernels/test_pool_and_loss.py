"""Pooling, losses, the update and crops of the numba backend against the oracle; threads, fallbacks, a planted mistake."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_comparison import (
    DTYPES,
    EXAMPLES,
    FAST,
    SAME,
    Inputs,
    absolute,
    check,
    complaints,
    conv_results,
    double,
    dtypes,
    few,
    limit,
    seeds,
    some,
    term_roundings,
)

from refprune.backend import FUNCTIONS, FUSED, ORACLE, WITHOUT_VJP, load_backend
from refprune.errors import InputError
from refprune.oracle import crop_flip, layers, momentum
from refprune.spec import zoo
from refprune.training import config
from refprune.training.state import initial_state
from refprune.training.step import train_step

# --------------------------------------------------------------------------------------------------------------------
# Pooling


@st.composite
def pools(draw: Any) -> tuple[tuple[int, int], dict[str, Any]]:
    """Image size and pooling conventions; padding below the kernel, so that every window has a real pixel."""
    kernel, stride = draw(st.tuples(few, few)), draw(st.tuples(few, few))
    padding = tuple(tuple(draw(st.integers(0, k - 1)) for _ in range(2)) for k in kernel)
    size = tuple(draw(st.integers(k, k + 6)) for k in kernel)
    return size, {"kernel": kernel, "stride": stride, "padding": padding}


@EXAMPLES
@given(seeds, dtypes, st.booleans(), few, st.integers(1, 4), pools(), st.sampled_from(["first", "last"]))
def test_max_pool(seed: int, dtype: Any, equal: bool, n: int, channels: int, pool: Any, ties: str) -> None:
    inputs, (size, how) = Inputs(seed, dtype), pool
    x = inputs.array(n, channels, *size, integers=equal)
    y, saved = FAST.max_pool(x, ties=ties, **how)
    want, exact = layers.max_pool(x, ties=ties, **how)
    assert y.dtype == dtype
    assert saved.branch.dtype == np.uint8
    np.testing.assert_array_equal(saved.branch, exact.branch)
    np.testing.assert_array_equal(y, want)
    dy, terms = inputs.array(*want.shape), how["kernel"][0] * how["kernel"][1]
    other = inputs.random.integers(0, terms, want.shape)
    forced, saved_forced = FAST.max_pool(x, ties=ties, branch=other, **how)
    np.testing.assert_array_equal(forced, layers.max_pool(x, ties=ties, branch=other, **how)[0])
    for name, record in (("own", saved), ("forced", saved_forced)):
        (wanted,), (bound,) = layers.max_pool_vjp(record, *double(dy)), layers.max_pool_vjp(record, *absolute(dy))
        check(dtype, {f"{name} dx": (FAST.max_pool_vjp(record, dy)[0], wanted, terms, bound)})
    inputs.assert_unchanged()


def test_max_pool_without_channels() -> None:
    how: dict[str, Any] = {"kernel": (2, 2), "stride": (2, 2), "padding": ((0, 0), (0, 0)), "ties": "first"}
    y, saved = FAST.max_pool(np.ones((2, 0, 4, 4)), **how)
    assert y.shape == (2, 0, 2, 2)
    assert FAST.max_pool_vjp(saved, y)[0].shape == (2, 0, 4, 4)


@pytest.mark.parametrize("ties", ["first", "last"])
def test_max_pool_of_values_that_are_not_finite(ties: str) -> None:
    values = np.array([np.nan, -np.inf, -np.inf, 1.0, np.inf, 1.0])
    x = np.random.default_rng(0).choice(values, (8, 4, 9, 9)).astype(np.float32)
    x[0] = -np.inf
    how: dict[str, Any] = {"kernel": (2, 3), "stride": (2, 2), "padding": ((1, 1), (2, 1)), "ties": ties}
    (y, saved), (want, exact) = FAST.max_pool(x, **how), layers.max_pool(x, **how)
    np.testing.assert_array_equal(saved.branch, exact.branch)
    np.testing.assert_array_equal(y, want)


@EXAMPLES
@given(seeds, dtypes, few, st.integers(0, 4), pools(), st.booleans())
def test_average_pool(seed: int, dtype: Any, n: int, channels: int, pool: Any, count_padding: bool) -> None:
    inputs, (size, how) = Inputs(seed, dtype), pool
    x = inputs.array(n, channels, *size)
    y, saved = FAST.average_pool(x, count_padding=count_padding, **how)
    want, exact = layers.average_pool(*double(x), count_padding=count_padding, **how)
    bound, _ = layers.average_pool(*absolute(x), count_padding=count_padding, **how)
    dy, terms = inputs.array(*want.shape), how["kernel"][0] * how["kernel"][1]
    (wanted,), (size_dx,) = layers.average_pool_vjp(exact, *double(dy)), layers.average_pool_vjp(exact, *absolute(dy))
    results = {
        "y": (y, want, terms + 1, bound),
        "dx": (FAST.average_pool_vjp(saved, dy)[0], wanted, terms + 1, size_dx),
    }
    check(dtype, results)
    inputs.assert_unchanged()


@EXAMPLES
@given(seeds, dtypes, few, st.integers(0, 4), st.tuples(some, some))
def test_global_average_pool(seed: int, dtype: Any, n: int, channels: int, size: tuple[int, int]) -> None:
    inputs = Inputs(seed, dtype)
    x, dy = inputs.array(n, channels, *size), inputs.array(n, channels)
    y, saved = FAST.global_average_pool(x)
    want, exact = layers.global_average_pool(*double(x))
    (dx,), (wanted,) = FAST.global_average_pool_vjp(saved, dy), layers.global_average_pool_vjp(exact, *double(dy))
    m = term_roundings(dtype, size[0] * size[1]) + 1
    bound = layers.global_average_pool(*absolute(x))[0]
    check(dtype, {"y": (y, want, m, bound), "dx": (dx, wanted, 1, np.abs(wanted))})
    inputs.assert_unchanged()


# --------------------------------------------------------------------------------------------------------------------
# Cross-entropy


@EXAMPLES
@given(
    seeds,
    dtypes,
    st.integers(1, 20),
    st.integers(1, 12),
    st.sampled_from(["mean", "sum"]),
    st.sampled_from([1.0, 30.0]),
)
def test_cross_entropy(seed: int, dtype: Any, n: int, k: int, reduction: str, stretch: float) -> None:
    inputs = Inputs(seed, dtype)
    logits = np.asarray(inputs.array(n, k) * dtype(stretch))
    labels = inputs.random.integers(0, k, n).astype(np.int32)
    dy = inputs.array()
    loss, saved = FAST.cross_entropy(logits, labels, reduction=reduction)
    want, exact = layers.cross_entropy(*double(logits), labels, reduction=reduction)
    (d,), (wanted,) = FAST.cross_entropy_vjp(saved, dy), layers.cross_entropy_vjp(exact, *double(dy))
    # a row's size: its shifted logits (an error there moves the exponentials by as much), the logarithm, and 1 for Σ exp
    shifted = double(logits)[0] - logits.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(shifted).sum(axis=1))
    row = np.abs(shifted).max(axis=1) + log_sum + 1.0
    m, share = k + 8, 1 / n if reduction == "mean" else 1.0
    p = np.exp(shifted - log_sum[:, None])
    onehot = np.arange(k) == labels[:, None]
    size = (p * (1.0 + row[:, None]) + onehot) * (abs(float(dy)) * share)
    loss_m = m + term_roundings(dtype, n)
    check(dtype, {"loss": (loss, want, loss_m, np.asarray(row.sum() * share)), "d": (d, wanted, m + 4, size)})
    inputs.assert_unchanged()


def test_cross_entropy_refuses_a_label_beyond_the_logits_and_keeps_nan_visible() -> None:
    with pytest.raises(IndexError):
        FAST.cross_entropy(np.ones((2, 3), np.float32), np.array([0, 3]), reduction="mean")
    logits = np.array([[1.0, np.nan, 2.0]], np.float32)
    assert np.isnan(FAST.cross_entropy(logits, np.array([0]), reduction="mean")[0])


# --------------------------------------------------------------------------------------------------------------------
# Training


@EXAMPLES
@given(seeds, dtypes, st.lists(st.integers(0, 9), max_size=4), st.sampled_from([0.0, 0.9]), st.sampled_from([0.0, 0.1]))
def test_momentum_step_has_the_bits_of_the_oracle(
    seed: int, dtype: Any, shape: list[int], momentum: float, decay: float
) -> None:
    inputs = Inputs(seed, dtype)
    arrays, how = [inputs.array(*shape) for _ in range(3)], {"learning_rate": 0.3, "momentum": momentum, "decay": decay}
    for got, want in zip(FAST.momentum_step(*arrays, **how), ORACLE.momentum_step(*arrays, **how), strict=True):
        assert got.dtype == want.dtype == dtype
        np.testing.assert_array_equal(got, want)
    inputs.assert_unchanged()


@EXAMPLES
@given(seeds, dtypes, few, st.integers(0, 4), st.tuples(some, some), st.integers(0, 11))
def test_crop_flip(seed: int, dtype: Any, n: int, channels: int, size: Any, padding: int) -> None:
    inputs = Inputs(seed, dtype)
    x, crops = inputs.array(n, channels, *size), crop_flip.draw_crops(seed, 0, n, padding)
    got = FAST.crop_flip(x, crops, padding=padding)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, ORACLE.crop_flip(x, crops, padding=padding))
    inputs.assert_unchanged()


# --------------------------------------------------------------------------------------------------------------------
# Threads, fallbacks, and the test of the test


def _bits(backend: Any, names: tuple[str, ...] = ()) -> dict[str, str]:
    """A digest of each function's results, all work being shared between threads however little it is."""
    inputs = Inputs(7, np.float32)
    found = {}

    def run(name: str, vjp: str, *args: Any, **how: Any) -> None:
        if names and name not in names:
            return
        with contextlib.ExitStack() as patches:
            for module in [m for n, m in sys.modules.items() if n.startswith("refprune.kernels.") and hasattr(m, "share")]:
                patches.enter_context(mock.patch.object(module, "share", lambda threads, work, grain: threads))
            y, saved = getattr(backend, name)(*args, **how)
            dy = np.random.default_rng(3).standard_normal(y.shape).astype(np.float32)
            results = [y, *getattr(backend, vjp)(saved, dy), *(saved.statistics or ())[:2]]
        found[name] = hashlib.sha256(b"".join(np.ascontiguousarray(r).tobytes() for r in results)).hexdigest()

    x, image = inputs.array(150, 131), inputs.array(21, 9, 27, 28)
    channel = [inputs.array(9) for _ in range(3)]
    pool: dict[str, Any] = {"kernel": (3, 3), "stride": (2, 1), "padding": ((1, 1), (1, 0))}
    run("dense", "dense_vjp", x, inputs.array(137, 131), inputs.array(137))
    run("conv2d", "conv2d_vjp", image, inputs.array(10, 9, 3, 3), inputs.array(10), padding=((1, 1), (1, 1)))
    run("gate", "gate_vjp", image, channel[0])
    if not names:
        run("batch_norm", "batch_norm_vjp", image, *channel[:2], eps=1e-5)
        run("leaky_relu", "leaky_relu_vjp", image, slope=0.1, at_zero=0.0)
        run("add", "add_vjp", image, inputs.array(*image.shape), channels=None)
        run("subsample_pad", "subsample_pad_vjp", image, stride=(1, 2), before=3, after=3)
        run("max_pool", "max_pool_vjp", image, ties="last", **pool)
        run("average_pool", "average_pool_vjp", image, count_padding=False, **pool)
        run("global_average_pool", "global_average_pool_vjp", image)
        run("cross_entropy", "cross_entropy_vjp", inputs.array(900, 11), np.arange(900) % 11, reduction="mean")
        w, v, g = (inputs.array(300, 401) for _ in range(3))
        step = backend.momentum_step(w, v, g, learning_rate=0.1, momentum=0.9, decay=0.01)
        crops = crop_flip.draw_crops(0, 0, len(image), 4)
        for name, results in {"step": step, "crop_flip": (backend.crop_flip(image, crops, padding=4),)}.items():
            found[name] = hashlib.sha256(b"".join(r.tobytes() for r in results)).hexdigest()
    return found


def test_the_bits_do_not_depend_on_threads() -> None:
    every = load_backend("numba")  # all cores; with a single one this compares a run with itself
    assert _bits(every) == _bits(FAST)


def test_the_bits_do_not_depend_on_numbas_own_thread_count() -> None:
    """Fresh processes with NUMBA_NUM_THREADS = 1 and 2; both must agree with this one."""
    names = ("dense", "conv2d")
    code = f"import json, test_pool_and_loss as t; print(json.dumps(t._bits(t.load_backend('numba'), {names!r})))"
    here = Path(__file__).resolve()
    paths = [here.parent, here.parents[1] / "support", here.parents[2]]
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code],
            env={
                **os.environ,
                "NUMBA_NUM_THREADS": str(n),
                "PYTHONPATH": os.pathsep.join(map(str, paths)),
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in (1, 2)
    ]
    answers = [json.loads(process.communicate(timeout=120)[0]) for process in started]
    assert answers[0] == answers[1] == _bits(FAST, names)


@pytest.mark.parametrize("threads", [0, -1, 10**6, 1.5, True])
def test_threads_out_of_range_are_refused(threads: Any) -> None:
    with pytest.raises(InputError, match=r"threads: .* allowed are the integers 1 to"):
        load_backend("numba", threads=threads)


def test_importing_the_package_does_not_import_numba() -> None:
    code = "import sys, refprune, refprune.backend, refprune.kernels; sys.exit('numba' in sys.modules)"
    path = str(Path(__file__).resolve().parents[2])
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": path})


def test_other_dtypes_and_shapes_that_do_not_meet_are_left_to_the_oracle() -> None:
    x, w = np.ones((2, 3)), np.ones((4, 3), np.float32)
    y, saved = FAST.dense(x, w)
    assert y.dtype == np.float64
    np.testing.assert_array_equal(FAST.dense_vjp(saved, np.ones((2, 4)))[1], layers.dense_vjp(saved, np.ones((2, 4)))[1])
    complex_y, complex_saved = FAST.leaky_relu(x + 1e-30j, slope=0.5, at_zero=0.0)
    assert complex_y.dtype == np.complex128
    np.testing.assert_array_equal(FAST.leaky_relu_vjp(complex_saved, 2 * x)[0], 2 * x)
    with pytest.raises(ValueError, match="mismatch"):
        FAST.dense(x, np.ones((4, 2)))
    with pytest.raises(ValueError, match=r"shape|larger"):
        FAST.conv2d(np.ones((1, 1, 2, 2)), np.ones((1, 1, 3, 3)))
    # forward in the kernel, a cotangent of another dtype
    image, channel = np.random.default_rng(0).standard_normal((3, 2, 4, 4)).astype(np.float32), np.ones(2, np.float32)
    _, own = FAST.batch_norm(image, channel, channel, eps=1e-5)
    _, oracle = layers.batch_norm(image, channel, channel, eps=1e-5)
    dy = np.random.default_rng(1).standard_normal(image.shape)
    for got, want in zip(FAST.batch_norm_vjp(own, dy), layers.batch_norm_vjp(oracle, dy), strict=True):
        assert got.dtype == want.dtype
        assert np.all(np.abs(got - want) <= limit(np.float32, 40, np.abs(want) + 4 * np.abs(dy).sum()))


def test_every_kernel_replaces_a_function_of_the_backend() -> None:
    from refprune import kernels

    replaced = kernels.functions(1)
    assert set(WITHOUT_VJP) <= set(replaced) <= {*FUNCTIONS, *WITHOUT_VJP, *FUSED}
    forward = {name for name in replaced if not name.endswith("_vjp")} - {*WITHOUT_VJP, *FUSED}
    assert {f"{name}_vjp" for name in forward} <= set(replaced)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["y", "dx", "dw", "db"])
def test_a_planted_mistake_is_found(dtype: Any, name: str) -> None:
    """One entry wrong by a thousandth of its size is found; so is a wrong dtype; and the unspoilt results pass."""
    results = conv_results(FAST, Inputs(5, dtype), 2, 3, 4, (6, 5), (3, 3), True, **SAME)
    assert not complaints(dtype, results)
    got, want, m, size = results[name]
    at = np.unravel_index(np.argmax(np.abs(want)), want.shape)
    wrong = got.copy()
    wrong[at] *= dtype(1.001)
    (complaint,) = complaints(dtype, {name: (wrong, want, m, size)})
    assert complaint.startswith(f"{name}{tuple(int(i) for i in at)}")
    wrong[at] = np.nan
    assert complaints(dtype, {name: (wrong, want, m, size)})
    assert complaints(dtype, {name: (got.astype(np.float16), want, m, size)})


@pytest.mark.parametrize("name", ["residual-mlp", "residual-lenet", "lenet-300-100", "lenet-5"])
def test_training_never_falls_back_to_the_oracle(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dtype or shape that a kernel does not take would go to NumPy and only be slow: in training there is none."""
    options = {"sections": 2, "width": 4} if name.startswith("residual") else {}
    network = zoo.build(name, options)
    rules = config.from_dict({"training": {"batch_size": 8}, "objective": {"weight_decay": 1e-4}})
    state = initial_state(rules, network)
    backend = load_backend("numba")
    left_to_numpy = {"flatten", "flatten_vjp"}
    for function in set(FUNCTIONS) - left_to_numpy:
        monkeypatch.setattr(layers, function, lambda *a, function=function, **k: pytest.fail(f"fell back to {function}"))
    monkeypatch.setattr(momentum, "momentum_step", lambda *a, **k: pytest.fail("fell back to momentum_step"))
    x = np.random.default_rng(0).random((8, *network.input_shape), dtype=np.float32)
    following, _ = train_step(state, x, np.arange(8) % 10, rules, backend, training_images=8)
    assert all(p.dtype == np.float32 for p in following.params.values())


@pytest.mark.parametrize("backend", [ORACLE, "numba"], ids=["oracle", "numba"])
def test_relu_of_infinity(backend: Any) -> None:
    """relu(−∞) = 0, not −∞·0; NaN stays NaN."""
    engine = load_backend(backend) if isinstance(backend, str) else backend
    y, _ = engine.leaky_relu(np.array([-np.inf, -1.0, 0.0, np.inf, np.nan]), slope=0.0, at_zero=0.0)
    np.testing.assert_array_equal(y, [0.0, 0.0, 0.0, np.inf, np.nan])
