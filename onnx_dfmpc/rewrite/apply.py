"""Quantized layers -> an edited copy of the model."""

from __future__ import annotations

import itertools
import re
import string
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, helper, shape_inference

from onnx_dfmpc.activations.cost import float_layers
from onnx_dfmpc.errors import DfmpcError
from onnx_dfmpc.fold import fits, fold
from onnx_dfmpc.model.constants import ConstantTable, used_names
from onnx_dfmpc.model.opset import opset_of, raise_opset
from onnx_dfmpc.model.protobuf import skeleton, value_names
from onnx_dfmpc.rewrite.editor import Edit, Editor, PlainEdit, shared_names
from onnx_dfmpc.rewrite.halves import Halves, halves_of
from onnx_dfmpc.rewrite.vectors import layer_bytes
from onnx_dfmpc.spec import Layer, MatchReport, PlainWeight, QuantizedLayer, QuantizedWeight, StorageFormat
from onnx_dfmpc.spec.ops import shares_grid
from onnx_dfmpc.spec.planned import DEFAULT
from onnx_dfmpc.storage.halves import MOST, nearest, nearest_scale
from onnx_dfmpc.storage.layouts import lay_out
from onnx_dfmpc.storage.sharing import with_codes_of
from onnx_dfmpc.storage.types import WeightLayout, WeightNames, WeightSpec

PREFIX = "onnx_dfmpc."
"""What the keys of our metadata begin with."""


@dataclass(frozen=True)
class StoredLayer:
    """How one layer lies in the file.

    ``storage`` is the element type of its codes, such as "UINT2", or how they are packed, such as
    "3 levels, 5 in a byte"; ``bytes`` counts codes, scale, zero point and the nodes that make a float
    weight of them; ``tensors`` are the names of these, without what layers share. ``codes_of`` is the layer
    whose codes these are too, and which counts them.
    """

    storage: str
    bytes: int
    notes: tuple[str, ...] = ()
    tensors: frozenset[str] = frozenset()
    codes_of: str = ""


@dataclass(frozen=True, eq=False)
class Rewritten:
    """The edited model, what became of each layer by name, remarks on the model as a whole, the tensors that
    the quantized weights are made of, those float weights that have other names now, with their old ones, and
    layers whose biases were to have 16 bits and are too large for that.
    """

    proto: ModelProto
    layers: dict[str, StoredLayer]
    notes: tuple[str, ...]
    weights: frozenset[str] = frozenset()
    renamed: Mapping[str, str] = field(default_factory=dict)
    large_biases: frozenset[str] = frozenset()


