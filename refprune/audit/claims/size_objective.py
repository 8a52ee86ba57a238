"""C4 to C6: training with the size in the objective. Witnesses: enumeration, complex step, counting as it runs, 50 digits."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ...arrays import Array
from ...backend import Backend
from ...experiments import run as experiment
from ...formulas import hyper_prior
from ...gates.theta_penalty import Penalty, reference
from ...output.progress import Progress
from ...passes.batch_loss import BatchLoss
from ...spec import cost
from ...spec.layers import Activation, Dense, Flatten, Section
from ...spec.network import Network
from ...training import config, decide
from ...training.coefficients import penalty_of
from ...training.images import Images
from ...training.removal import remove_gates
from ...training.state import State, initial_state
from ...training.step import train_step
from ..catalogue import CA, Claim, Context, Finding, close, exact, worst
from ..witnesses.counting import (
    QUANTITIES,
    balanced,
    balanced_at_vertices,
    by_arrays,
    chain_network,
    eighths,
    is_layer,
    left,
    sections_network,
    table,
)
from ..witnesses.examples import dense_network, loss_of, losses_at, moved_to, probabilities, slopes_of, vertices_of

C4 = Claim(
    "C4",
    "The objective with the size in it: three parameters beside λ, multi-affine still, so that some vertex minimises it.",
    "J = C(W, θ) + \\frac{1}{2} λ ‖W‖^2 + ν R_ρ(θ)",
    CA,
    (
        "training.coefficients:penalty_of",
        "training.step:train_step",
        "gates.theta_penalty:Penalty.value",
        "training.decide:decide",
    ),
)
C5 = Claim(
    "C5",
    "Every gate has a pull of its own, the slope of the size; it moves with θ and as the network shrinks.",
    "β_g(θ) = ν ∂R_ρ/∂θ_g, γ_g = exp(−N β_g)",
    CA,
    (
        "gates.theta_penalty:Penalty.gradient",
        "training.coefficients:penalty_of",
        "training.removal:cut_state",
        "formulas.hyper_prior:log_gamma_from_beta",
    ),
)
C6 = Claim(
    "C6",
    "Reported: expected and realised MACs and parameters, FLOPs apart, the training's MACs against the unpruned run's.",
    "FLOPs = 2 · MACs",
    CA,
    (
        "spec.cost:expected_per_layer",
        "spec.cost:flops",
        "spec.cost:training_macs",
        "experiments.sizes:size_left",
        "passes.tape:forward",
        "passes.tape:backward",
    ),
)

#: Of sums over 2⁸ gate vectors and of the terms of a cost.
ROUNDINGS = 256
KNOBS = [(alpha, rho) for alpha in (0.0, 0.7) for rho in (0.0, 0.3, 0.5, 0.8, 1.0)]


def _rules(**objective: Any) -> config.Config:
    return config.Config(
        objective=config.Objective(**objective),
        gates=config.Gates(estimator="exact", learning_rate=2.0, unit_learning_rate=0.25),
        optimiser=config.Optimiser(learning_rate=0.05),
        training=config.Training(epochs=4, batch_size=6, dtype="float64"),
    )


def _state(network: Network, loss: BatchLoss, rules: config.Config, theta: Array) -> State:
    state = initial_state(rules, network)
    return dataclasses.replace(state, params=dict(loss.params), statistics=dict(loss.statistics or {}), theta=theta)


# --------------------------------------------------------------------------------------------------------------------
# C4


@C4.witness("training steps on θ against ∂C/∂θ and ν ΔR_ρ, both by enumeration; ν over N where it is per data set")
def theta_steps_by_enumeration(context: Context) -> Finding:
    network, findings, moved = dense_network(), [], 0
    theta, every, layer = eighths(context, "C4", 8), table(network, context, empty="close"), is_layer(network)
    loss = loss_of(network, context)
    slopes = slopes_of(*losses_at(loss, 8), theta)
    rates = np.where(layer, 2.0, 0.25 * (~layer).sum())
    for (alpha, rho), per in zip(KNOBS, ("sample", "data_set") * 5, strict=True):
        nu, divisor = (0.3, 1) if per == "sample" else (1.8, 6)
        rules = _rules(nu=nu, alpha=alpha, balance=rho, per=per)
        state = _state(network, loss, rules, theta)
        after, _ = train_step(state, loss.x, loss.target, rules, context.backend, training_images=6)
        ends = [[balanced(every, layer, moved_to(theta, g, v), alpha=alpha, rho=rho) for v in (1.0, 0.0)] for g in range(8)]
        pulls = nu / divisor * np.array([on - off for on, off in ends])
        want = np.minimum(np.maximum(theta - rates * (slopes + pulls), 0.0), 1.0)
        findings.append(close(after.theta, want, 10.0, ROUNDINGS))
        moved += int(((want > 0.0) & (want < 1.0)).sum())
    return worst(exact(int(moved < 40)), *findings)


@C4.witness("J is the mean of its values at the vertices, sizes counted there; no interior point is below the best of them")
def objective_is_the_mean_of_its_vertices(context: Context) -> Finding:
    network, findings, below = dense_network(), [], 0
    loss, every, layer = loss_of(network, context), table(network, context, empty="close"), is_layer(network)
    vertices, losses = losses_at(loss, 8)
    for i, (alpha, rho) in enumerate(KNOBS):
        rules = _rules(nu=0.5, alpha=alpha, balance=rho)
        penalty = penalty_of(_state(network, loss, rules, np.full(8, 0.5)), rules, 6)
        at_vertices = losses + 0.5 * balanced_at_vertices(every, layer, alpha=alpha, rho=rho)
        for theta in context.uniform(f"C4 {i}", 20, 8):
            chance = probabilities(vertices, theta)
            j = float(chance @ losses) + float(penalty.value(theta))
            findings.append(close(j, chance @ at_vertices, np.abs(at_vertices).max(), ROUNDINGS))
            below += j < at_vertices.min()
    return worst(exact(below), *findings)


@C4.witness("undecided gates: J at both vertices, loss of the masked network and ν times the counted share")
def undecided_gates_at_both_vertices(context: Context) -> Finding:
    section, decided, findings, wrong = Section((Dense(4), Activation("relu"))), set(), [], 0
    network = Network((1, 2, 2), (Flatten(), Dense(4), section, section, Dense(3)))
    loss, every = loss_of(network, context, batch=24), table(network, context)
    own = loss.evaluate(np.ones(2)).tape.output.argmax(axis=1)  # so that with ν = 0 sections are worth keeping
    loss = dataclasses.replace(loss, target=own)
    for nu, alpha, rho in ((0.0, 0.5, 0.5), (0.05, 0.0, 0.9), (3.0, 0.9, 0.7)):
        rules = _rules(nu=nu, alpha=alpha, balance=rho)
        state = _state(network, loss, rules, np.array([0.45, 0.7]))
        gates, decisions, _ = decide.decide(state, Images(loss.x, loss.target), rules, context.backend)
        vector = np.array([0.0, 1.0])
        for decision, g in zip(decisions, (1, 0), strict=False):  # the most certain first: θ = 0.7, then 0.45
            j = []
            for value in (1.0, 0.0):
                at = moved_to(vector, g, value)
                share = balanced(every, np.ones(2, dtype=bool), at, alpha=alpha, rho=0.5)
                j.append(float(loss.evaluate(at).loss) + nu * share)
            off = decision.objective_off if decision.objective_off is not None else np.nan
            findings.append(close(decision.objective_on - off, j[0] - j[1], max(j), ROUNDINGS))
            vector[g] = float(j[0] < j[1])
        wrong += int((gates != vector).any()) + int(len(decisions) != 2)
        decided.add(tuple(vector))
    return worst(exact(wrong + int(len(decided) < 2)), *findings)


# --------------------------------------------------------------------------------------------------------------------
# C5


@C5.witness("the complex step of the penalty, for every α and balance; β θ with β held fixed has another value")
def penalty_by_complex_step(context: Context) -> Finding:
    findings, same = [], 0
    for network in (chain_network(), sections_network()):
        theta = context.uniform("C5", network.gate_count)
        for alpha, rho in KNOBS:
            penalty = Penalty(network, reference(network), beta=0.01, nu=0.7, alpha=alpha, balance=rho)
            want = [penalty.value(theta + 1e-200j * e).imag / 1e-200 for e in np.eye(theta.size)]
            findings.append(close(penalty.gradient(theta), want, want, ROUNDINGS))
        true = Penalty(network, reference(network), nu=0.7)
        same += abs(float(true.gradient(theta) @ theta) - float(true.value(theta))) < 1e-3
    return worst(exact(same), *findings)


@C5.witness("differences of the counted size between a gate's two values, all others at θ")
def slope_by_differences_of_the_size(context: Context) -> Finding:
    findings = []
    for network in (chain_network(), sections_network()):
        theta, every, layer = eighths(context, "C5 ends", network.gate_count), table(network, context), is_layer(network)
        for alpha, rho in KNOBS[::3]:
            found = Penalty(network, reference(network), nu=2.0, alpha=alpha, balance=rho).gradient(theta)
            for g in range(theta.size):
                ends = [balanced(every, layer, moved_to(theta, g, v), alpha=alpha, rho=rho) for v in (1.0, 0.0)]
                findings.append(close(found[g], 2.0 * (ends[0] - ends[1]), 2.0, ROUNDINGS))
    return worst(*findings)


@C5.witness("removal while training: the pulls that are left are the masked network's, and others than before")
def pulls_after_a_removal(context: Context) -> Finding:
    """The reference is not moved: shares stay those of the network at the start, counted by enumeration of the whole one."""
    network, rules = sections_network(), _rules(nu=0.8, alpha=0.6, balance=0.4)
    loss, every, layer = loss_of(network, context), table(network, context, empty="close"), is_layer(network)
    theta, findings = eighths(context, "C5 cut", 8), []
    state = _state(network, loss, rules, theta)
    before = penalty_of(state, rules, 6).gradient(theta)
    keep = np.array([True, True, False, True, True, True, False, True])  # a unit inside a section, a summand
    small, cut, _ = remove_gates(state, keep, rules)
    masked = np.where(keep, theta, 0.0)
    found = penalty_of(small, rules, 6)
    for g, slope in zip(cut.gates, found.gradient(small.theta), strict=True):
        ends = [balanced(every, layer, moved_to(masked, g, v), alpha=0.6, rho=0.4) for v in (1.0, 0.0)]
        findings.append(close(slope, 0.8 * (ends[0] - ends[1]), 1.0, ROUNDINGS))
    want = 0.8 * balanced(every, layer, masked, alpha=0.6, rho=0.4)
    findings.append(close(found.value(small.theta), want, 1.0, ROUNDINGS))
    still = int((np.abs(found.gradient(small.theta) - before[cut.gates]) < 1e-6).sum())
    return worst(exact(int(cut.gates.size != 6) + int(still > 3)), *findings)


@C5.witness("mpmath, 50 digits: with γ_g = exp(−N β_g) the profiled bound of N samples rises by N β_g per θ")
def profiled_bound_in_fifty_digits(context: Context) -> Finding:
    import mpmath

    network, samples, findings = chain_network(), 500, []
    theta = context.uniform("C5 gamma", network.gate_count)
    slopes = Penalty(network, reference(network), nu=0.3).gradient(theta)
    with mpmath.workdps(50):
        for beta in slopes:
            log_gamma = mpmath.mpf(hyper_prior.log_gamma_from_beta(float(beta), samples))
            gamma, ends = mpmath.exp(log_gamma), []
            for t in (mpmath.mpf(1) / 5, mpmath.mpf(4) / 5):
                pi = gamma * t / (1 + (gamma - 1) * t)
                kl = t * mpmath.log(t / pi) + (1 - t) * mpmath.log((1 - t) / (1 - pi))
                density = (gamma - 1) / log_gamma / (1 + (gamma - 1) * (1 - pi))
                ends.append(kl - mpmath.log(density))
            rise = (ends[1] - ends[0]) / (mpmath.mpf(3) / 5 * samples)
            findings.append(close(float(rise), beta, beta, 4))
    return worst(*findings)


# --------------------------------------------------------------------------------------------------------------------
# C6


@C6.witness("the table of layers: rows against the arrays of pruned networks, sums against enumeration")
def layer_table_by_pruned_arrays(context: Context) -> Finding:
    wrong = 0
    for network in (chain_network(), sections_network()):
        theta, every = eighths(context, "C6", network.gate_count), table(network, context)
        rows = np.array(list(cost.expected_per_layer(network, theta).values()))
        wrong += int((rows.sum(axis=0) != [every.mean(q, theta) for q in QUANTITIES]).any())
        for gates in vertices_of(network.gate_count)[::7]:
            smaller = left(network, gates)
            if smaller is not None:
                for name, row in cost.expected_per_layer(network, gates).items():
                    shapes = [s for key, s in smaller.parameter_shapes.items() if key.rpartition(".")[0] == name]
                    wrong += row[0] != sum(int(np.prod(shape)) for shape in shapes)
    return exact(wrong)


@C6.witness("FLOPs apart: two a multiply-accumulate of weights, by pairs; biases and norms only where they are asked for")
def flops_by_pairs(context: Context) -> Finding:
    wrong = 0
    for network in (chain_network(), sections_network()):
        for parts in (("weight",), ("bias",), ("norm",), ("weight", "bias", "norm")):
            wrong += cost.flops(network, parts=parts) != table(network, context, parts).costs["flops"][-1]
        wrong += cost.flops(network, parts=("weight",)) != 2 * by_arrays(network)[1]
    return exact(wrong)


def _counting(backend: Backend, count: list[int]) -> Backend:
    """The backend with products counted as they run, by the shapes of the arrays that come and go."""

    def forward(function: Any) -> Any:
        def run(x: Array, weight: Array, *others: Any, **options: Any) -> Any:
            y, saved = function(x, weight, *others, **options)
            count[0] += y.size * (weight.size // len(weight))
            return y, saved

        return run

    def vjp(function: Any) -> Any:
        def run(saved: Any, dy: Array, **options: Any) -> Any:
            found = function(saved, dy, **options)
            product = dy.size * (found[1].size // len(found[1]))
            count[0] += product * (1 + (found[0] is not None))
            return found

        return run

    names = ("dense", "conv2d")
    counted = {n: forward(getattr(backend, n)) for n in names} | {f"{n}_vjp": vjp(getattr(backend, f"{n}_vjp")) for n in names}
    return dataclasses.replace(backend, **counted)


@C6.witness("training steps: products counted as they run, forward and backward, sampled gates and all gates on")
def products_counted_while_training(context: Context) -> Finding:
    wrong = 0
    for network in (chain_network(), sections_network()):
        loss = loss_of(network, context)
        ones = np.ones(network.gate_count)
        for estimator in ("taylor", "paired", "exact"):
            rules = dataclasses.replace(_rules(nu=0.1), gates=config.Gates(estimator=estimator))
            for theta in (context.uniform("C6 steps", network.gate_count), ones):
                count = [0]
                state = _state(network, loss, rules, theta)
                after, _ = train_step(state, loss.x, loss.target, rules, _counting(context.backend, count), training_images=6)
                wrong += after.macs != count[0]
        held = dataclasses.replace(_rules(), gates=config.Gates(warmup_epochs=1.0))
        after, _ = train_step(_state(network, loss, held, ones), loss.x, loss.target, held, context.backend, training_images=6)
        wrong += after.macs != 6 * cost.training_macs(network)
    return exact(wrong)


@C6.witness("every line of a run's metrics: formulas of a residual MLP, from the θ that stands in the line")
def metrics_by_formulas(context: Context) -> Finding:
    """θ is written with six digits: the expected values have that much play, all others none."""
    tables: dict[str, Any] = {
        "seed": context.seed,
        "unpruned": False,
        "network": {"name": "residual-mlp", "sections": 3, "width": 6},
        "data": {"train_limit": 48},
        "objective": {"nu": 0.5, "balance": 1.0},
        "gates": {"learning_rate": 1.5},
        "training": {"epochs": 2, "batch_size": 8, "backend": "oracle", "log_every": 1},
    }
    with tempfile.TemporaryDirectory() as folder:
        run = experiment.run(config.from_dict(tables), Path(folder) / "run", progress=Progress(quiet=True))["runs"]["pruned"]
        text = (Path(folder) / "run" / "pruned" / "metrics.jsonl").read_text(encoding="utf-8")
    found = [line for line in map(json.loads, text.splitlines()) if line["event"] in ("step", "epoch")]
    worst_share, wrong, last, sizes = 0.0, int(len(found) != 14), 0, set()
    outside, section = np.array([784 * 6 + 60, 785 * 6 + 70]), np.array([36, 42])
    for line in found:
        theta = line.get("theta")
        sections = line["sections"] if theta is None else len(theta)
        realised = [line["macs_per_image"], line["parameters"]]
        wrong += realised != list(outside + sections * section)
        wrong += line["macs_unpruned"] != line["step"] * 8 * (3 * (784 * 6 + 3 * 36 + 60) - 784 * 6)
        wrong += line["macs"] < last
        last = line["macs"]
        sizes.add(sections)
        if theta is not None:
            expected = np.array([line["expected_macs_per_image"], line["expected_parameters"]])
            gap = np.abs(expected - (outside + sum(theta.values()) * section))
            worst_share = max(worst_share, float((gap / (0.51e-6 * 3 * section)).max()))
    wrong += run["training_macs"] < last or run["training_macs_unpruned"] != found[-1]["macs_unpruned"]
    return worst(exact(wrong + int(len(sizes) < 2)), Finding(worst_share, 1.0, detail="of the last digit of θ"))
