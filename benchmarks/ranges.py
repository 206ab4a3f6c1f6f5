"""Ranges of activations by other rules and from real inputs: ``python -m benchmarks.ranges [--networks NAME ...]
[--json ranges.json]``.

Weights in 8 bits, the same for all rows of a network; what differs is where the ranges come from. Biases take up
the shifts of the means in all of them, on the synthetic pictures. Top-1 on test images, or output SQNR on real
inputs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.evaluate import reference
from benchmarks.ledger import Ledger
from benchmarks.networks import Network, available
from benchmarks.tables import markdown
from onnx_dfmpc import Recipe
from onnx_dfmpc.activations.activate import TAU_REAL, Ranges, with_ranges
from onnx_dfmpc.activations.observe import Network as Observer
from onnx_dfmpc.activations.placement import place
from onnx_dfmpc.activations.ranges import centres, quantization_range
from onnx_dfmpc.inputs.specs import model_inputs
from onnx_dfmpc.pipeline.job import prepare
from onnx_dfmpc.pipeline.steps import allocate, carry_out, deviation, measure
from onnx_dfmpc.solve import NEGLIGIBLE
from onnx_dfmpc.spec import Mixture
from onnx_dfmpc.statistics.mixing import mixture_of

NETWORKS = (
    "cifar10_resnet20_bn",
    "cifar10_resnet8_keras_bn",
    "cifar10_shufflenetv2_x0_5_bn",
    "imagenet_squeezenet1_1",
    "imagenet_mobilenet_v1_025_128_folded",
    "har_conv1d_bn",
    "ultraface_rfb_320_bn",
    "fastestdet_folded",
)

Rule = Callable[[NDArray[np.int64], tuple[float, float]], tuple[float, float]]


def percentile(
    counts: NDArray[np.int64], bounds: tuple[float, float], *, share: float, margin: float = 1.0
) -> tuple[float, float]:
    """What holds a share of the values, all kinds together, at both ends, times a margin."""
    middle = centres()
    total = counts.sum(axis=0) * np.isfinite(middle)
    order = np.argsort(middle)
    x, below = middle[order], np.cumsum(total[order]) / max(total.sum(), 1)
    used = total[order] > 0
    low = x[used][np.searchsorted(below[used], 1 - share, side="right")] if used.any() else 0.0
    high = x[used][min(np.searchsorted(below[used], share), used.sum() - 1)] if used.any() else 0.0
    return max(min(low * margin, 0.0), bounds[0]), min(max(high * margin, 0.0), bounds[1])


RULES: Mapping[str, Rule] = {
    "smallest to largest": partial(percentile, share=1.0),
    "times 1.25": partial(percentile, share=1.0, margin=1.25),
    "times 1.5": partial(percentile, share=1.0, margin=1.5),
    "percentile 99.99": partial(percentile, share=0.9999),
    "percentile 99.9": partial(percentile, share=0.999),
}
"""On the same synthetic pictures."""

REAL = (24, 64, 512)
OURS = "as chosen"


@dataclass(frozen=True)
class Row:
    """A network with its activations in 8 bits, by one rule; ``top1`` is a fraction."""

    network: str
    rule: str
    n: int
    top1: float | None
    sqnr_db: float | None

    @property
    def key(self) -> Hashable:
        """What was measured."""
        return self.network, self.rule


def real_inputs(network: Network, count: int) -> Mixture | None:
    """Some real inputs as a mixture of one kind: not those of the test, where others are at hand; None if there
    are fewer.
    """
    arrays, _ = network.inputs(network.calibration or network.data[0])
    if len(arrays) < count:
        return None
    spec = model_inputs(onnx.load(network.path))[0]
    chosen = arrays[np.random.default_rng(0).permutation(len(arrays))[:count]].astype(spec.dtype)
    batch = spec.shape[0] if isinstance(spec.shape[0], int) else min(count, 8)
    feeds = [{spec.name: chosen[i : i + batch]} for i in range(0, count, batch)]
    return mixture_of([feeds], np.ones(1), np.ones(1), [True])


def _expected(mixture: Mixture, tau: float) -> Rule:
    """The rule of `activations.ranges`."""
    return lambda counts, bounds: quantization_range(counts, mixture.weights, tau, bounds)


def complete(ledger: Ledger[Row], networks: Iterable[Network], console: Console) -> None:
    """Measure what is missing."""
    for network in networks:
        names = [OURS, *RULES, *(f"{count} real" for count in REAL)]
        if all((network.name, name) in ledger for name in names):
            continue
        seconds: dict[str, float] = {}
        recipe = Recipe(bits=8, unpack="int8", fold_batch_norm="yes")
        job = prepare(str(network.path), recipe, None, seconds, statistics=True, predicted=False)
        statistics = measure(job, job.planned, seconds)
        proto = carry_out(job, allocate(job, None, seconds), statistics, seconds).rewritten.proto
        assert job.mixture is not None
        placement = place(proto)
        observer = Observer(proto, job.matched.layers, statistics.layers, job.mixture.only(NEGLIGIBLE))
        seen = observer.observe(placement)
        own = [one for one in placement.activations if one.like == one.name]

        def chosen(counts: Mapping[str, NDArray[np.int64]], rule: Rule, own=own) -> Ranges:  # type: ignore[no-untyped-def]
            return {one.name: rule(counts[one.name], one.bounds) for one in own}

        ranges = {OURS: chosen(seen.counts, _expected(observer.mixture, deviation(job)))}
        ranges |= {name: chosen(seen.counts, rule) for name, rule in RULES.items()}
        for count in REAL:
            mixture = real_inputs(network, count)
            if mixture is not None:
                counts = Observer(proto, job.matched.layers, {}, mixture).observe(placement).counts
                ranges[f"{count} real"] = chosen(counts, _expected(mixture, TAU_REAL))
        reads = reference(network, network.data[0])
        for name, found in ranges.items():
            if (network.name, name) not in ledger:
                score = reads.score(with_ranges(observer, placement, seen, found).proto)
                ledger.add(Row(network.name, name, score.n, score.top1, score.sqnr_db))
                console.print(f"{network.name}, {name}", style="dim")


def table(rows: Iterable[Row]) -> str:
    """A line for each network, a column for each rule."""
    known = {row.key: row for row in rows}
    rules = list(dict.fromkeys(row.rule for row in known.values()))
    lines = []
    for name in dict.fromkeys(row.network for row in known.values()):
        cells = []
        for rule in rules:
            row = known.get((name, rule))
            sqnr = "" if row is None or row.sqnr_db is None else f"{row.sqnr_db:.1f} dB"
            cells.append(sqnr if row is None or row.top1 is None else f"{100 * row.top1:.1f}, {sqnr}")
        lines.append((name, *cells))
    return markdown(("network", *rules), lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ranges", description=__doc__)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep rows here, and go on from them")
    options = parser.parse_args(arguments)
    ledger = Ledger(Row, options.json)
    console = Console(stderr=True)
    complete(ledger, available(options.networks, console), console)
    Console().print(table(ledger), markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
