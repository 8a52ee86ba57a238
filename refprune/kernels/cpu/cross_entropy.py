"""Cross-entropy over rows, forward and VJP. Contracts as in `refprune.oracle.layers`."""

from __future__ import annotations

from math import exp, log

import numpy as np

from ...arrays import Array, Saved
from ...oracle import layers
from ..machine.kernel import ELEMENT_GRAIN, index, kernel, reader, ready, real64, same_float, share, writer
from ..machine.workspace import Workspace

# --------------------------------------------------------------------------------------------------------------------
# Cross-entropy


@kernel(lambda f: (reader(f, 2), reader(index, 1), writer(f, 2), writer(real64, 1)))
def _log_softmax(part: int, parts: int, logits: Array, labels: Array, out: Array, losses: Array) -> None:
    """out = log softmax(logits) and each row's loss; a NaN makes its row NaN."""
    for n in range(part * len(labels) // parts, (part + 1) * len(labels) // parts):
        top = logits[n, 0]
        for k in range(logits.shape[1]):
            v = logits[n, k]
            if v > top or v != v:
                top = v
        total = top * 0
        for k in range(logits.shape[1]):
            out[n, k] = logits[n, k] - top
            total += exp(out[n, k])
        log_sum = log(total)
        losses[n] = log_sum - out[n, labels[n]]
        for k in range(logits.shape[1]):
            out[n, k] -= log_sum


@kernel(lambda f: (reader(f, 2), reader(index, 1), f, writer(f, 2)))
def _cross_entropy_vjp(part: int, parts: int, log_softmax: Array, labels: Array, scale: float, d: Array) -> None:
    for n in range(part * len(labels) // parts, (part + 1) * len(labels) // parts):
        for k in range(d.shape[1]):
            p = exp(log_softmax[n, k])
            d[n, k] = (p - 1 if k == labels[n] else p) * scale


def cross_entropy(workspace: Workspace, logits: Array, labels: Array, *, reduction: str) -> tuple[Array, Saved]:
    """Same contract as `oracle.layers.cross_entropy`."""
    indices = np.asarray(labels)
    matching = logits.ndim == 2 and logits.size > 0 and indices.shape == logits.shape[:1] and indices.dtype.kind in "iu"
    if not (matching and same_float(logits) and indices.min() >= 0 and indices.max() < logits.shape[1]):
        return layers.cross_entropy(logits, labels, reduction=reduction)
    out, losses = workspace.empty(logits.shape, logits.dtype), np.empty(len(logits))
    parts = share(workspace.threads, logits.size, ELEMENT_GRAIN // 8)
    chosen = ready(indices.astype(np.intp, copy=False))
    _log_softmax[logits.dtype](parts, ready(logits), chosen, out, losses)
    loss = losses.mean() if reduction == "mean" else losses.sum()
    return np.asarray(loss, dtype=logits.dtype), Saved((out, chosen, reduction))


def cross_entropy_vjp(workspace: Workspace, saved: Saved, dy: Array) -> tuple[Array]:
    """Same contract as `oracle.layers.cross_entropy_vjp`."""
    log_softmax, labels, reduction = saved.values
    if not (log_softmax.size and np.ndim(dy) == 0 and same_float(log_softmax, np.asarray(dy))):
        return layers.cross_entropy_vjp(saved, dy)
    d = workspace.empty(log_softmax.shape, log_softmax.dtype)
    scale = dy / len(labels) if reduction == "mean" else dy
    parts = share(workspace.threads, d.size, ELEMENT_GRAIN // 8)
    chosen = ready(np.asarray(labels, dtype=np.intp))
    _cross_entropy_vjp[d.dtype](parts, ready(log_softmax), chosen, d.dtype.type(scale), d)
    return (d,)
