"""Codes of several weights at once against scalar ones at equal bytes: ``python -m benchmarks.codes [--write]``.

Every labelled network, from the model alone, at fractions of its float bytes, two seeds of the synthetic
inputs: `--storage vector` (the default) and `--storage table`. Rows are kept as they are measured, and the same
command goes on from there. ``--write`` writes docs/codes.md from them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.evaluate import reference, standard_error
from benchmarks.ledger import Ledger
from benchmarks.networks import LABELLED, available
from benchmarks.tables import markdown
from onnx_dfmpc import Recipe, quantize
from onnx_dfmpc.errors import UnsupportedError
from onnx_dfmpc.model.files import load

ROOT = Path(__file__).resolve().parents[1]
KEPT, PAGE = ROOT / "benchmarks" / "results" / "codes.json", ROOT / "docs" / "codes.md"
RATIOS, SEEDS, STORAGES = (12, 10, 8, 6), (0, 1), ("table", "vector")


@dataclass(frozen=True)
class Row:
    """One file. ``bytes`` is 0 where the size cannot be had."""

    network: str
    ratio: int
    storage: str
    seed: int
    bytes: int = 0
    n: int = 0
    sqnr_db: float | None = None
    top1: float | None = None
    float_top1: float | None = None

    @property
    def key(self) -> tuple[str, int, str, int]:
        """What was run."""
        return self.network, self.ratio, self.storage, self.seed


def measure(ledger: Ledger[Row], names: Sequence[str]) -> None:
    """Every run that is not there yet."""
    for network in available(names, Console(stderr=True)):
        data = reference(network, network.data[0])
        own = data.score(load(network.path).proto)
        for ratio in RATIOS:
            for storage in STORAGES:
                for seed in SEEDS:
                    row = Row(network.name, ratio, storage, seed)
                    if row.key in ledger:
                        continue
                    recipe = Recipe(target_ratio=ratio, storage=storage, seed=seed)
                    try:
                        made = quantize(network.path, None, recipe, validated=False)
                    except UnsupportedError:
                        ledger.add(row)
                        continue
                    score = data.score(made.model)
                    done = Row(*row.key, made.size, score.n, score.sqnr_db, score.top1, own.top1)
                    ledger.add(done)
                    sys.stderr.write(f"{done}\n")


def page(rows: Sequence[Row]) -> str:
    """The page."""
    lines = []
    gains = []
    for name in dict.fromkeys(row.network for row in rows):
        for ratio in RATIOS:
            cells = [name, f"1/{ratio}"]
            means = {}
            for storage in STORAGES:
                some = [r for r in rows if (r.network, r.ratio, r.storage) == (name, ratio, storage)]
                done = [r for r in some if r.bytes]
                if not done:
                    cells += ["-", "-"]
                    continue
                means[storage] = float(np.mean([r.sqnr_db for r in done]))
                cells += [
                    ", ".join(f"{r.sqnr_db:.1f}" for r in done),
                    ", ".join(f"{100 * (r.top1 or 0):.1f}" for r in done),
                ]
            both = len(means) == 2
            if both:
                gains.append(means["vector"] - means["table"])
            cells.append(f"{means['vector'] - means['table']:+.1f}" if both else "")
            top1 = next((r.float_top1 for r in rows if r.network == name and r.float_top1), 0.0)
            error = standard_error(top1 or 0.0, next((r.n for r in rows if r.network == name and r.n), 1))
            cells.append(f"{100 * (top1 or 0):.1f} ± {100 * error:.1f}")
            lines.append(cells)
    header = (
        "network", "bytes", "scalar: SQNR (dB)", "top-1 (%)", "vectors: SQNR (dB)", "top-1 (%)", "gain (dB)",
        "float top-1",
    )  # fmt: skip
    words = (Path(__file__).parent / "codes_page.txt").read_text(encoding="utf-8").rstrip()
    summary = (
        f"Of {len(gains)} pairs of network and size, vectors have more output SQNR in "
        f"{sum(gain > 0 for gain in gains)}; the median gain is {np.median(gains):.1f} dB, the range "
        f"{min(gains):+.1f} to {max(gains):+.1f} dB."
    )
    return f"{words}\n\n{summary}\n\n{markdown(header, lines)}\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=LABELLED)
    parser.add_argument("--write", action="store_true", help="write docs/codes.md")
    given = parser.parse_args(arguments)
    ledger = Ledger(Row, KEPT)
    measure(ledger, given.networks)
    text = page(list(ledger))
    if given.write:
        PAGE.write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
