"""Allocated bits against the same bits everywhere and against pairs, at the same bytes: ``python -m
benchmarks.allocation [--json FILE]``.

Every uniform and paired setting is quantized first; then the allocator gets exactly the bytes of each of
these files, and further budgets. One cost table serves all the budgets of a network. Everything is data-free,
unless ``--calibration`` says otherwise.

An allocated file is called less accurate than its rival where it is more than one standard error below it; a
rival that is better than the float model has been lucky, and counts as the float model.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.evaluate import Reference, Score, reference, standard_error
from benchmarks.networks import Network, available
from onnx_dfmpc import quantize
from onnx_dfmpc.allocate.budget import budgets, mean_bits
from onnx_dfmpc.errors import UnsupportedError
from onnx_dfmpc.matching.match import match
from onnx_dfmpc.model.files import load
from onnx_dfmpc.pipeline.job import Job, prepare
from onnx_dfmpc.pipeline.steps import cost_table, measure
from onnx_dfmpc.recipe import Recipe, parse_size
from onnx_dfmpc.spec import CostTable, QuantPlan

SCHEMA = 1
NETWORKS = (
    "cifar10_resnet20_bn",
    "cifar10_resnet56_bn",
    "cifar10_shufflenetv2_x0_5_bn",
    "imagenet_mobilenet_v1_025_128_folded",
    "imagenet_squeezenet1_1",
)
SETTINGS = "2,3,4,2/6,3/6"


@dataclass(frozen=True)
class Row:
    """One file. ``rival`` is the setting whose bytes an allocated file may have."""

    network: str
    storage: str
    setting: str
    rival: str
    budget: int | None
    bytes: int
    mean_bits: float
    predicted_sqnr_db: float | None
    bits: str
    scores: Mapping[str, Score]
    seconds: float


@dataclass(frozen=True, eq=False)
class Subject:
    """A network, what the float model says on its data, and what all its runs have in common."""

    source: Network
    references: Mapping[str, Reference]
    knobs: Mapping[str, Any]

    def fixed(self, setting: str) -> Row:
        """Uniform or paired bits."""
        low, _, high = setting.partition("/")
        bits: dict[str, Any] = {"low_bits": int(low), "high_bits": int(high)} if high else {"bits": int(low)}
        recipe = Recipe(**bits, **self.knobs)
        start = time.perf_counter()
        result = quantize(self.source.path, None, recipe, validated=False)
        return self._row(setting, "", None, result, time.perf_counter() - start)

    @cached_property
    def work(self) -> tuple[Job, CostTable]:
        """The network with its cost table, which all targets share."""
        recipe = Recipe(target_bits=4, **self.knobs)
        job = prepare(self.source.path, recipe, None, {}, statistics=True, predicted=False)
        costs, _ = cost_table(job, measure(job, job.planned, {}), {})
        assert costs is not None
        return job, costs

    @property
    def least(self) -> int:
        """Bytes of the smallest file that can be had."""
        job, costs = self.work
        return budgets(job.matched, job.recipe, costs, 2)[0]

    def allocated(self, wanted: Sequence[tuple[str, str, dict[str, Any]]]) -> Iterator[Row]:
        """Targets that can be met, each with the name of its setting and of its rival."""
        for setting, rival, target in wanted:
            start = time.perf_counter()
            try:
                result = quantize(self.source.path, None, Recipe(**target, **self.knobs), validated=False)
            except UnsupportedError:
                continue
            yield self._row(setting, rival, target.get("target_size"), result, time.perf_counter() - start)

    def _row(self, setting: str, rival: str, budget: int | None, result: Any, seconds: float) -> Row:
        plan: QuantPlan = result.plan
        scores = {data: kept.score(result.model) for data, kept in self.references.items()}
        report = match(load(self.source.path).proto)
        bits = "".join(str(layer.bits) for layer in plan.layers)
        return Row(
            self.source.name, str(self.knobs.get("storage", "auto")), setting, rival, budget, result.size, mean_bits(plan, report),
            plan.predicted_sqnr_db, bits, scores, seconds,
        )  # fmt: skip


def compare(
    subject: Subject, settings: Sequence[str], budgets: Sequence[str], means: Sequence[float]
) -> Iterator[Row]:
    """The fixed settings, then the allocator at their bytes, at further budgets, and at mean bits."""
    rivals = []
    for setting in settings:
        rivals.append(subject.fixed(setting))
        yield rivals[-1]
    wanted: list[tuple[str, str, dict[str, Any]]] = []
    wanted += [(f"bytes of {rival.setting}", rival.setting, {"target_size": rival.bytes}) for rival in rivals]
    wanted += [(budget, "", {"target_size": parse_size(budget)}) for budget in budgets]
    wanted += [(f"mean of {mean:g}", "", {"target_bits": mean}) for mean in means]
    yield from subject.allocated(wanted)


def shortfalls(rows: Sequence[Row], floats: Mapping[str, Mapping[str, Score]]) -> list[str]:
    """Where an allocated file is less accurate than its rival, in words."""
    rivals = {(row.network, row.storage, row.setting): row for row in rows if not row.rival}
    found = []
    for row in rows:
        if not row.rival:
            continue
        for data, score in row.scores.items():
            rival, float_ = (
                rivals[row.network, row.storage, row.rival].scores[data].top1,
                floats[row.network][data].top1,
            )
            if score.top1 is None or rival is None or float_ is None:
                continue
            wanted = min(rival, float_)
            if score.top1 < wanted - standard_error(wanted, score.n):
                place = f"{row.network}, {row.storage}, {data}"
                found.append(
                    f"{place}: {100 * score.top1:.1f} % at the bytes of {row.rival}, which has {100 * rival:.1f} %"
                )
    return found


def write(rows: Sequence[Row], floats: Mapping[str, Mapping[str, Score]], path: Path) -> None:
    """Everything that was measured, as JSON."""
    document = {
        "schema": SCHEMA,
        "rows": [asdict(row) for row in rows],
        "floats": {
            name: {data: asdict(score) for data, score in scores.items()} for name, scores in floats.items()
        },
        "shortfalls": shortfalls(rows, floats),
    }
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def table(rows: Sequence[Row], floats: Mapping[str, Score]) -> Table:
    """All files of a network and storage, for the reader."""
    first = rows[0]
    parts = [
        f"{data}: n = {score.n:,}, float {_percent(score.top1)} +- {_percent(_error(score))}"
        for data, score in floats.items()
    ]
    shown = Table(
        title=f"{first.network}, {first.storage}",
        title_justify="left",
        caption="; ".join(parts),
        caption_justify="left",
    )
    shown.add_column("setting", no_wrap=True)
    for column in ("bytes", "used %", "mean bits", "predicted dB"):
        shown.add_column(column, justify="right", no_wrap=True)
    for data in floats:
        for column in (f"{data}\ntop-1 %", "agree %", "SQNR dB"):
            shown.add_column(column, justify="right")
    for row in rows:
        used = "" if row.budget is None else f"{100 * row.bytes / row.budget:.1f}"
        predicted = "-" if row.predicted_sqnr_db is None else f"{row.predicted_sqnr_db:.1f}"
        cells = [
            cell
            for score in row.scores.values()
            for cell in (_percent(score.top1), _percent(score.agreement), f"{score.sqnr_db:.1f}")
        ]
        shown.add_row(
            ("" if row.budget is None else "  ") + row.setting,
            f"{row.bytes:,}",
            used,
            f"{row.mean_bits:.2f}",
            predicted,
            *cells,
        )
    return shown


def _error(score: Score) -> float | None:
    return None if score.top1 is None else standard_error(score.top1, score.n)


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.2f}"


def _calibration(source: Network, directory: Path) -> dict[str, Any]:
    """Real inputs for the statistics and the cost: calibration images, or a fifth of the test images, which
    then count twice.
    """
    inputs = source.inputs(source.calibration or source.data[0])[0]
    path = directory / f"{source.name}.npz"
    np.savez(path, input=inputs if source.calibration else inputs[::5])
    return {"calibration_data": str(path)}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.allocation", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), metavar="NAME")
    parser.add_argument(
        "--settings",
        default=SETTINGS,
        help="bits of every layer, or low/high bits of pairs (default: %(default)s)",
    )
    parser.add_argument(
        "--budgets", nargs="*", default=[], metavar="SIZE", help="further budgets, such as 300KiB"
    )
    parser.add_argument(
        "--means", nargs="*", type=float, default=[3, 4], metavar="BITS", help="mean bits (default: 3 4)"
    )
    parser.add_argument("--storage", nargs="+", default=["table"], choices=["table", "native"])
    parser.add_argument("--data", nargs="+", metavar="NAME", help="default: all data of a network")
    parser.add_argument("--calibration", action="store_true", help="with real inputs")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    console = Console(width=150)
    rows: list[Row] = []
    floats: dict[str, dict[str, Score]] = {}
    with tempfile.TemporaryDirectory() as directory:
        for source in available(options.networks, console):
            references = {
                data: reference(source, data)
                for data in source.data
                if options.data is None or data in options.data
            }
            floats[source.name] = {
                data: kept.score(load(source.path).proto) for data, kept in references.items()
            }
            given = _calibration(source, Path(directory)) if options.calibration else {}
            for storage in options.storage:
                subject = Subject(source, references, {"storage": storage} | given)
                found = list(compare(subject, options.settings.split(","), options.budgets, options.means))
                rows += found
                console.print(table(found, floats[source.name]))
                if options.json is not None:
                    write(rows, floats, options.json)
    for line in shortfalls(rows, floats):
        console.print(f"less accurate: {line}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
