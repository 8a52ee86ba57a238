"""Files are whole or not there: of new runs, on full disks, with two at once; how many cores there are."""

import errno
import os
import threading
from pathlib import Path

import pytest

from refprune.errors import InputError
from refprune.kernels.machine import cores
from refprune.output.files import check_unused, write_atomically, write_new

WRITERS = {"anew": write_new, "again": write_atomically}


@pytest.fixture(params=["write", "fsync"])
def full(request, monkeypatch):
    """A disk that is full when a file is written, or when it is to be on disk."""

    def no_space(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    def half(path, content):
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        no_space()

    monkeypatch.setattr(*((Path, "write_bytes", half) if request.param == "write" else (os, "fsync", no_space)))


@pytest.mark.parametrize("how", WRITERS)
def test_a_full_disk_leaves_nothing_behind(tmp_path, full, how):
    with pytest.raises(InputError, match=r"config\.toml: cannot be written .*No space left"):
        WRITERS[how](tmp_path / "r" / "config.toml" if how == "anew" else tmp_path / "config.toml", b"seed = 1")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_new_file_is_whole_when_it_gets_its_name(tmp_path, monkeypatch):
    link, seen = os.link, []
    monkeypatch.setattr(os, "link", lambda a, b: (seen.append(Path(a).read_bytes()), link(a, b)))
    write_new(tmp_path / "r" / "config.toml", b"seed = 1")
    assert seen == [(tmp_path / "r" / "config.toml").read_bytes()] == [b"seed = 1"]
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["config.toml"]


@pytest.mark.parametrize("links", [True, False])
def test_a_new_file_replaces_none(tmp_path, monkeypatch, links):
    def refused(*_):
        raise OSError(errno.EPERM, "no links on this file system")

    if not links:
        monkeypatch.setattr(os, "link", refused)
    write_new(tmp_path / "config.toml", b"first")
    with pytest.raises(InputError, match=r"config\.toml: is there; another run has just begun in this folder"):
        write_new(tmp_path / "config.toml", b"second")
    assert (tmp_path / "config.toml").read_bytes() == b"first"
    assert len(list(tmp_path.iterdir())) == 1


def test_of_many_that_begin_at_once_one_wins(tmp_path):
    """In one process they share the temporary file's name too, which two processes do not."""
    won, ready = [], threading.Barrier(8)

    def begin(content):
        ready.wait()
        try:
            write_new(tmp_path / "config.toml", content)
            won.append(content)
        except InputError:
            pass

    threads = [threading.Thread(target=begin, args=(bytes([65 + i]) * 1000,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert len(set((tmp_path / "config.toml").read_bytes())) == 1


def test_half_files_of_a_run_that_never_began_are_no_run(tmp_path):
    (tmp_path / "config.toml.4711.part").write_text("seed")
    check_unused(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["thesis.zip.part", "config.toml", "notes"])
def test_files_of_others_are_left_alone(tmp_path, name):
    for other in (name, "plan.json.4711.part"):
        (tmp_path / other).write_text("mine")
    with pytest.raises(InputError, match="not an empty folder"):
        check_unused(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


# Cores ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "allowed"),
    [
        ({}, 8),
        ({"job/cpu.max": "max 100000"}, 8),
        ({"job/cpu.max": "200000 100000"}, 2),
        ({"job/cpu.max": "50000 100000"}, 1),
        ({"job/cpu.max": "max 100000", "cpu.max": "250000 100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"job/cpu.max": "what"}, 8),
    ],
)
def test_cores_are_those_of_the_mask_and_of_the_control_groups(tmp_path, monkeypatch, files, allowed):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(cores, "CGROUPS", tmp_path)
    monkeypatch.setattr(cores, "_own_groups", lambda: [tmp_path / "job", tmp_path])
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert cores.allowed() == allowed


def test_the_affinity_mask_counts(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    assert cores.allowed() == 1
