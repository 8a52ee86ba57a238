"""The pictures of architecture.md as SVG: rooms by level, read from the package's imports, and ways of things through them.

Lines and text have the page's own colour, so that they can be read in light and dark.
"""

from __future__ import annotations

import ast
import functools
import html
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[1] / "refprune"
FONT = 'font-family="system-ui, sans-serif" fill="currentColor"'
PAPER = "var(--md-default-bg-color, canvas)"
BLUE, GREEN, ORANGE = "#4c8dd6", "#3f9b6c", "#d9822b"


class Station(NamedTuple):
    """A stop of a way: the room, the place in it, what happens there."""

    room: str
    place: str
    what: str


@functools.cache
def imports() -> dict[str, frozenset[str]]:
    """Room → rooms that it imports; the package's own `__init__` and `__main__` are no rooms."""
    found: dict[str, set[str]] = {}
    there = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    rooms = there - {"__init__", "__main__"}
    for path in sorted(PACKAGE.rglob("*.py")):
        inside = path.relative_to(PACKAGE)
        room = inside.parts[0].removesuffix(".py")
        if room not in rooms:
            continue
        entry = found.setdefault(room, set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom):
                continue
            if node.level:
                base = inside.parts[:-1][: len(inside.parts) - node.level]
                target = [
                    *base,
                    *(node.module or "").split("."),
                    *([alias.name for alias in node.names] if not node.module else []),
                ]
            elif node.module and node.module.startswith("refprune"):
                target = [*node.module.split(".")[1:], *(alias.name for alias in node.names)]
            else:
                continue
            names = [name for name in target if name]
            reached = names[:1] if node.level and (base or node.module) else names
            entry.update(name for name in reached if name in rooms and name != room)
    return {room: frozenset(below) for room, below in found.items()}


def levels() -> dict[str, int]:
    """Room → length of the longest chain of imports below it."""
    below, found = imports(), dict[str, int]()
    while len(found) < len(below):
        ready = {room for room in below.keys() - found.keys() if below[room] <= found.keys()}
        if not ready:
            raise ValueError(f"rooms import each other in a circle: {', '.join(sorted(below.keys() - found.keys()))}")
        found |= {room: 1 + max((found[other] for other in below[room]), default=-1) for room in ready}
    return found


def direct() -> list[tuple[str, str]]:
    """(room, room below) without those that follow from two others."""
    below = imports()

    @functools.cache
    def reach(room: str) -> frozenset[str]:
        return below[room].union(*(reach(other) for other in below[room]))

    return [
        (room, b) for room, all_below in below.items() for b in all_below if not any(b in reach(o) for o in all_below - {b})
    ]


def rooms() -> str:
    """Boxes by level, the ground at the bottom, and a line for each import that does not follow from others."""
    by_level: dict[int, list[str]] = {}
    for room, level in levels().items():
        by_level.setdefault(level, []).append(room)
    top, width, row, box = max(by_level), 720, 62, (104, 30)
    place: dict[str, tuple[float, float]] = {}
    for level in range(top + 1):
        names = by_level[level]

        def centre(room: str) -> float:
            around = [place[b][0] for a, b in direct() if a == room and b in place]
            return sum(around) / len(around) if around else width / 2

        names.sort(key=lambda room: (centre(room), room))
        for i, room in enumerate(names):
            place[room] = (width * (i + 0.5) / len(names), (top - level) * row + 24)
    lines = []
    for a, b in direct():
        (x1, y1), (x2, y2) = place[a], place[b]
        y1, y2 = y1 + box[1] / 2, y2 - box[1] / 2
        middle = (y1 + y2) / 2
        lines.append(f'<path d="M{x1:.0f} {y1:.0f}C{x1:.0f} {middle:.0f} {x2:.0f} {middle:.0f} {x2:.0f} {y2:.0f}"/>')
    boxes = [_box(name, x, y, box) for name, (x, y) in place.items()]
    height = top * row + 48
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="Rooms by level; lines are imports, downwards">'
        f'<g fill="none" stroke="currentColor" stroke-opacity="0.35">{"".join(lines)}</g>'
        f'<g {FONT} font-size="15">{"".join(boxes)}</g></svg>'
    )


def _box(room: str, x: float, y: float, size: tuple[int, int] = (112, 30)) -> str:
    """The name of a room in a box around (x, y)."""
    frame = f'x="{x - size[0] / 2:.0f}" y="{y - size[1] / 2:.0f}" width="{size[0]}" height="{size[1]}" rx="6"'
    tint = f'fill="{_colour(room)}" fill-opacity="0.22" stroke="{_colour(room)}"'
    label = f'<text x="{x:.0f}" y="{y + 5:.0f}" text-anchor="middle">{room}</text>'
    return f'<rect {frame} fill="{PAPER}"/><rect {frame} {tint}/>{label}'


