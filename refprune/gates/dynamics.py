"""When is it safe to prune a gate? The projected ODE of training and a system that bounds it (SPEC D1-D7, *derived here*).

Time is counted in units of the effective step size of W, η/(1 − momentum); r is the ratio of the step size of θ to it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..arrays import Array, Arrays
from ..errors import InputError
from ..formulas.scalar import finite, not_negative, positive, probability, same_shape
from ..passes.batch_loss import BatchLoss
from .estimators import exact_theta_gradient, exact_weight_gradient

# --------------------------------------------------------------------------------------------------------------------
# The comparison system and its domain of attraction


def in_domain(
    w: ArrayLike,
    theta: ArrayLike,
    *,
    kappa: ArrayLike,
    beta: ArrayLike,
    decay: ArrayLike,
    ratio: ArrayLike,
    floor: float = 0.0,
) -> Array:
    """Is (w, θ) in the half-plane H of D4, from where θ goes to 0 and stays there? Arrays of one shape, or scalars.

    With β = 0 nothing is. floor δ: θ is projected to [δ, 1−δ] instead; from H it then goes to δ and stays, if κ²δ < λβ,
    because w goes to κδ/λ < w*; otherwise no point is safe (*derived here*).

    InputError unless w, β, λ ≥ 0, θ, δ ∈ [0, 1] and κ, r > 0 are finite and of one shape.
    """
    w, theta, floor = not_negative("w", w), probability("theta", theta), float(probability("floor", floor))
    kappa, ratio = positive("kappa", kappa), positive("ratio", ratio)
    beta, decay = not_negative("beta", beta), not_negative("decay", decay)
    same_shape(w=w, theta=theta, kappa=kappa, beta=beta, decay=decay, ratio=ratio)
    root = np.sqrt(decay**2 + 4.0 * ratio * kappa**2)
    slope = 0.5 * (decay + root)  # λ + μ₊, without cancellation
    below = ratio * (kappa * w - beta) + slope * (theta - decay * beta / kappa**2) < 0.0
    stays = (floor == 0.0) | (kappa**2 * floor < decay * beta)
    inside: Array = below & stays & (beta > 0.0)
    return inside


@dataclass(frozen=True)
class Comparison:
    """ẇ = −λw + κθ, θ̇ = r(κw − β), θ projected to [0, 1]: bounds (‖W‖, θ) of one gate from above (D2).

    kappa: Lipschitz bound of the loss in W; beta: lower bound of the pull on θ; decay λ ≥ 0 of W; ratio r of the speeds.
    """

    kappa: float
    beta: float
    decay: float
    ratio: float

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            least = "≥ 0" if name == "decay" else "> 0"
            if not np.isfinite(value) or value < 0.0 or (value == 0.0 and name != "decay"):
                raise InputError(f"{name}: must be finite and {least}, got {value}")

    @property
    def saddle(self) -> tuple[float, float]:
        """(w*, θ*) = (β/κ, λβ/κ²): the equilibrium between 0 and 1 if λβ < κ² (D3)."""
        return self.beta / self.kappa, self.decay * self.beta / self.kappa**2

    @property
    def eigenvalues(self) -> tuple[float, float]:
        """(μ₊, μ₋) = ½(−λ ± √(λ² + 4rκ²)) at the saddle (D3); μ₊ by their product −rκ², without cancellation."""
        negative = -0.5 * (self.decay + np.sqrt(self.decay**2 + 4.0 * self.ratio * self.kappa**2))
        return -self.ratio * self.kappa**2 / negative, negative

    @property
    def radius(self) -> float:
        """w_c of D4: no trajectory in H has a larger w, so that κ needs to hold in that ball only."""
        (w, theta), (_, negative) = self.saddle, self.eigenvalues
        return w - negative * theta / (self.ratio * self.kappa)

    def velocity(self, weights: Array, theta: Array) -> tuple[Array, Array]:
        """The right-hand side before projection, as a `Field` of one weight and one gate."""
        return -self.decay * weights + self.kappa * theta, self.ratio * (self.kappa * weights - self.beta)

    def contains(self, w: ArrayLike, theta: ArrayLike) -> Array:
        """Is (w, θ) in H (D4)? InputError as for `in_domain`."""
        return in_domain(w, theta, kappa=self.kappa, beta=self.beta, decay=self.decay, ratio=self.ratio)

    def time_bound(self, w: ArrayLike, theta: ArrayLike) -> Array:
        """After this time θ is 0 for good, from a point of H; ∞ outside (*derived here*). InputError as for `in_domain`.

        With the left eigenvectors' coordinates φ± = rκ(w − w*) + (λ+μ±)(θ − θ*), which move as e^{μ± t} while θ is inside,
        θ = θ* + (φ₊ − φ₋)/(μ₊ − μ₋): it is below 0 once |φ₊| e^{μ₊ t} exceeds (μ₊ − μ₋)θ* + max(0, −φ₋).
        """
        inside = self.contains(w, theta)
        (w0, theta0), (positive, negative) = self.saddle, self.eigenvalues
        across, along = self.ratio * self.kappa * (np.asarray(w) - w0), np.asarray(theta) - theta0
        unstable, stable = across - negative * along, across - positive * along
        needed = (positive - negative) * theta0 + np.maximum(0.0, -stable)
        distance = np.where(inside, -unstable, 1.0)
        bound: Array = np.where(inside, np.log(np.maximum(needed, distance) / distance) / positive, np.inf)
        return bound


# --------------------------------------------------------------------------------------------------------------------
# The projected ODE

#: (weights (n,), θ (G,)) → (Ẇ (n,), θ̇ (G,) before projection)
Field = Callable[[Array, Array], tuple[Array, Array]]


class Contact(NamedTuple):
    """θ of a gate reaches an end of [0, 1] (arrives) or leaves it."""

    time: float
    gate: int
    arrives: bool


class Flow(NamedTuple):
    """A solution: time (T,), weights (T, n), theta (T, G), and where θ reached or left 0 or 1."""

    time: Array
    weights: Array
    theta: Array
    contacts: tuple[Contact, ...]

    def zero_since(self, gate: int) -> float | None:
        """The time from which θ of this gate is 0 to the end; None if it is not 0 there."""
        if self.theta[-1, gate] != 0.0:
            return None
        return max((c.time for c in self.contacts if c.gate == gate and c.arrives), default=float(self.time[0]))


def projected_flow(
    field: Field, weights: Array, theta: Array, until: float, *, rtol: float = 1e-9, atol: float = 1e-12, least_steps: int = 50
) -> Flow:
    """Solve Ẇ, θ̇ = field with θ ∈ [0, 1]: a gate at an end stays there as long as its drive θ̇ points outwards (D2).

    Runge-Kutta of order 8 between the events that a θ reaches an end or a held gate's drive turns; the drive is the field's,
    which goes on moving while the gate is held. Steps are at most until/least_steps long: of two events that cancel within one
    step neither is seen. InputError unless weights (n,) are finite, θ (G,) starts in [0, 1], the field gives as many finite
    numbers there, `until` is finite and ≥ 0, rtol and atol are > 0 and least_steps ≥ 1.
    """
    from scipy.integrate import solve_ivp

    weights, theta = finite("weights", weights), probability("theta", theta)
    until, rtol, atol = float(not_negative("until", until)), float(positive("rtol", rtol)), float(positive("atol", atol))
    if least_steps < 1:
        raise InputError(f"least_steps: must be ≥ 1, got {least_steps}")
    for name, given in (("weights", weights), ("theta", theta)):
        if given.ndim != 1:
            raise InputError(f"{name}: must have one axis, got shape {given.shape}")
    speeds = field(weights, theta)
    for name, given, speed in (("weights", weights, speeds[0]), ("theta", theta, speeds[1])):
        if np.shape(speed) != given.shape:
            raise InputError(f"field: gives shape {np.shape(speed)} for {name} of shape {given.shape}")
        finite(f"field's speed of {name}", speed)
    n, gates = weights.size, range(theta.size)
    y = np.concatenate([weights, theta])
    held = drives_outwards(theta, speeds[1])
    pieces, contacts, now = [(np.zeros(1), y[:, None])], [], 0.0
    solver = {"method": "DOP853", "rtol": rtol, "atol": atol, "max_step": until / least_steps}

    while now < until:
        fixed = held.copy()

        def velocity(_: float, y: Array, fixed: Array = fixed) -> Array:
            dw, dtheta = field(y[:n], y[n:])
            return np.concatenate([dw, np.where(fixed, 0.0, dtheta)])

        events = [(g, event) for g in gates for event in _events(field, n, g, y[n + g], held=bool(held[g]))]
        piece = solve_ivp(velocity, (now, until), y, events=[event for _, event in events], **solver)
        if not piece.success:
            raise InputError(f"field: the solution cannot be followed beyond t = {piece.t[-1]}: {piece.message}")
        now, y = float(piece.t[-1]), piece.y[:, -1].copy()
        fired = np.zeros(theta.size, dtype=bool)
        fired[[g for (g, _), times in zip(events, piece.t_events, strict=True) if len(times)]] = True
        arrived = fired & ~held
        y[n:] = np.where(arrived, np.round(y[n:]), np.clip(y[n:], 0.0, 1.0))
        piece.y[:, -1] = y
        pieces.append((piece.t[1:], piece.y[:, 1:]))
        outwards = drives_outwards(y[n:], field(y[:n], y[n:])[1])
        after = (arrived | outwards) & ~(fired & held)
        contacts += [Contact(now, g, arrives=bool(after[g])) for g in gates if after[g] != held[g]]
        held = after
    time, path = (np.concatenate([piece[i] for piece in pieces], axis=-1) for i in (0, 1))
    return Flow(time, path[:n].T, path[n:].T, tuple(contacts))


def drives_outwards(theta: Array, drive: Array) -> Array:
    """Gates at an end of [0, 1] whose drive does not lead back inside."""
    outwards: Array = ((theta <= 0.0) & (drive <= 0.0)) | ((theta >= 1.0) & (drive >= 0.0))
    return outwards


def _events(field: Field, n: int, gate: int, theta: float, *, held: bool) -> list[Callable[[float, Array], float]]:
    """What ends a piece, as functions that fall through 0: a free θ at each end, a held gate's drive that leads inside."""

    def above_zero(_: float, y: Array) -> float:
        return float(y[n + gate])

    def below_one(_: float, y: Array) -> float:
        return 1.0 - float(y[n + gate])

    def holding(_: float, y: Array) -> float:
        drive = float(field(y[:n], y[n:])[1][gate])
        inwards = drive if theta <= 0.5 else -drive
        return -inwards if inwards > 0.0 else 1.0  # an exact 0, which leads nowhere, is no event

    events: list[Any] = [holding] if held else [above_zero, below_one]
    for event in events:
        event.terminal, event.direction = True, -1.0
    return events


