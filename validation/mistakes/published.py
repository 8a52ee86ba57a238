"""Mistakes found in public code, made again and verified: `python -m validation.mistakes.published [NAME …]`.

Each is a PyTorch implementation with one method as its source has it, written anew from what the source computes; no code is
taken from there. A row a mistake: where it was found, what `refprune verify` says, what it calls it. Exit code 0 if all are
found and named.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from refprune.adapters.pytorch.functions import hsic
from refprune.adapters.pytorch.implementation import TorchImplementation
from refprune.adapters.pytorch.model import build
from refprune.conformance import campaign
from refprune.conformance.asking.calls import InProcess
from refprune.conformance.levels import METHODS
from refprune.spec.json_form import from_json

EXAMPLES = 200


class Published(NamedTuple):
    """name: the mistake's in the catalogue; source: repository and file, or thread; method: what is judged."""

    name: str
    source: str
    method: str
    implementation: type[TorchImplementation]


class DiagonalAsRow(TorchImplementation):
    """Linear kernels of features as they are; torch.diag of a matrix is a vector, and subtracting it goes along the rows."""

    def hsic(self, x: Any, y: Any, estimator: str) -> Any:
        if estimator == "biased":
            return super().hsic(x, y, estimator)
        k, l = (self.tensor(a) @ self.tensor(a).T for a in (x, y))  # noqa: E741
        k, l = k - torch.diag(k), l - torch.diag(l)  # noqa: E741
        n = len(k)
        cross = k.sum(0) @ l.sum(0)
        return ((k @ l).trace() + k.sum() * l.sum() / (n - 1) / (n - 2) - 2 * cross / (n - 2)) / (n * (n - 3))


class BiasedUnderAnotherName(TorchImplementation):
    """Diagonals kept, (n − 1)² below, whichever estimator is asked for."""

    def hsic(self, x: Any, y: Any, estimator: str) -> Any:
        return super().hsic(x, y, "biased")


class Rootless(TorchImplementation):
    """HSIC(X, Y) over the product of both self-HSICs."""

    def cka(self, x: Any, y: Any, estimator: str, kernel: str) -> Any:
        if kernel != "linear":
            raise NotImplementedError("linear kernels only")
        a, b = ((t := self.tensor(v)) - t.mean(0) for v in (x, y))
        xy, xx, yy = (hsic(p @ p.T, q @ q.T, estimator) for p, q in ((a, b), (a, a), (b, b)))
        return xy / (xx * yy)


class BiasedByDefault(TorchImplementation):
    """Centred cross products, without the correction that would have to be asked for."""

    def cka(self, x: Any, y: Any, estimator: str, kernel: str) -> Any:
        if kernel != "linear":
            raise NotImplementedError("linear kernels only")
        a, b = ((t := self.tensor(v)) - t.mean(0) for v in (x, y))
        return (a.T @ b).square().sum() / ((a.T @ a).norm() * (b.T @ b).norm())


class Counting(TorchImplementation):
    """MACs from each layer's shapes, the way `convolution` says; parameters as they are."""

    def convolution(self, conv: torch.nn.Conv2d, shape: tuple[int, ...], padding: Any) -> float:
        raise NotImplementedError

    def complexity(self, spec: Any, theta: Any, nu: float, alpha: float, balance: float) -> Any:
        network = from_json(spec)
        module, macs = build(network), 0.0
        paddings = {layer.name: getattr(layer, "padding", None) for layer, _ in network.placed()}
        for name, part in module.parts.items():
            shape = network.input_shapes[name]
            if isinstance(part, torch.nn.Linear):
                macs += part.in_features * part.out_features
            elif isinstance(part, torch.nn.Conv2d):
                macs += self.convolution(part, shape, paddings[name])
        return {"macs": macs}


class Fractional(Counting):
    """Kernel area times all input channels, at (H − k + 2p)/s + 1 places a side, which is not rounded down."""

    def convolution(self, conv: torch.nn.Conv2d, shape: tuple[int, ...], padding: Any) -> float:
        places = [
            (size - kernel + sum(around)) / stride + 1
            for size, kernel, stride, around in zip(shape[1:], conv.kernel_size, conv.stride, padding, strict=True)
        ]
        return float(np.prod(places) * np.prod(conv.kernel_size) * conv.in_channels * conv.out_channels)


