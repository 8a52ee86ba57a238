"""What is refused although every key by itself is allowed: keys that depend on one another; former names; networks."""

import pytest

from refprune.errors import InputError
from refprune.training import config
from refprune.training.config import Config


def refused(values, *words):
    """`values` is refused by one sentence that holds all the words."""
    __tracebackhide__ = True
    with pytest.raises(InputError) as caught:
        config.from_dict(values, where="here.toml")
    for word in ("here.toml", *words):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("former", "today"),
    [("objective.penalty", "objective.beta"), ("objective.scaling", "objective.per"), ("gates.samples", "gates.gate_samples")],
)
def test_a_former_name_is_refused_with_its_new_one(former, today):
    table, _, name = former.partition(".")
    refused({table: {name: 1}}, f"unknown key {former}; did you mean {today}?")


# What depends on something else -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["reinforce", "arm", "disarm"])
def test_estimators_that_need_a_floor(estimator):
    refused({"gates": {"estimator": estimator}}, estimator, "set gates.floor > 0")
    config.from_dict({"gates": {"estimator": estimator, "floor": 0.01, "threshold": 0.01}})


def test_gates_that_would_go_at_once_are_refused():
    for initial in (0.0, 0.1, 0.2):
        refused({"gates": {"initial": initial, "threshold": 0.2}}, f"gates.initial {initial} must exceed gates.threshold 0.2")


@pytest.mark.parametrize("rule", ["attraction", "both"])
def test_the_proved_rules_want_a_bound_of_the_pull_and_speeds(rule):
    for nu in (0.0, 0.1):
        refused({"gates": {"rule": rule}, "objective": {"nu": nu}}, "objective.beta, which must be > 0")
    pull = {"objective": {"nu": 0.1, "beta": 0.01}}
    config.from_dict({"gates": {"rule": rule}} | pull)
    config.from_dict({"gates": {"rule": rule, "unit_learning_rate": 0.1}} | pull)
    refused({"gates": {"rule": rule, "learning_rate": 0.0}} | pull, "both learning rates must be > 0")


def test_a_warm_up_that_never_ends_is_refused():
    refused({"gates": {"warmup_epochs": 2}, "training": {"epochs": 2}}, "warmup_epochs 2.0 must be less than training.epochs 2")


def test_the_defaults_train():
    """What a file without a word on initialisation does must not diverge: 12 sections with He's full scale explode."""
    assert Config().training.section_scale < 1.0


def test_a_momentum_of_one_is_refused():
    refused({"optimiser": {"momentum": 1.0}}, "optimiser.momentum must be less than 1")


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle", "warmup_stable_decay"])
def test_leave_to_continue_needs_steps_that_go_on(schedule):
    gates = {"undecided": "continue", "max_epochs": 99}
    message = f"needs a schedule that is constant or robbins_monro; {schedule} ends at 0"
    refused({"gates": gates, "optimiser": {"schedule": schedule}}, message)
    for allowed in ("constant", "robbins_monro"):
        config.from_dict({"gates": gates, "optimiser": {"schedule": allowed}})


@pytest.mark.parametrize("name", ["residual-mlp", "residual-lenet"])
@pytest.mark.parametrize(("option", "least"), [("sections", 0), ("width", 1)])
def test_sizes_of_networks(name, option, least):
    with pytest.raises(InputError, match=rf"network\.{option}: must be at least {least}, got {least - 1}"):
        config.from_dict({"network": {"name": name, option: least - 1}})


def test_a_floor_above_the_threshold_is_refused():
    refused({"gates": {"floor": 0.02, "threshold": 0.01}}, "gates.floor 0.02 exceeds gates.threshold 0.01")


@pytest.mark.parametrize("estimator", ["exact", "paired", "taylor", "arm", "disarm"])
def test_many_samples_are_for_reinforce(estimator):
    gates = {"gate_samples": 2, "floor": 0.01, "threshold": 0.01}
    refused({"gates": gates | {"estimator": estimator}}, "gates.gate_samples = 2 is for reinforce", estimator)
    config.from_dict({"gates": gates | {"estimator": "reinforce"}})


@pytest.mark.parametrize(
    ("gates", "message"),
    [
        ({"decide_epoch": 5}, "gates.decide_epoch 5 must be less than training.epochs 5"),
        ({"warmup_epochs": 3.0}, "gates.warmup_epochs 3.0 must be less than gates.decide_epoch 3, or θ never moves"),
        ({"undecided": "continue", "max_epochs": 9}, "cannot be combined with gates.undecided 'continue'"),
        ({"magnitude": 0.5, "initial": 1.0}, "cannot be combined with gates.magnitude > 0"),
    ],
)
def test_an_early_decision_needs_gates_that_move_before_and_epochs_behind(gates, message):
    refused({"gates": {"decide_epoch": 3} | gates, "training": {"epochs": 5}}, message)
    config.from_dict({"gates": {"decide_epoch": 3, "warmup_epochs": 2.9}, "training": {"epochs": 5}})


def test_leave_to_continue_needs_epochs():
    values = {"gates": {"undecided": "continue", "max_epochs": 4}, "training": {"epochs": 5}}
    refused(values, "gates.max_epochs 4 must be ≥ training.epochs 5")
    values["training"]["epochs"] = 4
    config.from_dict(values)


# The network's options ----------------------------------------------------------------------------------------------------


def test_an_unknown_network_lists_the_known_ones():
    with pytest.raises(InputError, match=r"'lenet-6' is not known; allowed are .*lenet-5"):
        config.from_dict({"network": {"name": "lenet-6"}})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "residual-mlp", "widht": 3}, r"network\.widht: residual-mlp has no such option; allowed are sections, width"),
        ({"name": "lenet-5", "width": 3}, r"network\.width: lenet-5 has no such option; allowed are units"),
        ({"name": "residual-mlp", "width": "3"}, r"network\.width: expected int, got '3'"),
        ({"name": "residual-mlp", "width": 3.5}, r"network\.width: expected int, got 3\.5"),
        ({"name": "residual-mlp", "gate_place": "behind"}, r"gate_place: 'behind' is not known; allowed are 'path'"),
        ({"name": "residual-lenet", "sections": 3}, r"sections: must be even"),
        ({"name": "residual-mlp", "width": -1}, r"width: must be at least 1, got -1"),
    ],
)
def test_network_options_are_checked(options, message):
    with pytest.raises(InputError, match=message):
        config.from_dict({"network": options})


def test_a_bool_is_no_width():
    with pytest.raises(InputError, match=r"network\.width: expected int, got True"):
        config.from_dict({"network": {"name": "residual-mlp", "width": True}})


def test_network_options_are_kept():
    network = {"name": "residual-mlp", "sections": 2, "width": 3, "gate_place": "preactivation"}
    assert config.from_dict({"network": network}).network == network
