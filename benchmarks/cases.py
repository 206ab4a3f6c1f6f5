"""A variant of a network, quantized by some method at some bits: what is predicted, and what is true on real
inputs. `robustness` and `predictions` measure such cases, and may keep them in one file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from numpy.typing import NDArray
from rich.console import Console

from benchmarks.evaluate import Reference, reference_of
from benchmarks.ledger import Ledger
from benchmarks.methods import BARE, NO_COMPENSATION
from benchmarks.networks import LABELLED, UNLABELLED, available
from benchmarks.variants import Variant, in_words, variants
from onnx_dfmpc import Recipe, quantize
from onnx_dfmpc.errors import DfmpcError

NETWORKS = (*LABELLED, *UNLABELLED)

DEFAULT, NEAREST, SQUANT = "dfmpc", "nearest", "squant-bias"
METHODS: Mapping[str, Mapping[str, Any]] = {
    DEFAULT: {},
    NEAREST: {"rounding": "nearest", **BARE},
    SQUANT: {"rounding": "squant", **NO_COMPENSATION},
}
"""The default, plain rounding, and SQuant with bias correction, which nothing can make much worse."""

BITS: Mapping[str, Mapping[str, Any]] = {str(bits): {"bits": bits} for bits in (2, 3, 4)}


@dataclass(frozen=True)
class Row:
    """One case. SQNR of the worst output in dB; ``predicted`` with its interval where the method predicts;
    ``failed`` says why there is nothing.
    """

    network: str
    folded: bool
    range: str
    method: str
    setting: str
    samples: int
    sqnr_db: float | None
    predicted_db: float | None
    low_db: float | None
    high_db: float | None
    cpu_seconds: float
    failed: str = ""

    @property
    def variant(self) -> tuple[str, bool, str]:
        """What was quantized."""
        return self.network, self.folded, self.range

    @property
    def key(self) -> Hashable:
        """What was quantized, and how."""
        return (*self.variant, self.method, self.setting)

    @property
    def name(self) -> str:
        """The case in words."""
        setting = f"{self.setting} bits" if self.setting[-1].isdecimal() else self.setting
        return f"{in_words(*self.variant)} {setting}"


@dataclass(frozen=True, eq=False)
class Subject:
    """A variant and its real inputs; the float model runs on them when the first case is measured."""

    variant: Variant
    inputs: NDArray[Any]

    @cached_property
    def reference(self) -> Reference:
        """The float model's outputs."""
        return reference_of(self.variant.proto, self.variant.inputs(self.inputs))

    def measure(self, method: str, setting: str, recipe: Recipe, *, predicted: bool) -> Row:
        """Quantize, and compare on real inputs."""
        variant, start = self.variant, time.process_time()
        place = variant.network, variant.folded, variant.range, method, setting, self.reference.samples.count
        try:
            result = quantize(variant.proto, None, recipe, validated=predicted)
        except DfmpcError as error:
            return Row(*place, None, None, None, None, 0.0, str(error))
        seconds = time.process_time() - start
        score = self.reference.score(result.model)
        plan = result.plan
        expected = (
            (plan.predicted_sqnr_db, plan.predicted_low_db, plan.predicted_high_db)
            if predicted
            else (None, None, None)
        )
        return Row(*place, score.sqnr_db, *expected, seconds, "; ".join(score.failures))


def subjects(
    names: Sequence[str], console: Console, ranges: Callable[[str], Collection[str]] | None = None
) -> Iterator[Subject]:
    """Every variant of some networks; ``ranges`` names those that the inputs of one are moved to, by default
    all.
    """
    for network in available(names, console):
        inputs = network.some_inputs()
        for variant in variants(network, ranges=None if ranges is None else ranges(network.name)):
            yield Subject(variant, inputs)


def run(
    ledger: Ledger[Row],
    found: Iterator[Subject],
    methods: Sequence[str],
    settings: Mapping[str, Mapping[str, Any]],
    progress: Console,
) -> None:
    """Measure what the ledger does not have yet."""
    for subject in found:
        variant = subject.variant
        for setting, bits in settings.items():
            for method in methods:
                if (variant.network, variant.folded, variant.range, method, setting) in ledger:
                    continue
                predicted = method == DEFAULT
                # A prediction comes with a validation, which is cheap on one sample.
                knobs = {**bits, **METHODS[method], **({"samples": 1} if predicted else {})}
                row = subject.measure(method, setting, Recipe(**knobs), predicted=predicted)
                ledger.add(row)
                shown = row.failed if row.sqnr_db is None else f"{row.sqnr_db:.1f} dB"
                progress.print(f"{row.name}, {method}: {shown}, {row.cpu_seconds:.1f} s", style="dim")


def family(name: str) -> str:
    """Network without its form."""
    return name.removesuffix("_bn").removesuffix("_folded")
