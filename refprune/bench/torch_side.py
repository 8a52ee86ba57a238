"""PyTorch's side of the benchmark: eager, as its users write it. Imported only where PyTorch is asked for."""

from __future__ import annotations

import signal
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..adapters.pytorch import model
from ..arrays import Array, Arrays
from ..formulas.priors import SpikeSlab
from ..spec.layers import Conv
from ..spec.network import Network

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def prepare(threads: int) -> str:
    """Sets PyTorch's number of threads; returns its version."""
    torch.set_num_threads(threads)
    return str(torch.__version__)


def layouts(network: Network) -> list[str]:
    """The memory layouts that make a difference for the network."""
    convolutional = any(isinstance(layer, Conv) for layer, _ in network.placed())
    return list(LAYOUTS) if convolutional else ["contiguous"]


def loaded(network: Network, params: Arrays, statistics: Arrays, layout: str) -> model.Module:
    """The network as a PyTorch module in one of LAYOUTS."""
    module = model.load(model.build(network), params, statistics)
    module.to(memory_format=LAYOUTS[layout])
    return module


def _tensor(x: Array, layout: str) -> Tensor:
    copy = torch.from_numpy(np.array(x))
    return copy.to(memory_format=LAYOUTS[layout]) if x.ndim == 4 else copy


class Training:
    """Steps of SGD with momentum (PyTorch's fused one) on one batch."""

    def __init__(
        self,
        network: Network,
        params: Arrays,
        statistics: Arrays,
        x: Array,
        labels: Array,
        *,
        learning_rate: float,
        momentum: float,
        layout: str = "contiguous",
        compiled: bool = False,
    ) -> None:
        self.module = loaded(network, params, statistics, layout).train()
        self.run: Callable[[Tensor], Tensor] = torch.compile(self.module) if compiled else self.module
        self.x, self.labels = _tensor(x, layout), torch.from_numpy(labels)
        self.sgd = torch.optim.SGD(self.module.parameters(), lr=learning_rate, momentum=momentum, fused=True)
        for parameter in self.module.parameters():  # made before the first step, as refprune's are: memory is compared
            self.sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    def step(self) -> None:
        self.sgd.zero_grad()
        nn.functional.cross_entropy(self.run(self.x), self.labels).backward()
        self.sgd.step()

    def arrays(self) -> Arrays:
        return model.arrays(self.module)

    def velocity(self) -> Arrays:
        """The momenta under the parameters' names."""
        return model.by_parameter(self.module, lambda p: self.sgd.state[p]["momentum_buffer"])


def gradients(network: Network, params: Arrays, statistics: Arrays, x: Array, labels: Array) -> Arrays:
    """{"loss", "output" and every parameter: value or gradient} in train mode."""
    module = loaded(network, params, statistics, "contiguous").train()
    output = module(torch.from_numpy(x))
    loss = nn.functional.cross_entropy(output, torch.from_numpy(labels))
    loss.backward()
    return model.gradients(module) | {"loss": loss.detach().numpy(), "output": output.detach().numpy()}


class Inference:
    """Logits of one batch in eval mode, without autograd."""

    def __init__(
        self,
        network: Network,
        params: Arrays,
        statistics: Arrays,
        x: Array,
        *,
        layout: str = "contiguous",
        compiled: bool = False,
    ) -> None:
        module = loaded(network, params, statistics, layout).eval()
        self.run: Callable[[Tensor], Tensor] = torch.compile(module) if compiled else module
        self.x = _tensor(x, layout)

    def __call__(self) -> Array:
        with torch.inference_mode():
            logits: Array = self.run(self.x).numpy()
        return logits


def convolution(x: Array, w: Array, dy: Array, layout: str, task: str) -> Callable[[], Array]:
    """3×3 convolution with padding 1 and stride 1, "forward", or one of its gradients, by itself."""
    tx, tw, tdy = (_tensor(a, layout) for a in (x, w, dy))
    if task == "forward":
        return lambda: np.asarray(nn.functional.conv2d(tx, tw, padding=1).numpy())
    which = ("backward-data", "backward-weights").index(task)
    options: tuple[Any, ...] = (None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [which == 0, which == 1, False])
    return lambda: np.asarray(torch.ops.aten.convolution_backward(tdy, tx, tw, *options)[which].numpy())


def linear_cka(x: Array, y: Array, estimator: str) -> float:
    """Linear CKA in float64, in feature space on centred columns (K1, K2)."""
    a, b = (t - t.mean(0) for t in (torch.from_numpy(x), torch.from_numpy(y)))
    n = len(a)

    def hsic(p: Tensor, q: Tensor) -> Tensor:
        total = (p.T @ q).square().sum()
        if estimator == "unbiased":
            k, l = p.square().sum(1), q.square().sum(1)  # noqa: E741
            total = total - n / (n - 2) * (k @ l) + k.sum() * l.sum() / ((n - 1) * (n - 2))
        return total

    return float(hsic(a, b) / (hsic(a, a) * hsic(b, b)).sqrt())


def spike_slab(w: Array, prior: SpikeSlab) -> Callable[[], tuple[Array, Array]]:
    """log p and score of single weights, w N×1 (P1)."""
    x = torch.from_numpy(w)[:, 0]
    (spike, slab), (a, b) = prior.log_constants(1), prior.log_odds(1)

    def run() -> tuple[Array, Array]:
        square = x * x
        log_p = torch.logaddexp(spike - square * (0.5 / prior.spike), slab - square * (0.5 * prior.precision))
        r = torch.sigmoid(a + b * square)
        score = -x * ((1.0 - r) / prior.spike + r * prior.precision)
        return log_p.numpy(), score[:, None].numpy()

    return run


class _TooLong(BaseException):
    """Raised by the alarm; no Exception, so that nothing on the way catches it."""


def attempt(make: Callable[[], Callable[[], object]], seconds: float) -> tuple[Callable[[], object] | None, str]:
    """(make()'s function, called once so that it compiles, "works"), or (None, why not) if it fails or takes over `seconds`.

    The limit is kept by an alarm signal: where there is none (Windows, other threads) compiling takes as long as it takes.
    """
    timed = hasattr(signal, "SIGALRM") and threading.current_thread() is threading.main_thread()

    def ring(number: int, frame: object) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, ring) if timed else None
    try:
        if timed:
            signal.setitimer(signal.ITIMER_REAL, seconds)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.compiler.reset()  # or PyTorch, after a few networks, goes on without compiling
            side = make()
            side()
    except _TooLong:
        return None, f"compiling took longer than {seconds:.0f} s"
    except Exception as error:  # whatever a compiler may raise: the benchmark goes on without it
        return None, f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0][:160]}"
    finally:
        if timed:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, before)
    return side, "works"
