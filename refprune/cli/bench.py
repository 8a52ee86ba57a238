"""`refprune bench`: timing, beside PyTorch if asked."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from ..errors import InputError
from .options import file_name, whole


def add(commands: Any) -> None:
    """Add the parser to argparse's `commands`."""
    bench = commands.add_parser("bench", help="time training, inference, convolutions and CKA; beside PyTorch if asked")
    bench.add_argument("names", nargs="*", metavar="NAME", help="network or group of cases (default: all)")
    bench.add_argument("--against", choices=["torch"], help="compare with this; results are compared before they are timed")
    bench.add_argument("--threads", metavar="N", type=whole, help="threads of every side (default: all cores)")
    bench.add_argument(
        "--repeats", metavar="N", type=whole, help="rounds of a case (default: as many as fit into 3 seconds, 5 to 51)"
    )
    bench.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    bench.add_argument("--seed", metavar="N", type=whole, default=0)
    bench.add_argument("--data-dir", metavar="DIR")
    bench.add_argument("--json", metavar="FILE", type=file_name, help="write everything measured, and where")
    bench.add_argument("--report", metavar="FILE", type=file_name, help="write a self-contained HTML report")
    bench.add_argument("--picture", metavar="FILE", type=file_name, help="ratios as bars, .png or .svg")
    bench.add_argument("--roofline", metavar="FILE", type=file_name, help="convolutions against peak and memory, .png or .svg")
    bench.set_defaults(command=_bench)


def _bench(options: argparse.Namespace) -> int:
    for library in ("OPENBLAS", "MKL", "VECLIB") if options.threads else ():  # read when NumPy is loaded
        os.environ.setdefault(f"{library}_NUM_THREADS", str(options.threads))
    from ..bench import cases, machine, page, pictures
    from ..bench import run as benchmark
    from ..kernels.machine import cores
    from ..output import figures, files, tables

    chosen = benchmark.select(options.names)
    for name in ("threads", "repeats"):
        number = getattr(options, name)
        if number is not None and number < 1:
            raise InputError(f"--{name}: must be at least 1, got {number}")
    for path in filter(None, (options.picture, options.roofline)):
        figures.check_picture(path)
    if options.report:
        figures.require_matplotlib()
    files.check_targets(json=options.json, report=options.report, picture=options.picture, roofline=options.roofline)
    if options.against:
        benchmark.require_torch()
    setting = cases.Setting(
        threads=options.threads or cores.allowed(),
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
    if options.report:
        files.write_atomically(options.report, page.report(results, where).encode())
        print(f"report: {options.report}")
    return 0 if benchmark.holds(results) else 1
