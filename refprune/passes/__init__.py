"""Running a network: parameters, forward, backward, the loss of a batch, prediction."""
