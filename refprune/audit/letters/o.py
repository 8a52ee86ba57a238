"""O: the objective and its gradients. Witnesses: enumeration, rationals, complex step, Monte Carlo, Robbins-Monro."""

from __future__ import annotations

import dataclasses
import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np

from ... import config, estimators, flattening, pruning, settle, train
from ...layers import Array
from ...layerspec import Activation, Dense, Flatten, Section
from ...objective import BatchLoss
from ...spec import Network
from ...streams import Streams
from .. import figures
from ..claims import EPS, LP, OURS, Claim, Context, Finding, close, exact, worst, z_score
from ..examples import dense_network, linear_network, loss_of, remembered

O1 = Claim(
    "O1",
    "The per-sample objective; its scaling against the bound for the whole data set.",
    "J(W, θ) = C(W, θ) + \\frac{1}{2} λ ‖W‖^2 + ∑_g β_g θ_g, β_g = −\\frac{log γ_g}{N}",
    LP,
    (
        "estimators:exact_expectation",
        "flattening:beta_from_log_gamma",
        "flattening:log_gamma_from_beta",
        "train:penalties",
        "layers:weight_decay",
    ),
)
O2 = Claim(
    "O2",
    "C is multi-affine in θ; its derivative is the difference of two conditional expectations.",
    "∂C/∂θ_g = E[c | ξ_g = 1] − E[c | ξ_g = 0]",
    LP,
    ("estimators:exact_theta_gradient", "estimators:exact_expectation", "estimators:exact"),
)
O3 = Claim(
    "O3",
    "The gradient of a section's weights is θ times that with its gate open.",
    "∂C/∂W^l = θ^l E[∂c/∂W^l | ξ^l = 1]",
    LP,
    ("estimators:exact_weight_gradient",),
)
O4 = Claim(
    "O4",
    "Deterministic solutions: J is harmonic in θ, some vertex minimises it, an interior minimum is never better.",
    "min_{θ∈{[0,1]}^G} J = min_{θ∈{{0,1}}^G} J, ∑_g ∂^2 J/∂θ_g^2 = 0",
    LP,
    ("estimators:exact_expectation", "estimators:exact_theta_gradient"),
)
O5 = Claim(
    "O5",
    "Estimators: paired, reinforce, arm and disarm are unbiased, taylor is exact for affine c only.",
    "E[ĝ] = ∂C/∂θ",
    OURS,
    ("estimators:paired", "estimators:reinforce", "estimators:arm", "estimators:disarm", "estimators:taylor"),
)
O6 = Claim(
    "O6",
    "Projected SGD converges to the stationary set of the projected ODE (Robbins-Monro).",
    "W ← W − η ∇_W J, θ ← clip(θ − η_θ ∇_θ J, 0, 1)",
    LP,
    ("train:step", "train:schedule_factor", "optimiser:momentum_step"),
)
O7 = Claim(
    "O7",
    "A pruned gate is gone for good, with weights, optimiser state and computation; training goes on in the smaller network.",
    "θ_g ≤ τ ⇒ W_g, v_g, θ_g",
    LP,
    ("train:remove", "train:cut_state", "pruning:above", "pruning:spare_plain_layers"),
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
    "θ_g ∈ (τ, 1−τ) : ξ_g = argmin_{ξ∈{0,1}} J",
    OURS,
    ("settle:decide", "objective:update_statistics"),
)

ROUNDINGS = 256  # sums of 2⁸ losses


def _vertices(count: int) -> Array:
    return np.array(list(itertools.product((0.0, 1.0), repeat=count)))


def _losses(loss: BatchLoss, count: int) -> tuple[Array, Array]:
    """Every gate vector with its loss."""
    vertices = _vertices(count)
    return vertices, np.array([float(loss.evaluate(g).loss) for g in vertices])


def _weights(vertices: Array, theta: Array) -> Array:
    return np.asarray(np.prod(np.where(vertices == 1.0, theta, 1.0 - theta), axis=1))


