"""What validation found beyond the outputs: the layers that do most harm, with what helps, and inference
times.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence

from rich.console import RenderableType
from rich.text import Text

from onnx_dfmpc.report.style import NONE, line_to_paste, new_table, number, percent, section
from onnx_dfmpc.report.words import plural
from onnx_dfmpc.spec import Latency, LayerEffect, Suggestion

SHOWN = 10
"""Layers that a table shows, unless all are wanted."""


def effects_view(effects: Sequence[LayerEffect], *, verbose: bool = False) -> list[RenderableType]:
    """Layers by what each of them alone does to the outputs, and the flags that help the worst; with
    `verbose` all layers.
    """
    if not effects:
        return []
    classes = any(effect.own_top1_agreement is not None for effect in effects)
    columns = (
        "layer",
        "bits",
        "bytes",
        "SQNR\ndB",
        "alone\ndB",
        "share",
        *(["same\ntop-1"] if classes else []),
    )
    shown = new_table(
        "Per layer: noise at the outputs when it alone is quantized", *columns, right=columns[1:]
    )
    rows = effects if verbose else effects[:SHOWN]
    for effect in rows:
        shown.add_row(
            effect.name,
            NONE if effect.bits is None else str(effect.bits),
            f"{effect.bytes:,}",
            number(effect.sqnr_db, 1),
            "not finite" if effect.own_sqnr_db is None else number(effect.own_sqnr_db, 1),
            percent(effect.own_share, 1),
            *([percent(effect.own_top1_agreement, 1)] if classes else []),
        )
    parts: list[RenderableType] = [section(shown)]
    if len(rows) < len(effects):
        parts.append(
            Text(f"and {plural(len(effects) - len(rows), 'layer')} more, with less noise: -v shows them")
        )
    helped = [effect.suggestion for effect in effects if effect.suggestion is not None]
    if helped:
        parts.append(section(Text("What helps, to paste behind onnx-dfmpc quantize:", style="bold italic")))
        for suggestion in helped:
            parts += [line_to_paste(f"--set {shlex.quote(suggestion.set)}"), Text(f"    {_told(suggestion)}")]
    return parts


def _told(suggestion: Suggestion) -> str:
    alone, together = f"{suggestion.own_sqnr_db:.1f} dB", f"{suggestion.gain_db:.1f} dB"
    return f"{suggestion.extra_bytes:+,} bytes; alone {alone} then, all layers together {together} better"


def latency_view(latency: Latency | None) -> list[RenderableType]:
    """Inference times side by side, and what they mean."""
    if latency is None:
        return []
    shown = new_table(
        "Latency", "model", "median ms", "quartiles", "of float", right=("median ms", "quartiles", "of float")
    )
    reference = latency.timings[0].median
    for timing in latency.timings:
        low, high = 1e3 * timing.first_quartile, 1e3 * timing.third_quartile
        shown.add_row(
            timing.name,
            f"{1e3 * timing.median:.2f}",
            f"{low:.2f}-{high:.2f}",
            _ratio(timing.median, reference),
        )
    how = f"{plural(latency.runs, 'run')} of each in turn, {plural(latency.threads, 'thread')}, batch {latency.batch}"
    return [section(shown, Text(how)), section(Text(_meaning(latency)))]


def _meaning(latency: Latency) -> str:
    if len(latency.timings) < 3:
        return "Activations are quantized too: the default session options are the ones to use."
    reference, default, recommended = (timing.median for timing in latency.timings)
    return (
        "Weight-only quantization buys size, not speed. With default session options ONNX Runtime dequantizes the weights at every run "
        f"({_ratio(default, reference)} of the float model's time here); with session.disable_quant_qdq=1 once, when it loads the model "
        f"({_ratio(recommended, reference)})."
    )


def _ratio(seconds: float, reference: float) -> str:
    return f"{seconds / reference:.2f}x" if reference > 0 and math.isfinite(seconds) else NONE
