"""Checkpoints: the same bits back, one sentence for whatever is wrong with the files, and never less than the last good one."""

import dataclasses
import hashlib
import io
import json
import os
import shutil

import numpy as np
import pytest

from refprune.errors import InputError
from refprune.gates.surgery import prune
from refprune.gates.theta_penalty import reference
from refprune.passes.parameters import initial_statistics, initialise
from refprune.spec import json_form
from refprune.spec.layers import Activation, BatchNorm, Dense, Section, UnitGate
from refprune.spec.network import Network
from refprune.streams import Streams
from refprune.training import checkpoint
from refprune.training.removal import cut_state
from refprune.training.state import State

GROUPS = ("params", "velocity", "statistics")


def network(units=5):
    section = Section((Dense(units), BatchNorm(), Activation(), UnitGate(), Dense(4)))
    return Network((3,), (Dense(4), Activation(), section, Section((Dense(2), Activation("tanh"), Dense(4))), Dense(3)))


def state(seed=0, dtype="float64", step=7, made=None):
    """A state whose numbers have all their digits, with values that are easily lost: −0, subnormal, NaN."""
    made, streams = made or network(), Streams(seed)
    params = initialise(made, streams, dtype=dtype)
    velocity = {name: streams.normal(f"v/{name}", 0, p.shape).astype(dtype) for name, p in params.items()}
    velocity["dense1.bias"][:3] = [-0.0, 5e-324 if dtype == "float64" else 1e-45, np.nan]
    statistics = {n: s + streams.uniform(n, 0, s.shape).astype(dtype) for n, s in initial_statistics(made, dtype=dtype).items()}
    theta = streams.uniform("theta", 0, (made.gate_count,))
    number = np.arange(3, 3 + made.gate_count)
    evidence = streams.uniform("slope", 0, theta.shape), 2**40 + number, streams.uniform("bias", 0, theta.shape)
    counters = {"step": step, "macs": 2**63 + 1, "finished": step > 100, "start": reference(made)}
    return State(made, params, velocity, statistics, theta, number, *evidence, **counters)


RUN = {"config": "abc", "epochs": [{"epoch": 1, "loss": 0.1 + 0.2}], "none": None, "naïve ≡": [True, "\N{PARTY POPPER}"]}


def assert_same(got, want):
    """Every bit, the dtypes, and the order of the parameters."""
    __tracebackhide__ = True
    assert got.network == want.network
    for group in GROUPS:
        mine, theirs = getattr(got, group), getattr(want, group)
        assert list(mine) == list(theirs)
        for name, array in theirs.items():
            assert (mine[name].dtype, mine[name].shape) == (array.dtype, array.shape), name
            assert mine[name].tobytes() == array.tobytes(), name
    for name in checkpoint.PER_GATE:
        mine, theirs = getattr(got, name), getattr(want, name)
        assert (mine.dtype, mine.tobytes()) == (theirs.dtype, theirs.tobytes()), name
    assert (got.step, got.macs, got.finished, got.start) == (want.step, want.macs, want.finished, want.start)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def arrays_file(folder):
    (path,) = folder.glob("checkpoint-*.npz")
    return path


@pytest.fixture
def saved(tmp_path):
    checkpoint.save(tmp_path, state(), RUN)
    return tmp_path


# Round trip ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("step", [0, 7, 10**9])
def test_the_same_bits_come_back(tmp_path, dtype, step):
    checkpoint.save(tmp_path, state(dtype=dtype, step=step), RUN)
    found = checkpoint.load(tmp_path)
    assert_same(found.state, state(dtype=dtype, step=step))
    assert found.run == RUN


def test_a_pruned_network_comes_back(tmp_path):
    """The network that is left after removals is in the checkpoint, not the one of the configuration."""
    whole = state()
    keep = np.array([True, False, True, False, True, True, False])
    cut = prune(whole.network, keep)
    small = cut_state(whole, cut)
    checkpoint.save(tmp_path, small, RUN)
    assert_same(checkpoint.load(tmp_path).state, small)


def test_a_network_without_gates_and_norms_comes_back(tmp_path):
    made = Network((3,), (Dense(4, name="dense1"), Dense(2)))
    checkpoint.save(tmp_path, state(made=made), {})
    assert_same(checkpoint.load(tmp_path).state, state(made=made))


def test_the_same_state_gives_the_same_files(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        checkpoint.save(tmp_path / name, state(), RUN)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_the_old_arrays_go_and_nothing_else(saved):
    (saved / "metrics.jsonl").write_text("{}\n")
    before = arrays_file(saved)
    checkpoint.save(saved, state(seed=1, step=8), RUN)
    assert not before.exists()
    assert sorted(files(saved)) == sorted([checkpoint.NAME, arrays_file(saved).name, "metrics.jsonl"])
    checkpoint.save(saved, state(seed=1, step=8), RUN)
    assert_same(checkpoint.load(saved).state, state(seed=1, step=8))


def test_no_pickle_is_written(saved):
    for member in np.load(arrays_file(saved), allow_pickle=False).values():
        assert member.dtype.kind in "fi"


# What is wrong with the files ---------------------------------------------------------------------------------------------


def refused(folder, *words):
    """load fails with a sentence that holds the words, and touches nothing."""
    __tracebackhide__ = True
    before = files(folder)
    with pytest.raises(InputError) as caught:
        checkpoint.load(folder)
    for word in (str(folder), *words):
        assert word in str(caught.value)
    assert files(folder) == before


def edit(folder, **changes):
    """Change fields of the .json; None removes one."""
    path = folder / checkpoint.NAME
    header = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in header.items() if value is not None}))


