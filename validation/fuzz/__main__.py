"""`python -m validation.fuzz [CASES] [SEED]`: damaged files for every reader; exit code 1 if one ends in anything but a value
or a sentence.

CASES: in all, 100,000 by default. A case is made again from SEED, the reader's name and its number.
"""

from __future__ import annotations

import math
import sys
import time

from refprune.output.tables import text_table

from . import campaign, seeds


def main(cases: int = 100_000, seed: int = 0) -> int:
    found, started = seeds.readers(), time.monotonic()
    rows = [("reader", "cases", "read", "refused", "problems", "slowest", "peak")]
    total, problems, peak, done = sum(reader.share for reader in found.values()), [], 0, 0
    for name, reader in found.items():
        result = campaign.run(name, reader, math.ceil(cases * reader.share / total), seed)
        done += result.cases
        numbers = (result.cases, result.values, result.refused, len(result.problems))
        rows.append((name, *(f"{n:,}" for n in numbers), f"{result.slowest:.2f} s", f"{result.peak / 1e6:.0f} MB"))
        problems += [f"{name} {number}: {what}" for number, what in result.problems]
        peak = max(peak, result.peak)
        print(f"{name}: {result.cases:,} cases, {len(result.problems)} problems", file=sys.stderr, flush=True)
    print(text_table(rows))
    print("\n".join(problems[:50]))
    took = time.monotonic() - started
    print(f"{done:,} cases, {len(problems)} problems, peak {peak / 1e6:.0f} MB, {took:.0f} s, seed {seed}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
