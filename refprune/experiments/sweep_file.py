"""The file of a sweep: settings and seeds of one experiment, and the runs that they make."""

from __future__ import annotations

import dataclasses
import itertools
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError
from ..output.texts import parse_toml, read_toml
from ..training import config
from ..training.config import Config

KEYS = ("name", "experiment", "seeds", "set", "grid", "variants")
VARIANT_KEYS = ("name", "seeds", "group")
#: Bytes of a folder's name, and how those do not end: the sweep's own files do.
LONGEST_FOLDER, RESERVED = 200, (".json", ".html", ".svg", ".part")


class Setting(NamedTuple):
    """label: what differs from the other settings. group: those shown together. values: keys of the experiment. configs: one a
    seed."""

    label: str
    group: str
    values: dict[str, Any]
    seeds: tuple[int, ...]
    configs: tuple[Config, ...]


@dataclass(frozen=True)
class Sweep:
    """A sweep as its file says it, every setting checked."""

    name: str
    experiment: str
    settings: tuple[Setting, ...]


@dataclass(frozen=True)
class Job:
    """One run, picklable: the experiment as TOML, its directory, where the data are, its threads."""

    label: str
    seed: int
    directory: str
    configuration: str
    data_directory: str | None
    threads: int

    @property
    def config(self) -> Config:
        """The experiment."""
        return config.from_dict(parse_toml(self.configuration, "configuration"))


# --------------------------------------------------------------------------------------------------------------------
# The file


def load_sweep(path: Path) -> Sweep:
    """The sweep in a TOML file. InputError names the key that is wrong; every run's configuration is checked."""
    values = read_toml(path)
    unknown = sorted(set(values) - set(KEYS))
    if unknown:
        raise InputError(f"{path}: unknown key {unknown[0]} (known: {', '.join(KEYS)})")
    name, source = values.get("name", path.stem), values.get("experiment")
    if not isinstance(source, str) or not isinstance(name, str):
        raise InputError(f"{path}: name and experiment must be strings, got {name!r} and {source!r}")
    of_all = _seeds(values, [0], str(path))
    if source.endswith(".toml"):
        source = str(path.parent / source)
    base = _flat(values.get("set", {}), f"{path}: set")
    settings: list[Setting] = []
    for label, variant, changes in _combinations(values, path):
        chosen, seeds = base | changes, _seeds(variant, of_all, f"{path}: {label}")
        try:
            first = config.load(source, values=chosen | {"seed": seeds[0]})
        except InputError as error:
            raise InputError(f"{path}: {label}: {error}") from error
        configs = tuple(dataclasses.replace(first, seed=seed) for seed in seeds)
        settings.append(Setting(label, variant.get("group", variant.get("name", "")), chosen, tuple(seeds), configs))
    _check_folders(path, [setting.label for setting in settings])
    return Sweep(name, source, tuple(settings))


def _check_folders(path: Path, labels: Sequence[str]) -> None:
    """Every setting has a folder of its own, also where a file system takes upper and lower case for the same."""
    settings: dict[str, str] = {}
    for label in labels:
        folder = _folder(label)
        if len(folder) > LONGEST_FOLDER:
            raise InputError(f"{path}: {label[:40]!r}… is too long for a folder's name; name variants instead")
        if not re.search(r"\w", folder) or folder.casefold().endswith(RESERVED):
            raise InputError(
                f"{path}: {label!r} is no name for a setting (its folder would be {folder!r}); name variants instead"
            )
        other = settings.setdefault(folder.casefold(), label)
        if other != label or labels.count(label) > 1:
            raise InputError(f"{path}: {label!r} is no name of its own for a setting; {other!r} has the folder {folder!r}, too")


def _seeds(table: Mapping[str, Any], default: list[int], where: str) -> list[int]:
    seeds = table.get("seeds", default)
    numbers = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not numbers or not 0 < len(set(seeds)) == len(seeds):
        raise InputError(f"{where}: seeds must be a list of different integers of at least 0, got {seeds!r}")
    return list(seeds)


