"""The dynamics of a gate and its weights (SPEC D1-D5, D7) against closed forms and projected Euler steps.

Each claim is a function `check_…` of what it claims about, so that `test_planted_mistakes…` can hand it a wrong one.
"""

import math

import numpy as np
import pytest
from checkers import fails
from tolerance import assert_close, gamma

from refprune.audit.witnesses.flows import Sections, euler, linear_solution, random_comparison, random_point
from refprune.errors import InputError
from refprune.gates.dynamics import Comparison, in_domain, network_field, projected_flow
from refprune.rounding.tolerance import UNIT

U = UNIT["float64"]


# The comparison system: D3 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [True, False])
def test_saddle_and_eigenvalues(decay):
    """At the saddle nothing moves; the eigenvalues are those that LAPACK finds of the matrix, to its backward error."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        c = random_comparison(rng, decay=decay)
        w, theta = c.saddle
        dw, dtheta = c.velocity(np.array([w]), np.array([theta]))
        assert abs(dw[0]) <= gamma(5, U) * c.decay * w
        assert abs(dtheta[0]) <= gamma(3, U) * c.ratio * c.beta
        matrix = np.array([[-c.decay, c.kappa], [c.ratio * c.kappa, 0.0]])
        values, vectors = np.linalg.eig(matrix)
        assert c.eigenvalues[0] > 0 > c.eigenvalues[1]
        assert not values.imag.any()  # NumPy 2.5 gives complex numbers always
        bound = gamma(32, U) * np.linalg.norm(matrix) * np.linalg.cond(vectors)  # Bauer-Fike
        assert_close("eigenvalues", np.array(c.eigenvalues), np.sort(values.real)[::-1], bound, system=c)


def test_the_other_attractor():
    """(κ/λ, 1) rests, and what starts near it goes there."""
    c = Comparison(kappa=2.0, beta=1.0, decay=0.5, ratio=0.7)
    flow = projected_flow(c.velocity, np.array([3.5]), np.array([0.9]), 60.0)
    assert flow.theta[-1, 0] == 1.0
    assert (
        abs(flow.weights[-1, 0] - 4.0) <= 0.5 * math.exp(-0.5 * (60.0 - flow.contacts[0].time)) + 1e-8
    )  # the solver's rtol · w


@pytest.mark.parametrize("excess", [1.01, 1.5, 10.0])
def test_strong_pull_and_decay_send_everything_to_zero(excess):
    """λβ > κ²: from anywhere. With equality (κ/λ, 1) still rests, so that the claim needs the strict sign (erratum to D3)."""
    rng = np.random.default_rng(1)
    for _ in range(5):
        kappa, decay, ratio = 10.0 ** rng.uniform(-0.5, 0.5, 3)
        c = Comparison(kappa, excess * kappa**2 / decay, decay, ratio)
        pull = ratio * c.beta * (1.0 - 1.0 / excess)  # the slowest that θ falls once w ≤ κ/λ·(1 + ½(excess − 1)) …
        until = (math.log(40.0 / (excess - 1.0)) + 1.0) / decay + 4.0 / pull
        flow = projected_flow(c.velocity, np.array([20.0 * kappa / decay]), np.array([1.0]), until)
        assert flow.zero_since(0) is not None, c
    c = Comparison(1.0, 2.0, 0.5, 1.0)
    assert c.velocity(np.array([c.kappa / c.decay]), np.array([1.0])) == (0.0, 0.0)


# The flow -------------------------------------------------------------------------------------------------------------------


def test_the_flow_is_the_closed_form_while_theta_is_inside():
    """The difference falls with the solver's tolerance, down to 1e-10 of the solution."""
    worst = []
    for rtol in (1e-4, 1e-7, 1e-10):
        rng, errors = np.random.default_rng(2), []
        for _ in range(8):
            c = random_comparison(rng)
            w, theta = random_point(rng, c)
            until = 3.0 / c.eigenvalues[0]
            flow = projected_flow(c.velocity, np.array([w]), np.array([theta]), until, rtol=rtol, atol=1e-3 * rtol)
            inside = flow.time < (flow.contacts[0].time if flow.contacts else math.inf)
            some = np.flatnonzero(inside)[:: max(1, inside.sum() // 20)]
            want = linear_solution(c, w, theta, flow.time[some])
            got = np.column_stack([flow.weights[some, 0], flow.theta[some, 0]])
            errors.append(np.abs(got - want).max() / max(1.0, np.abs(want).max()))
        worst.append(max(errors))
    assert worst[1] <= worst[0] / 30.0 or worst[1] <= 1e-9, worst
    assert worst[2] <= 1e-10 * 30.0, worst


def check_projection(flow_of):
    """Projected Euler steps (O6 itself) come as close to the flow as first order says: twice as fine, half as far.

    With four gates on two weights: some stay at an end, some leave it again.
    """
    __tracebackhide__ = True
    rng = np.random.default_rng(3)
    for _ in range(4):
        a, b = rng.standard_normal((2, 2)) - 2.0 * np.eye(2), rng.standard_normal((2, 4))
        phase = rng.uniform(0.0, 6.0, 4)

        def field(w, theta, a=a, b=b, phase=phase):
            return a @ w + b @ theta, 1.5 * np.cos(3.0 * w[0] + phase) + b.T @ w - 0.3

        w, theta = rng.standard_normal(2), np.array([0.0, 1.0, 0.3, 0.7])
        flow = flow_of(field, w, theta, 4.0)
        errors = []
        for steps in (4000, 8000, 16000):
            path = np.column_stack(euler(field, w, theta, 4.0, steps))[:: steps // 10]
            errors.append(np.abs(path - flow).max())
        assert errors[1] <= 0.7 * errors[0], errors
        assert errors[2] <= 0.7 * errors[1], errors


def at_tenths(field, w, theta, until, **options):
    """The flow at until·k/10, by going on from each."""
    points = [np.concatenate([w, theta])]
    for _ in range(10):
        flow = projected_flow(field, w, theta, until / 10.0, **options)
        w, theta = flow.weights[-1], flow.theta[-1]
        points.append(np.concatenate([w, theta]))
    return np.array(points)


def test_the_flow_is_the_limit_of_projected_steps():
    check_projection(at_tenths)


def test_planted_mistakes_in_the_projection_are_found():
    def forgotten(field, w, theta, until):
        return np.column_stack(unprojected(field, w, theta, until))

    def glued(field, w, theta, until):
        """A gate that has reached an end stays there."""
        stuck = np.zeros(theta.size, dtype=bool)
        points = [np.concatenate([w, theta])]
        for _ in range(10):
            stuck = stuck | (theta == 0.0) | (theta == 1.0)

            def held(w, theta, stuck=stuck):
                dw, dtheta = field(w, theta)
                return dw, np.where(stuck, 0.0, dtheta)

            flow = projected_flow(held, w, theta, until / 10.0)
            w, theta = flow.weights[-1], flow.theta[-1]
            points.append(np.concatenate([w, theta]))
        return np.array(points)

    def unprojected(field, w, theta, until):
        from scipy.integrate import solve_ivp

        def velocity(_, y):
            return np.concatenate(field(y[: w.size], y[w.size :]))

        times = np.linspace(0.0, until, 11)
        y = solve_ivp(velocity, (0.0, until), np.concatenate([w, theta]), rtol=1e-9, atol=1e-12, t_eval=times).y.T
        return y[:, : w.size], y[:, w.size :]

    assert fails(check_projection, forgotten) is not None
    assert fails(check_projection, glued) is not None


def test_contacts_tell_what_the_path_shows():
    """θ̇ = cos t from ½: up to 1, held, off again at π/2 as soon as the drive turns, down to 0 at π/2 + …, and so on."""

    def field(w, theta):
        return np.ones(1), np.array([np.cos(w[0])])

    flow = projected_flow(field, np.zeros(1), np.array([0.5]), 9.0)
    want = [(math.asin(0.5), True), (math.pi / 2, False), (math.pi, True), (1.5 * math.pi, False)]
    want += [(2.0 * math.pi, True), (2.5 * math.pi, False)]
    assert [c.arrives for c in flow.contacts] == [arrives for _, arrives in want]
    assert max(abs(c.time - t) for c, (t, _) in zip(flow.contacts, want, strict=True)) < 1e-7  # √(rtol·…) at the turning drive
    assert flow.theta.min() == 0.0
    assert flow.theta.max() == 1.0
    assert flow.zero_since(0) is None


@pytest.mark.parametrize("start", [1.0, 1.0 - 2.0**-53])
def test_from_one_end_to_the_other_within_a_step(start):
    """A drive so strong that the first step crosses [0, 1]: the start at an end is no arrival there."""
    flow = projected_flow(lambda w, theta: (np.zeros(1), np.full(1, -100.0)), np.zeros(1), np.array([start]), 50.0)
    assert flow.theta[-1, 0] == 0.0
    assert len(flow.contacts) == 1
    assert abs(flow.contacts[0].time - 0.01) < 1e-9 * 0.01 + 1e-12


def test_two_gates_that_arrive_together_are_both_held():
    def field(w, theta):
        return np.zeros(1), np.full(2, -1.0)

    flow = projected_flow(field, np.zeros(1), np.full(2, 0.3), 2.0)
    assert (flow.theta[-1] == 0.0).all()
    assert flow.theta.min() == 0.0
    assert {c.gate for c in flow.contacts} == {0, 1}


def test_a_drive_of_zero_moves_nothing():
    flow = projected_flow(lambda w, theta: (np.zeros(1), np.zeros(3)), np.ones(1), np.array([0.0, 0.5, 1.0]), 5.0)
    assert flow.contacts == ()
    assert (flow.theta == [0.0, 0.5, 1.0]).all()
    assert flow.zero_since(0) == 0.0


@pytest.mark.parametrize("theta", [-1e-12, 1.0 + 1e-12, math.nan])
def test_a_start_outside_is_refused(theta):
    with pytest.raises(InputError, match=r"theta\[0\]: got .*; numbers from 0 to 1 are allowed"):
        projected_flow(lambda w, theta: (w, theta), np.zeros(1), np.array([theta]), 1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": np.array([0.0, math.nan])}, r"weights\[1\]: got nan"),
        ({"weights": np.zeros((2, 1))}, r"weights: must have one axis, got shape \(2, 1\)"),
        ({"theta": np.zeros(())}, r"theta: must have one axis, got shape \(\)"),
        ({"until": math.nan}, "until: got nan"),
        ({"until": -1.0}, "until: got -1.0"),
        ({"until": math.inf}, "until: got inf"),
        ({"least_steps": 0}, "least_steps: must be ≥ 1, got 0"),
        ({"rtol": 0.0}, "rtol: got 0.0"),
        ({"atol": -1.0}, "atol: got -1.0"),
        ({"field": lambda w, theta: (w, np.zeros(2))}, r"field: gives shape \(2,\) for theta of shape \(1,\)"),
        ({"field": lambda w, theta: (w[:1], theta)}, r"field: gives shape \(1,\) for weights of shape \(2,\)"),
        ({"field": lambda w, theta: (w / 0.0 * 0.0, theta)}, "field's speed of weights"),
    ],
)
def test_what_cannot_be_followed_is_named(changes, message):
    given = {"field": lambda w, theta: (-w, -theta), "weights": np.ones(2), "theta": np.ones(1), "until": 1.0} | changes
    with np.errstate(all="ignore"), pytest.raises(InputError, match=message):
        projected_flow(**given)


def test_a_flow_of_no_time_is_its_start():
    flow = projected_flow(lambda w, theta: (-w, -theta), np.ones(2), np.ones(1), 0.0)
    assert flow.time.tolist() == [0.0]
    assert flow.weights.tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("name", ["kappa", "beta", "ratio", "decay"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, 0.0])
def test_constants_that_make_no_system(name, value):
    values = {"kappa": 1.0, "beta": 1.0, "decay": 1.0, "ratio": 1.0} | {name: value}
    if (name, value) == ("decay", 0.0):
        Comparison(**values)
        return
    with pytest.raises(InputError, match=f"{name}: must be finite and"):
        Comparison(**values)


@pytest.mark.parametrize("method", [Comparison.contains, Comparison.time_bound])
@pytest.mark.parametrize(
    ("w", "theta", "message"),
    [
        (0.0, -3.7, "theta: got -3.7; numbers from 0 to 1"),
        (0.0, 1.1, "theta: got 1.1"),
        (-0.1, 0.5, "w: got -0.1; finite numbers from 0"),
        (math.nan, 0.5, "w: got nan"),
        ([0.0, math.inf], 0.5, r"w\[1\]: got inf"),
        (0.0, math.nan, "theta: got nan"),
        (np.zeros(2), np.zeros(3), r"theta: shape \(3,\) does not meet w's \(2,\)"),
        (np.zeros((2, 1)), np.zeros(3), r"theta: shape \(3,\) does not meet w's \(2, 1\)"),
    ],
)
def test_points_that_are_none(method, w, theta, message):
    with pytest.raises(InputError, match=message):
        method(Comparison(1.0, 0.5, 0.6, 0.5), w, theta)


@pytest.mark.parametrize(
    ("name", "value"),
    [("kappa", 0.0), ("kappa", math.nan), ("ratio", 0.0), ("beta", -1.0), ("decay", -1.0), ("floor", 1.5), ("floor", math.nan)],
)
def test_no_point_is_safe_by_a_constant_that_is_none(name, value):
    constants = {"kappa": 1.0, "beta": 0.5, "decay": 0.6, "ratio": 0.5, "floor": 0.0} | {name: value}
    with pytest.raises(InputError, match=f"{name}: got {value}"):
        in_domain(np.zeros(3), np.zeros(3), **constants)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": ("nothing.weight",)}, "names: 'nothing.weight' is no parameter"),
        ({"beta": math.nan}, "beta: got nan"),
        ({"decay": -0.1}, "decay: got -0.1"),
        ({"ratio": 0.0}, "ratio: got 0.0"),
    ],
)
def test_a_field_of_a_network_names_what_is_wrong(changes, message):
    case = Sections(0)
    given = {"names": case.moving, "beta": 0.1, "decay": 0.1, "ratio": 1.0} | changes
    with pytest.raises(InputError, match=message):
        network_field(case.unit, **given)
