"""Write the tables of the pages: measure what they show, and replace what stands between their markers.

python -m benchmarks.readme [--only demo|networks]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console

from benchmarks import accuracy, methods
from benchmarks.evaluate import Score
from models import demo

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", ROOT / "docs" / "bits.md", ROOT / "models" / "README.md")
"""Where tables stand; each has its markers on one of them."""

RESULTS = ROOT / "benchmarks" / "results" / "networks.json"

SHOWN = (
    ("cifar10_resnet20_bn", ("2/6", "2"), "cifar10_jpeg_test"),
    ("cifar10_resnet56_bn", ("2/6", "2", "3"), "cifar10_jpeg_test"),
    ("cifar10_resnet56_folded", ("2/6",), "cifar10_jpeg_test"),
    ("cifar10_shufflenetv2_x0_5_bn", ("3",), "cifar10_test"),
    ("cifar10_resnet8_keras_bn", ("3",), "cifar10_test"),
    ("imagenet_squeezenet1_1", ("3", "4"), "imagenet_500"),
    ("imagenet_mobilenet_v1_025_128_folded", ("4",), "imagenet_500"),
    ("har_conv1d_bn", ("2/6",), "har_test"),
)
"""Network, settings and test data of each row."""

COMPARED = ("nearest", "squant", "dfmpc")


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Table whose first column is text and whose other columns are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def replace(text: str, marker: str, content: str) -> str:
    """Text with other content between ``<!-- marker:begin -->`` and ``<!-- marker:end -->``."""
    begin, end = f"<!-- {marker}:begin -->", f"<!-- {marker}:end -->"
    head, rest = text.split(begin)
    return f"{head}{begin}\n{content}\n{end}{rest.split(end)[1]}"


def write(marker: str, content: str) -> None:
    """Put a table where its markers are."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if f"<!-- {marker}:begin -->" in text:
            page.write_text(replace(text, marker, content), encoding="utf-8")


def demo_table() -> str:
    """What ``make demo`` prints."""
    return markdown(demo.HEADER, demo.rows(demo.run()))


def networks_table(console: Console) -> str:
    """Real networks: float, rounded, SQuant and the default."""
    results = []
    for network, settings, data in SHOWN:
        chosen = methods.settings(",".join(settings), ["auto"])
        results += accuracy.run([network], chosen, methods.methods(",".join(COMPARED)), [data], None, console)
    RESULTS.parent.mkdir(exist_ok=True)
    accuracy.write(results, RESULTS)
    rows = []
    for result in results:
        (data, score), *_ = result.float_scores.items()
        tops = [_percent(row.scores[data]) for row in result.rows]
        size = next(row.bytes for row in result.rows if row.method == "dfmpc")
        rows.append(
            (result.network, f"{score.n:,}", f"{result.float_bytes:,}", _percent(score), result.setting.split()[0], f"{size:,}", *tops)
        )
    return markdown(("network", "n", "float bytes", "float top-1", "bits", "bytes", "rounded", "SQuant", "this tool"), rows)


def _percent(score: Score) -> str:
    return "-" if score.top1 is None else f"{100 * score.top1:.1f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and rewrite the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme", description="Measure and write the tables of the pages.")
    parser.add_argument("--only", choices=["demo", "networks"], help="just one of them")
    options = parser.parse_args(arguments)
    if options.only != "networks":
        write("demo", demo_table())
    if options.only != "demo":
        write("networks", networks_table(Console(stderr=True)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
