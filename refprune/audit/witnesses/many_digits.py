"""The flattening hyper-prior (SPEC F) to as many digits as mpmath is set to, and distances in ulp."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


class Exactly:
    """F1 to F3 at one π (or θ) and log γ, to mpmath's digits; by e^{−|L|}, for e^L would swallow what it is added to."""

    def __init__(self, p: float, log_gamma: float) -> None:
        import mpmath

        self.m, self.p, self.l, self.a = mpmath, mpmath.mpf(p), mpmath.mpf(log_gamma), mpmath.mpf(abs(log_gamma))
        decay = mpmath.exp(-self.a) if self.a < 1e6 else mpmath.mpf(0)
        near, far = (1 - self.p, self.p) if log_gamma > 0 else (self.p, 1 - self.p)
        self.shrunk = (1 - decay) / self.a if self.a else mpmath.mpf(1)
        inside = near + decay * far
        self.log_inside = mpmath.log(inside) if inside else -self.a  # e^{−|L|}, where only that is left
        self.density = self.shrunk / inside if inside else mpmath.inf
        on, off = (self.p, (1 - self.p) * decay) if log_gamma > 0 else (self.p * decay, 1 - self.p)
        self.star = self.p if self.p in (0, 1) else on / (on + off)

    def logarithms(self) -> dict[str, tuple[Any, list[Any]]]:
        """Name → (value, the summands of which it is made)."""
        m, up, down = self.m, max(self.l, 0), min(self.l, 0)
        norm = m.log(self.shrunk)
        return {
            "log_density": (norm - self.log_inside, [norm, self.log_inside]),
            "log_normaliser": (up + norm, [up, norm]),
            "penalty_constant": (down - norm, [down, norm]),
            "penalty": (down - norm - self.p * self.l, [down, norm, self.p * self.l]),
            "kl_at_pi_star": self._divergence(),
        }

    def _divergence(self) -> tuple[Any, list[Any]]:
        """log π* = −log(1 + e^{−t}) moves by 1−π* for 1 of t = log θ − log(1−θ) + L, log(1−π*) by π*: so t's summands count."""
        m, t, off = self.m, self.p, 1 - self.p
        if t in (0, 1):
            return m.mpf(0), [m.mpf(0)]
        odds = [m.log(t), m.log1p(-t), self.l]
        logs = [-m.log1p(m.exp(x)) for x in (odds[1] - odds[0] - odds[2], odds[0] - odds[1] + odds[2])]
        summands = [t * odds[0], off * odds[1], t * logs[0], off * logs[1]]
        carried = t * m.exp(logs[1]) + off * m.exp(logs[0])
        return summands[0] + summands[1] - summands[2] - summands[3], [*summands, *(carried * x for x in odds)]


def ulps(got: float, want: Any, of: Any) -> float:
    """|got − want| in units in the last place of `of`; where `want` overflows, got must be that infinity."""
    import mpmath

    if abs(want) > mpmath.mpf(float(np.finfo(float).max)):
        return 0.0 if math.isinf(got) and (got > 0) == (want > 0) else math.inf
    return float(abs(mpmath.mpf(float(got)) - want) / mpmath.mpf(float(np.spacing(abs(float(of))))))
