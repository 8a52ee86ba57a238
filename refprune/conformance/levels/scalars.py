"""Scalar formulas: hyper-prior, its minimiser and the profiled penalty, KL, priors, the projected step (F, P, O6).

Tolerance of a formula (E2, *derived here*): a correct implementation may err as if every input, and every summand of the
result, had been rounded: LAYER_FACTOR·u·√(Σ (x ∂f/∂x)² + f² + Σ summands²). The derivatives are differences of the oracle.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from scipy.special import gammaln

from ...arrays import Array, Arrays
from ...backend import ORACLE, Backend
from ...formulas import hyper_prior, priors, scalar
from ...rounding.tolerance import LAYER_FACTOR, UNIT, smallest_normal
from ..asking.methods import Arguments, Description, Method, Question, fixed
from ..judging.verdicts import Expectation
from .training import moved_theta

#: Relative step of the differences that measure how a formula depends on its inputs.
STEP = 2.0**-20

PRIORS: dict[str, Callable[..., Any]] = {
    "spike_slab": priors.SpikeSlab,
    "student_t": priors.StudentT,
    "laplace": priors.Laplace,
    "horseshoe": priors.Horseshoe,
}


def _moved(value: Any, factor: float, unit_interval: bool) -> Any:
    moved = value * factor
    return np.minimum(moved, 1.0) if unit_interval else moved


def conditioned(
    values: Callable[[Arguments], Arrays],
    arguments: Arguments,
    inputs: Sequence[str],
    summands: Callable[[Arguments], dict[str, Any]],
    unit: float,
) -> Expectation:
    """Right values with the tolerance above. inputs: the arguments to move; summands: result → their sizes."""
    right, parts = values(arguments), summands(arguments)
    sizes = {name: np.hypot(v, parts.get(name, 0.0)) for name, v in right.items()}  # squares of small numbers would vanish
    with np.errstate(all="ignore"):
        for name in inputs:
            bounded = name in ("theta", "pi")
            up, down = (values({**arguments, name: _moved(arguments[name], 1.0 + s * STEP, bounded)}) for s in (1, -1))
            spans = np.asarray(_moved(arguments[name], 1.0 + STEP, bounded) - arguments[name] * (1.0 - STEP))
            share = np.where(spans == 0.0, 0.0, 1.0 / np.where(spans == 0.0, 1.0, spans)) * arguments[name]
            for key in right:
                slope = (up[key] - down[key]) * _fitting(share, up[key])
                sizes[key] = np.hypot(sizes[key], np.where(np.isfinite(slope), slope, 0.0))
        tolerance = {
            name: np.where(np.isfinite(s), LAYER_FACTOR * unit * s, 0.0) + smallest_normal(unit) for name, s in sizes.items()
        }
    return Expectation(right, tolerance)


def _fitting(share: Array, result: Array) -> Array:
    """`share` per entry of the input, for a result that has one entry for each, or for each block, or otherwise."""
    if share.shape == result.shape or share.ndim == 0:
        return share
    return np.asarray(np.max(np.abs(share)))


# --------------------------------------------------------------------------------------------------------------------
# What is asked

gates = st.integers(1, 4)
probabilities = st.one_of(
    st.sampled_from((0.0, 1.0, 0.5)), st.floats(0.01, 0.99), st.floats(1e-6, 1e-3), st.floats(1e-4, 1e-2).map(lambda d: 1.0 - d)
)
#: log γ: ordinary, or −Nβ of a large data set; near 0 in `_standing`, which knows the precision.
logarithms = st.one_of(
    st.just(0.0), st.floats(0.1, 12.0), st.floats(-12.0, -0.1), st.floats(-3000.0, -12.0), st.floats(12.0, 3000.0)
)

#: |log γ| through the places where series end, exponentials have no more digits beside 1, and overflow.
SIZES = (
    0.003,
    0.03,
    0.09,
    0.2,
    0.7,
    2.0,
    6.0,
    11.0,
    17.0,
    19.5,
    21.0,
    25.0,
    34.0,
    37.0,
    80.0,
    89.0,
    104.0,
    700.0,
    720.0,
    2500.0,
)

#: θ and π through the places where they are clipped or lose their complement.
INSIDE = (1e-30, 1e-12, 1e-8, 1e-5, 1e-3, 0.01, 0.3, 0.5, 0.8, 0.99, 0.999, 1.0 - 1e-5)


def _grid(described: Description, **kinds: str) -> list[Question]:
    """Every value of each argument beside many of the others, in arrays of one entry, of a block, of more than a block."""
    nearest = max(16.0 * UNIT[described.precision], 1e-6)  # nearer to γ = 1 a plain (γ − 1)/log γ has no digits left
    sizes = [*np.geomspace(nearest, 0.1, 6), *SIZES]
    values = {"probability": [0.0, 1.0, *INSIDE], "logarithm": [0.0, *sizes, *(-s for s in sizes)]}
    columns = {name: np.array(values[kind] * 3) for name, kind in kinds.items()}
    count = max(column.size for column in columns.values())
    rng = np.random.default_rng(described.seed)
    columns = {name: np.resize(rng.permutation(column), count) for name, column in columns.items()}

    def question(at: int, size: int) -> Question:
        return Question(lambda n: {name: c[at : at + n[0]] for name, c in columns.items()}, (min(size, count - at),), (1,))

    return [question(at, size) for at, size in zip(range(0, count, 17), itertools.cycle((17, 1, 9, 16, 65)), strict=False)]


@st.composite
def _vectors(draw: st.DrawFn, /, **kinds: st.SearchStrategy[float]) -> Arguments:
    """Arrays of one length, one for each name."""
    n = draw(gates)
    return {name: np.array(draw(st.lists(kind, min_size=n, max_size=n))) for name, kind in kinds.items()}


@st.composite
def _prior_cases(draw: st.DrawFn) -> Arguments:
    kind = draw(st.sampled_from(tuple(PRIORS)))
    block = kind in ("spike_slab", "student_t")
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 5))) if block else (draw(st.integers(1, 5)),)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    w = rng.standard_normal(shape) * draw(st.sampled_from((0.03, 0.3, 3.0)))
    w = np.sign(w) * np.maximum(np.abs(w), 1e-3)  # the Laplace prior has a kink at 0, the horseshoe a pole
    width = draw(st.sampled_from((0.125, 0.5, 2.0)))
    parameters: dict[str, float] = {
        "spike_slab": {"pi": draw(st.sampled_from((0.25, 0.5, 0.875))), "precision": width, "spike": 2.0**-7},
        "student_t": {"degrees": draw(st.sampled_from((1.0, 3.0, 8.0))), "width": width},
        "laplace": {"width": width},
        "horseshoe": {"width": width},
    }[kind]
    return {"w": w, "kind": kind, "parameters": parameters}


def _standing_priors(described: Description) -> list[Question]:
    """Blocks of a few hundred weights, where Γ and powers overflow; heavy tails far out; as many degrees as make a Gaussian."""
    questions = []
    for number, ((kind, parameters), scale) in enumerate(itertools.product(_FAR, (0.01, 1.0, 100.0))):
        block = kind in ("spike_slab", "student_t")
        sizes: tuple[tuple[int, ...], ...] = ((9, 3), (3, 17), (2, 300), (1, 400)) if block else ((9,), (65,))
        for shape in sizes:
            seed = 2**16 * described.seed + number

            def make(
                n: tuple[int, ...], kind: str = kind, parameters: Any = parameters, scale: float = scale, seed: int = seed
            ) -> Arguments:
                w = np.random.default_rng(seed).standard_normal(n) * scale
                return {"w": np.sign(w) * np.maximum(np.abs(w), 1e-3), "kind": kind, "parameters": parameters}

            questions.append(Question(make, shape, (1,) * len(shape)))
    return questions


_FAR: tuple[tuple[str, dict[str, float]], ...] = (
    ("spike_slab", {"pi": 0.01, "precision": 1.0, "spike": 2.0**-7}),
    ("spike_slab", {"pi": 0.875, "precision": 0.125, "spike": 2.0**-7}),
    ("student_t", {"degrees": 1.0, "width": 0.125}),
    ("student_t", {"degrees": 3.0, "width": 2.0}),
    ("student_t", {"degrees": 200.0, "width": 0.5}),
    ("laplace", {"width": 0.125}),
    ("horseshoe", {"width": 0.125}),
    ("horseshoe", {"width": 8.0}),
)


def _standing_blocks(described: Description) -> list[Question]:
    """The spike-and-slab's blocks among them."""

    def of(question: Question) -> Question:
        def make(sizes: tuple[int, ...]) -> Arguments:
            a = question.make(sizes)
            return {"w": a["w"], **a["parameters"]}

        return question._replace(make=make)

    slabs = [q for q in _standing_priors(described) if q.make(q.sizes)["kind"] == "spike_slab"]
    return [of(question) for question in slabs]


