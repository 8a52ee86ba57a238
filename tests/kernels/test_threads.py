"""Threads and processes under the kernels, other ways to run them, another version of Numba."""

import contextlib
import io
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
from kernel_processes import KERNELS, ROOT, answer, python
from numba.core.compiler import CompileResult

from refprune.backend import load_backend
from refprune.cli import main as cli
from refprune.kernels.machine import jit, kernel, numba_internals, threads
from refprune.spec import zoo
from refprune.training import config
from refprune.training.state import initial_state
from refprune.training.step import train_step

# --------------------------------------------------------------------------------------------------------------------
# Threads and processes


@kernel.kernel(lambda f: (kernel.reader(f, 1), kernel.writer(f, 2)))
def _visits(part, parts, x, y):
    total = 0.0
    for _ in range(3):
        for i in range(len(x)):
            total += x[i]
    y[part, 0] += 1
    y[part, 1] = total
    y[part, 2] = parts


@kernel.kernel(lambda f: (kernel.reader(f, 1), kernel.writer(f, 1)))
def _fails(part, parts, x, y):
    if part == 1:
        raise MemoryError
    y[part] = x[part]


def test_every_part_runs_once():
    x = np.ones(1000)
    for parts in (1, 2, 3, 7, 2, 5, 16) * 30:
        y = np.zeros((parts, 3))
        _visits[x.dtype](parts, x, y)
        assert (y == [1, 3000, parts]).all()


def test_an_error_in_a_thread_is_raised():
    x, y = np.ones(3), np.zeros(3)
    for _ in range(20):
        with pytest.raises(MemoryError):
            _fails[x.dtype](3, x, y)
        _fails[x.dtype](1, x, y)
    assert y[2] == 1


def test_a_launch_beside_another_runs_alone():
    x, y = np.ones(10), np.zeros((4, 3))
    launcher = next(
        cell.cell_contents for cell in _visits[x.dtype].__closure__ if isinstance(cell.cell_contents, threads.Launcher)
    )
    launches = []

    def beside():
        launches.append(launcher(4, (x, y)))
        launches.append(y.any())
        _visits[x.dtype](4, x, y)

    with threads._turn:
        thread = threading.Thread(target=beside)
        thread.start()
        thread.join()
    assert launches == [False, False]
    assert (y == [1, 30, 4]).all()


def test_a_launch_takes_back_what_no_thread_has_begun(monkeypatch):
    """Threads that are never woken: the launch does not wait for them, and they find nothing when they come."""
    _visits[np.dtype(np.float64)](4, np.ones(1), np.zeros((4, 3)))
    time.sleep(0.1)  # all threads have gone to sleep
    monkeypatch.setattr(threads._Helper, "wake", lambda helper: None)
    x, y = np.ones(10), np.zeros((4, 3))
    before = sys.getrefcount(x)
    _visits[x.dtype](4, x, y)
    assert (y == [1, 30, 4]).all()
    assert sys.getrefcount(x) == before
    assert all(helper.mailbox[threads.STATE] == threads.IDLE for helper in threads._helpers)
    y[:] = 0
    monkeypatch.undo()
    for helper in threads._helpers:
        helper.wake()
    time.sleep(0.1)
    assert not y.any()


def bits(threads):
    """θ and parameters after some steps, as bytes."""
    network = zoo.residual_mlp(sections=3, width=64)
    rules = config.from_dict({"training": {"batch_size": 512}})
    state, backend = initial_state(rules, network), load_backend("numba", threads=threads)
    x = np.random.default_rng(0).random((512, 1, 28, 28), dtype=np.float32)
    for _ in range(2):
        state, _ = train_step(state, x, np.arange(512) % 10, rules, backend, training_images=512)
    return b"".join([state.theta.tobytes(), *(p.tobytes() for p in state.params.values())])


several = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")


