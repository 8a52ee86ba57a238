"""`refprune export`: the network of a finished run for other programs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..output.files import check_targets, write_atomically
from .options import file_name


def add(commands: Any) -> None:
    """Add the parser to argparse's `commands`."""
    export = commands.add_parser("export", help="write the network of a finished run for others; it is checked after writing")
    export.add_argument("directory", metavar="RUN", type=file_name, help="run directory")
    export.add_argument("--of", metavar="NAME", default="pruned", help="which of its networks (default: pruned)")
    export.add_argument("--npz", metavar="FILE", type=file_name, help="arrays and spec, no pickle")
    export.add_argument("--onnx", metavar="FILE", type=file_name, help="extra `exchange`")
    export.add_argument(
        "--torch", metavar="FILE", type=file_name, help="state dict, and beside it a .py that builds its module; extra `torch`"
    )
    export.add_argument(
        "--spec", metavar="FILE.json", type=file_name, help="the layers, as --spec of other commands reads them"
    )
    export.add_argument("--data-dir", metavar="DIR", help="folder with the data sets, whose numbers scale the inputs")
    export.set_defaults(command=_export)


#: Endings that say what a file is: of the options, and of other formats.
ENDINGS = {"npz": (".npz",), "onnx": (".onnx",), "torch": (".pt", ".pth", ".bin", ".ckpt")}
OTHERS = (".h5", ".hdf5", ".keras", ".safetensors", ".json", ".toml", ".tflite", ".pb", ".npy")


def _check_endings(**paths: Path | None) -> None:
    """InputError for a file whose ending says that it is of another format than what would be written."""
    for option, path in paths.items():
        wrong = {*OTHERS, *(e for name, endings in ENDINGS.items() for e in endings if name != option)}
        if path is not None and path.suffix.lower() in wrong:
            raise InputError(
                f"--{option} {path}: ends in {path.suffix}, which is another format; end it in {ENDINGS[option][0]}"
            )


def _export(options: argparse.Namespace) -> int:
    from ..exchange import export
    from ..spec import json_form

    if not (options.npz or options.onnx or options.torch or options.spec):
        raise InputError("export: give at least one of --npz, --onnx, --torch, --spec")
    if options.spec and options.spec.suffix != ".json":
        raise InputError(f"--spec {options.spec}: must end in .json, by which it is told from names of the zoo")
    _check_endings(npz=options.npz, onnx=options.onnx, torch=options.torch)
    module = options.torch.with_suffix(".py") if options.torch and options.torch.suffix != ".py" else None
    check_targets(npz=options.npz, onnx=options.onnx, torch=options.torch, spec=options.spec, **{"torch's module": module})
    trained = export.with_inputs(export.read_run(options.directory, options.of), options.data_dir)
    for sentence in trained.said:
        print(sentence)
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
