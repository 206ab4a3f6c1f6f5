"""Write the tables of the pages: measure what they show, and replace what stands between their markers.

python -m benchmarks.readme [--only demo|networks|targets|activations|latency|web]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from rich.console import Console

from benchmarks import accuracy, activations, allocation, latency, methods, ranges, web
from benchmarks.evaluate import Score, reference
from benchmarks.ledger import Ledger
from benchmarks.networks import RESNET50, available, network
from benchmarks.tables import markdown
from models import demo
from onnx_dfmpc.recipe import PRESETS, parse_size

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    ROOT / "README.md",
    ROOT / "docs" / "bits.md",
    ROOT / "docs" / "activations.md",
    ROOT / "docs" / "web.md",
    ROOT / "docs" / "sweep.md",
    ROOT / "docs" / "large.md",
    ROOT / "docs" / "tutorial.md",
    ROOT / "models" / "README.md",
)
"""Where tables stand; each has its markers on one of them."""

RESULTS = ROOT / "benchmarks" / "results"

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

SIZED, SIZES = "cifar10_resnet56_bn", ("220KiB", "300KiB", "450KiB")
"""Network whose file shall have at most so many bytes."""


INTEGERS = ("--setting", "4", "--forms", "compact, 8-bit activations", "--runs", "30")


def latency_networks(batch: int) -> tuple[str, ...]:
    """Networks to time: the large one with one input at a time."""
    timed = tuple(name for name in activations.SHOWN if name.startswith(("cifar", "imagenet", "har")))
    return (*timed, RESNET50) if batch == 1 else timed


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
    for name, settings, data in SHOWN:
        chosen = methods.settings(",".join(settings))
        results += accuracy.run([name], chosen, methods.methods(",".join(COMPARED)), [data], None, console)
    RESULTS.mkdir(exist_ok=True)
    accuracy.write(results, RESULTS / "networks.json")
    rows = []
    for result in results:
        (data, score), *_ = result.float_scores.items()
        tops = [_percent(row.scores[data]) for row in result.rows]
        size = next(row.bytes for row in result.rows if row.method == "dfmpc")
        rows.append(
            (
                result.network,
                f"{score.n:,}",
                f"{result.float_bytes:,}",
                _percent(score),
                result.setting.split()[0],
                f"{size:,}",
                *tops,
            )
        )
    return markdown(
        ("network", "n", "float bytes", "float top-1", "bits", "bytes", "rounded", "SQuant", "this tool"),
        rows,
    )


def targets_tables(console: Console) -> tuple[str, str]:
    """Sizes that are asked for, and presets, each with what it gives."""
    sized: list[tuple[str, ...]] = []
    preset: list[tuple[str, ...]] = []
    rows: list[allocation.Row] = []
    floats: dict[str, dict[str, Score]] = {}
    for name, data in {name: data for name, _, data in SHOWN}.items():
        console.print(name)
        source = network(name)
        subject = allocation.Subject(source, {data: reference(source, data)}, {})
        floats[name] = {data: subject.references[data].score(subject.work[0].source.proto)}
        if name == SIZED:
            sizes = list(subject.allocated([(size, "", {"target_size": parse_size(size)}) for size in SIZES]))
            sized = [
                ("float", f"{subject.work[0].source.size:,}", "32.00", "-", "-", _percent(floats[name][data]))
            ]
            sized += [
                _sized(size, next((row for row in sizes if row.setting == size), None), subject.least)
                for size in SIZES
            ]
            rows += sizes
        presets = list(subject.allocated([(name, "", {"preset": name}) for name in PRESETS]))
        met = {row.setting: (f"{row.bytes:,}", *map(_percent, row.scores.values())) for row in presets}
        cells = [cell for name in PRESETS for cell in met.get(name, ("-", "-"))]
        preset.append((name, f"{subject.work[0].source.size:,}", _percent(floats[name][data]), *cells))
        rows += presets
    RESULTS.mkdir(exist_ok=True)
    allocation.write(rows, floats, RESULTS / "targets.json")
    titles = [title for name in PRESETS for title in (f"`{name}`: bytes", "top-1")]
    return (
        markdown(
            ("`--target-size`", "bytes", "bits per weight", "SQNR dB, predicted", "measured", "top-1"), sized
        ),
        markdown(("network", "float bytes", "top-1", *titles), preset),
    )


def _sized(size: str, row: allocation.Row | None, least: int) -> tuple[str, ...]:
    if row is None:
        return (size, f"refused: {least:,} at least", *["-"] * 4)
    (score,) = row.scores.values()
    return (
        size,
        f"{row.bytes:,}",
        f"{row.mean_bits:.2f}",
        _decibels(row.predicted_sqnr_db),
        _decibels(score.sqnr_db),
        _percent(score),
    )


def _decibels(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _percent(score: Score) -> str:
    return "-" if score.top1 is None else f"{100 * score.top1:.1f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and rewrite the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.readme", description="Measure and write the tables of the pages."
    )
    parser.add_argument(
        "--only",
        choices=["demo", "networks", "targets", "activations", "latency", "web"],
        help="just one of them",
    )
    options = parser.parse_args(arguments)
    console = Console(stderr=True)
    if options.only in (None, "demo"):
        write("demo", demo_table())
    if options.only in (None, "networks"):
        write("networks", networks_table(console))
    if options.only in (None, "activations"):
        rows = activations.read(RESULTS / "activations.json")
        activations.complete(rows, activations.SHOWN, timed=True, console=console)
        write("activations", activations.table(rows))
        write("fast", activations.headline(rows))
        other = Ledger(ranges.Row, RESULTS / "ranges.json")
        ranges.complete(other, available(ranges.NETWORKS, console), console)
        write("ranges", ranges.table(other))
    if options.only in (None, "latency"):
        for threads, batch in product((1, 2), (1, 8)):
            kept = RESULTS / f"latency-{threads}-{batch}.json"
            names = (*latency_networks(batch), "--threads", str(threads), "--batch", str(batch))
            latency.main(["--networks", *names, *INTEGERS, "--json", str(kept)])
        write("latency", latency.summary(sorted(RESULTS.glob("latency-*.json"))))
    if options.only in (None, "targets"):
        sizes, presets = targets_tables(console)
        write("sizes", sizes)
        write("presets", presets)
    if options.only in (None, "web"):
        rows_web = web.run(web.NETWORKS, console)
        web.write(rows_web, RESULTS / "web.json")
        write("web", web.table(rows_web))
    return 0


if __name__ == "__main__":
    sys.exit(main())
