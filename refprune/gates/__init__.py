"""What happens to a gate: estimators of ∂C/∂θ, the penalty on θ, the rules of removal, surgery.

For others:

- `prune`: the network without some gates, and which arrays stay.
- `exact_theta_gradient`: ∂C/∂θ by enumeration.
- `estimators`: ∂C/∂θ from a few passes.
- `penalty`: Σ β θ + ν R_ρ(θ) and its slope β_g.
- `rules`: which gates go now.
- `saddle`: how J falls from a stationary point with an undecided gate.
- `dynamics`: the ODE of one gate and its weights, its domain of attraction.
- `magnitude`: filters by ℓ1 norm, the baseline.
"""

from .estimators import exact_theta_gradient
from .surgery import prune

__all__ = ["exact_theta_gradient", "prune"]
