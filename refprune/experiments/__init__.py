"""Whole runs in a folder: training, pruning of trained networks, sweeps, and their reports.

For others:

- `run`: an experiment from configuration to summary, and how it is resumed.
- `layer_pruning`: rounds of removing sections from a trained network and fine-tuning it.
- `sweep`: settings × seeds as processes.
- `sweep_file`: the file that describes a sweep.
- `cluster`: a sweep on the workers of a Dask scheduler.
- `report`: a run as one HTML page.
- `environment`: versions, machine, digests of code and data.
- `warmup`: every kernel of a run compiled beforehand.
"""
