"""An implementation in a process of its own (`worker_process`), which may print, hang, fork or die.

Messages are pickles, each behind its length, over the worker's standard input and output; what the implementation itself
writes there goes to files. A question has a number, and only a reply with that number answers it.
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
import time
import traceback
from typing import IO, Any

from ...errors import InputError
from .calls import Reply, describe, find, load, perform
from .methods import Arguments, Method

#: Importing a framework may take this long, in seconds.
STARTING = 120.0

#: What a process does first may take so many limits: it may compile.
FIRST = 5.0

#: Seconds between two looks whether the process still runs.
LOOK = 0.1

LENGTH = struct.Struct("<Q")


def _send(stream: IO[bytes], message: Any) -> None:
    data = pickle.dumps(message)
    left = memoryview(LENGTH.pack(len(data)) + data)
    while left:
        left = left[stream.write(left) :]
    stream.flush()


def _receive(stream: IO[bytes]) -> Any:
    """The next message; None at the end."""
    head = _read(stream, LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    data = _read(stream, length)
    return pickle.loads(data) if len(data) == length else None


def _read(stream: IO[bytes], count: int) -> bytes:
    """So many bytes; fewer at the end."""
    parts: list[bytes] = []
    while count and (part := stream.read(count)):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


class _Ended(Exception):
    """The process has ended without a reply."""


class Worker:
    """The caller's side. limit: seconds that one call may take. precision: instead of the declared one.

    InputError if the implementation cannot be loaded. After a hang or a death the next call starts a new process.
    """

    def __init__(self, target: str, limit: float, precision: str | None = None) -> None:
        self.target, self.limit, self.precision = target, limit, precision
        self._process: subprocess.Popen[bytes] | None = None
        self._number = 0
        self.description = self._start()

    def _start(self) -> Any:
        command = [sys.executable, "-P", "-m", "refprune.conformance.asking.worker_process", self.target, self.precision or ""]
        # -P: a file of the current folder may be called like one of Python's modules; a session of its own: Ctrl-C is the
        # caller's alone, and what the implementation has started is ended with it; no buffers: nobody waits for their locks
        self._process = subprocess.Popen(
            command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=hasattr(os, "killpg")
        )
        self._replies: queue.Queue[Any] = queue.Queue()
        self._fresh = True
        threading.Thread(target=self._listen, args=(self._process.stdout, self._replies), daemon=True).start()
        try:
            self._loaded("imported", STARTING)
            return self._loaded("ready", FIRST * self.limit)
        except BaseException:
            self.close()
            raise

    def _loaded(self, stage: str, limit: float) -> Any:
        """What the worker says when it has come to this stage. InputError if it does not within the limit."""
        assert self._process is not None
        try:
            said, what = self._reply(stage, limit)
        except queue.Empty:
            doing = "imported" if stage == "imported" else "constructed"
            raise InputError(f"adapter: {self.target} was not {doing} within {limit:g} s") from None
        except _Ended:
            code = self._process.wait()
            raise InputError(f"adapter: {self.target} ended the process with code {code} while it was loaded") from None
        if said == "failed":
            raise InputError(what)
        return what

    @staticmethod
    def _listen(stream: IO[bytes], replies: queue.Queue[Any]) -> None:
        """Hand over what comes; a process that the implementation has left behind may keep the stream open for ever."""
        message: Any = ()
        with stream:
            while message is not None:
                try:
                    message = _receive(stream)
                except (OSError, ValueError, pickle.UnpicklingError, EOFError):  # cut off, or written over
                    message = None
                replies.put(message)

    def _reply(self, number: Any, limit: float) -> Any:
        """What was sent under this number. queue.Empty if nothing is within the limit, _Ended if the process has ended."""
        assert self._process is not None
        until = time.monotonic() + limit
        while True:
            ended = self._process.poll() is not None
            try:
                message = self._replies.get(timeout=max(0.0, min(LOOK, until - time.monotonic())))
            except queue.Empty:
                if ended:
                    raise _Ended from None
                if time.monotonic() >= until:
                    raise
                continue
            if message is None:
                raise _Ended
            if message[0] in (number, "failed"):
                return message

    def call(self, method: Method, arguments: Arguments, *, twice: bool) -> Reply:
        """One call. What does not answer within the limit (for two calls: twice the limit; `FIRST` of them for the first of a
        process) is ended and asked once more, because the machine may have slept; the reply says so."""
        restarted = ""
        for _ in range(2):
            if self._process is None:
                try:
                    self._start()
                except InputError as error:
                    return Reply("dies", {}, f"the process had been ended, and a new one could not be begun: {error}")
            limit = self.limit * (2.0 if twice else 1.0) * (FIRST if self._fresh else 1.0)
            try:
                reply = self._ask((method.name, method.results, arguments, twice), limit)
            except queue.Empty:
                self.close()
                restarted = f"no answer within {limit:g} s; the process was ended, and a new one answered"
                continue
            except _Ended:
                assert self._process is not None
                code = self._process.wait()
                self.close()
                return Reply("dies", {}, f"the process ended with code {code}")
            return reply._replace(restarted=restarted)
        return Reply("hangs", {}, f"twice no answer within {limit:g} s; the process was ended")

    def _ask(self, request: Any, limit: float) -> Reply:
        assert self._process is not None
        self._number += 1
        sending = threading.Thread(target=self._post, args=(self._process.stdin, (self._number, *request)), daemon=True)
        sending.start()  # who does not read must not stop this process
        reply: Reply = self._reply(self._number, limit)[1]
        self._fresh = False
        return reply

    @staticmethod
    def _post(stream: IO[bytes], request: Any) -> None:
        with contextlib.suppress(OSError, ValueError):  # the process has ended, which the wait for its reply notices
            _send(stream, request)

    def close(self) -> None:
        """End the process, and what it has started. Its output is left to who listens to it."""
        if self._process is not None:
            if hasattr(os, "killpg"):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
            self._process.wait()
            assert self._process.stdin is not None
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            self._process = None


def serve(target: str, precision: str) -> None:
    """The worker's side: load, say what there is, answer until the input ends."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with tempfile.TemporaryFile() as printed:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(printed.fileno(), 1)
        _answer(target, precision, requests, replies, printed)


def _answer(target: str, precision: str, requests: IO[bytes], replies: IO[bytes], printed: IO[bytes]) -> None:
    process = os.getpid()
    try:
        found = find(target)
        _send(replies, ("imported", None))
        implementation = load(target, found)
        implementation.precision = precision or implementation.precision
        description = describe(implementation)
    except InputError as error:
        _send(replies, ("failed", str(error)))
        return
    except (Exception, SystemExit) as error:
        lines = traceback.format_exception_only(error)
        _send(replies, ("failed", f"adapter: loading {target} raised {''.join(lines).strip()}"))
        return
    _leave_unless(process)
    _send(replies, ("ready", description))
    while (request := _receive(requests)) is not None:
        printed.seek(0)
        printed.truncate()
        number, name, results, arguments, twice = request
        reply = perform(implementation, name, results, arguments, twice=twice)
        _leave_unless(process)
        with contextlib.suppress(AttributeError, ValueError, OSError):  # the implementation may have closed or replaced it
            sys.stdout.flush()
        printed.seek(0)
        _send(replies, (number, reply._replace(printed=printed.read(2000).decode(errors="replace"))))


def _leave_unless(process: int) -> None:
    """End a copy of this process that the implementation has made by a fork and let return: it must not answer too."""
    if os.getpid() != process:
        os._exit(0)
