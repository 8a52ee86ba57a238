"""O6 to O9: training. Witnesses: the update written out, Robbins-Monro, Philox in Python integers, J at vertices."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from typing import Any

import numpy as np

from ...arrays import Array
from ...gates.rules import Evidence, Rule, rule_keep
from ...passes.batch_loss import BatchLoss
from ...spec.layers import Activation, Dense, Flatten, Section, UnitGate
from ...spec.network import Network
from ...streams import Streams
from ...training import config, decide
from ...training.coefficients import schedule_factor, step_factor
from ...training.images import Images
from ...training.removal import remove_gates
from ...training.state import State, initial_state
from ...training.step import train_step
from ..catalogue import EPS, LP, OURS, Claim, Context, Finding, close, exact, worst, z_score
from ..witnesses.examples import dense_network, loss_of, losses_at, remembered, slopes_of

O6 = Claim(
    "O6",
    "Projected SGD converges to the stationary set of the projected ODE (Robbins-Monro).",
    "W ← W − η ∇_W J, θ ← clip(θ − η_θ ∇_θ J, 0, 1)",
    LP,
    (
        "training.step:train_step",
        "training.state:project_theta",
        "training.coefficients:schedule_factor",
        "training.coefficients:step_factor",
        "oracle.momentum:momentum_step",
    ),
)
O7 = Claim(
    "O7",
    "A pruned gate is gone for good, with weights, optimiser state and computation; training goes on in the smaller network.",
    "θ_g ≤ τ ⇒ G ← G ∖ \\{g\\}, (W, v, θ, c) ← (W, v, θ, c)|_{ξ_g = 0}, g ∉ G ever after",
    LP,
    ("training.removal:remove_gates", "training.removal:cut_state", "gates.rules:above", "gates.surgery:spare_plain_layers"),
)
O8 = Claim(
    "O8",
    "All randomness is an input: named streams (seed, purpose, step) that anybody can draw again.",
    "word = Philox_{SHA256(seed|purpose|step)}, u = (word ≫ 11) 2^{−53}",
    OURS,
    ("streams:Streams.words", "streams:Streams.uniform", "streams:Streams.normal", "streams:Streams.permutation"),
)
O9 = Claim(
    "O9",
    "No silent rounding: an undecided gate takes the vertex with the smaller J, and is listed.",
    "θ_g ∈ (τ, 1−τ) : ξ_g = argmin_{ξ∈\\{0,1\\}} J",
    OURS,
    ("training.decide:decide", "passes.statistics:update_statistics"),
)

ROUNDINGS = 256  # sums of 2⁸ losses


def _rules(**changes: Any) -> config.Config:
    plain = config.Config(
        objective=config.Objective(beta=0.01, weight_decay=0.002),
        gates=config.Gates(estimator="exact", learning_rate=5.0, initial=0.5),
        optimiser=config.Optimiser(learning_rate=0.05, momentum=0.9),
        training=config.Training(epochs=4, batch_size=6, dtype="float64"),
    )
    return dataclasses.replace(plain, **changes)


def _state(context: Context) -> tuple[State, Array, Array]:
    network = dense_network()
    loss = loss_of(network, context)
    state = initial_state(_rules(), network)
    velocity = {n: 0.1 * context.normal(f"v {n}", *p.shape) for n, p in loss.params.items()}
    theta = np.array([0.9, 0.5, 1.0, 0.001, 0.4, 0.7, 0.999, 0.3])
    return dataclasses.replace(state, params=dict(loss.params), velocity=velocity, theta=theta), loss.x, loss.target


@O6.witness("one training step against the update written out: momentum, decay, projection")
def step_written_out(context: Context) -> Finding:
    state, x, labels = _state(context)
    rules = _rules()
    after, _ = train_step(state, x, labels, rules, context.backend, training_images=6)
    uniform = np.concatenate(
        [Streams(0).uniform(f"gates/{g.name}", 0, (g.stop - g.start, 1))[:, 0] for g in state.network.gate_groups]
    )
    loss = BatchLoss(state.network, context.backend, state.params, x, labels, state.statistics)
    gates = (uniform < state.theta).astype(float)
    gradients = loss.gradients(loss.evaluate(gates)).params
    vertices, losses = losses_at(loss, 8)
    slopes = slopes_of(vertices, losses, state.theta)
    want = np.minimum(np.maximum(state.theta - 5.0 * (slopes + 0.01), 0.0), 1.0)
    findings = [close(after.theta, want, 10.0, ROUNDINGS), exact(int(not ((want == 0) | (want == 1)).any()))]
    for name, w in state.params.items():
        v = 0.9 * state.velocity[name] + gradients[name] + 0.002 * w
        findings.append(close(after.velocity[name], v, np.abs(v) + 1, 16))
        findings.append(close(after.params[name], w - 0.05 * v, np.abs(w) + np.abs(v), 16))
    return worst(*findings)


@O6.witness("Robbins-Monro: 12 runs from random θ end where the projected gradient is 0, at a vertex")
def runs_end_at_a_vertex(context: Context) -> Finding:
    """Paired estimates from a table of losses, η_t = ½ t^−0.7 (Σ η = ∞, Σ η² < ∞). Distance of the projected gradient step."""
    loss, beta = remembered(loss_of(dense_network(), context)), 0.02
    vertices, losses = losses_at(loss, 8)
    runs, steps = 12, 6000
    theta = context.uniform("O6", runs, 8)
    v = context.uniform("O6 v", steps, runs, 8)
    powers = 2 ** np.arange(7, -1, -1)
    for t in range(steps):
        code = (v[t] < theta).astype(int) @ powers
        on = (code[:, None] | powers).astype(int)
        noisy = losses[on] - losses[on - powers]
        theta = np.clip(theta - 20.0 * (t + 1) ** -0.7 * (noisy + beta), 0.0, 1.0)
    residual = 0.0
    for point in theta:
        slopes = slopes_of(vertices, losses, point)
        residual = max(residual, float(np.abs(point - np.clip(point - (slopes + beta), 0, 1)).max()))
    return Finding(residual, 20.0 * steps**-0.7, detail="projected gradient; bound: the last step size")


def _joint_run(context: Context, number: int) -> tuple[State, BatchLoss, config.Config, State]:
    """(the end, its loss, the rules, the start): 900 steps of W and θ, paired, on one batch of a tanh network with 3 gates."""
    section = Section((Dense(2), Activation("tanh"), Dense(3)))
    network = Network((3,), (Dense(3), Activation("tanh"), section, section, section, Dense(2)))
    rules = config.Config(
        seed=number,
        objective=config.Objective(beta=(0.02, 0.05, 0.1)[number], weight_decay=0.03),
        gates=config.Gates(estimator="paired", learning_rate=0.5, initial=0.5),
        optimiser=config.Optimiser(0.6, 0.0, "robbins_monro", schedule_power=0.6, schedule_offset=100.0),
        training=config.Training(epochs=900, batch_size=8, dtype="float64"),
    )
    loss = loss_of(network, context, batch=8)
    start = dataclasses.replace(initial_state(rules, network), params=dict(loss.params))
    state = start
    for _ in range(900):
        state, _ = train_step(state, loss.x, loss.target, rules, context.backend, training_images=8)
    return state, dataclasses.replace(loss, params=state.params), rules, start


@O6.witness("joint runs of the training step in W and θ, paired, robbins_monro: they end at vertices, stationary in W")
def joint_runs_end_at_stationary_vertices(context: Context) -> Finding:
    """At a vertex no noise is left: ∂J/∂W falls, and a closed gate's block by e^{−λ Ση} from when the gate closed."""
    wrong, largest, closed = 0, 0.0, 0
    for number in range(3):
        state, loss, rules, start = _joint_run(context, number)
        wrong += int(((state.theta != 0.0) & (state.theta != 1.0)).sum())
        gradients = loss.gradients(loss.evaluate(np.round(state.theta))).params
        decay = rules.objective.weight_decay
        slopes = [gradients[name] + decay * w for name, w in state.params.items()]
        largest = max(largest, math.sqrt(sum(float((s**2).sum()) for s in slopes)))
        for g in np.flatnonzero(state.theta == 0.0):
            name = f"section{g + 1}.dense2.weight"
            wrong += np.linalg.norm(state.params[name]) > 0.05 * np.linalg.norm(start.params[name])
            closed += 1
    return worst(exact(wrong if closed else math.inf, f"{closed} of 9 gates closed"), Finding(largest, 0.02, detail="‖∂J/∂W‖"))


