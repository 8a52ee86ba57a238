"""An example as a script that needs only the adapter, NumPy and refprune's oracle for the right answer."""

from __future__ import annotations

import pprint
from pathlib import Path
from typing import Any

import numpy as np

from ..judging.findings import Finding
from ..levels import SAMPLED

SCRIPT = '''"""{title}

{message}
"""

import numpy as np

from refprune.conformance.asking import calls, methods
from refprune.conformance.levels import METHODS, SAMPLED
{load}

arguments = {arguments}

method = (METHODS | SAMPLED)[{method!r}]
asked = {{name: value for name, value in arguments.items() if not name.startswith("_")}}
got = calls.named(method.results, implementation.{method}(**asked))
want = methods.oracle_values(method, arguments)
for name in want:
    if name in got:
        print(name, "got", {got}, "wanted", want[name], sep="\\n")
'''


def script(finding: Finding, target: str, precision: str) -> str:
    """The finding's smallest example as Python source that prints both sides.

    target: as for `refprune verify`; a file is named by its full path, so that the script runs from any folder. precision:
    in which the implementation was judged.
    """
    message = finding.message or (finding.first.worst[0].text() if finding.first and finding.first.worst else "")
    where, _, name = target.rpartition(":")
    full = f"{Path(where).resolve()}:{name}" if where.endswith(".py") else target
    return SCRIPT.format(
        title=_quoted(f"The smallest example for which {target} {finding.kind} in {finding.method}."),
        message=_quoted(message),
        load=f"\nimplementation = calls.load({full!r})\nimplementation.precision = {precision!r}",
        arguments=pprint.pformat(_source(finding.arguments), width=124, sort_dicts=False),
        method=finding.method,
        got="got[name].mean(axis=0)" if finding.method in SAMPLED else "got[name]",
    )


def _quoted(text: str) -> str:
    """`text` for the inside of a docstring: what is raised may hold quotes, backslashes and control characters."""
    shown = text if text.isprintable() else text.encode("unicode_escape").decode()
    return shown.replace("\\", "\\\\").replace('"', "'")


class _Array:
    """An array that prints as the call that makes it, every bit."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __repr__(self) -> str:
        a = self.array
        values = [repr(float(v)) if a.dtype.kind == "f" else repr(int(v)) for v in a.ravel()]
        listed = ", ".join(values).replace("nan", "np.nan").replace("inf", "np.inf")
        shape = "" if a.ndim == 1 else f".reshape({a.shape})"
        return f"np.array([{listed}], dtype={a.dtype.name!r}){shape}"


def _source(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _Array(value)
    if isinstance(value, dict):
        return {key: _source(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_source(v) for v in value)
    return value
