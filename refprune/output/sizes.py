"""How much memory a file may ask for: what compression and fill values promise is compared with what is there."""

from __future__ import annotations

from ..errors import DataError

#: A file may ask for so much whatever its size is, and beyond that for so many times its own size.
ALWAYS, TIMES = 1 << 26, 100


def check_size(what: str, promised: int, held: int) -> None:
    """DataError if `promised` bytes are far beyond what a file of `held` bytes can mean."""
    if promised > max(ALWAYS, TIMES * held):
        raise DataError(f"{what} would take {promised:,} bytes of memory, {promised // max(held, 1):,} times the file's size")
