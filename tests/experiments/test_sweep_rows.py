"""What is kept of runs: rows beside a sweep's file, which belong to a planned run by the digest of its configuration."""

import dataclasses
import datetime
import hashlib
import json
import shutil
from concurrent.futures import Executor

import pytest
from small_sweeps import TINY, plan, quiet

from refprune.cli import main as cli
from refprune.errors import InputError
from refprune.experiments import environment, sweep, sweep_file, sweep_rows, sweep_tables
from refprune.experiments.config_digest import config_digest
from refprune.experiments.sweep_results import QUANTITIES
from refprune.spec import zoo
from refprune.training import config

ONE = TINY.replace("[0, 1]", "[0]")
SETTINGS = "[grid]\nobjective.beta = [0.0, 1.0]\n"


class Refusing(Executor):
    """Runs nothing: what is not done counts as failed."""

    def submit(self, *args, **options):
        raise RuntimeError("not in this test")


# Digests ------------------------------------------------------------------------------------------------------------------


def changed(**tables):
    base = {"seed": 3, "network": {"name": "residual-mlp", "width": 32}, "gates": {"protect": ["section1"]}}
    return config.from_dict({key: base.get(key, {}) | t if isinstance(t, dict) else t for key, t in (base | tables).items()})


def test_the_digest_is_of_what_is_not_at_its_default():
    """So that whoever has the configuration can compute it without refprune."""
    text = '{"gates":{"protect":["section1"]},"network":{"name":"residual-mlp","width":32},"seed":3}'
    assert config_digest(changed()) == hashlib.sha256(text.encode()).hexdigest()
    text = '{"network":{"name":"residual-mlp"}}'
    assert config_digest(config.Config()) == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    "tables",
    [
        {"name": "other"},
        {"training": {"threads": 2, "log_every": 1, "checkpoint_every": 7}},
        {"network": {"width": 32, "sections": 12, "gate_place": "path"}},
        {"objective": {"beta": 0, "alpha": 0.5}},
    ],
)
def test_what_changes_no_result_changes_no_digest(tables):
    assert config_digest(changed(**tables)) == config_digest(changed())


@pytest.mark.parametrize(
    "tables",
    [
        {"seed": 4},
        {"unpruned": False},
        {"from_scratch": True},
        {"network": {"width": 33}},
        {"network": {"name": "residual-mlp-bn"}},
        {"gates": {"protect": []}},
        {"gates": {"protect": ["section1", "section2"]}},
        {"training": {"dtype": "float64"}},
        {"data": {"train_limit": 9}},
    ],
)
def test_what_changes_results_changes_the_digest(tables):
    assert config_digest(changed(**tables)) != config_digest(changed())


def test_every_key_of_the_schema_but_those_named_is_in_the_digest():
    """Every field is set to another value, unchecked, one at a time."""
    other = {
        bool: lambda v: not v,
        int: lambda v: v + 1,
        float: lambda v: v + 1.0,
        str: lambda v: v + "x",
        tuple: lambda v: ("x",),
    }
    plain = config_digest(config.Config())
    unseen = []
    for part in dataclasses.fields(config.Config):
        value = getattr(config.Config(), part.name)
        if part.name == "network":
            continue
        if not dataclasses.is_dataclass(value):
            experiment = dataclasses.replace(config.Config(), **{part.name: other[type(value)](value)})
            unseen += [part.name] if config_digest(experiment) == plain else []
            continue
        for field in dataclasses.fields(value):
            one = getattr(value, field.name)
            table = dataclasses.replace(value, **{field.name: other[type(one)](one)})
            experiment = dataclasses.replace(config.Config(), **{part.name: table})
            unseen += [f"{part.name}.{field.name}"] if config_digest(experiment) == plain else []
    assert sorted(unseen) == ["name", "training.checkpoint_every", "training.log_every", "training.threads"]


def test_options_of_a_network_may_be_lists():
    name = next(name for name, build in zoo.NETWORKS.items() if build is zoo.resnet_cifar_keras)
    default, other = ({"network": {"name": name, "blocks": blocks}} for blocks in ([9, 9, 9], [1, 9, 9]))
    plain = config_digest(config.from_dict({"network": {"name": name}}))
    assert config_digest(config.from_dict(default)) == plain
    assert config_digest(config.from_dict(other)) != plain


