"""A network with layer and unit gates, written out with its gradients, and stationary points of J in W and θ together.

Two sections on a stream of 2: the first with a layer gate and two units, the second with a layer gate; then a head of 3. All
functions take arrays of weights with any axes in front, and complex ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...arrays import Array, Arrays
from ...backend import Backend
from ...passes.batch_loss import BatchLoss
from ...spec.layers import Activation, Dense, Section, UnitGate
from ...spec.network import Network
from .examples import probabilities, slopes_of, vertices_of

#: Name and shape of every array, in the order of the vector of weights.
SHAPES = {
    "section1.dense1.weight": (2, 2),
    "section1.dense1.bias": (2,),
    "section1.dense2.weight": (2, 2),
    "section1.dense2.bias": (2,),
    "section2.dense1.weight": (1, 2),
    "section2.dense1.bias": (1,),
    "section2.dense2.weight": (2, 1),
    "section2.dense2.bias": (2,),
    "dense1.weight": (3, 2),
}
GATES = 4
VERTICES = vertices_of(GATES)  # section 1, its two units, section 2


def network() -> Network:
    """The same network as the library knows it."""
    tanh = Activation("tanh")
    first, second = Section((Dense(2), tanh, UnitGate(), Dense(2))), Section((Dense(1), tanh, Dense(2)))
    return Network((2,), (first, second, Dense(3, bias=False)))


def _places() -> dict[str, Array]:
    places, start = {}, 0
    for name, shape in SHAPES.items():
        size = int(np.prod(shape))
        places[name] = np.arange(start, start + size).reshape(shape)
        start += size
    return places


PLACES = _places()
WEIGHTS = sum(place.size for place in PLACES.values())


def blocks() -> list[Array]:
    """The places in the vector of each gate's closing weights."""
    first, second = (
        np.concatenate([PLACES[f"section{i}.dense2.{part}"].ravel() for part in ("weight", "bias")]) for i in (1, 2)
    )
    return [first, PLACES["section1.dense2.weight"][:, 0], PLACES["section1.dense2.weight"][:, 1], second]


def split(w: Array) -> Arrays:
    """The vector's arrays by name; axes in front stay."""
    return {name: w[..., place] for name, place in PLACES.items()}


