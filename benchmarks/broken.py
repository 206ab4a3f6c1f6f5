"""Does --per-layer find the layer that broke it, and does the line that it suggests repair it?

The command: ``python -m benchmarks.broken --network cifar10_resnet56_bn``. One layer after the other, chosen
at random, is forced to 2 bits by plain rounding in a network that is otherwise rounded to 6; then the
suggested line is pasted behind the same command.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import networks
from onnx_dfmpc import DfmpcError, QuantizeResult, Recipe, quantize
from onnx_dfmpc.matching.match import match
from onnx_dfmpc.model.files import load

BASE = Recipe(bits=6, rounding="nearest", repair="none")


@dataclass(frozen=True)
class Case:
    """One broken layer: its rank, the line that is suggested, and output SQNR (dB) and bytes before and
    after.
    """

    layer: str
    rank: int
    suggestion: str
    broken_db: float
    repaired_db: float
    predicted_bytes: int
    extra_bytes: int


def case(network: networks.Network, layer: str) -> Case:
    """Break a layer, look at the ranking, paste the line."""
    bad = (f"^{re.escape(layer)}$", 2)
    broken = quantize(network.path, recipe=replace(BASE, set=(bad,)), per_layer=True)
    ranking = [effect.name for effect in broken.per_layer]
    found = (advice for advice in broken.advice if advice.value.startswith(f"{bad[0]}="))
    advice = next(found, None)
    if advice is None:
        return Case(layer, ranking.index(layer) + 1, "", _sqnr(broken), _sqnr(broken), 0, 0)
    pattern, _, bits = advice.value.rpartition("=")
    repaired = quantize(network.path, recipe=replace(BASE, set=(bad, (pattern, int(bits)))))
    extra = repaired.size - broken.size
    return Case(
        layer,
        ranking.index(layer) + 1,
        advice.value,
        _sqnr(broken),
        _sqnr(repaired),
        advice.extra_bytes,
        extra,
    )


def _sqnr(result: QuantizeResult) -> float:
    assert result.validation is not None
    assert result.validation.sqnr_db is not None
    return result.validation.sqnr_db


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 where a layer is not found."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.broken", description="Does --per-layer find a broken layer?"
    )
    parser.add_argument(
        "--network", default="cifar10_resnet56_bn", metavar="NAME", help="default: %(default)s"
    )
    parser.add_argument(
        "--choices", type=int, default=10, metavar="N", help="layers to break (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="of the choice (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    table = Table(
        "layer",
        "rank",
        "suggestion",
        "SQNR broken",
        "repaired",
        "bytes predicted",
        "measured",
        title=options.network,
    )
    found = []
    try:
        network = networks.network(options.network)
        names = [layer.name for layer in match(load(network.path).proto).layers]
        for name in np.random.default_rng(options.seed).choice(
            names, min(options.choices, len(names)), replace=False
        ):
            found.append(case(network, str(name)))
            last = found[-1]
            numbers = (
                f"{last.broken_db:.1f}",
                f"{last.repaired_db:.1f}",
                f"{last.predicted_bytes:+,}",
                f"{last.extra_bytes:+,}",
            )
            table.add_row(last.layer, str(last.rank), last.suggestion, *numbers)
    except DfmpcError as error:
        print(f"error: {error}", *([f"hint: {error.hint}"] if error.hint else []), sep="\n", file=sys.stderr)
        return error.exit_code
    console = Console()
    (console if console.is_terminal else Console(width=140)).print(table)
    return 0 if all(one.rank == 1 for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
