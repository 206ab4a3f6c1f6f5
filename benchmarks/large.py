"""Seconds and memory of the command on networks of 0.3 to 600 million weights.

``python -m benchmarks.large`` streams VGG-like and ResNet-like networks with random weights to a temporary
folder, one layer at a time, quantizes each in a process of its own, and writes benchmarks/results/large.json,
docs/large.svg and the table in docs/large.md. Sizes above ``--up-to`` million weights take minutes and gigabytes of disk; what is in the
results already is not measured again, so a run can be stopped and continued. ``--stream FILE`` only writes a
network.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil, floor, log10, prod, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper
from rich.console import Console

from benchmarks.readme import replace
from benchmarks.tables import markdown

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "large.json"
PLOT, PAGE = ROOT / "docs" / "large.svg", ROOT / "docs" / "large.md"
SIZES = (0.3, 1, 3, 10, 30, 100, 200, 400, 600)
"""Millions of weights."""

METHODS = {
    "nearest": '[defaults]\nrounding = "nearest"\nrepair = "none"\n',
    "squant": '[defaults]\nrounding = "squant"\nrepair = "none"\n',
    "default": "",
}
"""Recipes by name; all with 4 bits, and 8 in the first and the last layer."""

PART = 1 << 20
"""Numbers that are drawn and written at a time."""

TICK = 0.01
"""Seconds between two looks at the memory of the command."""


# Networks


Layer = tuple[str, tuple[int, ...]]
"""What a layer is, and the shape of its weight; a block has two such weights."""


def vgg(width: float) -> Iterator[Layer]:
    """Layers of VGG-16 with ``width`` times the channels, on pictures of 32 x 32, and its dense layers."""
    before = 3
    for channels, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            now = max(8, round(channels * width / 8) * 8)
            yield ("conv", (now, before, 3, 3))
            before = now
        yield ("pool", ())
    hidden = max(8, round(4096 * width / 8) * 8)
    for features in (hidden, hidden, 1000):
        yield ("dense", (features, before))
        before = features


def resnet(width: float, blocks: int = 4) -> Iterator[Layer]:
    """Three stages of residual blocks of two convolutions each, as in the ResNets for CIFAR-10."""
    before = 3
    for channels in (16, 32, 64):
        now = max(8, round(channels * width / 8) * 8)
        yield ("conv", (now, before, 3, 3)) if before == 3 else ("down", (now, before, 3, 3))
        for _ in range(blocks):
            yield ("block", (now, now, 3, 3))
        before = now
    yield ("dense", (10, before))


def plain(width: float, count: int = 16) -> Iterator[Layer]:
    """Convolutions of the same size, one after the other."""
    channels = max(8, round(256 * width / 8) * 8)
    yield ("conv", (channels, 3, 3, 3))
    for _ in range(count):
        yield ("conv", (channels, channels, 3, 3))
    yield ("dense", (10, channels))


KINDS: dict[str, Callable[[float], Iterator[Layer]]] = {"vgg": vgg, "resnet": resnet, "plain": plain}
"""Networks by name, as functions of their width."""


def layers_of(kind: str, millions: float) -> list[Layer]:
    """Layers of a network with about so many weights. The number grows with the square of the width."""
    make = KINDS[kind]
    low, high = 1e-3, 1e3
    for _ in range(40):
        middle = sqrt(low * high)
        low, high = (middle, high) if weights_of(list(make(middle))) < millions * 1e6 else (low, middle)
    return list(make(high))


def weights_of(layers: Sequence[Layer]) -> int:
    """Number of weights."""
    return sum(prod(shape) * (2 if op == "block" else 1) for op, shape in layers if shape)


class Writer:
    """A model beside a growing file of external data, so that no more than a part of a weight is in memory."""

    def __init__(self, path: Path) -> None:
        self._path, self._data = path, path.with_name(path.name + ".data")
        self._file = self._data.open("wb")
        self._nodes: list[NodeProto] = []
        self._tensors: list[TensorProto] = []
        self._rng = np.random.default_rng(0)

    def weight(self, name: str, shape: tuple[int, ...], gain: float = 1.0) -> str:
        """Random numbers that keep the variance of a rectified input."""
        deviation, size, start = gain * sqrt(2 / prod(shape[1:])), prod(shape), self._file.tell()
        for first in range(0, size, PART):
            part = self._rng.standard_normal(min(PART, size - first), np.float32)
            self._file.write((part * np.float32(deviation)).tobytes())
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", self._data.name), ("offset", start), ("length", 4 * size)):
            tensor.external_data.add(key=key, value=str(value))
        self._tensors.append(tensor)
        return name

    def node(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """A node; returns the name of its output, which is its own too."""
        name = f"{op_type.lower()}{len(self._nodes)}"
        self._nodes.append(helper.make_node(op_type, inputs, [name], name=name, **attributes))
        return name

    def finish(self, x: Sequence[int | str], y: Sequence[int | str]) -> None:
        """Write the model; the last node makes its output."""
        self._nodes[-1].output[0] = "y"
        graph = helper.make_graph(
            self._nodes,
            "large",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)],
            self._tensors,
        )
        model: ModelProto = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
        )
        self._path.write_bytes(model.SerializeToString())
        self._file.close()


def stream(path: Path, layers: Sequence[Layer]) -> None:
    """Write a network with random weights. Without pooling it sees small pictures, or would take hours."""
    side = 32 if any(op in ("pool", "down") for op, _ in layers) else 4
    writer, flow, flat = Writer(path), "x", False
    last = len(layers) - 1
    three = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    for index, (op, shape) in enumerate(layers):
        name = f"w{index}"
        if op in ("conv", "down"):
            strides = [2, 2] if op == "down" else [1, 1]
            flow = writer.node(
                "Relu", writer.node("Conv", flow, writer.weight(name, shape), strides=strides, **three)
            )
        elif op == "block":
            inner = writer.node("Relu", writer.node("Conv", flow, writer.weight(name, shape, 0.7), **three))
            branch = writer.node("Conv", inner, writer.weight(name + "b", shape, 0.3), **three)
            flow = writer.node("Relu", writer.node("Add", branch, flow))
        elif op == "pool":
            flow = writer.node("MaxPool", flow, kernel_shape=[2, 2], strides=[2, 2])
        else:
            if not flat:
                flow, flat = writer.node("Flatten", writer.node("GlobalAveragePool", flow)), True
            flow = writer.node("Gemm", flow, writer.weight(name, shape), transB=1)
            flow = flow if index == last else writer.node("Relu", flow)
    writer.finish(["N", 3, side, side], ["N", layers[-1][1][0]])


# What the command costs


@dataclass(frozen=True)
class Cost:
    """Seconds, and bytes at the peak: ``resident`` counts pages of mapped files too, ``own`` does not."""

    wall: float
    cpu: float
    resident: int
    own: int


def cost_of(command: Sequence[str]) -> Cost:
    """Run a command and look at its memory while it runs."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        peaks = {"VmHWM": 0, "RssAnon": 0}
        while True:
            pid, status, used = os.wait4(child.pid, os.WNOHANG)
            if pid:
                break
            for line in Path(f"/proc/{child.pid}/status").read_text().splitlines():
                key, _, value = line.partition(":")
                if key in peaks:
                    peaks[key] = max(peaks[key], int(value.split()[0]) * 1024)
            time.sleep(TICK)
        child.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        if child.returncode:
            raise SystemExit(errors.read().decode(errors="replace"))
    wall = time.perf_counter() - start
    return Cost(wall, used.ru_utime + used.ru_stime, peaks["VmHWM"], peaks["RssAnon"])


