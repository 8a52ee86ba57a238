"""Hypothesis strategies for whole networks, valid by construction: the structure is drawn, the numbers come from a seed.

`cases()` yields a network with parameters, statistics, a batch, a target and gates. Tiny sizes: a case runs in milliseconds.
Random weights and biases keep entries off the kinks, but for structural zeros (closed gates, dead units), where all sides
take the declared subgradient.
"""

import dataclasses

import numpy as np
from hypothesis import strategies as st
from tolerance import assert_close

from refprune.backend import ORACLE
from refprune.layerspec import (
    ACTIVATIONS,
    Activation,
    AveragePool,
    BatchNorm,
    Conv,
    Dense,
    Flatten,
    GlobalAveragePool,
    MaxPool,
    Section,
    SubsamplePad,
    UnitGate,
)
from refprune.objective import BatchLoss
from refprune.rounding import network_tolerance
from refprune.spec import Loss, Network
from refprune.streams import Streams

GATES = ("random", "zeros", "ones", "fractional")


@dataclasses.dataclass(frozen=True)
class Case:
    """A network with everything to run it; all numbers follow from the seed."""

    network: Network
    batch: int
    seed: int
    train: bool
    gate_kind: str = "random"

    def normal(self, purpose, shape):
        return Streams(self.seed).normal(purpose, 0, shape)

    def uniform(self, purpose, shape):
        return Streams(self.seed).uniform(purpose, 0, shape)

    @property
    def params(self):
        """Weights N(0, 2/fan-in), biases N(0, ¼), gains in [½, 3/2]."""
        arrays = {}
        for name, shape in self.network.parameter_shapes.items():
            if name.endswith(".gain"):
                arrays[name] = 0.5 + self.uniform(name, shape)
            else:
                fan_in = np.prod(shape[1:]) if name.endswith(".weight") else 8.0
                arrays[name] = self.normal(name, shape) * (2.0 / max(fan_in, 1.0)) ** 0.5
        return arrays

    @property
    def statistics(self):
        shapes = self.network.statistics_shapes
        return {
            name: 0.5 + self.uniform(name, shape) if name.endswith(".variance") else 0.3 * self.normal(name, shape)
            for name, shape in shapes.items()
        }

    @property
    def x(self):
        return self.normal("x", (self.batch, *self.network.input_shape))

    @property
    def target(self):
        (outputs,) = self.network.output_shape
        if self.network.loss.kind == "cross_entropy":
            return (self.uniform("target", (self.batch,)) * outputs).astype(np.int64)
        return self.normal("target", (self.batch, outputs))

    @property
    def gates(self):
        u = self.uniform("gates", (self.network.gate_count,))
        return {"random": (u < 0.6) * 1.0, "zeros": 0.0 * u, "ones": 0.0 * u + 1.0, "fractional": u}[self.gate_kind]

    @property
    def loss(self):
        return BatchLoss(self.network, ORACLE, self.params, self.x, self.target, self.statistics, self.train)


# Comparing: every tensor that is judged, by name -----------------------------------------------------------------------


def tensors(loss, gates, *, run_closed=True):
    """Loss, output and all gradients of the implementation; the evaluation they came from.

    The backward pass of a training step, without the input's gradient, must give the same bits.
    """
    evaluation = loss.evaluate(gates, run_closed=run_closed)
    gradients, training = (loss.gradients(evaluation, input_gradient=wanted) for wanted in (True, False))
    assert_close("gates", training.gates, gradients.gates, 0.0)
    for name, gradient in training.params.items():
        assert_close(f"{name} without the input's gradient", gradient, gradients.params[name], 0.0, network=loss.network)
    named = {"loss": evaluation.loss, "output": evaluation.tape.output, "gates": gradients.gates, "input": gradients.input}
    return named | gradients.params, evaluation


def bounds(loss, gates, *, unit=2.0**-53, **options):
    """How far a correct implementation may be from it, under the same names (E2)."""
    t = network_tolerance(loss, gates, unit=unit, run_closed=True, **options)
    return {"loss": t.loss, "output": t.output, "gates": t.gates, "input": t.input} | t.params


def assert_tensors(got, want, tolerances, **context):
    """Every tensor of `want` is there and within its tolerance."""
    __tracebackhide__ = True
    for name, wanted in want.items():
        assert_close(name, np.asarray(got[name]), np.asarray(wanted), tolerances[name], **context)


# Structure ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Style:
    """What a whole network has."""

    norm: bool
    unit_gates: bool
    activations: tuple[str, ...]


