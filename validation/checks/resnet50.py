"""ResNet-50 at 224×224, a batch of two, train mode: forward and backward of the Numba backend against PyTorch, in float64.

`python -m validation.checks.resnet50` prints for the logits and for the worst of all gradients the relative L2 distance over
its bound (what rounding and kinks explain, `bench.agreement`), and the same where one filter of a late convolution, or one
filter's gradient, is scaled by 1.001, which must be beyond the bounds. Exit code 0 if so. Half a minute when the machine is
idle.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch

from refprune.adapters.pytorch import model
from refprune.arrays import Array
from refprune.backend import Backend, load_backend
from refprune.bench import agreement
from refprune.bench.agreement import Agreement
from refprune.passes.batch_loss import BatchLoss
from refprune.passes.parameters import initialise
from refprune.spec import zoo
from refprune.streams import Streams

ALTERED = "section16.conv2.weight"


def compare(backend: Backend) -> tuple[dict[str, Agreement], dict[str, float]]:
    """What → its distance from PyTorch, and the seconds of both sides. Those that begin with "planted" must not hold."""
    network = zoo.build("resnet-50", {"gates": True, "units": True})
    ones, streams = np.ones(network.gate_count), Streams(3)
    params = initialise(network, streams, section_scale=0.5)
    x, labels = streams.normal("x", 0, (2, 3, 224, 224)), np.array([7, 421])

    started = time.monotonic()
    loss = BatchLoss(network, backend, params, x, labels)
    evaluation = loss.evaluate(ones)
    output = evaluation.tape.output.copy()
    gradients = loss.gradients(evaluation, consume=True).params
    seconds = {"refprune": time.monotonic() - started}

    started = time.monotonic()
    module = model.load(model.build(network).double(), params).train()
    theirs = module(torch.from_numpy(x))
    torch.nn.functional.cross_entropy(theirs, torch.from_numpy(labels)).backward()
    want, slopes = theirs.detach().numpy(), model.gradients(module)
    seconds["PyTorch"] = time.monotonic() - started

    def scaled(arrays: dict[str, Array]) -> dict[str, Array]:
        changed = arrays[ALTERED].copy()
        changed[0] *= 1.001
        return arrays | {ALTERED: changed}

    wrong = BatchLoss(network, backend, scaled(params), x, labels).evaluate(ones).tape.output
    return {
        "logits": agreement.outputs(network, output, want, "float64"),
        "gradients": agreement.displacements(network, 2, gradients, slopes, "float64"),
        "planted, logits": agreement.outputs(network, wrong, want, "float64"),
        "planted, gradients": agreement.displacements(network, 2, scaled(gradients), slopes, "float64"),
    }, seconds


def right(found: dict[str, Agreement]) -> bool:
    """Do all hold that should, and none that should not?"""
    return all(result.holds != what.startswith("planted") for what, result in found.items())


if __name__ == "__main__":
    results, needed = compare(load_backend("numba"))
    print(", ".join(f"{side} {value:.1f} s" for side, value in needed.items()), "(compiling included)")
    for name, result in results.items():
        print(f"{name}: {result.error:.3g} of the bound {result.bound:.2g} ({result.where})")
    sys.exit(0 if right(results) else 1)
