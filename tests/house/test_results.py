"""The rows that are kept in validation/studies belong to the studies as they stand, and the ledger tells them."""

import pytest

from refprune.experiments import sweep_file, sweep_rows
from refprune.experiments.config_digest import config_digest
from validation import tables

PAGES = (tables.STUDIES.parents[1] / "docs" / "ledger").glob("*.md")
LEDGER = [line for page in PAGES for line in page.read_text(encoding="utf-8").splitlines()]

#: Name → (study, rows).
KEPT = {
    name: (
        sweep_file.load_sweep(tables.STUDIES / f"{name}.toml"),
        sweep_rows.read_rows(tables.STUDIES / f"{name}.csv"),
    )
    for name in tables.names()
}


def test_there_are_some():
    assert len(KEPT) >= 6
    assert all(rows for _, rows in KEPT.values())


@pytest.mark.parametrize("name", KEPT)
def test_every_row_is_of_a_planned_run(name):
    """Else a sweep would not take it as done, and the ledger's command would not give the ledger's numbers."""
    study, rows = KEPT[name]
    planned = {(s.label, experiment.seed): config_digest(experiment) for s in study.settings for experiment in s.configs}
    assert [row for row in rows if planned.get((row.setting, row.seed)) != row.config_sha256] == []


@pytest.mark.parametrize("name", KEPT)
def test_every_run_has_the_rows_of_all_its_networks(name):
    study, rows = KEPT[name]
    path = tables.STUDIES / f"{name}.csv"
    found = [sweep_rows.runs_kept(path, rows, s.label, experiment) for s in study.settings for experiment in s.configs]
    assert sum(len(runs) for runs in found if runs is not None) == len(rows)


@pytest.mark.parametrize("name", KEPT)
def test_rows_stand_in_the_order_in_which_they_would_be_written(name, tmp_path):
    study, rows = KEPT[name]
    order = [(s.label, seed) for s in study.settings for seed in s.seeds]
    assert rows == sorted(rows, key=lambda row: order.index((row.setting, row.seed)))
    sweep_rows.write_rows(tmp_path / "rows.csv", rows)
    assert (tmp_path / "rows.csv").read_bytes() == (tables.STUDIES / f"{name}.csv").read_bytes()


@pytest.mark.parametrize("name", KEPT)
def test_its_table_stands_in_the_ledger(name):
    """Line after line, as `python -m validation.tables` prints it."""
    printed = tables.table(name)
    starts = [i for i, line in enumerate(LEDGER) if line == printed[0] and LEDGER[i : i + len(printed)] == printed]
    assert len(starts) == 1