class Pointwise(Counting):
    """Right, but that a depthwise convolution is taken for a separable one: a 1×1 convolution is added to it."""

    def convolution(self, conv: torch.nn.Conv2d, shape: tuple[int, ...], padding: Any) -> float:
        places = 1
        sides = zip(shape[1:], conv.kernel_size, conv.dilation, conv.stride, padding, strict=True)
        for size, kernel, dilation, stride, around in sides:
            places *= (size - (kernel - 1) * dilation - 1 + sum(around)) // stride + 1
        macs = places * conv.weight.numel()
        if conv.groups == conv.in_channels > 1:
            macs += places * conv.in_channels * conv.out_channels
        return float(macs)


class BiasedRunningVariance(TorchImplementation):
    """Batch-norms whose running variance is fed what they normalise with."""

    def module(self, *arguments: Any, **options: Any) -> Any:
        module = super().module(*arguments, **options)
        for norm in module.modules():
            if isinstance(norm, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
                norm.register_forward_pre_hook(self._remember)
                norm.register_forward_hook(self._replace)
        return module

    @staticmethod
    def _remember(norm: Any, inputs: Any) -> None:
        norm.before = norm.running_var.clone()

    @staticmethod
    def _replace(norm: Any, inputs: Any, output: Any) -> None:
        if norm.training:
            x = inputs[0].detach()
            biased = x.var((0, *range(2, x.ndim)), correction=0)
            norm.running_var = (1 - norm.momentum) * norm.before + norm.momentum * biased


PUBLISHED: tuple[Published, ...] = (
    Published(
        "diagonal subtracted from every row",
        "dmarx/cka_pytorch issue 2; Cogito2012/DEAR issue 4; clovaai/rebias criterions/hsic.py",
        "hsic",
        DiagonalAsRow,
    ),
    Published(
        "biased HSIC called unbiased",
        "Project-MONAI/MONAI monai/metrics/embedding_collapse.py, pull request 9129",
        "hsic",
        BiasedUnderAnotherName,
    ),
    Published("CKA's denominator without its root", "ahwillia/netrep netrep/metrics/cka.py, pull request 19", "cka", Rootless),
    Published("biased CKA called unbiased", "IanPons/CKA-Layer-Pruning main.py (debiased=False)", "cka", BiasedByDefault),
    Published(
        "fractional output sizes, groups ignored",
        "AMLab-Amsterdam/L0_regularization l0_layers.py, L0Conv2d.count_expected_flops_and_l0",
        "complexity",
        Fractional,
    ),
    Published("depthwise convolutions with a pointwise one", "IanPons/CKA-Layer-Pruning main.py", "complexity", Pointwise),
    Published(
        "biased variance in the running average",
        "callummcdougall/ARENA_3.0 chapter 0.2, issue 415; ml-explore/mlx pull request 3817; rwth-i6/returnn issue 1539",
        "network",
        BiasedRunningVariance,
    ),
)


def try_out(mistake: Published, examples: int = EXAMPLES) -> tuple[bool, str, Sequence[str]]:
    """(found, first tensor that differs, names)."""
    (outcome,) = campaign.run(InProcess(mistake.implementation()), [METHODS[mistake.method]], examples, 0)
    for finding in outcome.findings:
        if finding.first is not None:
            return True, finding.first.name, [m.name for m in finding.mistakes]
    return bool(outcome.findings), "", []


def main(arguments: Sequence[str]) -> int:
    campaign.SHRINKING = 3.0
    chosen = [p for p in PUBLISHED if not arguments or any(a in p.name or a == p.method for a in arguments)]
    named = 0
    for mistake in chosen:
        found, first, names = try_out(mistake)
        named += mistake.name in names
        words = "NOT FOUND" if not found else "named" if mistake.name in names else f"called {', '.join(names) or 'nothing'}"
        print(f"{mistake.method:12} {mistake.name:45} {first:32} {words:8} {mistake.source}", flush=True)
    print(f"\n{named} of {len(chosen)} found and named")
    return 0 if named == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
