"""lambda1 and lambda2 of the published method on a grid: ``make results``, or ``python -m benchmarks.lambdas
[--networks NAME ...] [--write]``.

Images are training images where a network has some, so that its test images stay unseen. Rows are kept
(`ledger.py`); ``--write`` draws the heat maps, `studies` puts the table on docs/results.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import package
from benchmarks.evaluate import reference
from benchmarks.ledger import Ledger
from benchmarks.networks import available
from benchmarks.provenance import provenance
from benchmarks.readme import RESULTS
from benchmarks.tables import markdown
from onnx_dfmpc import Recipe
from onnx_dfmpc.errors import DfmpcError

NETWORKS: Mapping[str, str] = {
    "cifar10_resnet20_bn": "ResNet-20",
    "cifar10_resnet8_keras_bn": "ResNet-8",
    "cifar10_shufflenetv2_x0_5_bn": "ShuffleNetV2 0.5",
    "har_conv1d_bn": "HAR, Conv1d",
    "digits_resnet_bn": "digits",
}
PAIRS = ((2, 6), (3, 6))
FIRST, SECOND = (0.0, 0.05, 0.5, 5.0, 50.0), (0.0, 0.05, 0.5, 5.0)
"""Values of lambda1 and of lambda2."""

PUBLISHED = (0.5, 0.0)
KEPT = RESULTS / "lambdas.json"


@dataclass(frozen=True)
class Row:
    """One point of the grid; ``top1`` is a fraction."""

    network: str
    low_bits: int
    high_bits: int
    lambda1: float
    lambda2: float
    n: int
    top1: float | None
    sqnr_db: float
    versions: str

    @property
    def key(self) -> Hashable:
        """What was quantized, and how."""
        return self.network, self.low_bits, self.high_bits, self.lambda1, self.lambda2


def complete(ledger: Ledger[Row], names: Sequence[str], console: Console) -> None:
    """Measure what is missing."""
    versions = provenance()
    for network in available(names, console):
        todo = [
            (*pair, lambda1, lambda2)
            for lambda2, lambda1 in product(SECOND, FIRST)
            for pair in PAIRS
            if (network.name, *pair, lambda1, lambda2) not in ledger
        ]
        reads = reference(network, network.calibration or network.data[0]) if todo else None
        for low, high, lambda1, lambda2 in todo:
            assert reads is not None
            recipe = Recipe(method="paper", low_bits=low, high_bits=high, lambda1=lambda1, lambda2=lambda2)
            score = reads.score(package.quantize(network.path, recipe).model)
            sqnr = score.sqnr_db if score.sqnr_db is not None else float("-inf")
            ledger.add(Row(network.name, low, high, lambda1, lambda2, score.n, score.top1, sqnr, versions))
        if todo:
            console.print(f"{network.name}: {len(todo)} points", style="dim")


def table(rows: Iterable[Row]) -> str:
    """For each network and bits: the published pair, the best one, and the range that is within half a dB."""
    rows, lines = list(rows), []
    for name, (low, high) in product(NETWORKS, PAIRS):
        mine = [row for row in rows if (row.network, row.low_bits, row.high_bits) == (name, low, high)]
        if not mine:
            continue
        published = next(row for row in mine if (row.lambda1, row.lambda2) == PUBLISHED)
        best = max(mine, key=lambda row: row.sqnr_db)
        none = next(row for row in mine if (row.lambda1, row.lambda2) == (0, 0))
        near = [row for row in mine if row.lambda2 == 0 and row.sqnr_db > best.sqnr_db - 0.5]
        within = ", ".join(f"{row.lambda1:g}" for row in near) or "none"
        lines.append(
            (
                NETWORKS[name],
                f"{low}/{high}",
                f"{published.n:,}",
                _cell(none),
                _cell(published),
                f"{best.lambda1:g}, {best.lambda2:g}: {_cell(best)}",
                within,
            )
        )
    header = (
        "network",
        "bits",
        "n",
        "0, 0",
        "0.5, 0 (published)",
        "best lambda1, lambda2",
        "lambda1 within 0.5 dB",
    )
    return markdown(header, lines) if lines else "*Not measured yet.*"


def _cell(row: Row) -> str:
    top1 = "-" if row.top1 is None else f"{100 * row.top1:.1f}"
    return f"{row.sqnr_db:.1f} dB, {top1}"


def chart(rows: Iterable[Row]) -> dict[str, Any]:
    """Heat maps, as a Vega-Lite specification: a row for the bits, a column for each network. Colours are dB
    below the best point of the map, which is what there is to compare.
    """
    rows = list(rows)
    best: dict[tuple[str, int], float] = {}
    for row in rows:
        key = row.network, row.low_bits
        best[key] = max(row.sqnr_db, best.get(key, row.sqnr_db))
    values = [
        {
            "network": NETWORKS[row.network],
            "bits": f"{row.low_bits}/{row.high_bits}",
            "lambda1": f"{row.lambda1:g}",
            "lambda2": f"{row.lambda2:g}",
            "below": max(row.sqnr_db - best[row.network, row.low_bits], -10.0),
            "text": f"{row.sqnr_db:.1f}",
        }
        for row in rows
    ]
    axes = {
        "x": {
            "field": "lambda1",
            "type": "ordinal",
            "sort": [f"{v:g}" for v in FIRST],
            "axis": {"labelAngle": 0},
        },
        "y": {"field": "lambda2", "type": "ordinal", "sort": [f"{v:g}" for v in reversed(SECOND)]},
    }
    colour = {
        "field": "below",
        "type": "quantitative",
        "scale": {"scheme": "viridis", "domain": [-10, 0]},
        "title": "dB below best",
    }
    white = {"condition": {"test": "datum.below > -3", "value": "black"}, "value": "white"}
    text = {"text": {"field": "text", "type": "nominal"}, "color": white}
    layers = [
        {"mark": "rect", "encoding": {**axes, "color": colour}},
        {"mark": {"type": "text", "fontSize": 9}, "encoding": {**axes, **text}},
    ]
    return {
        "background": "white",
        "data": {"values": values},
        "facet": {
            "row": {"field": "bits", "type": "nominal", "title": None},
            "column": {"field": "network", "type": "nominal", "sort": list(NETWORKS.values()), "title": None},
        },
        "spec": {"width": 150, "height": 110, "layer": layers},
    }


def draw(rows: Iterable[Row], charts: Path) -> None:
    """Write the heat maps."""
    import vl_convert  # the extra "report"

    svg = vl_convert.vegalite_to_svg(json.dumps(chart(rows)))
    (charts / "lambdas.svg").write_text(svg + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lambdas", description=__doc__)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--json", type=Path, default=KEPT, metavar="FILE")
    parser.add_argument("--write", action="store_true", help="draw the heat maps")
    options = parser.parse_args(arguments)
    console = Console(stderr=True)
    ledger = Ledger(Row, options.json)
    try:
        complete(ledger, options.networks, console)
    except DfmpcError as error:
        console.print(f"error: {error}", style="red", markup=False)
        return error.exit_code
    if options.write:
        draw(ledger, RESULTS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
