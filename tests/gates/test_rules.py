"""The pruning rules (SPEC D6, D7) in training: against the formulas written out for one gate, and what they must not do."""

import dataclasses
import math

import numpy as np
import pytest
from checkers import fails
from small_training import TANH, convolutional, images, mlp, plain, run, settings, start
from tolerance import assert_identical

from refprune.backend import ORACLE
from refprune.errors import InputError
from refprune.gates.rules import block_norms
from refprune.spec.layers import Activation, Dense, Section
from refprune.spec.network import Network
from refprune.training import config
from refprune.training.images import epoch_batches
from refprune.training.removal import gates_kept, remove_gates
from refprune.training.state import gate_uniforms, initial_state
from refprune.training.step import BatchLoss, train_step

SAMPLES = 32
#: Weights, pull and speeds of the same size, so that every term of H counts.
RULE = {
    "gates": {"rule": "attraction", "learning_rate": 0.02, "kappa_factor": 1.5, "kappa_warmup": 3},
    "objective": {"beta": 0.4, "weight_decay": 0.3},
    "optimiser": {"learning_rate": 0.01, "momentum": 0.8},
}


def attraction(**tables):
    return settings(**{table: RULE.get(table, {}) | tables.get(table, {}) for table in RULE | tables})


def known(network, rules, theta, slope=0.5, seen=3, size=1.0, bias=0.0):
    """A state with that evidence about every gate, the weights of all paths `size` times as large as at the start."""
    state = start(network, rules, theta)
    params = {name: a * (size if "section" in name or "dense" in name else 1.0) for name, a in state.params.items()}
    count = network.gate_count
    evidence = {"slope": np.full(count, slope), "seen": np.full(count, seen, dtype=np.intp), "bias_slope": np.full(count, bias)}
    return dataclasses.replace(state, params=params, **evidence)


def in_half_plane(w, theta, kappa, beta, decay, ratio):
    """D4 for one gate, term by term as SPEC writes it."""
    mu = 0.5 * (-decay + math.sqrt(decay**2 + 4.0 * ratio * kappa**2))
    w_star, theta_star = beta / kappa, decay * beta / kappa**2
    return ratio * kappa * (w - w_star) + (decay + mu) * (theta - theta_star) < 0.0


def norms_by_hand(network, params):
    """‖W‖ of the gates of `mlp`: section1, section2 with five units, section3."""
    whole = [math.sqrt(sum((params[f"section{i}.dense2.{part}"] ** 2).sum() for part in ("weight", "bias"))) for i in (1, 2, 3)]
    units = [math.sqrt((params["section2.dense2.weight"][:, j] ** 2).sum()) for j in range(5)]
    return [whole[0], whole[1], *units, whole[2]]


def in_box(w, theta, kappa, beta, decay):
    """D8 by hand for `mlp`, all slopes κ, that of the biases 0: gate 1 closes the columns of gates 2 to 6."""

    def ceiling(norm, drive):
        return max(norm, drive / decay)

    found = [kappa * ceiling(w[g], kappa * theta[g]) < beta for g in range(8)]
    tops = [theta[j] if kappa * theta[1] * ceiling(w[j], kappa * theta[j] * theta[1]) < beta else 1.0 for j in range(2, 7)]
    load = sum(kappa * t * ceiling(w[j], kappa * t * theta[1]) for j, t in zip(range(2, 7), tops, strict=True))
    found[1] = found[1] or load < beta
    return [f or (found[1] and 2 <= g < 7 and tops[g - 2] < 1.0) for g, f in enumerate(found)]


def check_attraction(rule):
    """rule(state, config) against D4 and D8 by hand, for gates on both sides of the edge."""
    __tracebackhide__ = True
    network, rules, found = mlp(), attraction(), []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        state = known(
            network, rules, rng.uniform(0.0, 0.6, network.gate_count), slope=rng.uniform(0.1, 1.0), size=rng.uniform()
        )
        w = norms_by_hand(network, state.params)
        kappa, ratio = 1.5 * state.slope[0], 0.02 * (1.0 - 0.8) / 0.01
        boxed = in_box(w, state.theta, kappa, 0.4, 0.3)
        alone = [in_half_plane(w[g], state.theta[g], kappa, 0.4, 0.3, ratio) for g in range(network.gate_count)]
        want = [not (one or other) for one, other in zip(alone, boxed, strict=True)]
        assert rule(state, rules).tolist() == want, seed
        found += want
    assert 0.2 < np.mean(found) < 0.8


