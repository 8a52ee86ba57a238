"""The public names: one list, every name resolves lazily, every name is on the page docs/api.md."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import refprune

ROOT = Path(refprune.__file__).parents[1]
SOURCE = (ROOT / "refprune" / "__init__.py").read_text(encoding="utf-8")

#: What a user may import; adding or removing a name is a decision.
PUBLIC = [
    *("EVERY", "ORACLE", "PYTORCH", "UNIT"),
    *("Activation", "AveragePool", "Backend", "BatchLoss", "BatchNorm", "Conv", "Dense", "Flatten", "GlobalAveragePool"),
    *("Implementation", "Loss", "MaxPool", "Network", "Predictor", "Section", "Streams", "SubsamplePad", "UnitGate"),
    *("backward", "cka", "exact_theta_gradient", "forward", "initial_statistics", "initialise", "load_backend"),
    *("network_tolerance", "prune", "zoo"),
]


def test_the_list_is_the_one_that_is_declared():
    assert refprune.__all__ == PUBLIC
    assert dir(refprune) == sorted([*PUBLIC, "__version__"])


@pytest.mark.parametrize("name", PUBLIC)
def test_every_name_resolves_to_what_its_home_has(name):
    """Catches a name without a home, and one whose home has something else under it."""
    found = getattr(refprune, name)
    assert found is getattr(refprune, name)
    if callable(found):
        assert found.__name__ == name
        assert found.__module__.startswith("refprune.")


def test_the_type_checker_sees_the_same_names():
    """mypy reads the imports under TYPE_CHECKING, Python the table of homes."""
    (block,) = (node for node in ast.parse(SOURCE).body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert sorted(seen) == sorted(PUBLIC)
    for name, module in seen.items():
        assert module.startswith(refprune._HOME_OF[name]), name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'refprune' has no attribute 'prunes'"):
        refprune.prunes  # noqa: B018
    with pytest.raises(ImportError, match="prunes"):
        from refprune import prunes  # noqa: F401


def test_a_name_is_resolved_anew_each_time(monkeypatch):
    """A planted mistake replaces a function at home; a name that the root had kept would survive the mistake's end."""
    from refprune import gates

    right = refprune.prune
    monkeypatch.setattr(gates, "prune", len)
    assert refprune.prune is len
    monkeypatch.undo()
    assert refprune.prune is right


def test_importing_takes_less_than_a_tenth_of_a_second():
    code = "import time; begun = time.perf_counter(); import refprune; print(time.perf_counter() - begun)"
    times = [float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout) for _ in range(3)]
    assert min(times) < 0.1


def test_every_name_is_on_the_page():
    """The page's directives name the objects: `::: refprune.passes.tape.forward`."""
    lines = (ROOT / "docs" / "api.md").read_text(encoding="utf-8").splitlines()
    shown = {line.split(".")[-1].strip() for line in lines if line.startswith(":::")}
    assert sorted(set(PUBLIC) - shown) == []