def _activation(draw, style, *, keeps_zero=False):
    kind = draw(st.sampled_from(style.activations))
    if keeps_zero and kind == "sigmoid":
        kind = "tanh"
    at_zero = draw(st.sampled_from((0.0, 0.0, 0.5)))
    return Activation(kind, slope=draw(st.sampled_from((0.01, 0.3))), at_zero=at_zero)


def _norm(draw, style):
    if not style.norm or draw(st.integers(0, 3)) == 0:
        return ()
    of, variance = draw(st.sampled_from(("batch", "running"))), draw(st.sampled_from(("unbiased", "biased")))
    return (BatchNorm(draw(st.sampled_from((1e-5, 1e-2))), draw(st.sampled_from((0.1, 0.3))), of, variance),)


def _pool(draw, *, same_size=False, size=4):
    """A pool of images with at least 2×2 pixels, or one that keeps the size."""
    kernel = (3, 3) if same_size else (2, draw(st.integers(1, 2)))
    stride = (1, 1) if same_size else (2, draw(st.integers(1, 2)))
    side = (1, 1) if same_size else (0, draw(st.integers(0, 1)))
    padding = (side, side) if same_size else (side, (0, 0))
    if draw(st.booleans()):
        return MaxPool(kernel, stride, padding, ties=draw(st.sampled_from(("first", "first", "last"))))
    return AveragePool(kernel, stride, padding, count_padding=draw(st.booleans()))


def _unit(draw, style, affine, *, gated, pool=()):
    """affine, [norm], activation, [gate], [pool]; the gate may stand before the activation or behind the pool too (N4)."""
    norm = _norm(draw, style)
    place = draw(st.sampled_from(("after", "after", "before", "last"))) if gated else "none"
    activation = _activation(draw, style, keeps_zero=place == "before")
    gate = (UnitGate(),)
    order = {
        "none": (activation, *pool),
        "after": (activation, *gate, *pool),
        "before": (*gate, activation, *pool),
        "last": (activation, *pool, *gate),
    }
    return (affine, *norm, *order[place])


