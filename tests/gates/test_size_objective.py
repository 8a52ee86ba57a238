"""Training with the objective C4: the step on θ, removals under C5, thousands of unit gates at the end, what is refused."""

import dataclasses
import re

import numpy as np
import pytest
from small_training import NETWORKS, U, batches, convolutional, e2, images, mlp, plain, settings, start
from tolerance import assert_close, assert_identical, gamma

from refprune.backend import ORACLE
from refprune.errors import InputError
from refprune.experiments import report
from refprune.experiments import run as experiment
from refprune.gates.surgery import prune
from refprune.gates.theta_penalty import reference
from refprune.passes.batch_loss import BatchLoss
from refprune.spec import cost, zoo
from refprune.spec.layers import Activation, Conv, Dense, GlobalAveragePool, Section, UnitGate
from refprune.spec.network import Network
from refprune.training import config, decide
from refprune.training.coefficients import penalty_of, pressed
from refprune.training.images import epoch_batches
from refprune.training.removal import cut_state, remove_gates
from refprune.training.state import NO_REFERENCE, gate_uniforms
from refprune.training.step import train_step

KNOBS = {"nu": 0.3, "alpha": 0.7, "balance": 0.4, "beta": 0.01}


def wide_convolution():
    """Nine channels with gates, no norm: c of a batch needs no more than the batch."""
    conv = Conv(9, (3, 3), padding=((1, 1), (1, 1)))
    return Network((2, 4, 4), (conv, Activation("tanh"), UnitGate(), GlobalAveragePool(), Dense(3)))


def half(network):
    return np.linspace(0.3, 0.7, network.gate_count)


# The step ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("per", ["sample", "data_set"])
def test_the_step_on_theta(name, per):
    """θ − η_g (∂c/∂ξ + β_g): β_g from the cost of two pruned specs' worth of pairs, by differences of the penalty (O2, C5)."""
    network, samples = NETWORKS[name](), 32
    rules = settings(objective=KNOBS | {"per": per}, gates={"learning_rate": 0.01, "unit_learning_rate": 0.5})
    state, data = start(network, rules, half(network)), images(network)
    ((x, labels),) = batches(data, rules, 1)
    got = train_step(state, x, labels, rules, ORACLE, training_images=samples)[0].theta

    divisor = 1 if per == "sample" else samples
    sampled = gate_uniforms(state, rules.seed, 1)[0] < state.theta
    loss = BatchLoss(network, ORACLE, state.params, x, labels, state.statistics)
    slope = loss.gradients(loss.evaluate(sampled.astype(np.float64), run_closed=True)).gates
    want = np.empty_like(got)
    for group in network.gate_groups:
        for g in range(group.start, group.stop):
            on, off = state.theta.copy(), state.theta.copy()
            on[g], off[g] = 1.0, 0.0
            pull = (penalty_by_hand(network, on, group.kind) - penalty_by_hand(network, off, group.kind)) / divisor
            rate = 0.5 * (group.stop - group.start) if group.kind == "unit" else 0.01
            want[g] = np.clip(state.theta[g] - rate * (slope[g] + pull), 0.0, 1.0)
    costs = len(cost.terms(network)) + network.gate_count
    assert_close("θ", got, want, gamma(16 * costs, U) * (1.0 + np.abs(slope)))


def penalty_by_hand(network, theta, kind):
    """β Σθ + ν R_ρ for ρ = 0.4 < ½: 0.8 of the true share and 0.2 of what units alone would leave."""

    def share(gates):
        macs, parameters = (cost.expected(network, gates, quantity, empty="close") for quantity in ("macs", "parameters"))
        return 0.7 * macs / cost.macs(network) + 0.3 * parameters / cost.parameters(network)

    layer = np.repeat([g.kind == "layer" for g in network.gate_groups], [g.stop - g.start for g in network.gate_groups])
    return 0.01 * theta.sum() + 0.3 * (0.8 * share(theta) + 0.2 * share(np.where(layer, 1.0, theta)))


def test_nu_needs_a_state_that_knows_its_start():
    network = mlp()
    rules = settings(objective={"nu": 0.1})
    state = dataclasses.replace(start(network, rules), start=NO_REFERENCE)
    ((x, labels),) = batches(images(network), rules, 1)
    with pytest.raises(InputError, match="needs a network that costs something"):
        train_step(state, x, labels, rules, ORACLE, training_images=32)


