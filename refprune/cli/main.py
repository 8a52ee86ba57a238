"""The command line: `refprune COMMAND`. What a user can mend is one sentence, exit code 2."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence

from .. import __version__
from ..errors import InputError
from . import audit, bench, data, export, run, sweep, trained, verify, warmup, zoo

COMMANDS = (run, sweep, data, zoo, export, warmup, trained, bench, audit, verify)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command in `arguments` (default: the process's); returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without ≡ shows ?
    options = parser().parse_args(arguments)
    try:
        code: int = options.command(options)
        sys.stdout.flush()
    except InputError as error:
        print(f"refprune: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        print(f"refprune: {error.filename or 'the system'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"refprune: not enough memory ({error})", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("refprune: interrupted; a run goes on with --resume DIR, a sweep with the same command", file=sys.stderr)
        return 130
    return code


def parser() -> argparse.ArgumentParser:
    """The parser of every command."""
    whole = argparse.ArgumentParser("refprune", description="Concurrent training and pruning of neural networks, in NumPy.")
    whole.add_argument("--version", action="version", version=f"refprune {__version__}")
    commands = whole.add_subparsers(required=True, metavar="command")
    for command in COMMANDS:
        command.add(commands)
    return whole