def test_attraction_is_the_half_plane_and_the_box():
    check_attraction(lambda state, rules: gates_kept(state, rules, training_images=SAMPLES))


def test_planted_mistakes_in_the_rule_are_found():
    def changed(**tables):
        return lambda state, rules: gates_kept(state, attraction(**tables), training_images=SAMPLES)

    wrong = {
        "momentum forgotten": changed(optimiser={"momentum": 0.0}),
        "κ without its factor": changed(gates={"kappa_factor": 1.0}),
        "λ forgotten": changed(objective={"weight_decay": 0.0}),
        "β doubled": changed(objective={"beta": 0.8}),
        "threshold": changed(gates={"rule": "threshold", "threshold": 0.1}),
    }
    for name, rule in wrong.items():
        assert fails(check_attraction, rule) is not None, name


def everywhere_inside(rules, network=None, **evidence):
    """What is kept where every gate has θ = 0 and no weights: H contains that whenever anything is known."""
    network = mlp() if network is None else network
    state = known(network, rules, np.zeros(network.gate_count), **{"size": 0.0} | evidence)
    return gates_kept(state, rules, training_images=SAMPLES)


def test_nothing_goes_before_enough_is_known():
    assert not everywhere_inside(attraction()).any()
    assert everywhere_inside(attraction(), seen=2).all()


def test_nothing_goes_while_theta_is_held():
    """In the warm-up θ does not fall, so that D2 does not hold."""
    assert everywhere_inside(attraction(gates={"warmup_epochs": 1.0})).all()


def test_per_data_set_scaling_is_the_same_rule():
    """−log γ = N β and N λ."""
    scaled = {"beta": 0.4 * SAMPLES, "weight_decay": 0.3 * SAMPLES, "per": "data_set"}
    check_attraction(lambda state, rules: gates_kept(state, attraction(objective=scaled), training_images=SAMPLES))


def test_a_bias_that_does_not_decay_takes_the_decay_out():
    """With decay = "weights" the block of a layer gate has λ = 0, that of a unit's column still has it."""
    network, rules = mlp(), attraction(objective={"decay": "weights"})
    theta = np.full(network.gate_count, 0.5)
    state = known(network, rules, theta, slope=0.1, size=0.0, bias=0.01)
    kept, ratio = gates_kept(state, rules, training_images=SAMPLES), 0.02 * 0.2 / 0.01
    units = np.array([0, 0, 1, 1, 1, 1, 1, 0], dtype=bool)
    for g, w in enumerate(norms_by_hand(network, state.params)):
        assert kept[g] == (not in_half_plane(w, 0.5, 0.15, 0.4, 0.3 if units[g] else 0.0, ratio))
    fast = attraction(objective={"decay": "weights", "beta": 0.05})
    assert (gates_kept(state, fast, training_images=SAMPLES) == ~units).all()


def test_a_floor_that_is_too_high_keeps_everything():
    """κ²δ < λβ: with κ = 0.75, λβ = 0.12, δ = 0.2 is safe, 0.22 is not; nor is it for a section with units, by its bias."""
    assert not everywhere_inside(attraction(gates={"floor": 0.2, "threshold": 0.3}), size=0.0, bias=0.5).any()
    assert everywhere_inside(attraction(gates={"floor": 0.22, "threshold": 0.3}), size=0.0, bias=0.5).all()
    without_bias = everywhere_inside(attraction(gates={"floor": 0.22, "threshold": 0.3}), size=0.0)
    assert without_bias.tolist() == [True, *[False] * 6, True]  # its columns are driven by κθ_jθ, which is δ² at the floor


