"""A mistake in every method, through the command line: each is found, and every report is written."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import wrong_adapter

from refprune.cli import main as cli
from refprune.conformance import campaign
from refprune.conformance.levels import METHODS, SAMPLED


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(campaign, "SHRINKING", 0.2)


def verify(tmp_path, name, *options):
    reports = {kind: tmp_path / f"report.{kind}" for kind in ("html", "json", "xml")}
    written = ["--report", reports["html"], "--json", reports["json"], "--junit", reports["xml"], "--failures", tmp_path / "f"]
    code = cli.main(["verify", f"{wrong_adapter.__file__}:{name}", *map(str, written), *options])
    found = {m["method"]: m for m in json.loads(reports["json"].read_text())["methods"]}
    return code, found, reports


def test_a_mistake_in_every_method_is_found_and_every_report_is_written(tmp_path, capsys):
    code, found, reports = verify(tmp_path, "Wrong", "--examples", str(2 * len(METHODS | SAMPLED)))
    assert code == 1
    assert {name: m["verdict"] for name, m in found.items()} == dict.fromkeys(METHODS | SAMPLED, "DEVIATES")
    suite = ElementTree.fromstring(reports["xml"].read_bytes())
    assert (suite.get("failures"), suite.get("errors")) == (str(len(METHODS | SAMPLED)), "0")
    page, printed = reports["html"].read_text(), capsys.readouterr().out
    for name in METHODS | SAMPLED:
        assert name in page
        assert f"{name}: {found[name]['findings'][0]['kind']}" in printed
    scripts, vectors = ({p.stem for p in (tmp_path / "f").rglob(pattern)} for pattern in ("*.py", "*.npz"))
    assert len(scripts) == len(METHODS | SAMPLED)
    assert scripts - vectors == {s for s in scripts if s.startswith("theta_sample")}


def test_random_estimates_that_are_wrong_end_in_a_report(tmp_path):
    """A script for what no vector can hold; the vectors of the folder, if any, can be asked again."""
    code, found, _ = verify(tmp_path, "Drawn", "--examples", "4", "--level", "theta_estimate,theta_sample")
    assert code == 1
    assert {m["verdict"] for name, m in found.items() if name.startswith("theta_")} == {"DEVIATES"}
    for script in (tmp_path / "f").glob("*.py"):
        exec(compile(script.read_text(), script.name, "exec"), {})
    assert not list(Path(tmp_path / "f").rglob("*.npz"))
