"""Random estimates of ∂C/∂θ: the sequential test's false alarms and power, what is tabulated, right and wrong estimators."""

import functools
import math

import numpy as np
import pytest
import torch
from scipy.stats import binom

import refprune
from refprune.adapters.pytorch.implementation import TorchImplementation
from refprune.adapters.pytorch.model import set_gates
from refprune.backend import ORACLE
from refprune.conformance import campaign, reporting
from refprune.conformance.asking import scripts
from refprune.conformance.asking.calls import InProcess, describe
from refprune.conformance.asking.worker import Worker
from refprune.conformance.judging import sampling, sequential
from refprune.conformance.judging.betting import Gamblers, interval, log_odds, lower_bound
from refprune.conformance.levels import METHODS, SAMPLED
from refprune.conformance.levels.networks import loss_of
from refprune.conformance.levels.sampled import cases
from refprune.gates import estimators
from refprune.mistakes.catalogue import KNOWN
from refprune.mistakes.planting import planted
from refprune.rounding.tolerance import LAYER_FACTOR, UNIT

U = UNIT["float64"]

#: Of every count that is judged by chance: how rarely a right implementation fails.
CHANCE = 1e-6


@functools.cache
def described(estimator="reinforce", samples=1):
    return describe(type("Mine", (refprune.Implementation,), {"estimator": estimator, "samples": samples})())


@functools.cache
def tabulated(number, seed=0):
    """A loss, θ and its table."""
    arguments = cases(described(), seed)[number]
    loss = loss_of(arguments, ORACLE)
    return loss, arguments["theta"], sampling.table(loss, arguments["theta"])


# Betting ------------------------------------------------------------------------------------------------------------------


def ruined(rng, draw, runs, n, alpha, mean):
    """How many of so many runs of n numbers ≥ 0 reach 1/α at some time, betting that the mean is above `mean`."""
    gamblers = Gamblers(runs)
    gamblers.play(draw(rng, (n, runs)) / mean)
    return int((gamblers.evidence >= math.log(1.0 / alpha)).sum())


SKEWED = {
    "rare and large": lambda rng, shape: (rng.random(shape) < 0.01) * 100.0,
    "almost always": lambda rng, shape: (rng.random(shape) < 0.99) / 0.99,
    "heavy tail": lambda rng, shape: 0.5 * (1.0 + rng.pareto(2.0, shape)),
    "martingale": lambda rng, shape: np.where(rng.random(shape) < 0.5, 0.0, 2.0),
}


@pytest.mark.parametrize("kind", SKEWED)
def test_false_alarms_are_as_rare_as_promised(kind):
    """Looked at after every one of 1,000 numbers: at most α of the runs, also for skewed and heavy-tailed ones."""
    runs, alpha = 800, 0.05
    alarms = ruined(np.random.default_rng(1), SKEWED[kind], runs, 1000, alpha, 1.0)
    assert alarms <= binom.isf(CHANCE, runs, alpha)


def test_a_test_that_looks_too_often_would_be_noticed():
    """The same count for the test that is wrong here: z beyond its 5 % bound after any number."""
    x = SKEWED["martingale"](np.random.default_rng(1), (1000, 800)) - 1.0
    z = np.cumsum(x, axis=0) / np.sqrt(np.arange(1, 1001))[:, None]
    assert (z.max(axis=0) > 1.645).sum() > binom.isf(CHANCE, 800, 0.05)


@pytest.mark.parametrize("bias", [0.5, 0.2, 0.1])
def test_a_bias_is_seen_when_it_should_be(bias):
    """Of δ standard deviations at α = 1e-6: within twice 2 (log 1/α + log 8)/δ² numbers, in at least 95 % of the runs."""
    runs, alpha = 200, 1e-6
    n = int(2.0 * 2.0 * (math.log(1.0 / alpha) + math.log(8.0)) / bias**2)
    draw = lambda rng, shape: np.clip(rng.uniform(0.0, 2.0, shape) + bias / math.sqrt(3.0), 0.0, None)  # noqa: E731
    assert ruined(np.random.default_rng(2), draw, runs, n, alpha, 1.0) >= 0.95 * runs


