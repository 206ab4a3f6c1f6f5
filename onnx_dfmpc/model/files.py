"""Read models, make sure that they are sound, and save them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, checker, defs, helper, shape_inference
from onnx.external_data_helper import uses_external_data

from onnx_dfmpc.errors import ModelError, RecipeError
from onnx_dfmpc.model.constants import ConstantTable
from onnx_dfmpc.model.external import (
    MAPPED,
    array_of,
    bytes_of,
    can_map,
    entry,
    fits_one_file,
    inlined,
    is_mapped,
    load_external,
    map_inline,
    map_tensor,
    mapped_tensors,
)
from onnx_dfmpc.model.ir import is_ir_model, to_proto
from onnx_dfmpc.model.normalize import normalize
from onnx_dfmpc.model.opset import changed_operators, opset_of
from onnx_dfmpc.model.protobuf import (
    copy_fields,
    graphs,
    is_large,
    skeleton,
    tensors,
    undecodable,
    without_initializers,
)
from onnx_dfmpc.model.writing import Draft, draft, draft_pair, publish, reason, require_writable
from onnx_dfmpc.spec.ops import OPS, op_key
from onnx_dfmpc.spec.runtimes import NEWEST_OPSET

if TYPE_CHECKING:
    import onnx_ir

Model: TypeAlias = "str | os.PathLike[str] | bytes | ModelProto | gs.Graph | onnx_ir.Model"
"""Whatever `load` takes: a path, the bytes of a file, or a model in memory."""

MAX_IR = 14
"""Highest IR version that ONNX Runtime reads."""

DATA_FIELDS = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data")
"""Fields of TensorProto that can hold numbers."""

_GIVEN = "the given model"
_EXPORT = "export the model again"
_TRAIN = "train or export the model again"


# Loading


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model that passed every check of `load`.

    ``proto`` has its external data in memory, unless that is large: then the tensors are `mapped
    <onnx_dfmpc.model.external>`. It is ours, not the caller's, and read-only by agreement.
    ``path`` is None for a model in memory. ``sha256`` is that of the file's bytes (without external data) or
    of the serialized model, ``size`` the bytes on disk with external data, or what the model would take
    there. ``files`` are the file and every file of external data: what must never be written over.
    """

    proto: ModelProto
    path: Path | None
    sha256: str
    size: int
    files: tuple[Path, ...] = ()

    @property
    def label(self) -> str:
        """What to call the model in a message."""
        return _GIVEN if self.path is None else str(self.path)

    @property
    def opset(self) -> int:
        """Version of the standard operators."""
        return opset_of(self.proto)


def load(model: Model) -> LoadedModel:
    """Load a model that passes `verify`; ModelError otherwise. Files and objects are not changed."""
    if isinstance(model, bytes):
        return _load_proto(_parse(model, _GIVEN, "pass all bytes of a binary .onnx file, or its path"))
    if isinstance(model, ModelProto):
        return _load_proto(model)
    if isinstance(model, gs.Graph):
        return _load_proto(_export(model))
    if is_ir_model(model):
        return _load_proto(_from_ir(model))
    if isinstance(model, str | os.PathLike):
        return _load_file(Path(model))
    raise ModelError(
        f"a {type(model).__name__} is not a model",
        hint="pass a path, the bytes of a file, an onnx.ModelProto, an onnx_graphsurgeon.Graph or an "
        "onnx_ir.Model",
    )


def _load_file(path: Path) -> LoadedModel:
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file", hint="check the path of the model") from error
    except (OSError, ValueError) as error:
        hint = "pass the .onnx file, and check its permissions"
        raise ModelError(f"{path}: cannot read: {reason(error)}", hint=hint) from error
    whole = "pass a complete binary .onnx file"
    if path.suffix == ".data":
        whole = "weights that belong to a model: pass the .onnx file beside it"
    proto = _parse(data, str(path), whole if path.suffix in (".onnx", ".data") else _EXPORT_FIRST)
    external = _load_external_data(proto, path)
    map_inline(proto, data, path)
    _normalize(proto, str(path))
    verify(proto, str(path))
    size = len(data) + sum(file.stat().st_size for file in external)
    return LoadedModel(proto, path, hashlib.sha256(data).hexdigest(), size, (path, *external))


