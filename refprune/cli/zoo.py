"""`refprune zoo`: networks and experiments by name."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import InputError


def add(commands: Any) -> None:
    """Add the parser to argparse's `commands`."""
    zoo = commands.add_parser("zoo", help="networks and experiments; with a name, its layers or its text")
    zoo.add_argument("name", nargs="?", help="also with options, as in 'resnet-20:units=true;gates=true'")
    zoo.add_argument("--keys", action="store_true", help="every key of an experiment with default, allowed values and meaning")
    zoo.add_argument("--markdown", action="store_true", help="with --keys: as the page docs/config.md")
    zoo.set_defaults(command=_zoo)


def _zoo(options: argparse.Namespace) -> int:
    from ..exchange import spec_of_file
    from ..output import tables
    from ..spec import zoo
    from ..spec.cost import flops, macs, parameters, per_layer
    from ..training import config_page, presets

    if options.markdown and not options.keys:
        raise InputError("zoo --markdown: only with --keys")
    if options.keys:
        if options.name is not None:
            raise InputError(f"zoo --keys: shows all keys and takes no name, got {options.name!r}")
        print(config_page.markdown() if options.markdown else config_page.text(), end="")
        return 0
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