def _linear_by_rationals(theta: list[Fraction]) -> tuple[list[list[int]], Fraction, list[Fraction]]:
    """Weights, C and ∂C/∂θ of `linear_network` on one example, in rational arithmetic."""
    a, w1, w2, x, y = [[1, -2], [3, 1]], [[2, 1], [-1, 1]], [[0, 3], [1, -2]], [2, -1], [1, 4]

    def apply(m: list[list[int]], v: list[Any]) -> list[Any]:
        return [sum(p * q for p, q in zip(row, v, strict=True)) for row in m]

    def c(first: int, second: int) -> int:
        h = apply(a, x)
        h = [p + first * q for p, q in zip(h, apply(w1, h), strict=True)]
        h = [p + second * q for p, q in zip(h, apply(w2, h), strict=True)]
        return sum((p - q) ** 2 for p, q in zip(h, y, strict=True))

    t1, t2 = theta
    total = sum(
        ((t1 if i else 1 - t1) * (t2 if j else 1 - t2) * c(i, j) for i in (0, 1) for j in (0, 1)),
        Fraction(0),
    )
    first = (1 - t2) * (c(1, 0) - c(0, 0)) + t2 * (c(1, 1) - c(0, 1))
    second = (1 - t1) * (c(0, 1) - c(0, 0)) + t1 * (c(1, 1) - c(1, 0))
    return [a, w1, w2, [x, y]], total, [first, second]  # type: ignore[list-item]


def _linear_loss(context: Context, arrays: Any) -> BatchLoss:
    a, w1, w2, (x, y) = arrays
    params = {"dense1.weight": a, "section1.dense1.weight": w1, "section2.dense1.weight": w2}
    wide = {n: np.array(p, dtype=float) for n, p in params.items()}
    return BatchLoss(linear_network(), context.backend, wide, np.array([x], float), np.array([y], float))


@O1.witness("rationals: C of a linear network with integer weights, to the bit")
def _(context: Context) -> Finding:
    wrong = 0
    for t in ((Fraction(1, 4), Fraction(1, 2)), (Fraction(0), Fraction(3, 8)), (Fraction(1), Fraction(1))):
        arrays, total, _ = _linear_by_rationals(list(t))
        got = estimators.exact_expectation(_linear_loss(context, arrays), np.array([float(v) for v in t]))
        wrong += Fraction(got) != total
    return exact(wrong)


@O1.witness("Monte Carlo: the mean loss over sampled gates is C")
def _(context: Context) -> Finding:
    loss, theta = remembered(loss_of(dense_network(), context)), 0.1 + 0.8 * context.uniform("O1", 8)
    _, losses = _losses(loss, 8)
    gates = estimators.sample(theta, context.uniform("O1 v", 60_000, 8))
    codes = (gates @ (2.0 ** np.arange(7, -1, -1))).astype(int)
    return z_score(losses[codes][:, None], estimators.exact_expectation(loss, theta))


@O1.witness("both scalings give the same step sizes: β = −log γ/N, λ/N, weight decay ½λ‖W‖²")
def _(context: Context) -> Finding:
    n, log_gamma, precision = 1024, -37.5, 3.0
    per_set = config.Config(objective=config.Objective(penalty=-log_gamma, weight_decay=precision, scaling="per_data_set"))
    beta, decay = train.penalties(per_set, n)
    w = context.normal("O1 w", 9)
    value, saved = context.backend.weight_decay(w, strength=decay)
    (gradient,) = context.backend.weight_decay_vjp(saved, np.ones(()))
    exactly = Fraction(37.5) / n, Fraction(3) / n
    wrong = int(Fraction(beta) != exactly[0]) + int(Fraction(decay) != exactly[1])
    wrong += int(flattening.log_gamma_from_beta(beta, n) != log_gamma) + int(beta <= 0)
    plain = math.fsum(v * v for v in w) * precision / (2 * n)
    return worst(exact(wrong), close(value, plain, plain, 16), close(gradient, precision / n * w, np.abs(w), 4))


@O2.witness("rationals: ∂C/∂θ of a linear network, to the bit, also at θ = 0 and 1")
def _(context: Context) -> Finding:
    wrong = 0
    for t in ((Fraction(1, 4), Fraction(1, 2)), (Fraction(0), Fraction(3, 8)), (Fraction(1), Fraction(1))):
        arrays, _, gradient = _linear_by_rationals(list(t))
        got = estimators.exact_theta_gradient(_linear_loss(context, arrays), np.array([float(v) for v in t]))
        wrong += [Fraction(float(v)) for v in got] != gradient
    return exact(wrong)


