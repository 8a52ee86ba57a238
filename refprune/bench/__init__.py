"""The benchmark: refprune beside PyTorch, by turns, after their results have been compared.

For others:

- `run`: cases compared, timed and written.
- `cases`: what is timed.
"""
