"""A step along one gate, for tests of the estimators."""

U = 2.0**-53


def moved(theta, g, value):
    """θ with another value of gate g."""
    other = theta.copy()
    other[g] = value
    return other
