"""PyTorch's files of every age and with everything that people keep beside a state dict; sizes that promise too much."""

import io
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from refprune.errors import DataError
from refprune.exchange import torch_pickles, weight_files

MODULE = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
STATE = MODULE.state_dict()


def optimiser():
    made = torch.optim.SGD(MODULE.parameters(), lr=0.1, momentum=0.9)
    MODULE(torch.ones(5, 4)).sum().backward()
    made.step()
    return made.state_dict()


class Settings:
    """An object of somebody's own."""

    def __init__(self):
        self.rate = 0.1


CONTENTS = {
    "alone": STATE,
    "state_dict": {"state_dict": STATE, "best_prec1": 91.8, "epoch": 200},
    "tutorial": {"epoch": 3, "model_state_dict": STATE, "optimizer_state_dict": optimiser(), "loss": torch.tensor(0.3)},
    "net": {"net": STATE, "acc": np.float64(93.0), "epoch": np.int64(7)},
    "model": {"model": STATE, "optimizer": optimiser(), "dtype": torch.float32, "args": Settings()},
    "ema": {"model": STATE, "model_ema": {name: 2 * t for name, t in STATE.items()}},
    "deep": {"checkpoint": {"model": STATE, "lr_scheduler": {"base_lrs": [0.1]}}},
    "module": {"something": {"else": STATE}, "device": torch.device("cpu"), "size": torch.Size([2])},
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("content", CONTENTS)
def test_the_state_dict_is_found_beside_anything(tmp_path, content, legacy):
    path = tmp_path / ("a.pth.tar" if legacy else "a.ckpt")
    torch.save(CONTENTS[content], path, _use_new_zipfile_serialization=not legacy)
    found = weight_files.read(path)
    assert found.ordered
    assert list(found.arrays) == list(STATE)
    for name, tensor in STATE.items():
        np.testing.assert_array_equal(found.arrays[name], tensor.numpy(), strict=True)


def test_files_of_protocols_3_to_5_are_read(tmp_path):
    for protocol in (2, 3, 4, 5):
        torch.save(STATE, tmp_path / "a.pt", pickle_protocol=protocol)
        assert list(weight_files.read(tmp_path / "a.pt").arrays) == list(STATE)


def test_shared_and_turned_views_in_old_files(tmp_path):
    whole = torch.arange(24.0).reshape(2, 3, 4)
    content = {
        "a": whole,
        "b": whole[1],
        "c": whole.permute(2, 0, 1),
        "d": whole.half(),
        "e": whole.bfloat16(),
        "f": whole.long(),
    }
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    for name, array in weight_files.read(tmp_path / "a.pt").arrays.items():
        np.testing.assert_array_equal(array, content[name].float().numpy() if name == "e" else content[name].numpy())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, "no dict of tensors; it holds epoch"),
        ([1, 2], "no dict of tensors; it holds a list"),
        ({"teacher": STATE, "pupil": STATE}, "holds several dicts of tensors, teacher, pupil; save one of them alone"),
        (MODULE, r"a whole torch.nn.modules.container.Sequential; save its state_dict\(\)"),
        ({"optimizer": optimiser()}, "no dict of tensors; it holds optimizer"),
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_what_is_no_state_dict_is_said(tmp_path, content, message, legacy):
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(DataError, match=message):
        weight_files.read(tmp_path / "a.pt")


# Promises -------------------------------------------------------------------------------------------------------------------


def saved(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def test_a_tensor_of_stride_0_is_not_unfolded(tmp_path):
    """4 bytes that say they are 4 TB."""
    (tmp_path / "a.pt").write_bytes(saved({"w": torch.ones(1).expand(1_000_000, 1_000_000)}))
    with pytest.raises(
        DataError, match=r"a tensor of shape \(1000000, 1000000\), stride \(0, 0\), offset 0 leaves its storage of 1"
    ):
        weight_files.read(tmp_path / "a.pt")


def test_a_storage_that_is_not_there_takes_no_memory(tmp_path):
    content = saved({"w": torch.ones(4)}, _use_new_zipfile_serialization=False)
    for count in (5, 1 << 40, -1):
        (tmp_path / "a.pt").write_bytes(content[:-24] + struct.pack("<q", count) + content[-16:])
        with pytest.raises(DataError, match=r"storage .* holds"):
            weight_files.read(tmp_path / "a.pt")
    for cut in range(1, len(content), 7):
        (tmp_path / "a.pt").write_bytes(content[:cut])
        with pytest.raises(DataError):
            weight_files.read(tmp_path / "a.pt")


def compressed(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_archives_that_unpack_to_a_thousand_times_their_size(tmp_path):
    zeros = bytes(1 << 27)
    (tmp_path / "a.pt").write_bytes(compressed({"archive/data.pkl": zeros}))
    with pytest.raises(DataError, match=r"holds compressed parts, which torch\.save never writes"):
        weight_files.read(tmp_path / "a.pt")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 25,)})
    (tmp_path / "a.npz").write_bytes(compressed({"w.npy": header.getvalue() + zeros}))
    with pytest.raises(DataError, match=r"unpacked, its arrays would take 134,217,\d+ bytes of memory, 1,?\d+ times"):
        weight_files.read(tmp_path / "a.npz")


@pytest.mark.parametrize("shape", [(1 << 40,), (1 << 33, 1 << 33), (3,), ()])
def test_an_array_that_promises_more_than_is_there(tmp_path, shape):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    (tmp_path / "a.npz").write_bytes(compressed({"w.npy": header.getvalue() + bytes(8)}))
    with pytest.raises(DataError, match="has 8 bytes in the file"):
        weight_files.read(tmp_path / "a.npz")


def test_zeros_that_are_meant_are_read(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", w=np.zeros((1000, 1000)))
    assert weight_files.read(tmp_path / "a.npz").arrays["w"].shape == (1000, 1000)


def test_nothing_of_a_pickle_is_called(tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return (print, ("this must not be printed",))

    torch.save({"state_dict": STATE, "hook": Evil()}, tmp_path / "a.pt", pickle_module=pickle)
    assert list(weight_files.read(tmp_path / "a.pt").arrays) == list(STATE)
    assert capsys.readouterr().out == ""


def test_storages_of_every_type_are_known(tmp_path):
    """A tensor of every type, through both kinds of files."""
    types = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8)
    content = {str(dtype): torch.tensor([0, 1, 2]).to(dtype) for dtype in (*types, torch.uint8, torch.bool)}
    assert len(content) == len(torch_pickles.STORAGES)
    for modern in (True, False):
        torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=modern)
        for name, array in weight_files.read(tmp_path / "a.pt").arrays.items():
            assert array.tolist() == content[name].tolist()
