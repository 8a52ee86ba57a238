"""Concurrent training and pruning: projected SGD on (W, θ), removal of gates while training goes on (SPEC O6, O7, O9).

`init` makes a State, `step` turns it into the next one, `remove` makes it smaller; States are never changed. Every random
number comes from `Streams(seed)` by (purpose, step), so a State and the data determine everything that follows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .arrays import Array, Arrays
from .backend import Backend
from .config import Config
from .data import standardise as scalings
from .data.dataset import Dataset
from .errors import InputError
from .formulas.hyper_prior import beta_from_log_gamma
from .gates import rules
from .gates.closing_weights import blocks
from .gates.estimators import ESTIMATORS, sample
from .gates.penalty import Penalty, Reference, reference
from .gates.surgery import Cut, prune
from .oracle.crop_flip import draw_crops
from .passes.batch_loss import BatchLoss
from .passes.parameters import initial_statistics, initialise
from .passes.predictor import Predictor
from .passes.statistics import update_statistics
from .spec.layers import UnitGate
from .spec.network import Loss, Network
from .streams import Streams

#: No shares can be counted of this; ν > 0 refuses it.
NO_REFERENCE = Reference(0, 0)


@dataclass(frozen=True)
class State:
    """Everything that training goes on from.

    theta: (G,) float64. number: (G,) each gate's number in its group when training began, which removals do not change.
    slope, seen: (G,) what is known of κ, as in `pruning.observe`; zeros under the rule `threshold`, which does not ask.
    step: updates done. macs: multiply-accumulates spent on training so far, every pass counted. finished: all gates are
    decided and the run is over. start: cost of the network with which training began, what ν counts shares of (C2).
    """

    network: Network
    params: Arrays
    velocity: Arrays
    statistics: Arrays
    theta: Array
    number: Array
    slope: Array
    seen: Array
    step: int = 0
    macs: int = 0
    finished: bool = False
    start: Reference = NO_REFERENCE


class Pruned(NamedTuple):
    """One removal: before which step, what (gate name → how many of its gates), and sections closed for lack of units.

    last: gates of plain layers with one unit left, which cannot go and is fixed to 1.
    """

    step: int
    removed: dict[str, int]
    closed_for_emptiness: tuple[str, ...]
    last: tuple[str, ...]


class StepMetrics(NamedTuple):
    """loss: c(W, Ξ) on the batch at the sampled gates; gates_on: how many were 1."""

    loss: float
    gates_on: int


REMEDY = "try a smaller optimiser.learning_rate or training.section_scale"


class NonFiniteLoss(InputError):
    """The loss is no longer a finite number; the message names the first layer whose output is not finite."""


class Images(NamedTuple):
    """A data set as the network takes it: x N×input_shape in the training dtype, standardised; labels N."""

    x: Array
    labels: Array


def prepare(
    dataset: Dataset, config: Config, scaling: str = "channel", *, scaled_by: int | None = None
) -> tuple[Images, Images]:
    """Training and test images as the network takes them; `scaling` is its convention (`refprune.data.standardise`).

    With `data.holdout` the held-out training images stand for the test images. scaled_by: so many of the first training images
    the scaling looks at (default: those that are trained on, so that it sees none of the held-out ones).
    """
    data = config.data
    limit = data.train_limit or len(dataset.train_labels)
    if limit > len(dataset.train_labels):
        raise InputError(f"data.train_limit: {limit} exceeds the {len(dataset.train_labels)} training images")
    if data.holdout >= limit:
        raise InputError(f"data.holdout: {data.holdout} leaves none of the {limit} training images")
    kept = limit - data.holdout
    if kept < config.training.batch_size:
        raise InputError(f"training.batch_size: {config.training.batch_size} exceeds the {kept} training images")
    scale = scalings.standardisation(
        dataset, scaling, images=kept if scaled_by is None else scaled_by, dtype=config.training.dtype
    )
    train = Images(scale(dataset.train_images[:kept]), dataset.train_labels[:kept])
    if data.holdout:
        return train, Images(scale(dataset.train_images[kept:limit]), dataset.train_labels[kept:limit])
    return train, Images(scale(dataset.test_images), dataset.test_labels)


# --------------------------------------------------------------------------------------------------------------------
# init, step, remove


def ungated(network: Network) -> Network:
    """The same network with every gate fixed to 1: the unpruned network to compare with."""
    on = np.ones(network.gate_count, dtype=bool)
    return prune(network, on, fix=on).network


def pressed(network: Network, config: Config) -> Network:
    """The network without the gates that nothing presses on: with β = 0, ρ = 1 leaves the unit gates alone, ρ = 0 the layer
    gates; they are fixed to 1 (C3: layers only, units only). InputError if no gate would be left."""
    objective = config.objective
    alone = {1.0: "layer", 0.0: "unit"}.get(objective.balance)
    if alone is None or objective.penalty > 0.0 or objective.nu == 0.0:
        return network
    on = np.ones(network.gate_count, dtype=bool)
    fix = np.zeros_like(on)
    for group in network.gates:
        fix[group.slice] = group.kind != alone
    if fix.size and fix.all():
        raise InputError(
            f"objective.balance: {objective.balance} presses on {alone} gates alone, of which the network has none; "
            "allowed are 0 for unit gates, 1 for layer gates, and what lies between"
        )
    return prune(network, on, fix=fix).network


def init(config: Config, network: Network) -> State:
    """The state before the first step.

    InputError for a loss that is no mean, β and λ being per sample (O1), and for a rule that the network does not allow.
    """
    if network.loss != Loss():
        raise InputError(f"network.loss: training takes the mean cross-entropy, got {network.loss}")
    if config.gates.rule != "threshold":
        blocks(network)  # raises where a gate has none
    dtype = config.training.dtype
    params = initialise(network, Streams(config.seed), section_scale=config.training.section_scale, dtype=dtype)
    velocity = {name: np.zeros_like(p) for name, p in params.items()}
    theta = _project(np.full(network.gate_count, config.gates.initial), config)
    number = np.array([i for group in network.gates for i in range(group.stop - group.start)], dtype=np.intp)
    evidence = np.zeros(theta.shape), np.zeros(theta.shape, dtype=np.intp)
    statistics = initial_statistics(network, dtype=dtype)
    return State(network, params, velocity, statistics, theta, number, *evidence, start=reference(network))


def penalties(config: Config, samples: int) -> tuple[float, float]:
    """(β, λ) of the per-sample objective O1, whatever scaling the configuration uses."""
    penalty, decay = config.objective.penalty, config.objective.weight_decay
    if config.objective.scaling == "per_sample":
        return penalty, decay
    return beta_from_log_gamma(-penalty, samples), decay / samples


def penalty_of(state: State, config: Config, samples: int) -> Penalty:
    """What presses on θ, per sample: Σ β θ + ν R_ρ(θ) of the network that is left (O1, C4)."""
    beta, _ = penalties(config, samples)
    objective = config.objective
    nu = objective.nu / (1 if objective.scaling == "per_sample" else samples)
    return Penalty(state.network, state.start, beta, nu, objective.alpha, objective.balance)


def gate_rates(network: Network, config: Config) -> Array:
    """(G,) η_θ of every gate, without the schedule's factor."""
    rates = np.full(network.gate_count, config.gates.learning_rate)
    for group in network.gates:
        if group.kind == "unit" and config.gates.unit_learning_rate > 0.0:
            rates[group.slice] = config.gates.unit_learning_rate * (group.stop - group.start)
    return rates


