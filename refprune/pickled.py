"""Pickles of others, read without running anything: a machine of its own for the opcodes, which calls only what it is given.

A class or function that nobody has given a maker for becomes a `Stranger`. A stranger can be called, filled and passed on, and
nothing happens. Memory and time are bounded by the size of the file and by `MOST_STEPS`.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Mapping
from typing import Any

#: Opcodes of one pickle: a batch of CIFAR-100 has 160,000.
MOST_STEPS = 2_000_000

Maker = Callable[..., Any]


class Refused(ValueError):
    """A pickle that is damaged, or asks for more than data."""


class Stranger:
    """Stands for what an unknown name makes. name: "module.name"."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


def load(
    file: io.BytesIO,
    makers: Mapping[str, Maker],
    persistent: Callable[[Any], Any] | None = None,
    *,
    strict: bool = False,
    text: bool = True,
) -> Any:
    """The value of the pickle that begins where `file` stands; the file stands behind it then.

    makers: "module.name" → what is called in its place.
    persistent: makes what stands outside of the pickle, from its identifier.
    strict: refuse every name without a maker.
    text: strings of Python 2 become texts, else bytes.

    Refused for what is no pickle, or none of data alone.
    """
    machine = _Machine(makers, persistent, strict, text)
    try:
        for step, (opcode, argument, position) in enumerate(pickletools.genops(file)):
            if step >= MOST_STEPS:
                raise Refused(f"has more than {MOST_STEPS:,} opcodes")
            if opcode.name == "STOP":
                return machine.pop()
            run = getattr(machine, f"op_{opcode.name.lower()}", None)
            if run is None:
                raise Refused(f"refused: opcode {opcode.name} at byte {position} has no place in a file of data")
            run(argument)
    except Refused:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise Refused(f"damaged near byte {file.tell()} ({type(error).__name__}: {error})") from error
    raise Refused("ends before its last opcode")