_AGAIN = "download the file itself"
_EXPORT_FIRST = "export the network to ONNX first, such as with torch.onnx.export"

OTHERS: tuple[tuple[re.Pattern[bytes], str, str], ...] = (
    (re.compile(rb"version https://git-lfs"), "a pointer of Git LFS, not the model", "git lfs pull"),
    (re.compile(rb"\s*<(!doctype|html|\?xml)", re.I), "a web page, not a model", _AGAIN),
    (re.compile(rb"\s*[{\[]\s*[\"{\[]"), "a JSON text, not a model", _AGAIN),
    (re.compile(rb"....TFL3", re.S), "a TensorFlow Lite model, not ONNX", _EXPORT_FIRST),
    (re.compile(rb"\x89HDF"), "a Keras model, not ONNX", _EXPORT_FIRST),
    (
        re.compile(rb"PK\x03\x04"),
        "an archive, such as a PyTorch model, not ONNX",
        "unzip it, where the model is in it; a PyTorch network is exported with torch.onnx.export",
    ),
    (re.compile(rb"\x1f\x8b"), "compressed", "gunzip it"),
)
"""How files begin that people take for models, what they are, and what helps."""


def _parse(data: bytes, label: str, hint: str) -> ModelProto:
    if not data:
        raise ModelError(f"{label}: the file is empty", hint="export or download the model again")
    for begins, what, helps in OTHERS:
        if begins.match(data):
            raise ModelError(f"{label}: {what}", hint=helps)
    proto = ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise ModelError(f"{label}: not an ONNX model, or only a part of one", hint=hint) from error
    return proto


def _load_external_data(proto: ModelProto, path: Path) -> list[Path]:
    """Load external data into ``proto``, or map what is large, and return the files that it came from."""
    files: dict[Path, None] = {}
    external = [tensor for tensor in tensors(proto) if uses_external_data(tensor)]
    mapped = sum(4 * prod(tensor.dims) for tensor in external) >= MAPPED
    initializers = {id(tensor) for tensor in proto.graph.initializer}
    for tensor in external:
        location = entry(tensor, "location")
        try:
            if mapped and id(tensor) in initializers and _map_external(tensor, path):
                files[path.parent / location] = None
                continue
            load_external(tensor, path.parent)
        except (checker.ValidationError, ValueError, OSError) as error:
            raise ModelError(
                f"{path}: external data {location!r} of tensor {tensor.name!r}: {reason(error)}",
                hint="keep the data file next to the model, complete and under the name it was written with",
            ) from error
        files[path.parent / location] = None
    return list(files)


def _map_external(tensor: TensorProto, path: Path) -> bool:
    """Let a tensor point to where its external data is, checked as onnx checks it; False where it has to be
    loaded.
    """
    location, offset = entry(tensor, "location"), int(entry(tensor, "offset") or 0)
    file, length = path.parent / location, int(entry(tensor, "length") or 4 * prod(tensor.dims))
    if not can_map(tensor, length):
        return False
    # onnx refuses absolute paths, links and paths that leave the directory when it reads: one byte of it.
    trial = TensorProto(name=tensor.name, data_type=TensorProto.UINT8, dims=[1])
    trial.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", "1")):
        trial.external_data.add(key=key, value=value)
    load_external(trial, path.parent)
    if file.stat().st_size < offset + length:
        raise ValueError(f"{offset + length} bytes are wanted, and the file has {file.stat().st_size}")
    map_tensor(tensor, file, offset, length)
    return True


def external_files(path: Path) -> tuple[Path, ...]:
    """Files of external data that a model names; none where it cannot be read, which `load` says better."""
    proto = ModelProto()
    try:
        if path.is_file():
            proto.ParseFromString(path.read_bytes())
    except (OSError, ValueError, DecodeError):
        return ()
    names = {entry(tensor, "location") for tensor in tensors(proto) if uses_external_data(tensor)}
    return tuple(path.parent / name for name in sorted(names))


