"""The catalogue of known mistakes: what is wrong, and which claims of SPEC break by it."""

from __future__ import annotations

from .cost import COST
from .dynamics import DYNAMICS
from .layers import LAYERS
from .other_conventions import OTHERS
from .planting import Mistake
from .priors import PRIORS
from .published import PUBLIC
from .similarity_and_rounding import SIMILARITY
from .training import OBJECTIVE
from .whole_networks import STRUCTURE
from .whole_parts import IN_PARTS

#: One function of refprune put wrong: the audit must see each of them.
MISTAKES: tuple[Mistake, ...] = (*PRIORS, *LAYERS, *OBJECTIVE, *DYNAMICS, *COST, *SIMILARITY)

#: Everything that `verify` can name: also forward and backward wrong together, and conventions of others.
KNOWN: tuple[Mistake, ...] = (*MISTAKES, *OTHERS, *STRUCTURE, *IN_PARTS, *PUBLIC)
