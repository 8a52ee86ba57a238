"""Writing files so that a crash leaves the old content or the new, never half of it."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError

#: Ending of files that have not got their names yet.
PART = ".part"


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
    with _complete(path, content) as temporary:
        os.replace(temporary, path)


def write_new(path: Path, content: bytes) -> None:
    """Write the first file of a new folder, whole or not at all. InputError for one of two runs that start there at once."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be made ({error})") from error
    with _complete(path, content) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError as error:
            raise InputError(f"{path}: is there; another run has just begun in this folder") from error
        except OSError:  # a file system without links: of two that come at the same moment both may pass
            if path.exists():
                raise InputError(f"{path}: is there; another run has just begun in this folder") from None
            os.replace(temporary, path)


@contextlib.contextmanager
def _complete(path: Path, content: bytes) -> Iterator[Path]:
    """A temporary file beside `path` with the content on disk, for the block to give it its name; gone after the block."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}{PART}")
    try:
        try:
            temporary.write_bytes(content)
            sync(temporary)
            yield temporary
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
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


def check_folder(option: str, folder: Path) -> None:
    """InputError for a folder into which nothing could be written when minutes have gone by; it need not be there yet."""
    there = next((path for path in (folder, *folder.absolute().parents) if path.exists()), Path())
    if not there.is_dir():
        raise InputError(f"{option} {folder}: {there} is a file; the name of a folder is allowed")
    if not os.access(there, os.W_OK):
        raise InputError(f"{option} {folder}: nothing can be written into the folder {there}")


def encoded(text: str) -> bytes:
    """UTF-8. Names of files need not be text (lone surrogates): what cannot be written becomes a question mark."""
    return text.encode("utf-8", "replace")


def check_unused(directory: Path) -> None:
    """InputError if something stands where a run would be written, but for the half file of one that ended while it began."""
    there = list(directory.iterdir()) if directory.is_dir() else []
    if there and all(re.fullmatch(rf"(config\.toml|plan\.json)\.\d+\{PART}", path.name) for path in there):
        for half in there:
            half.unlink()
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InputError(f"{directory}: is there and not an empty folder; nothing is overwritten (--resume goes on)")


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
