"""Writing files so that a crash leaves the old content or the new, never half of it."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError


def user_cache() -> Path:
    """refprune's folder in the user's cache folder ($XDG_CACHE_HOME or ~/.cache); an empty variable counts as unset."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "refprune"


def sync(path: Path) -> None:
    """Wait until a file or folder is on disk, so that a rename never precedes the contents."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open folders
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file through a temporary one beside it, synced and renamed. InputError if the folder cannot be written."""
    temporary = path.with_name(path.name + ".part")
    try:
        temporary.write_bytes(content)
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error})") from error


def check_targets(**targets: Path | None) -> None:
    """InputError for files that could not be written when minutes have gone by."""
    given = {f"--{name}": path for name, path in targets.items() if path is not None}
    for name, path in given.items():
        if not path.parent.is_dir():
            raise InputError(f"{name} {path}: the folder {path.parent} does not exist")
        if path.is_dir():
            raise InputError(f"{name} {path}: is a folder; the name of a file is allowed")
        if not os.access(path.parent, os.W_OK):
            raise InputError(f"{name} {path}: nothing can be written into the folder {path.parent}")
    for (one, first), (other, second) in itertools.combinations(given.items(), 2):
        if first.resolve() == second.resolve():
            raise InputError(f"{one} and {other}: are the same file, {first}; two files are allowed")


def check_unused(directory: Path) -> None:
    """InputError if something stands where a run would be written."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InputError(f"{directory}: is there and not an empty folder; nothing is overwritten (--resume goes on)")


def claim(path: Path) -> None:
    """Make the first file of a new folder, empty: of two runs that start at once in one folder, one is refused (InputError)."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(exist_ok=False)
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be made, or another run has just begun there ({error})") from error


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """No other process holds this file's lock inside the block; the lock goes with its process. InputError if one does.

    Windows has no such locks: there nothing is checked.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"{path.parent}: another process is at work here ({error})") from error
        yield


def as_folder(name: str) -> str:
    """The name with every run of characters that do not belong into a folder's name replaced by a dash."""
    return re.sub(r"[^\w-]+", "-", name)
