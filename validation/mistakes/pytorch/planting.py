"""How a mistake is made in PyTorch: a subclass of the correct implementation, in which one part is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from refprune.adapters.pytorch.implementation import TorchImplementation
from refprune.adapters.pytorch.model import Module
from refprune.conformance.levels import METHODS

Function = Callable[..., Any]


class Planted(NamedTuple):
    """name: the mistake's in the catalogue; method: where it must show; mine: the implementation that makes it."""

    name: str
    method: str
    mine: type[TorchImplementation]


def with_parts(base: type[TorchImplementation] = TorchImplementation, **parts: Any) -> type[TorchImplementation]:
    """The implementation with some of its methods or attributes replaced."""
    return type("Mine", (base,), parts)


def with_modules(**parts: Any) -> type[TorchImplementation]:
    """The implementation whose networks are made with some methods of `Module` replaced."""
    return with_parts(module_type=type("Mine", (Module,), parts))


def changed(name: str, method: str, wrong: Callable[[Function, dict[str, Any]], Any]) -> Planted:
    """`method` answers wrong(right method, arguments)."""

    def answer(self: TorchImplementation, **arguments: Any) -> Any:
        return wrong(getattr(super(mine, self), method), arguments)

    mine = with_parts(**{method: answer})
    return Planted(name, method, mine)


def result(**changes: Callable[[Any, dict[str, Any]], Any]) -> Function:
    """For `changed`: the right results, some put through change(value, arguments)."""

    def wrong(right: Function, arguments: dict[str, Any]) -> Any:
        method = METHODS[right.__name__]
        found = right(**arguments)
        parts = found if isinstance(found, tuple) else (found,)
        named = found if isinstance(found, dict) else dict(zip(method.results, parts, strict=True))
        return {n: changes[n](v, arguments) if n in changes and v is not None else v for n, v in named.items()}

    return wrong


def asked(**changes: Callable[[Any], Any]) -> Function:
    """For `changed`: the right method, asked something else."""
    return lambda right, a: right(**{n: changes[n](v) if n in changes else v for n, v in a.items()})


def tensor(a: Any) -> Tensor:
    return torch.from_numpy(np.array(a))


def autograd(forward: Function, backward: Function) -> Function:
    """A function whose backward pass is not that of its forward pass: backward(dy, *inputs) → a gradient for each input."""

    class Own(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Tensor) -> Tensor:
            ctx.save_for_backward(*inputs)
            y: Tensor = forward(*inputs)
            return y

        @staticmethod
        def backward(ctx: Any, dy: Tensor) -> Any:
            return backward(dy, *ctx.saved_tensors)

    return Own.apply