def test_an_interval_holds_its_mean_and_shrinks():
    rng, odds = np.random.default_rng(3), log_odds(0.05, 2)
    missed, widths = 0, []
    for _ in range(400):
        x = rng.beta(2.0, 5.0, 400)
        low, high = interval(x, 0.0, 1.0, odds)
        missed += not low <= 2.0 / 7.0 <= high
        widths.append(high - low)
    assert missed <= binom.isf(CHANCE, 400, 0.05)
    assert np.mean(widths) < 6.0 * 2.0 * math.sqrt(10.0 / 392.0 / 400.0)


def test_an_interval_ends_where_the_test_begins_to_reject():
    """The bisection against the gamblers themselves, on both sides of its end."""
    x, odds = np.random.default_rng(4).random(300) ** 2, 5.0
    end = lower_bound(x, 0.0, odds)
    for m, rejects in ((end * (1.0 - 1e-6), True), (end * (1.0 + 1e-6), False)):
        logs = [sum(math.log(1.0 - c + c * v / m) for v in x) for c in 0.5 ** np.arange(1, 9)]
        assert (math.log(sum(map(math.exp, logs)) / 8.0) >= odds) == rejects


# What is tabulated ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("kind", estimators.ESTIMATORS)
def test_means_by_two_ways_and_by_enumeration(kind, number):
    """The table's mean, the mean over the cells of v of the code in `estimators`, and O2's two conditional means."""
    loss, theta, table = tabulated(number)
    known = sampling.facts(loss, theta, kind, 1, U)
    room = 2.0 * known.rounding
    for samples in (1, 2):
        assert (np.abs(sampling.expected(loss, theta, kind, samples) - known.mean) <= room).all()
    assert (np.abs(estimators.exact_theta_gradient(loss, theta) - known.gradient) <= room).all()
    if kind == "taylor":
        slopes = [loss.gradients(loss.evaluate(xi, run_closed=True)).gates for xi in table.gates]
        slow = sum(p * slope for p, slope in zip(table.probabilities, slopes, strict=True))
        assert (np.abs(slow - known.mean) <= room).all()
        assert (np.abs(known.mean - known.gradient) > room).any()


def simulated(kind, table, samples, draws, rng):
    """Estimates (draws, G), by the formulas of O5 as they stand, of losses looked up in the table."""
    theta, powers = table.theta, 1 << np.arange(table.theta.size)
    v = rng.random((draws, samples, theta.size))
    b = (v < theta) * 1
    c, slopes, differences = (a[b @ powers] for a in (table.losses, table.slopes, table.differences()))
    if kind == "taylor":
        return slopes.mean(axis=1)
    if kind == "paired":
        return differences.mean(axis=1)
    if kind == "reinforce":
        baseline = (c.sum(axis=1, keepdims=True) - c) / (samples - 1) if samples > 1 else 0.0 * c
        return ((c - baseline)[..., None] * (b - theta) / (theta * (1.0 - theta))).mean(axis=1)
    anti = (v > 1.0 - theta) * 1
    difference = (table.losses[anti @ powers] - c)[..., None]
    if kind == "arm":
        return (difference * (v - 0.5) / (theta * (1.0 - theta))).mean(axis=1)
    return (-0.5 * difference * (b - anti) / np.minimum(theta, 1.0 - theta)).mean(axis=1)


KINDS = [("taylor", 1), ("paired", 1), ("paired", 2), ("arm", 1), ("disarm", 1), ("disarm", 3)]
KINDS += [("reinforce", k) for k in (1, 2, 3, 5)]


@pytest.mark.parametrize(("kind", "samples"), KINDS)
def test_variances_and_ranges_by_simulation(kind, samples):
    """Mean and variance within the z-score of CHANCE, no estimate outside of its range."""
    loss, theta, table = tabulated(1)
    known = sampling.facts(loss, theta, kind, samples, U)
    x = simulated(kind, table, samples, 60000, np.random.default_rng(5))
    squares = (x - known.mean) ** 2
    for values, wanted in ((x, known.mean), (squares, known.variance)):
        z = (values.mean(axis=0) - wanted) / (values.std(axis=0) / len(x) ** 0.5)
        assert np.abs(z).max() <= 5.5, (z, wanted)  # CHANCE for six normal numbers
    assert (x >= known.low - known.rounding).all()
    assert (x <= known.high + known.rounding).all()


