"""How far synthetic statistics are from real ones: ``python -m benchmarks.distance [--networks NAME ...] [--write]``.

Every labelled network at one eighth of its float bytes. The bits are those that the default gives; what rounding
and repair then use of synthetic inputs is replaced by what real ones say, step by step:

    without chance     correlations as they were sampled (`onnx_dfmpc.rounding.regularize`)
    default            from the model alone
    layer inputs       means and covariances of what layers see of real inputs, for rounding
    layer outputs      means and variances of what they make of real inputs, for the repair
    both

Up to 256 real inputs are for the statistics and others for the output SQNR: of CIFAR-10 training images, of other
networks one half of their inputs each. Top-1 is on test images, for CIFAR-10 on all of them, else on that second
half. Rows are kept as they are measured, and the same command goes on from there; without a name, only the table
is printed. ``--write`` writes docs/accuracy.md from them, and from the rows of `eighth`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from benchmarks import eighth
from benchmarks.evaluate import reference, reference_of
from benchmarks.ledger import Ledger
from benchmarks.networks import LABELLED, Network, available
from benchmarks.package import real_mixture
from benchmarks.tables import markdown
from onnx_dfmpc import Recipe
from onnx_dfmpc.model.files import load
from onnx_dfmpc.pipeline.job import Job, prepare
from onnx_dfmpc.pipeline.steps import Measured, allocate, carry_out, cost_table, measure
from onnx_dfmpc.spec import LayerStatistics
from onnx_dfmpc.statistics.probe import probe

ROOT = Path(__file__).resolve().parents[1]
KEPT, PAGE = ROOT / "benchmarks" / "results" / "distance.json", ROOT / "docs" / "accuracy.md"
RATIO, SEEDS, MOST = 8, (0, 1), 256
VARIANTS = ("without chance", "default", "layer inputs", "layer outputs", "both")
DATA_FREE = VARIANTS[:2]


@dataclass(frozen=True)
class Row:
    """One file."""

    network: str
    seed: int
    variant: str
    sqnr_db: float | None = None
    n: int = 0
    top1: float | None = None
    float_top1: float | None = None

    @property
    def key(self) -> tuple[str, int, str]:
        """What was made."""
        return self.network, self.seed, self.variant


def halves(network: Network) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.int64] | None]:
    """Real inputs for statistics, and others, with their labels, for comparison."""
    inputs, labels = network.inputs(network.calibration or network.data[0])
    order = np.random.default_rng(0).permutation(len(inputs))
    tested, seen = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
    return inputs[seen][:MOST], inputs[tested], None if labels is None else labels[tested]


def made_of(
    job: Job, synthetic: Mapping[str, LayerStatistics], inputs: NDArray[Any]
) -> Iterator[tuple[str, Job, Measured]]:
    """Job and statistics of every variant."""
    plain = {
        name: replace(one, input=None if one.input is None else replace(one.input, chance=0.0))
        for name, one in synthetic.items()
    }
    yield VARIANTS[0], job, Measured(plain)
    yield VARIANTS[1], job, Measured(synthetic)
    assert job.mixture is not None
    ((name, first),) = job.mixture.feeds[0].items()
    size = len(first)
    feeds = [{name: inputs[i : i + size]} for i in range(0, len(inputs) - size + 1, size)]
    mixture = real_mixture(feeds)
    real = probe(
        job.source.proto,
        job.matched.layers,
        job.planned,
        mixture,
        source="calibration",
        seed=job.recipe.seed,
        with_outputs=True,
    )
    yield (
        VARIANTS[2],
        job,
        Measured({one: replace(synthetic[one], input=real[one].input) for one in synthetic}),
    )
    other = replace(job, mixture=mixture)
    yield (
        VARIANTS[3],
        other,
        Measured({one: replace(real[one], input=synthetic[one].input) for one in synthetic}),
    )
    yield VARIANTS[4], other, Measured(real)


def run(ledger: Ledger[Row], names: Iterable[str]) -> None:
    """Every row that is not there yet."""
    for network in available(names, Console(stderr=True)):
        seeds = {seed: VARIANTS if seed == SEEDS[0] else DATA_FREE for seed in SEEDS}
        missing = [seed for seed in SEEDS if any((network.name, seed, v) not in ledger for v in seeds[seed])]
        if not missing:
            continue
        proto = load(network.path).proto
        inputs, tested, labels = halves(network)
        compared = reference_of(proto, tested, labels)
        test = reference(network, network.data[0]) if network.calibration else compared
        own = test.score(proto)
        for seed in missing:
            recipe = Recipe(target_ratio=RATIO, seed=seed)
            job = prepare(str(network.path), recipe, None, {}, statistics=True, predicted=False)
            measured = measure(job, job.planned, {})
            plan = allocate(job, cost_table(job, measured, {})[0], {})
            for variant, its_job, statistics in made_of(job, measured.layers, inputs):
                if variant not in seeds[seed]:
                    break
                row = Row(network.name, seed, variant)
                if row.key in ledger:
                    continue
                model = carry_out(its_job, plan, statistics, {}).final
                score = test.score(model)
                sqnr = score.sqnr_db if test is compared else compared.score(model).sqnr_db
                ledger.add(Row(*row.key, sqnr, score.n, score.top1, own.top1))
                sys.stderr.write(f"{row.key} {sqnr:.2f} dB\n")


def table(rows: Sequence[Row]) -> str:
    """A line for each network: output SQNR of every variant, and top-1 without data."""
    lines = []
    for name in dict.fromkeys(row.network for row in rows):
        own = {(row.variant, row.seed): row for row in rows if row.network == name}
        cells = [name]
        for variant in VARIANTS:
            found = [one.sqnr_db for (v, _), one in own.items() if v == variant and one.sqnr_db is not None]
            cells.append(", ".join(f"{value:.1f}" for value in found))
        for variant in DATA_FREE:
            found = [one.top1 for (v, _), one in own.items() if v == variant and one.top1 is not None]
            cells.append(", ".join(f"{100 * value:.1f}" for value in found))
        some = next(iter(own.values()))
        lines.append([*cells, f"{100 * (some.float_top1 or 0):.1f}", f"{some.n:,}"])
    header = ("network", *VARIANTS, *(f"top-1: {variant}" for variant in DATA_FREE), "float", "n")
    return markdown(header, lines)


def main() -> int:
    """Run, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distance")
    parser.add_argument("--networks", nargs="*", default=LABELLED, metavar="NAME")
    parser.add_argument("--write", action="store_true", help="write docs/accuracy.md")
    options = parser.parse_args()
    ledger = Ledger(Row, KEPT)
    run(ledger, options.networks)
    rows = sorted(ledger, key=lambda row: LABELLED.index(row.network))
    print(table(rows))
    if options.write:
        before, after = (
            (Path(__file__).parent / f"accuracy_{part}.txt").read_text(encoding="utf-8")
            for part in ("page", "tail")
        )
        top1 = eighth.table(Ledger(eighth.Row, eighth.KEPT))
        text = f"{Template(before).substitute(eighth=top1)}{table(rows)}\n{after}"
        PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
