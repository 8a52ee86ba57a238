"""The report of `refprune verify`: one HTML file, what is wrong first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..output import figures
from ..output import page as html
from .asking.methods import Description
from .judging.findings import HARMLESS, Finding, Outcome
from .judging.verdicts import EXACT, Comparison
from .reporting import CONTROL, blind_lines, conforms, escaped, seen_lines, shapes, table, tensor, unjudged

#: Tensors that differ and are named, behind the first.
FURTHER = 4

#: So many tensors have a bar.
BARS = 60

#: Below the table of methods: what its columns say.
READING = (
    "Examples are drawn at random, from small to large, besides those that are the same in every run: the ends of every "
    "domain, and sizes around the blocks of compiled code. Those declined were answered with “not supported”.",
    "Kinks: examples in which a ReLU, a maximum or a projection was so near its kink that rounding decides which side is "
    "taken; either is right there.",
    "Error/tolerance: the largest error of all entries. The tolerance is what rounding in the declared precision explains; "
    "up to 1 is right.",
)


def page(outcomes: Sequence[Outcome], description: Description, target: str) -> str:
    """The whole file."""
    wrong = [o for o in outcomes if o.verdict in ("DEVIATES", "undecided")]
    others = [o for o in outcomes if o not in wrong]
    remarks = [f"{o.method}: {remark}" for o in outcomes for remark in o.remarks]
    body = [
        *(_finding(finding) for o in wrong for finding in o.findings),
        *(_finding(finding) for o in others for finding in o.findings),
        html.section("Remarks", html.notes(remarks)),
        html.section(
            "Methods that were asked",
            html.table(
                table([*wrong, *others]),
                "A row for each method that the adapter provides",
                stacked=True,
                judged=lambda row: {"DEVIATES": "bad", "undecided": "open"}.get(row[-1], "plain"),  # type: ignore[arg-type, return-value]
            ),
            html.notes([*READING, *seen_lines(outcomes)]),
        ),
        html.section("Not judged", html.notes([*unjudged(outcomes, description), *filter(None, blind_lines(outcomes))])),
    ]
    found = {o.verdict for o in outcomes}
    judgement: html.Judgement = "good" if conforms(outcomes) else "bad" if "DEVIATES" in found else "open"
    title = f"refprune verify {target} ({description.precision})"
    whole = html.page(
        title,
        verdict(outcomes, description, target),
        judgement,
        "".join(body),
        numbers=_numbers(outcomes),
        made_by=f"refprune verify {target}",
    )
    return CONTROL.sub(escaped, whole)


def verdict(outcomes: Sequence[Outcome], description: Description, target: str) -> str:
    """The result in one sentence."""
    what = f"{target} ({description.precision})"
    asked = [o for o in outcomes if o.provided]
    wrong = [o.method for o in asked if o.verdict == "DEVIATES"]
    undecided = [o.method for o in asked if o.verdict == "undecided"]
    right = [o for o in asked if o.verdict == "conforms"]
    if wrong:
        return f"{what} deviates in {len(wrong)} of {len(asked)} methods: {', '.join(wrong)}."
    examples = sum(o.examples - o.declined - o.undecided for o in right)
    seen = f"conforms in {examples:,} examples of {len(right)} methods"
    if undecided:
        return f"{what} is undecided in {', '.join(undecided)}{f'; elsewhere it {seen}' if right else ''}."
    return f"{what} {seen}." if examples else f"{what}: nothing could be judged."


def _numbers(outcomes: Sequence[Outcome]) -> list[tuple[str, str]]:
    counts = {kind: sum(o.verdict == kind for o in outcomes) for kind in ("DEVIATES", "undecided", "conforms", "not provided")}
    names = {
        "DEVIATES": "methods deviate",
        "undecided": "undecided",
        "conforms": "methods conform",
        "not provided": "not provided",
    }
    shown = [(str(count), names[kind]) for kind, count in counts.items() if count or kind in ("DEVIATES", "conforms")]
    return [*shown, (f"{sum(o.examples for o in outcomes):,}", "examples asked")]


def _finding(finding: Finding) -> str:
    """What is wrong, where along the data flow it begins, its numbers, the mistakes that look like it, the smallest example."""
    first, kind = finding.first, finding.kind
    heading = f"{finding.method}: {kind}"
    parts = [html.paragraph(_sentence(finding.message))]
    if first is not None:
        before = [c.name for c in finding.comparisons[: finding.comparisons.index(first)]]
        after = [c for c in finding.comparisons if not c.holds and c is not first]
        where = "The first difference along the data flow is in" if kind == "deviates" else "Beyond its interval:"
        parts += [
            html.paragraph(f"{where} {tensor(first)}."),
            html.table(_entries(first), f"The worst entries of {first.name}", stacked=True),
        ]
        parts.append(html.paragraph(f"Right before it: {', '.join(before)}." if before else ""))
        lines = [f"Then {tensor(c)}." for c in after[:FURTHER]]
        lines += [f"And {len(after) - FURTHER} tensors more."] if len(after) > FURTHER else []
        parts.append(html.notes(lines))
    if finding.mistakes:
        named = [f"{m.name} (SPEC {', '.join(m.claims)})" for m in finding.mistakes]
        parts += [html.paragraph("These are the numbers of a known mistake:"), html.notes(named)]
    elif kind in ("deviates", "biased"):
        parts.append(html.paragraph("No known mistake has these numbers."))
    if finding.arguments:
        parts += [html.paragraph("The smallest example that shows it:"), f"<pre>{html.text(shapes(finding.arguments))}</pre>"]
    parts.append(_picture(finding))
    return html.section(heading, *parts, finding=kind not in HARMLESS)


def _sentence(message: str) -> str:
    return message and f"{message[0].upper()}{message[1:]}."


def _entries(c: Comparison) -> list[tuple[str, ...]]:
    """A row for each of the worst entries of a tensor."""
    rows: list[tuple[str, ...]] = [("entry", "got", "wanted", "difference", "relative", "ulp", "error/tolerance")]
    for e in c.worst:
        place = f"[{', '.join(map(str, e.place))}]" if e.place else "()"
        measures = (f"{e.relative:.3g}", f"{e.ulps:.3g}", f"{e.ratio:.3g}") if e.ratio < EXACT else ("", "", "0 wanted")
        rows.append((place, f"{e.got:.9g}", f"{e.want:.9g}", f"{e.absolute:.3g}", *measures))
    return rows


def _picture(finding: Finding) -> str:
    """Error/tolerance of every tensor in data-flow order, on a logarithmic scale."""
    if len(finding.comparisons) < 2:
        return ""
    drawing = errors_picture(finding)
    explanation = (
        "A bar for each tensor, from input to output and back; right of the line at 1 rounding does not explain the error."
    )
    return html.pictures(html.picture(figures.svg(drawing), "Error/tolerance along the data flow", explanation))


def errors_picture(finding: Finding) -> Any:
    """Bars of error/tolerance, the first tensors of the data flow at the top."""
    shown = finding.comparisons[:BARS]
    drawing, axes = figures.figure("", "error/tolerance", "", (figures.NARROW, 0.8 + 0.19 * len(shown)))
    widths = [min(max(c.ratio, 1e-3), 1e12) for c in shown]
    colours = [figures.CYCLE[0] if c.holds else figures.CYCLE[3] for c in shown]
    axes.barh([f"{c.name} " for c in shown], widths, left=3e-4, height=0.7, color=colours)
    axes.axvline(1.0, color="black", lw=0.8)
    axes.set_xscale("log")
    axes.set_xlim(left=3e-4)
    figures.log_axis(axes.xaxis)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    return drawing