def _colour(room: str) -> str:
    """Blue: mathematics and data; green: computing and training; orange: what judges and reports."""
    if room in ("cli", "bench", "audit", "conformance", "mistakes", "experiments", "analysis"):
        return ORANGE
    return GREEN if room in ("kernels", "backend", "passes", "gates", "training", "exchange", "adapters", "rounding") else BLUE


WAYS: dict[str, tuple[Station, ...]] = {
    "batch": (
        Station("data", "sets.load", "bytes of a file become images 0 … 255 and labels"),
        Station("data", "standardise", "images become inputs: (pixel − mean) / deviation"),
        Station("training", "images, loop", "shuffled by a stream, cut into batches, augmented"),
        Station("training", "step", "gates ξ are drawn, ξ = 1 with probability θ"),
        Station("passes", "batch_loss, tape", "forward: layer by layer, each saves what its VJP needs"),
        Station("backend", "Backend", "for each layer the pair f, f_vjp: oracle or compiled"),
        Station("kernels", "cpu", "the arrays are multiplied and added"),
        Station("passes", "tape", "backward: ∂c/∂W by name, ∂c/∂ξ a gate"),
        Station("training", "step", "W ← W − η v"),
    ),
    "theta": (
        Station("training", "state", "θ starts at gates.initial"),
        Station("training", "coefficients", "β of each gate, from objective.beta and objective.nu"),
        Station("gates", "theta_penalty", "Σ β θ + ν R(θ) and its slope; R from spec/cost"),
        Station("gates", "estimators", "ĝ, an estimate of ∂C/∂θ, from the loss of the batch"),
        Station("training", "step", "θ ← clip(θ − η_θ (ĝ + β), 0, 1)"),
        Station("gates", "rules", "which gates may go: θ ≤ τ, or the domain of attraction"),
        Station("training", "decide", "at the end: every θ becomes 0 or 1, by comparing losses"),
    ),
    "gate": (
        Station("spec", "network, unit_links", "where it stands; which weights leave with it"),
        Station("gates", "rules, dynamics", "the rule says: it may go"),
        Station("gates", "surgery", "a smaller spec, and the indices that are left of each array"),
        Station("training", "removal", "parameters, velocity, statistics, θ are cut alike"),
        Station("training", "equivalence", "closed gate ≡ smaller network, within rounding"),
        Station("experiments", "journal", "the removal is written: step, gate, what it saved"),
        Station("exchange", "load, export", "what is left is a network like any other"),
    ),
    "mistake": (
        Station("mistakes", "priors, layers, …", "one function of the library, wrong in one way"),
        Station("mistakes", "planting", "is put in place of the right one, wherever it is used"),
        Station("audit", "claims", "the claims that it breaks must go red, no other"),
        Station("conformance", "asking", "an adapter is asked for the same numbers"),
        Station("conformance", "judging", "they differ by more than rounding: deviates"),
        Station("conformance", "judging.diagnosis", "the numbers are those of a known mistake: its name"),
        Station("conformance", "reporting", "the smallest example, as text, script and vector"),
    ),
}


def way(name: str) -> str:
    """The stations of a way, one below the other."""
    stations, row = WAYS[name], 52
    width, height = 560, len(stations) * row + 4
    words = "; ".join(f"{station.room}: {station.what}" for station in stations)
    shapes = []
    for i, station in enumerate(stations):
        y = i * row + 22
        code = 'font-family="monospace" font-size="12.5" opacity="0.75"'
        shapes.append(_box(station.room, 58, y))
        shapes.append(f'<text x="128" y="{y - 2}">{html.escape(station.what)}</text>')
        shapes.append(f'<text x="128" y="{y + 15}" {code}>{html.escape(station.place)}</text>')
        if i + 1 < len(stations):
            shapes.append(f'<path d="M58 {y + 15}v18m-4 -5l4 5l4 -5" fill="none" stroke="currentColor" stroke-opacity="0.6"/>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(words)}">'
        f'<g {FONT} font-size="15">{"".join(shapes)}</g></svg>'
    )


def picture(name: str) -> str:
    """The picture "rooms" or that of a way, in a figure."""
    return f'<figure class="{"rooms" if name == "rooms" else "way"}">{rooms() if name == "rooms" else way(name)}</figure>'
