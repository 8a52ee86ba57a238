"""The experiments that have names: their TOML files beside this module."""

from __future__ import annotations

import difflib
from importlib import resources

from ..errors import InputError


def experiments() -> list[str]:
    """Names of the experiments that `refprune run NAME` knows."""
    folder = resources.files("refprune.training").joinpath("presets")
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def experiment_text(name: str) -> str:
    """The TOML text of a named experiment. InputError lists the known ones."""
    if name not in experiments():
        near = difflib.get_close_matches(name, experiments(), n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise InputError(f"experiment: {name!r} is neither a file nor a known name{hint}; known are {', '.join(experiments())}")
    return resources.files("refprune.training").joinpath("presets", f"{name}.toml").read_text(encoding="utf-8")
