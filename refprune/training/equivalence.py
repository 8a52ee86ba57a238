"""Masked ≡ compact, tried on every network that a run makes smaller (SPEC N3, N4, E2)."""

from __future__ import annotations

import numpy as np

from ..arrays import Array
from ..backend import ORACLE
from ..gates.surgery import Cut
from ..passes.batch_loss import BatchLoss
from ..rounding import tolerance
from ..spec import cost
from .images import Images
from .state import State

#: Images on which the two networks are compared, and the MACs of one network above which it is fewer.
IMAGES, MACS = 16, 60_000_000


def masked_against_compact(state: State, cut: Cut, on: Array, images: Images) -> float | None:
    """Is the compact network the masked one (N3, N4)? Largest |difference| of outputs over its rounding tolerance (E2).

    Both run in float64 on a few training images, in eval mode. The old network, that of `state`, has the gates `on`, (G,); its
    closed paths are computed and multiplied by 0. The new network, that of `cut`, has the same gates as far as they are left.
    A section that was closed for lack of units has ξ = 0 in the old network too. None where such a section had no gate, because
    then the old network has no gates that make it the same function.
    """
    slices = state.network.gate_slices
    if not set(cut.closed_for_emptiness) <= set(slices):
        return None
    on = on.copy()
    for name in cut.closed_for_emptiness:
        on[slices[name]] = 0.0
    count = min(max(MACS // max(cost.macs(state.network), 1), 1), IMAGES)
    x, labels = images.x[:count].astype(np.float64), images.labels[:count]
    wide = [{name: a.astype(np.float64) for name, a in arrays.items()} for arrays in (state.params, state.statistics)]
    masked = BatchLoss(state.network, ORACLE, wide[0], x, labels, wide[1], train=False)
    compact = BatchLoss(cut.network, ORACLE, cut.arrays(wide[0]), x, labels, cut.arrays(wide[1]), train=False)
    difference = masked.evaluate(on, run_closed=True).tape.output - compact.evaluate(on[cut.gates]).tape.output
    worst = np.max(np.abs(difference) / tolerance.output_tolerance(masked, on, unit=tolerance.UNIT["float64"]))
    return float(worst)
