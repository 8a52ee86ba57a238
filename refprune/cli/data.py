"""`refprune data list`, `fetch`, `verify`: the image sets."""

from __future__ import annotations

import argparse
import sys
from typing import Any


def add(commands: Any) -> None:
    """Add the parser to argparse's `commands`."""
    data = commands.add_parser("data", help="list, fetch and verify data sets")
    actions = data.add_subparsers(required=True, metavar="action")
    listing = actions.add_parser("list", help="which sets are known, which are there")
    fetch = actions.add_parser("fetch", help="download a set; every byte is checked before use")
    fetch.add_argument("name")
    fetch.add_argument("--mirror", metavar="URL", action="append", help="base URL to use instead of the known mirrors")
    verify = actions.add_parser("verify", help="compare the files of a set with their SHA-256")
    verify.add_argument("name")
    for action, command in ((listing, _data_list), (fetch, _data_fetch), (verify, _data_verify)):
        action.add_argument("--data-dir", metavar="DIR")
        action.set_defaults(command=command)


def _data_list(options: argparse.Namespace) -> int:
    from ..data import fetch, sets
    from ..output import tables

    folder = sets.data_directory(options.data_dir)
    table = [("name", "state", "MB", "what")]
    table += [(s.name, s.status, f"{s.bytes / 1e6:.1f}", s.title) for s in fetch.available(folder)]
    others = ", ".join(name for name in sets.NAMES if name not in {row[0] for row in table})
    print(f"folder: {folder}\n\n{tables.text_table(table)}\n\nalso read where their files lie there: {others}")
    return 0


def _data_fetch(options: argparse.Namespace) -> int:
    from ..data import fetch, sets

    def show(file: str, done: int, size: int) -> None:
        if sys.stdout.isatty():
            print(f"\r{file}: {done / 1e6:.1f} of {size / 1e6:.1f} MB", end="\n" if done == size else "", flush=True)

    folder = fetch.fetch(options.name, sets.data_directory(options.data_dir), options.mirror, show)
    print(f"{options.name}: complete and verified in {folder}")
    return 0


def _data_verify(options: argparse.Namespace) -> int:
    from ..data import fetch, sets

    results = fetch.verify(options.name, sets.data_directory(options.data_dir))
    for file in results:
        print(f"{file.status:12} {file.path}  {file.detail}")
    return 0 if all(file.status in ("ok", "unchecked") for file in results) else 2
