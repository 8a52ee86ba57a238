"""Whole runs in a folder: training, pruning of trained networks, sweeps, and their reports."""
