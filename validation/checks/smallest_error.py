"""The smallest wrong entry that is still found (E4): `python -m validation.checks.smallest_error [--dtype float32] [--repeats
N]`.

One entry of a gradient of a correct PyTorch implementation is moved by a multiple of the tensor's RMS; printed is the share of
entries that the judgement of `refprune verify` finds, over the length n of the inner products (dense layers), and for gradients
of weights of a network of 12 sections.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from refprune.adapters.pytorch.implementation import TorchImplementation
from refprune.conformance.asking.calls import perform
from refprune.conformance.asking.methods import in_precision
from refprune.conformance.judging.verdicts import judge
from refprune.conformance.levels import METHODS
from refprune.passes.parameters import initial_statistics, initialise
from refprune.rounding.noise import widened
from refprune.rounding.tolerance import UNIT
from refprune.spec.json_form import to_json
from refprune.spec.layers import Activation, BatchNorm, Conv, Dense, GlobalAveragePool, Section
from refprune.spec.network import Network
from refprune.streams import Streams

SIZES = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3)
LENGTHS = (8, 64, 512, 4096)


def dense(n: int, rng: np.random.Generator) -> dict[str, Any]:
    """A dense layer whose weight gradient sums n products, as do its outputs."""
    x, w, dy = (rng.standard_normal(shape) for shape in ((n, n), (4, n), (n, 4)))
    return {"x": x, "w": w, "b": None, "dy": dy}


def deep(norm: bool, rng: np.random.Generator) -> dict[str, Any]:
    """12 convolutional sections, 8 images."""
    norms = (BatchNorm(),) if norm else ()
    same = ((1, 1), (1, 1))
    section = Section((Conv(8, (3, 3), padding=same), *norms, Activation("relu"), Conv(8, (3, 3), padding=same), *norms))
    network = Network((8, 6, 6), (*([section] * 12), GlobalAveragePool(), Dense(5)))
    seed = int(rng.integers(2**31))
    return {
        "spec": to_json(network),
        "params": initialise(network, Streams(seed), section_scale=0.5),
        "statistics": initial_statistics(network),
        "x": rng.standard_normal((8, 8, 6, 6)),
        "target": rng.integers(0, 5, 8),
        "gates": np.ones(network.gate_count),
        "train": True,
    }


def shares(method: str, arguments: dict[str, Any], tensors: Sequence[str], precision: str, rng: np.random.Generator) -> Any:
    """Size of the change → share of the entries tried (8 of each tensor) in which it is found."""
    mine = TorchImplementation()
    mine.precision = precision
    given = in_precision(arguments, precision)
    expected = METHODS[method].expect(widened(given), UNIT[precision])
    answer = perform(mine, method, METHODS[method].results, given, twice=False).answer
    assert judge(expected, answer, UNIT[precision]).kind == "conforms"
    alone = dataclasses.replace(expected, ambiguous=0)  # one entry moves no branch
    found = []
    for size in SIZES:
        seen = []
        for name in tensors:
            for entry in rng.choice(answer[name].size, size=min(8, answer[name].size), replace=False):
                moved = answer[name].astype(np.float64)
                moved.flat[entry] += size * np.sqrt(np.square(moved).mean())
                seen.append(judge(alone, {name: moved.astype(answer[name].dtype)}, UNIT[precision]).kind == "deviates")
        found.append(np.mean(seen))
    return np.array(found)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m validation.checks.smallest_error", description="The smallest wrong entry that is found."
    )
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--repeats", type=int, default=3, metavar="N")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(f"{'share of wrong entries found at':44}" + "".join(f"{size:>9.0e}" for size in SIZES) + "  of the RMS")
    for n in LENGTHS:
        rng = np.random.default_rng(n)
        rows = [shares("dense", dense(n, rng), ("y", "dw"), options.dtype, rng) for _ in range(options.repeats)]
        print(f"{f'dense, n = {n}':44}" + "".join(f"{s:>9.0%}" for s in np.mean(rows, axis=0)), flush=True)
    for norm in (False, True):
        rng = np.random.default_rng(int(norm))
        rows = []
        for _ in range(options.repeats):
            case = deep(norm, rng)
            names = [f"params/{name}" for name in case["params"] if name.endswith(".weight")]
            rows.append(shares("network", case, names, options.dtype, rng))
        title = f"12 sections{', batch-norm' if norm else ''}, weight gradients"
        print(f"{title:44}" + "".join(f"{s:>9.0%}" for s in np.mean(rows, axis=0)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