@O6.witness("schedules multiply both step sizes alike; the warm-up leaves θ where it is")
def schedules_and_warm_up(context: Context) -> Finding:
    state, x, labels = _state(context)
    waiting = _rules(gates=dataclasses.replace(_rules().gates, warmup_epochs=2.0))
    after, _ = train_step(state, x, labels, waiting, context.backend, training_images=6)
    wrong = int((after.theta != state.theta).any())
    for kind, wanted in (("constant", (1, 1, 1)), ("cosine", (1, 0.5, 0)), ("warmup_stable_decay", (0, 1, 0))):
        got = [schedule_factor(kind, p) for p in (0.0, 0.5, 1.0)]
        wrong += int(np.abs(np.array(got) - wanted).max() > 4 * EPS)
    falling = _rules(optimiser=config.Optimiser(schedule="robbins_monro", schedule_power=0.75, schedule_offset=5.0))
    factors = [step_factor(falling, 5 * (2**k - 1), 1) for k in range(0, 16, 4)]
    wrong += int(np.abs(np.array(factors) / [2.0 ** (-0.75 * k) for k in range(0, 16, 4)] - 1.0).max() > 16 * EPS)
    return exact(wrong)


def _above(network: Network, theta: Array, threshold: float) -> Array:
    """The rule `threshold`, which asks for θ alone."""
    nothing = Evidence(np.zeros(theta.size), np.zeros(theta.size), np.zeros(theta.size))
    return rule_keep(network, {}, theta, nothing, Rule(threshold=threshold))


