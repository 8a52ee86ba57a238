"""Compiling before it is needed: one training step and one evaluation on random images, in the shapes of a run."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator

import numpy as np

from .. import backend
from ..errors import InputError
from ..spec import zoo
from ..streams import Streams
from ..training import config
from ..training.config import Config
from ..training.evaluate import evaluate
from ..training.images import Images
from ..training.state import initial_state
from ..training.step import train_step

EVALUATED = 1000  # images that an evaluation takes at once


class _Listener(logging.Handler):
    def __init__(self, hear: Callable[[logging.LogRecord], None]) -> None:
        super().__init__()
        self.emit = hear  # type: ignore[assignment, method-assign]


@contextlib.contextmanager
def listening(hear: Callable[[logging.LogRecord], None], level: int = logging.INFO) -> Iterator[None]:
    """Hand every record of the kernels' logger to `hear`: INFO "compiling …", "compiled …"; DEBUG "loaded …"."""
    log, listener = logging.getLogger("refprune.kernels"), _Listener(hear)
    before = log.level
    log.addHandler(listener)
    log.setLevel(level)
    try:
        yield
    finally:
        log.setLevel(before)
        log.removeHandler(listener)


def settings_of(name: str) -> Config:
    """The experiment of that name or file, or one with the network of that name."""
    return config.from_dict({"network": {"name": name}}) if name in zoo.NETWORKS else config.load(name)


def warm_up(settings: Config, threads: int | None = None) -> None:
    """Compile, or load, every kernel that a run with these settings calls. threads: instead of training.threads.

    The estimator "exact" would enumerate all gate vectors; "paired" calls the same kernels.
    """
    engine = backend.load_backend(
        settings.training.backend, threads=(settings.training.threads if threads is None else threads) or None
    )
    if engine is backend.ORACLE:
        raise InputError("training.backend: the oracle has nothing to compile")
    estimator = "paired" if settings.gates.estimator == "exact" else settings.gates.estimator
    gates = dataclasses.replace(settings.gates, estimator=estimator, warmup_epochs=0.0)
    settings = dataclasses.replace(settings, gates=gates)
    network = settings.build_network()
    state = initial_state(settings, network)
    size, classes = settings.training.batch_size, network.output_shape[0]
    images = Streams(settings.seed).normal("warmup", 0, (max(size, EVALUATED), *network.input_shape))
    x = images.astype(settings.training.dtype)
    labels = np.arange(len(x)) % classes
    state, _ = train_step(state, x[:size], labels[:size], settings, engine, training_images=size)
    evaluate(state, Images(x[:EVALUATED], labels[:EVALUATED]), engine, batch_size=EVALUATED)