def _export(graph: gs.Graph) -> ModelProto:
    # The exporter adds the domains in use to those of the graph and of its functions: not to the caller's.
    ours = graph.copy()
    ours.functions = [function.copy() for function in graph.functions]
    for copied, original in zip((ours, *ours.functions), (graph, *graph.functions), strict=True):
        copied.import_domains = list(original.import_domains) if original.import_domains else None
    ours.producer_name, ours.producer_version = graph.producer_name, graph.producer_version
    try:
        proto: ModelProto = gs.export_onnx(ours)
    except Exception as error:  # graphsurgeon raises its own, AssertionError, TypeError, ValueError ...
        raise ModelError(f"{_GIVEN}: graphsurgeon refuses it: {reason(error)}", hint=_EXPORT) from error
    return proto


def _from_ir(model: onnx_ir.Model) -> ModelProto:
    try:
        return to_proto(model)
    except Exception as error:  # a data file that is gone or too short, a value without a name ...
        hint = "keep the data file of the model where it was loaded from"
        raise ModelError(f"{_GIVEN}: onnx-ir cannot serialize it: {reason(error)}", hint=hint) from error


def _load_proto(model: ModelProto) -> LoadedModel:
    for tensor in tensors(model):
        if uses_external_data(tensor):
            raise ModelError(
                f"{_GIVEN}: the external data of tensor {tensor.name!r} is not loaded",
                hint="pass the path of the model instead",
            )
    proto = ModelProto()
    proto.CopyFrom(model)
    _normalize(proto, _GIVEN)
    verify(proto, _GIVEN)
    digest, size = hashlib.sha256(), 0
    for part in _parts(proto):
        digest.update(part)
        size += len(part)
    return LoadedModel(proto, None, digest.hexdigest(), size)


def _normalize(proto: ModelProto, label: str) -> None:
    try:
        normalize(proto)
    except Exception as error:  # NumPy's errors on tensors whose numbers do not fit their shape
        raise ModelError(f"{label}: {reason(error)}", hint=_EXPORT) from error


def _parts(proto: ModelProto) -> Iterator[bytes]:
    """Serialize in one piece or, where protobuf's 2 GB do not allow it, initializer by initializer."""
    try:
        yield proto.SerializeToString(deterministic=True)
    except (EncodeError, ValueError):
        yield without_initializers(proto).SerializeToString(deterministic=True)
        for tensor in proto.graph.initializer:
            yield tensor.SerializeToString(deterministic=True)


# Checking: what onnx.load, the checker and runtimes leave out


def verify(proto: ModelProto, label: str) -> None:
    """Raise ModelError unless a model, with its data in memory, is sound.

    It must have nodes, known versions, no name twice, weights without NaN that fit their inputs, batch norms
    with ``var + epsilon > 0``, and pass ``onnx.checker`` with strict shape inference.
    """
    if not proto.graph.node:  # onnx.load is content with an empty file
        hint = "pass the .onnx file of a float network"
        raise ModelError(f"{label}: there is no graph in it, or one without nodes", hint=hint)
    if field := undecodable(proto):
        raise ModelError(f"{label}: a {field} in it is not UTF-8", hint=_EXPORT)
    _verify_versions(proto, label)
    _verify_inputs(proto, label)
    _verify_structure(proto, label)
    _verify_weights(proto, label)


def _verify_versions(proto: ModelProto, label: str) -> None:
    if proto.ir_version > MAX_IR:
        raise ModelError(
            f"{label}: IR version {proto.ir_version} is newer than {MAX_IR}",
            hint="export it with an older version of onnx",
        )
    opset, newest = opset_of(proto), defs.onnx_opset_version()
    if opset == 0:
        raise ModelError(f"{label}: no opset_import for the standard operators", hint=_EXPORT)
    older = f"export it with opset {NEWEST_OPSET} or lower"
    if not 1 <= opset <= newest:
        raise ModelError(f"{label}: opset {opset} is unknown (1 to {newest} are known)", hint=older)
    if opset > NEWEST_OPSET and (changed := changed_operators(proto, NEWEST_OPSET)):
        raise ModelError(
            f"{label}: opset {opset} is above {NEWEST_OPSET}, the highest that ONNX Runtime runs with "
            f"quantized weights, and {', '.join(changed)} changed since",
            hint=older,
        )


