"""What the constants of rounding, repair and ranges are worth: output SQNR on training images, one constant changed.

    python -m benchmarks.constants                              the study on docs/results.md; part of `make results`
    python -m benchmarks.constants SHRINKAGE 0.05 0.1 0.2       other values, only printed
    python -m benchmarks.constants RATIOS "{2: (0.75,)}" --networks cifar10_shufflenetv2_x0_5_bn --bits 2

Training images where a network has some, so that its test images stay unseen; first and last layer in 8 bits, two
seeds. Rows of the study are kept (`ledger.py`).
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks import package
from benchmarks.evaluate import Reference, reference
from benchmarks.ledger import Ledger
from benchmarks.networks import available, network
from benchmarks.provenance import provenance
from benchmarks.readme import RESULTS
from benchmarks.tables import markdown
from onnx_dfmpc import Recipe, compensate
from onnx_dfmpc.activations import ranges
from onnx_dfmpc.errors import DfmpcError
from onnx_dfmpc.pipeline import steps
from onnx_dfmpc.rounding import gptq, regularize

CONSTANTS: dict[str, ModuleType] = {
    **dict.fromkeys(("DAMPING", "RATIOS", "VECTOR_RATIOS", "ZERO_POINT_STEPS", "SWEEPS"), gptq),
    **dict.fromkeys(
        ("SHRINKAGE", "SAMPLES_PER_INPUT", "LEAST_PATTERN", "MEAN_RELATIVE_VARIANCE"), regularize
    ),
    "MAX_GAIN": compensate,
    "CLIPPING": ranges,
    "TAU_ANCHORED": steps,  # where it is read
}
NETWORKS = ("cifar10_resnet20_bn",)
SEEDS = (0, 1)

NAMES: Mapping[str, str] = {
    "cifar10_resnet8_keras_bn": "ResNet-8",
    "har_conv1d_bn": "HAR",
    "cifar10_resnet20_bn": "ResNet-20",
    "imagenet_mobilenet_v1_025_128_folded": "MobileNetV1",
}
"""Networks of the study, the quickest first."""

TWO, W4A8 = "2", "4 + A8"
SETTINGS: Mapping[str, Mapping[str, Any]] = {TWO: {"bits": 2}, W4A8: {"bits": 4, "activations": 8}}


@dataclass(frozen=True)
class Question:
    """A constant, what it is in words, values beside its own with a name each, and where it is felt."""

    constant: str
    words: str
    values: Mapping[str, Any]
    setting: str = TWO


FEW, MANY = gptq.VECTOR_RATIOS[False], gptq.VECTOR_RATIOS[True]
QUESTIONS = (
    Question("SHRINKAGE", "shrinkage of correlations, 0.1", {"0.05": 0.05, "0.2": 0.2}),
    Question("MEAN_RELATIVE_VARIANCE", "uncertainty of means, 0.05", {"0": 0.0, "0.2": 0.2}),
    Question("LEAST_PATTERN", "share of the Kronecker pattern, 0.5", {"0": 0.0, "0.9": 0.9}),
    Question("SWEEPS", "sweeps of coordinate descent, 2", {"1": 1, "4": 4}),
    Question(
        "VECTOR_RATIOS",
        "scale candidates, 2 x 3",
        {
            "2 x 1": {False: tuple(f[1:2] for f in FEW), True: MANY},
            "all 10 % larger": {False: tuple(tuple(1.1 * v for v in f) for f in FEW), True: MANY},
        },
    ),
    Question("CLIPPING", "cost of clipping, 64", {"16": 16.0, "256": 256.0}, W4A8),
    Question("TAU_ANCHORED", "margin behind batch norm, 0.2", {"0.1": 0.1, "0.4": 0.4}, W4A8),
)
AS_IT_IS = "as it is"
KEPT = RESULTS / "constants.json"


@dataclass(frozen=True)
class Row:
    """Output SQNR with one constant changed; ``constant`` and ``value`` are `AS_IT_IS` where none is."""

    constant: str
    value: str
    network: str
    setting: str
    seed: int
    n: int
    sqnr_db: float
    versions: str

    @property
    def key(self) -> Hashable:
        """What was changed, and where."""
        return self.constant, self.value, self.network, self.setting, self.seed


@contextmanager
def changed(constant: str, value: Any) -> Iterator[None]:
    """Within, a constant has another value."""
    module = CONSTANTS[constant]
    usual = getattr(module, constant)
    try:
        setattr(module, constant, value)
        yield
    finally:
        setattr(module, constant, usual)


def sqnr_db(images: Reference, name: str, recipe: Recipe) -> float:
    """Output SQNR of a network."""
    found = images.score(package.quantize(network(name).path, recipe).model).sqnr_db
    return float("-inf") if found is None else found


def complete(ledger: Ledger[Row], names: Iterable[str], console: Console) -> None:
    """Measure what is missing of the study."""
    versions = provenance()
    cases = [(AS_IT_IS, AS_IT_IS, setting, "SWEEPS", gptq.SWEEPS) for setting in SETTINGS]
    cases += [
        (q.constant, label, q.setting, q.constant, v) for q in QUESTIONS for label, v in q.values.items()
    ]
    for found in available(names, console):
        todo = [
            (*case, seed)
            for case in cases
            for seed in SEEDS
            if (case[0], case[1], found.name, case[2], seed) not in ledger
        ]
        images = reference(found, found.calibration or found.data[0]) if todo else None
        for constant, label, setting, attribute, value, seed in todo:
            assert images is not None
            with changed(attribute, value):
                db = sqnr_db(images, found.name, Recipe(**SETTINGS[setting], seed=seed))
            ledger.add(Row(constant, label, found.name, setting, seed, images.samples.count, db, versions))
            console.print(f"{found.name}, {setting}, {constant} {label}: {db:.2f} dB", style="dim")


def table(rows: Iterable[Row]) -> str:
    """A line for each value: by how many dB it changes the SQNR of each network, mean of the seeds with half
    their difference; then the mean over networks.
    """
    found = {row.key: row for row in rows}
    names = [name for name in NAMES if any(row.network == name for row in found.values())]

    def sqnrs(constant: str, label: str, name: str, setting: str) -> list[float]:
        keys = [(constant, label, name, setting, seed) for seed in SEEDS]
        return [found[key].sqnr_db for key in keys] if all(key in found for key in keys) else []

    lines = []
    for setting in SETTINGS:
        own = {name: sqnrs(AS_IT_IS, AS_IT_IS, name, setting) for name in names}
        cells = [f"{np.mean(v):.2f} ± {abs(v[0] - v[1]) / 2:.2f} dB" if v else "" for v in own.values()]
        if any(own.values()):
            lines.append((f"**as it is, {setting} bits**", "", *cells, ""))
        for question in (q for q in QUESTIONS if q.setting == setting):
            for label in question.values:
                other = {n: sqnrs(question.constant, label, n, setting) for n in names}
                gains = {n: np.subtract(v, own[n]) for n, v in other.items() if v and own[n]}
                if gains:
                    cells = [
                        f"{gains[n].mean():+.2f} ± {abs(gains[n][0] - gains[n][1]) / 2:.2f}"
                        if n in gains
                        else ""
                        for n in names
                    ]
                    mean = np.mean([gain.mean() for gain in gains.values()])
                    lines.append((question.words, label, *cells, f"{mean:+.2f}"))
    header = ("constant, and its value", "changed to", *(NAMES[name] for name in names), "mean")
    return markdown(header, lines) if lines else "*Not measured yet.*"


def main(arguments: Sequence[str] | None = None) -> int:
    """Complete the study, or print one line for each value, one number for each network and number of bits."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.constants")
    parser.add_argument("constant", nargs="?", choices=CONSTANTS, help="none: the study")
    parser.add_argument("values", nargs="*", help="as Python writes them")
    parser.add_argument("--networks", nargs="+", help="default: those of the study, or ResNet-20")
    parser.add_argument("--bits", nargs="+", type=int, default=(2, 3))
    parser.add_argument("--json", type=Path, default=KEPT, metavar="FILE", help="rows of the study")
    options = parser.parse_args(arguments)
    if options.constant is None:
        try:
            complete(Ledger(Row, options.json), options.networks or list(NAMES), Console(stderr=True))
        except DfmpcError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code
        return 0
    names = options.networks or NETWORKS
    sources = [network(name) for name in names]
    data = {one.name: reference(one, one.calibration or one.data[0]) for one in sources}
    runs = [(name, bits) for name in names for bits in options.bits]
    print(options.constant, *(f"{name}/{bits}" for name, bits in runs), sep="\t")
    for value in options.values:
        with changed(options.constant, ast.literal_eval(value)):
            numbers = [
                np.mean(
                    [
                        sqnr_db(data[name], name, Recipe(bits=bits, first_last_bits=8, seed=seed))
                        for seed in SEEDS
                    ]
                )
                for name, bits in runs
            ]
        print(value, *(f"{number:.2f}" for number in numbers), sep="\t", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
