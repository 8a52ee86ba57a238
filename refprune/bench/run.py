"""The benchmark: `refprune bench [NAME ...] [--against torch]`. Every ratio is timed by turns, after the results were compared.

A ratio is the other's time over refprune's, the median over rounds of the two times of one round: above 1 refprune is faster.
"""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import Array
from ..errors import InputError
from ..output import install
from . import memory
from .cases import CASES, NAMES, PEAK, Case, Setting, Work
from .timing import interleave, quartiles

Result = dict[str, Any]
COMPILED = "torch compiled"


@dataclass
class Options:
    """seconds: that the rounds of a whole case may take, unless `repeats` says how many there are; compile_seconds: limits of
    torch.compile, for one case and for all; memory: whether it is measured too."""

    repeats: int | None = None
    seconds: float = 3.0
    compile_seconds: tuple[float, float] = (40.0, 60.0)
    memory: bool = True


def select(names: Sequence[str]) -> list[Case]:
    """The cases of these names, all without any. InputError lists what is known."""
    for name in names:
        if name not in NAMES:
            raise InputError(f"bench: {name!r} is not known; known are {', '.join(NAMES)}")
    return [case for case in CASES if not names or case.name in names]


def require_torch() -> None:
    """InputError, one sentence, where PyTorch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise InputError(f"--against torch: PyTorch is not installed:  {install.command('torch')}")


def run_bench(
    cases: Sequence[Case], setting: Setting, options: Options, say: Callable[[Result], None] = lambda result: None
) -> list[Result]:
    """One result a case, in order; `say` hears of each as soon as it is there."""
    if setting.torch:
        from . import torch_side

        torch_side.prepare(setting.threads)
    left = options.compile_seconds[1]
    results = []
    for case in cases:
        result: Result = {"name": case.name, "task": case.task, "ratio": None}
        try:
            work = case.prepare(setting)
        except InputError as error:
            results.append(result | {"label": f"{case.name} {case.task}", "skipped": str(error)})
        else:
            results.append(result | {"label": _label(case, work)} | work.details)
            left -= _measure(work, setting, options, left, results[-1])
            if options.memory and work.memory is not None:
                results[-1]["memory_mb"] = _memory(case.name, work.memory, setting, results[-1].get("torch_variant"))
        say(results[-1])
    return results


def _label(case: Case, work: Work) -> str:
    if case.name == "conv":
        inputs, outputs = work.details["channels"]
        return f"conv {inputs}→{outputs} {work.details['size']}² {case.task}"
    batch = f", {work.details['batch']} images" if "batch" in work.details else ""
    return f"{case.name} {case.task}{batch}"


def _measure(work: Work, setting: Setting, options: Options, compile_seconds: float, result: Result) -> float:
    """Checks, times, and fills `result`; returns the seconds spent on compiling. A mismatch is not timed."""
    if work.check is not None:
        found = work.check()
        error = found.error if math.isfinite(found.error) else None
        result |= {"equal": found.holds, "error_over_bound": error, "worst": found.where, "checked": found.method}
        result["bound"] = found.bound
        if not found.holds:
            return 0.0
    spent = 0.0
    if work.compiled is not None:
        from . import torch_side

        start = time.perf_counter()
        limit = min(options.compile_seconds[0], compile_seconds)
        side, reason = None, f"not tried: the {options.compile_seconds[1]:.0f} s for compiling are used up"
        if limit > 0:
            side, reason = torch_side.attempt(work.compiled, limit)
        if side is not None:
            work.sides[COMPILED] = side
        spent = time.perf_counter() - start
        result["torch_compile"] = reason if side is not None else f"does not work here: {reason}"
    times = interleave(work.sides, seconds=options.seconds * work.share, repeats=options.repeats)
    if work.subtracted in times:
        times["refprune"] = np.maximum(times["refprune"] - times.pop(work.subtracted), 1e-9)
    _summarise(work, times, result)
    return spent


def _summarise(work: Work, times: Mapping[str, Array], result: Result) -> None:
    mine = times["refprune"]
    result["rounds"] = len(mine)
    result["milliseconds"] = {name: [round(1e3 * q, 6) for q in quartiles(t)] for name, t in times.items() if name != PEAK}
    others = {name: quartiles(t / mine) for name, t in times.items() if name not in ("refprune", PEAK)}
    eager = {name: q for name, q in others.items() if name != COMPILED}
    if eager:
        best = min(eager, key=lambda name: eager[name].median)
        result |= {"against": best, "ratio": eager[best].median, "ratio_quartiles": [eager[best].low, eager[best].high]}
        result["ratios"] = {name: q.median for name, q in others.items()}
        if work.against == "torch":
            result["torch_variant"] = best.removeprefix("torch ")
    if work.flops:
        result["gflops"] = work.flops / float(np.median(mine)) / 1e9
        if work.against == "torch" and eager:
            result["torch_gflops"] = work.flops / float(np.median(times[best])) / 1e9
    if work.bytes:
        result["intensity"] = work.flops / work.bytes
    if PEAK in times:
        result["share_of_peak"] = quartiles(work.flops / mine * times[PEAK] / work.peak_flops).median


def _memory(name: str, batch: tuple[Array, Array], setting: Setting, layout: str | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for side in ("refprune", *(["torch"] if setting.torch else [])):
        try:
            found[side] = memory.measure(
                side, name, *batch, threads=setting.threads, dtype=setting.dtype, layout=layout or "contiguous"
            )
        except InputError as error:
            found[side] = {"failed": str(error)}
    return found


# --------------------------------------------------------------------------------------------------------------------
# The table

HEAD = ("", "refprune", "torch", "ratio", "quartiles", "compiled", "GFLOP/s", "of peak", "error/bound")


def table(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """Head and one row a result; times are medians."""
    return [HEAD, *(_row(r) for r in results)]


def _row(r: Result) -> tuple[str, ...]:
    if "skipped" in r or not r.get("equal", True):
        return (r["label"], "skipped" if "skipped" in r else "NOT EQUAL", *[""] * 6, _number(r.get("error_over_bound"), ".2g"))
    other = "" if r["ratio"] is None else _duration(r["milliseconds"][r["against"]][1])
    spread = "–".join(f"{q:.2f}" for q in r["ratio_quartiles"]) if "ratio_quartiles" in r else ""
    return (
        r["label"],
        _duration(r["milliseconds"]["refprune"][1]),
        other,
        _number(r["ratio"], ".2f"),
        spread,
        _number(r.get("ratios", {}).get(COMPILED), ".2f"),
        _number(r.get("gflops"), ".0f"),
        _number(r.get("share_of_peak"), ".0%"),
        _number(r.get("error_over_bound"), ".2g"),
    )


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _duration(milliseconds: float) -> str:
    if milliseconds < 1.0:
        return f"{1e3 * milliseconds:.0f} µs"
    return f"{milliseconds:.{max(0, 2 - int(math.log10(milliseconds)))}f} ms"


def notes(results: Sequence[Result]) -> list[str]:
    """What the table has no room for: data, mismatches, what was left out, torch.compile, memory."""
    lines = []
    sources = {r["data"]: "" for r in results if "data" in r}
    if sources:
        lines.append(f"data: {', '.join(sources)}")
    for method in dict.fromkeys(r["checked"] for r in results if "checked" in r):
        lines.append(f"checked before timing: {method}")
    for r in results:
        error = _number(r.get("error_over_bound"), ".3g") or "not finite,"
        if "skipped" in r:
            lines.append(f"{r['label']}: skipped: {r['skipped']}")
        if not r.get("equal", True):
            lines.append(f"{r['label']}: NOT EQUAL, not timed: {r['worst']} is {error} bounds off ({r['checked']})")
        if r.get("torch_compile", "works") != "works":
            lines.append(f"{r['label']}: torch.compile {r['torch_compile']}")
        if "ratio_of_macs" in r:
            lines.append(
                f"{r['label']}: {r['sections']} sections are left of {r['network']}; MACs allow {r['ratio_of_macs']:.2f}"
            )
        for side, figures in r.get("memory_mb", {}).items():
            text = (
                f"{figures['step']:.0f} MB, with the first step {figures['with_first']:.0f} MB"
                if "step" in figures
                else figures["failed"]
            )
            lines.append(f"{r['label']}: peak memory of a step, {side}: {text}")
    return lines


def holds(results: Sequence[Result]) -> bool:
    """Were all results equal, as far as they were compared?"""
    return all(r.get("equal", True) for r in results)
