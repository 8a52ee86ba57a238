"""An implementation in a process of its own (`worker_process`), which may print, hang or die.

Messages are pickles, each behind its length, over the worker's standard input and output; what the implementation itself
writes there goes to files.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
from typing import IO, Any

from ...errors import InputError
from .calls import Reply, describe, load, perform
from .methods import Arguments, Method

#: Importing a framework may take this long, in seconds.
STARTING = 120.0

LENGTH = struct.Struct("<Q")


def _send(stream: IO[bytes], message: Any) -> None:
    data = pickle.dumps(message)
    stream.write(LENGTH.pack(len(data)) + data)
    stream.flush()


def _receive(stream: IO[bytes]) -> Any:
    """The next message; None at the end."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    data = stream.read(length)
    return pickle.loads(data) if len(data) == length else None


class Worker:
    """The caller's side. limit: seconds that one call may take. precision: instead of the declared one.

    InputError if the implementation cannot be loaded. After a hang or a death the next call starts a new process.
    """

    def __init__(self, target: str, limit: float, precision: str | None = None) -> None:
        self.target, self.limit, self.precision = target, limit, precision
        self._process: subprocess.Popen[bytes] | None = None
        self.description = self._start()

    def _start(self) -> Any:
        command = [sys.executable, "-P", "-m", "refprune.conformance.asking.worker_process", self.target, self.precision or ""]
        # -P: a file of the current folder may be called like one of Python's modules; a session of its own: Ctrl-C is the
        # caller's alone, and what the implementation has started is ended with it
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=hasattr(os, "killpg")
        )
        self._replies: queue.Queue[Any] = queue.Queue()
        threading.Thread(target=self._listen, args=(self._process.stdout, self._replies), daemon=True).start()
        try:
            first = self._replies.get(timeout=STARTING)
        except queue.Empty:
            self.close()
            raise InputError(f"adapter: {self.target} was not loaded within {STARTING:.0f} s") from None
        except BaseException:
            self.close()
            raise
        if not isinstance(first, tuple) or first[0] != "ready":
            code = None if isinstance(first, tuple) else self._process.wait()
            self.close()
            ended = f"adapter: {self.target} ended the process with code {code} while it was loaded"
            raise InputError(first[1] if isinstance(first, tuple) else ended)
        return first[1]

    @staticmethod
    def _listen(stream: IO[bytes], replies: queue.Queue[Any]) -> None:
        message: Any = ()
        while message is not None:
            try:
                message = _receive(stream)
            except (OSError, ValueError):  # closed while it was being read
                message = None
            replies.put(message)

    def call(self, method: Method, arguments: Arguments, *, twice: bool) -> Reply:
        """One call. What does not answer within the limit (for two calls: twice the limit) is ended and asked once more: the
        machine may have slept."""
        limit = self.limit * (2.0 if twice else 1.0)
        for _ in range(2):
            try:
                reply = self._ask((method.name, method.results, arguments, twice), limit)
            except queue.Empty:
                self.close()
                continue
            if reply is None:
                assert self._process is not None
                code = self._process.wait()
                self.close()
                return Reply("dies", {}, f"the process ended with code {code}")
            return reply
        return Reply("hangs", {}, f"twice no answer within {limit:g} s; the process was ended")

    def _ask(self, request: Any, limit: float) -> Reply | None:
        """The reply; None if the process has ended. queue.Empty if none comes within the limit."""
        if self._process is None:
            self._start()
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            _send(self._process.stdin, request)
        except OSError:
            return None
        reply: Reply | None = self._replies.get(timeout=limit)
        return reply

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            if hasattr(os, "killpg"):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    stream.close()
            self._process = None


def serve(target: str, precision: str) -> None:
    """The worker's side: load, say what there is, answer until the input ends."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with tempfile.TemporaryFile() as printed:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(printed.fileno(), 1)
        _answer(target, precision, requests, replies, printed)


def _answer(target: str, precision: str, requests: IO[bytes], replies: IO[bytes], printed: IO[bytes]) -> None:
    try:
        implementation = load(target)
        implementation.precision = precision or implementation.precision
        description = describe(implementation)
    except InputError as error:
        _send(replies, ("failed", str(error)))
        return
    except (Exception, SystemExit) as error:
        lines = traceback.format_exception_only(error)
        _send(replies, ("failed", f"adapter: loading {target} raised {''.join(lines).strip()}"))
        return
    _send(replies, ("ready", description))
    while (request := _receive(requests)) is not None:
        printed.seek(0)
        printed.truncate()
        name, results, arguments, twice = request
        reply = perform(implementation, name, results, arguments, twice=twice)
        with contextlib.suppress(AttributeError, ValueError, OSError):  # the implementation may have closed or replaced it
            sys.stdout.flush()
        printed.seek(0)
        _send(replies, reply._replace(printed=printed.read(2000).decode(errors="replace")))
