"""Tests of the strategies: what they promise, and that they reach what they are there for."""

import numpy as np
import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from refprune.conformance.strategies import layers as s
from refprune.conformance.strategies import networks
from refprune.conformance.strategies.structures import few


def reaches(strategy, condition):
    """Some example meets the condition; hypothesis raises NoSuchCondition otherwise."""
    quick = settings(max_examples=300, derandomize=True, database=None, deadline=None, phases=[Phase.generate])
    return find(strategy, condition, settings=quick)


CONV = {
    "batch 1": lambda c: c.arrays[0].shape[0] == 1,
    "non-square image": lambda c: c.arrays[0].shape[2] != c.arrays[0].shape[3],
    "non-square kernel": lambda c: c.arrays[1].shape[2] != c.arrays[1].shape[3],
    "1×1 kernel": lambda c: c.arrays[1].shape[2:] == (1, 1),
    "stride > kernel": lambda c: c.options["stride"][0] > c.arrays[1].shape[2],
    "unequal strides": lambda c: c.options["stride"][0] != c.options["stride"][1],
    "four paddings": lambda c: len({p for side in c.options["padding"] for p in side}) == 3,
    "top ≠ bottom, left ≠ right": lambda c: all(a != b for a, b in c.options["padding"]),
    "dilated": lambda c: c.options["dilation"] == (2, 2) and min(c.arrays[1].shape[2:]) > 1,
    "groups": lambda c: c.options["groups"] > 1 and c.arrays[1].shape[1] > 1,
    "depthwise": lambda c: c.options["groups"] > 1 and c.arrays[1].shape[1] == 1,
    "channel multiplier": lambda c: c.arrays[1].shape[0] == 2 * c.options["groups"] == 2 * c.arrays[0].shape[1],
    "no bias": lambda c: len(c.arrays) == 2,
    "bias": lambda c: len(c.arrays) == 3,
    "pixels that no window reads": lambda c: (
        c.options["stride"][0] > (c.arrays[1].shape[2] - 1) * c.options["dilation"][0] + 1
        and c.arrays[0].shape[2] > c.options["stride"][0]
    ),
}


@pytest.mark.parametrize("wanted", CONV)
def test_convolutions_reach(wanted):
    reaches(s.cases("conv2d"), CONV[wanted])


@pytest.mark.parametrize("op", s.OPS)
def test_size_one_is_reached_in_every_dimension(op):
    x = s.cases(op)
    reaches(x, lambda c: c.arrays[0].shape[0] == 1)
    for axis in range(1, 4 if op in ("conv2d", "max_pool", "average_pool", "flatten") else 2):
        reaches(x, lambda c, axis=axis: c.arrays[0].shape[axis] == 1)
        reaches(x, lambda c, axis=axis: c.arrays[0].shape[axis] > 2)


@pytest.mark.parametrize(
    ("op", "option", "value"),
    [
        *(("leaky_relu", "at_zero", v) for v in (0.0, 0.5, 1.0)),
        *(("max_pool", "ties", v) for v in ("first", "last")),
        *(("average_pool", "count_padding", v) for v in (True, False)),
        *(("cross_entropy", "reduction", v) for v in ("mean", "sum")),
        *(("mean_squared_error", "reduction", v) for v in ("mean", "batch_mean", "sum")),
        ("add", "channels", None),
        ("add", "channels", (1, 0)),
        ("batch_norm", "eps", 1e-5),
    ],
)
def test_every_convention_is_drawn(op, option, value):
    reaches(s.cases(op), lambda c: c.options[option] == value)


@pytest.mark.parametrize("op", s.OPS)
@given(data=st.data())
def test_ranges(op, data):
    smooth, integer = data.draw(s.cases(op)), data.draw(s.integer_cases(op))
    assert all(np.isfinite(a).all() and a.dtype == np.float64 for a in smooth.arrays)
    for a in integer.arrays:
        assert np.array_equal(a, np.rint(a))
        assert np.abs(a).max() <= 2


@given(s.cases("leaky_relu"))
def test_smooth_relu_inputs_keep_the_margin(case):
    assert np.abs(case.arrays[0]).min() >= s.MARGIN


