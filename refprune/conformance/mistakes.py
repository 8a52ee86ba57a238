"""Known mistakes: each replaces one function of refprune by a wrong version of it, and says which claims of SPEC that breaks.

`planted(mistake)` puts the wrong function wherever the right one is used within refprune, for as long as its block runs, and gives
the mutant backend, the oracle with the wrong function. `validation/mutants.py` proves that the audit sees every one of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import estimators, flattening
from ..backend import ORACLE, Backend
from ..cka import hsic
from ..layers import Saved
from ..layers import per_channel as _per_channel

Function = Callable[..., Any]


@dataclass(frozen=True)
class Mistake:
    """target: "module:name" within refprune; wrong: right function → wrong one; claims: the numbers that must go red, all of them."""

    name: str
    target: str
    wrong: Callable[[Function], Function]
    claims: tuple[str, ...]


@contextlib.contextmanager
def planted(mistake: Mistake) -> Iterator[Backend]:
    """The mistake is in force inside the block; the value is the mutant backend. Not for several threads at once."""
    module, _, name = mistake.target.partition(":")
    owner: Any = importlib.import_module(f"refprune.{module}")
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    right = getattr(owner, last)
    wrong = mistake.wrong(right)
    with contextlib.ExitStack() as undo:
        if path:
            setattr(owner, last, wrong)
            undo.callback(setattr, owner, last, right)
        else:
            _replace_everywhere(right, wrong, undo)
        fields = {f.name: wrong for f in dataclasses.fields(ORACLE) if getattr(ORACLE, f.name) is right}
        yield dataclasses.replace(ORACLE, name=f"oracle with {mistake.name!r}", **fields) if fields else ORACLE


def _replace_everywhere(right: Function, wrong: Function, undo: contextlib.ExitStack) -> None:
    """In every module of refprune that has the function under some name, and in the estimators' table."""
    for key, module in list(sys.modules.items()):
        if key.split(".")[0] == "refprune" and key != __name__:
            for name, value in list(vars(module).items()):
                if value is right:
                    setattr(module, name, wrong)
                    undo.callback(setattr, module, name, right)
    for name, kind in list(estimators.ESTIMATORS.items()):
        if kind.function is right:
            estimators.ESTIMATORS[name] = kind._replace(function=wrong)
            undo.callback(estimators.ESTIMATORS.__setitem__, name, kind)


# --------------------------------------------------------------------------------------------------------------------
# Ways to be wrong


def result(change: Callable[..., Any]) -> Callable[[Function], Function]:
    """The right result put through `change`."""
    return lambda f: lambda *a, **k: change(f(*a, **k))


def output(change: Callable[..., Any]) -> Callable[[Function], Function]:
    """A layer's output put through `change(y, *arguments)`; what it saves stays right."""

    def wrong(f: Function) -> Function:
        def g(*a: Any, **k: Any) -> Any:
            y, saved = f(*a, **k)
            return change(y, *a), saved

        return g

    return wrong


def gradient(index: int, change: Callable[..., Any]) -> Callable[[Function], Function]:
    """One of a VJP's gradients put through `change(gradient, saved, dy)`."""

    def wrong(f: Function) -> Function:
        def g(saved: Saved, dy: Any, **k: Any) -> Any:
            found = list(f(saved, dy, **k))
            found[index] = None if found[index] is None else change(found[index], saved, dy)
            return tuple(found)

        return g

    return wrong


def options(**changes: Callable[[Any], Any]) -> Callable[[Function], Function]:
    """The right function with keyword options put through functions of their value."""
    return lambda f: lambda *a, **k: f(*a, **{n: changes[n](v) if n in changes else v for n, v in k.items()})


def instead(function: Function) -> Callable[[Function], Function]:
    """Another function altogether."""
    return lambda f: function


def _field(name: str, change: Callable[[Any], Any]) -> Callable[[Function], Function]:
    """One field of the NamedTuple or dataclass that is returned."""

    def wrong(f: Function) -> Function:
        def g(*a: Any, **k: Any) -> Any:
            found = f(*a, **k)
            new = {name: change(getattr(found, name))}
            return found._replace(**new) if hasattr(found, "_replace") else dataclasses.replace(found, **new)

        return g

    return wrong


# --------------------------------------------------------------------------------------------------------------------
# Priors and the flattening hyper-prior


