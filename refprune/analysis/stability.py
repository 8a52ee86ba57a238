"""Which section a score would remove, how clearly, and how often from fewer images (K6): CKA beside two controls.

The controls, uncentred CKA and the distance ‖R − R_l‖/‖R‖, look at the same representations; nobody should prune by them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..arrays import Array
from ..backend import Backend
from ..errors import InputError
from ..exchange.trained import Trained
from ..streams import Streams
from . import candidates
from .scores import Scores, cka_score, distance_score, ranked, representations, uncentred_score

#: Name → score of (R, R_l, backend).
MEASURES: dict[str, Callable[[Array, Array, Backend], float]] = {
    "cka": cka_score,
    "uncentred": lambda full, lacking, _: uncentred_score(full, lacking),
    "distance": lambda full, lacking, _: distance_score(full, lacking),
}


class Choice(NamedTuple):
    """One measure: scores with all images, the section it removes, the margin to the second, and per number of images the share
    of random subsets from which it removes `expected`."""

    scores: Scores
    removes: str
    margin: float
    shares: dict[int, float]


def study(
    trained: Trained,
    backend: Backend,
    x: Array,
    *,
    sizes: Sequence[int] = (),
    repeats: int = 100,
    expected: str | None = None,
    seed: int = 0,
    advance: Callable[[int], None] = lambda done: None,
) -> dict[str, Choice]:
    """Measure → its choice. sizes: numbers of images drawn without replacement, `repeats` times each, the same for all.

    expected: the section that subsets are compared with; None: what CKA removes with all of x. InputError: no candidates, a
    size above n or below 2, an `expected` that is no candidate.
    """
    candidates.check_candidates(trained.network)
    names = candidates.candidates(trained.network)
    if expected is not None and expected not in names:
        raise InputError(f"--expect: {expected!r} is no candidate; allowed are {', '.join(names)}")
    for size in sizes:
        if list(sizes).count(size) > 1:
            raise InputError(f"--subsets: {size} is given twice")
        if not 2 <= size <= len(x):
            raise InputError(f"--subsets: must lie in 2 … {len(x)} images, got {size}")
    full, lacking = representations(trained.network, backend, trained.params, trained.statistics, x, names, advance=advance)

    def scores(measure: str, rows: Array | slice = slice(None)) -> Scores:
        return {name: MEASURES[measure](full[rows], lacking[name][rows], backend) for name in names}

    whole = {measure: scores(measure) for measure in MEASURES}
    expected = expected or ranked(whole["cka"])[0]
    hits = {measure: dict.fromkeys(sizes, 0) for measure in MEASURES}
    for size in sizes:
        for repeat in range(repeats):
            rows = Streams(seed).permutation(f"stability/{size}", repeat, len(x))[:size]
            for measure in MEASURES:
                hits[measure][size] += ranked(scores(measure, rows))[0] == expected
    return {
        measure: Choice(whole[measure], *ranked(whole[measure]), {size: hits[measure][size] / repeats for size in sizes})
        for measure in MEASURES
    }


def table(choices: dict[str, Choice]) -> list[tuple[str, ...]]:
    """A row a candidate, a column a measure (∗: lowest), then what is removed, the margin, the shares from fewer images."""
    first = next(iter(choices.values()))
    rows: list[tuple[str, ...]] = [("score", *choices)]
    for name in first.scores:
        cells = (f"{c.scores[name]:.6f}{'∗' if name == c.removes else ' '}" for c in choices.values())
        rows.append((name, *cells))
    rows.append(("removes", *(c.removes for c in choices.values())))
    rows.append(("margin to the second", *(f"{c.margin:.6f}" for c in choices.values())))
    for size in first.shares:
        rows.append((f"share of subsets of {size:,}", *(f"{100 * c.shares[size]:.0f} %" for c in choices.values())))
    return rows


def as_json(choices: dict[str, Choice]) -> dict[str, object]:
    """Plain data."""
    return {measure: choice._asdict() for measure, choice in choices.items()}
