"""`refprune verify ADAPTER`: is somebody's implementation right? `refprune vectors`: the same for any language."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..output import install
from ..output.files import check_folder, check_targets, encoded, user_cache, write_atomically
from .options import file_name, names, real, whole

#: Without options, with what is the same in every run: about half a minute of one core for the worked PyTorch adapter.
EXAMPLES = 1500


def add(commands: Any) -> None:
    """Add the parser to argparse's `commands`."""
    verify = commands.add_parser(
        "verify", help="is an implementation of gated training right? exit code 1 if not, 3 if undecided"
    )
    verify.add_argument("adapter", metavar="ADAPTER", help="package.module:Name or adapter.py:Name, a refprune.Implementation")
    verify.add_argument("--level", metavar="NAME,…", help="levels or methods (default: all that is provided)")
    verify.add_argument("--examples", metavar="N", type=whole, default=EXAMPLES, help=f"drawn in all (default: {EXAMPLES})")
    verify.add_argument("--dtype", choices=["float64", "float32", "bfloat16"], help="instead of the precision it declares")
    verify.add_argument("--seed", metavar="N", type=whole, default=0, help="of all examples")
    verify.add_argument("--structures", metavar="N", type=whole, help="of a method's examples; for what compiles each anew")
    verify.add_argument("--time-limit", metavar="S", type=real, default=20.0, help="seconds for one call (default: 20)")
    verify.add_argument("--vectors", metavar="DIR", type=file_name, help="stored vectors to ask first; alone with --examples 0")
    failures, what = Path("verify-failures"), "for what fails, as a script and a vector"
    verify.add_argument("--failures", metavar="DIR", type=file_name, default=failures, help=f"{what} (default: {failures})")
    verify.add_argument("--report", metavar="FILE", type=file_name, help="write a self-contained HTML report")
    verify.add_argument("--json", metavar="FILE", type=file_name, help="write everything found")
    verify.add_argument("--junit", metavar="FILE", type=file_name, help="write JUnit's XML for a continuous integration")
    verify.set_defaults(command=run)

    vectors = commands.add_parser("vectors", help="examples with their right answers as files, for any language")
    actions = vectors.add_subparsers(required=True, metavar="action")
    export = actions.add_parser("export", help="write vectors of every method")
    export.add_argument("directory", metavar="DIR", type=file_name)
    export.add_argument("--level", metavar="NAME,…", help="levels or methods (default: all)")
    export.add_argument("--per-method", metavar="N", type=whole, default=1, help="drawn examples of a method (default: 1)")
    export.add_argument("--dtype", choices=["float64", "float32"], default="float64", help="of arguments and tolerances")
    export.add_argument("--seed", metavar="N", type=whole, default=0, help="of the drawn examples")
    export.add_argument("--format", choices=["npz", "safetensors"], default="npz", help="of the files of arrays")
    export.set_defaults(command=_export)
    check = actions.add_parser("check", help="derive each again by two witnesses; exit code 1 if one fails")
    check.add_argument("directory", metavar="DIR", type=file_name)
    check.set_defaults(command=_check)


def require(*packages: str) -> None:
    """InputError, one sentence, for the first package that is not installed. Hypothesis keeps its files out of this folder."""
    os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(user_cache() / "hypothesis"))
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise InputError(f"verify: {package} is not installed:  {install.command('verify')}")


