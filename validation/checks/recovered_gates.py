"""Would a gate that a rule removes have come back? (SPEC D6: how safe are the rules?)

`python -m validation.checks.recovered_gates [EXPERIMENT] [--set KEY=VALUE …] [--seeds S …]`, by default mnist-resmlp with seed
0: the experiment is trained without removing anything, and every step asks the rules what they would have removed. A gate
*recovers* if its θ exceeds ½ at any time after that. One JSON line a seed, and a table at the end.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from refprune.backend import load_backend
from refprune.data import sets
from refprune.errors import InputError
from refprune.training.config import Config, load
from refprune.training.evaluate import evaluate
from refprune.training.images import prepare_images
from refprune.training.loop import Stepped, train_epochs
from refprune.training.removal import gates_kept
from refprune.training.state import initial_state

Summary = dict[str, Any]

RULES = ("threshold", "attraction", "both")
BACK = 0.5


def watch(config: Config, data_directory: str | None = None) -> Summary:
    """Per gate: θ at the end; per rule the first step at which it would go (None: never), and whether it came back."""
    images, test = prepare_images(sets.load(config.data.name, data_directory), config)
    network = config.build_network()
    backend = load_backend(config.training.backend, threads=config.training.threads or None)
    variants = {rule: dataclasses.replace(config, gates=dataclasses.replace(config.gates, rule=rule)) for rule in RULES}
    watched = variants["attraction"]  # every rule finds what it needs to know in a state of this one
    state = initial_state(watched, network)
    first = {rule: np.full(network.gate_count, -1) for rule in RULES}
    recovered = {rule: np.zeros(network.gate_count, dtype=bool) for rule in RULES}
    for event in train_epochs(state, watched, images, backend, until=config.training.epochs, removes=False):
        if not isinstance(event, Stepped):
            continue
        state = event.state
        for rule, variant in variants.items():
            recovered[rule] |= (first[rule] >= 0) & (state.theta > BACK)
            gone = ~gates_kept(state, variant, training_images=len(images.labels))
            first[rule] = np.where((first[rule] < 0) & gone, state.step, first[rule])
    names = [f"{g.name}[{i}]" if g.kind == "unit" else g.name for g in network.gate_groups for i in range(g.stop - g.start)]
    rows = [
        {"gate": name, "theta": float(state.theta[g]), "slope": float(state.slope[g])}
        | {
            rule: {"step": int(first[rule][g]) if first[rule][g] >= 0 else None, "recovered": bool(recovered[rule][g])}
            for rule in RULES
        }
        for g, name in enumerate(names)
    ]
    score = evaluate(state, test, backend)
    return {"seed": config.seed, "test_accuracy": score.accuracy, "steps": state.step, "gates": rows}


def summary(results: list[Summary]) -> list[str]:
    """Per rule: gates that would have gone, of these recovered, median step."""
    lines = [f"{'rule':12} {'gates':>6} {'would go':>9} {'recovered':>10} {'median step':>12}"]
    gates = [gate for result in results for gate in result["gates"]]
    for rule in RULES:
        gone = [gate[rule] for gate in gates if gate[rule]["step"] is not None]
        back = sum(entry["recovered"] for entry in gone)
        median = f"{np.median([entry['step'] for entry in gone]):.0f}" if gone else "–"
        lines.append(f"{rule:12} {len(gates):6d} {len(gone):9d} {back:10d} {median:>12}")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser("python -m validation.checks.recovered_gates", description=__doc__.splitlines()[0])
    parser.add_argument("experiment", nargs="?", default="mnist-resmlp")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--data-dir")
    options = parser.parse_args(arguments)
    results = []
    try:
        for seed in options.seeds:
            config = load(options.experiment, [*options.overrides, f"seed={seed}"])
            results.append(watch(config, options.data_dir))
            print(json.dumps(results[-1]), flush=True)
    except InputError as error:
        print(f"validation.checks.recovered_gates: {error}", file=sys.stderr)
        return 2
    print("\n".join(summary(results)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