def _naive_pi_star(theta: Any, log_gamma: Any) -> Any:
    with np.errstate(all="ignore"):
        gamma = np.exp(np.asarray(log_gamma, dtype=float))
        return gamma * np.asarray(theta) / (1 + (gamma - 1) * np.asarray(theta))


def _naive_log_density(pi: Any, log_gamma: Any) -> Any:
    with np.errstate(all="ignore"):
        l, p = np.asarray(log_gamma, dtype=float), np.asarray(pi, dtype=float)  # noqa: E741
        plain = np.log(np.expm1(l) / np.where(l == 0, 1, l)) - np.log1p(np.expm1(l) * (1 - p))
        return np.where(l == 0, 0.0, plain)


def _kl_through_pi_star(theta: Any, log_gamma: Any) -> Any:
    from .. import scalar

    return scalar.bernoulli_kl(theta, flattening.pi_star(theta, log_gamma))


def _one_degree_more(f: Function) -> Function:
    return lambda self, w: f(dataclasses.replace(self, degrees=self.degrees + 1.0), w)


def _dimension_forgotten(f: Function) -> Function:
    return lambda self, d: f(self, 1)


PRIORS = (
    Mistake("score with the wrong sign", "mixture:SpikeSlab.density", _field("score", np.negative), ("P1",)),
    Mistake("Student-t with one degree of freedom more", "mixture:StudentT.density", _one_degree_more, ("P1",)),
    Mistake("Laplace scale with mean b² instead of 2b²", "mixture:Laplace.scale", result(lambda s: s / 2), ("P1",)),
    Mistake("Laplace score without 1/b", "mixture:Laplace.density", _field("score", np.sign), ("P1",)),
    Mistake("horseshoe off by log 2", "mixture:Horseshoe.density", _field("log_density", lambda x: x + np.log(2)), ("P1",)),
    Mistake("half-Cauchy standard deviation taken for the variance", "mixture:Horseshoe.scale", result(np.sqrt), ("P1",)),
    Mistake("gamma scale instead of inverse gamma", "mixture:StudentT.scale", result(lambda s: 1 / s), ("P1",)),
    Mistake(
        "samples with the scale for its root",
        "mixture:sample",
        lambda f: lambda p, u, z: np.square(f(p, u, z)) * np.sign(z),
        ("P1", "P2"),
    ),
    Mistake(
        "spike and slab swapped in samples",
        "mixture:SpikeSlab.scale",
        instead(lambda self, u: np.where(np.asarray(u) < self.pi, self.spike, 1 / self.precision)),
        ("P1", "P2"),
    ),
    Mistake("log-odds of a block as if d = 1", "mixture:SpikeSlab.log_odds", _dimension_forgotten, ("P1", "P2")),
    Mistake("responsibility of the spike", "mixture:SpikeSlab.responsibility", result(lambda r: 1 - r), ("P2",)),
    Mistake("gates on with probability 1−θ", "estimators:sample", lambda f: lambda t, v: f(1 - t, v), ("P3", "O1")),
    Mistake(
        "gate vectors equally likely",
        "estimators:enumerate_gates",
        lambda f: lambda t: ((g, 0.5**t.size) for g, _ in f(t)),
        ("P3", "O1", "O2", "O3", "O4"),
    ),
    Mistake(
        "weight decay of the data set not divided by N", "flattening:decay_from_precision", instead(lambda p, n: p), ("P4",)
    ),
    Mistake("1/N dropped in β", "flattening:beta_from_log_gamma", instead(lambda g, n: -g), ("P4", "O1")),
    Mistake("sign of β", "flattening:beta_from_log_gamma", result(lambda b: -b), ("P4", "O1")),
    Mistake(
        "KL the other way round", "scalar:bernoulli_kl", lambda f: lambda t, p: f(*np.broadcast_arrays(p, t)), ("P5", "F4")
    ),
    Mistake(
        "KL without its second half",
        "scalar:bernoulli_kl_from_logs",
        instead(lambda t, a, b: np.where(t > 0, t * (np.log(np.where(t > 0, t, 1)) - np.where(t > 0, a, 0)), 0.0)),
        ("P5", "F3", "F4", "F5"),
    ),
    Mistake(
        "log-density without its normaliser",
        "flattening:log_density",
        lambda f: lambda p, g: f(p, g) - flattening.log_normaliser(g),
        ("F1", "F4"),
    ),
    Mistake(
        "density without its normaliser",
        "flattening:density",
        lambda f: lambda p, g: f(p, g) * np.exp(-np.clip(g, -700, 700)),
        ("F1", "F6"),
    ),
    Mistake("normaliser of 1/γ", "flattening:log_normaliser", lambda f: lambda g: f(-np.asarray(g)), ("F1",)),
    Mistake("slope of log p with the wrong sign", "flattening:log_density_slope", result(np.negative), ("F1",)),
    Mistake("log-density of 1−π", "flattening:log_density", lambda f: lambda p, g: f(1 - np.asarray(p), g), ("F1", "F4")),
    Mistake("sign of log γ in π*", "flattening:pi_star", lambda f: lambda t, g: f(t, -np.asarray(g)), ("F2", "F6")),
    Mistake("sign of log γ in log π*", "flattening:log_pi_star", lambda f: lambda t, g: f(t, -np.asarray(g)), ("F2",)),
    Mistake("log π* and log(1−π*) swapped", "flattening:log_pi_star", result(lambda r: r[::-1]), ("F2", "F3", "F6")),
    Mistake(
        "π* = γθ/(1 + γθ)",
        "flattening:pi_star",
        instead(lambda t, g: 1 / (1 + np.exp(-np.asarray(g, dtype=float)) / np.maximum(t, 1e-300))),
        ("F2", "F5", "F6"),
    ),
    Mistake("sign of log γ in the penalty", "flattening:penalty", lambda f: lambda t, g: f(t, -np.asarray(g)), ("F3",)),
    Mistake(
        "KL at fixed π instead of the profiled penalty",
        "flattening:penalty",
        instead(lambda t, g: np.where(np.asarray(g) == 0, 0.0, flattening.kl_at_pi_star(t, g))),
        ("F3",),
    ),
    Mistake(
        "c(γ) without the normaliser",
        "flattening:penalty_constant",
        instead(lambda g: np.asarray(g, dtype=float)),
        ("F3", "P4"),
    ),
    Mistake("slope of the penalty with the wrong sign", "flattening:penalty_slope", result(np.negative), ("F3",)),
    Mistake("KL through π* itself", "flattening:kl_at_pi_star", instead(_kl_through_pi_star), ("F3", "F6")),
    Mistake("log-density through γ", "flattening:log_density", instead(_naive_log_density), ("F1", "F6")),
    Mistake("π* through γ", "flattening:pi_star", instead(_naive_pi_star), ("F2", "F6")),
)