def run(options: argparse.Namespace) -> int:
    """The command; 0 conforms, 1 deviates, 2 could not run (InputError) or nothing to judge, 3 undecided in a method."""
    require("hypothesis", *(["matplotlib"] if options.report else []))
    from ..conformance import campaign, page, reporting
    from ..conformance.asking.worker import Worker
    from ..conformance.vectors import files

    fewest = 1 if options.vectors is None else 0
    if options.examples < fewest:
        without = "" if fewest == 0 else ", or 0 with --vectors"
        raise InputError(f"--examples: must be at least {fewest}{without}, got {options.examples}")
    if not 0.0 < options.time_limit < float("inf"):
        raise InputError(f"--time-limit: must be a positive number of seconds, got {options.time_limit}")
    check_targets(report=options.report, json=options.json, junit=options.junit)
    check_folder("--failures", options.failures)
    methods = campaign.chosen(names("--level", options.level))
    stored = [] if options.vectors is None else list(files.read(options.vectors))
    if options.structures is not None and options.structures < 1:
        raise InputError(f"--structures: must be at least 1, got {options.structures}")
    worker = Worker(options.adapter, options.time_limit, options.dtype)
    if options.structures is not None:
        worker.description = dataclasses.replace(worker.description, structures=options.structures)
    try:
        outcomes = campaign.run(worker, methods, options.examples, options.seed, _say, stored=stored)
    finally:
        worker.close()
    description = worker.description
    print(reporting.text(outcomes, description))
    if stored:
        fitting = sum(v.method in methods and v.asks(description) for v in stored)
        print(f"{fitting} of {len(stored)} vectors of {options.vectors} are for these methods and conventions")
    judged = [o for o in outcomes if o.verdict == "conforms"]
    if reporting.conforms(outcomes) and options.examples == EXAMPLES:
        least = min(judged, key=lambda o: o.examples)
        print(f"{least.examples} to {max(o.examples for o in judged)} examples a method; --examples 10000 finds rarer mistakes")
    if options.json:
        found = reporting.as_json(outcomes, description, options.adapter, options.seed)
        write_atomically(options.json, encoded(json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)))
    if options.junit:
        write_atomically(options.junit, reporting.junit(outcomes, options.adapter))
    if options.report:
        write_atomically(options.report, encoded(page.page(outcomes, description, options.adapter)))
        print(f"report: {options.report}")
    _write_failures(options, description.precision, [f for o in outcomes for f in o.findings if f.arguments])
    if reporting.conforms(outcomes):
        return 0
    verdicts = {o.verdict for o in outcomes}
    return 1 if "DEVIATES" in verdicts else 3 if "undecided" in verdicts else 2


def _export(options: argparse.Namespace) -> int:
    require("hypothesis", *(["safetensors"] if options.format == "safetensors" else []))
    from ..conformance import campaign
    from ..conformance.levels import METHODS
    from ..conformance.vectors import export

    if options.per_method < 1:
        raise InputError(f"--per-method: must be at least 1, got {options.per_method}")
    counts = export.export(
        options.directory,
        methods=campaign.chosen(names("--level", options.level), METHODS),  # random results have no vectors
        per_method=options.per_method,
        precision=options.dtype,
        seed=options.seed,
        container=options.format,
    )
    listed = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    print(f"{sum(counts.values())} vectors in {options.directory}: {listed}")
    return 0


def _check(options: argparse.Namespace) -> int:
    require("hypothesis", "torch")
    from ..conformance.vectors import export

    checked = list(export.check(options.directory))
    for row in checked:
        if not row.holds:
            print(f"{row.path} ({row.result}): oracle {row.oracle}; {row.witness} {row.second}")
    twice = sum(row.holds and row.second == "holds" for row in checked)
    print(f"{len(checked)} vectors, {sum(row.holds for row in checked)} hold, {twice} of them by two witnesses")
    return 0 if all(row.holds for row in checked) else 1


def _say(outcome: Any) -> None:
    """A line for each method as soon as it is done, in pipes too."""
    if outcome.provided:
        with contextlib.suppress(OSError):  # nobody takes it; the verdict does not depend on that
            print(f"{outcome.method}: {outcome.verdict}, {outcome.seconds:.1f} s", file=sys.stderr, flush=True)


def _write_failures(options: argparse.Namespace, precision: str, findings: list[Any]) -> None:
    """Every finding's example as a script that runs alone, and as a vector with the right values unless results are random."""
    from ..conformance.asking.scripts import script
    from ..conformance.judging.findings import RANDOM
    from ..conformance.levels import METHODS
    from ..conformance.vectors import files

    if not findings:
        return
    options.failures.mkdir(parents=True, exist_ok=True)
    repeatable = [f for f in findings if f.method in METHODS and f.kind not in RANDOM]
    for finding in findings:
        name = f"{finding.method}-{finding.kind.replace(' ', '-')}"
        path = options.failures / f"{name}.py"
        write_atomically(path, encoded(script(finding, options.adapter, precision)))
        if finding in repeatable:
            aim = f"for which {options.adapter} was found to fail: {finding.kind}"
            files.write(options.failures, files.from_finding(name, METHODS[finding.method], finding.arguments, precision, aim))
        print(f"python {path}  runs the smallest example of: {finding.method} {finding.kind}")
    if repeatable:
        print(f"refprune verify {options.adapter} --vectors {options.failures} --examples 0  asks these examples again")