@several
def test_python_threads_that_train_at_once_get_the_bits_of_one():
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(bits, [2, 2, 1, 2]))
    assert found == {bits(1)}


FORK = """
import json, multiprocessing, warnings
import test_threads
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of every fork beside threads
if __name__ == "__main__":
    here = test_threads.bits(2)
    with multiprocessing.get_context(METHOD).Pool(2) as pool:
        found = pool.map_async(test_threads.bits, [2, 1, 2]).get(60)
    print(json.dumps([one == here for one in [*found, test_threads.bits(2)]]))
"""


@several
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children_get_the_bits_of_their_parent(method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"{method} does not exist here")
    assert answer(python(FORK.replace("METHOD", repr(method)))) == [True] * 4


# --------------------------------------------------------------------------------------------------------------------
# Other ways to run


def kernel_tests(*chosen, **variables):
    """Tests of the kernels against the oracle, two examples each, in a process with these variables."""
    files = [str(KERNELS / name) for name in ("test_layers.py", "test_pool_and_loss.py")]
    command = [sys.executable, "-m", "pytest", *files, "-p", "no:cacheprovider", "-k", " ".join(chosen)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "KERNEL_EXAMPLES": "2", **variables}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_kernels_without_a_compiler():
    out = kernel_tests("not edges and not thread and not training and not importing", NUMBA_DISABLE_JIT="1")
    assert int(out.split(" passed")[0].split()[-1]) >= 20


@pytest.mark.skipif(kernel.platform.machine() not in ("x86_64", "AMD64"), reason="names processors of one family")
@pytest.mark.parametrize("target", [("generic", ""), ("haswell", "+avx2,+avx,+fma,+bmi,+bmi2,+sse4.2")])
def test_narrower_processors(target):
    kernel_tests("dense_at_the_edges and float32", NUMBA_CPU_NAME=target[0], NUMBA_CPU_FEATURES=target[1])


@kernel.kernel(lambda f: (kernel.reader(f, 2), kernel.writer(f, 1)))
def _fmas(part, parts, x, y):
    for i in range(len(y)):
        y[i] = kernel.fma(x[0, i], x[1, i], x[2, i])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fma_in_python_is_rounded_once(dtype):
    random = np.random.default_rng(0)
    x = random.standard_normal((3, 4000)).astype(dtype)
    x[2] *= dtype(2.0) ** random.integers(-80, 30, 4000).astype(dtype)
    x[2, ::3] = -x[0, ::3] * x[1, ::3]  # the rounding error of the product is what remains
    x[:2, ::5] *= np.finfo(dtype).tiny ** dtype(0.5)
    x[:, :6] = [[1, -0.0, np.inf, 3, np.nan, 1], [2, 5, 0, 4, 1, 1], [-2, -0.0, 1, -np.inf, 1, -1]]
    x[0, 6], x[1, 6], x[2, 6] = 1 + 2.0**-12, 1 + 2.0**-12, 2.0**-60  # a tie for float32 but for the last term
    with np.errstate(all="ignore"):
        got = np.array([kernel.fma_in_python(*column) for column in x.T])
        y = np.empty(4000, dtype)
        for i in range(7, 4000):
            exact = sum((Fraction(float(x[0, i])) * Fraction(float(x[1, i])), Fraction(float(x[2, i]))))
            near = [got[i], np.nextafter(got[i], dtype(np.inf)), np.nextafter(got[i], -dtype(np.inf))]
            errors = [abs(Fraction(float(v)) - exact) for v in near]
            assert errors[0] == min(errors)
    if "+fma" in kernel.numba_internals.target()[2]:
        _fmas[np.dtype(dtype)](1, x, y)
        np.testing.assert_array_equal(y.view(f"i{y.itemsize}")[:4], got.view(f"i{y.itemsize}")[:4])
        np.testing.assert_array_equal(y, got)


# --------------------------------------------------------------------------------------------------------------------
# The command line

