"""The training loop: the order of its events, going on from their states, and what the loop neither holds nor touches."""

import ast
import dataclasses
import gc
import inspect
import weakref

import pytest
from small_training import convolutional, images, mlp, named, settings
from tolerance import assert_identical

from refprune.backend import ORACLE
from refprune.training import loop
from refprune.training.decide import Decided
from refprune.training.images import epoch_batches
from refprune.training.loop import EpochEnded, Finished, Stepped, train, train_epochs
from refprune.training.removal import Removed
from refprune.training.state import initial_state, ungated
from refprune.training.step import train_step

STEPS = 4  # steps in an epoch of 32 images
PRESSED = {"gates": {"learning_rate": 0.4, "estimator": "paired"}, "objective": {"beta": 0.3, "weight_decay": 0.01}}
EARLY = {"gates": {"learning_rate": 0.1, "decide_epoch": 1, "warmup_epochs": 0.5}, "objective": {"beta": 0.01}}


def begun(network, **tables):
    rules = settings(**tables)
    return initial_state(rules, network), rules, images(network)


def assert_same_states(one, other):
    __tracebackhide__ = True
    assert (one.network, one.step, one.macs, one.finished) == (other.network, other.step, other.macs, other.finished)
    for name, array in named(one).items():
        assert_identical(name, named(other)[name], array)


@pytest.mark.parametrize("tables", [PRESSED, EARLY])
@pytest.mark.parametrize("make", [mlp, convolutional])
def test_the_order_of_the_events(make, tables):
    """Steps in their order, an epoch after its last step, removals before the step they belong to, decisions once, the end."""
    state, rules, data = begun(make(), **tables)
    events = list(train(state, rules, data, ORACLE, until=3))
    steps = [(type(event), event.state.step) for event in events if isinstance(event, Stepped | EpochEnded)]
    want = [(Stepped, step) for step in range(1, 3 * STEPS + 1)]
    for epoch in (3, 2, 1):
        want.insert(epoch * STEPS, (EpochEnded, epoch * STEPS))
    assert steps == want
    assert [event.epoch for event in events if isinstance(event, EpochEnded)] == [1, 2, 3]
    assert isinstance(events[-2], Decided)
    assert isinstance(events[-1], Finished)
    assert [event.state.finished for event in events] == [False] * (len(events) - 1) + [True]
    before = state
    for event, following in zip(events, [*events[1:], None], strict=True):
        if isinstance(event, Removed):
            assert event.pruned.step == event.before.step == event.state.step
            assert isinstance(following, Stepped)
            assert following.state is event.state
            assert event.state.network.gate_count < event.before.network.gate_count == before.network.gate_count
        before = event.state
    decisions = [event.state.step for event in events if isinstance(event, Decided)]
    assert decisions == ([STEPS, 3 * STEPS] if tables is EARLY else [3 * STEPS])
    assert tables is EARLY or any(isinstance(event, Removed) for event in events)


@pytest.mark.parametrize("tables", [PRESSED, EARLY])
def test_training_goes_on_from_the_state_of_any_event(tables):
    """The rest of the events, to the same bits."""
    state, rules, data = begun(convolutional(), **tables)
    events = list(train(state, rules, data, ORACLE, until=2))
    for i, event in enumerate(events):
        rest = list(train(event.state, rules, data, ORACLE, until=2))
        want = events[i + 1 :]
        if isinstance(event, Removed):
            want = want[1:]  # without the step that it belongs to
        if isinstance(event, Decided) and isinstance(want[0], Finished):
            want = [event, *want]  # once more, of no gates
        if want and isinstance(want[0], EpochEnded):
            want = want[1:]  # no step of that epoch is left
        assert [type(e) for e in rest] == [type(e) for e in want]
        for one, other in zip(rest, want, strict=True):
            assert_same_states(one.state, other.state)


def test_the_loop_is_steps_on_the_batches_of_its_epochs():
    """By hand, without gates; `shuffle` moves the order of the images alone, not the step."""
    network = ungated(convolutional())
    state, rules, data = begun(network, data={"augmentation": "crop_flip", "padding": 1})
    for shuffle in (0, 3):
        want = state
        for epoch in (0, 1):
            for x, labels in epoch_batches(data, rules, epoch + shuffle, augment=ORACLE):
                want, _ = train_step(want, x, labels, rules, ORACLE, training_images=len(data.labels))
        *_, end = train_epochs(state, rules, data, ORACLE, until=2, shuffle=shuffle)
        assert_same_states(end.state, want)


def test_without_removals_every_gate_stays():
    state, rules, data = begun(mlp(), **PRESSED)
    events = list(train_epochs(state, rules, data, ORACLE, until=3, removes=False))
    assert {type(event) for event in events} == {Stepped, EpochEnded}
    assert events[-1].state.network == state.network
    assert (events[-1].state.theta == 0.0).any()
    assert any(isinstance(event, Removed) for event in train_epochs(state, rules, data, ORACLE, until=3))


def test_a_finished_state_is_gone_on_from_by_nothing():
    state, rules, data = begun(mlp())
    assert list(train(dataclasses.replace(state, finished=True), rules, data, ORACLE, until=9)) == []


def test_what_has_gone_leaves_the_memory():
    """One step after a removal nobody holds the state before it."""
    state, rules, data = begun(mlp(), **PRESSED)
    held, released = [], 0
    for event in train(state, rules, data, ORACLE, until=2):
        step = event.state.step
        if isinstance(event, Removed):
            held.append((step, weakref.ref(event.before)))
        del event
        gc.collect()
        due = [old for removed_at, old in held if removed_at < step]
        assert [old for old in due if old() is not None] == []
        released = len(due)
    assert released > 1


def test_no_file_no_clock_no_print():
    tree = ast.parse(inspect.getsource(loop))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not names & {"print", "open", "Path", "time", "logging"}
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import) and node.names[0].name != "dataclasses"]
    assert not {module for module in imported if module.startswith(("output", "experiments", "pathlib", "time", "os"))}
    assert {"step", "decide", "removal"} <= imported
