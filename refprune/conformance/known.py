"""Every mistake that a diagnosis knows."""

from __future__ import annotations

from .mistakes import MISTAKES
from .mistakes_in_parts import IN_PARTS
from .mistakes_in_public import PUBLIC
from .mistakes_in_structure import STRUCTURE
from .mistakes_of_others import OTHERS
from .planting import Mistake

KNOWN: tuple[Mistake, ...] = (*MISTAKES, *OTHERS, *STRUCTURE, *IN_PARTS, *PUBLIC)
