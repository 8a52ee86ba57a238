"""Under the kernels: machine code on disk, threads, processes that fork, and kernels that are not compiled at all."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from kernel_processes import ROOT, answer, python

from refprune.kernels.machine import cache

PACKAGE = ROOT / "refprune"


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