def _combinations(values: Mapping[str, Any], path: Path) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(label, the variant's own keys, changes) of every variant with every combination of the grid."""
    grid = _flat(values.get("grid", {}), f"{path}: grid")
    for key, choices in grid.items():
        if not isinstance(choices, list) or not choices:
            raise InputError(f"{path}: grid.{key} must be a list of values, got {choices!r}")
        if any(one == other for one, other in itertools.combinations(choices, 2)):
            raise InputError(f"{path}: grid.{key} has a value twice, got {choices!r}")
    entries = values.get("variants", [{}])
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path}: variants must be tables, got {entries!r}")
    variants: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for entry in entries:
        if not isinstance(entry, dict) or (entry and not isinstance(entry.get("name"), str)):
            raise InputError(f"{path}: each of the variants needs a name, got {entry!r}")
        if not isinstance(entry.get("group", ""), str):
            raise InputError(f"{path}: {entry['name']}: group must be a string, got {entry['group']!r}")
        own = {key: value for key, value in entry.items() if key in VARIANT_KEYS}
        variants.append((own, _flat({k: v for k, v in entry.items() if k not in own}, f"{path}: variants")))
    _check_keys(path, _flat(values.get("set", {}), f"{path}: set"), grid, [changes for _, changes in variants])
    last = [key.rpartition(".")[2] for key in grid]
    titles = {key: short if last.count(short) == 1 else key for key, short in zip(grid, last, strict=True)}
    found = []
    for (own, changes), choice in itertools.product(variants, itertools.product(*grid.values())):
        at = dict(zip(grid, choice, strict=True))
        words = [own.get("name", ""), *(f"{titles[key]} {_short(value)}" for key, value in at.items())]
        found.append((", ".join(filter(None, words)) or "as it is", own, changes | at))
    return found


def _check_keys(path: Path, base: Mapping[str, Any], grid: Mapping[str, Any], variants: Sequence[Mapping[str, Any]]) -> None:
    """Nothing is set twice, and the seed by `seeds` alone."""
    for changes in variants:
        twice = sorted((set(base) & set(grid)) | (set(changes) & (set(base) | set(grid))))
        if twice:
            raise InputError(f"{path}: {twice[0]} is set in more than one of set, grid and variants")
    if any("seed" in keys for keys in (base, grid, *variants)):
        raise InputError(f"{path}: seed is set by seeds = [...]")


def _short(value: Any) -> str:
    return ("+".join(map(str, value)) or "none") if isinstance(value, list) else str(value)


def _flat(table: Any, where: str, prefix: str = "") -> dict[str, Any]:
    """{"a.b": value} of nested tables."""
    if not isinstance(table, Mapping):
        raise InputError(f"{where} must be a table, got {table!r}")
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, where, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


# --------------------------------------------------------------------------------------------------------------------
# Running


def jobs(sweep: Sweep, directory: Path, *, data_directory: str | None = None, threads: int = 1) -> list[Job]:
    """Every run of the sweep, all settings of the first seed before the second, so that a stopped sweep shows all settings."""
    data = None if data_directory is None else str(Path(data_directory).absolute())
    found = []
    for round_ in range(max(len(setting.seeds) for setting in sweep.settings)):
        for setting in sweep.settings:
            if round_ < len(setting.seeds):
                seed = setting.seeds[round_]
                folder = run_directory(directory, setting.label, seed).absolute()
                text = config.to_toml(setting.configs[round_])
                found.append(Job(setting.label, seed, str(folder), text, data, threads))
    return found


def run_directory(directory: Path, label: str, seed: int) -> Path:
    """Where in the sweep's directory the run of a setting stands."""
    return directory / _folder(label) / f"seed-{seed}"


def _folder(label: str) -> str:
    """The label in ASCII: Greek letters by their names (ν → nu), accents left out, all else a dash, none at the ends."""
    plain = "".join(map(_ascii, unicodedata.normalize("NFKD", label)))
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", plain).strip("-")


def _ascii(character: str) -> str:
    """The name of a Greek letter; nothing for a combining accent; any other character as it is."""
    if unicodedata.combining(character):
        return ""
    name = unicodedata.name(character, "")
    if not name.startswith("GREEK") or " LETTER " not in name:
        return character
    letter = name.rpartition(" ")[2].replace("LAMDA", "LAMBDA")
    return letter.capitalize() if character.isupper() else letter.lower()
