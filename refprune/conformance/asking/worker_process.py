"""The process of a `Worker`: `python -m refprune.conformance.asking.worker_process TARGET PRECISION`.

A module of its own, so that the classes of `worker` exist once in it, not a second time as those of `__main__`.
"""

from __future__ import annotations

import sys

from .worker import serve

if __name__ == "__main__":
    serve(*sys.argv[1:3])
