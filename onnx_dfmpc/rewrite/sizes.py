"""Bytes that a quantized model is going to have, before anything is quantized.

They are not estimated: the model is rewritten without the numbers of its large weights, and measured. So
every name, node, length prefix and opset conversion counts as it will.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from math import prod
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from onnx_dfmpc.activations.insert import insert
from onnx_dfmpc.activations.placement import place
from onnx_dfmpc.model.external import is_mapped, size_of
from onnx_dfmpc.model.opset import raise_opset
from onnx_dfmpc.model.protobuf import copy_fields, framed, framed_size, is_large, without_initializers
from onnx_dfmpc.rewrite.apply import (
    apply_edits,
    fold_obstacles,
    layer_forms,
    layer_halves,
    plain_layout,
    tensor_names,
    weight_specs,
    weights_by_name,
)
from onnx_dfmpc.rewrite.editor import Edit, PlainEdit, shared_names
from onnx_dfmpc.rewrite.halves import Halves
from onnx_dfmpc.rewrite.slim import slim
from onnx_dfmpc.rewrite.vectors import layer_bytes
from onnx_dfmpc.spec import Grid, Layer, MatchReport, PlainWeight, StorageFormat
from onnx_dfmpc.spec.ops import shares_grid
from onnx_dfmpc.spec.planned import DEFAULT, stored_bits
from onnx_dfmpc.storage.halves import nearest
from onnx_dfmpc.storage.layouts import lay_out
from onnx_dfmpc.storage.sharing import with_codes_of
from onnx_dfmpc.storage.tables import shared_parts
from onnx_dfmpc.storage.types import ITEM_BITS, StoredWeight, WeightLayout

NUMBERS = ("raw_data", "float_data", "int32_data", "double_data")
"""Fields of a float tensor that hold its numbers."""

PLACEHOLDER = 1.2345
"""What new scales, biases and batch norms are filled with. Any float32 number takes the same bytes, but one
that is there already would count as no change: so none that networks are initialized with, such as 0 and 1.
"""

HALF_PLACEHOLDER = float(nearest(np.array(PLACEHOLDER)))
"""The same where the number will be a float16 number, which slim files have in 16 bits."""


def stored_sizes(
    proto: ModelProto,
    matched: MatchReport,
    widths: Sequence[float],
    form: StorageFormat = DEFAULT,
    *,
    grid: Grid = "asymmetric",
    half: bool = False,
    sharing: Mapping[str, str] = MappingProxyType({}),
) -> NDArray[np.int64]:
    """Bytes of codes, scales, zero points and nodes of every layer at every width, shape (layers, widths).

    Layers first, then weights that are rounded to nearest. They are what `StoredLayer.bytes` will say; more
    than that only where all zero points of a layer turn out to be zero, or all scales the same. Only an
    asymmetric ``grid`` has zero points. Grids are per channel wherever the file can say so. ``half`` is as in
    `rewrite`. ``sharing`` says which layers have the codes of an earlier one, whatever the width (see
    `MatchReport.sharing`): theirs are scales and what applies them.

    RecipeError if the storage format is not registered, UnsupportedError if a weight is of a type that cannot
    be stored.
    """
    names = [one.name for one in matched.weights]
    layouts = _layouts(proto, matched, dict.fromkeys(names, tuple(widths)), form, grid, sharing)
    packed = _packed(proto, matched, form, half)
    sizes = [[_bytes(layout, packed) for layout in layouts[name]] for name in names]
    return np.array(sizes, np.int64).reshape(-1, len(widths))


def predicted_size(
    proto: ModelProto,
    matched: MatchReport,
    bits: Mapping[str, float],
    form: StorageFormat = DEFAULT,
    *,
    grid: Grid = "asymmetric",
    corrected: Collection[str] = ("mean",),
    metadata: Mapping[str, str] | None = None,
    half: bool = False,
) -> int:
    """Bytes of the whole file for given bits by name, of layers and of weights that are rounded to nearest;
    those without stay float.

    Never less than what `rewrite` makes of the same bits and metadata, and hardly more: every layer is taken
    to get a zero point where its grid has one. ``corrected`` are the parameters of every batch norm that will
    be new; if there are any, a layer without batch norm gets a new bias. ``half`` is as in `rewrite`. Of
    metadata that is not known yet, the length is enough.

    Raises as `stored_sizes`; UnsupportedError if the model cannot be converted to the opset that the codes
    need; DfmpcError if a name is not in the match report.
    """
    each = {name: (width,) for name, width in bits.items()}
    layouts = _layouts(proto, matched, each, form, grid, matched.sharing(bits))
    chosen = {name: layout for name, (layout,) in layouts.items()}
    shared = shared_names(chosen.values())
    opset = max((layout.opset for layout in chosen.values()), default=0)
    edits = _edits(proto, matched, chosen, form, corrected, half)
    return _size(proto, matched, edits, opset, shared, metadata or {}, form)


def base_size(
    proto: ModelProto,
    matched: MatchReport,
    layers: Collection[str],
    widths: Sequence[float],
    form: StorageFormat = DEFAULT,
    *,
    fixed: Mapping[str, float] = MappingProxyType({}),
    grid: Grid = "asymmetric",
    corrected: Collection[str] = ("mean",),
    metadata: Mapping[str, str] | None = None,
    half: bool = False,
    sharing: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Bytes of everything in the file but the weights of the given layers and what these share, whatever bits
    of ``widths`` they will get. ``fixed`` are the bits of other weights, by name, which are part of
    everything.

    With what the widths share (`shared_sizes`), ``base_size(...) + stored_sizes(...)[i, w_i].sum()`` is never
    less than the file, and hardly more. The other parameters are as in `predicted_size` and `stored_sizes`.
    """
    each = dict.fromkeys(layers, tuple(widths)) | {name: (bits,) for name, bits in fixed.items()}
    layouts = _layouts(proto, matched, each, form, grid, sharing)
    # Of those that share nothing, if any do: what slim makes of shared constants is not known apart.
    columns = {
        name: max(range(len(row)), key=lambda column: (not row[column].shared, row[column].size))
        for name, row in layouts.items()
    }
    largest = {name: row[columns[sharing.get(name, name)]] for name, row in layouts.items()}
    every = [layout for row in layouts.values() for layout in row]
    # A node may be larger or smaller in a later opset: all that the widths may need are tried.
    opsets = {layout.opset for layout in every} or {0}
    edits = _edits(proto, matched, largest, form, corrected, half)
    shared = shared_names(largest.values())
    whole = max(_size(proto, matched, edits, opset, shared, metadata or {}, form) for opset in opsets)
    packed = _packed(proto, matched, form, half)
    always = _shared_size(shared_names(largest[name] for name in fixed))
    return whole - sum(_bytes(largest[name], packed) for name in layers) - _shared_size(shared) + always


