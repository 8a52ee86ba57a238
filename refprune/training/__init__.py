"""Training W and θ at once: configuration, state, steps, removals, the decision of every gate at the end."""
