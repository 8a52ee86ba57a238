"""Where the time of a training step goes, by function: `python -m refprune.bench.profile NAME [STEPS [THREADS]]`."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from ..kernels.machine.cores import allowed
from ..output.tables import text_table
from .cases import TRAINING_BATCH, Setting, Training, images, network_state


class Clock:
    """Function name → calls and seconds within."""

    def __init__(self) -> None:
        self.calls: dict[str, int] = defaultdict(int)
        self.seconds: dict[str, float] = defaultdict(float)

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, measured."""

        def measured(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **options)
            self.seconds[name] += time.perf_counter() - start
            self.calls[name] += 1
            return result

        return measured


def profile(name: str, steps: int, threads: int) -> list[tuple[str, ...]]:
    """Rows (function, calls of a step, ms of a step, share of the step), the slowest first, after the step's own row."""
    setting, clock = Setting(threads=threads), Clock()
    state = network_state(setting, name)
    x, labels, _ = images(setting, state.network.input_shape, TRAINING_BATCH[name])
    training = Training(setting, state, x, labels)
    functions = {field.name: getattr(setting.backend, field.name) for field in dataclasses.fields(setting.backend)}
    timed: dict[str, Any] = {key: clock.around(key, function) for key, function in functions.items() if callable(function)}
    training.backend = dataclasses.replace(setting.backend, **timed)
    for _ in range(3):
        training.step()
    clock.calls.clear()
    clock.seconds.clear()
    start = time.perf_counter()
    for _ in range(steps):
        training.step()
    whole = time.perf_counter() - start
    slowest = sorted(clock.seconds.items(), key=lambda item: -item[1])
    rest = whole - sum(clock.seconds.values())
    found = [("the whole step", "", whole), *((key, str(clock.calls[key] // steps), spent) for key, spent in slowest)]
    return [
        (key, calls, f"{1e3 * spent / steps:.3f}", f"{spent / whole:.1%}")
        for key, calls, spent in [*found, ("Python between", "", rest)]
    ]


def _main(name: str, steps: str = "20", threads: str = "") -> None:
    rows = profile(name, int(steps), int(threads or allowed()))
    print(text_table([(name, "calls", "ms", "share"), *rows]))


if __name__ == "__main__":
    _main(*sys.argv[1:])
