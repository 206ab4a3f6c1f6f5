"""Walk a graph and let every operator act on the statistics of its inputs.

A value is a constant (also what exporters compute from shapes), a `Signal` (a random field, perhaps with its
elements moved about), or `Unknown` with the reason why nothing is known of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from onnx_dfmpc.model.constants import ConstantTable, outer_names
from onnx_dfmpc.model.protobuf import subgraphs
from onnx_dfmpc.statistics import views
from onnx_dfmpc.statistics.field import Field
from onnx_dfmpc.statistics.kinship import Activated
from onnx_dfmpc.statistics.views import NotCovered
from onnx_dfmpc.statistics.windows import attributes

Constant = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Signal:
    """A random tensor of batch size 1: a field, and which of its elements each element is (None: all, in
    order).
    """

    field: Field
    labels: views.Labels | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return (1, self.field.channels, *self.field.size) if self.labels is None else self.labels.shape

    @property
    def moved(self) -> views.Labels:
        """Labels of all elements."""
        return views.labels(self.shape) if self.labels is None else self.labels


@dataclass(frozen=True)
class Unknown:
    """Nothing is known of a value, and why."""

    reason: str


Value = Constant | Signal | Unknown


Rule = Callable[["Propagation", NodeProto], Value]


class Propagation:
    """Values of a graph's tensors, node by node.

    Parameters
    ----------
    proto : ModelProto
        The float model; `start` with its inputs.
    rules : mapping
        What operators do, by name; moving data about needs none.

    Attributes
    ----------
    table : ConstantTable
    values : dict
        What is known of the tensors that are still to be read.
    """

    def __init__(self, proto: ModelProto, rules: Mapping[str, Rule]) -> None:
        self.proto = proto
        self.table = ConstantTable(proto)
        self.values: dict[str, Value] = {}
        self._waiting = Counter(name for node in proto.graph.node for name in _reads(node))
        self._rules = rules
        self._birth = 0

    def start(self, name: str, value: Field | Unknown) -> None:
        """Say what is known of an input of the graph."""
        self.values[name] = Signal(value) if isinstance(value, Field) else value

    def birth(self) -> int:
        """Number of the next field."""
        self._birth += 1
        return self._birth

    def value(self, name: str) -> Value:
        """What is known of a tensor."""
        if name in self.values:
            return self.values[name]
        if name in self.table:
            return self.table[name]
        return Unknown(f"nothing is known of tensor {name!r}")

    def constant(self, name: str) -> Constant:
        """A tensor that has to be constant."""
        value = self.value(name)
        if not isinstance(value, np.ndarray):
            raise NotCovered(f"{name!r} is not constant")
        return value

    def field(self, name: str) -> Field:
        """A tensor as a field, channels on axis 1."""
        value = self.value(name)
        if isinstance(value, Unknown):
            raise NotCovered(value.reason)
        if not isinstance(value, Signal):
            raise NotCovered(f"{name!r} is constant")
        if value.labels is None:
            return value.field
        if value.labels.ndim < 2 or value.labels.shape[0] != 1:
            raise NotCovered(f"{name!r} has no axis of channels")
        found = views.read(value.field, value.labels, self.birth())
        if found is None:
            raise NotCovered(f"channels of {name!r} mix those of what it was made from")
        self.values[name] = Signal(found)
        return found

    def run(self, node: NodeProto) -> None:
        """Work out the outputs of a node, and forget what no node is left to read."""
        try:
            outputs = self._outputs(node)
        except NotCovered as error:
            outputs = [Unknown(str(error))] * len(node.output)
        for name, value in zip(node.output, outputs, strict=False):
            if name:
                self.values[name] = value
        for name in _reads(node):
            self._waiting[name] -= 1
            if not self._waiting[name]:
                self.values.pop(name, None)
        self._forget()

    def _forget(self) -> None:
        """Where everything passes through one field, what lies before it is of no more use."""
        live = {value.field.birth: name for name, value in self.values.items() if isinstance(value, Signal)}
        if len(live) == 1:
            for name, value in self.values.items():
                if isinstance(value, Signal) and isinstance(value.field.origin, Activated):
                    origin = replace(
                        value.field.origin, parent=replace(value.field.origin.parent, origin=None)
                    )
                    self.values[name] = replace(value, field=replace(value.field, origin=origin))
                elif isinstance(value, Signal):
                    self.values[name] = replace(value, field=replace(value.field, origin=None))

    def _outputs(self, node: NodeProto) -> list[Value]:
        if node.domain not in ("", "ai.onnx"):
            raise NotCovered(f"operator {node.domain}::{node.op_type}")
        values = {name: self.value(name) for name in node.input if name}
        for value in values.values():
            if isinstance(value, Unknown):
                raise NotCovered(value.reason)
        signals = [name for name, value in values.items() if isinstance(value, Signal)]
        if node.op_type == "Shape" and signals:
            values = {name: np.empty(self.values[name].shape, bool) for name in signals}  # type: ignore[union-attr]
            signals = []
        if not signals:
            if node.output[0] in self.table:
                return [self.table[node.output[0]]]
            return list(views.evaluate(node, values, self.proto))  # type: ignore[arg-type]
        if node.op_type in views.MOVING:
            return self._moved(node, signals, values)
        rule = self._rules.get(node.op_type)
        if rule is None:
            raise NotCovered(f"operator {node.op_type} of node {node.name or node.output[0]!r}")
        return [rule(self, node)]

    def _moved(self, node: NodeProto, signals: list[str], values: dict[str, Value]) -> list[Value]:
        if signals != [node.input[0]]:
            raise NotCovered(f"{node.op_type} of node {node.name or node.output[0]!r} depends on the input")
        source = self.values[signals[0]]
        assert isinstance(source, Signal)
        feeds = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        if node.op_type == "Pad" and (
            attributes(node).get("mode", b"constant") != b"constant" or np.any(feeds.get(_third(node), 0))
        ):
            raise NotCovered(f"Pad of node {node.name or node.output[0]!r} with other than zeros")
        moved = views.evaluate(node, {**feeds, signals[0]: source.moved}, self.proto)
        return [Signal(source.field, labels.astype(np.int64)) for labels in moved]


def _reads(node: NodeProto) -> list[str]:
    names = {name for name in node.input if name}
    for body in subgraphs(node):
        names.update(outer_names(body))
    return sorted(names)


def _third(node: NodeProto) -> str:
    return node.input[2] if len(node.input) > 2 else ""
