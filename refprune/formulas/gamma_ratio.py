"""logΓ(a+h) − logΓ(a) − h log a for any a, without the cancellation of its logarithms (SPEC P1)."""

from __future__ import annotations

import math

#: From this a on Stirling's series has 17 digits; below it a is raised by whole numbers.
SERIES_FROM = 12.0

#: B₂ₖ/(2k(2k−1)), k = 1 … 9, of Stirling's series.
STIRLING = (
    *(1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188),
    *(-691 / 360360, 1 / 156, -3617 / 122400, 43867 / 244188),
)


def log_gamma_ratio(a: float, h: float) -> float:
    """logΓ(a+h) − logΓ(a) − h log a for a > 0 and h > 0, whose limit for a → ∞ is 0.

    With Γ(a+h)/Γ(a) = Γ(a+m+h)/Γ(a+m) ∏ (a+k)/(a+h+k), k = 0 … m−1, and Stirling's formula from a+m on.
    """
    raised = max(0, math.ceil(SERIES_FROM - a))
    steps = [-math.log1p(h / (a + k)) for k in range(raised)]
    lifted = h * math.log1p(raised / a) if raised else 0.0
    return math.fsum([*steps, lifted, *_by_stirling(a + raised, h)])


def _by_stirling(a: float, h: float) -> tuple[float, float, float]:
    """The same for a ≥ SERIES_FROM as three summands: a(log1p x − x), (h − ½) log1p x and the series, x = h/a."""
    x = h / a
    return a * log1p_minus(x), (h - 0.5) * math.log1p(x), _series(a + h) - _series(a)


def log1p_minus(x: float) -> float:
    """log(1 + x) − x for x ≥ 0, without cancellation: with r = x/(2 + x) it is 2r³(⅓ + r²/5 + …) − x r."""
    if x > 1.0:
        return math.log1p(x) - x
    r = x / (2.0 + x)
    total = 0.0
    for k in range(17, 0, -1):
        total = (total + 1.0 / (2 * k + 1)) * r * r
    return r * (2.0 * total - x)


def _series(a: float) -> float:
    """Stirling's correction 1/(12a) − 1/(360a³) + …"""
    total, square = 0.0, 1.0 / a / a
    for coefficient in reversed(STIRLING):
        total = total * square + coefficient
    return total / a
