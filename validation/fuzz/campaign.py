"""Reading damaged files in processes of their own, with limits of time and memory; a case is repeated by its number."""

from __future__ import annotations

import json
import mmap
import os
import resource
import signal
import struct
import tempfile
import time
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from refprune.errors import InputError

from .mutations import mutated
from .seeds import Reader

#: Seconds for one case, bytes of address space beyond what the process has when it begins, cases of one process.
SECONDS, MEMORY, BATCH = 60, 2 << 30, 2000


@dataclass
class Result:
    """Of one reader. problems: the numbers of cases that ended otherwise than in a value or an InputError, and how."""

    cases: int = 0
    values: int = 0
    refused: int = 0
    problems: list[tuple[int, str]] = field(default_factory=list)
    slowest: float = 0.0
    peak: int = 0


def damaged(name: str, reader: Reader, number: int, seed: int) -> bytes:
    """The file of one case."""
    return mutated(reader.seeds, Random(f"{seed}/{name}/{number}"))


def run(name: str, reader: Reader, cases: int, seed: int = 0, first: int = 0) -> Result:
    """So many cases of one reader, from the number `first` on."""
    result, number = Result(), first
    while number < first + cases:
        number = _batch(name, reader, number, min(BATCH, first + cases - number), seed, result)
    return result


def _batch(name: str, reader: Reader, first: int, cases: int, seed: int, result: Result) -> int:
    """Cases in a child; the number that comes next. A child that hangs or dies has its case recorded."""
    counter = mmap.mmap(-1, 8)
    with tempfile.TemporaryDirectory() as place:
        report = Path(place) / "report"
        child = os.fork()
        if child == 0:
            _child(name, reader, range(first, first + cases), seed, Path(place), report, counter)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
            at, told = first + cases, json.loads(report.read_text())
        else:
            at = struct.unpack("<q", counter[:8])[0]
            ended = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"
            kind = f"no end within {SECONDS} s" if ended == "SIGALRM" else f"the process ended by {ended}"
            result.problems.append((at, kind))
            result.cases += 1
            told = json.loads(report.read_text()) if report.exists() else None
            at += 1
    if told is not None:
        _add(result, told)
    return at


def _add(result: Result, told: dict[str, object]) -> None:
    for name in ("cases", "values", "refused"):
        setattr(result, name, getattr(result, name) + told[name])
    result.problems += [(number, what) for number, what in told["problems"]]  # type: ignore[union-attr, misc]
    result.slowest, result.peak = max(result.slowest, told["slowest"]), max(result.peak, told["peak"])  # type: ignore[type-var]


def _child(name: str, reader: Reader, numbers: range, seed: int, place: Path, report: Path, counter: mmap.mmap) -> None:
    """Never returns."""
    try:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        warnings.simplefilter("ignore")
        folder = place / "files"
        folder.mkdir()
        for other, content in reader.beside.items():
            (folder / other).write_bytes(content)
        result = Result()
        for number in numbers:
            counter[:8] = struct.pack("<q", number)
            (folder / reader.name).write_bytes(damaged(name, reader, number, seed))
            signal.alarm(SECONDS)
            _case(reader, folder / reader.name, number, result)
            signal.alarm(0)
            report.write_text(json.dumps(vars(result)))  # the next one may end the process
        result.peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        report.write_text(json.dumps(vars(result)))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _case(reader: Reader, path: Path, number: int, result: Result) -> None:
    started = time.monotonic()
    result.cases += 1
    try:
        reader.read(path)
        result.values += 1
    except InputError:
        result.refused += 1
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}, line {last.lineno}"
        result.problems.append((number, f"{type(error).__name__}: {str(error)[:100]} ({where})"))
    result.slowest = max(result.slowest, time.monotonic() - started)
