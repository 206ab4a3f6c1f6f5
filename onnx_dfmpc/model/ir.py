"""Models of onnx-ir, which is imported only once the caller has one."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

from onnx import ModelProto

if TYPE_CHECKING:
    import onnx_ir


def is_ir_model(model: object) -> TypeGuard[onnx_ir.Model]:
    """Whether it is an ``onnx_ir.Model``: nothing is one before somebody has imported onnx-ir."""
    module = sys.modules.get("onnx_ir")
    return module is not None and isinstance(model, module.Model)


def to_proto(model: onnx_ir.Model) -> ModelProto:
    """Copy of a model as a proto, with the external tensors of its initializers in memory."""
    import onnx_ir

    # `load_to_model` puts tensors in memory into the model that it is given: that is a copy here, which
    # shares all others with the caller's.
    proto: ModelProto = onnx_ir.to_proto(onnx_ir.external_data.load_to_model(model.clone()))
    return proto


def from_proto(proto: ModelProto) -> Any:
    """Model of onnx-ir; its tensors share memory with ``proto``."""
    import onnx_ir

    return onnx_ir.from_proto(proto)
