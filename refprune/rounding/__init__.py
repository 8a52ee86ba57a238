"""How close is close enough: rounding noise of every function, and the tolerances that follow from it."""
