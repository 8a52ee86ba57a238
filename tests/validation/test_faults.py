"""Faults at counted writes: the tool sees a file that is not written whole, and a whole command goes through two faults."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from refprune.output.files import write_atomically
from validation.faults import __main__ as faults
from validation.faults.commands import commands
from validation.faults.inject import Faults


def writes(folder, kind, at, body):
    """A child that writes with a fault; its exit code."""
    code = f"""
import sys
from pathlib import Path
sys.path[:0] = {sys.path!r}
from validation.faults.inject import Faults
Faults({kind!r}, {at}).install(Path.cwd())
try:
    {body}
except OSError:
    sys.exit(3)
"""
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, check=False).returncode


WHOLE = "from refprune.output.files import write_atomically; write_atomically(Path('f').absolute(), b'new' * 100)"
PLAIN = "Path('f').absolute().write_bytes(b'new' * 100)"


@pytest.mark.parametrize("kind", ["kill", "full"])
def test_a_file_that_is_not_written_whole_is_seen(tmp_path, kind):
    """Half of it stands there; with a temporary file the old content or the new."""
    seen = {}
    for name, body in {"plain": PLAIN, "whole": WHOLE}.items():
        found = set()
        for at in range(5):
            (tmp_path / "f").write_bytes(b"old")
            writes(tmp_path, kind, at, body)
            found.add((tmp_path / "f").read_bytes())
        seen[name] = found
    assert seen["whole"] <= {b"old", b"new" * 100}
    assert b"new" * 50 in seen["plain"]


def test_points_are_counted_and_a_full_disk_stays_full(tmp_path, monkeypatch):
    for module, name in ((Path, "write_bytes"), (os, "replace"), (os, "link"), (os, "fsync"), (os, "unlink"), (os, "mkdir")):
        monkeypatch.setattr(module, name, getattr(module, name))
    monkeypatch.setattr(os, "rmdir", os.rmdir)
    monkeypatch.setattr("builtins.open", open)
    found = Faults("none", -1)
    found.install(tmp_path)
    write_atomically(tmp_path / "f", b"x")
    assert found.count >= 4
    full = Faults("full", 2)
    for at in range(5):
        if at < 2:
            full.point()
        else:
            with pytest.raises(OSError, match="No space left") as error:
                full.point()
            assert error.value.errno == errno.ENOSPC


def test_verify_goes_through_faults(tmp_path):
    """One kill and one full disk in the middle; the tool tells another result from the right one."""
    command = commands(tmp_path)["verify"]
    folder = faults.prepared(command)
    assert faults.call([*faults.PLAIN, *command.begin], folder).returncode == command.code
    wanted = command.result(folder)
    for kind in ("kill", "full"):
        assert faults.disturbed(command, kind, 5, wanted) is None
    assert faults.disturbed(command, "kill", 5, "something else") == "other bits"
