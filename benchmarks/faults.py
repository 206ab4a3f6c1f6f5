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
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Protocol

import onnx
from rich.console import Console

import onnx_dfmpc.cli  # noqa: F401 - what forks need not import again
import onnx_dfmpc_cli
from benchmarks.tables import markdown

ROOT = Path(__file__).resolve().parents[1]
NETWORK = ROOT / "models" / "digits_resnet_bn.onnx"
HEADER = ("what happens", "runs", "exit codes", "old files", "new files", "left over", "wrong")

QUICK = ("-c", str(ROOT / "tests" / "fast.toml"))
FILES = ("--save-as-external-data", "--json", "out.json", "--report", "out.md")

FRESH = 4
"""One run in so many is a new interpreter, which a signal may also meet while it imports; the others are forks of
a process that has imported everything, and take a third of the time.
"""

START = "import sys; from onnx_dfmpc_cli import main; sys.exit(main())"
RENAME_SECONDS = 0.15
"""Before and after each rename: four files make 1.2 s."""


def slow_renames() -> None:
    """Slow every rename of this process down."""

    def slowed(real: Callable[..., None]) -> Callable[..., None]:
        def rename(*arguments: object, **keywords: object) -> None:
            time.sleep(RENAME_SECONDS)
            real(*arguments, **keywords)
            time.sleep(RENAME_SECONDS)

        return rename

    for name in ("replace", "link", "rename"):
        setattr(os, name, slowed(getattr(os, name)))


def hear_signals() -> None:
    """Take signals as a command in a terminal does: jobs in the background have some ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Run(Protocol):
    """A command that runs, as `subprocess` and as `Fork` have it."""

    def poll(self) -> int | None: ...
    def wait(self) -> int: ...
    def send_signal(self, number: int, /) -> None: ...


class Fork:
    """The command in a fork of this process, which has imported it."""

    def __init__(
        self, folder: Path, argv: Sequence[str], said: IO[bytes], before: Callable[[], None]
    ) -> None:
        self._code: int | None = None
        self.pid = os.fork()
        if self.pid:
            return
        code = 1
        try:
            hear_signals()
            os.chdir(folder)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(said.fileno(), 2)
            sys.argv[1:] = argv
            before()
            code = onnx_dfmpc_cli.main()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def poll(self) -> int | None:
        return self._reaped(os.WNOHANG)

    def wait(self) -> int:
        code = self._reaped(0)
        assert code is not None
        return code

    def _reaped(self, options: int) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self.pid, options)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


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
        self.said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        model = onnx.load(NETWORK)
        onnx.save(model, path / "in.onnx", save_as_external_data=True, location="in.bin", size_threshold=0)
        self.input = self.hashes()
        if earlier:
            assert self.run("--set", ".*=8").wait() == 0, self.errors()
        self.old = self.hashes()

    def argv(self, *flags: str) -> list[str]:
        """Arguments of a run that replaces the files."""
        return ["quantize", "in.onnx", "-o", "out.onnx", "--overwrite", "-q", *FILES, *QUICK, *flags]

    def run(self, *flags: str, before: Callable[[], None] = lambda: None, overwrite: bool = True) -> Run:
        """Start it in a fork; what it says goes to `said`."""
        self.said = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the place
        argv = [word for word in self.argv(*flags) if overwrite or word != "--overwrite"]
        return Fork(self.path, argv, self.said, before)

    def fresh(self, *flags: str) -> Run:
        """The same in a new interpreter."""
        self.said = tempfile.TemporaryFile()  # noqa: SIM115
        return subprocess.Popen(
            [sys.executable, "-c", START, *self.argv(*flags)],
            cwd=self.path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=self.said,
            preexec_fn=hear_signals,
        )

    def errors(self) -> str:
        """What the last run has said."""
        self.said.seek(0)
        return self.said.read().decode(errors="replace")

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


def judge(place: Place, row: Row, code: int, allowed: Sequence[int]) -> None:
    """Look at what a run has left."""
    row.codes[code] += 1
    now = place.hashes()
    said = place.errors()
    drafts = {name for name in now if name.startswith(".onnx-dfmpc-")}
    wrong = []
    if code not in allowed:
        wrong.append(f"exit code {code}")
    if "Traceback" in said or said.count("error: ") > 1:
        wrong.append(f"said {said[-200:]}")
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
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        start = time.monotonic()
        assert place.run("--set", ".*=8").wait() == 0
        whole = time.monotonic() - start
        for trial in range(trials):
            change = ("--set", f".*={rng.choice((3, 4, 5))}")
            if slowed:
                done = place.run(*change, before=slow_renames)
            else:
                done = place.run(*change) if trial % FRESH else place.fresh(*change)
            if slowed:  # somewhere in the last part of the run, where the files are put in place
                while not any(place.path.glob(".onnx-dfmpc-*")) and done.poll() is None:
                    time.sleep(0.01)
            time.sleep(rng.uniform(0, 10 * RENAME_SECONDS if slowed else 1.2 * whole))
            done.send_signal(number)
            code = done.wait()
            # Before Python gets as far as our first line, the system ends the process.
            judge(place, row, code, (0, 128 + number, -number))
            again = place.run("--set", ".*=8")
            if again.wait() != 0 or not set(place.hashes()) <= {*place.input, *place.old}:
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
            (folder / "filling").write_bytes(b"\0" * (free - 4096 * rng.randrange(0, 12)))
            place.old = place.hashes()
            judge(place, row, place.run("--set", ".*=8").wait(), (0, 2))


def read_only(row: Row) -> None:
    """A file system that takes nothing."""
    with mounted() as folder:
        if folder is None:
            row.what += ": not root, not tried"
            return
        place = Place(folder)
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        judge(place, row, place.run("--set", ".*=4").wait(), (2,))


def small_files(row: Row, trials: int, rng: random.Random) -> None:
    """A limit on the size of files (ulimit -f)."""
    for _ in range(trials):
        with tempfile.TemporaryDirectory() as folder:
            place = Place(Path(folder))
            limit = rng.randrange(1000, 30_000)
            before = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit))
            judge(place, row, place.run("--set", ".*=4", before=before).wait(), (0, 2))


def closed(row: Row, which: str) -> None:
    """Standard output or error that is closed, full, or a pipe nobody reads."""
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        line = {
            "closed": ">&-", "no standard error": "2>&-", "full": ">/dev/full", "a pipe nobody reads": "| true",
        }[which]  # fmt: skip
        argv = [word for word in place.argv("--set", ".*=4") if word != "-q"]
        typed = 'set -o pipefail; "$@" ' + line
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.Popen(
            ["bash", "-c", typed, "bash", sys.executable, "-c", START, *argv],
            cwd=folder,
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=place.said,
        )
        allowed = {"closed": (0,), "no standard error": (0,), "full": (2,), "a pipe nobody reads": (141,)}[
            which
        ]
        judge(place, row, done.wait(), allowed)


def two_runs(row: Row, trials: int, *, overwrite: bool) -> None:
    """Two runs with different bits onto the same names, at the same time."""
    for _ in range(trials):
        with tempfile.TemporaryDirectory() as folder:
            place = Place(Path(folder), earlier=overwrite)
            runs = [
                place.run("--set", f".*={bits}", before=slow_renames, overwrite=overwrite) for bits in (4, 5)
            ]
            codes = sorted(one.wait() for one in runs)
            row.codes[codes[0]] += 1
            judge(place, row, codes[1], (0,) if overwrite else (2,))
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