def _verify_inputs(proto: ModelProto, label: str) -> None:
    """ONNX Runtime crashes on a Concat with an input of no name; the checker lets it pass. Inputs that are
    optional may be left out, but not one of any number.
    """
    nodes = [node for graph in graphs(proto.graph) for node in graph.node]
    for node in [*nodes, *(node for function in proto.functions for node in function.node)]:
        if "" in node.input and defs.has(node.op_type, domain=node.domain):
            inputs = defs.get_schema(node.op_type, domain=node.domain).inputs
            several = bool(inputs) and inputs[-1].option == defs.OpSchema.FormalParameterOption.Variadic
            if several and "" in node.input[len(inputs) - 1 :]:
                name = next(filter(None, (node.name, *node.output)), "")
                raise ModelError(f"{label}: node {name!r}: an input has no name", hint=_EXPORT)


def _verify_structure(proto: ModelProto, label: str) -> None:
    what = ""
    try:
        for tensor in tensors(proto):
            what = f"data of tensor {tensor.name!r} of shape {list(tensor.dims)}: "
            if not is_mapped(tensor):  # whose length was checked when it was mapped
                array_of(tensor)
        what, outline = "", skeleton(proto)
        _drop_untyped_outputs(outline)
        checker.check_model(outline)
        inferred = shape_inference.infer_shapes(outline, check_type=True, strict_mode=True)
    except Exception as error:  # ValidationError, InferenceError, RuntimeError, ValueError, TypeError ...
        raise ModelError(f"{label}: {what}{reason(error)}", hint=_EXPORT) from error
    _verify_channels(inferred, label)


def _drop_untyped_outputs(outline: ModelProto) -> None:
    """ONNX Runtime infers the type and shape of an output; the checker wants them in the file."""
    outputs = outline.graph.output
    typed = [value for value in outputs if value.type.tensor_type.HasField("shape")]
    if len(typed) < len(outputs) and all(
        value.type.WhichOneof("value") in ("tensor_type", None) for value in outputs
    ):
        kept = [type(value).FromString(value.SerializeToString()) for value in typed]
        del outputs[:]
        outputs.extend(kept)


def _verify_channels(inferred: ModelProto, label: str) -> None:
    """Refuse a convolution whose weight does not fit its input, which shape inference lets pass."""
    graph = inferred.graph
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    shapes |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        operator = OPS.get(op_key(node.op_type, node.domain))
        if operator is None or not operator.spatial:
            continue
        x, w = (shapes.get(name, []) for name in node.input[:2])
        if len(x) < 2 or len(w) < 2 or not x[1] or not w[1]:
            continue
        attributes = _attributes(node)
        expected, _ = operator.channels(w, attributes)
        if x[1] != expected:
            group = operator.group(attributes)
            takes = f"takes {expected} channels, but the input has {x[1]}"
            raise _at(node, label, f"weight {node.input[1]!r} of shape {w}, group {group}, {takes}")


def _verify_weights(proto: ModelProto, label: str) -> None:
    table = ConstantTable(proto)
    for node in proto.graph.node:
        operator = op_key(node.op_type, node.domain)
        if operator not in OPS and operator != "BatchNormalization":
            continue
        constants = {position: name for position, name in enumerate(node.input) if name in table}
        for name in constants.values():
            if table.is_mapped(name):  # `match` says so of one layer, once its numbers are read
                continue
            what, array = f"tensor {table.source(name)!r}", table[name]
            if operator not in OPS and array.size == 0:
                raise _at(node, label, f"{what} of shape {list(array.shape)} is empty")
            # Infinity may be meant, as in a mask: such a layer stays float (see `match`).
            bad = np.isnan(array) if operator in OPS else ~np.isfinite(array)
            if bad.any():
                raise _at(node, label, f"{what} holds NaN or infinity", _TRAIN)
        if operator == "BatchNormalization":
            _verify_batch_norm(node, {i: table[name] for i, name in constants.items()}, label)


