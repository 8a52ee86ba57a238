"""Compiling before it is needed: one training step and one evaluation on random images, in the shapes of a run."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator

import numpy as np

from ..backend import ORACLE, load_backend
from ..errors import InputError
from ..spec import zoo
from ..streams import Streams
from ..training.config import Config, from_dict, load
from ..training.evaluate import evaluate
from ..training.images import Images
from ..training.state import initial_state
from ..training.step import train_step

EVALUATED = 1000  # images that an evaluation takes at once


class _Listener(logging.Handler):
    def __init__(self, hear: Callable[[logging.LogRecord], None]) -> None:
        super().__init__()
        self.hear = hear

    def emit(self, record: logging.LogRecord) -> None:
        self.hear(record)


@contextlib.contextmanager
def listening(hear: Callable[[logging.LogRecord], None], level: int = logging.INFO) -> Iterator[None]:
    """Hand the records of the kernels' logger to `hear`: `event` is "compiling" or "compiled" at INFO, "loaded" at DEBUG."""
    log, listener = logging.getLogger("refprune.kernels"), _Listener(hear)
    before = log.level
    log.addHandler(listener)
    log.setLevel(level)
    try:
        yield
    finally:
        log.setLevel(before)
        log.removeHandler(listener)


def named_config(name: str) -> Config:
    """The experiment of that name or file, or one with the network of that name."""
    return from_dict({"network": {"name": name}}) if name in zoo.NETWORKS else load(name)


def warm_up(config: Config, threads: int | None = None) -> None:
    """Compile, or load, every kernel that a run with this configuration calls. threads: instead of training.threads.

    The estimator "exact" would enumerate all gate vectors; "paired" calls the same kernels.
    """
    backend = load_backend(config.training.backend, threads=(config.training.threads if threads is None else threads) or None)
    if backend is ORACLE:
        raise InputError("training.backend: the oracle has nothing to compile")
    estimator = "paired" if config.gates.estimator == "exact" else config.gates.estimator
    gates = dataclasses.replace(config.gates, estimator=estimator, warmup_epochs=0.0)
    config = dataclasses.replace(config, gates=gates)
    network = config.build_network()
    state = initial_state(config, network)
    size, classes = config.training.batch_size, network.output_shape[0]
    images = Streams(config.seed).normal("warmup", 0, (max(size, EVALUATED), *network.input_shape))
    x = images.astype(config.training.dtype)
    labels = np.arange(len(x)) % classes
    state, _ = train_step(state, x[:size], labels[:size], config, backend, training_images=size)
    evaluate(state, Images(x[:EVALUATED], labels[:EVALUATED]), backend, batch_size=EVALUATED)
