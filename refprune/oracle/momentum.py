"""The update of momentum SGD: the oracle of `Backend.momentum_step`."""

from __future__ import annotations

from ..arrays import Array


def momentum_step(w: Array, v: Array, g: Array, *, learning_rate: float, momentum: float, decay: float) -> tuple[Array, Array]:
    """(w − η v', v') with v' = m v + (g + λ w): as in PyTorch, without dampening. Works in the dtype of w; changes no argument.

    Every product and sum is rounded once, in this order, so that a backend can give the same bits.
    """
    eta, m, strength = (w.dtype.type(number) for number in (learning_rate, momentum, decay))
    velocity = m * v + (g + strength * w)
    return w - eta * velocity, velocity
