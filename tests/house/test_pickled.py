"""The machine for pickles of others: what it reads as Python does, what it refuses; neither time nor memory run away."""

import io
import pickle
import time
import tracemalloc
from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refprune import pickled

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text() | st.integers() | st.binary(), inner) | st.tuples(inner, inner, inner)
    ),
    max_leaves=20,
)


def read(body, **options):
    return pickled.load(io.BytesIO(body), options.pop("makers", {}), **options)


@given(PLAIN, st.integers(0, 5))
def test_plain_values_are_those_of_python(value, protocol):
    makers = {"_codecs.encode": lambda text, _: text.encode("latin-1"), "builtins.bytes": bytes, "__builtin__.bytes": bytes}
    makers["builtins.bytearray"] = bytes
    assert read(pickle.dumps(value, protocol), makers=makers) == value


def test_shared_values_are_shared():
    shared = [1]
    found = read(pickle.dumps({"a": shared, "b": (shared, shared)}))
    assert found["a"] is found["b"][0] is found["b"][1]


def test_ordered_dicts_and_strangers():
    body = pickle.dumps({"d": OrderedDict(a=1, b=[2]), "e": complex(1, 2), "s": slice(1, 2)})
    found = read(body, makers={"collections.OrderedDict": pickled.ordered_dict})
    assert found["d"] == {"a": 1, "b": [2]}
    assert [str(found[key]) for key in "es"] == ["builtins.complex", "builtins.slice"]


class Evil:
    def __reduce__(self):
        return (print, ("this must not be printed",))


@pytest.mark.parametrize("protocol", range(6))
def test_a_stranger_is_never_called(protocol, capsys):
    body = pickle.dumps([Evil(), {"w": Evil()}], protocol)
    found = read(body)
    assert isinstance(found[0], pickled.Stranger)
    with pytest.raises(pickled.Refused, match=r"refused: the pickle names (builtins|__builtin__).print; allowed are a.b"):
        read(body, makers={"a.b": dict}, strict=True)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "damaged near byte 0"),
        (b"\x80\x02", "damaged"),
        (b"\x80\x02(.", "takes more from the stack"),
        (b"\x80\x02.", "takes more from the stack"),
        (b"\x80\x02h\x07.", "damaged"),
        (b"\x80\x02]K\x01K\x02s.", "puts keys into a list"),
        (b"\x80\x02}K\x01a.", "appends to a dict"),
        (b"\x80\x02K\x01)R.", "calls a int"),
        (b"\x80\x02})K\x01s.", "has a tuple as the key"),
        (b"\x80\x02}]K\x01s.", "has a list as the key"),
        (b"\x80\x02}(K\x01u.", "damaged"),
        (b"\x80\x02\x82\x01.", "refused: opcode EXT1"),
        (b"\x80\x05\x97.", "refused: opcode NEXT_BUFFER"),
        (b"Pid\n.", "refused: opcode PERSID"),
        (b"\x80\x02K\x01Q.", "something outside of it"),
        (b"I" + b"9" * 5000 + b"\n.", "damaged"),
        (b"\x80\x04\x8d" + b"\xff" * 8 + b"x.", "damaged"),
        (b"\x80\x02\x8b\xff\xff\xff\x7fx.", "damaged"),
    ],
)
def test_what_is_refused(body, message):
    started = time.monotonic()
    with pytest.raises(pickled.Refused, match=message):
        read(body)
    assert time.monotonic() - started < 5.0


def test_nested_sharing_ends():
    """314 bytes whose tuple, as a key, Python's own unpickler would hash for longer than the sun will shine."""
    body = b"\x80\x02}" + b")q\x00" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60)) + b"K\x01s."
    started = time.monotonic()
    with pytest.raises(pickled.Refused, match="has a tuple as the key of a dict"):
        read(body)
    assert time.monotonic() - started < 5.0


def test_a_small_file_takes_little_memory():
    tracemalloc.start()
    for body in (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x00.", b"\x80\x02X\xff\xff\xff\x7f.", b"\x80\x02r\xff\xff\xff\x7f."):
        with pytest.raises(pickled.Refused):
            read(body)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000_000


def test_too_many_steps_end(monkeypatch):
    monkeypatch.setattr(pickled, "MOST_STEPS", 100)
    with pytest.raises(pickled.Refused, match="more than 100 opcodes"):
        read(b"\x80\x02]" + b"]a" * 100 + b".")


def test_several_pickles_follow_each_other():
    file = io.BytesIO(pickle.dumps(1, 2) + pickle.dumps("two", 2) + b"rest")
    assert [pickled.load(file, {}), pickled.load(file, {}), file.read()] == [1, "two", b"rest"]
