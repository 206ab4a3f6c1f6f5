"""What to change: some changes to a recipe, each tried, and those kept that help.

They are tried, because no estimate holds: other bits for one layer change what all later layers are repaired
for, and a budget takes from other layers what one is given. So where the bits are fixed the advice is more
bits for one layer, and under a target it is a higher target.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from onnx_dfmpc.evaluate.diagnose import wider
from onnx_dfmpc.recipe import Recipe
from onnx_dfmpc.recipe.recipe import Bits
from onnx_dfmpc.recipe.values import settings
from onnx_dfmpc.spec import Advice, LayerEffect, Progress

TRIED = 3
"""Layers that are tried with more bits, at most: every one is another quantization."""

WORTH_DB = 0.1
"""Least gain that is told; convention."""

RAISED: Mapping[str, Callable[[float], tuple[float, ...]]] = {
    "target_size": lambda size: (_three_digits(1.1 * size), _three_digits(1.25 * size)),
    "target_bits": lambda bits: tuple(round(min(bits + more, 8), 9) for more in (0.5, 1)),
    "target_sqnr_db": lambda decibels: (round(decibels + 3, 9), round(decibels + 6, 9)),
}
"""Higher targets that are tried, by kind: steps that are worth a look, in numbers that are easy to type."""


@dataclass(frozen=True)
class Change:
    """A flag with its value, and the recipe that it makes of another."""

    flag: str
    value: str
    recipe: Recipe


@dataclass(frozen=True)
class Trial:
    """Bytes of a file, and its output SQNR in dB, None where there is none."""

    size: int
    sqnr_db: float | None


def changes(
    recipe: Recipe, effects: Sequence[LayerEffect], sizes: Mapping[str, Mapping[float, int]]
) -> list[Change]:
    """Changes that may help: bits of the layers that stand out, or, under a target, higher targets.

    ``effects`` are the worst first, ``sizes`` bytes by layer and width.

    Examples
    --------
    >>> [(change.flag, change.value) for change in changes(Recipe(target_size=70_000), [], {})]
    [('--target-size', '77000'), ('--target-size', '87500')]
    """
    if recipe.kind in RAISED:
        return list(_raised(recipe))
    return [_with_bits(recipe, name, bits) for name, bits in wider(effects, sizes)[:TRIED]]


def advise(
    wanted: Sequence[Change],
    attempt: Callable[[Recipe], Trial | None],
    before: Trial,
    progress: Progress | None = None,
) -> Iterator[Advice]:
    """Those changes that help, with what a run with each of them gives.

    ``attempt`` makes the run, and returns None where it cannot be made. A higher target has to bring more
    than the ones before it; flags that are added do not exclude each other.
    """
    if before.sqnr_db is None:  # nothing differs, or something is not finite: no gain can be told
        return
    least = WORTH_DB
    for step, change in enumerate(wanted, 1):
        after = attempt(change.recipe)
        if after is not None and after.sqnr_db is not None:
            gain = after.sqnr_db - before.sqnr_db
            if gain >= least:
                least = least if change.flag == "--set" else gain + WORTH_DB
                yield Advice(change.flag, change.value, after.size - before.size, gain)
        if progress is not None:
            progress("what helps", step, len(wanted))


def remarks(wanted: Iterable[Change], advice: Sequence[Advice]) -> tuple[str, ...]:
    """That what was tried does not help, where nothing does."""
    tried = ", ".join(f"{change.flag} {shlex.quote(change.value)}" for change in wanted)
    return (f"tried, and not better by {WORTH_DB:g} dB: {tried}",) if tried and not advice else ()


def _with_bits(recipe: Recipe, name: str, bits: float) -> Change:
    pattern = f"^{re.escape(name)}$"
    return Change("--set", f"{pattern}={bits}", replace(recipe, set=((pattern, bits),)))


def _raised(recipe: Recipe) -> Iterator[Change]:
    kind, now = recipe.kind, getattr(recipe, recipe.kind)
    for target in sorted(set(RAISED[kind](now)) - {now}):
        changed: dict[str, Any] = {kind: target}
        yield Change(settings(Bits)[kind].metadata["flag"], f"{target:.12g}", replace(recipe, **changed))


def _three_digits(size: float) -> int:
    """The next number of three digits and zeros.

    >>> _three_digits(64253.1), _three_digits(99.2)
    (64300, 100)
    """
    unit = int(10 ** max(len(str(math.floor(size))) - 3, 0))
    return math.ceil(size / unit) * unit
