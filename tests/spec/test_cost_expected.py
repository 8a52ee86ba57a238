"""Expected and realised cost (C1) and the penalty made of it (C2–C5) against enumeration, surgery, PyTorch, complex step."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from counted_networks import GATED, KNOWN, networks, residual_sums, vgg_chain
from hypothesis import given
from hypothesis import strategies as st
from network_comparison import safe
from tolerance import assert_close, gamma
from torch.utils.flop_counter import FlopCounterMode

from refprune.adapters.pytorch import model
from refprune.conformance.strategies import networks as ns
from refprune.errors import InputError
from refprune.gates.surgery import prune
from refprune.gates.theta_penalty import Penalty, Reference, reference
from refprune.passes.parameters import initialise
from refprune.spec import cost as network_cost
from refprune.spec import zoo
from refprune.spec.layers import Activation, Dense, Section, UnitGate
from refprune.spec.network import Network
from refprune.streams import Streams

U = 2.0**-53


def left(network, gates):
    """The network without the closed gates; emptied layers stay, as C1 counts them."""
    return prune(network, gates == 1.0, empty="keep_constant").network


def rounding(network, value):
    """Sums over gates, terms and products of nonnegative numbers, each rounded once."""
    return gamma(network.gate_count + len(network_cost.terms(network)) + 8, U) * value


def random_gates(network, seed, share=0.6):
    rng = np.random.default_rng(seed)
    return safe(network, rng.random(network.gate_count) < share).astype(np.float64)


# Realised ----------------------------------------------------------------------------------------------------------------


def check_realised(network, gates):
    """Parameters, MACs and FLOPs at a vertex are those of the pruned spec, to the last integer, with any parts."""
    smaller = left(network, gates)
    ones = np.ones(smaller.gate_count)
    assert network_cost.expected(network, gates, "parameters") == network_cost.parameters(smaller)
    assert network_cost.expected(network, gates, "macs") == network_cost.macs(smaller)
    for quantity, parts in itertools.product(network_cost.QUANTITIES, (("weight",), ("bias",), ("norm",))):
        got = network_cost.expected(network, gates, quantity, parts=parts)
        assert got == network_cost.expected(smaller, ones, quantity, parts=parts)
    table = network_cost.expected_per_layer(network, gates)
    by_layer = {cost.layer.name: (cost.parameters, cost.macs) for cost in network_cost.per_layer(smaller)}
    for name, row in table.items():
        assert row[:2] == by_layer.get(name, (0, 0)), name


@given(case=ns.gated_cases(least=2), share=st.sampled_from((0.2, 0.5, 0.9, 1.0)))
def test_the_realised_cost_is_that_of_the_pruned_spec(case, share):
    check_realised(case.network, random_gates(case.network, case.seed, share))


@given(case=ns.gated_cases(least=4, image=True, unit_gates=True, norm=True), share=st.sampled_from((0.3, 0.7)))
def test_the_realised_cost_of_images_with_norms(case, share):
    check_realised(case.network, random_gates(case.network, case.seed, share))


def check_closed(network, gates):
    """The same with emptied sections closed, as surgery closes them; a wrong way to close costs more or less."""
    smaller = prune(network, gates == 1.0, empty="close").network
    assert network_cost.expected(network, gates, "parameters", empty="close") == network_cost.parameters(smaller)
    assert network_cost.expected(network, gates, "macs", empty="close") == network_cost.macs(smaller)


@given(case=ns.gated_cases(least=2), share=st.sampled_from((0.1, 0.3, 0.6, 1.0)))
def test_the_realised_cost_with_emptied_sections_closed(case, share):
    check_closed(case.network, random_gates(case.network, case.seed, share))


def test_an_emptied_group_closes_all_of_a_bottleneck():
    """Upstream and downstream of the empty group, with and without a layer gate: 0 closed, more than 0 where it is kept."""
    for gate in (True, False):
        relu, parts = Activation("relu"), []
        for units in (4, 3):
            parts += [Dense(units), relu, UnitGate()]
        network = Network((5,), (Section((*parts, Dense(5)), gate=gate), Dense(2)))
        for empty in network.gate_groups[gate:]:
            gates = np.ones(network.gate_count)
            gates[empty.slice] = 0.0
            assert network_cost.expected(network, gates, "macs", empty="close") == 10
            assert network_cost.expected(network, gates, "macs") > 10
            check_closed(network, gates)
            check_realised(network, gates)


def test_what_becomes_of_emptied_sections_is_one_of_two():
    network = Network((2,), (Dense(2),))
    with pytest.raises(InputError, match="empty: 'leave' is not known; allowed are 'keep_constant', 'close'"):
        network_cost.expected(network, np.zeros(0), empty="leave")


@pytest.mark.parametrize("name", networks())
def test_all_gates_on_is_the_plain_count(name):
    network = networks()[name]
    ones = np.ones(network.gate_count)
    assert network_cost.expected(network, ones, "parameters") == network_cost.parameters(network)
    assert network_cost.expected(network, ones, "macs") == network_cost.macs(network)
    assert network_cost.expected(network, ones, "flops", parts=("weight",)) == 2 * network_cost.macs(network)
    assert sum(row[2] for row in network_cost.expected_per_layer(network, ones).values()) == network_cost.flops(network)


@pytest.mark.parametrize("name", KNOWN)
def test_published_networks_with_and_without_bias(name):
    """N6's parameters are with biases; every unit of LeNet has one."""
    network = zoo.build(name, {})
    biases = {"lenet-300-100": 410, "lenet-5": 580}[name]
    assert network_cost.parameters(network, parts=("weight",)) == KNOWN[name][0] - biases
    assert network_cost.parameters(network, parts=("bias", "weight")) == KNOWN[name][0]
    outputs = {"lenet-300-100": 410, "lenet-5": 20 * 24**2 + 50 * 8**2 + 510}[name]
    assert network_cost.flops(network) == 2 * KNOWN[name][1] + outputs