def _standing_steps(described: Description) -> list[Question]:
    """More gates than a block has, many of them at the ends."""
    questions = []
    for number, n in enumerate((9, 17, 33, 129, 1025)):

        def make(sizes: tuple[int, ...], number: int = number) -> Arguments:
            rng = np.random.default_rng([described.seed, number])
            theta = np.clip(rng.uniform(-0.3, 1.3, sizes), 0.0, 1.0)
            rates = {"beta": (0.0, 0.125, 1.0)[number % 3], "learning_rate": (0.0625, 0.5, 2.0, 0.003)[number % 4]}
            return {"theta": theta, "gradient": rng.standard_normal(sizes), **rates}

        questions.append(Question(make, (n,), (1,)))
    return questions


def _standing_counts(described: Description) -> list[Question]:
    """Data sets of one example and of more than 2³¹."""
    pairs = itertools.product((-2500.0, -9.0, -0.03, 0.0, 7.0), (1, 7, 1_281_167, 16_777_217, 3_000_000_001))
    return [fixed({"log_gamma": strength, "samples": count}) for strength, count in pairs]


@st.composite
def _steps(draw: st.DrawFn) -> Arguments:
    n, rng = draw(st.integers(1, 6)), np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    theta = np.array(draw(st.lists(probabilities, min_size=n, max_size=n)))
    rates = {"beta": draw(st.sampled_from((0.0, 0.125, 1.0))), "learning_rate": draw(st.sampled_from((0.0625, 0.5, 2.0)))}
    return {"theta": theta, "gradient": rng.standard_normal(n), **rates}


