"""The command line on a tiny data set."""

import pytest

from refprune.cli import main as cli
from refprune.data import dataset, digits, sets

TINY = dataset.Dataset("synthetic-digits", *digits.generate(51, 20, 0), digits.CLASSES)
SET = [
    f"--set={override}"
    for override in (
        "network.sections=3",
        "network.width=6",
        "training.batch_size=8",
        "training.epochs=3",
        "training.backend=oracle",
        "training.log_every=1",
        "gates.learning_rate=0.3",
        "objective.beta=0.1",
    )
]


@pytest.fixture
def tiny_data(monkeypatch):
    load = sets.load
    monkeypatch.setattr(sets, "load", lambda name, folder=None: TINY if name == TINY.name else load(name, folder))


@pytest.fixture
def command(capsys, tmp_path, monkeypatch):
    """Run `refprune ARGUMENTS` in an empty folder → (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REFPRUNE_DATA", raising=False)

    def run(*arguments):
        try:
            code = cli.main([str(a) for a in arguments])
        except SystemExit as stop:  # argparse
            code = stop.code
        return (code, *capsys.readouterr())

    return run
