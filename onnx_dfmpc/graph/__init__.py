"""Models as files and protobufs: load, check, save, external data, opset and IR, constants, storage of integer codes."""

from onnx_dfmpc.graph.checks import verify
from onnx_dfmpc.graph.constants import ConstantTable, Uses, used_names
from onnx_dfmpc.graph.files import LoadedModel, load, require_writable, save
from onnx_dfmpc.graph.opset import MAX_OPSET, opset_of, raise_opset
from onnx_dfmpc.graph.storage import Blueprint, Outline, StorageType, StoredWeight, lay_out, pack, shared_parts, storage_type

__all__ = [
    "MAX_OPSET",
    "Blueprint",
    "ConstantTable",
    "LoadedModel",
    "Outline",
    "StorageType",
    "StoredWeight",
    "Uses",
    "lay_out",
    "load",
    "opset_of",
    "pack",
    "raise_opset",
    "require_writable",
    "save",
    "shared_parts",
    "storage_type",
    "used_names",
    "verify",
]
