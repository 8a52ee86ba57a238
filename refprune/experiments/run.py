"""One experiment from a configuration to a run directory: train, prune, finish, compare, summarise; resume where it stopped.

A run directory holds config.toml, environment.json, summary.json and a folder for each training run ("pruned", "unpruned")
with metrics.jsonl and its checkpoint.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .. import backend
from ..arrays import Array
from ..backend import Backend
from ..data import sets
from ..errors import InputError
from ..gates import magnitude
from ..gates.estimators import MAX_ENUMERATED_GATES
from ..gates.penalty import reference
from ..gates.surgery import Cut, prune
from ..output.files import check_unused, claim, locked, write_atomically
from ..output.progress import Progress
from ..spec import cost as network_cost
from ..spec import json_form
from ..spec.layers import Section
from ..spec.network import Network
from ..training import checkpoint, config, decide, equivalence
from ..training.config import Config
from ..training.evaluate import Score, evaluate
from ..training.images import Images, epoch_batches, prepare_images
from ..training.pressure import penalties, penalty_of, pressed
from ..training.removal import Pruned, gates_kept, remove_gates
from ..training.state import State, initial_state, non_finite_parameter, ungated
from ..training.step import NonFiniteLoss, train_step
from . import environment as environments
from .sizes import Summary, count_sections, count_units, layers_left, size_left, theta_by_name

#: Added to the seed where the network that is left is trained from scratch, so that it does not begin with the same weights.
SCRATCH_SEED = 1_000_000


@dataclass(frozen=True)
class Setup:
    """What a configuration and a data set make: the networks to train, by name, prepared images, the backend.

    whole: the network with all its gates. environment: versions, machine, digests of code and data, on which the bits of
    the results depend.
    """

    settings: Config
    data: str
    environment: dict[str, str]
    networks: dict[str, Network]
    whole: Network
    images: Images
    test: Images
    engine: Backend


def set_up(settings: Config, data_directory: str | None, threads: int | None = None) -> Setup:
    """Load, build and check everything that a run needs; nothing is written. threads: instead of training.threads."""
    dataset = sets.load(settings.data.name, data_directory)
    network = settings.build_network()
    network = pressed(network, settings)
    networks = {"pruned": protected(network, settings.gates.protect)} if network.gate_count else {"trained": network}
    (gated,) = networks.values()
    if settings.gates.estimator == "exact" and gated.gate_count > MAX_ENUMERATED_GATES:
        raise InputError(f"gates.estimator: 'exact' takes {MAX_ENUMERATED_GATES} gates, the network has {gated.gate_count}")
    if settings.gates.magnitude > 0.0 and not any(g.kind == "unit" for n in networks.values() for g in n.gate_groups):
        raise InputError(f"gates.magnitude: {settings.gates.magnitude} removes units, but the network has no unit gates")
    (outputs,) = network.output_shape
    if dataset.classes > outputs:
        raise InputError(f"data.name: {dataset.name} has {dataset.classes} classes, the network {outputs} outputs")
    images, test = prepare_images(dataset, settings, network.scaling)
    if images.x.shape[1:] != network.input_shape:
        raise InputError(f"data.name: {dataset.name} has images {images.x.shape[1:]}, the network needs {network.input_shape}")
    threads = settings.training.threads if threads is None else threads
    engine = backend.load_backend(settings.training.backend, threads=threads or None)
    if settings.unpruned and network.gate_count:
        networks["unpruned"] = ungated(network)
    return Setup(settings, dataset.name, environments.describe(dataset), networks, network, images, test, engine)


def protected(network: Network, groups: tuple[str, ...]) -> Network:
    """The network with the gates of these groups fixed to 1. InputError for a group that it has not."""
    names = [group.name for group in network.gate_groups]
    for name in groups:
        if name not in names:
            raise InputError(f"gates.protect: {name!r} is no gate of the network; there are {', '.join(names)}")
    fix = np.zeros(network.gate_count, dtype=bool)
    for name in groups:
        fix[network.gate_slices[name]] = True
    return prune(network, np.ones(network.gate_count, dtype=bool), fix=fix).network


def fixed_gates_gone(whole: Network, gated: Network, left: Network) -> int:
    """Gates of `whole` that are fixed to 1 in `gated` and whose section has gone on the way from there to `left`."""
    trained = {group.name for group in gated.gate_groups}
    begun, stays = ({layer.name for layer in n.layers if isinstance(layer, Section)} for n in (gated, left))
    fixed = (group for group in whole.gate_groups if group.name not in trained)
    return sum(group.stop - group.start for group in fixed if whole.layers[group.position].name in begun - stays)


def run(
    settings: Config,
    directory: Path,
    *,
    data_directory: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Run the experiment in a new or empty `directory`; returns what summary.json holds.

    threads: instead of training.threads.
    """
    check_unused(directory)
    setup = set_up(settings, data_directory, threads)
    claim(directory / "config.toml")
    write_atomically(directory / "environment.json", json.dumps(setup.environment, indent=1).encode())
    write_atomically(directory / "config.toml", config.to_toml(settings).encode())
    progress = progress or Progress()
    progress.line(f"run directory: {directory}")
    with locked(directory / "config.toml"):
        return _train_all(setup, directory, progress)


