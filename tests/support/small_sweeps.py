"""Sweeps of a few steps."""

import textwrap

from refprune.experiments import sweep_file

TINY = """
experiment = "quickstart"
seeds = [0, 1]

[set]
unpruned = false
data.train_limit = 256
training.epochs = 2
training.backend = "oracle"
training.dtype = "float64"
network.sections = 2
network.width = 8
"""


def plan(tmp_path, text=TINY, name="tiny"):
    path = tmp_path / f"{name}.toml"
    path.write_text(textwrap.dedent(text))
    return sweep_file.load_sweep(path)


def quiet(text):
    pass