@O2.witness("affine in each θ_g: values at three points lie on a line, whose slope is the gradient")
def _(context: Context) -> Finding:
    loss, theta = remembered(loss_of(dense_network(), context)), context.uniform("O2", 8)
    vertices, losses = _losses(loss, 8)
    gradient, findings = estimators.exact_theta_gradient(loss, theta), []
    size = np.abs(losses).max()
    for g in range(8):
        values = []
        for at in (0.0, 0.37, 1.0):
            moved = theta.copy()
            moved[g] = at
            values.append(estimators.exact_expectation(loss, moved))
            findings.append(close(values[-1], _weights(vertices, moved) @ losses, size, ROUNDINGS))
        findings.append(close(values[1], 0.63 * values[0] + 0.37 * values[2], size, ROUNDINGS))
        findings.append(close(gradient[g], values[2] - values[0], size, ROUNDINGS))
    return worst(*findings)


@O3.witness("θ times the mean over gate vectors with the gate open, summed by hand")
def _(context: Context) -> Finding:
    loss, theta = loss_of(dense_network(), context), 0.1 + 0.8 * context.uniform("O3", 8)
    total, findings = estimators.exact_weight_gradient(loss, theta), []
    for gate, prefix in ((0, "section1.dense1"), (1, "section2.dense2"), (7, "section3.dense1")):
        name, others = f"{prefix}.weight", [g for g in range(8) if g != gate]
        inside = np.zeros(loss.params[name].shape)
        for vertex in _vertices(7):
            gates = np.ones(8)
            gates[others] = vertex
            p = np.prod(np.where(vertex == 1.0, theta[others], 1.0 - theta[others]))
            inside += p * loss.gradients(loss.evaluate(gates)).params[name]
        findings.append(close(total[name], theta[gate] * inside, np.abs(inside).max() + 1e-3, ROUNDINGS))
    return worst(*findings)


@O3.witness("complex step through C itself, enumerated")
def _(context: Context) -> Finding:
    """Im C(W + ih D)/h along a random direction; h = 1e-200 (erratum to G2)."""
    loss, theta = loss_of(dense_network(), context), context.uniform("O3 c", 8)
    total = estimators.exact_weight_gradient(loss, theta)
    vertices, p = _vertices(8), _weights(_vertices(8), theta)
    findings = []
    for name in ("section1.dense1.weight", "section2.dense1.bias", "dense1.weight"):
        direction = context.normal(f"O3 {name}", *loss.params[name].shape)
        moved = {n: w.astype(complex) for n, w in loss.params.items()}
        moved[name] = moved[name] + 1e-200j * direction
        complexly = dataclasses.replace(loss, params=moved, x=loss.x.astype(complex))
        slope = sum(q * float(np.imag(complexly.evaluate(g).loss)) for q, g in zip(p, vertices, strict=True)) / 1e-200
        findings.append(close((total[name] * direction).sum(), slope, np.abs(total[name] * direction).sum(), ROUNDINGS))
    return worst(*findings)


@O4.witness("enumeration: no interior point and no descent ends below the best vertex")
def _(context: Context) -> Finding:
    loss, beta = remembered(loss_of(dense_network(), context)), 0.02
    vertices, losses = _losses(loss, 8)
    best = float((losses + beta * vertices.sum(axis=1)).min())
    above, wrong = 1e-13 * (1 + abs(best)), 0
    for start in context.uniform("O4", 6, 8):
        theta = start
        wrong += estimators.exact_expectation(loss, theta) + beta * theta.sum() < best - above
        for _step in range(60):
            slopes = _slopes(vertices, losses, theta)
            theta = np.clip(theta - 2.0 * (slopes + beta), 0.0, 1.0)
        wrong += float(_weights(vertices, theta) @ losses) + beta * theta.sum() < best - above
    return exact(wrong)