def resume(
    directory: Path, *, data_directory: str | None = None, threads: int | None = None, progress: Progress | None = None
) -> Summary:
    """Go on with the run in `directory` from its last checkpoints, to the same bits as without the interruption.

    threads: instead of the run's own number, on which the bits do not depend.
    """
    file = directory / "config.toml"
    if not file.is_file():
        raise InputError(f"{directory}: no run to resume here ({file.name} is missing)")
    setup = set_up(config.load(str(file)), data_directory, threads)
    progress = progress or Progress()
    progress.line(f"run directory: {directory}")
    environments.compare(directory / "environment.json", setup.environment, progress)
    with locked(file):
        return _train_all(setup, directory, progress)


def _train_all(setup: Setup, directory: Path, progress: Progress) -> Summary:
    """The runs one after the other; those to compare with get the epochs that the pruned one took."""
    runs: Summary = {}
    epochs = setup.settings.training.epochs
    for name, start in setup.networks.items():
        runs[name] = TrainingRun(name, setup, start, setup.whole.gate_count, epochs, directory / name, progress).go()
        epochs = runs[name]["epochs"]
    if setup.settings.from_scratch and "pruned" in runs:
        name, left = "from-scratch", checkpoint.load(directory / "pruned").state.network
        other = dataclasses.replace(setup.settings, seed=setup.settings.seed + SCRATCH_SEED)
        again = dataclasses.replace(setup, settings=other)
        runs[name] = TrainingRun(name, again, left, runs["pruned"]["gates_on"], epochs, directory / name, progress).go()
    summary = {"name": setup.settings.name, "seed": setup.settings.seed, "data": setup.data, "runs": runs}
    write_atomically(directory / "summary.json", json.dumps(summary, indent=1).encode())
    return summary


#: What a checkpoint keeps beside the state, with its types.
LOG_FIELDS: dict[str, type | tuple[type, ...]] = {
    "identity": str,
    "metrics_bytes": int,
    "seconds": float,
    "first_step_seconds": (float, type(None)),
    "removals": list,
    "decisions": list,
    "gates_on": int,
    "rounded": float,
}


