"""Raise a model's opset and IR version without losing what the converter forgets."""

from __future__ import annotations

from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, ValueInfoProto, defs, helper
from onnx.version_converter import convert_version

from onnx_dfmpc.errors import UnsupportedError
from onnx_dfmpc.model.protobuf import copy_fields, graphs, skeleton, subgraphs
from onnx_dfmpc.spec.runtimes import ANY, Runtime

OPTIONAL_SCALES = 13
"""Opset from which on a Resize may have sizes alone."""

DEFAULT_DOMAINS = ("", "ai.onnx")


def opset_of(proto: ModelProto) -> int:
    """Version of the standard operators that a model imports; 0 if it imports none."""
    return max((entry.version for entry in proto.opset_import if entry.domain in DEFAULT_DOMAINS), default=0)


def changed_operators(proto: ModelProto, target: int) -> tuple[str, ...]:
    """Operators used by a model whose definition differs between its own opset and ``target``, sorted."""
    current = opset_of(proto)
    used = _operators(proto.graph).union(*map(_operators, proto.functions))
    return tuple(sorted(op for op in used if _since(op, current) != _since(op, target)))


def raise_opset(proto: ModelProto, minimum: int, runtime: Runtime = ANY) -> ModelProto:
    """Copy of a model at opset ``minimum`` or later, with the IR version that goes with it.

    Where no operator in use changed in between, only the number is raised. Elsewhere onnx's converter says
    which nodes must look different, and only those are taken from it: names, doc strings, metadata, local
    functions, value infos stay, and so does every weight, which it never sees. A model above what the runtime
    reads is renumbered to that if none of its operators changed since, else it is an UnsupportedError, as is
    one that the converter cannot convert.
    """
    result = ModelProto()
    result.CopyFrom(proto)
    current = opset_of(proto)
    most = runtime.opset
    target = max(minimum, min(current, most))
    if target > most:
        raise UnsupportedError(
            f"the codes need opset {target}, and {runtime.title} reads no more than {most}",
            hint="choose storage = table, unpack = float, or another runtime",
        )
    if target != current:
        if changed := changed_operators(proto, target):
            if target < current:
                raise UnsupportedError(
                    f"opset {current} is above {most}, the highest that {runtime.title} reads, and "
                    f"{', '.join(changed)} changed in between",
                    hint=f"export the model with opset {most} or lower",
                )
            _merge(result.graph, _convert(skeleton(proto), target).graph)
            for function in result.functions:
                _merge(function, _convert(_as_model(function, proto), target).graph)
        _set_opset(result, target)
        if target >= OPTIONAL_SCALES > current:
            _drop_empty_scales(result)
    _raise_ir(result)
    # Later versions of the format only add fields, which older readers pass over.
    result.ir_version = min(result.ir_version, runtime.ir)
    return result


def _drop_empty_scales(proto: ModelProto) -> None:
    """Leave out the scales of a Resize that is given sizes: opset 11 wanted an empty tensor in their place,
    and later ones take it for both.
    """
    empty = {tensor.name for graph in graphs(proto.graph) for tensor in graph.initializer if 0 in tensor.dims}
    nodes = [node for graph in graphs(proto.graph) for node in graph.node]
    for node in nodes:
        if node.op_type == "Constant" and any(0 in attribute.t.dims for attribute in node.attribute):
            empty.update(node.output)
    for node in nodes:
        if node.op_type == "Resize" and len(node.input) > 3 and node.input[3] and node.input[2] in empty:
            node.input[2] = ""


def _operators(graph: GraphProto | FunctionProto) -> set[str]:
    names: set[str] = set()
    for node in graph.node:
        if node.domain in DEFAULT_DOMAINS:
            names.add(node.op_type)
        for body in subgraphs(node):
            names |= _operators(body)
    return names


def _since(op_type: str, opset: int) -> int:
    try:
        return int(defs.get_schema(op_type, opset, "").since_version)
    except defs.SchemaError:
        return 0


def _as_model(function: FunctionProto, proto: ModelProto) -> ModelProto:
    """Dress a local function up as a model, for a converter that only knows graphs."""
    graph = GraphProto(name=function.name, node=function.node)
    graph.input.extend(ValueInfoProto(name=name) for name in function.input)
    graph.output.extend(ValueInfoProto(name=name) for name in function.output)
    return ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import, graph=graph)