def torch_counts(network):
    """(parameters, FLOPs) by PyTorch's own counters, from the network as a PyTorch module."""
    module = model.build(network)
    model.load(module, initialise(network, Streams(0)))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.eval()(torch.zeros(1, *network.input_shape, dtype=next(module.parameters()).dtype))
    return sum(p.numel() for p in module.parameters()), counter.get_total_flops()


@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize("seed", range(3))
def test_pytorchs_own_counters(name, seed):
    """torch.utils.flop_counter counts two operations a multiply-accumulate, of convolutions and matrix products."""
    network, gates = GATED[name], random_gates(GATED[name], seed, 0.7)
    assert torch_counts(left(network, gates)) == (
        network_cost.expected(network, gates, "parameters"),
        network_cost.expected(network, gates, "flops", parts=("weight",)),
    )


# Expected ----------------------------------------------------------------------------------------------------------------


def check_expected(network, seed):
    """E[cost] and its gradient against enumeration of six gates' values, the cost of each vertex counted on the pruned spec."""
    rng = np.random.default_rng(seed)
    theta = random_gates(network, seed)
    free = rng.permutation(network.gate_count)
    spared = [g.start for g in network.gate_groups if not isinstance(network.layers[g.position], Section)]
    theta[spared] = 1.0
    free = np.setdiff1d(free[:6], spared)
    theta[free] = rng.random(free.size)
    means = {"parameters": 0.0, "macs": 0.0}
    slopes = {name: np.zeros(free.size) for name in means}
    for values in itertools.product((0.0, 1.0), repeat=free.size):
        gates = theta.copy()
        gates[free] = values
        factors = np.where(gates[free] == 1.0, theta[free], 1.0 - theta[free])
        smaller = left(network, gates)
        for name, cost in (("parameters", network_cost.parameters(smaller)), ("macs", network_cost.macs(smaller))):
            means[name] += factors.prod() * cost
            others = np.array([np.delete(factors, i).prod() for i in range(free.size)])
            slopes[name] += (2.0 * gates[free] - 1.0) * others * cost
    for name, mean in means.items():
        full = network_cost.expected(network, np.ones(network.gate_count), name)
        bound = rounding(network, full) + gamma(2 ** (free.size + 1), U) * full
        assert_close(name, network_cost.expected(network, theta, name), mean, bound, network=network)
        gradient = network_cost.expected_gradient(network, theta, name)
        assert_close(f"∂{name}", gradient[free], slopes[name], bound, network=network)
        closed = network_cost.expected_gradient(network, theta, name, empty="close")
        step = complex_step(lambda t, name=name: network_cost.expected(network, t, name, empty="close"), theta)
        assert_close(f"∂{name}, closed", closed, step, bound, network=network)
    return theta


@given(case=ns.gated_cases(least=2))
def test_the_expected_cost_is_the_mean_over_all_pruned_specs(case):
    """C1: catches a factor counted twice or not at all, a section's gate that misses a part, columns of the wrong group."""
    check_expected(case.network, case.seed)


@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize("seed", range(4))
def test_shared_groups_by_enumeration(name, seed):
    check_expected(GATED[name], seed)


def complex_step(f, theta):
    """∂f/∂θ by the complex step (G2)."""
    steps = [np.where(np.arange(theta.size) == g, 1e-100j, 0.0) for g in range(theta.size)]
    return np.array([f(theta + step).imag / 1e-100 for step in steps])