# --------------------------------------------------------------------------------------------------------------------
# Networks, layers, surgery


def _padding_swapped(padding: Any) -> Any:
    return tuple((after, before) for before, after in padding)


def _unbiased_batch_norm(y: Any, x: Any, gain: Any, bias: Any) -> Any:
    count = x.size // x.shape[1]
    b = _per_channel(bias, x.ndim)
    return (y - b) * np.sqrt((count - 1) / count) + b


def _rows_only(f: Function) -> Function:
    """Columns of the next layer are cut from its end."""

    def wrong(self: Any, old: Any) -> Any:
        right, columns = f(self, old), self.columns
        moved = {n: old[n][:, : right[n].shape[1]] for n in right if n.endswith(".weight") and n.rpartition(".")[0] in columns}
        return right | {n: np.ascontiguousarray(a[: right[n].shape[0]]) for n, a in moved.items()}

    return wrong


def _gradient_leaks(g: Any, saved: Saved, dy: Any) -> Any:
    return dy


def _overflowing_sigmoid(x: Any) -> Any:
    with np.errstate(all="ignore"):
        y = 1.0 / (1.0 + np.exp(-x))
    return y, Saved((y,))


def _relu_of_modulus(x: Any, *, slope: float, at_zero: float, branch: Any = None) -> Any:
    from ..layers import leaky_relu

    y, saved = leaky_relu(x, slope=slope, at_zero=at_zero, branch=branch)
    return (np.where(x.real > 0, np.abs(x), y) if np.iscomplexobj(x) else y), saved


