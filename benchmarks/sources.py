"""Distilled inputs against pictures, and against real ones: ``make distilled``, or ``python -m benchmarks.sources
[--networks NAME ...] [--seeds N ...]`` where torch is installed.

The same quantization of networks that keep batch norm, with statistics of four kinds of inputs: those that the
file alone suggests (the default), 64 that are distilled from batch norm (`distilled.py`), 64 real ones, and, to
tell what the noise is worth that distillation starts from, 64 of that. Other than real ones they need no
data. Where a network has no training images, one half of the labelled ones is for that, and the other is tested.
Rows are kept (`ledger.py`); `studies` puts the table on docs/results.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from rich.console import Console

from benchmarks import package
from benchmarks.calibration import parted
from benchmarks.evaluate import Reference, reference_of
from benchmarks.ledger import Ledger
from benchmarks.networks import Network, available
from benchmarks.provenance import provenance
from benchmarks.readme import RESULTS
from benchmarks.tables import markdown
from onnx_dfmpc import Recipe
from onnx_dfmpc.errors import DfmpcError
from onnx_dfmpc.matching.match import match

NETWORKS: Mapping[str, str] = {
    "cifar10_resnet20_bn": "ResNet-20",
    "cifar10_resnet8_keras_bn": "ResNet-8",
    "cifar10_shufflenetv2_x0_5_bn": "ShuffleNetV2 0.5",
    "har_conv1d_bn": "HAR, Conv1d",
    "wakeword_bn": "wake word",
    "cifar10_resnet56_bn": "ResNet-56",
}
"""Networks that keep batch norm, as people call them."""

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "2": {"bits": 2},
    "2/6": {"low_bits": 2, "high_bits": 6},
    "mean 3": {"target_bits": 3},
    "4 + A8": {"bits": 4, "activations": 8},
}
COUNT = 64
SEEDS = (0, 1)
PICTURES, NOISE, DISTILLED, REAL = SOURCES = ("pictures", "noise", "distilled", "real")
KEPT = RESULTS / "sources.json"


@dataclass(frozen=True)
class Row:
    """One file. Fractions; ``low`` and ``high`` are the 95 % interval of the difference in top-1 to float. ``making``
    are CPU seconds for the inputs, ``mismatch`` how far the batch norms are from what they have stored
    (`distilled.Program.mismatch`); both None for pictures, which the pipeline draws and anchors itself.
    """

    network: str
    setting: str
    source: str
    seed: int
    count: int
    n: int
    float_top1: float | None
    top1: float | None
    low: float | None
    high: float | None
    agreement: float | None
    sqnr_db: float | None
    cpu_seconds: float
    making: float | None
    mismatch: float | None
    versions: str

    @property
    def key(self) -> Hashable:
        """What was quantized, and on what."""
        return self.network, self.setting, self.source, self.seed


@dataclass(frozen=True, eq=False)
class Inputs:
    """Inputs to measure statistics on; none: those of the pipeline."""

    arrays: NDArray[np.float32] | None
    making: float | None
    mismatch: float | None


def inputs_of(network: Network, pool: NDArray[Any], source: str, seed: int) -> Inputs:
    """Inputs of a kind. Noise has the mean and the deviation of the pictures, over all channels."""
    if source == PICTURES:
        return Inputs(None, None, None)
    from benchmarks import distilled  # torch

    proto, rng = onnx.load(network.path), np.random.default_rng(seed)
    if source == REAL:
        some = pool[rng.permutation(len(pool))[:COUNT]]
        return Inputs(some, None, distilled.mismatch(proto, some))
    mean, deviation = believed(network)
    noise = rng.normal(mean, deviation, (COUNT, *pool.shape[1:])).astype(np.float32)
    if source == NOISE:
        return Inputs(noise, 0.0, distilled.mismatch(proto, noise))
    made = distilled.distil(proto, noise)
    return Inputs(made.inputs, made.cpu_seconds, made.after)


def believed(network: Network) -> tuple[float, float]:
    """Mean and deviation of the inputs that the pipeline takes for the likeliest."""
    proto = onnx.load(network.path)
    mixture = package.inputs_of(proto, match(proto).layers).mixture
    likeliest = int(np.argmax(mixture.weights))
    feeds = [feed for feed, kind in zip(mixture.feeds, mixture.kinds, strict=True) if kind == likeliest]
    values = np.concatenate([array.ravel() for feed in feeds for array in feed.values()])
    return float(values.mean()), float(values.std())


def measure(reads: Reference, truth: float | None, network: Network, setting: str, source: str, seed: int, made: Inputs, versions: str) -> Row:  # fmt: skip
    """Quantize with these inputs, and compare with the float model."""
    given: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        if made.arrays is not None:
            path = Path(directory) / "inputs.npz"
            np.savez(path, input=made.arrays)
            given = {"calibration_data": str(path)}
        start = time.process_time()
        result = package.quantize(network.path, Recipe(**SETTINGS[setting], seed=seed, **given))
        seconds = time.process_time() - start
    score = reads.score(result.model)
    low, high = score.top1_interval or (None, None)
    count = 0 if made.arrays is None else len(made.arrays)
    facts = (score.n, truth, score.top1, low, high, score.agreement, score.sqnr_db)
    return Row(
        network.name, setting, source, seed, count, *facts, seconds, made.making, made.mismatch, versions
    )


def complete(ledger: Ledger[Row], names: Sequence[str], seeds: Iterable[int], console: Console) -> None:
    """Measure what is missing."""
    versions = provenance()
    pairs = [(source, seed) for seed in seeds for source in SOURCES]
    for network in available(names, console):
        todo = [(*pair, s) for pair in pairs for s in SETTINGS if (network.name, s, *pair) not in ledger]
        if not todo:
            continue
        pool, test = parted(network)
        reads = reference_of(onnx.load(network.path), *test)
        truth = reads.score(onnx.load(network.path)).top1
        for source, seed in dict.fromkeys(one[:2] for one in todo):
            made = inputs_of(network, pool, source, seed)
            for setting in (one[2] for one in todo if one[:2] == (source, seed)):
                row = measure(reads, truth, network, setting, source, seed, made, versions)
                ledger.add(row)
                found = f"{_percent(row.top1)}, {row.sqnr_db or np.nan:.1f} dB"
                console.print(f"{network.name}, {setting}, {source}, seed {seed}: {found}", style="dim")


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def table(rows: Iterable[Row]) -> str:
    """A line for each network and setting: top-1 and SQNR by source, means of the seeds there are, and by how much
    the SQNR of a seed differs from that at most.
    """
    rows, lines = list(rows), []
    for name, title in NETWORKS.items():
        for setting in SETTINGS:
            mine = [row for row in rows if (row.network, row.setting) == (name, setting)]
            by_source = {s: [row for row in mine if row.source == s] for s in SOURCES}
            if mine:
                first = mine[0]
                seeds = str(min(len(found) for found in by_source.values()))
                cells = [_cell(found) for found in by_source.values()]
                lines.append((title, setting, f"{first.n:,}", seeds, _percent(first.float_top1), *cells))
    header = ("network", "bits", "n", "seeds", "float", *(f"{source}" for source in SOURCES))
    return markdown(header, lines) if lines else "*Not measured yet.*"


def _cell(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    sqnr = np.array([np.nan if row.sqnr_db is None else row.sqnr_db for row in rows])
    spread = f" ± {abs(sqnr - sqnr.mean()).max():.1f}" if len(rows) > 1 else ""
    top1 = 100 * float(np.mean([row.top1 or 0.0 for row in rows]))
    return f"{top1:.1f}, {sqnr.mean():.1f}{spread} dB"


def costs(rows: Iterable[Row]) -> str:
    """For each network: how far the batch norms are from what they have stored, and CPU seconds."""
    rows, lines = list(rows), []
    for name, title in NETWORKS.items():
        found = {s: [row for row in rows if (row.network, row.source) == (name, s)] for s in SOURCES}
        if not all(found.values()):
            continue
        far = [_mean(row.mismatch for row in found[source]) for source in (NOISE, DISTILLED, REAL)]
        making = _mean(row.making for row in found[DISTILLED])
        whole = _mean(row.cpu_seconds for row in found[PICTURES] if row.setting == "2")
        lines.append((title, *(f"{one:.3f}" for one in far), f"{making:.0f}", f"{whole:.1f}"))
    header = (
        "network",
        "noise",
        "distilled",
        "real",
        "distilling, CPU s",
        "quantizing to 2 bits with pictures, CPU s",
    )
    return markdown(header, lines) if lines else "*Not measured yet.*"


def _mean(values: Iterable[float | None]) -> float:
    return float(np.mean([value for value in values if value is not None]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sources", description=__doc__)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, metavar="N")
    parser.add_argument("--json", type=Path, default=KEPT, metavar="FILE")
    options = parser.parse_args(arguments)
    console = Console(stderr=True)
    try:
        complete(Ledger(Row, options.json), options.networks, options.seeds, console)
    except DfmpcError as error:
        console.print(f"error: {error}", style="red", markup=False)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
