"""The baseline by magnitude: norms by loops, what goes, and a run that prunes once, fine-tunes, and resumes."""

import math

import numpy as np
import pytest
from counted_networks import GATED
from tolerance import assert_identical

from refprune.errors import InputError
from refprune.experiments import run
from refprune.gates.magnitude import filter_norms, keep_largest
from refprune.passes.parameters import initialise
from refprune.spec import cost
from refprune.spec.layers import Dense, UnitGate
from refprune.spec.network import Network
from refprune.streams import Streams
from refprune.training import config, loop

RULES = {
    "network": {"name": "lenet-5", "units": True},
    "data": {"name": "synthetic-digits", "train_limit": 96},
    "gates": {"initial": 1.0, "magnitude": 0.7, "magnitude_epoch": 1},
    "training": {"epochs": 2, "batch_size": 16, "threads": 1, "checkpoint_every": 2},
    "unpruned": False,
}


@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize("removed", [0.0, 0.4, 0.75, 1.0])
def test_the_smallest_filters_go(name, removed):
    network = GATED[name]
    params = initialise(network, Streams(4))
    norms, keep = filter_norms(network, params), keep_largest(network, params, removed)
    for group in network.gate_groups:
        if group.kind == "layer":
            assert keep[group.start]
            assert norms[group.start] == math.inf
            continue
        weight = params[f"{network.unit_links[group.name].producer}.weight"]
        want = [math.fsum(abs(v) for v in row.reshape(-1)) for row in weight]
        np.testing.assert_allclose(norms[group.slice], want, rtol=weight[0].size * 2.0**-52)
        n = len(want)
        order = sorted(range(n), key=lambda i: -want[i])
        assert set(np.flatnonzero(keep[group.slice])) == set(order[: max(n - math.floor(removed * n), 1)])


@pytest.mark.parametrize(("removed", "n", "gone"), [(0.58, 50, 29), (0.29, 100, 29), (0.69, 300, 207), (0.7, 3, 2)])
def test_shares_are_decimals(removed, n, gone):
    """0.58·50 is 28.999… in floating point; the promise is ⌊removed·n⌋."""
    network = Network((2,), (Dense(n), UnitGate(), Dense(2)))
    assert (~keep_largest(network, initialise(network, Streams(0)), removed)).sum() == gone


def test_equal_norms_go_from_the_end():
    network = GATED["vgg chain"]
    params = {key: np.ones_like(p) for key, p in initialise(network, Streams(0)).items()}
    assert keep_largest(network, params, 0.5).tolist() == [True, True, False, True, True, False, True, True, False, False]


def test_a_run_prunes_once_and_goes_on(tmp_path):
    """Widths 6, 15, 150 of 20, 50, 500; θ stays 1."""
    summary = run.run(config.from_dict(RULES), tmp_path / "a")["runs"]["pruned"]
    (removal,) = summary["removals"]
    assert removal["step"] == 6
    assert list(removal["removed"].values()) == [14, 35, 350]
    assert summary["parameters"] == 6 * 26 + 15 * (25 * 6 + 1) + 150 * (16 * 15 + 1) + 10 * 151
    assert summary["masked_compact_error"] <= 1.0
    assert summary["decisions"] == []
    assert cost.parameters(run.checkpoint.load(tmp_path / "a" / "pruned").state.network) == summary["parameters"]


@pytest.mark.parametrize("steps", [5, 6, 7, 9])
def test_a_run_that_was_cut_off_prunes_at_the_same_step(tmp_path, monkeypatch, steps):
    """Before, at and after the removal at step 6, and in the epoch behind it: the same bits at the end."""
    whole = run.run(config.from_dict(RULES), tmp_path / "whole")["runs"]["pruned"]
    step, done = loop.train_step, []

    def cut_off(*a, **k):
        done.append(None)
        if len(done) > steps:
            raise KeyboardInterrupt
        return step(*a, **k)

    monkeypatch.setattr(loop, "train_step", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run.run(config.from_dict(RULES), tmp_path / "cut")
    monkeypatch.undo()
    again = run.resume(tmp_path / "cut")["runs"]["pruned"]
    assert [row["step"] for row in again["removals"]] == [row["step"] for row in whole["removals"]] == [6]
    ends = [run.checkpoint.load(tmp_path / name / "pruned").state for name in ("whole", "cut")]
    for name, array in ends[0].params.items():
        assert_identical(name, ends[1].params[name], array)


def test_a_network_without_unit_gates_is_refused(tmp_path):
    rules = RULES | {"network": {"name": "lenet-5"}}
    with pytest.raises(InputError, match=r"gates\.magnitude: 0\.7 removes units, but the network has no unit gates"):
        run.run(config.from_dict(rules), tmp_path / "a")


@pytest.mark.parametrize("gates", [{"initial": 0.9}, {"floor": 0.1, "threshold": 0.2}, {"magnitude_epoch": 2}])
def test_what_does_not_go_together_is_refused(gates):
    with pytest.raises(InputError, match=r"gates\.magnitude needs gates\.initial = 1"):
        config.from_dict(RULES | {"gates": RULES["gates"] | gates})
