"""How integer codes look in the file: element types, packing, and the nodes that turn codes back into a float weight."""

from onnx_dfmpc.graph.storage.layouts import Outline, lay_out
from onnx_dfmpc.graph.storage.parts import Blueprint, StoredWeight
from onnx_dfmpc.graph.storage.planes import shared_parts
from onnx_dfmpc.graph.storage.types import StorageType, pack, storage_type

__all__ = ["Blueprint", "Outline", "StorageType", "StoredWeight", "lay_out", "pack", "shared_parts", "storage_type"]
