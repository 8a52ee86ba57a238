"""What a run needs before it begins: networks, images and backend of a configuration, checked against each other."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..backend import Backend, load_backend
from ..data import sets
from ..errors import InputError
from ..gates.estimators import MAX_ENUMERATED_GATES
from ..gates.surgery import prune
from ..spec import json_form
from ..spec.network import Network
from ..training.coefficients import pressed
from ..training.config import Config, to_toml
from ..training.images import Images, prepare_images
from ..training.state import ungated
from . import environment as environments


@dataclass(frozen=True)
class Setup:
    """What a configuration and a data set make.

    data: name of the data set.
    environment: versions, machine, digests of code and data, on which the bits of the results depend.
    networks: the networks to train, by the name of their training run.
    whole: the network with all its gates.
    images, test: the training images and those of the test score.
    """

    config: Config
    data: str
    environment: dict[str, str]
    networks: dict[str, Network]
    whole: Network
    images: Images
    test: Images
    backend: Backend


@dataclass(frozen=True)
class TrainingRun:
    """One network to train, in a folder of its own.

    network: as it is before the first step.
    gates: how many gates the network stands for, those fixed to 1 included, each of which costs β in J.
    epochs: how many it is trained for, without those of `gates.undecided` = "continue".
    """

    name: str
    setup: Setup
    network: Network
    gates: int
    epochs: int
    directory: Path

    @property
    def identity(self) -> str:
        """SHA-256 of the name, the configuration and the network: whether a checkpoint is one of this training run."""
        described = [self.name, to_toml(self.setup.config), json_form.to_json(self.network)]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def set_up(config: Config, data_directory: str | None, threads: int | None = None) -> Setup:
    """Load, build and check everything that a run needs; nothing is written. threads: instead of training.threads."""
    dataset = sets.load(config.data.name, data_directory)
    network = config.build_network()
    network = pressed(network, config)
    gated = protected(network, config.gates.protect) if network.gate_count else network
    if config.gates.estimator == "exact" and gated.gate_count > MAX_ENUMERATED_GATES:
        raise InputError(f"gates.estimator: 'exact' takes {MAX_ENUMERATED_GATES} gates, the network has {gated.gate_count}")
    if config.gates.magnitude > 0.0 and not any(group.kind == "unit" for group in gated.gate_groups):
        raise InputError(f"gates.magnitude: {config.gates.magnitude} removes units, but the network has no unit gates")
    (outputs,) = network.output_shape
    if dataset.classes > outputs:
        raise InputError(f"data.name: {dataset.name} has {dataset.classes} classes, the network {outputs} outputs")
    images, test = prepare_images(dataset, config, network)
    if images.x.shape[1:] != network.input_shape:
        raise InputError(f"data.name: {dataset.name} has images {images.x.shape[1:]}, the network needs {network.input_shape}")
    threads = config.training.threads if threads is None else threads
    backend = load_backend(config.training.backend, threads=threads or None)
    networks = {"pruned" if network.gate_count else "trained": gated}
    if config.unpruned and network.gate_count:
        networks["unpruned"] = ungated(network)
    return Setup(config, dataset.name, environments.describe(dataset), networks, network, images, test, backend)


def protected(network: Network, groups: tuple[str, ...]) -> Network:
    """The network with the gates of these groups fixed to 1. InputError for a group that it does not have."""
    names = [group.name for group in network.gate_groups]
    for name in groups:
        if name not in names:
            raise InputError(f"gates.protect: {name!r} is no gate of the network; there are {', '.join(names)}")
    fix = np.zeros(network.gate_count, dtype=bool)
    for name in groups:
        fix[network.gate_slices[name]] = True
    return prune(network, np.ones(network.gate_count, dtype=bool), fix=fix).network