def rewrite(folder, arrays, **options):
    """Other arrays under a matching SHA-256: what is checked then is the content."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays, **options)
    path = arrays_file(folder)
    path.write_bytes(buffer.getvalue())
    edit(folder, sha256=hashlib.sha256(buffer.getvalue()).hexdigest())


def archive(folder):
    with np.load(arrays_file(folder)) as found:
        return dict(found)


def test_a_missing_checkpoint(tmp_path):
    refused(tmp_path, checkpoint.NAME, "no checkpoint can be read here")


@pytest.mark.parametrize("place", [0, 100, -1])
def test_a_flipped_byte(saved, place):
    path = arrays_file(saved)
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    refused(saved, path.name, "SHA-256 differs")


@pytest.mark.parametrize("keep", [0, 1, 1000])
def test_truncated_arrays(saved, keep):
    path = arrays_file(saved)
    path.write_bytes(path.read_bytes()[:keep])
    refused(saved, path.name, "SHA-256 differs")


@pytest.mark.parametrize("keep", [0, 1, 200])
def test_a_truncated_json(saved, keep):
    path = saved / checkpoint.NAME
    path.write_bytes(path.read_bytes()[:keep])
    refused(saved, checkpoint.NAME, "not valid JSON")


def test_a_json_that_is_no_text(saved):
    (saved / checkpoint.NAME).write_bytes(b"\xff\xfe\x00")
    refused(saved, checkpoint.NAME, "cannot be read")


def test_missing_arrays(saved):
    path = arrays_file(saved)
    path.unlink()
    refused(saved, path.name, "cannot be read")


def test_another_version(saved):
    edit(saved, version="0.0.9")
    refused(saved, checkpoint.NAME, "written by refprune 0.0.9, this is", "bits would differ")


@pytest.mark.parametrize("other", ["refprune-checkpoint-2", 3])
def test_another_format(saved, other):
    edit(saved, format=other)
    refused(saved, checkpoint.NAME, f"expected format 'refprune-checkpoint-3', found {other!r}")


def test_a_json_of_something_else(saved):
    (saved / checkpoint.NAME).write_text("[1, 2]")
    refused(saved, checkpoint.NAME, "found 'list'")
    (saved / checkpoint.NAME).write_text("{}")
    refused(saved, checkpoint.NAME, "found None")


@pytest.mark.parametrize("field", checkpoint.HEADER_FIELDS)
@pytest.mark.parametrize("value", [None, 1.5, "no"])
def test_a_field_that_is_missing_or_of_a_wrong_type(saved, field, value):
    kind = checkpoint.HEADER_FIELDS[field]
    if not isinstance(value, kind):
        edit(saved, **{field: value})
        refused(saved, checkpoint.NAME, f"{field} must be of type {kind.__name__}, found {value!r}")


def test_a_network_that_cannot_exist(saved):
    data = json_form.to_json(network())
    data["layers"][0]["units"] = 5
    edit(saved, network=data)
    refused(saved, checkpoint.NAME, "network: ", "cannot be added")


def test_another_network(saved):
    """The same layers with another width: the first array that does not fit is named, with both shapes."""
    edit(saved, network=json_form.to_json(network(units=6)))
    refused(saved, arrays_file(saved).name, "params/section1.dense1.weight has shape (5, 4), the network needs (6, 4)")


def test_a_network_with_more_or_fewer_layers(saved):
    made = Network((3,), (*network().layers[:-1], Dense(3, name="extra"), network().layers[-1]))
    edit(saved, network=json_form.to_json(made))
    refused(saved, "params/extra.weight is missing; the checkpoint is of another network")
    made = Network((3,), (*network().layers[:3], network().layers[-1]))
    edit(saved, network=json_form.to_json(made))
    refused(saved, "params/section2.dense1.bias belongs to no layer of the network")


@pytest.mark.parametrize("group", GROUPS)
def test_a_missing_and_an_extra_array(saved, group):
    arrays = archive(saved)
    first = next(name for name in arrays if name.startswith(f"{group}/"))
    rewrite(saved, {name: a for name, a in arrays.items() if name != first})
    refused(saved, f"{first} is missing")
    rewrite(saved, arrays | {f"{group}/more": np.zeros(2)})
    refused(saved, f"{group}/more belongs to no layer")


@pytest.mark.parametrize("theta", [np.zeros(6), np.zeros((7, 1)), None])
def test_gates_that_do_not_fit(saved, theta):
    arrays = {name: a for name, a in archive(saved).items() if name != "theta"}
    rewrite(saved, arrays if theta is None else arrays | {"theta": theta})
    refused(saved, "theta does not fit the network's 7 gates")


class Explosive:
    """Unpickling it would run code."""

    ran = False

    def __reduce__(self):
        return setattr, (Explosive, "ran", True)


def test_a_pickle_is_never_run(saved):
    rewrite(saved, archive(saved) | {"theta": np.array([Explosive()] * 7, dtype=object)}, allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        checkpoint.load(saved)
    assert not Explosive.ran


def test_a_pickle_is_refused_by_a_sentence(saved):
    rewrite(saved, archive(saved) | {"theta": np.array([None] * 7, dtype=object)}, allow_pickle=True)
    refused(saved, arrays_file(saved).name)


def test_an_array_of_no_group_is_refused(saved):
    rewrite(saved, archive(saved) | {"other/thing": np.zeros(2)})
    refused(saved, arrays_file(saved).name, "other/thing")


@pytest.mark.parametrize("network", [[], "x"])
def test_a_network_of_the_wrong_type_is_refused(saved, network):
    edit(saved, network=network)
    refused(saved, checkpoint.NAME, "network")


# Atomic -------------------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("survived", range(6))
def test_a_crash_at_any_moment_leaves_the_old_pair_or_the_new_one(saved, monkeypatch, survived):
    """The process dies before its (survived+1)-th write, sync, rename or removal of the second save."""
    moments = 0

    def dying(function):
        def run(*args, **options):
            nonlocal moments
            moments += 1
            if moments > survived:
                raise Killed
            return function(*args, **options)

        return run

    for name in ("replace", "fsync"):
        monkeypatch.setattr(os, name, dying(getattr(os, name)))
    later = state(seed=1, step=8)
    finished = False
    try:
        checkpoint.save(saved, later, {"config": "later"})
        finished = True
    except Killed:
        pass
    monkeypatch.undo()
    assert not finished or survived >= 6
    found = checkpoint.load(saved)
    new = found.run == {"config": "later"}
    assert new == (survived >= 5)  # file, rename, folder; file, rename: from here on it is the new one
    assert_same(found.state, later if new else state())
    checkpoint.save(saved, later, RUN)
    assert_same(checkpoint.load(saved).state, later)


def test_a_rename_that_fails_is_a_sentence_and_the_old_one_stays(saved, monkeypatch):
    replace, calls = os.replace, []

    def second_fails(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(InputError, match=r"checkpoint\.json: cannot be written .*No space left"):
        checkpoint.save(saved, state(seed=1, step=8), RUN)
    assert_same(checkpoint.load(saved).state, state())


def test_what_is_written_is_complete_before_it_gets_its_name(tmp_path, monkeypatch):
    """Catches a rename before the data is on the disk: every rename follows an fsync of the same file."""
    seen, replace, fsync = [], os.replace, os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (seen.append(os.fstat(fd).st_ino), fsync(fd))[1])

    def after_sync(source, target):
        assert os.stat(source).st_ino in seen
        replace(source, target)
        assert seen.clear() is None

    monkeypatch.setattr(os, "replace", after_sync)
    checkpoint.save(tmp_path, state(), RUN)
    assert seen == [os.stat(tmp_path).st_ino]


@pytest.mark.parametrize("kind", ["missing", "a file", "in the way"])
def test_a_folder_that_cannot_be_written(tmp_path, kind):
    folder = tmp_path / "there"
    if kind == "a file":
        folder.write_text("")
    if kind == "in the way":
        (folder / checkpoint.NAME / "x").mkdir(parents=True)
    with pytest.raises(InputError, match=r"there.*: cannot be written"):
        checkpoint.save(folder, state(), RUN)


def test_write_atomically_replaces_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "file"
    checkpoint.write_atomically(path, b"old" * 1000)
    checkpoint.write_atomically(path, b"new")
    assert files(tmp_path) == {"file": b"new"}
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(InputError, match=r"file: cannot be written \(disk\)"):
        checkpoint.write_atomically(path, b"newer")
    assert path.read_bytes() == b"new"


def test_leftovers_of_a_crash_are_removed_by_the_next_save(saved):
    (saved / "checkpoint-00000008-00000000.npz.part").write_bytes(b"half")
    checkpoint.save(saved, state(seed=1, step=8), RUN)
    assert not list(saved.glob("*.part"))


def test_a_checkpoint_can_be_moved(saved, tmp_path):
    """No absolute path inside."""
    target = tmp_path.parent / f"{tmp_path.name}-moved"
    shutil.move(saved, target)
    assert_same(checkpoint.load(target).state, state())


def test_states_that_differ_anywhere_differ_in_the_file(tmp_path):
    """A test of the tests: assert_same would see one bit of any group."""
    for group in GROUPS:
        changed = {name: a.copy() for name, a in getattr(state(), group).items()}
        last = changed[list(changed)[-1]]
        last.flat[0] = np.nextafter(last.flat[0], 9.0)
        checkpoint.save(tmp_path, dataclasses.replace(state(), **{group: changed}), RUN)
        with pytest.raises(AssertionError):
            assert_same(checkpoint.load(tmp_path).state, state())