def _convert(proto: ModelProto, target: int) -> ModelProto:
    try:
        return convert_version(proto, target)
    except Exception as error:  # the converter raises whatever its C++ assertions throw
        reason = " ".join(str(error).split())
        raise UnsupportedError(
            f"onnx.version_converter cannot convert opset {opset_of(proto)} to {target}: {reason}",
            hint=f"export the model with opset {target}",
        ) from error


def _merge(graph: GraphProto | FunctionProto, converted: GraphProto) -> None:
    """Give a graph or function the nodes of ``converted``, but its own wherever the two mean the same."""
    originals = {name: node for node in graph.node for name in node.output if name}
    nodes = []
    for node in converted.node:
        twin = next((originals[name] for name in node.output if name in originals), None)
        nodes.append(node if twin is None else _merge_node(twin, node))
    if isinstance(graph, GraphProto):
        known = {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}
        graph.initializer.extend(tensor for tensor in converted.initializer if tensor.name not in known)
    for index, node in enumerate(nodes):
        if node.name and not any(name in originals for name in node.output):
            # Of one node the converter makes several that share its name, and ONNX Runtime refuses those.
            nodes[index] = NodeProto()
            nodes[index].CopyFrom(node)
            nodes[index].ClearField("name")
    del graph.node[:]
    graph.node.extend(nodes)


def _merge_node(original: NodeProto, converted: NodeProto) -> NodeProto:
    merged = NodeProto()
    merged.CopyFrom(converted)
    before = {attribute.name: attribute for attribute in original.attribute}
    for attribute in merged.attribute:
        twin = before.get(attribute.name)
        if twin is not None and attribute.HasField("g"):
            body = GraphProto()
            body.CopyFrom(twin.g)
            _merge(body, attribute.g)
            attribute.g.CopyFrom(body)
    if merged.op_type == "Resize" and len(original.input) < 3:
        # Upsample, and Resize before opset 11, sample asymmetrically; the converter leaves the new default,
        # half_pixel, to take over.
        merged.attribute.append(helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
        merged.attribute.append(helper.make_attribute("nearest_mode", "floor"))
    references = {attribute.name for attribute in original.attribute if attribute.ref_attr_name}
    if _meaning(merged, references) == _meaning(original, references):
        return original
    if references:
        raise UnsupportedError(
            f"{original.op_type} in a local function cannot be converted: "
            f"{', '.join(sorted(references))} is an attribute of the function",
            hint="inline the model's local functions first (onnx.inliner.inline_local_functions)",
        )
    for field in ("doc_string", "metadata_props"):
        merged.ClearField(field)
    copy_fields(original, merged, without=("op_type", "domain", "input", "output", "attribute", "overload"))
    return merged


def _meaning(node: NodeProto, references: set[str]) -> tuple[object, ...]:
    """All of a node that makes a difference, except attributes taken from the function around it."""
    attributes = {
        attribute.name: attribute.SerializeToString(deterministic=True)
        for attribute in node.attribute
        if attribute.name not in references
    }
    return node.op_type, node.domain, list(node.input), list(node.output), attributes


def _set_opset(proto: ModelProto, version: int) -> None:
    # ONNX Runtime reads the bodies of local functions at the opset of the model, whatever they import.
    for imports in (proto.opset_import, *(function.opset_import for function in proto.functions)):
        for entry in imports:
            if entry.domain in DEFAULT_DOMAINS:
                entry.version = version


def _raise_ir(proto: ModelProto) -> None:
    needed = helper.find_min_ir_version_for(list(proto.opset_import), ignore_unknown=True)
    if proto.ir_version >= needed:
        return
    if proto.ir_version < 4:
        # Listing initializers as inputs was compulsory then; from IR 4 on it would make every weight
        # overridable.
        names = {tensor.name for tensor in proto.graph.initializer}
        kept = [value for value in proto.graph.input if value.name not in names]
        del proto.graph.input[:]
        proto.graph.input.extend(kept)
    proto.ir_version = needed