def rewrite(
    proto: ModelProto,
    matched: MatchReport,
    layers: Sequence[QuantizedLayer],
    plain: Sequence[QuantizedLayer] = (),
    *,
    form: StorageFormat = DEFAULT,
    metadata: Mapping[str, str] | None = None,
    half: bool = False,
) -> Rewritten:
    """Copy of a model in which the weight of each given layer comes from integer codes.

    ``proto`` is the float model with its external data loaded; it is never changed. ``layers`` say what to
    put where: a ``bias`` is in the units of the constant that it replaces (Gemm multiplies its third input by
    ``beta``). ``plain`` are weights that are rounded to nearest. ``metadata`` is added to ``metadata_props``
    under ``onnx_dfmpc.``. With ``half``, new scales and biases are rounded to float16 numbers, wherever that
    does no harm (see `rewrite.halves`).

    Opset and IR version are raised only as far as the codes need. What the codes replace goes when nobody
    reads it any more. Names of nodes and tensors, doc strings, metadata, local functions and value infos
    stay; where a batch norm is folded, its node goes, and the layer writes the tensor that the batch norm
    wrote.

    RecipeError if the storage format is not registered; UnsupportedError if the model cannot be converted to
    the opset that the codes need, or new parameters do not fit its float type; DfmpcError if the layers are
    not of the model.
    """
    wanted = [one.name for one in (*layers, *plain)]
    by_name, specs = weights_by_name(matched, wanted), weight_specs(proto, matched, form)
    table, obstacles = ConstantTable(proto), fold_obstacles(proto, matched, form)
    halves = layer_halves(proto, matched, obstacles) if half else {}
    forms = layer_forms(proto, matched, form)
    edits: list[Edit] = []
    stored, large = {}, set()
    position = {name: index for index, name in enumerate(matched.names)}
    layers = sorted(layers, key=lambda one: position[one.name])
    leaders = _sharing(matched, layers)
    copies = _copies(matched, layers, leaders)
    several = {*leaders, *leaders.values()}
    done: dict[str, WeightLayout] = {}
    for quantized in layers:
        layer, obstacle = matched[quantized.name], obstacles.get(quantized.name)
        if quantized.weight.codes.shape != layer.shape:
            shapes = f"codes of shape {quantized.weight.codes.shape} for a weight {layer.shape}"
            raise DfmpcError(f"layer {layer.name!r}: {shapes}")
        if obstacle == "":
            bias = None if layer.bias is None else _floats(table[layer.bias]).ravel()
            dtype = _floats(table[layer.weight]).dtype
            quantized = fold(quantized, layer, bias, dtype, keeps_codes=layer.name in several)
        kind = halves.get(layer.name, Halves())
        if kind.bias and quantized.bias is not None and np.abs(quantized.bias).max(initial=0.0) > MOST:
            large.add(layer.name)
        quantized = _rounded(quantized, kind)
        weight = quantized.weight
        nonzero = weight.zero_point is not None and bool(np.any(weight.zero_point))
        parts = {"bits": weight.bits, "signed": weight.signed, "axis": weight.axis, "zero_point": nonzero}
        spec = specs[layer.name](**parts, vector=weight.vector)
        layout = lay_out(spec, forms[layer.name])
        if layer.name in leaders:
            layout = with_codes_of(layout, done[leaders[layer.name]])
        done[layer.name] = layout
        norm = quantized.batch_norm
        edits.append(Edit(layer, layout, weight, quantized.bias, norm, folded=obstacle == ""))
        not_folded = f"its batch norm is not folded: {obstacle}" if obstacle else ""
        notes = tuple(note for note in (layout.note, not_folded, copies.get(layer.name)) if note)
        packed = form.slim and halves.get(layer.name, Halves()).scale
        size = layer_bytes(layout, packed=packed)
        own, first = _own_names(edits[-1]), leaders.get(layer.name, "")
        stored[layer.name] = StoredLayer(layout.storage, size, notes, own, first)
    for name, first in leaders.items():  # by what is left one can tell the readers of both apart
        read = {each for node in done[name].nodes for each in node.input}
        stored[first] = replace(stored[first], tensors=stored[first].tensors - read)
    plain_edits = []
    for quantized in plain:
        weight = quantized.weight
        layout = plain_layout(specs[quantized.name], weight.bits, by_name[quantized.name].axis, form)
        plain_edits.append(PlainEdit(layout, layout.fill(weight)))
        names = _own_names(plain_edits[-1])
        stored[quantized.name] = StoredLayer(layout.storage, layout.size, tensors=names)
    every: list[Edit | PlainEdit] = [*edits, *plain_edits]
    layouts = [edit.layout for edit in every]
    # The narrowest type decides: INT2 needs opset 25 (IR 13), INT4 21 (IR 10), a scale per channel 13 (IR 7).
    opset, reason = max(((layout.opset, layout.reason) for layout in layouts), default=(0, ""))
    edited = raise_opset(proto, opset, form.runtime)
    apply_edits(edited, edits, plain_edits, shared_names(layouts), metadata or {})
    folded = sum(edit.folded for edit in edits)
    notes = _opset_note(opset_of(proto), opset_of(edited), reason)
    if folded:
        notes += (f"batch norm of {folded} layer{'' if folded == 1 else 's'} folded into scales and biases",)
    given = {edit.layout.spec.names.output: edit.layout.spec.names.weight for edit in edits}
    renamed = {new: old for new, old in given.items() if old and new != old}
    return Rewritten(edited, stored, notes, tensor_names(every), renamed, frozenset(large))


def _sharing(matched: MatchReport, layers: Sequence[QuantizedLayer]) -> dict[str, str]:
    """Layers that share the codes of an earlier one, and that one, by name: their codes are the same."""
    weights = {one.name: one.weight for one in layers}
    found = matched.sharing({name: weight.bits for name, weight in weights.items()})
    return {name: first for name, first in found.items() if _same_codes(weights[name], weights[first])}


def _same_codes(one: QuantizedWeight, other: QuantizedWeight) -> bool:
    if (one.bits, one.signed, one.vector) != (other.bits, other.signed, other.vector):
        return False
    zeros, others = (0 if weight.zero_point is None else weight.zero_point for weight in (one, other))
    same = one.codes is other.codes or np.array_equal(one.codes, other.codes)
    return same and bool(np.all(np.equal(zeros, others)))


def _copies(
    matched: MatchReport, layers: Sequence[QuantizedLayer], leaders: Collection[str]
) -> dict[str, str]:
    """Remarks on layers that have codes of their own for a weight that others read too, by name."""
    names = [one.name for one in layers if one.name not in leaders]
    floats = {layer.weight: layer.name for layer in matched.layers if layer.name not in {*names, *leaders}}
    found = {
        name: f"its weight stays in the file beside the codes: '{floats[matched[name].weight]}' is float"
        for name in names
        if matched[name].weight in floats
    }
    others = matched.sharing(dict.fromkeys(names))
    return found | {name: f"codes of its own: other bits than those of '{others[name]}'" for name in others}


