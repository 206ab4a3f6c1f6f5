"""Accuracy of every method on real data: one table per network and bit setting, all rows on the same images
in the same run.

python -m benchmarks.accuracy --networks cifar10_resnet20_bn --settings 2/6,3 --methods dfmpc,squant --json
out.json
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import methods, networks
from benchmarks.baselines import Unavailable
from benchmarks.evaluate import Reference, Score, reference, standard_error
from benchmarks.methods import Method, Setting, Task
from benchmarks.networks import Network
from onnx_dfmpc.errors import DfmpcError, RecipeError
from onnx_dfmpc.model.files import load

SCHEMA = 1
WIDTH = 150
PACKAGES = ("onnx-dfmpc", "onnx", "onnxruntime", "numpy")


@dataclass(frozen=True)
class Row:
    """What one method did; ``unavailable`` says in words why it did nothing."""

    method: str
    about: str
    bytes: int | None = None
    cpu_seconds: float | None = None
    providers: tuple[str, ...] = ()
    scores: Mapping[str, Score] = field(default_factory=dict)
    unavailable: str | None = None


@dataclass(frozen=True)
class Result:
    """One table."""

    network: str
    setting: str
    float_bytes: int
    float_scores: Mapping[str, Score]
    rows: tuple[Row, ...]


def compare(
    network: Network,
    references: Mapping[str, Reference],
    setting: Setting,
    chosen: Sequence[Method],
    calibration: Path | None,
) -> Iterator[Row]:
    """Run every method at one setting, and yield its row as soon as it is measured."""
    task = Task(network.path, setting, calibration)
    for method in chosen:
        start = time.process_time()
        try:
            outcome = method.run(task)
        except (Unavailable, DfmpcError) as reason:
            yield Row(method.name, method.about, unavailable=str(reason))
            continue
        seconds = time.process_time() - start
        scores = {data: kept.score(outcome.model) for data, kept in references.items()}
        yield Row(method.name, method.about, outcome.model.ByteSize(), seconds, outcome.providers, scores)


def table(result: Result) -> Table:
    """A result for the reader."""
    shown = Table(
        title=f"{result.network}, {result.setting} bits",
        title_justify="left",
        caption=_caption(result),
        caption_justify="left",
    )
    shown.add_column("method", no_wrap=True)
    for data in result.float_scores:
        shown.add_column(f"{data}\ntop-1 %", justify="right")
        shown.add_column("agree %", justify="right")
        shown.add_column("SQNR dB", justify="right")
    shown.add_column("bytes", justify="right", no_wrap=True)
    shown.add_column("CPU s", justify="right")
    shown.add_row("float", *_cells(result.float_scores.values()), f"{result.float_bytes:,}", "")
    for row in result.rows:
        if row.unavailable is None:
            shown.add_row(
                row.method, *_cells(row.scores.values()), f"{row.bytes:,}", f"{row.cpu_seconds:.2f}"
            )
    return shown


def _cells(scores: Any) -> list[str]:
    return [
        text
        for score in scores
        for text in (_percent(score.top1), _percent(score.agreement), _number(score.sqnr_db))
    ]


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.2f}"


def _number(value: float | None) -> str:
    return "-" if value is None or not np.isfinite(value) else f"{value:.1f}"


def _caption(result: Result) -> str:
    parts = []
    for data, score in result.float_scores.items():
        error = (
            ""
            if score.top1 is None
            else f", standard error of top-1 {100 * standard_error(score.top1, score.n):.2f}"
        )
        parts.append(f"{data}: n = {score.n:,}{error}")
    lines = ["; ".join(parts)]
    lines += [
        f"without {row.method}: {row.unavailable}" for row in result.rows if row.unavailable is not None
    ]
    return "\n".join(lines)


def document(results: Sequence[Result]) -> dict[str, Any]:
    """Everything as plain data."""
    return {
        "schema": SCHEMA,
        "command": ["python", "-m", "benchmarks.accuracy", *sys.argv[1:]],
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in PACKAGES},
        },
        "results": [asdict(result, dict_factory=_finite) for result in results],
    }


def write(results: Sequence[Result], path: Path) -> None:
    """Write `document` as JSON."""
    path.write_text(json.dumps(document(results), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _finite(items: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """JSON has no infinity, the SQNR of two outputs that are equal."""
    return {
        key: None if isinstance(value, float) and not np.isfinite(value) else value for key, value in items
    }


def _calibration(network: Network, directory: Path) -> Path | None:
    """Real inputs of a network, prepared as it wants them, in a file for the recipe."""
    if network.calibration is None:
        return None
    path = directory / f"{network.name}.npz"
    np.savez(path, input=network.inputs(network.calibration)[0])
    return path


def run(
    names: Sequence[str],
    chosen_settings: Sequence[Setting],
    chosen: Sequence[Method],
    data: Sequence[str] | None,
    output: Path | None,
    console: Console,
) -> list[Result]:
    """Measure and print; `output` is written after every table, so that a run that is stopped keeps what it
    has.
    """
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as directory:
        for name in names:
            network = networks.network(name)
            wanted = [one for one in network.data if data is None or one in data]
            if not wanted:
                raise RecipeError(
                    f"{name}: none of the data fits it", hint="it has " + ", ".join(network.data)
                )
            references = {one: reference(network, one) for one in wanted}
            source = load(network.path)
            float_scores = {one: kept.score(source.proto) for one, kept in references.items()}
            calibration = _calibration(network, Path(directory))
            for setting in chosen_settings:
                rows = []
                for row in compare(network, references, setting, chosen, calibration):
                    rows.append(row)
                    Console(stderr=True).print(f"{name}, {setting.label}: {row.method} done", style="dim")
                results.append(Result(name, setting.label, source.size, float_scores, tuple(rows)))
                console.print(table(results[-1]))
                if output is not None:
                    write(results, output)
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy",
        description="Accuracy of every method on real data, one table per network and bit setting.",
        epilog=_methods_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--networks",
        nargs="+",
        default=networks.LABELLED,
        metavar="NAME",
        help="default: every network with labelled data",
    )
    add(
        "--settings",
        default="2/6,3/6,2,3,4",
        help="low/high bits of pairs, or bits of every layer (default: %(default)s)",
    )
    add(
        "--methods",
        default="all",
        help="names with commas in between, a group with a colon behind it, or all (default)",
    )
    add(
        "--ablation",
        action="store_true",
        help="instead: each ingredient taken out of the default, and added to none",
    )
    add("--data", nargs="+", metavar="NAME", help="default: all data of a network")
    add("--json", type=Path, metavar="FILE", help="write the numbers there too")
    options = parser.parse_args(arguments)
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    try:
        chosen = methods.ablation() if options.ablation else methods.methods(options.methods)
        chosen_settings = methods.settings(options.settings)
        run(options.networks, chosen_settings, chosen, options.data, options.json, console)
    except DfmpcError as error:
        print(f"error: {error}", *([f"hint: {error.hint}"] if error.hint else []), sep="\n", file=sys.stderr)
        return error.exit_code
    return 0


def _methods_help() -> str:
    members = (
        f"  {group}:  " + ", ".join(method.name for method in found)
        for group, found in methods.GROUPS.items()
    )
    return "\n".join(["methods:", *members])


if __name__ == "__main__":
    sys.exit(main())
