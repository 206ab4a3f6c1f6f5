"""Do predictions hold? ``python -m benchmarks.predictions [--networks NAME ...] [--json FILE]``.

A prediction is an output SQNR with an interval, from synthetic inputs of every plausible kind. The truth is
the SQNR of the worst output on real inputs that the tool never sees. A prediction holds where the truth is at
least the lower end of its interval: that is what a target promises. The bar is 90 % of the cases.

    holds         share of cases whose truth is at least the lower end
    inside        share of cases whose truth is in the interval
    width         of the interval, in dB
    error         truth less the prediction, in dB: mean and standard deviation

Every network, as it is and folded, and each of these with its inputs in one other range (all of them with
``--ranges all``); at 2, 3 and 4 bits, with means of 3 and 4 bits, and for the presets. A run that is stopped
keeps what it has: the same command goes on. With the same FILE as `robustness`, rows of either count for
both.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.cases import BITS, DEFAULT, NETWORKS, Row, family, run, subjects
from benchmarks.ledger import Ledger
from benchmarks.tables import markdown
from benchmarks.variants import one_range
from onnx_dfmpc.errors import DfmpcError
from onnx_dfmpc.recipe import PRESETS

BAR = 0.9

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    **BITS,
    **{f"mean {bits}": {"target_bits": bits} for bits in (3, 4)},
    **{name: {"preset": name} for name in PRESETS},
}
"""Bits, and what they are in a recipe."""

HEADER = ("", "cases", "holds", "inside", "width: mean dB", "median", "error: mean dB", "deviation")


def table(rows: Iterable[Row]) -> str:
    """A line for each setting, for each network, for ranges that are a network's own or not, and for all."""
    rows = [row for row in rows if _complete(row)]
    names = dict.fromkeys(family(row.network) for row in rows)
    groups = {
        **{setting: [row for row in rows if row.setting == setting] for setting in SETTINGS},
        **{name: [row for row in rows if family(row.network) == name] for name in names},
        "batch norm kept": [row for row in rows if not row.folded],
        "folded or none": [row for row in rows if row.folded],
        "own range": [row for row in rows if not row.range],
        "another range": [row for row in rows if row.range],
        "all": rows,
    }
    return markdown(HEADER, [(label, *_cells(some)) for label, some in groups.items() if some])


def _complete(row: Row) -> bool:
    return row.method == DEFAULT and None not in (row.sqnr_db, row.predicted_db, row.low_db, row.high_db)


def _cells(rows: Sequence[Row]) -> list[str]:
    truth, point, low, high = (
        np.array([getattr(row, name) for row in rows], np.float64)
        for name in ("sqnr_db", "predicted_db", "low_db", "high_db")
    )
    shares = ((truth >= low).mean(), ((truth >= low) & (truth <= high)).mean())
    width, error = high - low, truth - point
    numbers = (f"{width.mean():.1f}", f"{np.median(width):.1f}", f"{error.mean():+.1f}", f"{error.std():.1f}")
    return [str(len(rows)), *(f"{100 * share:.0f} %" for share in shares), *numbers]


def summary(rows: Iterable[Row]) -> list[str]:
    """Whether the bar is met, and every case that does not hold, the worst first."""
    rows = [row for row in rows if _complete(row)]
    missed = sorted((_missing(row), row.name) for row in rows if _missing(row) < 0)
    share = 1 - len(missed) / len(rows)
    lines = [f"{'met' if share >= BAR else 'missed'}: {100 * share:.1f} % hold, the bar is {100 * BAR:.0f} %"]
    return lines + [f"{name}: {-less:.1f} dB below the interval" for less, name in missed]


def _missing(row: Row) -> float:
    assert row.sqnr_db is not None
    assert row.low_db is not None
    return row.sqnr_db - row.low_db


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.predictions",
        description="Predicted SQNR and its interval against the truth.",
    )
    add = parser.add_argument
    add("--networks", nargs="*", default=NETWORKS, metavar="NAME", help="default: all; none: only print")
    add("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS), help="default: all")
    add("--ranges", default="one", choices=("own", "one", "all"), help="of the inputs (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="keep the rows there, and go on from it")
    add("--join", type=Path, nargs="+", default=[], metavar="FILE", help="rows of other runs")
    options = parser.parse_args(arguments)
    ranges = {"own": lambda _: (), "one": one_range, "all": None}[options.ranges]
    try:
        ledger = Ledger(Row, options.json, options.join)
        progress = Console(stderr=True)
        settings = {name: SETTINGS[name] for name in options.settings}
        run(ledger, subjects(options.networks, progress, ranges), [DEFAULT], settings, progress)
    except DfmpcError as error:
        print(f"error: {error}", *([f"hint: {error.hint}"] if error.hint else []), sep="\n", file=sys.stderr)
        return error.exit_code
    if any(_complete(row) for row in ledger):
        print(table(ledger), "", *summary(ledger), sep="\n")
    failed = [row for row in ledger if row.failed and row.method == DEFAULT]
    print(*(f"without {row.name}: {row.failed}" for row in failed), sep="\n", end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
