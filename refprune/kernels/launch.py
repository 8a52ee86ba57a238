"""The parts of a kernel on several threads: whoever is free takes the next part, the calling thread among them.

The threads are Python's own, asleep between launches; compiled code runs without the interpreter's lock. A launch never waits
for a thread that has not begun: on a busy machine the calling thread does the parts that nobody else has come to take. One
launch at a time has the threads; whoever comes meanwhile from another Python thread works alone. A forked child starts its own.
"""

from __future__ import annotations

import functools
import os
import threading
from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from . import jit

TAKEN, DONE, FAILED = 0, 1, 2  # parts of a launch, counted by all of its threads
PATIENCE = 2000  # looks at the count of finished parts before the calling thread goes to sleep, some 50 µs

_turn = threading.Lock()
_helpers: list[_Helper] = []


def _after_fork() -> None:
    """Threads do not live on in a child."""
    global _turn, _helpers
    _turn, _helpers = threading.Lock(), []


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class _Launch:
    """One call of a kernel. arguments: None when all parts are done, so that a late helper keeps no array alive."""

    def __init__(self, work: Any, address: int, parts: int, arguments: Any) -> None:
        self.work, self.address, self.parts, self.arguments = work, address, parts, arguments
        self.counts = np.zeros(3, np.intp)
        self.done = threading.Lock()
        self.done.acquire()

    def help(self) -> None:
        """Take parts until none is left, and wake the calling thread if the last to be done was one of these."""
        arguments = self.arguments
        if arguments is not None and self.work(self.address, self.counts, self.parts, 0, arguments):
            self.done.release()


class _Helper(threading.Thread):
    """A thread that helps with the newest launch whenever it is woken."""

    def __init__(self) -> None:
        super().__init__(name="refprune kernels", daemon=True)
        self.newest: _Launch | None = None
        self._asleep, self._bed = False, threading.Lock()
        self._bed.acquire()
        self.start()

    def run(self) -> None:
        while True:
            launch, self.newest = self.newest, None
            if launch is not None:
                launch.help()
                del launch
            else:
                self._asleep = True
                self._bed.acquire()

    def wake(self, launch: _Launch) -> None:
        """Called by one thread at a time."""
        self.newest = launch
        if self._asleep:
            self._asleep = False
            self._bed.release()


class Launcher:
    """Launches of one compiled part, whose arguments after (part, parts) have these types."""

    def __init__(self, run: Any, kinds: tuple[Any, ...]) -> None:
        (part,) = run.overloads.values()
        self._address: int = part.library.get_pointer_to_function(part.fndesc.llvm_func_name)
        self._kinds = kinds
        self._work: Any = None  # made when first needed: a small network never needs it

    def __call__(self, parts: int, arguments: tuple[Any, ...]) -> bool:
        """Run all parts on as many threads; False, and nothing done, if another launch has the threads."""
        turn = _turn
        if not turn.acquire(blocking=False):
            return False
        try:
            if self._work is None:
                self._work = _work_for(self._kinds)
            while len(_helpers) < parts - 1:
                _helpers.append(_Helper())
            launch = _Launch(self._work, self._address, parts, arguments)
            for helper in _helpers[: parts - 1]:
                helper.wake(launch)
            if not self._work(self._address, launch.counts, parts, PATIENCE, arguments):
                launch.done.acquire()
            launch.arguments = None
            if launch.counts[FAILED]:
                raise MemoryError("in a thread of a kernel")  # nothing else can go wrong in one
        finally:
            turn.release()
        return True


def _count(typing_context: Any, counts: Any, which: Any, more: Any) -> Any:
    """counts[which] += more, seen by all threads at once; returns the value before."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = make_array(signature.args[0])(context, builder, args[0])
        return builder.atomic_rmw("add", builder.gep(array.data, [args[1]]), args[2], "acq_rel")

    return types.intp(counts, types.intp, types.intp), emit


def _call(typing_context: Any, address: Any, part: Any, parts: Any, arguments: Any) -> Any:
    """Calls the machine code of a part; returns whether it failed."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds = (types.intp, types.intp, *signature.args[3].types)
        kind = context.call_conv.get_function_type(types.none, kinds).as_pointer()
        values = (args[1], args[2], *cgutils.unpack_tuple(builder, args[3]))
        function = builder.inttoptr(args[0], kind)
        status, _ = context.call_conv.call_function(builder, function, types.none, kinds, values)
        return builder.zext(status.is_error, context.get_value_type(types.intp))

    return types.intp(types.intp, types.intp, types.intp, arguments), emit


count: Any = intrinsic(_count)
call: Any = intrinsic(_call)


def _work(address: int, counts: Any, parts: int, patience: int, arguments: Any) -> bool:
    """Do parts until none is left. True for who finishes the last one, and for who has the patience to see it finished."""
    mine, part = 0, count(counts, TAKEN, 1)
    while part < parts:
        count(counts, FAILED, call(address, part, parts, arguments))
        mine += 1
        part = count(counts, TAKEN, 1)
    if mine > 0 and count(counts, DONE, mine) + mine == parts:
        return True
    looks = 0
    while looks < patience and count(counts, DONE, 0) < parts:
        looks += 1
    return looks < patience


@functools.cache
def _work_for(kinds: tuple[Any, ...]) -> Any:
    counts = types.Array(types.intp, 1, "C")
    return jit.build(_work, (types.intp, counts, types.intp, types.intp, types.Tuple.from_types(kinds)))
