"""The parts of a kernel on several threads: whoever is free takes the next part, the calling thread among them.

The threads are Python's own, but look for work in compiled code, without the interpreter's lock, each in a mailbox of its own:
since kernels follow each other closely they look out for the next one for a moment before they go to sleep. A launch never
waits for a thread that has not begun: it takes back the letters that nobody has opened, and waits for those at work only. One
launch at a time has the threads; whoever comes meanwhile from another Python thread works alone. A forked child starts its own.

    mailbox    IDLE ── the launch writes function and data ──→ OFFERED ── the thread ──→ TAKEN ── no part is left ──→ IDLE
                                                                  └────── the launch has no part left ─────────────────↗
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from . import jit, numba_internals

IDLE, OFFERED, TAKEN = 0, 1, 2
STATE, FUNCTION, DATA, ASLEEP, MAILBOX = 0, 1, 2, 3, 16  # places in a mailbox, and its length: two cache lines
VIGILANCE = 1_000_000  # looks into the mailbox before a thread goes to sleep, some 2 ms
PATIENCE = 1000  # looks at a thread that is at work before the launch lets other threads of the system go first

_turn = threading.RLock()  # a signal may leave it taken: then its thread still gets it
_helpers: list[_Helper] = []


def _after_fork() -> None:
    """Threads do not live on in a child."""
    global _turn, _helpers
    _turn, _helpers = threading.RLock(), []


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class _Helper(threading.Thread):
    """A thread that helps with the launches in its mailbox."""

    def __init__(self) -> None:
        super().__init__(name="refprune kernels", daemon=True)
        self.mailbox = np.zeros(MAILBOX, np.intp)
        self._bed = threading.Lock()
        self._bed.acquire()
        self.start()

    def run(self) -> None:
        watch = _watch_for()
        while True:
            watch(self.mailbox, VIGILANCE)
            self.mailbox[ASLEEP] = 1
            if self.mailbox[STATE] != OFFERED:  # by a launch that found this thread awake
                self._bed.acquire()
            self.mailbox[ASLEEP] = 0

    def wake(self) -> None:
        """Called by one thread at a time."""
        if self.mailbox[ASLEEP]:
            with contextlib.suppress(RuntimeError):  # it has been woken and has not come yet
                self._bed.release()


class Launcher:
    """Launches of one compiled part, whose arguments after (part, parts) have these types."""

    def __init__(self, run: Any, kinds: tuple[Any, ...]) -> None:
        self._address = numba_internals.address(run)
        self._kinds = kinds
        self._launch: Any = None  # made when first needed: a small network never needs it

    def __call__(self, parts: int, arguments: tuple[Any, ...]) -> bool:
        """Run all parts on as many threads; False, and nothing done, if another launch has the threads."""
        turn = _turn
        if not turn.acquire(blocking=False):
            return False
        try:
            if self._launch is None:
                self._launch = _launch_for(self._kinds)
            with contextlib.suppress(RuntimeError):  # where no thread can be started, those that are there do the work
                while len(_helpers) < parts - 1:
                    _helpers.append(_Helper())
            helpers = _helpers[: parts - 1]
            for helper in helpers:
                helper.wake()
            mailboxes = _mailboxes(helpers)
            if self._launch(self._address, mailboxes, _yield_address(), parts, arguments):
                raise MemoryError("in a thread of a kernel")  # nothing else can go wrong in one
        finally:
            turn.release()
        return True


def _mailboxes(helpers: list[_Helper]) -> Any:
    """Addresses of the mailboxes."""
    return _addresses(tuple(helper.mailbox.ctypes.data for helper in helpers)) if helpers else _addresses(())


@functools.cache
def _addresses(addresses: tuple[int, ...]) -> Any:
    return np.array(addresses, np.intp)


@functools.cache
def _yield_address() -> int:
    """Of the system's function that lets other threads go first; 0 where there is none."""
    return int(binding.address_of_symbol("sched_yield") or 0)


# --------------------------------------------------------------------------------------------------------------------
# In compiled code


