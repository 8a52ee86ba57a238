"""Networks out, and in again: what the files compute against the oracle (E2), round trips, files that are refused."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch_network import odd_network
from torch_zoo import torch_imagenet

from refprune.backend import ORACLE
from refprune.cli import main as cli
from refprune.conformance.strategies import networks as ns
from refprune.errors import InputError
from refprune.exchange import export, load, onnx_file, torch_file
from refprune.exchange.trained import Trained
from refprune.gates.surgery import prune
from refprune.passes.parameters import initial_statistics, initialise
from refprune.passes.tape import forward
from refprune.spec import json_form, zoo
from refprune.spec.layers import (
    Activation,
    AveragePool,
    BatchNorm,
    Conv,
    Dense,
    Flatten,
    GlobalAveragePool,
    MaxPool,
    Section,
    UnitGate,
)
from refprune.spec.network import Network
from refprune.streams import Streams
from refprune.training import checkpoint
from refprune.training.state import ungated

WRITERS = {"onnx": onnx_file, "torch": torch_file}


def trained(network, seed=0):
    """Float32 weights, gains and statistics off their special values; a third of the gates closed, the others fixed."""
    keep = np.arange(network.gate_count) % 3 != 1
    for group in network.gate_groups:
        keep[group.start] = True
    smaller = prune(network, keep, fix=keep).network
    streams = Streams(seed)
    params = initialise(smaller, streams, dtype="float32")
    params = {n: (p + 0.1 * streams.normal(f"off/{n}", 0, p.shape)).astype(np.float32) for n, p in params.items()}
    statistics = {
        n: (0.5 + streams.uniform(n, 0, s) if n.endswith("variance") else 0.3 * streams.normal(n, 0, s)).astype(np.float32)
        for n, s in smaller.statistics_shapes.items()
    }
    return Trained(smaller, params, statistics)


NETWORKS = {
    "lenet-5": lambda: zoo.build("lenet-5", {"units": True}),
    "residual-mlp": lambda: zoo.build("residual-mlp", {"sections": 3, "width": 5}),
    "resnet-20": lambda: zoo.build("resnet-20", {"width": 3, "gates": True, "units": True}),
    "vgg-16-residual": lambda: zoo.build("vgg-16-residual", {"width": 4, "shortcut": "B"}),
    "resnet-18": lambda: zoo.build("resnet-18", {"width": 2, "size": 33, "gates": True, "units": True}),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", WRITERS)
def test_files_compute_what_the_oracle_does(name, kind, tmp_path):
    check = export.write_checked(tmp_path / "model.bin", trained(NETWORKS[name]()), kind)
    assert check.error <= 1.0


@pytest.mark.parametrize("kind", WRITERS)
def test_odd_layers(kind, tmp_path):
    assert export.write_checked(tmp_path / "odd.bin", trained(odd_network()), kind).error <= 1.0


def test_torch_refuses_what_it_lacks_and_pads_on_one_side(tmp_path):
    pool = AveragePool((2, 2), (2, 2), ((1, 0), (0, 0)), count_padding=False)
    with pytest.raises(InputError, match="PyTorch has no average pool with padding"):
        torch_file.write(tmp_path / "odd.pt", trained(Network((2, 5, 5), (pool, Flatten(), Dense(2)))))
    conv = Conv(3, (3, 2), (2, 1), ((2, 0), (0, 1)))
    pool = MaxPool((2, 2), (1, 1), ((1, 0), (0, 1)))
    network = Network((2, 7, 6), (conv, BatchNorm(), Activation("gelu"), pool, Flatten(), Dense(2)))
    for kind in WRITERS:
        assert export.write_checked(tmp_path / f"one.{kind}", trained(network), kind).error <= 1.0


@given(case=ns.cases(gates=("ones",), train=False), kind=st.sampled_from(sorted(WRITERS)))
def test_random_networks(case, kind, tmp_path_factory):
    """Every layer and shortcut, paths on some channels; conventions that PyTorch lacks in evaluation are refused."""
    model = trained(ungated(case.network), case.seed % 2**31)
    path = tmp_path_factory.mktemp("export") / "model.bin"
    try:
        check = export.write_checked(path, model, kind)
    except InputError as error:
        assert kind == "torch" and "PyTorch has no" in str(error)  # noqa: PT017, PT018
        return
    assert check.error <= 1.0


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("mistake", ["weights of another", "statistics swapped"])
def test_a_wrong_file_is_noticed(kind, mistake, tmp_path):
    """Tests the tests: `compare` sees a file that holds something else."""
    model = trained(NETWORKS["resnet-20"]())
    path = tmp_path / "model.bin"
    name = "conv1.weight"
    params = model.params | {name: model.params[name] * np.float32(1.001)}
    statistics = {n: model.statistics[n.replace("variance", "mean")] for n in model.statistics}
    wrong = model._replace(params=params) if mistake.startswith("weights") else model._replace(statistics=statistics)
    WRITERS[kind].write(path, wrong)
    assert export.compare(model, lambda x: WRITERS[kind].outputs(path, x)).error > 1.0


def test_the_built_module_needs_nothing_but_pytorch(tmp_path):
    torch_file.write(tmp_path / "net.pt", trained(NETWORKS["resnet-20"]()))
    code = "import sys, torch, net; m = net.build(); m.load_state_dict(torch.load('net.pt', weights_only=True))\n"
    code += "print(tuple(m.eval()(torch.zeros(2, 3, 32, 32)).shape), 'refprune' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "(2, 10) False"


# npz ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_npz_round_trip(name, tmp_path):
    model = trained(NETWORKS[name]())
    export.write_npz(tmp_path / "w.npz", model)
    again = load.load(tmp_path / "w.npz")
    assert again.network == model.network
    for mine, theirs in ((again.params, model.params), (again.statistics, model.statistics)):
        assert list(mine) == list(theirs)
        for key, array in theirs.items():
            assert mine[key].dtype == array.dtype
            np.testing.assert_array_equal(mine[key], array)


def test_npz_says_what_the_network_was_trained_on(tmp_path):
    model = trained(NETWORKS["lenet-5"]())._replace(data="synthetic-digits", training_images=-12)
    export.write_npz(tmp_path / "w.npz", model)
    assert load.load(tmp_path / "w.npz")[3:] == ("synthetic-digits", -12, ())


@pytest.mark.parametrize("value", [np.nan, np.inf, 1j, "a"])
def test_npz_files_without_finite_numbers_are_refused(tmp_path, value):
    network = Network((2,), (Dense(2, name="here"),))
    export.write_npz(tmp_path / "w.npz", Trained(network, initialise(network, Streams(0)), {}))
    arrays = dict(np.load(tmp_path / "w.npz"))
    np.savez(tmp_path / "w.npz", **(arrays | {"here.bias": np.full(2, value)}))
    with pytest.raises(InputError, match=r"here\.bias: must be finite floating-point numbers"):
        load.load(tmp_path / "w.npz")


def test_damaged_npz_files_are_refused(tmp_path):
    path = tmp_path / "w.npz"
    with pytest.raises(InputError, match=r"w\.npz: is neither here nor"):
        load.load(path)
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"w\.npz: is by its first bytes none of the files"):
        load.load(path)
    np.savez(path, a=np.ones(2))
    with pytest.raises(InputError, match=r"w\.npz: a file of weights needs --spec"):
        load.load(path)
    export.write_npz(path, trained(NETWORKS["lenet-5"]()))
    arrays = dict(np.load(path))
    np.savez(path, **{k: v for k, v in arrays.items() if k != "conv1.weight"})
    with pytest.raises(InputError, match=r"needs an array conv1\.weight"):
        load.load(path)
    header = json.loads(str(arrays["spec"])) | {"format": "other"}
    np.savez(path, **(arrays | {"spec": np.array(json.dumps(header))}))
    with pytest.raises(InputError, match="expected format 'refprune-weights-1', found 'other'"):
        load.load(path)


# Coming in ---------------------------------------------------------------------------------------------------------------


def logits(model, x):
    return forward(model.network, ORACLE, model.params, x, statistics=model.statistics).output


def test_a_flipped_byte_is_read_or_refused(tmp_path):
    """Every 5th byte of a file of our own: no other error than InputError."""
    network = Network((2,), (Dense(2), BatchNorm(), Dense(3)))
    export.write_npz(tmp_path / "w.npz", trained(network))
    content, refused = (tmp_path / "w.npz").read_bytes(), 0
    for place in range(0, len(content), 5):
        (tmp_path / "w.npz").write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        try:
            load.load(tmp_path / "w.npz")
        except InputError:
            refused += 1
    assert refused > len(content) / 10


def test_a_state_dict_written_here_comes_back(tmp_path):
    model = trained(NETWORKS["vgg-16-residual"]())
    torch_file.write(tmp_path / "w.pt", model)
    (tmp_path / "w.json").write_text(json.dumps(json_form.to_json(model.network)))
    again = load.load(tmp_path / "w.pt", str(tmp_path / "w.json"))
    assert list(again.params) == list(model.params)
    for key, array in (model.params | model.statistics).items():
        np.testing.assert_array_equal((again.params | again.statistics)[key], array)


def torchvision_names(depth, module):
    """The state dict of test_zoo_residual's module under the names that torchvision gives to the same tensors."""
    blocks = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}[depth]
    stages = [f"layer{s + 1}.{b}" for s, count in enumerate(blocks) for b in range(count)]
    renamed = {}
    for key, value in module.state_dict().items():
        place, _, rest = key.partition(".")
        index = int(place) - 4
        if index < 0:
            renamed[f"{'conv1' if place == '0' else 'bn1'}.{rest}"] = value
        elif index >= len(stages):
            renamed[f"fc.{rest}"] = value
        else:
            part, number, name = rest.split(".")
            kind = ("conv", "bn")[int(number) % 3]
            inner = f"{kind}{int(number) // 3 + 1}" if part == "path" else f"downsample.{number}"
            renamed[f"{stages[index]}.{inner}.{name}"] = value
    return renamed


