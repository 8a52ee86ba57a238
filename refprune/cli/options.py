"""What several commands ask of their arguments: nothing that was given is dropped without a word."""

from __future__ import annotations

import argparse
import contextlib
import math
import re
from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError


def file_name(text: str) -> Path:
    """The type of arguments that name a file or folder. An empty one would mean the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; the name of a file or folder is allowed")
    return Path(text)


def whole(text: str) -> int:
    """The type of arguments that are whole numbers: of at most 18 digits, so that nothing behind them overflows."""
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text.strip()):
        raise argparse.ArgumentTypeError(f"invalid whole number: {text[:40]!r}; at most 18 digits are allowed")
    return int(text)


def real(text: str) -> float:
    """The type of arguments that are numbers: finite ones."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"invalid number: {text[:40]!r}; a finite one is allowed")
    return number


def check_empty(options: argparse.Namespace) -> None:
    """InputError for an argument that was given as an empty text: it would be taken for one that was not given."""
    for name, value in vars(options).items():
        if value == "" or (isinstance(value, list) and "" in value):
            raise InputError(f"{name.replace('_', '-')}: is empty; leave it out, or give it a value")


def names(option: str, listed: str | None) -> list[str]:
    """The names in "a,b"; none for None. InputError for a name that is empty."""
    found = [] if listed is None else [name.strip() for name in listed.split(",")]
    if "" in found:
        raise InputError(f"{option}: {listed!r} has an empty name; names with commas between them are allowed, as in a,b")
    return found


@contextlib.contextmanager
def interruptible(file: Path, command: str) -> Iterator[None]:
    """An interruption is told with the command that goes on, if there is something to go on with: `file`."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(*([f"go on with: {command}"] if file.is_file() else [])) from None
