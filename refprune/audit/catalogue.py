"""The catalogue of the audit: what SPEC claims, where it comes from, which code implements it, and its witnesses.

A letter's module makes a `Claim` for each number and hangs witnesses on it:

    F2 = Claim("F2", "argmin …", formula="π^* = …", source=OURS, code=("formulas.hyper_prior:pi_star",))

    @F2.witness("sympy: …")
    def _(context): return exact(difference == 0)

A witness must not share code with what it judges: it computes the same number in another way and returns a `Finding`, that is a
deviation and the bound that it must not exceed. Stochastic witnesses return a z-score with `z_bound`, at the false-alarm rate
FALSE_ALARM for the whole witness.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtri, stdtrit

from ..arrays import Array
from ..backend import ORACLE, Backend
from ..errors import InputError
from ..streams import Streams

LP = "[LP] Guenter & Sideris, arXiv 2406.04549 (abstract); formula derived here"
CA = "[CA] Guenter & Sideris, arXiv 2411.09127 (abstract); formula derived here"
CKA = "[CKA] Pons et al., arXiv 2405.17081"
OURS = "derived here"

#: The order of SPEC.
LETTERS = "NPFODCKGE"

#: Probability that a stochastic witness of a true claim fails, for all its z-scores together.
FALSE_ALARM = 1e-6

EPS = float(np.finfo(np.float64).eps)


class Finding(NamedTuple):
    """deviation: an error, a |z| or a count; it holds if deviation ≤ bound (a NaN does not). kind: "error", "z" or "exact"."""

    deviation: float
    bound: float
    kind: str = "error"
    detail: str = ""

    @property
    def holds(self) -> bool:
        return bool(self.deviation <= self.bound)


def exact(violations: float, detail: str = "") -> Finding:
    """A count of violations, of which none is allowed."""
    return Finding(float(violations), 0.0, "exact", detail)


def close(got: Any, want: Any, size: Any, roundings: float, detail: str = "") -> Finding:
    """The largest |got − want| in units of eps·size; `roundings` of them are allowed (size: of the largest summand)."""
    got, want = np.asarray(got, dtype=np.float64), np.asarray(want, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        error = np.abs(got - want) / (EPS * np.maximum(np.abs(size), float(np.finfo(np.float64).tiny)))
    worst = np.where(got == want, 0.0, np.where(np.isnan(error), np.inf, error))
    return Finding(float(worst.max(initial=0.0)), roundings, "error", detail or "in units of eps·size")


def worst(*findings: Finding) -> Finding:
    """The finding nearest to its bound, or furthest beyond it."""
    return max(findings, key=lambda f: (not f.holds, f.deviation / f.bound if f.bound else f.deviation))


def z_bound(count: int, samples: int | None = None) -> float:
    """|z| that `count` means exceed together with probability FALSE_ALARM (Bonferroni), each of `samples` normal numbers.

    The spread is estimated from these samples: the quantile is Student's. None: the spread is known, the quantile normal.
    """
    tail = FALSE_ALARM / (2 * count)
    return float(-ndtri(tail) if samples is None else -stdtrit(samples - 1, tail))


def z_score(samples: Array, mean: Any) -> Finding:
    """The largest |z| of the means over axis 0 against `mean`, by the samples' own standard error."""
    samples = np.asarray(samples, dtype=np.float64)
    spread = samples.std(axis=0, ddof=1) / math.sqrt(len(samples))
    difference = np.abs(samples.mean(axis=0) - mean)
    z = np.where(difference == 0.0, 0.0, difference / np.where(spread > 0.0, spread, 1e-300))
    return Finding(float(np.max(z)), z_bound(z.size, len(samples)), "z", f"{len(samples):,} samples, {z.size} means")


@dataclass(frozen=True)
class Context:
    """What a witness works with: the seed of all its random numbers, and the backend under audit."""

    seed: int = 0
    backend: Backend = ORACLE

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise InputError(f"seed: got {self.seed}; integers from 0 are allowed")

    @property
    def streams(self) -> Streams:
        return Streams(self.seed)

    def uniform(self, purpose: str, *shape: int) -> Array:
        return self.streams.uniform(f"audit/{purpose}", 0, shape)

    def normal(self, purpose: str, *shape: int) -> Array:
        return self.streams.normal(f"audit/{purpose}", 0, shape)

    def rng(self, purpose: str) -> np.random.Generator:
        """For the distributions that the streams do not draw."""
        return np.random.default_rng(self.streams.words(f"audit/{purpose}", 0, 4))


Witness = Callable[[Context], Finding]


@dataclass(frozen=True)
class Claim:
    """number: SPEC's. formula: as `mathml.mathml` reads it. code: "module:name" of what implements it, within refprune."""

    number: str
    statement: str
    formula: str
    source: str
    code: tuple[str, ...]
    witnesses: list[tuple[str, Witness]] = field(default_factory=list)
    pictures: list[Callable[[Context], Any]] = field(default_factory=list)

    @property
    def letter(self) -> str:
        return self.number[0]

    def witness(self, method: str) -> Callable[[Witness], Witness]:
        """Decorator: the function is one more witness, by this method."""

        def add(function: Witness) -> Witness:
            self.witnesses.append((method, function))
            return function

        return add

    def picture(self, function: Callable[[Context], Any]) -> Callable[[Context], Any]:
        """Decorator: the function draws a matplotlib figure for the report."""
        self.pictures.append(function)
        return function


#: Files of claims, in the order of SPEC.
SUBJECTS = (
    *("networks", "priors", "hyper_prior", "objective", "joint_solutions", "training"),
    *("dynamics", "pruning_rules", "joint_domain", "biased_dynamics"),
    *("cost", "size_objective", "similarity", "gradients", "rounding"),
)


@functools.cache
def catalogue() -> tuple[Claim, ...]:
    """All claims, in the order of SPEC."""
    modules = [importlib.import_module(f"{__package__}.claims.{name}") for name in SUBJECTS]
    claims = [c for module in modules for c in vars(module).values() if isinstance(c, Claim)]
    return tuple(sorted(claims, key=lambda c: (LETTERS.index(c.letter), int(c.number[1:]))))


def select(only: str | None) -> list[Claim]:
    """The claims of the letters or numbers in `only` ("F,D", "F2,O"), all for None. InputError lists what is known."""
    claims = catalogue()
    if only is None:
        return list(claims)
    wanted = [name.strip() for name in only.split(",")]
    for name in wanted:
        if not any(name in (c.letter, c.number) for c in claims):
            letters = ", ".join(dict.fromkeys(c.letter for c in claims))
            raise InputError(f"--only: {name!r} is not known; known are the letters {letters}, and numbers such as F2")
    return [c for c in claims if c.letter in wanted or c.number in wanted]


def resolve(code: str) -> Any:
    """The object that "module:name" names."""
    module, _, name = code.partition(":")
    found: Any = importlib.import_module(f"refprune.{module}")
    for part in name.split("."):
        found = getattr(found, part)
    return found


def location(code: str) -> str:
    """file:line of "module:name", relative to the package's folder."""
    found = resolve(code)
    found = inspect.unwrap(getattr(found, "func", getattr(found, "fget", found)))  # of a cached property, of a property
    file = Path(inspect.getsourcefile(found) or "").resolve()
    package = Path(__file__).resolve().parents[1]
    return f"refprune/{file.relative_to(package).as_posix()}:{inspect.getsourcelines(found)[1]}"


def neighbours(codes: Sequence[str]) -> list[Claim]:
    """The claims that cite one of these pieces of code."""
    return [c for c in catalogue() if set(c.code) & set(codes)]
