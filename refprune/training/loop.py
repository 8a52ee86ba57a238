"""The training loop: what becomes of a State, step by step, as events. No file, no clock, no line on the screen.

Every event holds the state that it leads to. From the state of a step or of the end of an epoch `train` goes on to the same
bits, because all randomness is drawn by the number of the step (O8).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator
from dataclasses import dataclass

from ..arrays import Array
from ..backend import Backend
from ..gates import magnitude
from .config import Config
from .decide import Decided, all_decided, decide_all, reestimate
from .images import Images, epoch_batches, epoch_steps
from .removal import Removed, gates_kept, removal
from .state import State
from .step import StepMetrics, train_step


@dataclass(frozen=True)
class Stepped:
    """One step on `batch` is done, and the removal that a rule asked for after it."""

    state: State
    batch: Images
    metrics: StepMetrics


@dataclass(frozen=True)
class EpochEnded:
    """The last step of an epoch is done. epoch: how many have ended."""

    state: State
    epoch: int


@dataclass(frozen=True)
class Finished:
    """Training is over: no gate is left, and the running statistics are those of the network without gates (N4)."""

    state: State


Event = Stepped | Removed | Decided | EpochEnded | Finished


def train(state: State, config: Config, images: Images, backend: Backend, *, until: int) -> Iterator[Event]:
    """Training to its end: epoch after epoch (`train_epochs`), then every gate is decided, then statistics are re-estimated.

    until: the epochs. With `gates.undecided` = "continue" there are more, up to `gates.max_epochs`, while a gate is undecided.
    """
    while not state.finished:
        epoch = state.step // epoch_steps(images, config)
        goes_on = config.gates.undecided == "continue" and epoch < config.gates.max_epochs and not all_decided(state, config)
        if epoch < until or goes_on:
            for event in train_epochs(state, config, images, backend, until=epoch + 1):
                state = event.state
                yield event
        else:
            decision = decide_all(state, images, config, backend)
            yield decision
            state = dataclasses.replace(reestimate(decision.state, images, config, backend), finished=True)
            yield Finished(state)


def train_epochs(
    state: State,
    config: Config,
    images: Images,
    backend: Backend,
    *,
    until: int,
    shuffle: int = 0,
    removes: bool = True,
) -> Iterator[Stepped | Removed | Decided | EpochEnded]:
    """From where the state stands to the end of epoch number `until`.

    shuffle: added to the number of an epoch where its order of the images is drawn.
    removes: False leaves every gate in the network, whatever its θ.
    """
    training_images, steps = len(images.labels), epoch_steps(images, config)
    while state.step < until * steps:
        epoch, first = divmod(state.step, steps)
        if removes and first == 0 and state.network.gate_count:
            state = yield from _before_epoch(state, epoch, config, images, backend)
        for batch in epoch_batches(images, config, epoch + shuffle, first, augment=backend):
            state, metrics = train_step(state, *batch, config, backend, training_images=training_images)
            if removes and state.step % config.gates.removal_every == 0:
                keep = gates_kept(state, config, training_images=training_images)
                if not keep.all():
                    state = yield from _removal(state, keep, config)
            yield Stepped(state, Images(*batch), metrics)
        yield EpochEnded(state, epoch + 1)


def _before_epoch(
    state: State, epoch: int, config: Config, images: Images, backend: Backend
) -> Generator[Removed | Decided, None, State]:
    """What is due between two epochs: the baseline's removal at `magnitude_epoch`, all decisions at `decide_epoch`."""
    gates = config.gates
    if gates.magnitude > 0.0 and epoch == gates.magnitude_epoch:
        state = yield from _removal(state, magnitude.keep_largest(state.network, state.params, gates.magnitude), config)
    if gates.decide_epoch and epoch == gates.decide_epoch:
        decision = decide_all(state, images, config, backend)
        yield decision
        state = decision.state
    return state


def _removal(state: State, keep: Array, config: Config) -> Generator[Removed, None, State]:
    """Remove the gates where `keep` is False; returns the state without them.

    The event ends with this function, so that training does not hold the network before the removal in memory.
    """
    event = removal(state, keep, config)
    yield event
    return event.state
