"""What is left of a run that something happens to: ``python -m benchmarks.faults [--trials N] [--seed N]
[--only TEXT] [--json FILE]``.

`quantize` replaces a model with external data, a JSON document and a page of Markdown, from an input with
external data, while a signal comes at a random moment (as it is, and with every rename slowed down, so that
many land between two of them), the disk is full, the directory is read-only, files may not be that large, a
pipe is closed, or another run does the same. Afterwards the input has to be what it was, every file has to be
that of before or the new one, whole, the model with its own data, and nothing else has to lie there; what a
SIGKILL leaves, the next run has to remove.

A disk that is really full, and one that is read-only, need a mount, which only root may do: without, these
rows say so.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from rich.console import Console

from benchmarks.tables import markdown

ROOT = Path(__file__).resolve().parents[1]
NETWORK = ROOT / "models" / "digits_resnet_bn.onnx"
HEADER = ("what happens", "runs", "exit codes", "old files", "new files", "left over", "wrong")

QUICK = ("-c", str(ROOT / "tests" / "fast.toml"))
FILES = ("--save-as-external-data", "--json", "out.json", "--report", "out.md")

START = "import sys; from onnx_dfmpc_cli import main; sys.exit(main())"
SLOW = f"""
import os, time
from onnx_dfmpc.model import writing
def slow(real):
    def slowed(*arguments, **keywords):
        time.sleep(SECONDS)
        result = real(*arguments, **keywords)
        time.sleep(SECONDS)
        return result
    return slowed
for name in ("replace", "link", "rename"):
    setattr(os, name, slow(getattr(os, name)))
