r"""Formulas of the catalogue as MathML: a line of Unicode with `_`, `^`, `\frac{a}{b}` and `{…}` for groups."""

from __future__ import annotations

import html
import re

TOKEN = re.compile(r"\\frac|[{}_^]|[A-Za-zäö]{2,}|\d+(?:\.\d+)?|\s+|.")


def mathml(formula: str) -> str:
    """The <math> element of a formula."""
    tokens = TOKEN.findall(formula)
    return f'<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">{_row(tokens)}</math>'


def _row(tokens: list[str], end: str | None = None) -> str:
    parts: list[str] = []
    while tokens:
        token = tokens.pop(0)
        if token == end:
            break
        if token in "_^" and parts:
            parts.append(f"<{_script(token)}>{parts.pop()}{_atom(tokens)}</{_script(token)}>")
        elif not token.isspace():
            tokens.insert(0, token)
            parts.append(_atom(tokens))
    return parts[0] if len(parts) == 1 else f"<mrow>{''.join(parts)}</mrow>"


def _script(token: str) -> str:
    return "msub" if token == "_" else "msup"


def _atom(tokens: list[str]) -> str:
    token = tokens.pop(0) if tokens else ""
    if token == "\\frac":
        return f"<mfrac>{_atom(tokens)}{_atom(tokens)}</mfrac>"
    if token == "{":
        return _row(tokens, "}")
    if token.isspace():
        return _atom(tokens)
    text = html.escape(token)
    if token[:1].isdigit():
        return f"<mn>{text}</mn>"
    if len(token) > 1:
        return f'<mi mathvariant="normal">{text}</mi>'
    return f"<mi>{text}</mi>" if token.isalpha() else f"<mo>{text}</mo>"
