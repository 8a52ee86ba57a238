"""Machine code on disk: private to the user, checked before use, never in the way.

A `Store` is the folder of one key; the key says everything that the machine code depends on, so that another version,
processor or setting has another folder. What is read was written whole, under the same key and name, by the same user (or
root), or it counts as absent: the content is pickled, and so as good as a program. What cannot be written is left out.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
from pathlib import Path

from ...output.files import user_cache

KEEP = 4  # folders of different keys that stay, the one in use among them
DIGEST, SUFFIX = hashlib.sha256().digest_size, ".code"


def location() -> Path:
    """Where the folders are: `kernels` in $REFPRUNE_CACHE, else in the user's cache folder."""
    named = os.environ.get("REFPRUNE_CACHE")
    return (Path(named) if named else user_cache()) / "kernels"


def clear() -> int:
    """Remove all machine code, of every key; returns the number of bytes."""
    folders = _folders(location())
    size = sum(file.stat().st_size for folder in folders for file in folder.glob(f"*{SUFFIX}"))
    for folder in folders:
        shutil.rmtree(folder)
    return size


def _folders(root: Path) -> list[Path]:
    """The folders that a Store has made, oldest use first."""
    found = [p for p in root.glob("[0-9a-f]" * 32) if p.is_dir() and not p.is_symlink()] if root.is_dir() else []
    return sorted(found, key=lambda folder: folder.stat().st_mtime)


def _belongs_to_others(status: os.stat_result) -> str | None:
    """Why what is there may come from somebody else; on Windows folders are private by inheritance."""
    if hasattr(os, "geteuid") and status.st_uid not in (os.geteuid(), 0):
        return "belongs to another user"
    if os.name != "nt" and status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "can be written by other users"
    return None


def _name_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:32]


class Store:
    """The machine code under one key, by name. `problem`: why nothing can be written, or None."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._folder: Path | None = None
        self.problem: str | None = None
        try:
            root = location()
            root.parent.mkdir(parents=True, exist_ok=True)
            own = root / _name_of(key)
            for folder in (root, own):
                folder.mkdir(mode=0o700, exist_ok=True)
                if found := _belongs_to_others(folder.stat()):
                    self.problem = f"{folder} {found}"
                    return
        except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home
            self.problem = str(error)
            return
        self._folder = own
        with contextlib.suppress(OSError):  # it may be there only to be read
            os.utime(own)
            for old in _folders(root)[:-KEEP]:
                shutil.rmtree(old, ignore_errors=True)

    def read(self, name: str) -> bytes | None:
        """What was written under this name; None if it is not there or not as it was written."""
        if self._folder is None:
            return None
        try:
            with open(self._folder / (name + SUFFIX), "rb") as file:
                if _belongs_to_others(os.fstat(file.fileno())):
                    return None
                digest, content = file.read(DIGEST), file.read()
        except OSError:
            return None
        return content if digest == self._digest(name, content) else None

    def write(self, name: str, content: bytes) -> None:
        """Keep the content; other processes see the old or the new, never a part."""
        if self._folder is None or self.problem:
            return
        try:
            handle, temporary = tempfile.mkstemp(suffix=".part", dir=self._folder)
            try:
                with open(handle, "wb") as file:
                    file.write(self._digest(name, content) + content)
                os.replace(temporary, self._folder / (name + SUFFIX))
            except BaseException:
                os.unlink(temporary)
                raise
        except OSError as error:
            self.problem = str(error)

    def _digest(self, name: str, content: bytes) -> bytes:
        digest = hashlib.sha256()
        for part in (self._key.encode(), name.encode(), content):
            digest.update(len(part).to_bytes(8, "big") + part)
        return digest.digest()
