"""What 8-bit activations cost and buy: ``python -m benchmarks.activations [--networks NAME ...]
[--json activations.json] [--times]``.

Accuracy on labelled test images, or output SQNR on real inputs, of files made from the model alone; beside
them what ``onnxruntime.quantization.quantize_static`` makes of the same model with noise, with the pictures of
this tool, and with 64 and 512 real images. ``--times`` adds CPU time against the float model: both sessions take
turns, one thread, default options.

Rivals get a copy of the model, with batch norm folded by onnxruntime's own preprocessing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process
from rich.console import Console

from benchmarks.evaluate import Reference, Score, reference
from benchmarks.ledger import Ledger
from benchmarks.networks import Network, available
from benchmarks.tables import markdown
from models.zoo import ZooError
from onnx_dfmpc import Recipe, quantize
from onnx_dfmpc.errors import DfmpcError
from onnx_dfmpc.inputs.specs import model_inputs
from onnx_dfmpc.inputs.synthetic import synthetic_feeds
from onnx_dfmpc.matching.match import match
from onnx_dfmpc.model.files import load
from onnx_dfmpc.statistics.belief import believe

OURS: Mapping[str, Mapping[str, Any]] = {
    "W8A8": {"bits": 8, "activations": 8},
    "mean 4 + A8": {"activations": 8},
    "4 + A8": {"bits": 4, "activations": 8},
    "mean 3 + A8": {"target_bits": 3.0, "activations": 8},
    "2/6 + A8": {"low_bits": 2, "high_bits": 6, "activations": 8},
    "2 + A8": {"bits": 2, "activations": 8},
    "mean 4, float activations": {},
}
"""Settings by name."""

RIVALS = ("noise", "our pictures", "64 real", "512 real")
"""What quantize_static is calibrated on."""

_BOTH = ("W8A8", "mean 4 + A8")

SHOWN: Mapping[str, Sequence[str]] = {
    "cifar10_resnet20_bn": (*_BOTH, "4 + A8", "2 + A8", *RIVALS[:3]),
    "cifar10_resnet56_bn": (*_BOTH, "mean 3 + A8", "2/6 + A8"),
    "cifar10_resnet8_keras_bn": (*_BOTH, *RIVALS[:3]),
    "cifar10_shufflenetv2_x0_5_bn": (*_BOTH, *RIVALS[:3]),
    "imagenet_squeezenet1_1": (*_BOTH, *RIVALS[:3]),
    "imagenet_mobilenet_v1_025_128_folded": (*_BOTH, *RIVALS[:3]),
    "har_conv1d_bn": (*_BOTH, *RIVALS[:3]),
    "ultraface_rfb_320_bn": _BOTH,
    "yunet_s_dynamic": _BOTH,
    "fastestdet_folded": _BOTH,
}
"""What docs/activations.md shows."""

HEADLINE = ("mean 4 + A8", "mean 3 + A8")

TEST_DATA = {"cifar10_resnet20_bn": "cifar10_jpeg_test", "cifar10_resnet56_bn": "cifar10_jpeg_test"}
"""Where it is not the first of a network's data sets."""

BATCHES = (1, 8)
RUNS = 40


@dataclass(frozen=True)
class Row:
    """One model; ``top1`` and ``sqnr_db`` as fractions and dB, None where nothing tells; times are medians of
    runs, by batch size, as ratios to the float model.
    """

    network: str
    what: str
    n: int
    bytes: int
    float_bytes: int
    float_top1: float | None
    top1: float | None
    sqnr_db: float | None
    times: dict[str, float] | None = None
    failed: str = ""

    @property
    def key(self) -> Hashable:
        """What was measured."""
        return self.network, self.what


class _Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: Iterable[Mapping[str, Any]]) -> None:
        self._feeds: Iterator[Mapping[str, Any]] = iter(feeds)

    def get_next(self) -> Mapping[str, Any] | None:
        """The next inputs, None after the last."""
        return next(self._feeds, None)