@pytest.mark.parametrize("depth", [18, 50])
def test_torchvisions_resnets_come_in(depth, tmp_path):
    """In the order in which torchvision defines them; the logits are PyTorch's."""
    torch.manual_seed(0)
    module = torch_imagenet(depth, 2, "3x3").double().eval()
    for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
        nn.init.normal_(norm.running_mean)
    torch.save(torchvision_names(depth, module), tmp_path / "r.pt")
    model = load.load(tmp_path / "r.pt", f"resnet-{depth}:width=2;size=33")
    assert export.compare(model, lambda x: module.float()(torch.from_numpy(x)).detach().numpy()).error <= 1.0


# The command -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    options = ["training.epochs=1", "training.threads=1", "data.train_limit=128", "network.sections=3", "unpruned=false"]
    settings = [part for option in options for part in ("--set", option)]
    assert cli.main(["run", "--out", str(folder), *settings, "--set", "gates.warmup_epochs=0"]) == 0
    return folder


def test_export_writes_and_checks(finished, tmp_path, capsys):
    paths = [tmp_path / name for name in ("a.npz", "a.onnx", "a.pt")]
    capsys.readouterr()
    assert cli.main(["export", str(finished), "--npz", str(paths[0]), "--onnx", str(paths[1]), "--torch", str(paths[2])]) == 0
    out = capsys.readouterr().out
    assert out.count("equal on 2 random inputs") == 3
    model = load.load(paths[0])
    x = np.random.default_rng(0).standard_normal((3, 1, 28, 28)).astype(np.float32)
    wide = model._replace(params={n: p.astype(np.float64) for n, p in model.params.items()})
    for writer, path in ((onnx_file, paths[1]), (torch_file, paths[2])):
        assert (writer.outputs(path, x).argmax(axis=1) == logits(wide, x.astype(np.float64)).argmax(axis=1)).all()


