"""A sweep's runs on a Dask cluster (extra `cluster`): the executor that `experiments.sweep.run_sweep` takes, once every worker
has been checked.

The contract: all machines see the sweep's folder under the same absolute path and can write there (a shared file system), for
runs, their checkpoints and their results lie in it; and every worker finds the data, below `--data-dir` or where its own
REFPRUNE_DATA points. This is checked before the first run, and again by every worker before each run, because workers come and
go. A worker has as many runs at a time as Dask has given it threads (`dask worker --nthreads`); each run is a process of its
own with the sweep's `threads`, and ends when its worker does. The run of a worker that died is resumed by another from its last
checkpoint; after as many deaths as Dask's `distributed.scheduler.allowed-failures` allows (3) it counts as failed.
"""

from __future__ import annotations

import contextlib
import os
import platform
import secrets
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

from ..data import sets
from ..errors import InputError
from ..output import install
from ..output.files import locked
from . import environment
from .sweep import Children
from .sweep_file import Job, Sweep
from .sweep_results import Outcome

HINT = f"a sweep on a cluster needs Dask's distributed:  {install.command('cluster')}"

#: Seconds to wait for the scheduler, for a first worker, and for the process of a dead worker's run to end.
CONNECT, PATIENCE = 10.0, 30.0


class ClusterExecutor(Executor):
    """`submit(execute, job)` on the workers of a Dask client; by the file `token` a worker knows the sweep's folder."""

    def __init__(self, client: Any, token: Path) -> None:
        self._inner, self._token = client.get_executor(pure=False), str(token)

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = self._inner.submit(at_worker, self._token, function, *arguments, **options)
        return future


@contextlib.contextmanager
def executor(
    address: str, sweep: Sweep, directory: Path, *, data_directory: str | None = None, say: Callable[[str], None] = print
) -> Iterator[ClusterExecutor]:
    """The workers of the Dask scheduler at `address` ("tcp://HOST:PORT") as an executor; at its end no run is left on them.

    InputError if the scheduler does not answer or has no workers, if versions differ, or with the name of a worker that does
    not see the sweep's `directory` or the data, or sees other data than the others.
    """
    client = _connect(address)
    directory.mkdir(parents=True, exist_ok=True)
    token = directory.absolute() / f"cluster-{secrets.token_hex(8)}.token"
    try:
        token.touch()
        check_versions(address, client.get_versions(packages=["refprune"]))
        names = {config.data.name for setting in sweep.settings for config in setting.configs}
        files = sorted(names - {"synthetic-digits"})  # which come from the code
        folder = None if data_directory is None else str(Path(data_directory).absolute())
        check_workers(address, client.run(probe, str(token), files, folder, on_error="return"))
        threads = client.nthreads()
        say(f"{address}: {len(threads)} workers, {sum(threads.values())} runs at a time")
        yield ClusterExecutor(client, token)
    finally:
        if client.status == "running":  # a scheduler that has gone can stop nothing; its workers end with it
            with contextlib.suppress(Exception):
                client.run(end, str(token), on_error="ignore")
        client.close()
        token.unlink(missing_ok=True)


def _connect(address: str) -> Any:
    """A client with at least one worker."""
    try:
        import distributed
    except ImportError as error:
        raise InputError(HINT) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", distributed.versions.VersionMismatchWarning)  # `check_versions` says it
        try:
            client = distributed.Client(address, timeout=CONNECT, set_as_default=False)
        except Exception as error:  # an address that is none, nobody there, another protocol: each has a type of its own
            raise InputError(f"--scheduler {address}: no Dask scheduler answers there ({error}); tcp://HOST:PORT") from error
    try:
        client.wait_for_workers(1, timeout=CONNECT)
    except Exception as error:
        client.close()
        raise InputError(
            f"--scheduler {address}: the scheduler has no workers; start some with `dask worker {address}`"
        ) from error
    return client


def check_versions(address: str, versions: dict[str, Any]) -> None:
    """InputError for the first machine with another version than here; `versions` is what Dask's get_versions returns."""
    here = versions["client"]["packages"]
    sides = {f"the worker {name}": found for name, found in versions["workers"].items()}
    for name, found in ({"the scheduler": versions["scheduler"]} | sides).items():
        for package in ("python", "distributed", *(["refprune"] if name in sides else [])):
            there, ours = (_version(package, packages.get(package)) for packages in (found["packages"], here))
            if there != ours:
                raise InputError(f"--scheduler {address}: {name} has {package} {there}, here it is {ours}; they must agree")


def _version(package: str, version: str | None) -> str | None:
    """The part of a version that must agree: of Python's, the first two numbers."""
    return ".".join(version.split(".")[:2]) if package == "python" and version else version


def check_workers(address: str, found: dict[str, Any]) -> None:
    """InputError for the first worker that cannot take part; `found` is each worker's answer to `probe`, or its exception."""
    first: dict[str, Any] | None = None
    ours = environment.code_digest()
    for worker, answer in found.items():
        where = f"--scheduler {address}: the worker {worker}"
        if isinstance(answer, Exception):
            raise InputError(f"{where} failed the check ({type(answer).__name__}: {answer})") from answer
        if answer["problem"]:
            raise InputError(f"{where} {answer['problem']}")
        if answer["code"] != ours:
            raise InputError(f"{where} runs other source files of refprune than this process; install the same everywhere")
        first = first or answer
        other = [name for name, digest in answer["data"].items() if digest != first["data"][name]]
        if other:
            raise InputError(f"{where} has other data than {next(iter(found))} under the name {other[0]} (SHA-256 differs)")


# --------------------------------------------------------------------------------------------------------------------
# In a worker

#: The processes of each sweep, by its token, in this worker.
_children: dict[str, Children] = {}


def probe(token: str, names: list[str], data_directory: str | None) -> dict[str, Any]:
    """What this worker has: digest of its code, digest of every data set, and the problem that keeps it from taking part."""
    answer: dict[str, Any] = {"code": environment.code_digest(), "data": {}, "problem": unseen(token)}
    try:
        for name in [] if answer["problem"] else names:
            answer["data"][name] = environment.describe(sets.load(name, data_directory))["data_sha256"]
    except InputError as error:
        answer["problem"] = f"cannot read the data: {error}"
    return answer


def unseen(token: str) -> str:
    """Why this machine cannot work in the sweep's folder; empty if it can."""
    folder = Path(token).parent
    if not Path(token).is_file():
        return f"does not see the sweep's folder {folder}; it must be shared by all machines under this path (--out)"
    return "" if os.access(folder, os.W_OK) else f"cannot write into the sweep's folder {folder}"


def at_worker(token: str, function: Callable[[Job, Children], Outcome], job: Job) -> Outcome:
    """`function(job, children)` once the run's folder is there and free: a dead worker's process may take a moment to end."""
    problem = unseen(token)
    if problem:
        return Outcome(job, None, f"a worker on {platform.node()} {problem}")
    wait_until_free(Path(job.directory) / "config.toml", PATIENCE)
    return function(job, _children.setdefault(token, Children()))


def wait_until_free(path: Path, seconds: float) -> None:
    """Return when no process holds this file's lock, or when the time is over: then the run itself says who is there."""
    limit = time.monotonic() + seconds
    while path.exists() and time.monotonic() < limit:
        with contextlib.suppress(InputError), locked(path):
            return
        time.sleep(0.1)


def end(token: str) -> None:
    """End this sweep's processes in this worker, and let none begin."""
    _children.setdefault(token, Children()).end()