@dataclass
class TrainingRun:
    """One network trained to the end, in its own folder; `go` starts or resumes it.

    gates: how many gates the network stands for, those fixed to 1 included, each of which costs β in J. log: what the
    checkpoint keeps beside the state, so that a resumed run goes on counting; "gates_on" are the trained gates that were
    decided to be 1, "rounded" as in `training.decide.Settlement`. began: the monotonic time at which the run would
    have begun without interruptions.
    """

    name: str
    setup: Setup
    network: Network
    gates: int
    epochs: int
    directory: Path
    progress: Progress
    log: Summary = field(default_factory=dict)
    began: float = 0.0

    def go(self) -> dict[str, Any]:
        """Train to the end; returns the run's part of the summary."""
        state, self.log = self._start()
        self.began = time.monotonic() - self.log["seconds"]
        steps = self.epochs * self.steps_per_epoch
        self.progress.start(self.name, steps, state.step)
        try:
            while not state.finished:
                state = self._epoch(state) if self._goes_on(state) else self._settle(state)
        finally:
            self.progress.finish()
        return self._summary(state)

    @property
    def settings(self) -> Config:
        return self.setup.settings

    @property
    def steps_per_epoch(self) -> int:
        return len(self.setup.images.labels) // self.settings.training.batch_size

    def _start(self) -> tuple[State, dict[str, Any]]:
        described = [self.name, config.to_toml(self.settings), json_form.to_json(self.network)]
        identity = hashlib.sha256(json.dumps(described).encode()).hexdigest()
        path = self.directory / checkpoint.NAME
        if path.exists():
            state, log = checkpoint.load(self.directory)
            wrong = [key for key, kind in LOG_FIELDS.items() if not isinstance(log.get(key), kind)]
            if wrong:
                raise InputError(f"{path}: run.{wrong[0]} is missing or of a wrong type")
            if log["identity"] != identity:
                raise InputError(f"{path}: made by another run, network or configuration than config.toml says")
            self._truncate_metrics(log["metrics_bytes"])
            return state, log
        self.directory.mkdir(exist_ok=True)
        remains = sorted(p.name for p in self.directory.glob("checkpoint-*.npz"))
        if remains:
            raise InputError(f"{path}: is missing, but {remains[-1]} is there; to begin again, use another folder")
        state = initial_state(self.settings, self.network)
        log = {"identity": identity, "metrics_bytes": 0, "seconds": 0.0, "first_step_seconds": None}
        log |= {"removals": [], "decisions": [], "gates_on": 0, "rounded": 0.0}
        self._truncate_metrics(0)
        checkpoint.save(self.directory, state, log)
        return state, log

    def _goes_on(self, state: State) -> bool:
        """Are there epochs left, or undecided gates and leave to go on for them (`gates.undecided = "continue"`)?"""
        epoch = state.step // self.steps_per_epoch
        if epoch < self.epochs:
            return True
        off, on = decide.decided(state, self.settings)
        wants_more = self.settings.gates.undecided == "continue" and not (off | on).all()
        return wants_more and epoch < self.settings.gates.max_epochs

    def _epoch(self, state: State) -> State:
        """From where the state stands to the end of its epoch."""
        training = self.settings.training
        epoch, first = divmod(state.step, self.steps_per_epoch)
        gates = self.settings.gates
        if state.network.gate_count and first == 0:
            if gates.magnitude > 0.0 and epoch == gates.magnitude_epoch:
                state = self._remove(state, magnitude.keep_largest(state.network, state.params, gates.magnitude))
            if gates.decide_epoch and epoch == gates.decide_epoch:
                settled = decide.settle_gates(state, self.setup.images, self.settings, self.setup.engine)
                self._record_settled(state, settled)
                state = settled.state
        for x, labels in epoch_batches(self.setup.images, self.settings, epoch, first, augment=self.setup.engine):
            started = time.monotonic()
            state, metrics = train_step(
                state, x, labels, self.settings, self.setup.engine, training_images=len(self.setup.images.labels)
            )
            self.log["first_step_seconds"] = self.log["first_step_seconds"] or time.monotonic() - started
            if state.step % self.settings.gates.removal_every == 0:
                keep = gates_kept(state, self.settings, training_images=len(self.setup.images.labels))
                if not keep.all():
                    state = self._remove(state, keep)
            if state.step % training.log_every == 0:
                line: Summary = {"event": "step", "step": state.step, "loss": metrics.loss, "gates_on": metrics.gates_on}
                self._write(line | self._spent(state) | size_left(state) | {"theta": theta_by_name(state)})
            due = training.checkpoint_every and state.step % training.checkpoint_every == 0
            if due and state.step % self.steps_per_epoch:
                self._evaluate(state, Images(x, labels))
                self._save(state)
            self.progress.advance()
        self._score_epoch(state, epoch + 1)
        self._save(state)
        return state

    def _score_epoch(self, state: State, epoch: int) -> None:
        score = self._evaluate(state, self.setup.test)
        row: Summary = {"epoch": epoch, "step": state.step, "test_loss": score.loss, "test_accuracy": score.accuracy}
        units, units_at_start = (sum(count_units(self.setup.whole, n).values()) for n in (state.network, self.network))
        row |= {"gates": self.settings.gates.evaluation, "sections": count_sections(state.network), "units": units}
        row |= self._spent(state) | size_left(state) | {"seconds": self._seconds()}
        self._write({"event": "epoch"} | row)
        counts = f"sections {row['sections']:3d}/{count_sections(self.network)}"
        counts += f"  units {units:4d}/{units_at_start}" if units_at_start else ""
        self.progress.line(
            f"{self.name:9} epoch {epoch:3d}/{self.epochs}  test {100 * score.accuracy:6.2f} %  "
            f"loss {score.loss:.4f}  {counts}  {self._seconds():6.1f} s"
        )

    def _evaluate(self, state: State, images: Images) -> Score:
        """The score, which must be finite: only then is a state worth a checkpoint."""
        named = self.settings.gates.evaluation
        score = evaluate(state, images, self.setup.engine, gates=named, seed=self.settings.seed)
        spoiled = non_finite_parameter(state.params)
        if spoiled is not None or not np.isfinite(score.loss):
            where = "all parameters are finite" if spoiled is None else f"the first parameter that is not finite is {spoiled}"
            raise NonFiniteLoss(f"step {state.step}: the loss is {score.loss}; {where}; the last good checkpoint stays")
        return score

    def _remove(self, state: State, keep: Array) -> State:
        smaller, cut, pruned = remove_gates(state, keep, self.settings)
        fixed = np.ones(keep.shape, dtype=bool)
        fixed[cut.gates] = False
        self.log["gates_on"] += len(pruned.last)
        self._record_removal(state, cut, pruned, keep & (fixed | (state.theta >= 0.5)))
        return smaller

    def _settle(self, state: State) -> State:
        end = decide.settle(state, self.setup.images, self.settings, self.setup.engine)
        self._record_settled(state, end)
        score = self._evaluate(end.state, self.setup.test)
        fixed = self.gates - self.network.gate_count
        on = self.log["gates_on"] + fixed - fixed_gates_gone(self.setup.whole, self.network, end.state.network)
        self.log["final"] = {"test_loss": score.loss, "test_accuracy": score.accuracy, **self._objective(end.state, on)}
        line: Summary = {"event": "end", "step": end.state.step, "macs": end.state.macs, "decisions": self.log["decisions"]}
        self._write(line | {"macs_per_image": network_cost.macs(end.state.network)} | self.log["final"])
        self._save(end.state)
        return end.state

    def _objective(self, final: State, on: int) -> Summary:
        """C and J on the training images in eval mode, with `on` gates at 1 and all others at 0 (O1, O9, C4)."""
        images, decay = self.setup.images, self.settings.objective.decay
        _, strength = penalties(self.settings, len(images.labels))
        pull = penalty_of(final, self.settings, len(images.labels))
        pull = dataclasses.replace(pull, reference=reference(self.setup.whole))
        loss = self._evaluate(final, images).loss
        decayed = [w for name, w in final.params.items() if decay == "all" or name.endswith(".weight")]
        norm = sum(float(np.square(w, dtype=np.float64).sum()) for w in decayed)
        objective = loss + 0.5 * strength * norm + pull.of_decided(final.network, on)
        return {"train_loss": loss, "gates_on": on, "objective": objective}

    def _record_settled(self, state: State, settled: decide.Settlement) -> None:
        self._record_removal(state, settled.cut, settled.pruned, settled.keep)
        self.log["decisions"] += [decision._asdict() for decision in settled.decisions]
        self.log["rounded"] = max(self.log["rounded"], settled.rounded)
        self.log["gates_on"] += prune(state.network, settled.keep, empty=self.settings.gates.empty).network.gate_count

    def _record_removal(self, state: State, cut: Cut, pruned: Pruned, on: Array) -> None:
        if not pruned.removed:
            return
        ratio = equivalence.masked_against_compact(state, cut, on.astype(np.float64), self.setup.images)
        row: Summary = {"step": pruned.step, "removed": pruned.removed, "masked_compact_error": ratio}
        row["closed_for_emptiness"] = list(pruned.closed_for_emptiness)
        row["last"] = list(pruned.last)
        before, after = ([layer.name for layer in n.layers if isinstance(layer, Section)] for n in (state.network, cut.network))
        emptied = [name for name in before if name not in after and name not in pruned.removed]
        said = [f"{section} has lost its last unit and goes" for section in emptied]
        said += [f"{gate} has one unit left, which stays" for gate in pruned.last]
        if before and not after:
            said.append(f"none of {count_sections(self.network)} sections is left, only the layers outside of them")
        for line in said:
            self.progress.line(f"{self.name:9} step {pruned.step}: {line}")
        self.log["removals"].append(row)
        self._write({"event": "removal"} | row)

    def _summary(self, state: State) -> dict[str, Any]:
        errors = [row["masked_compact_error"] for row in self.log["removals"] if row["masked_compact_error"] is not None]
        spent = self._spent(state)
        return {
            **self.log["final"],
            "sections": count_sections(state.network),
            "sections_at_start": count_sections(self.network),
            "units": count_units(self.setup.whole, state.network),
            "units_at_start": count_units(self.setup.whole, self.network),
            "parameters": network_cost.parameters(state.network),
            "parameters_at_start": network_cost.parameters(self.network),
            "macs_per_image": network_cost.macs(state.network),
            "macs_per_image_at_start": network_cost.macs(self.network),
            "layers": layers_left(self.network, state.network),
            "training_macs": spent["macs"],
            "training_macs_unpruned": spent["macs_unpruned"],
            "steps": state.step,
            "epochs": state.step // self.steps_per_epoch,
            "seconds": self.log["seconds"],
            "first_step_seconds": self.log["first_step_seconds"],
            "removals": self.log["removals"],
            "decisions": self.log["decisions"],
            "rounded": self.log["rounded"],
            "masked_compact_error": float(np.max(errors)) if errors else None,
        }

    def _spent(self, state: State) -> Summary:
        """MACs of the training so far, and what the unpruned network would have taken for the same steps (C6)."""
        full = network_cost.training_macs(self.network) * self.settings.training.batch_size * state.step
        return {"macs": state.macs, "macs_unpruned": full}

    def _seconds(self) -> float:
        return time.monotonic() - self.began

    def _save(self, state: State) -> None:
        self.log["seconds"] = self._seconds()
        with open(self.directory / "metrics.jsonl", "ab") as file:
            os.fsync(file.fileno())
            self.log["metrics_bytes"] = file.tell()
        checkpoint.save(self.directory, state, self.log)

    def _write(self, line: Mapping[str, Any]) -> None:
        with open(self.directory / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _truncate_metrics(self, size: int) -> None:
        """Forget metric lines that were written after the checkpoint: their steps will be done again."""
        path = self.directory / "metrics.jsonl"
        with open(path, "ab") as file:
            if file.tell() < size:
                raise InputError(
                    f"{path}: has {file.tell()} bytes, {size} when the checkpoint was made; it was cut or replaced"
                )
            file.truncate(size)