@given(s.cases("max_pool"))
def test_smooth_pool_inputs_keep_the_margin(case):
    gaps = np.diff(np.sort(case.arrays[0].ravel()))
    assert (gaps >= s.MARGIN * (1 - 2.0**-40)).all()


def test_integer_cases_reach_zeros_and_ties():
    reaches(s.integer_cases("leaky_relu"), lambda c: c.options["at_zero"] == 0.5 and (c.arrays[0] == 0).any())
    reaches(s.integer_cases("max_pool"), lambda c: c.arrays[0].size > len(np.unique(c.arrays[0])) > 1)


@given(st.sampled_from(("max_pool", "average_pool")).flatmap(s.cases))
def test_padding_stays_below_the_kernel(case):
    for k, sides in zip(case.options["kernel"], case.options["padding"], strict=True):
        assert max(sides) < k


@given(s.cases("batch_norm"))
def test_batch_norm_has_two_values_per_channel(case):
    x = case.arrays[0]
    assert x.size // x.shape[1] >= 2


@pytest.mark.parametrize("layout", s.LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4, 5), (7,), ()])
def test_layouts_are_what_they_say(layout, shape):
    a = np.asarray(np.random.default_rng(3).normal(size=shape))
    b = s.relayout(a, layout)
    assert np.array_equal(a, b)
    assert b.shape == a.shape
    assert not np.shares_memory(a, b)
    assert b.flags.writeable == (layout != "read-only")
    if shape:
        assert b.flags.c_contiguous == (layout in ("C", "read-only") or (layout == "Fortran" and len(shape) == 1))
        assert (min(b.strides) < 0) == (layout == "negative")


@given(s.all_cases("dense"))
def test_numbers_of_a_case_repeat_and_differ_by_purpose(case):
    assert np.array_equal(case.normal(1, (3,)), case.normal(1, (3,)))
    assert not np.array_equal(case.normal(1, (3,)), case.normal(2, (3,)))


def test_cases_in_other_precisions():
    case = reaches(s.cases("cross_entropy"), lambda c: True).astype(np.float32)
    assert (case.arrays[0].dtype, case.constants[0].dtype.kind) == (np.float32, "i")
    case = reaches(s.cases("batch_norm_eval"), lambda c: True).astype(np.complex128)
    assert (case.arrays[0].dtype, case.constants[0].dtype) == (np.complex128, np.float64)


# Few structures ---------------------------------------------------------------------------------------------------------


def drawn(strategy, count=40):
    """So many examples of it."""
    found = []

    @settings(max_examples=count, derandomize=True, database=None, deadline=None, phases=[Phase.generate])
    @given(strategy)
    def collect(case):
        found.append(case)

    collect()
    return found


def shapes(case):
    return tuple(a.shape for a in (*case.arrays, *case.constants)), str(dict(case.options)), case.smooth


@pytest.mark.parametrize("op", s.OPS)
def test_a_case_with_another_seed_has_the_same_shapes_and_other_numbers(op):
    case = reaches(s.cases(op), lambda c: c.arrays[0].size > 2)
    other = case.reseeded(case.seed + 1)
    assert shapes(other) == shapes(case)
    assert not np.array_equal(other.arrays[0], case.arrays[0])
    again = other.reseeded(case.seed)
    assert all(
        np.array_equal(a, b) for a, b in zip((*again.arrays, *again.constants), (*case.arrays, *case.constants), strict=True)
    )


def test_few_structures_have_many_numbers():
    cases = drawn(few(s.all_cases("conv2d"), 5))
    assert 1 < len({shapes(case) for case in cases}) <= 5
    assert len({case.arrays[0].tobytes() for case in cases if case.arrays[0].size > 2}) > 5
    specs = drawn(few(networks.cases(), 3))
    assert 1 < len({case.network for case in specs}) <= 3
    assert len({case.seed for case in specs}) > 3


def test_the_structures_follow_from_the_seed():
    first, again, other = ({shapes(c) for c in drawn(few(s.all_cases("conv2d"), 4, seed))} for seed in (1, 1, 2))
    assert first == again != other


def test_no_number_of_structures_leaves_the_cases_as_they_are():
    strategy = s.all_cases("dense")
    assert few(strategy, None) is strategy
