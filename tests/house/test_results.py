"""Results that are kept in validation/results belong to the recipes as they stand, and the ledger tells them."""

import json
import shutil
from concurrent.futures import Executor
from pathlib import Path

import pytest

from refprune.experiments import sweep, sweep_file
from refprune.training import config
from validation import tables

PAGES = (tables.HERE.parent / "docs" / "ledger").glob("*.md")
LEDGER = {line for page in PAGES for line in page.read_text(encoding="utf-8").splitlines()}


class Refusing(Executor):
    """Runs nothing: what has not ended counts as failed."""

    def submit(self, *args, **options):
        raise RuntimeError("not in a test")


def planned(name):
    return sweep_file.load_sweep(tables.HERE / "sweeps" / f"{name}.toml")


def test_there_are_some():
    folders = [path.name for path in tables.RESULTS.iterdir() if path.is_dir()]
    assert sorted(folders) == tables.names() != []


@pytest.mark.parametrize("name", tables.names())
def test_they_are_of_the_recipe_as_it_stands(name):
    """Else a sweep would refuse to go on, and the ledger's command would not give the ledger's numbers."""
    jobs = {Path(job.directory): job for job in sweep_file.jobs(planned(name), tables.RESULTS / name)}
    there = [path.parent for path in (tables.RESULTS / name).glob("*/*/config.toml")]
    assert there
    for folder in there:
        assert config.to_toml(config.load(str(folder / "config.toml"))) == jobs[folder.absolute()].configuration
        assert (folder / "environment.json").exists()


@pytest.mark.parametrize("name", tables.names())
def test_a_sweep_goes_on_from_them(name, tmp_path):
    """What has ended is not done again, and the page made from the runs' summaries is the one that is kept."""
    kept = json.loads((tables.RESULTS / name / "sweep.json").read_text(encoding="utf-8"))
    shutil.copytree(tables.RESULTS / name, tmp_path / "out")
    sweep.run_sweep(planned(name), tmp_path / "out", executor=Refusing(), say=lambda line: None)
    made = json.loads((tmp_path / "out" / "sweep.json").read_text(encoding="utf-8"))
    assert made["results"] == kept["results"]
    assert any(result["seeds"] for result in kept["results"])


@pytest.mark.parametrize("name", tables.names())
def test_they_stand_in_the_ledger(name):
    for line in tables.table(name):
        assert line in LEDGER
