"""Bytes that a quantized model is going to have, before anything is quantized."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnx_dfmpc.errors import DfmpcError
from onnx_dfmpc.forms import NATIVE, check_format
from onnx_dfmpc.model.constants import ConstantTable
from onnx_dfmpc.model.opset import raise_opset
from onnx_dfmpc.model.protobuf import copy_fields, framed, framed_size, is_large, without_initializers
from onnx_dfmpc.rewrite.apply import apply_edits, design
from onnx_dfmpc.rewrite.editor import Edit
from onnx_dfmpc.rewrite.foldable import why_kept
from onnx_dfmpc.rewrite.names import choose_names
from onnx_dfmpc.spec import Grid, Layer, MatchReport, StorageFormat
from onnx_dfmpc.spec.ops import shares_grid
from onnx_dfmpc.storage.parts import WeightLayout

PLACEHOLDER = 1.2345
"""Some number for new biases and batch norms."""


def stored_sizes(
    proto: ModelProto,
    report: MatchReport,
    widths: Sequence[int],
    form: StorageFormat = NATIVE,
    *,
    grid: Grid = "asymmetric",
) -> NDArray[np.int64]:
    """Bytes that the weight of every layer takes in the file at every width: codes, scales, zero points,
    nodes.

    Parameters
    ----------
    proto : ModelProto
        The float model.
    report : MatchReport
    widths : sequence of int
        Bits.
    form : StorageFormat
    grid : {"asymmetric", "symmetric", "ternary"}
        Only asymmetric ones have zero points. Per channel, wherever the file can say so.

    Returns
    -------
    int64 array, shape (layers, widths)
        What `StoredLayer.bytes` will say; more than that only where all zero points of a layer turn out to be
        zero, or all scales the same.

    Raises
    ------
    RecipeError
        If the form makes no sense.
    UnsupportedError
        If a weight is of a type that cannot be stored.
    """
    designs = _designs(proto, report, {layer.name: tuple(widths) for layer in report.layers}, form, grid)
    return np.array(
        [[layout.size for layout in designs[layer.name]] for layer in report.layers], np.int64
    ).reshape(-1, len(widths))


def predicted_size(
    proto: ModelProto,
    report: MatchReport,
    bits: Mapping[str, int],
    form: StorageFormat = NATIVE,
    *,
    grid: Grid = "asymmetric",
    corrected: Collection[str] = ("mean",),
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Bytes of the whole file for given bits per layer.

    Never less than what `rewrite` makes of the same bits and metadata, and hardly more: every layer is taken
    to get a zero point where its grid has one.

    Parameters
    ----------
    proto : ModelProto
        The float model.
    report : MatchReport
    bits : mapping
        Bits by layer name; layers that are not in it stay float.
    form : StorageFormat
    grid : {"asymmetric", "symmetric", "ternary"}
    corrected : collection of str
        Parameters of every batch norm that are new; if there are any, a layer without batch norm gets a new
        bias.
    metadata : mapping, optional
        As for `rewrite`; of values that are not known yet, the length is enough.

    Returns
    -------
    int

    Raises
    ------
    RecipeError
        If the form makes no sense.
    UnsupportedError
        If the model cannot be converted to the opset that the codes need, or a weight is of a type that
        cannot be stored.
    DfmpcError
        If a name is not in the report.
    """
    designs = _designs(proto, report, {name: (width,) for name, width in bits.items()}, form, grid)
    layouts = {name: layout for name, (layout,) in designs.items()}
    opset = max((layout.opset for layout in layouts.values()), default=0)
    folded = _folded(proto, report, form)
    return _size(
        proto, report, layouts, opset, _shared(layouts.values()), metadata or {}, folded, corrected=corrected
    )


