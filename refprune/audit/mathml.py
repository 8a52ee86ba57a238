r"""Formulas of the catalogue as MathML: a line of Unicode with `_`, `^`, `\frac{a}{b}`, `√(…)` and `{…}` for groups.

`\{` and `\}` are braces that are seen. Letters that touch are one upright word (log, HSIC): products have spaces, m u.
"""

from __future__ import annotations

import html
import re

from ..errors import InputError

ACCENTS = {"\u0303": "~", "\u0302": "^"}  # combining tilde and hat
TOKEN = re.compile(rf"\\[a-z]+|\\.|√\(|[^\W\d_][{''.join(ACCENTS)}]|[{{}}_^]|[A-Za-zäö]{{2,}}|\d+(?:\.\d+)?|\s+|.")
SPACE = '<mspace width="0.25em"></mspace>'
SHOWN = {"\\{": "{", "\\}": "}"}


def mathml(formula: str) -> str:
    """The <math> element of a formula. InputError for an unknown command and for braces that do not match."""
    tokens = TOKEN.findall(formula)
    row = _row(tokens, None)
    return f'<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">{row}</math>'


def _row(tokens: list[str], end: str | None) -> str:
    """Everything up to `end`, which is taken too."""
    parts: list[str] = []
    last = ""
    while tokens:
        token = tokens.pop(0)
        if token == end:
            break
        if token in "_^" and parts:
            parts.append(f"<{_script(token)}>{parts.pop()}{_atom(tokens)}</{_script(token)}>")
        elif token.isspace():
            if tokens and (_is_word(last) or _is_word(tokens[0])):
                parts.append(SPACE)
        else:
            tokens.insert(0, token)
            parts.append(_atom(tokens))
        last = token if not token.isspace() else last
    else:
        if end is not None:
            raise InputError(f"formula: {end!r} is missing")
    return parts[0] if len(parts) == 1 else f"<mrow>{''.join(parts)}</mrow>"


def _is_word(token: str) -> bool:
    return len(token) > 1 and token.isalpha()


def _script(token: str) -> str:
    return "msub" if token == "_" else "msup"


def _atom(tokens: list[str]) -> str:
    token = tokens.pop(0) if tokens else ""
    if token == "\\frac":
        return f"<mfrac>{_atom(tokens)}{_atom(tokens)}</mfrac>"
    if token == "√(":
        return f"<msqrt>{_inside(tokens)}</msqrt>"
    if token == "{":
        return _row(tokens, "}")
    if token.isspace():
        return _atom(tokens)
    if not token or token == "}" or (token[0] == "\\" and token not in SHOWN):
        raise InputError(f"formula: {token!r} is not known here; known are \\frac, \\{{, \\}}, _, ^, √( and groups in braces")
    text = html.escape(SHOWN.get(token, token))
    if token[:1].isdigit():
        return f"<mn>{text}</mn>"
    if token[-1] in ACCENTS:
        return f'<mover accent="true"><mi>{token[0]}</mi><mo>{ACCENTS[token[-1]]}</mo></mover>'
    if _is_word(token):
        return f'<mi mathvariant="normal">{text}</mi>'
    return f"<mi>{text}</mi>" if token.isalpha() else f"<mo>{text}</mo>"


def _inside(tokens: list[str]) -> str:
    """Up to the parenthesis that closes a root; those inside it are its own."""
    depth, found = 1, list[str]()
    while tokens:
        token = tokens.pop(0)
        depth += (token in ("(", "√(")) - (token == ")")
        if not depth:
            return _row(found, None)
        found.append(token)
    raise InputError("formula: ')' is missing behind √(")
