"""Other tools without data, beside this one: ``make rivals``, then ``python -m benchmarks.rivals [--networks NAME
...] [--tools NAME ...] [--json FILE] [--write]``.

Every tool runs in an environment and a process of its own, on a copy of the float model, and may calibrate on
noise in the range of the input, as real preprocessing makes it of random pixels. This tool runs through its
command line and is told nothing. All files are run on the same images. A row is kept as soon as it is
measured (`ledger.py`); ``--write`` puts tables and charts where docs/rivals.md shows them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto
from rich.console import Console

from benchmarks import launch
from benchmarks.activations import TEST_DATA, times
from benchmarks.baselines import tools
from benchmarks.baselines.tools import DYNAMIC, SIZE, TOOLS, W4, W4A8, W8, W8A8
from benchmarks.evaluate import Reference, Score, reference, standard_error
from benchmarks.ledger import Ledger
from benchmarks.networks import Network, available
from benchmarks.readme import RESULTS, ROOT
from benchmarks.tables import markdown
from models import zoo
from onnx_dfmpc.errors import DfmpcError

NETWORKS = (
    "cifar10_resnet20_bn",
    "cifar10_resnet56_bn",
    "cifar10_resnet8_keras_bn",
    "cifar10_shufflenetv2_x0_5_bn",
    "imagenet_mobilenet_v1_025_128_folded",
    "imagenet_squeezenet1_1",
    "har_conv1d_bn",
)

OURS = "onnx-dfmpc"
FEWER, FEWER_A8 = "fewer bits, float activations", "fewer bits, 8-bit activations"
SMALL = ("--fold-batch-norm", "yes", "--slim", "yes")
"""What other tools do to a graph without being asked."""

FLAGS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "8 + A8": (W8A8, ("--bits", "8", "--activations", "8", *SMALL)),
    "mean 4 + A8": (W4A8, ("--activations", "8", *SMALL)),
    "mean 3 + A8": (FEWER_A8, ("--target-bits", "3", "--activations", "8", *SMALL)),
    "8": (W8, ("--bits", "8", *SMALL)),
    "mean 4": (W4, SMALL),
    "mean 3": (FEWER, ("--target-bits", "3", *SMALL)),
}
"""Settings of this tool: what to compare with, and what is typed."""

PUBLISHED = "published methods"
PAPERS: Mapping[str, tuple[str, tuple[str, str]]] = {
    "plain rounding, 8": (W8, ("nearest", "8")),
    "plain rounding, 4": (W4, ("nearest", "4")),
    "SQuant, 4": (W4, ("squant", "4")),
    "SQuant, 3": (FEWER, ("squant", "3")),
    "DFQ, 8": (W8, ("dfq", "8")),
    "DFQ, 6": (FEWER, ("dfq", "6")),
    "DFQ per channel, 4": (W4, ("dfq-channel", "4")),
    "DF-MPC as published, 2/6": (FEWER, ("paper", "2/6")),
}
"""Methods for which there is no tool that writes ONNX, as `methods` has them: names and bits."""

HERE = (OURS, PUBLISHED)
"""What needs no environment of its own."""

ENVIRONMENTS, STAMP = ROOT / ".rivals", "installed.stamp"
"""Where ``make rivals`` installs, one folder for each tool, and the file that it leaves there."""

PAGE, TEMPLATE = ROOT / "docs" / "rivals.md", ROOT / "benchmarks" / "rivals_page.txt"
NOISE_SAMPLES = 64
RUNS = 20
"""Measurements of time, of which `times` leaves out the first five."""

MOST_SECONDS = 900.0
"""Longest run of a tool."""


@dataclass(frozen=True)
class Row:
    """One file of one tool.

    ``top1``, ``agreement`` (fractions) and ``sqnr_db`` are None where ONNX Runtime cannot run the file, which
    ``refused`` says; ``failed`` is why there is no file. ``cpu_seconds`` and ``peak_bytes`` are those of the
    whole process, ``seconds`` those of the call alone, without imports, where the tool is called from Python.
    ``changed`` names what the tool did to the folder of its input.
    """

    network: str
    tool: str
    setting: str
    kind: str
    versions: dict[str, str]
    n: int
    float_bytes: int
    float_top1: float
    bytes: int | None = None
    top1: float | None = None
    agreement: float | None = None
    sqnr_db: float | None = None
    times: dict[str, float] | None = None
    cpu_seconds: float | None = None
    seconds: float | None = None
    peak_bytes: int | None = None
    changed: str = ""
    refused: str = ""
    failed: str = ""

    @property
    def key(self) -> Hashable:
        """What was made, by what."""
        return self.network, self.tool, self.setting


@dataclass(frozen=True, eq=False)
class Subject:
    """A network, what it says on its test images, and the noise that tools calibrate on."""

    network: Network
    proto: ModelProto
    reads: Reference
    score: Score
    inputs: NDArray[Any]
    noise: Mapping[str, NDArray[Any]]


def subject(network: Network) -> Subject:
    """Run the float model on the test images."""
    data = TEST_DATA.get(network.name, network.data[0])
    reads, proto = reference(network, data), onnx.load(network.path)
    inputs, _ = network.inputs(data)
    return Subject(network, proto, reads, reads.score(proto), inputs[:8], noise(network, inputs.shape[1:]))


def noise(network: Network, shape: Sequence[int]) -> dict[str, NDArray[Any]]:
    """White noise in the range of the input: random pixels through the preprocessing of the network, or standard
    normal where the inputs have been normalised.
    """
    entry, rng = zoo.entry(network.name), np.random.default_rng(0)
    if entry.preprocessing is None:
        drawn = rng.standard_normal((NOISE_SAMPLES, *shape), dtype=np.float32)
    else:
        pixels = rng.integers(0, 256, (NOISE_SAMPLES, *shape[1:], shape[0]), dtype=np.uint8)
        as_they_are = replace(entry.preprocessing, size=None, crop=None)
        drawn = zoo.preprocess(pixels, replace(entry, preprocessing=as_they_are))
    return {entry.input: drawn}


def measure(about: Subject, tool: str, setting: str) -> Row:
    """Make a file with a tool, and measure it."""
    network, score = about.network, about.score
    assert score.top1 is not None
    size, kind = network.path.stat().st_size, kind_of(tool, setting)
    row = Row(network.name, tool, setting, kind, {}, score.n, size, score.top1)
    with tempfile.TemporaryDirectory() as directory:
        folder, work = Path(directory) / "input", Path(directory) / "work"
        folder.mkdir()
        work.mkdir()
        copy, samples = folder / "model.onnx", work / "noise.npz"
        output, done = work / "out.onnx", work / "done.json"
        copy.write_bytes(network.path.read_bytes())
        np.savez(samples, allow_pickle=False, **about.noise)
        cost, said = run(command(tool, setting, copy, samples, output, done), work)
        told: dict[str, Any] = {"versions": installed_here()}
        if done.is_file():
            told = json.loads(done.read_text())
        row = replace(
            row,
            versions=told["versions"],
            seconds=told.get("seconds"),
            cpu_seconds=cost["cpu"],
            peak_bytes=cost["peak"],
            changed=changes(folder, network.path),
        )
        if cost["code"] != 0 or not output.is_file():
            late = cost["code"] is None
            return replace(row, failed=f"not done after {MOST_SECONDS:.0f} s" if late else said or "no file")
        size = sum(path.stat().st_size for path in output.parent.glob("out.onnx*"))
        return judged(replace(row, bytes=size), onnx.load(output), about)


def judged(row: Row, made: ModelProto, about: Subject) -> Row:
    """A row with what the file does on the test images, if ONNX Runtime runs it."""
    try:
        score = about.reads.score(made)
        ratio = times(made, about.proto, about.inputs, RUNS)
    except Exception as error:  # whatever ONNX Runtime does not like
        return replace(row, refused=_line(str(error)))
    return replace(row, top1=score.top1, agreement=score.agreement, sqnr_db=score.sqnr_db, times=ratio)


def command(tool: str, setting: str, model: Path, samples: Path, output: Path, done: Path) -> list[str]:
    """What is run: this tool through its command line, others through `tools`."""
    here = [sys.executable, "-m"]
    if tool == OURS:
        flags = FLAGS[setting][1]
        return [*here, "onnx_dfmpc", "quantize", str(model), "-o", str(output), "-q", *flags]
    if tool == PUBLISHED:
        return [*here, "benchmarks.baselines.run", *PAPERS[setting][1], str(model), str(output)]
    arguments = [tool, setting, str(model), str(samples), str(output), str(done)]
    return [str(interpreter(tool)), "-P", tools.__file__, *arguments]


def interpreter(tool: str) -> Path:
    """Python of the environment of a tool."""
    return ENVIRONMENTS / tool / "bin" / "python"


def run(words: Sequence[str], work: Path) -> tuple[dict[str, Any], str]:
    """Run a command with one thread: what it cost, and its last line on stderr."""
    cost, scratch = work / "cost.json", work / "scratch"
    scratch.mkdir()
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    done = subprocess.run(
        [sys.executable, launch.__file__, str(cost), str(MOST_SECONDS), *words],
        cwd=scratch,
        env={**os.environ, **threads, "PYTHONPATH": str(ROOT) if words[1] == "-m" else ""},
        capture_output=True,
        text=True,
        errors="replace",
        check=True,
    )
    return json.loads(cost.read_text()), _line(done.stderr, last=True)


def _line(text: str, *, last: bool = False) -> str:
    """First or last line of a message that says something, without what would break a table."""
    lines = [line.strip() for line in text.replace("|", "/").splitlines() if line.strip()]
    return lines[-1 if last else 0][:200] if lines else ""


def changes(folder: Path, original: Path) -> str:
    """What became of the folder in which the copy of a model lay, in words."""
    copy = folder / "model.onnx"
    if not copy.is_file():
        return "removed its input"
    before, after = (hashlib.sha256(path.read_bytes()).digest() for path in (original, copy))
    left = sorted(path.name for path in folder.iterdir() if path != copy)
    said = ["changed its input"] if before != after else []
    return ", ".join([*said, *([f"left {' '.join(left)} beside it"] if left else [])])


def installed_here() -> dict[str, str]:
    """Versions of what needs no environment of its own."""
    words = ["git", "rev-parse", "--short", "HEAD"]
    head = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    ours = {OURS: f"{version(OURS)} ({head or 'no checkout'})"}
    return {**ours, **{package: version(package) for package in ("onnx", "onnxruntime")}}


def kind_of(tool: str, setting: str) -> str:
    """What a setting is to be compared with."""
    return {OURS: FLAGS, PUBLISHED: PAPERS}[tool][setting][0] if tool in HERE else TOOLS[tool][setting].kind


def wanted(chosen: Collection[str], kinds: Collection[str]) -> list[tuple[str, str]]:
    """Tools and their settings, this one first."""
    every: Mapping[str, Iterable[str]] = {OURS: FLAGS, PUBLISHED: PAPERS, **TOOLS}
    pairs = [(tool, setting) for tool in every if tool in chosen for setting in every[tool]]
    return [(tool, setting) for tool, setting in pairs if kind_of(tool, setting) in kinds]


def complete(
    ledger: Ledger[Row], names: Sequence[str], pairs: Sequence[tuple[str, str]], console: Console
) -> None:
    """Measure what is missing."""
    absent = {tool for tool, _ in pairs if not (tool in HERE or (ENVIRONMENTS / tool / STAMP).exists())}
    for tool in sorted(absent):
        console.print(f"{tool}: left out: not installed (make rival-{tool})")
    pairs = [(tool, setting) for tool, setting in pairs if tool not in absent]
    for network in available(names, console):
        todo = [(tool, setting) for tool, setting in pairs if (network.name, tool, setting) not in ledger]
        if todo:
            about = subject(network)
            for tool, setting in todo:
                row = measure(about, tool, setting)
                ledger.add(row)
                found = row.failed or row.refused or f"{row.bytes:,} bytes, top-1 {_percent(row.top1)}"
                console.print(f"{network.name}, {tool}, {setting}: {found}", style="dim", markup=False)


# ---------------------------------------------------------------------------------------------------------------
# what docs/rivals.md shows


KINDS = (W8A8, W4A8, FEWER_A8, DYNAMIC, W8, W4, FEWER, SIZE)
SHORT = {
    "cifar10_resnet20_bn": "ResNet-20",
    "cifar10_resnet56_bn": "ResNet-56",
    "cifar10_resnet8_keras_bn": "ResNet-8",
    "cifar10_shufflenetv2_x0_5_bn": "ShuffleNetV2 0.5",
    "imagenet_mobilenet_v1_025_128_folded": "MobileNetV1 0.25",
    "imagenet_squeezenet1_1": "SqueezeNet 1.1",
    "har_conv1d_bn": "HAR Conv1d",
}
"""Networks as people call them."""

BELOW = 0.15
"""The charts end so much below the float model; what is worse lies on their lower edge."""


def accuracy(rows: Sequence[Row], kind: str) -> str:
    """Top-1 of every setting of a kind, network by network, the largest loss, and medians of size and time."""
    names = [name for name in NETWORKS if any(row.network == name for row in rows)]
    first = {name: next(row for row in rows if row.network == name) for name in names}
    spread = [100 * standard_error(row.float_top1, row.n) for row in first.values()]
    floats = [f"{_percent(row.float_top1)} ± {s:.1f}" for row, s in zip(first.values(), spread, strict=True)]
    lines = [("float, and its standard error", *floats, "", "1.0", "1.00")]
    for tool, setting in dict.fromkeys((row.tool, row.setting) for row in rows if row.kind == kind):
        found = {row.network: row for row in rows if (row.tool, row.setting) == (tool, setting)}
        lost = [100 * (row.float_top1 - row.top1) for row in found.values() if row.top1 is not None]
        smaller = [row.float_bytes / row.bytes for row in found.values() if row.bytes]
        time = [row.times["1"] for row in found.values() if row.times]
        lines.append(
            (
                f"{tool}: {setting}",
                *(_cell(found.get(name)) for name in names),
                f"{max(lost):.1f}" if lost else "-",
                f"{statistics.median(smaller):.1f}" if smaller else "-",
                f"{statistics.median(time):.2f}" if time else "-",
            )
        )
    return markdown((kind, *(SHORT[name] for name in names), "largest loss", "times smaller", "time"), lines)


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    if row.failed:
        return "no file"
    return "does not run" if row.top1 is None else _percent(row.top1)


def everything(rows: Iterable[Row]) -> str:
    """All that was measured of the files for one network, the kinds one after the other."""
    header = (
        "tool, setting", "kind", "bytes", "times smaller", "top-1", "SQNR, dB", "time, batch 1", "batch 8", "CPU s", "peak MB"
    )  # fmt: skip
    lines = [
        (
            f"{row.tool}: {row.setting}",
            row.kind,
            "-" if row.bytes is None else f"{row.bytes:,}",
            "-" if row.bytes is None else f"{row.float_bytes / row.bytes:.1f}",
            _cell(row),
            "-" if row.sqnr_db is None else f"{row.sqnr_db:.1f}",
            *(f"{row.times[batch]:.2f}" if row.times else "-" for batch in ("1", "8")),
            "-" if row.cpu_seconds is None else f"{row.cpu_seconds:.1f}",
            "-" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.0f}",
        )
        for row in sorted(rows, key=lambda row: KINDS.index(row.kind))
    ]
    return markdown(header, lines)


def ahead(rows: Iterable[Row]) -> list[Row]:
    """Files of other tools that are more than a standard error better than every file of this tool that is no
    larger.
    """
    run = [row for row in rows if row.top1 is not None and row.bytes is not None]

    def best(other: Row) -> float:
        mine = (row for row in run if row.tool == OURS and row.network == other.network)
        return max((row.top1 or 0.0 for row in mine if (row.bytes or 0) <= (other.bytes or 0)), default=0.0)

    others = [row for row in run if row.tool != OURS and row.kind != SIZE]
    return [row for row in others if (row.top1 or 0.0) > best(row) + standard_error(row.float_top1, row.n)]


def chart(rows: Sequence[Row]) -> dict[str, Any]:
    """Bytes against top-1 of the files for one network, as a Vega-Lite specification."""
    run = [row for row in rows if row.top1 is not None and row.bytes is not None]
    first, least = run[0], 100 * (run[0].float_top1 - BELOW)
    values = [
        {"tool": row.tool, "kind": row.kind, "bytes": row.bytes, "top1": max(least, 100 * (row.top1 or 0))}
        for row in run
    ]
    present = [tool for tool in (*HERE, *TOOLS) if any(row.tool == tool for row in run)]
    kinds = [kind for kind in KINDS if any(row.kind == kind for row in run)]
    top = 100 * max(first.float_top1, *(row.top1 or 0.0 for row in run)) + 1
    scale = {"domain": [least, top], "zero": False, "nice": False}
    points = {
        "mark": {"type": "point", "size": 70, "strokeWidth": 2, "opacity": 1},
        "encoding": {
            "x": {
                "field": "bytes",
                "type": "quantitative",
                "scale": {"type": "log", "nice": False, "padding": 12},
                "axis": {"format": "~s"},
            },
            "y": {"field": "top1", "type": "quantitative", "title": "top-1, %", "scale": scale},
            "color": {
                "field": "tool",
                "type": "nominal",
                "scale": {"domain": present, "range": [COLOURS[tool] for tool in present]},
            },
            "shape": {"field": "kind", "type": "nominal", "scale": {"domain": kinds}},
        },
    }
    line = {"type": "rule", "strokeDash": [4, 3]}
    float_line = {"mark": line, "encoding": {"y": {"datum": 100 * first.float_top1, "scale": scale}}}
    return {
        "title": f"{SHORT[first.network]}: float {_percent(first.float_top1)} in {first.float_bytes:,} bytes",
        "background": "white",
        "width": 520,
        "height": 300,
        "data": {"values": values},
        "layer": [float_line, points],
    }


COLOURS = {
    OURS: "#000000",
    PUBLISHED: "#8c8c8c",
    "onnxruntime": "#4c78a8",
    "nncf": "#f58518",
    "amd-quark": "#e45756",
    "nvidia-modelopt": "#54a24b",
    "aimet-onnx": "#b279a2",
    "quantization-rs": "#9d755d",
    "onnxsim": "#39b5c4",
    "onnxslim": "#eeca3b",
}


def write(rows: Sequence[Row], page: Path = PAGE, charts: Path = RESULTS) -> None:
    """Write the page, and the charts that it shows beside the results."""
    import vl_convert  # the extra "report"

    by_network = {name: [row for row in rows if row.network == name] for name in NETWORKS}
    by_network = {name: some for name, some in by_network.items() if some}
    for name, some in by_network.items():
        svg = vl_convert.vegalite_to_svg(json.dumps(chart(some)))
        (charts / f"rivals-{name}.svg").write_text(svg + "\n", encoding="utf-8")
    kinds = [kind for kind in KINDS if kind != SIZE and any(row.kind == kind for row in rows)]
    parts = {
        "accuracy": "\n\n".join(accuracy(rows, kind) for kind in kinds),
        "charts": "\n".join(
            f"![Bytes against top-1, {SHORT[name]}](../benchmarks/results/rivals-{name}.svg)"
            for name in by_network
        ),
        "ahead": _ahead(rows),
        "everything": "\n\n".join(
            f"### {SHORT[name]}\n\n{some[0].n:,} samples\n\n{everything(some)}"
            for name, some in by_network.items()
        ),
        "settings": _settings(rows),
        "changed": _listed(rows, lambda row: row.changed),
        "refused": _listed(rows, lambda row: row.refused and f"does not run: {row.refused}"),
        "failed": _listed(rows, lambda row: row.failed and f"no file: {row.failed}"),
    }
    text = Template(TEMPLATE.read_text(encoding="utf-8"))
    page.write_text(text.substitute(parts), encoding="utf-8")


def _ahead(rows: Iterable[Row]) -> str:
    lines = [
        (
            SHORT[row.network],
            f"{row.tool}: {row.setting}",
            f"{row.bytes:,}",
            _percent(row.top1),
            _smaller(rows, row),
        )
        for row in ahead(rows)
    ]
    header = ("network", "file", "bytes", "top-1", "best of this tool in no more bytes")
    return markdown(header, lines) if lines else "None."


def _smaller(rows: Iterable[Row], other: Row) -> str:
    """Best file of this tool in no more bytes than another one."""
    mine = [row for row in rows if row.tool == OURS and row.network == other.network and row.top1 is not None]
    found = [row for row in mine if (row.bytes or 0) <= (other.bytes or 0)]
    if not found:
        return "none so small"
    best = max(found, key=lambda row: row.top1 or 0)
    return f"{_percent(best.top1)} ({best.bytes:,}; {best.setting})"


def _settings(rows: Sequence[Row]) -> str:
    """What every setting is, and the versions that made it."""
    lines = []
    for tool, setting in dict.fromkeys((row.tool, row.setting) for row in rows):
        row = next(row for row in rows if (row.tool, row.setting) == (tool, setting))
        if tool in HERE:
            words = {OURS: FLAGS, PUBLISHED: PAPERS}[tool][setting][1]
            about = f"`{' '.join(words)}`" if words else "no flags"
        else:
            about = TOOLS[tool][setting].about
        said = ", ".join(f"{name} {number}" for name, number in row.versions.items())
        lines.append((f"{tool}: {setting}", row.kind, about, said))
    return markdown(("setting", "kind", "how", "versions"), lines)


def _listed(rows: Iterable[Row], say: Callable[[Row], str]) -> str:
    """What is to be said of some rows, the networks of the same saying together."""
    said: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if say(row):
            said.setdefault((f"{row.tool}: {row.setting}", say(row)), []).append(SHORT[row.network])
    return (
        "\n".join(f"- {who} ({', '.join(names)}): {what}" for (who, what), names in said.items()) or "None."
    )


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rivals", description="Other tools without data, beside this one."
    )
    add = parser.add_argument
    add("--networks", nargs="*", default=NETWORKS, metavar="NAME", help="default: all; none: only print")
    add(
        "--tools",
        nargs="+",
        default=[*HERE, *TOOLS],
        choices=[*HERE, *TOOLS],
        metavar="NAME",
        help="default: all that are installed",
    )
    add("--kinds", nargs="+", default=KINDS, choices=KINDS, metavar="KIND", help="default: all")
    add(
        "--json",
        type=Path,
        default=RESULTS / "rivals.json",
        metavar="FILE",
        help="keep rows here, and go on from them (default: %(default)s)",
    )
    add("--write", action="store_true", help="write docs/rivals.md and the charts")
    options = parser.parse_args(arguments)
    try:
        ledger = Ledger(Row, options.json)
        complete(ledger, options.networks, wanted(options.tools, options.kinds), Console(stderr=True))
    except DfmpcError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    rows = sorted(ledger, key=lambda row: wanted([*HERE, *TOOLS], KINDS).index((row.tool, row.setting)))
    for kind in dict.fromkeys(row.kind for row in rows):
        print(accuracy(rows, kind), end="\n\n")
    if options.write:
        write(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
