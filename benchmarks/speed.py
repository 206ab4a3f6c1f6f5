"""CPU seconds and peak memory of every step, as ratios to loading, checking and saving the same file, and to
SQuant.

The command: ``python -m benchmarks.speed --networks cifar10_resnet56_bn --repeats 5 --json out.json``. Every
measurement is a process of its own; steps take turns, so that a busy machine slows them all alike.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import networks
from benchmarks.measure import STEPS
from benchmarks.methods import settings
from benchmarks.networks import RESNET50, Network
from onnx_dfmpc.errors import DfmpcError

SCHEMA = 1
ROOT = Path(__file__).resolve().parents[1]
NETWORKS = (
    "cifar10_resnet20_bn",
    "cifar10_resnet56_bn",
    "cifar10_shufflenetv2_x0_5_bn",
    "imagenet_squeezenet1_1",
    "imagenet_mobilenet_v1_025_128_folded",
    RESNET50,
)
MEGABYTE = 1e6


@dataclass(frozen=True)
class Cost:
    """One step on one network: an entry for every repeat. Seconds, and bytes above what the imports take."""

    cpu: tuple[float, ...]
    wall: tuple[float, ...]
    peak: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """CPU seconds, the median."""
        return statistics.median(self.cpu)

    @property
    def memory(self) -> float:
        """Peak, the median."""
        return statistics.median(self.peak)


@dataclass(frozen=True)
class Target:
    """A bound on cost, in words and as a check of the costs by step; on one network only, where it is named."""

    words: str
    holds: Callable[[Mapping[str, Cost], int], bool]
    network: str | None = None


TARGETS = (
    Target(
        "nearest at most 3x load+save",
        lambda cost, _: cost["nearest"].seconds <= 3 * cost["load+save"].seconds,
    ),
    Target(
        "squant at most 2x nearest, plus load+save",
        lambda cost, _: cost["squant"].seconds <= 2 * cost["nearest"].seconds + cost["load+save"].seconds,
    ),
    Target(
        "gptq at most 25x squant",
        lambda cost, _: cost["gptq"].seconds <= 25 * cost["squant"].seconds,
        "cifar10_resnet56_bn",
    ),
    Target("the default at most 90 s", lambda cost, _: statistics.median(cost["dfmpc"].wall) <= 90, RESNET50),
    Target(
        "the default's memory at most 4x the file",
        lambda cost, size: cost["dfmpc"].memory <= 4 * size,
        RESNET50,
    ),
)


def measure(network: Network, setting: str, steps: Sequence[str], repeats: int) -> dict[str, Cost]:
    """Run every step `repeats` times, each in a process of its own."""
    found: dict[str, list[dict[str, float]]] = {step: [] for step in steps}
    for repeat in range(repeats):
        for step, runs in found.items():
            command = [sys.executable, "-m", "benchmarks.measure", step, str(network.path), setting]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode:
                raise DfmpcError(f"{network.name}, {step}: {done.stderr.strip().splitlines()[-1]}")
            runs.append(json.loads(done.stdout))
            Console(stderr=True).print(f"{network.name}: {step}, {repeat + 1} of {repeats}", style="dim")
    return {
        step: Cost(*(tuple(run[key] for run in runs) for key in ("cpu", "wall", "peak")))
        for step, runs in found.items()
    }


def table(network: Network, setting: str, costs: Mapping[str, Cost]) -> Table:
    """Costs for the reader."""
    size = network.path.stat().st_size
    repeats = len(next(iter(costs.values())).cpu)
    shown = Table(
        title=f"{network.name}, {size / MEGABYTE:.2f} MB, {setting} bits",
        caption=f"medians of {repeats}; memory above the imports; load+save includes the checks",
        title_justify="left",
        caption_justify="left",
    )
    for header in ("step", "CPU s", "from", "to", "x load+save", "x squant", "wall s", "peak MB", "x file"):
        shown.add_column(header, justify="left" if header == "step" else "right", no_wrap=True)
    for step, cost in costs.items():
        ratios = [_ratio(cost, costs.get(other)) for other in ("load+save", "squant")]
        numbers = [cost.seconds, min(cost.cpu), max(cost.cpu)]
        wall, memory = statistics.median(cost.wall), f"{cost.memory / MEGABYTE:.1f}"
        shown.add_row(
            step,
            *(f"{number:.3f}" for number in numbers),
            *ratios,
            f"{wall:.2f}",
            memory,
            f"{cost.memory / size:.1f}",
        )
    return shown


def _ratio(cost: Cost, other: Cost | None) -> str:
    return "-" if other is None else f"{cost.seconds / other.seconds:.1f}"


def verdicts(network: Network, costs: Mapping[str, Cost]) -> list[tuple[str, bool]]:
    """Targets that apply to a network, and whether they hold; none where a step was left out."""
    if costs.keys() != STEPS.keys():
        return []
    size = network.path.stat().st_size
    return [
        (target.words, target.holds(costs, size))
        for target in TARGETS
        if target.network in (None, network.name)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description="CPU seconds and peak memory of every step."
    )
    add = parser.add_argument
    add("--networks", nargs="+", default=NETWORKS, metavar="NAME", help=f"default: {' '.join(NETWORKS)}")
    add(
        "--setting",
        default="2/6",
        help="low/high bits of pairs, or bits of every layer (default: %(default)s)",
    )
    add(
        "--steps",
        nargs="+",
        default=list(STEPS),
        choices=list(STEPS),
        metavar="STEP",
        help=f"default: {' '.join(STEPS)}",
    )
    add("--repeats", type=int, default=3, metavar="N", help="default: %(default)s")
    add("--json", type=Path, metavar="FILE", help="write the numbers there too")
    options = parser.parse_args(arguments)
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    results = []
    try:
        settings(options.setting)
        for name in options.networks:
            network = networks.network(name)
            costs = measure(network, options.setting, options.steps, max(1, options.repeats))
            held = verdicts(network, costs)
            console.print(table(network, options.setting, costs))
            for words, passed in held:
                console.print(f"  {'met   ' if passed else 'missed'}  {words}")
            results.append(
                {
                    "network": name,
                    "file_bytes": network.path.stat().st_size,
                    "costs": {step: asdict(cost) for step, cost in costs.items()},
                    "targets": dict(held),
                }
            )
            if options.json is not None:
                threads = os.environ.get("OMP_NUM_THREADS")
                plain = {
                    "schema": SCHEMA,
                    "setting": options.setting,
                    "cpus": os.cpu_count(),
                    "omp_num_threads": threads,
                    "results": results,
                }
                options.json.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    except DfmpcError as error:
        print(f"error: {error}", *([f"hint: {error.hint}"] if error.hint else []), sep="\n", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
