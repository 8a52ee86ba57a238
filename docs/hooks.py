"""Hooks of the site: validation/SPEC.md becomes the page spec.md, formulas are typeset as MathML, pictures drawn."""

from __future__ import annotations

import html
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from pictures_of_rooms import picture

from refprune.audit.catalogue import catalogue
from refprune.audit.mathml import mathml
from refprune.errors import InputError

SPEC = Path(__file__).parents[1] / "validation" / "SPEC.md"
PLACE = "<!-- the hook puts SPEC here -->"
FORMULA = re.compile(r"^```formula\n(.*?)\n```$", flags=re.S | re.M)
PICTURE = re.compile(r"<!-- picture: (\w+) -->")

ITEM = re.compile(r"^([A-Z]\d+)  (.*)$")
ROW = re.compile(r"^    ([^\s:](?:[^:]*?[^\s:])?)\s{2,}(\S.*?)\s{2,}(\S.*)$")

#: What stands inside a formula and in no other text.
SIGNS = "=≤≥<>≠≡≈⇔⇒→∈∘⊙·×∩√∑Σ∫∂∇∞±∘↦‖^ₘ₊₀₁ᵢⱼₖ⁻⁺ˡᴸᵀ⁰¹²⁴⁵⁷⁸³"
GREEK = re.compile(r"[Α-ω]")
SUPERSCRIPT = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ˡᴸᵀ⁎", "0123456789+−lLT*", strict=True))
SUBSCRIPT = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋ᵢⱼₘₖ", "0123456789+−ijmk", strict=True))

