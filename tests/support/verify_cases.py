"""Adapters judged in this process, and one as a file."""

import textwrap

from refprune.conformance import campaign
from refprune.conformance.asking.calls import InProcess
from refprune.conformance.levels import METHODS


def judged(implementation, *names, examples=12, seed=0):
    """Method → outcome, so many examples of each."""
    chosen = [METHODS[name] for name in names]
    return {o.method: o for m in chosen for o in campaign.run(InProcess(implementation), [m], examples, seed)}


# The worker and the command -----------------------------------------------------------------------------------------------

ADAPTER = textwrap.dedent(
    """
    import os, time
    import refprune

    class {name}(refprune.Implementation):
        def gate(self, x, g, dy):
            {body}

        def penalty_slope(self, theta, log_gamma):
            return -log_gamma
    """
)
