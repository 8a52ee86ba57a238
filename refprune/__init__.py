"""refprune: the reference implementation, in NumPy, of concurrent training and pruning of neural networks."""

__version__ = "0.1.0"
