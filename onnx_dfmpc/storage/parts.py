"""Pieces of a stored weight: what they are called, which nodes they make up, and what they weigh, before a
single code is known.

A ``WeightLayout`` is a weight without its numbers. Its size is exact, so that budgets can be planned with it,
and `WeightLayout.fill` puts the numbers in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from onnx_dfmpc.model.protobuf import framed, framed_size
from onnx_dfmpc.spec import QuantizedWeight
from onnx_dfmpc.storage.types import ITEM_BITS, StorageType, require_nominal_range

Numbers = Callable[[QuantizedWeight], NDArray[np.generic]]


@dataclass(frozen=True, eq=False)
class Slot:
    """A tensor whose numbers come from a ``QuantizedWeight``; ``numbers`` returns them in the element type,
    in any shape.
    """

    name: str
    data_type: int
    dims: tuple[int, ...]
    numbers: Numbers

    def empty(self) -> TensorProto:
        """The tensor without its numbers."""
        return TensorProto(name=self.name, data_type=self.data_type, dims=self.dims)

    def fill(self, weight: QuantizedWeight) -> TensorProto:
        """The tensor."""
        return numpy_helper.from_array(self.numbers(weight).reshape(self.dims), self.name)

    @property
    def size(self) -> int:
        """Bytes that it takes in the file."""
        content = -(-prod(self.dims) * ITEM_BITS[self.data_type] // 8)
        return framed(self.empty().ByteSize() + framed(content))


@dataclass(frozen=True, eq=False)
class StoredWeight:
    """Initializers and nodes that together make up a quantized weight, in the order of evaluation; ``output``
    is the float weight.
    """

    initializers: tuple[TensorProto, ...]
    nodes: tuple[NodeProto, ...]
    output: str

    @property
    def size(self) -> int:
        """Bytes that they take in the file."""
        return sum(framed_size(part) for part in (*self.initializers, *self.nodes))


@dataclass(frozen=True, eq=False)
class WeightLayout:
    """A stored weight without its numbers.

    Attributes
    ----------
    where : str
        The layer, for messages.
    slots : tuple of Slot
        Tensors that are still to be filled.
    constants : tuple of TensorProto
        Small tensors that are the same whatever the weight.
    nodes : tuple of NodeProto
        In the order of evaluation.
    shared : frozenset of str
        Constants that all the layers of a model have together (see ``planes.shared_parts``).
    output : str
        Name of the float weight.
    label : str
        What lies in the file, such as "UINT4".
    opset : int
        First opset that has all of it.
    reason : str
        What asks for that opset.
    """

    where: str
    slots: tuple[Slot, ...]
    constants: tuple[TensorProto, ...]
    nodes: tuple[NodeProto, ...]
    shared: frozenset[str]
    output: str
    label: str
    opset: int
    reason: str

    @property
    def size(self) -> int:
        """Bytes that it takes in the file, what it shares with other layers not counted."""
        return sum(slot.size for slot in self.slots) + sum(
            framed_size(part) for part in (*self.constants, *self.nodes)
        )

    def fill(self, weight: QuantizedWeight) -> StoredWeight:
        """Put the numbers in.

        Raises
        ------
        DfmpcError
            If codes or zero points are outside of their nominal bits.
        UnsupportedError
            If a scale does not fit the float type of the model, or QuantizeLinear would not find the codes
            again.
        """
        require_nominal_range(weight, self.where)
        return self._stored(slot.fill(weight) for slot in self.slots)

    def empty(self) -> StoredWeight:
        """Leave the numbers out: a stored weight that is too small, and no valid part of a model."""
        return self._stored(slot.empty() for slot in self.slots)

    def _stored(self, tensors: Any) -> StoredWeight:
        return StoredWeight((*tensors, *self.constants), self.nodes, self.output)


@dataclass(eq=False)
class LayoutBuilder:
    """WeightLayout in the making. All names begin with ``label``; intermediate results count letters."""

    label: str
    where: str
    slots: list[Slot] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)
    nodes: list[NodeProto] = field(default_factory=list)
    shared: set[str] = field(default_factory=set)
    opsets: dict[int, str] = field(default_factory=dict)

    def slot(self, suffix: str, data_type: int, dims: Sequence[int], numbers: Numbers) -> str:
        """Add a tensor; returns its name."""
        self.slots.append(Slot(self.label + suffix, data_type, tuple(dims), numbers))
        return self.slots[-1].name

    def integers(self, suffix: str, kind: StorageType, dims: Sequence[int], numbers: Numbers) -> str:
        """Add a tensor of an integer type that not every opset has; returns its name."""
        if kind.width < 8:
            self.needs(kind.opset, f"{kind.name} weights")
        return self.slot(suffix, kind.data_type, dims, numbers)

    def constant(self, suffix: str, data_type: int, values: Sequence[int]) -> str:
        """Add a small tensor of integers, written as varints; returns its name."""
        self.constants.append(helper.make_tensor(self.label + suffix, data_type, [len(values)], values))
        return self.constants[-1].name

    def node(self, op_type: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node without a name of its own; returns the name of its output."""
        output = output or f"{self.label}{chr(ord('A') + len(self.nodes))}"
        self.nodes.append(helper.make_node(op_type, inputs, [output], **attributes))
        return output

    def cast(self, name: str, data_type: int, output: str = "") -> str:
        """Add a Cast."""
        return self.node("Cast", name, output=output, to=data_type)

    def needs(self, opset: int, reason: str) -> None:
        """Require an opset."""
        self.opsets.setdefault(opset, reason)

    def finish(self, output: str, label: str) -> WeightLayout:
        """Everything that was added."""
        opset = max(self.opsets)
        parts = tuple(self.slots), tuple(self.constants), tuple(self.nodes)
        return WeightLayout(
            self.where, *parts, frozenset(self.shared), output, label, opset, self.opsets[opset]
        )
