"""The command that installs an extra, as it works where refprune runs from: a clone, or an installed package."""

from __future__ import annotations

from pathlib import Path

#: The folder above the package: of a clone it holds pyproject.toml.
ABOVE = Path(__file__).resolve().parents[2]


def command(extra: str) -> str:
    """`pip install` with this extra."""
    if (ABOVE / "pyproject.toml").is_file():
        return f"pip install -e '{ABOVE if Path.cwd() != ABOVE else '.'}[{extra}]'"
    return f"pip install 'refprune[{extra}]'"