def shared_sizes(
    proto: ModelProto,
    matched: MatchReport,
    layers: Collection[str],
    widths: Sequence[float],
    form: StorageFormat = DEFAULT,
    *,
    grid: Grid = "asymmetric",
) -> NDArray[np.int64]:
    """Bytes of the tables that each width brings with it, shape (widths,); some widths share some."""
    layouts = _layouts(proto, matched, {name: tuple(widths) for name in layers}, form, grid)
    columns = zip(*layouts.values(), strict=True)
    return np.array([_shared_size(shared_names(column)) for column in columns], np.int64)


def _packed(proto: ModelProto, matched: MatchReport, form: StorageFormat, half: bool) -> frozenset[str]:
    """Names of the layers whose scales share a tensor."""
    if not (half and form.slim):
        return frozenset()
    halves = layer_halves(proto, matched, fold_obstacles(proto, matched, form))
    return frozenset(name for name, kind in halves.items() if kind.scale)


def _bytes(layout: WeightLayout, packed: Collection[str]) -> int:
    return layer_bytes(layout, packed=layout.spec.layer in packed)


def _shared_size(names: Collection[str]) -> int:
    """Bytes of constants that layouts share."""
    initializers, nodes = shared_parts(names)
    return sum(framed_size(part) for part in (*initializers, *nodes))


