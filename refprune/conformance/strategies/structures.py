"""A fixed set of structures with numbers anew in every example, for implementations that compile each structure."""

from __future__ import annotations

from typing import Protocol, Self, TypeVar

import hypothesis
from hypothesis import strategies as st


class Reseedable(Protocol):
    """A structure whose numbers follow from a seed."""

    def reseeded(self, seed: int) -> Self: ...


C = TypeVar("C", bound=Reseedable)


def few(cases: st.SearchStrategy[C], count: int | None, seed: int = 0) -> st.SearchStrategy[C]:
    """Cases with at most `count` different structures, which follow from `seed`; the cases as they are for None."""
    if count is None:
        return cases
    kept: list[C] = []
    settings = hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )

    def keep(case: C) -> None:
        kept.append(case)

    hypothesis.seed(seed)(settings(hypothesis.given(cases)(keep)))()
    return st.builds(lambda case, seed: case.reseeded(seed), st.sampled_from(kept), st.integers(0, 2**32 - 1))