@pytest.mark.parametrize("name", NETWORKS)
def test_removal_then_step_is_step_then_removal(name):
    """O7, C5: the small network's next step is the masked one's: W, momenta, statistics and every θ that is left.

    Gates of removed parts have θ = 0 in the large network and its penalty, so that both see the same R.
    """
    network = NETWORKS[name]()
    rules = settings(objective=KNOBS, gates={"learning_rate": 0.02}, optimiser={"learning_rate": 0.05})
    theta = half(network)
    keep = np.arange(network.gate_count) % 3 != 0
    theta[~keep] = 0.0
    state, data = start(network, rules, theta), images(network)
    ((x, labels),) = batches(data, rules, 1)
    small, cut, _ = remove_gates(state, keep, rules)
    assert small.start == reference(network) != reference(small.network)

    def both(backend, jitter):
        after = [train_step(s, x, labels, rules, backend, training_images=32)[0] for s in (small, state)]
        large = cut_state(after[1], cut)
        found = {}
        for side, now in zip(("small", "large"), (after[0], large), strict=True):
            for group in ("params", "velocity", "statistics"):
                found |= {f"{side} {group} {n}": jitter(a) for n, a in getattr(now, group).items()}
            found[f"{side} theta"] = jitter(now.theta)
        return found

    found, tolerance = both(ORACLE, lambda a: a), e2(both)
    gone = [g for g in range(network.gate_count) if g not in cut.gates]
    assert gone
    for key in [key for key in found if key.startswith("small")]:
        other = key.replace("small", "large", 1)
        assert_close(key, found[key], found[other], tolerance[key] + tolerance[other])


# Baselines ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("balance", "kinds"), [(1.0, {"layer"}), (0.0, {"unit"}), (0.5, {"layer", "unit"})])
def test_layers_only_and_units_only(balance, kinds):
    """C3: gates on which nothing presses are fixed; a scalar β presses on all."""
    network = mlp()
    rules = settings(objective={"nu": 0.1, "balance": balance})
    assert {g.kind for g in pressed(network, rules).gate_groups} == kinds
    assert cost.macs(pressed(network, rules)) == cost.macs(network)
    for objective in ({"nu": 0.1, "balance": balance, "beta": 0.1}, {"balance": balance}):
        assert pressed(network, settings(objective=objective)) == network


def test_a_balance_that_presses_on_nothing_is_refused():
    """LeNet-5 has unit gates alone: ρ = 1 would train the whole network without a word. Without gates nothing is said."""
    lenet, plain_lenet = zoo.lenet5(units=True), zoo.lenet5()
    only_layers = settings(objective={"nu": 0.1, "balance": 1.0})
    with pytest.raises(InputError, match=r"objective.balance: 1.0 presses on layer gates alone, of which the network has none"):
        pressed(lenet, only_layers)
    with pytest.raises(InputError, match=r"objective.balance: 0.0 presses on unit gates alone"):
        pressed(zoo.residual_mlp(3, 4), settings(objective={"nu": 0.1, "balance": 0.0}))
    assert pressed(plain_lenet, only_layers) == plain_lenet
    assert pressed(lenet, settings(objective={"nu": 0.1, "balance": 0.0})) == lenet


# The end -----------------------------------------------------------------------------------------------------------------


def wide(units=60):
    body = Section((Dense(units), Activation("tanh"), UnitGate(), Dense(4)))
    return Network((3,), (Dense(4), Activation("tanh"), body, Dense(units), Activation("tanh"), UnitGate(), Dense(3)))


def objective_of(state, data, rules, gates):
    """J at a vertex without the weights' part: the loss of the masked network, ν R and β of what is built there."""
    on, objective = gates == 1.0, rules.objective
    losses = [
        float(BatchLoss(state.network, ORACLE, state.params, x, labels, state.statistics).evaluate(gates).loss)
        for x, labels in epoch_batches(data, rules, 0, augment=ORACLE)
    ]
    built = prune(state.network, on, fix=on).network
    macs, parameters = (of(built) / of(state.network) for of in (cost.macs, cost.parameters))
    size = objective.nu * (objective.alpha * macs + (1.0 - objective.alpha) * parameters)
    return float(np.mean(losses)) + size + objective.beta * prune(state.network, on).network.gate_count