def test_what_pytorch_gets_comes_back(finished, tmp_path, capsys):
    """--spec writes what --spec reads: a state dict of the pruned network has the accuracy of the run."""
    weights, layers = tmp_path / "a.pt", tmp_path / "a.json"
    assert cli.main(["export", str(finished), "--torch", str(weights), "--spec", str(layers)]) == 0
    (tmp_path / "a.py").unlink()  # not needed for it
    source, back = (str(finished / "pruned"), (str(weights), "--spec", str(layers)))
    told = [tmp_path / name for name in ("run.json", "back.json")]
    common = ["--data", "synthetic-digits", "--clean", "--images", "50", "--backend", "oracle"]
    for arguments, path in (((source,), told[0]), (back, told[1])):
        assert cli.main(["evaluate", *arguments, *common, "--json", str(path)]) == 0
    (run,), (other,) = (json.loads(path.read_text()).values() for path in told)
    assert run == other
    assert cli.main(["export", str(finished), "--spec", str(tmp_path / "layers")]) == 2
    assert "must end in .json" in capsys.readouterr().err


def test_export_says_what_is_missing(finished, tmp_path, capsys, monkeypatch):
    assert cli.main(["export", str(finished)]) == 2
    assert "at least one of --npz, --onnx, --torch" in capsys.readouterr().err
    assert cli.main(["export", str(finished), "--torch", str(tmp_path / "a.py")]) == 2
    assert "another ending than .py" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "refprune.exchange.onnx_file", None)
    monkeypatch.delattr(export, "onnx_file", raising=False)
    assert cli.main(["export", str(finished), "--onnx", str(tmp_path / "a.onnx")]) == 2
    assert "pip install -e '.[exchange]'" in capsys.readouterr().err


