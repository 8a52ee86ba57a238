"""The benchmark: refprune beside PyTorch, by turns, after their results have been compared."""
