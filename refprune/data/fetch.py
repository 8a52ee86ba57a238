"""Downloading and checking the public data sets listed in `manifest.json`.

A file gets its final name only after its sha256 was found right: it grows as `NAME.part`, which a later call continues,
and is renamed at the end. Archives are unpacked beside their final folder, checked file by file, and renamed too.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from ..errors import DataError, InputError
from ..output.files import sync

Progress = Callable[[str, int, int], None]
"""Called with the file's name, the bytes on disk so far, and the bytes in all."""

_CHUNK = 1 << 18
_MIN_BYTES = 1024  # a server that sends less than this in `timeout` seconds counts as stalled
_SCHEMES = ("http://", "https://", "file://")


@dataclass(frozen=True)
class Item:
    """A file as the manifest describes it."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Entry:
    """A data set as the manifest describes it. Mirrors are folders' URLs that hold the archive, or else the files."""

    title: str
    source: str
    folder: str
    files: tuple[Item, ...]
    mirrors: tuple[str, ...]
    archive: Item | None = None


@dataclass(frozen=True)
class FileStatus:
    """What `verify` found of one file. `unchecked`: present unpacked, for which no checksum is published."""

    path: Path
    status: Literal["ok", "missing", "wrong size", "wrong sha256", "unreadable", "unchecked"]
    detail: str


@dataclass(frozen=True)
class SetStatus:
    """What `available` found of one set, by names and sizes of files; `bytes` is what a download takes."""

    name: str
    title: str
    folder: Path | None
    status: Literal["embedded", "complete", "incomplete", "absent"]
    bytes: int


class _MirrorFailure(Exception):
    """One mirror cannot deliver; the next is tried."""


class _RangeRefused(_MirrorFailure):
    """The server's file is too short to continue ours."""


@lru_cache(maxsize=1)
def manifest() -> dict[str, Entry]:
    """The sets that can be fetched, by name."""
    raw: dict[str, dict[str, Any]] = json.loads(resources.files("refprune.data").joinpath("manifest.json").read_text("utf-8"))
    return {
        name: Entry(
            title=entry["title"],
            source=entry["source"],
            folder=entry["folder"],
            files=tuple(Item(**item) for item in entry["files"]),
            mirrors=tuple(entry["mirrors"]),
            archive=Item(**entry["archive"]) if "archive" in entry else None,
        )
        for name, entry in raw.items()
    }


def _entry(name: str) -> Entry:
    if name == "synthetic-digits":
        raise InputError("data set 'synthetic-digits' is made from a seed and has no files")
    try:
        return manifest()[name]
    except KeyError:
        raise InputError(f"data set {name!r} cannot be fetched; allowed are {', '.join(manifest())}") from None


# ------------------------------------------------------------------------------------------------------------- checks


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(path: Path, item: Item) -> FileStatus:
    try:
        if not path.exists():
            unpacked = path.with_suffix("")
            if path.suffix == ".gz" and unpacked.exists():
                return FileStatus(unpacked, "unchecked", "unpacked file, for which no sha256 is published")
            return FileStatus(path, "missing", "no such file")
        size = path.stat().st_size
        if size != item.bytes:
            return FileStatus(path, "wrong size", f"{size} bytes, expected {item.bytes}")
        found = _sha256(path)
    except OSError as error:
        return FileStatus(path, "unreadable", error.strerror or str(error))
    if found != item.sha256:
        return FileStatus(path, "wrong sha256", f"{found}, expected {item.sha256}")
    return FileStatus(path, "ok", f"{size} bytes, sha256 {found}")


def verify(name: str, directory: str | os.PathLike[str]) -> list[FileStatus]:
    """Checks size and sha256 of every file of the set `name` in the data folder `directory`; reads all of them.

    Raises InputError for a name that the manifest does not list.
    """
    entry = _entry(name)
    return [_check(Path(directory) / entry.folder / item.name, item) for item in entry.files]


def available(directory: str | os.PathLike[str]) -> list[SetStatus]:
    """All sets and whether their files lie in the data folder `directory`, by name and size; checksums are not read."""

    def present(folder: Path, item: Item) -> bool:
        path = folder / item.name
        return (path.is_file() and path.stat().st_size == item.bytes) or (
            path.suffix == ".gz" and path.with_suffix("").is_file()
        )

    found = [SetStatus("synthetic-digits", "28×28 digits made from a seed", None, "embedded", 0)]
    for name, entry in manifest().items():
        folder = Path(directory) / entry.folder
        here = sum(present(folder, item) for item in entry.files)
        status: Literal["complete", "incomplete", "absent"] = "incomplete" if folder.is_dir() else "absent"
        if here == len(entry.files):
            status = "complete"
        size = entry.archive.bytes if entry.archive else sum(item.bytes for item in entry.files)
        found.append(SetStatus(name, entry.title, folder, status, size))
    return found