def schedule_factor(kind: str, progress: float) -> float:
    """Factor on both step sizes at `progress` ∈ [0, 1] of the run; past the end it stays where it ended."""
    progress = min(progress, 1.0)
    if kind == "constant":
        return 1.0
    if kind == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    if kind == "warmup_stable_decay":
        return min(progress / 0.1, 1.0, (1.0 - progress) / 0.2)
    rise = 0.3
    if progress < rise:
        return progress / rise
    return 0.5 * (1.0 + math.cos(math.pi * (progress - rise) / (1.0 - rise)))


@np.errstate(over="ignore", invalid="ignore")  # what overflows is found in the loss, and named
def step(state: State, x: Array, labels: Array, config: Config, backend: Backend, *, samples: int) -> tuple[State, StepMetrics]:
    """One step of projected SGD on a mini-batch (O6); `samples` is N, the number of training images.

    W ← W − η v with v ← m v + ∇̂_W J;  θ ← clip(θ − η_θ (∇̂_θ C + β_g(θ)), δ, 1−δ), β_g the slope of the penalty (C5).
    """
    gates, training = config.gates, config.training
    steps_per_epoch = samples // training.batch_size
    learning = gates.decide_epoch or training.epochs
    last = gates.paired_epochs > 0.0 and state.step >= (learning - gates.paired_epochs) * steps_per_epoch
    name = "paired" if last else gates.estimator
    kind = ESTIMATORS[name]
    _, decay = penalties(config, samples)
    factor = schedule_factor(config.optimiser.schedule, (state.step + 0.5) / (steps_per_epoch * training.epochs))
    learns_theta = _learns_theta(state, config, samples)

    uniform = _gate_uniforms(state, config.seed, gates.samples)
    loss = BatchLoss(state.network, backend, state.params, x, labels, state.statistics)
    run_closed = learns_theta and kind.needs_closed_paths
    base = loss.evaluate(sample(state.theta, uniform[0]), run_closed=run_closed)
    if not np.isfinite(base.loss):
        where = first_non_finite(loss, base.tape.gates, run_closed=run_closed)
        raise NonFiniteLoss(f"step {state.step}: the loss is {base.loss}; {where}; {REMEDY}")
    metrics = StepMetrics(float(base.loss), int(base.tape.gates.sum()))
    statistics = update_statistics(state.network, state.statistics, base.tape.batch_statistics)
    gradients = loss.gradients(base, consume=True)
    macs = base.tape.macs + gradients.macs
    slope, seen = state.slope, state.seen
    if learns_theta and gates.rule != "threshold":
        slope, seen = rules.observe(state.network, gradients.params, slope, seen)

    theta = state.theta
    if learns_theta:
        estimate = kind.function(loss, base, gradients.gates, theta, uniform)
        wrong = np.flatnonzero(~np.isfinite(estimate.gradient))
        if wrong.size:
            group = next(g.name for g in state.network.gates if g.start <= wrong[0] < g.stop)
            raise NonFiniteLoss(f"step {state.step}: the {name} estimate for gate {group} is not finite")
        ascent = estimate.gradient + penalty_of(state, config, samples).gradient(theta)
        theta = _project(theta - gate_rates(state.network, config) * factor * ascent, config)
        macs += estimate.macs
    del base  # the update needs none of the arrays that the pass has saved
    params, velocity = _momentum_step(state, gradients.params, config, backend, config.optimiser.learning_rate * factor, decay)
    following = dataclasses.replace(
        state,
        params=params,
        velocity=velocity,
        statistics=statistics,
        theta=theta,
        slope=slope,
        seen=seen,
        step=state.step + 1,
        macs=state.macs + macs,
    )
    return following, metrics