# A sweep goes on from rows ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The sweep's folder, its file of rows and its plan, after two settings of one seed have run with --keep."""
    folder = tmp_path_factory.mktemp("kept")
    found = plan(folder, ONE + SETTINGS)
    rows = sweep_rows.rows_file(folder / "tiny.toml")
    sweep.run_sweep(found, folder / "out", kept=rows, keep_as="M", say=quiet)
    return folder / "out", rows, found


def test_rows_tell_what_the_runs_were(made):
    out, path, found = made
    rows = sweep_rows.read_rows(path)
    assert [(row.setting, row.network, row.seed, row.machine) for row in rows] == [
        ("beta 0.0", "pruned", 0, "M"),
        ("beta 1.0", "pruned", 0, "M"),
    ]
    page = sweep_tables.read_results(out)
    for row, result, setting in zip(rows, page["results"], found.settings, strict=True):
        assert {key: [value] for key, value in row.values.items()} == result["runs"]["pruned"]
        assert row.config_sha256 == config_digest(setting.configs[0])
        assert row.code_sha256 == environment.code_digest()
        ended = (out / result["label"].replace(" ", "-") / "seed-0" / "summary.json").stat().st_mtime
        assert row.date == datetime.datetime.fromtimestamp(ended, datetime.UTC).date()


def test_a_run_with_a_row_is_done_on_any_machine(made, tmp_path):
    """In another folder nothing runs, and the page and its tables are the same."""
    out, path, found = made
    said = []
    outcomes = sweep.run_sweep(found, tmp_path / "other", executor=Refusing(), kept=path, say=said.append)
    assert [outcome.problem for outcome in outcomes] == ["", ""]
    assert said[0] == f"tiny: 2 runs, 2 of them done; in {tmp_path / 'other'}"
    assert said[1] == f"2 of 2 kept as rows in {path}"
    assert (tmp_path / "other" / "sweep.json").read_bytes() == (out / "sweep.json").read_bytes()
    assert sweep_tables.text(tmp_path / "other") == sweep_tables.text(out)


def test_only_what_has_no_row_is_run(made, tmp_path):
    """Of another configuration than any row's there is one setting; its row joins the others in the sweep's order."""
    _, path, _ = made
    shutil.copy(path, tmp_path / "tiny.csv")
    found = plan(tmp_path, ONE + "[grid]\nobjective.beta = [0.0, 0.5, 1.0]\n")
    said = []
    outcomes = sweep.run_sweep(found, tmp_path / "out", kept=tmp_path / "tiny.csv", keep_as="N", say=said.append)
    assert said[1].startswith("2 of 3 kept as rows")
    assert [outcome.summary is None for outcome in outcomes] == [True, False, True]
    assert [(row.setting, row.machine) for row in sweep_rows.read_rows(tmp_path / "tiny.csv")] == [
        ("beta 0.0", "M"),
        ("beta 0.5", "N"),
        ("beta 1.0", "M"),
    ]
    assert not list(tmp_path.glob("*.part"))


def test_rows_of_another_configuration_do_not_count(made, tmp_path):
    _, path, _ = made
    found = plan(tmp_path, ONE.replace("epochs = 2", "epochs = 3") + SETTINGS)
    said = []
    outcomes = sweep.run_sweep(found, tmp_path / "out", executor=Refusing(), kept=path, say=said.append)
    assert [outcome.problem for outcome in outcomes] == ["RuntimeError: not in this test"] * 2
    assert said[1].startswith("0 of 2 kept as rows")


def test_a_new_configuration_takes_the_place_of_the_old_row(made, tmp_path):
    _, path, _ = made
    shutil.copy(path, tmp_path / "tiny.csv")
    found = plan(tmp_path, ONE.replace("epochs = 2", "epochs = 3") + "[grid]\nobjective.beta = [0.0]\n")
    sweep.run_sweep(found, tmp_path / "out", kept=tmp_path / "tiny.csv", keep_as="N", say=quiet)
    rows = sweep_rows.read_rows(tmp_path / "tiny.csv")
    assert [(row.setting, row.machine) for row in rows] == [("beta 0.0", "N"), ("beta 1.0", "M")]


