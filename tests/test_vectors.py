"""Vectors: the stored set holds by two witnesses, what is damaged is seen, files are refused by name."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from refprune import cli
from refprune.conformance import vectors
from refprune.conformance.backend_adapter import BackendImplementation
from refprune.conformance.calls import InProcess
from refprune.conformance.levels import METHODS
from refprune.conformance.torch_adapter import TorchImplementation
from refprune.errors import InputError

STORED = Path(__file__).parents[1] / "validation" / "vectors"


def test_the_stored_vectors_hold_by_both_witnesses():
    checked = list(vectors.check(STORED, InProcess(TorchImplementation())))
    assert {vector.path.stem.rpartition("-")[0] for vector in checked} == set(METHODS)
    assert [row for row in checked if not row.holds] == []
    assert sum(row.second == "holds" for row in checked) >= 0.9 * len(checked)


@pytest.fixture
def gate(tmp_path):
    """A folder with the gate's vector alone."""
    for suffix in (".json", ".npz"):
        shutil.copy(STORED / f"gate-0{suffix}", tmp_path)
    return tmp_path


def test_a_damaged_value_is_seen_by_both_witnesses(gate):
    with np.load(gate / "gate-0.npz") as file:
        arrays = dict(file)
    arrays["want/dx"] = arrays["want/dx"] + 1e-9
    np.savez(gate / "gate-0.npz", **arrays)
    (row,) = vectors.check(gate, InProcess(BackendImplementation()))
    assert (row.oracle, row.second) == ("deviates", "deviates in dx")
    assert not row.holds


def test_what_is_read_is_what_was_written(tmp_path):
    assert vectors.export(tmp_path, per_method=1, seed=3) == len(METHODS)
    (first,) = vectors.draw(METHODS["conv2d"], 1, 3)
    again = next(v for v in vectors.read(tmp_path) if v.method.name == "conv2d").arguments
    assert again.keys() == first.keys()
    for name, value in first.items():
        assert type(again[name]) is type(value)
        np.testing.assert_array_equal(again[name], value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "not a vector of format refprune-vector-1"),
        ({"results": ["z"]}, "want/z"),
        ({"method": "x"}, "gate-0"),
    ],
)
def test_files_that_are_no_vectors_are_refused(gate, change, message):
    path = gate / "gate-0.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message):
        list(vectors.read(gate))


def test_the_command(gate, tmp_path, capsys):
    assert cli.main(["vectors", "check", str(gate)]) == 0
    assert "1 vectors, 1 hold, 1 of them by both witnesses" in capsys.readouterr().out
    assert cli.main(["vectors", "export", str(gate), "--per-method", "0"]) == 2
    (gate / "strange.txt").touch()
    assert cli.main(["vectors", "export", str(gate)]) == 2
    assert "holds other files (strange.txt)" in capsys.readouterr().err
