"""All mistakes that are made in PyTorch, and what `refprune verify` finds of each."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from refprune.conformance import campaign
from refprune.conformance.asking.calls import InProcess
from refprune.conformance.levels import METHODS
from validation.mistakes.published import PUBLISHED

from .in_costs import IN_COSTS
from .in_formulas import IN_FORMULAS
from .in_layers import IN_LAYERS
from .in_networks import IN_NETWORKS
from .in_pruning import IN_PRUNING
from .in_training import IN_TRAINING
from .planting import Planted

IN_PUBLIC = tuple(Planted(p.name, p.method, p.implementation) for p in PUBLISHED)

PLANTED: tuple[Planted, ...] = (*IN_FORMULAS, *IN_LAYERS, *IN_NETWORKS, *IN_TRAINING, *IN_PRUNING, *IN_COSTS, *IN_PUBLIC)

#: Examples asked of a method; the first wrong one ends the search. Rare mistakes need more.
EXAMPLES = 100
MORE: Mapping[str, int] = {"network": 400, "training_steps": 150, "compact": 400}

#: Seconds for making the first wrong example smaller.
SHRINKING = 1.0


class Found(NamedTuple):
    """first: where the numbers begin to differ, or what else was wrong, "" if nothing; names: of known mistakes that fit.

    seconds: of processor time.
    """

    planted: Planted
    first: str
    names: tuple[str, ...]
    seconds: float

    @property
    def found(self) -> bool:
        return bool(self.first)

    @property
    def named(self) -> bool:
        return self.planted.name in self.names

    @property
    def verdict(self) -> str:
        if not self.found:
            return "NOT FOUND"
        others = [name for name in self.names if name != self.planted.name]
        if not self.named:
            return f"called {', '.join(others)}" if others else "found, not named"
        return "named" + (f"; the same numbers: {', '.join(others)}" if others else "")


def try_out(planted: Planted) -> Found:
    """The verdict on one mistake."""
    started = time.process_time()
    examples = MORE.get(planted.method, EXAMPLES)
    (outcome,) = campaign.run(InProcess(planted.mine()), [METHODS[planted.method]], examples, 0)
    findings: list[Any] = [f for f in outcome.findings if f.kind in ("deviates", "not finite")] or outcome.findings
    if not findings:
        return Found(planted, "", (), time.process_time() - started)
    first = findings[0].first.name if findings[0].first else findings[0].kind
    return Found(planted, first, tuple(m.name for m in findings[0].mistakes), time.process_time() - started)