# --------------------------------------------------------------------------------------------------------------------
# What is right


def _prior(arguments: Arguments, backend: Backend) -> Arrays:
    found = backend.prior_density(arguments["w"], PRIORS[arguments["kind"]](**arguments["parameters"]))
    return {"log_density": np.asarray(found.log_density), "score": np.asarray(found.score)}


def _prior_summands(arguments: Arguments) -> dict[str, Any]:
    """The constant of the density, its logarithms of Γ, and how much of the score is a mixture's."""
    p, w = arguments["parameters"], arguments["w"]
    right = _prior(arguments, ORACLE)
    at_zero = _prior({**arguments, "w": np.full_like(w, 1e-3)}, ORACLE)["log_density"]
    size = np.abs(at_zero) + np.abs(right["log_density"] - at_zero) + 1.0
    d = w.shape[-1] if w.ndim == 2 else 1
    if arguments["kind"] == "student_t":
        size = size + abs(gammaln((p["degrees"] + d) / 2)) + abs(gammaln(p["degrees"] / 2)) + d
    if arguments["kind"] == "spike_slab":
        prior = priors.SpikeSlab(**p)
        (a, b), r = prior.log_odds(d), prior.responsibility(w)
        odds = (abs(a) + abs(b) * np.square(w).sum(axis=-1) + d) * r * (1.0 - r) / p["spike"]
        return {"log_density": size + d, "score": np.abs(w) * odds[:, None]}
    if arguments["kind"] == "horseshoe":  # for small z the score is a difference, w(1 − 1/(z e^z E₁(z)))/τ²
        z, whole = 0.5 * np.square(w / p["width"]), np.abs(right["score"]) + 2.0 * np.abs(w) / p["width"] ** 2
        return {"log_density": size, "score": np.where(z < 1.0, whole, 0.0)}
    return {"log_density": size}