class _Mailbox:
    """LLVM instructions on the mailbox at an address."""

    def __init__(self, context: Any, builder: Any, address: Any) -> None:
        self._builder, self._word = builder, context.get_value_type(types.intp)
        self._start = builder.inttoptr(address, self._word.as_pointer())

    def _at(self, place: int) -> Any:
        return self._builder.gep(self._start, [self._word(place)])

    def read(self, place: int) -> Any:
        return self._builder.load_atomic(self._at(place), "acquire", self._word.width // 8)

    def write(self, place: int, value: Any) -> None:
        self._builder.store_atomic(value, self._at(place), "release", self._word.width // 8)

    def change(self, before: int, after: int) -> Any:
        """Whether the state was `before` and now is `after`."""
        pair = self._builder.cmpxchg(self._at(STATE), self._word(before), self._word(after), "acq_rel", "acquire")
        return self._builder.extract_value(pair, 1)


def _function(builder: Any, address: Any, arguments: list[Any]) -> Any:
    return builder.inttoptr(address, ir.FunctionType(ir.VoidType(), arguments).as_pointer())


def _helped(typing_context: Any, mailbox: Any) -> Any:
    """Whether there was a launch in this mailbox; then it has been helped with."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = make_array(signature.args[0])(context, builder, args[0])
        mail = _Mailbox(context, builder, builder.ptrtoint(array.data, context.get_value_type(types.intp)))
        found = cgutils.alloca_once_value(builder, cgutils.false_bit)
        offered = builder.icmp_signed("==", mail.read(STATE), context.get_value_type(types.intp)(OFFERED))
        with builder.if_then(offered), builder.if_then(mail.change(OFFERED, TAKEN)):
            data = builder.inttoptr(mail.read(DATA), cgutils.voidptr_t)
            builder.call(_function(builder, mail.read(FUNCTION), [cgutils.voidptr_t]), [data])
            mail.write(STATE, context.get_value_type(types.intp)(IDLE))
            builder.store(cgutils.true_bit, found)
        return builder.load(found)

    return types.boolean(mailbox), emit


def _spread(typing_context: Any, address: Any, mailboxes: Any, let_others: Any, parts: Any, arguments: Any) -> Any:
    """Whether a part failed (the number of one such, or 0), after all were run with these arguments."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address, mailboxes, let_others, parts, arguments = args
        word = context.get_value_type(types.intp)
        boxes = make_array(signature.args[1])(context, builder, mailboxes)
        count = builder.extract_value(boxes.shape, 0)
        data = cgutils.alloca_once_value(
            builder, cgutils.make_anonymous_struct(builder, [address, parts, word(0), word(0), arguments])
        )
        loop = _loop(context, builder.module, signature.args[4].types, data.type)

        def mail(index: Any) -> _Mailbox:
            return _Mailbox(context, builder, builder.load(builder.gep(boxes.data, [index])))

        with cgutils.for_range(builder, count) as each:
            box = mail(each.index)
            box.write(FUNCTION, builder.ptrtoint(loop, word))
            box.write(DATA, builder.ptrtoint(data, word))
            box.write(STATE, word(OFFERED))
        builder.call(loop, [builder.bitcast(data, cgutils.voidptr_t)])
        with cgutils.for_range(builder, count) as each:
            box = mail(each.index)
            with builder.if_then(builder.not_(box.change(OFFERED, IDLE))):
                _wait(builder, word, box, let_others)
        return builder.load(builder.gep(data, [ir.IntType(32)(0), ir.IntType(32)(3)]))

    return types.intp(address, mailboxes, let_others, parts, arguments), emit


def _wait(builder: Any, word: Any, box: _Mailbox, let_others: Any) -> None:
    """Until the thread has finished its part; when that takes long, its turn on the processor comes first."""
    looks = cgutils.alloca_once_value(builder, word(0))
    check, body, end = (builder.append_basic_block(f"wait.{name}") for name in ("check", "body", "end"))
    builder.branch(check)
    builder.position_at_end(check)
    builder.cbranch(builder.icmp_signed("==", box.read(STATE), word(IDLE)), end, body)
    builder.position_at_end(body)
    seen = builder.add(builder.load(looks), word(1))
    builder.store(seen, looks)
    long = builder.and_(builder.icmp_signed(">", seen, word(PATIENCE)), builder.icmp_signed("!=", let_others, word(0)))
    with builder.if_then(long):
        builder.call(_function(builder, let_others, []), [])
    builder.branch(check)
    builder.position_at_end(end)


def _loop(context: Any, module: Any, kinds: tuple[Any, ...], data: Any) -> Any:
    """f(data): calls the part for the next number until none is left."""
    word = context.get_value_type(types.intp)
    loop = ir.Function(module, ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t]), name=module.get_unique_name("parts"))
    loop.linkage = "internal"
    builder = ir.IRBuilder(loop.append_basic_block())
    pointer = builder.bitcast(loop.args[0], data)
    address, parts, _, _, arguments = cgutils.unpack_tuple(builder, builder.load(pointer))
    kinds = (types.intp, types.intp, *kinds)
    function = builder.inttoptr(address, context.call_conv.get_function_type(types.none, kinds).as_pointer())
    values = cgutils.unpack_tuple(builder, arguments)
    taken, failed = (builder.gep(pointer, [ir.IntType(32)(0), ir.IntType(32)(place)]) for place in (2, 3))
    check, body, end = (builder.append_basic_block(name) for name in ("check", "body", "end"))
    builder.branch(check)
    builder.position_at_end(check)
    part = builder.atomic_rmw("add", taken, word(1), "acq_rel")
    builder.cbranch(builder.icmp_signed("<", part, parts), body, end)
    builder.position_at_end(body)
    status, _ = context.call_conv.call_function(builder, function, types.none, kinds, (part, parts, *values))
    with builder.if_then(status.is_error):
        builder.store_atomic(builder.add(part, word(1)), failed, "monotonic", word.width // 8)
    builder.branch(check)
    builder.position_at_end(end)
    builder.ret_void()
    return loop


helped: Any = intrinsic(_helped)
spread: Any = intrinsic(_spread)


def _watch(mailbox: Any, vigilance: int) -> None:
    """Help with what comes, until nothing has come for so many looks."""
    looks = 0
    while looks < vigilance:
        looks = 0 if helped(mailbox) else looks + 1


@functools.cache
def _watch_for() -> Any:
    return jit.build(_watch, (types.Array(types.intp, 1, "C"), types.intp))


def _launch(address: int, mailboxes: Any, let_others: int, parts: int, arguments: Any) -> int:
    failed: int = spread(address, mailboxes, let_others, parts, arguments)
    return failed


@functools.cache
def _launch_for(kinds: tuple[Any, ...]) -> Any:
    words = types.Array(types.intp, 1, "C")
    return jit.build(_launch, (types.intp, words, types.intp, types.intp, types.Tuple.from_types(kinds)))
