"""What a whole run costs, beside that of another checkout: ``python -m benchmarks.cost --other CHECKOUT
[--repeats 3] [--json cost.json]``.

CPU seconds and peak memory of `quantize`, from file to file and with its validation, by default (a mean of 4
bits), with ``bits=4`` and by the paper's method; and of loading, checking and saving the file, and of each
rounding without repair and validation. Every measurement is a fresh process; its imports count neither as time
nor as memory. Both checkouts take turns within every repeat, so that a busy machine slows them alike: the ratio
of their medians holds better than the seconds, and the spread says how well.

``--profile NETWORK`` runs it once in this process instead, under cProfile by process time: the functions with
the most time of their own, and with those that they call. What worker threads do counts for whoever waits.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks import networks
from benchmarks.ledger import Ledger
from benchmarks.networks import RESNET50, available
from benchmarks.tables import markdown
from onnx_dfmpc import Recipe, quantize
from onnx_dfmpc.errors import DfmpcError

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = (
    "cifar10_resnet20_bn",
    "cifar10_resnet56_bn",
    "cifar10_shufflenetv2_x0_5_bn",
    "imagenet_squeezenet1_1",
    "imagenet_mobilenet_v1_025_128_folded",
    "ultraface_rfb_320_bn",
    "yunet_s_dynamic",
    RESNET50,
)
HERE, OTHER = "this", "other"
SHOWN = 25

STEPS: Mapping[str, str] = {
    "load+save": "save(load(model).proto, output)",
    **{
        name: f"quantize(model, output, Recipe(bits=4, rounding='{name}', repair='none'), validated=False)"
        for name in ("nearest", "squant", "gptq")
    },
    "paper": "quantize(model, output, Recipe(low_bits=2, high_bits=6, method='paper'))",
    "mean of 4 bits": "quantize(model, output, Recipe())",
    "4 bits": "quantize(model, output, Recipe(bits=4))",
}
"""What is run, with names that any checkout has."""

SCRIPT = """
import json, resource, sys, tempfile, time
from pathlib import Path
import numpy.fft, numpy.random
import onnx_dfmpc
from onnx_dfmpc import Recipe, quantize
from onnx_dfmpc.model.files import load, save

