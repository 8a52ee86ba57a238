"""Running a network: parameters, forward, backward, the loss of a batch, prediction.

For others:

- `initialise`, `initial_statistics`: arrays to begin with.
- `forward`, `backward`: one pass and its vector-Jacobian product.
- `BatchLoss`: the loss of one batch as a function of the gates, with gradients.
- `Predictor`: a network in eval mode, in as few calls as possible.
- `statistics`: the running statistics of batch-norm, updated and averaged.
"""

from .batch_loss import BatchLoss
from .parameters import initial_statistics, initialise
from .predictor import Predictor
from .tape import backward, forward

__all__ = ["BatchLoss", "Predictor", "backward", "forward", "initial_statistics", "initialise"]
