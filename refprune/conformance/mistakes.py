"""The catalogue of known mistakes: each is one function of refprune put wrong, with the claims of SPEC that this breaks."""

from __future__ import annotations

from .mistakes_in_cost import COST
from .mistakes_in_dynamics import DYNAMICS
from .mistakes_in_judging import SIMILARITY
from .mistakes_in_layers import LAYERS
from .mistakes_in_priors import PRIORS
from .mistakes_in_training import OBJECTIVE
from .planting import Mistake, planted

__all__ = ["MISTAKES", "Mistake", "planted"]

MISTAKES: tuple[Mistake, ...] = (*PRIORS, *LAYERS, *OBJECTIVE, *DYNAMICS, *COST, *SIMILARITY)