@given(case=ns.gated_cases(least=2))
def test_gradients_by_complex_step(case):
    network, theta = case.network, case.uniform("theta", (case.network.gate_count,))
    for quantity in network_cost.QUANTITIES:
        want = complex_step(lambda t, quantity=quantity: network_cost.expected(network, t, quantity), theta)
        full = network_cost.expected(network, np.ones(theta.size), quantity)
        assert_close(quantity, network_cost.expected_gradient(network, theta, quantity), want, rounding(network, full))


# Planted mistakes --------------------------------------------------------------------------------------------------------


TERM_MISTAKES = {
    "columns forgotten": lambda t: t._replace(
        columns=None, macs=t.macs * _n(t.columns), flops=t.flops * _n(t.columns), parameters=t.parameters * _n(t.columns)
    ),
    "the section's gate forgotten": lambda t: t._replace(section=None),
    "the section's gate on weights only": lambda t: t if t.part == "weight" else t._replace(section=None),
    "bias and norm without rows": lambda t: (
        t if t.part == "weight" else t._replace(rows=None, parameters=t.parameters * _n(t.rows), flops=t.flops * _n(t.rows))
    ),
    "rows and columns of one group": lambda t: t._replace(columns=t.rows) if _n(t.rows) == _n(t.columns) else t,
    "norms count once": lambda t: t._replace(parameters=0) if t.part == "norm" else t,
}


def _n(where):
    return 1 if where is None else where.stop - where.start


@pytest.mark.parametrize("mistake", TERM_MISTAKES)
def test_wrong_terms_are_caught(mistake, monkeypatch):
    """Tests the tests: with all gates on most of these count right."""
    right = network_cost.terms
    wrong = lambda network: tuple(map(TERM_MISTAKES[mistake], right(network)))  # noqa: E731
    monkeypatch.setattr(network_cost, "terms", wrong)
    monkeypatch.setattr(network_cost, "cost_model", network_cost.cost_model.__wrapped__)
    caught = []
    for network, seed in itertools.product(GATED.values(), range(3)):
        for check in (check_expected, lambda n, s: check_realised(n, random_gates(n, s))):
            try:
                check(network, seed)
            except AssertionError:
                caught.append(mistake)
    assert caught


def test_a_wrong_gradient_is_caught(monkeypatch):
    """Tests the test: the gradient of one side of each product only."""
    gradient = network_cost.CostModel.gradient
    monkeypatch.setattr(
        network_cost.CostModel,
        "gradient",
        lambda m, t, w: gradient(dataclasses.replace(m, columns=np.full_like(m.columns, m.unit_groups)), t, w),
    )
    with pytest.raises(AssertionError):
        check_expected(vgg_chain(), 0)


# The penalty (C2–C5) -----------------------------------------------------------------------------------------------------

KNOBS = [(alpha, balance) for alpha in (0.0, 0.3, 1.0) for balance in (0.0, 0.2, 0.5, 0.9, 1.0)]


def share_by_hand(network, theta, alpha):
    costs = [network_cost.expected(network, theta, quantity) for quantity in ("macs", "parameters")]
    return alpha * costs[0] / network_cost.macs(network) + (1.0 - alpha) * costs[1] / network_cost.parameters(network)


@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize(("alpha", "balance"), KNOBS)
def test_penalty_by_formula_and_complex_step(name, alpha, balance):
    """C2, C3 written out; C5's β_g by complex step."""
    network, nu, beta = GATED[name], 0.7, 0.01
    theta = np.random.default_rng(5).random(network.gate_count)
    penalty = Penalty(network, reference(network), beta=beta, nu=nu, alpha=alpha, balance=balance)
    layer = np.zeros(theta.size, dtype=bool)
    for group in network.gate_groups:
        layer[group.slice] = group.kind == "layer"
    want = beta * theta.sum() + nu * (
        (1.0 - abs(2.0 * balance - 1.0)) * share_by_hand(network, theta, alpha)
        + max(0.0, 2.0 * balance - 1.0) * share_by_hand(network, np.where(layer, theta, 1.0), alpha)
        + max(0.0, 1.0 - 2.0 * balance) * share_by_hand(network, np.where(layer, 1.0, theta), alpha)
    )
    bound = rounding(network, nu + beta * theta.size)
    assert_close("penalty", penalty.value(theta), want, bound)
    assert_close("β", penalty.gradient(theta), complex_step(penalty.value, theta), bound)
    if balance in (0.0, 1.0):
        assert (penalty.gradient(theta)[layer == (balance == 0.0)] == beta).all()


def check_floor(make, network, seed):
    """At random θ, at the corners and after a removal: no β_g is below β (D's floor)."""
    rng = np.random.default_rng(seed)
    knobs = {"alpha": rng.random(), "balance": rng.random(), "nu": 3.0}
    keep = rng.random(network.gate_count) < 0.7
    for group in network.gate_groups:
        keep[group.start] = True
    for left in (network, prune(network, keep).network):
        penalty = make(left, reference(network), beta=0.01, **knobs)
        for theta in (rng.random(left.gate_count), np.zeros(left.gate_count), np.round(rng.random(left.gate_count))):
            assert (penalty.gradient(theta) >= penalty.beta - rounding(network, 3.0)).all(), (knobs, theta)