@pytest.mark.parametrize("nu", [0.0, 0.5, 50.0])
def test_thousands_of_undecided_units_take_three_passes(nu):
    """The rule first_order: one forward and backward pass and one comparison for all units, layers compared as ever."""
    network = wide()
    rules = settings(gates={"threshold": 0.1, "compare_at_most": 10}, objective={"nu": nu})
    theta = np.random.default_rng(0).uniform(0.2, 0.8, network.gate_count)
    state, data = start(network, rules, theta), images(network)
    gates, decisions, macs = decide.decide(state, data, rules, ORACLE)
    assert {d.rule for d in decisions if d.gate != "section1"} == {"first_order"}
    assert [d.rule for d in decisions if d.gate == "section1"] == ["compared"]
    assert len(decisions) == (121 if decisions[0].on else 61)  # without the section its units are no question
    full = cost.macs(network) * len(data.labels)
    assert macs <= (3 + 1 + 2) * full
    mode = decide.spare_plain_layers(network, theta >= 0.5, theta).astype(np.float64)
    best = objective_of(state, data, rules, mode)
    bound = 64 * network.gate_count * U * (abs(best) + nu)
    assert objective_of(state, data, rules, gates) <= best + bound
    if nu == 50.0:
        assert cost.expected(network, gates, "parameters") < 0.2 * cost.parameters(network)


@pytest.mark.parametrize(("network", "augmented"), [(plain(), {}), (wide_convolution(), {"augmentation": "crop_flip"})])
@pytest.mark.parametrize("balance", [0.5, 0.9])
def test_first_order_is_the_derivative_at_the_more_likely_vertex(network, augmented, balance):
    """The slope of the size is that of R, the size of what is built, whatever ρ weighs during training."""
    rules = settings(gates={"compare_at_most": 0}, objective={"nu": 0.2, "balance": balance}, data=augmented)
    theta = np.linspace(0.2, 0.8, 9)
    state, data = start(network, rules, theta), images(network)
    mode = (theta >= 0.5).astype(np.float64)
    _, decisions, _ = decide.decide(state, data, rules, ORACLE)
    losses, slopes = [], []
    for x, labels in epoch_batches(data, rules, 0, augment=ORACLE):
        loss = BatchLoss(network, ORACLE, state.params, x, labels)
        evaluation = loss.evaluate(mode)
        losses.append(evaluation.loss)
        slopes.append(loss.gradients(evaluation).gates)
    cost = penalty_of(state, settings(objective={"nu": 0.2}), 32).gradient(mode)
    change, bound = np.mean(slopes, axis=0) + cost, 64 * U
    differences = np.array([d.objective_on - d.objective_off for d in decisions])
    assert_close("J(on) − J(off)", differences, change, bound * (np.mean(losses) + np.abs(change)))
    known = np.array([d.objective_on if m else d.objective_off for d, m in zip(decisions, mode, strict=True)])
    here = objective_of(state, data, rules, mode)
    assert_close("J at the vertex", known, np.full(9, here), bound * (here + np.abs(change)))


@pytest.mark.parametrize("balance", [0.1, 0.5, 0.9])
def test_decisions_by_comparison_count_the_share_of_the_cost(balance):
    """Few undecided gates: J at both vertices is that of the two networks that are built, where R_ρ is R whatever ρ is."""
    network = convolutional()
    rules = settings(objective={"nu": 3.0, "alpha": 0.25, "balance": balance})
    state, data = start(network, rules, half(network)), images(network)
    _, decisions, _ = decide.decide(state, data, rules, ORACLE)
    places = [(g.name, i) for g in network.gate_groups for i in range(g.stop - g.start)]
    gates = (half(network) >= 0.5).astype(np.float64)
    for d in decisions:
        where = places.index((d.gate, d.unit))
        at = {}
        for vertex in (0.0, 1.0):
            gates[where] = vertex
            at[vertex] = objective_of(state, data, rules, gates)
        bound = 256 * network.gate_count * U * (at[1.0] + 3.0)
        assert_close("J on", np.float64(d.objective_on), np.float64(at[1.0]), bound)
        assert_close("J off", np.float64(d.objective_off), np.float64(at[0.0]), bound)
        gates[where] = float(d.on)


def test_many_units_are_reported_by_the_group():
    decision = {"gate": "unitgate1", "unit": 3, "theta": 0.4, "objective_on": 1.5, "objective_off": 1.25, "on": False}
    rows = [decision | {"rule": "first_order", "unit": i, "on": i < 2} for i in range(5)]
    (line,) = report.decision_lines({"runs": {"pruned": {"decisions": rows}}})
    assert line.startswith("pruned: 5 units of unitgate1 were undecided")
    assert line.endswith("2 are kept")


