"""The process that reads HDF5 for `keras_files`: a file on standard input, an .npz with arrays and what was said as output."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import numpy as np

from ..errors import DataError
from .keras_files import read_here


def main() -> None:
    """One file. What is wrong with it is part of the answer."""
    said: dict[str, Any]
    try:
        arrays, ordered, layers = read_here(sys.stdin.buffer.read())
        said = {"ordered": ordered, "layers": layers}
    except DataError as error:
        arrays, said = {}, {"error": str(error)}
    except Exception as error:  # a corrupt file may raise nearly anything; whatever it is, the file is at fault
        arrays, said = {}, {"error": f"no Keras weights: {type(error).__name__}: {error}"}
    buffer = io.BytesIO()
    np.savez(buffer, said=np.array(json.dumps(said)), **{f"array/{name}": a for name, a in arrays.items()})  # type: ignore[arg-type]
    sys.stdout.buffer.write(buffer.getvalue())


if __name__ == "__main__":
    main()
