"""What pruning runs did, as tables: one run round by round, its plan, several runs side by side and what they differ in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..output import figures, page
from ..output.files import encoded, write_atomically
from ..output.texts import read_json

Record = dict[str, Any]
Table = list[tuple[str, ...]]


def read_run(directory: Path) -> Record:
    """A run, ended or not: what plan.json holds, with its "rounds". InputError if there is none."""
    try:
        plan, rounds = (read_json(directory / f"{name}.json") for name in ("plan", "rounds"))
        if not {"plan", "settings"} <= set(plan) or not all("macs_per_image" in record for record in rounds) or not rounds:
            raise ValueError("plan.json and rounds.json are not those of a pruning run")
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{directory}: no pruning run ({error})") from error
    return {**plan, "rounds": rounds}


def read_all(directories: Sequence[Path]) -> dict[str, Record]:
    """Label → run: the folders' names, or their whole paths where names are the same. InputError for a folder given twice."""
    whole = [str(directory.resolve()) for directory in directories]
    names = [directory.resolve().name for directory in directories]
    twice = next((path for path in whole if whole.count(path) > 1), None)
    if twice is not None:
        raise InputError(f"--compare: {twice} is given twice")
    labels = whole if len(set(names)) < len(names) else names
    return {label: read_run(directory) for label, directory in zip(labels, directories, strict=True)}


def rounds(run: Record) -> Table:
    """A row a round: what went, its score, the margin to the second, accuracy before and after fine-tuning, size."""
    start = run["rounds"][0]
    kind = "held-out" if run["settings"]["data"].get("holdout") else "test"
    rows: Table = [("round", "removed", "score", "margin", f"{kind} before", f"{kind} after", "MACs", "parameters")]
    for record in run["rounds"]:
        score = f"{record['scores'][record['removed']]:.5f}" if record.get("scores") else ""
        margin = "" if record.get("margin") is None else f"{record['margin']:.5f}"
        before = f"{100 * record['accuracy_before_finetuning']:.2f} %" if record["round"] else ""
        costs = (f"{record[key]:,} ({record[key] / start[key]:.0%})" for key in ("macs_per_image", "parameters"))
        after = f"{100 * record['test_accuracy']:.2f} %"
        rows.append((str(record["round"]), record["removed"] or "", score, margin, before, after, *costs))
    return rows


