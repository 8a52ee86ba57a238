"""The commands for trained networks: `refprune prune`, `evaluate`, `similarity`, `score`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

from ..errors import InputError
from .options import file_name, interruptible, names, real, whole


def add(commands: Any) -> None:
    """Add their parsers to argparse's `commands`."""
    prune = commands.add_parser("prune", help="remove sections of a trained network by a criterion, fine-tune, repeat")
    _network_arguments(prune, "?")
    plan = prune.add_argument_group("what to do", argument_default=argparse.SUPPRESS)
    plan.add_argument("--criterion", metavar="NAME", help="cka, random, l1, activation, kl or rank (default: cka)")
    plan.add_argument("--score-images", metavar="N", type=whole, help="training images to score with (default: 10,000; 0: all)")
    plan.add_argument(
        "--target-macs", metavar="SHARE", type=real, help="stop at this share of the MACs (default: at the minimum)"
    )
    plan.add_argument("--least-accuracy", metavar="SHARE", type=real, help="stop below this test accuracy")
    plan.add_argument("--finetune", metavar="EPOCHS", type=whole, help="after every removal (default: 1)")
    plan.add_argument(
        "--anneal", metavar="SHARE", type=real, help="to which share of itself the rate falls until sections end (default: 1)"
    )
    plan.add_argument("--filter-rounds", metavar="N", type=whole, help="then remove 10 %% of the filters, N times (default: 0)")
    prune.add_argument("--set", metavar="A.B=VALUE", action="append", default=[], help="change one key of the fine-tuning")
    prune.add_argument("--out", metavar="DIR", type=file_name, help="run directory (default: runs/prune-CRITERION-TIME)")
    prune.add_argument("--resume", metavar="DIR", type=file_name, help="go on with the run in DIR")
    prune.add_argument("--compare", metavar="DIR", type=file_name, nargs="+", help="only show these pruning runs side by side")
    prune.add_argument("--picture", metavar="FILE", type=file_name, help="with --compare: accuracy against MACs, .png or .svg")
    prune.set_defaults(command=_prune)

    evaluate = commands.add_parser("evaluate", help="accuracy of trained networks: clean, adversarial (FGSM), corrupted images")
    _network_arguments(evaluate, "+")
    evaluate.add_argument("--clean", action="store_true", help="clean images only (they come beside the others anyway)")
    evaluate.add_argument("--fgsm", metavar="ε,…", help="as in 1/255,2/255,4/255,8/255")
    evaluate.add_argument("--corruptions", metavar="NAME,…", nargs="?", const="all", help="default: all of them")
    evaluate.add_argument("--images", metavar="N", type=whole, default=0, help="the first so many test images (default: all)")
    evaluate.add_argument("--json", metavar="FILE", type=file_name, help="write all accuracies")
    evaluate.add_argument("--picture", metavar="FILE", type=file_name, help="accuracy against severity, .png or .svg")
    evaluate.set_defaults(command=_evaluate)

    similarity = commands.add_parser("similarity", help="CKA between all pairs of layers of a trained network")
    _network_arguments(similarity)
    similarity.add_argument(
        "--points", metavar="NAME,…", default="chain", help="chain (default: chain elements), all, or names"
    )
    similarity.add_argument(
        "--score-images", metavar="N", type=whole, default=1000, help="training images (default: 1000; 0: all)"
    )
    similarity.add_argument("--batch-size", metavar="N", type=whole, default=250, help="images of a mini-batch (default: 250)")
    similarity.add_argument("--kernel", choices=["linear", "rbf"], default="linear")
    similarity.add_argument("--json", metavar="FILE", type=file_name, help="write names, values and statuses")
    similarity.add_argument("--picture", metavar="FILE", type=file_name, help="the matrix, .png or .svg")
    similarity.set_defaults(command=_similarity)

    score = commands.add_parser("score", help="which section pruning by CKA would remove, how clearly, beside two controls")
    _network_arguments(score)
    score.add_argument("--score-images", metavar="N", type=whole, default=0, help="training images (default: all)")
    score.add_argument("--subsets", metavar="N,…", help="also choose from so many of them, --repeats times")
    score.add_argument("--repeats", metavar="N", type=whole, default=100, help="random subsets of each size (default: 100)")
    score.add_argument("--expect", metavar="NAME", help="count how often this section is chosen (default: CKA's choice)")
    score.add_argument("--json", metavar="FILE", type=file_name, help="write scores and shares")
    score.set_defaults(command=_score)