def _slopes(vertices: Array, losses: Array, theta: Array) -> Array:
    """∂C/∂θ from the table of all losses."""
    ends = [[_weights(vertices, _with(theta, g, v)) @ losses for v in (1.0, 0.0)] for g in range(theta.size)]
    return np.array([on - off for on, off in ends])


def _with(theta: Array, gate: int, value: float) -> Array:
    moved = theta.copy()
    moved[gate] = value
    return moved


@O4.witness("harmonic: J is the mean of its neighbours along the axes; rounding one gate after the other never raises it")
def _(context: Context) -> Finding:
    loss, beta, findings = remembered(loss_of(dense_network(), context)), 0.02, []
    for theta in 0.3 + 0.4 * context.uniform("O4 h", 3, 8):
        pairs = [estimators.exact_expectation(loss, _with(theta, g, theta[g] + s)) for g in range(8) for s in (-0.2, 0.2)]
        value = estimators.exact_expectation(loss, theta)
        findings.append(close(np.mean(pairs), value, 10.0, ROUNDINGS))
        rounded, j, raised = theta.copy(), value + beta * theta.sum(), 0
        for g in range(8):
            slope = estimators.exact_theta_gradient(loss, rounded)[g] + beta
            rounded[g] = 0.0 if slope > 0 else 1.0
            after = estimators.exact_expectation(loss, rounded) + beta * rounded.sum()
            raised += after > j + 1e-13 * (1 + abs(j))
            j = after
        findings.append(exact(raised))
    return worst(*findings)


def _estimates(name: str, loss: BatchLoss, theta: Array, uniforms: Array) -> Array:
    """The estimator once for every row of uniforms (repeats, K, G)."""
    kind, found = estimators.ESTIMATORS[name], []
    function = getattr(estimators, name)
    for uniform in uniforms:
        base = loss.evaluate(estimators.sample(theta, uniform[0]), run_closed=True)
        gates = loss.gradients(base).gates if name == "taylor" else np.zeros(theta.size)
        found.append(function(loss, base, gates, theta, uniform if kind.many_samples else uniform[:1]).gradient)
    return np.array(found)


def _three_gates(context: Context) -> tuple[BatchLoss, Array]:
    section = Section((Dense(3), Activation("tanh")))
    loss = loss_of(Network((3,), (Dense(3), section, section, section, Dense(3))), context, batch=4)
    return loss, np.array([0.2, 0.5, 0.85])


@O5.witness("enumeration of the base sample: paired and reinforce (K = 1) have the exact mean, to rounding")
def _(context: Context) -> Finding:
    loss, theta = _three_gates(context)
    want, findings = estimators.exact_theta_gradient(loss, theta), []
    for name in ("paired", "reinforce"):
        mean = np.zeros(3)
        for vertex in _vertices(3):
            uniform = np.where(vertex == 1.0, theta / 2, (1 + theta) / 2)
            mean += _weights(vertex[None], theta)[0] * _estimates(name, loss, theta, uniform[None, None])[0]
        findings.append(close(mean, want, 20.0, ROUNDINGS))
    return worst(*findings)


@O5.witness("Monte Carlo: paired, reinforce with baseline (K = 3), arm, disarm against the exact gradient")
def _(context: Context) -> Finding:
    plain, theta = _three_gates(context)
    loss = remembered(plain)
    want = estimators.exact_theta_gradient(loss, theta)
    uniforms, samples = context.uniform("O5", 3000, 3, 3), []
    for name in ("paired", "reinforce", "arm", "disarm"):
        samples.append(_estimates(name, loss, theta, uniforms) - want)
    return z_score(np.concatenate(samples, axis=1), 0.0)


@O5.witness("quadrature over the uniform number of one gate: arm and disarm, exactly")
def _(context: Context) -> Finding:
    """In θ the integrand is piecewise linear in v with breaks at θ and 1−θ: the midpoint rule on each piece is exact."""
    section = Section((Dense(3), Activation("tanh")))
    loss, findings = loss_of(Network((3,), (Dense(3), section, Dense(3))), context), []
    for t in (0.1, 0.5, 0.7, 0.98):
        theta = np.array([t])
        want = estimators.exact_theta_gradient(loss, theta)
        edges = np.array(sorted({0.0, t, 1 - t, 1.0}))
        middle, length = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
        for name in ("arm", "disarm"):
            values = _estimates(name, loss, theta, middle[:, None, None])
            findings.append(close(length @ values, want, 10.0 / min(t, 1 - t), ROUNDINGS))
    return worst(*findings)


