"""ResNet-50 at 224×224, a batch of two, train mode: forward and backward of the Numba backend against PyTorch, in float64.

`python -m validation.resnet50` prints the largest relative distance over its bound (what rounding explains, `bench.agreement`)
of the logits and of all gradients, then that of logits with one filter of a middle convolution scaled by 1.001, which must be
beyond the bound. Exit code 0 if so. Half a minute of two cores when the machine is idle and the kernels are compiled.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch

from refprune import zoo
from refprune.backend import by_name
from refprune.bench import agreement
from refprune.conformance import torch_adapter
from refprune.network import initialise
from refprune.objective import BatchLoss
from refprune.streams import Streams

ALTERED = "section16.conv2.weight"


def main() -> int:
    network = zoo.build("resnet-50", {"gates": True, "units": True})
    ones, backend, streams = np.ones(network.gate_count), by_name("numba"), Streams(3)
    params = initialise(network, streams, section_scale=0.5)
    x, labels = streams.normal("x", 0, (2, 3, 224, 224)), np.array([7, 421])

    started = time.monotonic()
    loss = BatchLoss(network, backend, params, x, labels)
    evaluation = loss.evaluate(ones)
    output = evaluation.tape.output.copy()
    gradients = loss.gradients(evaluation, consume=True).params
    ours = time.monotonic() - started

    started = time.monotonic()
    module = torch_adapter.load(torch_adapter.build(network).double(), params).train()
    theirs = module(torch.from_numpy(x))
    torch.nn.functional.cross_entropy(theirs, torch.from_numpy(labels)).backward()
    want = theirs.detach().numpy()
    print(f"refprune {ours:.1f} s (compiling included), PyTorch {time.monotonic() - started:.1f} s")

    logits = agreement.outputs(network, output, want, "float64")
    found = agreement.displacements(network, 2, gradients, torch_adapter.gradients(module), "float64")
    altered = params | {ALTERED: params[ALTERED].copy()}
    altered[ALTERED][0] *= 1.001
    wrong = BatchLoss(network, backend, altered, x, labels).evaluate(ones).tape.output
    planted = agreement.outputs(network, wrong, want, "float64")
    for what, result in (("logits", logits), (f"gradients, worst {found.where}", found), ("planted mistake", planted)):
        print(f"{what}: relative L2 distance/bound {result.error:.3g}, bound {result.bound:.2g}")
    return 0 if logits.holds and found.holds and not planted.holds else 1


if __name__ == "__main__":
    sys.exit(main())