def _rounded(quantized: QuantizedLayer, halves: Halves) -> QuantizedLayer:
    """A layer with float16 numbers where it is to have them; one scale for a whole tensor stays."""
    weight, bias = quantized.weight, quantized.bias
    if halves.scale and weight.axis is not None:
        weight = replace(weight, scale=nearest_scale(weight.scale))
    if halves.bias and bias is not None:
        bias = nearest(bias)
    return replace(quantized, weight=weight, bias=bias)


def weights_by_name(matched: MatchReport, names: Collection[str]) -> dict[str, Layer | PlainWeight]:
    """Layers and other weights of a match report by name. DfmpcError if one of ``names`` is missing."""
    weights = {one.name: one for one in matched.weights}
    for name in names:
        if name not in weights:
            raise DfmpcError(f"layer {name!r} is not in the match report")
    return weights


def plain_layout(spec: partial[WeightSpec], bits: float, axis: int, form: StorageFormat) -> WeightLayout:
    """How a weight is stored that is rounded to nearest: its readers want floats, once and for all."""
    spec_of_bits = spec(bits=bits, signed=True, axis=axis, zero_point=False)
    return lay_out(spec_of_bits, replace(form, unpack="float", activations=None))


def tensor_names(edits: Sequence[Edit | PlainEdit]) -> frozenset[str]:
    """Tensors that quantized weights are made of."""
    return frozenset(shared_names(edit.layout for edit in edits)).union(*map(_own_names, edits))


def _own_names(edit: Edit | PlainEdit) -> frozenset[str]:
    layout = edit.layout
    made = [name for node in layout.nodes for name in node.output]
    return frozenset((*made, *(one.name for one in layout.tensors), *(one.name for one in layout.constants)))


def layer_forms(proto: ModelProto, matched: MatchReport, form: StorageFormat) -> dict[str, StorageFormat]:
    """How every layer is stored, by name: those that are better computed in float are unpacked for that."""
    floats = float_layers(proto, matched) if form.activations is not None else {}
    plain = replace(form, unpack="float", activations=None)
    return {layer.name: plain if layer.name in floats else form for layer in matched.layers}


def weight_specs(
    proto: ModelProto, matched: MatchReport, form: StorageFormat
) -> dict[str, partial[WeightSpec]]:
    """What is known of every weight, by the name of its layer or its own: its ``bits``, ``signed``, ``axis``,
    ``zero_point`` and ``vector`` are still to come. DfmpcError if a layer is not of the model.
    """
    table, names = ConstantTable(proto), _choose_names(proto, matched, slim=form.slim)
    specs = {}
    for layer in matched.layers:
        if layer.weight not in table:
            raise DfmpcError(f"layer {layer.name!r}: {layer.weight!r} is not a constant of the model")
        data_type, why = table.data_type(layer.weight), _why_two_bits_fail(layer)
        specs[layer.name] = partial(WeightSpec, layer.name, layer.shape, data_type, names[layer.name], why)
    for one in matched.plain:
        data_type = table.data_type(one.weight)
        specs[one.name] = partial(WeightSpec, one.name, one.shape, data_type, names[one.name], "")
    return specs


def _choose_names(proto: ModelProto, matched: MatchReport, *, slim: bool) -> dict[str, WeightNames]:
    """Short names for the new tensors of every layer, none of which the model has yet.

    The float weight keeps its own name where the layer alone reads it: then the layer's node stays as it is.
    In a slim model it has a short one as well.
    """
    taken = value_names(proto.graph) | {node.name for node in proto.graph.node}
    prefix = "q"
    while any(re.match(rf"{prefix}[\d_]", name) for name in taken):
        prefix += "_"
    readers = used_names(proto.graph)
    nodes = [node for node in proto.graph.node if len(node.input) > 1]
    weights = {name: node.input[1] for node in nodes for name in node.output}
    names = {}
    count = len(matched.weights)
    labels = _letters(count, taken) if slim else [f"{prefix}{position}" for position in range(count)]
    for layer, label in zip(matched.layers, labels, strict=False):
        weight = weights.get(layer.output, "")
        alone = weight if readers[weight] == 1 else ""
        fresh = f"{label}w"
        kept = alone and not (slim and len(fresh) < len(alone))
        names[layer.name] = WeightNames(label, alone if kept else fresh, prefix, alone)
    for one, label in zip(matched.plain, labels[len(matched.layers) :], strict=True):
        names[one.name] = WeightNames(label, one.weight, prefix)
    return names