def _network_arguments(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    """What every command takes that reads a trained network."""
    what = "folder with a checkpoint, or a file of weights (also below $REFPRUNE_MODELS)"
    parser.add_argument("checkpoint", nargs=nargs, help=what)
    parser.add_argument("--spec", metavar="NAME", help="network of a file of weights: of the zoo, or a .json spec")
    parser.add_argument("--names", metavar="FILE", help="JSON object: names of layers in the file → in the spec")
    parser.add_argument(
        "--inputs",
        metavar="HOW",
        help="how pixels of 0 … 255 become inputs: set (by the data set's own mean and deviation), unit (pixels/255), pixels "
        "(as they are), imagenet (its mean and deviation), or a .json file with lists shift and scale: (pixel − shift)·scale "
        "(default: as the network's file says, else set)",
    )
    parser.add_argument("--data", metavar="NAME", help="data set (default: the run's own, else cifar10)")
    parser.add_argument("--data-dir", metavar="DIR", help="folder with the data sets (default: $REFPRUNE_DATA, then datasets/)")
    parser.add_argument("--backend", choices=["numba", "oracle"], help="default: numba")
    parser.add_argument(
        "--threads", metavar="N", type=whole, help="threads to use (default: all cores); the results are the same"
    )
    parser.add_argument("--seed", metavar="N", type=whole, help="default: 0")


def _engine(options: argparse.Namespace) -> Any:
    from .. import backend

    return backend.load_backend(options.backend or "numba", threads=options.threads)


def _trained(options: argparse.Namespace, *sources: str) -> list[tuple[Any, Any, Any]]:
    """The networks in `sources`, each with its data set, and how that becomes inputs; what was assumed is told."""
    from ..data import standardise
    from ..data.sets import load
    from ..exchange import load as loading
    from ..exchange.inputs import sentence

    found, sets = [], {}
    for source in sources:
        trained = _loaded(options, source)
        name = options.data or trained.data or "cifar10"
        if name not in sets:
            sets[name] = load(name, options.data_dir)
        loading.check_images(trained.network, sets[name])
        seen = trained.training_images if name == trained.data else None
        images = seen or len(sets[name].train_labels)
        scaling = standardise.scaling_of(trained.network, sets[name], images=images, dtype="float32")
        print(sentence(trained, name, scaling))
        found.append((trained, sets[name], scaling))
    return found


def _loaded(options: argparse.Namespace, source: str) -> Any:
    """The network in `source`, with the inputs that --inputs says; what was assumed when it was read is told."""
    from ..exchange import load as loading
    from ..exchange.inputs import inputs_of

    trained = loading.load(source, options.spec, options.names)
    for sentence in trained.said:
        print(sentence)
    if options.inputs is not None:
        network = dataclasses.replace(trained.network, inputs=inputs_of(options.inputs, trained.network))
        trained = trained._replace(network=network)
    return trained


def _count(option: str, wanted: int, there: int) -> int:
    """How many images an option asks for; 0: all."""
    if not 0 <= wanted <= there:
        raise InputError(f"{option}: must lie in 1 … {there} images (0: all), got {wanted}")
    return wanted or there


def _check_outputs(picture: Path | None = None, **paths: Path | None) -> None:
    """Before anything is computed: can the files be written?"""
    from ..output import figures, files

    files.check_targets(picture=picture, **paths)
    if picture is not None:
        figures.check_picture(picture)


def _given(options: argparse.Namespace, *but: str) -> list[str]:
    """Options on the command line, without those in `but`."""
    there = {name: value for name, value in vars(options).items() if name != "command" and value not in (None, [])}
    return [name if name == "checkpoint" else f"--{name.replace('_', '-')}" for name in there if name not in but]


def _prune(options: argparse.Namespace) -> int:
    from ..experiments import layer_pruning, layer_pruning_report
    from ..output import figures, tables
    from ..output.progress import Progress
    from ..training import config

    if options.compare:
        return _compare(options)
    if options.picture:
        raise InputError("--picture: goes with --compare; a run's pictures stand in its report.html")
    how: dict[str, Any] = {"data_directory": options.data_dir, "progress": Progress()}
    if options.resume is not None:
        if others := _given(options, "resume", "data_dir", "threads"):
            allowed = "only --data-dir and --threads may be given beside it"
            raise InputError(f"--resume: goes on with the run as it was; {allowed}, got {others[0]}")
        directory = options.resume
        with interruptible(directory / "plan.json", f"refprune prune --resume {directory}"):
            summary = layer_pruning.resume(directory, threads=options.threads, **how)
    else:
        if options.checkpoint is None:
            raise InputError("prune: needs a checkpoint or a file of weights, or --resume DIR")
        fields = (field.name for field in dataclasses.fields(layer_pruning.Plan))
        plan = layer_pruning.Plan(**{name: getattr(options, name) for name in fields if hasattr(options, name)})
        trained = _loaded(options, options.checkpoint)
        training = {"backend": options.backend or "numba", "threads": options.threads or 0}
        overrides = config.overridden({"training": training}, options.set)
        settings = layer_pruning.finetuning_config(
            options.data or trained.data or "cifar10", plan.finetune, options.seed or 0, overrides
        )
        directory = options.out or Path("runs") / f"prune-{plan.criterion}-{time.strftime('%Y%m%d-%H%M%S')}"
        source = options.checkpoint + (f" as {options.spec}" if options.spec else "")
        with interruptible(directory / "plan.json", f"refprune prune --resume {directory}"):
            summary = layer_pruning.run(trained, plan, settings, directory, source=source, **how)
    print("\n" + tables.text_table(layer_pruning_report.rounds(summary)))
    print(f"stopped: {summary['stopped']}; the result is {directory / summary['result']}")
    page = layer_pruning_report.pruning_page(directory, summary)
    print(f"\nreport: {page}" if page else f"\n{figures.HINT}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from ..experiments import layer_pruning_report
    from ..output import figures, tables

    if others := _given(options, "compare", "picture"):
        raise InputError(f"--compare: only shows runs; only --picture may be given beside it, got {others[0]}")
    _check_outputs(options.picture)
    runs = layer_pruning_report.read_all(options.compare)
    print(tables.text_table(layer_pruning_report.side_by_side(runs)))
    print("\n" + tables.text_table(layer_pruning_report.differences(runs)))
    if options.picture:
        figures.save_picture(options.picture, layer_pruning_report.accuracy_against_macs(runs))
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from fractions import Fraction

    from ..analysis import pictures, robustness
    from ..output import figures, files, tables

    if options.clean and (options.fgsm or options.corruptions):
        other = "fgsm" if options.fgsm else "corruptions"
        raise InputError(f"--clean: says that nothing else is measured; leave it out, or --{other}")
    fractions = names("--fgsm", options.fgsm)
    try:
        eps = [float(Fraction(value)) for value in fractions]
    except (ValueError, ZeroDivisionError) as error:
        raise InputError(f"--fgsm: expected numbers or fractions, as in 1/255,0.01, got {options.fgsm!r}") from error
    kinds = list(robustness.CORRUPTIONS) if options.corruptions == "all" else names("--corruptions", options.corruptions)
    _check_outputs(options.picture, json=options.json)
    engine = _engine(options)
    results: dict[str, list[robustness.Row]] = {}
    loaded = _trained(options, *options.checkpoint)
    for source, (trained, dataset, scaling) in zip(options.checkpoint, loaded, strict=True):
        count = _count("--images", options.images, len(dataset.test_labels))
        test = dataset.test_images[:count], dataset.test_labels[:count]
        found: list[robustness.Row] = []
        how: dict[str, Any] = {"eps": eps, "corruptions": kinds, "seed": options.seed or 0}
        for row in robustness.evaluate(trained, engine, scaling, *test, **how):
            found.append(row)
            if sys.stderr.isatty():
                print(f"{source}: {row.what} {row.strength:g}: {100 * row.accuracy:.2f} %", file=sys.stderr)
        name = Path(source).stem
        results[source if name in results else name] = found
    print(tables.text_table(robustness.table(results)))
    if options.json:
        plain = {name: [row._asdict() for row in found] for name, found in results.items()}
        files.write_atomically(options.json, json.dumps(plain, indent=1).encode())
    if options.picture:
        figures.save_picture(options.picture, pictures.robustness_picture(results))
    return 0


def _similarity(options: argparse.Namespace) -> int:
    import numpy as np

    from ..analysis import layer_similarity, pictures
    from ..output import figures, files
    from ..output.progress import Progress

    _check_outputs(options.picture, json=options.json)
    ((trained, dataset, scaling),) = _trained(options, options.checkpoint)
    network, engine = trained.network, _engine(options)
    named = {"chain": [layer.name for layer in network.layers], "all": layer_similarity.points(network)}
    points = layer_similarity.checked_points(network, named.get(options.points) or names("--points", options.points))
    x = scaling(dataset.train_images[: _count("--score-images", options.score_images, len(dataset.train_labels))])
    progress = Progress()
    progress.start("images", len(x), 0)
    found = layer_similarity.similarities(
        network,
        engine,
        trained.params,
        trained.statistics,
        x,
        points,
        kernel=options.kernel,
        batch_size=options.batch_size,
        advance=progress.reach,
    )
    progress.finish()
    for i, name in enumerate(points):
        similarity = found.pair(i, min(i + 1, len(points) - 1))
        value = similarity.status if similarity.value is None else f"{similarity.value:.4f}"
        print(f"{name:32} {value} to {points[i + 1]}" if i + 1 < len(points) else name)
    if options.json:
        values = [[value if np.isfinite(value) else None for value in row] for row in found.values.tolist()]
        content = {"points": points, "cka": values, "status": found.status.tolist()}
        files.write_atomically(options.json, json.dumps(content, indent=1).encode())
    if options.picture:
        used = len(x) - len(x) % min(options.batch_size, len(x))
        title = f"CKA ({options.kernel}, unbiased, {used} images)"
        figures.save_picture(options.picture, pictures.similarity_matrix(points, found.values, title))
    return 0


def _score(options: argparse.Namespace) -> int:
    from ..analysis import stability
    from ..output import files, tables
    from ..output.progress import Progress

    if options.repeats < 1:
        raise InputError(f"--repeats: must be at least 1, got {options.repeats}")
    subsets = names("--subsets", options.subsets)
    try:
        sizes = [int(size) for size in subsets]
    except ValueError as error:
        raise InputError(f"--subsets: expected numbers of images, as in 1000,5000, got {options.subsets!r}") from error
    _check_outputs(json=options.json)
    ((trained, dataset, scaling),) = _trained(options, options.checkpoint)
    x = scaling(dataset.train_images[: _count("--score-images", options.score_images, len(dataset.train_labels))])
    engine = _engine(options)
    progress = Progress()
    progress.start("images", len(x), 0)
    how: dict[str, Any] = {"sizes": sizes, "repeats": options.repeats, "expected": options.expect, "seed": options.seed or 0}
    choices = stability.study(trained, engine, x, **how, advance=progress.reach)
    progress.finish()
    print(tables.text_table(stability.table(choices)))
    if options.json:
        files.write_atomically(options.json, json.dumps(stability.as_json(choices), indent=1).encode())
    return 0
