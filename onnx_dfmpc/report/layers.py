"""What became of every layer and activation, and what stays float."""

from __future__ import annotations

import math

from onnx_dfmpc.report.document import Document, LayerRow
from onnx_dfmpc.report.outline import (
    Cell,
    Column,
    Line,
    Rows,
    Section,
    Table,
    cell,
    fixed,
    plural,
    section,
    shape,
    whole,
    width,
)
from onnx_dfmpc.spec import Chain, IntegerActivations
from onnx_dfmpc.spec.reported import INTEGER_LAYERS


def quantized_layers(document: Document) -> Table | None:
    """Every layer with its bits; the reasons are what a plan is for."""
    planned = document.command == "plan"
    sqnr = "synthetic SQNR, dB" if document.synthetic else "SQNR, dB"
    ranks = list(enumerate(document.layers, 1))
    return Rows(ranks).table(
        (Column("#", "number", "page"), lambda row: cell(whole, row[0])),
        (Column("layer", "code"), lambda row: Cell(row[1].name)),
        (Column("op", shown="page"), lambda row: Cell(row[1].op)),
        (Column("weight", shown="page"), lambda row: Cell(shape(row[1].shape), math.prod(row[1].shape))),
        (Column("role"), lambda row: Cell(row[1].role)),
        (Column("bits", "bits"), lambda row: cell(width, row[1].bits)),
        (Column("stored", shown="wide"), lambda row: Cell(row[1].storage)),
        (Column("bytes", "number"), lambda row: cell(whole, row[1].bytes)),
        (Column("computed by", shown="wide"), lambda row: Cell(row[1].kernel)),
        (Column(sqnr, "number"), lambda row: cell(fixed(1), row[1].sqnr_db)),
        (Column("predicted, dB", "number", "page"), lambda row: cell(fixed(1), row[1].predicted_sqnr_db)),
        (
            Column("alone, dB", "number", "always" if planned else "page"),
            lambda row: cell(fixed(1), row[1].alone_db),
        ),
        (Column("gain", "number"), lambda row: _gain(row[1])),
        (Column("statistics", shown="page"), lambda row: Cell(row[1].source or "")),
        (Column("why", "prose", "always" if planned else "wide"), lambda row: Cell(row[1].reason)),
        long=True,
    )


def _gain(layer: LayerRow) -> Cell:
    """Range of the coefficients of the output channels."""
    low, high = fixed(2)(layer.gain_min), fixed(2)(layer.gain_max)
    return Cell(high if low == high else f"{low}-{high}", layer.gain_max)


def matched_layers(document: Document) -> Table | None:
    """Layers as matching finds them."""
    producers = {chain.producer for chain in document.chains}
    consumers = {name for chain in document.chains for name in chain.consumers}

    def place(layer: LayerRow) -> str:
        sides = (layer.name in producers, layer.name in consumers)
        return {(True, True): "both", (True, False): "producer", (False, True): "consumer"}.get(sides, "")

    def batch_norm(layer: LayerRow) -> str:
        # The bias of a convolution without batch norm may come from one that was folded.
        folded = layer.bias and layer.op.startswith("Conv")
        return "kept" if layer.batch_norm is not None else "folded?" if folded else "none"

    return Rows(document.layers).table(
        (Column("layer", "code"), lambda layer: Cell(layer.name)),
        (Column("op"), lambda layer: Cell(layer.op + (f" /{layer.group}" if layer.group != 1 else ""))),
        (Column("weight"), lambda layer: Cell(shape(layer.shape), math.prod(layer.shape))),
        (Column("batch norm"), lambda layer: Cell(batch_norm(layer))),
        (Column("activation"), lambda layer: Cell(layer.activation or "")),
        (Column("chain"), lambda layer: Cell(place(layer))),
        long=True,
    )


def chain_line(chain: Chain) -> Line:
    """Which layers follow which, through what, and where the coefficients may go."""
    reason = f" ({chain.reason})" if chain.reason else ""
    side = "either side" if chain.homogeneous else f"producer side{reason}"
    through = ", ".join(chain.path) or "directly"
    return Line(f"{chain.producer} → {', '.join(chain.consumers)}: {through}; coefficients: {side}")


def skipped_nodes(document: Document) -> Table | None:
    """Nodes whose weights stay float, each with its reason."""
    return Rows(document.skipped).table(
        (Column("node", "code"), lambda node: Cell(node.name)),
        (Column("op"), lambda node: Cell(node.op)),
        (Column("why", "prose"), lambda node: Cell(node.reason)),
    )


def activation_sections(document: Document) -> tuple[Section, ...]:
    """Which kernels compute them, what they cost alone, and their ranges."""
    activations = document.activations
    if activations is None:
        return ()
    kernels = [
        f"{count} {op}"
        for op, count in sorted(activations.kernels.items())
        if op.startswith("QLinear") or op in INTEGER_LAYERS
    ]
    table = Rows(activations.ranges).table(
        (Column("activation", "code"), lambda one: Cell(one.name)),
        (Column("from", "number"), lambda one: cell(fixed(3), one.low)),
        (Column("to", "number"), lambda one: cell(fixed(3), one.high)),
        (Column("range of", "code"), lambda one: Cell(one.like)),
        long=True,
    )
    reasons = (Line(f"{name} stays float: {reason}") for name, reason in activations.floats.items())
    return section(
        "Activations",
        Line(
            f"{plural(len(activations.ranges), 'tensor')} in 8 bits. ONNX Runtime computes "
            f"{activations.fused} of {plural(activations.layers, 'layer')} in integers on this machine: "
            + (", ".join(kernels) or "none")
        ),
        Line(_saturation(activations, document)),
        None
        if activations.sqnr_db is None
        else Line(f"They alone are expected to leave an output SQNR of {activations.sqnr_db:.1f} dB."),
        *reasons,
    ) + section("Ranges of activations", table, appendix=True)


def _saturation(activations: IntegerActivations, document: Document) -> str:
    """What integer kernels make of large weights on this machine."""
    if not activations.saturates:
        return "Integer kernels are exact on this machine."
    if document.form.get("reduce_range"):
        return "Integer kernels saturate on this machine (no VNNI), but not with weights within 7 bits."
    return "Integer kernels saturate on this machine (no VNNI) where weights use 8 bits: try --reduce-range."