# --------------------------------------------------------------------------------------------------------------------
# A network's own field


def pack(arrays: Mapping[str, Array], names: Sequence[str]) -> Array:
    """The named arrays as one vector."""
    return np.concatenate([np.zeros(0), *(np.ravel(arrays[name]) for name in names)])


def unpack(vector: Array, names: Sequence[str], like: Mapping[str, Array]) -> Arrays:
    """All arrays of `like`, the named ones out of the vector."""
    arrays, start = dict(like), 0
    for name in names:
        arrays[name] = vector[start : start + like[name].size].reshape(like[name].shape)
        start += like[name].size
    return arrays


def network_field(loss: BatchLoss, names: Sequence[str], *, beta: float, decay: float, ratio: float) -> Field:
    """−∂J/∂W of the named parameters (the others stay) and −r ∂J/∂θ of all gates, by enumeration over the gates (O1-O3).

    InputError for a name that is no parameter, β or λ not finite and ≥ 0, r not finite and > 0.
    """
    beta, decay = float(not_negative("beta", beta)), float(not_negative("decay", decay))
    ratio = float(positive("ratio", ratio))
    for name in names:
        if name not in loss.params:
            raise InputError(f"names: {name!r} is no parameter; allowed are {', '.join(loss.params)}")

    def field(weights: Array, theta: Array) -> tuple[Array, Array]:
        here = dataclasses.replace(loss, params=unpack(weights, names, loss.params))
        dw = -pack(exact_weight_gradient(here, theta), names) - decay * weights
        return dw, -ratio * (exact_theta_gradient(here, theta) + beta)

    return field