def facts(run: Record) -> dict[str, str]:
    """Every entry of the run's plan, network and settings by its name, as text."""

    def entries(values: Mapping[str, Any], prefix: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for key, value in values.items():
            name = f"{prefix}.{key}" if prefix else key
            found |= entries(value, name) if isinstance(value, Mapping) else {name: str(value)}
        return found

    return {name: text for part in ("plan", "network", "settings") for name, text in entries(run.get(part, {}), part).items()}


def side_by_side(runs: Mapping[str, Record]) -> Table:
    """A row a round, a pair of columns a run: share of the MACs, accuracy after fine-tuning (before)."""
    rows: Table = [("round", *(cell for name in runs for cell in ("MACs", name)))]
    for number in range(max(len(run["rounds"]) for run in runs.values())):
        cells = [str(number)]
        for done in (run["rounds"] for run in runs.values()):
            record = done[number] if number < len(done) else None
            before = f" ({100 * record['accuracy_before_finetuning']:.2f})" if record and number else ""
            share = f"{record['macs_per_image'] / done[0]['macs_per_image']:.1%}" if record else ""
            cells += [share, f"{100 * record['test_accuracy']:.2f} %{before}" if record else ""]
        rows.append(tuple(cells))
    return rows


#: Entries by which no result differs.
_INDIFFERENT = ("settings.training.threads",)


def differences(runs: Mapping[str, Record]) -> Table:
    """A row for everything in which plans, networks or settings differ; the first row alone where nothing does."""
    found = {label: facts(run) for label, run in runs.items()}
    names = dict.fromkeys(name for entries in found.values() for name in entries if name not in _INDIFFERENT)
    rows = [(name, *(entries.get(name, "–") for entries in found.values())) for name in names]
    return [("differs", *found), *(row for row in rows if len(set(row[1:])) > 1)]


# --------------------------------------------------------------------------------------------------------------------
# Pruning by criterion


#: Below the table of rounds: what its columns say.
COLUMNS = (
    "Score: of the section that was removed, by the criterion of this run; the section with the smallest score goes.",
    "Margin: distance of the second smallest score. A margin near 0 is a choice by chance.",
    "Before, after: accuracy before and after the fine-tuning that follows the removal.",
)


def pruning_page(directory: Path, run: Mapping[str, Any]) -> Path | None:
    """report.html of a pruning run: verdict, its rounds, accuracy against MACs, scores over rounds, what was asked for.

    run: its summary.json. None where matplotlib is missing.
    """
    try:
        figures.require_matplotlib()
    except InputError:
        return None
    path = directory / "report.html"
    write_atomically(path, encoded(_page(dict(run))))
    return path


def verdict(run: Record) -> str:
    """The run in one sentence."""
    begin, end = run["rounds"][0], next((r for r in run["rounds"] if _folder(r) == run["result"]), run["rounds"][-1])
    share = 100 * end["macs_per_image"] / begin["macs_per_image"]
    kind = "held-out" if run["settings"]["data"].get("holdout") else "test"
    removed = f"{end['round']} removal{'' if end['round'] == 1 else 's'} by {run['plan']['criterion']}"
    before = f"{100 * begin['test_accuracy']:.2f} % at the start"
    return f"{removed} left {share:.0f} % of the MACs; the {kind} accuracy is {100 * end['test_accuracy']:.2f} %, {before}."


def _folder(record: Mapping[str, Any]) -> str:
    return f"round-{record['round']:02}"


def _numbers(run: Record) -> list[tuple[str, str]]:
    begin, end = run["rounds"][0], next((r for r in run["rounds"] if _folder(r) == run["result"]), run["rounds"][-1])
    change = 100 * (end["test_accuracy"] - begin["test_accuracy"])
    return [
        (f"{100 * end['test_accuracy']:.2f} %", "accuracy of the result"),
        (f"{change:+.2f}".replace("-", "−"), "points, against the start"),
        (f"{100 * end['macs_per_image'] / begin['macs_per_image']:.0f} %", "of the MACs per image"),
        (f"{100 * end['parameters'] / begin['parameters']:.0f} %", "of the parameters"),
        (str(end["round"]), "rounds of removal"),
    ]


def _page(run: Record) -> str:
    criterion = run["plan"]["criterion"]
    scored = [record for record in run["rounds"] if record.get("scores")]
    drawn = [
        page.picture(
            figures.svg(accuracy_against_macs({criterion: run})),
            "Accuracy against computation",
            "A point for each round after fine-tuning; dotted: before fine-tuning.",
        ),
        page.picture(
            figures.svg(scores_over_rounds(scored)),
            "Scores",
            "A row for each section, a column for each round; a cross where the section with the smallest score was removed.",
        )
        if scored
        else "",
    ]
    asked = [("setting", "value"), ("stopped", run["stopped"]), ("result", run["result"]), *facts(run).items()]
    body = [
        page.section(
            "Rounds",
            page.table(rounds(run), "What each round removed; shares are of the network at the start", stacked=True),
            page.notes([*COLUMNS, f"The run stopped: {run['stopped']}. Its result is the checkpoint in {run['result']}."]),
        ),
        page.section("Pictures", page.pictures(*drawn)),
        page.section("What was asked for", page.table(asked, "The plan, the network and the settings of fine-tuning")),
    ]
    title = f"Pruning by {criterion}: {run['network'].get('source') or 'a trained network'}"
    return page.page(title, verdict(run), "plain", "".join(body), numbers=_numbers(run), made_by="refprune prune")


def accuracy_against_macs(summaries: Mapping[str, Mapping[str, Any]]) -> Any:
    """A line a run: accuracy after fine-tuning against the share of MACs that is left; thin: before fine-tuning."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    drawing, axes = figures.figure("Accuracy against computation", "MACs per image, share of the start", "accuracy, %")
    for name, summary in summaries.items():
        rounds = summary["rounds"]
        share = [record["macs_per_image"] / rounds[0]["macs_per_image"] for record in rounds]
        (line,) = axes.plot(share, [100 * record["test_accuracy"] for record in rounds], "o-", ms=3, lw=1.2, label=name)
        before = [100 * record["accuracy_before_finetuning"] for record in rounds[1:]]
        axes.plot(share[1:], before, ":", lw=1.0, color=line.get_color())
    axes.invert_xaxis()
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    if len(summaries) > 1:
        figures.label_lines(axes)
    return drawing


#: Legible on every colour of the map of scores, on a light page and on a dark one.
CROSS = "#ff4d4d"


def scores_over_rounds(rounds: Sequence[Mapping[str, Any]]) -> Any:
    """Rows: the sections; columns: rounds; colour: the score in its round; a cross where a section goes."""
    names = list(rounds[0]["scores"])
    drawing, axes = figures.figure("Scores", "round", "", (figures.NARROW, 1.2 + 0.17 * len(names)))
    values = np.array([[record["scores"].get(name, np.nan) for record in rounds] for name in names])
    bar = drawing.colorbar(axes.imshow(values, aspect="auto", cmap="viridis"), ax=axes)
    bar.ax.tick_params(labelsize=figures.LETTERS)
    axes.set_yticks(range(len(names)), names)
    every = -(-len(rounds) // 12)
    axes.set_xticks(range(0, len(rounds), every), [str(record["round"]) for record in rounds[::every]])
    axes.plot(range(len(rounds)), [names.index(record["removed"]) for record in rounds], "x", color=CROSS)
    axes.grid(visible=False)
    return drawing