LAYERS = (
    Mistake(
        "section without its shortcut", "layers:add", output(lambda y, s, p: y - s if y.shape == p.shape else y), ("N1", "G1")
    ),
    Mistake("gate not applied", "layers:gate", output(lambda y, x, g: x), ("N1", "G1")),
    Mistake(
        "option A with the channels at the other end",
        "layers:subsample_pad",
        output(lambda y, x: y[:, ::-1][:, :, ::1]),
        ("N1", "N5", "G1"),
    ),
    Mistake("gate always behind the path", "layerspec:Section.gate_index", instead(lambda self: len(self.path)), ("N2",)),
    Mistake("gate missing in the backward pass", "layers:gate_vjp", gradient(0, _gradient_leaks), ("G1", "N3")),
    Mistake("pruned columns taken from the end", "surgery:Cut.arrays", _rows_only, ("N4",)),
    Mistake("empty sections closed in silence", "surgery:prune", _field("closed_for_emptiness", lambda names: ()), ("N4",)),
    Mistake(
        "biased variance re-estimated",
        "objective:average_statistics",
        lambda f: lambda n, s, b: f(n, s, [{k: (m, v * (c - 1) / c, c) for k, (m, v, c) in x.items()} for x in b]),
        ("N4",),
    ),
    Mistake("batch-norm divides by n − 1", "layers:batch_norm", output(_unbiased_batch_norm), ("N1", "G1")),
    Mistake("batch-norm leaves its mean in", "layers:batch_norm", output(lambda y, x, g, b: y + 0.1), ("N1", "G1")),
    Mistake(
        "section removed with its shortcut's padding",
        "surgery:prune",
        lambda f: lambda n, keep, **k: f(n, np.ones_like(keep), **k),
        ("N3", "N4", "N5", "K6"),
    ),
    Mistake("MACs counted twice", "complexity:macs", result(lambda n: 2 * n), ("N6", "K6")),
    Mistake(
        "biases not counted",
        "complexity:parameters",
        lambda f: lambda n: sum(int(np.prod(s)) for k, s in n.parameter_shapes.items() if not k.endswith(".bias")),
        ("N6",),
    ),
    Mistake("LeNet-5 with padding", "zoo:lenet5", lambda f: lambda: dataclasses.replace(f(), layers=f().layers[:-1]), ("N6",)),
    Mistake("convolution with paddings swapped", "layers:conv2d", options(padding=_padding_swapped), ("G1",)),
    Mistake(
        "kernel flipped in the backward pass", "layers:conv2d_vjp", gradient(1, lambda g, s, dy: g[:, :, ::-1, ::-1]), ("G1",)
    ),
    Mistake("dense weights' gradient divided by N", "layers:dense_vjp", gradient(1, lambda g, s, dy: g / len(dy)), ("G1",)),
    Mistake(
        "batch-norm's mean taken for a constant",
        "layers:batch_norm_vjp",
        gradient(0, lambda g, s, dy: dy * _per_channel(s.values[1] * s.values[2], dy.ndim)),
        ("G1",),
    ),
    Mistake("eval batch-norm's gain left out of dx", "layers:batch_norm_eval_vjp", gradient(0, lambda g, s, dy: dy), ("G1",)),
    Mistake(
        "cross-entropy's mean not in its gradient",
        "layers:cross_entropy_vjp",
        gradient(0, lambda g, s, dy: g * len(g)),
        ("G1",),
    ),
    Mistake("squared error without the 2", "layers:mean_squared_error_vjp", gradient(0, lambda g, s, dy: g / 2), ("G1",)),
    Mistake("average pool spreads without dividing", "layers:average_pool_vjp", gradient(0, lambda g, s, dy: 6 * g), ("G1",)),
    Mistake("gate's gradient as a mean", "layers:gate_vjp", gradient(1, lambda g, s, dy: g / len(dy)), ("G1",)),
    Mistake(
        "weight decay's gradient without λ",
        "layers:weight_decay_vjp",
        gradient(0, lambda g, s, dy: s.values[0] * dy),
        ("G1", "O1"),
    ),
    Mistake("weight decay without ½", "layers:weight_decay", output(lambda y, w: 2 * y), ("O1", "G1")),
    Mistake("sigmoid that overflows", "layers:sigmoid", instead(_overflowing_sigmoid), ("G2",)),
    Mistake("GELU by its tanh formula", "layers:gelu", output(lambda y, x: ORACLE.gelu_tanh(x)[0]), ("G1", "G2")),
    Mistake("ReLU with a modulus", "layers:leaky_relu", instead(_relu_of_modulus), ("G1", "G2")),
    Mistake("subgradient 1 at 0 whatever is declared", "layers:leaky_relu", options(at_zero=lambda v: 1.0), ("G3",)),
    Mistake("last of equal maxima", "layers:max_pool", options(ties=lambda v: "last"), ("G3",)),
)


