"""A command of refprune with a fault at its n-th write: `python -m validation.faults.inject KIND N COUNT ARGUMENT…`.

KIND: "kill" ends the process before the write; "full" lets this write and every later one fail for lack of space, after half of
the bytes. N counts from 0; −1 lets all writes through. COUNT: a file that gets the number of writes that there were.
"""

from __future__ import annotations

import builtins
import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from refprune.cli import main


class Faults:
    """Counts writes, and lets one fail."""

    def __init__(self, kind: str, at: int) -> None:
        self.kind, self.at, self.count = kind, at, 0

    def point(self, half: Callable[[], Any] = lambda: None) -> None:
        """One write is about to happen; half: writes half of it."""
        here, self.count = self.count, self.count + 1
        if self.kind == "kill" and here == self.at:
            half()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "full" and 0 <= self.at <= here:
            half()
            raise OSError(errno.ENOSPC, "No space left on device")

    def install(self, folder: Path) -> None:
        """Before everything that changes files below `folder`."""
        write_bytes, real_open = Path.write_bytes, builtins.open

        def ours(path: Any) -> bool:
            return isinstance(path, str | os.PathLike) and folder in Path(path).absolute().parents

        def whole(path: Path, content: bytes) -> int:
            def half() -> None:
                with real_open(path, "wb") as file:
                    file.write(content[: len(content) // 2])

            if ours(path):
                self.point(half)
            return write_bytes(path, content)

        def opened(path: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if set(mode) & set("wax+") and ours(path):
                self.point()
            return real_open(path, mode, *arguments, **options)

        Path.write_bytes = whole  # type: ignore[assignment, method-assign]
        builtins.open = opened  # type: ignore[assignment]
        for name in ("replace", "link", "fsync", "unlink", "mkdir", "rmdir"):
            self._before(name, ours)

    def _before(self, name: str, ours: Callable[[Any], bool]) -> None:
        real = getattr(os, name)

        def faulty(*arguments: Any, **options: Any) -> Any:
            needs_space = name != "unlink" or self.kind != "full"
            if needs_space and (isinstance(arguments[0], int) or any(map(ours, arguments))):
                self.point()
            return real(*arguments, **options)

        setattr(os, name, faulty)


if __name__ == "__main__":
    kind, at, count = sys.argv[1:4]
    faults = Faults(kind, int(at))
    faults.install(Path.cwd())
    try:
        code = main.main(sys.argv[4:])
    finally:
        with os.fdopen(os.open(count, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "w") as file:
            file.write(str(faults.count))
    sys.exit(code)