def test_speeds_of_units_that_change_leave_the_box():
    """With a rate of its own for units H is asked for layers alone; near 0 the box says the same, at any speed."""
    network, own = mlp(), {"gates": {"unit_learning_rate": 3.0}}
    for seed in range(6):
        theta = np.random.default_rng(seed).uniform(0.0, 0.3, network.gate_count)
        state = known(network, attraction(), theta, slope=0.4, size=0.5)
        both, boxed = (gates_kept(state, attraction(**t), training_images=SAMPLES) for t in ({}, own))
        w = norms_by_hand(network, state.params)
        layers = np.array([1, 1, 0, 0, 0, 0, 0, 1], dtype=bool)
        assert (boxed >= both).all()
        assert (boxed[layers] == both[layers]).all()
        inside = np.array(in_box(w, theta, 0.6, 0.4, 0.3))
        assert (boxed[~layers] == ~inside[~layers]).all()
    assert not everywhere_inside(attraction(**own)).any()


def test_both_is_what_both_say():
    network = mlp()
    for seed in range(8):
        kept = {}
        for rule in ("threshold", "attraction", "both"):
            rules = attraction(gates={"rule": rule, "threshold": 0.1})
            theta = np.random.default_rng(seed).uniform(0.0, 0.3, network.gate_count)
            kept[rule] = gates_kept(known(network, rules, theta, size=0.5), rules, training_images=SAMPLES)
        assert (kept["both"] == (kept["threshold"] | kept["attraction"])).all()


def test_a_plain_layer_keeps_its_best_unit_under_every_rule():
    network = plain()
    for rule in ("threshold", "attraction", "both"):
        rules = attraction(gates={"rule": rule})
        theta = np.zeros(network.gate_count)
        state = known(network, rules, theta, size=0.0)
        assert gates_kept(state, rules, training_images=SAMPLES).sum() == 2


# The evidence about κ -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [mlp(), convolutional(), plain()])
def test_the_evidence_is_the_largest_gradient(network):
    """Over eight steps, against gradients that are computed again; closed gates are not counted."""
    rules = attraction(gates={"rule": "attraction", "learning_rate": 1e-9})
    state, data = start(network, rules), images(network)
    largest, counted = np.zeros(network.gate_count), np.zeros(network.gate_count, dtype=np.intp)
    for x, labels in list(epoch_batches(data, rules, 0)) + list(epoch_batches(data, rules, 1)):
        gates = (gate_uniforms(state, rules.seed, 1)[0] < state.theta).astype(np.float64)
        loss = BatchLoss(network, ORACLE, state.params, x, labels, state.statistics)
        gradients = loss.gradients(loss.evaluate(gates)).params
        now = block_norms(network, gradients)
        assert (now[gates == 0.0] == 0.0).all()
        largest, counted = np.maximum(largest, now), counted + (now > 0.0)
        state, _ = train_step(state, x, labels, rules, ORACLE, training_images=SAMPLES)
    assert_identical("slope", state.slope, largest)
    assert_identical("seen", state.seen, counted)
    assert 0 < counted.sum() < 8 * network.gate_count  # of the eight steps


def test_the_evidence_begins_when_theta_moves():
    """Slopes of weights that training has left say nothing about those to come."""
    network, rules = mlp(), attraction(gates={"warmup_epochs": 1.0})  # of four steps
    state = run(start(network, rules), images(network), rules, 4)
    assert not state.seen.any()
    assert not state.slope.any()
    assert run(start(network, rules), images(network), rules, 5).slope.any()


def named_rule(rule):
    return attraction(gates={"rule": rule})


def test_threshold_does_not_ask_and_changes_no_bit():
    """The rules differ in what they look at only: before anything goes, the same states."""
    network = mlp()
    both = [run(start(network, rules), images(network), rules, 5) for rules in map(named_rule, ("attraction", "threshold"))]
    assert both[0].slope.max() > 0.0
    assert both[1].slope.max() == 0.0
    for name, array in both[0].params.items():
        assert_identical(name, array, both[1].params[name])
    assert_identical("theta", both[0].theta, both[1].theta)


