"""The results of `refprune verify` as text, JSON and JUnit's XML; `page` has the HTML."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np

from ..output import tables
from .asking.methods import Description
from .judging.findings import HARMLESS, Finding, Outcome
from .judging.verdicts import EXACT, Comparison

#: What neither XML nor a terminal should get; what an implementation raises may hold it.
CONTROL = re.compile("[^\t\n\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

#: So many tensors that differ are listed behind the first.
FURTHER = 4


#: A tensor is mentioned as blind from this share of a method's examples on.
BLIND = 0.05


def conforms(outcomes: Sequence[Outcome]) -> bool:
    """Is nothing wrong or undecided, and has something been judged?"""
    judged = any(o.verdict == "conforms" for o in outcomes)
    return judged and all(o.verdict not in ("DEVIATES", "undecided") for o in outcomes)


HEAD = ("method", "level", "examples", "kinks", "largest error/tolerance", "verdict")


def cells(o: Outcome) -> tuple[str, ...]:
    """The method's row of the table."""
    if not o.provided:
        return o.method, o.level, "", "", "", o.verdict
    declined = f" ({o.declined} declined)" if o.declined else ""
    kinks = f"{o.kinks}" + (f" + {o.undecided} undecided" if o.undecided else "")
    return o.method, o.level, f"{o.examples}{declined}", kinks, f"{o.largest:.2g}", o.verdict


def table(outcomes: Sequence[Outcome]) -> list[tuple[str, ...]]:
    """A row for every method that is provided."""
    return [HEAD, *(cells(o) for o in outcomes if o.provided)]


def finding_lines(finding: Finding) -> list[str]:
    """What is wrong, where along the data flow it begins, and what it looks like."""
    lines = [f"{finding.method}: {finding.kind}" + (f": {finding.message}" if finding.message else "")]
    first = finding.first
    if first is not None:
        where = "the first difference along the data flow is in" if finding.kind == "deviates" else "beyond its interval:"
        lines.append(f"  {where} {tensor(first)}")
        lines += [f"    {entry.text()}" for entry in first.worst]
        right = [c.name for c in finding.comparisons[: finding.comparisons.index(first)]]
        if right:
            lines.append(f"  right before it: {_listed(right)}")
        others = [c for c in finding.comparisons if not c.holds and c is not first]
        lines += [f"  then {tensor(c)}" for c in others[:FURTHER]]
        if len(others) > FURTHER:
            lines.append(f"  and {len(others) - FURTHER} more")
    if finding.mistakes:
        lines += [f"  these are the numbers of a known mistake: {m.name} ({', '.join(m.claims)})" for m in finding.mistakes]
    elif finding.kind in ("deviates", "biased"):
        lines.append("  no known mistake has these numbers")
    if finding.arguments:
        lines.append(f"  smallest example: {shapes(finding.arguments)}")
    return [CONTROL.sub(escaped, line) for line in lines]


def escaped(match: re.Match[str]) -> str:
    return match.group().encode("unicode_escape").decode()


def tensor(c: Comparison) -> str:
    size = int(np.prod(c.shape))
    certain = ", beyond any order of summation" if c.certain else ""
    far = f"up to {c.ratio:.3g} tolerances" if c.ratio < EXACT else "where exactly 0 is wanted"
    return f"{c.name} {c.shape}: {c.off} of {size} entries, {far}{certain}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 8 else f"{', '.join(names[:3])} … {', '.join(names[-3:])}"


def shapes(arguments: dict[str, Any]) -> str:
    """Arguments in a line: shapes of arrays, plain values, kinds of layers."""
    parts = []
    for name, value in arguments.items():
        if isinstance(value, np.ndarray):
            small = value.size <= 4
            parts.append(f"{name} {np.array2string(value, separator=', ') if small else value.shape}")
        elif name == "spec":
            parts.append("layers " + " → ".join(layer.get("name", "") for layer in value["layers"]))
        elif not isinstance(value, dict):
            parts.append(f"{name}={value!r}")
    return re.sub(r"\s+", " ", ", ".join(parts))


def unjudged(outcomes: Sequence[Outcome], description: Description) -> list[str]:
    """What no verdict is about: what nobody asks, methods that are not provided, results that are not given."""
    missing = [o.method for o in outcomes if not o.provided]
    withheld = [f"{o.method}: {', '.join(o.withheld)}" for o in outcomes if o.withheld]
    lists = (
        ("never asked for", "; ".join(description.strangers)),
        ("not provided", ", ".join(missing)),
        ("not given", "; ".join(withheld)),
    )
    return [f"{what}, and therefore not judged: {listed}" for what, listed in lists if listed]


