"""refprune: the reference implementation, in NumPy, of concurrent training and pruning of neural networks."""

from .adapters.implementation import EVERY, PYTORCH, Implementation

__all__ = ["EVERY", "PYTORCH", "Implementation"]

__version__ = "0.1.0"