@dataclass(frozen=True)
class Joint:
    """c on one batch. x (N, 2), labels (N,)."""

    x: Array
    labels: Array

    def loss(self, w: Array) -> Array:
        """c at every vertex: (…, 16) for weights (…, m)."""
        return self._pass(w)[0]

    def gradient(self, w: Array, theta: Array) -> Array:
        """∂C/∂W, shape of w, by backpropagation written out."""
        return np.asarray(np.einsum("v,...vi->...i", probabilities(VERTICES, theta), self._pass(w)[1]))

    def _pass(self, w: Array) -> tuple[Array, Array]:
        p, n = {name: a[..., None, :, :] if a.ndim == w.ndim + 1 else a for name, a in split(w).items()}, len(self.labels)
        h = np.broadcast_to(self.x, (*w.shape[:-1], len(VERTICES), n, 2))
        steps = []
        for section, units in (("section1", VERTICES[:, 1:3]), ("section2", np.ones((len(VERTICES), 1)))):
            xi = VERTICES[:, 0 if section == "section1" else 3][:, None, None]
            a, b = p[f"{section}.dense1.weight"], p[f"{section}.dense2.weight"]
            z = np.tanh(h @ _turned(a) + p[f"{section}.dense1.bias"][..., None, None, :])
            u = units[:, None, :]
            steps.append((section, h, z, u, xi, a, b))
            h = h + xi * ((u * z) @ _turned(b) + p[f"{section}.dense2.bias"][..., None, None, :])
        head = p["dense1.weight"]
        logits = h @ _turned(head)
        shifted = logits - logits.real.max(axis=-1, keepdims=True)
        e = np.exp(shifted)
        total = e.sum(axis=-1)
        loss = (np.log(total) - shifted[..., np.arange(n), self.labels]).mean(axis=-1)
        d = e / total[..., None]
        d[..., np.arange(n), self.labels] -= 1.0
        d = d / n
        found = {"dense1.weight": _turned(d) @ h}
        d = d @ head
        for section, before, z, u, xi, a, b in reversed(steps):
            dp = xi * d
            dz = (dp @ b) * u * (1.0 - z * z)
            found |= {f"{section}.dense2.weight": _turned(dp) @ (u * z), f"{section}.dense2.bias": dp.sum(axis=-2)}
            found |= {f"{section}.dense1.weight": _turned(dz) @ before, f"{section}.dense1.bias": dz.sum(axis=-2)}
            d = d + dz @ a
        gradient = np.concatenate([found[n].reshape(*loss.shape, -1) for n in SHAPES], axis=-1)
        return loss, gradient

    def weight_hessian(self, w: Array, theta: Array, decay: float) -> Array:
        """∂²J/∂W², (m, m), by complex step through the gradients."""
        curved: Array = self.gradient(w + 1e-200j * np.eye(WEIGHTS), theta).imag / 1e-200 + decay * np.eye(WEIGHTS)
        return curved

    def hessian(self, w: Array, theta: Array, decay: float) -> Array:
        """J's Hessian in (W, θ), (m + 4, m + 4): complex step through the gradients, differences of tables in θ."""
        m, h = WEIGHTS, 1e-200
        full = np.zeros((m + GATES, m + GATES))
        full[:m, :m] = self.weight_hessian(w, theta, decay)
        stepped = self.loss(w + 1j * h * np.eye(m)).imag / h
        losses = self.loss(w)
        for g in range(GATES):
            full[m + g, :m] = full[:m, m + g] = [slopes_of(VERTICES, column, theta)[g] for column in stepped]
            for other in range(GATES):
                on, off = (_at(theta, other, value) for value in (1.0, 0.0))
                full[m + g, m + other] = slopes_of(VERTICES, losses, on)[g] - slopes_of(VERTICES, losses, off)[g]
        return full

    def library(self, w: Array, backend: Backend) -> BatchLoss:
        """The library's loss at the same weights."""
        return BatchLoss(network(), backend, split(w), self.x, self.labels)


def _turned(a: Array) -> Array:
    return np.swapaxes(a, -1, -2)


def _at(theta: Array, gate: int, value: float) -> Array:
    moved = theta.copy()
    moved[gate] = value
    return moved


@dataclass(frozen=True)
class Stationary:
    """∂J/∂W = 0 and ∂J/∂θ = 0 at (w, θ), with λ = decay and the price `pull` (4,) of each gate, above 0."""

    joint: Joint
    w: Array
    theta: Array
    decay: float
    pull: Array


def stationary_points(rng: np.random.Generator, count: int) -> list[Stationary]:
    """As many points: W by BFGS and Newton's method at a θ inside, then the prices at which θ rests there."""
    from scipy.optimize import minimize

    found: list[Stationary] = []
    while len(found) < count:
        joint = Joint(rng.standard_normal((4, 2)), rng.integers(0, 3, 4))
        theta, decay = rng.uniform(0.2, 0.8, GATES), float(10.0 ** rng.uniform(-2.5, -1.5))

        def value(w: Array, joint: Joint = joint, theta: Array = theta, decay: float = decay) -> tuple[float, Array]:
            losses, gradients = joint._pass(w)
            p = probabilities(VERTICES, theta)
            return float(p @ losses + 0.5 * decay * w @ w), p @ gradients + decay * w

        w = np.asarray(minimize(value, rng.standard_normal(WEIGHTS), jac=True, method="BFGS", options={"gtol": 1e-3}).x)
        for _ in range(5):
            w = w - np.linalg.solve(joint.weight_hessian(w, theta, decay), value(w)[1])
        pull = -slopes_of(VERTICES, joint.loss(w), theta)
        if np.abs(value(w)[1]).max() < 1e-14 and (pull > 1e-4).all():
            found.append(Stationary(joint, w, theta, decay, pull))
    return found
