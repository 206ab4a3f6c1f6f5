"""How much does the belief trust what is right, and would another evidence do better?
``python -m benchmarks.belief [--networks NAME ...] [--json FILE]``.

Every network and variant knows its true range of inputs (`variants`), which the tool never sees. The score of
a belief is the log of the weight that it gives this range, natural, over both kinds of inputs; of inputs that
are no pictures, the weight of the hypotheses that are near: deviations within a factor of 3.5 of the real one,
which are two or three, each with the nearest mean. 0 is certainty; five ranges of pictures that are as good as each
other have log 1/5 = -1.6. Weights below 10^-9 count as that. Scores are means over the variants of a network,
then over networks.

These choices of `onnx_dfmpc.statistics.belief` are varied, by replacing its constants and parts:

    freedom       degrees of freedom of Student's density of the trained ratios
    layers        all of them, or the first alone
    samples       of each hypothesis
    temperature   the log likelihood is divided by it
    white         prior of white noise

A choice that was made on the networks that judge it looks better than it is. So networks are split at random,
many times: one half chooses among all combinations, the other half says what this choice is worth there,
beside the one in use and beside the best that could have been chosen. Forms of one network stay together.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.cases import NETWORKS, Subject, family, subjects
from benchmarks.ledger import Ledger
from benchmarks.tables import markdown
from benchmarks.variants import NO_PICTURES, USUAL, in_words, own_range
from onnx_dfmpc.errors import DfmpcError
from onnx_dfmpc.inputs.specs import model_inputs
from onnx_dfmpc.inputs.synthetic import Hypothesis
from onnx_dfmpc.matching.match import match
from onnx_dfmpc.spec import Array
from onnx_dfmpc.statistics import belief

FREEDOMS, LAYERS, SAMPLES = (1, 3, 10), ("all", "first"), (1, 4, 8)
TEMPERATURES, WHITES = (0.25, 1.0, 4.0), (0.03, 0.1, 0.3)
LEAST, NEAR = 1e-9, 3.5
SPLITS = 200
FACTORS = ("freedom", "layers", "samples", "temperature", "white")

Choice = tuple[int, str, int, float, float]
"""Freedom, layers, samples, temperature, prior of white noise."""

USED: Choice = (3, "all", belief.EVIDENCE_SAMPLES, 1.0, belief.WHITE_PRIOR)


@dataclass(frozen=True)
class Row:
    """Log weight of the truth for one variant, by temperature and prior as in ``4/0.1``."""

    network: str
    folded: bool
    range: str
    freedom: int
    layers: str
    samples: int
    log_weights: dict[str, float]
    likeliest: str
    cpu_seconds: float

    @property
    def key(self) -> Hashable:
        """Variant and evidence."""
        return self.network, self.folded, self.range, self.freedom, self.layers, self.samples


@contextmanager
def patched(**values: Any) -> Iterator[None]:
    """Other constants and functions in the module, for a while."""
    usual = {name: getattr(belief, name) for name in values}
    try:
        for name, value in values.items():
            setattr(belief, name, value)
        yield
    finally:
        for name, value in usual.items():
            setattr(belief, name, value)


def measure(subject: Subject, freedom: int, layers: str, samples: int) -> Row:
    """The belief about one variant, with one evidence, at every temperature and prior."""
    variant, start = subject.variant, time.process_time()
    found = match(variant.proto).layers
    if layers == "first":
        found = tuple(layer for layer in found if layer.edge == "first")
    specs = model_inputs(variant.proto)
    seen: list[Any] = []
    evidence = belief._evidence

    def student(t: Array) -> Array:
        density: Array = -(freedom + 1) / 2 * np.log1p(np.square(t) / freedom)
        return density

    def once(*arguments: Any) -> Any:
        """The evidence, tempered; the network runs only for the first temperature."""
        if not seen:
            seen.append(evidence(*arguments))
        return replace(seen[0], density=seen[0].density / temperature, shape=seen[0].shape / temperature)

    weights: dict[str, float] = {}
    likeliest = ""
    for temperature, white in product(TEMPERATURES, WHITES):
        with patched(_student=student, _evidence=once, EVIDENCE_SAMPLES=samples, WHITE_PRIOR=white):
            believed = belief.believe(variant.proto, found, specs)
        truth = right(subject, believed.hypotheses)
        weights[_label(temperature, white)] = math.log(max(float(believed.weights[truth].sum()), LEAST))
        if (temperature, white) == USED[3:]:
            likeliest = str(believed.likeliest)
    return Row(
        variant.network, variant.folded, variant.range, freedom, layers, samples, weights, likeliest, time.process_time() - start
    )  # fmt: skip


def right(subject: Subject, hypotheses: Sequence[Hypothesis]) -> NDArray[np.bool_]:
    """Which hypotheses are true, or nearest to it."""
    variant = subject.variant
    if variant.network not in NO_PICTURES:
        span = USUAL[variant.range or own_range(variant.network)]
        return np.array([(one.low, one.high) == span for one in hypotheses])
    inputs = variant.inputs(subject.inputs)
    mean, deviation = float(inputs.mean(dtype=np.float64)), float(inputs.std(dtype=np.float64))
    deviations = np.array([(one.high - one.low) / 4 for one in hypotheses])
    means = np.array([(one.high + one.low) / 2 for one in hypotheses])
    apart = np.abs(np.log(deviations / deviation))
    near = apart <= math.log(NEAR)
    found = np.zeros(len(hypotheses), bool)
    for scale in np.unique(deviations[near]):
        mine = deviations == scale
        off = np.abs(means - mean)
        found |= mine & (off <= off[mine].min() * (1 + 1e-6) + 1e-12)
    return found


def _label(temperature: float, white: float) -> str:
    return f"{temperature:g}/{white:g}"


def scores(rows: Iterable[Row]) -> tuple[list[str], list[Choice], NDArray[np.float64]]:
    """Families, choices, and the mean score of each, shape (families, choices)."""
    values: dict[tuple[str, Choice], list[float]] = {}
    for row in rows:
        for temperature, white in product(TEMPERATURES, WHITES):
            choice = (row.freedom, row.layers, row.samples, temperature, white)
            score = row.log_weights[_label(temperature, white)]
            values.setdefault((family(row.network), choice), []).append(score)
    families = list(dict.fromkeys(name for name, _ in values))
    every = list(dict.fromkeys(choice for _, choice in values))
    choices = [choice for choice in every if all((name, choice) in values for name in families)]
    return families, choices, np.array([[np.mean(values[n, c]) for c in choices] for n in families])


def effects_table(choices: Sequence[Choice], found: NDArray[np.float64]) -> str:
    """Score of every value of every factor, with the others as they are in use."""
    means = dict(zip(choices, found.mean(axis=0), strict=True))
    lines = []
    for position, factor in enumerate(FACTORS):
        for value in dict.fromkeys(choice[position] for choice in choices):
            choice = (*USED[:position], value, *USED[position + 1 :])
            if choice in means:
                used = " (in use)" if choice == USED else ""
                lines.append((factor, f"{value}{used}", f"{means[choice]:.2f}"))
    return markdown(("factor", "value", "mean log weight of the truth"), lines)


def splits_table(choices: Sequence[Choice], found: NDArray[np.float64], splits: int) -> str:
    """What choosing on one half of the networks is worth on the other."""
    rng = np.random.default_rng(0)
    used = choices.index(USED)
    held: list[tuple[float, float, float]] = []
    chosen: Counter[Choice] = Counter()
    for _ in range(splits):
        order = rng.permutation(len(found))
        one, other = order[: len(found) // 2], order[len(found) // 2 :]
        best = int(found[one].mean(axis=0).argmax())
        chosen[choices[best]] += 1
        scored = found[other].mean(axis=0)
        held.append((scored[best], scored[used], scored.max()))
    values = np.array(held)
    gain = values[:, 0] - values[:, 1]
    lines = [
        ("chosen on the other half", f"{values[:, 0].mean():.2f}", f"{values[:, 0].std():.2f}"),
        ("in use", f"{values[:, 1].mean():.2f}", f"{values[:, 1].std():.2f}"),
        ("best for this half", f"{values[:, 2].mean():.2f}", f"{values[:, 2].std():.2f}"),
        ("chosen less in use", f"{gain.mean():+.2f}", f"{gain.std():.2f}"),
    ]
    often = [
        f"{count} of {splits}: {', '.join(f'{name} {value}' for name, value in zip(FACTORS, choice, strict=True))}"
        for choice, count in chosen.most_common(5)
    ]
    return "\n".join([markdown(("on the held-out half", "mean", "deviation"), lines), "", *often])


def networks_table(rows: Iterable[Row]) -> str:
    """Every variant with the choice in use: the weight of the truth, and what is likeliest instead."""
    mine = [row for row in rows if (row.freedom, row.layers, row.samples) == USED[:3]]
    lines = [
        (
            in_words(row.network, row.folded),
            row.range or "its own",
            f"{math.exp(row.log_weights[_label(*USED[3:])]):.2f}",
            row.likeliest,
        )
        for row in mine
    ]
    return markdown(("network", "range", "weight of the truth", "likeliest"), lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.belief", description="How much the belief trusts the true range of inputs."
    )
    add = parser.add_argument
    add("--networks", nargs="*", default=NETWORKS, metavar="NAME", help="default: all; none: only print")
    add("--used", action="store_true", help="only the choice in use, and its temperatures and priors")
    add("--splits", type=int, default=SPLITS, metavar="N", help="default: %(default)s")
    add("--json", type=Path, metavar="FILE", help="keep the rows there, and go on from it")
    add("--join", type=Path, nargs="+", default=[], metavar="FILE", help="rows of other runs")
    options = parser.parse_args(arguments)
    grid = [USED[:3]] if options.used else list(product(FREEDOMS, LAYERS, SAMPLES))
    progress = Console(stderr=True)
    try:
        ledger = Ledger(Row, options.json, options.join)
        for subject in subjects(options.networks, progress):
            variant = subject.variant
            for evidence in grid:
                if (variant.network, variant.folded, variant.range, *evidence) not in ledger:
                    ledger.add(measure(subject, *evidence))
            progress.print(variant.name, style="dim")
    except DfmpcError as error:
        print(f"error: {error}", *([f"hint: {error.hint}"] if error.hint else []), sep="\n", file=sys.stderr)
        return error.exit_code
    if not any(ledger):
        return 0
    families, choices, found = scores(ledger)
    print(networks_table(ledger), "", effects_table(choices, found), sep="\n")
    if len(families) > 1 and USED in choices:
        print("", splits_table(choices, found, options.splits), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