def _affine(draw, image, width, *, stride=(1, 1), kernel=None, groups=1):
    bias = draw(st.booleans())
    if not image:
        return Dense(width, bias)
    k = draw(st.sampled_from((1, 3))) if kernel is None else kernel
    side = (k // 2, k // 2)
    return Conv(width, (k, k), stride, (side, side), groups=groups, bias=bias)


def _shortcut(draw, style, image, width, new_width, stride):
    """Identity where nothing changes its shape, else option A (images only, not narrower) or B."""
    kinds = ["B"]
    if (width, (1, 1)) == (new_width, stride):
        kinds.append("identity")
    if image and new_width >= width:
        kinds.append("A")
    kind = draw(st.sampled_from(kinds))
    if kind == "identity":
        return ()
    if kind == "A":
        before = draw(st.integers(0, new_width - width))
        return (SubsamplePad(stride, before, new_width - width - before),)
    affine = _affine(draw, image, new_width, stride=stride, kernel=1)
    return (affine, *_norm(draw, style))


def _section(draw, style, image, shape):
    """(section, the stream's new width, its stride)."""
    width = shape[0]
    changes = draw(st.booleans())
    new_width = draw(st.integers(1, 4)) if changes else width
    stride = (2, draw(st.integers(1, 2))) if changes and image and min(shape[1:]) > 2 and draw(st.booleans()) else (1, 1)
    shortcut = _shortcut(draw, style, image, width, new_width, stride)
    depth = draw(st.integers(1, 3))
    path = list((*_norm(draw, style), _activation(draw, style)) if draw(st.integers(0, 4)) == 0 else ())
    for k in range(depth - 1):
        affine = _affine(draw, image, draw(st.integers(1, 4)), stride=stride if k == 0 else (1, 1))
        pool = (_pool(draw, same_size=True),) if image and draw(st.integers(0, 4)) == 0 else ()
        path += _unit(draw, style, affine, gated=style.unit_gates and draw(st.booleans()), pool=pool)
    channels = tuple(draw(st.permutations(range(new_width)))) if draw(st.integers(0, 4)) == 0 else None
    channels = channels and channels[: draw(st.integers(1, new_width))]
    path += (_affine(draw, image, len(channels or range(new_width)), stride=stride if depth == 1 else (1, 1)),)
    path += _norm(draw, style)
    place = draw(st.sampled_from(("path", "path", "preactivation")))
    if place == "preactivation" or draw(st.integers(0, 2)) == 0:
        path += (_activation(draw, style, keeps_zero=True),)
    if style.unit_gates and draw(st.integers(0, 2)) == 0:
        path += (UnitGate(),)
    post, gate = draw(st.sampled_from(("relu", "identity"))), draw(st.integers(0, 4)) > 0
    return Section(tuple(path), shortcut, gate, place, post, channels), new_width, stride


def _blocks(draw, style, image, shape, limit, least=0):
    """`least` to `limit` plain layers and sections; only what no section follows at once may have unit gates."""
    kinds = draw(st.lists(st.sampled_from(("plain", "section", "section")), min_size=least, max_size=limit))
    layers, shape = [], list(shape)
    for kind, follower in zip(kinds, [*kinds[1:], "plain"], strict=False):
        if kind == "section":
            section, shape[0], stride = _section(draw, style, image, shape)
            layers.append(section)
            shape[1:] = [-(-size // s) for size, s in zip(shape[1:], stride, strict=False)]
            continue
        gated = style.unit_gates and follower == "plain" and draw(st.booleans())
        after_gate = any(isinstance(layer, UnitGate) for layer in layers[-3:])
        groups = 2 if image and not gated and not after_gate and shape[0] % 2 == 0 and draw(st.booleans()) else 1
        width = draw(st.sampled_from((2, 4))) if groups == 2 else draw(st.integers(1, 4))
        affine = _affine(draw, image, width, groups=groups)
        pool = (_pool(draw),) if image and min(shape[1:]) >= 4 and draw(st.booleans()) else ()
        layers += _unit(draw, style, affine, gated=gated, pool=pool)
        shape = [width, *(pool[0].output_shape((width, *shape[1:]))[1:] if pool else shape[1:])]
    return layers, tuple(shape)


losses = st.sampled_from(
    [Loss("cross_entropy", r) for r in ("mean", "sum")] + [Loss("mean_squared_error", r) for r in ("mean", "batch_mean", "sum")]
)


@st.composite
def networks(draw, *, norm=None, unit_gates=None, image=None, activations=ACTIVATIONS, limit=3):
    """Dense and convolutional chains of plain layers and sections, with a dense head."""
    flags = [draw(st.booleans()) if flag is None else flag for flag in (norm, unit_gates, image)]
    style = Style(flags[0], flags[1], tuple(activations))
    layers, shape = [], (draw(st.integers(1, 5)),)
    input_shape = shape
    if flags[2]:
        input_shape = (draw(st.integers(1, 3)), draw(st.integers(4, 6)), draw(st.integers(4, 6)))
        layers, shape = _blocks(draw, style, True, input_shape, limit, 1)
        layers.append(draw(st.sampled_from((Flatten(), GlobalAveragePool()))))
        shape = (int(np.prod(shape)) if isinstance(layers[-1], Flatten) else shape[0],)
    gate_open = bool(layers) and _ends_gated(layers)
    more, _ = _blocks(draw, style, False, shape, *((1, 0) if flags[2] else (limit, 1)))
    if gate_open and more and isinstance(more[0], Section):
        more = []
    layers += more
    layers.append(Dense(draw(st.integers(2, 4)), draw(st.booleans())))
    return Network(input_shape, tuple(layers), draw(losses))


def _ends_gated(layers):
    """Do the last layer's units have gates that no affine layer has read yet?"""
    for layer in reversed(layers):
        if isinstance(layer, UnitGate):
            return True
        if isinstance(layer, (Dense, Conv, Section)):
            return False
    return False


@st.composite
def cases(draw, *, gates=("random", "random", "zeros", "ones"), train=None, **structure):
    """A network with a batch (1 only where no train-mode batch-norm forbids it), a mode, gates and a seed."""
    network = draw(networks(**structure))
    mode = draw(st.booleans()) if train is None else train
    least = 2 if mode and network.statistics_shapes else 1
    seed = draw(st.integers(0, 2**32 - 1))
    return Case(network, draw(st.integers(least, 5)), seed, mode, draw(st.sampled_from(gates)))


def gated_cases(least=1, **options):
    """Cases with at least that many gates: an ungated section or a missing one is replaced, nothing is filtered away."""
    return cases(**options).map(lambda case: _with_gates(case, least))


def _with_gates(case, least):
    """A gated section is put before the head until there are enough gates."""
    network = case.network
    while network.gate_count < least:
        head = network.layers[-1]
        (width,) = network.input_shapes[head.name]
        number = sum(isinstance(layer, Section) for layer in network.layers) + 1
        path = (Dense(2), Activation("tanh"), Dense(width))
        section = Section(path, post="identity", name=f"extra{number}")
        layers = (*network.layers[:-1], section, head)
        if _ends_gated(network.layers[:-1]):  # a plain layer keeps the gate off the stream
            layers = (*network.layers[:-1], Dense(width, name=f"reader{number}"), section, head)
        network = Network(network.input_shape, layers, network.loss)
    return dataclasses.replace(case, network=network)
