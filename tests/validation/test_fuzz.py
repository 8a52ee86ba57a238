"""300 damaged files for every reader; planted readers that raise, hang, die or eat memory are caught."""

import os
import time

import pytest

from refprune.errors import InputError
from validation.fuzz import campaign, mutations, seeds

READERS = seeds.readers()
CASES = 300


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_refused(name):
    reader = READERS[name]
    result = campaign.run(name, reader, max(10, round(CASES * reader.share)), seed=7)
    assert result.problems == []
    assert result.cases == result.values + result.refused
    assert result.refused > 0
    assert result.peak < 1e9


@pytest.mark.parametrize("name", READERS)
def test_the_whole_files_are_read(name, tmp_path):
    """Else the mutants would only ever meet the first check of the reader."""
    reader = READERS[name]
    for other, content in reader.beside.items():
        (tmp_path / other).write_bytes(content)
    read = 0
    for seed in reader.seeds:
        (tmp_path / reader.name).write_bytes(seed)
        try:
            reader.read(tmp_path / reader.name)
            read += 1
        except InputError:
            pass
    assert read >= (2 if name == "arrays by name" else len(reader.seeds) - (name == "spec"))


def planted(read):
    return seeds.Reader(read, "f", [b"seed 0123456789"])


def _raises(path):
    raise KeyError(len(path.read_bytes()))


def _hangs(path):
    if sum(path.read_bytes()) % 2:
        time.sleep(60)


def _dies(path):
    if sum(path.read_bytes()) % 2:
        os.abort()


def _eats(path):
    bytearray(64 << 30)


@pytest.mark.parametrize(
    ("read", "message"),
    [(_raises, "KeyError"), (_hangs, "no end within 1 s"), (_dies, "ended by SIGABRT"), (_eats, "MemoryError")],
)
def test_a_bad_reader_is_caught(monkeypatch, read, message, capfd):
    monkeypatch.setattr(campaign, "SECONDS", 1)
    result = campaign.run("planted", planted(read), 8, seed=0)
    assert result.cases == 8
    assert result.problems
    assert all(message in what for _, what in result.problems)


def test_a_case_is_made_again_from_its_number():
    reader = READERS["experiment"]
    assert campaign.damaged("experiment", reader, 5, 3) == campaign.damaged("experiment", reader, 5, 3)
    assert campaign.damaged("experiment", reader, 5, 3) != campaign.damaged("experiment", reader, 6, 3)


def test_every_mutation_changes_something():
    from random import Random

    body = b'{"a": 12, "b": [1, 2, 3], "c": "text"}' * 3
    for mutation in mutations.MUTATIONS:
        assert any(mutation(body, Random(i), [body, b"other"]) != body for i in range(5))