@O5.witness("taylor: exact in the mean for a quadratic c at θ = ½ only; its bias elsewhere is (2θ−1)·curvature")
def _(context: Context) -> Finding:
    """One linear section, squared error: c(ξ) = a + bξ + qξ², so E[c'(ξ)] = b + 2qθ while ∂C/∂θ = b + q."""
    network = Network((2,), (Dense(2, bias=False), Section((Dense(2, bias=False),))), linear_network().loss)
    loss, findings = loss_of(network, context), []
    values = [float(loss.evaluate(np.array([g])).loss) for g in (0.0, 0.5, 1.0)]
    q = 2 * values[0] - 4 * values[1] + 2 * values[2]
    for t in (0.1, 0.5, 0.9):
        theta = np.array([t])
        on, off = (_estimates("taylor", loss, theta, np.array([[[v]]]))[0, 0] for v in (t / 2, (1 + t) / 2))
        bias = t * on + (1 - t) * off - estimators.exact_theta_gradient(loss, theta)[0]
        findings.append(close(bias, (2 * t - 1) * q, np.abs(values).max() * 8, ROUNDINGS))
    return worst(*findings, exact(int(abs(q) < 1e-6)))


@O5.picture
def _(context: Context) -> Any:
    figure, axes = figures.make("Estimators of ∂C/∂θ, 400 samples: bias (cross) and standard deviation (bar)", "gate", "error")
    plain, theta = _three_gates(context)
    loss = remembered(plain)
    want = estimators.exact_theta_gradient(loss, theta)
    uniforms = context.uniform("O5 picture", 400, 3, 3)
    for i, name in enumerate(("paired", "reinforce", "arm", "disarm", "taylor")):
        error = _estimates(name, loss, theta, uniforms) - want
        at = np.arange(3) + 0.15 * (i - 2)
        axes.errorbar(at, error.mean(axis=0), error.std(axis=0), fmt="x", capsize=3, label=name)
    axes.set_xticks(range(3), [f"θ = {t:g}" for t in theta])
    axes.legend(fontsize=7)
    return figure


def _rules(**changes: Any) -> config.Config:
    plain = config.Config(
        objective=config.Objective(penalty=0.01, weight_decay=0.002),
        gates=config.Gates(estimator="exact", learning_rate=5.0, initial=0.5),
        optimiser=config.Optimiser(learning_rate=0.05, momentum=0.9),
        training=config.Training(epochs=4, batch_size=6, dtype="float64"),
    )
    return dataclasses.replace(plain, **changes)


def _state(context: Context) -> tuple[train.State, Array, Array]:
    network = dense_network()
    loss = loss_of(network, context)
    state = train.init(_rules(), network)
    velocity = {n: 0.1 * context.normal(f"v {n}", *p.shape) for n, p in loss.params.items()}
    theta = np.array([0.9, 0.5, 1.0, 0.001, 0.4, 0.7, 0.999, 0.3])
    return dataclasses.replace(state, params=dict(loss.params), velocity=velocity, theta=theta), loss.x, loss.target


@O6.witness("one training step against the update written out: momentum, decay, projection")
def _(context: Context) -> Finding:
    state, x, labels = _state(context)
    rules = _rules()
    after, _ = train.step(state, x, labels, rules, context.backend, samples=6)
    uniform = np.concatenate(
        [Streams(0).uniform(f"gates/{g.name}", 0, (g.stop - g.start, 1))[:, 0] for g in state.network.gates]
    )
    loss = BatchLoss(state.network, context.backend, state.params, x, labels, state.statistics)
    gates = (uniform < state.theta).astype(float)
    gradients = loss.gradients(loss.evaluate(gates)).params
    vertices, losses = _losses(loss, 8)
    slopes = _slopes(vertices, losses, state.theta)
    want = np.minimum(np.maximum(state.theta - 5.0 * (slopes + 0.01), 0.0), 1.0)
    findings = [close(after.theta, want, 10.0, ROUNDINGS), exact(int(not ((want == 0) | (want == 1)).any()))]
    for name, w in state.params.items():
        v = 0.9 * state.velocity[name] + gradients[name] + 0.002 * w
        findings.append(close(after.velocity[name], v, np.abs(v) + 1, 16))
        findings.append(close(after.params[name], w - 0.05 * v, np.abs(w) + np.abs(v), 16))
    return worst(*findings)