def peak():
    status = Path("/proc/self/status")
    if status.is_file():
        return int(next(l for l in status.read_text().splitlines() if l.startswith("VmHWM")).split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024

model = sys.argv[1]
with tempfile.TemporaryDirectory() as directory:
    output = Path(directory) / "out.onnx"
    before, cpu, wall = peak(), time.process_time(), time.perf_counter()
    STEP
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    # Linux sums the pages of all threads roughly: the later of two readings may be the smaller one.
    found = {"cpu": cpu, "wall": wall, "peak": max(0, peak() - before)}
print(json.dumps(found | {"package": onnx_dfmpc.__file__}))
"""


@dataclass(frozen=True)
class Row:
    """One measurement: seconds, and bytes above what the imports take."""

    network: str
    step: str
    tree: str
    repeat: int
    cpu: float
    wall: float
    peak: int

    @property
    def key(self) -> Hashable:
        """What was measured."""
        return self.network, self.step, self.tree, self.repeat


def measure(tree: Path, model: Path, step: str) -> tuple[float, float, int]:
    """CPU and wall seconds and peak bytes of one step, with the package of a checkout, in a fresh process."""
    command = [sys.executable, "-c", SCRIPT.replace("STEP", STEPS[step]), str(model)]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DfmpcError(f"{tree}, {step}: {(done.stderr.strip() or 'killed').splitlines()[-1]}")
    found = json.loads(done.stdout.splitlines()[-1])
    if not Path(found["package"]).resolve().is_relative_to(tree.resolve()):
        raise DfmpcError(f"{tree}: there is no package in it; {found['package']} was measured instead")
    return found["cpu"], found["wall"], found["peak"]


def run(
    ledger: Ledger[Row], found: Iterable[networks.Network], trees: Mapping[str, Path], steps: Sequence[str], repeats: int, progress: Console
) -> None:  # fmt: skip
    """Measure what the ledger does not have yet: repeats outermost, checkouts innermost, each first in turn."""
    for network in found:
        for repeat in range(repeats):
            for step in steps:
                for name in sorted(trees, reverse=bool(repeat % 2)):
                    if (network.name, step, name, repeat) in ledger:
                        continue
                    row = Row(network.name, step, name, repeat, *measure(trees[name], network.path, step))
                    ledger.add(row)
                    progress.print(f"{network.name}, {step}, {name}: {row.cpu:.2f} s", style="dim")


def table(rows: Iterable[Row]) -> str:
    """A line for each network and step, with ratios to the other checkout and to load + save."""
    groups: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for row in rows:
        groups.setdefault((row.network, row.step), {}).setdefault(row.tree, []).append(row)
    header = ("network", "step", "n", "CPU s", "from - to", "other: CPU s", "from - to", "ratio", "x load+save", "wall s", "peak MB", "other: peak MB", "ratio")  # fmt: skip
    lines = []
    for (network, step), trees in groups.items():
        mine, theirs = trees.get(HERE, []), trees.get(OTHER, [])
        base = groups.get((network, "load+save"), {}).get(HERE, [])
        lines.append(
            (
                network,
                step,
                str(len(mine)),
                *_seconds(mine),
                *_seconds(theirs),
                _ratio(mine, theirs, "cpu"),
                _ratio(mine, base, "cpu"),
                _median(mine, "wall", 1),
                _median(mine, "peak", 1e6),
                _median(theirs, "peak", 1e6),
                _ratio(mine, theirs, "peak"),
            )
        )
    return markdown(header, lines)


def _values(rows: Sequence[Row], what: str) -> list[float]:
    return [float(getattr(row, what)) for row in rows]


def _median(rows: Sequence[Row], what: str, unit: float) -> str:
    return f"{statistics.median(_values(rows, what)) / unit:.3g}" if rows else "-"


def _seconds(rows: Sequence[Row]) -> tuple[str, str]:
    values = _values(rows, "cpu")
    return _median(rows, "cpu", 1), f"{min(values):.3g} - {max(values):.3g}" if rows else "-"


def _ratio(rows: Sequence[Row], others: Sequence[Row], what: str) -> str:
    if not rows or not others:
        return "-"
    other = statistics.median(_values(others, what))
    return f"{statistics.median(_values(rows, what)) / other:.2f}" if other else "-"


def profile(network: networks.Network, recipe: Recipe) -> None:
    """Print the functions that take most time; process time, so that a busy machine does not count."""
    profiler = cProfile.Profile(time.process_time)
    with tempfile.TemporaryDirectory() as directory:
        profiler.runcall(quantize, network.path, Path(directory) / "out.onnx", recipe)
    for order in ("tottime", "cumulative"):
        pstats.Stats(profiler).strip_dirs().sort_stats(order).print_stats(SHOWN)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cost", description="Cost of a whole run, beside that of another checkout."
    )
    add = parser.add_argument
    add(
        "--networks",
        nargs="*",
        default=NETWORKS,
        metavar="NAME",
        help=f"default: {' '.join(NETWORKS)}; none: only print",
    )
    add("--other", type=Path, metavar="CHECKOUT", help="top of another checkout to compare with")
    add(
        "--steps",
        nargs="+",
        default=list(STEPS),
        choices=list(STEPS),
        metavar="STEP",
        help=f"default: {', '.join(STEPS)}",
    )
    add("--repeats", type=int, default=3, metavar="N", help="default: %(default)s")
    add("--json", type=Path, metavar="FILE", help="keep the numbers there, and go on from it")
    add("--profile", metavar="NETWORK", help="instead: profile one run")
    add("--bits", type=int, metavar="N", help="of the profiled run (default: a mean of 4)")
    options = parser.parse_args(arguments)
    progress = Console(stderr=True)
    try:
        if options.profile is not None:
            profile(networks.network(options.profile), Recipe(bits=options.bits))
            return 0
        trees = {HERE: ROOT} | ({} if options.other is None else {OTHER: options.other.absolute()})
        ledger = Ledger(Row, options.json)
        run(ledger, available(options.networks, progress), trees, options.steps, options.repeats, progress)
    except DfmpcError as error:
        print(f"error: {error}", *([f"hint: {error.hint}"] if error.hint else []), sep="\n", file=sys.stderr)
        return error.exit_code
    print(f"medians; OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'not set')}, {os.cpu_count()} CPUs")
    print("", table(ledger), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
