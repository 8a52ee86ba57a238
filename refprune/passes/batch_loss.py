"""c(W, Ξ) on one mini-batch with its gradients, and the running statistics that a pass leaves behind (SPEC O1, N4, O9)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..arrays import Array, Saved
from ..backend import Backend
from ..errors import InputError
from ..spec.network import Network
from .tape import Gradients, Observer, Tape, backward, forward


class Evaluation(NamedTuple):
    """c(W, Ξ) on one batch: the loss, the tape that led to it, what the loss's VJP needs."""

    loss: Array
    tape: Tape
    saved: Saved


@dataclass(frozen=True)
class BatchLoss:
    """c(W, Ξ): the loss of one batch as a function of the gates, weights fixed, with one Ξ for the whole batch (O1).

    network: the spec, with its loss.
    backend: whose functions compute.
    params: name → array.
    x: N×input_shape.
    target: N integer labels; for the squared error N×K values.
    statistics: running statistics, read in eval mode.
    train: whether batch-norms use the batch.

    >>> import numpy as np
    >>> from refprune import ORACLE, BatchLoss, Dense, Network, Section
    >>> network = Network((2,), (Section((Dense(2, bias=False),)), Dense(2, bias=False)))
    >>> params = {"section1.dense1.weight": np.eye(2), "dense1.weight": np.eye(2)}
    >>> loss = BatchLoss(network, ORACLE, params, np.array([[1.0, 0.0]]), np.array([0]))
    >>> [round(float(loss.evaluate(np.array([gate])).loss), 6) for gate in (0.0, 1.0)]
    [0.313262, 0.126928]
    >>> loss.gradients(loss.evaluate(np.array([1.0]))).gates.round(6).tolist()
    [-0.119203]
    """

    network: Network
    backend: Backend
    params: Mapping[str, Array]
    x: Array
    target: Array
    statistics: Mapping[str, Array] | None = None
    train: bool = True

    def evaluate(
        self,
        gates: Array,
        *,
        after: Evaluation | None = None,
        position: int = 0,
        run_closed: bool = False,
        branches: Mapping[str, Array] | None = None,
        observe: Observer | None = None,
    ) -> Evaluation:
        """The forward pass and the loss at the given gates.

        gates: (G,).
        after: an evaluation whose pass up to `position` is used again, because the gates before are the same (O5).
        position: the chain element from which to go on: that of a gate group at or behind the start of `after`.
        run_closed, branches, observe: as in `forward`.

        Returns `Evaluation`: the loss (), the tape, what the loss's VJP needs.
        InputError for a position where `after` holds no input, and for a target that does not fit.
        """
        if after is not None and position not in after.tape.inputs:
            known = ", ".join(map(str, sorted(after.tape.inputs))) or "none"
            raise InputError(f"position: the known evaluation can go on where it holds gates ({known}), got {position}")
        x = self.x if after is None else after.tape.inputs[position]
        tape = forward(
            self.network,
            self.backend,
            self.params,
            x,
            gates,
            statistics=self.statistics,
            train=self.train,
            branches=branches,
            run_closed=run_closed,
            start=position,
            observe=observe,
        )
        self._check_target()
        loss_function = getattr(self.backend, self.network.loss.kind)
        loss, saved = loss_function(tape.output, self.target, reduction=self.network.loss.reduction)
        return Evaluation(loss, tape, saved)

    def _check_target(self) -> None:
        """A wrong target would broadcast or count from the end without a word."""
        target, (outputs,) = self.target, self.network.output_shape
        if self.network.loss.kind == "mean_squared_error":
            if target.shape != (len(self.x), outputs):
                raise InputError(f"target: the squared error needs shape {(len(self.x), outputs)}, got {target.shape}")
        elif target.shape != (len(self.x),) or target.dtype.kind not in "iu":
            raise InputError(f"target: expected {len(self.x)} integer labels, got {target.dtype} of shape {target.shape}")
        elif target.min() < 0 or target.max() >= outputs:
            raise InputError(f"target: labels must lie in 0 … {outputs - 1}, got {target.min()} … {target.max()}")

    def gradients(
        self,
        evaluation: Evaluation,
        *,
        input_gradient: bool = False,
        consume: bool = False,
        observe: Observer | None = None,
    ) -> Gradients:
        """The backward pass from an evaluation: ∂c/∂W, ∂c/∂ξ and, if wanted, ∂c/∂x.

        evaluation: of `evaluate`.
        input_gradient, consume, observe: as in `backward`.

        Returns `Gradients`.
        """
        vjp = getattr(self.backend, f"{self.network.loss.kind}_vjp")
        (dy,) = vjp(evaluation.saved, np.ones((), dtype=evaluation.loss.dtype))
        return backward(evaluation.tape, dy, input_gradient=input_gradient, consume=consume, observe=observe)
