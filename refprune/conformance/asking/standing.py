"""What is asked in every run, whatever is drawn: the extremes and the sized questions, and how one that fails gets smaller."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..vectors import extremes
from ..vectors.files import agreed, conventions_of
from .methods import Description, Method, Question, fixed

Sizes = tuple[int, ...]


def questions(method: Method, described: Description) -> list[Question]:
    """The method's extremes, as far as the declared conventions go, and what is standing for it.

    Of the latter no more than an implementation's `structures` allow, evenly chosen.
    """
    ends = [
        fixed(e.arguments)
        for e in extremes.extremes()
        if e.method == method.name and agreed(conventions_of(method, e.arguments), described)
    ]
    standing = list(method.standing(described))
    if described.structures is not None:
        most = max(1, round(described.structures * method.share))
        standing = standing[:: -(-len(standing) // most)] if standing else []
    return ends + standing


def smaller(question: Question, fails: Callable[[Sizes], bool], until: float) -> Sizes:
    """Sizes of a question that fails, none of which can be less: to its least, by half, or by one. until: on the clock."""
    sizes, moved = question.sizes, True
    while moved and time.monotonic() < until:
        moved = False
        for place, least in enumerate(question.least):
            size = sizes[place]
            for less in sorted({least, (least + size) // 2, size - 1}):
                found = (*sizes[:place], less, *sizes[place + 1 :])
                if least <= less < size and fails(found):
                    sizes, moved = found, True
                    break
    return sizes
