"""The same judgement in somebody's own test suite, by one line: `test_mine = conformance(Mine)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..adapters.implementation import Implementation
from ..errors import InputError
from . import campaign, reporting
from .asking.calls import InProcess


def conformance(
    implementation: Callable[[], Implementation], *, examples: int = 25, seed: int = 0, levels: tuple[str, ...] = ()
) -> Any:
    """A pytest test with one item for each method that the implementation has (of the levels or methods named).

    implementation: its class, or a function that makes one. examples: of each method. It runs in the test's own process, so
    a call that hangs cannot be ended. A failure's message is what `refprune verify` would print. InputError if nothing is
    provided: a test without items would pass.
    """
    import pytest

    caller = InProcess(implementation())
    provided = [m for m in campaign.chosen(levels) if m.name in caller.description.provided]
    if not provided:
        raise InputError(f"{caller.description.name}: provides no method{' of ' + ', '.join(levels) if levels else ''}")

    @pytest.mark.parametrize("method", provided, ids=[m.name for m in provided])
    def test(method: Any) -> None:
        (outcome,) = campaign.run(caller, [method], examples, seed)
        lines = [line for finding in outcome.findings for line in reporting.finding_lines(finding)]
        if outcome.verdict in ("declined", "not asked"):
            pytest.skip(f"{outcome.method}: {outcome.verdict}, and therefore not judged")
        assert outcome.verdict == "conforms", "\n".join(lines)

    return test
