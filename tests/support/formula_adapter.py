"""An adapter of a few scalar formulas."""

import numpy as np

import refprune
from refprune import arrays


class Formulas(refprune.Implementation):
    """Formulas in NumPy, as a user would write them."""

    def penalty_slope(self, theta, log_gamma):
        return -log_gamma

    def beta(self, log_gamma, samples):
        return -log_gamma / samples

    def gate(self, x, g, dy):
        full = g if g.ndim == 0 else arrays.per_channel(g, x.ndim)
        axes = tuple(range(x.ndim)) if g.ndim == 0 else (0, *range(2, x.ndim))
        return x * full, dy * full, np.asarray((x * dy).sum(axis=axes))
