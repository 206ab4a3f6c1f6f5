"""Quantized layers -> an edited copy of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, helper

from onnx_dfmpc.errors import DfmpcError
from onnx_dfmpc.fold import fold
from onnx_dfmpc.forms import NATIVE, check_format
from onnx_dfmpc.model.constants import ConstantTable
from onnx_dfmpc.model.opset import opset_of, raise_opset
from onnx_dfmpc.rewrite.editor import Edit, Editor
from onnx_dfmpc.rewrite.foldable import floats, why_kept
from onnx_dfmpc.rewrite.names import Names, choose_names
from onnx_dfmpc.spec import Layer, MatchReport, QuantizedLayer, QuantizedWeight, StorageFormat
from onnx_dfmpc.storage.layouts import WeightSpec, lay_out
from onnx_dfmpc.storage.parts import WeightLayout

PREFIX = "onnx_dfmpc."


@dataclass(frozen=True)
class StoredLayer:
    """How one layer lies in the file.

    Attributes
    ----------
    storage : str
        Element type of the codes, such as "UINT2", or of the planes that they are in, such as "UINT4+UINT2".
    bytes : int
        Bytes in the file: codes, scale, zero point and the nodes that make a float weight of them.
    notes : tuple of str
        What the reader should know about it.
    """

    storage: str
    bytes: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Rewritten:
    """The edited model, what became of each layer by name, and remarks on the model as a whole."""

    proto: ModelProto
    layers: dict[str, StoredLayer]
    notes: tuple[str, ...]


def rewrite(
    proto: ModelProto,
    report: MatchReport,
    layers: Sequence[QuantizedLayer],
    *,
    form: StorageFormat = NATIVE,
    metadata: Mapping[str, str] | None = None,
) -> Rewritten:
    """Copy of a model in which the weight of each given layer comes from integer codes.

    Opset and IR version are raised as far as the codes need. What the codes replace goes when nobody uses it
    any more; what somebody else uses stays. Names of nodes and tensors, doc strings, metadata, local
    functions and value infos stay; where a batch norm is folded, its node goes, and the layer makes the
    tensor that the batch norm made.

    Parameters
    ----------
    proto : ModelProto
        The float model with its external data loaded; never changed.
    report : MatchReport
        Where the layers are in ``proto``.
    layers : sequence of QuantizedLayer
        What to put there. ``bias`` is in the units of the constant that it replaces: Gemm multiplies its
        third input by ``beta``.
    form : StorageFormat
        How codes are put into the file. The float weights are the same in every form; those of a layer whose
        batch norm is folded, in every form that folds.
    metadata : mapping, optional
        Added to ``metadata_props`` under ``onnx_dfmpc.``.

    Returns
    -------
    Rewritten

    Raises
    ------
    RecipeError
        If the form makes no sense.
    UnsupportedError
        If the model cannot be converted to the opset that the codes need, or new parameters do not fit its
        float type.
    DfmpcError
        If the layers do not belong to the model.
    """
    check_format(form)
    known = {layer.name: layer for layer in report.layers}
    if strangers := [layer.name for layer in layers if layer.name not in known]:
        raise DfmpcError(f"layer {strangers[0]!r} is not in the match report")
    table, names = ConstantTable(proto), choose_names(proto, report)
    kept = why_kept(proto, report) if form.fold_batch_norm == "yes" else {}
    edits, stored = [], {}
    for quantized in layers:
        layer, why = known[quantized.name], kept.get(quantized.name)
        if quantized.weight.codes.shape != layer.shape:
            raise DfmpcError(
                f"layer {layer.name!r}: codes of shape {quantized.weight.codes.shape} for a weight {layer.shape}"
            )
        if why == "":
            quantized = _folded(quantized, layer, table)
        weight = quantized.weight
        layout = design(
            layer,
            table,
            names,
            form,
            bits=weight.bits,
            signed=weight.signed,
            axis=weight.axis,
            zero_point=_has_zero_point(weight),
        )
        edits.append(
            Edit(layer, layout, layout.fill(weight), quantized.bias, quantized.batch_norm, folded=why == "")
        )
        notes = (
            *_notes(layer, weight, form, layout),
            *([f"its batch norm is not folded: {why}"] if why else []),
        )
        stored[layer.name] = StoredLayer(layout.label, layout.size, notes)
    layouts = [edit.layout for edit in edits]
    opset, reason = max(((layout.opset, layout.reason) for layout in layouts), default=(0, ""))
    shared = frozenset[str]().union(*(layout.shared for layout in layouts))
    edited = raise_opset(proto, opset)
    apply_edits(edited, edits, names, shared, metadata or {})
    notes = (*_opset_note(opset_of(proto), opset_of(edited), reason), *_fold_note(edits))
    return Rewritten(edited, stored, notes)


def design(
    layer: Layer,
    table: ConstantTable,
    names: Names,
    form: StorageFormat,
    *,
    bits: int,
    signed: bool,
    axis: int | None,
    zero_point: bool,
) -> WeightLayout:
    """How the weight of a layer is going to lie in the file.

    Parameters
    ----------
    layer : Layer
    table : ConstantTable
        Of the model.
    names : Names
    form : StorageFormat
    bits, signed, axis
        As in `QuantizedWeight`.
    zero_point : bool
        Whether there is one that is not zero.

    Raises
    ------
    UnsupportedError
        If the weight is of a type that cannot be stored.
    DfmpcError
        If the layer does not belong to the model.
    """
    if layer.weight not in table:
        raise DfmpcError(f"layer {layer.name!r}: {layer.weight!r} is not a constant of the model")
    spec = WeightSpec(
        layer.name,
        layer.shape,
        axis,
        bits,
        signed,
        zero_point,
        table.data_type(layer.weight),
        wide=_miscomputed(layer),
    )
    own = names.layers[layer.name]
    return lay_out(spec, form, own.label, own.output, names.prefix)


def apply_edits(
    proto: ModelProto,
    edits: Sequence[Edit],
    names: Names,
    shared: frozenset[str],
    metadata: Mapping[str, str],
) -> None:
    """Edit a model in place: layers, the constants that they share, and metadata."""
    editor = Editor(proto, names)
    for edit in edits:
        editor.apply(edit)
    editor.finish(shared)
    ours = {key if key.startswith(PREFIX) else PREFIX + key: value for key, value in metadata.items()}
    helper.set_model_props(proto, {entry.key: entry.value for entry in proto.metadata_props} | ours)


def _folded(quantized: QuantizedLayer, layer: Layer, table: ConstantTable) -> QuantizedLayer:
    bias = None if layer.bias is None else floats(table[layer.bias]).ravel()
    return fold(quantized, layer, bias, floats(table[layer.weight]).dtype)


def _miscomputed(layer: Layer) -> bool:
    """Whether ONNX Runtime gets 2-bit weights of this layer wrong.

    Version 1.32 fuses their DequantizeLinear into MatMul and Gemm(transB=0) by default, and computes nonsense
    where the number of output features is not a multiple of 4. Behind any other node they are read as they
    should be.
    """
    return layer.op_type in ("MatMul", "Gemm") and layer.axis == 1 and layer.shape[-1] % 4 != 0


def _notes(
    layer: Layer, weight: QuantizedWeight, form: StorageFormat, layout: WeightLayout
) -> tuple[str, ...]:
    if (
        weight.bits == 2
        and _miscomputed(layer)
        and form.storage != "portable"
        and (form.unpack, form.weight_format) == ("none", "dq")
    ):
        why = f"ONNX Runtime gets 2-bit {layer.op_type} wrong where output features ({layer.shape[-1]}) are not a multiple of 4"
        return (f"stored as {layout.label}: {why}",)
    return ()


def _has_zero_point(weight: QuantizedWeight) -> bool:
    return weight.zero_point is not None and bool(np.any(weight.zero_point))


def _fold_note(edits: Sequence[Edit]) -> tuple[str, ...]:
    count = sum(edit.folded for edit in edits)
    return (
        (f"batch norm of {count} layer{'' if count == 1 else 's'} folded into scales and biases",)
        if count
        else ()
    )


def _opset_note(old: int, new: int, reason: str) -> tuple[str, ...]:
    if new > old:
        return (f"opset {old} -> {new} because of {reason}",)
    if new < old:
        return (f"opset {old} -> {new}, the highest that ONNX Runtime runs with DequantizeLinear",)
    return ()