@O6.witness("Robbins-Monro: 12 runs from random θ end where the projected gradient is 0, at a vertex")
def _(context: Context) -> Finding:
    """Paired estimates from a table of losses, η_t = ½ t^−0.7 (Σ η = ∞, Σ η² < ∞). Distance of the projected gradient step."""
    loss, beta = remembered(loss_of(dense_network(), context)), 0.02
    vertices, losses = _losses(loss, 8)
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
        slopes = _slopes(vertices, losses, point)
        residual = max(residual, float(np.abs(point - np.clip(point - (slopes + beta), 0, 1)).max()))
    return Finding(residual, 20.0 * steps**-0.7, detail="projected gradient; bound: the last step size")


@O6.witness("schedules multiply both step sizes alike; the warm-up leaves θ where it is")
def _(context: Context) -> Finding:
    state, x, labels = _state(context)
    waiting = _rules(gates=dataclasses.replace(_rules().gates, warmup_epochs=2.0))
    after, _ = train.step(state, x, labels, waiting, context.backend, samples=6)
    wrong = int((after.theta != state.theta).any())
    for kind, wanted in (("constant", (1, 1, 1)), ("cosine", (1, 0.5, 0)), ("warmup_stable_decay", (0, 1, 0))):
        got = [train.schedule_factor(kind, p) for p in (0.0, 0.5, 1.0)]
        wrong += int(np.abs(np.array(got) - wanted).max() > 4 * EPS)
    return exact(wrong)


def _above(network: Network, theta: Array, threshold: float) -> Array:
    """The rule `threshold`, which asks for θ alone."""
    rules, nothing = _rules(gates=dataclasses.replace(_rules().gates, threshold=threshold)), np.zeros(theta.size)
    keep: Array = pruning.rule_keep(network, {}, theta, nothing, nothing, rules, beta=0.0, decay=0.0)
    return keep


