"""Is the default ever worse than plain rounding? ``python -m benchmarks.robustness [--networks NAME ...]
[--json FILE]``.

Every network, as it is and folded, with its inputs in each usual range of pictures or, where they are no
pictures, times 0.1, 4 and 30 (`variants`), at 2, 3 and 4 bits with 8 in the first and the last layer. The
default is compared with plain rounding and with SQuant and bias correction, all of them without data, by the
output SQNR on real inputs: that of the worst output, on 24 to 192 samples.

A case is one variant at one number of bits. A run that is stopped keeps what it has: the same command goes
on. ``--join`` adds the rows of other files, such as those of a second process.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.cases import BITS, DEFAULT, METHODS, NEAREST, NETWORKS, SQUANT, Row, family, run, subjects
from benchmarks.ledger import Ledger
from benchmarks.tables import markdown
from onnx_dfmpc.errors import DfmpcError

HEADER = (
    "network", "batch norm", "cases", "over plain rounding: mean dB", "least", "over SQuant: mean dB", "least",
    "at least SQuant's",
)  # fmt: skip


@dataclass(frozen=True)
class Gain:
    """One case: what the default has over the two baselines, in dB."""

    row: Row
    nearest: float
    squant: float


def gains(rows: Iterable[Row]) -> list[Gain]:
    """Cases that all three methods could do."""
    rows = list(rows)
    found = {row.key: row.sqnr_db for row in rows}
    cases = []
    for row in rows:
        others = [found.get((*row.variant, method, row.setting)) for method in (NEAREST, SQUANT)]
        nearest, squant = others
        if row.method == DEFAULT and None not in (row.sqnr_db, nearest, squant):
            assert row.sqnr_db is not None and nearest is not None and squant is not None  # noqa: PT018
            cases.append(Gain(row, row.sqnr_db - nearest, row.sqnr_db - squant))
    return cases


def table(cases: Sequence[Gain]) -> str:
    """A line for each network in each form, for each number of bits, and for all."""
    groups: dict[tuple[str, str], list[Gain]] = {}
    for case in cases:
        form = "folded or none" if case.row.folded else "kept"
        groups.setdefault((family(case.row.network), form), []).append(case)
    for setting in BITS:
        mine = [case for case in cases if case.row.setting == setting]
        if mine:
            groups[f"all, {setting} bits", ""] = mine
    groups["all", ""] = list(cases)
    return markdown(HEADER, [(*labels, *_cells(some)) for labels, some in groups.items()])


def _cells(cases: Sequence[Gain]) -> list[str]:
    nearest, squant = (np.array([getattr(case, name) for case in cases]) for name in ("nearest", "squant"))
    numbers = (nearest.mean(), nearest.min(), squant.mean(), squant.min())
    return [str(len(cases)), *(f"{number:+.1f}" for number in numbers), f"{100 * (squant >= 0).mean():.0f} %"]


def summary(cases: Sequence[Gain]) -> list[str]:
    """The counts, and every case that is below a baseline, the worst first."""
    worse = sorted((case for case in cases if case.nearest < 0), key=lambda case: case.nearest)
    below = sorted((case for case in cases if case.squant < 0), key=lambda case: case.squant)
    lines = [
        f"{len(cases)} cases, {len(worse)} below plain rounding, {len(below)} below SQuant with bias correction"
    ]
    lines += [f"below plain rounding: {case.row.name}, {case.nearest:+.2f} dB" for case in worse]
    lines += [f"below SQuant: {case.row.name}, {case.squant:+.2f} dB" for case in below]
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.robustness", description="The default against plain rounding and SQuant."
    )
    add = parser.add_argument
    add("--networks", nargs="*", default=NETWORKS, metavar="NAME", help="default: all; none: only print")
    add("--bits", nargs="+", default=list(BITS), choices=list(BITS), help="default: all")
    add("--as-given", action="store_true", help="leave the inputs in their own range")
    add("--json", type=Path, metavar="FILE", help="keep the rows there, and go on from it")
    add("--join", type=Path, nargs="+", default=[], metavar="FILE", help="rows of other runs")
    options = parser.parse_args(arguments)
    try:
        ledger = Ledger(Row, options.json, options.join)
        progress = Console(stderr=True)
        found = subjects(options.networks, progress, (lambda _: ()) if options.as_given else None)
        run(ledger, found, list(METHODS), {bits: BITS[bits] for bits in options.bits}, progress)
    except DfmpcError as error:
        print(f"error: {error}", *([f"hint: {error.hint}"] if error.hint else []), sep="\n", file=sys.stderr)
        return error.exit_code
    cases = gains(row for row in ledger if row.setting in BITS)
    if cases:
        print(table(cases), "", *summary(cases), sep="\n")
    failed = [row for row in ledger if row.failed]
    print(*(f"without {row.name}, {row.method}: {row.failed}" for row in failed), sep="\n", end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