@O7.witness("after a removal nothing of the gate is left, and a step is that of the masked network")
def removal_leaves_the_masked_step(context: Context) -> Finding:
    state, x, labels = _state(context)
    rules = _rules(gates=dataclasses.replace(_rules().gates, warmup_epochs=math.inf))
    theta = np.array([1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    state = dataclasses.replace(state, theta=theta)
    keep = _above(state.network, theta, 0.0)
    small, cut, _ = remove_gates(state, keep, rules)
    wrong = int((keep != (theta > 0)).any()) + int(small.theta.size != int(keep.sum()))
    for arrays in (small.params, small.velocity):
        wrong += int({n: a.shape for n, a in arrays.items()} != dict(small.network.parameter_shapes))
    masked, _ = train_step(state, x, labels, rules, context.backend, training_images=6)
    compact, _ = train_step(small, x, labels, rules, context.backend, training_images=6)
    wrong += int(compact.macs >= masked.macs)
    cuts = [(cut.arrays(masked.params), compact.params), (cut.arrays(masked.velocity), compact.velocity)]
    return worst(exact(wrong), *[close(b[n], a[n], np.abs(a[n]).max() + 1, 64) for a, b in cuts for n in a])


@O7.witness("the rule τ: at most τ goes, above stays, a plain layer keeps its best unit")
def threshold_rule(context: Context) -> Finding:
    network = dense_network()
    theta = np.array([0.1, 0.2, 0.1, 0.1001, 0.0999, 0.5, 0.0, 1.0])
    keep = _above(network, theta, 0.1)
    wrong = int((keep != np.array([0, 1, 0, 1, 0, 1, 0, 1], dtype=bool)).sum())
    plain = Network((2,), (Dense(4), Activation("tanh"), UnitGate(), Dense(2)))
    for low, left in (([0.05, 0.02, 0.08, 0.0], [0, 0, 1, 0]), ([0.05, 0.2, 0.3, 0.0], [0, 1, 1, 0])):
        wrong += int((_above(plain, np.array(low), 0.1) != np.array(left, dtype=bool)).sum())
    return exact(wrong)


def _philox(key: list[int], counter: int) -> list[int]:
    """Philox 4×64-10 (Salmon et al. 2011), in Python integers."""
    mask, k = 2**64 - 1, list(key)
    c = [counter, 0, 0, 0]
    for _ in range(10):
        a, b = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [(b >> 64) ^ c[1] ^ k[0], b & mask, (a >> 64) ^ c[3] ^ k[1], a & mask]
        k = [(k[0] + 0x9E3779B97F4A7C15) & mask, (k[1] + 0xBB67AE8584CAA73B) & mask]
    return c


@O8.witness("Philox 4×64-10 written out in Python integers gives the same words and uniforms")
def philox_in_python_integers(context: Context) -> Finding:
    import hashlib

    wrong = 0
    for seed, purpose, step in ((0, "gates/a", 3), (7, "shuffle", 0), (context.seed, "x|y", 2**33)):
        digest = hashlib.sha256(f"{seed}|{purpose}|{step}".encode()).digest()
        key = [int.from_bytes(digest[i : i + 8], "little") for i in (0, 8)]
        words = [w for counter in (1, 2, 3) for w in _philox(key, counter)]
        wrong += words != [int(w) for w in Streams(seed).words(purpose, step, 12)]
        uniforms = Streams(seed).uniform(purpose, step, (3, 4)).ravel()
        wrong += [Fraction(w >> 11, 2**53) for w in words] != [Fraction(float(u)) for u in uniforms]
        order = sorted(range(12), key=lambda i, u=uniforms: u[i])  # type: ignore[misc]
        wrong += order != Streams(seed).permutation(purpose, step, 12).tolist()
    return exact(wrong)


@O8.witness("normal numbers through the inverse error function with 50 digits; their moments")
def normal_numbers_in_fifty_digits(context: Context) -> Finding:
    import mpmath

    streams = Streams(context.seed)
    z = streams.normal("audit", 1, (40,))
    with mpmath.workdps(50):
        p = [(mpmath.mpf(int(w) >> 12) + mpmath.mpf("0.5")) / 2**52 for w in streams.words("audit", 1, 40)]
        want = [float(mpmath.sqrt(2) * mpmath.erfinv(2 * v - 1)) for v in p]
    many = streams.normal("audit", 2, (50_000,))
    moments = z_score(np.stack([many, many**2 - 1, many**3, many**4 - 3], axis=1), 0.0)
    return worst(close(z, want, np.abs(want) + 1, 16), moments)


def _settled(context: Context) -> tuple[State, Images, config.Config]:
    section = Section((Dense(4), Activation("relu")))
    network = Network((1, 2, 2), (Flatten(), Dense(4), section, section, Dense(3)))
    rules = _rules(gates=dataclasses.replace(_rules().gates, threshold=0.05))
    state = initial_state(rules, network)
    loss = loss_of(network, context, batch=24)
    state = dataclasses.replace(state, params=dict(loss.params), theta=np.array([0.45, 0.7]))
    return state, Images(loss.x, loss.target), rules


@O9.witness("decisions against J at the vertices, on all batches; every undecided gate is listed")
def decisions_by_the_objective(context: Context) -> Finding:
    state, images, rules = _settled(context)
    gates, decisions, _ = decide.decide(state, images, rules, context.backend)

    def j(vector: tuple[float, float]) -> float:
        """J at a vertex: the network is a plain formula; β = 0.01 for every gate that is on."""
        p, h = state.params, images.x.reshape(len(images.x), -1)
        h = h @ p["dense1.weight"].T + p["dense1.bias"]
        for i, xi in enumerate(vector, 1):
            h = h + xi * np.maximum(h @ p[f"section{i}.dense1.weight"].T + p[f"section{i}.dense1.bias"], 0.0)
        z = h @ p["dense2.weight"].T + p["dense2.bias"]
        log_sum = np.log(np.exp(z - z.max(axis=1, keepdims=True)).sum(axis=1)) + z.max(axis=1)
        return float((log_sum - z[np.arange(len(z)), images.labels]).mean()) + 0.01 * sum(vector)

    vector, wrong, findings = [0.0, 1.0], int(len(decisions) != 2), []
    for decision, g in zip(decisions, (1, 0), strict=False):  # the most certain first: θ = 0.7, then 0.45
        on, off = (j((*vector[:g], xi, *vector[g + 1 :])) for xi in (1.0, 0.0))  # type: ignore[arg-type]
        findings.append(close(decision.objective_on, on, on, 64))
        findings.append(close(decision.objective_off if decision.objective_off is not None else np.nan, off, off, 64))
        vector[g] = float(on < off)
        wrong += int(decision.on != bool(vector[g])) + int(decision.gate != f"section{g + 1}")
    return worst(exact(wrong + int(list(gates) != vector)), *findings)


@O9.witness("running statistics are moved by the sampled pass alone, by the stated share and variance")
def statistics_move_by_the_sampled_pass(context: Context) -> Finding:
    state, x, labels = _state(context)
    ends = []
    for name in ("exact", "paired", "taylor"):
        rules = _rules(gates=dataclasses.replace(_rules().gates, estimator=name))
        ends.append(train_step(state, x, labels, rules, context.backend, training_images=6)[0].statistics)
    same = sum(int((a[n] != ends[0][n]).any()) for a in ends[1:] for n in a)
    open_all = dataclasses.replace(state, theta=np.ones(8))
    rules = _rules(gates=dataclasses.replace(_rules().gates, warmup_epochs=math.inf))
    after = train_step(open_all, x, labels, rules, context.backend, training_images=6)[0].statistics
    loss = BatchLoss(state.network, context.backend, state.params, x, labels)
    seen: dict[str, Array] = {}
    loss.evaluate(np.ones(8), observe=lambda name, y: seen.update({name: y}))
    z = seen["section3.dense1"]
    mean, variance = z.mean(axis=0), ((z - z.mean(axis=0)) ** 2).sum(axis=0) / (len(z) - 1)
    one = close(after["section3.batchnorm1.mean"], 0.1 * mean, np.abs(mean) + 1, 8)
    two = close(after["section3.batchnorm1.variance"], 0.9 + 0.1 * variance, variance + 1, 8)
    return worst(exact(same), one, two)
