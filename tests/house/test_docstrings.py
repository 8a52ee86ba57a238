"""The examples in docstrings: each module's run, and each public name has one."""

import doctest
import importlib
import inspect
from pathlib import Path

import pytest

import refprune

PACKAGE = Path(refprune.__file__).parent

#: Every module with an example.
MODULES = sorted(
    ".".join(["refprune", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_print_what_they_say(name):
    failed, asked = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert asked > 0
    assert failed == 0


def documented(name):
    """What a public name stands for, as the object that has the docstring: the zoo is known for `build`."""
    return refprune.zoo.build if name == "zoo" else getattr(refprune, name)


@pytest.mark.parametrize("name", [name for name in refprune.__all__ if callable(documented(name)) or name == "zoo"])
def test_every_public_name_has_an_example_and_tells_its_parameters(name):
    """Catches a new parameter or field without a word on it."""
    found = documented(name)
    text = inspect.getdoc(found)
    assert ">>> " in text
    fields = [p.name for p in inspect.signature(found).parameters.values() if p.name not in ("self", "name")]
    told = {word for line in text.splitlines() if ": " in line for word in line.split(": ")[0].split(", ")}
    if name not in ("Backend", "Implementation"):  # Backend has a field for every layer's function
        assert [field for field in fields if field not in told] == []


def test_a_wrong_example_would_be_seen():
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner(verbose=False)
    test = parser.get_doctest(">>> import refprune\n>>> refprune.UNIT['float64'] * 2**53\n2.0\n", {}, "wrong", None, 0)
    assert runner.run(test, out=lambda _: None).failed == 1
