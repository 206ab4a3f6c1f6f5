"""All shared networks in seven settings through ``onnx-dfmpc sweep``, which is killed on the way and goes on.

python -m benchmarks.sweep [--folder build/sweep] [--workers 2] [--write]

A worker gets SIGKILL after a quarter of the jobs, and the command itself after half of them; the same command
then does what is missing. ``log.txt`` says what was left at each moment. ``--write`` puts the tables and the log
into docs/sweep.md. A folder that has results is gone on with: delete it after a change of the package.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median

import numpy as np
from rich.console import Console

from benchmarks import readme
from benchmarks.networks import LABELLED, UNLABELLED, Network, available
from benchmarks.tables import markdown
from onnx_dfmpc.sweep.job import Row
from onnx_dfmpc.sweep.run import RESULTS
from onnx_dfmpc.sweep.store import read_rows
from onnx_dfmpc.sweep.summary import front

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = tuple(name for name in (*LABELLED, *UNLABELLED) if not name.startswith("digits"))
SETTINGS: Mapping[str, Mapping[str, float]] = {
    "2/6": {"low_bits": 2, "high_bits": 6},
    "3": {"bits": 3},
    "4": {"bits": 4},
    "mean 3": {"target_bits": 3},
    "mean 4": {"target_bits": 4},
    "W8A8": {"bits": 8, "activations": 8},
    "W4A8": {"bits": 4, "activations": 8},
}
SAMPLES = 1000
"""Most inputs of a network that are compared."""

POLL = 1.0
"""Seconds between two looks at the results."""


def prepare(networks: Iterable[Network], folder: Path) -> int:
    """Models, their data and the settings in a folder; the number of jobs that they make."""
    (folder / "models").mkdir(parents=True, exist_ok=True)
    lines, count = list[str](), 0
    for network in networks:
        count += 1
        shutil.copyfile(network.path, folder / "models" / network.path.name)
        inputs, labels = network.inputs(network.data[0])
        arrays = {"inputs": inputs[:SAMPLES]} | ({} if labels is None else {"labels": labels[:SAMPLES]})
        np.savez(folder / f"{network.name}.npz", allow_pickle=False, **arrays)
        lines += [f'[model."*/{network.name}.onnx"]', f'data = "{network.name}.npz"', ""]
    for name, keywords in SETTINGS.items():
        lines += [f'[setting."{name}"]', *(f"{key} = {value}" for key, value in keywords.items()), ""]
    (folder / "grid.toml").write_text("\n".join(lines), encoding="utf-8")
    return count * len(SETTINGS)


def workers(pid: int) -> list[int]:
    """Processes in which the command computes (Linux)."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(one) for one in found if b"spawn_main" in Path(f"/proc/{one}/cmdline").read_bytes()]