def base_size(
    proto: ModelProto,
    report: MatchReport,
    layers: Collection[str],
    widths: Sequence[int],
    form: StorageFormat = NATIVE,
    *,
    grid: Grid = "asymmetric",
    corrected: Collection[str] = ("mean",),
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Bytes of everything in the file but the weights of the given layers, whatever their bits.

    ``base_size(...) + stored_sizes(...)[i, w_i].sum()`` is never less than the file, and hardly more.

    Parameters
    ----------
    layers : collection of str
        Names of the layers that will be quantized.
    widths : sequence of int
        Bits that they may get.
    proto, report, form, grid, corrected, metadata
        As for `predicted_size`.

    Returns
    -------
    int
    """
    designs = _designs(proto, report, {name: tuple(widths) for name in layers}, form, grid)
    drawn = [layout for row in designs.values() for layout in row]
    largest = {name: max(row, key=lambda layout: layout.size) for name, row in designs.items()}
    weights = sum(layout.size for layout in largest.values())
    opsets = {layout.opset for layout in drawn} or {0}
    shared, folded = _shared(drawn), _folded(proto, report, form)
    return (
        max(
            _size(proto, report, largest, opset, shared, metadata or {}, folded, corrected=corrected)
            for opset in opsets
        )
        - weights
    )


def _designs(
    proto: ModelProto,
    report: MatchReport,
    widths: Mapping[str, tuple[int, ...]],
    form: StorageFormat,
    grid: Grid,
) -> dict[str, list[WeightLayout]]:
    """Blueprints by layer name, one for each of its widths."""
    check_format(form)
    known = {layer.name: layer for layer in report.layers}
    if strangers := [name for name in widths if name not in known]:
        raise DfmpcError(f"layer {strangers[0]!r} is not in the match report")
    table, names = ConstantTable(proto), choose_names(proto, report)
    asymmetric = grid == "asymmetric"

    def draw(layer: Layer, bits: int) -> WeightLayout:
        axis = None if shares_grid(layer) else layer.axis
        return design(
            layer, table, names, form, bits=bits, signed=not asymmetric, axis=axis, zero_point=asymmetric
        )

    return {name: [draw(known[name], bits) for bits in asked] for name, asked in widths.items()}


def _folded(proto: ModelProto, report: MatchReport, form: StorageFormat) -> frozenset[str]:
    """Layers whose batch norm will go."""
    kept = why_kept(proto, report) if form.fold_batch_norm == "yes" else {}
    return frozenset(name for name, why in kept.items() if not why)


def _shared(layouts: Iterable[WeightLayout]) -> frozenset[str]:
    return frozenset[str]().union(*(layout.shared for layout in layouts))


def _size(
    proto: ModelProto,
    report: MatchReport,
    layouts: Mapping[str, WeightLayout],
    opset: int,
    shared: frozenset[str],
    metadata: Mapping[str, str],
    folded: frozenset[str],
    *,
    corrected: Collection[str],
) -> int:
    """Size of a model that is rewritten without any large weight in it, and of the weights."""
    hollow, missing = _hollow(proto, {layer.weight for layer in report.layers})
    edited = raise_opset(hollow, opset)
    layers = [layer for layer in report.layers if layer.name in layouts]
    edits = [
        _edit(layer, layouts[layer.name], corrected=corrected, folded=layer.name in folded)
        for layer in layers
    ]
    apply_edits(edited, edits, choose_names(proto, report), shared, metadata)
    absent = sum(edit.layout.size - edit.weight.size for edit in edits)
    absent += sum(missing.get(tensor.name, 0) for tensor in edited.graph.initializer)
    return int(edited.ByteSize() - framed_size(edited.graph) + framed(edited.graph.ByteSize() + absent))


def _edit(layer: Layer, layout: WeightLayout, *, corrected: Collection[str], folded: bool) -> Edit:
    bias, norm = None, None
    some = np.full(layer.channels, PLACEHOLDER, np.float32)
    if folded:
        bias = some
    elif corrected and layer.batch_norm is not None:
        new: dict[str, Any] = dict.fromkeys(corrected, some)
        norm = replace(layer.batch_norm, **new)
    elif corrected:
        bias = some
    return Edit(layer, layout, layout.empty(), bias, norm, folded)


def _hollow(proto: ModelProto, weights: Collection[str]) -> tuple[ModelProto, dict[str, int]]:
    """Copy of a model without the numbers of large weights, and the bytes that each of them lost."""
    copy, missing = without_initializers(proto), {}
    for tensor in proto.graph.initializer:
        target = copy.graph.initializer.add()
        if tensor.name in weights and is_large(tensor):
            copy_fields(tensor, target, without=("raw_data", "float_data", "int32_data"))
            missing[tensor.name] = framed_size(tensor) - framed_size(target)
        else:
            target.CopyFrom(tensor)
    return copy, missing
