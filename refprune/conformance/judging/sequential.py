"""Judging random estimates of ∂C/∂θ: are they what the declared estimator gives on the mean, independent, and no noisier?

A method is asked for DRAWS estimates again and again. On every network and for every gate, gamblers (`betting`) test that the
mean is not above and not below the declared estimator's, that a draw's mean does not depend on the draw 1, 2 or DRAWS before
it, and that the variance is not above the declared estimator's. All together they raise a false alarm with probability ≤
FALSE_ALARM in the whole run of one method, however long it is: log(tests/FALSE_ALARM) of evidence is asked of each. A finding
ends the run early; otherwise the report says how large a bias could still be.

The bound that betting needs is the estimator's range (`sampling`): an estimate outside of it is a finding by itself. Rounding
moves the mean by no more than it moves each estimate, and is granted to both sides.
"""

from __future__ import annotations

import numpy as np

from ...arrays import Array, Arrays
from ...rounding.noise import widened
from ...rounding.tolerance import UNIT
from ..asking.calls import Caller, Reply
from ..asking.methods import Arguments, Method, dtype_of, in_precision
from ..levels import SAMPLED
from ..levels.sampled import cases, facts_of
from .betting import Gamblers, interval, log_odds
from .diagnosis import Evidence, named
from .findings import Finding, Outcome
from .sampling import Facts, passes
from .verdicts import Expectation, compare, form

#: Estimates asked for at a time; of `theta_estimate`, which gives one at a time, fewer.
DRAWS = 512
DRAWS_ONE_BY_ONE = 64

#: Probability that a method whose estimates are right is said to deviate, all tests of a run together.
FALSE_ALARM = 1e-6

#: Probability of error of the intervals in which a known mistake's mean must lie to be named.
NAMING = 1e-3

#: After a test has rejected, so many times as many draws are taken in all, to tell mistakes apart.
LONGER = 8

#: |z| from which the report speaks of a bias or of a correlation, once a test has rejected.
CLEAR = 6.0


class Series:
    """The estimates (n, G) of one network so far, and what speaks against them."""

    def __init__(self, known: Facts, draws: int) -> None:
        self.known, self.lags = known, (1, 2, draws)
        self.x = np.zeros((0, known.mean.size))
        self.draws = draws
        self.tests = known.mean.size * (2 + 2 * len(self.lags) + 1)
        self.gamblers = Gamblers(self.tests)

    def outside(self, x: Array) -> Array:
        """Which of the new estimates the declared estimator cannot give, rounding granted."""
        k = self.known
        outside: Array = ~((x >= k.low - k.rounding) & (x <= k.high + k.rounding))
        return outside

    def add(self, x: Array) -> None:
        """(n, G) more of them, inside their range."""
        k, before = self.known, len(self.x)
        least, most = k.low - k.rounding, k.high + k.rounding
        up = (x - least) / (k.mean + k.rounding - least)
        down = (most - x) / (most - (k.mean - k.rounding))
        self.x = np.concatenate([self.x, x])
        columns = [up, down]
        for lag in self.lags:
            earlier = self.x[max(before - lag, 0) : len(self.x) - lag] if len(self.x) > lag else self.x[:0]
            free = np.full((len(x) - len(earlier), x.shape[1]), np.nan)  # nothing to look at: no bet
            side = np.sign(np.concatenate([free, earlier]) - k.mean)
            for direction in (side, -side):
                columns.append(np.where(direction > 0.0, up, np.where(direction < 0.0, down, 1.0)))
        deviation = np.sqrt(k.variance)
        columns.append((x - k.mean) ** 2 / (deviation + k.rounding) ** 2)
        self.gamblers.play(np.concatenate(columns, axis=1))

    @property
    def evidence(self) -> float:
        """The strongest test's."""
        return float(self.gamblers.evidence.max())

    def bias(self) -> Array:
        """(G,) z-scores of the means, beyond what rounding may do."""
        k, x = self.known, self.x
        excess = np.maximum(np.abs(x.mean(axis=0) - k.mean) - k.rounding, 0.0)
        z: Array = excess / np.maximum(x.std(axis=0) / len(x) ** 0.5, k.rounding)
        return z

    def correlation(self) -> tuple[float, int]:
        """The largest z-score of a correlation with the draw some way before, about the draws' own mean; and how far before.

        Infinite where all draws of every call are equal, though the declared estimator varies.
        """
        k, x = self.known, self.x - self.x.mean(axis=0)
        spread = np.ptp(self.x.reshape(-1, self.draws, x.shape[1]), axis=1)
        if (spread <= k.rounding).all() and (k.variance > k.rounding**2).any():
            return np.inf, 1
        size = np.maximum(np.square(x).sum(axis=0), k.rounding**2)
        found = [(float(np.abs((x[lag:] * x[:-lag]).sum(axis=0) / size).max()), lag) for lag in self.lags if lag < len(x)]
        worst, lag = max(found)
        return worst * len(x) ** 0.5, lag

    def intervals(self, odds: float) -> Array:
        """(G, 2) confidence intervals of the means, rounding granted."""
        k = self.known
        found = [
            interval(self.x[:, g], float(k.low[g] - k.rounding[g]), float(k.high[g] + k.rounding[g]), odds)
            for g in range(k.mean.size)
        ]
        granted: Array = np.asarray(found) + np.stack([-k.rounding, k.rounding], axis=1)
        return granted


