"""Under the kernels: machine code on disk, threads, processes that fork, and kernels that are not compiled at all."""

import contextlib
import io
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numba.core.compiler import CompileResult

from refprune.backend import load_backend
from refprune.cli import main as cli
from refprune.kernels.machine import cache, jit, kernel, numba_internals, threads
from refprune.spec import zoo
from refprune.training import config
from refprune.training.state import initial_state
from refprune.training.step import train_step

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PACKAGE = ROOT / "refprune"


def python(code, *, path=ROOT, flags=("-W", "error"), **variables):
    """Start `code` in a fresh interpreter; see `answer`."""
    environment = {**os.environ, **variables, "PYTHONPATH": os.pathsep.join([str(path), str(HERE)])}
    where = {"cwd": path, "env": environment}  # the folder that Python looks in first
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, *flags, "-c", code], text=True, **where, **pipes)


def answer(process):
    """What it printed, as JSON; its standard error must be empty."""
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    return json.loads(out)


# --------------------------------------------------------------------------------------------------------------------
# Files


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("REFPRUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


def test_what_is_written_is_read_under_its_key_and_name_only(folder):
    cache.Store("a").write("f", b"content")
    assert cache.Store("a").read("f") == b"content"
    assert cache.Store("a").read("g") is None
    assert cache.Store("b").read("f") is None
    (file,) = folder.rglob("f.code")
    shutil.copy(file, file.with_name("g.code"))
    assert cache.Store("a").read("g") is None
    assert cache.Store("b").problem is None
    for other in folder.iterdir():
        shutil.copy(file, other / "f.code") if other != file.parent else None
    assert cache.Store("b").read("f") is None


def test_a_file_that_is_not_as_it_was_written_counts_as_absent(folder):
    store = cache.Store("key")
    store.write("f", bytes(range(100)))
    (file,) = folder.rglob("f.code")
    whole = file.read_bytes()
    for i in range(len(whole)):
        spoilt = bytearray(whole)
        spoilt[i] ^= 1 << i % 8
        for content in (spoilt, whole[:i]):
            file.write_bytes(content)
            assert store.read("f") is None
    for content in (whole + b"\0", os.urandom(500)):
        file.write_bytes(content)
        assert store.read("f") is None
    file.write_bytes(whole)
    assert store.read("f") == bytes(range(100))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_only_the_user_may_write_the_cache(folder):
    cache.Store("key").write("f", b"content")
    (file,) = folder.rglob("f.code")
    for place in (folder, file.parent):
        assert place.stat().st_mode & 0o777 == 0o700
        place.chmod(0o770)
        store = cache.Store("key")
        assert store.problem == f"{place} can be written by other users"
        assert store.read("f") is None
        place.chmod(0o700)
    file.chmod(0o602)
    assert cache.Store("key").read("f") is None
    file.chmod(0o600)
    assert cache.Store("key").read("f") == b"content"
    status = list(file.stat())
    status[4] = os.geteuid() + 1  # its owner
    assert cache._belongs_to_others(os.stat_result(status)) == "belongs to another user"


def test_without_a_folder_nothing_is_kept_and_nothing_fails(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REFPRUNE_CACHE", str(tmp_path / "file"))
    store = cache.Store("key")
    store.write("f", b"content")
    assert store.read("f") is None
    assert "file" in store.problem


def test_a_folder_that_vanishes_is_no_error(folder):
    store = cache.Store("key")
    assert cache.clear() == 0
    store.write("f", b"content")
    assert store.read("f") is None
    assert store.problem


def test_old_folders_go(folder):
    keys = [f"key {i}" for i in range(cache.KEEP + 3)]
    for age, key in enumerate(keys):
        cache.Store(key).write("f", b"content")
        os.utime(folder / cache._name_of(key), (1e9 - age, 1e9 - age))
    (folder / "somebody's").mkdir()
    cache.Store("now").write("f", b"content")
    assert [key for key in keys if (folder / cache._name_of(key)).exists()] == keys[: cache.KEEP - 1]
    assert cache.clear() == cache.KEEP * (cache.DIGEST + len(b"content"))
    assert [path.name for path in folder.iterdir()] == ["somebody's"]


def test_writers_at_once_leave_one_of_their_contents(folder):
    contents = [bytes([i]) * 50_000 for i in range(4)]

    def work(content):
        store = cache.Store("key")
        for _ in range(40):
            store.write("f", content)
            assert store.read("f") in contents

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, contents))
    assert [path.name for path in folder.rglob("*.*")] == ["f.code"]


# --------------------------------------------------------------------------------------------------------------------
# Machine code

PLANTED = {
    "planted_inner.py": """
from .machine.kernel import inner
@inner
def change(x):
    return 2 * x
""",
    "planted.py": """
from .machine.kernel import inner, kernel, native, reader, writer
from .planted_inner import change
@kernel(lambda f: (reader(f, 1), writer(f, 1)))
def doubled(part, parts, x, y):
    for i in range(part * len(x) // parts, (part + 1) * len(x) // parts):
        y[i] = change(x[i])
def make(n):
    @inner
    def power(x):
        for _ in range(n):
            x = x * x
        return x
    @kernel(lambda f: (reader(f, 1), writer(f, 1)))
    def powers(part, parts, x, y):
        for i in range(part * len(x) // parts, (part + 1) * len(x) // parts):
            y[i] = power(x[i])
    return powers
squares, fourths = make(1), make(2)
""",
}
RUN = """
import json, logging, sys, numpy as np
from refprune.kernels import planted
heard = []
def hear(self, record):
    if "threads._watch" not in record.getMessage():  # which a helping thread makes when it gets round to it
        heard.append(record.msg.split()[0])
logger = logging.getLogger("refprune.kernels")
logger.setLevel(logging.DEBUG)
logger.addHandler(type("Ear", (logging.Handler,), {"emit": hear})())
x, results = np.arange(5.0), {}
for name, parts in (NAMES):
    y = np.zeros(5)
    getattr(planted, name)[x.dtype](parts, x, y)
    results[name] = y.tolist()
print(json.dumps([results, heard]))
"""


