"""Which layers cost the most quality, and which settings help."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from onnx_dfmpc.report import charts
from onnx_dfmpc.report.document import Document
from onnx_dfmpc.report.outline import (
    Block,
    Cell,
    Code,
    Column,
    Line,
    Rows,
    Section,
    cell,
    fixed,
    percent,
    section,
    signed,
    whole,
    width,
)
from onnx_dfmpc.spec import LayerEffect


def worst_layers(document: Document) -> tuple[Section, ...]:
    """Layers by what each of them alone does to the outputs, and the flags that help."""
    effects = document.per_layer
    if not effects:
        return ()

    def alone(effect: LayerEffect) -> Cell:
        text = "same" if effect.own_share == 0 else "not finite"
        return Cell(text) if effect.own_sqnr_db is None else cell(fixed(1), effect.own_sqnr_db)

    ranking = Rows(effects).table(
        (Column("layer", "code"), lambda effect: Cell(effect.name)),
        (Column("bits", "bits"), lambda effect: cell(width, effect.bits)),
        (Column("bytes", "number"), lambda effect: cell(whole, effect.bytes)),
        (Column("SQNR here, dB", "number"), lambda effect: cell(fixed(1), effect.sqnr_db)),
        (Column("cosine here", "number", "page"), lambda effect: cell(fixed(5), effect.cosine)),
        (Column("alone, dB", "number"), alone),
        (Column("share of noise", "number"), lambda effect: cell(percent(), effect.own_share)),
        (Column("same top-1 alone", "number"), lambda effect: cell(percent(), effect.own_top1_agreement)),
        long=True,
        ranked=True,
    )
    text = (
        "Worst first. “here” is at the output of the layer, “alone” at the output of the network when only "
        "this layer is quantized." + (" On synthetic inputs." if document.synthetic else "")
    )
    return section("Worst layers", Line(text), charts.ranking(effects), ranking, *_helps(document))


def _helps(document: Document) -> Iterator[Block]:
    """Flags that help, with their price and what they bring; how to get them where nothing was tried."""
    if document.command == "validate":
        yield Line(
            "What helps depends on the settings that made the file: onnx-dfmpc quantize tries it, with the "
            "same settings and --per-layer."
        )
    added = [advice.flag == "--set" for advice in document.advice]
    if added:
        how = "to add to the command" if all(added) else "in place of the present target"
        yield Line(f"What helps, {how}; tried one at a time:")
    for advice in document.advice:
        price, gain = signed(0, " bytes")(advice.extra_bytes), signed(1, " dB")(advice.gain_db)
        where = " on synthetic inputs" if document.synthetic else ""
        yield Code(f"{advice.flag} {shlex.quote(advice.value)}", f"{price}, output SQNR {gain}{where}")
