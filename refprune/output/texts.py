"""Text files that people write or damage: TOML and JSON are read here, and what is wrong with them becomes one sentence."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from ..errors import InputError

#: Bytes of the largest text that is read.
LARGEST = 1 << 28


def read_text(path: Path) -> str:
    """The text of a regular file in UTF-8, a byte order mark left out. InputError for anything else."""
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: is no regular file")
        if path.stat().st_size > LARGEST:
            raise InputError(f"{path}: has {path.stat().st_size:,} bytes; at most {LARGEST:,} are read")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error


def read_json(path: Path) -> Any:
    """What a JSON file holds. InputError names the file and the place."""
    return parse_json(read_text(path), str(path))


def parse_json(text: str, where: str) -> Any:
    """What the text holds; `where` begins the sentence of the InputError."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not valid JSON ({error})") from error
    except RecursionError as error:
        raise InputError(f"{where}: not valid JSON (brackets too deep in each other)") from error
    except ValueError as error:
        raise InputError(f"{where}: not valid JSON (a number of too many digits: {error})") from error


def read_toml(path: Path) -> dict[str, Any]:
    """What a TOML file holds. InputError names the file and the place."""
    return parse_toml(read_text(path), str(path))


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """What the text holds; `where` begins the sentence of the InputError."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{where}: not valid TOML: {error}") from error
    except RecursionError as error:
        raise InputError(f"{where}: not valid TOML: brackets too deep in each other") from error
    except ValueError as error:
        raise InputError(f"{where}: not valid TOML: a number of too many digits ({error})") from error
