"""What is kept of a sweep's runs: NAME.csv beside NAME.toml, one row a setting, seed and network.

A row belongs to a planned run if it has the SHA-256 of the run's configuration. The run then counts as done on any machine.
"""

from __future__ import annotations

import csv
import datetime
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from ..output.files import write_atomically
from ..output.texts import read_json
from ..training.config import Config
from .config_digest import config_digest
from .sweep_results import QUANTITIES, Outcome

#: The columns of NAME.csv, in their order.
COLUMNS = ("setting", "network", "seed", *QUANTITIES, "config_sha256", "code_sha256", "machine", "date")

#: The training runs that a run may consist of.
NETWORKS = ("pruned", "trained", "unpruned", "from-scratch")


class Row(NamedTuple):
    """One training run. values: its QUANTITIES. code_sha256: of refprune's sources, empty where the run did not write it down.

    machine: a short name, as the ledger has it. date: the day on which the run ended.
    """

    setting: str
    network: str
    seed: int
    values: Mapping[str, float]
    config_sha256: str
    code_sha256: str
    machine: str
    date: datetime.date


# --------------------------------------------------------------------------------------------------------------------
# Reading


def rows_file(study: Path) -> Path:
    """Where the rows of the sweep in the file `study` stand."""
    return study.with_suffix(".csv")


def read_rows(path: Path) -> list[Row]:
    """The rows of the file, none if it is not there. InputError names file, line and column of what is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        _check_head(path, next(reader, []))
        rows: list[Row] = []
        there: dict[tuple[str, str, int], int] = {}
        for cells in reader:
            row = _row(path, reader.line_num, cells)
            first = there.setdefault((row.setting, row.network, row.seed), reader.line_num)
            if first != reader.line_num:
                run = f"{row.setting!r}, {row.network}, seed {row.seed}"
                raise _damage(path, reader.line_num, "setting", f"{run} stands in line {first}, too")
            rows.append(row)
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: is no CSV ({error})") from error
    return rows


def _check_head(path: Path, head: Sequence[str]) -> None:
    for column in COLUMNS:
        if column not in head:
            raise InputError(f"{path}, line 1, column {column}: is missing; the columns are {', '.join(COLUMNS)}")
    for column, expected in zip(head, (*COLUMNS, *[None] * len(head)), strict=False):
        if column != expected:
            raise InputError(f"{path}, line 1, column {column}: is not known here; the columns are {', '.join(COLUMNS)}")


def _damage(path: Path, line: int, column: str, problem: str) -> InputError:
    return InputError(f"{path}, line {line}, column {column}: {problem}")


def _row(path: Path, line: int, cells: Sequence[str]) -> Row:
    """The row of these cells, in the order of COLUMNS."""
    if len(cells) < len(COLUMNS):
        raise _damage(path, line, COLUMNS[len(cells)], f"is missing: the line has {len(cells)} of {len(COLUMNS)} cells")
    if len(cells) > len(COLUMNS):
        raise _damage(path, line, COLUMNS[-1], f"is not the last: the line has {len(cells)} cells, {len(COLUMNS)} are allowed")
    found = dict(zip(COLUMNS, cells, strict=True))

    def need(column: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise _damage(path, line, column, f"must be {allowed}, got {found[column]!r}")

    need("setting", bool(found["setting"]), "the label of a setting")
    need("network", found["network"] in NETWORKS, f"one of {', '.join(NETWORKS)}")
    need("seed", re.fullmatch(r"\d+", found["seed"]) is not None, "a whole number")
    values = {}
    for quantity in QUANTITIES:
        number = _number(found[quantity])
        need(quantity, math.isfinite(number), "a finite number")
        values[quantity] = number
    digest = re.compile(r"[0-9a-f]{64}")
    need("config_sha256", digest.fullmatch(found["config_sha256"]) is not None, "64 hexadecimal digits")
    need("code_sha256", digest.fullmatch(found["code_sha256"] or "0" * 64) is not None, "64 hexadecimal digits or empty")
    need("machine", bool(found["machine"].strip()), "the name of a machine")
    date = _date(found["date"])
    need("date", date is not None, "a day, as in 2026-11-30")
    assert date is not None
    head = (found["setting"], found["network"], int(found["seed"]))
    return Row(*head, values, found["config_sha256"], found["code_sha256"], found["machine"], date)


def _number(text: str) -> float:
    """NaN for what is no number."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _date(text: str) -> datetime.date | None:
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        return None


def runs_kept(path: Path, rows: Iterable[Row], label: str, experiment: Config) -> dict[str, Mapping[str, float]] | None:
    """The QUANTITIES of every training run of a planned run, by network, or None if no row has its configuration.

    A row of another label counts, where none of this label has the configuration: settings may be renamed. InputError if some
    of the run's networks have rows and others have none.
    """
    digest = config_digest(experiment)
    mine = [row for row in rows if row.config_sha256 == digest]
    found = [row for row in mine if row.setting == label] or [row for row in mine if row.setting == mine[0].setting]
    if not found:
        return None
    by_network: dict[str, Mapping[str, float]] = {row.network: row.values for row in found}
    wanted = ["trained"] if "trained" in by_network else ["pruned"]
    if "trained" not in by_network:
        wanted += ["unpruned"] * experiment.unpruned + ["from-scratch"] * experiment.from_scratch
    for network in wanted:
        if network not in by_network:
            raise InputError(
                f"{path}, column network: {label!r}, seed {experiment.seed} has no row of {network}, "
                f"only of {', '.join(by_network)}"
            )
    return {network: by_network[network] for network in wanted}


# --------------------------------------------------------------------------------------------------------------------
# Writing


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Replace the file as a whole, atomically."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        values = [repr(row.values[key]).removesuffix(".0") for key in QUANTITIES]
        writer.writerow(
            [row.setting, row.network, row.seed, *values, row.config_sha256, row.code_sha256, row.machine, row.date]
        )
    write_atomically(path, text.getvalue().encode())


def add_rows(path: Path, ended: Iterable[Outcome], machine: str, order: Sequence[tuple[str, int]]) -> None:
    """Add the rows of runs that have ended in their folders, and have none with their configuration, to the file.

    They take the place of rows of the same setting and seed. order: (setting, seed) of every planned run; rows of other runs
    stay, at the end. InputError if a run's folder has no environment.json.
    """
    rows = read_rows(path)
    new = [
        row
        for outcome in ended
        if outcome.summary is not None and runs_kept(path, rows, outcome.job.label, outcome.job.config) is None
        for row in _rows_of(outcome, machine)
    ]
    if not new:
        return
    place = {run: i for i, run in enumerate(order)}
    replaced = {(row.setting, row.seed) for row in new}
    stay = [row for row in rows if (row.setting, row.seed) not in replaced]
    write_rows(path, sorted([*stay, *new], key=lambda row: place.get((row.setting, row.seed), len(place))))


def _rows_of(outcome: Outcome, machine: str) -> list[Row]:
    folder = Path(outcome.job.directory)
    path = folder / "environment.json"
    try:
        code = read_json(path).get("code_sha256", "")
        ended = datetime.datetime.fromtimestamp((folder / "summary.json").stat().st_mtime, datetime.UTC).date()
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); it belongs to every run") from error
    digest, job = config_digest(outcome.job.config), outcome.job
    runs = outcome.runs or {}
    return [Row(job.label, network, job.seed, values, digest, code, machine, ended) for network, values in runs.items()]
