"""The whole method in JAX, to start an adapter from. JAX is imported by the files inside, on use."""
