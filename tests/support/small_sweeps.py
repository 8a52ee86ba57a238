"""Sweeps of a few steps, and results written by hand."""

import textwrap

from refprune.experiments import sweep_file, sweep_results

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


def made(label, group, accuracies, macs, parameters, network="pruned"):
    """A setting's part of sweep.json; all networks start with 1,000 MACs and 500 parameters."""
    values = {key: [0.0] * len(macs) for key in sweep_results.QUANTITIES}
    values |= {"test_accuracy": accuracies, "macs_per_image": macs, "parameters": parameters}
    values |= {"macs_share": [m / 1000 for m in macs], "parameters_share": [p / 500 for p in parameters]}
    return {"label": label, "group": group, "set": {}, "seeds": list(range(len(macs))), "runs": {network: values}}


PAGE = {
    "name": "made",
    "experiment": "none",
    "failed": [],
    "results": [
        made("whole", "unpruned", [0.99, 0.97], [1000.0, 1000.0], [500.0, 500.0], "trained"),
        made("layers", "layers only", [0.95], [400.0], [100.0]),
        made("units 1", "units only", [0.96], [500.0], [90.0]),
        made("units 2", "units only", [0.94], [100.0], [200.0]),
    ],
}


def of_one_knob(values, key="objective.nu"):
    """Settings that differ in one key, with sections and without: two seeds each, larger values leave less."""
    results = []
    for value in values:
        result = made(f"{key} {value}", "", [0.9, 0.92], [1000 / (1 + value)] * 2, [500 / (1 + value), 500 / (1 + value)])
        result["runs"]["pruned"] |= {"sections": [3.0, 1.0], "sections_at_start": [4.0, 4.0]}
        result["runs"]["pruned"] |= {"units": [12.0, 8.0], "units_at_start": [40.0, 40.0]}
        results.append({**result, "set": {key: value, "unpruned": False}})
    return {**PAGE, "results": results}
