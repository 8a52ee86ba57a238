"""Mistakes in networks, layers and surgery (N, G)."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ..arrays import Saved, per_channel
from ..backend import ORACLE
from ..spec.layers import Conv, Section, SubsamplePad
from ..spec.network import Network
from .planting import Function, Mistake, field_of, gradient, instead, options, output, result


def _padding_swapped(padding: Any) -> Any:
    return tuple((after, before) for before, after in padding)


def _unbiased_batch_norm(y: Any, x: Any, gain: Any, bias: Any) -> Any:
    count = x.size // x.shape[1]
    b = per_channel(bias, x.ndim)
    return (y - b) * np.sqrt((count - 1) / count) + b


def _first_columns(f: Function) -> Function:
    """Columns of the next layer are cut from its end."""

    def wrong(self: Any, old: Any) -> Any:
        columns = {layer: np.arange(len(index)) for layer, index in self.columns.items()}
        return f(dataclasses.replace(self, columns=columns), old)

    return wrong


def _fixed_open(f: Function) -> Function:
    def wrong(network: Any, keep: Any, **options: Any) -> Any:
        return f(network, np.ones_like(keep), **options | {"fix": ~np.asarray(keep, dtype=bool)})

    return wrong


def _padded(f: Function) -> Function:
    """Option-B shortcuts of removed sections become strided pixels with zero channels behind, where none are lost."""

    def wrong(network: Network, *a: Any, **k: Any) -> Any:
        cut = f(network, *a, **k)
        shortcuts = {part.name for layer in network.layers if isinstance(layer, Section) for part in layer.shortcut}
        layers = []
        for layer in cut.network.layers:
            more = layer.channels - network.input_shapes[layer.name][0] if isinstance(layer, Conv) else -1
            pads = layer.name in shortcuts and isinstance(layer, Conv) and more >= 0
            layers.append(SubsamplePad(layer.stride, 0, more, name=layer.name) if pads else layer)
        return dataclasses.replace(cut, network=dataclasses.replace(cut.network, layers=tuple(layers)))

    return wrong


def _gradient_leaks(g: Any, saved: Saved, dy: Any) -> Any:
    return dy


def _undivided(f: Function) -> Function:
    """Every pixel of a window receives all of dy."""
    return lambda saved, dy: f(saved, dy * saved.values[1])


def _overflowing_sigmoid(x: Any) -> Any:
    with np.errstate(all="ignore"):
        y = 1.0 / (1.0 + np.exp(-x))
    return y, Saved((y,))


def _of_modulus(f: Function) -> Function:
    def wrong(x: Any, **options: Any) -> Any:
        y, saved = f(x, **options)
        return (np.where(x.real > 0, np.abs(x), y) if np.iscomplexobj(x) else y), saved

    return wrong


LAYERS = (
    Mistake(
        "section without its shortcut",
        "oracle.layers:add",
        output(lambda y, s, p: y - s if y.shape == p.shape else y),
        ("N1", "G1"),
    ),
    Mistake("gate not applied", "oracle.layers:gate", output(lambda y, x, g: x), ("N1", "G1")),
    Mistake(
        "option A with the channels at the other end",
        "oracle.layers:subsample_pad",
        output(lambda y, x: y[:, ::-1][:, :, ::1]),
        ("N1", "N5", "G1"),
    ),
    Mistake("gate always behind the path", "spec.layers:Section.gate_index", instead(lambda self: len(self.path)), ("N2",)),
    Mistake("gate missing in the backward pass", "oracle.layers:gate_vjp", gradient(0, _gradient_leaks), ("N4", "O3", "G1")),
    Mistake("pruned columns taken from the end", "gates.surgery:Cut.arrays", _first_columns, ("N4",)),
    Mistake(
        "empty sections closed in silence", "gates.surgery:prune", field_of("closed_for_emptiness", lambda names: ()), ("N4",)
    ),
    Mistake(
        "biased variance re-estimated",
        "passes.statistics:average_statistics",
        lambda f: lambda n, s, b: f(n, s, [{k: (m, v * (c - 1) / c, c) for k, (m, v, c) in x.items()} for x in b]),
        ("N4",),
    ),
    Mistake("batch-norm divides by n − 1", "oracle.layers:batch_norm", output(_unbiased_batch_norm), ("N1", "G1")),
    Mistake("batch-norm leaves its mean in", "oracle.layers:batch_norm", output(lambda y, x, g, b: y + 0.1), ("N1", "G1")),
    Mistake("what is removed is fixed to 1", "gates.surgery:prune", _fixed_open, ("N3", "N4", "N5", "K6")),
    Mistake(
        "no ρ behind a removed section", "gates.surgery:_is_nonnegative", instead(lambda layers, before=False: True), ("N3",)
    ),
    Mistake("option B of a removed section made option A", "gates.surgery:prune", _padded, ("N3", "N5")),
    Mistake("MACs counted twice", "spec.cost:macs", result(lambda n: 2 * n), ("N6", "K6", "C2")),
    Mistake(
        "biases not counted",
        "spec.cost:parameters",
        lambda f: lambda n: sum(int(np.prod(s)) for k, s in n.parameter_shapes.items() if not k.endswith(".bias")),
        ("N6", "C2"),
    ),
    Mistake(
        "LeNet-5 with padding", "spec.zoo:lenet5", lambda f: lambda: dataclasses.replace(f(), layers=f().layers[:-1]), ("N6",)
    ),
    Mistake("convolution with paddings swapped", "oracle.layers:conv2d", options(padding=_padding_swapped), ("G1",)),
    Mistake(
        "kernel flipped in the backward pass",
        "oracle.layers:conv2d_vjp",
        gradient(1, lambda g, s, dy: g[:, :, ::-1, ::-1]),
        ("G1",),
    ),
    Mistake(
        "dense weights' gradient divided by N", "oracle.layers:dense_vjp", gradient(1, lambda g, s, dy: g / len(dy)), ("G1",)
    ),
    Mistake(
        "batch-norm's mean taken for a constant",
        "oracle.layers:batch_norm_vjp",
        gradient(0, lambda g, s, dy: dy * per_channel(s.values[1] * s.values[2], dy.ndim)),
        ("G1",),
    ),
    Mistake(
        "eval batch-norm's gain left out of dx", "oracle.layers:batch_norm_eval_vjp", gradient(0, lambda g, s, dy: dy), ("G1",)
    ),
    Mistake(
        "cross-entropy's mean not in its gradient",
        "oracle.layers:cross_entropy_vjp",
        gradient(0, lambda g, s, dy: g * len(g)),
        ("G1",),
    ),
    Mistake(
        "squared error without the 2", "oracle.layers:mean_squared_error_vjp", gradient(0, lambda g, s, dy: g / 2), ("G1",)
    ),
    Mistake("average pool spreads without dividing", "oracle.layers:average_pool_vjp", _undivided, ("G1",)),
    Mistake("gate's gradient as a mean", "oracle.layers:gate_vjp", gradient(1, lambda g, s, dy: g / len(dy)), ("G1",)),
    Mistake(
        "weight decay's gradient without λ",
        "oracle.layers:weight_decay_vjp",
        gradient(0, lambda g, s, dy: s.values[0] * dy),
        ("G1", "O1"),
    ),
    Mistake("weight decay without ½", "oracle.layers:weight_decay", output(lambda y, w: 2 * y), ("O1", "G1")),
    Mistake("sigmoid that overflows", "oracle.layers:sigmoid", instead(_overflowing_sigmoid), ("G2",)),
    Mistake("GELU by its tanh formula", "oracle.layers:gelu", output(lambda y, x: ORACLE.gelu_tanh(x)[0]), ("G1", "G2")),
    Mistake("ReLU with a modulus", "oracle.layers:leaky_relu", _of_modulus, ("G1", "G2")),
    Mistake("subgradient 1 at 0 whatever is declared", "oracle.layers:leaky_relu", options(at_zero=lambda v: 1.0), ("G3",)),
    Mistake("last of equal maxima", "oracle.layers:max_pool", options(ties=lambda v: "last"), ("G2", "G3")),
)