# ----------------------------------------------------------------------------------------------------------- transfer


def _cannot_write(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be written: {error.strerror or error}")


def _open(url: str, start: int, timeout: float) -> Any:
    headers = {"User-Agent": "refprune", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        with error:
            if start and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise _RangeRefused from error
            raise _MirrorFailure(f"HTTP status {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise _MirrorFailure(str(error.reason)) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _MirrorFailure(f"{type(error).__name__}: {error}") from error


def _pieces(response: Any, expected: int, timeout: float) -> Iterable[bytes]:
    """The body, at most one byte more than expected. Raises _MirrorFailure if the server stalls."""
    received, window_end, window_bytes = 0, time.monotonic() + timeout, 0
    while received <= expected:
        try:
            piece = response.read1(min(_CHUNK, expected + 1 - received))
        except (OSError, http.client.HTTPException) as error:
            raise _MirrorFailure(f"{type(error).__name__} after {received} bytes: {error}") from error
        if not piece:
            return
        received += len(piece)
        window_bytes += len(piece)
        if time.monotonic() > window_end:
            if window_bytes < _MIN_BYTES and received < expected:
                raise _MirrorFailure(f"stalled: {window_bytes} bytes in {timeout:g} s")
            window_end, window_bytes = time.monotonic() + timeout, 0
        yield piece


def _check_answer(response: Any, start: int, item: Item) -> bool:
    """Whether the answer continues at byte `start`. Raises _MirrorFailure if it cannot be the wanted file."""
    resumed = bool(start) and response.status == http.HTTPStatus.PARTIAL_CONTENT
    found, wanted = response.headers.get("Content-Range", ""), f"bytes {start}-{item.bytes - 1}/{item.bytes}"
    if resumed and found != wanted:
        raise _MirrorFailure(f"sends the range {found!r}, asked for {wanted!r}")
    kind, length = response.headers.get_content_type(), response.headers.get("Content-Length")
    expected = item.bytes - start if resumed else item.bytes
    if length is not None and length != str(expected):
        raise _MirrorFailure(f"offers {length} bytes of {kind}, expected {expected}")
    if kind == "text/html":
        raise _MirrorFailure("sends an HTML page instead of the file")
    return resumed


def _append(part: Path, truncate: bool, pieces: Iterable[bytes]) -> Iterable[int]:
    """Writes the pieces behind what `part` holds and yields their sizes. A failing disk is no fault of the mirror."""
    try:
        file = part.open("wb" if truncate else "ab", buffering=0)
    except OSError as error:
        raise _cannot_write(part, error) from error
    with file:
        for piece in pieces:
            rest = memoryview(piece)
            while rest:
                try:
                    rest = rest[file.write(rest) :]
                except OSError as error:
                    raise _cannot_write(part, error) from error
            yield len(piece)


def _transfer(url: str, part: Path, item: Item, start: int, progress: Progress | None, timeout: float) -> bool:
    """Fills `part` to the item's size and tells whether its first `start` bytes were kept."""
    with _open(url, start, timeout) as response:
        resumed = _check_answer(response, start, item)
        done = start if resumed else 0
        for size in _append(part, not resumed, _pieces(response, item.bytes - done, timeout)):
            done += size
            if progress:
                progress(item.name, done, item.bytes)
    if done < item.bytes:
        raise _MirrorFailure(f"ended after {done} of {item.bytes} bytes")
    if done > item.bytes:
        part.unlink()
        raise _MirrorFailure(f"sends more than the expected {item.bytes} bytes")
    return resumed


def _from_mirror(url: str, part: Path, item: Item, progress: Progress | None, timeout: float) -> None:
    """Leaves the whole, checked file at `part`, continuing what lies there if the server agrees."""
    while True:
        here = part.stat().st_size if part.exists() else 0
        try:
            resumed = _transfer(url, part, item, here if here < item.bytes else 0, progress, timeout)
        except _RangeRefused:
            part.unlink()
            continue
        found = _sha256(part)
        if found == item.sha256:
            return
        part.unlink()
        if not resumed:  # else what lay there may have been wrong: once more, from the start
            raise _MirrorFailure(f"sha256 is {found}, expected {item.sha256}")


def _from_mirrors(item: Item, part: Path, mirrors: Sequence[str], progress: Progress | None, timeout: float) -> None:
    reasons: list[str] = []
    for base in mirrors:
        url = f"{base.rstrip('/')}/{urllib.parse.quote(item.name)}"
        try:
            return _from_mirror(url, part, item, progress, timeout)
        except _MirrorFailure as failure:
            reasons.append(f"{url}: {failure}")
    raise DataError(f"{item.name}: no mirror could deliver it:\n  " + "\n  ".join(reasons))


def _obtain(item: Item, target: Path, mirrors: Sequence[str], progress: Progress | None, timeout: float) -> None:
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(target.parent, error) from error
    if _check(part, item).status != "ok":
        _from_mirrors(item, part, mirrors, progress, timeout)
    try:
        sync(part)
        os.replace(part, target)
        sync(target.parent)
    except OSError as error:
        raise _cannot_write(target, error) from error


# ------------------------------------------------------------------------------------------------------------ archives


def _unpack_one(archive: tarfile.TarFile, path: Path, member: tarfile.TarInfo, item: Item, target: Path) -> None:
    source = archive.extractfile(member) if member.isreg() else None
    if source is None:
        raise DataError(f"{path}: member {member.name} is not a plain file")
    if member.size != item.bytes:
        raise DataError(f"{path}: member {member.name} has {member.size} bytes, expected {item.bytes}")
    with source, target.open("xb") as file:
        shutil.copyfileobj(source, file)
    sync(target)
    found = _sha256(target)
    if found != item.sha256:
        raise DataError(f"{path}: member {member.name} has sha256 {found}, expected {item.sha256}")


def _unpack(path: Path, entry: Entry) -> None:
    """Unpacks the files that the manifest lists, and no others, into `entry.folder` beside the archive."""
    fresh = path.parent / f".{entry.folder}.{os.getpid()}"
    wanted = {f"{entry.folder}/{item.name}": item for item in entry.files}
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                item = wanted.pop(member.name, None)
                if item is not None:
                    _unpack_one(archive, path, member, item, fresh / item.name)
        if wanted:
            raise DataError(f"{path}: members are missing: {', '.join(wanted)}")
        sync(fresh)
        folder = path.parent / entry.folder
        if folder.exists():
            for item in entry.files:
                os.replace(fresh / item.name, folder / item.name)
        else:
            os.replace(fresh, folder)
        sync(path.parent)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: corrupt archive: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be unpacked: {error.strerror or error}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def fetch(
    name: str,
    directory: str | os.PathLike[str],
    mirrors: Sequence[str] | None = None,
    progress: Progress | None = None,
    timeout: float = 30.0,
) -> Path:
    """Brings the set `name` into the data folder `directory` and returns the folder of its files.

    Files that are present and right are kept; an archive found in `directory` is used and kept, a downloaded one is
    removed after unpacking. mirrors: URLs (http, https, file) of folders that hold the files, tried in order instead of
    the manifest's; any failure leads to the next. timeout: seconds without an answer after which a server is given up.
    Raises InputError for an unknown name or mirror, DataError naming every mirror and its reason, or what cannot be
    written.
    """
    entry = _entry(name)
    mirrors = entry.mirrors if mirrors is None else mirrors
    if not mirrors:
        raise InputError("mirrors: the list is empty; give at least one URL")
    for mirror in mirrors:
        if not mirror.startswith(_SCHEMES):
            raise InputError(f"mirrors: {mirror!r} is no URL that can be fetched; allowed are {', '.join(_SCHEMES)}")
    folder = Path(directory) / entry.folder
    bad = [item for item in entry.files if _check(folder / item.name, item).status != "ok"]
    if entry.archive is None:
        for item in bad:
            _obtain(item, folder / item.name, mirrors, progress, timeout)
    elif bad:
        archive = Path(directory) / entry.archive.name
        keep = archive.exists()
        if _check(archive, entry.archive).status != "ok":
            _obtain(entry.archive, archive, mirrors, progress, timeout)
        _unpack(archive, entry)
        if not keep:
            archive.unlink()
    return folder