def test_without_keep_nothing_is_written_beside_the_file(made, tmp_path, capsys):
    out, _, _ = made
    shutil.copytree(out, tmp_path / "out")
    plan(tmp_path, ONE + SETTINGS)
    command = ["sweep", str(tmp_path / "tiny.toml"), "--out", str(tmp_path / "out")]
    assert cli.main(command) == 0
    assert not (tmp_path / "tiny.csv").exists()
    assert "kept as rows" not in capsys.readouterr().out
    assert cli.main([*command, "--keep", "Z"]) == 0  # what has ended already is kept, too
    assert [row.machine for row in sweep_rows.read_rows(tmp_path / "tiny.csv")] == ["Z", "Z"]
    before = (tmp_path / "tiny.csv").read_bytes()
    assert cli.main([*command, "--keep", "Y"]) == 0
    assert (tmp_path / "tiny.csv").read_bytes() == before  # a run has its rows once
    assert cli.main([*command, "--keep", " "]) == 2


def test_tables_and_pictures_have_kept_and_new_runs(made, tmp_path):
    """Curves are drawn of the runs that have them."""
    _, path, _ = made
    shutil.copy(path, tmp_path / "tiny.csv")
    plan(tmp_path, ONE + SETTINGS)
    assert cli.main(["sweep", str(tmp_path / "tiny.toml"), "--out", str(tmp_path / "out")]) == 0
    assert sorted(p.name for p in (tmp_path / "out").glob("*.svg")) == ["accuracy.svg", "knob.svg"]
    rows = sweep_rows.read_rows(tmp_path / "tiny.csv")
    sweep_rows.write_rows(tmp_path / "tiny.csv", rows[1:])
    assert cli.main(["sweep", str(tmp_path / "tiny.toml"), "--out", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out").glob("*.svg"))) == 4
    page = sweep_tables.read_results(tmp_path / "out")
    assert [result["seeds"] for result in page["results"]] == [[0], [0]]


def test_a_renamed_setting_finds_its_row(made, tmp_path):
    _, path, _ = made
    renamed = plan(tmp_path, ONE + "[[variants]]\nname = 'weak'\nobjective.beta = 0.0\n")
    (outcome,) = sweep.run_sweep(renamed, tmp_path / "out", executor=Refusing(), kept=path, say=quiet)
    assert outcome.runs is not None


def test_a_run_with_a_row_of_one_network_only_is_refused(made, tmp_path):
    """A run that compares has rows of all its networks, or of none."""
    _, path, _ = made
    found = plan(tmp_path, ONE.replace("unpruned = false", "from_scratch = true"))
    (row, _) = sweep_rows.read_rows(path)
    mine = row._replace(setting="as it is", config_sha256=config_digest(found.settings[0].configs[0]))
    for networks, missing in ((("pruned",), "unpruned"), (("pruned", "unpruned"), "from-scratch"), (("unpruned",), "pruned")):
        sweep_rows.write_rows(tmp_path / "tiny.csv", [mine._replace(network=network) for network in networks])
        with pytest.raises(InputError, match=rf"tiny\.csv, column network: 'as it is', seed 0 has no row of {missing}"):
            sweep.run_sweep(found, tmp_path / "out", kept=tmp_path / "tiny.csv", say=quiet)


# Damaged rows -------------------------------------------------------------------------------------------------------------


def test_what_is_read_is_what_was_written(made, tmp_path):
    rows = [row._replace(setting='a, "b" ν\nc', code_sha256="") for row in sweep_rows.read_rows(made[1])][:1]
    sweep_rows.write_rows(tmp_path / "rows.csv", rows)
    assert sweep_rows.read_rows(tmp_path / "rows.csv") == rows
    assert sweep_rows.read_rows(tmp_path / "none.csv") == []


@pytest.mark.parametrize(
    ("column", "cell", "message"),
    [
        ("setting", "", "must be the label of a setting, got ''"),
        ("network", "other", "must be one of pruned, trained, unpruned, from-scratch, got 'other'"),
        ("seed", "1.5", "must be a whole number, got '1.5'"),
        ("seed", "-1", "must be a whole number"),
        *((quantity, "x", "must be a finite number, got 'x'") for quantity in QUANTITIES),
        ("seconds", "nan", "must be a finite number"),
        ("test_loss", "inf", "must be a finite number"),
        ("steps", "", "must be a finite number"),
        ("config_sha256", "", "must be 64 hexadecimal digits, got ''"),
        ("config_sha256", "A" * 64, "must be 64 hexadecimal digits"),
        ("code_sha256", "0" * 63, "must be 64 hexadecimal digits or empty"),
        ("machine", " ", "must be the name of a machine"),
        ("date", "30.11.2026", "must be a day, as in 2026-11-30, got '30.11.2026'"),
    ],
)
def test_a_damaged_cell_is_named(made, tmp_path, column, cell, message):
    head, first, second = made[1].read_text().splitlines()
    cells = second.split(",")
    cells[sweep_rows.COLUMNS.index(column)] = cell
    path = tmp_path / "rows.csv"
    path.write_text("\n".join([head, first, ",".join(cells)]) + "\n")
    with pytest.raises(InputError) as found:
        sweep_rows.read_rows(path)
    assert str(found.value).startswith(f"{path}, line 3, column {column}: {message}")


@pytest.mark.parametrize("column", sweep_rows.COLUMNS)
def test_a_missing_column_is_named(made, tmp_path, column):
    at = sweep_rows.COLUMNS.index(column)
    lines = [line.split(",") for line in made[1].read_text().splitlines()]
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(",".join(cells[:at] + cells[at + 1 :]) for cells in lines))
    with pytest.raises(InputError, match=rf"rows\.csv, line 1, column {column}: is missing"):
        sweep_rows.read_rows(path)


def test_other_damage_is_named(made, tmp_path):
    head, first, second = made[1].read_text().splitlines()
    path = tmp_path / "rows.csv"
    for lines, message in (
        ([], "line 1, column setting: is missing"),
        ([head + ",more", first + ",1"], "line 1, column more: is not known here"),
        ([head.replace("network,seed", "seed,network"), first], "line 1, column seed: is not known here"),
        ([head, first, second.rpartition(",")[0]], "line 3, column date: is missing: the line has 23 of 24 cells"),
        ([head, first, "", second], "line 3, column setting: is missing: the line has 0 of 24 cells"),
        ([head, first + ",1"], "line 2, column date: is not the last: the line has 25 cells, 24 are allowed"),
        ([head, first, first], "line 3, column setting: 'beta 0.0', pruned, seed 0 stands in line 2, too"),
        ([head, '"' + first], "line 2: is no CSV"),
    ):
        path.write_text("\n".join(lines))
        with pytest.raises(InputError) as found:
            sweep_rows.read_rows(path)
        assert str(found.value).startswith(f"{path}, {message}")
    path.write_bytes(b"\xff")
    with pytest.raises(InputError, match="cannot be read"):
        sweep_rows.read_rows(path)


def test_the_command_refuses_damaged_rows(tmp_path, capsys):
    plan(tmp_path)
    (tmp_path / "tiny.csv").write_text("setting\n")
    assert cli.main(["sweep", str(tmp_path / "tiny.toml"), "--out", str(tmp_path / "out")]) == 2
    assert "tiny.csv, line 1, column network: is missing" in capsys.readouterr().err


def test_a_folder_without_its_environment_is_not_kept(made, tmp_path):
    out, _, found = made
    shutil.copytree(out, tmp_path / "out")
    path = tmp_path / "out" / "beta-0.0" / "seed-0" / "environment.json"
    for content in (None, "[]", "{"):
        path.unlink() if content is None else path.write_text(content)
        with pytest.raises(InputError, match=r"environment\.json: cannot be read"):
            sweep.run_sweep(found, tmp_path / "out", kept=tmp_path / "tiny.csv", keep_as="M", say=quiet)
    path.write_text(json.dumps({}))
    sweep.run_sweep(found, tmp_path / "out", kept=tmp_path / "tiny.csv", keep_as="M", say=quiet)
    assert [row.code_sha256 for row in sweep_rows.read_rows(tmp_path / "tiny.csv")] == ["", environment.code_digest()]


def test_jobs_are_one_plan(tmp_path):
    """A job's configuration is that of its setting and seed."""
    found = plan(tmp_path, TINY + SETTINGS)
    jobs = sweep_file.jobs(found, tmp_path / "out")
    expected = [s.configs[i] for i in range(2) for s in found.settings]
    assert [job.config for job in jobs] == expected
