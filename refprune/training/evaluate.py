"""Loss and accuracy of a state on images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from ..arrays import Array
from ..backend import Backend
from ..gates.estimators import sample
from ..passes.predictor import Predictor
from .images import Images
from .state import State, gate_uniforms


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
