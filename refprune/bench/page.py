"""The report of `refprune bench`: one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..output import figures, page
from . import pictures
from .run import holds, notes, table

Result = dict[str, Any]

#: Title of a column that is not always there → what it says.
COLUMNS = {
    "compiled": "compiled: the same ratio against torch.compile.",
    "of peak": "of peak: the share of the fused multiply-adds that this machine can do.",
}

#: Below the table: what its columns say.
READING = (
    "Times are medians over rounds in which all sides take turns. The ratio is the other's time over refprune's, the median "
    "of the ratios of single rounds: above 1 refprune is faster. The quartiles of these ratios show how much the machine "
    "varied.",
    "error/bound: the results of both sides are compared before they are timed; up to 1 their difference is rounding.",
)


def report(results: Sequence[Result], where: Mapping[str, Any]) -> str:
    """The whole file. where: `machine.describe` and `machine.limits`."""
    different = [
        f"{r['label']}: {r['worst']} is off by {_bounds(r)}; not timed. Compared: {r['checked']}."
        for r in results
        if not r.get("equal", True)
    ]
    skipped = [f"{r['label']}: {r['skipped']}" for r in results if "skipped" in r]
    timed = [r for r in results if r["ratio"] is not None]
    bars = page.picture(
        figures.svg(pictures.bars_figure(results, "")),
        "How many times as fast refprune is",
        "Time of the other side over that of refprune: its median, its quartiles as a line, a mark at 1.",
    )
    times = table(results)
    columns = [says for title, says in COLUMNS.items() if any(row[times[0].index(title)] for row in times[1:])]
    body = [
        page.section("Results that are not equal", page.notes(different), finding=True),
        page.section("Not timed", page.notes(skipped)),
        page.section("Times", page.table(times, "Medians over rounds", stacked=True), page.notes([*READING, *columns])),
        page.section("Pictures", page.pictures(bars if timed else "", _roofline(results, where))),
        page.section(
            "Notes", page.notes([line for line in notes(results) if "NOT EQUAL" not in line and ": skipped:" not in line])
        ),
        page.section("Machine", page.table(_machine(where), "Where it was measured")),
    ]
    judgement: page.Judgement = "plain" if holds(results) else "bad"
    title = f"refprune bench: {where['cpu']}, {where['threads']} threads, {where['dtype']}"
    return page.page(title, verdict(results), judgement, "".join(body), numbers=_numbers(results), made_by="refprune bench")


def _bounds(r: Result) -> str:
    error = r.get("error_over_bound")
    return "a value that is not finite" if error is None else f"{error:.3g} bounds"


def _roofline(results: Sequence[Result], where: Mapping[str, Any]) -> str:
    if not any(r.get("intensity") for r in results):
        return ""
    drawing = figures.svg(pictures.roofline_figure(results, where, ""))
    return page.picture(drawing, "Convolutions under the roofline", "Both limits were measured on this machine.")


def verdict(results: Sequence[Result]) -> str:
    """The result in one sentence."""
    wrong = [r["label"] for r in results if not r.get("equal", True)]
    timed = [r for r in results if r["ratio"] is not None]
    if wrong:
        return f"{len(wrong)} of {len(results)} cases give other results than what they are compared with: {', '.join(wrong)}."
    if not timed:
        count = sum("milliseconds" in r for r in results)
        return f"{count} of {len(results)} cases were timed, beside nothing else."
    faster = sum(r["ratio"] > 1.0 for r in timed)
    other = "PyTorch" if all(r["against"].startswith("torch") for r in timed) else "what it is compared with"
    low, high = (f(r["ratio"] for r in timed) for f in (min, max))
    span = f"{low:.2f}" if len(timed) == 1 else f"{low:.2f} to {high:.2f}"
    return f"refprune is faster than {other} in {faster} of {len(timed)} cases: {span} times as fast."


def _numbers(results: Sequence[Result]) -> list[tuple[str, str]]:
    timed = [r for r in results if r["ratio"] is not None]
    return [(f"{r['ratio']:.2f} ×", r["label"]) for r in timed] if len(timed) <= 6 else []


def _machine(where: Mapping[str, Any]) -> list[tuple[str, ...]]:
    names = {
        "cpu": "processor",
        "cores": "cores",
        "threads": "threads used",
        "dtype": "precision",
        "seed": "seed",
        "system": "system",
    }
    rows = [("", "value"), *((title, str(where[key])) for key, title in names.items() if where.get(key) is not None)]
    rows.append(("Python", str(where["python"])))
    rows += [(name, version) for name, version in where["versions"].items()]
    limits = {
        "peak_gflops_1_thread": ("peak with one thread", "GFLOP/s", 0),
        "peak_gflops": ("peak with all threads", "GFLOP/s", 0),
        "memory_gbytes": ("memory", "GB/s", 1),
    }
    rows += [(title, f"{where[key]:.{digits}f} {unit}") for key, (title, unit, digits) in limits.items() if key in where]
    if where.get("load_before"):
        rows.append(("load before the run (1, 5, 15 minutes)", ", ".join(f"{load:.1f}" for load in where["load_before"])))
    return [*rows, ("begun", str(where["time"]).replace("T", " ").replace("Z", " UTC"))]
