"""The paper's experiments and its open questions: ``make results``, or ``python -m benchmarks.studies
[STUDY ...] [--networks NAME ...] [--json FILE] [--write]``.

A study is a list of cases: a network, bits and a method. Each case is measured once, whatever studies show it,
and kept as soon as it is (`ledger.py`), with the versions and the commit that it was measured with; the same
command goes on from there. ``--write`` puts tables and charts where docs/results.md shows them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks import constants, lambdas, networks, sources
from benchmarks.activations import TEST_DATA
from benchmarks.baselines import Unavailable
from benchmarks.evaluate import Reference, reference, standard_error
from benchmarks.ledger import Ledger
from benchmarks.methods import METHODS, Outcome, Setting, Task
from benchmarks.networks import ACTIVATIONS, WORDS, Network, available
from benchmarks.provenance import provenance
from benchmarks.readme import RESULTS, ROOT
from benchmarks.tables import markdown
from onnx_dfmpc.errors import DfmpcError
from onnx_dfmpc.model.files import load

PAGE, TEMPLATE = ROOT / "docs" / "results.md", Path(__file__).with_name("results_page.txt")

SETTINGS: Mapping[str, Setting] = {
    **{f"{low}/6": Setting(f"{low}/6", {"low_bits": low, "high_bits": 6}) for low in (2, 3, 4)},
    **{str(bits): Setting(str(bits), {"bits": bits}) for bits in (2, 3, 4, 6)},
    "4 + A8": Setting("4 + A8", {"bits": 4, "activations": 8}),
    "mean 4": Setting("mean 4", {}),
    "mean 4 + A8": Setting("mean 4 + A8", {"activations": 8}),
}
"""Bits by name; pairs and single numbers keep first and last layer in 8."""

AS_TRAINED = "as trained"
"""Setting and method of a network that training has rounded already."""


@dataclass(frozen=True)
class Case:
    """What is measured; ``data`` are test images, "" those of `test_data`."""

    network: str
    setting: str
    method: str
    data: str = ""


@dataclass(frozen=True)
class Row:
    """One case, measured. Fractions; ``low`` and ``high`` are the 95 % interval of the difference in top-1 to
    the float model, paired, since both see the same images.
    """

    network: str
    setting: str
    method: str
    data: str
    n: int
    float_bytes: int
    float_top1: float
    bytes: int | None
    top1: float | None
    low: float | None
    high: float | None
    agreement: float | None
    sqnr_db: float | None
    cpu_seconds: float | None
    training_seconds: float | None  # CPU time of the training, where it was one of models/
    unavailable: str
    versions: str

    @property
    def key(self) -> Hashable:
        """What was measured."""
        return self.network, self.setting, self.method, self.data


def _cases(
    names: Sequence[str], settings: Sequence[str], methods: Sequence[str], data: str = ""
) -> list[Case]:
    return [Case(n, s, m, data) for n in names for s in settings for m in methods]


PAPERS = ("cifar10_resnet20_bn", "cifar10_resnet56_bn", "vgg16", "resnet18")
FORMS = ("paper-neither", "paper", "dfmpc-neither", "dfmpc", "paper-consumer", "dfmpc-nocomp")
"""How a pair is rounded and repaired; those without anything beside those with it.
"""
SWITCHED = ("paper-neither", "paper", "dfmpc-neither", "dfmpc")
CLASSIFIERS = (
    "cifar10_resnet20_bn",
    "cifar10_resnet56_bn",
    "cifar10_resnet8_keras_bn",
    "cifar10_shufflenetv2_x0_5_bn",
    "vgg16",
    "resnet18",
    "imagenet_mobilenet_v1_025_128_folded",
    "imagenet_squeezenet1_1",
)
BEYOND = ("har_conv1d_bn", "wakeword_bn", WORDS)
BEYOND_METHODS = ("nearest", "squant-bias", "paper", "dfmpc-nocomp", "dfmpc")
SOURCES = ("statistics-closed_form", "statistics-probe")
FINETUNED, BASE = "resnet20_float", "cifar10_resnet20_bn"
CLEAN = "cifar10_test"
BOTH = ("cifar10_jpeg_test", CLEAN)

STUDIES: Mapping[str, list[Case]] = {
    "compensation": [
        *_cases(PAPERS, ("2/6",), FORMS),
        *_cases(PAPERS[:2], ("2/6",), SWITCHED, CLEAN),
        *_cases(PAPERS, ("3/6", "4/6"), SWITCHED),
    ],
    "dfq": [
        *_cases(CLASSIFIERS, ("3/6",), ("paper", "dfmpc")),
        *_cases(CLASSIFIERS, ("6", "4"), ("dfq", "dfq-channel", "dfmpc")),
    ],
    "beyond": [
        *_cases(BEYOND, ("2/6", "2", "3", "4"), BEYOND_METHODS),
        *_cases(BEYOND, ("4 + A8",), ("dfmpc",)),
        *_cases((WORDS,), ("2/6", "2", "3"), SOURCES),
    ],
    "functions": _cases(ACTIVATIONS, ("2/6",), FORMS, CLEAN),
    "training": [
        Case(network, setting, method, data)
        for data in BOTH
        for network in (BASE, FINETUNED)
        for setting in ("2/6", "4 + A8")
        for method in ("dfmpc", "statistics-calibration")
    ]
    + [
        Case(network, AS_TRAINED, AS_TRAINED, data)
        for data in BOTH
        for network in ("resnet20_qat_2_6", "resnet20_qat_w4a8")
    ],
}
"""Cases of every study, in the order in which they are measured."""


def test_data(network: Network) -> str:
    """The test images of a network: 5,000 for those of CIFAR-10 that have them."""
    return TEST_DATA.get(network.name, network.data[0])


def measure(
    network: Network, case: Case, kept: Reference, float_top1: float, calibration: Path | None, versions: str
) -> Row:
    """Quantize as a case says, and compare."""
    source = load(network.path)
    start = time.process_time()
    failed = ""
    try:
        if case.method == AS_TRAINED:
            outcome = Outcome(source.proto)
        else:
            outcome = METHODS[case.method].run(Task(network.path, SETTINGS[case.setting], calibration))
    except (Unavailable, DfmpcError) as reason:
        failed = str(reason)
    seconds = time.process_time() - start
    score = None if failed else kept.score(outcome.model)
    low, high = (score.top1_interval if score else None) or (None, None)
    return Row(
        case.network,
        case.setting,
        case.method,
        case.data,
        kept.samples.count,
        source.size,
        float_top1,
        None if failed or case.method == AS_TRAINED else outcome.model.ByteSize(),
        score.top1 if score else None,
        low,
        high,
        score.agreement if score else None,
        score.sqnr_db if score else None,
        seconds,
        _training_seconds(network),
        failed,
        versions,
    )


def complete(ledger: Ledger[Row], cases: Iterable[Case], console: Console) -> None:
    """Measure what is missing, network by network."""
    todo = [case for case in dict.fromkeys(cases) if _key(case) not in ledger]
    done, versions = 0, provenance()  # as it starts: what is edited meanwhile is not what runs
    for network in available(dict.fromkeys(case.network for case in todo), console):
        mine = [case for case in todo if case.network == network.name]
        for data in dict.fromkeys(case.data for case in mine):
            # what training made of a network is compared with the network that it started from
            first = networks.network(BASE) if network.name.startswith("resnet20_qat") else network
            kept = reference(first, data or test_data(network))
            float_top1 = _top1(kept)
            with tempfile.TemporaryDirectory() as directory:
                calibration = _calibration(network, Path(directory))
                for case in (case for case in mine if case.data == data):
                    row = measure(network, case, kept, float_top1, calibration, versions)
                    ledger.add(row)
                    done += 1
                    what = f"{done} of {len(todo)}: {row.network}, {row.setting}, {row.method}"
                    console.print(f"{what}: {_percent(row.top1)} of {_percent(row.float_top1)}", style="dim")


def _top1(kept: Reference) -> float:
    """Of the float model, whose outputs are kept; all networks here have one output, the scores."""
    scores = np.concatenate([outputs[0] for outputs in kept.outputs])
    return float((scores.reshape(len(scores), -1).argmax(1) == kept.samples.labels).mean())


def _key(case: Case) -> tuple[str, ...]:
    return case.network, case.setting, case.method, case.data


def _training_seconds(network: Network) -> float | None:
    facts = network.path.with_suffix(".json")
    if network.name not in networks.OWN or not facts.is_file():
        return None
    return float(json.loads(facts.read_text(encoding="utf-8"))["cpu_seconds"])


def _calibration(network: Network, directory: Path) -> Path | None:
    if network.calibration is None:
        return None
    path = directory / "calibration.npz"
    np.savez(path, input=network.inputs(network.calibration)[0])
    return path


# ---------------------------------------------------------------------------------------------------------------
# what docs/results.md shows

SHORT = {
    "cifar10_resnet20_bn": "ResNet-20",
    "cifar10_resnet56_bn": "ResNet-56",
    "cifar10_resnet8_keras_bn": "ResNet-8",
    "cifar10_shufflenetv2_x0_5_bn": "ShuffleNetV2 0.5",
    "vgg16": "VGG-16, quarter width",
    "resnet18": "ResNet-18, quarter width",
    "imagenet_mobilenet_v1_025_128_folded": "MobileNetV1 0.25, folded",
    "imagenet_squeezenet1_1": "SqueezeNet 1.1",
    "har_conv1d_bn": "HAR, Conv1d",
    "wakeword_bn": "wake word",
    WORDS: "words",
    "activation_relu": "ReLU",
    "activation_relu6": "ReLU6",
    "activation_leakyrelu": "LeakyReLU 0.1",
    "activation_prelu": "PReLU",
    "activation_silu": "SiLU",
    "activation_hardswish": "HardSwish",
}
"""Networks, or their activation functions, as people call them."""

TITLES = {
    "paper-neither": "paper's rounding alone",
    "paper": "paper",
    "paper-consumer": "paper, absorbed by the consumer",
    "dfmpc-neither": "our rounding alone",
    "dfmpc-nocomp": "ours without gain",
    "dfmpc": "default",
    "nearest": "rounded",
    "squant-bias": "SQuant, bias corrected",
    "statistics-closed_form": "closed form",
    "statistics-probe": "letters at random (default)",
    "dfq": "DFQ",
    "dfq-channel": "DFQ, per channel",
}


Rows = Mapping[Hashable, Row]


def grid(
    rows: Rows,
    names: Sequence[str],
    settings: Sequence[str],
    methods: Sequence[str],
    *,
    data: str = "",
    outputs: bool = False,
) -> str:
    """A line for each network and setting, a column for each method: in each cell top-1 with the 95 % interval of
    the difference to float or, for ``outputs``, the share of images with the class of the float model, and SQNR.
    """
    cell = _outputs if outputs else _cell
    lines = []
    for name in names:
        for setting in settings:
            found = [rows.get((name, setting, method, data)) for method in methods]
            some = next((row for row in found if row is not None), None)
            if some is not None:
                lines.append((SHORT[name], setting, *_float(some), *map(cell, found)))
    return _table(("network", "bits", "n", "float ± SE", *(TITLES[m] for m in methods)), lines)


def sizes(rows: Rows, names: Sequence[str], columns: Sequence[tuple[str, str]]) -> str:
    """A line for each network; for each setting and method top-1 with the interval of its difference, and bytes."""
    lines = []
    for name in names:
        found = [rows.get((name, setting, method, "")) for setting, method in columns]
        some = next((row for row in found if row is not None), None)
        if some is not None:
            cells = [f"{_cell(row)}; {row.bytes:,}" if row and row.bytes else "-" for row in found]
            lines.append((SHORT[name], *_float(some), f"{some.float_bytes:,}", *cells))
    titles = [f"{TITLES.get(method, method)}, {setting}" for setting, method in columns]
    return _table(("network", "n", "float ± SE", "bytes", *titles), lines)


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return markdown(header, lines) if lines else "*Not measured yet.*"


def _float(row: Row) -> tuple[str, str]:
    error = 100 * standard_error(row.float_top1, row.n)
    return f"{row.n:,}", f"{100 * row.float_top1:.1f} ± {error:.1f}"


def _cell(row: Row | None) -> str:
    if row is None or row.top1 is None:
        return "" if row is None else "no file"
    if row.low is None or row.high is None:
        return _percent(row.top1)
    return f"**{_percent(row.top1)}** ({100 * row.low:+.1f} to {100 * row.high:+.1f})"


def _outputs(row: Row | None) -> str:
    if row is None or row.agreement is None:
        return ""
    return f"{_percent(row.agreement)}, {row.sqnr_db:.1f} dB" if row.sqnr_db is not None else "the same"


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"


COMPARED = (
    (BASE, "2/6", "dfmpc", "this tool"),
    (BASE, "2/6", "statistics-calibration", "this tool, 512 images without labels"),
    (FINETUNED, "2/6", "dfmpc", "float training, then this tool"),
    ("resnet20_qat_2_6", AS_TRAINED, AS_TRAINED, "quantization-aware training"),
    (BASE, "4 + A8", "dfmpc", "this tool"),
    (BASE, "4 + A8", "statistics-calibration", "this tool, 512 images without labels"),
    (FINETUNED, "4 + A8", "dfmpc", "float training, then this tool"),
    ("resnet20_qat_w4a8", AS_TRAINED, AS_TRAINED, "quantization-aware training"),
)


def training(rows: Rows) -> str:
    """Ways to 2/6 and W4A8, with and without data and time."""
    lines = []
    for name, setting, method, title in COMPARED:
        found = [rows.get((name, setting, method, data)) for data in BOTH]
        if all(found):
            bits = {"resnet20_qat_2_6": "2/6", "resnet20_qat_w4a8": "4 + A8"}.get(name, setting)
            seconds = sum((row.training_seconds or 0) + (row.cpu_seconds or 0) for row in found[:1] if row)
            lines.append((title, bits, f"{seconds:,.0f}", *(_cell(row) for row in found)))
    for name, title in ((FINETUNED, "float, trained further"), (BASE, "float, as shared")):
        found = [rows.get((name, "2/6", "dfmpc", data)) for data in BOTH]
        if all(found):
            seconds = sum(row.training_seconds or 0 for row in found[:1] if row)
            tops = (_float(row)[1] for row in found if row)
            lines.insert(0, (title, "32", f"{seconds:,.0f}", *tops))
    counts = {row.data: row.n for row in rows.values()}
    data = [f"{name}, n = {counts.get(name, 0):,}" for name in BOTH]
    return _table(("", "bits", "CPU s", *data), lines)


def missing(rows: Rows) -> str:
    """Networks of the studies that have not been measured, by what would make them."""
    names = dict.fromkeys(case.network for cases in STUDIES.values() for case in cases)
    measured = {row.network for row in rows.values()}
    absent = [name for name in names if name not in measured]
    targets = dict.fromkeys(networks.OWN[name] for name in absent if name in networks.OWN)
    lines = [f"* `make {t}`: {', '.join(n for n in absent if networks.OWN.get(n) == t)}" for t in targets]
    lines += [f"* not on this machine: {name}" for name in absent if name not in networks.OWN]
    return "\n".join(lines)


def chart(rows: Rows, names: Sequence[str]) -> dict[str, Any]:
    """Bits of the low layers against top-1, with and without compensation, as a Vega-Lite specification; the
    dashed line is float.
    """
    found = [rows.get((n, f"{low}/6", m, "")) for n in names for low in (2, 3, 4) for m in SWITCHED]
    values = [
        {
            "network": SHORT[row.network],
            "low bits": int(row.setting.split("/")[0]),
            "top1": 100 * row.top1,
            "method": TITLES[row.method],
            "float": 100 * row.float_top1,
        }
        for row in found
        if row is not None and row.top1 is not None
    ]
    encoding = {
        "x": {"field": "low bits", "type": "ordinal", "axis": {"labelAngle": 0}},
        "y": {"field": "top1", "type": "quantitative", "title": "top-1, %"},
        "color": {"field": "method", "type": "nominal", "scale": {"domain": [TITLES[m] for m in SWITCHED]}},
    }
    lines = {"mark": {"type": "line", "point": True}, "encoding": encoding}
    average = {"aggregate": "mean", "field": "float", "type": "quantitative"}  # the same in all of a facet
    rule = {"mark": {"type": "rule", "strokeDash": [4, 3]}, "encoding": {"y": average}}
    return {
        "background": "white",
        "data": {"values": values},
        "facet": {"field": "network", "type": "nominal", "columns": 2, "title": None},
        "spec": {"width": 260, "height": 200, "layer": [lines, rule]},
        "columns": 2,
    }


DFQ_COLUMNS = (
    ("3/6", "dfmpc"),
    ("3/6", "paper"),
    ("6", "dfq"),
    ("6", "dfq-channel"),
    ("6", "dfmpc"),
    ("4", "dfq"),
    ("4", "dfq-channel"),
    ("4", "dfmpc"),
)


def write(ledger: Ledger[Row], page: Path = PAGE, charts: Path = RESULTS) -> None:
    """Write the page and its chart."""
    import vl_convert  # the extra "report"

    rows: Rows = {row.key: row for row in ledger}
    every: list[Row | sources.Row | lambdas.Row | constants.Row] = [
        *ledger,
        *Ledger(sources.Row, sources.KEPT),
        *Ledger(lambdas.Row, lambdas.KEPT),
        *Ledger(constants.Row, constants.KEPT),
    ]
    svg = vl_convert.vegalite_to_svg(json.dumps(chart(rows, PAPERS)))
    (charts / "compensation.svg").write_text(svg + "\n", encoding="utf-8")
    made: dict[str, Callable[[], str]] = {
        "compensation": lambda: grid(rows, PAPERS, ("2/6", "3/6", "4/6"), SWITCHED),
        "compensation_outputs": lambda: grid(rows, PAPERS, ("2/6", "3/6", "4/6"), SWITCHED, outputs=True),
        "clean": lambda: grid(rows, PAPERS, ("2/6",), SWITCHED, data=CLEAN),
        "forms": lambda: grid(rows, PAPERS, ("2/6",), ("paper", "paper-consumer", "dfmpc-nocomp", "dfmpc")),
        "dfq": lambda: sizes(rows, CLASSIFIERS, DFQ_COLUMNS),
        "beyond": lambda: grid(rows, BEYOND, ("2/6", "2", "3", "4", "4 + A8"), BEYOND_METHODS),
        "beyond_outputs": lambda: grid(
            rows, BEYOND, ("2/6", "2", "3", "4", "4 + A8"), BEYOND_METHODS, outputs=True
        ),
        "sources": lambda: grid(rows, (WORDS,), ("2/6", "2", "3"), SOURCES),
        "functions": lambda: grid(rows, ACTIVATIONS, ("2/6",), FORMS, data=CLEAN),
        "functions_outputs": lambda: grid(rows, ACTIVATIONS, ("2/6",), FORMS, data=CLEAN, outputs=True),
        "training": lambda: training(rows),
        "distilled": lambda: sources.table(Ledger(sources.Row, sources.KEPT)),
        "distilled_costs": lambda: sources.costs(Ledger(sources.Row, sources.KEPT)),
        "lambdas": lambda: lambdas.table(Ledger(lambdas.Row, lambdas.KEPT)),
        "constants": lambda: constants.table(Ledger(constants.Row, constants.KEPT)),
        "missing": lambda: missing(rows),
        "versions": lambda: _versions(row.versions for row in every),
    }
    text = Template(TEMPLATE.read_text(encoding="utf-8"))
    page.write_text(text.substitute({name: make() for name, make in made.items()}), encoding="utf-8")


def _versions(lines: Iterable[str]) -> str:
    """A line for each set of versions, with the commits of its rows."""
    commits: dict[str, dict[str, None]] = {}
    for line in lines:
        commit, packages = line.removeprefix("commit ").split(", ", 1)
        commits.setdefault(packages, {})[commit] = None
    return "\n".join(f"* {packages}: commits {', '.join(found)}" for packages, found in commits.items())


def wanted(names: Sequence[str], only: Sequence[str] | None) -> Iterator[Case]:
    """Cases of studies, of some networks only."""
    for name in names:
        yield from (case for case in STUDIES[name] if only is None or case.network in only)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies", description=__doc__)
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=f"of {', '.join(STUDIES)}; default: all")
    parser.add_argument("--networks", nargs="*", help="by default those of the studies")
    parser.add_argument("--json", type=Path, default=RESULTS / "studies.json", metavar="FILE")
    parser.add_argument("--write", action="store_true", help="write docs/results.md")
    options = parser.parse_args(arguments)
    unknown = set(options.studies) - set(STUDIES)
    if unknown:
        parser.error(f"no such study: {', '.join(sorted(unknown))}")
    console = Console(stderr=True)
    try:
        ledger = Ledger(Row, options.json)
        complete(ledger, wanted(options.studies or list(STUDIES), options.networks), console)
    except DfmpcError as error:
        console.print(f"error: {error}", style="red", markup=False)
        return error.exit_code
    if options.write:
        write(ledger)
    return 0


if __name__ == "__main__":
    sys.exit(main())