def _responsibility(arguments: Arguments, backend: Backend) -> Arrays:
    prior = priors.SpikeSlab(arguments["pi"], arguments["precision"], arguments["spike"])
    return {"responsibility": prior.responsibility(arguments["w"])}


def _responsibility_summands(arguments: Arguments) -> dict[str, Any]:
    prior = priors.SpikeSlab(arguments["pi"], arguments["precision"], arguments["spike"])
    (a, b), r, w = prior.log_odds(arguments["w"].shape[-1]), prior.responsibility(arguments["w"]), arguments["w"]
    return {"responsibility": r * (1.0 - r) * (abs(a) + abs(b) * np.square(w).sum(axis=-1) + w.shape[-1])}


def _hyper_prior(arguments: Arguments, backend: Backend) -> Arrays:
    found = backend.flattening_density(arguments["pi"], arguments["log_gamma"])
    return {"log_density": np.asarray(found.log_density), "slope": np.asarray(found.slope)}


def _lost_slope(arguments: Arguments) -> Array:
    """What a plain γ − 1 loses of the slope; a slope that overflows loses nothing."""
    slope = np.abs(_hyper_prior(arguments, ORACLE)["slope"])
    return np.where(np.isfinite(slope), slope, 0.0) * _lost(arguments["log_gamma"])


def _log_gamma_sizes(arguments: Arguments) -> Any:
    """|log γ|, the normaliser's size, and logarithms of numbers near 1."""
    sizes = np.abs(arguments["log_gamma"]) + np.abs(hyper_prior.log_normaliser(arguments["log_gamma"])) + 1.0
    return sizes + _lost(arguments["log_gamma"])


def _lost(log_gamma: Array) -> Array:
    """γ/|γ − 1|: by how many u the relative error of a plain γ − 1 exceeds that of γ; 0 at γ = 1, a case of its own."""
    with np.errstate(divide="ignore", over="ignore"):
        return np.where(log_gamma == 0.0, 0.0, 1.0 / np.abs(np.expm1(-log_gamma)))


def _pi_star_summands(arguments: Arguments) -> dict[str, Any]:
    """logit θ and log γ, whose sum is logit π* (F6)."""
    t, l = arguments["theta"], arguments["log_gamma"]  # noqa: E741
    p = hyper_prior.pi_star(t, l)
    inside = np.where((t > 0.0) & (t < 1.0), t, 0.5)
    return {"pi_star": p * (1.0 - p) * (np.abs(np.log(inside / (1.0 - inside))) + np.abs(l))}


def _kl_summands(arguments: Arguments) -> dict[str, Any]:
    t, p = arguments["theta"], arguments["pi"]
    parts = [(t, t), (t, p), (1.0 - t, 1.0 - t), (1.0 - t, 1.0 - p)]
    return {"kl": sum(np.abs(a * np.log(np.where(b > 0.0, b, 1.0))) for a, b in parts) + 2.0}


def _theta_step(arguments: Arguments, backend: Backend) -> Arrays:
    moved = moved_theta(arguments["theta"], arguments["gradient"], arguments["beta"], arguments["learning_rate"])
    return {"theta": moved}


