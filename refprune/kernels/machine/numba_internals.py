"""What the kernels use of Numba that Numba does not document, in one place: machine code on disk, and its address for threads.

Tested with the versions in `TESTED`. Where another version lacks one of these names, `missing` says so in one sentence, and
the kernels do without: they are compiled anew in every process and run in one thread, with the same results.
"""

from __future__ import annotations

import functools
import operator
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numba
from llvmlite import binding
from numba.core import caching, codegen, compiler, funcdesc, registry, serialize
from numba.extending import intrinsic

TESTED = ("0.61.0", "0.68.1")

#: A dispatcher's cache that never has anything; where Numba has no such class, nothing asks for a cache either.
NullCache: Any = getattr(caching, "NullCache", object)


@intrinsic
def _some_intrinsic(typing_context: Any) -> Any:
    return numba.types.void(), lambda context, builder, signature, args: context.get_dummy_value()


def _some_function() -> None:
    """Never compiled."""


#: Where each name is looked for: (what has it, its name there).
_USED: tuple[tuple[Any, str], ...] = (
    (caching, "NullCache"),
    (serialize, "dumps"),
    (compiler, "CompileResult._reduce"),
    (compiler, "CompileResult._rebuild"),
    (codegen, "JITCodeLibrary.get_pointer_to_function"),
    (codegen, "JITCodeLibrary.has_dynamic_globals"),
    (funcdesc, "FunctionDescriptor.llvm_func_name"),
    (registry, "cpu_target.target_context"),
    (_some_intrinsic, "_defn"),
    (numba.njit(_some_function), "_cache"),
    (numba.njit(_some_function), "overloads"),
)


@functools.cache
def missing() -> str | None:
    """A sentence with the names that this version of Numba lacks; None if it has all. Warns once (RuntimeWarning)."""
    absent = [name for holder, name in _USED if not _has(holder, name)]
    if not absent or vars(numba.config)["DISABLE_JIT"]:  # then nothing is compiled
        return None
    sentence = (
        f"numba {numba.__version__} has no {', '.join(absent)} (tested: {', '.join(TESTED)}): "
        "kernels are compiled in every process and run in one thread"
    )
    warnings.warn(sentence, RuntimeWarning, stacklevel=2)
    return sentence


def _has(holder: Any, name: str) -> bool:
    try:
        operator.attrgetter(name)(holder)
    except AttributeError:
        return False
    return True


def target() -> tuple[str, str, str]:
    """Triple, processor and features (+a,-b,…) that Numba compiles for: this machine's, or what its variables say."""
    try:
        triple, processor, features = registry.cpu_target.target_context.codegen().magic_tuple()
    except AttributeError:
        triple, processor = binding.get_process_triple(), binding.get_host_cpu_name()
        features = binding.get_host_cpu_features().flatten()
    return triple, processor, features


def use_cache(dispatcher: Any, cache: Any) -> None:
    """`cache` is asked before the dispatcher compiles, and told what it has compiled; as Numba's own `enable_caching` does."""
    dispatcher._cache = cache


def to_bytes(result: Any) -> bytes | None:
    """A compiled function for the disk; None if its machine code holds addresses of this process."""
    content: bytes | None = None if result.library.has_dynamic_globals else serialize.dumps(result._reduce())
    return content


def from_bytes(context: Any, content: bytes) -> Any:
    """The compiled function that `to_bytes` was given, perhaps in another process."""
    return compiler.CompileResult._rebuild(context, *pickle.loads(content))


def address(dispatcher: Any) -> int:
    """Where the machine code of a dispatcher's only signature starts."""
    (compiled,) = dispatcher.overloads.values()
    start: int = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
    return start


def python_function(value: Any) -> Callable[..., Any] | Any:
    """The Python function of a dispatcher or of an intrinsic; anything else as it is."""
    return getattr(value, "py_func", getattr(value, "_defn", value))
