"""Witnesses of the dynamics (SPEC D): small networks whose Lipschitz bound is known, and solvers that share no code.

`Sections` is a family of networks in which κ of the last section is proved: its hidden tanh units are at most 1 whatever the
layers before it do, the head stays fixed, and a row of softmax minus one-hot has norm at most √2.
"""

import dataclasses
import itertools

import numpy as np
from scipy.linalg import expm

from refprune import dynamics
from refprune.backend import ORACLE
from refprune.layerspec import Activation, Dense, Section
from refprune.objective import BatchLoss
from refprune.spec import Network
from refprune.streams import Streams

TANH = Activation("tanh")


@dataclasses.dataclass(frozen=True)
class Sections:
    """A residual network of `gates` sections on a stream of 3 with a fixed head; numbers from the seed.

    The gate that is looked at is the last section's; its block is W = (weight, bias) of the section's second layer.
    """

    seed: int
    gates: int = 2
    hidden: int = 2
    examples: int = 6

    @property
    def network(self):
        sections = [Section((Dense(self.hidden), TANH, Dense(3)), name=f"s{i}") for i in range(self.gates)]
        return Network((2,), (Dense(3, name="stem"), TANH, *sections, Dense(3, name="head")))

    @property
    def block(self):
        return tuple(f"s{self.gates - 1}.dense2.{part}" for part in ("weight", "bias"))

    @property
    def moving(self):
        """Everything learns but the head."""
        return tuple(name for name in self.network.parameter_shapes if not name.startswith("head"))

    def loss(self, size):
        """The batch's loss with ‖W‖ = size."""
        streams, network = Streams(self.seed), self.network
        params = {name: streams.normal(name, 0, shape) for name, shape in network.parameter_shapes.items()}
        scale = size / np.linalg.norm(dynamics.pack(params, self.block))
        params |= {name: scale * params[name] for name in self.block}
        x = streams.normal("x", 0, (self.examples, 2))
        labels = (streams.uniform("labels", 0, (self.examples,)) * 3).astype(np.int64)
        return BatchLoss(network, ORACLE, params, x, labels)

    @property
    def kappa(self):
        """√2 ‖U‖₂ √(hidden + 1): the proved bound on ‖∂c/∂W‖ over everything else, U the head's matrix."""
        head = Streams(self.seed).normal("head.weight", 0, (3, 3))
        return float(np.sqrt(2.0 * (self.hidden + 1)) * np.linalg.norm(head, 2))

    def field(self, comparison):
        c = comparison
        return dynamics.network_field(self.loss(1.0), self.moving, beta=c.beta, decay=c.decay, ratio=c.ratio)

    def start(self, w, theta):
        """(weights, θ) with ‖W‖ = w and θ of the last section as given, the other gates at ½."""
        gates = np.full(self.gates, 0.5)
        gates[-1] = theta
        return dynamics.pack(self.loss(w).params, self.moving), gates

    def norm(self, weights):
        """‖W‖ at a point of a flow."""
        params = self.loss(1.0).params
        return float(np.linalg.norm(dynamics.pack(dynamics.unpack(weights, self.moving, params), self.block)))


def all_gates(count):
    return [np.array(gates, dtype=np.float64) for gates in itertools.product((0.0, 1.0), repeat=count)]


def probability(gates, theta):
    return float(np.prod(np.where(gates == 1.0, theta, 1.0 - theta)))


def sides_of_d1(case, weights, theta):
    """The two left-hand sides of D1 at a point of a flow: max over Ξ of |c(ξ=1) − c(ξ=0)|/w, and ‖E ∂c/∂W‖/θ."""
    loss = case.loss(1.0)
    loss = dataclasses.replace(loss, params=dynamics.unpack(weights, case.moving, loss.params))
    mean, differences = 0.0, []
    for gates in all_gates(case.gates):
        evaluation = loss.evaluate(gates)
        mean = mean + probability(gates, theta) * dynamics.pack(loss.gradients(evaluation).params, case.block)
        if gates[-1] == 1.0:
            off = np.concatenate([gates[:-1], [0.0]])
            differences.append(abs(float(evaluation.loss) - float(loss.evaluate(off).loss)))
    return max(differences), float(np.linalg.norm(mean))


# Other ways to the same numbers -------------------------------------------------------------------------------------------


def euler(field, weights, theta, until, steps):
    """Projected Euler as O6 writes it: every step clips θ. Returns the points (steps + 1, n) and (steps + 1, G)."""
    h = until / steps
    w, t = [np.array(weights, dtype=np.float64)], [np.array(theta, dtype=np.float64)]
    for _ in range(steps):
        dw, dt = field(w[-1], t[-1])
        w.append(w[-1] + h * dw)
        t.append(np.clip(t[-1] + h * dt, 0.0, 1.0))
    return np.array(w), np.array(t)