#: Words that may stand inside a formula, beside single letters, numbers and operators.
FUNCTIONS = frozenset(
    {"argmin", "logaddexp", "softplus", "expm", "hyperu", "logit", "params", "momentum", "MACs", "HSIC", "CKA", "Bern", "mean"}
    | {"clip", "path", "ReLU", "log", "exp", "min", "max", "var", "tr", "KL", "Im", "fl"}
)
SHORT_WORDS = frozenset(
    {
        "a",
        "A",
        "an",
        "as",
        "at",
        "At",
        "be",
        "by",
        "do",
        "e.g",
        "i.e",
        "if",
        "If",
        "in",
        "In",
        "is",
        "it",
        "no",
        "of",
        "on",
        "or",
    }
    | {"so", "to", "up", "we"}
)
REFERENCE = re.compile(r"^[(\[]*[NPFODCKGE]\d+\b")
OPERATOR = re.compile(r"^[+−\-/(){}\[\]|~,;:]+$")
PAIRS = {")": "(", "]": "[", "}": "{"}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page with SPEC and the pictures in their places."""
    if PLACE in markdown:
        markdown = markdown.replace(PLACE, spec_page(SPEC.read_text(encoding="utf-8")))
    markdown = FORMULA.sub(lambda found: _displayed(found[1]), markdown)
    return PICTURE.sub(lambda found: picture(found[1]), markdown)


def spec_page(spec: str) -> str:
    """Markdown with a heading for each number, its claim from the audit's catalogue, and SPEC's text."""
    claims = {claim.number: claim for claim in catalogue()}
    parts: list[str] = []
    for block in _blocks(spec):
        found = ITEM.match(block[0])
        if found is None:
            parts.append("\n".join(block) if block[0].startswith("#") else _flow(block))
            continue
        number, first = found.groups()
        parts.append(f"### {number} {{ #{number.lower()} }}")
        if number in claims:
            parts.append(f'<p class="claim">{html.escape(claims[number].statement)}</p>')
            parts.append(_displayed(claims[number].formula))
        parts.append(_flow([first, *block[1:]]))
    return "\n\n".join(parts)


def _displayed(formula: str) -> str:
    """Each line of a formula on a line of its own."""
    return "".join(f'<div class="formula">{_steady(mathml(line))}</div>' for line in formula.splitlines())


def _blocks(spec: str) -> list[list[str]]:
    """Headings, numbered items and paragraphs; the title and the rules between the letters are left out."""
    blocks: list[list[str]] = []
    open_block = False
    for line in spec.splitlines()[1:]:
        if not line.strip() or set(line.strip()) == {"-"}:
            open_block = False
        elif line.startswith(("#", "- ")) or ITEM.match(line) or not open_block:
            blocks.append([line])
            open_block = not line.startswith("#")
        else:
            blocks[-1].append(line)
    return blocks


def _flow(lines: list[str]) -> str:
    """Running text as a paragraph; three rows or more of three columns as a table."""
    rows = [bool(ROW.match(line)) for line in lines]
    first = next((i for i in range(len(rows)) if rows[i] and sum(rows[i : i + 6]) >= 3), None)
    if first is None:
        return _paragraph(" ".join(line.strip() if i else line for i, line in enumerate(lines)))
    cells: list[list[str]] = []
    end = first
    while end < len(lines) and (ROW.match(lines[end]) or lines[end].startswith(" " * 20)):
        row = ROW.match(lines[end])
        if row is not None:
            cells.append(list(row.groups()))
        else:
            cells[-1][2] += " " + lines[end].strip()
        end += 1
    body = "".join("<tr>" + "".join(f"<td>{typeset(cell)}</td>" for cell in row) + "</tr>" for row in cells)
    after = [_flow(lines[end:])] if end < len(lines) else []
    return "\n\n".join([_flow(lines[:first]), f"<table>{body}</table>", *after])


def _paragraph(text: str) -> str:
    bullet = text.startswith("- ")
    return f'<p class="{"erratum" if bullet else "text"}">{typeset(text[2:] if bullet else text)}</p>'


def typeset(text: str) -> str:
    """Text as HTML; its formulas as MathML, code and emphasis as in Markdown."""
    pieces = re.split(r"(`[^`]+`|\*\*[^*]+\*\*|(?<![\w*])\*[A-Za-z][^*]*[A-Za-z]\*(?!\w))", text)
    return "".join(_marked(piece) if i % 2 else _formulas(piece) for i, piece in enumerate(pieces))


def _marked(piece: str) -> str:
    for mark, tag in (("`", "code"), ("**", "b"), ("*", "em")):
        if piece.startswith(mark):
            return f"<{tag}>{html.escape(piece.strip(mark))}</{tag}>"
    return html.escape(piece)


def _formulas(text: str) -> str:
    """Runs of words that can only be mathematics, each as one formula."""
    words = re.split(r"(\s+)", text)
    shown: list[str] = []
    i = 0
    while i < len(words):
        end = _run(words, i)
        if end > i:
            shown.append(_formula("".join(words[i:end])))
            i = end
        elif len(words[i]) > 1 and words[i][0] in "([":
            shown.append(words[i][0])
            words[i] = words[i][1:]
        else:
            shown.append(html.escape(words[i]))
            i += 1
    return "".join(shown)


def _run(words: list[str], start: int) -> int:
    """The end of the formula that begins at words[start], or start if none does."""
    if not _joins(words[start]) or OPERATOR.match(words[start]):
        return start
    i, end = start, start
    while i < len(words) and _joins(words[i]):
        end = i + 1
        if words[i][-1] in ".;:" or (words[i][-1] == "," and not _unclosed(words[start:end])):
            break
        i += 2  # the white space between two words is passed over
        if i >= len(words) or len(words[i - 1]) > 2 or (words[i - 2][-1].isdigit() and words[i][:1].isdigit()):
            break
    while end > start and (opening := _unclosed(words[start:end])):
        end = start + opening[-1] if words[start + opening[-1]][0] in "([{" else start
    while end > start and (words[end - 1].isspace() or words[end - 1] in ("—", "–", "(", "[")):
        end -= 1
    return end if any(_is_math(word) for word in words[start:end]) else start


def _unclosed(words: list[str]) -> list[int]:
    """Which words hold an opening bracket that is not closed behind it."""
    found: list[tuple[str, int]] = []
    for i, word in enumerate(words):
        for character in word:
            if character in PAIRS.values():
                found.append((character, i))
            elif character in PAIRS and found and found[-1][0] == PAIRS[character]:
                found.pop()
    return [i for _, i in found]


def _joins(word: str) -> bool:
    """Whether a word may stand inside a formula."""
    bare = word.lstrip("([").rstrip(".,;:")
    if not word or word.isspace() or bare in SHORT_WORDS or REFERENCE.match(word) or word.startswith("http"):
        return False
    runs = re.findall("[A-Za-z]+", re.sub(r"_[a-z]+|\d", " ", word))
    return all(len(run) < 3 or run in FUNCTIONS for run in runs)


def _is_math(word: str) -> bool:
    """Whether a word makes a formula of what it stands in."""
    return bool(GREEK.search(word) or any(sign in SIGNS for sign in word) or re.search(r"[A-Za-z]_[A-Za-z0-9{]", word))


def _formula(text: str) -> str:
    """A run as MathML; brackets and stops at its ends that do not belong to it stay text, as does what cannot be read."""
    before, inner, after = "", text, ""
    while inner and (inner[-1] in ".,;: " or _alone(inner, inner[-1], PAIRS)):
        inner, after = inner[:-1], inner[-1] + after
    while inner and (inner[0] == " " or _alone(inner, inner[0], {left: right for right, left in PAIRS.items()})):
        inner, before = inner[1:], before + inner[0]
    try:
        first, *others = (mathml(_notation(piece)) for piece in _pieces(inner))
    except InputError:
        return html.escape(text)
    infix = [piece.replace("<mo>", '<mo form="infix">', 1) for piece in others]  # the sign that a piece begins with
    shown = " ".join([first, *infix]).replace(' display="block"', "").replace("ʘ", "∇")
    shown = re.sub(r"<mn>(\d{1,3})</mn>((?:<mo>,</mo><mn>\d{3}</mn>)+)", _number, shown)
    shown = re.sub("<mi>(.)</mi><mo>\u0307</mo>", r'<mover accent="true"><mi>\1</mi><mo>˙</mo></mover>', shown)
    return html.escape(before) + _steady(shown) + html.escape(after)


def _pieces(formula: str) -> list[str]:
    """A formula, if it is long in pieces between which a line may break: at a sign that stands outside of brackets."""
    pieces, depth = [""], 0
    for word in formula.split():
        if word in ("=", "+", "−", "∘", "·", "≤", "⇔", "⇒") and depth == 0 and len(formula) > 24 and pieces[-1]:
            pieces.append("")
        pieces[-1] += f" {word}"
        depth += sum(word.count(left) for left in "([{") - sum(word.count(right) for right in ")]}")
    return [piece.strip() for piece in pieces]


def _alone(text: str, bracket: str, partner: dict[str, str]) -> bool:
    """Whether there are more of this bracket than of its partner."""
    return bracket in partner and text.count(bracket) > text.count(partner[bracket])


def _steady(formula: str) -> str:
    """Brackets keep their size where they carry an exponent."""
    return re.sub(r"<mo>([()\[\]{}])</mo>", r'<mo stretchy="false">\1</mo>', formula)


def _number(found: re.Match[str]) -> str:
    return f"<mn>{found[1]}{re.sub('<[^>]*>', '', found[2])}</mn>"


def _notation(text: str) -> str:
    """SPEC's Unicode as `mathml` reads it: raised and lowered characters as scripts, sets in visible braces."""
    text = text.replace("∇\u0302", "ʘ\u0302").replace("**", "^{**}")  # `mathml` puts accents on letters
    text = re.sub(r"(?<![{*])\*(?!\*)", "^*", text)
    for mark, table in (("^", SUPERSCRIPT), ("_", SUBSCRIPT)):
        text = re.sub(f"[{''.join(table)}]+", lambda m, t=table, s=mark: s + "{" + "".join(t[c] for c in m[0]) + "}", text)
    out, depth = "", 0
    for i, character in enumerate(text):
        if character == "{" and (i == 0 or text[i - 1] not in "_^"):
            out, depth = out + "{\\{", depth + 1
        elif character == "}" and depth and _closes_set(text[:i]):
            out, depth = out + "\\}}", depth - 1
        else:
            out += character
    return out


def _closes_set(text: str) -> bool:
    """Whether the innermost open brace of `text` is that of a set."""
    open_braces: list[bool] = []
    for i, character in enumerate(text):
        if character == "{":
            open_braces.append(i == 0 or text[i - 1] not in "_^")
        elif character == "}" and open_braces:
            open_braces.pop()
    return bool(open_braces) and open_braces[-1]