@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize("seed", range(5))
def test_beta_is_a_lower_bound_of_what_presses_on_every_gate(name, seed):
    """Expected costs rise in every θ, so that R_ρ does, whatever α and ρ are."""
    check_floor(Penalty, GATED[name], seed)


class Targeted(Penalty):
    """Presses towards 90 % of the size instead of towards nothing: what is smaller already is pulled up."""

    def gradient(self, theta):
        return self.beta + (super().gradient(theta) - self.beta) * (self.value(theta) - 0.9 * self.nu)


def test_a_penalty_that_pulls_gates_up_has_no_such_bound():
    with pytest.raises(AssertionError):
        check_floor(Targeted, residual_sums(), 0)


def test_the_penalty_after_a_removal_is_the_penalty_before_at_zero():
    """C5: the reference stays, so that R and every β_g that is left are those of the large network with θ = 0 for what went."""
    network = residual_sums()
    theta = np.random.default_rng(2).random(network.gate_count)
    keep = random_gates(network, 7, 0.7) == 1.0
    cut = prune(network, keep, empty="keep_constant")
    theta[np.setdiff1d(np.arange(theta.size), cut.gates)] = 0.0
    small = Penalty(cut.network, reference(network), nu=0.4, alpha=0.6)
    large = Penalty(network, reference(network), nu=0.4, alpha=0.6)
    bound = rounding(network, 1.0)
    assert_close("R", small.value(theta[cut.gates]), large.value(theta), bound)
    assert_close("β", small.gradient(theta[cut.gates]), large.gradient(theta)[cut.gates], bound)
    assert (Penalty(network, reference(cut.network), nu=0.4, alpha=0.6).value(theta)) > large.value(theta)


@pytest.mark.parametrize("balance", [0.1, 0.9])
def test_the_balance_sees_what_is_left(balance):
    """C3 after a removal: "the others at 1" are those that are left; gates that went are 0 in every summand of R_ρ."""
    network = residual_sums()
    theta = np.random.default_rng(2).random(network.gate_count)
    cut = prune(network, random_gates(network, 8, 0.7) == 1.0, empty="keep_constant")
    gone = np.setdiff1d(np.arange(theta.size), cut.gates)
    theta[gone] = 0.0
    layer = network_cost.cost_model(network).is_layer
    seen = np.where(layer == (balance > 0.5), theta, 1.0)
    seen[gone] = 0.0
    true = Penalty(network, reference(network), nu=0.4, alpha=0.6)
    small, large = (Penalty(n, reference(network), nu=0.4, alpha=0.6, balance=balance) for n in (cut.network, network))
    want = 0.2 * true.value(theta) + 0.8 * true.value(seen)
    assert_close("R_ρ", small.value(theta[cut.gates]), want, rounding(network, 1.0))
    assert large.value(theta) > 1.005 * want


def test_a_penalty_without_nu_is_the_plain_pull():
    network = vgg_chain()
    penalty = Penalty(network, reference(network), beta=0.25)
    theta = np.linspace(0.0, 1.0, network.gate_count)
    assert_close("β", penalty.gradient(theta), np.full(theta.size, 0.25), 0.0)
    assert_close("value", penalty.value(theta), 0.25 * theta.sum(), 0.0)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"nu": -1.0}, r"nu: must lie in \[0, inf\), got -1.0"),
        ({"nu": float("inf")}, "nu: must lie in"),
        ({"beta": -0.01}, "beta: must lie in"),
        ({"beta": float("nan")}, "beta: must lie in"),
        ({"alpha": 1.5}, "alpha: must lie in"),
        ({"balance": -0.1}, "balance: must lie in"),
        ({"nu": float("nan")}, "nu: must lie in"),
        ({"nu": 1.0, "reference": Reference(0, 5)}, "costs something"),
    ],
)
def test_wrong_knobs_are_refused(knobs, message):
    network = vgg_chain()
    with pytest.raises(InputError, match=message):
        Penalty(**({"network": network, "reference": reference(network)} | knobs))


def test_unknown_quantities_and_parts_are_refused():
    network = vgg_chain()
    theta = np.ones(network.gate_count)
    with pytest.raises(InputError, match="quantity: 'mac' is not known"):
        network_cost.expected(network, theta, "mac")
    with pytest.raises(InputError, match="parts: 'gate' is not known"):
        network_cost.expected(network, theta, parts=("weight", "gate"))
    with pytest.raises(InputError, match="10 gates, got an array"):
        network_cost.expected(network, theta[1:])