def test_a_run_that_has_not_ended_is_not_exported(finished, monkeypatch):
    """Also one without undecided gates: its running statistics are those of training."""
    state = dataclasses.replace(checkpoint.load(finished / "pruned").state, finished=False)
    assert not state.network.gate_count
    monkeypatch.setattr(checkpoint, "load", lambda _: checkpoint.Checkpoint(state, {}))
    with pytest.raises(InputError, match="its run has not ended; finish it first"):
        export.read_run(finished)


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_what_no_file_can_hold_is_refused(kind, tmp_path):
    """A section that lost all its units and keeps its constant: a convolution without channels."""
    section = Section((Conv(2, (1, 1)), UnitGate(), Conv(3, (1, 1))), gate=False)
    network = Network((3, 2, 2), (section, GlobalAveragePool(), Dense(2)))
    cut = prune(network, np.zeros(2, dtype=bool), empty="keep_constant")
    params = cut.arrays(initialise(network, Streams(0)))
    with pytest.raises(InputError, match=r"section1\.conv\d: a convolution that has lost all its channels"):
        export.write_checked(tmp_path / f"a.{kind}", Trained(cut.network, params, {}), kind)
    assert not list(tmp_path.iterdir())


def test_a_norm_without_channels_is_nothing_for_pytorch(tmp_path):
    section = Section((Dense(2), BatchNorm(), Activation("relu"), UnitGate(), Dense(3)), gate=False)
    cut = prune(Network((3,), (section, Dense(2))), np.zeros(2, dtype=bool), empty="keep_constant")
    arrays = (cut.arrays(make(cut.network)) for make in (lambda n: initialise(n, Streams(0)), initial_statistics))
    model = Trained(cut.network, *arrays)
    with pytest.raises(InputError, match=r"section1\.batchnorm1: a batch-norm without channels cannot run in PyTorch"):
        export.write_checked(tmp_path / "a.pt", model, "torch")
    assert not list(tmp_path.iterdir())
    for kind in ("npz", "onnx"):
        assert export.write_checked(tmp_path / f"a.{kind}", model, kind).error <= 1.0


def test_a_run_that_is_not_there_is_told_from_those_that_are(finished):
    with pytest.raises(InputError, match=r"has no run 'unpruned'; there are pruned \(--of\)"):
        export.read_run(finished, "unpruned")


def test_files_of_others_are_not_overwritten(finished, tmp_path, capsys):
    mine = tmp_path / "a.py"
    mine.write_text("# mine\n")
    assert cli.main(["export", str(finished), "--torch", str(tmp_path / "a.pt")]) == 2
    assert "is there and not from here" in capsys.readouterr().err
    assert mine.read_text() == "# mine\n"
    same = str(tmp_path / "same")
    assert cli.main(["export", str(finished), "--npz", same, "--onnx", same]) == 2
    assert "--npz and --onnx: are the same file" in capsys.readouterr().err
    assert cli.main(["export", str(finished), "--npz", str(tmp_path / "b.py"), "--torch", str(tmp_path / "b.pt")]) == 2
    assert "--npz and --torch's module: are the same file" in capsys.readouterr().err
    assert not (tmp_path / "b.py").exists()


@pytest.mark.parametrize("name", ["x", "logits"])
def test_names_that_onnx_has_for_itself(name, tmp_path):
    network = Network((2,), (Dense(2, name=name),))
    trained = Trained(network, initialise(network, Streams(0)), {})
    with pytest.raises(InputError, match=f"{name}: is what the model's input or output is called"):
        export.write_checked(tmp_path / "a.onnx", trained, "onnx")
