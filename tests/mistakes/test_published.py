"""Mistakes of public code, made again: found, where they are made, and called by their names."""

import pytest

from refprune.adapters.pytorch.implementation import TorchImplementation
from refprune.conformance import campaign
from refprune.conformance.levels import METHODS
from refprune.mistakes.catalogue import KNOWN
from validation.mistakes import published as published_mistakes
from validation.mistakes.published import PUBLISHED

#: The tensor in which each begins, and how many examples it takes.
SEEN = {
    "diagonal subtracted from every row": ("hsic", 30),
    "biased HSIC called unbiased": ("hsic", 30),
    "CKA's denominator without its root": ("cka", 30),
    "biased CKA called unbiased": ("cka", 30),
    "fractional output sizes, groups ignored": ("macs", 120),
    "depthwise convolutions with a pointwise one": ("macs", 200),
    "biased variance in the running average": ("statistics/", 60),
}


@pytest.mark.parametrize("mistake", PUBLISHED, ids=lambda p: p.name)
def test_it_is_found_and_named(mistake, monkeypatch):
    monkeypatch.setattr(campaign, "SHRINKING", 2.0)
    where, examples = SEEN[mistake.name]
    found, first, names = published_mistakes.try_out(mistake, examples)
    assert found
    assert first.startswith(where)
    assert mistake.name in names


def test_each_is_one_method_of_an_implementation_that_is_right_otherwise():
    catalogue = {m.name for m in KNOWN}
    for mistake in PUBLISHED:
        assert mistake.name in catalogue
        assert mistake.method in METHODS
        assert issubclass(mistake.implementation, TorchImplementation)
    assert {p.name for p in PUBLISHED} == set(SEEN)


def test_the_command(capsys):
    assert published_mistakes.main(["biased HSIC called unbiased"]) == 0
    printed = capsys.readouterr().out
    assert "Project-MONAI/MONAI" in printed
    assert "1 of 1 found and named" in printed
