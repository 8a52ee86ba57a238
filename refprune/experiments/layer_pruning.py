"""Pruning a trained network section by section: score, remove, fine-tune, repeat (SPEC K6).

A run directory holds plan.json, environment.json, rounds.json (what every round did), summary.json, report.html and a folder
"round-NN" with a checkpoint for the network after each round, "round-00" being the start. "working" is the round under way,
saved after every epoch, from where an interrupted run goes on to the same bits.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..analysis import candidates
from ..analysis import scores as criteria
from ..analysis.scores import CRITERIA, Subject
from ..arrays import Array
from ..backend import Backend, load_backend
from ..data import sets, standardise
from ..errors import InputError
from ..exchange import load
from ..exchange.inputs import sentence
from ..exchange.trained import Trained, digest
from ..output.files import check_unused, locked, write_atomically, write_new
from ..output.progress import Progress
from ..output.texts import read_json
from ..spec import cost
from ..spec.network import Network
from ..streams import Streams
from ..training import checkpoint
from ..training.config import Config, from_dict, to_dict
from ..training.evaluate import evaluate
from ..training.images import Images, epoch_steps, prepare_images
from ..training.loop import EpochEnded, Stepped, train_epochs
from ..training.removal import cut_state
from ..training.state import State
from ..training.step import REMEDY, NonFiniteLoss
from . import environment as environments

Record = dict[str, Any]
#: Share of a section's filters that one round of filter pruning takes (K6).
FILTER_SHARE = 0.1
#: Images of a batch in evaluation.
BATCH = 250
_NO_GATES = "has no effect where no gate is trained"
#: Keys of a Config that mean nothing here, and why.
WITHOUT_EFFECT = {
    "training.epochs": "--finetune says how many epochs follow a removal",
    "training.section_scale": "has no effect on a network that is trained already",
    "training.checkpoint_every": "a checkpoint is written after every epoch",
    "training.log_every": "every round is logged",
} | dict.fromkeys((f"objective.{key}" for key in ("beta", "nu", "alpha", "balance")), _NO_GATES)


@dataclass(frozen=True)
class Plan:
    """What is removed, and when it stops.

    criterion: one of CRITERIA, by which sections are scored.
    score_images: training images to score with, the same in all rounds (0: all).
    target_macs: stop once the MACs are at most this share of those at the start (0: when no candidate is left).
    least_accuracy: stop once the test accuracy after fine-tuning is below this; the network before that is the result. The test
        set then takes part in the choice of the network.
    finetune: epochs after each removal.
    filter_rounds: rounds of ℓ1 filter pruning after the last section, each with as many epochs.
    anneal: a ∈ (0, 1]. Where a share p of the MACs that sections can save has gone, the learning rate is multiplied by a^p.
    """

    criterion: str = "cka"
    score_images: int = 10_000
    target_macs: float = 0.0
    least_accuracy: float = 0.0
    finetune: int = 1
    filter_rounds: int = 0
    anneal: float = 1.0

    def __post_init__(self) -> None:
        if self.criterion not in CRITERIA:
            raise InputError(f"--criterion: {self.criterion!r} is not known; allowed are {', '.join(CRITERIA)}")
        for name in ("score_images", "finetune", "filter_rounds"):
            if getattr(self, name) < 0:
                raise InputError(f"--{name.replace('_', '-')}: must be at least 0, got {getattr(self, name)}")
        for name in ("target_macs", "least_accuracy"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InputError(f"--{name.replace('_', '-')}: is a share and must lie in [0, 1], got {getattr(self, name)}")
        if not 0.0 < self.anneal <= 1.0:
            raise InputError(f"--anneal: is a share and must lie in (0, 1], got {self.anneal}")


def finetuning_config(dataset: str, finetune: int, seed: int, overrides: Mapping[str, Any]) -> Config:
    """Fine-tuning as a Config: the tables data, objective, optimiser and training count, defaults below, then `overrides`.

    The rate is that of a network trained to the end: 0.01 undoes more of it than one epoch mends (docs/ledger/criteria.md).
    """
    tables: dict[str, Any] = {
        "data": {"name": dataset} | ({"augmentation": "crop_flip"} if dataset == "cifar10" else {}),
        "objective": {"weight_decay": 1e-4},
        "optimiser": {"learning_rate": 0.003, "schedule": "one_cycle"},
        "training": {"batch_size": 128},
    }
    for table, values in overrides.items():
        if table not in tables or not isinstance(values, Mapping):
            raise InputError(f"--set {table}: fine-tuning has the tables {', '.join(tables)}")
        for key in values:
            if f"{table}.{key}" in WITHOUT_EFFECT:
                raise InputError(f"--set {table}.{key}: {WITHOUT_EFFECT[f'{table}.{key}']}")
        tables[table] |= values
    tables["training"]["epochs"] = max(finetune, 1)
    return from_dict({"name": "prune", "seed": seed, **tables}, where="fine-tuning")


def run(
    trained: Trained,
    plan: Plan,
    config: Config,
    directory: Path,
    *,
    source: str = "",
    data_directory: str | None = None,
    progress: Progress | None = None,
) -> Record:
    """Prune `trained` in a new or empty `directory`; returns what summary.json holds.

    source: where `trained` comes from, for whoever reads the run later. InputError before anything is written: images that do
    not fit, no candidate, a criterion that cannot judge this network, a target below what K6 allows.
    """
    _forget_unbegun(directory)
    check_unused(directory)
    check(trained.network, plan)
    written = {"plan": dataclasses.asdict(plan), "settings": _plain(config)}
    written["network"] = {"source": source, "sha256": digest(trained), "training_images": trained.training_images}
    job = _Job.make(written, plan, config, directory, data_directory, progress or Progress(), trained.network)
    write_new(directory / "plan.json", json.dumps(written, indent=1).encode())
    with locked(directory / "plan.json"):
        environments.write(directory / "environment.json", job.environment)
        job.progress.line(f"run directory: {directory}")
        job.progress.line(sentence(trained, config.data.name, job.scaling))
        job.begin(trained)
        return job.go()


def _forget_unbegun(directory: Path) -> None:
    """Remove what a run left that ended before its round 0 was whole, as on a full disk."""
    first = directory / "round-00"
    there = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    unbegun = "plan.json" in there and there <= {"plan.json", "environment.json", first.name}
    if not unbegun or (first / checkpoint.NAME).exists():
        return
    with locked(directory / "plan.json"):
        for path in (*first.glob("checkpoint*"), directory / "environment.json", directory / "plan.json"):
            path.unlink(missing_ok=True)
        if first.exists():
            first.rmdir()


def resume(
    directory: Path, *, data_directory: str | None = None, threads: int | None = None, progress: Progress | None = None
) -> Record:
    """Go on with the run in `directory`, to the same bits as without the interruption."""
    try:
        written = read_json(directory / "plan.json")
        plan, config = Plan(**written["plan"]), from_dict(written["settings"], where="plan.json")
        written["network"] = {"training_images": None, **written["network"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{directory / 'plan.json'}: no pruning run to resume here ({error})") from error
    if threads is not None:
        config = dataclasses.replace(config, training=dataclasses.replace(config.training, threads=threads))
    with locked(directory / "plan.json"):
        network = checkpoint.load(directory / "round-00").state.network
        job = _Job.make(written, plan, config, directory, data_directory, progress or Progress(), network)
        job.progress.line(f"run directory: {directory}")
        environments.compare(directory / "environment.json", job.environment, job.progress)
        return job.go()


def check(network: Network, plan: Plan) -> None:
    """InputError if there is nothing to remove, the criterion cannot judge it, or the target cannot be reached (K6)."""
    if network.gate_count:
        raise InputError(f"network: has {network.gate_count} gates; trained networks have none (finish the run first)")
    candidates.check_candidates(network)
    criteria.check(plan.criterion, network, plan.score_images)
    start, least = cost.macs(network), candidates.fewest_macs(network)
    if 0.0 < plan.target_macs * start < least:
        raise InputError(
            f"--target-macs: {plan.target_macs} of {start:,} MACs cannot be reached: two sections stay in every stage, "
            f"so that the minimum is {least / start:.4f} ({least:,} MACs)"
        )


def _plain(config: Config) -> Record:
    """The part of the configuration on which a pruning run depends."""
    values = to_dict(config)
    return {key: values[key] for key in ("name", "seed", "data", "objective", "optimiser", "training")}


@dataclass
class _Job:
    """A run under way.

    written: what plan.json holds.
    scaling: how pixels become inputs.
    fewest_macs: MACs of the network without any candidate.
    records: what every finished round did.
    """

    written: Record
    plan: Plan
    config: Config
    directory: Path
    environment: dict[str, str]
    scaling: standardise.Scaling
    images: Images
    test: Images
    backend: Backend
    progress: Progress
    fewest_macs: int
    records: list[Record] = field(default_factory=list)

    @classmethod
    def make(
        cls,
        written: Record,
        plan: Plan,
        config: Config,
        directory: Path,
        folder: str | None,
        progress: Progress,
        network: Network,
    ) -> _Job:
        dataset = sets.load(config.data.name, folder)
        load.check_images(network, dataset)
        scaled_by = written["network"]["training_images"] or len(dataset.train_labels)
        images, test = prepare_images(dataset, config, network, scaled_by=scaled_by)
        scaling = standardise.scaling_of(network, dataset, images=scaled_by, dtype=config.training.dtype)
        if plan.score_images > len(images.labels):
            raise InputError(f"--score-images: {plan.score_images} exceeds the {len(images.labels)} training images")
        backend = load_backend(config.training.backend, threads=config.training.threads or None)
        known = environments.describe(dataset)
        return cls(
            written, plan, config, directory, known, scaling, images, test, backend, progress, candidates.fewest_macs(network)
        )

    def begin(self, trained: Trained) -> None:
        dtype = self.config.training.dtype
        params, statistics = ({n: a.astype(dtype) for n, a in g.items()} for g in (trained.params, trained.statistics))
        none, no_counts = np.zeros(0), np.zeros(0, np.intp)
        state = _fresh(State(trained.network, params, {}, statistics, none, no_counts, none, no_counts, none))
        record = {"round": 0, "kind": "start", **self._origin, "removed": None, "seconds": 0.0}
        self._save(0, state, record | self._measured(state))
        self.records.clear()

    def go(self) -> Record:
        """From the last finished round to the end."""
        state = self._last_finished()
        while (kind := self._next(state.network)) is not None:
            state = self._round(len(self.records), kind, state)
        return self._summary(state.network)

    def _last_finished(self) -> State:
        number = 0
        while (self.directory / f"round-{number:02d}" / checkpoint.NAME).exists():
            state, record = checkpoint.load(self.directory / f"round-{number:02d}")
            self.records.append(record)
            number += 1
        if not number:
            raise InputError(f"{self.directory}: round-00 is missing; the same command without --resume begins again")
        return state

    def _next(self, network: Network) -> str | None:
        """What the next round removes: a "section", "filters", or nothing any more."""
        filters = sum(record["kind"] == "filters" for record in self.records)
        if self.records[-1]["test_accuracy"] < self.plan.least_accuracy:
            return None
        if not filters and candidates.candidates(network) and cost.macs(network) > self._target:
            return "section"
        return "filters" if filters < self.plan.filter_rounds else None

    @property
    def _origin(self) -> Record:
        """What `exchange.load.load` needs to know of a round's checkpoint, to scale images as here."""
        return {"data": self.config.data.name, "training_images": self.written["network"]["training_images"]}

    @property
    def _target(self) -> float:
        return self.plan.target_macs * float(self.records[0]["macs_per_image"])

    def _rate(self, network: Network) -> float:
        """Learning rate of the round that begins with this network."""
        start = int(self.records[0]["macs_per_image"])
        can_go = start - max(self._target, self.fewest_macs)
        gone = min((start - cost.macs(network)) / can_go, 1.0) if can_go else 1.0
        return float(self.config.optimiser.learning_rate * self.plan.anneal**gone)

    # One round ------------------------------------------------------------------------------------------------------

    def _round(self, number: int, kind: str, before: State) -> State:
        working = self.directory / "working"
        state, record = self._under_way(working, number) or self._remove(number, kind, before)
        started, spent = time.monotonic(), record["seconds"]
        epochs = self._finetuned(number, state, record["learning_rate"])
        for state, loss in epochs:
            record["finetune"].append(loss)
            record["seconds"] = spent + time.monotonic() - started
            checkpoint.save(_made(working), state, record)
        record |= self._measured(state) | {"seconds": spent + time.monotonic() - started}
        self._save(number, state, record)
        shutil.rmtree(working)
        return state

    def _finetuned(self, number: int, state: State, learning_rate: float) -> Iterator[tuple[State, float]]:
        """The state after every epoch of fine-tuning, and the epoch's mean training loss.

        No two rounds share an order of the images.
        """
        optimiser = dataclasses.replace(self.config.optimiser, learning_rate=learning_rate)
        config, epochs, losses = dataclasses.replace(self.config, optimiser=optimiser), self.plan.finetune, []
        steps = epoch_steps(self.images, config)
        events = train_epochs(state, config, self.images, self.backend, until=epochs, shuffle=(number - 1) * epochs)
        self.progress.start(f"round {number}", epochs * steps, state.step)
        try:
            for event in events:
                if isinstance(event, Stepped):
                    losses.append(event.metrics.loss)
                    self.progress.advance()
                if isinstance(event, EpochEnded):
                    yield event.state, float(np.mean(losses))
                    losses.clear()
        finally:
            self.progress.finish()

    def _under_way(self, working: Path, number: int) -> tuple[State, Record] | None:
        if not (working / checkpoint.NAME).exists():
            return None
        state, record = checkpoint.load(working)
        return (state, record) if record["round"] == number else None

    def _remove(self, number: int, kind: str, before: State) -> tuple[State, Record]:
        """Score, remove and measure, without fine-tuning yet."""
        started = time.monotonic()
        record: Record = {"round": number, "kind": kind, **self._origin, "finetune": []}
        record["learning_rate"] = self._rate(before.network)
        if kind == "section":
            subject = Subject(
                before.network, self.backend, before.params, before.statistics, self._scored_images, self.config.seed, number
            )
            scores = CRITERIA[self.plan.criterion](subject)
            name, margin = criteria.ranked(scores)
            cut = candidates.without(before.network, [name])
            record |= {"removed": name, "scores": scores, "margin": margin if np.isfinite(margin) else None}
        else:
            cut = candidates.thinned(before.network, before.params, FILTER_SHARE)
            record |= {"removed": f"{FILTER_SHARE:.0%} of the filters", "scores": {}, "margin": None}
        state = _fresh(cut_state(before, cut))
        score = evaluate(state, self.test, self.backend, batch_size=BATCH)
        record |= {"accuracy_before_finetuning": score.accuracy, "seconds": time.monotonic() - started}
        self.progress.line(
            f"round {number:2d}  removed {record['removed']}; test {100 * score.accuracy:6.2f} % before fine-tuning, "
            f"{record['seconds']:.1f} s"
        )
        checkpoint.save(_made(self.directory / "working"), state, record)
        return state, record

    @cached_property
    def _scored_images(self) -> Array:
        count = len(self.images.labels)
        chosen = np.sort(Streams(self.config.seed).permutation("prune/samples", 0, count)[: self.plan.score_images or count])
        images: Array = self.images.x[chosen]
        return images

    # What is kept ---------------------------------------------------------------------------------------------------

    def _measured(self, state: State) -> Record:
        score = evaluate(state, self.test, self.backend, batch_size=BATCH)
        if not np.isfinite(score.loss):
            raise NonFiniteLoss(f"the test loss is {score.loss}; {REMEDY}")
        return {
            "test_accuracy": score.accuracy,
            "test_loss": score.loss,
            "macs_per_image": cost.macs(state.network),
            "parameters": cost.parameters(state.network),
            "training_macs": state.macs,
        }

    def _save(self, number: int, state: State, record: Record) -> None:
        checkpoint.save(_made(self.directory / f"round-{number:02d}"), dataclasses.replace(state, finished=True), record)
        self.records.append(record)
        write_atomically(self.directory / "rounds.json", json.dumps(self.records, indent=1).encode())
        self.progress.line(
            f"round {number:2d}  test {100 * record['test_accuracy']:6.2f} %  loss {record['test_loss']:.4f}  "
            f"MACs {record['macs_per_image'] / self.records[0]['macs_per_image']:7.2%}  {record['seconds']:.1f} s"
        )

    def _summary(self, network: Network) -> Record:
        last = self.records[-1]
        fell = last["test_accuracy"] < self.plan.least_accuracy
        if fell:
            stopped = f"the accuracy fell below {self.plan.least_accuracy} in round {last['round']}"
        elif cost.macs(network) <= self._target:
            stopped = "the target is reached"
        else:
            stopped = "no candidate is left: two sections stay in every stage"
        result = self.records[max(len(self.records) - 2, 0)] if fell else last
        summary = self.written | {"stopped": stopped, "result": f"round-{result['round']:02d}", "rounds": self.records}
        write_atomically(self.directory / "rounds.json", json.dumps(self.records, indent=1).encode())
        write_atomically(self.directory / "summary.json", json.dumps(summary, indent=1).encode())
        shutil.rmtree(self.directory / "working", ignore_errors=True)  # of a run that ended just after its last round
        return summary


def _fresh(state: State) -> State:
    """The state at the start of a fine-tuning: no momentum, step 0 of its schedule."""
    velocity = {name: np.zeros_like(p) for name, p in state.params.items()}
    return dataclasses.replace(state, velocity=velocity, step=0, finished=False)


def _made(directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    return directory
