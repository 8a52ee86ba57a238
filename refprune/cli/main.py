"""The command line: `refprune COMMAND`. What a user can mend is one sentence, exit code 2."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import traceback
from collections.abc import Sequence

from .. import __version__
from ..errors import InputError
from . import audit, bench, data, export, run, sweep, trained, verify, warmup, zoo
from .options import check_empty

COMMANDS = (run, sweep, data, zoo, export, warmup, trained, bench, audit, verify)


#: Exit code of a mistake in refprune itself, so that none looks like a verdict (EX_SOFTWARE of sysexits.h).
OURS = 70


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command in `arguments` (default: the process's); returns the exit code."""
    _stand_in_for_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without ≡ shows ?
    try:
        code = _code(parser().parse_args(arguments))
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has gone
        code = 141
    except OSError as error:
        code = _said(f"{error.filename or 'the output'}: {error.strerror or error}", 2)
    finally:
        _drop_what_nobody_takes()
    return code


def _code(options: argparse.Namespace) -> int:
    """The exit code of the command; what a user can mend is one sentence, a mistake of refprune's is told as such."""
    try:
        check_empty(options)
        code: int = options.command(options)
    except InputError as error:
        return _said(str(error), 2)
    except OSError:
        raise
    except MemoryError as error:
        return _said(f"not enough memory ({error})", 2)
    except KeyboardInterrupt as error:
        return _said("; ".join(["interrupted", *map(str, error.args)]), 130)
    except Exception:
        traceback.print_exc()
        return _said("a mistake of refprune's own, not of the input; please report it with the lines above", OURS)
    return code


def _said(sentence: str, code: int) -> int:
    with contextlib.suppress(OSError):  # nobody takes it
        print(f"refprune: {sentence}", file=sys.stderr, flush=True)
    return code


def _stand_in_for_closed_streams() -> None:
    """Where the shell closed a standard stream (`>&-`), /dev/null takes its number before a file of ours does."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)  # for the processes that commands start
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


def _drop_what_nobody_takes() -> None:
    """Python writes out what is left in its streams when it ends: a failure there would change the exit code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def parser() -> argparse.ArgumentParser:
    """The parser of every command."""
    whole = argparse.ArgumentParser("refprune", description="Concurrent training and pruning of neural networks, in NumPy.")
    whole.add_argument("--version", action="version", version=f"refprune {__version__}")
    commands = whole.add_subparsers(required=True, metavar="command")
    for command in COMMANDS:
        command.add(commands)
    return whole
