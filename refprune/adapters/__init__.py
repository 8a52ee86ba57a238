"""What `refprune verify` judges: the protocol of an implementation, and the whole method in PyTorch and in JAX.

For others:

- `Implementation`: the methods that an adapter overrides.
- `PYTORCH`, `EVERY`: the conventions that an adapter may be asked for.
- `pytorch.implementation`, `jax.implementation`: worked adapters.
"""

from .implementation import EVERY, PYTORCH, Implementation

__all__ = ["EVERY", "PYTORCH", "Implementation"]
