"""The flattening hyper-prior's pull on θ in both scalings (SPEC F3, O1; the formula is *derived here*)."""

from __future__ import annotations

from .errors import InputError


def beta_from_log_gamma(log_gamma: float, samples: int) -> float:
    """Penalty per sample and gate, β = −log γ / N, from log γ of a data set of N samples (F3, O1)."""
    if samples < 1:
        raise InputError(f"samples: must be at least 1, got {samples}")
    return -log_gamma / samples


def log_gamma_from_beta(beta: float, samples: int) -> float:
    """log γ = −N β: the hyper-prior's parameter that pulls as strongly as β per sample."""
    if samples < 1:
        raise InputError(f"samples: must be at least 1, got {samples}")
    return -beta * samples
