"""How close is close enough: rounding noise of every function, and the tolerances that follow from it.

For others:

- `network_tolerance`: tolerance of loss, output and gradients of a whole network.
- `UNIT`: unit roundoff of each precision.
- `tolerance`: also that of one function, and the certain bound of an inner product.
- `noise`: the backend whose results are off by simulated rounding errors.
"""

from .tolerance import UNIT, network_tolerance

__all__ = ["UNIT", "network_tolerance"]