class Log:
    """Lines with the seconds since the start, in a file and on standard error."""

    def __init__(self, path: Path) -> None:
        self.path, self.start = path, time.monotonic()

    def __call__(self, text: str) -> None:
        """Add a line."""
        line = f"{time.monotonic() - self.start:6.0f} s  {text}"
        print(line, file=sys.stderr, flush=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def run(folder: Path, count: int, processes: int, log: Log) -> None:
    """The command until it ends by itself; on the way a worker is killed, and the command."""
    command = [sys.executable, "-m", "onnx_dfmpc", "sweep", "models", "--settings", "grid.toml"]
    command += ["-o", "results", "--workers", str(processes), "--no-progress", "-q"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    worker_at, command_at = count // 4, count // 2
    while True:
        done = _rows(folder)
        log(f"start: {done} of {count} jobs have a row")
        process = subprocess.Popen(command, cwd=folder, env=environment)
        while process.poll() is None:
            time.sleep(POLL)
            done = _rows(folder)
            if done >= worker_at and (running := workers(process.pid)):
                worker_at = count + 1
                os.kill(running[0], signal.SIGKILL)
                log(f"kill -9 {running[0]}: a worker; {done} rows")
            if done >= command_at:
                command_at = count + 1
                process.kill()
                process.wait()
                lines = (folder / "results" / RESULTS).read_bytes().count(b"\n")
                log(f"kill -9 {process.pid}: the command; {done} rows in {lines} lines")
        if process.returncode != -signal.SIGKILL:
            log(f"end: exit code {process.returncode}, {_rows(folder)} of {count} jobs have a row")
            return


def _rows(folder: Path) -> int:
    return len(read_rows(folder / "results" / RESULTS))


def complete(rows: Iterable[Row]) -> list[Row]:
    """Rows of the networks that have one in every setting, networks in order."""
    found = sorted(rows, key=lambda row: row.model)
    count = Counter(row.model for row in found)
    return [row for row in found if count[row.model] == len(SETTINGS)]


def settings_table(rows: Sequence[Row]) -> str:
    """What each setting gives, over all networks, and how many these are."""
    networks = {row.model for row in rows}
    best = set().union(*(front([row for row in rows if row.model == name]) for name in networks))
    lines = []
    for setting in SETTINGS:
        group = [row for row in rows if row.setting == setting and row.status == "done"]
        lost = [100 * (row.top1 - row.top1_float) for row in group if row.top1 is not None and row.top1_float]
        times, quality = [row.ratio or 0 for row in group], [row.sqnr_db or 0 for row in group]
        on = sum(row.key in best for row in group)
        lines.append(
            (setting, f"{median(times):.1f}", f"{median(quality):.1f}", f"{median(lost):+.1f}",
             f"{min(lost):+.1f}", f"{on} of {len(group)}", f"{median(row.seconds for row in group):.0f}")
        )  # fmt: skip
    header = ("setting", "times smaller", "SQNR, dB", "top-1 − float", "the worst", "on the front", "s a job")
    return f"{len(networks)} networks:\n\n{markdown(header, lines)}"


def networks_table(rows: Sequence[Row]) -> str:
    """Every network in every setting: times smaller, and top-1, or SQNR where there are no labels."""
    lines = []
    for model in dict.fromkeys(row.model for row in rows):
        group = {row.setting: row for row in rows if row.model == model}
        before = next((row.top1_float for row in group.values() if row.top1_float is not None), None)
        samples = next(row.samples for row in group.values() if row.samples)
        kept = front(list(group.values()))
        cells = [_cell(group[setting], kept) for setting in SETTINGS]
        lines.append(
            (Path(model).stem, f"{samples}", "" if before is None else f"{100 * before:.1f}", *cells)
        )
    return markdown(("network", "n", "float", *SETTINGS), lines)


def _cell(row: Row, kept: set[str]) -> str:
    if row.status != "done":
        return row.status
    quality = f"{row.sqnr_db:.1f} dB" if row.top1 is None else f"{100 * row.top1:.1f}"
    text = f"{quality}, {row.ratio:.1f}×"
    return f"**{text}**" if row.key in kept else text


def main(arguments: Sequence[str] | None = None) -> int:
    """Sweep, and print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sweep",
        description="All shared networks in seven settings, killed on the way.",
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "sweep")
    parser.add_argument("--networks", nargs="+", default=NETWORKS, metavar="NAME")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="put tables and log into docs/sweep.md")
    options = parser.parse_args(arguments)
    folder = options.folder.resolve()
    count = prepare(available(options.networks, Console(stderr=True)), folder)
    run(folder, count, options.workers, Log(folder / "log.txt"))
    rows = complete(read_rows(folder / "results" / RESULTS).values())
    content = {
        "sweep_settings": settings_table(rows),
        "sweep_networks": networks_table(rows),
        "sweep_log": f"```text\n{(folder / 'log.txt').read_text(encoding='utf-8').rstrip()}\n```",
    }
    for marker, text in content.items():
        print(f"{text}\n")
        if options.write:
            readme.write(marker, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