def test_three_samples_by_all_triples():
    """Reinforce's variance with a leave-one-out baseline, from Hoeffding's formula, by enumeration of all triples."""
    _, _, t = tabulated(2)
    n = len(t.losses)
    square = 0.0
    for i in range(n):
        for j in range(n):
            for k in range(n):
                rows = [i, j, k]
                c, s = t.losses[rows], t.scores()[rows]
                estimate = ((c - (c.sum() - c) / 2.0)[:, None] * s).mean(axis=0)
                square = square + np.prod(t.probabilities[rows]) * estimate**2
    found, size = sampling.variance(t, "reinforce", 3), np.square(t.losses).max() * np.square(t.scores()).max()
    assert (np.abs(found - (square - t.gradient() ** 2)) <= LAYER_FACTOR * U * n**1.5 * size).all()


# What is right passes -------------------------------------------------------------------------------------------------------


def judged(implementation, calls=30, seed=0, method=SAMPLED["theta_sample"]):
    (outcome,) = campaign.run(InProcess(implementation), [method], calls, seed)
    return outcome


class FromTable(refprune.Implementation):
    """Any estimator of O5, from losses that the oracle tabulates."""

    def __init__(self, estimator, samples=1):
        self.estimator, self.samples = estimator, samples

    def theta_sample(self, draws, seed, **arguments):
        loss, theta = loss_of(arguments, ORACLE), arguments["theta"]
        table = sampling.table(loss, theta)
        if self.estimator == "exact":
            return np.tile(table.gradient(), (draws, 1))
        return simulated(self.estimator, table, self.samples, draws, np.random.default_rng(seed))


@pytest.mark.parametrize(("kind", "samples"), [*KINDS, ("exact", 1)])
def test_every_estimator_conforms(kind, samples):
    outcome = judged(FromTable(kind, samples), calls=12)
    assert outcome.verdict == "conforms", outcome.findings
    assert outcome.ratio < 1.0
    assert "no bias found larger than" in outcome.remarks[0]
    assert any("judged as taylor" in remark for remark in outcome.remarks) == (kind == "taylor")


@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16"])
def test_pytorch_conforms_in_every_precision(precision):
    outcome = judged(type("Mine", (TorchImplementation,), {"precision": precision})())
    assert outcome.verdict == "conforms", outcome.findings
    assert f"{30 * sequential.DRAWS} draws on 3 networks, false-alarm rate 1e-06" in outcome.remarks[0]


def test_variance_is_reported_beside_the_oracles():
    """Its own estimator and number of samples must come out at 1."""
    (line,) = [r for r in judged(TorchImplementation()).remarks if r.startswith("variance at as many passes")]
    assert float(line.split("reinforce, K = 2 ")[1].split(",")[0]) == pytest.approx(1.0, abs=0.1)


def test_an_estimate_that_cannot_be_repeated_is_judged_on_the_mean():
    class Noisy(TorchImplementation):
        """Draws gates of its own, whatever it is given."""

        deterministic = False
        rng = torch.Generator().manual_seed(1)

        def estimates(self, module, x, target, theta, uniform):
            own = torch.rand(uniform.shape, generator=self.rng, dtype=torch.float64)
            return super().estimates(module, x, target, theta, own)

    outcome = judged(Noisy(), calls=3, method=METHODS["theta_estimate"])
    assert outcome.verdict == "conforms", outcome.findings
    wrong = type("Wrong", (Noisy,), {"estimates": lambda self, *a: 3.0 * Noisy.estimates(self, *a)})
    assert judged(wrong(), calls=6, method=METHODS["theta_estimate"]).verdict == "DEVIATES"