def _letters(count: int, taken: Collection[str]) -> list[str]:
    """Labels of one length, as short as can be. None is a name of the model, with one more letter neither."""
    for length in itertools.count(1):
        short = {name[:length] for name in taken if len(name) <= length + 1}
        rest = itertools.product(string.ascii_letters + string.digits, repeat=length - 1)
        # Names that begin with an a are those of quantized activations.
        every = (first + "".join(more) for more in rest for first in string.ascii_letters[1:])
        labels = list(itertools.islice((one for one in every if one not in short), count))
        if len(labels) == count:
            return labels
    raise AssertionError("there is always a longer label")


def _why_two_bits_fail(layer: Layer) -> str:
    """Why ONNX Runtime computes a layer wrong from 2-bit codes; "" where it does not.

    Version 1.32 fuses their DequantizeLinear into MatMul and Gemm(transB=0) by default, and then computes
    nonsense (a relative error of about 1) where the number of output features is no multiple of 4.
    tests/test_storage.py fails the day that it is mended.
    """
    features = layer.shape[-1]
    if layer.op_type not in ("MatMul", "Gemm") or layer.axis != 1 or features % 4 == 0:
        return ""
    where = f"where output features ({features}) are not a multiple of 4"
    return f"ONNX Runtime gets 2-bit {layer.op_type} wrong {where}"


def apply_edits(
    proto: ModelProto,
    edits: Sequence[Edit],
    plain: Sequence[PlainEdit],
    shared: Collection[str],
    metadata: Mapping[str, str],
) -> None:
    """Edit a model in place: layers, other weights, the constants that they share, and metadata."""
    editor = Editor(proto)
    for edit in edits:
        editor.apply(edit)
    for one in plain:
        editor.apply_plain(one)
    editor.finish(shared)
    ours = {key if key.startswith(PREFIX) else PREFIX + key: value for key, value in metadata.items()}
    helper.set_model_props(proto, {entry.key: entry.value for entry in proto.metadata_props} | ours)


def fold_obstacles(proto: ModelProto, matched: MatchReport, form: StorageFormat) -> dict[str, str]:
    """Why the batch norm of a layer cannot be folded into scales and biases, by name; "" where it can.

    Only layers with a batch norm are in it, and none where the form does not fold.
    """
    if form.fold_batch_norm == "no":
        return {}
    table = ConstantTable(proto)
    layers = [layer for layer in matched.layers if layer.batch_norm is not None]
    matrices = _matrices(proto) if any(layer.op_type == "MatMul" for layer in layers) else frozenset()
    return {layer.name: _fold_obstacle(layer, table, matrices) for layer in layers}


def layer_halves(proto: ModelProto, matched: MatchReport, obstacles: Mapping[str, str]) -> dict[str, Halves]:
    """Which layers get float16 numbers, by name; ``obstacles`` say whose batch norm is folded."""
    table = ConstantTable(proto)
    return {
        layer.name: halves_of(
            layer,
            _floats(table[layer.weight]),
            None if layer.bias is None else _floats(table[layer.bias]).ravel(),
            folded=obstacles.get(layer.name) == "",
        )
        for layer in matched.layers
    }


def _fold_obstacle(layer: Layer, table: ConstantTable, matrices: frozenset[str]) -> str:
    if shares_grid(layer):
        return "the groups of a ConvTranspose share one scale"
    # Batch norm has its channels on axis 1, MatMul on the last axis: in a matrix they are the same.
    if layer.op_type == "MatMul" and layer.output not in matrices:
        return "its input is not known to be a matrix, and in larger ones batch norm has another axis"
    weight = _floats(table[layer.weight])
    if not fits(layer, weight, None if layer.bias is None else _floats(table[layer.bias]).ravel()):
        return f"scales or biases would leave the range of {weight.dtype}"
    return ""


def _matrices(proto: ModelProto) -> frozenset[str]:
    """Tensors that are known to have two dimensions."""
    graph = shape_inference.infer_shapes(skeleton(proto)).graph
    shapes = {value.name: value.type.tensor_type for value in (*graph.value_info, *graph.output)}
    return frozenset(
        name for name, kind in shapes.items() if kind.HasField("shape") and len(kind.shape.dim) == 2
    )


def _floats(array: NDArray[np.generic]) -> NDArray[np.floating]:
    """Numbers in float32, or in float16 where they are."""
    return array.astype(np.float16 if array.dtype == np.float16 else np.float32, copy=False)


def _opset_note(old: int, new: int, reason: str) -> tuple[str, ...]:
    if new > old:
        return (f"opset {old} -> {new} because of {reason}",)
    if new < old:
        return (f"opset {old} -> {new}, the highest that ONNX Runtime runs with DequantizeLinear",)
    return ()