def linear_solution(comparison, w, theta, times):
    """The comparison system without projection by the matrix exponential: rows (w, θ)."""
    c = comparison
    matrix = np.array([[-c.decay, c.kappa], [c.ratio * c.kappa, 0.0]])
    saddle = np.array([c.beta / c.kappa, c.decay * c.beta / c.kappa**2])
    return np.array([saddle + expm(matrix * t) @ (np.array([w, theta]) - saddle) for t in times])


def random_comparison(rng, *, decay=True):
    """λβ < κ², over two decades each; sometimes without weight decay."""
    while True:
        kappa, beta, ratio = 10.0 ** rng.uniform((-1, -2, -1.5), (1, 0.5, 1.5))
        rate = 10.0 ** rng.uniform(-2, 1) if decay else 0.0
        if rate * beta < 0.95 * kappa**2:
            return dynamics.Comparison(kappa, beta, rate, ratio)


def random_point(rng, comparison, *, inside=False):
    """(w, θ) of which about half lie in H, or all."""
    c = comparison
    (w0, theta0), slope = c.saddle, c.decay + c.eigenvalues[0]
    top = theta0 + c.ratio * c.kappa * w0 / slope  # the edge at w = 0
    theta = rng.uniform(0.0, min(1.0, top if inside else 1.2 * top))
    edge = w0 - slope * (theta - theta0) / (c.ratio * c.kappa)
    return rng.uniform(0.0, edge if inside else 2.0 * edge if edge > 0.0 else c.radius), theta


# How far H and the estimate of κ reach ----------------------------------------------------------------------------------------


def slopes_on(case, flow):
    """Largest ‖∂c/∂W‖ over all Ξ with the gate on, at every point of a flow: what a running estimate of κ sees."""
    loss, found = case.loss(1.0), []
    for weights in flow.weights:
        here = dataclasses.replace(loss, params=dynamics.unpack(weights, case.moving, loss.params))
        on = [gates for gates in all_gates(case.gates) if gates[-1] == 1.0]
        norms = [np.linalg.norm(dynamics.pack(here.gradients(here.evaluate(gates)).params, case.block)) for gates in on]
        found.append(float(max(norms)))
    return np.array(found)


@dataclasses.dataclass
class Judged:
    """Counts over a sweep: flows that end with θ = 0 (off), 1 (on) or are under way at the end.

    By factor on what is seen of the slopes: off flows whose start lies in H (covered), off flows in which the rule of D6 fires,
    on flows in which it does (wrong).
    """

    factors: tuple[float, ...]
    off: int = 0
    on: int = 0
    under_way: int = 0

    def __post_init__(self):
        self.covered, self.fired, self.wrong = ([0] * len(self.factors) for _ in range(3))


def judge(seeds, factors=(0.1, 0.5, 1.0, 2.0), *, until=30.0):
    """A sweep over random networks, ratios r = 10^U(−1, 1) and starts w = U(0, ½), θ = U(0, 1): one flow a seed.

    λ = 10^U(−1, 0), β = 10^U(−2, −½), about the size of the slopes of c in ξ: a good part of the flows ends with the gate on.
    The rule looks at the start and at every step of the solver, with the largest slope of the flow so far; a start is covered if
    it lies in H with the largest slope of the whole flow.
    """
    total = Judged(tuple(factors))
    for seed in seeds:
        case, rng = Sections(1000 + seed, gates=1 + seed % 2), np.random.default_rng(seed)
        beta, decay, ratio = 10.0 ** rng.uniform((-2.0, -1.0, -1.0), (-0.5, 0.0, 1.0))
        c = dynamics.Comparison(case.kappa, float(beta), float(decay), float(ratio))
        start = case.start(rng.uniform(0.0, 0.5), rng.uniform())
        flow = dynamics.projected_flow(case.field(c), *start, until, rtol=1e-6, atol=1e-9, least_steps=20)
        end = flow.theta[-1, -1]
        off, on = end == 0.0, end == 1.0
        total.off, total.on, total.under_way = total.off + int(off), total.on + int(on), total.under_way + int(0.0 < end < 1.0)
        slopes = slopes_on(case, flow)
        norms = np.array([case.norm(weights) for weights in flow.weights])
        for i, factor in enumerate(factors):

            def inside(kappa, c=c, norms=norms, theta=flow.theta[:, -1]):
                return dynamics.in_domain(norms, theta, kappa=kappa, beta=c.beta, decay=np.asarray(c.decay), ratio=c.ratio)

            fires = bool(inside(factor * np.maximum.accumulate(slopes)).any())
            total.covered[i] += int(off and inside(factor * slopes.max())[0])
            total.fired[i] += int(off and fires)
            total.wrong[i] += int(on and fires)
    return total
