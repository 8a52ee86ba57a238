"""House rules that only a test keeps: who may import whom, and what `import refprune` costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "refprune"

#: A module imports only what stands above it; the root's `__init__` resolves its names lazily and is free.
ORDER = [
    "__init__",
    "errors",
    "arrays",
    "pickled",
    "streams",
    "output",
    "formulas",
    "spec",
    "oracle",
    "data",
    "kernels",
    "adapters",
    "backend",
    "passes",
    "rounding",
    "gates",
    "training",
    "exchange",
    "analysis",
    "experiments",
    "mistakes",
    "conformance",
    "audit",
    "bench",
    "cli",
    "__main__",
]
#: Files that may import a framework; everybody else imports them inside functions only.
ADAPTERS = {
    "adapters/jax/functions.py",
    "adapters/jax/implementation.py",
    "adapters/jax/layers.py",
    "adapters/pytorch/costs.py",
    "adapters/pytorch/functions.py",
    "adapters/pytorch/implementation.py",
    "adapters/pytorch/layers.py",
    "adapters/pytorch/model.py",
    "adapters/pytorch/surgery.py",
    "conformance/vectors/torch_witness.py",
    "bench/torch_side.py",
    "exchange/onnx_file.py",
    "exchange/torch_file.py",
}
#: Files that may import one inside functions.
READERS = {"exchange/keras_files.py"}
FRAMEWORKS = {"torch", "jax", "tensorflow", "onnx", "onnxruntime", "h5py", "keras"}
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def imports(path: Path) -> list[tuple[str, bool]]:
    """(imported module, whether it stands at the top level of the file); refprune's own modules as "refprune.x"."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = set(map(id, tree.body))
    depth = len(path.relative_to(PACKAGE).parts)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = [] if node.level == depth else list(path.relative_to(PACKAGE).parts[: depth - node.level])
            prefix = ".".join(["refprune", *base, *([node.module] if node.module else [])])
            names = [prefix] if node.module else [f"{prefix}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            whole_package = node.module == "refprune"
            names = [f"refprune.{alias.name}" for alias in node.names] if whole_package else [node.module or ""]
        else:
            continue
        found += [(name, id(node) in top) for name in names]
    return found


def room(path: Path) -> str:
    """The name under which a file stands in ORDER: its module, or its folder."""
    return path.parts[0].removesuffix(".py")


def test_every_module_has_its_place():
    assert {room(path) for path in MODULES} == set(ORDER)


def out_of_order(path: Path, names: list[str]) -> list[str]:
    """The imported names that the file may not import: rooms below its own, and public names by way of the root."""
    own = room(path)
    wrong = []
    for name in names:
        if name.split(".")[0] == "refprune" and name != "refprune.__version__" and path.as_posix() != "__init__.py":
            other = [*name.split("."), ""][1]
            inside = own == other and len(path.parts) > 1
            if not inside and (other not in ORDER or ORDER.index(other) >= ORDER.index(own)):
                wrong.append(name)
    return wrong


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_modules_import_only_what_stands_above_them(path):
    assert out_of_order(path, [name for name, _ in imports(PACKAGE / path)]) == []


def test_the_order_would_notice():
    """Catches a rule that lets a lower room in by its own name, or a public name by way of the lazy root."""
    planted = ["numpy", "refprune.__version__", "refprune.errors", "refprune.gates.surgery", "refprune.prune", "refprune"]
    assert out_of_order(Path("passes/tape.py"), planted) == ["refprune.gates.surgery", "refprune.prune", "refprune"]
    assert out_of_order(Path("passes/tape.py"), ["refprune.passes.parameters"]) == []
    assert out_of_order(Path("backend.py"), ["refprune.backend"]) == ["refprune.backend"]
    assert out_of_order(Path("__init__.py"), planted) == []


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_numba_only_in_kernels_and_frameworks_only_in_adapters(path):
    adapters = {f"refprune.{adapter.removesuffix('.py').replace('/', '.')}" for adapter in ADAPTERS}
    for name, at_top in imports(PACKAGE / path):
        package = name.split(".")[0]
        if path.as_posix() not in ADAPTERS:
            assert package not in FRAMEWORKS or (path.as_posix() in READERS and not at_top), f"{path} imports {name}"
            assert name not in adapters or not at_top, f"{path} imports the adapter {name} at its top level"
        assert package not in ("numba", "llvmlite") or room(path) == "kernels", f"{path} imports {name}"
        assert package not in ("matplotlib", "tqdm", "sympy", "mpmath", "distributed", "dask") or not at_top, (
            f"{path} imports the extra {name} at its top level"
        )


def test_the_rules_would_notice(tmp_path):
    """The checks above are made of `imports`: it must see relative, absolute and function-level imports."""
    source = "from . import cli\nfrom .data import load\nimport numba\n"
    source += "def f():\n    from refprune import zoo\n    import torch.nn\n"
    path = PACKAGE / "planted.py"
    tree = {name for name, _ in _imports_of(source, path)}
    assert tree == {"refprune.cli", "refprune.data", "numba", "refprune.zoo", "torch.nn"}


def _imports_of(source: str, path: Path) -> list[tuple[str, bool]]:
    class Planted(type(path)):  # a path with a content of its own
        def read_text(self, **_):
            return source

    return imports(Planted(path))


def test_importing_loads_no_numba_and_no_scipy():
    """`import refprune` alone stays below 0.1 s because it loads nothing heavy; the command line loads no numba."""
    code = "import sys, refprune; heavy = {'numpy', 'scipy', 'numba'}; print(sorted(heavy & set(sys.modules)), end=' ')\n"
    code += "import refprune.cli.main, refprune.training.config; print('numba' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[] False"


def test_nothing_names_a_folder_outside_the_project():
    root = PACKAGE.parent
    outside = ".." + "/shared"
    files = [p for folder in ("refprune", "tests", "validation", "datasets") for p in (root / folder).rglob("*") if p.is_file()]
    texts = {p: p.read_bytes() for p in [*files, *root.glob("*.md"), root / "pyproject.toml"] if "__pycache__" not in p.parts}
    assert [p for p, text in texts.items() if outside.encode() in text] == []


@pytest.mark.parametrize("path", sorted((PACKAGE.parent / "tests").rglob("test_*.py")), ids=lambda p: p.name)
def test_no_test_module_imports_another(path):
    """What two test modules need stands in tests/support."""
    others = {other.stem for other in (PACKAGE.parent / "tests").rglob("test_*.py")}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not others & {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module not in others


#: Files that hold one idea and are longer: K1 to K7 in one place; the layers' fields, most of it what a user reads in `help`.
LONGER = {"refprune/spec/layers.py"}


def test_files_are_short():
    root = PACKAGE.parent
    files = [path for folder in ("refprune", "tests", "validation", "docs") for path in (root / folder).rglob("*.py")]
    lengths = {path.relative_to(root).as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {name for name, length in lengths.items() if length > 450} <= LONGER


def test_no_circles_between_files():
    """Imports at the top of files, inside rooms too: each file is loaded after all that it imports."""
    names = {".".join(["refprune", *path.with_suffix("").parts]).removesuffix(".__init__") for path in MODULES}
    above: dict[str, set[str]] = {}
    for path in MODULES:
        own = ".".join(["refprune", *path.with_suffix("").parts]).removesuffix(".__init__")
        found = {name for name, at_top in imports(PACKAGE / path) if at_top}
        above[own] = {name for name in found if name in names and path.name != "__init__.py"}
    while above:
        free = [name for name, needed in above.items() if not needed & set(above)]
        assert free, f"in a circle: {sorted(above)}"
        for name in free:
            del above[name]