def test_no_false_alarm_in_a_hundred_runs():
    """The whole judgement of right estimates with other numbers every time; the alarm rate is stated as 1e-6 a run."""
    for seed in range(100):
        kind, samples = KINDS[seed % len(KINDS)]
        _, _, table = tabulated(seed % 3)
        series = sequential.Series(_facts(seed % 3, kind, samples), sequential.DRAWS)
        rng = np.random.default_rng(seed)
        for _ in range(4):
            x = simulated(kind, table, samples, sequential.DRAWS, rng)
            assert not series.outside(x).any()
            series.add(x)
        assert series.evidence < log_odds(sequential.FALSE_ALARM, 3 * series.tests)


@functools.cache
def _facts(number, kind, samples):
    loss, theta, _ = tabulated(number)
    return sampling.facts(loss, theta, kind, samples, U)


def test_whole_judgements_at_a_rate_that_can_be_counted():
    """All tests of one series together at α = 0.2, 300 runs of 1,024 draws: no more alarms than that."""
    runs, alpha, alarms = 300, 0.2, 0
    _, _, table = tabulated(1)
    for seed in range(runs):
        series = sequential.Series(_facts(1, "reinforce", 2), 256)
        rng = np.random.default_rng([7, seed])
        for _ in range(4):
            series.add(simulated("reinforce", table, 2, 256, rng))
        alarms += series.evidence >= log_odds(alpha, series.tests)
    assert alarms <= binom.isf(CHANCE, runs, alpha)


# What is wrong is found -----------------------------------------------------------------------------------------------------


class Straight(TorchImplementation):
    """∂c/∂ξ at the sampled gates, handed out as an unbiased estimator."""

    def estimates(self, module, x, target, theta, uniform):
        found = []
        distinct, which = torch.unique((uniform[:, 0] < theta).to(theta.dtype), dim=0, return_inverse=True)
        for xi in distinct:
            gates = xi.clone().requires_grad_()
            loss = self.loss(module, set_gates(module, gates)(self.tensor(x)), target)
            found.append(torch.autograd.grad(loss, gates)[0])
        return torch.stack(found)[which]


def reinforced(sample=lambda u, t: u < t, baseline="others", uniform=lambda u: u):
    """The PyTorch implementation with another way to sample, another baseline, or other uniform numbers."""

    class Mine(TorchImplementation):
        def estimates(self, module, x, target, theta, u):
            xi = sample(uniform(u), theta).to(theta.dtype)
            g = len(theta)
            powers = 2 ** torch.arange(g)
            every = [torch.tensor([code >> k & 1 for k in range(g)], dtype=theta.dtype) for code in range(2**g)]
            with torch.no_grad():
                losses = [self.loss(module, set_gates(module, gates)(self.tensor(x)), target) for gates in every]
            table = torch.stack(losses)
            c = table[(xi.long() * powers).sum(-1)]
            others = (c.sum(-1, keepdim=True) - c) / max(c.shape[-1] - 1, 1)
            b = {"others": others, "all": c.mean(-1, keepdim=True), "none": 0.0 * c, "added": -others}[baseline]
            return ((c - b)[..., None] * (xi - theta) / (theta * (1.0 - theta))).mean(-2)

    return Mine


def shared(u):
    """One number for all gates."""
    return u[..., :1].expand(u.shape)


def sticky(u):
    """Every other draw is that before it."""
    return u.reshape(-1, 2, *u.shape[1:])[:, :1].expand(-1, 2, *u.shape[1:]).reshape(u.shape)


def mirrored(u):
    """Every other draw is made of 1 − v of that before it."""
    return torch.where(torch.arange(len(u))[:, None, None] % 2 == 0, u, 1.0 - u.roll(1, 0))


class Reseeded(TorchImplementation):
    """The same draws in every call."""

    def theta_sample(self, seed, **arguments):
        return super().theta_sample(seed=0, **arguments)