def _learns_theta(state: State, config: Config, samples: int) -> bool:
    warm = state.step >= config.gates.warmup_epochs * (samples // config.training.batch_size)
    return warm and state.theta.size > 0 and config.gates.magnitude == 0.0


def _gate_uniforms(state: State, seed: int, k: int, *, purpose: str = "gates") -> Array:
    """Uniforms (K, G): gate number i of a group always gets the numbers i·K … of the group's stream, whatever was removed."""
    parts = [np.zeros((0, k))]
    for group in state.network.gates:
        number = state.number[group.slice]
        parts.append(Streams(seed).uniform(f"{purpose}/{group.name}", state.step, (int(number.max()) + 1, k))[number])
    return np.concatenate(parts).T


def _project(theta: Array, config: Config) -> Array:
    return np.clip(theta, config.gates.floor, 1.0 - config.gates.floor)


def _momentum_step(
    state: State, gradients: Arrays, config: Config, backend: Backend, learning_rate: float, decay: float
) -> tuple[Arrays, Arrays]:
    params, velocity = {}, {}
    for name, w in state.params.items():
        params[name], velocity[name] = backend.momentum_step(
            w,
            state.velocity[name],
            gradients[name],
            learning_rate=learning_rate,
            momentum=config.optimiser.momentum,
            decay=decay if rules.decays(config, name) else 0.0,
        )
    return params, velocity


def non_finite_parameter(params: Mapping[str, Array]) -> str | None:
    """Name of the first parameter with an entry that is no finite number."""
    return next((name for name, p in params.items() if not np.isfinite(p).all()), None)


def first_non_finite(loss: BatchLoss, gates: Array, *, run_closed: bool) -> str:
    """Which parameter or which layer's output is the first that is not finite."""
    spoiled = non_finite_parameter(loss.params)
    if spoiled is not None:
        return f"the first parameter that is not finite is {spoiled}"
    bad: list[str] = []

    def look(name: str, y: Array) -> None:
        if not bad and not np.isfinite(y).all():
            bad.append(name)

    with np.errstate(all="ignore"):
        loss.evaluate(gates, run_closed=run_closed, observe=look)
    return f"the first layer with an output that is not finite is {bad[0] if bad else 'the loss itself'}"


def cut_state(state: State, cut: Cut) -> State:
    """The state of the smaller network: parameters, momenta, statistics and θ without the removed gates (O7)."""
    return dataclasses.replace(
        state,
        network=cut.network,
        params=cut.arrays(state.params),
        velocity=cut.arrays(state.velocity),
        statistics=cut.arrays(state.statistics),
        theta=state.theta[cut.gates],
        number=state.number[cut.gates],
        slope=state.slope[cut.gates],
        seen=state.seen[cut.gates],
    )


def keep(state: State, config: Config, *, samples: int) -> Array:
    """What the rule `gates.rule` leaves of the gates: (G,), False where one goes (D6). As long as θ is held, none goes."""
    if not _learns_theta(state, config, samples):
        return np.ones(state.theta.shape, dtype=bool)
    beta, decay = penalties(config, samples)
    evidence = state.slope, state.seen
    return rules.rule_keep(state.network, state.params, state.theta, *evidence, config, beta=beta, decay=decay)


def remove(state: State, keep: Array, config: Config, *, fix: Array | None = None) -> tuple[State, Cut, Pruned]:
    """Remove the gates where `keep` is False, for good, and fix those where `fix` is True to 1.

    The last unit of a plain layer is fixed to 1 too: it cannot go, so that θ = 0 would only make the network a constant.
    """
    network = state.network
    removed = {g.name: int((~keep[g.slice]).sum()) for g in network.gates if not keep[g.slice].all()}
    fix = np.zeros(keep.shape, dtype=bool) if fix is None else fix.copy()
    last = [g for g in network.gates if isinstance(network.layers[g.position], UnitGate) and keep[g.slice].sum() == 1]
    for group in last:
        fix[group.slice] = keep[group.slice]
    cut = prune(network, keep, fix=fix, empty=config.gates.empty)
    return cut_state(state, cut), cut, Pruned(state.step, removed, cut.closed_for_emptiness, tuple(g.name for g in last))


# --------------------------------------------------------------------------------------------------------------------
# Batches, evaluation, the end


def epoch_batches(
    images: Images, config: Config, epoch: int, first: int = 0, *, augment: Backend | None = None
) -> Iterator[tuple[Array, Array]]:
    """The epoch's mini-batches from number `first` on, in the order of the stream "shuffle"; a last partial one is left out.

    augment: the backend that changes the images as `data.augmentation` says; None leaves them as they are.
    """
    size, data = config.training.batch_size, config.data
    order = Streams(config.seed).permutation("shuffle", epoch, len(images.labels))
    engine = augment if data.augmentation == "crop_flip" else None
    crops = np.zeros((0, 3)) if engine is None else draw_crops(config.seed, epoch, len(order), data.padding)
    for i in range(first, len(order) // size):
        index = order[i * size : (i + 1) * size]
        x = images.x[index]
        if engine is not None:
            x = engine.crop_flip(x, crops[index], padding=data.padding)
        yield x, images.labels[index]


class Score(NamedTuple):
    """Mean loss in nats and share of right answers."""

    loss: float
    accuracy: float


@np.errstate(over="ignore", invalid="ignore")  # a loss that is not finite is for the caller to see
def evaluate(
    state: State, images: Images, backend: Backend, *, gates: str = "mode", seed: int = 0, batch_size: int = 1000
) -> Score:
    """Loss and accuracy in eval mode, by a `Predictor`. While θ is interior, `gates` names what is evaluated (O9).

    "mode": gates with θ ≥ ½ are on; "mean": ξ = θ; "sampled": one Ξ ~ Bern(θ) a batch, from the stream "evaluation".
    """

    def predictor(values: Array) -> Predictor:
        return Predictor(state.network, backend, state.params, state.statistics, values)

    starts = range(0, len(images.labels), batch_size)
    predictors: Iterable[Predictor]
    if gates == "sampled":
        predictors = map(predictor, sample(state.theta, _gate_uniforms(state, seed, len(starts), purpose="evaluation")))
    else:
        fixed = state.theta if gates == "mean" else (state.theta >= 0.5).astype(np.float64)
        predictors = [predictor(fixed)] * len(starts)
    loss, right = 0.0, 0
    for start, predict in zip(starts, predictors, strict=True):
        x, labels = images.x[start : start + batch_size], images.labels[start : start + batch_size]
        logits = predict(x)
        batch_loss, _ = backend.cross_entropy(logits, labels, reduction="sum")
        loss += float(batch_loss)
        right += int((logits.argmax(axis=1) == labels).sum())
    return Score(loss / len(images.labels), right / len(images.labels))
