"""The process of `memory.measure`: `python -m refprune.bench.memory_process JOB`, JOB and what is printed in JSON."""

from __future__ import annotations

import json
import sys

from .memory import measure_here

if __name__ == "__main__":
    print(json.dumps(measure_here(json.loads(sys.argv[1]))))