def _theta_step_expectation(arguments: Arguments, unit: float) -> Expectation:
    """Where the step ends well outside [0, 1], the projection is exact."""
    right = _theta_step(arguments, ORACLE)["theta"]
    rate, pull = arguments["learning_rate"], np.abs(arguments["gradient"]) + arguments["beta"]
    size = LAYER_FACTOR * unit * (arguments["theta"] + rate * pull) + smallest_normal(unit)
    moved = arguments["theta"] - rate * (arguments["gradient"] + arguments["beta"])
    outside = (moved < -size) | (moved > 1.0 + size)
    return Expectation({"theta": right}, {"theta": np.where(outside, 0.0, size)})


def _method(
    name: str,
    draw: st.SearchStrategy[Arguments],
    values: Callable[[Arguments, Backend], Arrays],
    inputs: Sequence[str],
    summands: Callable[[Arguments], dict[str, Any]] = lambda arguments: {},
    results: tuple[str, ...] = (),
    standing: Callable[[Description], Sequence[Question]] = lambda described: (),
) -> Method:
    def expect(arguments: Arguments, unit: float) -> Expectation:
        return conditioned(lambda a: values(a, ORACLE), arguments, inputs, summands, unit)

    return Method(name, "scalars", results or (name,), lambda described: draw, values, expect, standing=standing)


_OF_THETA = _vectors(theta=probabilities, log_gamma=logarithms)
_STANDING_OF_THETA = functools.partial(_grid, theta="probability", log_gamma="logarithm")
_COUNTED = st.fixed_dictionaries({"log_gamma": logarithms, "samples": st.integers(1, 60_000)})
_BLOCKS = _prior_cases().filter(lambda a: a["kind"] == "spike_slab").map(lambda a: {"w": a["w"], **a["parameters"]})

METHODS: tuple[Method, ...] = (
    _method(
        "pi_star",
        _OF_THETA,
        lambda a, backend: {"pi_star": np.asarray(backend.flattening_profile(a["theta"], a["log_gamma"]).pi_star)},
        ("theta", "log_gamma"),
        _pi_star_summands,
        standing=_STANDING_OF_THETA,
    ),
    _method(
        "penalty",
        _OF_THETA,
        lambda a, backend: {"penalty": np.asarray(backend.flattening_profile(a["theta"], a["log_gamma"]).penalty)},
        ("theta", "log_gamma"),
        lambda a: {"penalty": _log_gamma_sizes(a)},
        standing=_STANDING_OF_THETA,
    ),
    _method(
        "penalty_slope",
        _OF_THETA,
        lambda a, backend: {"penalty_slope": hyper_prior.penalty_slope(a["log_gamma"])},
        ("log_gamma",),
        standing=_STANDING_OF_THETA,
    ),
    _method(
        "kl",
        _vectors(theta=probabilities, pi=probabilities),
        lambda a, backend: {"kl": np.asarray(scalar.bernoulli_kl(a["theta"], a["pi"]))},
        ("theta", "pi"),
        _kl_summands,
        standing=functools.partial(_grid, theta="probability", pi="probability"),
    ),
    _method(
        "hyper_prior",
        _vectors(pi=probabilities, log_gamma=logarithms),
        _hyper_prior,
        ("pi", "log_gamma"),
        lambda a: {"log_density": _log_gamma_sizes(a), "slope": _lost_slope(a)},
        ("log_density", "slope"),
        functools.partial(_grid, pi="probability", log_gamma="logarithm"),
    ),
    _method(
        "beta",
        _COUNTED,
        lambda a, backend: {"beta": np.asarray(hyper_prior.beta_from_log_gamma(a["log_gamma"], a["samples"]))},
        ("log_gamma",),
        standing=_standing_counts,
    ),
    _method("prior", _prior_cases(), _prior, ("w",), _prior_summands, ("log_density", "score"), _standing_priors),
    _method("responsibility", _BLOCKS, _responsibility, ("w",), _responsibility_summands, standing=_standing_blocks),
    Method(
        "theta_step",
        "scalars",
        ("theta",),
        lambda described: _steps(),
        _theta_step,
        _theta_step_expectation,
        standing=_standing_steps,
    ),
)