@pytest.fixture
def copy(tmp_path):
    """A copy of the package with two more files of kernels; run(names) calls them in a process of their own."""
    shutil.copytree(PACKAGE, tmp_path / "refprune", ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in PLANTED.items():
        (tmp_path / "refprune" / "kernels" / name).write_text(text)
    return tmp_path


def start(copy, *names, parts=1, **variables):
    code = RUN.replace("NAMES", repr([(name, parts) for name in names]))
    return python(code, path=copy, **{"REFPRUNE_CACHE": str(copy / "cache"), **variables})


X = np.arange(5.0)
COMPILED, LOADED = ["compiling", "compiled"], ["loaded"]


def test_the_second_process_loads_what_the_first_compiled(copy):
    for heard in (2 * COMPILED, 2 * LOADED):  # the part, and its launch in two threads
        assert answer(start(copy, "doubled", parts=2)) == [{"doubled": list(2 * X)}, heard]


def test_spoilt_machine_code_is_made_anew(copy):
    answer(start(copy, "doubled", parts=2))
    files = [file for file in (copy / "cache").rglob("*.code") if not file.name.startswith("threads._watch")]
    assert len(files) == 2
    spoil = [
        lambda whole: whole[:1000] + bytes([whole[1000] ^ 16]) + whole[1001:],
        lambda whole: whole[: len(whole) // 2],
        lambda whole: os.urandom(len(whole)),
        lambda whole: b"",
    ]
    for how in spoil:
        for file in files:
            file.write_bytes(how(file.read_bytes()))
        assert answer(start(copy, "doubled", parts=2)) == [{"doubled": list(2 * X)}, 2 * COMPILED]
    assert answer(start(copy, "doubled", parts=2)) == [{"doubled": list(2 * X)}, 2 * LOADED]


def test_a_change_in_another_file_is_seen(copy):
    """The kernel inlines a function of a file of its own; Numba's stamp is that of the kernel's file alone."""
    answer(start(copy, "doubled"))
    file = copy / "refprune" / "kernels" / "planted_inner.py"
    file.write_text(file.read_text().replace("2 * x", "3 * x"))
    assert answer(start(copy, "doubled")) == [{"doubled": list(3 * X)}, COMPILED]


def test_another_version_processor_or_setting_has_its_own_machine_code(copy):
    processes = [
        start(copy, "doubled"),
        start(copy, "doubled", NUMBA_OPT="1"),
        start(copy, "doubled", NUMBA_CPU_NAME="generic"),
        start(copy, "doubled", NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="+sse4.2"),
    ]
    for process in processes:
        assert answer(process) == [{"doubled": list(2 * X)}, COMPILED]
    assert len(list((copy / "cache" / "kernels").iterdir())) == 4
    file = copy / "refprune" / "__init__.py"
    file.write_text(file.read_text().replace('__version__ = "', '__version__ = "9.'))
    assert answer(start(copy, "doubled"))[1] == COMPILED
    assert answer(start(copy, "doubled", NUMBA_NUM_THREADS="1"))[1] == LOADED


def test_processes_that_compile_at_once(copy):
    for process in [start(copy, "doubled") for _ in range(3)]:
        assert answer(process)[0] == {"doubled": list(2 * X)}
    assert answer(start(copy, "doubled"))[1] == LOADED
    assert len(list((copy / "cache").rglob("*.*"))) == 1


def test_two_closures_of_one_source_line_from_two_processes(copy):
    """Both processes number their first function alike; only the name may tell which is meant."""
    answers = [answer(p)[0] for p in (start(copy, "squares"), start(copy, "fourths"))]
    assert answers == [{"squares": list(X**2)}, {"fourths": list(X**4)}]
    assert answer(start(copy, "squares", "fourths")) == [{"squares": list(X**2), "fourths": list(X**4)}, 2 * LOADED]


def test_without_a_cache_kernels_are_compiled_in_silence(copy):
    (copy / "file").write_text("")
    assert answer(start(copy, "doubled", REFPRUNE_CACHE=str(copy / "file"))) == [{"doubled": list(2 * X)}, COMPILED]


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
import test_machine
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of every fork beside threads
if __name__ == "__main__":
    here = test_machine.bits(2)
    with multiprocessing.get_context(METHOD).Pool(2) as pool:
        found = pool.map_async(test_machine.bits, [2, 1, 2]).get(60)
    print(json.dumps([one == here for one in [*found, test_machine.bits(2)]]))
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
    command = [sys.executable, "-m", "pytest", str(HERE / "test_layers.py"), "-p", "no:cacheprovider", "-k", " ".join(chosen)]
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
