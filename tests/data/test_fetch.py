"""`refprune.data.fetch` against a local server that fails in every way a mirror can."""

from __future__ import annotations

import hashlib
import io
import re
import socket
import struct
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from refprune.data import fetch
from refprune.data.sets import NAMES, data_directory
from refprune.errors import DataError, InputError

BODY = np.random.Generator(np.random.Philox(key=7)).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
NAME = "images.gz"
HTML = b"<html><body>Please sign in to the network.</body></html>"


def item(name: str, body: bytes) -> fetch.Item:
    return fetch.Item(name, len(body), hashlib.sha256(body).hexdigest())


def entry(mirrors: tuple[str, ...] = (), archive: bytes | None = None, **files: bytes) -> fetch.Entry:
    return fetch.Entry(
        title="a tiny set",
        source="this test",
        folder="tiny",
        files=tuple(item(name, body) for name, body in files.items()),
        mirrors=mirrors,
        archive=None if archive is None else item("tiny.tar.gz", archive),
    )


class Server(ThreadingHTTPServer):
    """Serves `content` by file name; the folder in the URL names the way to misbehave."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content: dict[str, bytes] = {NAME: BODY}
        self.requests: list[tuple[str, str | None]] = []
        self.body_bytes = 0
        self.released = threading.Event()

    def url(self, how: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{how}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up in the middle is what several tests are about."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def send(self, status: int, body: bytes, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)
        self.server.body_bytes += len(body)

    def do_GET(self) -> None:
        how, name = self.path.split("/")[1:]
        body = self.server.content[name]
        wanted = self.headers.get("Range")
        self.server.requests.append((how, wanted))
        getattr(self, how)(body, int(wanted[6:-1]) if wanted else 0)

    def plain(self, body: bytes, start: int) -> None:
        self.send(200, body, len(body))

    def missing(self, body: bytes, start: int) -> None:
        self.send_error(404)

    def broken(self, body: bytes, start: int) -> None:
        self.send_error(500)

    def html(self, body: bytes, start: int) -> None:
        self.send(200, HTML, len(HTML), Content_Type="text/html")

    def html_without_length(self, body: bytes, start: int) -> None:
        self.send(200, HTML, Content_Type="text/html; charset=utf-8")

    def html_as_binary(self, body: bytes, start: int) -> None:
        self.send(200, HTML, Content_Type="application/octet-stream")

    def truncated(self, body: bytes, start: int) -> None:
        self.send(200, body[: len(body) // 2], len(body))

    def too_long(self, body: bytes, start: int) -> None:
        self.send(200, body + b"!")

    def wrong(self, body: bytes, start: int) -> None:
        self.send(200, bytes(len(body)), len(body))

    def reset(self, body: bytes, start: int) -> None:
        self.send(200, body[:1000], len(body))
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def stalled(self, body: bytes, start: int) -> None:
        self.send(200, body[:1000], len(body))
        self.server.released.wait(10)

    def dripping(self, body: bytes, start: int) -> None:
        self.send(200, b"", len(body))
        for byte in body:
            if self.server.released.wait(0.02):
                return
            self.wfile.write(bytes([byte]))

    def ranged(self, body: bytes, start: int) -> None:
        if start >= len(body):
            self.send_error(416)
        elif start:
            self.send(206, body[start:], len(body) - start, Content_Range=f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.plain(body, start)

    def refusing_ranges(self, body: bytes, start: int) -> None:
        self.send_error(416) if start else self.plain(body, start)

    def other_range(self, body: bytes, start: int) -> None:
        self.send(206, body[:100], Content_Range=f"bytes 0-99/{len(body)}")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(fetch, "manifest", lambda: {"tiny": entry(**{NAME: BODY})})
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.released.set()
        running.shutdown()
        thread.join()


FAILURES = {
    "missing": r"HTTP status 404 Not Found",
    "broken": r"HTTP status 500 Internal Server Error",
    "html": r"offers 56 bytes of text/html, expected 300000",
    "html_without_length": r"sends an HTML page instead of the file",
    "html_as_binary": r"ended after 56 of 300000 bytes",
    "truncated": r"ended after 150000 of 300000 bytes",
    "too_long": r"sends more than the expected 300000 bytes",
    "wrong": r"sha256 is [0-9a-f]{64}, expected [0-9a-f]{64}",
    "reset": r"ConnectionResetError after \d+ bytes|ended after \d+ of 300000 bytes",
    "stalled": r"TimeoutError after 1000 bytes",
    "dripping": r"stalled: \d+ bytes in 0.3 s",
}


def contents(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("how", FAILURES)
def test_failing_mirror_is_named_with_its_reason_and_leaves_no_file(server: Server, tmp_path: Path, how: str) -> None:
    with pytest.raises(DataError) as raised:
        fetch.fetch("tiny", tmp_path, [server.url(how)], timeout=0.3)
    assert re.search(re.escape(f"{server.url(how)}/{NAME}: ") + f"({FAILURES[how]})", str(raised.value))
    assert contents(tmp_path) <= {NAME + ".part"}


@pytest.mark.parametrize("how", FAILURES)
def test_next_mirror_mends_any_failure(server: Server, tmp_path: Path, how: str) -> None:
    folder = fetch.fetch("tiny", tmp_path, [server.url(how), server.url("ranged")], timeout=0.3)
    assert folder == tmp_path / "tiny"
    assert (folder / NAME).read_bytes() == BODY
    assert contents(tmp_path) == {NAME}


def test_all_mirrors_dead(server: Server, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(DataError) as raised:
            fetch.fetch("tiny", tmp_path, [closed, server.url("missing"), "http://[bad", server.url("wrong")], timeout=0.5)
    lines = str(raised.value).splitlines()
    assert lines[0] == f"{NAME}: no mirror could deliver it:"
    assert [line.split(": ")[0].strip() for line in lines[1:]] == [
        f"{base}/{NAME}" for base in (closed, server.url("missing"), "http://[bad", server.url("wrong"))
    ]
    assert "refused" in lines[1]
    assert contents(tmp_path) == set()


def put_part(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / (NAME + ".part")).write_bytes(body)


def test_resume_fetches_only_the_rest(server: Server, tmp_path: Path) -> None:
    put_part(tmp_path, BODY[:250_000])
    seen: list[tuple[str, int, int]] = []
    fetch.fetch("tiny", tmp_path, [server.url("ranged")], progress=lambda *call: seen.append(call))
    assert (tmp_path / "tiny" / NAME).read_bytes() == BODY
    assert server.requests == [("ranged", "bytes=250000-")]
    assert server.body_bytes == 50_000
    assert seen[-1] == (NAME, 300_000, 300_000)
    assert all(250_000 < done <= 300_000 for _, done, _ in seen)


def test_resume_across_mirrors(server: Server, tmp_path: Path) -> None:
    fetch.fetch("tiny", tmp_path, [server.url("truncated"), server.url("ranged")])
    assert server.requests == [("truncated", None), ("ranged", "bytes=150000-")]
    assert server.body_bytes == len(BODY)


@pytest.mark.parametrize("how", ["plain", "refusing_ranges"])
def test_resume_starts_over_if_the_server_does_not_take_part(server: Server, tmp_path: Path, how: str) -> None:
    put_part(tmp_path, BODY[:250_000])
    fetch.fetch("tiny", tmp_path, [server.url(how)])
    assert (tmp_path / "tiny" / NAME).read_bytes() == BODY
    assert server.body_bytes == len(BODY)


def test_resume_of_wrong_bytes_starts_over(server: Server, tmp_path: Path) -> None:
    put_part(tmp_path, HTML)
    fetch.fetch("tiny", tmp_path, [server.url("ranged")])
    assert (tmp_path / "tiny" / NAME).read_bytes() == BODY
    assert server.requests == [("ranged", f"bytes={len(HTML)}-"), ("ranged", None)]


@pytest.mark.parametrize("body", [BODY + b"!", bytes(len(BODY))])
def test_full_but_wrong_part_is_thrown_away(server: Server, tmp_path: Path, body: bytes) -> None:
    put_part(tmp_path, body)
    fetch.fetch("tiny", tmp_path, [server.url("ranged")])
    assert (tmp_path / "tiny" / NAME).read_bytes() == BODY
    assert server.requests == [("ranged", None)]


def test_complete_part_needs_no_network(server: Server, tmp_path: Path) -> None:
    put_part(tmp_path, BODY)
    fetch.fetch("tiny", tmp_path, [server.url("missing")])
    assert contents(tmp_path) == {NAME}
    assert server.requests == []


def test_answer_with_another_range_is_refused(server: Server, tmp_path: Path) -> None:
    put_part(tmp_path, BODY[:1000])
    with pytest.raises(DataError, match=r"sends the range 'bytes 0-99/300000', asked for 'bytes 1000-299999/300000'"):
        fetch.fetch("tiny", tmp_path, [server.url("other_range")])


def test_present_file_is_kept_and_a_wrong_one_replaced(server: Server, tmp_path: Path) -> None:
    fetch.fetch("tiny", tmp_path, [server.url("plain")])
    fetch.fetch("tiny", tmp_path, [server.url("plain")])
    assert len(server.requests) == 1
    (tmp_path / "tiny" / NAME).write_bytes(bytes(len(BODY)))
    with pytest.raises(DataError, match="404"):
        fetch.fetch("tiny", tmp_path, [server.url("missing")])
    assert (tmp_path / "tiny" / NAME).read_bytes() == bytes(len(BODY))
    fetch.fetch("tiny", tmp_path, [server.url("plain")])
    assert (tmp_path / "tiny" / NAME).read_bytes() == BODY


def test_mirrors_of_the_manifest_are_used(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "manifest", lambda: {"tiny": entry((server.url("plain"),), **{NAME: BODY})})
    fetch.fetch("tiny", tmp_path)
    assert contents(tmp_path) == {NAME}


def test_file_url_as_mirror(server: Server, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / NAME).write_bytes(BODY)
    fetch.fetch("tiny", tmp_path / "a", [(tmp_path / "nowhere").as_uri(), (tmp_path / "disk").as_uri()])
    assert contents(tmp_path / "a") == {NAME}


def test_directory_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"file/tiny: cannot be written: Not a directory"):
        fetch.fetch("tiny", tmp_path / "file", [server.url("plain")])
    (tmp_path / "tiny" / (NAME + ".part")).mkdir(parents=True)
    with pytest.raises(DataError, match=r"images.gz.part: cannot be written: Is a directory"):
        fetch.fetch("tiny", tmp_path, [server.url("plain")])


def test_failing_progress_is_not_taken_for_a_failing_mirror(server: Server, tmp_path: Path) -> None:
    def progress(name: str, done: int, total: int) -> None:
        raise BrokenPipeError("the terminal is gone")

    with pytest.raises(BrokenPipeError):
        fetch.fetch("tiny", tmp_path, [server.url("plain")], progress=progress)
    assert contents(tmp_path) == {NAME + ".part"}


@pytest.mark.parametrize("mirrors", [[], ["ftp://example.org"], ["example.org"], [""]])
def test_mirrors_that_are_no_urls(server: Server, tmp_path: Path, mirrors: list[str]) -> None:
    with pytest.raises(InputError, match="mirrors: "):
        fetch.fetch("tiny", tmp_path, mirrors)


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'nist' cannot be fetched; allowed are mnist, fashion-mnist, cifar10"):
        fetch.fetch("nist", tmp_path)
    with pytest.raises(InputError, match="has no files"):
        fetch.verify("synthetic-digits", tmp_path)


# ------------------------------------------------------------------------------------------------------------ archives

MEMBERS = {"one": b"1" * 5000, "two": b"2" * 10}


def pack(members: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, body in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return stream.getvalue()


GOOD = pack({f"tiny/{name}": body for name, body in MEMBERS.items()})


def offer(server: Server, monkeypatch: pytest.MonkeyPatch, archive: bytes) -> list[str]:
    server.content["tiny.tar.gz"] = archive
    monkeypatch.setattr(fetch, "manifest", lambda: {"tiny": entry(archive=archive, **MEMBERS)})
    return [server.url("ranged")]


def test_archive_is_unpacked_and_removed(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch.fetch("tiny", tmp_path / "new" / "folder", offer(server, monkeypatch, GOOD))
    assert {name: (folder / name).read_bytes() for name in MEMBERS} == MEMBERS
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]
    assert [status.status for status in fetch.verify("tiny", folder.parent)] == ["ok", "ok"]


def test_archive_found_on_disk_is_used_and_kept(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirrors = offer(server, monkeypatch, GOOD)
    (tmp_path / "tiny.tar.gz").write_bytes(GOOD)
    fetch.fetch("tiny", tmp_path, mirrors)
    assert server.requests == []
    assert contents(tmp_path) == {"one", "two", "tiny.tar.gz"}


def test_incomplete_folder_is_completed(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirrors = offer(server, monkeypatch, GOOD)
    fetch.fetch("tiny", tmp_path, mirrors)
    (tmp_path / "tiny" / "one").unlink()
    (tmp_path / "tiny" / "note").write_bytes(b"mine")
    fetch.fetch("tiny", tmp_path, mirrors)
    assert contents(tmp_path) == {"one", "two", "note"}


def test_members_not_listed_are_never_written(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strange = {"../evil": b"e", "tiny/../../evil": b"e", str(tmp_path / "evil"): b"e", "tiny/readme.html": b"r"}
    archive = pack({**strange, **{f"tiny/{name}": body for name, body in MEMBERS.items()}}, {"tiny/link": "/etc/passwd"})
    fetch.fetch("tiny", tmp_path / "a" / "b", offer(server, monkeypatch, archive))
    assert contents(tmp_path) == {"one", "two"}


BAD_ARCHIVES = {
    "missing member": (pack({"tiny/one": MEMBERS["one"]}), "members are missing: tiny/two"),
    "link": (pack({"tiny/one": MEMBERS["one"]}, {"tiny/two": "/etc/passwd"}), "tiny/two is not a plain file"),
    "size": (pack({"tiny/one": b"1"}), "tiny/one has 1 bytes, expected 5000"),
    "contents": (pack({"tiny/one": b"x" * 5000}), "tiny/one has sha256 [0-9a-f]{64}, expected"),
    "truncated": (GOOD[:-30], "corrupt archive: "),
    "no archive": (HTML, "corrupt archive: "),
}


@pytest.mark.parametrize("case", BAD_ARCHIVES)
def test_bad_archive_leaves_nothing_behind(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    archive, message = BAD_ARCHIVES[case]
    with pytest.raises(DataError, match=rf"tiny\.tar\.gz: .*{message}"):
        fetch.fetch("tiny", tmp_path, offer(server, monkeypatch, archive))
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.tar.gz"]


# ------------------------------------------------------------------------------------------------- verify and manifest


def test_verify_names_what_is_wrong_with_each_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bodies = {name: name.encode() * 9 for name in ("a", "b", "c", "d", "e.gz")}
    monkeypatch.setattr(fetch, "manifest", lambda: {"tiny": entry(**bodies)})
    folder = tmp_path / "tiny"
    (folder / "d").mkdir(parents=True)
    (folder / "a").write_bytes(bodies["a"])
    (folder / "b").write_bytes(b"x" * len(bodies["b"]))
    (folder / "e").write_bytes(b"unpacked")
    statuses = [status.status for status in fetch.verify("tiny", tmp_path)]
    assert statuses[:3] == ["ok", "wrong sha256", "missing"]
    assert statuses[3] in ("wrong size", "unreadable")
    assert statuses[4] == "unchecked"
    assert {status.name: status.status for status in fetch.available(tmp_path)} == {
        "synthetic-digits": "embedded",
        "tiny": "incomplete",
    }


def test_available_tells_complete_from_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "manifest", lambda: {"tiny": entry(archive=GOOD, **MEMBERS)})
    assert fetch.available(tmp_path)[1] == fetch.SetStatus("tiny", "a tiny set", tmp_path / "tiny", "absent", len(GOOD))
    (tmp_path / "tiny").mkdir()
    for name, body in MEMBERS.items():
        (tmp_path / "tiny" / name).write_bytes(body)
    assert fetch.available(tmp_path)[1].status == "complete"


def test_manifest_is_well_formed_and_covers_what_load_reads() -> None:
    sets = fetch.manifest()
    without_published_sums = {name for name in NAMES if name.startswith("emnist-")} | {"kmnist", "cifar100"}
    assert set(NAMES) - {"synthetic-digits"} - without_published_sums <= set(sets)
    hashes = []
    for listed in sets.values():
        items = listed.files + ((listed.archive,) if listed.archive else ())
        assert len({one.name for one in items}) == len(items)
        assert all(one.bytes > 0 and re.fullmatch(r"[0-9a-f]{64}", one.sha256) for one in items)
        assert len(listed.mirrors) >= 2
        assert all(re.fullmatch(r"https?://[^?#]+[^/?#]", mirror) for mirror in listed.mirrors)
        hashes += [one.sha256 for one in items]
    assert len(set(hashes)) == len(hashes)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_manifest_agrees_with_the_real_files(name: str) -> None:
    root = data_directory()
    if not (root / fetch.manifest()[name].folder).is_dir():
        pytest.skip(f"{name} is not in {root}; set REFPRUNE_DATA to a folder that holds it")
    assert [(status.path.name, status.status) for status in fetch.verify(name, root)] == [
        (one.name, "ok") for one in fetch.manifest()[name].files
    ]
