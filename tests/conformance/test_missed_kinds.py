"""Mistakes of kinds that drawing alone misses: of size, range, random numbers and state.

Each is right but for one thing, and each is found by what is asked in every run.
"""

import dataclasses
import functools
import math

import numpy as np
import pytest
from wrong_in_one_thing import altered, asked_for, only_found, outcome_of, right, without

import refprune
from refprune.backend import ORACLE
from refprune.conformance import campaign
from refprune.conformance.asking import standing
from refprune.conformance.asking.calls import describe
from refprune.conformance.levels import METHODS
from refprune.formulas import cka, hyper_prior
from refprune.spec.json_form import from_json
from refprune.spec.layers import Conv, Dense


@pytest.fixture(autouse=True)
def _found_and_no_more(monkeypatch):
    only_found(monkeypatch)


# Size ------------------------------------------------------------------------------------------------------------------


def _tiles_of_eight(a):
    n = a["x"].shape[1]
    whole = n if n <= 8 else n - n % 8
    return right("dense", {**a, "x": without(a["x"], slice(None), slice(whole, None))})


def _coarse_when_long(a):
    answer = right("dense", a)
    return answer if a["x"].shape[1] <= 64 else answer | {"y": answer["y"].astype(np.float32).astype(np.float64)}


def _chunks_of_variance(a):
    """Of 64 examples each, of which only the first counts."""
    x = a["x"]
    if x.ndim != 2 or len(x) <= 64:
        return right("batch_norm", a)
    mean, variance = x[:64].mean(axis=0), x[:64].var(axis=0)
    return {"y": (x - mean) / np.sqrt(variance + a["eps"]) * a["gain"] + a["bias"]}


def _narrow_places(a):
    """The place in a window is kept in eight bits."""
    answer = right("max_pool", a)
    if math.prod(a["kernel"]) <= 256:
        return answer
    places = ORACLE.max_pool(a["x"], **{n: a[n] for n in ("kernel", "stride", "padding", "ties")})[1].branch
    return answer if places.max() < 256 else answer | {"dx": np.roll(answer["dx"], 256)}


SIZE = {
    "remainders behind tiles of 8": ("dense", _tiles_of_eight),
    "sums beyond 64 terms in lower precision": ("dense", _coarse_when_long),
    "outputs behind the 256th": ("dense", altered("dense", y=lambda y, a: without(y, slice(None), slice(256, None)))),
    "more than 1,024 terms": ("dense", altered("dense", y=lambda y, a: y + (a["x"].shape[1] > 1024) * 1e-9)),
    "examples from the ninth on": ("gelu", altered("gelu", y=lambda y, a: without(y, slice(8, None)))),
    "a network's examples from the ninth on": ("network", altered("network", output=lambda y, a: without(y, slice(8, None)))),
    "the third of three channels": ("conv2d", altered("conv2d", dx=lambda dx, a: without(dx, slice(None), slice(2, 3)))),
    "the third input of networks": (
        "network",
        asked_for(
            "network", lambda a: a | {"x": without(a["x"], ..., 2, 0, 0)} if a["x"].ndim == 4 and a["x"].shape[1] == 3 else a
        ),
    ),
    "odd ends of transformed tiles": (
        "conv2d",
        altered(
            "conv2d",
            y=lambda y, a: without(y, ..., -1) if a["w"].shape[2:] == (3, 3) and y.shape[3] % 2 and y.shape[3] > 4 else y,
        ),
    ),
    "7×7 filters": ("conv2d", altered("conv2d", y=lambda y, a: y * (1.0 + 1e-9 * (max(a["w"].shape[2:]) == 7)))),
    "300 channels": ("conv2d", altered("conv2d", y=lambda y, a: y * (1.0 + 1e-9 * (a["x"].shape[1] >= 300)))),
    "windows of more than 256 pixels": ("max_pool", _narrow_places),
    "averages of more than 256 pixels": (
        "average_pool",
        altered("average_pool", y=lambda y, a: y * (1.0 + 1e-9 * (math.prod(a["kernel"]) > 256))),
    ),
    "variance in chunks": ("batch_norm", _chunks_of_variance),
    "classes in chunks": (
        "cross_entropy",
        altered("cross_entropy", dlogits=lambda d, a: without(d, slice(None), slice(512, None))),
    ),
    "similarity in chunks": ("cka", lambda a: right("cka", {**a, "x": a["x"][:64], "y": a["y"][:64]})),
    "gates behind the first eight": ("theta_step", altered("theta_step", theta=lambda t, a: without(t, slice(8, None)))),
    "a block of more than 256 weights": (
        "prior",
        altered("prior", score=lambda s, a: s * (1.0 + 1e-9 * (a["w"].shape[-1] > 256))),
    ),
}

# Range -----------------------------------------------------------------------------------------------------------------


def _uniform_near_one(a):
    return right("penalty", {**a, "log_gamma": np.where(np.abs(a["log_gamma"]) < 0.05, 0.0, a["log_gamma"])})


