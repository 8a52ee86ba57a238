"""What a person sees while a run goes on: a bar if tqdm is there and the output is a terminal, else one line an epoch."""

from __future__ import annotations

import sys
from typing import Any


class Progress:
    """Lines on standard output; quiet: none."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._bar: Any = None

    def start(self, label: str, total: int, done: int) -> None:
        """A run of `total` steps begins at step `done`."""
        self.finish()
        if self.quiet or not sys.stdout.isatty():
            return
        try:
            from tqdm import tqdm
        except ImportError:
            return
        self._bar = tqdm(total=total, initial=done, desc=label, unit="step", file=sys.stdout, leave=False)

    def advance(self) -> None:
        """One step is done."""
        if self._bar is not None:
            self._bar.update()

    def reach(self, done: int) -> None:
        """So many steps are done."""
        if self._bar is not None:
            self._bar.update(done - self._bar.n)

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
        if self._bar is not None:
            self._bar.close()
            self._bar = None
