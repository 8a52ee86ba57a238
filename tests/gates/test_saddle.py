"""Strict saddles: the plane's eigenvalue and direction, by NumPy and by torch's Hessian of a network."""

import numpy as np
import pytest

from refprune.errors import InputError
from refprune.gates import saddle


@pytest.mark.parametrize(
    ("theta", "norm", "decay", "curvature"),
    [(0.5, 1.0, 0.1, 0.3), (0.01, 2.0, 1e-4, 5.0), (0.99, 1e-3, 1e-3, -2.0), (0.3, 1e-8, 1e-6, 1.0), (0.5, 1.0, 1.0, 0.0)],
)
def test_the_escape_is_the_lower_eigenvector(theta, norm, decay, curvature):
    found = saddle.escape(theta, norm, decay, curvature)
    b = -decay * norm / theta
    matrix, direction = np.array([[0.0, b], [b, curvature]]), np.array([found.theta, found.weights])
    assert np.linalg.norm(direction) == pytest.approx(1.0, rel=1e-15)
    assert found.curvature < 0.0
    np.testing.assert_allclose(matrix @ direction, found.curvature * direction, rtol=1e-12, atol=1e-16 * abs(curvature))
    trace, determinant = curvature, -(b**2)
    other = trace - found.curvature
    assert other * found.curvature == pytest.approx(determinant, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("theta", (0.0, 1.0, 1.0, 0.0)),
        ("theta", (1.0, 1.0, 1.0, 0.0)),
        ("norm", (0.5, 0.0, 1.0, 0.0)),
        ("decay", (0.5, 1.0, 0.0, 0.0)),
        ("curvature", (0.5, 1.0, 1.0, float("nan"))),
    ],
)
def test_what_is_no_saddle_is_refused(name, arguments):
    with pytest.raises(InputError, match=f"^{name}: got"):
        saddle.escape(*arguments)


def test_autograd_agrees_at_a_stationary_point():
    """J of one gated tanh path with a quadratic loss, made stationary by choosing target and price; Hessian by torch."""
    torch = pytest.importorskip("torch")
    theta, decay, x, a = 0.4, 0.05, torch.tensor([0.5, -1.0], dtype=torch.float64), torch.tensor([[0.3, 0.7]]).double()
    w = torch.tensor([0.6, -0.2], dtype=torch.float64)
    h = torch.tanh(a @ x)
    hidden = torch.cat([h, torch.ones(1, dtype=torch.float64)])
    unit = hidden / (hidden @ hidden)
    w = (w @ hidden) * unit  # along the hidden vector, so that one residual makes ∂J/∂W = 0
    residual = -decay * float(w @ hidden) / (theta * float(hidden @ hidden))
    target = float(w @ hidden) - residual

    def mean(theta, w):
        losses = [0.5 * (xi * (w @ hidden) - target) ** 2 for xi in (0.0, 1.0)]
        return (1 - theta) * losses[0] + theta * losses[1] + 0.5 * decay * (w @ w)

    slope = 0.5 * (float(w @ hidden) - target) ** 2 - 0.5 * target**2
    assert slope < 0.0  # −β
    at = torch.tensor([theta, *w.tolist()], dtype=torch.float64)
    gradient = torch.autograd.functional.jacobian(lambda v: mean(v[0], v[1:]) - slope * v[0], at)
    assert gradient.abs().max() < 1e-15
    hessian = torch.autograd.functional.hessian(lambda v: mean(v[0], v[1:]) - slope * v[0], at).numpy()
    direction = np.array([0.0, *(w / w.norm()).tolist()])
    found = saddle.escape(theta, float(w.norm()), decay, float(direction @ hessian @ direction))
    assert np.linalg.eigvalsh(hessian)[0] == pytest.approx(found.curvature, rel=1e-12)
