"""Top-1 at one eighth of the float bytes, from the model alone: ``python -m benchmarks.eighth [--networks NAME ...]``.

With float activations and with 8-bit ones, on all test images, two seeds. Rows are kept as they are measured, and
the same command goes on from there; `distance` puts the table on docs/accuracy.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks import package
from benchmarks.activations import TEST_DATA
from benchmarks.evaluate import reference, standard_error
from benchmarks.ledger import Ledger
from benchmarks.networks import available
from benchmarks.provenance import provenance
from benchmarks.readme import RESULTS
from benchmarks.tables import markdown
from onnx_dfmpc import Recipe
from onnx_dfmpc.errors import DfmpcError
from onnx_dfmpc.model.files import load

NETWORKS: Mapping[str, str] = {
    "cifar10_resnet20_bn": "ResNet-20",
    "cifar10_resnet56_bn": "ResNet-56",
    "cifar10_resnet8_keras_bn": "ResNet-8",
    "cifar10_shufflenetv2_x0_5_bn": "ShuffleNetV2 0.5",
    "imagenet_mobilenet_v1_025_128_folded": "MobileNetV1 0.25, folded",
    "imagenet_squeezenet1_1": "SqueezeNet 1.1",
    "har_conv1d_bn": "HAR, Conv1d",
    "wakeword_bn": "wake word",
}
"""Networks as people call them."""

RATIO, SEEDS = 8, (0, 1)
ACTIVATIONS: Mapping[str, Mapping[str, Any]] = {"float": {}, "8-bit": {"activations": 8}}
WANTED = 0.005
"""Loss in top-1 that counts as none."""

KEPT = RESULTS / "eighth.json"


@dataclass(frozen=True)
class Row:
    """One file. Fractions; ``low`` and ``high`` are the 95 % interval of the difference in top-1 to float."""

    network: str
    activations: str
    seed: int
    n: int
    float_bytes: int
    float_top1: float
    versions: str
    bytes: int | None = None
    top1: float | None = None
    low: float | None = None
    high: float | None = None
    sqnr_db: float | None = None
    failed: str = ""

    @property
    def key(self) -> tuple[str, str, int]:
        """What was made."""
        return self.network, self.activations, self.seed


def complete(ledger: Ledger[Row], names: Iterable[str], console: Console) -> None:
    """Measure what is missing."""
    versions = provenance()
    for network in available(names, console):
        todo = [(a, seed) for a in ACTIVATIONS for seed in SEEDS if (network.name, a, seed) not in ledger]
        if not todo:
            continue
        source = load(network.path)
        kept = reference(network, TEST_DATA.get(network.name, network.data[0]))
        truth = kept.score(source.proto).top1
        assert truth is not None
        for activations, seed in todo:
            row = Row(network.name, activations, seed, kept.samples.count, source.size, truth, versions)
            try:
                recipe = Recipe(target_ratio=RATIO, seed=seed, **ACTIVATIONS[activations])
                model = package.quantize(network.path, recipe).model
            except DfmpcError as error:
                row = replace(row, failed=str(error))
            else:
                score = kept.score(model)
                low, high = score.top1_interval or (None, None)
                facts: dict[str, Any] = {
                    "top1": score.top1,
                    "low": low,
                    "high": high,
                    "sqnr_db": score.sqnr_db,
                }
                row = replace(row, bytes=model.ByteSize(), **facts)
            ledger.add(row)
            console.print(f"{row.key}: {row.failed or row.top1} of {truth}", style="dim", markup=False)


def table(rows: Iterable[Row]) -> str:
    """A line for each network: top-1 by activations and seed, each with the interval of its difference to float, and
    the mean loss, bold where it is more than half a point; then the versions.
    """
    rows, lines = list(rows), []
    for name, title in NETWORKS.items():
        mine = [row for row in rows if row.network == name]
        if mine:
            first = mine[0]
            error = 100 * standard_error(first.float_top1, first.n)
            found = [[row for row in mine if row.activations == a] for a in ACTIVATIONS]
            smaller = [row.float_bytes / row.bytes for row in mine if row.bytes]
            cells = [text for some in found for text in (_cell(some), _verdict(some))]
            size = f"{min(smaller):.2f}" if smaller else "-"
            lines.append((title, f"{first.n:,}", f"{100 * first.float_top1:.1f} ± {error:.1f}", size, *cells))
    header = ("network", "n", "float ± SE", "times smaller")
    columns = [text for a in ACTIVATIONS for text in (f"{a} activations", "loss")]
    versions = "\n".join(f"* {line}" for line in dict.fromkeys(row.versions for row in rows))
    return (
        f"{markdown((*header, *columns), lines)}\n\nMeasured with:\n\n{versions}"
        if lines
        else "*Not measured yet.*"
    )


def _cell(rows: Sequence[Row]) -> str:
    """Top-1 of each seed, with the interval of its difference to float."""
    made = [row for row in rows if row.top1 is not None]
    if not made:
        return "no file" if rows else ""
    return ", ".join(
        f"{100 * (row.top1 or 0):.1f} ({100 * (row.low or 0):+.1f} to {100 * (row.high or 0):+.1f})"
        for row in made
    )


def _verdict(rows: Sequence[Row]) -> str:
    lost = [row.float_top1 - row.top1 for row in rows if row.top1 is not None]
    if not lost:
        return ""
    mean = float(np.mean(lost))
    text = f"{100 * mean:.1f}".replace("-0.0", "0.0")
    return text if round(mean, 6) <= WANTED else f"**{text}**"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.eighth")
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), metavar="NAME")
    options = parser.parse_args(arguments)
    ledger = Ledger(Row, KEPT)
    complete(ledger, options.networks, Console(stderr=True))
    print(table(ledger))
    return 0


if __name__ == "__main__":
    sys.exit(main())
