"""`refprune verify ADAPTER`: is somebody's implementation right? `refprune vectors`: the same for any language."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import write_atomically

#: Without options: about a minute of two cores.
EXAMPLES = 1500


def add(commands: Any) -> None:
    """Add the parser to argparse's `commands`."""
    verify = commands.add_parser(
        "verify", help="is an implementation of gated training right? exit code 1 if not, 3 if undecided"
    )
    verify.add_argument("adapter", metavar="ADAPTER", help="package.module:Name or adapter.py:Name, a refprune.Implementation")
    verify.add_argument("--level", metavar="NAME,…", default="", help="levels or methods (default: all that is provided)")
    verify.add_argument("--examples", metavar="N", type=int, default=EXAMPLES, help=f"in all (default: {EXAMPLES})")
    verify.add_argument("--dtype", choices=["float64", "float32", "bfloat16"], help="instead of the precision it declares")
    verify.add_argument("--seed", metavar="N", type=int, default=0, help="of all examples")
    verify.add_argument("--structures", metavar="N", type=int, help="of a method's examples; for what compiles each anew")
    verify.add_argument("--time-limit", metavar="S", type=float, default=20.0, help="seconds for one call (default: 20)")
    failures = Path("verify-failures")
    verify.add_argument("--failures", metavar="DIR", type=Path, default=failures, help=f"for scripts (default: {failures})")
    verify.add_argument("--report", metavar="FILE", type=Path, help="write a self-contained HTML report")
    verify.add_argument("--json", metavar="FILE", type=Path, help="write everything found")
    verify.add_argument("--junit", metavar="FILE", type=Path, help="write JUnit's XML for a continuous integration")
    verify.set_defaults(command=run)

    vectors = commands.add_parser("vectors", help="examples with their right answers as files, for any language")
    actions = vectors.add_subparsers(required=True, metavar="action")
    export = actions.add_parser("export", help="write vectors of every method")
    export.add_argument("directory", metavar="DIR", type=Path)
    export.add_argument("--per-method", metavar="N", type=int, default=2, help="vectors of a method (default: 2)")
    export.add_argument("--dtype", choices=["float64", "float32"], default="float64")
    export.add_argument("--seed", metavar="N", type=int, default=0)
    export.set_defaults(command=_export)
    check = actions.add_parser("check", help="derive each again by two witnesses, the oracle and PyTorch")
    check.add_argument("directory", metavar="DIR", type=Path)
    check.set_defaults(command=_check)


def require(*packages: str) -> None:
    """InputError, one sentence, for the first package that is not installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise InputError(f"verify: {package} is not installed:  pip install -e '.[verify]'")


def run(options: argparse.Namespace) -> int:
    """The command; 0 conforms, 1 deviates or nothing could be judged, 2 could not run (InputError), 3 undecided in a method."""
    require("hypothesis", *(["matplotlib"] if options.report else []))
    from . import campaign, reporting
    from .worker import Worker

    if options.examples < 1 or options.time_limit <= 0.0:
        raise InputError("--examples and --time-limit must be positive")
    outputs = [path for path in (options.report, options.json, options.junit) if path is not None]
    for path in outputs:
        if not path.parent.is_dir():
            raise InputError(f"{path}: the folder {path.parent} does not exist")
    methods = campaign.chosen([name for name in options.level.split(",") if name])
    if options.structures is not None and options.structures < 1:
        raise InputError(f"--structures: must be at least 1, got {options.structures}")
    worker = Worker(options.adapter, options.time_limit, options.dtype)
    if options.structures is not None:
        worker.description = dataclasses.replace(worker.description, structures=options.structures)
    try:
        outcomes = campaign.run(worker, methods, options.examples, options.seed, _say)
    finally:
        worker.close()
    description = worker.description
    print(reporting.text(outcomes, description))
    _write_scripts(options, [f for o in outcomes for f in o.findings if f.arguments])
    judged = [o for o in outcomes if o.verdict == "conforms"]
    if reporting.conforms(outcomes) and options.examples == EXAMPLES:
        least = min(judged, key=lambda o: o.examples)
        print(f"{least.examples} to {max(o.examples for o in judged)} examples a method; --examples 10000 finds rarer mistakes")
    if options.json:
        found = reporting.as_json(outcomes, description, options.adapter, options.seed)
        write_atomically(options.json, json.dumps(found, indent=1, ensure_ascii=False).encode())
    if options.junit:
        write_atomically(options.junit, reporting.junit(outcomes, options.adapter))
    if options.report:
        write_atomically(options.report, reporting.page(outcomes, description, options.adapter).encode())
        print(f"report: {options.report}")
    if reporting.conforms(outcomes):
        return 0
    wrong = any(o.verdict == "DEVIATES" for o in outcomes)
    return 3 if not wrong and any(o.verdict == "undecided" for o in outcomes) else 1


def _export(options: argparse.Namespace) -> int:
    require("hypothesis")
    from . import vectors

    if options.per_method < 1:
        raise InputError(f"--per-method: must be at least 1, got {options.per_method}")
    count = vectors.export(options.directory, per_method=options.per_method, precision=options.dtype, seed=options.seed)
    print(f"{count} vectors in {options.directory}")
    return 0


def _check(options: argparse.Namespace) -> int:
    require("hypothesis", "torch")
    from . import vectors
    from .calls import InProcess, load

    torch = InProcess(load("refprune.conformance.torch_adapter:TorchImplementation"))
    checked = list(vectors.check(options.directory, torch))
    for row in checked:
        if not row.holds:
            print(f"{row.path}: oracle {row.oracle}; PyTorch {row.second}")
    twice = sum(row.second == "holds" for row in checked)
    print(f"{len(checked)} vectors, {sum(row.holds for row in checked)} hold, {twice} of them by both witnesses")
    return 0 if all(row.holds for row in checked) else 1


def _say(outcome: Any) -> None:
    if sys.stderr.isatty() and outcome.provided:
        print(f"{outcome.method}: {outcome.verdict}, {outcome.seconds:.1f} s", file=sys.stderr)


def _write_scripts(options: argparse.Namespace, findings: list[Any]) -> None:
    """Every finding's example as a script that runs alone."""
    from .scripts import script

    if findings:
        options.failures.mkdir(parents=True, exist_ok=True)
    for finding in findings:
        path = options.failures / f"{finding.method}-{finding.kind.replace(' ', '-')}.py"
        write_atomically(path, script(finding, options.adapter).encode())
        print(f"python {path}  runs the smallest example of: {finding.method} {finding.kind}")
