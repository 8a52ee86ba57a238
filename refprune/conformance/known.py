"""Every mistake that a diagnosis knows: the catalogue that the audit is tested with, and those of other people's code only."""

from __future__ import annotations

from .mistakes import MISTAKES
from .planting import Mistake

KNOWN: tuple[Mistake, ...] = MISTAKES
