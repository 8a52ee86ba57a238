"""`python -m validation.faults [COMMAND …]`: run, sweep, prune and verify, each disturbed at every one of its writes.

Every write is disturbed once by a kill and once by a full disk; pipes are closed; two begin at once. After each fault the
command is given again: it ends with the same bits, or with one sentence.

Exit code 1 if one case ends otherwise. COMMAND: only these.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from refprune.output.tables import text_table

from .commands import SET, Command, commands

#: Seconds for one try.
SECONDS = 600

INJECT = [sys.executable, "-m", "validation.faults.inject"]
PLAIN = [sys.executable, "-m", "refprune"]

Done = subprocess.CompletedProcess[str]


def call(command: list[str], folder: Path) -> Done:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False)


def prepared(command: Command) -> Path:
    folder = Path(tempfile.mkdtemp())
    for name, content in command.files.items():
        (folder / name).write_text(content)
    return folder


def sentence(done: Done) -> bool:
    """Exit code 2 and one sentence."""
    return done.returncode == 2 and "Traceback" not in done.stderr and "refprune: " in done.stderr


def disturbed(command: Command, kind: str, at: int, wanted: object) -> str | None:
    """One fault at one write, then the command again until it ends; what is wrong, if anything."""
    folder = prepared(command)
    done = call([*INJECT, kind, str(at), str(folder.parent / f"{folder.name}.count"), *command.begin], folder)
    if kind == "full" and done.returncode not in (command.code, 2):
        return f"ended with {done.returncode}: {done.stderr.strip()[-150:]}"
    if kind == "full" and done.returncode == 2 and not sentence(done):
        return f"no sentence: {done.stderr.strip()[-150:]}"
    again = call([*PLAIN, *command.again(folder)], folder)
    if again.returncode != command.code:
        return f"again ended with {again.returncode}: {again.stderr.strip()[-150:]}"
    return None if command.result(folder) == wanted else "other bits"


def at_once(command: Command, wanted: object) -> str | None:
    """Two of the same begin together: one may be refused, and one must end."""
    folder = prepared(command)
    pair = [subprocess.Popen([*PLAIN, *command.begin], cwd=folder, stdout=-1, stderr=-1, text=True) for _ in range(2)]
    codes = []
    for process in pair:
        _, err = process.communicate(timeout=SECONDS)
        codes.append(process.returncode)
        if process.returncode not in (command.code, 2) or "Traceback" in err:
            return f"two at once: {process.returncode}, {err.strip()[-150:]}"
    if command.code not in codes:
        return f"two at once: {codes}"
    return None if command.result(folder) == wanted else "two at once: other bits"


def closed_pipe(command: Command) -> str | None:
    """Whoever reads the output goes after its first line."""
    line = " ".join(f"'{part}'" for part in [*PLAIN, *command.begin])
    folder = prepared(command)
    for pipe in ("| head -1", ">&- 2>&-", "2>&1 | head -c 1"):
        shell = ["bash", "-c", f"({line}; echo $? > code) {pipe} > /dev/null"]
        done = subprocess.run(shell, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False)
        code = int((folder / "code").read_text())
        if code not in (command.code, 141, 2) or "Traceback" in done.stderr:
            return f"closed pipe ({pipe}): code {code}, {done.stderr.strip()[-150:]}"
    return None


def check(name: str, command: Command) -> tuple[tuple[str, ...], list[str]]:
    """A row of the table, and what is wrong."""
    folder = prepared(command)
    count = folder.parent / f"{folder.name}.count"
    done = call([*INJECT, "none", "-1", str(count), *command.begin], folder)
    if done.returncode != command.code:
        raise SystemExit(f"{name}: ended with {done.returncode} undisturbed: {done.stderr}")
    wanted, points = command.result(folder), int(count.read_text())
    problems = []
    for kind in ("kill", "full"):
        for at in range(points):
            wrong = disturbed(command, kind, at, wanted)
            problems += [] if wrong is None else [f"{name}, {kind} at write {at}: {wrong}"]
    problems += [wrong for wrong in (at_once(command, wanted), closed_pipe(command)) if wrong is not None]
    return (name, str(points), str(2 * points), str(len(problems))), problems


def main(names: list[str]) -> int:
    started, rows, problems = time.monotonic(), [("command", "writes", "faults", "problems")], []
    base = Path(tempfile.mkdtemp())
    keys = [*SET, "--set", "network.sections=3", "--set", "gates.learning_rate=0.0", "--set", "gates.initial=1.0"]
    made = call([*PLAIN, "run", "quickstart", *keys, "--out", "base"], base)
    if made.returncode:
        raise SystemExit(made.stderr)
    for name, command in commands(base / "base" / "pruned").items():
        if names and name not in names:
            continue
        row, wrong = check(name, command)
        rows.append(row)
        problems += wrong
        print(f"{name}: {row[2]} faults, {len(wrong)} problems", file=sys.stderr, flush=True)
    print(text_table(rows))
    print("\n".join(problems))
    print(f"{sum(int(row[2]) for row in rows[1:])} faults, {len(problems)} problems, {time.monotonic() - started:.0f} s")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