def text(outcomes: Sequence[Outcome], description: Description) -> str:
    """The table, what is missing, every finding, the verdict in one line."""
    lines = [tables.text_table(table(outcomes)), ""]
    lines += [line + "\n" for line in unjudged(outcomes, description)]
    for outcome in outcomes:
        lines += [f"{outcome.method}: {remark}" for remark in outcome.remarks] + [""] * bool(outcome.remarks)
        for finding in outcome.findings:
            lines += [*finding_lines(finding), ""]
    lines += blind_lines(outcomes)
    judged = sum(o.examples - o.declined - o.undecided for o in outcomes if o.verdict == "conforms")
    undecided = [o.method for o in outcomes if o.verdict == "undecided"]
    wrong = [o.method for o in outcomes if o.verdict == "DEVIATES"]
    what = f"{description.name} ({description.precision}): "
    if wrong:
        return "\n".join([*lines, what + f"deviates in {', '.join(wrong)}"])
    if not judged:
        return "\n".join([*lines, what + "nothing could be judged"])
    seen = f"conforms in {judged} examples"
    left = f"undecided in {', '.join(undecided)}; elsewhere " if undecided else ""
    return "\n".join([*lines, *(line + "\n" for line in seen_lines(outcomes)), what + left + seen])


def seen_lines(outcomes: Sequence[Outcome]) -> list[str]:
    """Which mistakes would have been seen, method by method: in what share of drawn examples, and up to which sizes."""
    right = [o for o in outcomes if o.verdict == "conforms" and not o.random]
    drawn = {o.method: o.examples - o.declined - o.undecided - o.stored - o.standing for o in right}
    shares = [
        f"{100.0 * (1.0 - 0.05 ** (1.0 / count)):.2g} % of its {count} ({_listed([m for m, n in drawn.items() if n == count])})"
        for count in sorted({*drawn.values()} - {0})
    ]
    sizes = [f"{o.method} {'×'.join(map(str, o.sizes))}" for o in right if o.sizes]
    standing = sum(o.standing for o in right)
    return [
        f"{what} {listed}"
        for what, listed in (
            (
                "with 95 % confidence a mistake would have been seen that shows in this share of a method's drawn examples:",
                "; ".join(shares),
            ),
            (f"the same {standing} examples are asked in every run, the largest sizes among them:", ", ".join(sizes)),
        )
        if listed
    ]


def blind_lines(outcomes: Sequence[Outcome]) -> list[str]:
    """In which tensors rounding hides more than it lets see."""
    shares = {o.method: {n: o.blind[n] / o.tensors[n] for n in o.tensors} for o in outcomes}
    often = [f"{m} {n} {s:.0%}" for m, found in shares.items() for n, s in found.items() if s > BLIND]
    if not often:
        return []
    return [f"where rounding is as large as the tensor, so that zeros would pass: {', '.join(often)}", ""]


def as_json(outcomes: Sequence[Outcome], description: Description, target: str, seed: int) -> dict[str, Any]:
    """Everything but the arrays."""
    return {
        "format": "refprune-verify-1",
        "target": target,
        "precision": description.precision,
        "seed": seed,
        "conforms": conforms(outcomes),
        "never_asked_for": list(description.strangers),
        "methods": [
            {
                "method": o.method,
                "level": o.level,
                "verdict": o.verdict,
                "examples": o.examples,
                "declined": o.declined,
                "stored": o.stored,
                "standing": o.standing,
                "largest_sizes": list(o.sizes),
                "kinks": o.kinks,
                "undecided": o.undecided,
                "largest_ratio": _number(o.largest),
                "tensors": dict(sorted(o.tensors.items())),
                "blind": dict(sorted(o.blind.items())),
                "withheld": o.withheld,
                "remarks": o.remarks,
                "seconds": round(o.seconds, 3),
                "findings": [_finding_json(f) for f in o.findings],
            }
            for o in outcomes
        ],
    }


def _finding_json(finding: Finding) -> dict[str, Any]:
    tensors = [
        {
            "name": c.name,
            "shape": c.shape,
            "ratio": _number(c.ratio),
            "entries_off": c.off,
            "certainly_wrong": c.certain,
            "worst": [{key: _number(v) for key, v in entry._asdict().items()} for entry in c.worst],
        }
        for c in finding.comparisons
    ]
    mistakes = [{"name": m.name, "claims": m.claims} for m in finding.mistakes]
    first = None if finding.first is None else finding.first.name
    return {"kind": finding.kind, "message": finding.message, "first": first, "mistakes": mistakes, "tensors": tensors}


def _number(value: Any) -> Any:
    """JSON knows no infinities: they, and NaN, as strings."""
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value


def junit(outcomes: Sequence[Outcome], target: str) -> bytes:
    """A test case for every method: failed where it deviates, skipped where it was not judged."""
    suite = ElementTree.Element("testsuite", name=f"refprune verify {target}")
    counts = {"tests": len(outcomes), "failures": 0, "skipped": 0, "errors": 0}
    for o in outcomes:
        case = ElementTree.SubElement(suite, "testcase", classname=o.level, name=o.method, time=f"{o.seconds:.3f}")
        if o.verdict == "DEVIATES":
            counts["failures"] += 1
            wrong = [f for f in o.findings if f.kind not in HARMLESS]
            failure = ElementTree.SubElement(case, "failure", message=", ".join(f.kind for f in wrong))
            failure.text = "\n".join(line for f in wrong for line in finding_lines(f))
        elif o.verdict != "conforms":
            counts["skipped"] += 1
            ElementTree.SubElement(case, "skipped", message=o.verdict)
    suite.attrib |= {name: str(count) for name, count in counts.items()}
    written: bytes = ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True)
    return written
