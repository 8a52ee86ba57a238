"""What `refprune verify` judges: the protocol of an implementation, and the whole method in PyTorch and in JAX."""