def _layouts(
    proto: ModelProto,
    matched: MatchReport,
    widths: Mapping[str, tuple[float, ...]],
    form: StorageFormat,
    grid: Grid,
    sharing: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, list[WeightLayout]]:
    """Layouts by name of a layer or weight, one for each of its widths; of layers that share the codes of
    another one, what they have beside these.
    """
    weights, specs = weights_by_name(matched, list(widths)), weight_specs(proto, matched, form)
    forms = layer_forms(proto, matched, form)

    def at(layer: Layer | PlainWeight, bits: float) -> WeightLayout:
        if isinstance(layer, PlainWeight):
            return plain_layout(specs[layer.name], stored_bits(bits, "symmetric"), layer.axis, form)
        chosen = form.grid(grid, bits, layer)
        asymmetric, bits = chosen == "asymmetric", stored_bits(bits, chosen)
        axis = None if shares_grid(layer) else layer.axis
        parts = {"bits": bits, "signed": not asymmetric, "axis": axis, "zero_point": asymmetric}
        spec = specs[layer.name](**parts, vector=chosen == "vector")
        return _lay_out(spec, forms[layer.name])

    whole = {name: [at(weights[name], bits) for bits in row] for name, row in widths.items()}
    own = {
        name: [with_codes_of(*pair) for pair in zip(whole[name], whole[first], strict=True)]
        for name, first in sharing.items()
    }
    return whole | own


# A target asks for the sizes of all layers at all widths, and for that of the whole file, several times.
_lay_out = lru_cache(maxsize=4096)(lay_out)


def _edits(
    proto: ModelProto,
    matched: MatchReport,
    layouts: Mapping[str, WeightLayout],
    form: StorageFormat,
    corrected: Collection[str],
    half: bool,
) -> tuple[list[Edit], list[PlainEdit]]:
    """Edits of the layers and weights that have a layout, without the numbers of their weights."""
    obstacles = fold_obstacles(proto, matched, form)
    halves = layer_halves(proto, matched, obstacles) if half else {}
    edits = []
    for layer in matched.layers:
        if layer.name not in layouts:
            continue
        layout, folded = layouts[layer.name], obstacles.get(layer.name) == ""
        kind = halves.get(layer.name, Halves())
        new = np.full(layer.channels, PLACEHOLDER, np.float32)
        bias, norm = None, None
        if folded or (corrected and layer.batch_norm is None):
            bias = np.full_like(new, HALF_PLACEHOLDER) if kind.bias else new
        elif corrected and layer.batch_norm is not None:
            parameters: dict[str, Any] = dict.fromkeys(corrected, new)
            norm = replace(layer.batch_norm, **parameters)
        scale = HALF_PLACEHOLDER if kind.scale else PLACEHOLDER
        edits.append(Edit(layer, layout, _without_codes(layout, scale), bias, norm, folded))
    plain = [layouts[one.name] for one in matched.plain if one.name in layouts]
    return edits, [PlainEdit(layout, _without_codes(layout, PLACEHOLDER)) for layout in plain]


def _without_codes(layout: WeightLayout, scale: float) -> StoredWeight:
    """Stored weight of which only the scales have numbers."""
    weight = layout.empty()
    for tensor in weight.initializers:
        if tensor.data_type == TensorProto.FLOAT and tensor.dims:
            tensor.raw_data = np.full(prod(tensor.dims), scale, np.float32).tobytes()
    return weight


