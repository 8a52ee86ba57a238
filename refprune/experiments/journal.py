"""The record of one training run: it consumes the events of the loop and writes metrics, checkpoints and lines on the screen.

The folder of a training run holds metrics.jsonl and one checkpoint. What the checkpoint keeps beside the state is the `Log`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import numpy as np

from ..errors import InputError
from ..gates.theta_penalty import reference
from ..output.progress import Progress
from ..spec import cost as network_cost
from ..spec.layers import Section
from ..training import checkpoint, equivalence
from ..training.decide import Decided
from ..training.evaluate import finite_score, objective_of_decided
from ..training.images import epoch_steps
from ..training.loop import EpochEnded, Event, Finished, Stepped
from ..training.removal import Removed
from ..training.state import State, initial_state
from .setup import TrainingRun
from .sizes import Summary, count_sections, count_units, fixed_gates_gone, macs_spent, size_left, theta_by_name

METRICS = "metrics.jsonl"


@dataclass
class Final:
    """The scores of the network that is left, and its objective on the training images (O1).

    gates_on: how many gates are 1, those that were fixed from the start included.
    """

    test_loss: float
    test_accuracy: float
    train_loss: float
    gates_on: int
    objective: float


@dataclass
class Log:
    """What a checkpoint keeps beside the state, so that a resumed run goes on counting.

    identity: of the training run that the checkpoint belongs to.
    metrics_bytes: size of metrics.jsonl when the checkpoint was made.
    seconds: time spent until then; first_step_seconds: until the first step was done, 0 before.
    removals, decisions: rows as they stand in metrics.jsonl.
    gates_on: trained gates that were decided to be 1.
    rounded: as in `training.decide.Decided`.
    final: None until training has ended.
    """

    identity: str
    metrics_bytes: int = 0
    seconds: float = 0.0
    first_step_seconds: float = 0.0
    removals: list[Summary] = field(default_factory=list)
    decisions: list[Summary] = field(default_factory=list)
    gates_on: int = 0
    rounded: float = 0.0
    final: Final | None = None

    @classmethod
    def of_checkpoint(cls, path: Path, found: checkpoint.Checkpoint) -> Log:
        """What the checkpoint at `path` keeps. InputError names the first field that is missing or of a wrong type."""
        log, final = cls(**_fields(cls, found.run, f"{path}: run")), found.run.get("final", {})
        if found.state.finished or final is not None:
            log.final = Final(**_fields(Final, final, f"{path}: run.final"))
        return log


def _fields(kind: type[Any], values: Any, where: str) -> dict[str, Any]:
    """The fields of the dataclass `kind`, but `final`, by name."""
    hints = {name: hint for name, hint in get_type_hints(kind).items() if name != "final"}
    for name, hint in hints.items():
        if not isinstance(values, dict) or not isinstance(values.get(name), get_origin(hint) or hint):
            raise InputError(f"{where}.{name} is missing or of a wrong type")
    return {name: values[name] for name in hints}


@dataclass
class Journal:
    """Writes down one training run; `note` takes the loop's events in their order.

    began: the monotonic time at which the run would have begun without interruptions.
    """

    run: TrainingRun
    progress: Progress
    log: Log
    began: float

    @classmethod
    def open(cls, run: TrainingRun, progress: Progress) -> tuple[Journal, State]:
        """The journal in the run's folder, new or with a checkpoint, and the state to go on from.

        InputError for a folder that is damaged or belongs to another training run.
        """
        path = run.directory / checkpoint.NAME
        if path.exists():
            state, _ = found = checkpoint.load(run.directory)
            log = Log.of_checkpoint(path, found)
            if log.identity != run.identity:
                raise InputError(f"{path}: made by another run, network or configuration than config.toml says")
            _truncate_metrics(run.directory, log.metrics_bytes)
        else:
            run.directory.mkdir(exist_ok=True)
            for first in run.directory.glob("checkpoint-00000000-*.npz"):  # the run ended while its first state was written
                first.unlink()
            remains = sorted(p.name for p in run.directory.glob("checkpoint-*.npz"))
            if remains:
                raise InputError(f"{path}: is missing, but {remains[-1]} is there; to begin again, use another folder")
            state, log = initial_state(run.setup.config, run.network), Log(run.identity)
            _truncate_metrics(run.directory, 0)
            checkpoint.save(run.directory, state, dataclasses.asdict(log))
        return cls(run, progress, log, time.monotonic() - log.seconds), state

    def note(self, event: Event) -> None:
        """Write down one event."""
        match event:
            case Removed():
                self._removed(event)
            case Stepped():
                self._stepped(event)
            case Decided():
                self._decided(event)
            case EpochEnded():
                self._epoch_ended(event)
            case Finished():
                self._finished(event.state)

    def _stepped(self, event: Stepped) -> None:
        state, setup, training = event.state, self.run.setup, self.run.setup.config.training
        self.log.first_step_seconds = self.log.first_step_seconds or self._seconds()
        if state.step % training.log_every == 0:
            line: Summary = {"event": "step", "step": state.step} | event.metrics._asdict()
            self._write(
                line | self._spent(state) | size_left(state, setup.config.gates.empty) | {"theta": theta_by_name(state)}
            )
        due = training.checkpoint_every and state.step % training.checkpoint_every == 0
        if due and state.step % epoch_steps(setup.images, setup.config):
            finite_score(state, event.batch, setup.config, setup.backend)
            self._save(state)
        self.progress.advance()

    def _removed(self, event: Removed) -> None:
        self.log.gates_on += event.fixed
        if not event.pruned.removed:
            return
        row: Summary = {
            "step": event.pruned.step,
            "removed": event.pruned.removed,
            "masked_compact_error": equivalence.masked_against_compact(
                event.before, event.cut, event.on.astype(np.float64), self.run.setup.images
            ),
            "closed_for_emptiness": list(event.pruned.closed_for_emptiness),
            "last": list(event.pruned.last),
        }
        for line in self._removal_lines(event):
            self.progress.line(f"{self.run.name:9} step {event.pruned.step}: {line}")
        self.log.removals.append(row)
        self._write({"event": "removal"} | row)

    def _removal_lines(self, event: Removed) -> list[str]:
        """What a person should know of a removal, beside the counts."""
        networks = (event.before.network, event.state.network)
        before, after = ([layer.name for layer in n.layers if isinstance(layer, Section)] for n in networks)
        emptied = [name for name in before if name not in after and name not in event.pruned.removed]
        lines = [f"{section} has lost its last unit and goes" for section in emptied]
        lines += [f"{gate} has one unit left, which stays" for gate in event.pruned.last]
        if before and not after:
            lines.append(f"none of {count_sections(self.run.network)} sections is left, only the layers outside of them")
        return lines

    def _decided(self, event: Decided) -> None:
        self._removed(event.removed)
        self.log.decisions += [decision._asdict() for decision in event.decisions]
        self.log.rounded = max(self.log.rounded, event.rounded)

    def _epoch_ended(self, event: EpochEnded) -> None:
        state, setup = event.state, self.run.setup
        score = finite_score(state, setup.test, setup.config, setup.backend)
        row: Summary = {"epoch": event.epoch, "step": state.step, "test_loss": score.loss, "test_accuracy": score.accuracy}
        units, units_at_start = (sum(count_units(setup.whole, n).values()) for n in (state.network, self.run.network))
        row |= {"gates": setup.config.gates.evaluation, "sections": count_sections(state.network), "units": units}
        row |= self._spent(state) | size_left(state, setup.config.gates.empty) | {"seconds": self._seconds()}
        self._write({"event": "epoch"} | row)
        counts = f"sections {row['sections']:3d}/{count_sections(self.run.network)}"
        counts += f"  units {units:4d}/{units_at_start}" if units_at_start else ""
        self.progress.line(
            f"{self.run.name:9} epoch {event.epoch:3d}/{self.run.epochs}  test {100 * score.accuracy:6.2f} %  "
            f"loss {score.loss:.4f}  {counts}  {self._seconds():6.1f} s"
        )
        self._save(state)

    def _finished(self, state: State) -> None:
        setup, start = self.run.setup, self.run.network
        score = finite_score(state, setup.test, setup.config, setup.backend)
        fixed = self.run.gates - start.gate_count - fixed_gates_gone(setup.whole, start, state.network)
        gates_on = self.log.gates_on + fixed
        loss, objective = objective_of_decided(
            state, setup.images, setup.config, setup.backend, gates_on=gates_on, whole=reference(setup.whole)
        )
        self.log.final = Final(score.loss, score.accuracy, loss, gates_on, objective)
        line: Summary = {"event": "end", "step": state.step, "macs": state.macs, "decisions": self.log.decisions}
        line |= {"macs_per_image": network_cost.macs(state.network)} | dataclasses.asdict(self.log.final)
        self._write(line)
        self._save(state)

    def _spent(self, state: State) -> Summary:
        return macs_spent(state, self.run.network, self.run.setup.config.training.batch_size)

    def _seconds(self) -> float:
        return time.monotonic() - self.began

    def _save(self, state: State) -> None:
        self.log.seconds = self._seconds()
        with open(self.run.directory / METRICS, "ab") as file:
            os.fsync(file.fileno())
            self.log.metrics_bytes = file.tell()
        checkpoint.save(self.run.directory, state, dataclasses.asdict(self.log))

    def _write(self, line: Mapping[str, Any]) -> None:
        with open(self.run.directory / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _truncate_metrics(directory: Path, size: int) -> None:
    """Forget metric lines that were written after the checkpoint: their steps will be done again."""
    path = directory / METRICS
    with open(path, "ab") as file:
        if file.tell() < size:
            raise InputError(f"{path}: has {file.tell()} bytes, {size} when the checkpoint was made; it was cut or replaced")
        file.truncate(size)