# Pruned to nothing -------------------------------------------------------------------------------------------------------


def test_a_network_pressed_to_nothing_keeps_one_unit_a_layer(tmp_path, capsys):
    """Absurd ν: the run ends, says which layers kept their last unit, and the masked network is still the compact one."""
    rules = config.from_dict(
        {
            "network": {"name": "lenet-5", "units": True},
            "data": {"name": "synthetic-digits", "train_limit": 128},
            "objective": {"nu": 1000.0},
            "gates": {"threshold": 0.05, "learning_rate": 10.0, "removal_every": 2},
            "training": {"epochs": 1, "batch_size": 16, "threads": 1},
            "unpruned": False,
        }
    )
    summary = experiment.run(rules, tmp_path / "run")["runs"]["pruned"]
    widths = [1, 1, 1]
    convolutions = 24 * 24 * 25 + 8 * 8 * 25
    assert summary["macs_per_image"] == convolutions + 16 + 10 == 16_026
    assert summary["masked_compact_error"] <= 1.0
    last = [name for row in summary["removals"] for name in row["last"]]
    assert sorted(last) == [f"unitgate{i + 1}" for i in range(len(widths))]
    assert summary["units"] == dict(zip(sorted(last), widths, strict=True))
    assert (summary["gates_on"], summary["rounded"]) == (len(widths), 0.0)
    assert ("units kept", "3 of 570") in report.rows({"runs": {"pruned": summary}})
    assert all(row["step"] % 2 == 0 for row in summary["removals"])
    out = capsys.readouterr().out
    assert re.search(r"unitgate1 has one unit left, which stays", out)


@pytest.mark.parametrize("name", ["residual-mlp-bn", "residual-mlp"])
def test_a_network_of_sections_pressed_to_nothing_says_so(name, tmp_path, capsys):
    """By its units (each section loses its last one) or by its layer gates: said in the run, below the table, in the report."""
    units = {"units": True} if name == "residual-mlp-bn" else {}
    rules = config.from_dict(
        {
            "network": {"name": name, "sections": 3, "width": 8} | units,
            "data": {"name": "synthetic-digits", "train_limit": 128},
            "objective": {"nu": 1e5, "balance": 0.0 if units else 1.0},
            "gates": {"threshold": 0.05, "learning_rate": 10.0, "removal_every": 2},
            "training": {"epochs": 1, "batch_size": 16, "threads": 1},
            "unpruned": False,
        }
    )
    summary = experiment.run(rules, tmp_path / "run")
    run, out = summary["runs"]["pruned"], capsys.readouterr().out
    assert run["sections"] == 0
    assert report.holds(summary)
    assert "none of 3 sections is left" in out
    assert out.count("has lost its last unit and goes") == (3 if units else 0)
    (line,) = report.nothing_left_lines(summary)
    assert line == "pruned: none of 3 sections is left, only the layers outside of them"
    assert line in report.write_html(tmp_path / "run", summary).read_text(encoding="utf-8")
    layer = run["layers"]["section2.dense1"]
    assert layer["macs_at_start"] == 64
    assert (layer["macs"], layer["parameters"]) == (0, 0)
    assert report.nothing_left_lines({"runs": {"pruned": run | {"sections": 1}}}) == []


def test_a_removal_that_leaves_a_layer_without_input_is_refused():
    with pytest.raises(InputError, match="leaves the layers behind it without input"):
        prune(plain(), np.zeros(9))


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"nu": -0.1}, r"objective\.nu = -0\.1 must lie in \[0"),
        ({"alpha": 1.1}, r"objective\.alpha = 1\.1 must lie in \[0"),
        ({"balance": -1.0}, r"objective\.balance = -1\.0 must lie in \[0"),
        ({"rho": 0.5}, r"unknown key objective\.rho"),
    ],
)
def test_knobs_out_of_range_are_refused(objective, message):
    with pytest.raises(InputError, match=message):
        settings(objective=objective)


def test_identical_bits_without_nu():
    """ν = 0: α and ρ change nothing."""
    network = mlp()
    thetas = []
    for objective in ({"beta": 0.02}, {"beta": 0.02, "alpha": 1.0, "balance": 0.9}):
        rules = settings(objective=objective)
        ((x, labels),) = batches(images(network), rules, 1)
        thetas.append(train_step(start(network, rules), x, labels, rules, ORACLE, training_images=32)[0].theta)
    assert_identical("θ", *thetas)
