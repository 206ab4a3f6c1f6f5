"""What are real samples worth? ``python -m benchmarks.calibration [--networks NAME ...] [--json FILE]``.

Every labelled network, as it is and folded, at 2 and 4 bits: output SQNR and top-1 without data, with 1, 2, 4,
16, 64 and 512 real samples that are blended with the belief about the inputs, and with these samples alone.
No setting asks for the last: it is made here by letting no number of samples be worth as much as the belief
(`onnx_dfmpc.statistics.mixing.KNOWN` = 0). The patches are those that real inputs have beside the believed ones.

CIFAR networks are calibrated on training images. Other files are shuffled, since some are sorted by class:
one half is for calibration, the other is tested, the same samples whatever their number for calibration. The range of
numbers follows the samples in both cases; of 16 or more, an eighth is held out for the prediction. A run that
is stopped keeps what it has: the same command goes on.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.evaluate import Reference, reference_of
from benchmarks.ledger import Ledger
from benchmarks.networks import LABELLED, Network, available
from benchmarks.tables import markdown
from benchmarks.variants import Variant, in_words, variants
from onnx_dfmpc import Recipe, quantize
from onnx_dfmpc.errors import DfmpcError
from onnx_dfmpc.statistics import mixing

COUNTS = (1, 2, 4, 16, 64, 512)
BITS = (2, 4)
NONE, BLENDED, ALONE = "none", "blended", "alone"

Inputs = tuple[NDArray[Any], NDArray[np.int64] | None]


@dataclass(frozen=True)
class Row:
    """One file: ``count`` samples, of which ``source`` says what was made."""

    network: str
    folded: bool
    bits: int
    source: str
    count: int
    samples: int
    sqnr_db: float | None
    top1: float | None
    float_top1: float | None
    agreement: float | None

    @property
    def subject(self) -> tuple[str, bool, int]:
        """What was quantized."""
        return self.network, self.folded, self.bits

    @property
    def key(self) -> Hashable:
        """What was quantized, and how."""
        return *self.subject, self.source, self.count


@contextmanager
def alone() -> Iterator[None]:
    """Within, real samples count as if nothing was believed."""
    usual = mixing.KNOWN
    try:
        mixing.KNOWN = 0
        yield
    finally:
        mixing.KNOWN = usual


def parted(network: Network) -> tuple[NDArray[Any], Inputs]:
    """Samples for calibration, and others to test, with labels."""
    inputs, labels = network.inputs(network.data[0])
    if network.calibration is not None:
        return network.inputs(network.calibration)[0], (inputs, labels)
    order = np.random.default_rng(0).permutation(len(inputs))
    half = min(len(inputs) // 2, max(COUNTS))
    rest = np.sort(order[half:])
    return inputs[order[:half]], (inputs[rest], None if labels is None else labels[rest])


def measure(
    ledger: Ledger[Row], variant: Variant, pool: NDArray[Any], test: Inputs, bits: Iterable[int]
) -> Iterator[Row]:
    """Rows that the ledger does not have yet."""
    counts = sorted({min(count, len(pool)) for count in COUNTS})
    runs = [(NONE, 0), *((source, count) for count in counts for source in (BLENDED, ALONE))]
    wanted = [(width, *one) for width in bits for one in runs]
    wanted = [one for one in wanted if (variant.network, variant.folded, *one) not in ledger]
    if not wanted:
        return
    reference = reference_of(variant.proto, *test)
    truth = reference.score(variant.proto).top1
    with tempfile.TemporaryDirectory() as directory:
        for width, source, count in wanted:
            given: dict[str, Any] = {}
            if count:
                path = Path(directory) / f"{count}.npz"
                np.savez(path, input=pool[:count])
                given = {"calibration_data": str(path)}
            row = _row(reference, variant, Recipe(bits=width, **given), source)
            yield Row(variant.network, variant.folded, width, source, count, *row[:3], truth, row[3])


def _row(
    reference: Reference, variant: Variant, recipe: Recipe, source: str
) -> tuple[int, float | None, float | None, float | None]:
    if source == ALONE:
        with alone():
            model = quantize(variant.proto, None, recipe, validated=False).model
    else:
        model = quantize(variant.proto, None, recipe, validated=False).model
    score = reference.score(model)
    return score.n, score.sqnr_db, score.top1, score.agreement


def table(rows: Iterable[Row]) -> str:
    """A line for each network at some bits: SQNR and top-1 by number of samples."""
    rows = list(rows)
    header = ["network", "bits", "float", "none"]
    header += [f"{count}: {source}" for count in COUNTS for source in (BLENDED, ALONE)]
    lines = []
    for first in (row for row in rows if row.source == NONE):
        mine = [row for row in rows if row.subject == first.subject]
        found = {(row.source, row.count): row for row in mine}
        most = max(row.count for row in mine)
        last = next((count for count in COUNTS if count >= most), most)  # has as many as there are
        cells = [_cell(first)]
        for count in COUNTS:
            number = most if count == last else count
            cells += [_cell(found.get((source, number))) for source in (BLENDED, ALONE)]
        shown = in_words(first.network, first.folded)
        truth = "-" if first.float_top1 is None else f"{100 * first.float_top1:.1f}"
        lines.append((shown, str(first.bits), truth, *cells))
    return markdown(header, lines)


def _cell(row: Row | None) -> str:
    if row is None or row.sqnr_db is None or row.top1 is None:
        return "-"
    return f"{row.sqnr_db:.1f}, {100 * row.top1:.1f}"


def summary(rows: Iterable[Row]) -> str:
    """Gain over no data in dB, by number of samples: mean, least, and share of files that are worse."""
    rows = list(rows)
    base = {row.subject: row.sqnr_db for row in rows if row.source == NONE}
    lines = []
    for bits in sorted({row.bits for row in rows}):
        for count in sorted({row.count for row in rows} - {0}):
            cells = []
            for source in (BLENDED, ALONE):
                gain = np.array(
                    [
                        row.sqnr_db - none
                        for row in rows
                        if (row.bits, row.count, row.source) == (bits, count, source)
                        and row.sqnr_db is not None
                        and (none := base.get(row.subject)) is not None
                    ]
                )
                cells += ["-"] * 3 if not len(gain) else [f"{gain.mean():+.1f}", f"{gain.min():+.1f}", f"{100 * (gain < 0).mean():.0f} %"]  # fmt: skip
            number = sum((row.bits, row.count, row.source) == (bits, count, BLENDED) for row in rows)
            lines.append((f"{bits} bits, {count}", str(number), *cells))
    header = ["samples", "files"]
    header += [f"{source}: {text}" for source in (BLENDED, ALONE) for text in ("mean dB", "least", "worse")]
    return markdown(header, lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.calibration", description="What real samples are worth, by their number."
    )
    add = parser.add_argument
    add(
        "--networks",
        nargs="*",
        default=LABELLED,
        metavar="NAME",
        help="default: all with labels; none: only print",
    )
    add("--bits", nargs="+", type=int, default=BITS, metavar="N", help="default: 2 4")
    add("--json", type=Path, metavar="FILE", help="keep the rows there, and go on from it")
    add("--join", type=Path, nargs="+", default=[], metavar="FILE", help="rows of other runs")
    options = parser.parse_args(arguments)
    progress = Console(stderr=True)
    try:
        ledger = Ledger(Row, options.json, options.join)
        for network in available(options.networks, progress):
            pool, test = parted(network)
            for variant in variants(network, ranges=()):
                for row in measure(ledger, variant, pool, test, options.bits):
                    ledger.add(row)
                    progress.print(
                        f"{variant.name}, {row.bits} bits, {row.source} {row.count}: {_cell(row)}",
                        style="dim",
                    )
    except DfmpcError as error:
        print(f"error: {error}", *([f"hint: {error.hint}"] if error.hint else []), sep="\n", file=sys.stderr)
        return error.exit_code
    if any(ledger):
        print("SQNR in dB, top-1 in %", "", table(ledger), "", summary(ledger), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
