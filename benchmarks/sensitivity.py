"""Does the predicted noise know which layers matter? ``python -m benchmarks.sensitivity [--networks NAME ...]
[--json FILE]``.

The truth: one layer at a time is quantized as the default method would do it, the rest of the network stays
float and runs on real images.

    noise   power of what the outputs moved by, relative to their own, the same offset for all images left out
    KL      mean divergence of the class probabilities from those of the float model, in nats
    top-1   images whose class changed, as a share: the accuracy of one layer at a time is lost in the noise of the images
    drop    accuracy lost, as a share

The predictions, as rank correlations (Spearman) with each of these over the layers:

    raw       ||W - Wq||^2 / ||W||^2 of plain rounding: the baseline to beat
    local     noise at the layer's own output, by the statistics of its input
    bn        the closed form from there to the outputs
    probe     measured on synthetic inputs of another kind than those of the statistics
    measured  measured on real images, others than those of the truth
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from benchmarks.networks import LABELLED, Network, available
from benchmarks.package import Believed, inputs_of
from onnx_dfmpc.allocate.fixed import layer_plan
from onnx_dfmpc.inputs.specs import model_inputs
from onnx_dfmpc.matching.match import match
from onnx_dfmpc.methods import Repair, relative_noise, round_layer
from onnx_dfmpc.model.constants import ConstantTable
from onnx_dfmpc.model.files import load
from onnx_dfmpc.recipe import Data, Recipe
from onnx_dfmpc.runtime.partial import PartialRun
from onnx_dfmpc.sensitivity.candidates import Candidate, candidates, repaired
from onnx_dfmpc.sensitivity.feeds import mixed_synthetic_feeds, user_feeds
from onnx_dfmpc.sensitivity.outputs import relative, scores
from onnx_dfmpc.sensitivity.table import Sizes, predict
from onnx_dfmpc.spec import CostTable, Layer, LayerStatistics, MatchReport
from onnx_dfmpc.statistics.probe import probe

SCHEMA = 1
IMAGES, CHUNK, BATCH = 256, 64, 16
WIDTHS = (2, 3, 4)
RECIPE = Recipe(target_bits=4)
SOURCES = ("bn", "probe", "measured")
EFFECTS = ("noise", "kl", "top1", "drop")

Value = NDArray[Any]
Key = tuple[str, float]


@dataclass(frozen=True)
class Row:
    """One layer at one width: what is predicted, what is true."""

    network: str
    layer: str
    weights: int
    bits: int
    predicted: Mapping[str, float]
    true: Mapping[str, float]


@dataclass(frozen=True)
class Summary:
    """Rank correlation of one prediction with every effect over the layers of a network, and how far off its
    noise is, in dB.
    """

    network: str
    bits: int
    prediction: str
    layers: int
    images: int
    correlation: Mapping[str, float | None]
    offset_db: float
    scatter_db: float
    seconds: float | None


def quantized(
    proto: ModelProto, report: MatchReport, believed: Believed, bits: Sequence[int]
) -> tuple[dict[Key, Candidate], dict[Key, float]]:
    """Every layer at every width, as the default method would store it, and its noise at its own output, as
    the cost model sees it.
    """
    table, statistics = ConstantTable(proto), _statistics(proto, report, believed)
    found: dict[Key, Candidate] = {}
    local: dict[Key, float] = {}
    for layer in report.layers:
        known = statistics[layer.name].input
        assert known is not None
        weight = table[layer.weight].astype(np.float32)
        for width in bits:
            rounded = round_layer(layer, layer_plan(layer, "inner", width, "", RECIPE), weight, known)
            found[layer.name, width] = repaired(rounded, Repair(RECIPE.repairs_gain, RECIPE.repairs_mean))
        (sketched,) = candidates([layer], [weight], [known], [WIDTHS], RECIPE)
        local |= {(layer.name, width): candidate.noise for width, candidate in sketched.items()}
    return found, local


def outputs(
    proto: ModelProto, report: MatchReport, candidates: Mapping[Key, Candidate], images: Value
) -> Iterator[tuple[Key | None, Value]]:
    """Scores of the float network (key None), then those with one layer quantized."""
    table, names = ConstantTable(proto), scores(proto, report.layers)
    spec = model_inputs(proto)[0]
    batch = spec.shape[0] if isinstance(spec.shape[0], int) else BATCH
    stream = PartialRun(
        proto, table, [{spec.name: images[i : i + batch]} for i in range(0, len(images), batch)]
    )
    for position, layer in enumerate(report.layers):
        weight = table[layer.weight]
        shape = (-1, *[1] * (len(layer.shape) - 2 if layer.op_type in ("Conv", "ConvTranspose") else 0))
        stream.value(layer.input)
        zero = np.zeros(layer.channels, weight.dtype).reshape(shape)
        rest = stream.downstream(layer.output, names[:1], open_weight=True)
        if position == 0:
            yield None, np.concatenate(rest.with_weight(weight, zero)[names[0]])
        for (name, bits), candidate in candidates.items():
            if name == layer.name:
                moved = rest.with_weight(
                    candidate.weight.astype(weight.dtype), candidate.shift.astype(weight.dtype).reshape(shape)
                )
                yield (name, bits), np.concatenate(moved[names[0]])


def effects(reference: Value, other: Value, labels: NDArray[np.int64]) -> dict[str, float]:
    """What one layer did to the scores of all images, shape (N, classes)."""
    a, b = (scores.reshape(len(labels), -1).astype(np.float64) for scores in (reference, other))
    p, q = _softmax(a), _softmax(b)
    tiny = np.finfo(np.float64).tiny
    return {
        "noise": relative([a], [b]),
        "kl": float((p * (np.log(np.maximum(p, tiny)) - np.log(np.maximum(q, tiny)))).sum(axis=1).mean()),
        "top1": float((a.argmax(axis=1) != b.argmax(axis=1)).mean()),
        "drop": float((a.argmax(axis=1) == labels).mean() - (b.argmax(axis=1) == labels).mean()),
    }


def truth(
    source: Network, proto: ModelProto, report: MatchReport, candidates: Mapping[Key, Candidate], images: int
) -> tuple[dict[Key, dict[str, float]], int]:
    """Effects of every layer at every width on real images, and the number of images."""
    inputs, labels = source.inputs(source.data[0])
    assert labels is not None
    chosen = np.sort(np.random.default_rng(0).permutation(len(inputs))[:images])
    seen: dict[Key | None, list[Value]] = {}
    for start in range(0, len(chosen), CHUNK):
        for key, values in outputs(proto, report, candidates, inputs[chosen[start : start + CHUNK]]):
            seen.setdefault(key, []).append(values)
    reference = np.concatenate(seen[None])
    found = {key: effects(reference, np.concatenate(seen[key]), labels[chosen]) for key in candidates}
    return found, len(chosen)


def predictions(
    source: Network, proto: ModelProto, report: MatchReport, believed: Believed, images: int
) -> tuple[dict[str, dict[Key, float]], dict[str, float]]:
    """Noise by every prediction but the local one, and the seconds that each of the providers took."""
    table = ConstantTable(proto)
    nothing = np.zeros((len(report.layers), len(WIDTHS)))
    names = tuple(layer.name for layer in report.layers)
    costs = CostTable(names, tuple(WIDTHS), nothing, nothing.astype(np.int64), 0, "")
    sizes = Sizes(costs, nothing == 0)
    keys: list[Key] = [(layer.name, width) for layer in report.layers for width in WIDTHS]
    plain = {layer.name: layer for layer in report.layers}
    found = {"raw": {(name, width): _raw(plain[name], table, width) for name, width in keys}}
    seconds = {}
    for kind in SOURCES:
        feeds: Sequence[Mapping[str, Value]] | None = None
        if kind == "probe":
            feeds = mixed_synthetic_feeds(proto, input_range=believed.span)
        elif kind == "measured":
            feeds = user_feeds(proto, Data(data=_other(source, images)))
        start = time.process_time()
        statistics = _statistics(proto, report, believed)
        predicted, _ = predict(proto, report, sizes, RECIPE, statistics, feeds=feeds, source=kind)
        seconds[kind] = time.process_time() - start
        found[kind] = dict(zip(keys, predicted.noise.ravel().tolist(), strict=True))
    return found, seconds


def _raw(layer: Layer, table: ConstantTable, width: float) -> float:
    return relative_noise(layer, table[layer.weight].astype(np.float32), width)


def _statistics(proto: ModelProto, report: MatchReport, believed: Believed) -> dict[str, LayerStatistics]:
    names = [layer.name for layer in report.layers]
    return probe(proto, report.layers, names, believed.mixture, source="probe", seed=0, with_outputs=False)


def _other(source: Network, images: int) -> Value:
    """Real inputs that the truth does not use: calibration images, or the rest of the test images."""
    if source.calibration is not None:
        return source.inputs(source.calibration)[0]
    inputs, _ = source.inputs(source.data[0])
    return (
        inputs[np.random.default_rng(0).permutation(len(inputs))[images:]]
        if len(inputs) > images + BATCH
        else inputs
    )


def _softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    powers: NDArray[np.float64] = np.exp(values - values.max(axis=1, keepdims=True))
    powers /= powers.sum(axis=1, keepdims=True)
    return powers


def compare(source: Network, *, bits: Sequence[int], images: int) -> tuple[list[Row], list[Summary]]:
    """Predictions against the truth for one network."""
    proto = load(source.path).proto
    report = match(proto)
    believed = inputs_of(proto, report.layers)
    candidates, local = quantized(proto, report, believed, bits)
    true, count = truth(source, proto, report, candidates, images)
    predicted, seconds = predictions(source, proto, report, believed, images)
    predicted["local"] = local
    rows = [
        Row(
            source.name,
            layer.name,
            layer.size,
            width,
            {kind: noise[layer.name, width] for kind, noise in predicted.items()},
            true[layer.name, width],
        )
        for layer in report.layers
        for width in bits
    ]
    return rows, list(summarize(rows, seconds, count))


def summarize(rows: Sequence[Row], seconds: Mapping[str, float], images: int) -> Iterator[Summary]:
    """Rank correlations, width by width and prediction by prediction."""
    for width in sorted({row.bits for row in rows}):
        mine = [row for row in rows if row.bits == width]
        for kind in ("raw", "local", *SOURCES):
            guess = np.array([row.predicted[kind] for row in mine])
            correlation = {
                effect: _spearman(guess, np.array([row.true[effect] for row in mine])) for effect in EFFECTS
            }
            tiny = np.finfo(np.float64).tiny
            off = 10 * np.log10(
                np.maximum(guess, tiny) / np.maximum([row.true["noise"] for row in mine], tiny)
            )
            yield Summary(
                mine[0].network, width, kind, len(mine), images, correlation, float(np.median(off)), float(np.std(off)), seconds.get(kind)
            )  # fmt: skip


def _spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    """Rank correlation; None where one side is the same everywhere."""
    return None if np.ptp(a) == 0 or np.ptp(b) == 0 else float(spearmanr(a, b).statistic)


def table(summaries: Sequence[Summary]) -> Table:
    """The correlations for the reader."""
    first = summaries[0]
    shown = Table(
        title=f"{first.network}: {first.layers} layers, {first.images} images", title_justify="left",
        caption="Spearman with the truth; offset and scatter of the predicted noise in dB", caption_justify="left",
    )  # fmt: skip
    for column in ("bits", "prediction", *EFFECTS, "offset", "scatter", "CPU s"):
        shown.add_column(column, justify="left" if column == "prediction" else "right", no_wrap=True)
    for s in summaries:
        cells = [
            "-" if s.correlation[effect] is None else f"{s.correlation[effect]:.2f}" for effect in EFFECTS
        ]
        seconds = "" if s.seconds is None else f"{s.seconds:.1f}"
        shown.add_row(str(s.bits), s.prediction, *cells, f"{s.offset_db:.1f}", f"{s.scatter_db:.1f}", seconds)
    return shown


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sensitivity", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("--networks", nargs="+", default=list(LABELLED), metavar="NAME")
    parser.add_argument("--bits", nargs="+", type=int, default=[2, 3], choices=WIDTHS, help="default: 2 3")
    parser.add_argument(
        "--images", type=int, default=IMAGES, metavar="N", help="for the truth (default: %(default)s)"
    )
    parser.add_argument("--per-layer", action="store_true", help="one line for every layer")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    console, rows, summaries = Console(width=140), [], []
    for source in available(options.networks, console):
        found, summary = compare(source, bits=options.bits, images=options.images)
        rows += found
        summaries += summary
        if options.per_layer:
            for row in found:
                decibels = " ".join(
                    f"{kind} {10 * np.log10(max(noise, 1e-12)):6.1f}" for kind, noise in row.predicted.items()
                )
                console.print(
                    f"{row.layer[-40:]:40} {row.bits} {decibels}  true {10 * np.log10(max(row.true['noise'], 1e-12)):6.1f}"
                )
        console.print(table(summary))
        if options.json is not None:
            document = {
                "schema": SCHEMA,
                "summaries": [asdict(s) for s in summaries],
                "layers": [asdict(r) for r in rows],
            }
            options.json.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