WRONG = {
    "straight-through": (Straight, 1, "biased", "straight-through taken for an unbiased estimator"),
    "θ and 1 − θ swapped": (reinforced(lambda u, t: u < 1.0 - t), 2, "biased", "gates on with probability 1−θ"),
    "shared numbers": (
        reinforced(uniform=shared),
        2,
        "biased",
        "one uniform number for all gates",
    ),
    "own sample in the baseline": (reinforced(baseline="all"), 2, "biased", "reinforce with its own sample in the baseline"),
    "no baseline": (reinforced(baseline="none"), 3, "variance", None),
    "baseline added": (reinforced(baseline="added"), 3, "range", None),
    "one sample for all draws": (reinforced(uniform=lambda u: u[:1].expand(u.shape)), 2, "dependent draws", None),
    "every draw twice": (reinforced(uniform=sticky), 2, "dependent draws", None),
    "antithetic draws": (reinforced(baseline="none", uniform=mirrored), 1, "dependent draws", None),
    "the same draws in every call": (Reseeded, 2, "dependent draws", None),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_estimator_is_found(name):
    implementation, samples, kind, mistake = WRONG[name]
    mine = implementation()
    mine.samples = samples
    outcome = judged(mine, calls=120)
    assert outcome.verdict == "DEVIATES", outcome.ratio
    finding = next(f for f in outcome.findings if f.kind != "prints")
    assert finding.kind == kind, finding.message
    assert kind == "range" or f"at a false-alarm rate of {sequential.FALSE_ALARM:g}" in finding.message
    if mistake is not None:
        assert mistake in [m.name for m in finding.mistakes], finding.message
    assert reporting.finding_lines(finding)


def test_straight_through_conforms_as_what_it_is():
    mine = Straight()
    mine.estimator, mine.samples = "taylor", 1
    outcome = judged(mine, calls=9)
    assert outcome.verdict == "conforms", outcome.findings
    assert any("judged as taylor, whose own mean differs from ∂C/∂θ by up to" in remark for remark in outcome.remarks)


class Scaled(FromTable):
    def theta_sample(self, **arguments):
        return 1.5 * super().theta_sample(**arguments)


def test_what_an_estimator_cannot_give_is_found_at_once():
    outcome = judged(Scaled("paired"), calls=30)
    (finding,) = outcome.findings
    assert finding.kind == "range"
    assert "paired cannot give" in finding.message
    assert outcome.examples <= 3


def test_manners_and_forms_are_judged_too():
    def failing(*a, **k):
        raise RuntimeError("no such kernel")

    wrong = {
        "raises": failing,
        "shape": lambda self, draws, theta, **k: np.zeros((theta.size, draws)),
        "not finite": lambda self, draws, theta, **k: np.full((draws, theta.size), np.nan),
        "dtype": lambda self, **k: FromTable("paired").theta_sample(**k).astype(np.float32),
    }
    for kind, method in wrong.items():
        mine = type("Mine", (refprune.Implementation,), {"theta_sample": method, "estimator": "paired"})
        assert kind in [f.kind for f in judged(mine()).findings]

    mine = FromTable("paired")
    mine.theta_sample = lambda seed, **k: FromTable("paired").theta_sample(seed=np.random.SeedSequence().entropy, **k)
    assert "not repeatable" in [f.kind for f in judged(mine).findings]
    mine.deterministic = False
    assert judged(mine).verdict == "conforms"


def test_the_example_runs_as_a_script(tmp_path, capsys):
    (finding,) = judged(Straight(), calls=12).findings
    source = scripts.script(finding, "refprune.adapters.pytorch.implementation:TorchImplementation", "float32")
    exec(compile(source, "script.py", "exec"), {})
    assert "theta_sample got" in capsys.readouterr().out.replace("\n", " ")


def test_a_worker_is_judged_in_the_same_way():
    worker = Worker("refprune.adapters.pytorch.implementation:TorchImplementation", 20.0)
    try:
        (outcome,) = campaign.run(worker, campaign.chosen(["theta_sample"]), 6, 0)
    finally:
        worker.close()
    assert outcome.verdict == "conforms", outcome.findings
    assert "no bias found larger than" in reporting.text([outcome], worker.description)


def test_a_planted_mistake_moves_the_tabulated_mean():
    """What names a mistake: the mean from the library's own code, put wrong."""
    loss, theta, _ = tabulated(1)
    right = sampling.expected(loss, theta, "reinforce")
    for mistake in KNOWN:
        if mistake.name in ("reinforce without its denominator", "gates on with probability 1−θ"):
            with planted(mistake):
                assert np.abs(sampling.expected(loss, theta, "reinforce") - right).max() > 0.01
