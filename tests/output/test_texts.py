"""TOML and JSON that people write or damage: a byte order mark is read, everything else is one sentence with the file."""

import os

import pytest

from refprune.cli import main as cli
from refprune.errors import InputError
from refprune.exchange import spec_of_file
from refprune.experiments import sweep_file
from refprune.output.texts import read_json, read_toml
from refprune.spec import zoo
from refprune.training import config

BAD = {
    "deep": "[" * 20_000,
    "digits": "9" * 5000,
    "cut": '{"a": ',
    "bytes": b"\xff\xfe\x00",
    "nothing": "",
}


@pytest.mark.parametrize("ending", ["json", "toml"])
@pytest.mark.parametrize("case", BAD)
def test_damaged_text_is_one_sentence(tmp_path, case, ending):
    path, content = tmp_path / f"a.{ending}", BAD[case]
    if ending == "toml" and isinstance(content, str):
        content = f"a = {content}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=rf"a\.{ending}: (cannot be read|not valid (JSON|TOML))"):
        (read_json if ending == "json" else read_toml)(path)


def test_a_byte_order_mark_is_no_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "e.toml").write_text("seed = 1\n", encoding="utf-8-sig")
    (tmp_path / "s.toml").write_text('experiment = "quickstart"\nseeds = [0]\n', encoding="utf-8-sig")
    (tmp_path / "s.json").write_text('{"format": "refprune-network-1"}', encoding="utf-8-sig")
    assert config.load("e.toml").seed == 1
    assert len(sweep_file.load_sweep(tmp_path / "s.toml").settings) == 1
    with pytest.raises(InputError, match=r"s\.json"):
        spec_of_file.network_for("s.json", {})


def test_folders_and_pipes_are_no_texts(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(InputError, match="is no regular file"):
            read_json(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", "9" * 400),
        ("training.epochs", "9" * 30),
        ("network.width", "1" + "0" * 30),
        ("network.width", "1000000"),
        ("network.sections", "100000000"),
        ("gates.learning_rate", "1e400"),
        ("gates.learning_rate", "9" * 400),
        ("gates.learning_rate", "nan"),
        ("seed", "9" * 5000),
        ("data.train_limit", "-" + "9" * 400),
    ],
)
def test_numbers_beyond_reason_are_refused(key, value):
    with pytest.raises(InputError):
        config.load("quickstart", [f"{key}={value}"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["audit", "--seed", "9" * 400],
        ["verify", "a:B", "--examples", "9" * 30],
        ["verify", "a:B", "--time-limit", "1e400"],
        ["verify", "a:B", "--time-limit", "nan"],
        ["run", "--threads", "1" + "0" * 30],
    ],
)
def test_numbers_of_the_command_line_have_a_range(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert "invalid" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["resnet-20:width=" + "9" * 400, "resnet-20:width=" + "9" * 5000, "resnet-20:width=[[[["])
def test_options_of_a_spec_have_a_range(text):
    with pytest.raises(InputError):
        spec_of_file.network_for(text, {})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("units", 10**30),
        ("units", -(10**30)),
        ("kernel", [10**9, 3]),
        ("padding", [[0, 0], [0, 10**12]]),
        ("stride", [10**20, 1]),
    ],
)
def test_whole_numbers_of_a_spec_have_a_range(tmp_path, field, value):
    """And the sentence names the file."""
    import json

    from refprune.spec import json_form

    plain = json_form.to_json(zoo.build("lenet-5", {}))
    layer = next(layer for layer in plain["layers"] if field in layer)
    layer[field] = value
    (tmp_path / "s.json").write_text(json.dumps(plain))
    with pytest.raises(InputError, match=r"s\.json"):
        spec_of_file.network_for(str(tmp_path / "s.json"), {})


def test_many_layers_are_checked_in_linear_time():
    from refprune.errors import SpecError
    from refprune.spec.layers import Activation, Dense
    from refprune.spec.network import Network

    assert len(Network((2,), (*[Activation("relu")] * 3000, Dense(2))).layers) == 3001
    with pytest.raises(SpecError, match="100,001 are more than 100,000"):
        Network((2,), (*[Activation("relu")] * 100_000, Dense(2)))