TINY = [
    "network.sections=2",
    "network.width=4",
    "training.epochs=1",
    "data.train_limit=200",
    "unpruned=false",
    "gates.warmup_epochs=0",
]


def refprune(cwd, *arguments):
    code = f"import sys; from refprune.cli.main import main; sys.exit(main({[str(a) for a in arguments]!r}))"
    process = python(f"import os; os.chdir({str(cwd)!r}); {code}", REFPRUNE_CACHE=str(cwd / "cache"))
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def test_warmup_and_the_notice(tmp_path):
    tiny = ["--threads", "1", *(f"--set={override}" for override in TINY)]
    assert refprune(tmp_path, "run", "--out=a", *tiny)[::2] == (0, "compiling kernels (once)…\n")
    assert refprune(tmp_path, "run", "--out=b", *tiny)[::2] == (0, "")
    next((tmp_path / "cache").rglob("matmul._product*.code")).unlink()
    code, out, err = refprune(tmp_path, "warmup", "--threads", "1", "quickstart", "lenet-300-100")
    assert (code, err) == (0, "")
    assert out.startswith("compiled matmul._product in ")
    assert "quickstart: 1 kernels compiled" in out
    assert "lenet-300-100: 0 kernels compiled" in out
    assert f"machine code: {tmp_path / 'cache' / 'kernels'}\n" in out
    code, out, err = refprune(tmp_path, "warmup", "--clear")
    assert (code, err) == (0, "")
    assert out.startswith("removed ")
    assert not list((tmp_path / "cache").rglob("*.code"))


def test_warmup_refuses_what_it_does_not_know(tmp_path):
    code, out, err = refprune(tmp_path, "warmup", "lenet-6")
    assert (code, out) == (2, "")
    assert "'lenet-6' is neither a file nor a known name" in err


def test_resume_takes_a_number_of_threads(tmp_path, monkeypatch):
    """A run of a machine with more cores can go on, and is the same run."""
    monkeypatch.chdir(tmp_path)
    run = ["run", "--out=a", "--set=training.threads=1000", "--set=training.backend=oracle", *(f"--set={o}" for o in TINY)]
    with contextlib.redirect_stdout(io.StringIO()):
        assert cli.main(run) == 0
        text = (tmp_path / "a" / "config.toml").read_text()
        assert "threads = 1000" in text
        assert cli.main(["run", "--resume=a", "--threads=1"]) == 0


# --------------------------------------------------------------------------------------------------------------------
# Another version of Numba


@pytest.fixture
def forgetful():
    """What `missing` found is found again, before the test and after it."""
    numba_internals.missing.cache_clear()
    yield
    numba_internals.missing.cache_clear()


def test_this_version_of_numba_has_all_that_is_used(forgetful):
    assert numba_internals.missing() is None


@pytest.mark.parametrize("name", ["_rebuild", "_reduce"])  # Numba itself cannot do without the others
def test_without_a_name_of_numba_kernels_run_in_one_thread_and_nothing_is_kept(monkeypatch, forgetful, name):
    monkeypatch.delattr(CompileResult, name)
    monkeypatch.setattr(kernel, "Launcher", None)  # would raise if it were called

    def doubled(part, parts, x, y):
        for i in range(part * len(x) // parts, (part + 1) * len(x) // parts):
            y[i] = 2 * x[i]

    doubled.__module__ = "refprune.kernels.planted"  # whose machine code would be kept
    monkeypatch.setattr(jit, "_Disk", None)
    table = kernel.kernel(lambda f: (kernel.reader(f, 1), kernel.writer(f, 1)))(doubled)
    x, y = np.arange(7.0), np.zeros(7)
    with pytest.warns(RuntimeWarning, match=rf"^numba .* has no CompileResult\.{name} \(tested: "):
        table[x.dtype](3, x, y)
    assert (y == 2 * x).all()
    assert jit.distinct(lambda: y).__qualname__.endswith("<lambda>")  # no name for the disk is needed