def quantize(model: Path, method: str, *more: str) -> Cost:
    """Cost of quantizing a file to 4 bits, the whole of it: validated and written."""
    with tempfile.TemporaryDirectory(dir=model.parent) as folder:
        recipe = Path(folder) / "recipe.toml"
        recipe.write_text(METHODS[method], encoding="utf-8")
        output = str(Path(folder) / "small.onnx")
        command = [
            sys.executable,
            "-m",
            "onnx_dfmpc",
            "quantize",
            str(model),
            "-o",
            output,
            "-c",
            str(recipe),
        ]
        return cost_of([*command, "--bits", "4", "-q", "--no-gate", "--timeout", "none", *more])


# A plot

Row = Mapping[str, Any]
Value = Callable[[Row], float]

TYPES = {"vgg": "VGG-like", "resnet": "ResNet-like", "plain": "16 alike"}
"""Names of the kinds of networks."""

COLORS = {"nearest": "#4c78a8", "squant": "#f58518", "default": "#54a24b"}
WIDTH, HEIGHT, LEFT, TOP = 330, 250, 62, 34
"""Pixels of a panel, and of what is beside and above it."""


def draw(rows: Sequence[Row]) -> str:
    """SVG of CPU seconds and of memory against weights, both logarithmic."""
    panels: tuple[tuple[str, Value], ...] = (
        ("CPU seconds", lambda row: row["cpu"]),
        ("peak memory, MB, mapped files not counted", lambda row: row["own"] / 1e6),
    )
    parts, offset = [], 0
    for title, value in panels:
        points = [(row["weights"] / 1e6, value(row)) for row in rows]
        x, y = (_scale([point[axis] for point in points]) for axis in (0, 1))

        def at(row: Row, x: Scale = x, y: Scale = y, value: Value = value) -> str:
            across, up = x.place(row["weights"] / 1e6), y.place(value(row))
            return f"{LEFT + across * WIDTH:.1f},{TOP + (1 - up) * HEIGHT:.1f}"

        parts.append(
            f'<g transform="translate({offset},0)"><text x="{LEFT}" y="20" font-weight="bold">{title}</text>'
        )
        for tick in x.ticks():
            across = LEFT + x.place(tick) * WIDTH
            parts.append(f'<path d="M{across:.1f} {TOP}v{HEIGHT}" stroke="#ddd"/>')
            parts.append(
                f'<text x="{across:.1f}" y="{TOP + HEIGHT + 16}" text-anchor="middle">{tick:g}</text>'
            )
        for tick in y.ticks():
            up = TOP + (1 - y.place(tick)) * HEIGHT
            parts.append(f'<path d="M{LEFT} {up:.1f}h{WIDTH}" stroke="#ddd"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{up + 4:.1f}" text-anchor="end">{tick:g}</text>')
        # Ten times the weights, ten times the cost: lines of this slope are linear.
        low, high = x.ticks()[0], x.ticks()[-1]
        for start in y.ticks():
            stop = min(high, low * y.ticks()[-1] / start)
            ends = [
                f"{LEFT + x.place(a) * WIDTH:.1f} {TOP + (1 - y.place(start * a / low)) * HEIGHT:.1f}"
                for a in (low, stop)
            ]
            parts.append(f'<path d="M{ends[0]}L{ends[1]}" stroke="#bbb" stroke-dasharray="1 4"/>')
        middle = LEFT + WIDTH / 2
        parts.append(
            f'<text x="{middle}" y="{TOP + HEIGHT + 34}" text-anchor="middle">million weights</text>'
        )
        for kind, dashes in (("vgg", ""), ("resnet", ' stroke-dasharray="5 4"')):
            for method, color in COLORS.items():
                some = [row for row in rows if (row["kind"], row["method"]) == (kind, method)]
                places = [at(row) for row in sorted(some, key=lambda row: row["weights"])]
                line = " ".join(places)
                parts += [
                    '<circle cx="{}" cy="{}" r="2.5" fill="{}"/>'.format(*place.split(","), color)
                    for place in places
                ]
                parts.append(
                    f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"{dashes}/>'
                )
        parts.append("</g>")
        offset += LEFT + WIDTH + 30
    bottom = TOP + HEIGHT + 58
    for index, (method, color) in enumerate(COLORS.items()):
        parts.append(f'<text x="{LEFT + 110 * index}" y="{bottom}" fill="{color}">{method}</text>')
    parts.append(
        f'<text x="{LEFT + 360}" y="{bottom}">solid: VGG-like, dashed: ResNet-like, dots: slope of linear growth</text>'
    )
    style = 'font-family="sans-serif" font-size="12"'
    box = f'viewBox="0 0 {offset} {bottom + 12}" role="img" aria-label="Time and memory against weights"'
    white = '<rect width="100%" height="100%" fill="white"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box} {style}>{white}{"".join(parts)}</svg>\n'


