"""The oracle: every function of a layer in NumPy, its vector-Jacobian product below it."""
