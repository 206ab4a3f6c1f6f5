"""What would help the layers that stand out: how many bits, what these cost, what they are predicted to
bring.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import get_args

from onnx import ModelProto

from onnx_dfmpc.evaluate.effects import noise_of
from onnx_dfmpc.rewrite.sizes import stored_sizes
from onnx_dfmpc.spec import LayerEffect, MatchReport, StorageFormat, Suggestion
from onnx_dfmpc.spec.planned import Unpack
from onnx_dfmpc.storage.layouts import STORAGES

WIDTHS = (2, 3, 4, 5, 6, 7, 8)
MOST = 5
"""Layers that get a suggestion, at most."""


def with_suggestions(
    effects: Sequence[LayerEffect], proto: ModelProto, report: MatchReport, form: StorageFormat | None
) -> list[LayerEffect]:
    """Effects, the worst of which say what would help.

    The worst layer, and those behind it that make more than their share of the noise, get as many bits as
    bring them down to what the others make on average: noise falls with the square of the step. Wider codes
    that take no more bytes come for free.

    Parameters
    ----------
    effects : sequence of LayerEffect
        The largest first.
    proto : ModelProto
        The float model.
    report : MatchReport
    form : StorageFormat or None
        How codes are put into the file; None takes the form whose sizes are those of the file.
    """
    sizes = _sizes(effects, proto, report, form)
    found = []
    for rank, effect in enumerate(effects):
        stands_out = rank == 0 or effect.own_share * len(effects) > 1
        wanted = rank < MOST and stands_out and effect.own_sqnr_db != math.inf
        found.append(
            replace(effect, suggestion=_suggestion(effect, effects, sizes[effect.name])) if wanted else effect
        )
    return found


def _suggestion(
    effect: LayerEffect, effects: Sequence[LayerEffect], sizes: Mapping[int, int]
) -> Suggestion | None:
    own, bits = noise_of(effect), effect.bits
    if bits is None or bits not in sizes or bits == max(WIDTHS) or not math.isfinite(own):
        return None
    others = [noise for other in effects if other is not effect and math.isfinite(noise := noise_of(other))]
    rest = sum(others)
    wider = [width for width in WIDTHS if width > bits]
    enough = next((width for width in wider if _left(own, bits, width) * len(others) <= rest), wider[-1])
    chosen = max(width for width in wider if width >= enough and sizes[width] <= sizes[enough])
    left = _left(own, bits, chosen)
    return Suggestion(
        set=f"^{re.escape(effect.name)}$={chosen}",
        bits=chosen,
        extra_bytes=sizes[chosen] - sizes[bits],
        own_sqnr_db=-10 * math.log10(left),
        gain_db=10 * math.log10((own + rest) / (left + rest)),
    )


def _left(noise: float, bits: int, wider: int) -> float:
    """Noise at more bits."""
    shrinks: float = (2**bits - 1) / (2**wider - 1)
    return noise * shrinks**2


def _sizes(
    effects: Sequence[LayerEffect], proto: ModelProto, report: MatchReport, form: StorageFormat | None
) -> dict[str, dict[int, int]]:
    """Bytes by layer and width."""
    names = [layer.name for layer in report.layers]

    def stored(candidate: StorageFormat) -> dict[str, dict[int, int]]:
        table = stored_sizes(proto, report, WIDTHS, candidate)
        return {
            name: dict(zip(WIDTHS, map(int, row), strict=True))
            for name, row in zip(names, table, strict=True)
        }

    def distance(candidate: Mapping[str, Mapping[int, int]]) -> int:
        return sum(abs(candidate[effect.name].get(effect.bits or 0, 0) - effect.bytes) for effect in effects)

    return min((stored(candidate) for candidate in ([form] if form else _forms())), key=distance)


def _forms() -> list[StorageFormat]:
    """Every storage format with everything that its codes can be unpacked to."""
    return [StorageFormat(storage, unpack) for storage in STORAGES for unpack in get_args(Unpack)]
