"""A `spec.network.Network` as a pure function in JAX, differentiated by jax.value_and_grad and compiled by jax.jit.

`Model` runs a network on arrays under refprune's names; `JaxImplementation` is what `refprune verify` judges, and what an
implementation of one's own may start from: replace `model`, `loss`, `estimate` or a single method.

JAX compiles a network for every structure anew, which takes seconds; the same structure with other numbers takes milliseconds.
`structures` therefore says of how many structures a campaign's examples are.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...arrays import Array, Arrays
from ...spec.json_form import from_json
from ...spec.layers import (
    Activation,
    AveragePool,
    BatchNorm,
    Conv,
    Dense,
    Flatten,
    GlobalAveragePool,
    Layer,
    MaxPool,
    Section,
    SubsamplePad,
    UnitGate,
)
from ...spec.network import Network
from ..implementation import Rates
from . import layers
from .functions import JaxFunctions
from .layers import Tensor

ACTIVATIONS = {
    "identity": lambda x: x,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "gelu": layers.gelu,
    "gelu_tanh": layers.gelu_tanh,
}


class Model:
    """x ↦ output, for one set of parameters, statistics and gates, in train mode or not.

    What is seen on the way: `outputs`, of every layer; `branches`, of every ReLU and max pool; `running`, the statistics after
    the batch, those of a closed section as they were.
    """

    def __init__(
        self, network: Network, params: Mapping[str, Tensor], statistics: Mapping[str, Tensor], gates: Tensor, *, train: bool
    ) -> None:
        self.network, self.params, self.statistics, self.gates, self.train = network, params, statistics, gates, train
        self.outputs: dict[str, Tensor] = {}
        self.branches: dict[str, Tensor] = {}
        self.running = dict(statistics)

    def __call__(self, x: Tensor) -> Tensor:
        return self.chain(self.network.layers, x)

    def chain(self, parts: Sequence[Layer], x: Tensor) -> Tensor:
        for layer in parts:
            x = self.section(layer, x) if isinstance(layer, Section) else self.layer(layer, x)
            self.outputs[layer.name] = x
        return x

    def section(self, section: Section, x: Tensor) -> Tensor:
        """ρ(shortcut(x) + ξ·path(x)): both sides are always computed, nothing in compiled code can be skipped."""
        h = self.chain(section.shortcut, x)
        if section.gate:
            xi = self.gates[self.network.gate_slices[section.name].start]
            at = section.gate_index()
            y = self.chain(section.path[at:], xi * self.chain(section.path[:at], x))
            self.keep_statistics(section, xi == 0.0)
        else:
            y = self.chain(section.path, x)
        h = layers.add(h, y, channels=section.channels)
        return h if section.post == "identity" else self.relu(f"{section.name}.post", h, 0.0, 0.0)

    def keep_statistics(self, section: Section, closed: Tensor) -> None:
        """Where the section is closed, its running statistics do not move."""
        for layer in section.path:
            for name in (f"{layer.name}.mean", f"{layer.name}.variance") if isinstance(layer, BatchNorm) else ():
                self.running[name] = jnp.where(closed, self.statistics[name], self.running[name])

    def layer(self, layer: Layer, x: Tensor) -> Tensor:
        match layer:
            case Dense():
                return layers.dense(x, *self.weights(layer))
            case Conv():
                options = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")}
                return layers.conv2d(x, *self.weights(layer), **options)
            case BatchNorm():
                return self.batch_norm(layer, x)
            case Activation(kind="relu"):
                return self.relu(layer.name, x, 0.0, layer.at_zero)
            case Activation(kind="leaky_relu"):
                return self.relu(layer.name, x, layer.slope, layer.at_zero)
            case Activation():
                return ACTIVATIONS[layer.kind](x)
            case MaxPool():
                options = {name: getattr(layer, name) for name in ("kernel", "stride", "padding")}
                self.branches[layer.name] = layers.max_pool_choice(x, **options)
                return layers.max_pool(x, ties=layer.ties, **options)
            case AveragePool():
                options = {name: getattr(layer, name) for name in ("kernel", "stride", "padding", "count_padding")}
                return layers.average_pool(x, **options)
            case GlobalAveragePool():
                return layers.global_average_pool(x)
            case Flatten():
                return layers.flatten(x)
            case SubsamplePad():
                return layers.subsample_pad(x, stride=layer.stride, before=layer.before, after=layer.after)
            case UnitGate():
                return layers.gate(x, self.gates[self.network.gate_slices[layer.name]])
        raise NotImplementedError(f"{layer.name}: {type(layer).__name__} has no counterpart in JAX here")

    def weights(self, layer: Dense | Conv) -> tuple[Tensor, Tensor | None]:
        return self.params[f"{layer.name}.weight"], self.params[f"{layer.name}.bias"] if layer.bias else None

    def relu(self, name: str, x: Tensor, slope: float, at_zero: float) -> Tensor:
        self.branches[name] = jnp.sign(x).astype(jnp.int8)
        return layers.leaky_relu(x, slope=slope, at_zero=at_zero)

    def batch_norm(self, layer: BatchNorm, x: Tensor) -> Tensor:
        gain, bias = (self.params[f"{layer.name}.{key}"] for key in ("gain", "bias"))
        keys = [f"{layer.name}.{key}" for key in ("mean", "variance")]
        old = [self.statistics[key] for key in keys]
        if not self.train:
            return layers.batch_norm_eval(x, gain, bias, *old, eps=layer.eps)
        mean, variance = layers.moments(x)
        count = x.size // x.shape[1]
        unbiased = variance * (count / (count - 1)) if layer.running_variance == "unbiased" else variance
        share = layer.momentum if layer.momentum_of == "batch" else 1.0 - layer.momentum
        self.running |= {k: (1.0 - share) * o + share * n for k, o, n in zip(keys, old, (mean, unbiased), strict=True)}
        return layers.batch_norm_eval(x, gain, bias, mean, variance, eps=layer.eps)


class JaxImplementation(JaxFunctions):
    """Gated training in JAX; replace what is yours and verify it: `class Mine(JaxImplementation)`.

    Methods whose arguments are called `Tensor` run inside compiled code.
    """

    estimator = "disarm"

    def model(
        self, network: Network, params: Mapping[str, Tensor], statistics: Mapping[str, Tensor], gates: Tensor, *, train: bool
    ) -> Model:
        return Model(network, params, statistics, gates, train=train)

    def loss(self, network: Network, output: Tensor, target: Tensor) -> Tensor:
        kind = layers.cross_entropy if network.loss.kind == "cross_entropy" else layers.mean_squared_error
        return kind(output, target, reduction=network.loss.reduction)

    def cost(
        self, network: Network, train: bool, params: Any, statistics: Any, x: Tensor, target: Tensor, gates: Tensor
    ) -> Any:
        """(c(W, Ξ), what is seen on the way)."""
        model = self.model(network, params, statistics, gates, train=train)
        output = model(x)
        seen = {"output": output, "layers": model.outputs, "branches": model.branches, "statistics": model.running}
        return self.loss(network, output, target), seen

    def network(
        self, spec: Any, params: Arrays, statistics: Arrays, x: Array, target: Array, gates: Array, train: bool
    ) -> dict[str, Any]:
        batch = self.arrays(params, statistics, x, target, gates)
        found: dict[str, Any] = _gradients(self, from_json(spec), train, *batch)
        return found

    def arrays(self, *values: Any) -> list[Any]:
        """Arrays, and dicts of them, in the declared precision."""
        return [{n: self.array(a) for n, a in v.items()} if isinstance(v, dict) else self.array(v) for v in values]

    def theta_gradient(
        self, spec: Any, params: Arrays, statistics: Arrays, x: Array, target: Array, theta: Array, train: bool
    ) -> dict[str, Any]:
        """The mean over all gate vectors, differentiated by jax.grad."""
        found: dict[str, Any] = _expected(self, from_json(spec), train, *self.arrays(params, statistics, x, target, theta))
        return found

    def estimate(self, losses: Any, theta: Tensor, uniform: Tensor) -> Tensor:
        """DisARM from the first row of the uniform numbers, (G,). losses: gate vectors (n, G) → c of each, (n,)."""
        b, opposite = (uniform[0] < theta).astype(theta.dtype), (uniform[0] > 1.0 - theta).astype(theta.dtype)
        c = losses(jnp.stack([b, opposite]))
        return 0.5 * (c[0] - c[1]) * (b - opposite) / jnp.minimum(theta, 1.0 - theta)

    def theta_estimate(
        self,
        spec: Any,
        params: Arrays,
        statistics: Arrays,
        x: Array,
        target: Array,
        theta: Array,
        uniform: Array,
        train: bool,
    ) -> Tensor:
        batch = self.arrays(params, statistics, x, target, theta, uniform)
        return _estimate(self, from_json(spec), train, *batch)

    def training_steps(
        self,
        *,
        spec: Any,
        params: Arrays,
        statistics: Arrays,
        theta: Array,
        x: Array,
        target: Array,
        gates: Array,
        estimator: str,
        **rates: float,
    ) -> dict[str, Any]:
        network, at = from_json(spec), Rates(**rates)
        w, running, theta, x, target, gates = self.arrays(params, statistics, theta, x, target, gates)
        velocity, losses = {name: np.zeros_like(p) for name, p in w.items()}, []
        for batch in zip(x, target, gates, strict=True):
            w, velocity, running, theta, loss = _step(self, network, estimator, at, w, velocity, running, theta, *batch)
            losses.append(np.asarray(loss))
        return {"params": w, "velocity": velocity, "statistics": running, "theta": theta, "loss": np.stack(losses)}

    def complexity(self, spec: Any, theta: Array, nu: float, alpha: float, balance: float) -> dict[str, Any]:
        """Numbers of parameters, and multiply-accumulates of the traced program."""
        network = from_json(spec)
        params, statistics = (
            {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in shapes.items()}
            for shapes in (network.parameter_shapes, network.statistics_shapes)
        )
        x, gates = (jax.ShapeDtypeStruct(shape, "float32") for shape in ((1, *network.input_shape), (network.gate_count,)))
        program = jax.make_jaxpr(lambda *a: self.model(network, *a[:3], train=False)(a[3]))(params, statistics, gates, x)
        return {"parameters": sum(p.size for p in params.values()), "macs": macs(program.jaxpr)}


def macs(program: Any) -> int:
    """Multiply-accumulates of all products and convolutions in a jaxpr."""
    total = 0
    for equation in program.eqns:
        (out, *_), sizes = equation.outvars, [v.aval.shape for v in equation.invars]
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += out.aval.size * int(np.prod([sizes[0][axis] for axis in contracted]))
        elif equation.primitive.name == "conv_general_dilated":
            kernel = equation.params["dimension_numbers"].rhs_spec
            total += out.aval.size * int(np.prod([sizes[1][axis] for axis in kernel[1:]]))
        total += sum(macs(inner.jaxpr) for inner in equation.params.values() if hasattr(inner, "jaxpr"))
    return total


# --------------------------------------------------------------------------------------------------------------------
# Compiled: the implementation, the network and what is chosen are static, the rest is traced


def _gradients_of(
    mine: JaxImplementation, network: Network, train: bool, params: Any, statistics: Any, x: Any, target: Any, gates: Any
) -> Any:
    def cost(params: Any, gates: Any, x: Any) -> Any:
        return mine.cost(network, train, params, statistics, x, target, gates)

    (loss, seen), (dw, dgates, dx) = jax.value_and_grad(cost, (0, 1, 2), has_aux=True)(params, gates, x)
    if not train:
        del seen["statistics"]
    return {**seen, "loss": loss, "params": dw, "gates": dgates, "input": dx}


def _losses(mine: JaxImplementation, network: Network, train: bool, params: Any, statistics: Any, x: Any, target: Any) -> Any:
    """gate vectors (n, G) → c of each, (n,)."""
    return jax.vmap(lambda gates: mine.cost(network, train, params, statistics, x, target, gates)[0])


def _expected_of(
    mine: JaxImplementation, network: Network, train: bool, params: Any, statistics: Any, x: Any, target: Any, theta: Any
) -> Any:
    vectors = jnp.array(list(itertools.product((0.0, 1.0), repeat=len(theta))), theta.dtype)

    def mean(params: Any, theta: Any) -> Any:
        probability = jnp.where(vectors == 1.0, theta, 1.0 - theta).prod(1)
        return probability @ _losses(mine, network, train, params, statistics, x, target)(vectors)

    value, (dw, dtheta) = jax.value_and_grad(mean, (0, 1))(params, theta)
    return {"value": value, "theta": dtheta, "params": dw}


def _estimate_of(
    mine: JaxImplementation,
    network: Network,
    train: bool,
    params: Any,
    statistics: Any,
    x: Any,
    target: Any,
    theta: Any,
    uniform: Any,
) -> Any:
    return mine.estimate(_losses(mine, network, train, params, statistics, x, target), theta, uniform)


def _step_of(
    mine: JaxImplementation,
    network: Network,
    estimator: str,
    rates: Rates,
    w: Any,
    velocity: Any,
    running: Any,
    theta: Any,
    x: Any,
    target: Any,
    gates: Any,
) -> Any:
    """One step of projected SGD."""
    found = _gradients_of(mine, network, True, w, running, x, target, gates)
    ascent = found["gates"]
    if estimator == "paired":
        losses = _losses(mine, network, True, w, running, x, target)
        own = np.eye(len(theta), dtype=bool)
        ascent = losses(jnp.where(own, 1.0, gates)) - losses(jnp.where(own, 0.0, gates))
    velocity = {n: rates.momentum * v + found["params"][n] + rates.weight_decay * w[n] for n, v in velocity.items()}
    w = {n: p - rates.learning_rate * velocity[n] for n, p in w.items()}
    theta = jnp.clip(theta - rates.theta_learning_rate * (ascent + rates.beta), 0.0, 1.0)
    return w, velocity, found["statistics"], theta, found["loss"]


_gradients, _expected, _estimate, _step = (
    jax.jit(f, static_argnums=(0, 1, 2)) for f in (_gradients_of, _expected_of, _estimate_of, _step_of)
)
