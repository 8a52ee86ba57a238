"""What the tests of whole experiments share: a tiny one, runs that are interrupted, and what two runs must have in common."""

import json

import pytest

from refprune.data import dataset, digits, sets
from refprune.experiments import run
from refprune.experiments.run import Progress
from refprune.training import checkpoint, config

STEPS = 6  # steps in an epoch
TINY = dataset.Dataset("tiny", *digits.generate(8 * STEPS + 3, 20, 0), digits.CLASSES)
BASE = {
    "name": "tiny",
    "seed": 4,
    "network": {"name": "residual-mlp", "sections": 3, "width": 6},
    "objective": {"beta": 0.1, "weight_decay": 1e-3},
    "gates": {"learning_rate": 0.6, "estimator": "paired"},
    "optimiser": {"learning_rate": 0.05, "schedule": "one_cycle"},
    "training": {"epochs": 4, "batch_size": 8, "backend": "oracle", "log_every": 1},
}


def settings(**tables):
    merged = {key: BASE[key] | tables[key] if isinstance(BASE.get(key), dict) else tables[key] for key in tables}
    return config.from_dict(BASE | merged)


QUIET = Progress(quiet=True)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def whole_run(folder):
    """(folder, summary) of the uninterrupted run of BASE; for fixtures that outlive a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sets, "load", lambda name, directory=None: TINY)
        return folder, run.run(settings(), folder, progress=QUIET)


def files(folder):
    return {str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


class Interrupt(Progress):
    """Stops after so many steps, counted over both runs."""

    def __init__(self, steps):
        super().__init__(quiet=True)
        self.left = steps

    def advance(self):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def stopped(folder, rules, stop):
    """A run that has been interrupted after so many steps."""
    with pytest.raises(KeyboardInterrupt):
        run.run(rules, folder, progress=Interrupt(stop))


def interrupted(folder, rules, *stops):
    """Run, stopped after each number of steps and resumed; the summary."""
    stopped(folder, rules, stops[0])
    for stop in stops[1:]:
        with pytest.raises(KeyboardInterrupt):
            run.resume(folder, progress=Interrupt(stop))
    return run.resume(folder, progress=QUIET)


def without_seconds(value):
    """The same JSON without wall-clock times, and without the byte count of a file that holds such times."""
    if isinstance(value, dict):
        drop = ("seconds", "first_step_seconds", "metrics_bytes", "digest")
        return {key: without_seconds(v) for key, v in value.items() if key not in drop}
    return [without_seconds(v) for v in value] if isinstance(value, list) else value


def assert_same_runs(one, other):
    """Byte for byte the same arrays; everything else but the clock."""
    __tracebackhide__ = True
    assert (one / "config.toml").read_bytes() == (other / "config.toml").read_bytes()
    for name in sorted({p.parent.name for p in one.glob("*/metrics.jsonl")} | {p.parent.name for p in other.glob("*/*")}):
        assert without_seconds(lines(one / name)) == without_seconds(lines(other / name)), name
        header, other_header = (json.loads((f / name / checkpoint.NAME).read_text()) for f in (one, other))
        assert without_seconds(header) == without_seconds(other_header)
        arrays = header["arrays"]
        assert (one / name / arrays).read_bytes() == (other / name / arrays).read_bytes()
        assert [p.name for p in (other / name).glob("*.npz*")] == [arrays]
    summaries = [json.loads((f / "summary.json").read_text()) for f in (one, other)]
    assert without_seconds(summaries[0]) == without_seconds(summaries[1])