class _Machine:
    """The stack machine of `pickle`, a method an opcode."""

    def __init__(self, makers: Mapping[str, Maker], persistent: Callable[[Any], Any] | None, strict: bool, text: bool) -> None:
        self.makers, self.persistent, self.strict, self.text = makers, persistent, strict, text
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def pop(self) -> Any:
        if not self.stack or (self.marks and len(self.stack) <= self.marks[-1]):
            raise Refused("takes more from the stack than is on it")
        return self.stack.pop()

    def popped(self) -> list[Any]:
        """What lies above the last mark."""
        start = self.marks.pop()
        found = self.stack[start:]
        del self.stack[start:]
        return found

    # Values

    def push(self, argument: Any) -> None:
        self.stack.append(argument)

    op_int = op_binint = op_binint1 = op_binint2 = op_long = op_long1 = op_long4 = op_float = op_binfloat = push
    op_unicode = op_binunicode = op_short_binunicode = op_binunicode8 = push
    op_binbytes = op_short_binbytes = op_binbytes8 = op_bytearray8 = push

    def op_binstring(self, argument: str) -> None:
        self.stack.append(argument if self.text else argument.encode("latin-1"))

    op_string = op_short_binstring = op_binstring

    def op_none(self, _: Any) -> None:
        self.stack.append(None)

    def op_newtrue(self, _: Any) -> None:
        self.stack.append(True)

    def op_newfalse(self, _: Any) -> None:
        self.stack.append(False)

    # Containers

    def op_mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def op_empty_list(self, _: Any) -> None:
        self.stack.append([])

    def op_empty_dict(self, _: Any) -> None:
        self.stack.append({})

    def op_empty_tuple(self, _: Any) -> None:
        self.stack.append(())

    def op_empty_set(self, _: Any) -> None:
        self.stack.append([])

    def op_list(self, _: Any) -> None:
        self.stack.append(self.popped())

    op_frozenset = op_list

    def op_tuple(self, _: Any) -> None:
        self.stack.append(tuple(self.popped()))

    def op_tuple1(self, _: Any) -> None:
        self.stack.append((self.pop(),))

    def op_tuple2(self, _: Any) -> None:
        second = self.pop()
        self.stack.append((self.pop(), second))

    def op_tuple3(self, _: Any) -> None:
        third, second = self.pop(), self.pop()
        self.stack.append((self.pop(), second, third))

    def op_dict(self, _: Any) -> None:
        items = self.popped()
        self.stack.append({})
        self.put(items)

    def put(self, items: list[Any]) -> None:
        """Keys and values by turns into what is on the stack. A tuple as key could take for ever to be hashed."""
        target = self.stack[-1]
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | bytes | int | float | type(None)):
                raise Refused(f"has a {type(key).__name__} as the key of a dict")
            if isinstance(target, dict):
                target[key] = value
            elif not isinstance(target, Stranger):
                raise Refused(f"puts keys into a {type(target).__name__}")

    def op_setitem(self, _: Any) -> None:
        value = self.pop()
        self.put([self.pop(), value])

    def op_setitems(self, _: Any) -> None:
        self.put(self.popped())

    def add(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Stranger):
            raise Refused(f"appends to a {type(target).__name__}")

    def op_append(self, _: Any) -> None:
        self.add([self.pop()])

    def op_appends(self, _: Any) -> None:
        self.add(self.popped())

    op_additems = op_appends

    # The stack and the memo

    def op_pop(self, _: Any) -> None:
        self.pop()

    def op_pop_mark(self, _: Any) -> None:
        self.popped()

    def op_dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def op_get(self, argument: Any) -> None:
        self.stack.append(self.memo[int(argument)])

    op_binget = op_long_binget = op_get

    def op_put(self, argument: Any) -> None:
        self.memo[int(argument)] = self.stack[-1]

    op_binput = op_long_binput = op_put

    def op_memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def nothing(self, _: Any) -> None:
        """What frames and versions say is not needed."""

    op_proto = op_frame = nothing

    # Names and calls

    def named(self, name: str) -> Any:
        if name not in self.makers and self.strict:
            raise Refused(f"refused: the pickle names {name}; allowed are {', '.join(self.makers)}")
        return self.makers.get(name) or Stranger(name)

    def op_global(self, argument: str) -> None:
        self.stack.append(self.named(argument.replace(" ", ".")))

    def op_stack_global(self, _: Any) -> None:
        name = self.pop()
        self.stack.append(self.named(f"{self.pop()}.{name}"))

    def called(self, made: Any, arguments: Any) -> Any:
        if isinstance(made, Stranger):
            return Stranger(made.name)
        if made not in self.makers.values() or not isinstance(arguments, tuple):
            raise Refused(f"calls a {type(made).__name__}")
        return made(*arguments)

    def op_reduce(self, _: Any) -> None:
        arguments = self.pop()
        self.stack.append(self.called(self.pop(), arguments))

    op_newobj = op_reduce

    def op_newobj_ex(self, _: Any) -> None:
        self.pop()
        self.op_reduce(None)

    def op_obj(self, _: Any) -> None:
        made, *arguments = self.popped()
        self.stack.append(self.called(made, tuple(arguments)))

    def op_inst(self, argument: str) -> None:
        self.stack.append(self.called(self.named(argument.replace(" ", ".")), tuple(self.popped())))

    def op_build(self, _: Any) -> None:
        """State for what a maker has made, if it takes any (`fill`); attributes of dicts and strangers are nothing to us."""
        state = self.pop()
        if hasattr(self.stack[-1], "fill"):
            self.stack[-1].fill(state)

    def op_binpersid(self, _: Any) -> None:
        if self.persistent is None:
            raise Refused("refused: the pickle names something outside of it")
        self.stack.append(self.persistent(self.pop()))


def ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    """The maker of collections.OrderedDict. Python 2 gave the pairs at once."""
    made: dict[Any, Any] = {}
    for key, value in pairs:
        if not isinstance(key, str | bytes | int):
            raise Refused(f"has a {type(key).__name__} as the key of a dict")
        made[key] = value
    return made