def test_the_evidence_goes_with_its_gate():
    network, rules = mlp(), attraction()
    state = dataclasses.replace(start(network, rules), slope=np.arange(8.0), seen=np.arange(10, 18), theta=np.full(8, 0.5))
    state = dataclasses.replace(state, bias_slope=np.arange(20.0, 28.0))
    keep = np.array([False, True, True, False, True, True, True, True])
    smaller, _, _ = remove_gates(state, keep, rules)
    assert smaller.slope.tolist() == [1, 2, 4, 5, 6, 7]
    assert smaller.seen.tolist() == [11, 12, 14, 15, 16, 17]
    assert smaller.bias_slope.tolist() == [21, 22, 24, 25, 26, 27]


def test_a_network_without_a_block_is_refused_at_once():
    bad = Section((Dense(3), TANH, Dense(3), Activation("sigmoid")), name="bad")
    network = Network((2,), (Dense(3), bad, Dense(2)))
    with pytest.raises(InputError, match=r"bad: bad\.sigmoid1 \(Activation\) is not 0 at 0"):
        initial_state(attraction(), network)
    initial_state(settings(), network)


@pytest.mark.parametrize("rule", ["attraction", "both"])
def test_taylor_is_refused_where_the_domain_is_not_proved_for_it(rule):
    """One sentence that names the gates and the layer; every unbiased estimator is allowed, and so is taylor behind ReLU."""

    def network(kind):
        section = Section((Dense(3), Activation(kind)), name="first")
        return Network((2,), (Dense(3), section, Dense(2)))

    taylor = attraction(gates={"rule": rule, "estimator": "taylor"})
    for kind in ("tanh", "gelu", "gelu_tanh"):
        refused = rf"gates\.rule '{rule}': first has first\..*1 \({kind}\) between .*; set gates\.estimator to 'paired'"
        with pytest.raises(InputError, match=refused):
            initial_state(taylor, network(kind))
        initial_state(attraction(gates={"rule": rule, "estimator": "paired"}), network(kind))
        initial_state(settings(gates={"rule": "threshold", "estimator": "taylor"}), network(kind))
    for kind in ("relu", "leaky_relu", "identity"):
        initial_state(taylor, network(kind))


@pytest.mark.parametrize("name", ["mnist-resmlp", "mnist-resmlp-bn", "mnist-resconv", "mnist-lenet5-combined"])
@pytest.mark.parametrize("rule", ["attraction", "both"])
def test_named_experiments_may_use_the_proved_rules(name, rule):
    """Their sections end with ReLU or with the block itself, so that taylor is within the theorem."""
    experiment = config.load(name, [f"gates.rule={rule}", "objective.beta=0.001", "gates.unit_learning_rate=0.0"])
    initial_state(experiment, experiment.build_network())


@pytest.mark.parametrize("table", ["gates", "optimiser"])
def test_speeds_that_cannot_be_compared_are_refused(table):
    with pytest.raises(InputError, match=r"gates\.rule 'attraction' compares the speeds of θ and W"):
        attraction(**{table: {"learning_rate": 0.0}})


# Training end to end --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["attraction", "both"])
@pytest.mark.parametrize("make", [mlp, convolutional, plain])
def test_gates_go_while_training_goes_on(make, rule):
    """With a strong pull and decay gates of every kind go by the rule, and only where it says so."""
    network = make()
    rules = attraction(
        gates={"rule": rule, "learning_rate": 0.02, "kappa_warmup": 5},
        objective={"beta": 0.5, "weight_decay": 0.5},
        optimiser={"learning_rate": 0.1},
        training={"epochs": 40},
    )
    state, data, gone = initial_state(rules, network), images(network), set()
    for epoch in range(40):
        for x, labels in epoch_batches(data, rules, epoch):
            state, _ = train_step(state, x, labels, rules, ORACLE, training_images=SAMPLES)
            keep = gates_kept(state, rules, training_images=SAMPLES)
            if not keep.all():
                assert (state.seen[~keep] >= 5).all()
                assert rule == "attraction" or (state.theta[~keep] == 0.0).all()
                state, _, pruned = remove_gates(state, keep, rules)
                gone |= set(pruned.removed)
    assert gone
