"""Loss, accuracy and objective of a state on images."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from ..arrays import Array
from ..backend import Backend
from ..gates import rules
from ..gates.estimators import sample
from ..gates.theta_penalty import Reference
from ..passes.predictor import Predictor
from .coefficients import penalties, penalty_of
from .config import Config
from .images import Images
from .state import State, gate_uniforms, non_finite_parameter
from .step import NonFiniteLoss


class Score(NamedTuple):
    """loss: the mean, in nats; accuracy: the share of right answers."""

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
        predictors = map(predictor, sample(state.theta, gate_uniforms(state, seed, len(starts), purpose="evaluation")))
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


def finite_score(state: State, images: Images, config: Config, backend: Backend) -> Score:
    """The score at the gates that `gates.evaluation` names. NonFiniteLoss if the loss or a parameter is not finite."""
    score = evaluate(state, images, backend, gates=config.gates.evaluation, seed=config.seed)
    spoiled = non_finite_parameter(state.params)
    if spoiled is not None or not np.isfinite(score.loss):
        where = "all parameters are finite" if spoiled is None else f"the first parameter that is not finite is {spoiled}"
        raise NonFiniteLoss(f"step {state.step}: the loss is {score.loss}; {where}; the last good checkpoint stays")
    return score


def objective_of_decided(
    state: State,
    images: Images,
    config: Config,
    backend: Backend,
    *,
    gates_on: int,
    whole: Reference,
) -> tuple[float, float]:
    """(C, J) of a state without gates, on the training images in eval mode (O1, O9, C4).

    J = C + ½λ‖W‖² + β·gates_on + ν R. gates_on: how many gates are 1. whole: cost of the network that R is a share of.
    """
    _, decay = penalties(config, len(images.labels))
    penalty = dataclasses.replace(penalty_of(state, config, len(images.labels)), reference=whole)
    loss = finite_score(state, images, config, backend).loss
    decaying = [w for name, w in state.params.items() if rules.decays(config.objective.decay, name)]
    norm = sum(float(np.square(w, dtype=np.float64).sum()) for w in decaying)
    return loss, loss + 0.5 * decay * norm + penalty.of_decided(state.network, gates_on)