def _short_series(a):
    """log((γ − 1)/log γ) ≈ L/2 for small L."""
    l, answer = a["log_gamma"], right("hyper_prior", a)  # noqa: E741
    missing = 0.5 * l - hyper_prior.log_normaliser(l)
    return answer | {"log_density": answer["log_density"] + np.where(np.abs(l) < 0.1, missing, 0.0)}


def _softplus_beyond_twenty(a):
    l, answer = a["log_gamma"], right("penalty", a)  # noqa: E741
    return answer | {"penalty": answer["penalty"] - np.where(np.abs(l) > 20.0, np.log1p(-np.exp(-np.abs(l))), 0.0)}


def _plain_sigmoid(a):
    with np.errstate(all="ignore"):
        y = np.exp(a["x"]) / (1.0 + np.exp(a["x"]))
        return {"y": y, "dx": a["dy"] * y * (1.0 - y)}


def _plain_tanh(a):
    with np.errstate(all="ignore"):
        y = (np.exp(2.0 * a["x"]) - 1.0) / (np.exp(2.0 * a["x"]) + 1.0)
        return {"y": y} if np.isnan(y).any() else right("tanh", a)


def _plain_log_sum(a):
    with np.errstate(all="ignore"):
        p = np.exp(a["logits"]) / np.exp(a["logits"]).sum(axis=1, keepdims=True)
        loss = -np.log(p[np.arange(len(p)), a["labels"]]).sum() / (len(p) if a["reduction"] == "mean" else 1)
    return right("cross_entropy", a) | {"loss": np.asarray(loss)}


def _clipped_loss(a):
    shifted = np.exp(a["logits"] - a["logits"].max(axis=1, keepdims=True))
    p = np.maximum((shifted / shifted.sum(axis=1, keepdims=True))[np.arange(len(shifted)), a["labels"]], 1e-7)
    return right("cross_entropy", a) | {"loss": -np.log(p).sum() / (len(p) if a["reduction"] == "mean" else 1)}


def _clipped_probabilities(a):
    return right("kl", {name: np.clip(p, 1e-7, 1.0 - 1e-7) if p.min() > 0.0 and p.max() < 1.0 else p for name, p in a.items()})


def _plain_gamma(a):
    """Γ itself in the normaliser, which overflows from 171 on."""
    answer = right("prior", a)
    if a["kind"] == "student_t" and a["parameters"]["degrees"] + a["w"].shape[-1] > 342:
        return answer | {"log_density": np.full_like(answer["log_density"], np.nan)}
    return answer


RANGE = {
    "a uniform hyper-prior near γ = 1": ("penalty", _uniform_near_one),
    "a series with too few terms": ("hyper_prior", _short_series),
    "softplus is linear beyond 20": ("penalty", _softplus_beyond_twenty),
    "a sigmoid that overflows": ("sigmoid", _plain_sigmoid),
    "a tanh that overflows": ("tanh", _plain_tanh),
    "log-sum-exp without its maximum": ("cross_entropy", _plain_log_sum),
    "probabilities clipped at 1e-7": ("cross_entropy", _clipped_loss),
    "θ and π clipped at 1e-7": ("kl", _clipped_probabilities),
    "GELU without tails": ("gelu", altered("gelu", y=lambda y, a: np.where(a["x"] < -3.0, 0.0, y))),
    "tanh-GELU without tails": ("gelu_tanh", altered("gelu_tanh", dx=lambda d, a: np.where(a["x"] < -4.0, 0.0, d))),
    "a normaliser that overflows": ("prior", _plain_gamma),
    "logits of a network that overflow": (
        "network",
        altered("network", loss=lambda c, a: np.full_like(c, np.nan) if max(map(np.max, a["params"].values())) > 700.0 else c),
    ),
}

# Random numbers --------------------------------------------------------------------------------------------------------


def _closed_includes_equal(a):
    """Open at v = θ: as if θ were a little more."""
    return right("theta_estimate", {**a, "uniform": np.where(a["uniform"] == a["theta"], 0.0, a["uniform"])})


RANDOM = {
    "open where the uniform number is θ": ("theta_estimate", _closed_includes_equal),
    "uniform numbers in float16": (
        "theta_estimate",
        asked_for("theta_estimate", lambda a: a | {"uniform": a["uniform"].astype(np.float16).astype(np.float64)}),
    ),
    "a denominator that is floored": (
        "theta_estimate",
        altered(
            "theta_estimate",
            theta_estimate=lambda g, a: (
                g * np.minimum(a["theta"], 1.0 - a["theta"]) / np.maximum(np.minimum(a["theta"], 1.0 - a["theta"]), 0.05)
            ),
        ),
    ),
}

# State -----------------------------------------------------------------------------------------------------------------


def kept_from_the_first_call(method, option, key=lambda a: None):
    """An option is that of the first call, or of the first of its kind."""
    kept = {}
    return asked_for(method, lambda a: a | {option: kept.setdefault(key(a), a[option])})