# --------------------------------------------------------------------------------------------------------------------
# Objective, estimators, training


def _without_theta(f: Function) -> Function:
    """The mean over gate vectors that are on, weighted equally."""

    def wrong(loss: Any, theta: Any) -> Any:
        return f(loss, np.full_like(theta, 0.5))

    return wrong


def _at_the_mean(loss: Any, theta: Any) -> float:
    return float(loss.evaluate(theta).loss)


def _biased(change: Callable[[Any, Any], Any]) -> Callable[[Function], Function]:
    """An estimator whose value is put through change(gradient, θ)."""

    def wrong(f: Function) -> Function:
        def g(loss: Any, base: Any, gates: Any, theta: Any, uniform: Any) -> Any:
            found = f(loss, base, gates, theta, uniform)
            return found._replace(gradient=change(found.gradient, theta))

        return g

    return wrong


def _dampened(w: Any, v: Any, g: Any, *, learning_rate: float, momentum: float, decay: float) -> Any:
    velocity = momentum * v + (1 - momentum) * (g + decay * w)
    return w - learning_rate * velocity, velocity


def _statistics_swapped(f: Function) -> Function:
    def wrong(network: Any, statistics: Any, batch: Any) -> Any:
        return f(network, statistics, {n: (m, v * (c - 1) / c, c) for n, (m, v, c) in batch.items()})

    return wrong


def _decides_the_other_way(f: Function) -> Function:
    def wrong(*a: Any, **k: Any) -> Any:
        gates, decisions, macs = f(*a, **k)
        return 1.0 - gates, [d._replace(on=not d.on) for d in decisions], macs

    return wrong


OBJECTIVE = (
    Mistake(
        "scaling of the data set ignored",
        "train:penalties",
        instead(lambda c, n: (c.objective.penalty, c.objective.weight_decay)),
        ("O1",),
    ),
    Mistake(
        "loss at the mean gates instead of the mean loss",
        "estimators:exact_expectation",
        instead(_at_the_mean),
        ("O1", "O2", "O4"),
    ),
    Mistake("∂C/∂θ times θ", "estimators:exact_theta_gradient", lambda f: lambda l, t: f(l, t) * t, ("O2", "O4", "O5")),
    Mistake("∂C/∂W of equally likely gates", "estimators:exact_weight_gradient", _without_theta, ("O3",)),
    Mistake(
        "θ forgotten in ∂C/∂W",
        "estimators:exact_weight_gradient",
        lambda f: lambda l, t: {n: g / t[0] for n, g in f(l, t).items()},
        ("O3",),
    ),
    Mistake("sign of ∂C/∂θ", "estimators:exact_theta_gradient", result(np.negative), ("O2", "O4", "O5")),
    Mistake("paired with the sign of a closed gate forgotten", "estimators:paired", _biased(lambda g, t: np.abs(g)), ("O5",)),
    Mistake("reinforce without its denominator", "estimators:reinforce", _biased(lambda g, t: g * t * (1 - t)), ("O5",)),
    Mistake("arm without the chain rule to θ", "estimators:arm", _biased(lambda g, t: g * t * (1 - t)), ("O5",)),
    Mistake("disarm without its half", "estimators:disarm", _biased(lambda g, t: 2 * g), ("O5",)),
    Mistake("taylor weighted by θ", "estimators:taylor", _biased(lambda g, t: g * t), ("O5",)),
    Mistake("projection forgotten", "train:_project", instead(lambda theta, config: theta), ("O6",)),
    Mistake("momentum with dampening", "optimiser:momentum_step", instead(_dampened), ("O6",)),
    Mistake("schedule without effect", "train:schedule_factor", instead(lambda kind, progress: 1.0), ("O6",)),
    Mistake(
        "momenta lost at a removal",
        "train:cut_state",
        lambda f: (
            lambda s, c: dataclasses.replace(f(s, c), velocity={n: np.zeros_like(v) for n, v in f(s, c).velocity.items()})
        ),
        ("O7",),
    ),
    Mistake("θ < τ instead of θ ≤ τ", "train:threshold_rule", instead(lambda n, t, tau: t >= tau), ("O7",)),
    Mistake(
        "step left out of the stream's name", "streams:Streams.words", lambda f: lambda self, p, s, n: f(self, p, 0, n), ("O8",)
    ),
    Mistake("uniforms of 52 bits", "streams:Streams.uniform", result(lambda u: np.floor(u * 2.0**52) / 2.0**52), ("O8",)),
    Mistake("normals of twice the variance", "streams:Streams.normal", result(lambda z: np.sqrt(2) * z), ("O8",)),
    Mistake("permutation reversed", "streams:Streams.permutation", result(lambda p: p[::-1]), ("O8",)),
    Mistake("the worse vertex is taken", "settle:decide", _decides_the_other_way, ("O9",)),
    Mistake("undecided gates not listed", "settle:decide", result(lambda r: (r[0], [], r[2])), ("O9",)),
    Mistake("biased variance in the running average", "objective:update_statistics", _statistics_swapped, ("O9",)),
)


