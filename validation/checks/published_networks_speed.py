"""Seconds for CIFAR-10's 10,000 test images, the five published ResNet-56 networks: `Predictor` beside eager PyTorch.

`python -m validation.checks.published_networks_speed` takes batches of 250 by turns, so that a slow moment of the machine
slows all sides alike, all cores on every side, float32, and prints a line a network: seconds and accuracy of refprune and of
both memory layouts of PyTorch. `--images N` takes the first N. Exit code 0 if all three classify every image alike. Needs
REFPRUNE_DATA and REFPRUNE_MODELS.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from refprune.arrays import Array
from refprune.backend import load_backend
from refprune.bench import timing, torch_side
from refprune.bench.cases import all_threads
from refprune.data import sets, standardise
from refprune.exchange import load
from refprune.exchange.trained import Trained
from refprune.passes.predictor import Predictor

NAMES = ("base", *(f"cka-removed{n:02d}" for n in (1, 2, 10, 20)))
BATCH = 250

Predict = Callable[[Array], Array]


def torch_predict(trained: Trained, layout: str) -> Predict:
    module = torch_side.loaded(trained.network, trained.params, trained.statistics, layout).eval()

    def predict(x: Array) -> Array:
        with torch.inference_mode():
            return np.asarray(module(torch.from_numpy(x).to(memory_format=torch_side.LAYOUTS[layout])).numpy())

    return predict


def by_turns(sides: dict[str, Predict], x: Array) -> dict[str, tuple[float, Array]]:
    """Side → (seconds, class of every image). The first batch runs once before, untimed, to compile."""
    for predict in sides.values():
        predict(x[:BATCH])
    seconds, chosen = dict.fromkeys(sides, 0.0), {side: np.empty(len(x), np.intp) for side in sides}
    for batch in (slice(start, start + BATCH) for start in range(0, len(x), BATCH)):
        for side, predict in sides.items():
            time.sleep(timing.REST)
            started = time.perf_counter()
            chosen[side][batch] = predict(x[batch]).argmax(axis=1)
            seconds[side] += time.perf_counter() - started
    return {side: (seconds[side], chosen[side]) for side in sides}


def main(images: int) -> int:
    torch_side.prepare(all_threads())
    backend, dataset, alike = load_backend("numba", threads=all_threads()), sets.load("cifar10"), True
    x = standardise.standardisation(dataset, "pixel_mean", images=0, dtype="float32")(dataset.test_images[:images])
    for name in NAMES:
        trained = load.load(f"resnet56-cka/resnet56-{name}.npz", "resnet-cifar-keras", dtype="float32")
        sides: dict[str, Predict] = {"refprune": Predictor(trained.network, backend, trained.params, trained.statistics)}
        sides |= {f"torch {layout}": torch_predict(trained, layout) for layout in torch_side.LAYOUTS}
        found = by_turns(sides, x)
        alike &= all(np.array_equal(found["refprune"][1], chosen) for _, chosen in found.values())
        labels = dataset.test_labels[: len(x)]
        cells = (f"{side} {taken:.2f} s, {(chosen == labels).mean():.2%}" for side, (taken, chosen) in found.items())
        print(f"{name}: {'; '.join(cells)}", flush=True)
    return 0 if alike else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    sys.exit(main(parser.parse_args().images))