def table(rows: Sequence[Row]) -> str:
    """CPU seconds and peak memory of every network, method by method."""
    found = {(row["kind"], row["weights"], row["method"]): row for row in rows}
    networks = {(row["kind"], row["weights"]): row["largest"] for row in rows}
    lines = []
    for (kind, weights), largest in sorted(networks.items(), key=lambda one: one[0]):
        cells = [f"{weights / 1e6:,.1f}", f"{largest / 1e6:,.2f}"]
        for method in METHODS:
            row = found.get((kind, weights, method))
            cells.append(f"{row['cpu']:,.1f} s, {row['own'] / 1e6:,.0f} MB" if row else "")
        lines.append([TYPES[kind], *cells])
    return markdown(["network", "million weights", "in the largest layer", *METHODS], lines)


@dataclass(frozen=True)
class Scale:
    """A logarithmic axis over whole decades."""

    low: int
    high: int

    def place(self, value: float) -> float:
        """Where a value lies, from 0 to 1."""
        return (log10(value) - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Powers of ten."""
        return [10.0**power for power in range(self.low, self.high + 1)]


def _scale(values: Sequence[float]) -> Scale:
    return Scale(floor(log10(min(values))), ceil(log10(max(values))))


def main() -> None:
    """Measure what is missing, and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", default=["vgg", "resnet"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--sizes", nargs="+", type=float, default=list(SIZES))
    parser.add_argument("--up-to", type=float, default=30, help="largest million weights (30)")
    parser.add_argument("--folder", type=Path, help="for the networks, else a temporary one")
    parser.add_argument(
        "--stream", type=Path, help="write the first of the networks here, and measure nothing"
    )
    arguments = parser.parse_args()
    console = Console(soft_wrap=True)
    if arguments.stream:
        layers = layers_of(arguments.kinds[0], arguments.sizes[0])
        stream(arguments.stream, layers)
        console.print(f"{weights_of(layers):,} weights")
        return
    rows = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    done = {(row["kind"], row["millions"], row["method"]) for row in rows}
    for kind in arguments.kinds:
        for millions in (size for size in arguments.sizes if size <= arguments.up_to):
            missing = [name for name in arguments.methods if (kind, millions, name) not in done]
            if not missing:
                continue
            layers = layers_of(kind, millions)
            with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
                model = Path(folder) / "float.onnx"
                stream(model, layers)
                for method in missing:
                    cost = quantize(model, method)
                    row = {"kind": kind, "millions": millions, "weights": weights_of(layers)}
                    row |= {"largest": max(prod(shape) for _, shape in layers if shape), "method": method}
                    rows.append(row | asdict(cost))
                    console.print(rows[-1])
                    rows.sort(key=lambda one: (one["kind"], one["method"], one["weights"]))
                    RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    PLOT.write_text(draw(rows), encoding="utf-8")
    PAGE.write_text(replace(PAGE.read_text(encoding="utf-8"), "large", table(rows)), encoding="utf-8")


if __name__ == "__main__":
    main()