# --------------------------------------------------------------------------------------------------------------------
# Similarity, rounding


def _uncentred(x: Any, y: Any, *, estimator: str, **options: Any) -> Any:
    from .. import cka

    k, l = (np.asarray(a) @ np.asarray(a).T for a in (x, y))  # noqa: E741
    sums = [float((a * b).sum()) for a, b in ((k, l), (k, k), (l, l))]
    return cka.Similarity(sums[0] / np.sqrt(sums[1] * sums[2]), "ok", *sums)


def _diagonal_kept(k: Any, l: Any, *, estimator: str) -> float:  # noqa: E741
    n = len(k)
    if estimator == "biased":
        return hsic(k, l, estimator="biased")
    return hsic(k, l, estimator="biased") * (n - 1) ** 2 / (n * (n - 3))


def _unbranched(f: Function) -> Function:
    return lambda *a, branches=None, **k: f(*a, **k)


SIMILARITY = (
    Mistake(
        "biased HSIC over n²",
        "cka:hsic",
        lambda f: lambda k, l, *, estimator: f(k, l, estimator=estimator) * ((len(k) - 1) / len(k)) ** 2,
        ("K1",),
    ),
    Mistake("unbiased HSIC with its diagonals", "cka:hsic", instead(_diagonal_kept), ("K1",)),
    Mistake(
        "CKA without the root",
        "cka:cka",
        lambda f: (
            lambda x, y, **o: (lambda s: dataclasses.replace(s, value=None if s.value is None else s.value**2))(f(x, y, **o))
        ),
        ("K2", "K5"),
    ),
    Mistake("features not centred", "cka:cka", instead(_uncentred), ("K2", "K3", "K5", "K7")),
    Mistake(
        "biased CKA called unbiased",
        "cka:cka",
        lambda f: lambda x, y, *, estimator, **o: f(x, y, estimator="biased", **o),
        ("K2", "K5", "K7"),
    ),
    Mistake(
        "mini-batches: CKA of the last batch alone",
        "cka:MiniBatches.add",
        lambda f: lambda self, *a: (setattr(self, "_total", None), f(self, *a)),
        ("K4",),
    ),
    Mistake(
        "degenerate input as a silent NaN",
        "cka:cka",
        lambda f: (
            lambda x, y, **o: (
                lambda s: dataclasses.replace(s, value=float("nan") if s.value is None else s.value, status="ok")
            )(f(x, y, **o))
        ),
        ("K7",),
    ),
    Mistake(
        "scores with a wrong bound: γ without n",
        "rounding:inner_product_bound",
        instead(lambda n, size, unit, *, roundings=0: np.asarray(unit * np.asarray(size))),
        ("E1", "E2", "E4"),
    ),
    Mistake(
        "size of a sum's rounding error without √n",
        "noise:_summed",
        instead(lambda n, s, q: np.sqrt(s * s / 3 + q / 6)),
        ("E2",),
    ),
    Mistake("given branches not taken", "network:forward", _unbranched, ("E3", "G3")),
    Mistake(
        "tolerance of a network 1000 times too wide",
        "rounding:network_tolerance",
        lambda f: lambda *a, **k: f(*a, factor=12000.0, **k),
        ("E4",),
    ),
    Mistake(
        "tolerance of a network 100 times too narrow",
        "rounding:network_tolerance",
        lambda f: lambda *a, **k: f(*a, factor=0.12, **k),
        ("E4",),
    ),
)

#: All of them.
MISTAKES: tuple[Mistake, ...] = (*PRIORS, *LAYERS, *OBJECTIVE, *SIMILARITY)