@O7.witness("after a removal nothing of the gate is left, and a step is that of the masked network")
def _(context: Context) -> Finding:
    state, x, labels = _state(context)
    rules = _rules(gates=dataclasses.replace(_rules().gates, warmup_epochs=math.inf))
    theta = np.array([1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    state = dataclasses.replace(state, theta=theta)
    keep = _above(state.network, theta, 0.0)
    small, cut, _ = train.remove(state, keep, rules)
    wrong = int((keep != (theta > 0)).any()) + int(small.theta.size != int(keep.sum()))
    for arrays in (small.params, small.velocity):
        wrong += int({n: a.shape for n, a in arrays.items()} != dict(small.network.parameter_shapes))
    masked, _ = train.step(state, x, labels, rules, context.backend, samples=6)
    compact, _ = train.step(small, x, labels, rules, context.backend, samples=6)
    wrong += int(compact.macs >= masked.macs)
    cuts = [(cut.arrays(masked.params), compact.params), (cut.arrays(masked.velocity), compact.velocity)]
    return worst(exact(wrong), *[close(b[n], a[n], np.abs(a[n]).max() + 1, 64) for a, b in cuts for n in a])


@O7.witness("the rule τ: at most τ goes, above stays, a plain layer keeps its best unit")
def _(context: Context) -> Finding:
    network = dense_network()
    theta = np.array([0.1, 0.2, 0.1, 0.1001, 0.0999, 0.5, 0.0, 1.0])
    keep = _above(network, theta, 0.1)
    return exact(int((keep != np.array([0, 1, 0, 1, 0, 1, 0, 1], dtype=bool)).sum()))


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
def _(context: Context) -> Finding:
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
def _(context: Context) -> Finding:
    import mpmath

    streams = Streams(context.seed)
    z = streams.normal("audit", 1, (40,))
    with mpmath.workdps(50):
        p = [(mpmath.mpf(int(w) >> 12) + mpmath.mpf("0.5")) / 2**52 for w in streams.words("audit", 1, 40)]
        want = [float(mpmath.sqrt(2) * mpmath.erfinv(2 * v - 1)) for v in p]
    many = streams.normal("audit", 2, (50_000,))
    moments = z_score(np.stack([many, many**2 - 1, many**3, many**4 - 3], axis=1), 0.0)
    return worst(close(z, want, np.abs(want) + 1, 16), moments)


def _settled(context: Context) -> tuple[train.State, train.Images, config.Config]:
    section = Section((Dense(4), Activation("relu")))
    network = Network((1, 2, 2), (Flatten(), Dense(4), section, section, Dense(3)))
    rules = _rules(gates=dataclasses.replace(_rules().gates, threshold=0.05))
    state = train.init(rules, network)
    loss = loss_of(network, context, batch=24)
    state = dataclasses.replace(state, params=dict(loss.params), theta=np.array([0.45, 0.7]))
    return state, train.Images(loss.x, loss.target), rules


@O9.witness("decisions against J at the vertices, on all batches; every undecided gate is listed")
def _(context: Context) -> Finding:
    state, images, rules = _settled(context)
    gates, decisions, _ = settle.decide(state, images, rules, context.backend)

    def j(vector: tuple[float, float]) -> float:
        """J at a vertex: the network is a plain formula."""
        p, h = state.params, images.x.reshape(len(images.x), -1)
        h = h @ p["dense1.weight"].T + p["dense1.bias"]
        for i, xi in enumerate(vector, 1):
            h = h + xi * np.maximum(h @ p[f"section{i}.dense1.weight"].T + p[f"section{i}.dense1.bias"], 0.0)
        z = h @ p["dense2.weight"].T + p["dense2.bias"]
        log_sum = np.log(np.exp(z - z.max(axis=1, keepdims=True)).sum(axis=1)) + z.max(axis=1)
        return float((log_sum - z[np.arange(len(z)), images.labels]).mean())

    vector, wrong, findings = [0.0, 1.0], int(len(decisions) != 2), []
    for decision, g in zip(decisions, (1, 0), strict=False):  # the most certain first: θ = 0.7, then 0.45
        on, off = (j((*vector[:g], xi, *vector[g + 1 :])) for xi in (1.0, 0.0))  # type: ignore[arg-type]
        findings.append(close(decision.objective_on, on + 0.01, on, 64))
        findings.append(close(decision.objective_off if decision.objective_off is not None else np.nan, off, off, 64))
        vector[g] = float(on + 0.01 < off)
        wrong += int(decision.on != bool(vector[g])) + int(decision.gate != f"section{g + 1}")
    return worst(exact(wrong + int(list(gates) != vector)), *findings)


@O9.witness("running statistics are moved by the sampled pass alone, by the stated share and variance")
def _(context: Context) -> Finding:
    state, x, labels = _state(context)
    ends = []
    for name in ("exact", "paired", "taylor"):
        rules = _rules(gates=dataclasses.replace(_rules().gates, estimator=name))
        ends.append(train.step(state, x, labels, rules, context.backend, samples=6)[0].statistics)
    same = sum(int((a[n] != ends[0][n]).any()) for a in ends[1:] for n in a)
    open_all = dataclasses.replace(state, theta=np.ones(8))
    rules = _rules(gates=dataclasses.replace(_rules().gates, warmup_epochs=math.inf))
    after = train.step(open_all, x, labels, rules, context.backend, samples=6)[0].statistics
    loss = BatchLoss(state.network, context.backend, state.params, x, labels)
    seen: dict[str, Array] = {}
    loss.evaluate(np.ones(8), observe=lambda name, y: seen.update({name: y}))
    z = seen["section3.dense1"]
    mean, variance = z.mean(axis=0), ((z - z.mean(axis=0)) ** 2).sum(axis=0) / (len(z) - 1)
    one = close(after["section3.batchnorm1.mean"], 0.1 * mean, np.abs(mean) + 1, 8)
    two = close(after["section3.batchnorm1.variance"], 0.9 + 0.1 * variance, variance + 1, 8)
    return worst(exact(same), one, two)
