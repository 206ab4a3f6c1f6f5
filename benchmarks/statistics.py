"""How well each provider knows what the layers see: ``python -m benchmarks.statistics [--networks NAME ...]
[--json FILE]``.

The truth is what real images measure; `calibration` is measured on other real images, so that its errors are
those of sampling. Per layer:

    std           relative error of the standard deviation of an input, averaged over the inputs
    mean          error of the mean in units of the true standard deviation
    correlation   absolute error of the correlation of two inputs, averaged over all pairs

Inputs that hardly vary (below a thousandth of the layer's largest deviation) do not count.
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

from benchmarks.networks import LABELLED, Network, available
from benchmarks.package import inputs_of, real_mixture
from onnx_dfmpc.inputs.specs import model_inputs
from onnx_dfmpc.linalg.matrices import matrix
from onnx_dfmpc.matching.match import match
from onnx_dfmpc.model.files import load
from onnx_dfmpc.spec import InputStatistics, Layer, Mixture
from onnx_dfmpc.statistics.closed_form import closed_form
from onnx_dfmpc.statistics.probe import probe

PROVIDERS = ("closed form", "probe", "calibration")
IMAGES = 128
BATCH = 32
QUIET = 1e-3


@dataclass(frozen=True)
class Errors:
    """Errors of one provider at one layer, and the median of estimated / true standard deviation."""

    network: str
    provider: str
    layer: str
    std: float
    mean: float
    correlation: float
    ratio: float


@dataclass(frozen=True)
class Summary:
    """Averages over the layers of a network, and the seconds that the provider took."""

    network: str
    provider: str
    layers: int
    std: float
    mean: float
    correlation: float
    seconds: float


def errors(estimate: InputStatistics, truth: InputStatistics) -> tuple[float, float, float, float]:
    """Errors of standard deviations, means and correlations, and the median ratio of standard deviations."""
    matrices = [matrix(s.covariance).dense() for s in (estimate, truth)]
    found, true = (np.sqrt(np.maximum(np.einsum("gnn->gn", m, dtype=np.float64), 1e-30)) for m in matrices)
    loud = true > QUIET * true.max()
    pairs = loud[:, :, None] & loud[:, None]
    off = [m / d[:, :, None] / d[:, None] for m, d in zip(matrices, (found, true), strict=True)]
    return (
        float(np.abs(found / true - 1)[loud].mean()),
        float((np.abs(estimate.mean - truth.mean) / true)[loud].mean()),
        float(np.abs(off[0] - off[1])[pairs].mean()),
        float(np.median((found / true)[loud])),
    )


def compare(
    source: Network, *, images: int = IMAGES, providers: Sequence[str] = PROVIDERS
) -> tuple[list[Errors], dict[str, float]]:
    """Errors of every provider at every layer, and the seconds of each."""
    proto = load(source.path).proto
    layers = match(proto).layers
    real, other = _real(source, images)
    walks = {provider: _provide(provider, proto, layers, other) for provider in providers}
    found, seconds = [], dict.fromkeys(providers, 0.0)
    for layer, true in measured(proto, layers, real_mixture(feeds(proto, real)), "calibration"):
        for provider, walk in walks.items():
            start = time.process_time()
            ready, estimate = next(walk)
            seconds[provider] += time.process_time() - start
            if ready.name != layer.name:
                raise ValueError(f"{source.name}: {provider} has nothing for {layer.name}")
            found.append(Errors(source.name, provider, layer.name, *errors(estimate, true)))
    return found, seconds


def summarize(found: Sequence[Errors], seconds: Mapping[str, float]) -> list[Summary]:
    """Averages over the layers, provider by provider."""
    result = []
    for provider in seconds:
        mine = [error for error in found if error.provider == provider]
        std, mean, correlation = np.mean(
            [(error.std, error.mean, error.correlation) for error in mine], axis=0
        ).tolist()
        result.append(
            Summary(mine[0].network, provider, len(mine), std, mean, correlation, seconds[provider])
        )
    return result


def _real(source: Network, images: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Inputs for the truth, and other ones for calibration."""
    inputs, _ = source.inputs(source.data[0])
    if source.calibration is not None:
        return inputs[:images], source.inputs(source.calibration)[0][:images]
    half = min(images, len(inputs) // 2)
    shuffled = inputs[np.random.default_rng(0).permutation(len(inputs))]
    return shuffled[:half], shuffled[half : 2 * half]


def feeds(proto: ModelProto, inputs: NDArray[Any]) -> list[dict[str, NDArray[Any]]]:
    """Batches of the first input of a model."""
    spec = model_inputs(proto)[0]
    batch = spec.shape[0] if isinstance(spec.shape[0], int) else BATCH
    return [{spec.name: inputs[i : i + batch]} for i in range(0, len(inputs), batch)]


def _provide(
    provider: str, proto: ModelProto, layers: Sequence[Layer], other: NDArray[Any]
) -> Iterator[tuple[Layer, InputStatistics]]:
    if provider == "calibration":
        return measured(proto, layers, real_mixture(feeds(proto, other)), provider)
    believed = inputs_of(proto, layers)
    if provider == "probe":
        return measured(proto, layers, believed.mixture, provider)
    statistics = closed_form(proto, layers, input_range=believed.span)
    return ((layer, statistics[layer.name]) for layer in layers)


def measured(
    proto: ModelProto, layers: Sequence[Layer], mixture: Mixture, provider: str
) -> Iterator[tuple[Layer, InputStatistics]]:
    """Statistics of every layer from running the model."""
    names = [layer.name for layer in layers]
    found = probe(proto, layers, names, mixture, source=provider, seed=0, with_outputs=False)
    for layer in layers:
        seen = found[layer.name].input
        assert seen is not None
        yield layer, seen


def _table(summaries: Sequence[Summary]) -> Table:
    table = Table(title=f"Errors against {IMAGES} real inputs, averaged over layers")
    for column in ("network", "provider", "layers", "std", "mean", "correlation", "CPU s"):
        table.add_column(
            column, justify="left" if column in ("network", "provider") else "right", no_wrap=True
        )
    for s in summaries:
        table.add_row(
            s.network,
            s.provider,
            str(s.layers),
            f"{s.std:.3f}",
            f"{s.mean:.3f}",
            f"{s.correlation:.4f}",
            f"{s.seconds:.1f}",
        )
    return table


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.statistics", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("--networks", nargs="+", default=list(LABELLED), metavar="NAME")
    parser.add_argument("--per-layer", action="store_true", help="one line for every layer")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    console, all_errors, summaries = Console(width=140), [], []
    for source in available(options.networks, console):
        found, seconds = compare(source)
        all_errors += found
        summaries += summarize(found, seconds)
        if options.per_layer:
            for e in found:
                console.print(
                    f"{e.layer:50} {e.provider:12} {e.std:8.3f} {e.mean:8.3f} {e.correlation:8.4f} {e.ratio:8.3f}"
                )
        console.print(_table(summaries[-len(seconds) :]))
        if options.json is not None:
            document = {
                "images": IMAGES,
                "summaries": [asdict(s) for s in summaries],
                "layers": [asdict(e) for e in all_errors],
            }
            options.json.write_text(json.dumps(document, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