def judge(caller: Caller, method: Method, outcome: Outcome, calls: int, seed: int) -> None:
    """Ask `calls` times in all, the networks by turns; write into the outcome what is found."""
    described = caller.description
    asked = [in_precision(a, described.precision) for a in cases(described, seed)]
    draws = DRAWS if method.name == "theta_sample" else DRAWS_ONE_BY_ONE
    unit = UNIT[described.precision]
    with np.errstate(all="ignore"):
        series = [Series(facts_of(widened(a), unit), draws) for a in asked]
    odds = log_odds(FALSE_ALARM, sum(s.tests for s in series))
    until = max(calls, len(series))
    seeds = np.random.SeedSequence(seed).generate_state(until)
    suspect: int | None = None
    number = 0
    while number < until:
        which = number % len(series) if suspect is None else suspect
        question = asked[which] | _own(method, asked[which], draws, int(seeds[number]))
        reply = _ask(caller, method, question, twice=described.deterministic and number < len(series))
        number += 1
        outcome.examples += 1
        outcome.declined += reply.kind == "declined"
        shown = _shown(method, question)
        outcome.manners(reply, shown)
        if reply.restarted:
            return
        if reply.kind == "declined":
            continue
        x = _estimates(outcome, method, reply, shown, draws, dtype_of(described.precision))
        if x is None or _out_of_range(outcome, series[which], x, shown):
            return
        series[which].add(x)
        if suspect is None:
            outcome.ratio = max(outcome.ratio, series[which].evidence / odds)
            if series[which].evidence >= odds:
                suspect = which
                until = min(until, number + (LONGER - 1) * (len(series[which].x) // draws))
    if suspect is None:
        outcome.remarks += _remarks([s for s in series if len(s.x)], odds, described.estimator, described.samples)
    else:
        question = _shown(method, asked[suspect] | _own(method, asked[suspect], draws, int(seeds[0])))
        outcome.findings.append(_finding(method, question, series[suspect], unit))


def _own(method: Method, arguments: Arguments, draws: int, seed: int) -> Arguments:
    """What is different in every call: how many draws and a seed, or for `theta_estimate` the uniform numbers of each draw."""
    if method.name == "theta_sample":
        return {"draws": draws, "seed": seed}
    theta = arguments["theta"]
    shape = (draws, arguments["_samples"], theta.size)
    return {"uniform": np.random.default_rng(seed).random(shape).astype(theta.dtype)}


def _shown(method: Method, question: Arguments) -> Arguments:
    """The question as one call of the method takes it."""
    return question if method.name == "theta_sample" else question | {"uniform": question["uniform"][0]}


def _ask(caller: Caller, method: Method, question: Arguments, *, twice: bool) -> Reply:
    """One call of `theta_sample`; or one of `theta_estimate` for each draw's uniform numbers, put together."""
    if method.name == "theta_sample":
        return caller.call(method, question, twice=twice)
    found: list[Reply] = []
    for uniform in question["uniform"]:
        found.append(caller.call(method, question | {"uniform": uniform}, twice=False))
        one = found[-1].answer.get(method.name)
        if one is None or one.shape != question["theta"].shape or found[-1].restarted:
            return found[-1]
    printed, changed = "".join(r.printed for r in found), found[-1].changed
    answer = {method.name: np.stack([r.answer[method.name] for r in found])}
    return Reply("answer", answer, "", printed, changed, None, sum(r.seconds for r in found))


def _estimates(outcome: Outcome, method: Method, reply: Reply, question: Arguments, draws: int, dtype: str) -> Array | None:
    """(draws, G) in float64; None, with a finding, where there are none."""
    if reply.kind != "answer":
        outcome.note(reply.kind, reply.message, question, {})
        return None
    wanted = np.zeros((draws, question["theta"].size))
    complaint = form(reply.answer, Expectation({method.name: wanted}, {}), dtype)
    if complaint is not None:
        outcome.note(*complaint, question, reply.answer)
        return None
    outcome.tensors[method.name] += 1
    return np.asarray(reply.answer[method.name], dtype=np.float64)


def _out_of_range(outcome: Outcome, series: Series, x: Array, arguments: Arguments) -> bool:
    outside = np.argwhere(series.outside(x))
    if not outside.size:
        return False
    draw, gate = map(int, outside[0])
    k = series.known
    message = f"{len(outside)} of {x.size} estimates lie where {arguments['_estimator']} cannot give one: gate {gate} got "
    message += f"{x[draw, gate]:.6g}, possible are {k.low[gate]:.6g} … {k.high[gate]:.6g}"
    outcome.note("range", message, arguments, {outcome.method: x})
    return True


def _finding(method: Method, arguments: Arguments, series: Series, unit: float) -> Finding:
    """What made a test reject: draws that depend on each other, else a bias, else the variance.

    For a bias, with the known mistakes whose mean lies in the confidence intervals. Which of the three it is called is no part
    of the test: several may be true, and all that is clear is said.
    """
    k, declared = series.known, arguments["_estimator"]
    n, mean, z = len(series.x), series.x.mean(axis=0), series.bias()
    correlation, lag = series.correlation()
    ratio = series.x.var(axis=0) / np.maximum(k.variance, k.rounding**2)
    g, wider = int(z.argmax()), int(ratio.argmax())
    words = {
        "dependent draws": f"a draw depends on that {lag} before it (z = {correlation:.3g})",
        "biased": f"gate {g}'s mean is {mean[g]:.6g}, {declared}'s is {k.mean[g]:.6g} (z = {z[g]:.3g})",
        "variance": f"gate {wider}'s variance is {ratio[wider]:.3g} times {declared}'s with samples = {arguments['_samples']}",
    }
    clear = {"dependent draws": correlation >= CLEAR, "biased": z[g] >= CLEAR, "variance": ratio[wider] > 1.0}
    kinds = [kind for kind in words if clear[kind]] or ["biased"]
    kind = kinds[0]
    message = f"after {n} draws: {'; '.join(words[kind] for kind in kinds)}; "
    message += f"evidence e^{series.evidence:.0f} at a false-alarm rate of {FALSE_ALARM:g}"
    intervals = series.intervals(log_odds(NAMING, 2 * k.mean.size))
    room = np.maximum(intervals[:, 1] - mean, mean - intervals[:, 0])
    answer: Arrays = {"theta_sample": mean}
    found = Evidence(arguments, answer, Expectation({"theta_sample": k.mean}, {"theta_sample": room}))
    mistakes = tuple(named(SAMPLED["theta_sample"], [found], unit)) if kind == "biased" else ()
    comparison = compare("theta_sample", mean, k.mean, room, unit=unit)
    return Finding(method.name, kind, message, arguments, answer, (comparison,), mistakes)


def _remarks(series: list[Series], odds: float, kind: str, samples: int) -> list[str]:
    """What the report says of estimates against which nothing was found: how sure that is, taylor's bias, the variance."""
    if not series:
        return []
    still, of_sd, bias = 0.0, 0.0, 0.0
    for s in series:
        k = s.known
        size = float(np.sqrt(np.square(k.gradient).mean()))
        room = np.abs(s.intervals(odds) - k.mean[:, None]).max(axis=1)
        still = max(still, float(room.max()) / size)
        of_sd = max(of_sd, float((room / np.maximum(np.sqrt(k.variance), k.rounding)).max()))
        bias = max(bias, float(np.abs(k.mean - k.gradient).max()) / size)
    draws = sum(len(s.x) for s in series)
    lines = [
        f"{draws} draws on {len(series)} networks, false-alarm rate {FALSE_ALARM:g}: no bias found larger than "
        f"{100.0 * still:.3g} % of ∂C/∂θ (RMS over gates), {of_sd:.2g} standard deviations of a draw"
    ]
    if kind == "taylor":
        lines.append(f"judged as taylor, whose own mean differs from ∂C/∂θ by up to {100.0 * bias:.2g} % of its RMS here")
    own = [float(s.x.var(axis=0).mean()) * passes(kind, s.known.mean.size, samples) for s in series]
    if min(own) > 0.0:
        names = series[0].known.rivals
        listed = ", ".join(f"{name} {_beside(name, series, own):.2g}" for name in names)
        lines.append(f"variance at as many passes, this one = 1, the oracle's: {listed} (taylor's bias not counted)")
    return lines


def _beside(name: str, series: list[Series], own: list[float]) -> float:
    """Geometric mean over the networks of a rival's variance times passes over one's own."""
    rivals = [s.known.rivals[name] for s in series]
    return float(np.exp(np.mean([np.log(count * v.mean() / o) for (count, v), o in zip(rivals, own, strict=True)])))
