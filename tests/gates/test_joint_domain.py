"""The box of layer and unit gates together: its parts by hand, its ends, and what it must not say."""

import numpy as np
import pytest

from refprune.errors import InputError
from refprune.gates import joint_domain
from refprune.gates.joint_domain import Bias, Columns


def test_one_column_with_an_open_unit_is_the_box_of_one_gate():
    """D5: w < β/κ and θ < λβ/κ²."""
    kappa, beta, decay = 0.5, 0.3, 0.4
    for w in (0.0, 0.59, 0.61):
        for theta in (0.0, 0.47, 0.49):
            alone = joint_domain.unit_box(w, theta, kappa=kappa, beta=beta, decay=decay)
            columns = Columns(np.array([w]), np.ones(1), np.array([kappa]), decay)
            together, _ = joint_domain.section_box(columns, Bias(), theta, beta=beta)
            assert alone == together == (w < beta / kappa and theta < decay * beta / kappa**2)


def test_units_that_are_rarely_open_load_the_section_less():
    """Two columns of 1, κ = 1, β = 0.5: 2·θ_j·w̄ is 0.4 at θ_j = 0.2 and 0.6 at 0.3; as a whole the block is far outside."""
    for share, inside in ((0.2, True), (0.3, False)):
        columns = Columns(np.ones(2), np.full(2, share), np.ones(2), 1.0)
        found, units = joint_domain.section_box(columns, Bias(), 0.4, beta=0.5)
        assert found == inside
        assert units.tolist() == [inside, inside]
    assert not joint_domain.unit_box(np.sqrt(2.0), 0.4, kappa=np.sqrt(2.0), beta=0.5, decay=1.0)


def test_a_unit_outside_its_own_box_counts_as_open():
    """κθ̄w = 0.6·1 exceeds β for the second unit, so that its θ_j may rise to 1: its load is 0.6·w, not 0."""
    columns = Columns(np.array([0.1, 1.0]), np.zeros(2), np.ones(2), 1.0)
    found, units = joint_domain.section_box(columns, Bias(), 0.6, beta=0.5)
    assert not found
    assert not units.any()
    found, units = joint_domain.section_box(columns._replace(w=np.array([0.1, 0.7])), Bias(), 0.6, beta=0.5)
    assert found
    assert units.all()


def test_the_bias_loads_the_section_whatever_the_units_do():
    columns = Columns(np.zeros(1), np.zeros(1), np.ones(1), 1.0)
    for bias, inside in ((Bias(0.4, 1.0, 1.0), True), (Bias(0.6, 1.0, 1.0), False), (Bias(0.0, 1.0, 0.0), False)):
        assert joint_domain.section_box(columns, bias, 0.1, beta=0.5)[0] == inside


def test_without_decay_nothing_that_is_driven_is_bounded():
    assert not joint_domain.unit_box(0.0, 0.1, kappa=1.0, beta=9.0, decay=0.0)
    assert joint_domain.unit_box(0.1, 0.0, kappa=1.0, beta=9.0, decay=0.0)
    assert joint_domain.unit_box(0.1, 0.9, kappa=1.0, beta=9.0, decay=0.0, layer=0.0)
    assert joint_domain.ceiling([0.1, 0.1], [0.0, 0.2], 0.0).tolist() == [0.1, np.inf]


def test_with_no_price_nothing_is_inside():
    assert not joint_domain.unit_box(0.0, 0.0, kappa=1.0, beta=0.0, decay=1.0)
    assert not joint_domain.section_box(Columns(*np.zeros((2, 1)), np.ones(1), 1.0), Bias(), 0.0, beta=0.0)[0]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("w", {"w": -1.0}),
        ("theta", {"theta": 1.5}),
        ("kappa", {"kappa": 0.0}),
        ("layer", {"layer": 2.0}),
        ("decay", {"decay": -1.0}),
    ],
)
def test_what_is_no_state_is_refused(name, changes):
    values = {"w": 0.1, "theta": 0.5, "kappa": 1.0, "beta": 0.5, "decay": 0.1} | changes
    with pytest.raises(InputError, match=f"^{name}: got"):
        joint_domain.unit_box(values.pop("w"), values.pop("theta"), **values)
