"""How the API page shows a docstring: parameters as a list, examples as code, each number of SPEC as a link to its formula."""

from __future__ import annotations

import re
from typing import Any

import griffe

PARAMETER = re.compile(r"^([a-z_][\w.]*(?:, [a-z_]\w*)*):\s+(?=\S)")
NUMBER = re.compile(r"(?<![\w`#.])([NPFODCKGE][1-9]\d*)\b(?!`)")


class Docstrings(griffe.Extension):
    """Rewrites the docstring of each object that has one."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = shown(obj.docstring.value)


def shown(text: str) -> str:
    """The docstring as Markdown: a line "name: …", up to the next, is an item; a paragraph ">>> …" is an example."""
    parts: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        if paragraph.lstrip().startswith(">>>"):
            parts.append(f"```pycon\n{paragraph}\n```")
        else:
            listed = _listed(paragraph, first=not parts)
            parts.append(NUMBER.sub(lambda found: f"[{found[1]}](spec.md#{found[1].lower()})", listed))
    return "\n\n".join(parts)


def _listed(paragraph: str, *, first: bool) -> str:
    """Lines that begin with the name of a parameter become items; the first line of a docstring is none."""
    lines: list[str] = []
    inside = False
    for i, line in enumerate(paragraph.splitlines()):
        parameter = None if first and i == 0 else PARAMETER.match(line)
        if parameter is not None:
            lines += [] if inside else [""]
            lines.append(f"- `{parameter[1]}`: {line[parameter.end() :]}")
            inside = True
        else:
            lines.append(f"    {line.strip()}" if inside else line)
    return "\n".join(lines)
