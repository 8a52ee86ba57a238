"""The catalogue of known mistakes: each is one function of refprune put wrong, with the claims of SPEC that this breaks."""

from __future__ import annotations

from .cost import COST
from .dynamics import DYNAMICS
from .layers import LAYERS
from .other_conventions import OTHERS
from .planting import Mistake, planted
from .priors import PRIORS
from .published import PUBLIC
from .similarity_and_rounding import SIMILARITY
from .training import OBJECTIVE
from .whole_networks import STRUCTURE
from .whole_parts import IN_PARTS

__all__ = ["MISTAKES", "Mistake", "planted"]

MISTAKES: tuple[Mistake, ...] = (*PRIORS, *LAYERS, *OBJECTIVE, *DYNAMICS, *COST, *SIMILARITY)


KNOWN: tuple[Mistake, ...] = (*MISTAKES, *OTHERS, *STRUCTURE, *IN_PARTS, *PUBLIC)