open("renaming", "w").close()
{START}
"""
"""The same command with every rename slowed down."""

RENAME_SECONDS = 0.15
"""Before and after each rename: four files make 1.2 s."""


@dataclass
class Row:
    """What happened in all runs of one kind."""

    what: str
    codes: Counter[int] = field(default_factory=Counter)
    old: int = 0
    new: int = 0
    left: int = 0
    wrong: list[str] = field(default_factory=list)

    def cells(self) -> tuple[str, ...]:
        codes = ", ".join(f"{code} ({count})" for code, count in sorted(self.codes.items()))
        counts = (sum(self.codes.values()), self.old, self.new, self.left, len(self.wrong))
        runs, *rest = map(str, counts)
        return (self.what, runs, codes, *rest)


class Place:
    """A directory with an input and, unless told otherwise, the files of an earlier run."""

    def __init__(self, path: Path, *, earlier: bool = True) -> None:
        self.path = path
        model = onnx.load(NETWORK)
        onnx.save(model, path / "in.onnx", save_as_external_data=True, location="in.bin", size_threshold=0)
        self.input = self.hashes()
        if earlier:
            done = self.run("--set", ".*=8")
            assert done.wait() == 0, done.stderr
        self.old = self.hashes()

    def command(self, *flags: str, program: str = START) -> list[str]:
        """A run that replaces the files."""
        typed = ("quantize", "in.onnx", "-o", "out.onnx", "--overwrite", "-q")
        return [sys.executable, "-c", program, *typed, *FILES, *QUICK, *flags]

    def run(self, *flags: str, program: str = START, **keywords: object) -> subprocess.Popen[bytes]:
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        given = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE} | keywords
        return subprocess.Popen(self.command(*flags, program=program), cwd=self.path, env=env, **given)  # type: ignore[call-overload, no-any-return]

    def hashes(self) -> dict[str, str]:
        """Digests of all files, by name; documents without what differs in every run."""
        return {file.name: self._digest(file) for file in self.path.iterdir() if file.is_file()}

    def _digest(self, file: Path) -> str:
        if file.name == "out.json":
            with suppress(ValueError):
                return str(json.loads(file.read_text())["output"]["bytes"])
            return "broken"
        if file.name == "out.md":
            return "whole" if file.read_text().endswith("</sub>\n") else "broken"
        return hashlib.sha256(file.read_bytes()).hexdigest()

    def reset(self) -> None:
        """Everything as it was before the last run."""
        for file in self.path.iterdir():
            if file.name not in self.old:
                file.unlink()


def judge(place: Place, row: Row, done: subprocess.Popen[bytes], code: int, allowed: Sequence[int]) -> None:
    """Look at what a run has left."""
    row.codes[code] += 1
    now = place.hashes()
    said = b"" if done.stderr is None else done.stderr.read()
    drafts = {name for name in now if name.startswith(".onnx-dfmpc-")}
    wrong = []
    if code not in allowed:
        wrong.append(f"exit code {code}")
    if b"Traceback" in said or said.count(b"error: ") > 1:
        wrong.append(f"said {said.decode()[-200:]}")
    if any(now.get(name) != digest for name, digest in place.input.items()):
        wrong.append("the input has changed")
    if "broken" in now.values():
        wrong.append("a report is not whole")
    if "out.onnx" in now:
        wrong += _pair(place.path, now)
    elif "out.onnx" in place.old:
        wrong.append("the old model is gone")
    same = all(now.get(name) == digest for name, digest in place.old.items())
    row.old += same
    row.new += not same
    if code == 0 and same and place.old != place.input:
        wrong.append("exit code 0 and nothing new")
    if left := drafts | _orphans(place.path, now):
        row.left += 1
        if code != -signal.SIGKILL:
            wrong.append(f"left over: {', '.join(sorted(left))}")
    row.wrong += wrong


def _named(folder: Path) -> set[str]:
    """Data files of the output."""
    model = onnx.load(folder / "out.onnx", load_external_data=False)
    entries = [entry for tensor in model.graph.initializer for entry in tensor.external_data]
    return {entry.value for entry in entries if entry.key == "location"}


def _pair(folder: Path, now: dict[str, str]) -> Iterator[str]:
    try:
        onnx.checker.check_model(str(folder / "out.onnx"))
    except Exception as error:
        yield f"the model does not load: {error}"
        return
    if any(name.split(".")[1] != now.get(name, "")[:16] for name in _named(folder)):
        yield "the model has the data of another"


def _orphans(folder: Path, now: dict[str, str]) -> set[str]:
    """Data of no model."""
    data = {name for name in now if name.startswith("out.") and name.endswith(".data")}
    return data - (_named(folder) if "out.onnx" in now else set())


def signals(row: Row, number: int, trials: int, rng: random.Random, *, slowed: bool) -> None:
    """A signal at a random moment; then a run that has to succeed, and to leave nothing over."""
    program = SLOW.replace("SECONDS", str(RENAME_SECONDS)) if slowed else START
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        start = time.monotonic()
        assert place.run("--set", ".*=8").wait() == 0
        whole = time.monotonic() - start
        for _ in range(trials):
            done = place.run("--set", f".*={rng.choice((3, 4, 5))}", program=program)
            if slowed:  # somewhere in the last part of the run, where the files are put in place
                while not any(place.path.glob(".onnx-dfmpc-*")) and done.poll() is None:
                    time.sleep(0.01)
            time.sleep(rng.uniform(0, 10 * RENAME_SECONDS if slowed else 1.2 * whole))
            done.send_signal(number)
            code = done.wait()
            # Before Python gets as far as our first line, the system ends the process.
            judge(place, row, done, code, (0, 128 + number, -number))
            again = place.run("--set", ".*=8")
            if again.wait() != 0 or not set(place.hashes()) <= {*place.input, *place.old, "renaming"}:
                row.wrong.append("the next run does not clean up")
            place.old = place.hashes()


@contextmanager
def mounted(*options: str) -> Iterator[Path | None]:
    """A file system of its own; None where that is not allowed."""
    with tempfile.TemporaryDirectory() as folder:
        typed = ["mount", "-t", "tmpfs", *options, "tmpfs", folder]
        if not shutil.which("mount") or subprocess.run(typed, capture_output=True, check=False).returncode:
            yield None
            return
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", folder], check=True)


def full_disk(row: Row, trials: int, rng: random.Random) -> None:
    """A file system with room for less than the new files; how much less, is random."""
    for _ in range(trials):
        with mounted("-o", "size=2M") as folder:
            if folder is None:
                row.what += ": not root, not tried"
                return
            place = Place(folder)
            free = shutil.disk_usage(folder).free
            (folder / "renaming").write_bytes(b"\0" * (free - 4096 * rng.randrange(0, 12)))
            place.old = place.hashes()
            done = place.run("--set", ".*=8")
            judge(place, row, done, done.wait(), (0, 2))


def read_only(row: Row) -> None:
    """A file system that takes nothing."""
    with mounted() as folder:
        if folder is None:
            row.what += ": not root, not tried"
            return
        place = Place(folder)
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        done = place.run("--set", ".*=4")
        judge(place, row, done, done.wait(), (2,))


def small_files(row: Row, trials: int, rng: random.Random) -> None:
    """A limit on the size of files (ulimit -f)."""
    import resource

    for _ in range(trials):
        with tempfile.TemporaryDirectory() as folder:
            place = Place(Path(folder))
            limit = rng.randrange(1000, 30_000)
            done = place.run(
                "--set",
                ".*=4",
                preexec_fn=lambda limit=limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
            )
            judge(place, row, done, done.wait(), (0, 2))


def closed(row: Row, which: str) -> None:
    """Standard output or error that is closed, full, or a pipe nobody reads."""
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        line = {
            "closed": ">&-", "no standard error": "2>&-", "full": ">/dev/full", "a pipe nobody reads": "| true",
        }[which]  # fmt: skip
        words = [word for word in place.command("--set", ".*=4") if word != "-q"]
        typed = 'set -o pipefail; "$@" ' + line
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.Popen(
            ["bash", "-c", typed, "bash", *words],
            cwd=folder,
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        allowed = {"closed": (0,), "no standard error": (0,), "full": (2,), "a pipe nobody reads": (141,)}[
            which
        ]
        judge(place, row, done, done.wait(), allowed)


def two_runs(row: Row, trials: int, *, overwrite: bool) -> None:
    """Two runs with different bits onto the same names, at the same time."""
    for _ in range(trials):
        with tempfile.TemporaryDirectory() as folder:
            place = Place(Path(folder), earlier=overwrite)
            program = SLOW.replace("SECONDS", str(RENAME_SECONDS))
            runs = []
            for bits in (4, 5):
                command = [
                    word for word in place.command("--set", f".*={bits}", program=program)
                    if overwrite or word != "--overwrite"
                ]  # fmt: skip
                env = os.environ | {"PYTHONPATH": str(ROOT)}
                runs.append(subprocess.Popen(command, cwd=folder, env=env, stderr=subprocess.PIPE))
            codes = sorted(one.wait() for one in runs)
            row.codes[codes[0]] += 1
            judge(place, row, runs[1], codes[1], (0,) if overwrite else (2,))
            if codes[0] != 0:
                row.wrong.append(f"exit codes {codes}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=20, help="runs for each random fault (20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="faults whose name contains this")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    args = parser.parse_args(argv)
    rng, trials = random.Random(args.seed), args.trials
    faults: list[tuple[str, Callable[[Row], None]]] = []
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        for slowed in (False, True):
            name = f"{number.name} {'between slowed renames' if slowed else 'at any moment'}"
            faults.append((name, lambda row, n=number, s=slowed: signals(row, n, trials, rng, slowed=s)))  # type: ignore[misc]
    faults += [
        ("full disk", lambda row: full_disk(row, trials, rng)),
        ("read-only", read_only),
        ("limit on the size of files", lambda row: small_files(row, trials, rng)),
        *((f"standard output: {which}", lambda row, w=which: closed(row, w))
          for which in ("closed", "full", "a pipe nobody reads", "no standard error")),
        ("two runs, --overwrite", lambda row: two_runs(row, max(1, trials // 4), overwrite=True)),
        ("two runs, no --overwrite", lambda row: two_runs(row, max(1, trials // 4), overwrite=False)),
    ]  # fmt: skip
    rows = []
    for name, fault in faults:
        if args.only not in name:
            continue
        rows.append(row := Row(name))
        fault(row)
        sys.stderr.write(f"{' | '.join(row.cells())}{''.join(f'{chr(10)}    {one}' for one in row.wrong)}\n")
        if args.json is not None:
            found = [dict(zip(HEADER, one.cells(), strict=True)) for one in rows]
            args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    Console(soft_wrap=True).print(markdown(HEADER, (row.cells() for row in rows)), markup=False)
    return 1 if any(row.wrong for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
