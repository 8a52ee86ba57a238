"""Every layer of a backend and its VJP: against PyTorch, loops, the complex step, and its own contract.

`check_*(backend, case, ...)` raise AssertionError; test_tests.py shows that they catch planted mistakes. A case is drawn
from refprune.conformance.strategies, a tolerance is computed in tolerance.py, and every cotangent is random: never ones.
"""

import dataclasses

import naive
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layer_checks import (
    DIRECTION,
    KINKED,
    TORCH,
    agrees_with_torch,
    check_branch,
    check_complex_step,
    check_contract,
    check_dtype,
    check_linear,
    check_witness,
    forward,
    gradients,
    naive_gradients,
    vjp,
)
from tolerance import FORWARD, VJP, assert_identical

from refprune.backend import FUNCTIONS, ORACLE
from refprune.conformance.strategies import layers as strategies
from refprune.conformance.strategies.layers import OPS, Case

torch.set_num_threads(1)


# Calling ----------------------------------------------------------------------------------------------------------------


# PyTorch ----------------------------------------------------------------------------------------------------------------


# Checkers ---------------------------------------------------------------------------------------------------------------


# The properties ---------------------------------------------------------------------------------------------------------


def test_every_function_is_covered():
    """A function added to the backend needs a strategy, a loop, a witness in PyTorch and a bound."""
    pairs = tuple(name for op in OPS for name in (op, f"{op}_vjp"))
    assert pairs == FUNCTIONS
    assert set(TORCH) == set(FORWARD) == set(VJP) == set(OPS)
    assert all(hasattr(naive, op) and hasattr(naive, f"{op}_gradient") for op in OPS)


@pytest.mark.parametrize("op", OPS)
@given(data=st.data())
def test_against_loops(op, data):
    check_witness(ORACLE, data.draw(strategies.all_cases(op), label="case"), "naive")


@pytest.mark.parametrize("op", OPS)
@given(data=st.data())
def test_against_torch(op, data):
    case = data.draw(strategies.all_cases(op), label="case")
    if not agrees_with_torch(case):
        case = dataclasses.replace(case, options={**case.options, **TORCH_CONVENTIONS[op]})
    check_witness(ORACLE, case, "torch")


TORCH_CONVENTIONS = {"leaky_relu": {"at_zero": 0.0}, "max_pool": {"ties": "first"}}


@pytest.mark.parametrize("op", OPS)
@given(data=st.data())
def test_complex_step(op, data):
    check_complex_step(ORACLE, data.draw(strategies.cases(op), label="case"))


@pytest.mark.parametrize("op", OPS)
@given(data=st.data())
def test_vjp_is_linear_in_the_cotangent(op, data):
    check_linear(ORACLE, data.draw(strategies.all_cases(op), label="case"))


@pytest.mark.parametrize("op", OPS)
@given(data=st.data())
def test_contract_in_every_layout(op, data):
    case = data.draw(strategies.all_cases(op), label="case")
    check_contract(ORACLE, case, data.draw(strategies.layouts, label="layout"))


@pytest.mark.parametrize("op", OPS)
@given(data=st.data())
def test_dtype_is_kept(op, data):
    case = data.draw(strategies.cases(op), label="case")
    check_dtype(ORACLE, case, data.draw(st.sampled_from((np.float32, np.float64, np.complex128)), label="dtype"))


@pytest.mark.parametrize("op", KINKED)
@given(data=st.data())
def test_branches(op, data):
    check_branch(ORACLE, data.draw(strategies.all_cases(op), label="case"))


@pytest.mark.parametrize("op", ["dense", "conv2d", "average_pool", "add", "gate"])
@given(data=st.data())
def test_sums_of_small_integers_are_exact(op, data):
    """No rounding happens (but one division), so no tolerance is needed."""
    case = data.draw(strategies.integer_cases(op), label="case")
    y, saved = forward(ORACLE, case)
    dy = np.asarray(np.random.default_rng(case.seed).integers(-3, 4, y.shape).astype(float))
    want, want_grads = naive_gradients(case, dy)
    assert_identical(op, y, want, case=case)
    for got, reference in zip(vjp(ORACLE, case, saved, dy), want_grads, strict=True):
        if op != "average_pool":  # its backward adds up quotients
            assert_identical(f"{op}_vjp", np.asarray(got), reference, case=case)


# Step halving: the error of a central difference falls with the square of the step ---------------------------------------


@pytest.mark.parametrize("op", ["batch_norm", "tanh", "sigmoid", "gelu", "gelu_tanh", "cross_entropy"])
@pytest.mark.parametrize("seed", range(3))
def test_central_differences_converge_with_order_two(op, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(4, 3))
    arrays = (x, rng.normal(size=3), rng.normal(size=3)) if op == "batch_norm" else (x,)
    constants = (rng.integers(0, 3, 4),) if op == "cross_entropy" else ()
    options = {"batch_norm": {"eps": 0.1}, "cross_entropy": {"reduction": "mean"}}.get(op, {})
    case = Case(op, arrays, options, constants, seed)
    _, dy, grads = gradients(ORACLE, case)
    v = case.normal(DIRECTION, x.shape)
    analytic = np.sum(grads[0] * v)

    def error(h):
        up, down = (forward(ORACLE, case, [x + s * h * v, *arrays[1:]])[0] for s in (1.0, -1.0))
        return np.sum(dy * (up - down)) / (2.0 * h) - analytic

    order = np.log2(error(2.0**-6) / error(2.0**-7))
    assert round(float(order), 1) == 2.0, order
