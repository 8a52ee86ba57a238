"""The command line: `refprune run`, `sweep`, `data`, `zoo`, `warmup`, `bench`, `audit`, and those of `commands` and `verify`.

What a user can mend is one sentence, exit code 2.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import __version__
from . import commands as trained
from .cli import verify as verification
from .errors import InputError
from .output.files import check_targets, write_atomically


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command in `arguments` (default: the process's); returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without ≡ shows ?
    options = _parser().parse_args(arguments)
    try:
        code: int = options.command(options)
        sys.stdout.flush()
    except InputError as error:
        print(f"refprune: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        print(f"refprune: {error.filename or 'the system'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"refprune: not enough memory ({error})", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("refprune: interrupted; a run goes on with --resume DIR, a sweep with the same command", file=sys.stderr)
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("refprune", description="Concurrent training and pruning of neural networks, in NumPy.")
    parser.add_argument("--version", action="version", version=f"refprune {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    run = commands.add_parser("run", help="train and prune; without arguments the quick start")
    run.add_argument("experiment", nargs="?", help="a known name (see `refprune zoo`; default quickstart) or a .toml file")
    run.add_argument(
        "--data",
        metavar="NAME",
        help="data set instead of the experiment's, same as --set data.name=NAME: "
        "see `refprune data list`, or folder:PATH@SIZE for images in PATH/train/CLASS and PATH/val/CLASS",
    )
    run.add_argument("--data-dir", metavar="DIR", help="folder with the data sets (default: $REFPRUNE_DATA, then datasets/)")
    run.add_argument("--threads", metavar="N", type=int, help="threads to use (default: all cores); the results are the same")
    run.add_argument("--set", metavar="A.B=VALUE", action="append", default=[], help="change one key of the experiment")
    run.add_argument("--out", metavar="DIR", type=Path, help="run directory (default: runs/NAME-TIME)")
    run.add_argument("--resume", metavar="DIR", type=Path, help="go on with the run in DIR")
    run.set_defaults(command=_run)

    sweep = commands.add_parser("sweep", help="many runs over settings and seeds; what is done already is not done again")
    sweep.add_argument("file", metavar="FILE.toml", type=Path)
    sweep.add_argument("--out", metavar="DIR", type=Path, help="folder of the runs (default: runs/sweep-NAME)")
    sweep.add_argument("--jobs", metavar="N", type=int, help="runs at a time (default: cores / --threads)")
    sweep.add_argument("--threads", metavar="N", type=int, default=1, help="threads of each run (default: 1)")
    sweep.add_argument("--data-dir", metavar="DIR")
    sweep.add_argument(
        "--scheduler",
        metavar="tcp://HOST:PORT",
        help="run on the workers of this Dask scheduler; they share the folder (--out)",
    )
    sweep.set_defaults(command=_sweep)

    data = commands.add_parser("data", help="list, fetch and verify data sets")
    actions = data.add_subparsers(required=True, metavar="action")
    listing = actions.add_parser("list", help="which sets are known, which are there")
    fetch = actions.add_parser("fetch", help="download a set; every byte is checked before use")
    fetch.add_argument("name")
    fetch.add_argument("--mirror", metavar="URL", action="append", help="base URL to use instead of the known mirrors")
    verify = actions.add_parser("verify", help="compare the files of a set with their SHA-256")
    verify.add_argument("name")
    for action, command in ((listing, _data_list), (fetch, _data_fetch), (verify, _data_verify)):
        action.add_argument("--data-dir", metavar="DIR")
        action.set_defaults(command=command)

    zoo = commands.add_parser("zoo", help="networks and experiments; with a name, its layers or its text")
    zoo.add_argument("name", nargs="?", help="also with options, as in 'resnet-20:units=true;gates=true'")
    zoo.set_defaults(command=_zoo)

    export = commands.add_parser("export", help="write the network of a finished run for others; it is checked after writing")
    export.add_argument("directory", metavar="RUN", type=Path, help="run directory")
    export.add_argument("--of", metavar="NAME", default="pruned", help="which of its networks (default: pruned)")
    export.add_argument("--npz", metavar="FILE", type=Path, help="arrays and spec, no pickle")
    export.add_argument("--onnx", metavar="FILE", type=Path, help="extra `exchange`")
    export.add_argument(
        "--torch", metavar="FILE", type=Path, help="state dict, and beside it a .py that builds its module; extra `torch`"
    )
    export.add_argument("--spec", metavar="FILE.json", type=Path, help="the layers, as --spec of other commands reads them")
    export.set_defaults(command=_export)

    warmup = commands.add_parser("warmup", help="compile now what a run would compile at its start, and keep it on disk")
    warmup.add_argument("names", nargs="*", metavar="NAME", help="experiment, network or .toml file (default: quickstart)")
    warmup.add_argument("--threads", metavar="N", type=int, help="as for `run`")
    warmup.add_argument("--clear", action="store_true", help="remove what earlier runs have compiled, of every version")
    warmup.set_defaults(command=_warmup)

    trained.add(commands)

    bench = commands.add_parser("bench", help="time training, inference, convolutions and CKA; beside PyTorch if asked")
    bench.add_argument("names", nargs="*", metavar="NAME", help="network or group of cases (default: all)")
    bench.add_argument("--against", choices=["torch"], help="compare with this; results are compared before they are timed")
    bench.add_argument("--threads", metavar="N", type=int, help="threads of every side (default: all cores)")
    bench.add_argument(
        "--repeats", metavar="N", type=int, help="rounds of a case (default: as many as fit into 3 seconds, 5 to 51)"
    )
    bench.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    bench.add_argument("--seed", metavar="N", type=int, default=0)
    bench.add_argument("--data-dir", metavar="DIR")
    bench.add_argument("--json", metavar="FILE", type=Path, help="write everything measured, and where")
    bench.add_argument("--picture", metavar="FILE", type=Path, help="ratios as bars, .png or .svg")
    bench.add_argument("--roofline", metavar="FILE", type=Path, help="convolutions against peak and memory, .png or .svg")
    bench.set_defaults(command=_bench)

    audit = commands.add_parser("audit", help="prove the formulas again, claim by claim; exit code 1 if one does not hold")
    audit.add_argument("--only", metavar="F,O2", help="letters or numbers of claims (default: all)")
    audit.add_argument(
        "--report", metavar="FILE", type=Path, help="write a self-contained HTML report with formulas and pictures"
    )
    audit.add_argument("--json", metavar="FILE", type=Path, help="write every deviation and bound")
    audit.add_argument("--seed", metavar="N", type=int, default=0, help="of all random witnesses")
    audit.set_defaults(command=_audit)
    verification.add(commands)
    return parser


def _as_folder(name: str) -> str:
    return re.sub(r"[^\w-]+", "-", name)


def _run(options: argparse.Namespace) -> int:
    from .experiments import report, run, warmup
    from .output import figures, tables
    from .output.progress import Progress
    from .training import config

    progress = Progress()
    told: list[bool] = []

    def tell(record: logging.LogRecord) -> None:
        if not told:
            problem = getattr(record, "problem", None)
            progress.note(f"compiling kernels ({f'they cannot be kept: {problem}' if problem else 'once'})…")
            told.append(True)

    how: dict[str, Any] = {"data_directory": options.data_dir, "progress": progress}
    with warmup.listening(tell):
        if options.resume is not None:
            if options.set or options.data is not None or options.out or options.experiment is not None:
                raise InputError(
                    "--resume: goes on with the run as it was; only --data-dir and --threads may be given beside it"
                )
            directory = options.resume
            summary = run.resume(directory, threads=options.threads, **how)
        else:
            overrides = options.set + ([] if options.data is None else [f"data.name={json.dumps(options.data)}"])
            overrides += [] if options.threads is None else [f"training.threads={options.threads}"]
            settings = config.load(options.experiment or "quickstart", overrides)
            name = _as_folder(settings.name) or "run"
            directory = options.out or Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
            summary = run.run(settings, directory, **how)
    print("\n" + tables.text_table(report.rows(summary)))
    for line in (*report.nothing_left_lines(summary), *report.decision_lines(summary)):
        print(line)
    page = report.write_html(directory, summary)
    print(f"\nreport: {page}" if page else f"\n{figures.HINT}")
    return 0 if report.holds(summary) else 1


def _sweep(options: argparse.Namespace) -> int:
    from .experiments import cluster, sweep, sweep_file, sweep_report
    from .output import figures

    for name in ("jobs", "threads"):
        number = getattr(options, name)
        if number is not None and number < 1:
            raise InputError(f"--{name}: must be at least 1, got {number}")
    if options.jobs and options.scheduler:
        raise InputError("--jobs: with --scheduler the workers' threads say how many runs there are at a time")
    plan = sweep_file.load_sweep(options.file)
    directory = options.out or Path("runs") / f"sweep-{_as_folder(plan.name)}"
    how: dict[str, Any] = {"threads": options.threads, "data_directory": options.data_dir}
    if options.scheduler:
        with cluster.executor(options.scheduler, plan, directory, data_directory=options.data_dir) as executor:
            outcomes = sweep.run_sweep(plan, directory, executor=executor, **how)
    else:
        workers = options.jobs or max(1, (os.cpu_count() or 1) // options.threads)
        outcomes = sweep.run_sweep(plan, directory, workers=workers, **how)
    print("\n" + sweep_report.text(directory))
    page = sweep_report.write_html(directory)
    print(f"\nreport: {page}" if page else f"\n{figures.HINT}")
    failed = [outcome for outcome in outcomes if outcome.summary is None]
    return 1 if failed else 0


def _data_list(options: argparse.Namespace) -> int:
    from .data import fetch, sets
    from .output import tables

    folder = sets.data_directory(options.data_dir)
    table = [("name", "state", "MB", "what")]
    table += [(s.name, s.status, f"{s.bytes / 1e6:.1f}", s.title) for s in fetch.available(folder)]
    print(f"folder: {folder}\n\n{tables.text_table(table)}")
    return 0


def _data_fetch(options: argparse.Namespace) -> int:
    from .data import fetch, sets

    def show(file: str, done: int, size: int) -> None:
        if sys.stdout.isatty():
            print(f"\r{file}: {done / 1e6:.1f} of {size / 1e6:.1f} MB", end="\n" if done == size else "", flush=True)

    folder = fetch.fetch(options.name, sets.data_directory(options.data_dir), options.mirror, show)
    print(f"{options.name}: complete and verified in {folder}")
    return 0


def _data_verify(options: argparse.Namespace) -> int:
    from .data import fetch, sets

    results = fetch.verify(options.name, sets.data_directory(options.data_dir))
    for file in results:
        print(f"{file.status:12} {file.path}  {file.detail}")
    return 0 if all(file.status in ("ok", "unchecked") for file in results) else 2


def _zoo(options: argparse.Namespace) -> int:
    from .exchange import spec_of_file
    from .output import tables
    from .spec import zoo
    from .spec.cost import flops, macs, parameters, per_layer
    from .training import presets

    if options.name in presets.experiments():
        print(presets.experiment_text(options.name), end="")
        return 0
    if options.name is not None:
        if options.name.partition(":")[0] not in zoo.NETWORKS:
            known = ", ".join([*zoo.NETWORKS, *presets.experiments()])
            raise InputError(f"zoo: {options.name!r} is neither a network nor an experiment; there are {known}")
        network = spec_of_file.network_for(options.name, {})
        table: list[tuple[str, ...]] = [("layer", "kind", "input", "output", "parameters", "MACs")]
        for cost in per_layer(network):
            shapes = ("×".join(map(str, shape)) for shape in (cost.input_shape, cost.output_shape))
            kind = type(cost.layer).__name__
            table.append((cost.layer.name, kind, *shapes, f"{cost.parameters:,}", f"{cost.macs:,}"))
        table.append(("total", "", "", "", f"{parameters(network):,}", f"{macs(network):,}"))
        print(tables.text_table(table))
        counts = [(of(network), of(network, parts=("weight",))) for of in (parameters, flops)]
        print(f"without biases and norms: {counts[0][1]:,} parameters")
        print(f"FLOPs: {counts[1][0]:,}; of weights alone, 2 for each MAC, {counts[1][1]:,}")
        return 0
    print("networks:     " + ", ".join(zoo.NETWORKS))
    print("experiments:  " + ", ".join(presets.experiments()))
    return 0


def _export(options: argparse.Namespace) -> int:
    from .exchange import export
    from .spec import json_form

    if not (options.npz or options.onnx or options.torch or options.spec):
        raise InputError("export: give at least one of --npz, --onnx, --torch, --spec")
    if options.spec and options.spec.suffix != ".json":
        raise InputError(f"--spec {options.spec}: must end in .json, by which it is told from names of the zoo")
    module = options.torch.with_suffix(".py") if options.torch and options.torch.suffix != ".py" else None
    check_targets(npz=options.npz, onnx=options.onnx, torch=options.torch, spec=options.spec, **{"torch's module": module})
    trained = export.read_run(options.directory, options.of)
    if options.spec:
        write_atomically(options.spec, json.dumps(json_form.to_json(trained.network), indent=1).encode())
        print(f"{options.spec}: the spec of {len(trained.network.layers)} layers and sections")
    holds = True
    for path, kind in ((options.npz, "npz"), (options.onnx, "onnx"), (options.torch, "torch")):
        if path is None:
            continue
        check = export.write_checked(path, trained, kind)
        holds = holds and check.error <= 1.0
        verdict = "equal" if check.error <= 1.0 else "DIFFERENT"
        print(f"{path}: {verdict} on {check.images} random inputs, largest difference/tolerance {check.error:.2g}")
    return 0 if holds else 1


def _warmup(options: argparse.Namespace) -> int:
    from .experiments import warmup
    from .kernels.machine import cache

    if options.clear:
        print(f"removed {cache.clear() / 1e6:.1f} MB from {cache.location()}")
        if not options.names:
            return 0
    all_settings = {name: warmup.settings_of(name) for name in options.names or ["quickstart"]}
    heard: list[logging.LogRecord] = []

    def hear(record: logging.LogRecord) -> None:
        heard.append(record)
        if record.msg.startswith("compiled"):
            print(record.getMessage(), flush=True)

    for name, settings in all_settings.items():
        heard.clear()
        started = time.monotonic()
        with warmup.listening(hear, logging.DEBUG):
            warmup.warm_up(settings, options.threads)
        compiled, loaded = (sum(r.msg.startswith(word) for r in heard) for word in ("compiled", "loaded"))
        print(f"{name}: {compiled} kernels compiled, {loaded} loaded, {time.monotonic() - started:.1f} s")
    from .kernels.machine import jit

    problem = jit.store().problem
    print(f"machine code: {cache.location()}" + (f" (not kept: {problem})" if problem else ""))
    return 1 if problem else 0


def _bench(options: argparse.Namespace) -> int:
    for library in ("OPENBLAS", "MKL", "VECLIB") if options.threads else ():  # read when NumPy is loaded
        os.environ.setdefault(f"{library}_NUM_THREADS", str(options.threads))
    from .bench import cases, machine, pictures
    from .bench import run as benchmark
    from .output import files, tables

    chosen = benchmark.select(options.names)
    for name in ("threads", "repeats"):
        number = getattr(options, name)
        if number is not None and number < 1:
            raise InputError(f"--{name}: must be at least 1, got {number}")
    for path in filter(None, (options.picture, options.roofline)):
        pictures.check(path)
    for path in filter(None, (options.json, options.picture, options.roofline)):
        if not path.parent.is_dir():
            raise InputError(f"{path}: the folder {path.parent} does not exist")
    if options.against:
        benchmark.require_torch()
    setting = cases.Setting(
        threads=options.threads or cases.all_threads(),
        dtype=options.dtype,
        torch=options.against == "torch",
        seed=options.seed,
        data_directory=options.data_dir,
    )
    where = machine.describe(setting) | machine.limits(setting)
    print("  ".join(f"{key} {where[key]}" for key in ("cpu", "threads", "dtype")))
    peaks = (where["peak_gflops_1_thread"], where["peak_gflops"], where["memory_gbytes"])
    print("peak {:.0f} GFLOP/s with one thread, {:.0f} with all; memory {:.1f} GB/s\n".format(*peaks), flush=True)

    def say(result: benchmark.Result) -> None:
        if sys.stderr.isatty():
            print(f"{result['label']}: done", file=sys.stderr)

    results = benchmark.run_bench(chosen, setting, benchmark.Options(repeats=options.repeats), say)
    print(tables.text_table(benchmark.table(results)))
    print("\n".join(["", *benchmark.notes(results)]))
    if options.json:
        files.write_atomically(options.json, json.dumps({"results": results, "machine": where}, indent=1).encode())
    title = f"{where['cpu']}, {setting.threads} threads, {setting.dtype}"
    if options.picture:
        pictures.bars(options.picture, results, title)
    if options.roofline:
        pictures.roofline(options.roofline, results, where, title)
    return 0 if benchmark.holds(results) else 1


def _audit(options: argparse.Namespace) -> int:
    from .audit import run as auditing
    from .audit.catalogue import Context
    from .output import files

    claims = auditing.select(options.only)
    auditing.require("sympy", "mpmath", *(["matplotlib"] if options.report else []))
    files.check_targets(report=options.report, json=options.json)
    context, started = Context(options.seed), time.monotonic()
    print(auditing.row(None) + "\n" + "-" * auditing.LINE)
    results = auditing.run_audit(claims, context, lambda result: print(auditing.row(result), flush=True))
    failed = [r for r in results if not r.holds]
    red = dict.fromkeys(r.claim.number for r in failed)
    verdict = "all hold" if auditing.holds(results) else f"NOT: {', '.join(red)}"
    if failed:
        print("\n" + "\n".join(("What does not hold:", *map(auditing.row, failed))))
    print(f"\n{len(claims)} claims, {len(results)} witnesses, {time.monotonic() - started:.1f} s: {verdict}")
    if options.json:
        files.write_atomically(
            options.json, json.dumps(auditing.as_json(results, context), indent=1, ensure_ascii=False).encode()
        )
    if options.report:
        from .audit.page import page

        files.write_atomically(options.report, page(results, context).encode())
        print(f"report: {options.report}")
    return 0 if auditing.holds(results) else 1


if __name__ == "__main__":
    sys.exit(main())