def _verify_batch_norm(node: NodeProto, constants: Mapping[int, NDArray[np.generic]], label: str) -> None:
    """``constants`` are the inputs that are, by position: x, gamma, beta, mean, variance."""
    shapes = {array.shape: None for position, array in constants.items() if position > 0}
    if len(shapes) > 1:
        raise _at(node, label, f"batch-norm parameters differ in shape: {', '.join(map(str, shapes))}")
    epsilon = _attributes(node).get("epsilon", 1e-5)
    if 4 in constants and np.any((variance := constants[4].astype(np.float64)) + epsilon <= 0):
        total = f"variance {variance.min():.3g} + epsilon {epsilon:.3g}"
        raise _at(node, label, f"{total} in {node.input[4]!r} is not positive", _TRAIN)


def _attributes(node: NodeProto) -> dict[str, float]:
    """Attributes of a node that are numbers."""
    values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {name: value for name, value in values.items() if isinstance(value, int | float)}


def _at(node: NodeProto, label: str, what: str, hint: str = _EXPORT) -> ModelError:
    return ModelError(f"{label}: node {(node.name or node.output[0])!r}: {what}", hint=hint)


# Writing


def save(
    proto: ModelProto,
    path: str | os.PathLike[str],
    *,
    external_data: bool = False,
    overwrite: bool = False,
    protected: Collection[Path] = (),
) -> int:
    """Write a model, whole or not at all, and return the bytes that it takes on disk.

    The same model gives the same bytes; ``proto``, with its data in memory, is not changed. ``external_data``
    puts large initializers into a file beside the target; what is too large for one file gets that unasked.
    RecipeError where `require_writable` refuses the target, or it cannot be written.
    """
    with drafted(
        proto, path, external_data=external_data, overwrite=overwrite, protected=protected
    ) as drafts:
        publish(drafts)
        return sum(one.size for one in drafts)


@contextmanager
def drafted(
    proto: ModelProto,
    path: str | os.PathLike[str],
    *,
    external_data: bool = False,
    overwrite: bool = False,
    protected: Collection[Path] = (),
) -> Iterator[tuple[Draft, ...]]:
    """The files of `save`, complete and not yet in place."""
    external_data = external_data or not fits_one_file(proto)
    require_writable(path, external_data=external_data, overwrite=overwrite, protected=protected)
    target = Path(path)
    if external_data:
        small = partial(_pointing, proto, target)
        with draft_pair(target, _large_data(proto), small, overwrite=overwrite, protected=protected) as pair:
            yield pair
    else:
        content = _serialize(inlined(proto) if any(mapped_tensors(proto)) else proto, target)
        with draft(target, content, overwrite=overwrite, protected=protected) as whole:
            yield (whole,)


def _pointing(proto: ModelProto, target: Path, location: str) -> bytes:
    """The model without the data that lies in the file ``location``."""
    return _serialize(_without_data(proto, location), target)


def _serialize(proto: ModelProto, target: Path) -> bytes:
    try:
        data: bytes = proto.SerializeToString(deterministic=True)
    except (EncodeError, ValueError) as error:
        raise RecipeError(
            f"{target}: the model does not fit the 2 GB of one file",
            hint="write the weights as external data (--save-as-external-data)",
        ) from error
    return data


def _is_external(tensor: TensorProto) -> bool:
    return is_mapped(tensor) or (is_large(tensor) and tensor.data_type != TensorProto.STRING)


def _large_data(proto: ModelProto) -> Iterator[bytes]:
    """Yield the bytes of every initializer that goes into the data file, in order."""
    for tensor in proto.graph.initializer:
        if _is_external(tensor):
            yield bytes_of(tensor)


def _without_data(proto: ModelProto, location: str) -> ModelProto:
    """Copy of a model whose large initializers point into the file ``location``."""
    small, data, offset = without_initializers(proto), _large_data(proto), 0
    for tensor in proto.graph.initializer:
        stored = small.graph.initializer.add()
        if not _is_external(tensor):
            stored.CopyFrom(tensor)
            continue
        copy_fields(tensor, stored, without=(*DATA_FIELDS, "external_data"))
        length = len(next(data))
        stored.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", offset), ("length", length)):
            stored.external_data.add(key=key, value=str(value))
        offset += length
    return small