def _size(
    proto: ModelProto,
    matched: MatchReport,
    edits: tuple[Sequence[Edit], Sequence[PlainEdit]],
    opset: int,
    shared: Collection[str],
    metadata: Mapping[str, str],
    form: StorageFormat,
) -> int:
    """Size of a model that is rewritten without the numbers of any large weight, plus these numbers."""
    hollow, missing = _hollow(proto, {one.weight for one in matched.weights})
    every: tuple[Edit | PlainEdit, ...] = (*edits[0], *edits[1])
    edited = raise_opset(hollow, opset, form.runtime)
    apply_edits(edited, *edits, shared, metadata)
    kept = _more_if_kept(hollow, edited, edits[0])
    if form.activations is not None:
        placement = place(edited)
        insert(edited, placement, {one.name: (-1.0, 1.0) for one in placement.activations})
    if form.slim:
        # With numbers of the right length: names change, and with them the lengths of messages.
        for tensor in edited.graph.initializer:
            _pad(tensor)
        slim(edited, tensor_names(every))
        return int(edited.ByteSize()) + kept
    absent = sum(
        edit.layout.size - edit.weight.size for edit in every if isinstance(edit.weight, StoredWeight)
    )
    absent += sum(missing.get(tensor.name, 0) for tensor in edited.graph.initializer)
    # The length of the graph stands before it, and takes more bytes the longer it is.
    return int(
        edited.ByteSize() - framed_size(edited.graph) + framed(edited.graph.ByteSize() + absent + kept)
    )


def _more_if_kept(hollow: ModelProto, edited: ModelProto, edits: Sequence[Edit]) -> int:
    """Bytes more if biases and batch norms turn out to need no change: the Constant and Identity nodes that
    give them stay, and may be larger than the initializers that else replace them.
    """
    nodes = hollow.graph.node
    producers = {node.output[0]: node for node in nodes if node.op_type in ("Constant", "Identity")}
    initializers = {tensor.name: tensor for tensor in hollow.graph.initializer}
    there = {name for node in edited.graph.node for name in node.output}
    there |= {tensor.name for tensor in edited.graph.initializer}
    folded = {edit.layer.batch_norm.output for edit in edits if edit.folded and edit.layer.batch_norm}
    layers = {edit.layer.output for edit in edits}
    replaced = set()
    for node in nodes:
        if folded.isdisjoint(node.output):  # these go in any case, as weights do
            inputs = list(node.input)[2:] if not layers.isdisjoint(node.output) else node.input
            replaced |= {name for name in inputs if name in producers and name not in there}
    inner = {node.input[0] for node in producers.values() if node.input}
    more = 0
    for name in replaced - inner:
        old, new = 0, 0
        while name and name not in there:
            node = producers.get(name)
            tensor = initializers[name] if node is None else node.attribute[0].t if node.attribute else None
            old += framed_size(node or initializers[name])
            new += 0 if tensor is None else framed_size(tensor)
            name = node.input[0] if node is not None and node.input else ""
        more += max(0, old - new)
    return more


def _pad(tensor: TensorProto) -> None:
    """Give a tensor zeros for the numbers that it lacks, if it does."""
    fields = (*NUMBERS, "int64_data", "uint64_data", "string_data")
    if not any(getattr(tensor, field) for field in fields) and prod(tensor.dims):
        tensor.raw_data = bytes(-(-prod(tensor.dims) * ITEM_BITS[tensor.data_type] // 8))


def _hollow(proto: ModelProto, weights: Collection[str]) -> tuple[ModelProto, dict[str, int]]:
    """Copy of a model without the numbers of large weights, and the bytes that each of them lost."""
    copy, missing = without_initializers(proto), {}
    for tensor in proto.graph.initializer:
        target = copy.graph.initializer.add()
        if is_mapped(tensor) or (tensor.name in weights and is_large(tensor)):
            copy_fields(tensor, target, without=(*NUMBERS, "external_data", "data_location"))
            missing[tensor.name] = framed(size_of(tensor)) - framed_size(target)
        else:
            target.CopyFrom(tensor)
    return copy, missing