def _rate_that_falls(a):
    """The learning rate is halved after four steps: what comes behind is another run."""
    if len(a["x"]) <= 4:
        return right("training_steps", a)
    answer = right("training_steps", a)
    return answer | {name: value * (1.0 + 1e-6) for name, value in answer.items() if name.startswith("params/")}


STATE = {
    "ε of the first call": ("batch_norm", kept_from_the_first_call("batch_norm", "eps")),
    "the reduction of the first call of a shape": (
        "mean_squared_error",
        kept_from_the_first_call("mean_squared_error", "reduction", lambda a: a["target"].shape),
    ),
    "the slope of the first call of a shape": (
        "leaky_relu",
        kept_from_the_first_call("leaky_relu", "slope", lambda a: a["x"].shape),
    ),
    "a stride of the first call of a shape": (
        "subsample_pad",
        kept_from_the_first_call("subsample_pad", "before", lambda a: (a["x"].shape, a["dy"].shape)),
    ),
    "another rate after four steps": ("training_steps", _rate_that_falls),
}

# Similarity ------------------------------------------------------------------------------------------------------------


def _median_of_squares(a):
    if a["kernel"] == "linear":
        return right("cka", a)

    def gram(x):
        squares = np.square(x[:, None] - x[None]).sum(axis=2)
        return np.exp(-squares / (2.0 * np.median(squares[np.triu_indices(len(x), 1)])))

    k, l = gram(a["x"]), gram(a["y"])  # noqa: E741
    value, first, second = (cka.hsic(*pair, estimator=a["estimator"]) for pair in ((k, l), (k, k), (l, l)))
    return {"cka": np.asarray(value / np.sqrt(first * second))}


SIMILARITY = {
    "the median of squares": ("cka", _median_of_squares),
    "features in float32": ("hsic", asked_for("hsic", lambda a: a | {n: a[n].astype(np.float32).astype(float) for n in "xy"})),
}

KINDS = {**SIZE, **RANGE, **RANDOM, **STATE, **SIMILARITY}


@pytest.mark.parametrize("kind", KINDS)
def test_a_mistake_of_a_kind_that_drawing_misses_is_found(kind):
    method, wrong = KINDS[kind]
    outcome = outcome_of(method, wrong)
    assert outcome.verdict == "DEVIATES", outcome.tensors


@pytest.mark.parametrize("method", sorted({method for method, _ in KINDS.values()}))
def test_what_the_mistakes_are_made_of_is_right(method):
    assert outcome_of(method, functools.partial(right, method)).verdict == "conforms"


# How it is asked -------------------------------------------------------------------------------------------------------


def test_what_fails_is_made_smaller(monkeypatch):
    """A layer that is wrong from 17 inputs on is shown with 17 inputs, one example and one unit."""
    monkeypatch.setattr(campaign, "SHRINKING", 20.0)
    outcome = outcome_of("dense", altered("dense", y=lambda y, a: y + (a["x"].shape[1] >= 17) * 1e-6))
    (finding,) = outcome.findings
    assert finding.arguments["w"].shape == (1, 17)
    assert finding.arguments["x"].shape == (1, 17)


@pytest.mark.parametrize("method", METHODS)
def test_the_questions_are_the_same_in_every_run_and_their_numbers_are_not(method):
    described = describe(type("Mine", (refprune.Implementation,), {})())
    first, again, other = (standing.questions(METHODS[method], dataclasses.replace(described, seed=seed)) for seed in (0, 0, 1))
    assert [q.sizes for q in first] == [q.sizes for q in again] == [q.sizes for q in other]
    assert first
    assert all(len(q.sizes) >= len(q.least) for q in first)


def test_sizes_reach_what_their_page_says():
    described = describe(type("Mine", (refprune.Implementation,), {})())
    convolutions = [q.make(q.sizes) for q in standing.questions(METHODS["conv2d"], described)]
    assert max(a["x"].shape[1] for a in convolutions) >= 300
    assert max(a["w"].shape[2] for a in convolutions) == 7
    inner = {math.prod(a["w"].shape[1:]) for a in convolutions}
    assert any(1024 < n <= 1100 for n in inner)
    lengths = {q.sizes[1] for q in standing.questions(METHODS["dense"], described) if q.sizes}
    assert lengths >= {block + d for block in (8, 16, 32, 64, 128) for d in (-1, 0, 1)}
    networks = [from_json(q.make(q.sizes)["spec"]) for q in standing.questions(METHODS["network"], described)]
    convs = [layer for n in networks for layer, _ in n.placed() if isinstance(layer, Conv)]
    assert any(c.dilation != (1, 1) for c in convs)
    assert any(c.kernel[0] != c.kernel[1] for c in convs)
    assert any(side[0] != side[1] for c in convs for side in c.padding)
    assert any(isinstance(layer, Dense) for n in networks for layer, _ in n.placed())