def rival(network: Network, data: str) -> ModelProto:
    """What quantize_static makes of a network; ``data`` is one of `RIVALS`."""
    with tempfile.TemporaryDirectory() as directory:
        copy, folded, output = (Path(directory) / name for name in ("copy.onnx", "folded.onnx", "out.onnx"))
        copy.write_bytes(network.path.read_bytes())
        quant_pre_process(str(copy), str(folded), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(folded),
            str(output),
            _Reader(_feeds(network, data)),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        return onnx.load(output)


def _feeds(network: Network, data: str) -> list[dict[str, Any]]:
    specs = model_inputs(onnx.load(network.path))
    name, dtype = specs[0].name, specs[0].dtype
    if data == "our pictures":
        proto = load(network.path).proto
        likeliest = believe(proto, match(proto).layers, specs).likeliest
        return synthetic_feeds(specs, "pictures", input_range=(likeliest.low, likeliest.high))
    if data == "noise":
        return synthetic_feeds(specs, "white", samples=64)
    count = int(data.split()[0])
    arrays, _ = network.inputs(network.calibration or network.data[0])
    chosen = np.random.default_rng(0).permutation(len(arrays))[:count]
    return [{name: arrays[i : i + 1].astype(dtype)} for i in chosen]


def times(model: ModelProto, float_model: ModelProto, arrays: NDArray[Any], runs: int) -> dict[str, float]:
    """CPU time of a model as a ratio to the float model's, by batch size: median of the ratios of runs in
    turn, one thread, default options.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    sessions = [
        ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for proto in (model, float_model)
    ]
    spec = sessions[0].get_inputs()[0]
    found: dict[str, float] = {}
    for batch in BATCHES:
        if isinstance(spec.shape[0], int) and spec.shape[0] != batch:
            continue
        feed = {spec.name: np.resize(arrays, (batch, *arrays.shape[1:]))}
        inner = _repetitions(lambda feed=feed: sessions[0].run(None, feed))  # type: ignore[misc]
        ratios = []
        for _ in range(runs):
            ours, theirs = (_seconds(session, feed, inner) for session in sessions)
            ratios.append(ours / theirs)
        found[str(batch)] = statistics.median(ratios[5:])
        found[f"{batch} from"], found[f"{batch} to"] = np.quantile(ratios[5:], (0.25, 0.75)).tolist()
    return found


def _repetitions(run: Callable[[], object]) -> int:
    """Runs in one measurement: about 10 ms, since the clock of CPU time is coarse."""
    start = time.process_time()
    for _ in range(3):
        run()
    return max(1, int(0.03 / max(time.process_time() - start, 1e-4)))


def _seconds(session: ort.InferenceSession, feed: Mapping[str, Any], repetitions: int) -> float:
    start = time.process_time()
    for _ in range(repetitions):
        session.run(None, feed)
    return time.process_time() - start


def measure(network: Network, what: str, reads: Reference, score: Score, *, timed: bool) -> Row:
    """Make a model and measure it; ``score`` is the float model's."""
    float_model = onnx.load(network.path)
    size = network.path.stat().st_size
    try:
        if what in OURS:
            made = quantize(network.path, None, Recipe(**OURS[what]), validated=False).model
        else:
            made = rival(network, what)
    except Exception as error:  # a rival may raise anything
        return Row(network.name, what, score.n, 0, size, score.top1, None, None, None, str(error)[:200])
    found = reads.score(made)
    arrays, _ = network.inputs(network.data[0])
    ratio = times(made, float_model, arrays[:8], RUNS) if timed else None
    return Row(
        network.name, what, score.n, made.ByteSize(), size, score.top1, found.top1, found.sqnr_db, ratio
    )


def _place(row: Row) -> tuple[int, int]:
    """Order of rows in a table: that of `SHOWN`, and of the settings."""
    known, settings = list(SHOWN), [*OURS, *RIVALS]
    return (known.index(row.network) if row.network in known else len(known)), settings.index(row.what)


def table(rows: Iterable[Row]) -> str:
    """A line for each model."""
    lines = []
    for row in sorted(rows, key=_place):
        top1 = (
            ""
            if row.top1 is None or row.float_top1 is None
            else f"{100 * row.top1:.1f} of {100 * row.float_top1:.1f}"
        )
        spread = row.times or {}
        time_1, time_8 = (
            f"{spread[b]:.2f} ({spread[f'{b} from']:.2f} to {spread[f'{b} to']:.2f})" if b in spread else ""
            for b in ("1", "8")
        )
        sqnr = row.failed or ("" if row.sqnr_db is None else f"{row.sqnr_db:.1f}")
        times_smaller = "" if not row.bytes else f"{row.float_bytes / row.bytes:.1f}"
        lines.append((row.network, row.what, f"{row.bytes:,}", times_smaller, top1, sqnr, time_1, time_8))
    header = (
        "network", "what", "bytes", "times smaller", "top-1", "SQNR, dB", "time, batch 1", "time, batch 8"
    )  # fmt: skip
    return markdown(header, lines)


def headline(rows: Iterable[Row]) -> str:
    """What the README shows: a line for each labelled network, at `HEADLINE`."""
    lines = [
        (
            row.network,
            f"{row.n:,}",
            row.what.split(" +")[0],
            f"{row.float_bytes:,}",
            f"{row.bytes:,}",
            f"{row.float_bytes / row.bytes:.1f}",
            f"{100 * (row.float_top1 or 0):.1f}",
            f"{100 * row.top1:.1f}",
            f"{row.times['1']:.2f}" if row.times and "1" in row.times else "",
        )
        for row in sorted(rows, key=_place)
        if row.top1 is not None and row.what in HEADLINE
    ]
    header = (
        "network", "n", "weights' bits", "float bytes", "bytes", "times smaller", "float top-1", "top-1", "time of float"
    )  # fmt: skip
    return markdown(header, lines)


def read(path: Path) -> Ledger[Row]:
    """Rows that were kept."""
    return Ledger(Row, path)


def complete(
    ledger: Ledger[Row], wanted: Mapping[str, Sequence[str]], *, timed: bool, console: Console
) -> None:
    """Measure what is missing, models by network."""
    for network in available(wanted, console):
        missing = [what for what in wanted[network.name] if (network.name, what) not in ledger]
        if missing:
            reads = reference(network, TEST_DATA.get(network.name, network.data[0]))
            score = reads.score(onnx.load(network.path))
            for what in missing:
                ledger.add(measure(network, what, reads, score, timed=timed))
                console.print(f"{network.name}, {what}", style="dim")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.activations", description=__doc__)
    parser.add_argument("--networks", nargs="*", help="by default those of docs/activations.md")
    parser.add_argument("--what", nargs="+", choices=[*OURS, *RIVALS], help="by default as there")
    parser.add_argument("--times", action="store_true", help="measure CPU time too; a quiet machine helps")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep rows here, and go on from them")
    options = parser.parse_args(arguments)
    console, progress = Console(), Console(stderr=True)
    names = SHOWN if options.networks is None else options.networks
    wanted = {name: options.what or SHOWN.get(name, ("W8A8", "mean 4 + A8")) for name in names}
    try:
        ledger = read(options.json) if options.json is not None else Ledger(Row)
        complete(ledger, wanted, timed=options.times, console=progress)
    except (DfmpcError, ZooError) as error:
        progress.print(f"error: {error}", style="red", markup=False)
        return 2
    console.print(table(ledger), markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
