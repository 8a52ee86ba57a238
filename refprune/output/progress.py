"""What a person sees while a run goes on: a bar if tqdm is there and the output is a terminal, else lines.

A line an epoch says how good it is; within long epochs a line every ten seconds says how much is left.
"""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Any

#: Seconds after which a line says how far the work is.
EVERY = 10.0


class Heartbeat:
    """Says on standard error every `EVERY` seconds how much of a work of `total` parts is done, and how long the rest takes."""

    def __init__(self, label: str, total: int, done: int = 0) -> None:
        self.label, self.total, self.first = label, total, done
        self.began = self.said = time.monotonic()

    def reach(self, done: int) -> None:
        """So many parts are done."""
        now = time.monotonic()
        if now - self.said < EVERY or done <= self.first:
            return
        self.said = now
        left = (now - self.began) / (done - self.first) * (self.total - done)
        with contextlib.suppress(OSError):  # nobody takes it
            print(f"{self.label}: {done:,} of {self.total:,}, {left:.0f} s left", file=sys.stderr, flush=True)


class Progress:
    """Lines on standard output; quiet: none."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._bar: Any = None
        self._heart: Heartbeat | None = None
        self._done = 0

    def start(self, label: str, total: int, done: int) -> None:
        """A run of `total` steps begins at step `done`."""
        self.finish()
        if self.quiet:
            return
        self._done, self._heart = done, Heartbeat(label, total, done)
        if not sys.stdout.isatty():
            return
        try:
            from tqdm import tqdm
        except ImportError:
            return
        self._heart = None
        self._bar = tqdm(total=total, initial=done, desc=label, unit="step", file=sys.stdout, leave=False)

    def advance(self) -> None:
        """One step is done."""
        self.reach(self._done + 1)

    def reach(self, done: int) -> None:
        """So many steps are done."""
        self._done = done
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
        elif self._heart is not None:
            self._heart.reach(done)

    def line(self, text: str) -> None:
        """Something worth a line."""
        if self._bar is not None:
            self._bar.write(text)
        elif not self.quiet:
            print(text, flush=True)

    def note(self, text: str) -> None:
        """A line on standard error, which the bar does not cover."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        elif not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def finish(self) -> None:
        """Close the bar."""
        self._heart = None
        if self._bar is not None:
            self._bar.close()
            self._bar = None
